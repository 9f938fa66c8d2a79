"""Faults under `compare`: killed, out of disk, read-only, robbed of a photo, two at once, a run with a broken file. One sentence each, nothing half-written."""
import errno, json, os, random, shutil, signal, subprocess, sys, textwrap, time
from functools import partial
from pathlib import Path
from unittest import mock
import cv2, numpy as np, pandas as pd, pytest, torch
import seglab.answers as answers
import seglab.comparison as module
from seglab.comparison import Comparison, compare, evaluate
from seglab.dataset import SegDataset
from seglab.files import UserError, only_me
from seglab.zoo import from_smp
from support.fresh_process import Child
from support.faults import LONG, n_files, one_sentence, posix, small_disk, until
from test_comparison import LABELS, contents, folders, model

KILLS = 12 if LONG else 1                                                        # for each signal and number of workers
N = 24

@pytest.fixture(scope='module')
def data(tmp_path_factory): return folders(tmp_path_factory.mktemp('data')/'d', n=N)

@pytest.fixture(scope='module')
def wanted(data, tmp_path_factory):
    "What an undisturbed comparison leaves."
    out = tmp_path_factory.mktemp('wanted')/'r'
    again(data, out)
    return contents(out)

def again(data, out, **kw): return compare({'one': model(1), 'two': model(2)}, data, out, measure=False, batch_size=2, **kw)

def slowly(data, out, pause, **kw):
    "The same, with a pause at each batch."
    count = module.Evaluation.add
    def add(self, *args):
        time.sleep(pause)
        return count(self, *args)
    with mock.patch.object(module.Evaluation, 'add', add): again(data, out, **kw)

def start(data, out, pause=0., **kw): return Child(partial(slowly, data, out, pause, **kw))

def whole(out):
    "Is every file there readable, and no temporary one left in sight?"
    for p in Path(out).rglob('*.png'): assert cv2.imread(str(p), cv2.IMREAD_UNCHANGED) is not None, p
    assert not [p for p in Path(out).rglob('.tmp-*')]

# --- kills

@posix
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize('seed', range(KILLS))
def test_killed_and_run_again(data, wanted, tmp_path, workers, sig, seed):
    out, goal = tmp_path/'r', random.Random(f'{workers} {sig} {seed}').randint(1, 3 * N + 6)
    p = start(data, out, workers=workers)
    until(lambda: n_files(out) >= goal or p.ended())
    assert p.send(sig), 'the comparison ended before it could be killed'
    for f in out.rglob('*.png'): assert f.name[0] == '.' or cv2.imread(str(f), cv2.IMREAD_UNCHANGED) is not None, f
    again(data, out, workers=workers)                                            # at once: a killed one holds nothing
    assert contents(out) == wanted
    whole(out)

@posix
def test_a_killed_ones_data_workers_do_not_hold_the_folder(data, wanted, tmp_path):
    p = start(data, tmp_path/'r', pause=.2, workers=2)
    until(lambda: n_files(tmp_path/'r') > 2 or p.ended())
    assert p.send(signal.SIGKILL)
    with answers.report_folder(tmp_path/'r'): pass                                       # at once, not after they have noticed

@posix
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='this system does not tell the children of a process')
def test_a_data_worker_killed_by_the_system(data, wanted, tmp_path):
    p = start(data, tmp_path/'r', pause=.2, workers=1)
    until(lambda: n_files(tmp_path/'r') > 2 or p.ended())
    for c in [int(c) for t in Path(f'/proc/{p.pid}/task').iterdir() for c in (t/'children').read_text().split()]: os.kill(c, signal.SIGKILL)
    code, said = p.wait()
    assert code == 1 and 'ended from outside' in said and 'run the same again' in said, said
    one_sentence(said)
    again(data, tmp_path/'r')
    assert contents(tmp_path/'r') == wanted

@pytest.mark.parametrize('said', ['DataLoader worker (pid 7) is killed by signal: Killed.', 'received 0 items of ancdata', 'unable to open shared memory object </torch_7> in read-write mode'])
def test_whatever_torch_says_of_a_lost_worker_becomes_our_sentence(said):
    with pytest.raises(RuntimeError, match='ended from outside.*run the same again'):
        with answers.worker_errors(): raise RuntimeError(said)
    with pytest.raises(RuntimeError, match='another fault'):
        with answers.worker_errors(): raise RuntimeError('another fault')

# --- the disk

