"""Do the intervals hold? Photos are drawn from populations whose true scores are known, and it is counted how often an
interval holds the truth, how often the estimate lies in it, and how often equal models are called different.

    intervals.py [--parts inside coverage equal several groups] [--photos 10 30]
                 [--sets 2000] [--inside 2000] [--draws 2000] [--out FILE]

Each row goes into the JSON file as soon as it is known; the parts of an earlier run that are not asked for stay.
"""
import argparse, json
from datetime import datetime, timezone
from pathlib import Path
import numpy as np
from seglab.comparison import bootstrap_ious, verdict
from seglab.files import machine, write_json
from seglab.intervals import interval, joint_confidence, rows_by_class, spread

MANY = {'four common': [1, .9, .8, .7], 'ten common': [1] + [.6] * 9, 'some rare': [1, .6, .3, .1, .05], 'one in ten': [1, .1], 'fifteen rare': [1] + [.08] * 15,
        'eighty': [1, *np.geomspace(.5, .01, 80)]}

class Population:
    "Photos without end: classes, sizes with long tails, and models that find the same photos hard."
    def __init__(self, present, n=20_000, models=2, gap=0., hard=.6, noise=.5, groups=0, share=0., seed=0):
        rng, K = np.random.default_rng(seed), len(present)
        shown = rng.random((n, K)) < np.array(present); shown[:, 0] = True
        self.group = rng.integers(groups, size=n) if groups else np.arange(n)
        between = rng.normal(0, 1, groups)[self.group] if groups else 0
        difficulty = hard * (share**.5 * between + (1 - share)**.5 * rng.normal(0, 1, n))[:, None]
        own = [hard * share**.5 * rng.normal(0, 1, groups)[self.group][:, None] if groups else 0 for _ in range(models)]
        mean = rng.normal(.5, .8, K); mean[0] = 2
        self.union = np.where(shown, np.exp(rng.normal(6, 1, (n, K))), 0).round()
        odds = [mean + m * gap + difficulty + own[m] * .5 + rng.normal(0, noise, (n, K)) for m in range(models)]
        self.tp = [(self.union / (1 + np.exp(-o))).round() for o in odds]
        self.n = n

    def truth(self, met):
        "The mean IoU of each model over all photos there are."
        return [(tp.sum(0) / self.union.sum(0))[met].mean() for tp in self.tp]

    def tables(self, rows):
        "Counts as `Evaluation` keeps them."
        photo, k = self.union[rows].nonzero()
        union = self.union[rows][photo, k]
        return [np.stack([photo, k, tp[rows][photo, k], union, tp[rows][photo, k]], 1).astype(np.int32) for tp in self.tp]

def looked_at(pop, rows, unit=None, n_boot=80, pairs=((0, 1),), wide=False):
    "Estimates, intervals and true values of the first model's score and of the pairs' differences."
    tables, n, K = pop.tables(rows), len(rows), pop.union.shape[1]
    unit = np.arange(n) if unit is None else np.unique(unit, return_inverse=True)[1]
    draws = bootstrap_ious(tables, n, K, n_boot, unit=unit)
    met = ~np.isnan(draws[0, 0])
    means, truth = draws[..., met].mean(2), pop.truth(met)
    score = [np.mean([r[:, 1].sum() / (r[:, 2] + r[:, 3] - r[:, 1]).sum() for r in rows_by_class(t, K) if len(r)]) for t in tables]
    out = [(score[0], interval(means[0], score[0], spread(tables[:1], [1], unit, K)[0]), truth[0])]
    each = joint_confidence([means[b] - means[a] for a, b in pairs]) if wide else None
    for a, b in pairs:
        error, _ = spread([tables[a], tables[b]], [-1, 1], unit, K)
        value = score[b] - score[a]
        ends = interval(means[b] - means[a], value, error, within=(-1, 1), each=each)
        out.append((value, ends, truth[b] - truth[a]))
    return out

def simulate(pop, n, sets, **kw):
    "Many sets of n photos, each looked at."
    rng = np.random.default_rng(n)
    return [looked_at(pop, rng.integers(pop.n, size=n), **kw) for _ in range(sets)]

def covered(found, k): return float(np.mean([low <= truth <= high for _, (low, high), truth in (f[k] for f in found)]))

