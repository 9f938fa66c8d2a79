"The commands as a shell sees them: help, one-line mistakes, exit codes, Ctrl-C, speed of the help."
import csv, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import cv2, numpy as np, pytest

COMMANDS = ['seglab_fetch', 'seglab_prepare', 'seglab_train', 'seglab_compare', 'seglab_predict', 'seglab_share', 'seglab_demo', 'seglab_help']
CODE = 'import sys; sys.argv[0] = {0!r}; from seglab.cli import {0} as f; sys.exit(f())'

def run(command, *args, env=None, cwd=None, timeout=900):
    return subprocess.run([sys.executable, '-c', CODE.format(command), *map(str, args)], capture_output=True, text=True, timeout=timeout, cwd=cwd,
                          env={**os.environ, 'COLUMNS': '100', 'HF_HUB_OFFLINE': '1', **(env or {})})

NURSERY = '''
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)
import seglab.cli, seglab.compare, seglab.share, seglab.train, segmentation_models_pytorch, transformers.trainer, torchvision
from transformers import SegformerForSemanticSegmentation
for line in sys.stdin:
    argv, out, err = json.loads(line)
    pid = os.fork()
    if not pid:
        for fd, name in ((1, out), (2, err)): os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        code, sys.argv = 1, argv
        try: code = getattr(seglab.cli, argv[0])() or 0
        except SystemExit as e: code = e.code or 0
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)
'''

@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    "`run` for commands that want torch: forked from a process that has imported it, which is most of what they take."
    if not hasattr(os, 'fork'): yield run; return
    said = [str(tmp_path_factory.mktemp('said')/name) for name in ('out', 'err')]
    p = subprocess.Popen([sys.executable, '-c', NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, 'COLUMNS': '100', 'HF_HUB_OFFLINE': '1'})
    def forked(command, *args):
        p.stdin.write(json.dumps([[command, *map(str, args)], *said]) + '\n')
        p.stdin.flush()
        code = int(p.stdout.readline())
        return subprocess.CompletedProcess([command, *args], code, *[Path(s).read_text() for s in said])
    yield forked
    p.communicate()

def mistake(done, *said):
    "One line on standard error, exit code 1, no traceback"
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and 'Traceback' not in done.stderr, done.stderr
    for s in said: assert s in done.stderr, done.stderr

# ---------------------------------------------------------------- help

@pytest.mark.parametrize('command', COMMANDS)
def test_help_fits_a_screen_and_shows_an_example(command):
    for option in ('-h', '--help'):
        done = run(command, option)
        assert done.returncode == 0 and not done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 100
        assert f'example:\n  {command}' in done.stdout

@pytest.mark.parametrize('command', COMMANDS)
def test_version(command):
    import seglab
    assert run(command, '--version').stdout.strip() == f'seglab {seglab.__version__}'

def test_help_loads_no_torch():
    code = CODE.format('seglab_prepare').replace('sys.exit(f())', '''
try: f()
except SystemExit: pass
f if False else None
assert not {'torch', 'transformers', 'pandas', 'cv2', 'matplotlib'} & set(sys.modules), 'heavy imports'
''')
    code = "import sys; sys.argv = ['seglab_prepare', '-h']\nfrom seglab.cli import seglab_prepare as f\n" + code.split('as f; ')[1]
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def test_help_lists_every_command():
    listed = run('seglab_help').stdout
    for c in COMMANDS: assert c in listed

def test_the_installed_scripts_are_these():
    from importlib.metadata import entry_points
    ours = {e.name: e.value for e in entry_points(group='console_scripts') if e.name.startswith('seglab')}
    if not ours: pytest.skip('seglab is not installed, so it has no scripts')
    assert ours == {c: f'seglab.cli:{c}' for c in COMMANDS}

# ---------------------------------------------------------------- mistakes

@pytest.mark.parametrize('command, args, said', [
    ('seglab_prepare', ['a.json'], 'required: IMAGES, OUT'),
    ('seglab_prepare', ['a.json', 'b', 'c', '--sise', '3'], '--sise 3 (did you mean --size?'),
    ('seglab_train', ['a', 'b', '--batchsize', '3'], 'did you mean --batch_size?'),
    ('seglab_demo', [], 'required: OUT'),
    ('seglab_prepare', ['a.json', 'b', 'c', '--n_images', 'many'], "'many'"),
    ('seglab_prepare', ['a.json', '.', 'c', '--size', 'big'], '360x480'),
    ('seglab_prepare', ['nothing.json', '.', 'c'], 'nothing.json'),
    ('seglab_train', ['nothing', 'run'], 'nothing'),
    ('seglab_compare', ['data', 'out'], 'RUN'),
    ('seglab_predict', ['nothing', 'out', 'x.jpg'], 'nothing'),
    ('seglab_share', ['nothing'], 'nothing'),
    ('seglab_share', ['.', '--to', 'ftp'], 'ftp'),
    ('seglab_fetch', ['val1999', 'out'], 'val1999'),
    ('seglab_fetch', ['val2017', __file__], 'is a file'),
    ('seglab_demo', ['out', '--coco', 'nothing'], 'nothing'),
    ('seglab_help', ['me'], 'me'),
])
def test_a_mistake_is_one_line(command, args, said, tmp_path): mistake(run(command, *args, cwd=tmp_path), command, said)

