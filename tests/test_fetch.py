"""`fetch_coco` against a server on loopback that breaks off, lies, forgets ranges, is busy, stalls, and serves poisoned zips."""
import errno, hashlib, io, json, os, signal, socket, stat, subprocess, sys, threading, time, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from seglab import fetch as fetching
from seglab.fetch import CocoZip, fetch_coco
from support.faults import until

PHOTOS = {f'toy/{i:012d}.jpg': bytes([i]) * (40_000 + i) for i in range(5)}
NOTES = {'annotations/instances_toy.json': json.dumps(dict(images=[], annotations=[], categories=[])).encode()}


def zipped(files):
    "The bytes of a zip; a value may be a `(ZipInfo, bytes)` pair."
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, data in files.items(): z.writestr(*(data if isinstance(data, tuple) else (name, data)))
    return out.getvalue()


def entry(photos=None, notes=None, **change):
    "The files to serve and their catalogue."
    files = {'photos.zip': photos or zipped(PHOTOS), 'notes.zip': notes or zipped(NOTES)}
    zips = {name: CocoZip(f, len(files[f]), hashlib.sha256(files[f]).hexdigest(), 5)
            for name, f in (('toy', 'photos.zip'), ('annotations', 'notes.zip'))}
    zips['toy'] = zips['toy']._replace(**change)
    return files, zips


class Server(ThreadingHTTPServer):
    "Serves `files`; `plan` lists what to do with the next requests for photos.zip, `always` what to do when it is empty."
    daemon_threads = True

    def __init__(self, files, plan=(), always='ranges', tag='"one"'):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.plan, self.always, self.tag, self.asked = files, list(plan), always, tag, []
        self.url, self.go_on = f'http://127.0.0.1:{self.server_port}', threading.Event()

    def handle_error(self, request, client_address): pass  # the client hung up, as tests do


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        name, since, s = self.path.rpartition('/')[2], self.headers.get('Range'), self.server
        start = int(since[6:-1]) if since else 0
        s.asked.append((name, start))
        do = (s.plan.pop(0) if s.plan else s.always) if name == 'photos.zip' else 'ranges'
        data = s.files[name]
        if isinstance(do, int): return self.send_error(do)
        if do == 'picky' and since: return self.send_error(416)
        if do == 'stall':  # until the other side gives up, however long that takes
            self.connection.settimeout(60)
            try: self.connection.recv(1)
            except OSError: pass
            return
        if do in ('no ranges', 'forgets') or (self.headers.get('If-Range') not in (None, s.tag) and do != 'mixes'): since, start = None, 0
        self.send_response(206 if since else 200)
        if do not in ('endless', 'nothing said'): self.send_header('Content-Length', len(data) - start + 999*(do == 'lies'))
        if s.tag: self.send_header('ETag', s.tag)
        if since: self.send_header('Content-Range', f'bytes {start + 7*(do == "elsewhere")}-{len(data) - 1}/{len(data)}')
        self.end_headers()
        some = {'drops': 30_000, 'forgets': 30_000, 'drops at once': 0, 'drops early': 10}.get(do, len(data))
        for at in range(start, min(start + some, len(data)), 10_000):
            self.wfile.write(data[at:min(at + 10_000, start + some)])
            if do == 'slow': time.sleep(.05)
            if do == 'holds' and at == start + 20_000: s.go_on.wait(120)
        if do == 'endless': self.wfile.write(bytes(5_000_000))


@pytest.fixture
def serve():
    servers = []

    def start(*args, **kw):
        servers.append(Server(*args, **kw))
        threading.Thread(target=servers[-1].serve_forever, args=(.02,), daemon=True).start()
        return servers[-1]
    yield start
    for s in servers:
        s.shutdown()
        s.server_close()


def fetch(server, path, zips, **kw):
    "`fetch_coco` from this server, without waiting between tries."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, 'COCO_ZIPS', zips)
        patch.setattr(fetching, '_BACKOFF', 0)
        return fetch_coco('toy', path, **{**dict(base_url=server.url, timeout=30), **kw})


def whole(path):
    "Is all there, as served, and nothing else?"
    found = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob('*') if p.is_file() and p.name != '.lock'}
    return found == {**PHOTOS, **NOTES}


def leftovers(path): return [p.name for p in path.rglob('*') if p.name.startswith('.unpack')]


# --- a bad line

