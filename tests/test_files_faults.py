"Full and read-only disks, disks without locks, two writers at once, writers that die."
import errno, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from seglab import files
from seglab.files import UserError, disk_errors, disk_sentence, growing, new_folder, only_me, write_atomic
from support.faults import one_sentence, posix, small_disk, until


def python(code, **kw): return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)
def said(folder, doing='training'): return python(f'from seglab.files import only_me\nwith only_me({str(folder)!r}, {doing!r}): print("mine", flush=True)').communicate()


# --- disks

@posix
def test_a_full_disk(tmp_path):
    disk = small_disk(tmp_path/'disk')
    try:
        write_atomic(disk/'a', b'old')
        (disk/'filler').write_bytes(bytes(2**20 - 2**15))
        for write in (lambda: write_atomic(disk/'a', bytes(2**16)), lambda: fill(growing(disk/'a'))):
            with pytest.raises(OSError, match='The disk is full .*Make room, then go on') as e:
                with disk_errors(disk, 'go on'): write()
            one_sentence(str(e.value))
            assert e.value.errno == errno.ENOSPC and sorted(os.listdir(disk)) == ['a', 'filler'] and (disk/'a').read_bytes() == b'old'
        with pytest.raises(OSError), new_folder(disk/'b') as d: (d/'x').write_bytes(bytes(2**20))
        assert sorted(os.listdir(disk)) == ['a', 'filler']
    finally: subprocess.run(['umount', disk])


def fill(context):
    with context as f: f.write(bytes(2**16))


@posix
def test_a_disk_to_read_only(tmp_path):
    disk = small_disk(tmp_path/'disk')
    try:
        if subprocess.run(['mount', '-o', 'remount,ro', disk], capture_output=True).returncode: pytest.skip('no read-only disk here')
        with pytest.raises(PermissionError, match='We may not write to .*Choose a folder of your own') as e:
            with disk_errors(disk/'new'): (disk/'new').mkdir()
        one_sentence(str(e.value))
        assert e.value.errno == errno.EROFS
        with pytest.raises(PermissionError, match='may not write'):
            with disk_errors(disk), only_me(disk, 'training'): pass
        assert isinstance(disk_sentence(PermissionError(errno.EACCES, 'no file named'), disk), PermissionError)       # no file named, but the folder is read-only
    finally: subprocess.run(['umount', disk])


@pytest.mark.parametrize('e, words', [
    (OSError(errno.ENOSPC, 'No space left on device'), 'The disk is full'), (OSError(errno.EDQUOT, 'Disk quota exceeded'), 'quota'), (OSError(errno.EFBIG, 'File too large'), 'larger than the disk'),
    (Exception('I/O error: No space left on device (os error 28)'), 'The disk is full'), (RuntimeError('[enforce fail] PytorchStreamWriter failed writing file data/3'), 'The disk is full'),
    (RuntimeError('unexpected pos 64 vs 0'), 'The disk is full'), (Exception('I/O error (os error 27)'), 'larger than the disk'), (Exception('os error 122'), 'quota')])
def test_libraries_words(tmp_path, e, words):
    better = disk_sentence(e, tmp_path/'run')
    assert isinstance(better, OSError) and words in str(better) and "run'" in str(better) and better.errno
    one_sentence(str(better))


@pytest.mark.parametrize('e', [ValueError('x'), ConnectionRefusedError(errno.ECONNREFUSED, 'refused'), PermissionError(errno.EPERM, 'kill'), FileNotFoundError(errno.ENOENT, 'none', '/x'),
                               PermissionError(errno.EACCES, 'Permission denied', '/somewhere/else'), OSError('no number'), MemoryError(), ConnectionError('os error 13')])
def test_what_is_not_the_folders_trouble(tmp_path, e): assert disk_sentence(e, tmp_path) is None


def test_a_full_disk_elsewhere_names_that_place(tmp_path):
    assert "/other/tmp'" in str(disk_sentence(OSError(errno.ENOSPC, 'No space', '/other/tmp'), tmp_path))


def test_something_in_the_way(tmp_path):
    (tmp_path/'file').write_text(''); (tmp_path/'link').symlink_to(tmp_path/'nothing')
    for out, got in (('file', 'a file'), ('file/below', 'a file, or a path below one'), ('link', 'a link to nothing')):
        with pytest.raises(UserError, match=f'expected a folder; got {got}') as e:
            with disk_errors(tmp_path/out): (tmp_path/out).mkdir(exist_ok=True, parents=True)
        one_sentence(str(e.value))


# --- one writer at a time

def test_a_second_one_is_refused_and_nothing_is_left(tmp_path):
    with only_me(tmp_path, 'preparing'):
        out, err = said(tmp_path)
        assert not out and 'another process is training' in err and 'Wait' in err
        with pytest.raises(UserError, match='another process is comparing'), only_me(tmp_path, 'comparing'): pass       # this process twice, too
    assert said(tmp_path)[0] == 'mine\n' and os.listdir(tmp_path) == []


def test_released_after_an_error(tmp_path):
    with pytest.raises(KeyError), only_me(tmp_path, 'training'): raise KeyError
    assert said(tmp_path)[0] == 'mine\n'


