"What leaves the house, inspected file by file: a stand-in for the Hub, W&B's offline log, a folder, ONNX."
import base64, hashlib, json, os, struct, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import cv2, numpy as np, pytest, torch
from seglab.model import Segmenter, build_model
from seglab.share import export_onnx, find_images, parcel, predict_files, push

NAMES = ['background', 'cat', 'dog', 'bird']
TINY = dict(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)

def make_run(path, segmenter, **config):
    "A run folder as `fit` leaves it, with everything in it that must not leave"
    best = path/'best'
    segmenter.eval().save_pretrained(best)
    torch.save(segmenter.state_dict(), best/'best_model.pth')
    scores = dict(mean_iou=.4321, mean_accuracy=.5, overall_accuracy=.75, per_category_iou=dict(zip(NAMES, [.9, .4, None, .1])), loss=.7, epoch=3., step=12)
    (best/'scores.json').write_text(json.dumps(scores))
    (path/'checkpoint-12').mkdir()
    for name in ('optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'training_args.bin', 'trainer_state.json'): (path/'checkpoint-12'/name).write_bytes(b'x')
    (path/'config.json').write_text(json.dumps(dict(settings=dict(data='/home/ada/secret/processed', lr=1e-3), finished=dict(step=12, epoch=3, seconds=9), **config)))
    (path/'history.csv').write_text('step,epoch,eval_loss\n12,3,.7\n')
    (path/'pictures').mkdir()
    for n in ('1', '2'): cv2.imwrite(str(path/'pictures'/f'epoch_{n}.png'), np.zeros((4, 4, 3), np.uint8))
    return path

@pytest.fixture(scope='module')
def unet():
    torch.manual_seed(0)
    return build_model('unet', NAMES, weights=None, encoder='resnet18').eval()

@pytest.fixture()
def run(tmp_path, unet): return make_run(tmp_path/'run', unet)

WANTED = ['README.md', 'config.json', 'model.safetensors', 'scores.json', 'seglab.json', 'training/config.json',
          'training/history.csv', 'training/pictures/epoch_2.png']

# ---------------------------------------------------------------- the parcel and the folder

def test_only_what_belongs(run):
    assert list(parcel(run)) == WANTED

def test_no_path_of_this_machine(run):
    for name, f in parcel(run).items():
        content = f if isinstance(f, bytes) else f.read_bytes()
        assert b'/home/ada' not in content and str(run).encode() not in content, name
    assert json.loads(parcel(run)['training/config.json'])['settings'] == dict(data='processed', lr=1e-3)

def test_the_card_is_written_anew_from_the_numbers(run):
    (run/'best'/'README.md').write_text('an old card, mean IoU 0.99')
    card = parcel(run)['README.md'].decode()
    assert '0.99' not in card and '0.432' in card

def test_the_licence_is_yours_only_where_the_weights_leave_it(run):
    assert 'license: mit' not in parcel(run)['README.md'].decode()
    assert 'license: mit' in parcel(run, license='mit')['README.md'].decode()
    d = json.loads((run/'best'/'seglab.json').read_text())
    (run/'best'/'seglab.json').write_text(json.dumps(d | dict(base_weights='mit_b0 (imagenet)')))
    assert 'nvidia' in parcel(run)['README.md'].decode().lower()
    with pytest.raises(ValueError, match='leave license out'): push(run, license='mit')

@pytest.mark.parametrize('base', ['nvidia/mit-b0', 'nvidia/segformer-b0-finetuned-ade-512-512', 'mit_b3 (imagenet)', 'mit_b0', None, 'resnet18 (imagenet)'])
def test_the_licence_follows_the_base_weights_wherever_it_goes(run, tmp_path, base):
    d = json.loads((run/'best'/'seglab.json').read_text())
    (run/'best'/'seglab.json').write_text(json.dumps(d | dict(base_weights=base)))
    push(run, 'folder', out=tmp_path/'out')
    head = (tmp_path/'out'/'README.md').read_text().split('---')[1]
    if base and ('nvidia' in base or 'mit_b' in base):
        assert 'license: other' in head and 'license_name: nvidia-source-code-license-segformer' in head and 'license_link: https://' in head
        assert 'no commercial use' in (tmp_path/'out'/'README.md').read_text()
    else: assert 'license' not in head, 'no licence is claimed that nobody gave'
    assert 'license: mit' not in head

@pytest.mark.parametrize('where', ['best/notes.txt', 'best/deep/notes.txt', 'pictures/z.png', 'history.csv'])
def test_links_are_refused(run, where):
    link = run/where
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to('/etc/hostname')
    with pytest.raises(ValueError, match='symbolic link'): parcel(run)

def test_best_as_a_link_is_refused(run):
    (run/'best').rename(run/'elsewhere')
    (run/'best').symlink_to(run/'elsewhere')
    with pytest.raises(ValueError, match='symbolic link'): parcel(run)

@pytest.mark.parametrize('name', ['optimizer.pt', 'model.pkl', 'pytorch_model.bin', 'training_args.json', 'trainer_state.json', '.env', 'run.sh'])
def test_strangers_in_best_stay_at_home(run, name):
    (run/'best'/name).write_text('{}')
    assert list(parcel(run)) == WANTED

def test_an_unfinished_run_is_one_sentence(tmp_path):
    (tmp_path/'run').mkdir()
    with pytest.raises(ValueError, match='no finished model'): push(tmp_path/'run')
    with pytest.raises(FileNotFoundError, match='does not exist'): push(tmp_path/'nothing')

def test_folder(run, tmp_path):
    shared = push(run, 'folder', out=tmp_path/'out')
    assert sorted(p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*') if p.is_file()) == WANTED == shared.files
    again = push(run, 'folder', out=tmp_path/'out')
    assert again.files == shared.files
    x = torch.rand(1, 3, 40, 50)
    with torch.no_grad(): assert torch.equal(Segmenter.from_pretrained(tmp_path/'out')(x), Segmenter.from_pretrained(run)(x))

def test_folder_mixes_nothing(run, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.tex').write_text('x')
    with pytest.raises(ValueError, match='other things'): push(run, 'folder', out=tmp_path/'mine')
    assert [p.name for p in (tmp_path/'mine').iterdir()] == ['thesis.tex']
    with pytest.raises(ValueError, match='model itself'): push(run, 'folder', out=run/'best')

# ---------------------------------------------------------------- the Hub

class Hub(BaseHTTPRequestHandler):
    "The Hub's endpoints for a push, as far as huggingface_hub calls them; weights go by LFS"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def answer(self, data, status=200):
        body = json.dumps(data).encode()
        self.send_response(status)
        for k, v in (('Content-Type', 'application/json'), ('Content-Length', str(len(body)))): self.send_header(k, v)
        self.end_headers(); self.wfile.write(body)
    def body(self):
        if self.headers.get('Transfer-Encoding') == 'chunked':
            data = b''
            while n := int(self.rfile.readline(), 16): data += self.rfile.read(n); self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    def do_GET(self): self.body(); self.answer(dict(error='not found'), 404)
    def do_PUT(self):
        s, data = self.server, self.body()
        s.blobs[hashlib.sha256(data).hexdigest()] = data
        self.answer({})
    def do_POST(self):
        s, data, path = self.server, self.body(), self.path.split('?')[0]
        s.calls.append(path)
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
        if '/commit/' in path:
            for line in data.splitlines():
                item = json.loads(line)
                v = item['value']
                if item['key'] == 'header': s.message = v['summary']
                elif item['key'] == 'file': s.files[v['path']] = base64.b64decode(v['content'])
                elif item['key'] == 'lfsFile': s.files[v['path']] = s.blobs[v['oid']]
                else: raise AssertionError(item['key'])
            return self.answer(dict(commitUrl=f'{s.address}/ada/unet/commit/1', commitOid='1'*40))
        self.answer(dict(error=path), 404)

@pytest.fixture()
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.address = f'http://127.0.0.1:{server.server_port}'
    server.calls, server.files, server.blobs, server.created, server.status = [], {}, {}, None, 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown(); server.server_close()

def share(run, *args, endpoint='', token='hf_test', home, **env):
    "The command, in a process that knows only this Hub"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING', 'WANDB_'))}
    clean |= dict(HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', **env)
    if token: clean['HF_TOKEN'] = token
    code = 'import sys; sys.argv[0] = "seglab_share"; from seglab.cli import seglab_share; sys.exit(seglab_share())'
    return subprocess.run([sys.executable, '-c', code, str(run), *args], capture_output=True, text=True, env=clean, timeout=900)

def test_hub_gets_the_parcel_and_nothing_else(run, hub, tmp_path):
    done = share(run, '--to', 'hub', '--repo', 'ada/unet', '--private', endpoint=hub.address, home=tmp_path/'hf')
    assert done.returncode == 0, done.stderr
    assert hub.created['name'] == 'unet' and hub.created['organization'] == 'ada'
    assert hub.created.get('private') is True or hub.created.get('visibility') == 'private'
    files = parcel(run)
    assert sorted(hub.files) == WANTED
    for name, content in hub.files.items():
        assert content == (files[name] if isinstance(files[name], bytes) else files[name].read_bytes()), name
    assert 'ada/unet' in done.stdout

def test_hub_is_public_unless_asked_otherwise(run, hub, tmp_path):
    done = share(run, '--to', 'hub', '--repo', 'ada/unet', endpoint=hub.address, home=tmp_path/'hf')
    assert done.returncode == 0, done.stderr
    assert not hub.created.get('private') and hub.created.get('visibility', 'public') == 'public'
    assert hub.message == 'Share a model trained with seglab' and sorted(hub.files) == WANTED

@pytest.mark.parametrize('status, said', [(401, 'token that may write'), (403, 'token that may write'), (500, 'answered 500')])
def test_hub_refuses(run, hub, tmp_path, status, said):
    hub.status = status
    done = share(run, '--to', 'hub', '--repo', 'ada/unet', endpoint=hub.address, home=tmp_path/'hf')
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr

def test_hub_cannot_be_used(run, tmp_path):
    gone = 'http://127.0.0.1:9'
    for args, env, said in [(('--repo', 'a/b'), dict(token=None), 'HF_TOKEN'), ((), {}, "user/name"), (('--repo', 'a/b'), {}, 'could not be reached'),
                            (('--repo', 'a b!'), {}, 'no name for a Hub repository'), (('--repo', 'a/b'), dict(HF_HUB_OFFLINE='1'), 'HF_HUB_OFFLINE')]:
        done = share(run, '--to', 'hub', *args, endpoint=gone, home=tmp_path/'hf', **env)
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, (args, env, done.stderr)

# ---------------------------------------------------------------- W&B

def wandb_records(path):
    "The records of an offline log: blocks of 32 KiB, each record with checksum, length and type"
    from wandb.proto import wandb_internal_pb2 as pb
    data, pos, whole = path.read_bytes(), 7, b''
    while pos + 7 <= len(data):
        if (left := 32768 - pos % 32768) < 7: pos += left; continue
        _, n, kind = struct.unpack('<IHB', data[pos:pos + 7])
        whole += data[pos + 7:pos + 7 + n]
        pos += 7 + n
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(whole)
            whole = b''
            yield record

def test_wandb_artifact(run, tmp_path):
    done = share(run, '--to', 'wandb', '--project', 'zoo', '--name', 'unet', home=tmp_path/'hf', WANDB_MODE='offline',
                 WANDB_DATA_DIR=str(tmp_path/'data'), WANDB_CACHE_DIR=str(tmp_path/'cache'), WANDB_CONFIG_DIR=str(tmp_path/'config'), endpoint='http://127.0.0.1:9')
    assert done.returncode == 0 and 'offline' in done.stdout, done.stderr
    log, = run.glob('wandb/offline-run-*/*.wandb')
    artifact, = [r.artifact for r in wandb_records(log) if r.WhichOneof('record_type') == 'artifact']
    assert (artifact.type, artifact.name, set(artifact.aliases)) == ('model', 'unet', {'best', 'latest'})
    assert sorted(e.path for e in artifact.manifest.contents) == WANTED
    assert json.loads(artifact.metadata)['mean_iou'] == .4321
    for e in artifact.manifest.contents:
        sent = Path(e.local_path).read_bytes()
        assert base64.b64encode(hashlib.md5(sent).digest()).decode() == e.digest
        assert b'/home/ada' not in sent

# ---------------------------------------------------------------- ONNX

ZOO = {'unet': ('unet', dict(encoder='resnet18')), 'segformer': ('segformer', TINY), 'fpn': ('fpn', dict(encoder='resnet18'))}

@pytest.mark.parametrize('name', ZOO)
def test_onnx_at_sizes_not_seen_at_export(name, tmp_path):
    pytest.importorskip('onnx')
    import onnxruntime
    torch.manual_seed(1)
    arch, kwargs = ZOO[name]
    model = build_model(arch, NAMES, weights=None, **kwargs).eval()
    path = export_onnx(model, tmp_path/f'{name}.onnx')
    session = onnxruntime.InferenceSession(str(path))
    rng = np.random.default_rng(0)
    for b, h, w in [(1, 40, 300), (4, 65, 33), (2, 255, 257)]:
        x = cv2.resize(rng.integers(0, 256, (6, 6, 3*b), np.uint8), (w, h), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1).reshape(b, 3, h, w).copy()
        got, = session.run(None, {'pixel_values': x})
        with torch.no_grad(): want = model(torch.from_numpy(x)).numpy()
        assert got.shape == want.shape and np.abs(got - want).max() < 1e-4
        assert (got.argmax(1) == want.argmax(1)).mean() >= .9999
    about, props = json.loads(path.with_suffix('.json').read_text()), session.get_modelmeta().custom_metadata_map
    assert list(about['id2label'].values()) == NAMES == list(json.loads(props['id2label']).values())
    assert about['max_abs_difference'] == json.loads(props['max_abs_difference']) < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'{name}.json', f'{name}.onnx']

def test_onnx_that_differs_is_not_written(unet, tmp_path):
    with pytest.raises(ValueError, match='cannot be exported faithfully.*within 1e-12'): export_onnx(unet, tmp_path/'u.onnx', tol=1e-12, sizes=((1, 64, 64),))
    assert not list(tmp_path.iterdir())

def test_onnx_packages_missing_is_one_sentence(unet, tmp_path, monkeypatch):
    import importlib.util
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda n, *a: None if n == 'onnx' else found(n, *a))
    with pytest.raises(ImportError, match=r"seglab\[onnx\]"): export_onnx(unet, tmp_path/'u.onnx')

# ---------------------------------------------------------------- predictions

def photo(path, h, w, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8))

def test_predictions_have_the_photos_size_and_the_models_classes(unet, tmp_path):
    for i, (h, w) in enumerate([(33, 70), (64, 64), (1, 5)]): photo(tmp_path/'in'/f'{i}.png', h, w, i)
    done = predict_files(unet, [tmp_path/'in'], tmp_path/'out', coco_json=True)
    assert len(done.done) == 3 and not done.failed and done.complaint == ''
    for p in sorted((tmp_path/'in').iterdir()):
        mask = cv2.imread(str(tmp_path/'out'/'masks'/p.name), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask, unet.predict(p))
        assert cv2.imread(str(tmp_path/'out'/'overlays'/f'{p.stem}.jpg')).shape[:2] == mask.shape
    assert {'categories': [dict(id=i, name=n) for i, n in enumerate(NAMES)], 'values': 'category_id'} == json.loads((tmp_path/'out'/'classes.json').read_text())

def test_one_broken_image_stops_nobody(unet, tmp_path):
    for i in range(12): photo(tmp_path/'in'/f'{i:02}.png', 20, 20, i)
    for name, content in (('05.png', b''), ('07.png', b'<html>'), ('09.png', (tmp_path/'in'/'01.png').read_bytes()[:300])): (tmp_path/'in'/name).write_bytes(content)
    done = predict_files(unet, str(tmp_path/'in'/'*.png'), tmp_path/'out')
    assert len(done.done) == 9 and [Path(p).name for p in done.failed] == ['05.png', '07.png', '09.png']
    assert all(n in done.complaint for n in ('3 of 12', '05.png', '07.png', '09.png', 'the other 9'))
    assert len(list((tmp_path/'out'/'masks').iterdir())) == 9

def test_names_that_collide_stay_apart(unet, tmp_path):
    for name in ('a/x.png', 'b/x.png', 'b/X.PNG', 'x-2.png'): photo(tmp_path/'in'/name, 8, 9)
    done = predict_files(unet, tmp_path/'in', tmp_path/'out', with_overlay=False)
    masks = [p.name.lower() for p in (tmp_path/'out'/'masks').iterdir()]
    assert len(done.done) == len(set(masks)) == 4
    assert not (tmp_path/'out'/'overlays').exists()

@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere file names are Unicode')
def test_names_that_are_no_utf8(unet, tmp_path):
    good, evil = tmp_path/'in'/'caf\udce9.png', tmp_path/'in'/'b\udcff.png'
    photo(tmp_path/'in'/'x.png', 8, 9)
    os.rename(tmp_path/'in'/'x.png', good); evil.write_bytes(b'no image')
    done = predict_files(unet, tmp_path/'in', tmp_path/'out\udce9', coco_json=True)
    out = os.fsencode(tmp_path/'out\udce9')
    assert os.listdir(out + b'/masks') == [b'caf\xe9.png'] and os.listdir(out + b'/overlays') == [b'caf\xe9.jpg']
    assert r'b\udcff.png' in done.complaint and r'out\udce9' in str(done)
    for text in (done.complaint, str(done)): text.encode()                       # would raise if half a character were left
    assert r'caf\udce9.png' in open(out + b'/index.csv', encoding='utf-8').read()
    assert json.load(open(out + b'/annotations.json', encoding='utf-8'))['images'][0]['file_name'] == good.name, 'from which the file can be found again'

def test_a_corrupt_image_among_a_thousand_is_named(unet, tmp_path):
    photo(tmp_path/'in'/'0000.png', 4, 4)
    for i in range(1, 1000): os.link(tmp_path/'in'/'0000.png', tmp_path/'in'/f'{i:04}.png')
    (tmp_path/'in'/'0500.png').unlink(); (tmp_path/'in'/'0500.png').write_bytes((tmp_path/'in'/'0000.png').read_bytes()[:40])
    asked = unet.predict
    unet.predict = lambda image: np.zeros(image.shape[:2], np.uint8)             # a thousand forward passes tell nothing more
    try: done = predict_files(unet, tmp_path/'in', tmp_path/'out', with_overlay=False)
    finally: unet.predict = asked
    assert len(done.done) == 999 == len(os.listdir(tmp_path/'out'/'masks')) and [Path(p).name for p in done.failed] == ['0500.png']
    assert done.complaint.startswith('1 of 1000 images could not be done: ') and '0500.png' in done.complaint

def test_a_full_disk_and_a_read_only_folder_are_told(unet, tmp_path, monkeypatch):
    import errno
    from seglab import share as module
    photo(tmp_path/'p.png', 8, 8)
    for number, said in ((errno.ENOSPC, 'disk is full'), (errno.EROFS, 'choose another folder')):
        def failing(path, content): raise OSError(number, os.strerror(number))
        monkeypatch.setattr(module, 'write_atomic', failing)
        with pytest.raises(OSError, match=said) as e: predict_files(unet, tmp_path/'p.png', tmp_path/'out')
        assert e.value.filename == str(tmp_path/'out') and not [p for p in (tmp_path/'out').rglob('*') if p.is_file()]

def test_merged_classes_have_no_category_id(tmp_path):
    from seglab.dataset import label_space
    model = build_model('segformer', label_space('things'), weights=None, **TINY).eval()
    photo(tmp_path/'p.png', 40, 40)
    predict_files(model, tmp_path/'p.png', tmp_path/'out')
    assert json.loads((tmp_path/'out'/'classes.json').read_text())['values'] == 'class_index'
    with pytest.raises(ValueError, match='several category ids'): predict_files(model, tmp_path/'p.png', tmp_path/'out', values='category_id')

def test_what_is_no_image(unet, tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.jpg'): find_images(tmp_path/'nothing.jpg')
    with pytest.raises(FileNotFoundError, match='no folder with images'): find_images(tmp_path)
    photo(tmp_path/'out'/'p.png', 8, 8)
    with pytest.raises(FileNotFoundError, match='another folder'): predict_files(unet, tmp_path/'out', tmp_path/'out')
