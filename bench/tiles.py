"""What tiles are for. memory: a photo of 20,000 pixels a side is predicted, and the most memory on the way is measured.
small: drawn scenes of 1,024 pixels a side with objects of 12; the same small net trained on crops and asked tile by tile, or
trained and asked at 256 pixels a side, both for the same CPU seconds.

    tiles.py [--parts memory small] [--side 20000] [--seconds 30] [--seeds 3] [--scenes 40 16] [--out FILE]

Memory is what the process holds of its own (RssAnon, read every 10 ms by a thread): the pages of the photo's and the mask's
files, which are mapped and not read, belong to the system's cache. Each part goes into the JSON file as soon as it is known.
"""
import argparse, json, resource, subprocess, sys, tempfile, threading, time
from datetime import date
from pathlib import Path
import cv2
import numpy as np
import torch
from torch import nn
from seglab.comparison import Comparison, evaluate
from seglab.dataset import LabelSpace, SegDataset
from seglab.files import machine, versions, write_json
from seglab.losses import get_loss
from seglab.model import Segmenter
from seglab.sample import draw_scene
from seglab.tiles import predict_tiled

SIDE, SMALL, OBJECT, NAMES = 1024, 256, 12, ['background', 'disc', 'square']

def block(width_in, width, stride=1, dilation=1):
    return [nn.Conv2d(width_in, width, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

def net(K):
    "Four convolutions, answering at half the photo's size."
    return nn.Sequential(*block(3, 16, 2), *block(16, 32), *block(32, 32, 1, 2), nn.Conv2d(32, K, 1))

# ---------------------------------------------------------------- memory

def own_bytes():
    "What this process holds that is no page of a file."
    return next(int(line.split()[1])*1024 for line in open('/proc/self/status') if line.startswith('RssAnon'))

class Watch:
    "The most of `own_bytes` while it is open."
    def __enter__(self):
        self.most, self.done = own_bytes(), threading.Event()
        self.thread = threading.Thread(target=self.look); self.thread.start()
        return self
    def look(self):
        while not self.done.wait(.01): self.most = max(self.most, own_bytes())
    def __exit__(self, *args): self.done.set(); self.thread.join()

def large_photo(path, side):
    "A file of side x side x 3 bytes: a drawn scene, again and again."
    tile = draw_scene(0, size_hw=(500, 500)).image
    strip = np.tile(tile, (1, -(-side//tile.shape[1]), 1))[:, :side]
    with open(path, 'wb') as f:
        for top in range(0, side, len(strip)): f.write(strip[:side - top].tobytes())

def predict_one(folder, side, K=8, tile=512):
    "In a process of its own: predict the photo in `folder`; prints what it took."
    photo = np.memmap(Path(folder)/'photo', np.uint8, 'r', shape=(side, side, 3))
    out = np.memmap(Path(folder)/'mask', np.uint8, 'w+', shape=(side, side))
    torch.manual_seed(0)
    model = Segmenter(net(K), [f'class {k}' for k in range(K)]).eval()
    before, cpu, start = own_bytes(), time.process_time(), time.perf_counter()
    with Watch() as watch: predict_tiled(model, photo, tile, out=out)
    print(json.dumps(dict(
        classes=K, tile=tile, model_and_libraries_mib=before/2**20, beyond_mib=(watch.most - before)/2**20,
        files_too_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10, whole_logits_mib=K*side**2*4/2**20,
        cpu_seconds=time.process_time() - cpu, seconds=time.perf_counter() - start, classes_met=len(np.unique(out[::997, ::991])))))

def memory(side):
    "Peak memory of a large photo, and of one a quarter as high and wide."
    rows = []
    for n in (side//4, side):
        with tempfile.TemporaryDirectory() as folder:
            large_photo(Path(folder)/'photo', n)
            done = subprocess.run([sys.executable, __file__, '--child', folder, '--side', str(n)], capture_output=True, text=True, check=True)
        rows.append(dict(side=n, photo_mib=n*n*3/2**20, **json.loads(done.stdout.splitlines()[-1])))
        print(rows[-1], flush=True)
    return rows

# ---------------------------------------------------------------- small objects

def scene(seed, side=SIDE, n=200):
    "(image (H,W,3), mask (H,W)): discs and squares of 12 pixels in many colours on soft ground with grain."
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.integers(60, 196, (8, 8, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    mask, r = np.zeros((side, side), np.uint8), OBJECT//2
    for _ in range(n):
        y, x = rng.integers(r, side - r, 2)
        square, color = int(rng.integers(2)), rng.integers(0, 256, 3)
        shape = np.zeros((2*r, 2*r), np.uint8) if not square else np.ones((2*r, 2*r), np.uint8)
        if not square: shape = (((np.indices((2*r, 2*r)) + .5 - r)**2).sum(0) <= r*r).astype(np.uint8)
        part = slice(y - r, y + r), slice(x - r, x + r)
        soft[part][shape > 0] = color
        mask[part][shape > 0] = 1 + square
    return (soft + rng.normal(0, 8, soft.shape)).clip(0, 255).astype(np.uint8), mask

def written(folder, seeds):
    "Scenes as files, and their data set."
    for kind in ('images', 'masks'): (folder/kind).mkdir(parents=True)
    for s in seeds:
        image, mask = scene(s)
        cv2.imwrite(str(folder/'images'/f'{s:05d}.png'), image[..., ::-1]); cv2.imwrite(str(folder/'masks'/f'{s:05d}.png'), mask)
    return SegDataset.from_folders(folder/'images', folder/'masks', LabelSpace.from_names(NAMES))

def trained(model, photos, masks, seconds, seed, batch=8):
    "Train on batches of 256x256 for so many CPU seconds: crops where the photos are larger; the steps done."
    rng, loss, cpu, steps = np.random.default_rng(seed), get_loss('ce+dice'), time.process_time(), 0
    opt = torch.optim.AdamW(model.train().parameters(), 3e-3)
    while (spent := (time.process_time() - cpu)/seconds) < 1:
        for g in opt.param_groups: g['lr'] = 3e-3*(1 - spent)
        which, (h, w) = rng.integers(len(photos), size=batch), photos.shape[1:3]
        at = [(i, slice(y, y + SMALL), slice(x, x + SMALL)) for i, y, x in
              zip(which, rng.integers(h - SMALL + 1, size=batch), rng.integers(w - SMALL + 1, size=batch))]
        x, y = (torch.from_numpy(np.stack([a[k] for k in at])) for a in (photos, masks))
        value = loss(model(x.permute(0, 3, 1, 2)), y)
        opt.zero_grad(); value.backward(); opt.step()
        steps += 1
    return steps

def small(seconds, seeds, scenes):
    "Both ways, several trainings each, scored on scenes that no training saw."
    with tempfile.TemporaryDirectory() as folder:
        test = written(Path(folder), range(10_000, 10_000 + scenes[1]))
        photos, masks = (np.stack(a) for a in zip(*map(scene, range(scenes[0]))))
        shrunk = [np.stack([cv2.resize(a, (SMALL,)*2, interpolation=how) for a in all_])
                  for all_, how in ((photos, cv2.INTER_AREA), (masks, cv2.INTER_NEAREST_EXACT))]
        ways, steps, found = dict(squash=(shrunk, dict(size_hw=SMALL)), tiles=((photos, masks), dict(tile=SMALL))), {}, {}
        trained(Segmenter(net(3), NAMES), *shrunk, .01, 0)                                # the first step loads what it needs
        for seed in range(seeds):
            for name, (data, how) in ways.items():
                torch.manual_seed(seed)
                model = Segmenter(net(3), NAMES, **how)
                steps.setdefault(name, []).append(trained(model, *data, seconds, seed))
                found.setdefault(name, []).append(evaluate(model, test, name=name, batch_size=2, boundary=False, progress=False))
                print(name, seed, steps[name][-1], found[name][-1], flush=True)
        result = Comparison(found)
    d = result.differences[0]
    return dict(cpu_seconds=seconds, seeds=seeds, train=scenes[0], test=scenes[1], difference=d.difference, low=d.low, high=d.high, verdict=d.sentence,
                rows=[dict(name=n, mean_iou=e.scores['mean_iou'], low=result.intervals[n][0], high=result.intervals[n][1],
                           classes=e.scores['per_category_iou'], steps=steps[n]) for n, e in result.evaluations.items()])

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--parts', nargs='+', default=['memory', 'small'], choices=['memory', 'small'])
    p.add_argument('--side', type=int, default=20_000); p.add_argument('--seconds', type=float, default=30); p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--scenes', type=int, nargs=2, default=[40, 16], metavar=('TRAIN', 'TEST'))
    p.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[1]/'nbs'/'results'/'tiles.json')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.child: return predict_one(a.child, a.side)
    for part in a.parts:
        found = memory(a.side) if part == 'memory' else small(a.seconds, a.seeds, a.scenes)
        done = json.loads(a.out.read_text()) if a.out.exists() else {}
        if part == 'small':                                                            # a row for each length of training and number of seeds
            key = lambda r: (r['cpu_seconds'], r['seeds'])
            found |= dict(date=str(date.today()))
            found = sorted([r for r in done.get(part, []) if key(r) != key(found)] + [found], key=key)
        done |= {part: found} | dict(date=str(date.today()), machine=machine('cpu'), versions=versions('torch', 'numpy'))
        write_json(a.out, done, indent=1)

if __name__ == '__main__': main()