@pytest.mark.parametrize('plan, requests', [
    ([], 1), (['drops']*6, 7), (['drops at once']*5 + ['drops early']*5, 11), (['drops', 'no ranges'], 2), (['drops', 'drops', 'no ranges', 'drops early', 'no ranges'], 3),
    ([500, 503, 'drops', 429, 'ranges'], 5), (['drops', 416], 3), (['drops', 'picky', 'picky'], 3), (['drops', 'elsewhere'], 3), (['stall', 'drops', 'stall'], 4), (['nothing said'], 1)])
def test_arrives_whatever_the_line_does(serve, tmp_path, plan, requests):
    files, zips = entry()
    server = serve(files, plan)
    assert fetch(server, tmp_path, zips, timeout=2 if 'stall' in plan else 30) == tmp_path
    assert whole(tmp_path)
    assert sum(name == 'photos.zip' for name, _ in server.asked) == requests


def test_goes_on_where_it_stopped(serve, tmp_path):
    files, zips = entry()
    server = serve(files, ['drops', 'drops'])
    fetch(server, tmp_path, zips)
    assert [start for name, start in server.asked if name == 'photos.zip'] == [0, 30_000, 60_000]


def test_second_call_asks_for_nothing(serve, tmp_path):
    files, zips = entry()
    server = serve(files)
    fetch(server, tmp_path, zips)
    asked = list(server.asked)
    fetch(server, tmp_path, zips)
    assert server.asked == asked and whole(tmp_path)


@pytest.mark.parametrize('always, requests', [(500, 4), ('drops at once', 4), ('stall', 4)])
def test_gives_up_with_a_sentence_and_keeps_the_bytes(serve, tmp_path, always, requests):
    files, zips = entry()
    server = serve(files, ['drops'], always)
    with pytest.raises(ConnectionError, match='cannot be read after 4 tries .* are kept'): fetch(server, tmp_path, zips, retries=3, timeout=1 if always == 'stall' else 30)
    assert sum(name == 'photos.zip' for name, _ in server.asked) == 1 + requests
    assert (tmp_path/'photos.zip.part').stat().st_size == 30_000 and not (tmp_path/'toy').exists()
    server.always = 'ranges'
    fetch(server, tmp_path, zips)
    assert whole(tmp_path) and server.asked[-1] == ('photos.zip', 30_000)


def test_server_without_ranges_that_always_breaks_off(serve, tmp_path):
    files, zips = entry()
    server = serve(files, always='forgets')
    with pytest.raises(ConnectionError, match='after 3 tries'): fetch(server, tmp_path, zips, retries=2)
    assert sum(name == 'photos.zip' for name, _ in server.asked) == 4  # one that gained bytes, three that did not


def test_nobody_there(tmp_path):
    _, zips = entry()
    with socket.socket() as s:  # bound, so that nobody else can take the port, but nobody listens
        s.bind(('127.0.0.1', 0))
        nobody = SimpleNamespace(url=f'http://127.0.0.1:{s.getsockname()[1]}')
        with pytest.raises(ConnectionError, match='refused'): fetch(nobody, tmp_path, zips, retries=1)


@pytest.mark.parametrize('code', [404, 403, 410])
def test_a_wrong_address_is_an_error_at_once(serve, tmp_path, code):
    files, zips = entry()
    server = serve(files, [], code)
    with pytest.raises(ConnectionError, match=f'answers {code} .*check the address'): fetch(server, tmp_path, zips)
    assert sum(name == 'photos.zip' for name, _ in server.asked) == 1


# --- a lying server

@pytest.mark.parametrize('do, said', [('lies', 'expected the file of .* got .* bytes'), ('endless', 'expected the file of .* got more')])
def test_another_size_stops_before_it_is_stored(serve, tmp_path, do, said):
    files, zips = entry()
    with pytest.raises(ValueError, match=said): fetch(serve(files, [do]), tmp_path, zips)
    part = tmp_path/'photos.zip.part'
    assert not part.exists() or part.stat().st_size <= zips['toy'].size
    fetch(serve(files), tmp_path, zips)
    assert whole(tmp_path)


def test_a_file_that_changed_is_begun_anew(serve, tmp_path):
    files, zips = entry()
    old = {**files, 'photos.zip': files['photos.zip'][::-1]}
    with pytest.raises(ConnectionError): fetch(serve(old, ['drops'], 'drops at once', tag='"old"'), tmp_path, zips, retries=0)
    assert (tmp_path/'photos.zip.part.etag').read_text() == '"old"'
    server = serve(files, tag='"new"')
    fetch(server, tmp_path, zips)
    assert whole(tmp_path)


