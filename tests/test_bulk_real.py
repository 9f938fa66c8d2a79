"""Masks from real annotation files: against an independent painting, COCO's panoptic truth, and files from other projects. Needs SEGLAB_DATA."""
import json, os
from collections import defaultdict
from pathlib import Path

import cv2, numpy as np, pytest
from PIL import Image
from pycocotools import mask as coco_mask
from seglab.masks import prepare
from seglab.coco import read_coco
from seglab.files import UserError
from seglab.images import read_image, resize_image
from seglab.paint import PaintRules, paint_masks
from seglab.photos import plan_photos

DATA = Path(os.environ.get('SEGLAB_DATA', 'none'))
COCO = DATA/'coco343'
pytestmark = [pytest.mark.skipif(not COCO.is_dir(), reason='SEGLAB_DATA is not set to a folder with coco343: the tests on real photos are left out'),
              pytest.mark.filterwarnings('ignore:__array__:DeprecationWarning')]
FILE, PHOTOS = COCO/'annotations'/'instances_train2017.json', COCO/'train2017'

def decode(ann, h, w):
    "One annotation as pycocotools has it."
    s = ann['segmentation']
    if isinstance(s, list): return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(s, h, w)))
    return coco_mask.decode(coco_mask.frPyObjects(s, h, w) if isinstance(s['counts'], list) else s)

@pytest.fixture(scope='module')
def coco():
    d, by = json.loads(FILE.read_bytes()), defaultdict(list)
    for a in d['annotations']: by[a['image_id']].append(a)
    out = {im['id']: (im, [(a, decode(a, im['height'], im['width'])) for a in by[im['id']]]) for im in d['images']}
    for _, anns in out.values():
        for a, m in anns: a['pixels'] = int(m.sum())
    return out

def painted(im, anns, crowd, overlap):
    "The stated rules, painted one full mask after the other."
    mask = np.zeros((im['height'], im['width']), np.uint8)
    crowds = [x for x in anns if x[0]['iscrowd']]
    objects = anns if crowd == 'paint' else [x for x in anns if not x[0]['iscrowd']]
    if crowd == 'ignore':
        for _, m in crowds: mask[m > 0] = 255
    if overlap == 'smallest': objects = sorted(objects, key=lambda x: (-x[0]['pixels'], x[0]['id']))
    for a, m in objects: mask[m > 0] = a['category_id']
    if overlap == 'ignore': mask[sum((m for _, m in objects), np.zeros_like(mask)) > 1] = 255
    return mask