def test_a_bug_keeps_its_traceback():
    code = '''import sys
sys.argv = ['seglab_prepare', 'a', 'b', 'c']
import seglab.masks, numpy as np
def broken(*args, **kwargs): {0}
seglab.masks.prepare = broken
from seglab.cli import seglab_prepare
sys.exit(seglab_prepare())'''
    for bug in ('return {}["key"]', 'return 1/0', 'return np.stack([])', 'import torch; torch.zeros(2).view(3)'):
        done = subprocess.run([sys.executable, '-c', code.format(bug)], capture_output=True, text=True)
        assert done.returncode == 1 and 'Traceback' in done.stderr, (bug, done.stderr)
    for mistaken in ('raise RuntimeError("busy")', 'try: raise ValueError("busy")\n  finally: print()', 'import contextlib\n  with contextlib.suppress(KeyError): raise ValueError("busy")',
                     'from concurrent.futures import ThreadPoolExecutor as P\n  def f(): raise ValueError("busy")\n  P(1).submit(f).result()'):
        done = subprocess.run([sys.executable, '-c', code.format('\n  ' + mistaken)], capture_output=True, text=True)
        mistake(done, 'busy')
    done = subprocess.run([sys.executable, '-c', code.format('raise PermissionError(13, "Permission denied", "x")')], capture_output=True, text=True)
    mistake(done, 'Permission denied: x')

def test_as_functions_they_raise_and_return(tmp_path, monkeypatch):
    from seglab import cli
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    with pytest.raises((ValueError, OSError)): cli.seglab_prepare(str(tmp_path/'a.json'), str(tmp_path), str(tmp_path/'out'))

def test_ctrl_c(tmp_path):
    code = '''import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background inherits that it is ignored
sys.argv = ['seglab_prepare', 'a', 'b', 'c']
import seglab.masks
def slow(*args, **kwargs): print('at work', flush=True); time.sleep(600)
seglab.masks.prepare = slow
from seglab.cli import seglab_prepare
sys.exit(seglab_prepare())'''
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'at work\n'
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 130 and 'Traceback' not in err and 'stopped' in err

def test_a_closed_pipe_is_no_error():
    done = subprocess.run(f'{sys.executable} -c "{CODE.format("seglab_help").replace(chr(34), chr(39))}" | head -1', shell=True, capture_output=True, text=True)
    assert done.stderr == '' and done.stdout.startswith('seglab')

def test_hyphens_are_underscores(tmp_path):
    from seglab import cli
    f = cli.commands['seglab_train'].__wrapped__
    parse = lambda *a: vars(cli._parser(f, '').parse_args(['d', 'o', *a]))
    assert parse('--batch-size', '2', '--keep-best=mean_iou', '--no-resume') == parse('--batch_size', '2', '--keep_best=mean_iou', '--no_resume')
    assert parse('--no_resume')['resume'] is False and parse()['resume'] is True

# ---------------------------------------------------------------- the road, small

@pytest.fixture(scope='module')
def road(quick, tmp_path_factory):
    "Photos, masks and a run, made by the commands"
    from seglab.sample import make_sample
    home = tmp_path_factory.mktemp('road')
    make_sample(home/'raw', n=12)
    done = quick('seglab_prepare', home/'raw/annotations/instances_sample.json', home/'raw/sample', home/'data', '--size', '48x64', '--split', 'val=0.3', '--workers', 1)
    assert done.returncode == 0, done.stderr
    for name, more in (('a', []), ('b', ['--set', 'lr_scheduler_type=linear'])):
        done = quick('seglab_train', home/'data', home/name, '--model', 'unet', '--encoder', 'resnet18', '--weights', 'none', '--labels', 'things',
                   '--epochs', 1, '--lr', '1e-3', *more)
        assert done.returncode == 0, done.stderr
    return home

def test_prepared(road):
    about = json.loads((road/'data/prepare.json').read_text())
    assert about['counts']['images']['written'] == 12 and about['settings']['size_hw'] == [48, 64]

