"""What photos, ids and crowds can do to `prepare`."""
import csv, json, os, struct, zlib

import cv2, numpy as np, pytest
from PIL import Image
from seglab.masks import prepare
from support.faults import posix
from support.hostile import coco, photo

pytestmark = pytest.mark.filterwarnings('ignore:__array__:DeprecationWarning')

def png_header(h, w):
    parts = (b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)), (b'IDAT', zlib.compress(b'\0'*1000))
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(b)) + k + b + struct.pack('>I', zlib.crc32(k + b)) for k, b in parts)

@posix
def test_hostile_photos(tmp_path):
    photos = tmp_path/'photos'
    photos.mkdir()
    photo(photos/'0.jpg')
    good = (photos/'0.jpg').read_bytes()
    (tmp_path/'outside.jpg').write_bytes(good)
    (tmp_path/'away').mkdir(); (tmp_path/'away'/'in.jpg').write_bytes(good)
    (photos/'link.jpg').symlink_to(tmp_path/'outside.jpg')
    (photos/'linked').symlink_to(tmp_path/'away')
    (photos/'folder.jpg').mkdir()
    os.mkfifo(photos/'pipe.jpg')
    for name, data in {'cut.jpg': good[:len(good)//2], 'empty.jpg': b'', 'text.jpg': b'<html>', 'huge.png': png_header(60000, 60000), 'large.png': png_header(11000, 11000),
                       'lies.png': png_header(48, 64), 'script.eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'}.items(): (photos/name).write_bytes(data)
    names = {'cut.jpg': 'image_unreadable', 'empty.jpg': 'image_unreadable', 'text.jpg': 'image_unreadable', 'huge.png': 'image_too_large', 'large.png': 'image_too_large',
             'lies.png': 'image_unreadable', 'script.eps': 'image_unreadable', 'pipe.jpg': 'image_unreadable', 'absent.jpg': 'image_missing', '../outside.jpg': 'unsafe_path',
             str(tmp_path/'outside.jpg'): 'unsafe_path', 'link.jpg': 'unsafe_path', 'linked/in.jpg': 'unsafe_path', 'a/../../outside.jpg': 'unsafe_path', '\0': 'missing_key'}
    d = coco(len(names) + 1)
    for im, name in zip(d['images'][1:], names): im['file_name'] = name
    for im in d['images'][1:]: im.pop('height')
    d['images'].append(dict(id=99, file_name='folder.jpg'))
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', photos, tmp_path/'out', workers=1)
    assert p.counts['annotations'] == dict(total=len(names) + 1, used=1, repaired=0, dropped=len(names), ignored=0)
    rows = {int(r['image_id']): r['code'] for r in csv.DictReader(open(tmp_path/'out'/'audit.csv', newline='')) if r['action'] == 'failed'}
    assert {names_i: rows[k] for k, names_i in enumerate(names, 1)} == names
    assert rows[99] in ('image_unreadable', 'image_missing')

def kinds(photos):
    "One drawn picture in every kind of file, 48×64 as stored -> their names."
    y, x = np.mgrid[:48, :64]
    im, names = Image.fromarray(np.stack([4*x, 5*y, 128 + 0*x], 2).astype(np.uint8)), []
    def save(name, mode='RGB', **kw): (im.quantize() if mode == 'P' else im.convert(mode)).save(photos/name, **kw); names.append(name)
    (photos/'sub folder').mkdir(parents=True)
    for name, kw in {'plain.jpg': {}, 'UPPER.JPG': {}, 'progressive.jpeg': dict(progressive=True), 'ünï cödé.jpg': {}, 'full.jpg': dict(subsampling=0), 'sub folder/日本.webp': dict(lossless=True),
                     'a.bmp': {}, 'a.tiff': {}, 'no_suffix': dict(format='PNG'), 'a_png.jpg': dict(format='PNG'), 'a_jpg.png': dict(format='JPEG')}.items(): save(name, **kw)
    for mode, name in dict(L='grey.jpg', CMYK='cmyk.jpg', RGBA='alpha.png', LA='grey_alpha.png', P='palette.png', I='sixteen.png').items():
        if mode == 'I': Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*256).save(photos/name); names.append(name)
        else: save(name, mode)
    for o in range(1, 9):
        exif = Image.Exif(); exif[274] = o
        for end in ('jpg', 'png', 'tif'): save(f'exif{o}.{end}', exif=exif)
    return np.asarray(im), names