@posix
@pytest.mark.parametrize('size, reached', [('120k', 'predictions'), ('700k', 'pictures')])
def test_a_full_disk(data, wanted, tmp_path, size, reached):
    small = tmp_path/'small'
    small_disk(small, f'size={size}')
    try:
        with pytest.raises(OSError, match='The disk is full .*Make room, then run the same command again') as e: again(data, small/'r')
        assert str(small/'r') in str(e.value) and (small/'r'/reached).exists() and not (small/'r/scores.json').exists()
        whole(small/'r')
        subprocess.run(['mount', '-o', 'remount,size=40m', small], check=True)
        again(data, small/'r')
        assert contents(small/'r') == wanted
    finally: subprocess.run(['umount', '-l', small], check=True)

@pytest.mark.parametrize('fatal', [1, 2 * N + 3, 3 * N + 8])
def test_a_write_that_fails(data, wanted, tmp_path, monkeypatch, fatal):
    writes, replace = [0], os.replace
    def failing(source, target):
        writes[0] += 1
        if writes[0] >= fatal: raise OSError(errno.ENOSPC, 'No space left on device')
        replace(source, target)
    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(OSError, match='disk is full.* again'): again(data, tmp_path/'r')
    monkeypatch.undo()
    assert not (tmp_path/'r/scores.json').exists()
    again(data, tmp_path/'r')
    assert contents(tmp_path/'r') == wanted

@posix
def test_a_read_only_folder(data, tmp_path):
    small = tmp_path/'small'
    small_disk(small, 'size=4m,ro')
    try:
        for out in (small, small/'r'):
            with pytest.raises(OSError, match='may not write to .*Read-only file system') as e: again(data, out)
            assert str(out) in str(e.value)
        assert not list(small.iterdir())
    finally: subprocess.run(['umount', '-l', small], capture_output=True)

def test_a_file_where_the_folder_should_be(data, tmp_path):
    (tmp_path/'r').write_text('mine')
    with pytest.raises(ValueError, match='expected a folder; got a file'): again(data, tmp_path/'r')
    assert (tmp_path/'r').read_text() == 'mine'

