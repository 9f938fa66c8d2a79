#!/usr/bin/env python
"""Is this tree as fast as another commit? Both are timed in turns, in one run.

    python bench/before_after.py REF [--coco DIR] [--rounds 7] [--limit 1.03]
    python bench/before_after.py REF --tiny          seconds; does it run?

A process for each tree does the same work whenever it is told to, one after the other, so that a neighbour who slows the
machine slows both; who begins changes with each round. Timed are `prepare` (files and packed, one process), `read_coco`, a
pass of the loader, a training step of U-Net by `fit`, and counting. A ratio is the time of this tree over that of REF,
within a round, by the clock and by the processor; the medians are printed. The processor's time is the one to believe on a
machine that has other work too. Exit status 1 if one of its medians is above --limit.
"""
import argparse, contextlib, inspect, json, os, shutil, statistics, subprocess, sys, tarfile, tempfile, time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHAT = 'prepare', 'pack', 'read_coco', 'loader', 'step', 'counting'

# --- in the child: the same work under the words of either tree

def spoken(func, **words):
    "Arguments under the name that this tree has for them: `size_hw__size=64` is size_hw here and size there."
    known = inspect.signature(func).parameters
    return {next((n for n in name.split('__') if n in known), name.split('__')[0]): value for name, value in words.items()}

class Memory:
    "Photos and masks in memory, so that the step is what is timed."
    def __init__(self, n, side, space):
        import torch
        g = torch.Generator().manual_seed(0)
        self.labels = self.label_space = space
        self.x = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=g)
        self.y = torch.randint(0, space.num_labels, (n, side, side), dtype=torch.uint8, generator=g)
        self.stems = [str(i) for i in range(n)]
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return dict(pixel_values=self.x[i], labels=self.y[i])

def work(annotations, photos, home, tiny):
    "{what: function that does it once}"
    import torch
    from seglab import dataset, masks, metrics, train, unet
    try: from seglab.coco import read_coco
    except ImportError: read_coco = masks.read_coco
    torch.set_num_threads(1)
    side, n = (32, 8) if tiny else (256, None)
    def prepare(pack, out=None):
        target = out or tempfile.mkdtemp(dir=home) + '/p'
        with contextlib.redirect_stdout(open(os.devnull, 'w')):
            masks.prepare(annotations, photos, target, workers=1, pack=pack, n_images=n, **spoken(masks.prepare, size_hw__size=side))
        if not out: shutil.rmtree(Path(target).parent)
        return target
    ready = prepare(False, f'{home}/ready')
    ds = dataset.SegDataset(ready, None, 'all', dataset.train_tfms((side, side)))
    space = dataset.LabelSpace.from_names([f'c{i}' for i in range(21)])
    data, steps = Memory(16, side if tiny else 128, space), 3 if tiny else 8
    torch.manual_seed(0)
    net = unet.build_unet(space, 'resnet18', None)
    pred = torch.randint(0, 21, (8, 256, 256), dtype=torch.uint8)
    def loader():
        for _ in torch.utils.data.DataLoader(ds, 8, collate_fn=dataset.collate): pass
    def step():
        with contextlib.redirect_stdout(open(os.devnull, 'w')):
            train.fit(net, (data, data), epochs=1, batch_size=4, **({'recipe': 'assignment'} if 'recipe' in inspect.signature(train.fit).parameters else {}), out=tempfile.mkdtemp(dir=home) + '/r', workers=0, pictures=0, progress=False, resume=False,
                      precision='fp32', report_to='none', max_steps=steps, logging_steps=steps, eval_strategy='no', save_strategy='no')
    def counting():
        for _ in range(2 if tiny else 40): metrics.confusion_matrix(pred, pred, 21)
    return dict(prepare=lambda: prepare(False), pack=lambda: prepare(True), read_coco=lambda: read_coco(annotations), loader=loader, step=step, counting=counting)

def used(): return time.process_time() + sum(os.times()[2:4])

def child(annotations, photos, home, tiny):
    "Do what a line on standard input names, and answer with the seconds that it took, by the clock and by the processor."
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    jobs = work(annotations, photos, home, tiny)
    print('ready', file=answers)
    for line in sys.stdin:
        t, c = time.perf_counter(), used()
        jobs[line.strip()]()
        print(json.dumps([time.perf_counter() - t, used() - c]), file=answers)

