"""seglab's two recipes next to the example recipes of smp and transformers: the same photos, net, start weights, CPU time
and scoring. An ablation: what each part of 'auto' buys. And views: what the mirror image and other sizes buy when it answers.

    peers.py --camvid DIR --coco DIR [--parts peers ablation views] [--nets unet segformer] [--only NAME …] [--seconds 90 | --epochs 6] [--seeds 3]
             [--out FILE]

The peers' recipes are written here from what their examples document. Each gets as many epochs as fit into the CPU
seconds given, counted on one thread, its own augmentation and validation included. A tenth of the training photos is what
seglab chooses its best epoch on; the peers train on the same rest and keep their last weights, as their examples do. `--epochs`
gives each row as many steps instead: its parts cost next to nothing. All are scored on other photos, at the photos'
prepared size. Rows go into the JSON file as soon as they are known and predictions into a folder beside it, and what is
there is not run again. A GPU is used where there is one (`--seconds` are then seconds of the clock).
"""
import argparse, json, tempfile, time
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import albumentations as A
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from seglab.answers import photo_facts
from seglab.comparison import Comparison, evaluate, evaluate_masks
from seglab.dataset import SegDataset, ByEpoch, EpochBatches, collate, label_space, train_tfms, valid_tfms
from seglab.files import machine, versions, write_json
from seglab.images import IGNORE, read_mask
from seglab.losses import get_loss
from seglab.masks import prepare
from seglab.recipes import Recipe, auto_recipe, epochs_in
from seglab.train import fit
from seglab.views import with_tta
from seglab.zoo import from_smp

GPU = torch.cuda.is_available()
CLOCK = time.perf_counter if GPU else time.process_time
DEVICE = torch.device('cuda' if GPU else 'cpu')


def shrunk(source, masks, out, size_hw):
    "Photos and index masks at the size of training, as files, so that nobody reads large photos again and again."
    for name, folder in dict(images=source, masks=masks).items():
        (out/name).mkdir(parents=True, exist_ok=True)
        for f in sorted(Path(folder).iterdir()):
            x = cv2.imread(str(f), cv2.IMREAD_UNCHANGED)
            how = cv2.INTER_AREA if name == 'images' else cv2.INTER_NEAREST_EXACT
            cv2.imwrite(str(out/name/f'{f.stem}.png'), cv2.resize(x, size_hw[::-1], interpolation=how))
    return out/'images', out/'masks'


def camvid(root, home):
    "(photos to learn from, photos to score) of CamVid; the latter at their own size."
    root, space = Path(root), label_space('camvid')
    small = shrunk(root/'train', root/'trainannot', home/'camvid', (72, 96))
    return SegDataset.from_folders(*small, space), SegDataset.from_folders(root/'val', root/'valannot', space), (72, 96)


def coco(root, home):
    "The same of a COCO folder, by supercategory, at 256x256 to score; half of the photos for each, since few photos prove little."
    from seglab.fetch import find_coco
    annotations, photos = (list(x) for x in zip(*find_coco(root)))
    big = prepare(annotations, photos, home/'coco', size_hw=256, split=.5).path
    train, test = (SegDataset(big, s, 'supercategories') for s in ('train', 'val'))
    train.tfms = A.Resize(96, 96, interpolation=cv2.INTER_AREA, mask_interpolation=cv2.INTER_NEAREST_EXACT)
    folder = home/'coco96'
    for kind in ('images', 'masks'): (folder/kind).mkdir(parents=True, exist_ok=True)
    for stem, sample in zip(train.stems, (train[i] for i in range(len(train)))):
        cv2.imwrite(str(folder/'images'/f'{stem}.png'), sample['pixel_values'].permute(1, 2, 0).numpy()[..., ::-1])
        cv2.imwrite(str(folder/'masks'/f'{stem}.png'), sample['labels'].numpy())
    return SegDataset.from_folders(folder/'images', folder/'masks', list(train.label_space.names)), test, (96, 96)


