#!/usr/bin/env python
"""Time and weigh `seglab.read_coco` beside pycocotools' `COCO()`, interleaved, each read in a fresh process.

    python bench/read_coco.py ANNOTATIONS [--repeats 5] [--megabytes 180]
    python bench/read_coco.py --tiny

The records of the given file are repeated, with new ids, until the file has the size asked for (0: as it is).
Both end with annotations grouped by photo. Memory is the largest resident size minus that after the imports; on
Linux from VmHWM, since ru_maxrss begins with the parent's largest size there. Prints a table and one JSON line.
"""
import argparse, datetime, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path
from seglab.files import machine, versions

CHILD = '''
import json, os, sys, time
def peak():
    "The largest resident size so far, in megabytes."
    if os.path.exists('/proc/self/status'):
        for line in open('/proc/self/status'):
            if line.startswith('VmHWM:'): return int(line.split()[1])/2**10
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)
if sys.argv[1] == 'plain':
    from pycocotools.coco import COCO
    before, out = peak(), sys.stdout
    sys.stdout = open(os.devnull, 'w')
    t, c = time.perf_counter(), time.process_time()
    coco = COCO(sys.argv[2])
    n = len(coco.anns)
else:
    from seglab.coco import read_coco
    before, out = peak(), sys.stdout
    t, c = time.perf_counter(), time.process_time()
    file = read_coco(sys.argv[2])
    photos = {im.id: [] for im in file.images}
    for a in file.annotations: photos[a.image_id].append(a)
    n = sum(map(len, photos.values()))
t, c = time.perf_counter() - t, time.process_time() - c
print(json.dumps(dict(seconds=t, cpu=c, megabytes=peak() - before, annotations=n)), file=out)
'''

def grow(source, target, megabytes):
    "Repeat the records of a COCO file under new ids until it is so large."
    d = json.loads(Path(source).read_bytes())
    times = max(1, round(megabytes*1e6/os.path.getsize(source))) if megabytes else 1
    top_i, top_a = (max([r['id'] for r in d[k]], default=0) + 1 for k in ('images', 'annotations'))
    images = [dict(im, id=im['id'] + k*top_i, file_name=f"{k}_{im['file_name']}") for k in range(times) for im in d['images']]
    anns = [dict(a, id=a['id'] + k*top_a, image_id=a['image_id'] + k*top_i) for k in range(times) for a in d['annotations']]
    with open(target, 'w') as f: json.dump(dict(d, images=images, annotations=anns), f)

def tiny(path):
    ring = [float(i) for i in range(40)]
    d = dict(images=[dict(id=i, file_name=f'{i}.jpg', height=480, width=640) for i in range(50)], categories=[dict(id=1, name='thing')],
             annotations=[dict(id=i, image_id=i % 50, category_id=1, iscrowd=0, segmentation=[ring], bbox=[0, 0, 1, 1], area=1.) for i in range(400)])
    path.write_text(json.dumps(d))

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('annotations', nargs='?')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--megabytes', type=float, default=180)
    p.add_argument('--tiny', action='store_true')
    a = p.parse_args()
    if not a.tiny and not a.annotations: p.error('give ANNOTATIONS, or --tiny')
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as tmp:
        source, big = Path(tmp)/'tiny.json', Path(tmp)/'big.json'
        if a.tiny: tiny(source)
        grow(source if a.tiny else a.annotations, big, 0 if a.tiny else a.megabytes)
        mb, got = big.stat().st_size/1e6, dict(plain=[], seglab=[])
        for _ in range(1 if a.tiny else a.repeats):
            for way in got:
                r = subprocess.run([sys.executable, '-c', CHILD, way, str(big)], capture_output=True, text=True, check=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
                got[way].append(json.loads(r.stdout.splitlines()[-1]))
    assert len({g['annotations'] for gs in got.values() for g in gs}) == 1
    med = {w: {k: statistics.median(g[k] for g in gs) for k in gs[0]} for w, gs in got.items()}
    ratios = {k: statistics.median(x[k]/max(y[k], 1e-9) for x, y in zip(got['plain'], got['seglab'])) for k in ('seconds', 'cpu', 'megabytes')}
    print(f"{mb:.0f} MB, {med['plain']['annotations']:,.0f} annotations; medians of {len(got['plain'])}\n\n{'':12}{'plain':>10}{'seglab':>10}{'ratio':>8}")
    for k in ratios: print(f"{k:12}{med['plain'][k]:10.2f}{med['seglab'][k]:10.2f}{ratios[k]:7.1f}x")
    print(json.dumps(dict(bench='read_coco', date=datetime.date.today().isoformat(), machine=machine(), cores=os.cpu_count(), versions=versions('numpy', 'msgspec', 'pycocotools'),
                          file_megabytes=round(mb), medians=med, ratios={k: round(v, 2) for k, v in ratios.items()})))

if __name__ == '__main__': main()
