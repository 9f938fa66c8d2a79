"Faults that tests inject, and what they wait for."
import os, subprocess, sys, time
from pathlib import Path
import pytest

LONG = bool(os.environ.get('SEGLAB_LONG'))
posix = pytest.mark.skipif(os.name != 'posix', reason='signals and mounts of POSIX')

def until(condition, process=None, seconds=300):
    "Wait for a condition; False if the process ended before."
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None: return False
        assert time.monotonic() < end, 'waited too long'
        time.sleep(.002)
    return True

def group_is_gone(process):
    "Has every process of the group ended?"
    try: os.killpg(process.pid, 0)
    except ProcessLookupError: return True
    return False

def small_disk(folder, options='size=1m'):
    "Mount a small tmpfs; skips where that is not allowed. The caller unmounts."
    folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
    if sys.platform != 'linux' or subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('mounting a small disk is not allowed here (needs root on Linux)')
    return folder

def one_sentence(text):
    "A message for people: one line, no traceback."
    assert len(text.strip().splitlines()) == 1 and 'Traceback' not in text and len(text) < 600, text

def n_files(folder):
    "How many visible files lie below a folder."
    return sum(p.is_file() and p.name[0] != '.' for p in Path(folder).rglob('*')) if Path(folder).exists() else 0

def peak_of(f):
    "By how many bytes this process grows at its largest while `f` runs; 0 where the system cannot say."
    import re
    status, reset = Path('/proc/self/status'), Path('/proc/self/clear_refs')
    def kilobytes(key): return int(re.search(rf'^{key}:\s+(\d+) kB', status.read_text(), re.M)[1])
    try: reset.write_text('5')  # forget the peak so far, which would hide this one
    except OSError:
        f()
        return 0
    before = kilobytes('VmRSS')
    f()
    return (kilobytes('VmHWM') - before)*1024
