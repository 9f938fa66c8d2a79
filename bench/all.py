#!/usr/bin/env python
"""Run every benchmark of this folder but the GPU's, and keep what each finds in nbs/results/bench_<name>.json.

    python bench/all.py --coco DIR            all of them but before_after, on real COCO photos; for a machine that does nothing else
    python bench/all.py prepare loader        only these
    python bench/all.py --quick               fewer rounds: rough numbers, marked so in the files
    python bench/all.py --tiny                seconds each, on drawn input, files to a folder that is thrown away: do they run?

DIR holds annotations/instances_*.json beside the photos, as `seglab fetch` leaves them; drawn photos serve without one.
A file holds the script's own JSON line under "result", and around it date, machine, load and command. A benchmark that
fails is named at the end, its old file stays, and the exit status is 1.
"""
import argparse, json, os, platform, re, subprocess, sys, tempfile, time
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
from seglab.files import versions
FULL = dict(start=[], read_coco=['ANNOTATIONS'], prepare=['ANNOTATIONS', 'PHOTOS', '--ram', 'RAM', '--times', '4', '--repeats', '3'], anatomy=['ANNOTATIONS', 'PHOTOS', '--out', 'RAM'],
            loader=['--coco', 'COCO'], metrics=[], evaluate=[], train_step=[])
QUICK = dict(start=['--repeats', '3'], read_coco=['--megabytes', '60', '--repeats', '2'], prepare=['--n', '120', '--repeats', '2'],
             anatomy=['--n', '120', '--repeats', '1'], loader=['--photos', '120', '--rounds', '2'], metrics=[],
             evaluate=['--photos', '40', '--masks', '5000', '--rounds', '1'], train_step=['--steps', '3', '--warmup', '1', '--rounds', '1'])
PACKAGES = ('numpy', 'opencv-python-headless', 'simplejpeg', 'pycocotools', 'torch', 'transformers', 'segmentation-models-pytorch', 'torchmetrics')

def processor():
    "The processor's name, as the system tells it."
    try: return re.search(r'^model name\s*:\s*(.+)$', Path('/proc/cpuinfo').read_text(), re.M)[1]
    except (OSError, TypeError): return platform.processor() or platform.machine()

def memory_gib():
    "GiB of memory, where the system tells."
    try: return round(os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/2**30, 1)
    except (AttributeError, ValueError, OSError): return None

def load(): return round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None

def run(name, words, given, timeout):
    "One script: (its JSON line, what it printed, its fault or '')."
    cmd = [sys.executable, str(HERE/f'{name}.py'), *[given.get(w, w) for w in words]]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])))
    try: done = subprocess.run(cmd, capture_output=True, text=True, timeout=timeout, env=env)
    except subprocess.TimeoutExpired: return None, '', f'not done after {timeout:.0f} s'
    if done.returncode: return None, done.stdout, (done.stderr.strip().splitlines() or ['no word'])[-1]
    lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
    if not lines: return None, done.stdout, 'no JSON line came out'
    return json.loads(lines[-1]), '\n'.join(line for line in done.stdout.splitlines() if not line.startswith('{')).strip(), ''

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', help=', '.join(FULL))
    p.add_argument('--coco', default=None, help='a folder with COCO annotations and photos [the folder coco343 in $SEGLAB_DATA, else drawn ones]')
    p.add_argument('--out', default=None, help='where the files go [nbs/results; with --tiny a folder that is thrown away]')
    p.add_argument('--quick', action='store_true', help='fewer rounds')
    p.add_argument('--tiny', action='store_true', help='does each run?')
    p.add_argument('--timeout', type=float, default=3600, help='seconds for each script')
    a = p.parse_args()
    unknown = [n for n in a.names if n not in FULL]
    if unknown: p.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(FULL)}")
    data = os.environ.get('SEGLAB_DATA')
    if a.coco is None and data and (Path(data)/'coco343').is_dir(): a.coco = str(Path(data)/'coco343')
    faults = {}
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(a.out) if a.out else Path(tmp)/'results' if a.tiny else ROOT/'nbs'/'results'
        out.mkdir(parents=True, exist_ok=True)
        given = dict(RAM='/dev/shm' if os.access('/dev/shm', os.W_OK) else tmp)
        if not a.tiny:
            from seglab.fetch import find_coco
            from seglab.sample import make_sample
            coco = a.coco or str(make_sample(Path(tmp)/'drawn', n=200))
            annotations, photos = find_coco(coco)[0]
            given |= dict(COCO=coco, ANNOTATIONS=str(annotations), PHOTOS=str(photos))
        for name in a.names or FULL:
            words = ['--tiny'] if a.tiny else FULL[name] + (QUICK[name] if a.quick else [])
            start, before = time.perf_counter(), load()
            print(f'== {name}', flush=True)
            result, text, fault = run(name, words, given, a.timeout)
            seconds = time.perf_counter() - start
            if fault: faults[name] = fault; continue
            print(f'{text}\n== {name}: {seconds:.0f} s\n', flush=True)
            kept = dict(name=name, mode='tiny' if a.tiny else 'quick' if a.quick else 'full', date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
                        photos='drawn' if a.tiny or not a.coco else 'COCO', command=' '.join(['python', f'bench/{name}.py', *words]),
                        machine=dict(processor=processor(), cores=os.cpu_count(), memory_gib=memory_gib(), system=platform.system(), architecture=platform.machine()),
                        load_before=before, load_after=load(), seconds=round(seconds, 1), versions=versions(*PACKAGES), result=result)
            part = out/f'.bench_{name}.json'
            part.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
            os.replace(part, out/f'bench_{name}.json')
    for name, fault in faults.items(): print(f'bench {name}: {fault}', file=sys.stderr)
    print(f'bench: {len(a.names or FULL) - len(faults)} done, {len(faults)} failed')
    sys.exit(1 if faults else 0)

if __name__ == '__main__': main()
