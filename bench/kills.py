#!/usr/bin/env python
"""Random kills of the four commands that write, each followed by a resume: is the result that of an undisturbed run?

    python bench/kills.py [--n 100] [--seed 0] [--only prepare,fetch] [--tiny]

Each round starts a command in a process of its own (forked from one that has done the imports, which is most of a short run), ends
it at a random moment by SIGKILL or SIGTERM (up to three times), and lets it run to its end. Compared are bytes: of every file for prepare and fetch; of masks and counts for compare; for fit the weights,
the history but for the clock, and the scores. A round that was over before the kill came is counted apart.
"""
import argparse, hashlib, json, os, platform, random, select, shutil, signal, subprocess, sys, tempfile, threading, time, traceback
from datetime import date
from pathlib import Path

os.environ.update(NO_ALBUMENTATIONS_UPDATE='1', WANDB_MODE='offline', HF_HUB_OFFLINE='1', MPLBACKEND='Agg')
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tests'))


# --- the commands, as they run in a process of their own

def do_prepare(home, out):
    from seglab.masks import prepare
    from seglab.sample import find_coco
    prepare(*find_coco(home/'sample')[0], out, size=64, workers=2)

def segmenter(seed=0):
    import torch
    from seglab.model import build_model
    torch.manual_seed(seed)
    return build_model('segformer', ['background', 'object'], weights=None, depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)

def do_fit(home, out):
    from seglab.dataset import load_data
    from seglab.model import build_model
    from seglab.train import fit
    import torch
    data = load_data(home/'prepared', 'things')
    torch.manual_seed(0)
    net = build_model('segformer', data[0].labels, weights=None, depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)
    fit(net, data, epochs=3, lr=1e-3, out=out, workers=0, progress=False, pictures=1, logging_steps=2, save_strategy='steps', save_steps=4)

def do_compare(home, out):
    from seglab.compare import compare
    compare({'one': home/'model1', 'two': home/'model2'}, home/'prepared', out, split='val', measure=False, batch_size=2, n_boot=200)

def do_fetch(home, out):
    from seglab.sample import CocoZip, fetch_coco
    zips = {k: CocoZip(*v) for k, v in json.loads((home/'zips.json').read_text()).items()}
    fetch_coco('toy', out, base_url=(home/'url').read_text(), zips=zips, backoff=0)


# --- what must be equal

def files(out, skip=()):
    "{name: digest} of every file."
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.rglob('*')) if p.is_file() and p.name not in skip}

def of_prepare(out):
    info = json.loads((out/'prepare.json').read_text())
    return files(out, ('prepare.json',)), {k: v for k, v in info.items() if k != 'seconds'}

def of_fit(out):
    from safetensors.torch import load_file
    from seglab.train import Run
    run = Run(out)
    last = max(out.glob('checkpoint-*'), key=lambda p: int(p.name[11:]))
    weights = {f'{d}/{k}': hashlib.sha256(v.numpy().tobytes()).hexdigest() for d, f in (('last', last), ('best', run.best)) for k, v in load_file(f/'model.safetensors').items()}
    history = run.history.drop(columns=['images_per_second', 'data_wait', 'eval_images_per_second'])
    return weights, history.to_csv(), run.scores, sorted(p.name for p in out.iterdir())

def of_compare(out):
    found = json.loads((out/'scores.json').read_text())
    for m in found['models'].values(): m.pop('seconds')
    found.pop('date')
    return {k: v for k, v in files(out).items() if k.endswith('.png')}, found, sorted(p.name for p in out.iterdir())

def of_fetch(out): return files(out)


# --- the rounds

def make_home(home, n):
    "Photos, a prepared folder, two models and two zips: what the commands work on."
    import test_fetch
    from seglab.masks import prepare
    from seglab.dataset import label_space
    from seglab.sample import find_coco, make_sample
    prepare(*find_coco(make_sample(home/'sample', n=n, size_hw=(72, 96), broken=True))[0], home/'prepared', size=64, workers=1, split=.4)
    from seglab.dataset import SegDataset
    labels = SegDataset(home/'prepared', labels='things').labels
    for k in (1, 2):
        s = segmenter(k)
        s.labels = labels
        s.save_pretrained(home/f'model{k}')
    photos = {f'toy/{i:04d}.jpg': bytes([i])*20_000 for i in range(60)}
    data, zips = test_fetch.entry(photos=test_fetch.zipped(photos))
    server = test_fetch.Server(data, always='slow')
    threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
    (home/'url').write_text(server.url)
    (home/'zips.json').write_text(json.dumps({k: [v.address, v.size, v.sha256, 60 if k == 'toy' else 5] for k, v in zips.items()}))

def nursery():
    "A process that has done the imports and forks one child for each line it reads: says its id, then its exit status."
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    import seglab.compare, seglab.masks, seglab.sample, seglab.train, transformers.trainer
    print('ready', file=answers)
    for line in sys.stdin:
        what, home, out, said = json.loads(line)
        pid = os.fork()
        if not pid:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for fd in (1, 2): os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
            code = 1
            try:
                globals()[f'do_{what}'](Path(home), Path(out))
                code = 0
            except BaseException: traceback.print_exc()
            finally:
                sys.stdout.flush(); sys.stderr.flush()
                os._exit(code)
        print(pid, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)

