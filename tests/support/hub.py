"Stand-ins for the Hugging Face Hub on loopback: one that takes a push, one that is busy first, one that only writes down who calls."
import base64, contextlib, hashlib, json, os, socket, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Answers(BaseHTTPRequestHandler):
    "What the stand-ins share."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def answer(self, data=b'', status=200, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for k, v in ({'Content-Type': 'application/json', 'Content-Length': str(len(body))} | headers).items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)
    def body(self):
        if self.headers.get('Transfer-Encoding') == 'chunked':
            data = b''
            while n := int(self.rfile.readline(), 16): data += self.rfile.read(n); self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

class Hub(Answers):
    "The Hub's endpoints for a push, as far as huggingface_hub calls them; weights go by LFS."
    def do_GET(self): self.body(); self.answer(dict(error='not found'), 404)
    def do_PUT(self):
        data = self.body()
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self.answer({})
    def do_POST(self):
        s, data, path = self.server, self.body(), self.path.split('?')[0]
        s.asked.append(path)
        if s.status != 200: return self.answer(dict(error='no'), s.status)
        if self.headers.get('authorization') != 'Bearer hf_test': return self.answer(dict(error='who?'), 401)
        if path == '/api/repos/create':
            s.created = json.loads(data)
            return self.answer(dict(url=f'{s.address}/ada/unet'))
        if path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
        if '/preupload/' in path:
            return self.answer(dict(files=[dict(path=f['path'], uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular', shouldIgnore=False)
                                           for f in json.loads(data)['files']]))
        if path.endswith('/info/lfs/objects/batch'):
            return self.answer(dict(transfer='basic', objects=[dict(oid=o['oid'], size=o['size'], actions=dict(upload=dict(href=f"{s.address}/blob/{o['oid']}")))
                                                               for o in json.loads(data)['objects']]))
        if '/commit/' in path: return self.commit(data)
        self.answer(dict(error=path), 404)
    def commit(self, data):
        s = self.server
        for line in data.splitlines():
            key, v = (item := json.loads(line))['key'], item['value']
            if key == 'header': s.message = v['summary']
            elif key == 'file': s.files[v['path']] = base64.b64decode(v['content'])
            elif key == 'lfsFile': s.files[v['path']] = s.blobs[v['oid']]
            else: raise AssertionError(key)
        self.answer(dict(commitUrl=f'{s.address}/ada/unet/commit/1', commitOid='1'*40))

class Busy(Answers):
    "Answers 503 to the first requests, then with one configuration."
    def do_GET(self):
        self.server.asked.append(f'{self.command} {self.path}')
        if len(self.server.asked) <= self.server.busy: return self.answer(status=503)
        if not self.path.endswith('/config.json'): return self.answer(status=404)
        content = b'{"model_type": "segformer", "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4]}'
        self.answer(content, **{'ETag': '"1"', 'X-Repo-Commit': 'c'*40})
    do_HEAD = do_GET

class Logger(Answers):
    "Has nothing, and writes down everything that is asked."
    def do_GET(self): self.body(); self.server.asked.append(f'{self.command} {self.path}'); self.answer(dict(error='not found'), 404)
    do_HEAD = do_POST = do_PUT = do_GET

@contextlib.contextmanager
def serving(kind):
    "A stand-in at `.address`, with what was asked in `.asked`."
    server = ThreadingHTTPServer(('127.0.0.1', 0), kind)
    server.address = f'http://127.0.0.1:{server.server_port}'
    server.asked, server.files, server.blobs, server.created, server.status, server.busy = [], {}, {}, None, 200, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server
    finally: server.shutdown(); server.server_close()

def nobody():
    "The address of a port that nobody listens on any more."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return f'http://127.0.0.1:{s.getsockname()[1]}'

def elsewhere(code, endpoint, home, **env):
    "Run code in a process of its own, for which the hub is at `endpoint` and nothing is cached."
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING', 'TRANSFORMERS_'))}
    clean |= dict(HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_XET='1') | env
    return subprocess.run([sys.executable, '-c', code], env=clean, capture_output=True, text=True, timeout=300)