def test_all_kinds_of_photos(tmp_path):
    "Colours, bit depths, formats, names, EXIF orientations: the photo as it is stored, and a mask of the same size."
    stored, names = kinds(tmp_path/'photos')
    d = coco(len(names))
    for im, name in zip(d['images'], names): im['file_name'] = name
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path/'photos', tmp_path/'out', size_hw=None, workers=1)
    assert p.counts['annotations'] == dict(total=len(names), used=len(names), repaired=0, dropped=0, ignored=0), p.audit
    there = {f.stem: f for f in (p.path/'images').iterdir()}
    grey = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY).astype(int)
    for row in p.index.itertuples():
        image, mask = np.asarray(Image.open(there[row.stem])).astype(int), np.asarray(Image.open(p.path/'masks'/f'{row.stem}.png'))
        assert image.shape == (48, 64, 3) and mask.shape == (48, 64) and mask[20, 40] == 1 and mask[5, 40] == 0, row.file_name
        want = grey[..., None] if row.file_name in ('grey.jpg', 'grey_alpha.png', 'sixteen.png') else stored
        assert np.abs(image - want).mean() < 5, row.file_name

def test_turned_photos(tmp_path):
    "Where the file says 64×48, that is how the annotator saw it: turned, photo and mask alike, in every format."
    stored, names = kinds(tmp_path/'photos')
    names = [n for n in names if n[:5] in ('exif5', 'exif6', 'exif7', 'exif8')]
    d = coco(len(names), 64, 48, segmentation=[[5, 5, 25, 5, 25, 60]])
    for im, name in zip(d['images'], names): im['file_name'] = name
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path/'photos', tmp_path/'out', size_hw=None, workers=1)
    assert p.codes['repaired'] == dict(exif_rotated=len(names)) == dict(exif_rotated=12)
    there, turned = {f.stem: f for f in (p.path/'images').iterdir()}, {5: stored.swapaxes(0, 1), 6: np.rot90(stored, -1), 7: np.rot90(stored, 2).swapaxes(0, 1), 8: np.rot90(stored)}
    for row in p.index.itertuples():
        image, mask = np.asarray(Image.open(there[row.stem])).astype(int), np.asarray(Image.open(p.path/'masks'/f'{row.stem}.png'))
        assert mask.shape == image.shape[:2] == (64, 48) and mask[20, 20] == 1, row.file_name
        assert np.abs(image - turned[int(row.file_name[4])]).mean() < 3, row.file_name

@pytest.mark.parametrize('id,action', [(0, 'used'), (-5, 'used'), (2**53 + 1, 'used'), (2**63 - 1, 'used'), (7.0, 'repaired'), ('7', 'repaired'), (2**63, 'used'), (2**80, 'used'), (7.5, 'dropped'), (True, 'dropped')])
def test_ids(tmp_path, id, action):
    "Any integer of 64 bits is an id, and stays what it is."
    photo(tmp_path/'0.jpg')
    photo(tmp_path/'1.jpg')
    d = coco(2)                                        # the second photo is as it should be
    for r, k in ((d['images'][0], 'id'), (d['annotations'][0], 'image_id'), (d['annotations'][0], 'id')): r[k] = id
    for r, k in ((d['images'][1], 'id'), (d['annotations'][1], 'image_id'), (d['annotations'][1], 'id')): r[k] = 99
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path, tmp_path/'out', size_hw=32, workers=1)
    got = p.counts['annotations']
    assert [got[a] for a in ('used', 'repaired', 'dropped')] == [1 + (action == 'used'), action == 'repaired', action == 'dropped']
    assert p.index.image_id.astype(str).tolist() == [str(int(id))]*(action != 'dropped') + ['99']

