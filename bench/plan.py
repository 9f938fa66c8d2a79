"""Does the planner hold? Pilots are drawn from populations whose truth is known, and it is measured what its answers are worth.

    plan.py [--parts power curve claim] [--pilots 200] [--repeats 40] [--sets 100] [--out FILE]

power: 200 pilots ask for the photos that find the true difference in 80 of 100 cases; how often is it found with so many?
curve: a learning curve of a small net on drawn scenes, and then the score with twice the data: how often does it lie in the interval?
claim: the whole chain, drawn scenes, `prepare`, two equal recipes, three trainings each by `fit`, `compare`: how often is one called better?
"""
import argparse, json, runpy, tempfile
from datetime import datetime, timezone
from pathlib import Path
import numpy as np
import torch
from torch import nn
from seglab.comparison import compare
from seglab.dataset import SegDataset, train_tfms, valid_tfms
from seglab.files import machine, write_json
from seglab.intervals import spread
from seglab.masks import prepare
from seglab.model import Segmenter
from seglab.plan import PILOT_MARGIN, learning_curve, photos_needed, redrawn_errors
from seglab.sample import make_sample
from seglab.train import fit

simulation = runpy.run_path(str(Path(__file__).resolve().parent/'intervals.py'))
Population, looked_at = simulation['Population'], simulation['looked_at']

def drawn(pop, n, rng, size=6):
    "Photos of a population, and the unit of each: n photos, or n of its groups with a few photos each."
    if len(np.unique(pop.group)) == pop.n: return rng.integers(pop.n, size=n), np.arange(n)
    order, first = pop.order
    chosen = rng.choice(len(first) - 1, n)
    rows = [order[first[g]:first[g + 1]][:size] for g in chosen]
    return np.concatenate(rows), np.repeat(np.arange(n), [len(r) for r in rows])

def population(groups):
    "Four common classes, one model better than the other, by half a standard deviation of a photo's noise at most."
    pop = Population([1, .9, .8, .7], n=40_000, gap=.08, groups=groups, share=.3 if groups else 0, seed=6)
    order = np.argsort(pop.group, kind='stable')
    pop.order = order, np.searchsorted(pop.group[order], np.arange((groups or 0) + 1))
    return pop

