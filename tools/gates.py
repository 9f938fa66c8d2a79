#!/usr/bin/env python
"""The gates every change passes: clean, export, readme, symbols, notebooks, tests, docs.

    gates.py              all of them, in this order; the last line counts the notebooks
    gates.py clean docs   only these
"""
import hashlib, json, os, re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
QUIET = dict(NO_ALBUMENTATIONS_UPDATE='1', WANDB_MODE='offline', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false',
             MPLBACKEND='Agg', OMP_NUM_THREADS='1')

def run(*cmd, **kwargs):
    "Run a command of this environment in the project's root; its exit status."
    return subprocess.run([str(c) for c in cmd], cwd=ROOT, env={**os.environ, **QUIET}, **kwargs)

def fingerprints(*folders):
    "Digest of every file under these folders."
    files = [p for f in folders for p in (ROOT/f).rglob('*') if p.is_file() and '__pycache__' not in p.parts
             and '.ipynb_checkpoints' not in p.parts]
    return {p.relative_to(ROOT).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def unchanged(command, folder):
    "Whether a command leaves a folder as it is; what it changed stays changed, to be looked at and committed."
    before = fingerprints(folder)
    if run(BIN/command).returncode: return f'{command} failed'
    after = fingerprints(folder)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if changed: return f"{command} changed {', '.join(changed)}; commit what it wrote"

def clean(): return unchanged('nbdev_clean', 'nbs')
def export(): return unchanged('nbdev_export', 'seglab')
def readme(): return 'README.md is not in step' if run(sys.executable, 'tools/readme.py', '--check').returncode else None
def symbols(): return 'public symbols are not all documented' if run(sys.executable, 'tools/symbols.py').returncode else None
def docs(): return 'the site does not build' if run(sys.executable, 'tools/docs.py').returncode else None

def workers():
    "How many processes to use: as many as there are cores, two at most, since each of them holds torch."
    return int(os.environ.get('SEGLAB_WORKERS') or min(2, os.cpu_count() or 1))

# files that take minutes begin first, so that two processes end together; all others follow by name
LONG = 'share', 'cli', 'bench', 'gpu_script', 'train_distributed', 'compare', 'model', 'tracking', 'train_resume', 'faults_prepare', 'gates'

def test_files():
    "Test files, the long ones first."
    files = sorted((ROOT/'tests').glob('test_*.py'))
    rank = {f'test_{name}': i for i, name in enumerate(LONG)}
    return sorted(files, key=lambda p: rank.get(p.stem, len(rank)))

def tests():
    "pytest, in whole files on two cores; its output as it comes."
    files = test_files()
    n = min(workers(), len(files))
    many = ('-n', n, '--dist', 'loadfile', '--no-loadscope-reorder') if n > 1 and find_spec('xdist') else ()
    return 'pytest failed' if run(sys.executable, '-m', 'pytest', '-q', '-rfEs', '--durations=25', *many, *files).returncode else None

def test_notebook(path):
    "One notebook through `nbdev_test` in a process of its own: name, whether it passed, seconds, what it printed."
    start = time.perf_counter()
    done = run(BIN/'nbdev_test', '--path', path, capture_output=True, text=True)
    passed = done.returncode == 0 and 'Success.' in done.stdout
    return path.relative_to(ROOT/'nbs').as_posix(), passed, time.perf_counter() - start, done.stdout + done.stderr

def chapters():
    "The notebooks that `nbdev_test` would take, the longest first so that two workers end together."
    paths = [p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and not p.name.startswith('_')]
    return sorted(paths, key=lambda p: -len(p.read_bytes()))

counted = None

def notebooks():
    global counted
    with ThreadPoolExecutor(workers()) as pool:
        results = []
        for name, passed, seconds, text in pool.map(test_notebook, chapters()):
            print(f"  {'passed' if passed else 'FAILED'} {seconds:6.1f} s  {name}", flush=True)
            if not passed: print(text, flush=True)
            results.append(passed)
    counted = f'notebooks: {sum(results)} passed, {len(results) - sum(results)} failed'
    return None if results and all(results) else counted

GATES = dict(clean=clean, export=export, readme=readme, symbols=symbols, notebooks=notebooks, tests=tests, docs=docs)

def main(names):
    unknown = [n for n in names if n not in GATES]
    if unknown: sys.exit(f"gates: no gate called {', '.join(unknown)}; there are {', '.join(GATES)}")
    faults = {}
    for name in names or GATES:
        print(f'== {name}', flush=True)
        start = time.perf_counter()
        fault = GATES[name]()
        if fault: faults[name] = fault
        print(f"== {name}: {fault or 'holds'} ({time.perf_counter() - start:.0f} s)", flush=True)
    for name, fault in faults.items(): print(f'gate {name}: {fault}')
    if counted: print(counted)
    sys.exit(1 if faults else 0)

if __name__ == '__main__': main(sys.argv[1:])