def test_prepare_with_other_settings_is_refused(quick, road):
    mistake(quick('seglab_prepare', road/'raw/annotations/instances_sample.json', road/'raw/sample', road/'data', '--size', '32'), 'size')

def test_train_again_goes_on_and_other_settings_are_refused(quick, road):
    args = ['seglab_train', road/'data', road/'a', '--model', 'unet', '--encoder', 'resnet18', '--weights', 'none', '--labels', 'things', '--epochs', 1]
    before = (road/'a/best/model.safetensors').stat().st_mtime_ns
    assert quick(*args, '--lr', '1e-3').returncode == 0
    assert (road/'a/best/model.safetensors').stat().st_mtime_ns == before
    mistake(quick(*args, '--lr', '2e-3'), 'lr')

def test_weights_that_cannot_be_fetched(quick, road, tmp_path):
    mistake(quick('seglab_train', road/'data', tmp_path/'x', '--model', 'segformer', '--labels', 'things'), 'nvidia/mit-b0')
    mistake(quick('seglab_train', road/'data', tmp_path/'x', '--weights', 'none', '--set', 'warmup=3'), 'warmup')
    mistake(quick('seglab_train', road/'data', tmp_path/'x', '--weights', 'none', '--labels', 'unicorn'), 'unicorn')

def test_compare(quick, road):
    done = quick('seglab_compare', road/'data', road/'report', road/'a', road/'b', '--no_measure')
    assert done.returncode == 0, done.stderr
    assert {'report.html', 'report.md', 'scores.json'} <= {p.name for p in (road/'report').iterdir()}
    assert set(json.loads((road/'report/scores.json').read_text())['models']) == {'a', 'b'}

def test_predict_names_the_broken_one_and_does_the_rest(quick, road, tmp_path):
    photos = sorted((road/'raw/sample').glob('*.jpg'))[:4]
    (tmp_path/'in').mkdir()
    for p in photos: shutil.copy(p, tmp_path/'in')
    (tmp_path/'in'/'zz.jpg').write_bytes(photos[0].read_bytes()[:500])
    done = quick('seglab_predict', road/'a', tmp_path/'out', tmp_path/'in', '--coco-json', '--values', 'class_index')
    mistake(done, '1 of 5', 'zz.jpg', 'the other 4')
    for p in photos: assert cv2.imread(str(tmp_path/'out/masks'/f'{p.stem}.png'), -1).shape == cv2.imread(str(p)).shape[:2]
    rows = list(csv.DictReader((tmp_path/'out/index.csv').open()))
    assert len(rows) == 5 and [bool(r['error']) for r in rows] == [False]*4 + [True]
    (tmp_path/'in'/'zz.jpg').unlink()
    done = quick('seglab_predict', road/'a', tmp_path/'out2', str(tmp_path/'in'/'*.jpg'), '--no-overlay')
    assert done.returncode == 0 and '4 masks' in done.stdout and not (tmp_path/'out2/overlays').exists()

def test_share(quick, road, tmp_path):
    done = quick('seglab_share', road/'a', '--to', 'folder', '--out', tmp_path/'parcel')
    assert done.returncode == 0 and (tmp_path/'parcel/model.safetensors').exists(), done.stderr
    done = quick('seglab_share', road/'a', '--to', 'onnx', '--out', tmp_path/'a.onnx')
    assert done.returncode == 0 and (tmp_path/'a.onnx').exists() and (tmp_path/'a.json').exists(), done.stderr

# ---------------------------------------------------------------- the demo

def test_demo_end_to_end_and_again(quick, tmp_path):
    args = ['seglab_demo', tmp_path/'demo', '--n_images', 12, '--size', 32, '--epochs', 1]
    done = run(*args, timeout=900)
    assert done.returncode == 0, done.stderr
    for p in ('raw/annotations', 'processed/prepare.json', 'runs/unet/best', 'runs/segformer/best', 'report/report.html'): assert (tmp_path/'demo'/p).exists()
    for word in ('unet', 'segformer', 'background only', 'report.html', 'Random weights'): assert word in done.stdout
    weights = tmp_path/'demo/runs/unet/best/model.safetensors'
    before = weights.stat().st_mtime_ns
    again = quick(*args)
    assert again.returncode == 0 and weights.stat().st_mtime_ns == before, again.stderr
    mistake(quick('seglab_demo', tmp_path/'demo', '--n_images', 12, '--size', 64), 'size')

def test_demo_on_a_coco_folder(quick, tmp_path):
    from seglab.sample import make_sample
    make_sample(tmp_path/'coco', n=10)
    done = quick('seglab_demo', tmp_path/'demo', '--coco', tmp_path/'coco', '--size', 32, '--epochs', 1)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path/'demo/raw').exists() and (tmp_path/'demo/report/report.html').exists()
