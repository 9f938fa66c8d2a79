"""Files and calls as strangers bring them: what other tools write, and what else decides a training. Each row says what is right."""
import gzip, json, os, subprocess, sys, warnings
from pathlib import Path

import numpy as np, pytest
from PIL import Image
from seglab.files import UserError
from seglab.masks import prepare
from seglab.raster import mask_to_rle

BOX = [[10, 10, 40, 10, 40, 30, 10, 30]]   # 600 pixels
HOLED = np.zeros((48, 64), np.uint8)
HOLED[10:30, 10:40], HOLED[15:20, 15:20] = 1, 0   # 575 pixels
RLE, REST = mask_to_rle(HOLED), mask_to_rle(1 - HOLED, compressed=False)

def ann(i, image_id=1, cat=1, seg=BOX, **kw): return dict(id=i, image_id=image_id, category_id=cat, iscrowd=0, segmentation=seg) | kw

def coco(anns=None, names=('a.png',), cats=(dict(id=1, name='ball'),), **kw):
    images = [dict(id=i, file_name=n, width=64, height=48) | kw for i, n in enumerate(names, 1)]
    return dict(images=images, categories=list(cats), annotations=[ann(1)] if anns is None else anns)

def run(d, what, files=('a.png',), out='out', **kw):
    "Prepare bytes, an object to write as JSON, or a list of such; the photos are grey."
    for f in files:
        (d/'img'/f).parent.mkdir(parents=True, exist_ok=True)
        if not (d/'img'/f).exists(): Image.new('RGB', (64, 48), (90, 90, 90)).save(d/'img'/f)
    paths = []
    for k, w in enumerate(what if isinstance(what, tuple) else (what,)):
        paths.append(d/f'{k}.json')
        paths[-1].write_bytes(w if isinstance(w, bytes) else json.dumps(w).encode())
    p = prepare(paths, d/'img', d/out, **dict(size_hw=None, workers=1) | kw)
    a = p.counts['annotations']
    assert a['used'] + a['repaired'] + a['dropped'] == a['total']
    return p

def mask(p, stem='a'): return np.array(Image.open(p.path/'masks'/f'{stem}.png'))
def areas(m): return {int(v): int(n) for v, n in zip(*np.unique(m, return_counts=True)) if v}

# --- what is in an annotation

ODD = [   # what differs from a plain record, pixels of each value, action and code
    ('RLE in a list, as frPyObjects takes it', dict(segmentation=[RLE]), {1: 575}, 'repaired nested'),
    ('parts as RLE, one a string and one counts', dict(segmentation=[RLE, REST]), {1: 3072}, 'repaired nested'),
    ('parts as RLE, of which one is short', dict(segmentation=[RLE, dict(REST, counts=[1, 2])]), {}, 'dropped rle_sum'),
    ('counts as Python prints bytes', dict(segmentation=dict(RLE, counts=str(RLE['counts'].encode()))), {}, 'dropped rle_string'),
    ('a polygon as text, from a table', dict(segmentation=json.dumps(BOX)), {1: 600}, 'repaired segmentation_text'),
    ('an RLE as text', dict(segmentation=json.dumps(RLE)), {1: 575}, 'repaired segmentation_text'),
    ('an RLE as Python prints it', dict(segmentation=str(RLE)), {}, 'dropped not_json'), ('empty text', dict(segmentation=''), {}, 'dropped missing_segmentation'),
    ('text that holds no pixel', dict(segmentation='[]'), {}, 'dropped empty_segmentation'),
    ('iscrowd as R and Excel write it', dict(iscrowd=' FALSE '), {1: 600}, 'repaired iscrowd_type'),
    ('iscrowd as pandas writes a missing value', dict(iscrowd=float('nan')), {1: 600}, 'repaired iscrowd_type'),
    ('iscrowd as text with a fraction', dict(iscrowd='0.0'), {1: 600}, 'repaired iscrowd_type'),
    ('iscrowd as a word', dict(iscrowd='no'), {1: 600}, 'repaired iscrowd_type'),
    ('a crowd as a word', dict(iscrowd='TRUE'), {255: 600}, 'repaired iscrowd_type'),
    ('ids that went through a table of floats', dict(image_id='1.0', category_id='1.00'), {1: 600}, 'repaired id_type'),
    ('an id with a fraction is no id', dict(category_id='1.5'), {}, 'dropped unknown_category')]

