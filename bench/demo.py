#!/usr/bin/env python
"""Run `seglab demo` once and keep what the front page shows: nbs/results/demo.json and demo.png.

    python bench/demo.py                some minutes; on a machine that does nothing else, or the times are not shown
    python bench/demo.py --out DIR      keep the demo's folder; what is finished there is not done again
"""
import argparse, inspect, io, json, os, tempfile, textwrap, time
from pathlib import Path
import cv2, numpy as np, PIL.Image
import matplotlib.pyplot as plt
import seglab
from seglab.demo import demo
from seglab.files import write_json

RESULTS = Path(__file__).resolve().parents[1]/'nbs'/'results'
NAMES = dict(unet='U-Net', segformer='SegFormer')

def record_demo(out):
    "Run the demo once and keep its numbers."
    load, start = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0, time.perf_counter()
    demo(out)
    seconds = time.perf_counter() - start
    d = json.loads((out/'report/scores.json').read_text())
    runs = {name: [seglab.Run(p) for p in sorted((out/'runs').glob(f'{name}-*'))] for name in d['models']}
    counted = [sum(row) for row in d['models']['unet']['confusion_matrix']]
    kept = dict(models={name: dict(mean_iou=m['mean_iou'], low=m['mean_iou_interval'][0], high=m['mean_iou_interval'][1],
                                   parameters=m['cost']['parameters'], latency_ms=m['cost']['latency_ms'],
                                   train_seconds=sum(r.config['finished']['seconds'] for r in runs[name]),
                                   predictions=m['predictions']) for name, m in d['models'].items()},
                background=dict(mean_iou=counted[0]/sum(counted)/len(counted)), verdict=d['verdicts'][0], size_hw=d['models']['unet']['cost']['size_hw'],
                epochs=inspect.signature(demo).parameters['epochs'].default, seeds=inspect.signature(demo).parameters['seeds'].default,
                images={k: int((seglab.Prepared(out/'processed').index.split == k).sum()) for k in ('train', 'val')},
                device=d['models']['unet']['cost']['device'], date=d['date'][:10], seconds=seconds, load=round(load, 2), versions=d['versions'])
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS/'demo.json', kept)
    return d, kept

def grey(photo):
    "A quiet version of a photo, for a mask to lie on."
    g = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return (128 + g*.42).astype('uint8')

def read(path): return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

def iou(mask, truth):
    "IoU of the objects in a mask of two classes."
    m, t = mask[truth != 255] == 1, truth[truth != 255] == 1
    return (m & t).sum()/max((m | t).sum(), 1)

def outlines(out, index, side):
    "{stem: the outlines of its annotations as (N,2) arrays at the size of the picture}."
    coco = json.loads(next((out/'raw/annotations').glob('*.json')).read_text())
    images = {i['id']: i for i in coco['images']}
    stems, found = dict(zip(index.file_name, index.stem)), {}
    for a in coco['annotations']:
        image = images[a['image_id']]
        if not isinstance(a['segmentation'], list): continue
        scale = side/np.array([image['width'], image['height']])
        found.setdefault(stems.get(image['file_name']), []).extend(np.array(ring).reshape(-1, 2)*scale for ring in a['segmentation'])
    return found

def typical(out, models, n):
    "Photos on which both models do about as well as on all of them: the picture shall not flatter."
    truths = {p.stem: read(p) for p in sorted((out/'report/truth').glob('*.png'))}
    score = {s: np.array([iou(read(out/'report'/folder/f'{s}.png'), t) for folder in models.values()]) for s, t in truths.items() if (t == 1).mean() > .08}
    middle = np.median(list(score.values()), 0)
    return sorted(score, key=lambda s: np.abs(score[s] - middle).max())[:n]

