"""Processes that begin clean, to be killed: forked from a server that has imported what they need and trained nothing.

A process in which `backward` has run cannot fork one that trains (torch's autograd has threads by then), and in a test run
some other test has mostly done so.
"""
import functools, multiprocessing, os, sys, tempfile, traceback
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import cloudpickle


@functools.cache
def _server():
    "Start it with the folder of the tests on its path: before Python 3.14 it forgets ours, and would import nothing beforehand."
    context, here = multiprocessing.get_context('forkserver'), [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    context.set_forkserver_preload(['test_train_resume', 'test_comparison'])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, here))): forkserver.ensure_running()
    return context


def _do(work, said):
    code = 1
    multiprocessing.set_start_method('fork', force=True)       # data workers that belong to this process, and end with it
    try:
        sys.stdout = sys.stderr = open(os.devnull, 'w')
        cloudpickle.loads(work)()
        code = 0
    except BaseException as e:
        Path(said).write_text(f'{type(e).__name__}: {e}')
        Path(said + '.trace').write_text(traceback.format_exc())
    finally: os._exit(code)


class Child:
    "`work()`, any function or closure, in a process of its own; what it raises becomes `Type: message`."
    def __init__(self, work):
        self.said = Path(tempfile.mkdtemp())/'said'
        self.process = _server().Process(target=_do, args=(cloudpickle.dumps(work), str(self.said)))
        self.process.start()
        self.pid = self.process.pid

    def wait(self):
        "Its exit code (negative: the signal), and what it said."
        self.process.join()
        return self.process.exitcode, self.said.read_text() if self.said.exists() else ''

    def ended(self): return self.process.exitcode is not None

    def send(self, sig):
        "False where it has ended by itself."
        os.kill(self.pid, sig)
        return self.wait()[0] == -sig


def well(work):
    "Run to the end without a fault."
    child = Child(work)
    code, said = child.wait()
    assert code == 0, (code, said, trace.read_text() if (trace := Path(f'{child.said}.trace')).exists() else '')
