"Data sets with one planted fault each, for the checks of `seglab.doctor`."
import functools, json, shutil, tempfile
from pathlib import Path
import cv2, numpy as np
from seglab.masks import split_of
from seglab.sample import draw_scene, make_sample

def _read(path): return json.loads((path/'annotations'/'instances_sample.json').read_text())
def _write(path, coco): (path/'annotations'/'instances_sample.json').write_text(json.dumps(coco))
def _polygons(coco): coco['annotations'] = [a for a in coco['annotations'] if isinstance(a['segmentation'], list)]
def _photo(path, im): return cv2.imread(str(path/'sample'/im['file_name']))
def _save(path, name, photo): cv2.imwrite(str(path/'sample'/name), photo, [cv2.IMWRITE_JPEG_QUALITY, 90])

def _copy(path, coco, im, name, change, rng):
    "A second photo like one that is there, with the same annotations."
    photo = change(_photo(path, im))
    k = photo.shape[0]/im['height']
    new = dict(im, id=int(rng.integers(10**6, 10**9)), file_name=name, height=photo.shape[0], width=photo.shape[1])
    _save(path, name, photo); coco['images'].append(new)
    for a in [a for a in coco['annotations'] if a['image_id'] == im['id'] and isinstance(a['segmentation'], list)]:
        coco['annotations'].append(dict(a, id=int(rng.integers(10**9, 10**12)), image_id=new['id'], area=a['area']*k*k, bbox=[k*b for b in a['bbox']],
                                        segmentation=[[round(k*x, 2) for x in r] for r in a['segmentation']]))
    return new

def near_duplicates(path, coco, rng):
    "Twenty photos saved twice, under another name, a little smaller."
    for im in coco['images'][:20]:
        _copy(path, coco, im, f'{rng.integers(16**8):08x}x.jpg', lambda p: cv2.resize(p, None, fx=.9, fy=.9, interpolation=cv2.INTER_AREA), rng)

def frames(path, coco, rng):
    "Forty frames of one film."
    _polygons(coco)
    big = cv2.resize(cv2.cvtColor(draw_scene(5, seed=99).image, cv2.COLOR_RGB2BGR), (640, 480))
    square = [[200., 150., 300., 150., 300., 250., 200., 250.]]
    for k in range(40):
        x, y = 3*k, k
        _save(path, f'drive_{k:04d}.jpg', big[y:y + 240, x:x + 320])
        coco['images'].append(dict(id=5000 + k, file_name=f'drive_{k:04d}.jpg', height=240, width=320))
        ring = [[v - (x if i % 2 == 0 else y) for i, v in enumerate(square[0])]]
        coco['annotations'].append(dict(id=90000 + k, image_id=5000 + k, category_id=18, iscrowd=0, segmentation=ring, area=10000., bbox=[ring[0][0], ring[0][1], 100., 100.]))

def _one_side(coco, category, side):
    keep = {im['id'] for im in coco['images'] if split_of(im['id'], .2) == side}
    coco['annotations'] = [a for a in coco['annotations'] if a['category_id'] != category or a['image_id'] in keep]

def missing_in_val(path, coco, rng):
    "No validation photo has a dog."
    _one_side(coco, 18, 'train')

def only_in_val(path, coco, rng):
    "No training photo has a zebra; many validation photos have one."
    _one_side(coco, 24, 'val')
    for k, im in enumerate(i for i in coco['images'] if split_of(i['id'], .2) == 'val'):
        coco['annotations'].append(dict(id=700000 + k, image_id=im['id'], category_id=24, iscrowd=0, segmentation=[[20., 20., 80., 24., 70., 80., 24., 76.]], area=3000., bbox=[20., 20., 60., 60.]))

def tiny(path, coco, rng):
    "A class of dots."
    coco['categories'] = [*coco['categories'], dict(id=38, name='kite', supercategory='sports')]
    for k in range(40):
        im = coco['images'][k % len(coco['images'])]
        x, y = (round(float(v), 1) for v in rng.uniform(5, 150, 2))
        coco['annotations'].append(dict(id=800000 + k, image_id=im['id'], category_id=38, iscrowd=0, segmentation=[[x, y, x + 4, y, x + 4, y + 4, x, y + 4]], area=16., bbox=[x, y, 4., 4.]))

