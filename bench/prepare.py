#!/usr/bin/env python
"""Time `seglab.prepare` beside the plain way, interleaved in one run.

    python bench/prepare.py ANNOTATIONS PHOTOS [--repeats 5] [--n 0] [--times 1] [--ram FOLDER] [--disk FOLDER]
    python bench/prepare.py --tiny              draws its own few photos; proves that the script works

The plain way is what a competent student writes: `COCO()`, `annToMask` for each annotation, photos by
`cv2.imread`, `cv2.resize`, `cv2.imwrite`; with two processes, a `Pool` of them. Everything is written to a RAM disk
(--ram, by default /dev/shm where there is one), to time the work alone; the first line also to a disk (--disk).
Each round runs every way once; the ratios are those within a round, by the clock and by the processor's time of all
processes, then their medians. The processor's time is the one to believe on a machine that has other work too.
Prints a table and one JSON line.
"""
import argparse, contextlib, datetime, io, json, os, shutil, statistics, tempfile, time
import multiprocessing as mp
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO
from seglab.coco import read_coco
from seglab.files import machine, versions, write_atomic
from seglab.images import decode_image, encode_image, encode_mask, read_image_bytes, resize_image
from seglab.masks import prepare
from seglab.paint import PaintRules, paint_masks
from seglab.photos import choose_values, merge_categories, plan_photos

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

def ours(annotations, photos, out, n, processes=1, **kw): prepare(annotations, photos, out, size_hw=SIZE, workers=processes, n_images=n, **kw)

def planned(annotations, photos, n):
    "The first photos with their annotations, and the rules to paint them by."
    file = read_coco(annotations)
    values, others, _ = choose_values(merge_categories([file]))
    return plan_photos([file], [photos]).photos[:n], PaintRules(values, others, size_hw=(SIZE, SIZE))

def ours_masks(annotations, photos, out, n):
    "Masks alone: the same judging, painting and writing, without opening a photo."
    os.makedirs(f'{out}/masks')
    items, rules = planned(annotations, photos, n)
    for some in (items[i:i + 32] for i in range(0, len(items), 32)):
        for item, (mask, _) in zip(some, paint_masks([(i.anns, i.height, i.width) for i in some], rules)):
            write_atomic(f'{out}/masks/{item.stem}.png', encode_mask(mask))

def floor(annotations, photos, out, n):
    "Nothing but decoding the photos at full size: what no exact pipeline can do without."
    for item in planned(annotations, photos, n)[0]: decode_image(read_image_bytes(item.path), item.file_name, reuse=True)

def photo_alone(annotations, photos, out, n):
    "The photo's part of the work, by the libraries alone and without a file written: decode, shrink, encode. No mask is made."
    for item in planned(annotations, photos, n)[0]:
        image = decode_image(read_image_bytes(item.path), item.file_name, reuse=True)[0]
        encode_image(resize_image(image, (SIZE, SIZE)))

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

def copies(annotations, photos, folder, times):
    "The same photos `times` over -> annotation file and folder of a larger data set, on the RAM disk."
    whole = json.loads(Path(annotations).read_text())
    more, step = dict(whole, images=[], annotations=[]), 1 + max(x['id'] for k in ('images', 'annotations') for x in whole[k])
    (folder/'copies').mkdir()
    for k in range(times):
        for image in whole['images']:
            name = f'{k}_{os.path.basename(image["file_name"])}'
            shutil.copy(os.path.join(photos, image['file_name']), folder/'copies'/name)
            more['images'].append(dict(image, id=image['id'] + k*step, file_name=name))
        more['annotations'] += [dict(a, id=a['id'] + k*step, image_id=a['image_id'] + k*step) for a in whole['annotations']]
    (folder/'copies.json').write_text(json.dumps(more))
    return str(folder/'copies.json'), str(folder/'copies')

def used(): return time.process_time() + sum(os.times()[2:4])                             # and that of ended children

def rounds(ways, folders, repeats):
    "Run every way once a round -> seconds of each by the clock, and by the processor."
    wall, cpu = {k: [] for k in ways}, {k: [] for k in ways}
    for r in range(repeats):
        for k, (way, where) in ways.items():
            out = folders[where]/f'{k}{r}'
            t, c = time.perf_counter(), used()
            way(str(out))
            wall[k].append(time.perf_counter() - t); cpu[k].append(used() - c)
            shutil.rmtree(out, ignore_errors=True)
    return wall, cpu