def halves(ds, size_hw, tfms=None):
    "(train, the tenth to choose the epoch on); of video, its last tenth."
    n = len(ds) - len(ds)//10
    pair = ds.take(range(n)), ds.take(range(n, len(ds)))
    pair[0].tfms, pair[1].tfms = tfms or train_tfms(size_hw), valid_tfms(size_hw)
    return pair


def net(kind, space, size_hw, seed):
    "U-Net's or SegFormer's decoder on one encoder with ImageNet weights; no others can be had without a hub."
    torch.manual_seed(seed)
    return from_smp(kind, space, 'tu-tf_efficientnet_lite0', 'imagenet', size_hw=size_hw)


def smp_example(size_hw):
    "smp's CamVid example: Adam 2e-4, cosine to 1e-5 over the run, Dice, batches of 32, its chain of augmentations."
    h, w = size_hw
    chain = [A.HorizontalFlip(p=.5), A.Affine(scale=(.5, 1.5), translate_percent=(-.1, .1), fill_mask=IGNORE, p=1),
             A.PadIfNeeded(h, w, fill_mask=IGNORE), A.RandomCrop(h, w), A.GaussNoise(p=.2), A.Perspective(fill_mask=IGNORE, p=.5),
             A.OneOf([A.CLAHE(), A.RandomBrightnessContrast(contrast_limit=0), A.RandomGamma()], p=.9),
             A.OneOf([A.Sharpen(), A.Blur(3), A.MotionBlur(3)], p=.9),
             A.OneOf([A.RandomBrightnessContrast(brightness_limit=0), A.HueSaturationValue()], p=.9)]
    def optim(weights, steps):
        o = torch.optim.Adam(weights, lr=2e-4)
        return o, torch.optim.lr_scheduler.CosineAnnealingLR(o, steps, eta_min=1e-5)
    return Recipe('smp example', batch_size=32, loss='dice'), A.Compose(chain), optim


def transformers_example(size_hw):
    "transformers' example script: AdamW 6e-5 without decay, linear-power polynomial to 0, batches of 8, crop and mirror."
    def optim(weights, steps):
        o = torch.optim.AdamW(weights, lr=6e-5, weight_decay=0)
        return o, torch.optim.lr_scheduler.PolynomialLR(o, steps, power=1)
    chain = [A.PadIfNeeded(*size_hw, fill_mask=IGNORE), A.RandomCrop(*size_hw), A.HorizontalFlip(p=.5)]
    return Recipe('transformers example', batch_size=8), A.Compose(chain), optim


def plain_loop(model, ds, recipe, optim, epochs, seed):
    "The loop of both examples: no validation, the last weights."
    batches, loss = EpochBatches(len(ds), recipe.batch_size, seed), get_loss(recipe.loss).to(DEVICE)
    total = max(1, round(epochs*len(batches)))
    model.to(DEVICE).train()
    model.net.to(memory_format=torch.channels_last)
    optimizer, schedule = optim(model.parameters(), total)
    step = epoch = 0
    while step < total:
        batches.set_epoch(epoch)
        for batch in DataLoader(ByEpoch(ds), batch_sampler=batches, collate_fn=collate):
            if step == total: break
            if len(batch['labels']) == 1: continue
            value = loss(model(batch['pixel_values'].to(DEVICE)), batch['labels'].to(DEVICE))
            optimizer.zero_grad(); value.backward(); optimizer.step(); schedule.step()
            step += 1
        epoch += 1
    return model.eval()


def start(name, kind, ds, size_hw, seed, change=None, augment=None):
    "(model, recipe, (train, val), the peer's optimiser or None), before training."
    model = net(kind, ds.label_space, size_hw, seed)
    peer = {'smp example': smp_example, 'transformers example': transformers_example}.get(name)
    recipe, tfms, optim = peer(size_hw) if peer else (None, None, None)
    data = halves(ds, size_hw, augment(size_hw, ds) if augment else tfms)
    if recipe is None: recipe = Recipe() if name == 'assignment' else auto_recipe(model, data, DEVICE)
    return model, replace(recipe, **change(recipe)) if change else recipe, data, optim