@pytest.mark.parametrize('overlap', ['smallest', 'last', 'ignore'])
def test_crowded_photo(tmp_path, overlap):
    "More objects than bits in a number, crowds among them, on one photo beside others: as pycocotools paints them."
    from pycocotools import mask as coco_mask
    rng = np.random.default_rng(0)
    n = (300, 40, 52, 53, 0)
    for i in range(len(n)): photo(tmp_path/f'{i}.jpg', 60, 90 - i)
    rings = [[(rng.uniform(0, 90, (1, 2)) + rng.uniform(-25, 25, (5, 2))).ravel().round(1).tolist() for _ in range(k)] for k in n]
    d = coco(len(n))
    for im in d['images']: im.update(height=60, width=90 - im['id'])
    d['annotations'] = [dict(image_id=i, category_id=int(rng.integers(1, 200)), iscrowd=int(rng.random() < .1), segmentation=[r]) for i, rs in enumerate(rings) for r in rs]
    for k, a in enumerate(d['annotations']): a['id'] = k
    d['categories'] = [dict(id=i, name=str(i)) for i in range(1, 200)]
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path, tmp_path/'out', size_hw=None, workers=1, overlap=overlap)
    for i in range(len(n)):
        anns = [(a, coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(a['segmentation'], 60, 90 - i)))) for a in d['annotations'] if a['image_id'] == i]
        want, claims = np.zeros((2, 60, 90 - i), np.uint8)
        for a, m in anns:
            if a['iscrowd']: want[m > 0] = 255
        objects = [x for x in anns if not x[0]['iscrowd']]
        if overlap == 'smallest': objects.sort(key=lambda x: (-int(x[1].sum()), x[0]['id']))
        for a, m in objects: want[m > 0] = a['category_id']; claims = np.minimum(claims + m, 2)
        if overlap == 'ignore': want[claims > 1] = 255
        assert np.array_equal(np.asarray(Image.open(p.path/'masks'/f'{i}.png')), want), i

def many(tmp_path, n=150):
    (tmp_path/'photos').mkdir()
    for i in range(n): photo(tmp_path/'photos'/f'{i}.jpg', seed=i)
    (tmp_path/'a.json').write_text(json.dumps(coco(n)))
    return tmp_path/'a.json', tmp_path/'photos'

def test_other_folders_are_left_alone(tmp_path):
    a, photos = many(tmp_path, 2)
    with pytest.raises(ValueError, match='nothing of yours is overwritten'): prepare(a, photos, photos)
    (tmp_path/'file').write_text('x')
    with pytest.raises(ValueError, match='expected a folder; got a file'): prepare(a, photos, tmp_path/'file')
    prepare(a, photos, tmp_path/'out', size_hw=64)
    for kw, word in ((dict(size_hw=32), 'size_hw'), (dict(split=.5), 'split'), (dict(pack=True), 'pack'), (dict(n_images=1), 'n_images'), (dict(keep=[1]), 'keep'), (dict(aspect='pad'), 'aspect')):
        with pytest.raises(ValueError, match=f'^{word}=.*, with which .out. was prepared'): prepare(a, photos, tmp_path/'out', **dict(size_hw=64) | kw)
    a.write_text(json.dumps(coco(2, iscrowd=1)))
    with pytest.raises(ValueError, match='other contents'): prepare(a, photos, tmp_path/'out', size_hw=64)


def test_names_of_strangers(tmp_path):
    "Categories, file names and ids in index.csv, audit.csv and classes.json come back as they were, in as many rows."
    files = ['<script>.png', '=HYPERLINK("x").png', 'a,b";\n.png', "' -- .png", '\u202egnp.exe.png']
    names = ['<script>alert(1)</script>', '=1+1', 'a,b"\n', '../../etc/passwd', '$x$ | *y* `z`']
    if os.name == 'nt': pytest.skip('such names need another disk')
    (tmp_path/'in').mkdir()
    for f in files: (tmp_path/'in'/f).write_bytes(cv2.imencode('.png', np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    d = dict(images=[dict(id=f'=1+{i}\n"', file_name=f, height=20, width=20) for i, f in enumerate(files)], categories=[dict(id=i, name=n, supercategory=n) for i, n in enumerate(names, 1)],
             annotations=[dict(id=f'@{i},"\r\n', image_id=f'=1+{i % 5}\n"', category_id=1 + i % len(names), segmentation=seg)
                          for i, seg in enumerate([[[2, 2, 15, 2, 15, 15]], [], [[1, 1, 2]], {'size': ['=1+1\n,"', 3], 'counts': '<b>'}, [['<script>', 1, 2, 3, 4, 5]]]*2)])
    (tmp_path/'c.json').write_text(json.dumps(d))
    done = prepare(tmp_path/'c.json', tmp_path/'in', tmp_path/'out', size_hw=None, workers=1, split='val')
    n = done.counts['annotations']
    assert n['total'] == 10 == n['used'] + n['repaired'] + n['dropped'] and len(done.audit[~done.audit.action.isin(['failed', 'noted'])]) == n['dropped'] + n['repaired']
    assert [c['name'] for c in done.classes] == names and set(done.index.file_name) <= set(files) and len(done.index) == done.counts['images']['written'] > 0
    for p in (tmp_path/'out').rglob('*'): assert p.resolve().is_relative_to(tmp_path/'out')
    assert repr(done) and done._repr_markdown_()
