"""Faults under `prepare`: killed, out of disk, read-only, robbed of a photo or a worker, two at once, on a cluster. Nothing is lost or half-written."""
import errno, hashlib, json, os, random, shutil, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seglab import bulk, files, paint
from seglab.files import UserError
from seglab.masks import prepare
from seglab.fetch import find_coco
from seglab.sample import make_sample
from support.faults import LONG, group_is_gone, posix, small_disk, until

pytestmark = pytest.mark.filterwarnings('ignore:__array__:DeprecationWarning')
KILLS = 6 if LONG else 1  # for each signal and number of workers
N = 120


def digest(out):
    "The bytes of a prepared folder: every file's checksum; of prepare.json all but the timing."
    found = {}
    for p in sorted(p for p in out.rglob('*') if p.is_file()):
        data = p.read_bytes()
        if p.name in ('.journal', '.lock'): continue      # its lines come as workers were done
        if p.name == 'prepare.json': data = json.dumps({k: v for k, v in json.loads(data).items() if k != 'seconds'}).encode()
        found[p.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    "Annotations and photos, some of them broken."
    return find_coco(make_sample(tmp_path_factory.mktemp('coco'), n=N, size_hw=(72, 96), broken=True))[0]


@pytest.fixture(scope='module')
def wanted(coco, tmp_path_factory):
    "The undisturbed folder's bytes."
    out = tmp_path_factory.mktemp('wanted')/'out'
    prepare(*coco, out, size_hw=64, workers=1)
    return digest(out)


RUN = '''
import json, os, signal, sys
from seglab.masks import prepare
args, kw = json.loads(sys.argv[1])
print('go', flush=True)
try: prepare(*args, **kw)
except (OSError, RuntimeError, ValueError) as e: sys.exit(f'{type(e).__name__}: {e}')
'''


def start(coco, out, **kw):
    "`prepare` in a process (and a process group) of its own."
    args = json.dumps([[*map(str, coco), str(out)], dict(size_hw=64) | kw])
    p = subprocess.Popen([sys.executable, '-c', RUN, args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert p.stdout.readline() == 'go\n'
    return p


def n_masks(out):
    try: return len(os.listdir(out/'masks'))
    except FileNotFoundError: return 0


def stopped_half_way(coco, root, **kw):
    "`prepare` in a process that stands still after some photos and before the last, however busy the machine; and its folder."
    for k in range(10):
        out = root/f'out{k}'
        p = start(coco, out, **kw)
        if until(lambda: n_masks(out) > 5, p):
            p.send_signal(signal.SIGSTOP)
            if p.poll() is None and not (out/'index.csv').exists(): return p, out
            p.send_signal(signal.SIGCONT)
        p.communicate(timeout=300)
    raise AssertionError('ten times over before it could be stopped')


# --- kills

@posix
@pytest.mark.parametrize('workers,sig', [(1, signal.SIGKILL), (2, signal.SIGKILL), (4, signal.SIGTERM)])
@pytest.mark.parametrize('seed', range(KILLS))
def test_killed_and_resumed(coco, wanted, tmp_path, workers, sig, seed):
    out, rng = tmp_path/'out', random.Random(f'{workers} {sig} {seed}')
    for _ in range(2):  # killed twice, at moments of its own
        p, goal = start(coco, out, workers=workers), n_masks(out) + rng.randint(0, N//2)
        hit = until(lambda: n_masks(out) >= goal, p)
        p.send_signal(sig)
        p.communicate(timeout=300)
        until(lambda: group_is_gone(p), seconds=120)  # no worker goes on alone
        if not hit: break
    prepare(*coco, out, size_hw=64, workers=workers)
    assert digest(out) == wanted


@posix
def test_killed_while_packing(coco, tmp_path):
    out, kw = tmp_path/'out', dict(size_hw=64, pack=True)
    prepare(*coco, tmp_path/'wanted', workers=1, **kw)
    for pause in (0, .05, .1):
        p = start(coco, out, workers=2, **kw)
        until(lambda: (out/'.journal').exists() and (out/'.journal').stat().st_size > 0 or (out/'images.npy').exists(), p)
        time.sleep(pause)
        p.kill()
        p.communicate(timeout=300)
        until(lambda: group_is_gone(p), seconds=120)
    prepare(*coco, out, workers=2, **kw)
    assert digest(out) == digest(tmp_path/'wanted')


@pytest.mark.parametrize('k', [0, 7])
def test_what_a_killed_process_left_is_swept(coco, wanted, tmp_path, monkeypatch, k):
    "A half-written file, a journal's line cut short, a journal that names files which are gone."
    out, writes, write = tmp_path/'out', [0], paint.write_atomic

    def ends(path, data):
        writes[0] += 1
        if writes[0] > 100: raise KeyboardInterrupt
        write(path, data)
    def begin():
        writes[0] = 0
        with monkeypatch.context() as m:
            m.setattr(paint, 'write_atomic', ends)
            with pytest.raises(KeyboardInterrupt): prepare(*coco, out, size_hw=64, workers=1)
        return (out/'.journal').read_bytes().splitlines(keepends=True)
    lines = begin()
    for folder in (out, out/'images', out/'masks'): (folder/'.tmp-0123-4').write_bytes(b'half')
    assert 8 < len(lines) < 100        # one portion is noted, the second was cut
    (out/'.journal').write_bytes(b''.join(lines[:-1]) + lines[-1][:len(lines[-1])//2])
    sorted((out/'masks').glob('*.png'))[k].unlink()
    more = begin()
    assert len(more) > len(lines) and all(json.loads(line) for line in more)  # the second time goes on after the last whole line
    prepare(*coco, out, size_hw=64, workers=1)
    assert digest(out) == wanted


def test_a_finished_folder_that_lost_a_file_is_made_whole(coco, wanted, tmp_path):
    prepare(*coco, tmp_path/'out', size_hw=64, workers=1)
    sorted((tmp_path/'out'/'masks').glob('*.png'))[3].unlink()
    prepare(*coco, tmp_path/'out', size_hw=64, workers=1)
    assert digest(tmp_path/'out') == wanted


@posix
def test_a_worker_killed_by_the_system(coco, wanted, tmp_path):
    if not Path('/proc/self/task').exists(): pytest.skip('this system does not tell the children of a process')
    p, out = stopped_half_way(coco, tmp_path, workers=2)
    children = [int(c) for t in Path(f'/proc/{p.pid}/task').iterdir() for c in (t/'children').read_text().split()]
    workers = [c for c in children if b'resource_tracker' not in Path(f'/proc/{c}/cmdline').read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    p.send_signal(signal.SIGCONT)
    err = p.communicate(timeout=300)[1]
    assert p.returncode == 1 and 'from outside' in err and 'run the same command again' in err and err.count('\n') == 1
    prepare(*coco, out, size_hw=64, workers=2)
    assert digest(out) == wanted


# --- the disk

@posix
def test_a_full_disk_keeps_what_is_done(coco, wanted, tmp_path):
    small = small_disk(tmp_path/'small', 'size=400k')
    try:
        for workers in (1, 2):
            out = small/f'out{workers}'
            p = start(coco, out, workers=workers)
            err = p.communicate(timeout=300)[1]
            assert p.returncode == 1 and 'disk is full' in err and err.count('\n') == 1, err
            assert n_masks(out) > 5 and not list(out.rglob('.tmp-*'))
            subprocess.run(['mount', '-o', 'remount,size=40m', small], check=True)
            prepare(*coco, out, size_hw=64, workers=workers)
            assert digest(out) == wanted
            shutil.rmtree(out)
            subprocess.run(['mount', '-o', 'remount,size=400k', small], check=True)
    finally: subprocess.run(['umount', '-l', small], check=True)


@pytest.mark.parametrize('fatal', [3, 40, 90])
def test_a_write_that_fails(coco, wanted, tmp_path, monkeypatch, fatal):
    out, writes, write = tmp_path/'out', [0], paint.write_atomic

    def failing(path, data):
        writes[0] += 1
        if writes[0] >= fatal: raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, data)
    monkeypatch.setattr(paint, 'write_atomic', failing)
    with pytest.raises(OSError, match='disk is full.* again'): prepare(*coco, out, size_hw=64, workers=1)
    monkeypatch.undo()
    prepare(*coco, out, size_hw=64, workers=1)
    assert digest(out) == wanted


@posix
def test_a_read_only_folder(coco, tmp_path):
    small = small_disk(tmp_path/'small', 'size=4m,ro')
    try:
        with pytest.raises(OSError, match='may not write to .*Choose a folder of your own'): prepare(*coco, small/'out', size_hw=64, workers=1)
        assert not list(small.iterdir())
    finally: subprocess.run(['umount', '-l', small], capture_output=True)


@pytest.mark.parametrize('theirs', [b'[1, 2]', b'{"name": "prepare"}', b'{"settings": [64]}', b'no JSON', b'\xff', b''])
def test_a_prepare_json_of_somebody_else_is_left_alone(coco, tmp_path, theirs):
    (tmp_path/'prepare.json').write_bytes(theirs)
    with pytest.raises(ValueError, match='a prepare.json that is not ours. Choose another folder'): prepare(*coco, tmp_path, size_hw=64, workers=1)
    assert (tmp_path/'prepare.json').read_bytes() == theirs and [p.name for p in tmp_path.iterdir() if p.name[0] != '.'] == ['prepare.json']


# --- things that change underneath

class Thief(ThreadPoolExecutor):
    "An executor that steals a photo after a few tasks."
    def __init__(self, photo): super().__init__(1); self.photo, self.n = photo, 0
    def submit(self, *args, **kw):
        self.n += 1
        if self.n == 3: self.photo.unlink()
        return super().submit(*args, **kw)



def test_a_photo_deleted_under_the_reader(coco, tmp_path):
    photos = shutil.copytree(coco[1], tmp_path/'photos', symlinks=True)
    names = [i['file_name'] for i in json.loads(coco[0].read_text())['images'] if 'broken' not in i]
    lost = names[N - 2]
    with Thief(photos/lost) as executor: done = prepare(coco[0], photos, tmp_path/'out', size_hw=64, executor=executor)
    row = done.audit[(done.audit.action == 'failed') & done.audit.detail.str.startswith(lost)]
    assert list(row.code) == ['image_missing'] and not (tmp_path/'out'/'masks'/f'{Path(lost).stem}.png').exists()
    assert len(done.index) == done.counts['images']['written']


@posix
def test_two_on_the_same_folder(coco, wanted, tmp_path):
    p, out = stopped_half_way(coco, tmp_path, workers=1)
    try:
        with pytest.raises(UserError, match='another process is preparing'): prepare(*coco, out, size_hw=64, workers=1)
    finally: p.send_signal(signal.SIGCONT)
    assert p.wait(timeout=300) == 0
    assert digest(out) == wanted


def test_a_clock_that_jumps(coco, wanted, tmp_path, monkeypatch):
    ticks = iter(range(10**6, 0, -3600))
    monkeypatch.setattr(bulk.time, 'time', lambda: float(next(ticks, -1e9)))      # the wall clock; the monotonic ones do not jump
    prepare(*coco, tmp_path/'out', size_hw=64, workers=1)
    monkeypatch.undo()
    assert digest(tmp_path/'out') == wanted
    assert 0 <= json.loads((tmp_path/'out'/'prepare.json').read_text())['seconds'] < 600


# --- other executors

def test_threads_give_the_same_bytes(coco, wanted, tmp_path):
    with ThreadPoolExecutor(3) as executor: prepare(*coco, tmp_path/'out', size_hw=64, executor=executor)
    assert digest(tmp_path/'out') == wanted


@pytest.fixture(scope='module')
def cluster():
    distributed = pytest.importorskip('distributed')
    import dask
    dask.config.set({'distributed.comm.timeouts.connect': '60s', 'distributed.scheduler.allowed-failures': 10})
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client: yield client


def test_a_dask_cluster_gives_the_same_bytes(coco, wanted, tmp_path, cluster):
    prepare(*coco, tmp_path/'out', size_hw=64, executor=cluster.get_executor())
    assert digest(tmp_path/'out') == wanted


@posix
def test_a_dask_worker_killed_half_way(coco, wanted, tmp_path, cluster):
    out, pids = tmp_path/'out', sorted(cluster.run(os.getpid).values())

    def kill():
        until(lambda: n_masks(out) > 10)
        os.kill(pids[0], signal.SIGKILL)
    thread = threading.Thread(target=kill)
    thread.start()
    prepare(*coco, out, size_hw=64, executor=cluster.get_executor())
    thread.join()
    assert digest(out) == wanted


# --- processes that cannot be started

SMALL = '''
import resource, sys, json
from seglab.masks import prepare
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
args, kw = json.loads(sys.argv[1])
print(prepare(*args, **kw).counts['images']['written'])
'''

@posix
@pytest.mark.parametrize('workers', [40, 256])
def test_more_workers_than_the_system_allows(coco, wanted, tmp_path, workers):
    r = subprocess.run([sys.executable, '-c', SMALL, json.dumps([[*map(str, coco), str(tmp_path/'out')], dict(size_hw=64, workers=workers)])], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0 and 'the system allows fewer' in r.stderr, r.stderr
    assert digest(tmp_path/'out') == wanted

GUARDLESS = '''
import multiprocessing, sys, json
multiprocessing.get_all_start_methods = lambda: {methods}
from seglab import bulk
bulk._context = lambda: multiprocessing.get_context({method!r})
args, kw = json.loads(sys.argv[1])
from seglab.masks import prepare
print('once', prepare(*args, **kw).counts['images']['written'])
'''

@posix
@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_a_script_without_a_guard(coco, wanted, tmp_path, method):
    (tmp_path/'job.py').write_text(GUARDLESS.format(methods=[method], method=method))
    r = subprocess.run([sys.executable, str(tmp_path/'job.py'), json.dumps([[*map(str, coco), str(tmp_path/'out')], dict(size_hw=64, workers=2)])], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0 and r.stdout.count('once') == 1, r.stderr
    assert digest(tmp_path/'out') == wanted

def test_a_photo_that_needs_too_much_memory_is_named(coco, tmp_path, monkeypatch):
    resize = paint.resize_image
    def greedy(image, *args):
        if image.shape[:2] == (120, 160): raise MemoryError
        return resize(image, *args)
    monkeypatch.setattr(paint, 'resize_image', greedy)
    done = prepare(*coco, tmp_path/'out', size_hw=64, workers=1)
    rows = done.audit[done.audit.detail.str.contains('not enough memory')]
    assert 'nosize.jpg: not enough memory for this photo' in rows.detail.tolist() and done.counts['images']['written'] == N + 1   # the turned one is not 120 high

@pytest.mark.parametrize('code', [errno.EIO, errno.ENXIO, errno.ESTALE])
def test_a_bad_sector_is_one_photo(coco, tmp_path, monkeypatch, code):
    read = paint.read_image_bytes
    def bad(path):
        if path.endswith('000000000139.jpg'): raise OSError(code, os.strerror(code))
        return read(path)
    monkeypatch.setattr(paint, 'read_image_bytes', bad)
    done = prepare(*coco, tmp_path/'out', size_hw=64, workers=1)
    assert os.strerror(code) in done.audit[done.audit.image_id == '139'].detail.iloc[-1]

# --- memory

def large(folder, n):
    "An annotation file of n photos, all of them copies of one, with eight polygons each."
    import cv2, numpy as np
    (folder/'photos').mkdir(parents=True)
    data = cv2.imencode('.jpg', np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    rng, images, annotations = np.random.default_rng(0), [], []
    for i in range(n):
        (folder/'photos'/f'{i}.jpg').write_bytes(data)
        images.append(dict(id=i, file_name=f'{i}.jpg', height=48, width=64))
        annotations += [dict(id=8*i + k, image_id=i, category_id=1, iscrowd=0, segmentation=[(rng.uniform(5, 40, 2) + rng.uniform(-5, 9, (9, 2))).ravel().round(2).tolist()]) for k in range(8)]
    (folder/'big.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])))
    return folder/'big.json'


MEASURE = '''
import json, sys
from pathlib import Path
from seglab.masks import prepare
args, kw = json.loads(sys.argv[1])
done = prepare(*args, **kw)
peak = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
print(json.dumps(dict(mb=int(peak.split()[1])/1024, **done.counts['annotations'])))
'''


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the peak of a process of its own is read from /proc: getrusage hands down the peak of the parent')
def test_memory_grows_with_the_annotations_only(tmp_path):
    "Twice the images and annotations: the peak grows by no more than the annotation file does."
    sizes, peaks = [], []
    for n in (50_000, 100_000) if LONG else (500, 1000):
        d = tmp_path/str(n)
        file = large(d, n)
        out = subprocess.run([sys.executable, '-c', MEASURE, json.dumps([[str(file), str(d/'photos'), str(d/'out')], dict(size_hw=16, pack=True, workers=1)])],
                             capture_output=True, text=True, check=True, timeout=3600).stdout
        result = json.loads(out.splitlines()[-1])
        assert result['used'] + result['repaired'] + result['dropped'] == result['total'] == 8*n
        sizes.append(file.stat().st_size/2**20)
        peaks.append(result['mb'])
        shutil.rmtree(d)
    print(f'annotation files of {sizes[0]:.0f} and {sizes[1]:.0f} MB: peaks of {peaks[0]:.0f} and {peaks[1]:.0f} MB')
    assert peaks[1] - peaks[0] < 1.5*(sizes[1] - sizes[0]) + 30
    assert peaks[1] < 250 + 2.5*sizes[1]
