"""Files of strangers: pickles disguised as weights, models and runs that point outside their folder, markup in names, decompression bombs."""
import csv, json, os, re, struct, zlib
from html.parser import HTMLParser
from pathlib import Path

import cv2, numpy as np, pytest, torch

from seglab.compare import compare, evaluate, evaluate_masks
from seglab.dataset import LabelSpace, SegDataset, read_mask
from seglab.masks import prepare
from seglab.model import Segmenter, build_model, model_card
from seglab.share import parcel, predict_files, push
from seglab.train import Run, fit

NAMES = ['background', 'cat', 'dog']
TINY = dict(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)


def tiny(labels=NAMES, **kw):
    "A SegFormer of a few thousand weights."
    torch.manual_seed(0)
    s = build_model('segformer', labels, weights=None, **TINY)
    for k, v in kw.items(): setattr(s, k, v)
    return s.eval()


def photos(root, n=4, names=NAMES, stems=None, size=(32, 40)):
    "Photos and their masks."
    rng = np.random.default_rng(0)
    for d in ('images', 'masks'): (root/d).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        stem = stems[i] if stems else f'p{i}'
        mask = cv2.resize(rng.integers(0, len(names), (4, 5), np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        (root/'images'/f'{stem}.png').write_bytes(cv2.imencode('.png', (mask[..., None]*60 + rng.integers(0, 50, (*size, 3))).astype(np.uint8))[1].tobytes())
        (root/'masks'/f'{stem}.png').write_bytes(cv2.imencode('.png', mask)[1].tobytes())
    return SegDataset.from_folders(root/'images', root/'masks', LabelSpace.from_names(names))


@pytest.fixture(scope='module')
def ds(tmp_path_factory): return photos(tmp_path_factory.mktemp('photos'))


def saved_run(path, segmenter=None, **config):
    "A finished run folder, as far as loading, comparing and sharing look at it."
    (segmenter or tiny()).save_pretrained(path/'best')
    (path/'best'/'scores.json').write_text(json.dumps(dict(mean_iou=.5, loss=.7, step=3, epoch=1.)))
    (path/'config.json').write_text(json.dumps(dict(settings={}, finished=dict(step=3, epoch=1, seconds=1)) | config))
    (path/'history.csv').write_text('step,epoch,eval_loss,mean_iou\n3,1,.7,.5\n')
    return path


# --- pickles that run code when they are loaded

class Bomb:
    "Makes a folder when it is unpickled."
    def __reduce__(self): return os.mkdir, (os.environ['BOMB'],)


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    "Where the bomb would leave its mark; checked at the end, whatever the test did."
    mark = tmp_path/'exploded'
    monkeypatch.setenv('BOMB', str(mark))
    yield lambda path, **kw: torch.save(kw.pop('content', {'weight': Bomb()}), path, **kw)
    assert not mark.exists(), 'the pickle was run'


def test_the_bomb_is_live(tmp_path, monkeypatch):
    "Without the guard it would go off: the tests below look at the right thing."
    monkeypatch.setenv('BOMB', str(tmp_path/'exploded'))
    torch.save({'weight': Bomb()}, tmp_path/'b.pth')
    torch.load(tmp_path/'b.pth', weights_only=False)
    assert (tmp_path/'exploded').exists()


@pytest.mark.parametrize('new', [True, False], ids=['zip', 'plain pickle'])
@pytest.mark.parametrize('name', ['best_model.pth', 'pytorch_model.bin', 'model.safetensors', 'last.pt', 'model.ckpt'])
def test_weights_that_run_code_are_refused(bomb, tmp_path, name, new):
    bomb(tmp_path/name, _use_new_zipfile_serialization=new)
    for load in (lambda: tiny().load_weights(tmp_path/name), lambda: build_model('unet', NAMES, weights=tmp_path/name, encoder='resnet18')):
        with pytest.raises(ValueError, match='no readable weights|refused|Wrong pretrained weights') as e: load()
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.safetensors'])
def test_runs_whose_weights_run_code_are_refused(bomb, ds, tmp_path, name):
    run = saved_run(tmp_path/'run')
    (run/'best'/'model.safetensors').unlink()
    bomb(run/'best'/name)
    (run/'best'/'best_model.pth').write_bytes((run/'best'/name).read_bytes())
    for use in (lambda: Segmenter.from_pretrained(run), lambda: Run(run).load(), lambda: evaluate(run, ds), lambda: compare([run], ds, tmp_path/'report'),
                lambda: predict_files(run, ds.path, tmp_path/'out'), lambda: push(run, out=tmp_path/'share'), lambda: build_model(str(run/'best'), NAMES)):
        with pytest.raises(ValueError) as e: use()
        assert '\n' not in str(e.value)
    assert not (tmp_path/'share').exists() and not (tmp_path/'report'/'scores.json').exists()


def test_best_model_beside_good_weights_is_never_opened(bomb, ds, tmp_path):
    run = saved_run(tmp_path/'run')
    for name in ('best_model.pth', 'training_args.bin', 'optimizer.pt', 'model.pkl'): bomb(run/'best'/name)
    Run(run).load(); evaluate(run, ds)
    assert not any(n.endswith(('.pth', '.bin', '.pt', '.pkl')) for n in parcel(run))


def test_a_checkpoint_that_runs_code_is_refused(bomb, ds, tmp_path):
    "Every pickle of a checkpoint that training would go on from."
    def go(): return fit(tiny(), (ds, ds), epochs=2, lr=1e-3, out=tmp_path/'run', pictures=0, progress=False)
    go()
    run, checkpoint = tmp_path/'run', max((tmp_path/'run').glob('checkpoint-*'))
    config = json.loads((run/'config.json').read_text())
    pickles = [f.name for f in checkpoint.iterdir() if f.suffix in ('.pt', '.pth', '.bin')]
    assert {'optimizer.pt', 'scheduler.pt', 'rng_state.pth'} <= set(pickles)
    for name in pickles:
        (run/'config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'finished'}))
        state = json.loads((checkpoint/'trainer_state.json').read_text())
        (checkpoint/'trainer_state.json').write_text(json.dumps(state | dict(global_step=state['global_step'] - 1)))
        good = (checkpoint/name).read_bytes()
        bomb(checkpoint/name)
        (checkpoint/'complete.json').write_text(json.dumps({f.name: f.stat().st_size for f in checkpoint.iterdir() if f.name != 'complete.json'}))
        try: go()
        except ValueError as e: assert 'checkpoint' in str(e) and '\n' not in str(e)
        else: assert name == 'training_args.bin', f'{name} was taken for good'
        (checkpoint/name).write_bytes(good)
        (checkpoint/'trainer_state.json').write_text(json.dumps(state))


def test_packed_arrays_that_are_pickles(bomb, tmp_path):
    "images.npy and masks.npy of objects, in a folder that has nothing else."
    from seglab.sample import find_coco, make_sample
    done = prepare(*find_coco(make_sample(tmp_path/'s', n=3, size_hw=(48, 64)))[0], tmp_path/'p', size=32, pack=True, workers=1)
    SegDataset(done.path, labels='things')[0]
    for name in ('images.npy', 'masks.npy'): np.save(done.path/name, np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(ValueError, match='cannot be used'): SegDataset(done.path, labels='things')


# --- paths outside

def edit(file, **change): file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize('file, change', [
    ('config.json', dict(backbone='../../secret')), ('config.json', dict(backbone_config=dict(weights='/etc/passwd'))), ('config.json', dict(auto_map={'AutoModel': 'evil.Net'})),
    ('preprocessor_config.json', dict(image_processor='C:\\evil.py')), ('preprocessor_config.json', dict(auto_map={'AutoImageProcessor': 'evil.P'})),
    ('model.safetensors.index.json', dict(weight_map={'w': '../other.safetensors'})), ('seglab.json', dict(base_weights='~/.ssh/id_rsa')), ('seglab.json', dict(name='../../../x'))])
def test_a_model_that_points_outside_its_folder(ds, tmp_path, file, change):
    run = saved_run(tmp_path/'run')
    if not (run/'best'/file).exists(): (run/'best'/file).write_text('{}')
    edit(run/'best'/file, **change)
    for use in (lambda: Segmenter.from_pretrained(run), lambda: compare([run], ds, tmp_path/'r'), lambda: predict_files(run, ds.path, tmp_path/'o'), lambda: push(run, out=tmp_path/'s')):
        with pytest.raises(ValueError, match='outside its folder|run code of its own'): use()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['run']


def test_a_runs_config_names_paths_that_nobody_opens(ds, tmp_path):
    "Everything in config.json that looks like a path: neither read nor written, and cut from what is shared."
    secret = tmp_path/'secret.txt'
    secret.write_text('s3cret')
    run = saved_run(tmp_path/'run', settings=dict(data=str(secret), sample_hw=[32, 40], model='../../x', output_dir=str(tmp_path/'elsewhere')), name=str(tmp_path/'elsewhere'), wandb_id='../x')
    compare([run], ds, tmp_path/'report', measure=False)
    push(run, out=tmp_path/'share')
    for f in [*(tmp_path/'report').rglob('*'), *(tmp_path/'share').rglob('*')]:
        if f.is_file(): assert b's3cret' not in f.read_bytes() and str(tmp_path).encode() not in f.read_bytes(), f
    assert sorted(p.name for p in tmp_path.iterdir()) == ['report', 'run', 'secret.txt', 'share']


@pytest.mark.parametrize('pack', [False, True])
def test_a_prepared_folder_whose_stems_lead_outside(tmp_path, pack):
    from seglab.sample import find_coco, make_sample
    done = prepare(*find_coco(make_sample(tmp_path/'s', n=3, size_hw=(48, 64)))[0], tmp_path/'p', size=32, pack=pack, workers=1, split='val')
    text = (done.path/'index.csv').read_text().splitlines()
    (done.path/'index.csv').write_text('\n'.join([text[0], '../../evil,' + text[1].split(',', 1)[1], *text[2:]]) + '\n')
    with pytest.raises((ValueError, FileNotFoundError), match='leave its folder|lack the photo'):
        compare({'m': tiny(LabelSpace.from_dict(SegDataset(done.path, labels='things').labels.to_dict()))}, SegDataset(done.path, labels='things'), tmp_path/'r', measure=False)
    assert not list(tmp_path.rglob('evil*'))


def test_a_class_list_with_paths_for_names(tmp_path):
    "classes.json is a list of words, wherever they point."
    names = ['background', '../../etc/passwd', '/etc/x']
    ds = photos(tmp_path/'d', names=names)
    compare({'../../m': tiny(names)}, ds, tmp_path/'r', measure=False)
    predict_files(tiny(names), ds.path, tmp_path/'o')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['d', 'o', 'r'] and os.listdir(tmp_path/'r'/'predictions') == ['m']


@pytest.mark.skipif(os.name == 'nt', reason='links need rights on Windows')
def test_links_in_folders_that_are_cleared(ds, tmp_path):
    "What an earlier comparison left is cleared; what a link points to is not."
    mine = tmp_path/'mine'
    mine.mkdir(); (mine/'thesis.tex').write_text('x')
    compare({'m': tiny()}, ds, tmp_path/'r', measure=False)
    import shutil
    for name in ('predictions', 'truth', 'pictures'):
        shutil.rmtree(tmp_path/'r'/name)
        (tmp_path/'r'/name).symlink_to(mine)
    compare({'m': tiny()}, ds, tmp_path/'r', measure=False)
    assert [p.name for p in mine.iterdir()] == ['thesis.tex'] and not (tmp_path/'r'/'truth').is_symlink()


@pytest.mark.skipif(os.name == 'nt', reason='links need rights on Windows')
@pytest.mark.parametrize('where', ['best/model.safetensors', 'best/scores.json', 'config.json', 'pictures/epoch_1.png', 'pictures'])
def test_a_link_in_a_run_is_not_shared(tmp_path, where):
    run = saved_run(tmp_path/'run')
    (tmp_path/'secret').mkdir(); (tmp_path/'secret'/'s.png').write_bytes(b's3cret')
    (run/'pictures').mkdir()
    link = run/where
    if link.is_dir(): link.rmdir()
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path/'secret' if where == 'pictures' else tmp_path/'secret'/'s.png')
    with pytest.raises(ValueError, match='symbolic link|no finished|valid JSON|readable'): push(run, out=tmp_path/'out')
    assert not (tmp_path/'out').exists()


# --- markup in names

EVIL = ['background', '<script>alert(1)</script>', '"><img src=x onerror=alert(2)>', '</script><svg onload=alert(3)>', "[x](javascript:alert(4))", '---\nlicense: mit\n---',
        '`a` | b | **c** \\', '=HYPERLINK("http://evil")', '$\\frac{1}{$ _{}^', '\u202eevil\u2066', '&lt;b&gt; {{x}} {% y %} %s %(z)s', 'a\r\nb\tc', '<!-- -->', '![x](http://evil/y.png)']
STEMS = ["<script>alert(5)<", '"><img src=x onerror=alert(6)>', '=cmd|calc', 'a\nb']


class Seen(HTMLParser):
    "Tags and attributes of a page, as a browser would find them."
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))


def harmless(text, scripts):
    "No script, handler or address of a stranger's in a page."
    tags = Seen(text).tags
    assert sum(t == 'script' for t, _ in tags) == scripts
    for tag, attributes in tags:
        assert tag in ('html', 'head', 'meta', 'title', 'style', 'body', 'main', 'section', 'h1', 'h2', 'p', 'div', 'span', 'label', 'select', 'option', 'button', 'canvas', 'fieldset', 'legend', 'input',
                       'script', 'noscript', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'ul', 'li', 'figure', 'figcaption', 'img', 'caption', 'b'), tag
        for name, value in attributes.items():
            assert not name.startswith('on') and not re.match(r'\s*javascript:', value or '', re.I), (tag, attributes)
            if name in ('src', 'href'): assert value.startswith('data:image/'), value
            if name == 'style' or tag == 'style': assert 'url(' not in (value or '')
    return tags


@pytest.fixture(scope='module')
def evil(tmp_path_factory):
    "A comparison of which every name was chosen by a stranger."
    root = tmp_path_factory.mktemp('evil')
    ds = photos(root/'d', names=EVIL, stems=STEMS)
    return root, ds, compare({'<script>alert(7)</script>': tiny(EVIL), '"onload=alert(8) $': tiny(EVIL)}, ds, root/'r', measure=False)


def test_report_runs_nothing_of_a_strangers(evil):
    root, ds, result = evil
    text = (root/'r'/'report.html').read_bytes().decode()
    tags = harmless(text, scripts=2)
    policy = [a['content'] for t, a in tags if t == 'meta' and a.get('http-equiv') == 'Content-Security-Policy']
    assert len(policy) == 1 and "default-src 'none'" in policy[0] and 'unsafe-inline' not in policy[0].split('script-src')[1]
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert [c['name'] for c in data['classes']] == EVIL and sorted(p['name'] for p in data['photos']) == sorted(STEMS)


def test_charts_in_the_report_are_well_formed(evil):
    from base64 import b64decode
    import xml.etree.ElementTree as xml
    charts = re.findall(r'data:image/svg\+xml;base64,([^"]+)', (evil[0]/'r'/'report.html').read_text())
    assert charts
    for chart in charts:
        for e in xml.fromstring(b64decode(chart)).iter(): assert not e.tag.endswith('}script') and not any(a.lower().startswith('on') for a in e.attrib)


def raw_markup(text):
    "Markup of Markdown that is not escaped: tags, links, pictures, of lines that are no code."
    text = re.sub(r'```.*?```', '', text, flags=re.S)
    return [m for m in re.findall(r'(?<!\\)<[a-zA-Z!/][^>]*>|(?<!\\)!?\[[^\]]*\]\([^)]*\)', text) if not re.match(r'!\[.*\]\(pictures/[\w.+-]+\.png\)', m)]


def test_report_in_markdown_holds_no_markup_of_strangers(evil):
    text = (evil[0]/'r'/'report.md').read_text()
    assert raw_markup(text) == []
    for line in text.splitlines(): assert not line.startswith(('---', 'license'))


def test_tables_in_notebooks_escape(evil):
    harmless(evil[2]._repr_html_(), scripts=0)
    run = saved_run(evil[0]/'run', settings=dict(model=EVIL[1], library=EVIL[2], parameters=1, classes=EVIL, train_images=1, val_images=1, loss=EVIL[3], lr=1, batch_size=1, epochs=1, precision='<b>'), device='<script>')
    harmless(Run(run)._repr_html_(), scripts=0)


def head_and_body(card):
    import yaml
    head, body = re.fullmatch(r'---\n(.*?)\n---\n(.*)', card, re.S).groups()
    return yaml.safe_load(head), body


def test_model_card_keeps_its_shape_whatever_the_names(tmp_path):
    from huggingface_hub import ModelCard
    s = tiny(EVIL, name='x\n---\nlicense: mit\n---\n<script>alert(9)</script>', base_weights='y: {a: b}\n- !!python/object:os.system\n<img src=x>')
    scores = dict(mean_iou=.5, per_category_iou={n: .5 for n in EVIL})
    for kw in ({}, dict(title='# t\n---\nlicense: mit', data='<iframe src=x>\n---\n: *a', split='</td><script>')):
        card = model_card(s, scores, **kw)
        head, body = head_and_body(card)
        assert set(head) <= {'library_name', 'pipeline_tag', 'tags', 'model-index'}, head.keys()
        assert raw_markup(body) == [], raw_markup(body)
        assert ModelCard(card).data.to_dict().get('license') is None
        rows = [l for l in body.splitlines() if re.match(r'\| \d+ \|', l)]
        assert len(rows) == len(EVIL) and all(len(re.findall(r'(?<!\\)\|', r)) == 4 for r in rows)
        assert not any(l.startswith('---') or l.startswith('license:') for l in body.splitlines())


def test_card_of_a_run_that_a_stranger_wrote(tmp_path):
    "Numbers and settings come from files of the run, which may hold anything."
    run = saved_run(tmp_path/'run', settings=dict(epochs=1, lr=.1, batch_size='<script>alert(1)</script>', loss='ce\n\n---\nlicense: mit\n<script>', seed='<b>', keep_best='[x](javascript:y)', train_images='<img src=x>'))
    edit(run/'best'/'scores.json', **{'<script>alert(1)</script>': .5, 'a | b\n---\nlicense: mit': 1.})
    head, body = head_and_body(parcel(run)['README.md'].decode())
    assert 'license' not in head and raw_markup(body) == []
    assert not any(l.startswith(('license:', '---')) for l in body.splitlines())
    for wrong in (dict(epochs='many', lr='x', batch_size=[]), [], 'text', None):
        edit(run/'config.json', settings=wrong)
        try: parcel(run)
        except ValueError as e: assert '\n' not in str(e)
    for wrong in ('[]', 'null', '"x"', '{', '{"per_category_iou": 3}', '{"mean_iou": "<b>"}'):
        (run/'best'/'scores.json').write_text(wrong)
        try: parcel(run)
        except ValueError as e: assert '\n' not in str(e)


def test_names_of_strangers_through_prepare(tmp_path):
    "Categories, file names and ids in index.csv, audit.csv and classes.json come back as they were, in as many rows."
    files = ['<script>.png', '=HYPERLINK("x").png', 'a,b";\n.png', "' -- .png", '\u202egnp.exe.png']
    (tmp_path/'in').mkdir()
    for f in files: (tmp_path/'in'/f).write_bytes(cv2.imencode('.png', np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    names = EVIL[1:]
    coco = dict(images=[dict(id=f'=1+{i}\n"', file_name=f, height=20, width=20) for i, f in enumerate(files)], categories=[dict(id=i, name=n, supercategory=n) for i, n in enumerate(names, 1)],
                annotations=[dict(id=f'@{i},"\r\n', image_id=f'=1+{i % 5}\n"', category_id=1 + i % len(names), segmentation=seg)
                             for i, seg in enumerate([[[2, 2, 15, 2, 15, 15]], [], [[1, 1, 2]], {'size': ['=1+1\n,"', 3], 'counts': '<b>'}, [['<script>', 1, 2, 3, 4, 5]]]*2)])
    (tmp_path/'c.json').write_text(json.dumps(coco))
    done = prepare(tmp_path/'c.json', tmp_path/'in', tmp_path/'out', size=None, workers=1, split='val')
    n = done.counts['annotations']
    assert n['total'] == 10 == n['used'] + n['repaired'] + n['dropped'] and len(done.audit[done.audit.action != 'failed']) == n['dropped'] + n['repaired']
    assert [c['name'] for c in done.classes] == names and set(done.index.file_name) <= set(files) and len(done.index) == done.counts['images']['written']
    for p in (tmp_path/'out').rglob('*'): assert p.resolve().is_relative_to(tmp_path/'out')
    assert repr(done) and done._repr_markdown_()
    ds = SegDataset(done.path, 'val', 'all')
    compare({'m': tiny(ds.labels)}, ds, tmp_path/'r', measure=False)
    harmless((tmp_path/'r'/'report.html').read_bytes().decode(), scripts=2)


@pytest.mark.skipif(os.name != 'posix', reason='file names of bytes')
def test_file_names_that_are_no_text(tmp_path):
    "Names of bytes that are no UTF-8, as old disks hold them."
    try: (tmp_path/'in').mkdir(); (tmp_path/'in'/os.fsdecode(b'caf\xe9.png')).write_bytes(cv2.imencode('.png', np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    except OSError: pytest.skip('this disk takes no such names')
    (tmp_path/'in'/'good.png').write_bytes(cv2.imencode('.png', np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    done = predict_files(tiny(), tmp_path/'in', tmp_path/'out', coco_json=True)
    assert len(done.done) == 2 and not done.failed
    assert len(list(csv.DictReader(open(tmp_path/'out'/'index.csv', newline='', encoding='utf-8')))) == 2 and len(list((tmp_path/'out'/'masks').iterdir())) == 2


# --- bombs

def png_bomb(h, w, channels=1):
    "A few bytes that declare many pixels; deflated zeros as far as they go."
    rows = zlib.compress(bytes(2_000_000), 9)
    parts = (b'IHDR', struct.pack('>IIBBBBB', w, h, 8, {1: 0, 3: 2, 0: 3}[channels], 0, 0, 0)), *([(b'PLTE', bytes(768))] if not channels else []), (b'IDAT', rows), (b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d)) for k, d in parts)


BOMBS = {'wide.png': png_bomb(20_000, 20_000, 3), 'grey.png': png_bomb(30_000, 30_000), 'gif.gif': b'GIF89a' + struct.pack('<HH', 60_000, 60_000) + b'\x80\0\0' + bytes(6) + b',' + struct.pack('<4HB', 0, 0, 60_000, 60_000, 0) + b'\x02\x02D\x01\0;',
         'bmp.bmp': b'BM' + struct.pack('<IIIIiiHHIIiiII', 1000, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(900)}
BIG = 200*2**20


def peak_of(f):
    "By how many bytes this process grows at its largest while `f` runs; 0 where the system cannot say."
    status, reset = Path('/proc/self/status'), Path('/proc/self/clear_refs')
    def kilobytes(key): return int(re.search(rf'^{key}:\s+(\d+) kB', status.read_text(), re.M)[1])
    try: reset.write_text('5')  # forget the peak so far, which would hide this one
    except OSError:
        f()
        return 0
    before = kilobytes('VmRSS')
    f()
    return (kilobytes('VmHWM') - before)*1024


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='this system cannot tell the peak of a stretch of work')
def test_the_peak_is_seen():
    "After a larger one, too: the tests below look at the right thing."
    np.ones(2*BIG, np.uint8)
    assert peak_of(lambda: None) < .1*BIG and peak_of(lambda: np.ones(BIG, np.uint8)) > .9*BIG


@pytest.mark.parametrize('name', BOMBS)
def test_a_bomb_among_photos(tmp_path, name):
    photos(tmp_path, n=3)
    (tmp_path/'images'/name).write_bytes(BOMBS[name])
    (tmp_path/'images'/name).rename(tmp_path/'images'/f'bomb{Path(name).suffix}')
    assert len(BOMBS[name]) < 10_000
    def go():
        done = predict_files(tiny(), [str(tmp_path/'images'/'*')], tmp_path/'out')
        assert [Path(p).stem for p in done.failed] == ['bomb'] and len(done.done) == 3 and re.search('safe|too large|pixels', next(iter(done.failed.values())))
        with pytest.raises(ValueError, match='safe'): tiny().predict(tmp_path/'images'/f'bomb{Path(name).suffix}')
    assert peak_of(go) < BIG


@pytest.mark.parametrize('kind', ['photo', 'mask', 'both', 'palette mask'])
def test_a_bomb_in_a_data_set(tmp_path, kind):
    ds = photos(tmp_path, n=3)
    data = png_bomb(30_000, 30_000, 0) if kind == 'palette mask' else BOMBS['grey.png']
    for folder in dict(photo=['images'], mask=['masks'], both=['images', 'masks']).get(kind, ['masks']): (tmp_path/folder/'p1.png').write_bytes(data)
    from seglab.dataset import check_dataset
    def go():
        for use in (lambda: ds[1], lambda: check_dataset(ds), lambda: evaluate(tiny(), ds), lambda: fit(tiny(), (ds, ds), epochs=1, out=tmp_path/'run', pictures=0, progress=False)):
            with pytest.raises(ValueError, match='p1') as e: use()
            assert '\n' not in str(e.value)
    assert peak_of(go) < BIG
    assert not (tmp_path/'run'/'best').exists()
    if kind != 'photo':
        with pytest.raises(ValueError, match='p1.*pixels|p1.*large'): read_mask(tmp_path/'masks'/'p1.png')


@pytest.mark.parametrize('data', [struct.pack('<Q', 2**62) + b'{}', struct.pack('<Q', 90_000_000) + b'{' + b' '*100, b'', b'{}', struct.pack('<Q', 70) + b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'])
def test_safetensors_that_lie(tmp_path, data):
    run = saved_run(tmp_path/'run')
    (run/'best'/'model.safetensors').write_bytes(data)
    with pytest.raises(ValueError) as e: Segmenter.from_pretrained(run)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('file', ['config.json', 'seglab.json'])
@pytest.mark.parametrize('text', ['', '[]', 'null', '{', '{"labels": 3}', '['*5000, '{"labels": {"names": ["a", "a"], "ids": [[0], [1]]}}'], ids=['empty', 'list', 'null', 'cut', 'number', 'deep', 'twins'])
def test_descriptions_that_describe_nothing(tmp_path, file, text):
    run = saved_run(tmp_path/'run')
    (run/'best'/file).write_text(text)
    with pytest.raises(ValueError) as e: Segmenter.from_pretrained(run)
    assert '\n' not in str(e.value)
