#!/usr/bin/env python
"""The gates every change passes: clean, export, readme, names, symbols, messages, house, package, notebooks, tests, docs.

    gates.py              all of them, in this order; the last line counts the notebooks
    gates.py clean docs   only these
"""
import hashlib, os, shutil, subprocess, sys, tarfile, tempfile, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_all_start_methods, get_context, set_start_method
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
QUIET = dict(NO_ALBUMENTATIONS_UPDATE='1', WANDB_MODE='offline', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false',
             MPLBACKEND='Agg', OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='')
sys.dont_write_bytecode = False    # a library is compiled once, not anew in each of a hundred processes

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
def messages(): return 'a message has another form' if run(sys.executable, 'tools/messages.py', '--check').returncode else None
def house(): return 'the house breaks its rules' if run(sys.executable, 'tools/house.py', '--check').returncode else None
def docs(): return 'the site does not build' if run(sys.executable, 'tools/docs.py').returncode else None

def workers():
    "How many processes to use: as many as there are cores, two at most, since each of them holds torch."
    return int(os.environ.get('SEGLAB_WORKERS') or min(2, os.cpu_count() or 1))

NAMES = """
import sys, seglab
assert not {'torch', 'numpy', 'pandas'} & set(sys.modules), 'import seglab loads torch, numpy or pandas'
listed = sorted(n for names in [*seglab._PUBLIC.values()] for n in names.split())
assert dir(seglab) == listed, f'dir(seglab) is not the written list: {sorted(set(dir(seglab)) ^ set(listed))}'
public = [n for n in vars(seglab) if n[0] != '_' and n not in listed]
assert not public, f'seglab has names that are not on the list: {public}'
missing = [n for n in listed if not hasattr(seglab, n)]
assert not missing, f'names on the list that no module has: {missing}'
"""

def names():
    "Is what `seglab` hands out exactly the written list, and `import seglab` light?"
    done = run(sys.executable, '-c', NAMES, capture_output=True, text=True)
    if done.returncode: return (done.stderr.strip().splitlines() or ['no word'])[-1]

def tests():
    "pytest, its tests shared out by whoever is free; its output as it comes."
    many = ('-n', workers(), '--dist', 'worksteal') if workers() > 1 and find_spec('xdist') else ()
    keep = '-o', 'tmp_path_retention_policy=failed'                        # a whole run leaves 6 GB otherwise
    done = run(sys.executable, '-m', 'pytest', '-q', '-rfEs', '--durations=25', *keep, *many, 'tests')
    return 'pytest failed' if done.returncode else None

BUILD = 'import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))'
OUTSIDE = """
import sys, seglab
from pathlib import Path
assert Path(seglab.__file__).is_relative_to(sys.argv[1]), f'{seglab.__file__} is not the installed one'
for name in dir(seglab): getattr(seglab, name)
"""

def built(kind, folder, out):
    "Build an sdist or a wheel of a folder; its path, or None."
    done = subprocess.run([sys.executable, '-c', BUILD, f'build_{kind}', str(out)], cwd=folder, capture_output=True, text=True)
    if done.returncode: print(done.stdout[-2000:] + done.stderr[-2000:])
    return None if done.returncode else out/done.stdout.strip().splitlines()[-1]

def package():
    "An sdist, a wheel made from it, and both at work in a folder outside of this one."
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        shutil.copytree(ROOT, tmp/'tree', ignore=shutil.ignore_patterns('.git', '.venv', '_docs', '_proc', 'build', 'data', '*.egg-info', 'runs', 'demo'))
        sdist = built('sdist', tmp/'tree', tmp)
        if sdist is None: return 'no sdist can be built'
        with tarfile.open(sdist) as tar: tar.extractall(tmp/'unpacked', filter='data')
        wheel = built('wheel', next((tmp/'unpacked').iterdir()), tmp)
        if wheel is None: return 'the sdist cannot be built'
        wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT/'seglab').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
        missing = wanted - set(zipfile.ZipFile(wheel).namelist())
        if missing: return f"the wheel lacks {', '.join(sorted(missing))}"
        into = tmp/'site'
        install = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', str(into), str(wheel)]
        if subprocess.run(install, cwd=tmp).returncode: return 'the wheel does not install'
        env = {**os.environ, **QUIET, 'PYTHONPATH': str(into)}
        for command in ([sys.executable, '-c', OUTSIDE, str(into)], [str(into/'bin'/'seglab'), '--version']):
            if subprocess.run(command, cwd=tmp, env=env).returncode: return 'the installed package does not work outside the clone'

HEAVY = ('nbdev.test', 'torch', 'transformers.trainer', 'segmentation_models_pytorch', 'albumentations', 'pandas', 'matplotlib.pyplot')

def run_notebook(path, home):
    "`nbdev_test`, with all that it prints and leaves in a temporary folder."
    set_start_method(None, force=True)     # this system's own again, for what the notebook starts
    os.environ['TMPDIR'] = tempfile.tempdir = str(home)
    for fd in (1, 2): os.dup2(os.open(home/'said', os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
    from nbdev.test import nbdev_test
    nbdev_test(path)

def test_notebook(context, path):
    "One notebook in a process of its own, which may die: name, whether it passed, seconds, what it printed."
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as tmp:
        (said := Path(tmp)/'said').touch()
        process = context.Process(target=run_notebook, args=(path, Path(tmp)))
        process.start()
        process.join()
        text = said.read_text(encoding='utf-8', errors='replace')
    passed = process.exitcode == 0 and 'Success.' in text
    return path.relative_to(ROOT/'nbs').as_posix(), passed, time.perf_counter() - start, text

def clean_processes(n):
    "How to start processes that begin clean; where there are many, what is slow to import is there before."
    if 'forkserver' not in get_all_start_methods(): return get_context('spawn')
    context = get_context('forkserver')
    if n > 8: context.set_forkserver_preload(HEAVY)
    return context

def chapters():
    "The notebooks that `nbdev_test` would take, the longest first so that two workers end together."
    paths = [p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and not p.name.startswith('_')]
    return sorted(paths, key=lambda p: -len(p.read_bytes()))

counted = None

def notebooks():
    global counted
    os.environ.update(QUIET)
    paths, results = chapters(), []
    with ThreadPoolExecutor(workers()) as pool:
        for name, passed, seconds, text in pool.map(partial(test_notebook, clean_processes(len(paths))), paths):
            print(f"  {'passed' if passed else 'FAILED'} {seconds:6.1f} s  {name}", flush=True)
            if not passed: print(text, flush=True)
            results.append(passed)
    counted = f'notebooks: {sum(results)} passed, {len(results) - sum(results)} failed'
    return None if results and all(results) else counted

GATES = dict(clean=clean, export=export, readme=readme, names=names, symbols=symbols, messages=messages, house=house,
             package=package, notebooks=notebooks, tests=tests, docs=docs)

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