# --- the parent

def start(tree, args):
    env = os.environ | dict(PYTHONPATH=str(tree), NO_ALBUMENTATIONS_UPDATE='1', WANDB_MODE='offline', HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', MPLBACKEND='Agg')
    return subprocess.Popen([sys.executable, __file__, '--child', json.dumps(args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=tree)

def ask(process, what):
    process.stdin.write(what + '\n')
    process.stdin.flush()
    line = process.stdout.readline()
    if not line: sys.exit(f'before_after: the process that did {what} ended')
    return json.loads(line)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('ref', nargs='?', help='a commit, branch or tag of this repository, or a folder that holds a tree')
    p.add_argument('--coco', default=os.environ.get('SEGLAB_DATA') and os.environ['SEGLAB_DATA'] + '/coco343', help='a COCO folder [coco343 in $SEGLAB_DATA, else drawn photos]')
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--limit', type=float, default=1.03)
    p.add_argument('--only', nargs='+', default=WHAT, choices=WHAT)
    p.add_argument('--tiny', action='store_true')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child(*json.loads(a.child))
    if not a.ref: p.error('give REF, what to compare with')
    ram = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=ram) as tmp:
        tmp, trees = Path(tmp), dict(before=Path(a.ref).resolve() if Path(a.ref).is_dir() else Path(tmp)/'before', after=ROOT)
        if not Path(a.ref).is_dir():
            archive = subprocess.run(['git', 'archive', a.ref, 'seglab'], cwd=ROOT, capture_output=True)
            if archive.returncode: sys.exit(f'before_after: git knows no {a.ref!r}')
            (tmp/'before.tar').write_bytes(archive.stdout)
            with tarfile.open(tmp/'before.tar') as tar: tar.extractall(trees['before'], filter='data')
        sys.path.insert(0, str(ROOT))
        from seglab.fetch import find_coco
        from seglab.sample import make_sample
        coco = a.coco if a.coco and not a.tiny else make_sample(tmp/'drawn', n=8 if a.tiny else 120)
        annotations, photos = map(str, find_coco(coco)[0])
        for name in trees: (tmp/f'home-{name}').mkdir()
        running = {name: start(tree, [annotations, photos, str(tmp/f'home-{name}'), a.tiny]) for name, tree in trees.items()}
        took = {what: {name: [] for name in trees} for what in a.only}
        try:
            for name, process in running.items():
                if process.stdout.readline() != 'ready\n': sys.exit(f'before_after: the tree {name} does not begin')
            for r in range(1 + (1 if a.tiny else a.rounds)):                               # the first round warms up
                for what in a.only:
                    for name in (list(trees) if r % 2 else list(trees)[::-1]):
                        seconds = ask(running[name], what)
                        if r: took[what][name].append(seconds)
        finally:
            for process in running.values(): process.kill(); process.wait()
    rows = {what: [dict(before=round(statistics.median(b[k] for b in t['before']), 4), after=round(statistics.median(x[k] for x in t['after']), 4),
                        ratio=round(statistics.median(x[k]/max(b[k], 1e-9) for b, x in zip(t['before'], t['after'])), 3)) for k in (0, 1)] for what, t in took.items()}
    print(f"{'':12}{'before s':>10}{'after s':>10}{'ratio':>8}    {'cpu: before':>12}{'after':>10}{'ratio':>8}")
    for what, (wall, cpu) in rows.items():
        print(f"{what:12}{wall['before']:10.3f}{wall['after']:10.3f}{wall['ratio']:8.3f}    {cpu['before']:12.3f}{cpu['after']:10.3f}{cpu['ratio']:8.3f}")
    slower = [what for what, (_, cpu) in rows.items() if cpu['ratio'] > a.limit and not a.tiny]
    print(json.dumps(dict(bench='before_after', ref=a.ref, date=date.today().isoformat(), rounds=a.rounds, limit=a.limit, wall={w: r[0] for w, r in rows.items()},
                          cpu={w: r[1] for w, r in rows.items()})))
    if slower: sys.exit(f"before_after: slower than {a.limit:g}: {', '.join(slower)}")

if __name__ == '__main__': main()