def power(pilots, draws=60, at=(.3, .5, .75, 1, 1.4, 2, 3), tries=200):
    "What a planned number of photos, or groups, finds."
    for groups, n in ((0, 30), (2_000, 15)):
        pop, rng, found = population(groups), np.random.default_rng(1), []
        truth = np.diff(pop.truth(np.ones(4, bool)))[0]
        def error(rows, unit): return spread(pop.tables(rows), [-1, 1], unit, 4)[0]
        for _ in range(pilots):
            rows, unit = drawn(pop, n, rng)
            found.append((PILOT_MARGIN * photos_needed(error(rows, unit), [], n, truth), rows, unit))
        needed = np.array([f[0] for f in found])
        sizes, shown = np.unique((np.median(needed) * np.array(at)).round().astype(int)), []
        for m in sizes: shown.append(np.mean([better(pop, *drawn(pop, m, rng)) for _ in range(tries)]))
        reached = np.interp(needed, sizes, shown)
        true = np.interp(.8, np.maximum.accumulate(shown), sizes)
        inside = []
        for m, rows, unit in found[:draws // 2]:
            ratio = redrawn_errors(pop.tables(rows), [-1, 1], unit, 4, draws) / error(rows, unit).error
            low, high = m * np.quantile(ratio, [.05, .95])**2
            inside.append(bool(low <= true <= high))
        yield dict(unit='groups' if groups else 'photos', pilot=n, pilots=pilots, difference=float(truth), needed=np.quantile(needed, [.05, .5, .95]).tolist(),
                   power=dict(zip(('low', 'median', 'high'), np.quantile(reached, [.1, .5, .9]).tolist())), truly_needed=float(true),
                   interval_holds=float(np.mean(inside)), intervals=len(inside), curve=dict(zip(map(str, sizes.tolist()), map(float, shown))))

def better(pop, rows, unit):
    "Is the better model found?"
    _, (low, _), _ = looked_at(pop, rows, unit, n_boot=60)[1]
    return low > 0

def drawn_pair(home, seed, train, val, size=32):
    "Freshly drawn scenes, prepared: `train` of them to learn from and `val` to score."
    make_sample(home/'raw', n=train + val, seed=seed, size_hw=(3*size//2, 3*size//2))
    all_ = SegDataset(prepare(home/'raw/annotations/instances_sample.json', home/'raw/sample', home/'data', size_hw=size, split='all', workers=1), 'all', 'things')
    pair = all_.take(range(train)), all_.take(range(train, train + val))
    pair[0].tfms, pair[1].tfms = train_tfms((size, size)), valid_tfms((size, size))
    return pair

LEARNER = 'A net of three convolutions, 15,000 weights, trained by `fit` with lr 3e-3, a cosine and batches of 8 on drawn scenes of 32x32 pixels, object against background.'

def tiny():
    "The net."
    def layer(a, b, **how): return nn.Conv2d(a, b, 3, **how), nn.BatchNorm2d(b), nn.ReLU()
    return nn.Sequential(*layer(3, 16, padding=1), *layer(16, 32, stride=2, padding=1), *layer(32, 32, padding=2, dilation=2), nn.Conv2d(32, 8, 1), nn.PixelShuffle(2))

HOW = dict(recipe='assignment', epochs=24., lr=3e-3, batch_size=8, lr_scheduler_type='cosine', workers=0, pictures=0, progress=False,
           save_strategy='no')

def builder(pair, repeat):
    "A function that builds the net for `fit`; the same seed begins elsewhere in each repeat, since some beginnings are luckier than others."
    def build():
        torch.manual_seed(1_000 * repeat + torch.initial_seed())
        return Segmenter(tiny(), pair[1].label_space)
    return build

def one_curve(repeat, home, n=32, runs=3, val=40):
    "A learning curve, and what twice the data then brought in as many steps."
    big = drawn_pair(home, 1_000 + repeat, 2*n, val)
    build = builder(big, repeat)
    curve = learning_curve(build, (big[0].take(range(n)), big[1]), home/'curve', seeds=runs, **HOW)
    twice = [fit(build, big, out=home/f'twice{s}', seed=s, **HOW | dict(epochs=HOW['epochs']/2)) for s in range(10, 10 + runs)]
    return curve, float(np.mean([r.scores['mean_iou'] for r in twice]))

def curves(repeats):
    "How often the measured score with twice the data lies in the interval."
    rows = []
    for r in range(repeats):
        with tempfile.TemporaryDirectory() as home: curve, twice = one_curve(r, Path(home))
        value, low, high = curve.at(2)
        rows.append((low <= twice <= high, high - low, twice - value, twice - np.mean(curve.scores[curve.most])))
    held, width, off, gain = np.array(rows, float).T
    return dict(learner=LEARNER, scenes=32, twice=64, runs=3, repeats=repeats, held=float(held.mean()), median_width=float(np.median(width)),
                mean_error=float(off.mean()), sd_error=float(off.std()), mean_gain=float(gain.mean()))

def claim(sets, photos=40, train=24, runs=3):
    "How often one of two equal recipes is called better: by three runs each, and by one each."
    said = single = 0
    for s in range(sets):
        with tempfile.TemporaryDirectory() as home:
            home, models = Path(home), {}
            pair = drawn_pair(home, 20_000 + s, train, photos)
            for k, name in enumerate('ab'):
                for seed in range(10*k, 10*k + runs):
                    models.setdefault(name, []).append(fit(builder(pair, s), pair, out=home/f'{name}{seed}', seed=seed, **HOW).load(net=tiny()))
            how = dict(data=pair, progress=False, measure=False, n_boot=300)
            said += compare(models, **how).differences[0].better is not None
            single += compare({n: m[0] for n, m in models.items()}, **how).differences[0].better is not None
    return dict(learner=LEARNER, sets=sets, photos=photos, training_scenes=train, runs=runs, better=said / sets, better_by_one_run=single / sets)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--parts', nargs='+', choices=('power', 'curve', 'claim'), default=['power', 'curve', 'claim'])
    p.add_argument('--pilots', type=int, default=200)
    p.add_argument('--repeats', type=int, default=40)
    p.add_argument('--sets', type=int, default=100)
    p.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[1]/'nbs/results/plan.json')
    a = p.parse_args()
    todo = dict(power=lambda: list(power(a.pilots)), curve=lambda: curves(a.repeats), claim=lambda: claim(a.sets))
    for part in a.parts:
        found = todo[part]()
        print(part, found, flush=True)
        kept = json.loads(a.out.read_text()) if a.out.exists() else {}
        now = datetime.now(timezone.utc).isoformat(timespec='seconds')
        write_json(a.out, kept | dict(date=now, machine=machine()) | {part: found})

if __name__ == '__main__': main()
