#!/usr/bin/env python
"""Write a COCO annotation file of any size, in a stream: for tests and benchmarks of large sets.

    python bench/big_coco.py FILE [--images 1000] [--annotations 8000] [--photos FOLDER]
"""
import argparse, json, os, shutil
from pathlib import Path
import cv2
import numpy as np
from seglab.raster import mask_to_rle
from seglab.sample import SAMPLE_CATEGORIES

def pool(rng, n, h, w):
    "Annotations as text, ids aside: round polygons with COCO's number of points, one in a hundred a crowd."
    out = []
    for k in range(n):
        t = np.sort(rng.uniform(0, 2*np.pi, int(rng.integers(8, 60))))
        r = rng.uniform(.02, .3)*min(h, w)*(1 + .3*rng.random(len(t)))
        ring = np.clip(np.stack([r*np.cos(t), r*np.sin(t)], -1) + rng.uniform((0, 0), (w, h)), 0, (w, h)).round(2)
        (x0, y0), (x1, y1) = ring.min(0), ring.max(0)
        segmentation = [ring.ravel().tolist()]
        if k % 100 == 99:
            mask = np.zeros((h, w), np.uint8)
            cv2.fillPoly(mask, [ring.round().astype(np.int32)], 1)
            segmentation = mask_to_rle(mask)
        body = dict(segmentation=segmentation, area=round(cv2.contourArea(ring.astype(np.float32)), 2), iscrowd=int(k % 100 == 99),
                    bbox=[round(float(b), 2) for b in (x0, y0, x1 - x0, y1 - y0)])
        out.append(json.dumps(body)[:-1])
    return out

def chunks(n_images, n_annotations, seed, h, w):
    "The text of the file, piece by piece."
    rng = np.random.default_rng(seed)
    bodies, ids = pool(rng, 400, h, w), [c['id'] for c in SAMPLE_CATEGORIES]
    yield '{"info": {"description": "made by seglab"}, "licenses": [], "images": ['
    for i in range(n_images): yield f'{", "*(i > 0)}{{"id": {i + 1}, "file_name": "{i + 1:012d}.jpg", "height": {h}, "width": {w}}}'
    yield '], "annotations": ['
    for start in range(0, n_annotations, 10_000):
        picks = rng.integers(0, [max(1, n_images), len(bodies), len(ids)], (min(10_000, n_annotations - start), 3)).tolist()
        for j, (image, body, c) in enumerate(picks, start):
            yield f'{", "*(j > 0)}{bodies[body]}, "image_id": {image + 1}, "category_id": {ids[c]}, "id": {j + 1}}}'
    yield f'], "categories": {json.dumps(SAMPLE_CATEGORIES)}}}'

def link(source, target):
    "A second name for a file, or a copy where the disk knows no hard links."
    target.unlink(missing_ok=True)
    try: os.link(source, target)
    except OSError: shutil.copyfile(source, target)

def write(path, n_images=1000, n_annotations=8000, seed=0, size_hw=(480, 640), photos=None):
    "Write the file, and where `photos` names a folder, its photos: all the same grey one."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as f: f.writelines(chunks(n_images, n_annotations, seed, *size_hw))
    if photos is not None:
        Path(photos).mkdir(parents=True, exist_ok=True)
        first = Path(photos)/f'{1:012d}.jpg'
        first.write_bytes(cv2.imencode('.jpg', np.full(size_hw, 128, np.uint8))[1].tobytes())
        for i in range(1, n_images): link(first, Path(photos)/f'{i + 1:012d}.jpg')
    return path

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('file')
    p.add_argument('--images', type=int, default=1000)
    p.add_argument('--annotations', type=int, default=8000)
    p.add_argument('--photos')
    a = p.parse_args()
    write(a.file, a.images, a.annotations, photos=a.photos)
