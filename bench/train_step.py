#!/usr/bin/env python
"""What a training step costs: the plain loop, the same loop with a faster number format, and `fit`, interleaved in one run.

    python bench/train_step.py                  # U-Net (resnet34) and SegFormer-B0, 256x256, 81 classes, batch 4
    python bench/train_step.py --tiny           # seconds; proves that it works
    python bench/train_step.py --models unet --batch 32 --workers 8
    python bench/train_step.py --cpu_time       # on a CPU that others use too: counts the process's own time, not the clock's

Every variant starts from the same weights and sees the same batches. Rounds go through all variants in turn, so that a
noisy neighbour hits them alike; the table shows medians, and ratios to the plain loop of the same round.
`wait` is the share of the time the loop waits for its next batch; `rate` the model's FLOPs (three times forward) over what
one large matrix product reaches on this device in the same number format.
"""
import argparse, contextlib, json, os, shutil, statistics, tempfile, time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import numpy as np, torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


class Random(Dataset):
    "Photos and masks kept in memory, so that the step is what is timed; a class every few pixels."
    def __init__(self, n, size_hw, label_space, seed=0):
        g = np.random.default_rng(seed)
        self.label_space, self.stems = label_space, [str(i) for i in range(n)]
        self.x = torch.from_numpy(g.integers(0, 256, (n, *size_hw, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
        small = g.integers(0, label_space.num_labels, (n, -(-size_hw[0]//8), -(-size_hw[1]//8)), dtype=np.uint8)
        self.y = torch.from_numpy(small.repeat(8, 1).repeat(8, 2)[:, :size_hw[0], :size_hw[1]].copy())

    def __len__(self): return len(self.x)
    def __getitem__(self, i): return dict(pixel_values=self.x[i], labels=self.y[i])


def build(name, label_space, tiny):
    "A net with random weights, the same at each call."
    from seglab.segformer import build_segformer
    from seglab.unet import build_unet
    torch.manual_seed(0)
    if name == 'unet': return build_unet(label_space, 'resnet18' if tiny else 'resnet34', None)
    if name == 'segformer': return build_segformer(label_space, 'b0', None)
    from seglab.zoo import build_model
    return build_model(name, label_space, None)


def sync(device):
    if device.type == 'cuda': torch.cuda.synchronize()


def clock_of(a): return time.process_time if getattr(a, 'cpu_time', False) else time.perf_counter


def plain(net, x):
    "Logits at the size of photos that the data set has normalised, as the tutorials do it."
    y = net(x)
    y = getattr(y, 'logits', y)
    return y if y.shape[-2:] == x.shape[-2:] else F.interpolate(y, x.shape[-2:], mode='bilinear', align_corners=False)


def loop(seg, data, a, device, bf16=False, channels_last=False, compiled=False):
    "The loop of chapter 02. Returns seconds per step and the share spent waiting for data, first steps left out."
    from seglab.dataset import collate
    seg = seg.to(device).train()
    if channels_last: seg.net.to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(seg.parameters(), lr=5e-5, fused=device.type == 'cuda' or None)
    net = torch.compile(seg) if compiled else seg
    loader = DataLoader(data, a.batch, num_workers=a.workers, collate_fn=collate if channels_last else None,
                        pin_memory=device.type == 'cuda')
    times, waits, it, clock = [], [], iter(loader), clock_of(a)
    for step in range(a.warmup + a.steps):
        sync(device); t0 = clock()
        batch = {k: v.to(device, non_blocking=True) for k, v in next(it).items()}
        t1 = clock()
        x = batch['pixel_values']
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16): logits = net(x) if x.dtype == torch.uint8 else plain(seg.net, x)
        loss = F.cross_entropy(logits, batch['labels'].long(), ignore_index=255)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sync(device)
        if step >= a.warmup: times.append(clock() - t0); waits.append(t1 - t0)
    return statistics.median(times), sum(waits) / sum(times)


def fitted(seg, data, a, device, **kw):
    "The same steps by `fit`, from the rows of its history: the first row holds the warm-up."
    from seglab import train, trainer
    fake = SimpleNamespace(perf_counter=clock_of(a), monotonic=time.monotonic, sleep=time.sleep)
    out = Path(tempfile.mkdtemp(prefix='seglab-bench-'))
    try:
        with mock.patch.object(trainer, 'time', fake) if clock_of(a) is time.process_time else contextlib.nullcontext():
            run = train.fit(seg, (data, data), epochs=1, batch_size=a.batch, recipe='assignment', out=out/'run', workers=a.workers, pictures=0, progress=False,
                            max_steps=a.warmup + a.steps, logging_steps=max(1, a.warmup), eval_strategy='no', save_strategy='no', **kw)
        h = run.history.dropna(subset=['train_loss']).iloc[1:]
        return a.batch / h.images_per_second.median(), h.data_wait.median()
    finally: shutil.rmtree(out, ignore_errors=True)


def _has_bf16(device):
    "Does this device multiply bf16 itself? None where the system does not tell."
    if device.type == 'cuda': return torch.cuda.is_bf16_supported()
    try: flags = set(Path('/proc/cpuinfo').read_text().split())
    except OSError: return None
    return bool(flags & {'avx512_bf16', 'amx_bf16', 'bf16'})


def matrix_rate(device, dtype, n):
    "FLOP/s of one n×n matrix product, best of five."
    x = torch.randn(n, n, device=device).to(dtype)
    best = 1e9
    for _ in range(6):
        sync(device); t = time.perf_counter()
        x @ x
        sync(device); best = min(best, time.perf_counter() - t)
    return 2 * n**3 / best


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--models', nargs='+', default=['unet', 'segformer'], help='unet, segformer, any smp or transformers name')
    p.add_argument('--size', type=int, default=256, help='side of the photos')
    p.add_argument('--classes', type=int, default=81)
    p.add_argument('--batch', type=int, default=4)
    p.add_argument('--steps', type=int, default=10, help='timed steps per round')
    p.add_argument('--warmup', type=int, default=2, help='steps before the clock starts, per round')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--workers', type=int, default=0)
    p.add_argument('--compile', action='store_true', help='add rows with torch.compile')
    p.add_argument('--cpu_time', action='store_true', help="time is the process's own (user and system), for a machine that is not idle; no GPU, no workers")
    p.add_argument('--tiny', action='store_true', help='64 px, 5 classes, one round of three steps')
    p.add_argument('--json', help='also write the JSON line to this file')
    a = p.parse_args()
    if a.tiny: a.size, a.classes, a.batch, a.steps, a.warmup, a.rounds = 64, 5, 2, 3, 1, 1
    if a.cpu_time and (torch.cuda.is_available() or a.workers): p.error('--cpu_time is for a CPU without workers')
    from seglab.dataset import LabelSpace
    from seglab.files import machine, versions
    from seglab.model import count_flops
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    space = LabelSpace.from_names([f'c{i}' for i in range(a.classes)])
    data = Random((a.warmup + a.steps) * a.batch, (a.size, a.size), space)
    rates = {d: matrix_rate(device, d, 256 if a.tiny else 2048 if device.type == 'cpu' else 8192) for d in (torch.float32, torch.bfloat16)}
    result = dict(what='train_step', machine=machine(device),
                  cpu=torch.backends.cpu.get_cpu_capability(), threads=torch.get_num_threads(), date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
                  versions=versions('torch', 'transformers'), size=a.size, classes=a.classes, batch=a.batch,
                  workers=a.workers, clock='process' if a.cpu_time else 'wall', bf16_in_hardware=_has_bf16(device), rounds=a.rounds, steps=a.steps, matrix_gflops={str(k)[6:]: round(v/1e9, 1) for k, v in rates.items()}, rows=[])
    for name in a.models:
        flops = 3 * count_flops(build(name, space, a.tiny), (a.size, a.size))
        variants = {'loop fp32': (loop, {}), 'fit fp32': (fitted, dict(precision='fp32')), 'loop fp32 channels_last': (loop, dict(channels_last=True)),
                    'loop bf16': (loop, dict(bf16=True)), 'loop bf16 channels_last': (loop, dict(bf16=True, channels_last=True)),
                    'fit bf16': (fitted, dict(precision='bf16'))}
        if a.compile: variants |= {'loop bf16 channels_last compiled': (loop, dict(bf16=True, channels_last=True, compiled=True)),
                                   'fit bf16 compiled': (fitted, dict(precision='bf16', compile=True))}
        took = {v: [] for v in variants}
        for _ in range(a.rounds):
            for v, (f, kw) in variants.items(): took[v].append(f(build(name, space, a.tiny), data, a, device, **kw))
        print(f'\n{name}: {a.size}×{a.size}, {a.classes} classes, batch {a.batch}, {flops/1e9:.1f} GFLOP per image and step, {result["machine"]}')
        print(f'{"":34}{"ms/step":>9}{"images/s":>10}{"× plain":>9}{"× its loop":>11}{"wait":>7}{"rate":>7}')
        for v, ts in took.items():
            sec = statistics.median(t for t, _ in ts)
            plain = statistics.median(p[0] / t[0] for p, t in zip(took['loop fp32'], ts))
            twin = {'fit fp32': 'loop fp32 channels_last', 'fit bf16': 'loop bf16 channels_last',
                    'fit bf16 compiled': 'loop bf16 channels_last compiled'}.get(v)
            same = statistics.median(p[0] / t[0] for p, t in zip(took[twin], ts)) if twin else None
            rate = flops * a.batch / sec / rates[torch.bfloat16 if 'bf16' in v else torch.float32]
            row = dict(model=name, variant=v, ms=round(sec*1e3, 2), images_per_second=round(a.batch/sec, 2), ratio=round(plain, 3),
                       ratio_to_same_loop=same and round(same, 3), wait=round(statistics.median(w for _, w in ts), 4), matrix_share=round(rate, 4))
            result['rows'].append(row)
            print(f'{v:34}{row["ms"]:>9}{row["images_per_second"]:>10}{plain:>9.2f}{f"{same:.2f}" if same else "":>11}{row["wait"]:>7.1%}{rate:>7.1%}')
    line = json.dumps(result)
    print('\n' + line)
    if a.json: Path(a.json).write_text(line + '\n')


if __name__ == '__main__': main()
