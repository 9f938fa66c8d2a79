#!/usr/bin/env python
"""Validation counting: seglab's confusion matrix beside torchmetrics' defaults, interleaved in one process.

    python bench/metrics.py [--tiny]
"""
import argparse, json, statistics, time
from datetime import date

import cv2
import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from seglab.files import machine, versions
from seglab.metrics import confusion_matrix

def masks(rng, B, K, side):
    "Blobs of classes like a real mask's, with an ignored corner, and a prediction that is mostly right."
    blob = lambda: cv2.resize(rng.integers(0, K, (6, 6), np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    target = np.stack([blob() for _ in range(B)])                                          # (B,H,W)
    pred = np.where(rng.random(target.shape) < .8, target, rng.integers(0, K, target.shape)).astype(np.uint8)
    target[:, :side//8, :side//8] = 255
    return torch.from_numpy(pred), torch.from_numpy(target)

def median_ms(fs, repeats):
    "Median milliseconds of each function, one call of each in turn."
    times = {k: [] for k in fs}
    for f in fs.values(): f()
    for _ in range(repeats):
        for k, f in fs.items():
            start = time.perf_counter()
            f()
            times[k].append(1e3 * (time.perf_counter() - start))
    return {k: statistics.median(v) for k, v in times.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tiny', action='store_true', help='a quick run on small input, to see that it works')
    p.add_argument('--threads', type=int, default=1, help='torch threads')
    a = p.parse_args()
    torch.set_num_threads(a.threads); cv2.setNumThreads(a.threads)
    B, side, repeats = (2, 32, 2) if a.tiny else (8, 256, 15)
    rows, rng = [], np.random.default_rng(0)
    for K in (2, 21, 81):
        pred, target = masks(rng, B, K, side)
        logits = torch.randn(B, K, side, side)
        oracle, total = MulticlassConfusionMatrix(K, ignore_index=255), torch.zeros(K, K, dtype=torch.long)
        assert torch.equal(oracle(pred.long(), target.long()), confusion_matrix(pred, target, K))
        for what, (p_, t_), (q, u) in (
                ('class indices, int64', (pred.long(), target.long()), (pred.long(), target.long())),
                ('class indices, as each wants them', (pred.long(), target.long()), (pred, target)),
                ('logits', (logits, target.long()), (logits, target))):
            ms = median_ms(dict(torchmetrics=lambda: oracle.update(p_, t_), seglab=lambda: total.add_(confusion_matrix(q, u, K))),
                           max(2, repeats // 3) if what == 'logits' else repeats)
            rows.append(dict(classes=K, input=what, **{k: round(v, 3) for k, v in ms.items()},
                             ratio=round(ms['torchmetrics'] / ms['seglab'], 1)))
    print(f'{B} masks of {side}×{side}, {a.threads} thread(s), medians in ms')
    print(f'{"classes":>7}  {"input":<34} {"torchmetrics":>12} {"seglab":>8} {"ratio":>7}')
    for r in rows: print(f'{r["classes"]:>7}  {r["input"]:<34} {r["torchmetrics"]:>12.2f} {r["seglab"]:>8.2f} {r["ratio"]:>6.1f}×')
    print(json.dumps(dict(bench='metrics', tiny=a.tiny, batch=B, size_hw=[side, side], rows=rows, date=str(date.today()),
                          machine=machine(), versions=versions('torch', 'opencv-python-headless', 'torchmetrics'))))

if __name__ == '__main__': main()