def test_a_mixture_of_two_files_is_found_out(serve, tmp_path):
    files, zips = entry()
    old = {**files, 'photos.zip': files['photos.zip'][::-1]}
    with pytest.raises(ConnectionError): fetch(serve(old, ['drops'], 'drops at once', tag=None), tmp_path, zips, retries=0)
    with pytest.raises(ValueError, match="expected COCO's file of SHA-256 .*; got .* deleted; fetch again"): fetch(serve(files, always='mixes'), tmp_path, zips)
    fetch(serve(files), tmp_path, zips)
    assert whole(tmp_path)


# --- poisoned zips

def link(name, to):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {name: (info, to)}


def bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('toy/zeros.jpg', bytes(60_000_000))
    return out.getvalue()


def damaged():
    data = bytearray(zipped(PHOTOS))
    data[20_000] ^= 255
    return bytes(data)


def cheating():
    "Declares ten bytes and holds many."
    data = bytearray(bomb())
    for mark, at in ((b'PK\x03\x04', 22), (b'PK\x01\x02', 24)):
        i = data.find(mark)
        data[i + at:i + at + 4] = (10).to_bytes(4, 'little')
    return bytes(data)


POISON = {'up and away': zipped({**PHOTOS, '../evil.txt': b'x'}), 'deep up': zipped({**PHOTOS, 'toy/../../evil.txt': b'x'}),
          'absolute': zipped({**PHOTOS, '/tmp/evil.txt': b'x'}), 'backslash': zipped({**PHOTOS, 'toy/..\\..\\evil.txt': b'x'}),
          'drive': zipped({**PHOTOS, 'C:/evil.txt': b'x'}), 'elsewhere': zipped({**PHOTOS, 'annotations/instances_toy.json': b'x'}),
          'link': zipped({**link('toy/link', '../..'), 'toy/link/evil.txt': b'x'}), 'bomb': bomb()}


@pytest.mark.parametrize('poison', POISON)
def test_a_poisoned_zip_is_refused(serve, tmp_path, poison):
    files, zips = entry(photos=POISON[poison])
    home = tmp_path/'home'
    with pytest.raises(ValueError, match='expected plain files in'): fetch(serve(files), home, zips)
    assert not list(tmp_path.rglob('evil*')) and not (home/'toy').exists() and not leftovers(tmp_path)
    assert (home/'annotations'/'instances_toy.json').read_bytes() == NOTES['annotations/instances_toy.json']


@pytest.mark.parametrize('data', [damaged(), cheating(), b'no zip at all' * 9000, zipped(PHOTOS)[:-30]], ids=['damaged', 'cheating', 'text', 'cut'])
def test_a_damaged_zip_leaves_nothing(serve, tmp_path, data):
    files, zips = entry(photos=data)
    with pytest.raises(ValueError, match='expected a zip that can be unpacked; got'): fetch(serve(files), tmp_path, zips)
    assert not (tmp_path/'toy').exists() and not leftovers(tmp_path)


# --- disk, neighbours, kills

AFTER = [.1, .6] if not os.environ.get('SEGLAB_LONG') else [i*.05 for i in range(25)]  # seconds until the kill

def test_room_is_checked_first(serve, tmp_path, monkeypatch):
    files, zips = entry()
    server = serve(files)
    monkeypatch.setattr(fetching.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match='has 0.0 GB free, fetching toy needs .* GB; make room'): fetch(server, tmp_path, zips)
    assert not server.asked


RUN = '''
import json, sys
from seglab import fetch
path, url, zips, limit = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
fetch.COCO_ZIPS, fetch._BACKOFF = {k: fetch.CocoZip(*v) for k, v in zips.items()}, 0
if limit:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print('go', flush=True)
try: fetch.fetch_coco('toy', path, base_url=url)
except (OSError, ValueError) as e: sys.exit(str(e))
'''