@posix
@pytest.mark.filterwarnings('error')                                    # filelock warns where it falls back to a file that a kill leaves behind
@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_disk_without_locks(tmp_path, monkeypatch, number):
    import fcntl
    def no(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, 'flock', no)
    for _ in range(2):
        with only_me(tmp_path, 'training'): (tmp_path/'x').write_text('1')
        assert os.listdir(tmp_path) == ['x']


@posix
def test_a_disk_whose_locks_are_broken(tmp_path, monkeypatch):
    import fcntl
    def no(*args): raise OSError(errno.EIO, 'I/O error')
    monkeypatch.setattr(fcntl, 'flock', no)
    with pytest.raises(OSError, match='I/O error'), only_me(tmp_path, 'training'): pass


@posix
def test_a_killed_holder_lets_go(tmp_path):
    p = python(f'import time\nfrom seglab.files import only_me\nwith only_me({str(tmp_path)!r}, "training"): print("in", flush=True); time.sleep(60)')
    try:
        assert p.stdout.readline() == 'in\n'
        assert 'another process is' in said(tmp_path)[1]
    finally: p.kill(); p.wait()
    assert said(tmp_path)[0] == 'mine\n' and os.listdir(tmp_path) == []


@posix
def test_a_forked_child_does_not_keep_it(tmp_path):
    "Data workers are forked while the lock is held, and may outlive a killed parent."
    p = python(f'import os, time\nfrom seglab.files import only_me\nwith only_me({str(tmp_path)!r}, "training"):\n'
               '    pid = os.fork()\n    if not pid: time.sleep(60); os._exit(0)\n    print(pid, flush=True); time.sleep(60)')
    child = int(p.stdout.readline())
    try:
        p.kill(); p.wait()
        os.kill(child, 0)                                            # the child lives
        assert said(tmp_path)[0] == 'mine\n'
    finally: os.kill(child, signal.SIGKILL)


@posix
def test_a_forked_child_that_leaves_the_block_takes_nothing_away(tmp_path):
    p = python(f'import os, sys, time\nfrom seglab.files import only_me\nwith only_me({str(tmp_path)!r}, "training"):\n'
               '    pid = os.fork()\n    if not pid: sys.exit(0)\n    os.waitpid(pid, 0); print("held", os.path.exists(os.path.join({str(tmp_path)!r}, ".lock")), flush=True); time.sleep(60)'.replace('{str(tmp_path)!r}', repr(str(tmp_path))))
    try:
        assert p.stdout.readline() == 'held True\n'
        assert 'another process is training' in said(tmp_path)[1]
    finally: p.kill(); p.wait()


@posix
def test_spawned_and_started_children_do_not_keep_it(tmp_path):
    p = python(f'import subprocess, sys, time\nfrom seglab.files import only_me\nwith only_me({str(tmp_path)!r}, "training"):\n'
               '    c = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]); print(c.pid, flush=True); time.sleep(60)')
    child = int(p.stdout.readline())
    try:
        p.kill(); p.wait()
        assert said(tmp_path)[0] == 'mine\n'
    finally: os.kill(child, signal.SIGKILL)


@posix
def test_never_two_at_once(tmp_path):
    "Six processes take the folder in turns, and remove the lock file each time; nobody ever meets another one."
    code = f'''
import os, time
from seglab.files import UserError, only_me
won, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    try:
        with only_me({str(tmp_path)!r}, 'racing'):
            fd = os.open({str(tmp_path/'inside')!r}, os.O_CREAT | os.O_EXCL)
            time.sleep(.001)
            os.unlink({str(tmp_path/'inside')!r}); os.close(fd)
        won += 1
    except UserError: pass
print(won)
'''
    racers = [python(code) for _ in range(6)]
    results = [r.communicate() for r in racers]
    assert all(r.returncode == 0 for r in racers), results
    assert sum(int(out) for out, _ in results) > 10 and not (tmp_path/'.lock').exists()


# --- writers that die

@posix
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    "Killed again and again while it writes: the file is always old or new, never half."
    write_atomic(tmp_path/'a', b'0'*300_000)
    for i in range(5):
        p = python(f'from seglab.files import write_atomic\nprint(flush=True)\nwhile True:\n    for c in b"12": write_atomic({str(tmp_path/"a")!r}, bytes([c])*300_000)')
        p.stdout.readline()
        time.sleep(.02 + .013*i)
        p.kill(); p.wait()
        data = (tmp_path/'a').read_bytes()
        assert len(data) == 300_000 and len(set(data)) == 1
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == ['a']


def test_an_interrupted_write(tmp_path, monkeypatch):
    write_atomic(tmp_path/'a', b'old')
    for name in ('replace', ):
        monkeypatch.setattr(files.os, name, lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): write_atomic(tmp_path/'a', b'new')
    assert (tmp_path/'a').read_bytes() == b'old' and os.listdir(tmp_path) == ['a']


def test_a_disk_that_takes_a_little_at_a_time(tmp_path, monkeypatch):
    "A write may take less than it was given."
    import builtins
    real = builtins.open
    class Slow:
        def __init__(self, f): self.f = f
        def __enter__(self): self.f.__enter__(); return self
        def __exit__(self, *a): return self.f.__exit__(*a)
        def write(self, b): return self.f.write(b[:7])
    monkeypatch.setattr(files, 'open', lambda *a, **kw: Slow(real(*a, **kw)), raising=False)
    write_atomic(tmp_path/'a', bytes(range(100)))
    assert (tmp_path/'a').read_bytes() == bytes(range(100))