def draw_row(axs, out, stem, rings, models, colors):
    "Photo with outlines, truth and predictions."
    photo, truth = seglab.images.read_image(next((out/'processed/images').glob(stem + '.*'))), read(out/f'report/truth/{stem}.png')
    axs[0].imshow(photo)
    for ring in rings:
        axs[0].fill(*ring.T, facecolor='none', edgecolor='white', lw=2.6)
        axs[0].fill(*ring.T, facecolor='none', edgecolor='#d81b60', lw=1.4)
    masks = [truth] + [read(out/'report'/folder/f'{stem}.png') for folder in models.values()]
    for ax, mask, m in zip(axs[1:], masks, (None, *models)):
        ax.imshow(seglab.overlay(grey(photo), mask, alpha=.8, colors=colors))
        if m: ax.text(3, 4, f'IoU {iou(mask, truth):.2f}', fontsize=10, va='top', bbox=dict(facecolor='white', edgecolor='none', alpha=.85, pad=2))
    for ax in axs: ax.set(xlim=(-.5, photo.shape[1] - .5), ylim=(photo.shape[0] - .5, -.5)); ax.set_axis_off()

def draw_verdict(ax, kept):
    "A bar with its interval for each model, and what may be said."
    for y, (name, m) in enumerate(kept['models'].items()):
        ax.barh(y, m['mean_iou'], color=('#0b62a8', '#7fb0e0')[y], height=.62)
        ax.plot([m['low'], m['high']], [y, y], color='black', lw=1.6, marker='|', ms=8)
        ax.text(.012, y, f"{NAMES[name]}  {m['mean_iou']:.2f}", va='center', fontsize=11, color='white' if y == 0 else 'black', weight='bold')
    ax.axvline(kept['background']['mean_iou'], color='#6b6b6b', ls=':', lw=1.2)
    ax.text(kept['background']['mean_iou'], -.55, ' background everywhere', fontsize=8, color='#555555', va='bottom')
    ax.set(xlim=(0, 1), ylim=(1.5, -.75), yticks=[], xticks=[0, .25, .5, .75, 1])
    ax.tick_params(labelsize=8)
    for side in ('top', 'right', 'left'): ax.spines[side].set_visible(False)
    said = kept['verdict']
    for k, v in NAMES.items(): said = said.replace(k, v)
    ax.set_xlabel(textwrap.fill(said.rstrip('.'), 100), fontsize=10, labelpad=4)

def draw_demo(out, d, kept, n=2, path=RESULTS/'demo.png'):
    "The road: outlines, mask, two predictions, verdict."
    models, index = {n: m['predictions'] for n, m in d['models'].items()}, seglab.Prepared(out/'processed').index
    stems, side = typical(out, models, n), kept['size_hw'][0]
    rings, colors = outlines(out, index, side), seglab.palette().copy()
    colors[1], colors[255] = (255, 96, 56), (250, 214, 90)
    fig = plt.figure(figsize=(9, 2.28*n + 2.3))
    top = fig.add_gridspec(n, 4, left=0, right=1, top=1 - .32/fig.get_figheight(), bottom=2.15/fig.get_figheight(), wspace=.03, hspace=.03)
    for r, stem in enumerate(stems):
        axs = [fig.add_subplot(top[r, c]) for c in range(4)]
        draw_row(axs, out, stem, rings.get(stem, []), models, colors)
        if r == 0:
            for ax, title in zip(axs, ('COCO outlines', '→  mask', *(f'→  {NAMES[m]}' for m in models))): ax.set_title(title, fontsize=13)
    draw_verdict(fig.add_axes((.05, .88/fig.get_figheight(), .9, 1.12/fig.get_figheight())), kept)
    fig.savefig(buffer := io.BytesIO(), dpi=100)
    plt.close(fig)
    PIL.Image.open(buffer).convert('RGB').quantize(160, dither=0).save(path, optimize=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, help='where the demo works [a temporary folder]')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        out = a.out or Path(tmp)/'demo'
        draw_demo(out, *record_demo(out))
