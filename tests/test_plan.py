"""What photos can show, how many it takes, and what more training data would bring: against formulas, against simulation, against fakes of `fit`.

Short by default; SEGLAB_LONG=1 simulates as much as the figures in the documents rest on.
"""
import json, os, re, runpy
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest
from torch.utils.data import Dataset
from seglab import plan as plan_module
from seglab.comparison import MIN_PHOTOS, Comparison, Evaluation, compare
from seglab.dataset import LabelSpace
from seglab.files import UserError
from seglab.intervals import Spread, seed_spread, smallest_difference, spread
from seglab.plan import LearningCurve, learning_curve, nested_shares, photos_needed, plan, redrawn_errors
from support.faults import LONG

ROOT = Path(__file__).resolve().parents[1]
SPACE = LabelSpace.from_names(['background', 'square'])
RECORDED = json.loads((ROOT/'nbs/results/plan.json').read_text())

def noisy(name, share, n=40, groups=None, folder=None):
    "A model that is wrong in a share of the pixels."
    rng = np.random.default_rng(sum(map(ord, name)))
    e = Evaluation(SPACE, name, False, folder and folder/name, folder and folder/'truth')
    for i in range(n):
        photo = np.random.default_rng(i)
        truth = np.zeros((16, 16), np.uint8)
        y, x = photo.integers(1, 8, 2)
        truth[y:y+7, x:x+7] = 1
        wrong = rng.random(truth.shape) < share * photo.uniform(.3, 1.7)
        e.add(f'p{i:03d}', np.where(wrong, 1 - truth, truth).astype(np.uint8), truth, groups and f'drive {i % groups}')
    return e

def pilot(**kw): return Comparison({'a': noisy('a', .10, **kw), 'b': noisy('b', .105, **kw)}, n_boot=100)

def test_the_textbook_formula():
    for error, difference in ((.01, .02), (.02, .01), (.005, .004)):
        wanted = 50 * (error / difference)**2 * (1.960 + .8416)**2
        assert np.isclose(photos_needed(Spread(error, 1e5), [], 50, difference), max(wanted, MIN_PHOTOS), rtol=.01)

def test_more_is_asked_for_less_and_nothing_below_the_least():
    found = [photos_needed(Spread(.01, 20.), [], 50, d) for d in (.5, .05, .02, .01, .005)]
    assert found[0] == MIN_PHOTOS and found == sorted(found)
    assert photos_needed(Spread(.01, 20.), [], 50, .01, power=.9) > photos_needed(Spread(.01, 20.), [], 50, .01)
    assert photos_needed(Spread(.01, 20.), [], 50, .01, confidence=.99) > photos_needed(Spread(.01, 20.), [], 50, .01)

def test_what_is_planned_could_be_shown():
    "Scaled to the planned number of photos, the smallest difference is the one that was asked for."
    error = Spread(.02, 12.)
    m = photos_needed(error, [], 40, .015)
    assert np.isclose(smallest_difference(Spread(error.error * (40 / m)**.5, error.freedom * m / 40)), .015, rtol=.01)

def test_runs_that_differ_more_than_the_difference_are_the_limit():
    seeds = [seed_spread([.70, .74, .78])] * 2
    assert photos_needed(Spread(.01, 50.), seeds, 50, .02) == float('inf')
    c = Comparison({n: [noisy(f'{n}{i}', s + .03 * i) for i in range(3)] for n, s in (('a', .08), ('b', .09))}, n_boot=100)
    p = plan(c, .005)
    assert [n.runs for n in p.needs] == ['3 and 3', '6 and 6', '12 and 12'] and 'more runs' in repr(p)
    assert p.needs[0].could_show > p.needs[1].could_show > p.needs[2].could_show