def forgotten(path, coco, rng):
    "Thirty photos have a near-duplicate; in a tenth of all photos the persons were forgotten."
    _polygons(coco)
    made = []
    for im in coco['images'][:30]:
        made.append(_copy(path, coco, im, f'{rng.integers(16**8):08x}y.jpg', lambda p: cv2.resize(p, None, fx=.92, fy=.92, interpolation=cv2.INTER_AREA), rng))
    has = {}
    for a in coco['annotations']: has.setdefault(a['category_id'], set()).add(a['image_id'])
    ids = {im['id'] for im in made}
    most = max(has, key=lambda c: len(has[c] & ids))
    lost = set(sorted(has[most] & ids)[:max(4, len(coco['images'])//10)])
    coco['annotations'] = [a for a in coco['annotations'] if not (a['category_id'] == most and a['image_id'] in lost)]

def shifted(path, coco, rng):
    "All outlines ten pixels to the right and eight down."
    _polygons(coco)
    for a in coco['annotations']: a['segmentation'] = [[v + (10 if i % 2 == 0 else 8) for i, v in enumerate(r)] for r in a['segmentation']]

def boxes(path, coco, rng):
    "Boxes as polygons."
    for a in coco['annotations']:
        if a['iscrowd']: continue
        x, y, w, h = a['bbox']
        a['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

def crowds(path, coco, rng):
    "Every annotation is a crowd."
    for a in coco['annotations']: a['iscrowd'] = 1

def dark(path, coco, rng):
    "A tenth of the photos is nearly black."
    for im in coco['images'][::10]: _save(path, im['file_name'], (_photo(path, im)*.04).astype(np.uint8))

def mixed_sizes(path, coco, rng):
    "Half of the photos are five times as large."
    for im in coco['images'][::2]:
        _save(path, im['file_name'], cv2.resize(_photo(path, im), None, fx=5, fy=5))
        im.update(height=5*im['height'], width=5*im['width'])
        for a in coco['annotations']:
            if a['image_id'] == im['id'] and isinstance(a['segmentation'], list):
                a.update(segmentation=[[5*v for v in r] for r in a['segmentation']], area=25*a['area'], bbox=[5*b for b in a['bbox']])
    large = {im['id'] for im in coco['images'][::2]}
    coco['annotations'] = [a for a in coco['annotations'] if isinstance(a['segmentation'], list) or a['image_id'] not in large]

def duplicated(path, coco, rng):
    "A fifth of the annotations twice."
    for k, a in enumerate(coco['annotations'][::5]):
        coco['annotations'].append(dict(a, id=600000 + k, bbox=[a['bbox'][0] + .4, *a['bbox'][1:]]))

PLANTED = dict(near_duplicates='near_duplicates_across_splits', frames='frames_across_splits', missing_in_val='class_missing_in_val', only_in_val='class_only_in_val',
               tiny='tiny_objects', forgotten='forgotten_objects', shifted='shifted_masks', boxes='boxes_as_masks', crowds='everything_is_a_crowd', dark='dark_photos',
               mixed_sizes='mixed_sizes', duplicated='duplicate_annotations')

@functools.cache
def _drawn(n, seed): return make_sample(Path(tempfile.mkdtemp()), n, seed=seed)

def plant(path, fault, n=80, seed=0):
    "A sample with one fault; the annotation file and the folder of photos."
    path = Path(shutil.copytree(_drawn(n, seed), path, dirs_exist_ok=True))
    coco = _read(path)
    if fault: (_FORMS[fault][0] if fault in _FORMS else globals()[fault])(path, coco, np.random.default_rng(seed))
    _write(path, coco)
    return path/'annotations'/'instances_sample.json', path/'sample'

def copies(change, n=12):
    def f(path, coco, rng):
        for im in coco['images'][:n]: _copy(path, coco, im, f'{rng.integers(16**8):08x}z.jpg', change, rng)
    f.__doc__ = "Copies that somebody has changed."
    return f

def shifted_part(dx, dy, part=1.):
    def f(path, coco, rng):
        _polygons(coco)
        ids = {im['id'] for im in coco['images'][:int(part*len(coco['images']))]}
        for a in coco['annotations']:
            if a['image_id'] in ids: a['segmentation'] = [[v + (dx if i % 2 == 0 else dy) for i, v in enumerate(r)] for r in a['segmentation']]
    f.__doc__ = "A part of the photos has its outlines shifted."
    return f

def some_boxes(every):
    def f(path, coco, rng):
        whole, coco['annotations'] = coco['annotations'], coco['annotations'][::every]
        boxes(path, coco, rng)
        coco['annotations'] = whole
    f.__doc__ = "Every so many annotations is a box."
    return f

def jittered(every, by):
    def f(path, coco, rng):
        for k, a in enumerate(coco['annotations'][::every]):
            x, y = rng.uniform(-by, by, 2)
            coco['annotations'].append(dict(a, id=650000 + k, bbox=[a['bbox'][0] + x, a['bbox'][1] + y, *a['bbox'][2:]]))
    f.__doc__ = "A second export, a little different."
    return f

def blurred(path, coco, rng):
    "A tenth of the photos is out of focus."
    for im in coco['images'][::10]: _save(path, im['file_name'], cv2.GaussianBlur(_photo(path, im), (0, 0), 5))

def dusk(path, coco, rng):
    "A tenth of the photos is dark, not black."
    for im in coco['images'][::10]: _save(path, im['file_name'], (_photo(path, im)*.2).astype(np.uint8))

_FORMS = {'brighter copies': (copies(lambda p: np.clip(p*1.25, 0, 255).astype(np.uint8)), 'near_duplicates_across_splits'),
          'copies with less contrast': (copies(lambda p: p//2 + 40), 'near_duplicates_across_splits'),
          'copies cut by a few pixels': (copies(lambda p: p[4:-4, 5:-5], 30), 'near_duplicates_across_splits'),
          'shifted up': (shifted_part(0, -6), 'shifted_masks'), 'shifted far': (shifted_part(18, 14), 'shifted_masks'),
          'a third is shifted': (shifted_part(-8, -9, .33), 'shifted_masks'), 'boxes in a quarter': (some_boxes(4), 'boxes_as_masks'),
          'a jittered second export': (jittered(6, 1.5), 'duplicate_annotations'), 'out of focus': (blurred, 'blurred_photos'), 'dusk': (dusk, 'dark_photos')}
VARIANTS = {k: name for k, (_, name) in _FORMS.items()}
REAL = dict(coco343=['tiny_objects', 'rare_class_missing_in_val'],     # true of it: traffic lights of 4 pixels, and 12 classes of few photos
            camvid=['frames_across_splits'])                           # three drives, split photo by photo