@pytest.mark.parametrize('kind,record,pixels,verdict', ODD, ids=[o[0] for o in ODD])
def test_odd_records(tmp_path, kind, record, pixels, verdict):
    "The second photo keeps the run from being empty."
    p = run(tmp_path, coco([ann(1) | record, ann(2, 2)], ['a.png', 'b.png']), ['a.png', 'b.png'])
    row = p.audit[p.audit.annotation_id.astype(str) == '1'].iloc[0]
    assert areas(mask(p)) == pixels and f'{row.action} {row.code}' == verdict

CATEGORIES = [   # categories, the annotation's category_id, value and name in classes.json
    ([dict(id='7', name='ball')], 7, 7, 'ball'), ([dict(id='7', name='ball')], '7', 7, 'ball'), ([dict(id=7.0, name='ball')], '7.0', 7, 'ball'),
    ([dict(id=7, name=11)], 7, 7, '11'), ([dict(id=1, name='x'), dict(id='1', name='y')], 1, 1, 'x')]

@pytest.mark.parametrize('cats,cat,value,name', CATEGORIES)
def test_category_ids_and_names(tmp_path, cats, cat, value, name):
    p = run(tmp_path, coco([ann(1, cat=cat)], cats=cats))
    assert areas(mask(p)) == {value: 600} and [(c['id'], c['name']) for c in p.classes] == [(value, name)]

# --- what is around the records

@pytest.mark.parametrize('write', [lambda b: b'\xef\xbb\xbf' + b, lambda b: b.decode().encode('utf-16'), lambda b: b.decode().encode('utf-32-be'),
                                   lambda b: gzip.compress(b'\xef\xbb\xbf' + b)], ids=['bom', 'utf-16', 'utf-32', 'gz with bom'])
def test_encodings_of_every_kind_of_file(tmp_path, write):
    "A COCO file, a list of results and a panoptic file, and the keys that groups read."
    plain = coco([], ['a.png'], patient='é')
    assert areas(mask(run(tmp_path, write(json.dumps(coco(patient='é')).encode()), groups='patient'))) == {1: 600}
    (tmp_path/'val.json').write_bytes(write(json.dumps(plain).encode()))
    results = write(json.dumps([dict(image_id=1, category_id=1, segmentation=RLE, score=.5)]).encode())
    assert areas(mask(run(tmp_path, results, out='r', images_from=tmp_path/'val.json'))) == {1: 575}
    assert areas(mask(run(tmp_path, write(json.dumps(panoptic(tmp_path)).encode()), out='p'))) == {1: 375, 7: 600}

def panoptic(d, name='a.png', image_id=1, **segment):
    "Two segments; the PNGs lie beside 0.json."
    ids = np.zeros((48, 64), int)
    ids[5:20, 5:30], ids[10:40, 40:60] = 70_000, 2
    (d/'0').mkdir(exist_ok=True)
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)).save(d/'0'/'a.png')
    segments = [dict(id=70_000, category_id=1, iscrowd=0) | segment, dict(id=2, category_id=7, iscrowd=0)]
    return coco([dict(image_id=image_id, file_name=name, segments_info=segments)], cats=[dict(id=1, name='ball'), dict(id=7, name='grass')])

PANOPTIC = [   # what differs, pixels
    (dict(id='70000'), {1: 375, 7: 600}), (dict(id=70000.0), {1: 375, 7: 600}), (dict(category_id='1'), {1: 375, 7: 600}), (dict(iscrowd=None), {1: 375, 7: 600}),
    (dict(iscrowd=True), {255: 375, 7: 600}), (dict(image_id='1'), {1: 375, 7: 600}), (dict(image_id=1.0), {1: 375, 7: 600}), (dict(name='0\\a.png'), {1: 375, 7: 600}),
    (dict(name='0/a.png'), {1: 375, 7: 600})]

@pytest.mark.parametrize('odd,pixels', PANOPTIC, ids=[str(o) for o, _ in PANOPTIC])
def test_panoptic_files_of_other_tools(tmp_path, odd, pixels):
    assert areas(mask(run(tmp_path, panoptic(tmp_path, **odd)))) == pixels