class Command:
    "A command at work in a process group of its own."
    mother = None

    def __init__(self, what, home, out):
        if Command.mother is None:
            Command.mother = subprocess.Popen([sys.executable, __file__, '--nursery'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert Command.mother.stdout.readline() == 'ready\n', 'the imports failed'
        self.said = home/'said.txt'
        self.said.unlink(missing_ok=True)
        Command.mother.stdin.write(json.dumps([what, str(home), str(out), str(self.said)]) + '\n')
        Command.mother.stdin.flush()
        self.pid = int(Command.mother.stdout.readline())

    def ended(self):
        "Has it ended by itself so far?"
        return bool(select.select([Command.mother.stdout], [], [], 0)[0])

    def kill(self, sig):
        try: os.kill(self.pid, sig)
        except ProcessLookupError: pass

    def finish(self, limit=30):
        "Wait for the process, and so many seconds for the rest of its group; its exit status and what it said."
        code, end = int(Command.mother.stdout.readline()), time.monotonic() + limit
        while time.monotonic() < end:
            try: os.killpg(self.pid, 0)
            except ProcessLookupError: return code, self.said.read_text() if self.said.exists() else ''
            time.sleep(.01)
        raise AssertionError('a worker goes on alone')

def undisturbed(what, home):
    "The result to be equal to, and the seconds it took."
    out = home/f'{what}-whole'
    t = time.monotonic()
    code, err = Command(what, home, out).finish()
    assert code == 0, err[-2000:]
    return globals()[f'of_{what}'](out), time.monotonic() - t

def attack(what, home, seed, whole, seconds):
    "One round: killed at random moments, then run to its end. (kills that hit, is the result equal?, what was wrong)"
    rng, out, hits = random.Random(f'{what} {seed}'), home/f'{what}-{seed}', 0
    for _ in range(rng.randint(1, 3)):
        p = Command(what, home, out)
        time.sleep(rng.uniform(0, seconds))
        hit = not p.ended()
        p.kill(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        p.finish()
        hits += hit
        if not hit: break
    code, err = Command(what, home, out).finish()
    if code: return hits, False, err[-600:]
    equal = globals()[f'of_{what}'](out) == whole
    if equal:
        shutil.rmtree(out)
    return hits, equal, '' if equal else f'another result, kept in {out}'

COMMANDS = 'prepare', 'fit', 'compare', 'fetch'

def rounds(n, home, seed=0, only=COMMANDS, photos=60):
    "{command: (rounds, kills, equal)} of n rounds, the commands in turns; and what went wrong."
    make_home(home, photos)
    Command(only[0], home, home/'warm').finish()  # the first one reads from the disk what later ones have in memory
    whole = {what: undisturbed(what, home) for what in only}
    table, wrong = {what: [0, 0, 0] for what in only}, []
    for k in range(n):
        what = only[k % len(only)]
        hits, equal, why = attack(what, home, seed + k, *whole[what])
        for i, v in enumerate((1, hits, equal)): table[what][i] += v
        if not equal:
            wrong.append(f'{what}, seed {seed + k}: {why}')
            print(wrong[-1], file=sys.stderr, flush=True)
        if k % 10 == 9: print(f'{k + 1} rounds, {sum(t[1] for t in table.values())} kills, {len(wrong)} wrong', file=sys.stderr, flush=True)
    return {w: dict(rounds=r, kills=k, equal=e, seconds=round(whole[w][1], 1)) for w, (r, k, e) in table.items()}, wrong

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=100, help='rounds, over the commands in turns')
    p.add_argument('--seed', type=int, default=0, help='of the first round; a failure names its own')
    p.add_argument('--only', default=','.join(COMMANDS), help='these commands')
    p.add_argument('--tiny', action='store_true', help='a round for each command: does it run?')
    p.add_argument('--nursery', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.nursery: return nursery()
    only = a.only.split(',')
    unknown = [w for w in only if w not in COMMANDS]
    if unknown: p.exit(1, f"{', '.join(unknown)} is no command: take {', '.join(COMMANDS)}.\n")
    d = Path(tempfile.mkdtemp(prefix='seglab-kills-'))
    table, wrong = rounds(len(only) if a.tiny else a.n, d, a.seed, only, 24 if a.tiny else 60)
    if not wrong: shutil.rmtree(d)
    print(f"{'command':10}{'rounds':>8}{'kills':>8}{'equal':>8}{'undisturbed s':>15}")
    for what, r in table.items(): print(f"{what:10}{r['rounds']:8}{r['kills']:8}{r['equal']:8}{r['seconds']:15.1f}")
    print(*wrong, sep='\n')
    import torch
    print(json.dumps(dict(bench='kills', **table, wrong=wrong, seed=a.seed, date=date.today().isoformat(), machine=f'{platform.machine()}, {os.cpu_count()} cores', torch=torch.__version__, python=platform.python_version())))
    sys.exit(bool(wrong))

if __name__ == '__main__': main()
