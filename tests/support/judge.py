"""Runs `prepare` on hostile COCO files in a process with limits, and checks what must hold whatever is in the file.

    python tests/support/judge.py FOLDER seed 0 1000        # judge the mutated files 0…999
    python tests/support/judge.py FOLDER files a.json b.json
"""
import csv, json, shutil, sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import fuzz
from seglab.images import IGNORE
from seglab.masks import prepare

H, W = 40, 50


def photos(folder):
    "The three photos that the mutated files name."
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    for name, image in (('a.jpg', pixels), ('b.jpg', pixels[::-1]), ('grey.jpg', pixels[..., 0])): cv2.imwrite(str(folder/name), image)
    return folder


def raster(segmentation, h, w):
    "What pycocotools makes of a segmentation."
    if isinstance(segmentation, list): segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))
    elif isinstance(segmentation['counts'], list): segmentation = coco_mask.frPyObjects(segmentation, h, w)
    return coco_mask.decode(segmentation).astype(bool)


def painted(annotations, h, w):
    "Crowds beneath, then largest first, ties by id: seglab's default, written with pycocotools alone."
    out, todo = np.zeros((h, w), np.uint8), []
    for k, a in enumerate(annotations):
        m = raster(a['segmentation'], h, w)
        todo.append(((not a.get('iscrowd'), -int(m.sum()), a['id'], k), IGNORE if a.get('iscrowd') else a['category_id'], m))
    for _, value, m in sorted(todo, key=lambda t: t[0]): out[m] = value
    return out


def judge(file, images, out):
    "Prepare a file; returns 'refused' or 'prepared', raises AssertionError where a promise is broken."
    shutil.rmtree(out, ignore_errors=True)
    try: done = prepare(file, images, out, size_hw=None, workers=1)
    except ValueError as e:
        assert str(e) and '\n' not in str(e) and len(str(e)) < 600, f'not one sentence: {e}'
        assert not out.exists() or not any(out.iterdir()), 'a refused file leaves something behind'
        return 'refused'
    try: given = json.loads(file.read_bytes().removeprefix(b'\xef\xbb\xbf'))
    except (RecursionError, UnicodeError): given = None  # beyond Python's own parser: only the sums can be checked
    n, index, audit = done.counts['annotations'], rows(out/'index.csv'), rows(out/'audit.csv')
    total = {c: sum(int(r[c]) for r in index) for c in ('used', 'repaired', 'dropped')}
    assert n['used'] + n['repaired'] + n['dropped'] == n['total'], n
    for action in ('repaired', 'dropped'): assert sum(r['action'] == action for r in audit) == n[action], action
    assert total['used'] == n['used'] and total['repaired'] <= n['repaired'] and total['dropped'] <= n['dropped'], total
    assert len(index) == done.counts['images']['written'] and len({r['stem'] for r in index}) == len(index)
    assert done.counts['images']['total'] == len(index) + done.counts['images']['failed']
    if given: assert n['total'] == len(given['annotations']) and done.counts['images']['records'] == len(given['images']), n
    allowed = {0, IGNORE} | {c['id'] for c in done.classes}
    for row in index:
        mask = cv2.imread(str(out/'masks'/(row['stem'] + '.png')), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (int(row['height']), int(row['width'])) and mask.dtype == np.uint8
        assert set(np.unique(mask).tolist()) <= allowed
        if given: check_pixels(given, row, mask, audit)
    hidden = {p.name for p in out.rglob('.*')}
    journal = {'.journal'} if done.counts['images']['failed'] else set()      # it stays only while a photo has failed
    assert hidden - {'.lock'} == journal, f'left behind: {hidden}'
    return 'prepared'


def rows(file):
    with open(file, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))


def check_pixels(given, row, mask, audit):
    "Where an image's annotations were all used as they are, or dropped, the mask is what pycocotools makes of the used ones."
    if int(row['repaired']): return
    plain = [a for a in given['annotations'] if isinstance(a, dict) and type(a.get('image_id')) is int and str(a['image_id']) == row['image_id']]
    ids = [a.get('id') for a in plain]
    if len(plain) != int(row['used']) + int(row['dropped']) or not all(type(i) is int and abs(i) < 2**63 for i in ids) or len(set(ids)) < len(ids): return
    dropped = {r['annotation_id'] for r in audit if r['image_id'] == row['image_id']}
    used = [a for a in plain if str(a['id']) not in dropped]
    assert len(used) == int(row['used']), f'{len(used)} used, the index says {row}'
    assert np.array_equal(mask, painted(used, *mask.shape)), f'mask of image {row["image_id"]} is not what pycocotools makes of {used}'


def limit(memory=1 << 30):
    "At most so much memory for this process (where the system can do that)."
    try: import resource
    except ImportError: return
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(folder, kind, *args):
    folder = Path(folder)
    images, out = photos(folder/'photos'), folder/'out'
    limit()
    todo = [(f'seed {s}', None, s) for s in range(int(args[0]), int(args[1]))] if kind == 'seed' else [(f, Path(f), None) for f in args]
    for name, file, seed in todo:
        print('>', name, flush=True)
        if file is None:
            file = folder/'mutated.json'
            file.write_bytes(fuzz.mutate(seed))
        try: print('=', judge(file, images, out), flush=True)
        except Exception as e: print('!', type(e).__name__, ' '.join(str(e).split())[:1500], flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
