#!/usr/bin/env python
"""seglab's loader beside the loader of the tutorials, in one run.

    python bench/loader.py [--tiny] [--coco DIR] [--photos 343] [--workers 2] [--batch 16] [--rounds 5]

The tutorial loader reads a JPEG and a PNG per sample, maps category ids with numpy, and lets the worker normalise to float32 and
widen labels to int64. Both use the same augmentation. Rounds alternate; a ratio is the median of the ratios within a round.
Beside the clock stands the processor time of a sample, summed over this process and its workers: it tells the same on a busy machine.
"""
import argparse, json, os, statistics as st, tempfile, time
from datetime import date
from pathlib import Path
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import albumentations as A
import cv2, numpy as np, psutil, torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset
from seglab.dataset import ByEpoch, CheckedCollate, EpochBatches, SegDataset, train_tfms
from seglab.fetch import find_coco
from seglab.files import machine, versions
from seglab.masks import prepare
from seglab.packed import pack
from seglab.sample import make_sample

class Tutorial(Dataset):
    "What a tutorial writes: files in, float32 and int64 out, all of it in the worker."
    def __init__(self, path, label_space, size_hw):
        self.images, self.masks = sorted((path/'images').iterdir()), sorted((path/'masks').iterdir())
        self.table = label_space.table
        self.tfms = A.Compose([*train_tfms(size_hw).transforms, A.Normalize(), ToTensorV2()])
    def __len__(self): return len(self.images)
    def __getitem__(self, i):
        image = cv2.cvtColor(cv2.imread(str(self.images[i])), cv2.COLOR_BGR2RGB)
        mask = self.table[cv2.imread(str(self.masks[i]), cv2.IMREAD_GRAYSCALE)]
        out = self.tfms(image=image, mask=mask)
        return dict(pixel_values=out['image'], labels=out['mask'].long())

def ours(ds, batch_size, **keep):
    "The loader that `fit` uses: its batches and its collate."
    return DataLoader(ByEpoch(ds), batch_sampler=EpochBatches(len(ds), batch_size), collate_fn=CheckedCollate(ds.label_space.num_labels), **keep)

def spent(loader):
    "Processor seconds so far, of this process and of the loader's workers."
    workers = getattr(loader._iterator, '_workers', []) if loader._iterator is not None else []
    return time.process_time() + sum(sum(psutil.Process(w.pid).cpu_times()[:2]) for w in workers)

def epoch(loader):
    "Seconds of one pass by the clock, and of processor time."
    start, cpu = time.perf_counter(), spent(loader)
    for _ in loader: pass
    return time.perf_counter() - start, spent(loader) - cpu

def alone(ds, n):
    "Milliseconds of processor time of one sample, in this process."
    start = time.process_time()
    for i in range(n): ds[i % len(ds)]
    return 1e3*(time.process_time() - start)/n

def data(coco, photos, size, folder):
    "A prepared folder of real photos, or of drawn ones."
    if coco: annotations, images = find_coco(coco)[0]
    else: annotations, images = find_coco(make_sample(folder/'raw', photos))[0]
    prepare(annotations, images, folder/'prepared', size_hw=size, n_images=photos)
    return folder/'prepared'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tiny', action='store_true', help='a few small photos, one round: does it run?')
    p.add_argument('--coco', default=os.environ.get('SEGLAB_DATA') and os.environ['SEGLAB_DATA'] + '/coco343', help='folder with COCO photos; drawn ones otherwise')
    p.add_argument('--photos', type=int, default=343)
    p.add_argument('--size', type=int, default=256)
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--batch', type=int, default=16)
    p.add_argument('--rounds', type=int, default=7)
    a = p.parse_args()
    if a.tiny: a.photos, a.size, a.rounds, a.batch, a.coco = 24, 64, 1, 8, None
    ram = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=ram) as tmp:
        path, hw = data(a.coco, a.photos, a.size, Path(tmp)), (a.size, a.size)
        files = SegDataset(path, None, 'all', train_tfms(hw))
        plain = Tutorial(path, files.label_space, hw)
        packed = SegDataset(pack(path), None, 'all', train_tfms(hw))
        keep = dict(num_workers=a.workers, persistent_workers=a.workers > 0)
        loaders = {'tutorial': DataLoader(plain, a.batch, shuffle=True, **keep), 'seglab, files': ours(files, a.batch, **keep),
                   'seglab, packed': ours(packed, a.batch, **keep)}
        for l in loaders.values(): epoch(l)  # start the workers, warm the caches
        rounds = [{k: epoch(l) for k,l in loaders.items()} for _ in range(a.rounds)]  # (clock, processor) seconds
        del loaders
        cv2.setNumThreads(0)
        ms = [{k: alone(d, min(len(d), 200)) for k,d in (('tutorial', plain), ('seglab, files', files), ('seglab, packed', packed))} for _ in range(min(3, a.rounds))]
    n = len(files)
    rate = {k: st.median(n/r[k][0] for r in rounds) for k in rounds[0]}
    ratio = {k: st.median(r['tutorial'][0]/r[k][0] for r in rounds) for k in rate}
    cpu = {k: st.median(1e3*r[k][1]/n for r in rounds) for k in rate}
    cpu_ratio = {k: st.median(r['tutorial'][1]/max(r[k][1], 1e-3) for r in rounds) for k in rate}
    one = {k: st.median(m[k] for m in ms) for k in ms[0]}
    print(f"{n} photos at {a.size}x{a.size}, {a.workers} workers, batches of {a.batch}, {a.rounds} rounds, medians\n")
    print(f"{'loader':16}{'images/s':>10}{'ratio':>8}{'CPU ms an image':>18}{'ratio':>8}{'CPU ms a sample, one process':>32}")
    for k in rate: print(f"{k:16}{rate[k]:10.0f}{ratio[k]:7.2f}x{cpu[k]:18.2f}{cpu_ratio[k]:7.2f}x{one[k]:32.2f}")
    print('\n' + json.dumps(dict(bench='loader', photos=n, size=a.size, workers=a.workers, batch=a.batch, rounds=a.rounds, real=bool(a.coco),
        images_per_s={k: round(v, 1) for k,v in rate.items()}, ratio={k: round(v, 2) for k,v in ratio.items()}, cpu_ms_per_image={k: round(v, 3) for k,v in cpu.items()},
        cpu_ratio={k: round(v, 2) for k,v in cpu_ratio.items()}, cpu_ms_per_sample={k: round(v, 3) for k,v in one.items()},
        machine=machine(), date=str(date.today()), versions=versions('torch', 'numpy', 'opencv-python-headless', 'albumentations'))))

if __name__ == '__main__': main()
