#!/usr/bin/env python
"""Where the time of `prepare` goes, and how it grows: the plain loop turned into seglab's step by step, each step timed.

    python bench/anatomy.py ANNOTATIONS PHOTOS [--repeats 5] [--n 0] [--out FOLDER]
    python bench/anatomy.py --tiny

ablation  the plain loop, then one part after the other replaced by seglab's; one process, files out, masks compared each time
stages    the parts of one photo by themselves: decoding, shrinking, judging and painting, encoding, writing
growth    `prepare` with more photos, more annotations a photo, larger pictures, more processes
Write to a RAM disk (--out /dev/shm) to time the work and not the disk. All steps go in turn, round after round; medians.
"""
import argparse, dataclasses, datetime, json, os, platform, shutil, statistics, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent))
import cv2
import prepare as beside
from seglab import images
from seglab.coco import read_coco
from seglab.files import machine, write_atomic
from seglab.images import decode_image, encode_image, encode_mask, read_image_bytes, resize_image
from seglab.masks import prepare
from seglab.paint import paint_masks

SIZE = beside.SIZE
STEPS = ('plain', 'paint', 'grid', 'decode', 'shrink', 'encode')
WORDS = dict(plain='the plain loop', paint='masks judged and painted run by run', grid='painted straight onto the small grid',
             decode='photos decoded into a buffer that is used again', shrink='photos shrunk without aliasing',
             encode='cheap PNG, JPEG at quality 95, each file whole or absent', files='prepare, files', pack='prepare, packed')