def test_redrawn_errors_are_those_of_the_drawn_photos():
    "One draw by hand: the rows of the units that the generator chose, each a unit of its own."
    c = pilot(groups=8)
    tables = [e.counts for e in c.evaluations.values()]
    chosen = np.random.default_rng(3).integers(8, size=8)
    mine = [np.concatenate([np.insert(t[c.unit[t[:, 0]] == g][:, 1:], 0, k, axis=1) for k, g in enumerate(chosen)]) for t in tables]
    wanted = spread(mine, [-1, 1], np.arange(8), 2)[0].error
    assert np.isclose(redrawn_errors(tables, [-1, 1], c.unit, 2, draws=1, seed=3)[0], wanted)

def test_a_plan_of_a_report_is_that_of_its_comparison(tmp_path):
    c = compare({n: noisy(n, s, folder=tmp_path/'m') for n, s in (('a', .1), ('b', .105))}, out=tmp_path/'r', n_boot=100)
    assert plan(tmp_path/'r', .01).needs == plan(c, .01).needs

def test_names_of_strangers_stay_text():
    html = plan(Comparison({n: noisy(n, .1) for n in ('a', '<script>')}), .01)._repr_html_()
    assert '&lt;script&gt;' in html and '<script>' not in html

def test_groups_are_planned_in_groups():
    p = plan(pilot(groups=12), .01)
    assert p.unit == 'groups of photos' and p.n == 12 and 'groups of photos needed' in p.table
    assert plan(pilot(), .01).unit == 'photos'

def test_several_pairs_take_more_photos():
    three = Comparison({n: noisy(n, s) for n, s in (('a', .10), ('b', .105), ('c', .11))}, n_boot=100)
    assert len(plan(three, .01).needs) == 3
    assert plan(three, .01).needs[0].needed > plan(pilot(), .01).needs[0].needed

@pytest.mark.parametrize('how, said', [(dict(difference=0), 'difference=0: expected'), (dict(difference=1.5), 'difference=1.5'),
                                       (dict(power=.4), 'power=0.4: expected')])
def test_a_plan_refuses(how, said):
    with pytest.raises(UserError, match=said): plan(pilot(), **how)

def test_a_plan_needs_two_models_and_two_units():
    with pytest.raises(UserError, match='expected a comparison of two models'): plan(Comparison({'a': noisy('a', .1)}))
    with pytest.raises(UserError, match='expected two groups of photos at least'): plan(pilot(groups=1))

def test_every_report_says_what_it_could_have_shown(tmp_path):
    made = {n: noisy(n, s, folder=tmp_path/'m') for n, s in (('a', .1), ('b', .105))}
    c = compare(made, out=tmp_path/'r', n_boot=100)
    said, = c.could_show
    number = re.search(r'difference of (\d\.\d{4}) mean IoU', said)[1]
    assert float(number) == pytest.approx(smallest_difference(c.errors['a', 'b']), abs=6e-5)
    html, md, stored = ((tmp_path/'r'/f).read_text() for f in ('report.html', 'report.md', 'scores.json'))
    for text in (html, md, repr(c), c._repr_html_(), stored): assert f'difference of {number} mean IoU' in text
    assert html.index(c.verdicts[0]) < html.index(number + ' mean IoU') < html.index('<h2>Scores')
    assert Comparison(tmp_path/'r').could_show == c.could_show
    few = Comparison({n: noisy(n, .1, 5) for n in 'ab'}).could_show
    assert 'at least 10 are needed' in few[0] and Comparison({'a': noisy('a', .1)}).could_show == []
    assert ' to ' in Comparison({n: noisy(n, .1 + .02 * i) for i, n in enumerate('abc')}).could_show[0]

@pytest.mark.parametrize('r', RECORDED['power'], ids=lambda r: r['unit'])
def test_the_recorded_power(r):
    assert r['pilots'] >= 200 and .75 <= r['power']['median'] <= .90

def test_the_recorded_learning_curves():
    r = RECORDED['curve']
    assert r['repeats'] >= 40 and r['held'] >= .85