def inside(sets):
    "In how many sets the estimate lies inside its interval."
    names, sizes, good = ['fifteen rare', 'eighty'], (5, 10, 20, 30, 60), 0
    each = sets // (len(names) * len(sizes))
    for name in names:
        pop = Population(MANY[name], n=6_000, seed=1)
        for n in sizes: good += sum(all(low <= v <= high for v, (low, high), _ in f) for f in simulate(pop, n, each, n_boot=20))
    return dict(sets=each * len(names) * len(sizes), inside=good, classes=names, photos=list(sizes))

def coverage(sets, draws, sizes):
    "How often the 95 % intervals hold the truth: by classes, by photos."
    for name in MANY:
        pop = Population(MANY[name], seed=2)
        some = sets // 8 if name == 'eighty' else sets // 2                              # it is four times as slow as the others
        for n in sizes:
            found = simulate(pop, n, some, n_boot=draws)
            yield dict(classes=name, photos=n, sets=some, score=covered(found, 0), difference=covered(found, 1))

def equal(sets, draws, sizes):
    "How often one of two equal models is called better, whatever the number of photos."
    for name in ('four common', 'some rare', 'one in ten'):
        pop = Population(MANY[name], n=60_000, seed=3)
        for n in sizes:
            won = [verdict('a', 'b', v - t, low - t, high - t, max(n, 1000)).better for _, (v, (low, high), t) in simulate(pop, n, sets, n_boot=draws)]
            yield dict(classes=name, photos=n, sets=sets, winners=float(np.mean([w is not None for w in won])))

def several(sets, draws, sizes):
    "In how many comparisons of equal models any interval of a difference leaves out the truth."
    for models, n in ((3, 40), (5, 40)):
        pop = Population(MANY['four common'], models=models, seed=4)
        pairs = [(a, b) for a in range(models) for b in range(a + 1, models)]
        found = simulate(pop, n, sets, pairs=pairs, wide=True, n_boot=draws)
        wrong = [any(not low <= t <= high for _, (low, high), t in f[1:]) for f in found]
        yield dict(models=models, photos=n, sets=sets, wrong=float(np.mean(wrong)))

def by_groups(groups, share, sets, draws, least=4, most=16):
    "Coverage over groups of unequal size, and what it would be over photos: score, difference, score over photos."
    hits, plain, rng = np.zeros(2), 0, np.random.default_rng(1)
    pop = Population([1, .9, .7], n=40_000, groups=2_000, share=share, seed=5)
    order = np.argsort(pop.group, kind='stable')
    ends = np.searchsorted(pop.group[order], np.arange(2_001))
    for _ in range(sets):
        chosen = rng.choice(2_000, groups, replace=False)
        rows = np.concatenate([order[ends[g]:ends[g+1]][:rng.integers(least, most)] for g in chosen])
        hits += [low <= truth <= high for _, (low, high), truth in looked_at(pop, rows, pop.group[rows], n_boot=draws)]
        _, (low, high), truth = looked_at(pop, rows, n_boot=50)[0]
        plain += low <= truth <= high
    return dict(groups=groups, share=share, sets=sets, score=hits[0] / sets, difference=hits[1] / sets, over_photos=plain / sets)

def groups(sets, draws, sizes):
    "Coverage over so many groups, for each share of variance between groups."
    for g in (10, 20):
        for share in (0, .1, .3, .6): yield by_groups(g, share, sets, draws)

PARTS = dict(inside=inside, coverage=coverage, equal=equal, several=several, groups=groups)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    p.add_argument('--sets', type=int, default=2000)
    p.add_argument('--inside', type=int, default=2000)
    p.add_argument('--photos', type=int, nargs='+', default=[10, 30])
    p.add_argument('--draws', type=int, default=2000)
    p.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[1]/'nbs/results/intervals.json')
    a = p.parse_args()
    for part in a.parts:
        found = []
        for row in [inside(a.inside)] if part == 'inside' else PARTS[part](a.sets, a.draws, a.photos):
            found.append(row)
            print(part, row, flush=True)
            kept = json.loads(a.out.read_text()) if a.out.exists() else {}
            now = datetime.now(timezone.utc).isoformat(timespec='seconds')
            write_json(a.out, kept | dict(date=now, machine=machine(), draws=a.draws) | {part: found})

if __name__ == '__main__': main()