def test_a_panoptic_file_with_odd_records(tmp_path):
    "A record without its PNG in front, one that is no object, and one whose PNG would lie elsewhere: each is judged by itself."
    c = panoptic(tmp_path)
    c['images'] += [dict(id=i, file_name=f'{i}.png', width=64, height=48) for i in (2, 3)]
    Image.new('RGB', (64, 48), (2, 0, 0)).save(tmp_path/'away.png')
    c['annotations'] = [dict(image_id=2, file_name='2.png', segments_info=[dict(id=5, category_id=1)]), *c['annotations'], 5,
                        dict(image_id=3, file_name='../away.png', segments_info=[dict(id=2, category_id=7)])]
    c['annotations'][3], c['annotations'][2] = c['annotations'][2], c['annotations'][3]
    p = run(tmp_path, c, ['a.png', '2.png', '3.png'])
    assert areas(mask(p)) == {1: 375, 7: 600} and p.index.file_name.tolist() == ['a.png']
    assert p.codes['dropped'] == dict(image_missing=1, unsafe_path=1, not_object=1) and p.codes['failed'] == dict(image_missing=1, unsafe_path=1)

NAMES = [   # file, what the record says, code of the note
    ('a.png', 'https://host/bucket/a.png?X-Amz-Signature=1&b=a/b', 'name_url'), ('a b.png', 'http://host/a%20b.png#top', 'name_url'), ('x/a.png', '/data/local-files/?d=x/a.png', 'name_url'),
    ('x/a.png', '/data/local-files/?d=x%5Ca.png', 'name_url'), ('x/a.png', '/data/local-files/?d=mnt/x/a.png', 'name_folder'), ('a.png', 'a.png\n', 'name_path'), ('a.png', ' a.png', 'name_path')]

@pytest.mark.parametrize('file,name,code', NAMES)
def test_names_from_the_web(tmp_path, file, name, code):
    p = run(tmp_path, coco(names=[name]), [file])
    assert len(p.index) == 1 and p.audit.code.tolist() == [code]

# --- sentences

SENTENCES = {
    'detectron2': ([dict(file_name='a.png', image_id=1, annotations=[])], ['outermost value is a list'], ['results']),
    'null': (coco() | dict(annotations=None), ["null under 'annotations'"], ['object']),
    'other machine': (coco(names=['/home/me/a.png']), ['leaves the image folder', 'as a path below it'], ['Give the folder']),
    'off by one': (coco(width=65), ['width 65.'], ['times as large'])}

@pytest.mark.parametrize('kind', SENTENCES)
def test_sentences_that_fit(tmp_path, kind):
    what, there, absent = SENTENCES[kind]
    with pytest.raises(UserError) as e: run(tmp_path, what)
    assert all(t in str(e.value) for t in there) and not any(t in str(e.value) for t in absent) and '\n' not in str(e.value)

ANN, REGION = dict(id=1, annotations=[dict(result=[])], data={}), dict(shape_attributes={}, region_attributes={})
FORMATS = {   # what another tool wrote, what it is called, what to do
    'via 1': ({'a.png9': dict(filename='a.png', regions={'0': REGION})}, 'VIA', 'Export as COCO from VIA'), 'via 2': ({'a.png9': dict(filename='a.png', regions=[REGION])}, 'VIA', 'Export as COCO from VIA'),
    'via 3': (dict(project={}, config={}, metadata={}, view={}), 'VIA', 'Export as COCO from VIA'), 'via csv': (b'#filename,file_size\na.png,9\n', 'VIA', 'Export as COCO from VIA'),
    'supervisely': (dict(description='', tags=[], size={}, objects=[]), 'Supervisely', 'Export as COCO from Supervisely'), 'label studio': ([ANN], 'Label Studio', 'Export as COCO from Label Studio'),
    'label studio, short': ([dict(image='a.png', annotation_id=1, lead_time=1)], 'Label Studio', 'Export as COCO'), 'ultralytics': (b'{"type": "dataset", "task": "segment"}\n{"type": "image"}', 'Ultralytics', 'Convert'),
    'labelbox': (b'{"data_row": {}}\r\n{"data_row": {}}', 'Labelbox', 'Convert'), 'json lines': (b'{"id": 1}\n{"id": 2}\n', 'JSON Lines', 'one COCO file'), 'darwin': (dict(version='2.0', item={}, annotations=[]), 'Darwin', 'Export as COCO'),
    'darwin 1': (dict(dataset='d', image={}, annotations=[]), 'Darwin', 'Export as COCO'), 'cityscapes': (dict(imgHeight=48, imgWidth=64, objects=[]), 'Cityscapes', 'polygons'),
    'yolo': (b'0 .1 0.2 .3 .4 .5 .6\n', 'YOLO', 'Export as COCO JSON'), 'yolo yaml': (b'train: images\nnc: 1\n', 'YOLO', 'Export as COCO JSON'), 'voc': (b'<?xml version="1.0"?>\n<annotation><folder>', 'Pascal VOC', 'from_folders'),
    'a mask': (b'\x89PNG\r\n', 'a picture', 'from_folders'), 'csv': (b'image_id,segmentation\n1,2\n', 'CSV', 'Export as COCO JSON'), 'empty': (b' \n', 'an empty file', 'Export it again'), 'xz': (b'\xfd7zXZ\0', 'archive', 'Unpack it'),
    'wrapped': (dict(train=coco(), val=coco()), 'COCO inside', 'inner object'), 'a list of one': ([coco()], 'COCO inside', 'inner object')}