def process(server, path, zips, limit=0):
    p = subprocess.Popen([sys.executable, '-c', RUN, str(path), server.url, json.dumps(zips), str(limit)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'go\n'
    return p


@pytest.mark.skipif(os.name != 'posix', reason='limits and locks of POSIX')
def test_a_full_disk_is_one_sentence(serve, tmp_path):
    files, zips = entry()
    p = process(serve(files), tmp_path, zips, limit=100_000)
    err = p.communicate(timeout=300)[1]
    assert p.returncode == 1 and 'grew larger than the disk or your limit allows' in err and err.count('\n') == 1
    assert (tmp_path/'photos.zip.part').stat().st_size <= 100_000
    fetch(serve(files), tmp_path, zips)
    assert whole(tmp_path)


@pytest.mark.skipif(os.name != 'posix', reason='limits and locks of POSIX')
def test_the_second_process_is_told(serve, tmp_path):
    files, zips = entry()
    server = serve(files, ['holds'])
    p = process(server, tmp_path, zips)
    assert until(lambda: (tmp_path/'photos.zip.part').exists(), p)
    with pytest.raises(ValueError, match='another process is fetching'): fetch(server, tmp_path, zips)
    server.go_on.set()
    assert p.wait(timeout=300) == 0 and whole(tmp_path)


@pytest.mark.skipif(os.name != 'posix', reason='locks of POSIX')
def test_a_disk_without_locks(serve, tmp_path, monkeypatch):
    import fcntl
    def no_locks(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', no_locks)
    files, zips = entry()
    fetch(serve(files), tmp_path, zips)
    assert whole(tmp_path)


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize('after', AFTER)
def test_killed_and_called_again(serve, tmp_path, after, sig):
    files, zips = entry()
    p = process(serve(files, always='slow'), tmp_path, zips)
    time.sleep(after)
    p.send_signal(sig)
    p.communicate(timeout=300)
    fetch(serve(files), tmp_path, zips)
    assert whole(tmp_path)


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_goes_on_from_there(serve, tmp_path, sig):
    files, zips = entry()
    p = process(serve(files, ['holds']), tmp_path, zips)
    part = tmp_path/'photos.zip.part'
    assert until(lambda: part.exists() and part.stat().st_size > 0, p)
    p.send_signal(sig)
    p.communicate(timeout=300)
    have, server = part.stat().st_size, serve(files)
    fetch(server, tmp_path, zips)
    assert whole(tmp_path) and dict(server.asked)['photos.zip'] == have > 0


def test_killed_while_unpacking(serve, tmp_path):
    files, zips = entry()
    (tmp_path/'.unpack-toy'/'toy').mkdir(parents=True)
    (tmp_path/'.unpack-toy'/'toy'/'old.jpg').write_bytes(b'half')
    fetch(serve(files), tmp_path, zips)
    assert whole(tmp_path)


@pytest.mark.parametrize('zip, folder', [('notes.zip', 'annotations'), ('photos.zip', 'toy')])
def test_killed_between_unpacking_and_clearing_up(serve, tmp_path, zip, folder):
    files, zips = entry()
    fetch(serve(files), tmp_path, zips)
    for name in (f'{zip}.part', f'{zip}.part.etag', f'.unpack-{folder}/{folder}/x'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(files.get(zip) if name.endswith('.part') else b'x')
    fetch(serve(files), tmp_path, zips)
    assert whole(tmp_path) and not leftovers(tmp_path)


def test_the_second_process_is_told_while_unpacking(serve, tmp_path, monkeypatch):
    files, zips = entry()
    told, unpack = [], fetching._unpack
    def meanwhile(*args):
        with pytest.raises(ValueError, match='another process is fetching') as e: fetch(serve(files), tmp_path, zips)
        told.append(str(e.value))
        unpack(*args)
    monkeypatch.setattr(fetching, '_unpack', meanwhile)
    fetch(serve(files), tmp_path, zips)
    assert len(told) == 2 and whole(tmp_path)


def test_a_zip_that_lies_there_is_used_and_kept(serve, tmp_path):
    files, zips = entry()
    server = serve(files)
    (tmp_path/'photos.zip').write_bytes(files['photos.zip'])
    fetch(server, tmp_path, zips)
    assert 'photos.zip' not in dict(server.asked) and (tmp_path/'photos.zip').exists() and (tmp_path/'toy').is_dir()
    other = tmp_path/'other'
    other.mkdir()
    (other/'photos.zip').write_bytes(b'something else')
    with pytest.raises(ValueError, match='got 14. Delete it and fetch again'): fetch(server, other, zips)
    assert (other/'photos.zip').exists()


def test_annotations_join_a_folder_that_is_there(serve, tmp_path):
    files, zips = entry()
    (tmp_path/'annotations').mkdir()
    (tmp_path/'annotations'/'mine.json').write_text('{}')
    fetch(serve(files), tmp_path, zips)
    assert sorted(p.name for p in (tmp_path/'annotations').iterdir()) == ['instances_toy.json', 'mine.json']


def test_the_official_catalogue():
    assert set(fetching.COCO_ZIPS) == {'val2017', 'train2017', 'annotations'}
    assert all(len(z.sha256) == 64 and int(z.sha256, 16) and z.size > 2e8 and z.address.endswith('.zip') for z in fetching.COCO_ZIPS.values())
