"""Does the planner hold? Pilots are drawn from populations whose truth is known, and it is measured what its answers are worth.

    plan.py [--parts power curve claim] [--pilots 200] [--repeats 40] [--sets 60] [--out FILE]

power: 200 pilots ask for the photos that find the true difference in 80 of 100 cases; how often is it found with so many?
curve: a learning curve on drawn scenes, and then the score with twice the data: how often does it lie in the interval?
claim: drawn scenes, two equal recipes, three trainings each, compared: how often is one called better?
"""
import argparse, json, runpy
from datetime import datetime, timezone
from pathlib import Path
import numpy as np
from seglab.comparison import Comparison, Evaluation
from seglab.dataset import LabelSpace
from seglab.files import machine, write_json
from seglab.intervals import spread
from seglab.metrics import confusion_matrix, scores
from seglab.plan import PILOT_MARGIN, LearningCurve, nested_shares, photos_needed, redrawn_errors
from seglab.sample import draw_scene

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

class Scenes:
    "Drawn scenes without end, small; the classes are the background and whatever lies on it."
    size = 32
    def __init__(self, n, seed):
        scenes = [draw_scene(i, seed, (40, 40)) for i in range(n)]
        self.images = np.stack([s.image[:self.size, :self.size] for s in scenes]).astype(np.float32) / 255           # (n,32,32,3)
        masks = np.stack([s.mask[:self.size, :self.size] for s in scenes])
        self.masks = np.where(masks == 255, 255, masks > 0).astype(np.uint8)                                         # crowds are ignored

class Learner:
    "A net of one random hidden layer over patches of 5x5 pixels; its last layer is solved, so that it learns in milliseconds."
    features, decay = 160, 1e-4
    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.w, self.b = rng.normal(0, .6, (75, self.features)).astype(np.float32), rng.uniform(0, 2*np.pi, self.features).astype(np.float32)

    def look(self, images):
        "(n,pixels,features)"
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
        patches = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2)).reshape(len(images), -1, 75)
        return np.cos(patches @ self.w + self.b)

    def sums(self, data):
        "What each photo adds to the normal equations."
        x = self.look(data.images)
        hot = np.eye(256, 2, dtype=np.float32)[data.masks.reshape(len(x), -1)]                                       # 255 is no class
        return x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ hot

    def answer(self, sums, rows, seen):
        "Trained on these photos, what it says of others: (n,32,32)."
        a, b = (s[rows].sum(0) for s in sums)
        last = np.linalg.solve(a + self.decay * np.trace(a) / len(a) * np.eye(len(a)), b)
        return (seen @ last).argmax(2).reshape(len(seen), Scenes.size, -1).astype(np.uint8)

def score(pred, masks):
    "Mean IoU of a set."
    return scores(sum(np.asarray(confusion_matrix(p, t, 2)) for p, t in zip(pred, masks)))['mean_iou']

def one_curve(repeat, n=32, runs=3, photos=40):
    "A learning curve, and what twice the data then brought."
    train, val = Scenes(2 * n, 1_000 + repeat), Scenes(photos, 9_000 + repeat)
    found, twice = {}, []
    for seed in range(runs):
        model = Learner(1_000 * repeat + seed)
        sums, seen = model.sums(train), model.look(val.images)
        for part in nested_shares(list(range(n)), seed=seed): found.setdefault(len(part), []).append(score(model.answer(sums, part, seen), val.masks))
        twice.append(score(model.answer(sums, np.arange(2 * n), seen), val.masks))
    return LearningCurve(found), float(np.mean(twice))

def curves(repeats):
    "How often the measured score with twice the data lies in the interval."
    held, off, width, gain = [], [], [], []
    for r in range(repeats):
        curve, twice = one_curve(r)
        value, low, high = curve.at(2)
        held.append(low <= twice <= high); off.append(twice - value); width.append(high - low)
        gain.append(twice - np.mean(curve.scores[curve.most]))
    return dict(learner=Learner.__doc__, scenes=32, twice=64, runs=3, repeats=repeats, held=float(np.mean(held)), median_width=float(np.median(width)),
                mean_error=float(np.mean(off)), mean_gain=float(np.mean(gain)))

def claim(sets, photos=40, train=24, runs=3):
    "How often one of two equal recipes is called better: by three runs each, and by one each."
    space, said, single = LabelSpace.from_names(['background', 'thing']), 0, 0
    for s in range(sets):
        data, val = Scenes(train, 20_000 + s), Scenes(photos, 50_000 + s)
        def run(name, seed):
            e, model = Evaluation(space, name, boundary=False), Learner(seed)
            pred = model.answer(model.sums(data), np.arange(train), model.look(val.images))
            for i, (p, t) in enumerate(zip(pred, val.masks)): e.add(f'{i:03d}', p, t)
            return e
        both = {n: [run(n, 100 * s + 10 * k + r) for r in range(runs)] for k, n in enumerate('ab')}
        said += Comparison(both, n_boot=300).differences[0].better is not None
        single += Comparison({n: r[0] for n, r in both.items()}, n_boot=300).differences[0].better is not None
    return dict(learner=Learner.__doc__, sets=sets, photos=photos, training_scenes=train, runs=runs, better=said / sets, better_by_one_run=single / sets)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--parts', nargs='+', choices=('power', 'curve', 'claim'), default=['power', 'curve', 'claim'])
    p.add_argument('--pilots', type=int, default=200)
    p.add_argument('--repeats', type=int, default=40)
    p.add_argument('--sets', type=int, default=60)
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