@pytest.mark.parametrize('kind', FORMATS)
def test_other_formats_are_named(tmp_path, kind):
    "The same sentence for the file and for the folder that holds it."
    what, name, todo = FORMATS[kind]
    with pytest.raises(UserError) as e: run(tmp_path, what)
    assert name in str(e.value) and todo in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'out').exists()
    (tmp_path/'all').mkdir()
    (tmp_path/'0.json').rename(tmp_path/'all'/'0.x')
    with pytest.raises(UserError) as f: prepare(tmp_path/'all', tmp_path/'img', tmp_path/'out')
    assert str(f.value) == str(e.value).replace('0.json', '0.x')

def test_a_folder_with_the_annotation_file(tmp_path):
    run(tmp_path, coco(), out='made')
    (tmp_path/'train').mkdir()
    with pytest.raises(UserError, match='got a folder. Give the file'): prepare(tmp_path/'train', tmp_path/'img', tmp_path/'out')
    (tmp_path/'0.json').rename(tmp_path/'train'/'_annotations.coco.json')
    with pytest.raises(UserError, match="a folder that holds '_annotations.coco.json'"): prepare(tmp_path/'train', tmp_path/'img', tmp_path/'out')

def test_text_of_another_alphabet_is_read_and_said(tmp_path):
    "A file that Windows' own encoding wrote: names of classes and photos are what they were."
    text = json.dumps(coco(names=['ä€.png'], cats=[dict(id=1, name='Fußball')]), ensure_ascii=False)
    with pytest.warns(UserWarning, match='not UTF-8'): p = run(tmp_path, text.encode('cp1252'), ['ä€.png'])
    assert p.classes[0]['name'] == 'Fußball' and p.index.file_name.tolist() == ['ä€.png']
    with warnings.catch_warnings(action='error'): assert run(tmp_path, text.encode(), ['ä€.png'], out='utf8').classes == p.classes

def test_out_inside_the_photos(tmp_path):
    "What we wrote is no photo that a name can mean, in the next run either."
    c = coco(names=['old/a.png'])
    for out in ('img/out', 'img/out', 'img/more'): assert run(tmp_path, c, out=out).index.file_name.tolist() == ['old/a.png']

def test_arrays_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    "Their length is there from the beginning, so that a power cut would leave masks of background."
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda fd: (fsync(fd), done.append('flushed')))
    monkeypatch.setattr(os, 'replace', lambda a, b: (replace(a, b), done.append(Path(b).name)))
    run(tmp_path, coco(), pack=True, size_hw=32)
    assert [d for d in done if d == 'flushed' or d.endswith('npy')] == ['flushed', 'images.npy', 'flushed', 'masks.npy']