def epochs_of(names, kind, ds, size_hw, seconds):
    "Epochs of each recipe in so many seconds. They are timed in turns, so that a noisy neighbour slows all of them; the median of five."
    starts = {n: start(n, kind, ds, size_hw, 0) for n in names}
    def once(model, recipe, data, optim):
        data = (data[0], []) if optim else data                            # the examples do not validate while they train
        return epochs_in(seconds/60, recipe, model, data, get_loss(recipe.loss), DEVICE, clock=CLOCK)
    rounds = [{n: once(*s) for n, s in starts.items()} for _ in range(5)]
    return {n: median(r[n] for r in rounds) for n in names}


def trained(name, kind, ds, size_hw, seed, epochs, home, *change):
    "A model of one recipe, with what it took."
    model, recipe, data, optim = start(name, kind, ds, size_hw, seed, *change)
    began = CLOCK()
    if optim: model = plain_loop(model, data[0], recipe, optim, epochs, seed)
    else:
        out = Path(tempfile.mkdtemp(dir=home))/'run'
        model = fit(model, data, recipe=replace(recipe, epochs=epochs), seed=seed, precision='fp32', out=out, pictures=0,
                    progress=False, workers=0, save_strategy='no').load()
    return model, dict(epochs=epochs, seconds=round(CLOCK() - began, 1), batch_size=recipe.batch_size)