def test_planned_photos_find_the_difference():
    "A bounded piece of what bench/plan.py records."
    power = runpy.run_path(str(ROOT/'bench/plan.py'))['power']
    for r in power(*((200, 60) if LONG else (20, 10)), tries=400 if LONG else 40):
        print(r['unit'], r['power'], r['needed'])
        slack = .01 if LONG else .12
        assert .75 - slack <= r['power']['median'] <= .90 + slack

def test_shares_are_nested_and_groups_whole():
    keys = [f'g{i % 13}' for i in range(100)]
    parts = nested_shares(keys, (.1, .3, .6, 1))
    for small, large in zip(parts, parts[1:]): assert set(small) < set(large)
    for p in parts:
        inside = {keys[i] for i in p}
        assert sorted(i for i, k in enumerate(keys) if k in inside) == p.tolist()
    assert [len({keys[i] for i in p}) for p in parts] == [1, 4, 8, 13]
    order = np.random.default_rng(0).permutation(100)
    again = nested_shares([keys[i] for i in order], (.1, .3, .6, 1))
    assert [sorted(order[p]) for p in again] == [p.tolist() for p in parts], 'the order of the files changes nothing'
    more = nested_shares(keys + ['new'] * 5, (.1, .3, .6, 1))
    assert len({tuple(nested_shares(keys, (.3, 1), s)[0]) for s in range(5)}) == 5 and len(more[-1]) == 105

@pytest.mark.parametrize('scatter', ['equal', 'shrinking'])
def test_the_interval_of_a_known_curve_holds(scatter):
    rng, held, sets = np.random.default_rng(0), 0, 400 if LONG else 40
    sd = lambda n: .01 if scatter == 'equal' else .03 * (n / 50)**-.5
    for i in range(sets):
        c = (.3, .6, 1.2)[i % 3]
        truth = lambda n: .8 - .36 * (n / 50)**-c
        _, low, high = LearningCurve({n: truth(n) + rng.normal(0, sd(n), 3) for n in (50, 100, 200, 400)}).at(2)
        held += low <= truth(800) + rng.normal(0, sd(800) / 3**.5) <= high
    print(scatter, held / sets)
    assert held / sets > .85 - 3 * (.9 * .1 / sets)**.5

def test_further_is_less_certain_and_too_far_is_refused():
    c = LearningCurve({10: [.4, .42, .41], 20: [.5, .51, .5], 40: [.56, .57, .56], 80: [.6, .6, .61]})
    width = [c.at(t)[2] - c.at(t)[1] for t in (1, 2, 4)]
    assert width == sorted(width) and 0 <= c.at(4)[1] < c.at(4)[2] <= 1
    for t in (4.1, 0, -1):
        with pytest.raises(UserError, match=f'times={t}: expected above 0 and at most 4'): c.at(t)
    assert '     160 photos: about' in repr(c) and '<img' in c._repr_html_() and c.show().axes

def test_a_curve_takes_three_sizes():
    for scores in ({10: [.1] * 9, 20: [.2] * 9}, {10: [.1], 20: [.2], 40: [.3]}):
        with pytest.raises(UserError, match='expected three sizes and six runs at least'): LearningCurve(scores)

def test_the_same_score_everywhere_is_no_gain():
    value, low, high = LearningCurve({n: [.5, .5] for n in (10, 20, 40)}).at(2)
    assert np.isclose([value, low, high], .5, atol=1e-3).all()

class Photos(Dataset):
    "Names and groups, and nothing to see."
    label_space, tfms = SPACE, None
    def __init__(self, n): self.stems, self.groups = [f's{i}' for i in range(n)], [f'g{i // 4}' for i in range(n)]
    def __len__(self): return len(self.stems)
    def __getitem__(self, i): return dict(pixel_values=np.zeros((3, 8, 8), np.uint8), labels=np.zeros((8, 8), np.uint8))