PHOTOS = {b'': 'it is empty', b'\0\0\0\x20ftypisom': 'a video', b'\0\0\0\x18ftypheic': 'HEIC; save it as JPEG', b'%PDF-1.4': 'a PDF', b'\0'*128 + b'DICM': 'DICOM', b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n': 'run `git lfs pull`', b'\n<!DOCTYPE html><html>404': 'XML or HTML', b'PK\3\4': 'not a picture of a known kind'}

@pytest.mark.parametrize('data', PHOTOS, ids=['empty', 'video', 'heic', 'pdf', 'dicom', 'lfs', 'html', 'zip'])
def test_photos_that_are_none(tmp_path, data):
    (tmp_path/'img').mkdir()
    (tmp_path/'img'/'b.jpg').write_bytes(data)
    p = run(tmp_path, coco(names=['a.png', 'b.jpg']))
    said = p.audit[p.audit.action == 'failed'].detail.item()
    assert said.startswith('b.jpg cannot be read') and PHOTOS[data] in said

def test_a_photo_of_two_splits_is_said(tmp_path):
    p = run(tmp_path, (coco(names=['a.png', 'b.png']), coco(names=['b.png', 'c.png'])), ['a.png', 'b.png', 'c.png'], split=['train', 'val'])
    assert dict(zip(p.index.file_name, p.index.split)) == {'a.png': 'train', 'b.png': 'train', 'c.png': 'val'}
    assert any(n.startswith('Photos in files of several splits: 1;') for n in p.info['notes'])
    assert not any('several splits' in n for n in run(tmp_path, (coco(), coco()), split=['train', 'train'], out='same').info['notes'])

def test_a_fraction_as_text_is_no_name(tmp_path):
    with pytest.raises(UserError, match=r"split='0\.2': expected a fraction"): run(tmp_path, coco(), split='0.2')
    assert dict(run(tmp_path, coco(), split='2024').counts['splits']) == {'2024': 1}

def test_the_shell_says_the_same(tmp_path):
    "One sentence and exit code 1 where nothing was used; nothing is left behind."
    (tmp_path/'img').mkdir()
    Image.new('RGB', (64, 48)).save(tmp_path/'img'/'a.png')
    (tmp_path/'r.json').write_text(json.dumps(coco([ann(1, seg=[[]], bbox=[1, 1, 9, 9])])))
    r = subprocess.run([Path(sys.executable).parent/'seglab', 'prepare', 'r.json', 'img', 'out'], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert r.returncode == 1 and len(r.stderr.strip().splitlines()) == 1 and 'a ring without numbers' in r.stderr and not (tmp_path/'out').exists()

# --- trainings

from support.training import LABELS, Stripes, tiny   # noqa: E402
from seglab.train import fit   # noqa: E402

def train(d, data=None, **kw): return fit(tiny(), data or (Stripes(2), Stripes(2, 9)), out=d/'run', **dict(epochs=1, batch_size=2, progress=False, report_to='none', pictures=0, workers=0) | kw)

VALUES = [   # what cannot be meant, and what is said
    (dict(gradient_accumulation_steps=0), 'expected a whole number from 1.'), (dict(gradient_accumulation_steps=2.5), 'expected a whole number from 1.'), (dict(max_grad_norm=-1), 'expected a number from 0.'),
    (dict(max_grad_norm='x'), 'expected a number from 0.'), (dict(adam_beta1=2.), 'expected a number from 0 and below 1.'), (dict(adam_epsilon=-1), 'expected a number from 0.'),
    (dict(max_steps='3'), 'expected a whole number.'), (dict(dataloader_drop_last='no'), 'expected True or False.'), (dict(weight_decay='x'), 'expected a finite number from 0.'),
    (dict(weight_decay=-1), 'expected a finite number from 0.'), (dict(weight_decay=float('nan')), 'expected a finite number from 0.'), (dict(compile='yes'), 'expected True or False.'),
    (dict(optimizer='sgd'), "a function that makes it"), (dict(callbacks=[1]), "a list of transformers' TrainerCallback objects"), (dict(callbacks='x'), "TrainerCallback objects")]

@pytest.mark.parametrize('kw,said', VALUES, ids=[str(k) for k, _ in VALUES])
def test_values_that_no_training_can_have(tmp_path, kw, said):
    "One sentence that names the argument, before a folder is made."
    with pytest.raises(UserError) as e: train(tmp_path, **kw)
    assert str(e.value).startswith(f'{next(iter(kw))}=') and said in str(e.value) and not (tmp_path/'run').exists()

class Own:
    "Two samples, of which one is made odd."
    label_space = LABELS
    def __init__(self, make): self.make = make
    def __len__(self): return 2
    def __getitem__(self, i):
        d = Stripes(2)[i]
        return self.make(d['pixel_values'], d['labels']) if i else (d['pixel_values'], d['labels'])

SAMPLES = {
    'no mask': (lambda x, y: (x, None), 'Tensor and NoneType', ''), 'paths': (lambda x, y: ('a.jpg', 'a.png'), 'Read them in __getitem__', ''),
    'NaN': (lambda x, y: (x.float()*float('nan'), y), 'Look at the photo', 'normalise'), 'infinite': (lambda x, y: (x.float()/0, y), 'Look at the photo', 'normalise')}

@pytest.mark.parametrize('kind', SAMPLES)
def test_samples_that_are_none(tmp_path, kind):
    make, there, absent = SAMPLES[kind]
    with pytest.raises(UserError) as e: train(tmp_path, (Own(make), Stripes(2)))
    assert there in str(e.value) and not (absent and absent in str(e.value))