def rare_first(size_hw, space, ds):
    "A third of the samples are cut out round a pixel of one of the rarer half of the classes, at 1.5 times the size."
    from seglab.own import class_counts
    counts = class_counts(ds)[:-1]
    common = [int(k) for k in np.argsort(-counts)[:(counts > 0).sum()//2]] + [IGNORE]
    h, w = size_hw
    cut = A.CropNonEmptyMaskIfExists(round(h/1.5), round(w/1.5), ignore_values=common)
    back = A.Resize(h, w, interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST_EXACT)
    return A.Compose([A.Sequential([cut, back], p=1/3), *train_tfms(size_hw).transforms])


# what is left out of 'auto', or put into it: name -> (change of the recipe, augmentation)
PARTS = {'auto': (None, None),
         'a cosine down to 0': (lambda r: dict(schedule='cosine'), None),
         'with a moving average': (lambda r: dict(ema=.97), None),
         'one rate for all weights': (lambda r: dict(lr=max(r.lr.values())/2), None),
         'with decay of norms and biases': (lambda r: dict(decay_norms=True), None),
         'without clipping': (lambda r: dict(clip=0.), None),
         'cross-entropy alone': (lambda r: dict(loss='ce'), None),
         'kept by validation loss': (lambda r: dict(keep_best='loss'), None),
         'zoom from 0.5 to 2': (None, lambda size, ds: train_tfms(size, (.5, 2.))),
         'zoom from 0.9 to 1.6': (None, lambda size, ds: train_tfms(size, (.9, 1.6))),
         'a third round rare classes': (None, lambda size, ds: rare_first(size, ds.label_space, ds))}


# the same models, asked otherwise: name -> sizes at which they see the photo and its mirror image
VIEWS = {'auto': None, 'auto + mirror image': (1,), 'auto + mirror image, three sizes': (.75, 1, 1.25)}


def row(what, name, kind, sets, size_hw, seed, epochs, home, kept, ready, *change):
    "Train, score once, and keep the predictions; models of `ready` are not trained again to see other views."
    ds, test = sets
    again = what == 'views' and ready.get(seed)
    model, took = again or trained('auto' if what == 'views' else name, kind, ds, size_hw, seed, epochs, home, *change)
    if name == 'auto': ready[seed] = model, took
    if what == 'views' and VIEWS[name]: model = with_tta(model, VIEWS[name])
    test.tfms = None
    e = evaluate(model, test, batch_size=1, out=kept)
    return dict(part=what, recipe=name, net=kind, seed=seed, mean_iou=e.scores['mean_iou'], **took)

def scored(test, kept):
    "Counts of the predictions kept in a folder."
    truths = ((stem, test[i]['labels'].numpy()) for i, stem in enumerate(photo_facts(test)[0]))
    return evaluate_masks(((stem, read_mask(kept/f'{stem}.png'), truth) for stem, truth in truths), test.label_space)


def differences(data, kind, found, seeds):
    "Every recipe against 'auto', for new photos and new runs; of views, each model for itself. Not for CamVid: one clip."
    for (what, name), runs in found.items():
        auto = found.get((what, 'auto'), [])
        if name == 'auto' or not len(runs) == len(auto) == seeds: continue
        for seed, (a, b) in enumerate(zip(auto, runs)) if what == 'views' else [(None, (auto, runs))]:
            d = Comparison({'auto': a, name: b}).differences[0]
            yield dict(data=data, net=kind, part=what, recipe=name, seed=seed, difference=d.difference, low=d.low, high=d.high, better=d.better)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--camvid'); p.add_argument('--coco')
    p.add_argument('--parts', nargs='+', default=['peers', 'ablation', 'views']); p.add_argument('--nets', nargs='+', default=['unet', 'segformer'])
    p.add_argument('--only', nargs='+', help='recipes or parts by name')
    p.add_argument('--seconds', type=float, default=90); p.add_argument('--epochs', type=float, help='of each row, instead of seconds'); p.add_argument('--seeds', type=int, default=3); p.add_argument('--out', default='peers.json')
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    length = dict(asked_epochs=a.epochs) if a.epochs else dict(asked_seconds=a.seconds)
    done = json.loads(Path(a.out).read_text()) if Path(a.out).exists() else dict(rows=[])
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        for data, load, root in (('camvid', camvid, a.camvid), ('coco', coco, a.coco)):
            if not root: continue
            *sets, size_hw = load(root, home)
            for kind in a.nets:
                jobs = [('peers', n) for n in ('assignment', 'smp example' if kind == 'unet' else 'transformers example', 'auto') if not a.only or n in a.only] * ('peers' in a.parts)
                jobs += [('ablation', n, *c) for n, c in PARTS.items() if not a.only or n in a.only] * ('ablation' in a.parts and kind == 'unet')
                jobs += [('views', n) for n in VIEWS if not a.only or n in a.only] * ('views' in a.parts)
                found, ready, lengths, masks = {}, {}, {}, Path(a.out).with_suffix('.masks')
                for seed in range(a.seeds):
                    for what, name, *change in jobs:
                        key = dict(data=data, part=what, recipe=name, net=kind, seed=seed, **length)
                        kept = masks/f'{data} {kind} {what} {name} {seed} {a.epochs or a.seconds:g}'
                        if not any(key.items() <= r.items() for r in done['rows']):
                            if not (a.epochs or lengths): lengths = epochs_of({'auto', *(n for w, n, *_ in jobs if w == 'peers')}, kind, sets[0], size_hw, a.seconds)
                            epochs = a.epochs or lengths.get(name, lengths['auto'])
                            done['rows'].append(key | row(what, name, kind, sets, size_hw, seed, epochs, home, kept, ready, *change))
                            done |= dict(machine=machine(DEVICE), threads=1, versions=versions(), date=str(date.today()))
                            write_json(Path(a.out), done)
                            print(json.dumps(done['rows'][-1]), flush=True)
                        sets[1].tfms = None
                        found.setdefault((what, name), []).append(scored(sets[1], kept))
                if data == 'camvid': continue
                new = [length | r for r in differences(data, kind, found, a.seeds)]
                same = lambda r: tuple(r[k] for k in ('data', 'net', 'part', 'recipe', 'seed', *length) if k in r)
                done['differences'] = [r for r in done.get('differences', []) if same(r) not in map(same, new)] + new
                write_json(Path(a.out), done)


if __name__ == '__main__': main()