# --- things that change underneath

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('what, how', [('images', 'deleted'), ('masks', 'cut')] + [('images', 'cut'), ('masks', 'deleted')] * LONG)
def test_a_photo_or_mask_lost_under_the_reader(data, wanted, tmp_path, what, workers, how):
    mine = Path(shutil.copytree(data.root, tmp_path/'d'))
    ds = SegDataset.from_folders(mine/'images', mine/'masks', LABELS)
    lost = mine/what/'p017.png'
    kept = lost.read_bytes()
    lost.unlink() if how == 'deleted' else lost.write_bytes(kept[:len(kept)//2])
    with pytest.raises(ValueError, match="photo='p017': expected a photo and a mask that can be scored; got .*p017.*Put it right and run the same again") as e: again(ds, tmp_path/'r', workers=workers)
    one_sentence(str(e.value))
    whole(tmp_path/'r')
    assert not (tmp_path/'r/scores.json').exists() and not (tmp_path/'r/report.html').exists()
    lost.write_bytes(kept)
    again(ds, tmp_path/'r', workers=workers)
    assert contents(tmp_path/'r') == wanted

@posix
def test_two_in_the_same_folder(data, wanted, tmp_path):
    p = start(data, tmp_path/'r', pause=.1)
    until(lambda: n_files(tmp_path/'r') > 2 or p.ended())
    before = n_files(tmp_path/'r')
    with pytest.raises(ValueError, match='another process is comparing'): again(data, tmp_path/'r')
    assert n_files(tmp_path/'r') >= before, 'the second has taken nothing away'
    assert p.wait() == (0, '')
    assert contents(tmp_path/'r') == wanted

def test_a_disk_without_locks(data, wanted, tmp_path, monkeypatch):
    fcntl = pytest.importorskip('fcntl')
    def none(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', none)
    again(data, tmp_path/'r')
    assert contents(tmp_path/'r') == wanted

def test_a_clock_that_jumps(data, wanted, tmp_path, monkeypatch):
    ticks = iter(range(10**6, 0, -3600))
    monkeypatch.setattr(module.time, 'time', lambda: float(next(ticks, -1e9)))      # the wall clock; the monotonic ones do not jump
    again(data, tmp_path/'r')
    monkeypatch.undo()
    assert contents(tmp_path/'r') == wanted
    assert all(0 < m['seconds'] < 600 for m in json.loads((tmp_path/'r'/'scores.json').read_text())['models'].values())

# --- runs

@pytest.fixture()
def runs(tmp_path):
    "Two run folders as training leaves them."
    for n in 'ab':
        from_smp('unet', LABELS, 'resnet18', None, encoder_depth=3, decoder_channels=(16, 8, 8)).save_pretrained(tmp_path/n/'best')
        (tmp_path/n/'config.json').write_text(json.dumps(dict(settings=dict(sample_hw=[40, 48], data_digest='x'))))
        (tmp_path/n/'history.csv').write_text(HISTORY)
    return [tmp_path/'a', tmp_path/'b']

COLUMNS = 'step epoch train_loss eval_loss mean_iou mean_accuracy overall_accuracy mean_dice frequency_weighted_iou lr grad_norm images_per_second data_wait eval_images_per_second'.split()
HISTORY = '\n'.join([','.join(COLUMNS), '1,1.0,,.5,.25' + ','*9, '2,1.5,.4' + ','*11]) + '\n'

def cut(p): p.write_bytes(p.read_bytes()[:p.stat().st_size//2])
BROKEN = {'config that is no JSON': ('config.json', lambda p: p.write_text('{"sett')),
          'config that is a list': ('config.json', lambda p: p.write_text('[1]')),
          'config with a strange size': ('config.json', lambda p: p.write_text('{"sample_hw": "big"}')),
          'config nested without end': ('config.json', lambda p: p.write_text('[' * 100_000)),
          'history without an epoch': ('history.csv', lambda p: p.write_text('a,b\n1,2\n')),
          'history with words': ('history.csv', lambda p: p.write_text('epoch,eval_loss\none,two\n')),
          'history that is empty': ('history.csv', lambda p: p.write_text('')),
          'history that is no text': ('history.csv', lambda p: p.write_bytes(b'epoch,\xff\xfe\x00\n1,2,3\n4,5,6,7,8\n')),
          'weights cut short': ('best/model.safetensors', cut),
          'label space cut short': ('best/seglab.json', cut),
          'model config cut short': ('best/config.json', cut)}

@pytest.mark.parametrize('fault', BROKEN)
def test_a_run_with_a_broken_file(data, runs, tmp_path, monkeypatch, fault):
    file, spoil = BROKEN[fault]
    spoil(runs[1]/file)
    monkeypatch.setattr(module.Evaluation, 'add', lambda *a: pytest.fail('a photo was scored before the broken file was found'))
    with pytest.raises(ValueError) as e: compare(runs, data, tmp_path/'r', measure=False)
    one_sentence(str(e.value))
    assert Path(file).name in str(e.value) and str(e.value)[0] != '{', e.value
    assert not (tmp_path/'r').exists()

def test_good_runs_give_curves(data, runs, tmp_path):
    r = compare(runs, data, tmp_path/'r', measure=False)
    assert list(r.histories) == ['a', 'b'] and (tmp_path/'r/pictures/curves.png').exists()
    assert r.histories['a'].to_dict('list')['mean_iou'][0] == .25

@pytest.mark.parametrize('inside', ['.', 'predictions/one'])
def test_masks_to_be_read_are_not_cleared_first(data, tmp_path, inside):
    r = again(data, tmp_path/'r')
    out = tmp_path/'r'/inside
    before = n_files(tmp_path/'r')
    with pytest.raises(ValueError, match='would be cleared'): compare(r.evaluations, out=out)
    assert n_files(tmp_path/'r') == before
    compare(r.evaluations, out=tmp_path/'s')
    assert (tmp_path/'s/report.html').exists()

def test_a_folder_of_somebody_else_is_refused_and_left_alone(data, tmp_path):
    "Whatever lies in it: a prepared folder, a run, a thesis."
    for name in ('masks', 'thesis.tex', 'config.json', '.hidden'):
        mine = tmp_path/name.strip('.')
        mine.mkdir(); (mine/name).write_text('x')
        with pytest.raises(UserError, match='expected an empty or new folder'): again(data, mine)
        assert [p.name for p in mine.iterdir()] == [name]
    again(data, tmp_path/'empty')
    again(data, tmp_path/'empty')

SPAWN = textwrap.dedent("""
    import multiprocessing, sys
    from pathlib import Path
    Path(sys.argv[1], f'run-{multiprocessing.current_process().name}').touch()
    multiprocessing.set_start_method(sys.argv[2], force=True)
    sys.path.insert(0, sys.argv[3])
    from test_comparison_faults import *
    data = SegDataset.from_folders(sys.argv[1] + '/d/images', sys.argv[1] + '/d/masks', LABELS)
    print(len(evaluate(model(1), data, workers=1)))
""")

@pytest.mark.parametrize('method', ['spawn', 'forkserver'] if LONG else ['spawn'])
def test_a_script_without_a_guard_runs_once(tmp_path, method):
    folders(tmp_path/'d', n=4)
    (tmp_path/'script.py').write_text(SPAWN)
    done = subprocess.run([sys.executable, tmp_path/'script.py', tmp_path, method, str(Path(__file__).parent)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == '4', done.stderr[-2000:]
    assert [p.name for p in tmp_path.glob('run-*')] == ['run-MainProcess']