def stepwise(upto, annotations, photos, out, n):
    "The plain loop with the first parts replaced, up to the one named."
    if upto == 'plain': return beside.plain(annotations, photos, out, n)
    has = lambda step: STEPS.index(step) <= STEPS.index(upto)
    for sub in ('images', 'masks'): os.makedirs(f'{out}/{sub}', exist_ok=True)
    items, rules = beside.planned(annotations, photos, n)
    if not has('grid'): rules = dataclasses.replace(rules, size_hw=None)
    for some in (items[i:i + 32] for i in range(0, len(items), 32)):
        for item, (mask, _) in zip(some, paint_masks([(i.anns, i.height, i.width) for i in some], rules)):
            path = item.path
            if not has('grid'): mask = cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST_EXACT)
            photo = decode_image(read_image_bytes(path), item.file_name, reuse=True)[0] if has('decode') else cv2.imread(path)
            photo = resize_image(photo, (SIZE, SIZE)) if has('shrink') else cv2.resize(photo, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
            if has('encode'):
                write_atomic(f'{out}/images/{item.stem}.jpg', encode_image(photo))
                write_atomic(f'{out}/masks/{item.stem}.png', encode_mask(mask))
            else:
                cv2.imwrite(f'{out}/images/{item.stem}.jpg', cv2.cvtColor(photo, cv2.COLOR_RGB2BGR) if has('decode') else photo)
                cv2.imwrite(f'{out}/masks/{item.stem}.png', mask)

def same_masks(a, b):
    "Whether two folders hold the same masks, pixel for pixel."
    names = sorted(p.name for p in Path(a, 'masks').glob('*.png'))
    return bool(names) and all((cv2.imread(f'{a}/masks/{m}', 0) == cv2.imread(f'{b}/masks/{m}', 0)).all() for m in names)

def stages(annotations, photos, out, n):
    "Milliseconds a photo of each part of seglab's way, and of reading the annotation file."
    os.makedirs(out)
    clock, took = time.perf_counter, dict(read=0, paint=0, decode=0, shrink=0, encode=0, write=0)
    def timed(what, f, *args):
        t = clock(); r = f(*args)
        took[what] += clock() - t
        return r
    items, rules = timed('read', beside.planned, annotations, photos, n)
    for some in (items[i:i + 32] for i in range(0, len(items), 32)):
        for item, (mask, _) in zip(some, timed('paint', paint_masks, [(i.anns, i.height, i.width) for i in some], rules)):
            data = timed('write', read_image_bytes, item.path)
            photo = timed('shrink', resize_image, timed('decode', decode_image, data, item.file_name, None, True)[0], (SIZE, SIZE))
            files = timed('encode', lambda: (encode_image(photo), encode_mask(mask)))
            for suffix, data in zip(('jpg', 'png'), files): timed('write', write_atomic, f'{out}/{item.stem}.{suffix}', data)
    return {k: v/n*1e3 for k, v in took.items()}

def crowded(annotations, target, times):
    "The same file with each annotation there so many times, under ids of its own."
    d = json.loads(Path(annotations).read_bytes())
    top = max([a['id'] for a in d['annotations']], default=0) + 1
    d['annotations'] = [dict(a, id=a['id'] + k*top) for k in range(times) for a in d['annotations']]
    Path(target).write_text(json.dumps(d))
    return str(target)

def growth_cases(annotations, photos, scratch, n):
    "{(axis, value): function of a folder to write}"
    ours = lambda ann, m, workers=1, size=SIZE: lambda out: prepare(ann, photos, out, size_hw=size, workers=workers, n_images=m)
    cases = {('photos', m): ours(annotations, m) for m in sorted({max(1, n//8), max(1, n//4), max(1, n//2), n})}
    per_photo = len(json.loads(Path(annotations).read_bytes())['annotations'])/len(read_coco(annotations).images)
    for k in (1, 2, 4): cases['annotations a photo', round(k*per_photo, 1)] = ours(crowded(annotations, scratch/f'times{k}.json', k), n)
    for size in (128, 256, 512, None): cases['side', size or 'own'] = ours(annotations, n, size=size)
    for workers in sorted({1, 2, os.cpu_count() or 1}): cases['processes', workers] = ours(annotations, n, workers)
    return cases

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('annotations', nargs='?')
    p.add_argument('photos', nargs='?')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--n', type=int, default=0, help='only the first so many photos')
    p.add_argument('--out', default=None, help="where to write; default: the system's folder for temporary files")
    p.add_argument('--tiny', action='store_true', help='a few drawn photos, one round: does it run?')
    a = p.parse_args()
    if not a.tiny and not (a.annotations and a.photos): p.error('give ANNOTATIONS and PHOTOS, or --tiny')
    scratch = Path(tempfile.mkdtemp(dir=a.out))
    try:
        annotations, photos = map(str, beside.tiny(scratch) if a.tiny else (a.annotations, a.photos))
        there = len(read_coco(annotations).images)
        n = min(a.n or there, there)
        ways = {('step', s): (lambda o, s=s: stepwise(s, annotations, photos, o, n)) for s in STEPS}
        ways |= {('step', 'files'): lambda o: beside.ours(annotations, photos, o, n), ('step', 'pack'): lambda o: beside.ours(annotations, photos, o, n, pack=True)}
        grow = growth_cases(annotations, photos, scratch, n)
        took, parts, differ = {k: [] for k in ways | grow}, [], []
        for r in range(1 if a.tiny else a.repeats + 1):                                     # the first round warms up
            for key, way in (ways | grow).items():
                out, t = str(scratch/'out'), time.perf_counter()
                way(out)
                t = time.perf_counter() - t
                if r or a.tiny: took[key].append(t)
                if r == 0 and key == ('step', 'paint'): shutil.copytree(out, scratch/'first')
                if r == 0 and key[0] == 'step' and key[1] not in ('plain', 'paint', 'pack') and not same_masks(scratch/'first', out): differ.append(key[1])
                shutil.rmtree(out)
            parts.append(stages(annotations, photos, scratch/'out', n))
            shutil.rmtree(scratch/'out')
    finally: shutil.rmtree(scratch, ignore_errors=True)
    if differ: sys.exit(f"anatomy: the masks change with {', '.join(differ)}")
    med = {k: statistics.median(v) for k, v in took.items()}
    ablation = [dict(step=s, words=WORDS[s], ms=round(med['step', s]/n*1e3, 3), ratio=round(statistics.median(x/y for x, y in zip(took['step', 'plain'], took['step', s])), 2))
                for s in (*STEPS, 'files', 'pack')]
    print(f'{n} photos, {SIZE}x{SIZE}, one process, milliseconds a photo\n')
    for row in ablation: print(f"{row['words']:60}{row['ms']:8.2f}{row['ratio']:7.2f}x")
    own = {k: round(statistics.median(p[k] for p in parts), 3) for k in parts[0]}
    print('\n' + ', '.join(f'{k} {v:.2f}' for k, v in own.items()) + ' ms a photo\n')
    growth = [dict(axis=k[0], value=k[1], seconds=round(v, 4), photos=k[1] if k[0] == 'photos' else n) for k, v in med.items() if k[0] != 'step']
    for row in growth: print(f"{row['axis']:20}{row['value']!s:>8}{row['seconds']:10.3f} s{1e3*row['seconds']/row['photos']:8.2f} ms a photo")
    print(json.dumps(dict(bench='anatomy', date=datetime.date.today().isoformat(), machine=machine(), cores=os.cpu_count(),
                          python=platform.python_version(), opencv=cv2.__version__, simplejpeg=images.simplejpeg is not None, photos=n, size=SIZE,
                          ablation=ablation, stages_ms=own, growth=growth)))

if __name__ == '__main__': main()