def test_each_run_is_a_fit_of_its_own(tmp_path, monkeypatch):
    calls = []
    def fit(model, data, out, seed, **how):
        train, val = data
        assert len(train) == 32 and len(val) == 8, 'all runs take the same number of steps'
        out.mkdir(parents=True, exist_ok=True)
        calls.append((out, seed, len(set(train.indices)), how))
        return SimpleNamespace(scores=dict(mean_iou=.8 - .5 * len(set(train.indices))**-.5 + .001 * seed))
    monkeypatch.setattr(plan_module, 'fit', fit)
    curve = learning_curve(lambda: None, (Photos(32), Photos(8)), tmp_path/'c', epochs=3)
    assert [c[2] for c in calls] == [4, 8, 16, 32] * 3 and len({c[0] for c in calls}) == 12 and {c[1] for c in calls} == {0, 1, 2}
    assert all(c[3] == dict(epochs=3) for c in calls)
    assert LearningCurve(tmp_path/'c').scores == curve.scores and len(curve.scores[32]) == 3
    learning_curve(lambda: None, (Photos(32), Photos(8)), tmp_path/'c', epochs=3)
    assert [c[0] for c in calls[12:]] == [c[0] for c in calls[:12]], 'the same folders, so that fit resumes or returns what is there'

def test_a_curve_that_was_interrupted_says_so(tmp_path, monkeypatch):
    def fit(model, data, out, seed, **how): raise KeyboardInterrupt
    monkeypatch.setattr(plan_module, 'fit', fit)
    with pytest.raises(KeyboardInterrupt): learning_curve(lambda: None, (Photos(32), Photos(8)), tmp_path/'c')
    with pytest.raises(UserError, match='got 0 sizes and 0 runs'): LearningCurve(tmp_path/'c')

def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path/'photo.jpg').touch()
    with pytest.raises(UserError, match='expected a new folder'): learning_curve(lambda: None, (Photos(32), Photos(8)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['photo.jpg']

@pytest.mark.skipif(not os.environ.get('SEGLAB_DATA'), reason='needs CamVid: set SEGLAB_DATA')
def test_nothing_is_better_on_seven_seconds_of_camvid():
    "All of CamVid's validation photos are one clip: as a pattern on the names and as proposed."
    from seglab.groups import look_at, propose_groups
    from seglab.images import read_mask
    from seglab.own import CAMVID
    home = Path(os.environ['SEGLAB_DATA'], 'camvid')
    photos = sorted((home/'val').iterdir())
    frames = [int(p.stem.split('_')[1]) for p in photos]
    assert len(photos) == 101 and {p.stem.split('_')[0] for p in photos} == {'0016E5'} and (min(frames), max(frames)) == (7959, 8159)
    proposed, said = propose_groups([p.name for p in photos], look_at(photos, workers=1))
    assert len(set(proposed.values())) == 1, said
    def models(group_of):
        for name, every in (('a', 9), ('b', 3)):
            e = Evaluation(LabelSpace.from_names(CAMVID), name, boundary=False)
            for i, p in enumerate(photos):
                truth = read_mask(home/'valannot'/f'{p.stem}.png')[::6, ::6]
                truth = np.where(truth < len(CAMVID), truth, 255).astype(np.uint8)
                guess = np.where(truth == 255, 0, truth)
                guess[:, ::every] = 0
                e.add(p.stem, guess, truth, group_of(i))
            yield name, e
    whole = Comparison(dict(models(lambda i: None)), n_boot=100)
    assert whole.differences[0].better == 'a', 'as if each frame were a photo of its own'
    for group_of in (lambda i: photos[i].stem.split('_')[0], proposed.get):
        c = Comparison(dict(models(group_of)), n_boot=100)
        assert c.n_units == 1 and c.differences[0].better is None and '1 groups of photos are too few' in c.verdicts[0]
        assert 'at least 10 are needed' in c.could_show[0]
