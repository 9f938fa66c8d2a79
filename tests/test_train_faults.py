"""Faults under `fit`: killed, out of disk, read-only, robbed of a photo or a worker, two at once, a clock that jumps. One sentence each, nothing half-written, and the same call goes on."""
import multiprocessing, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from support import fresh_process
from support.faults import LONG, small_disk, until
from test_train_resume import CLOCK, data, go, same, undisturbed  # noqa: F401  (the fixtures)
from seglab import trainer as T
from seglab.runs import _MARK, Run, last_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
KILLS = 8 if LONG else 1                                                        # rounds for each number of workers


class Child(fresh_process.Child):
    "`fit` in a process of its own."
    def __init__(self, data, out, before=lambda: None, **kw):
        def work():
            before()
            go(data, out, **kw)
        super().__init__(work)


def finish(data, out, **kw):
    code, said = Child(data, out, **kw).wait()
    assert code == 0, said
    return Run(out)


def whole(out):
    "Nothing half-written lies about: every checkpoint is complete, every other file has its final name."
    assert all(last_checkpoint(out) is not None and (p/_MARK).is_file() for p in out.glob('checkpoint-*'))
    assert not [p for p in out.rglob('*') if p.name.startswith('.tmp-') or p.name.startswith('.old-')]


# --- kills

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('seed', range(KILLS))
def test_killed_at_random_moments(workers, seed, data, undisturbed, tmp_path):
    rng, out, hits = random.Random(f'{workers} {seed}'), tmp_path/'run', 0
    for sig in (signal.SIGKILL, signal.SIGTERM):
        child, files = Child(data, out, workers=workers), rng.randint(1, 20)
        until(lambda: child.ended() or sum(len(d) + len(f) for _, d, f in os.walk(out)) >= files)
        time.sleep(rng.uniform(0, .3))
        hits += child.send(sig)
    same(undisturbed, finish(data, out, workers=workers))
    print(f'{hits} of 2 signals came before the end')


# --- the disk

@pytest.mark.parametrize('size', [700, 1500, 1900] if LONG else [1500])
def test_a_full_disk_keeps_what_is_done(size, data, undisturbed, tmp_path):
    disk = tmp_path/'disk'
    small_disk(disk, f'size={size}k')
    try:
        code, said = Child(data, disk/'run').wait()
        assert code == 1 and said.startswith('OSError: ') and 'The disk is full' in said and 'call fit again' in said and '\n' not in said, said
        whole(disk/'run')
        subprocess.run(['mount', '-o', 'remount,size=64m', disk], check=True)
        same(undisturbed, finish(data, disk/'run'))
    finally: subprocess.run(['umount', '-l', disk], check=True)


def test_a_read_only_folder(data, tmp_path):
    disk = tmp_path/'disk'
    small_disk(disk, 'size=4m,ro')
    try:
        code, said = Child(data, disk/'run').wait()
        assert code == 1 and said.startswith('PermissionError: ') and 'We may not write to' in said and '\n' not in said, said
    finally: subprocess.run(['umount', '-l', disk], check=True)


def test_a_file_where_the_folder_should_be(data, tmp_path):
    (tmp_path/'run').write_text('mine')
    for out in (tmp_path/'run', tmp_path/'run'/'deeper'):
        with pytest.raises(ValueError, match='expected a folder'): go(data, out)
    assert (tmp_path/'run').read_text() == 'mine'


# --- data and workers that go away

@pytest.mark.parametrize('workers', [0, 2])
def test_a_photo_deleted_under_the_reader(workers, data, undisturbed, tmp_path):
    mine = shutil.copytree(data, tmp_path/'data')
    lost, out = mine/'train_masks'/'5.png', tmp_path/'run'

    def before():
        was = T._Callback.on_step_end
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 4: lost.rename(tmp_path/'stolen.png')
            was(self, args, state, control, **kw)
        T._Callback.on_step_end = on_step_end
    code, said = Child(mine, out, before, workers=workers).wait()
    assert code == 1 and said.startswith('FileNotFoundError: ') and '5.png' in said and '\n' not in said, said
    whole(out)
    (tmp_path/'stolen.png').rename(lost)
    same(undisturbed, finish(mine, out, workers=workers))


def test_a_worker_killed_by_the_system(data, undisturbed, tmp_path):
    out = tmp_path/'run'

    def before():
        was = T._Callback.on_step_end
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 4:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
                time.sleep(.3)
            was(self, args, state, control, **kw)
        T._Callback.on_step_end = on_step_end
    code, said = Child(data, out, before, workers=2).wait()
    assert code == 1 and said.startswith('RuntimeError: A data worker was ended from outside') and 'step 3' in said and '\n' not in said, said
    whole(out)
    same(undisturbed, finish(data, out, workers=2))


# --- two at once, and time

def test_two_at_once(data, undisturbed, tmp_path):
    "The second is told; the first, held up for that time, ends as if it had been alone."
    out = tmp_path/'run'
    first = Child(data, out)
    until(lambda: (out/'checkpoint-0'/_MARK).exists())
    os.kill(first.pid, signal.SIGSTOP)
    try:
        before = sorted(p.name for p in out.rglob('*'))
        code, said = Child(data, out).wait()
        assert code == 1 and said.startswith('UserError: ') and 'another process is training' in said and '\n' not in said, said
        assert sorted(p.name for p in out.rglob('*')) == before
    finally: os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == (0, '')
    same(undisturbed, Run(out))


@pytest.mark.parametrize('jump', [-86_400, 86_400])
def test_a_clock_that_jumps(jump, data, undisturbed, tmp_path):
    "The wall clock goes a day back or forth at every look, and the checkpoints' times with it: no wrong seconds, nothing lost."
    out = tmp_path/'run'

    def before(stop_at=None):
        now = [time.time()]
        def jumping():
            now[0] += jump
            return now[0]
        time.time = jumping
        was = T._Callback.on_step_end
        def on_step_end(self, args, state, control, **kw):
            for k, p in enumerate(sorted(out.glob('checkpoint-*'))): os.utime(p, (10**9 - jump*k,)*2)
            if state.global_step == stop_at: os.kill(os.getpid(), signal.SIGKILL)
            was(self, args, state, control, **kw)
        T._Callback.on_step_end = on_step_end
    assert Child(data, out, lambda: before(5)).wait()[0] == -signal.SIGKILL
    start = time.monotonic()
    run = finish(data, out, before=before)
    assert 0 < run.config['finished']['seconds'] <= time.monotonic() - start
    speed = run.history[CLOCK].stack().dropna()
    assert (speed >= 0).all() and (speed < 1e6).all()
    same(undisturbed, run)