@pytest.mark.parametrize('overlap', ['smallest', 'last', 'ignore'])
@pytest.mark.parametrize('crowd', ['ignore', 'paint', 'drop'])
def test_bit_for_bit(coco, tmp_path, crowd, overlap):
    "At full size and at 256, and in other shapes, not one pixel differs."
    file = read_coco(FILE)
    items = plan_photos([file], [PHOTOS]).photos
    table = {c['id']: c['id'] for c in file.categories}
    sizes = [None, (256, 256)] + ([(97, 300), (700, 700)] if (crowd, overlap) == ('ignore', 'smallest') else [])
    for item in items:
        im, anns = coco[item.image_id]
        want = painted(im, anns, crowd, overlap)
        for size in sizes:
            (got, _), = paint_masks([(item.anns, im['height'], im['width'])], PaintRules(table, crowd=crowd, overlap=overlap, size_hw=size))
            exact = want if size is None else cv2.resize(want, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            assert np.array_equal(got, exact), (im['id'], size)

def by_pil(mask, size, fit):
    "Resized with the aspect kept: PIL's nearest, then padded with 255 at the right and below, or cut to the middle."
    (h, w), (H, W) = mask.shape, size
    s = min(H/h, W/w) if fit == 'pad' else max(H/h, W/w)
    sh, sw = round(h*s), round(w*s)
    scaled = np.array(Image.fromarray(mask).resize((sw, sh), Image.NEAREST))
    if fit == 'crop': return scaled[(sh - H)//2:(sh - H)//2 + H, (sw - W)//2:(sw - W)//2 + W]
    return np.pad(scaled, ((0, H - sh), (0, W - sw)), constant_values=255)

@pytest.mark.parametrize('size,fit,crowd,overlap', [((256, 256), 'pad', 'ignore', 'smallest'), ((100, 333), 'pad', 'paint', 'last'), ((300, 280), 'crop', 'drop', 'ignore')])
def test_other_fits(coco, tmp_path, size, fit, crowd, overlap):
    "With the aspect kept, the files hold what PIL makes of the full-size masks."
    p = prepare(FILE, PHOTOS, tmp_path/'p', size_hw=size, aspect=fit, crowd=crowd, overlap=overlap, n_images=80)
    for row in p.index.itertuples():
        got = np.array(Image.open(p.path/'masks'/f'{row.stem}.png'))
        assert np.array_equal(got, by_pil(painted(*coco[row.image_id], crowd, overlap), size, fit)), row.stem

def test_prepared_folder(coco, tmp_path):
    "The files on disk hold those masks, beside the photos; all annotations used."
    p = prepare(FILE, PHOTOS, tmp_path/'p')
    assert p.counts['annotations'] == dict(total=2974, used=2974, repaired=0, dropped=0, ignored=29)
    assert p.counts['images'] == dict(total=343, written=343, failed=0, records=343, empty=3)
    assert p.index.image_id.tolist() == list(coco)
    worst = []
    for row in p.index.itertuples():
        want = cv2.resize(painted(*coco[row.image_id], 'ignore', 'smallest'), (256, 256), interpolation=cv2.INTER_NEAREST_EXACT)
        assert np.array_equal(np.array(Image.open(p.path/'masks'/f'{row.stem}.png')), want)
        photo = read_image(PHOTOS/row.file_name)
        area = cv2.resize(photo, (256, 256), interpolation=cv2.INTER_AREA)
        saved = read_image(p.path/'images'/f'{row.stem}.jpg')
        assert np.abs(saved.astype(int) - area).mean() < 8                        # JPEG at quality 95
        if min(photo.shape[:2]) >= 256: worst.append(20*np.log10(255/(resize_image(photo, (256, 256)).astype(float) - area).std().clip(1e-3)))
    assert min(worst) > 40 and np.median(worst) > 48, (min(worst), np.median(worst))

def test_panoptic_truth(coco, tmp_path):
    "COCO's own panoptic masks, drawn by people, agree with the painted annotations on 99.99 % of the pixels outside crowds."
    truth = prepare(COCO/'annotations'/'panoptic_train2017.json', PHOTOS, tmp_path/'truth', size_hw=None)
    same = total = 0
    for row in truth.index.itertuples():
        want = np.array(Image.open(truth.path/'masks'/f'{row.stem}.png'))
        got = painted(*coco[int(row.image_id)], 'ignore', 'smallest')
        void = segments(row.stem) == 0                                     # panoptic says nothing there
        counted = (want != 255) & (got != 255) & ~(void & (got > 0))
        same, total = same + int((np.where(want <= 90, want, 0) == got)[counted].sum()), total + int(counted.sum())
    assert same/total >= .9999, same/total

def segments(stem): return np.array(Image.open(COCO/'annotations'/'panoptic_train2017'/f'{stem}.png').convert('RGB')).astype(int) @ (1, 256, 65536)

@pytest.mark.parametrize('size', [None, (256, 256)])
def test_a_panoptic_file_is_its_png(tmp_path, size):
    "Every pixel of the hundred PNGs, crowds ignored."
    d = json.loads((COCO/'annotations'/'panoptic_train2017.json').read_bytes())
    p = prepare(COCO/'annotations'/'panoptic_train2017.json', PHOTOS, tmp_path/'p', size_hw=size)
    assert p.counts['annotations']['used'] == p.counts['annotations']['total'] == sum(len(a['segments_info']) for a in d['annotations']) and len(p.index) == 100
    for a in d['annotations']:
        ids = segments(a['file_name'][:-4])
        want = np.zeros(ids.shape, np.uint8)
        for s in a['segments_info']: want[ids == s['id']] = 255 if s['iscrowd'] else s['category_id']
        if size: want = cv2.resize(want, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        assert np.array_equal(np.array(Image.open(p.path/'masks'/a['file_name'])), want), a['file_name']

def coco_like():
    for path in sorted((DATA/'nasty').rglob('*.json')) if DATA.is_dir() else ():
        try: d = json.loads(path.read_bytes())
        except (ValueError, RecursionError): continue
        if isinstance(d, dict) and isinstance(d.get('images'), list) and isinstance(d.get('annotations'), list) and d['images']: yield path

@pytest.mark.parametrize('path', list(coco_like()), ids=lambda p: '/'.join(p.parts[-3:]))
def test_nasty_files_are_accounted_for(path, tmp_path):
    "Files from other projects' tests and from issue threads: each annotation is used, repaired or dropped."
    d = json.loads(path.read_bytes())
    photos = tmp_path/'photos'
    photos.mkdir()
    for im in d['images']:                                                     # photos of the stated size, where a plain name states one
        name, h, w = (im.get(k) if isinstance(im, dict) else None for k in ('file_name', 'height', 'width'))
        if isinstance(name, str) and '..' not in name and not name.startswith('/') and all(isinstance(s, int) and 0 < s < 4000 for s in (h, w)):
            (photos/name).parent.mkdir(parents=True, exist_ok=True)
            Image.new('L', (w, h)).save(photos/name, **({} if Path(name).suffix in Image.registered_extensions() else {'format': 'PNG'}))
    try: p = prepare(path, photos, tmp_path/'out', size_hw=32, values='class_index', workers=1)
    except UserError as e:
        assert 'expected at least one annotation to paint' in str(e) or 'expected the folder' in str(e) or 'expected photos that fit' in str(e)
        return
    a = p.counts['annotations']
    assert a['used'] + a['repaired'] + a['dropped'] == a['total'] == sum(len(r['segments_info']) if isinstance(r, dict) and 'segments_info' in r else 1 for r in d['annotations'])
    assert p.audit.action.isin(['repaired', 'dropped']).sum() == a['repaired'] + a['dropped']
    assert (p.audit.code != '').all()
