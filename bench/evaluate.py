#!/usr/bin/env python
"""seglab's scores, bootstrap and evaluation beside the plain way, in one run; and the memory that many masks take.

    python bench/evaluate.py [--tiny] [--photos 200] [--classes 81] [--size 256] [--masks 100000] [--rounds 3]

counting   a (K,K) matrix of every photo and its rows, against torchmetrics' MulticlassConfusionMatrix updated photo by photo
bootstrap  2,000 draws as one product per class, against drawing photos and adding their matrices (as many draws, fewer timed)
evaluate   a small U-Net scored with counts, boundary IoU and calibration, against its bare forward pass and argmax
memory     peak of a fresh process that scores --masks masks of 64x64, against one that scores a hundredth of them
"""
import argparse, json, os, statistics as st, subprocess, sys, time
from datetime import date
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import numpy as np, torch
from seglab.comparison import bootstrap_ious, evaluate, evaluate_masks
from seglab.dataset import LabelSpace
from seglab.files import machine, versions
from seglab.zoo import from_smp

def masks(n, k, size, seed=0):
    "Triples of (stem, prediction, truth) with a handful of classes each, made from a few that are turned."
    rng = np.random.default_rng(seed)
    some = [np.kron(rng.choice(rng.choice(k, 5), (8, 8)), np.ones((size // 8, size // 8), int)).astype(np.uint8) for _ in range(20)]
    for i in range(n): yield f'{i:06d}', np.roll(some[i % 20], i % 7, 1), some[i % 20]

class Drawn:
    "A data set in memory."
    def __init__(self, n, label_space, size):
        self.label_space, self.items = label_space, [dict(pixel_values=torch.randint(0, 256, (3, size, size), dtype=torch.uint8), labels=torch.from_numpy(t))
                                           for _, _, t in masks(n, label_space.num_labels, size)]
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]

def seconds(f):
    start = time.perf_counter(); f()
    return time.perf_counter() - start

def plain_bootstrap(matrices, draws):
    "Draw photos, add their matrices, score: what one writes first."
    rng, out = np.random.default_rng(0), []
    for _ in range(draws):
        m = matrices[rng.integers(len(matrices), size=len(matrices))].sum(0)
        tp = np.diag(m)
        with np.errstate(invalid='ignore'): out.append(np.nanmean(tp / (m.sum(0) + m.sum(1) - tp)))
    return np.array(out)

def ratios(a):
    "{what: (plain seconds, seglab seconds)} of each round, taken in turns."
    from torchmetrics.classification import MulticlassConfusionMatrix
    labels = LabelSpace.from_names([f'c{i}' for i in range(a.classes)])
    triples = [(s, p, t) for s, p, t in masks(a.photos, a.classes, a.size)]
    tensors = [(torch.from_numpy(p.astype(np.int64))[None], torch.from_numpy(t.astype(np.int64))[None]) for _, p, t in triples]
    done = evaluate_masks(triples, labels, boundary=False)
    matrices = np.stack([evaluate_masks([t], labels, boundary=False).matrix for t in triples])
    net, ds = from_smp('unet', labels, 'resnet18', None), Drawn(max(8, a.photos // 8), labels, a.size)
    def torchmetrics():
        m = MulticlassConfusionMatrix(a.classes, ignore_index=255)
        for p, t in tensors: m.update(p, t)
        return m.compute()
    @torch.inference_mode()
    def bare():
        net.eval()
        for i in range(0, len(ds), 8): net(torch.stack([ds[j]['pixel_values'] for j in range(i, min(i + 8, len(ds)))])).argmax(1)
    assert (torchmetrics().numpy() == done.matrix).all()
    part = min(2000, a.draws)
    out = dict(counting=[], bootstrap=[], evaluate=[])
    for _ in range(a.rounds):
        out['counting'].append((seconds(torchmetrics), seconds(lambda: evaluate_masks(triples, labels, boundary=False))))
        out['bootstrap'].append((seconds(lambda: plain_bootstrap(matrices, part)) * 2000 / part, seconds(lambda: bootstrap_ious([done.counts], a.photos, a.classes))))
        out['evaluate'].append((seconds(bare), seconds(lambda: evaluate(net, ds, batch_size=8, device='cpu'))))
    return out

def peak():
    "Largest resident size of this process in MiB; on Linux from /proc, since getrusage hands a parent's peak down."
    try: return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 2**10
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)

def peak_mib(n, k):
    "Peak memory in MiB, and seconds, of a fresh process that scores n masks and draws 200 bootstraps."
    code = f"""import sys, time; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
from evaluate import *
labels, start = LabelSpace.from_names([f'c{{i}}' for i in range({k})]), time.perf_counter()
e = evaluate_masks(masks({n}, {k}, 64), labels, boundary=False)
took = time.perf_counter() - start
bootstrap_ious([e.counts], {n}, {k}, n_boot=200)
print(peak(), took, e.counts.nbytes / 2**20)"""
    return [float(v) for v in subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.split()]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tiny', action='store_true', help='a few small photos, one round: does it run?')
    p.add_argument('--photos', type=int, default=200)
    p.add_argument('--classes', type=int, default=81)
    p.add_argument('--size', type=int, default=256)
    p.add_argument('--masks', type=int, default=100_000)
    p.add_argument('--draws', type=int, default=40, help='draws timed of the plain bootstrap')
    p.add_argument('--rounds', type=int, default=3)
    a = p.parse_args()
    if a.tiny: a.photos, a.classes, a.size, a.masks, a.rounds, a.draws = 16, 5, 64, 2000, 1, 10
    torch.manual_seed(0)
    result = {}
    print(f"{'':12}{'plain s':>10}{'seglab s':>10}{'plain/seglab':>14}")
    for what, pairs in ratios(a).items():
        plain, ours, ratio = (st.median(v) for v in (zip(*[(x, y, x / y) for x, y in pairs])))
        result[what] = dict(plain_s=plain, seglab_s=ours, ratio=ratio)
        print(f'{what:12}{plain:10.3f}{ours:10.3f}{ratio:14.2f}')
    few, many = peak_mib(max(10, a.masks // 100), a.classes), peak_mib(a.masks, a.classes)
    result['memory'] = dict(masks=a.masks, peak_mib=many[0], peak_mib_of_a_hundredth=few[0], table_mib=many[2], seconds=many[1])
    print(f'memory      {a.masks:,} masks: peak {many[0]:.0f} MiB, {many[0] - few[0]:.0f} MiB more than {max(10, a.masks // 100):,} masks; {many[1]:.0f} s')
    print(json.dumps(dict(bench='evaluate', **result, settings=vars(a), date=date.today().isoformat(), machine=machine(),
                          threads=torch.get_num_threads(), load=os.getloadavg()[0], versions=versions('torch'))))

if __name__ == '__main__': main()
