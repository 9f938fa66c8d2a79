#!/usr/bin/env python
"""Time `seglab.prepare` beside the plain way, interleaved in one run.

    python bench/prepare.py ANNOTATIONS PHOTOS [--repeats 5] [--n 0] [--out FOLDER]
    python bench/prepare.py --tiny              draws its own few photos; proves that the script works

The plain way is what a competent student writes: `COCO()`, `annToMask` for each annotation, photos by
`cv2.imread`, `cv2.resize`, `cv2.imwrite`; with two processes, a `Pool` of them. Write to a RAM disk (--out /dev/shm)
to time the work, to a disk to time the disk too. Prints medians, ratios and one JSON line.
"""
import argparse, contextlib, datetime, io, json, os, platform, shutil, statistics, sys, tempfile, time
import multiprocessing as mp
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO
from seglab import masks as seglab_masks
from seglab.masks import prepare

SIZE = 256

def plain_mask(coco, info):
    mask = np.zeros((info['height'], info['width']), np.uint8)
    for ann in sorted(coco.loadAnns(coco.getAnnIds(imgIds=info['id'])), key=lambda a: a['id']):
        one = coco.annToMask(ann)
        mask[one == 1] = 255 if ann['iscrowd'] else ann['category_id']
    return cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)

def plain_one(image_id):
    coco, photos, out, photo_too = shared
    info = coco.loadImgs(image_id)[0]
    stem = os.path.splitext(os.path.basename(info['file_name']))[0]
    if photo_too:
        photo = cv2.resize(cv2.imread(os.path.join(photos, info['file_name'])), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(f'{out}/images/{stem}.jpg', photo)
    cv2.imwrite(f'{out}/masks/{stem}.png', plain_mask(coco, info))

def plain(annotations, photos, out, n, processes=1, photo_too=True):
    global shared
    for sub in ('images', 'masks'): os.makedirs(f'{out}/{sub}', exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()): coco = COCO(annotations)
    shared, ids = (coco, photos, out, photo_too), coco.getImgIds()[:n]
    if processes == 1:
        for i in ids: plain_one(i)
    else:
        with mp.get_context('fork').Pool(processes) as pool:
            for _ in pool.imap_unordered(plain_one, ids, chunksize=8): pass

def ours(annotations, photos, out, n, processes=1, **kw): prepare(annotations, photos, out, size=SIZE, workers=processes, n_images=n, **kw)

def ours_masks(annotations, photos, out, n):
    "Masks alone: the same judging, painting and writing, without opening a photo."
    os.makedirs(f'{out}/masks')
    file = seglab_masks.read_coco(annotations)
    table, other, _ = seglab_masks._choose(file.categories, None, 'category_id')
    job = dict(values=table, other=other, crowd='ignore', overlap='smallest', size_hw=(SIZE, SIZE), fit='squash')
    items = seglab_masks._plan([file], [.2], n)[0]
    for some in (items[i:i + 16] for i in range(0, len(items), 16)):
        for item, (mask, _) in zip(some, seglab_masks._masks([(i.anns, i.height, i.width) for i in some], job)):
            seglab_masks.write_atomic(f'{out}/masks/{item.stem}.png', seglab_masks._png(mask))

def floor(annotations, photos, out, n):
    "Nothing but decoding the photos at full size: what no exact pipeline can do without."
    for item in seglab_masks._plan([seglab_masks.read_coco(annotations)], [.2], n)[0]:
        seglab_masks._decode(seglab_masks._image_bytes(os.path.join(photos, item.file_name)), item.file_name, None, seglab_masks._buffer)

def tiny(folder):
    "A few drawn photos with polygons, as a COCO file."
    rng, coco = np.random.default_rng(0), dict(images=[], annotations=[], categories=[dict(id=c, name=str(c)) for c in (1, 18, 90)])
    (folder/'photos').mkdir()
    for i in range(12):
        cv2.imwrite(str(folder/'photos'/f'{i}.jpg'), cv2.GaussianBlur(rng.integers(0, 255, (480, 640, 3)).astype(np.uint8), (0, 0), 3))
        coco['images'].append(dict(id=i, file_name=f'{i}.jpg', height=480, width=640))
        for _ in range(6):
            t, r = np.sort(rng.uniform(0, 6.28, 30)), rng.uniform(20, 150)
            ring = np.stack([rng.uniform(0, 640) + r*np.cos(t), rng.uniform(0, 480) + r*np.sin(t)], 1).ravel().round(2).tolist()
            coco['annotations'].append(dict(id=len(coco['annotations']) + 1, image_id=i, category_id=int(rng.choice([1, 18, 90])), iscrowd=0, segmentation=[ring], bbox=[0, 0, 1, 1], area=1.))
    (folder/'instances.json').write_text(json.dumps(coco))
    return folder/'instances.json', folder/'photos'

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('annotations', nargs='?')
    p.add_argument('photos', nargs='?')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--n', type=int, default=0, help='only the first so many photos')
    p.add_argument('--out', default=None, help='where to write; default: the system\'s folder for temporary files')
    p.add_argument('--tiny', action='store_true')
    a = p.parse_args()
    if not a.tiny and not (a.annotations and a.photos): p.error('give ANNOTATIONS and PHOTOS, or --tiny')
    scratch = Path(tempfile.mkdtemp(dir=a.out))
    try:
        annotations, photos = map(str, tiny(scratch) if a.tiny else (a.annotations, a.photos))
        there = len(seglab_masks.read_coco(annotations).images)
        n = min(a.n or there, there)
        ways = dict(plain_1=lambda o: plain(annotations, photos, o, n), plain_2=lambda o: plain(annotations, photos, o, n, 2),
                    seglab_1=lambda o: ours(annotations, photos, o, n), seglab_2=lambda o: ours(annotations, photos, o, n, 2),
                    seglab_pack_1=lambda o: ours(annotations, photos, o, n, pack=True), seglab_pack_2=lambda o: ours(annotations, photos, o, n, 2, pack=True),
                    plain_masks=lambda o: plain(annotations, photos, o, n, photo_too=False), seglab_masks=lambda o: ours_masks(annotations, photos, o, n),
                    decode_only=lambda o: floor(annotations, photos, o, n))
        wall, cpu = {k: [] for k in ways}, {k: [] for k in ways}
        for r in range(1 if a.tiny else a.repeats + 1):
            for k, way in ways.items():
                out = scratch/f'{k}{r}'
                t, c = time.perf_counter(), sum(os.times()[:4])
                way(str(out))
                t, c = time.perf_counter() - t, sum(os.times()[:4]) - c
                shutil.rmtree(out, ignore_errors=True)
                if r or a.tiny: wall[k].append(t/n*1e3); cpu[k].append(c/n*1e3)          # the first round warms up
    finally: shutil.rmtree(scratch, ignore_errors=True)
    ms = {k: statistics.median(v) for k, v in wall.items()}
    rows = [('files, one process', 'plain_1', 'seglab_1'), ('files, two processes', 'plain_2', 'seglab_2'), ('packed, one process', 'plain_1', 'seglab_pack_1'),
            ('packed, two processes', 'plain_2', 'seglab_pack_2'), ('seglab, two processes against one', 'seglab_1', 'seglab_2'), ('masks only', 'plain_masks', 'seglab_masks'),
            ('the floor: decoding alone', 'plain_1', 'decode_only')]
    print(f'{n} photos, {SIZE}x{SIZE}; milliseconds a photo by the clock and by the processor, medians of {len(wall["plain_1"])}\n')
    print(f'{"":36}{"plain":>8}{"seglab":>8}{"ratio":>8}{"ratio, cpu":>12}')
    ratios = {}
    for name, x, y in rows:                                                             # ratios of the same round, then their median
        ratios[name] = [statistics.median(p/q for p, q in zip(d[x], d[y]) if q) if any(d[y]) else None for d in (wall, cpu)]
        print(f'{name:36}{ms[x]:8.2f}{ms[y]:8.2f}{ratios[name][0]:7.2f}x{ratios[name][1] or 0:11.2f}x')
    print(json.dumps(dict(bench='prepare', date=datetime.date.today().isoformat(), machine=platform.processor() or platform.machine(), cores=os.cpu_count(), load=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
                          python=platform.python_version(), numpy=np.__version__, opencv=cv2.__version__, simplejpeg=seglab_masks.simplejpeg is not None, photos=n,
                          ms_per_photo={k: round(v, 3) for k, v in ms.items()}, cpu_ms_per_photo={k: round(statistics.median(v), 3) for k, v in cpu.items()},
                          ratios={k: round(v[0], 2) for k, v in ratios.items()})))

if __name__ == '__main__': main()