ROWS = [('files, one process', 'plain_1', 'seglab_1'), ('files, two processes', 'plain_2', 'seglab_2'),
        ('packed, one process', 'plain_1', 'seglab_pack_1'), ('packed, two processes', 'plain_2', 'seglab_pack_2'),
        ('seglab, two processes against one', 'seglab_1', 'seglab_2'), ('masks only', 'plain_masks', 'seglab_masks'),
        ('the floor: decoding alone', 'plain_1', 'decode_only'), ('decoded, shrunk, encoded; no mask', 'plain_1', 'photo_only'), ('files, one process, on disk', 'plain_1_disk', 'seglab_1_disk')]

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('annotations', nargs='?')
    p.add_argument('photos', nargs='?')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--n', type=int, default=0, help='only the first so many photos')
    p.add_argument('--times', type=int, default=1, help='take the photos so many times over')
    p.add_argument('--ram', default='/dev/shm' if os.access('/dev/shm', os.W_OK) else None, help='a folder on a RAM disk')
    p.add_argument('--disk', default=None, help='a folder on a disk; default: the folder for temporary files')
    p.add_argument('--tiny', action='store_true')
    a = p.parse_args()
    if not a.tiny and not (a.annotations and a.photos): p.error('give ANNOTATIONS and PHOTOS, or --tiny')
    cv2.setNumThreads(1)                                                               # one process is one core, for both
    with tempfile.TemporaryDirectory(dir=a.ram) as ram, tempfile.TemporaryDirectory(dir=a.disk) as disk:
        files, photos = map(str, tiny(Path(ram)) if a.tiny else (a.annotations, a.photos))
        if a.times > 1: files, photos = copies(files, photos, Path(ram), a.times)
        there = len(read_coco(files).images)
        n = min(a.n or there, there)
        ways = dict(plain_1=lambda o: plain(files, photos, o, n), seglab_1=lambda o: ours(files, photos, o, n),
                    plain_2=lambda o: plain(files, photos, o, n, 2), seglab_2=lambda o: ours(files, photos, o, n, 2),
                    seglab_pack_1=lambda o: ours(files, photos, o, n, pack=True), seglab_pack_2=lambda o: ours(files, photos, o, n, 2, pack=True),
                    plain_masks=lambda o: plain(files, photos, o, n, photo_too=False), seglab_masks=lambda o: ours_masks(files, photos, o, n),
                    decode_only=lambda o: floor(files, photos, o, n), photo_only=lambda o: photo_alone(files, photos, o, n))
        ways = {k: (w, 'ram') for k, w in ways.items()} | {k + '_disk': (ways[k], 'disk') for k in ('plain_1', 'seglab_1')}
        folders = dict(ram=Path(ram), disk=Path(disk))
        if not a.tiny: rounds(ways, folders, 1)                                        # warms up
        wall, cpu = rounds(ways, folders, 1 if a.tiny else a.repeats)
    report(wall, cpu, n, a.times)

def report(wall, cpu, n, times):
    "The table, and one line of JSON."
    def ratio(d, x, y): return round(statistics.median(p/max(q, 1e-9) for p, q in zip(d[x], d[y])), 3)
    ms, cpu_ms = ({k: round(statistics.median(v)/n*1e3, 3) for k, v in d.items()} for d in (wall, cpu))
    ratios, cpu_ratios = ({name: ratio(d, x, y) for name, x, y in ROWS} for d in (wall, cpu))
    print(f'{n} photos{f" ({times} copies of each)" if times > 1 else ""}, {SIZE}x{SIZE}; milliseconds a photo and ratios, by the clock and by the processor; medians of {len(wall["plain_1"])}\n')
    print(f'{"":36}{"plain":>8}{"seglab":>8}{"ratio":>8}{"":4}{"cpu: plain":>12}{"seglab":>8}{"ratio":>8}')
    for name, x, y in ROWS: print(f'{name:36}{ms[x]:8.2f}{ms[y]:8.2f}{ratios[name]:7.2f}x{"":4}{cpu_ms[x]:12.2f}{cpu_ms[y]:8.2f}{cpu_ratios[name]:7.2f}x')
    print(json.dumps(dict(bench='prepare', date=datetime.date.today().isoformat(), machine=machine(), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1) if hasattr(os, 'getloadavg') else None,
                          versions=versions('numpy', 'opencv-python-headless', 'simplejpeg', 'msgspec', 'pycocotools', 'pillow'), photos=n, times=times, ms_per_photo=ms, cpu_ms_per_photo=cpu_ms, ratios=ratios, cpu_ratios=cpu_ratios)))

if __name__ == '__main__': main()
