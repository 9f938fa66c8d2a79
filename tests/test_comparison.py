"""The comparison's numbers against other people's arithmetic, its honesty on simulated models, and its manners with a folder."""
import json, os, sys, tracemalloc
from pathlib import Path
import cv2, numpy as np, pytest, torch
from torch import nn
from seglab.answers import common_ground, label_mapping
from seglab.comparison import Comparison, MIN_PHOTOS, bootstrap_ious, Evaluation, compare, evaluate, evaluate_masks
from seglab.costs import measure_costs
from seglab.intervals import interval, spread
from seglab.dataset import LabelSpace, SegDataset
from seglab.files import UserError
from seglab.images import IGNORE
from seglab.metrics import renamed
from seglab.model import Segmenter
from seglab.sample import make_sample
from seglab.zoo import from_smp

NAMES = ['background', 'cat', 'dog', 'bird']
LABELS = LabelSpace.from_names(NAMES, ignore_ids=(9,))

def folders(root, n=14, sizes=((40, 48),), names=NAMES, seed=0, void=True):
    "Photos whose colours tell their classes, and their masks."
    rng = np.random.default_rng(seed)
    (root/'images').mkdir(parents=True); (root/'masks').mkdir()
    for i in range(n):
        mask = cv2.resize(rng.integers(0, len(names) - (i % 2), (5, 6), dtype=np.uint8), sizes[i % len(sizes)][::-1], interpolation=cv2.INTER_NEAREST)
        image = (mask[..., None] * 50 + rng.integers(0, 70, (*mask.shape, 3))).clip(0, 255).astype(np.uint8)
        if void: mask[:3] = 9
        cv2.imwrite(str(root/'images'/f'p{i:03d}.png'), image); cv2.imwrite(str(root/'masks'/f'p{i:03d}.png'), mask)
    ds = SegDataset.from_folders(root/'images', root/'masks', LabelSpace.from_names(names, ignore_ids=(9,) if void else ()))
    ds.root = root
    return ds

def model(seed, labels=LABELS, **kw):
    "A convolution that has seen nothing."
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, labels.num_labels, 1))
    return Segmenter(net, labels, name=f'conv{seed}', **kw)

@pytest.fixture(scope='module')
def ds(tmp_path_factory): return folders(tmp_path_factory.mktemp('data'))

@pytest.fixture(scope='module')
def made(ds, tmp_path_factory):
    out = tmp_path_factory.mktemp('report')/'r'
    return compare({'one': model(1), 'two/2': model(2)}, ds, out, batch_size=3), out

def read(folder): return np.stack([cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted(Path(folder).glob('*.png'))])

@pytest.mark.parametrize('kind', ['out', 'truth_out'])
def test_masks_that_cannot_be_written_are_one_sentence(ds, tmp_path, kind):
    "Before any photo is looked at, by each of the three that write masks; nothing is made."
    (tmp_path/'file').touch(); (tmp_path/'gone').symlink_to(tmp_path/'nothing')
    for place in ('file', 'file/below', 'gone'):
        for f in (lambda **kw: evaluate(model(1), ds, **kw), lambda **kw: evaluate_masks([], NAMES, **kw), lambda **kw: Evaluation(LABELS, **kw)):
            with pytest.raises(UserError, match='out=.*expected a free name; got a file, or a link to nothing'): f(**{kind: tmp_path/place})
    with pytest.raises(UserError, match='out=.*a link to nothing'): make_sample(tmp_path/'file'/'below', n=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'gone']

def test_pairs_of_masks_are_one_sentence():
    mask = np.zeros((4, 5), np.uint8)
    said = r"expected \(stem, prediction, truth\) for each photo, masks as \(H,W\)"
    for bad in ((mask, mask), np.stack([mask, mask]), np.stack([mask]*3), (mask, mask, 'a'), 'abc', None):
        with pytest.raises(UserError, match=said): evaluate_masks([bad], ['a', 'b'])
    assert len(evaluate_masks([('a', mask, mask), ['b', mask, mask]], ['a', 'b'])) == 2

def test_numbers_equal_torchmetrics_and_numpy(made):
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex
    result, out = made
    stored, truth = json.loads((out/'scores.json').read_text()), read(out/'truth')
    assert (truth == 255).any()
    for name, entry in stored['models'].items():
        pred = read(out/entry['predictions'])
        p, t = torch.from_numpy(pred).long(), torch.from_numpy(truth).long()
        matrix = MulticlassConfusionMatrix(4, ignore_index=255)(p, t)
        assert matrix.tolist() == entry['confusion_matrix']
        per = MulticlassJaccardIndex(4, average='none', ignore_index=255)(p, t)
        m = matrix.double().numpy(); tp, rows, cols = np.diag(m), m.sum(1), m.sum(0)
        iou = tp / (rows + cols - tp)
        np.testing.assert_allclose(per, iou, rtol=1e-6)
        assert list(entry['per_category_iou'].values()) == iou.tolist() and list(entry['per_category_iou']) == NAMES
        assert entry['mean_iou'] == iou.mean() and entry['overall_accuracy'] == tp.sum() / m.sum()
        assert entry['mean_accuracy'] == (tp / rows).mean() and entry['mean_dice'] == (2 * tp / (rows + cols)).mean()
        assert f"| {entry['mean_iou']:.4f} |" in (out/'report.md').read_text() and f"{entry['mean_iou']:.4f}" in (out/'report.html').read_text()
        n, conf, right = (np.array([v if v is not None else 0 for v in entry['reliability'][k]]) for k in ('pixels', 'confidence', 'accuracy'))
        assert n.sum() == (truth != 255).sum() and np.isclose(entry['ece'], (n * abs(conf - right)).sum() / n.sum())
    assert stored['differences']['two/2 - one']['mean_iou'] == stored['models']['two/2']['mean_iou'] - stored['models']['one']['mean_iou']
    assert sorted(os.listdir(out/'predictions')) == ['2', 'one'], 'a slash in a name makes no folder'

def test_every_printed_score_equals_a_recomputation(made):
    "Both tables of report.md, cell by cell, from the saved masks alone; report.html shows the same texts."
    result, out = made
    stored, truth, text = json.loads((out/'scores.json').read_text()), read(out/'truth'), (out/'report.md').read_text()
    rows = {}
    for line in text.splitlines():
        if line.startswith('| '): rows.setdefault((c := [x.strip() for x in line.strip('|').split('|')])[0], c)
    page = (out/'report.html').read_text()
    for m, (name, entry) in enumerate(stored['models'].items()):
        pred, keep = read(out/entry['predictions']), truth != 255
        tp, t, p = (np.array([(a & keep).sum() for a in what]) for what in zip(*[((pred == k) & (truth == k), truth == k, pred == k) for k in range(4)]))
        iou, dice = tp / (t + p - tp), 2 * tp / (t + p)
        said = rows[name]
        assert [said[i] for i in (1, 3, 5, 6)] == [f'{v:.4f}' for v in (iou.mean(), dice.mean(), tp.sum() / keep.sum(), (tp / t).mean())]
        assert said[2] == ' to '.join(f'{v:.4f}' for v in entry['mean_iou_interval'])
        for k, c in enumerate(NAMES):
            assert (rows[c][2 + 3*m], rows[c][4 + 3*m]) == (f'{iou[k]:.4f}', f'{dice[k]:.4f}')
            assert f'<td>{iou[k]:.4f}</td>' in page and f'<td>{dice[k]:.4f}</td>' in page

def test_intervals_equal_scipys(made):
    from scipy.stats import bootstrap
    result, _ = made
    dense = {n: np.zeros((result.n, 4, 3)) for n in result.evaluations}
    for n, e in result.evaluations.items(): dense[n][e.counts[:, 0], e.counts[:, 1]] = e.counts[:, 2:]
    def mean_iou(name, rows):
        tp, t, p = dense[name][rows].sum(0).T
        with np.errstate(invalid='ignore'): return np.nanmean(tp / (t + p - tp))
    tables = [e.counts for e in result.evaluations.values()]
    one, two = bootstrap_ious(tables, result.n, 4, 4000).mean(2)
    def check(statistic, draws):
        r = bootstrap((np.arange(result.n),), lambda i: statistic(i.astype(int)), n_resamples=4000, method='percentile', vectorized=False, random_state=1)
        low, high = r.confidence_interval
        assert np.allclose(np.quantile(draws, [.025, .975]), (low, high), atol=.1 * (high - low))
    check(lambda i: mean_iou('one', i), one)
    check(lambda i: mean_iou('two/2', i) - mean_iou('one', i), two - one)

def noisy(share, seed, n):
    rng, shapes = np.random.default_rng(seed), np.random.default_rng(0)
    for i in range(n):
        t = np.zeros((20, 20), np.uint8); y, x = shapes.integers(2, 10, 2); t[y:y+8, x:x+8] = 1
        wrong = rng.random(t.shape) < share * rng.uniform(.2, 1.8)
        yield f'p{i:04d}', np.where(wrong, 1 - t, t).astype(np.uint8), t

CATS = LabelSpace.from_names(['background', 'cat'])
def two(a, b, n, seed=0, **kw):
    return Comparison({'a': evaluate_masks(noisy(a, 2*seed + 1, n), CATS, boundary=False), 'b': evaluate_masks(noisy(b, 2*seed + 2, n), CATS, boundary=False)}, n_boot=500, **kw)

def test_a_little_better_is_said_with_many_photos_and_not_with_few():
    many = [two(.06, .052, 700, s).differences[0].better for s in range(3)]
    few = [two(.06, .052, 12, s).differences[0].better for s in range(10)]
    assert many == ['b'] * 3 and few.count('b') <= 5
    assert two(.3, .01, MIN_PHOTOS - 1).differences[0].better is None, 'too few photos to call anything'

def test_no_difference_is_rarely_called_one():
    assert sum(two(.05, .05, 60, s).differences[0].better is not None for s in range(40)) <= 6

def test_against_itself(ds):
    m = model(1)
    r = compare({'one': m, 'again': m}, ds, measure=False)
    d = r.differences[0]
    assert d.difference == d.low == d.high == 0 and d.better is None and 'No winner' in r.verdicts[0]

def test_batch_size_and_workers_change_nothing(ds):
    one, three = evaluate(model(1), ds, batch_size=1), evaluate(model(1), ds, batch_size=5, workers=2)
    assert (one.matrix == three.matrix).all() and one.digest == three.digest and (one.boundary_counts == three.boundary_counts).all()
    assert np.isclose(one.scores['ece'], three.scores['ece'])

def test_images_of_their_own_sizes(tmp_path):
    mixed = folders(tmp_path, sizes=((40, 48), (33, 57), (21, 20)))
    r = evaluate(model(1), mixed, batch_size=4, out=tmp_path/'p')
    m = model(1).eval()
    for i in (0, 1, 2): assert (cv2.imread(str(tmp_path/'p'/f'p{i:03d}.png'), 0) == m.predict(mixed.raw(i)[0])).all()
    assert r.sizes == {(40, 48), (33, 57), (21, 20)} and r.per_image['pixels'].sum() == r.matrix.sum()

def test_a_class_met_nowhere_is_left_out_and_null(ds, tmp_path):
    wide = LabelSpace.from_names([*NAMES, 'unicorn'], ignore_ids=(9,))
    data = SegDataset.from_folders(ds.root/'images', ds.root/'masks', wide)
    m = model(1, wide); nn.init.constant_(m.net[-1].bias[4:], -100.)
    compare({'m': m}, data, tmp_path/'r', measure=False)
    entry = json.loads((tmp_path/'r/scores.json').read_text())['models']['m']
    assert entry['per_category_iou']['unicorn'] is None and entry['mean_iou'] == np.mean(list(entry['per_category_iou'].values())[:4])

def test_all_ignored_photo_and_all_ignored_set(tmp_path):
    masks = [('a', np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))] * 2
    e = evaluate_masks(masks, CATS)
    assert np.isnan(e.scores['mean_iou']) and e.per_image['mean_iou'].isna().all()
    c = Comparison({'x': e, 'y': evaluate_masks(masks, CATS)})
    assert c.differences[0].better is None and json.dumps(c.to_dict(), allow_nan=False)

# label spaces and sizes
FINE = LabelSpace.from_dict(dict(names=['background', 'cat', 'dog', 'bird'], ids=[[0], [1], [2], [3]], ignore_ids=[9]))
THINGS = LabelSpace.from_dict(dict(names=['background', 'object'], ids=[[0], [1, 2, 3]], ignore_ids=[9]))
OTHER = LabelSpace.from_dict(dict(names=['background', 'furry', 'flying'], ids=[[0], [1, 2], [3]], ignore_ids=[9]))
CUT = LabelSpace.from_dict(dict(names=['background', 'catdog', 'rest'], ids=[[0], [1], [2, 3]], ignore_ids=[9]))

def test_other_label_space_is_mapped_with_a_sentence(ds, tmp_path):
    fine, coarse = model(1, FINE), model(2, THINGS)
    r = compare({'fine': fine, 'coarse': coarse}, ds, tmp_path/'r', measure=False)
    assert r.label_space.names == THINGS.names and any('fine knows 4 classes' in s and 'cat, dog, bird → object' in s for s in r.notes)
    assert 'fine knows 4 classes' in (tmp_path/'r/report.html').read_text()
    probs = fine.eval()(torch.as_tensor(ds[0]['pixel_values'])[None]).softmax(1)
    pred = (probs[:, 1:].sum(1) > probs[:, 0]).numpy()[0]
    assert (read(tmp_path/'r/predictions/fine')[0] == pred).mean() > .9999

def test_label_spaces_that_cut_across_each_other_are_refused(ds, tmp_path):
    with pytest.raises(ValueError, match='expected label spaces of which one can be mapped'): compare({'a': model(1, OTHER), 'b': model(2, CUT)}, ds, tmp_path/'r', measure=False)
    r = compare({'a': model(1, OTHER), 'b': model(2, CUT)}, ds, classes=THINGS, measure=False)
    assert r.label_space.names == THINGS.names and sum('its answers count as one of the' in s for s in r.notes) == 2

def test_order_of_classes_is_no_obstacle(ds):
    turned = LabelSpace.from_dict(dict(names=['bird', 'background', 'dog', 'cat'], ids=[[3], [0], [2], [1]], ignore_ids=[9]))
    m = model(1, FINE); t = model(1, turned)
    order = [FINE.label2id[n] for n in turned.names]
    with torch.no_grad(): t.net[-1].weight.copy_(m.net[-1].weight[order]); t.net[-1].bias.copy_(m.net[-1].bias[order])
    assert label_mapping(turned, FINE).tolist() == order
    assert (evaluate(m, ds).matrix == evaluate(t, ds).matrix).all()

def test_other_sizes_get_a_sentence_and_different_masks_are_refused(ds, tmp_path):
    r = compare({'small': model(1, size_hw=(20, 24)), 'own': model(2)}, ds, measure=False)
    assert any('small was trained at 20×24' in s for s in r.notes)
    big = folders(tmp_path, sizes=((60, 60),))
    with pytest.raises(ValueError, match='different masks'): Comparison({'a': evaluate(model(1), ds), 'b': evaluate(model(1), big)})
    with pytest.raises(ValueError, match='a, b.: expected models that were scored in the same classes; got 4 classes and 2, or'): Comparison({'a': evaluate(model(1), ds), 'b': evaluate(model(1), ds, classes=THINGS)})

from seglab.runs import _COLUMNS
HISTORY = '\n'.join([','.join(_COLUMNS.values()), *(','.join({'step': str(i), 'epoch': str(i), 'eval_loss': f'.{6-i}', 'mean_iou': f'.{i+1}'}.get(c, '')
                                                                for c in _COLUMNS.values()) for i in (1, 2)), ''])

def test_runs_trained_at_other_sizes_are_told(ds, tmp_path):
    for n, size in (('a', [20, 24]), ('b', [40, 48])):
        from_smp('unet', LABELS, 'resnet18', None, encoder_depth=3, decoder_channels=(16, 8, 8)).save_pretrained(tmp_path/n/'best')
        (tmp_path/n/'config.json').write_text(json.dumps(dict(settings=dict(sample_hw=size, data_digest=n, lr=.01, epochs=3, seed=7, train_images=90), device='a CPU')))
        (tmp_path/n/'history.csv').write_text(HISTORY)
    r = compare([tmp_path/'a', tmp_path/'b'], ds, tmp_path/'r', measure=False)
    said = '\n'.join(r.caveats)
    assert '20×24 (a), 40×48 (b)' in said and 'different data' in said and 'still improving' in said and 'chosen on these photos' in said
    for text in ((tmp_path/'r/report.html').read_text(), (tmp_path/'r/report.md').read_text()):
        for fact in ('learning rate', '0.01', 'random', 'a CPU', '90', 'Mean IoU: 0 = no overlap', 'fingerprint of the data'): assert fact in text, fact
    assert Comparison(tmp_path/'r').caveats == r.caveats

def test_a_model_that_tells_nothing_apart_is_named_and_the_scale_is_given(ds, tmp_path):
    dull = model(1); nn.init.zeros_(dull.net[-1].weight); nn.init.zeros_(dull.net[-1].bias); nn.init.constant_(dull.net[-1].bias[:1], 9.)
    r = compare({'dull': dull, 'other': model(2)}, ds, tmp_path/'r', measure=False)
    assert [s for s in r.notes if 'every pixel' in s] == ['dull says background everywhere: it gives every pixel the same class.']
    truth = read(tmp_path/'r/truth'); n = np.bincount(truth[truth != 255], minlength=4)
    if n.argmax() == 0: assert f"{r.evaluations['dull'].scores['mean_iou']:.4f}" in r.baseline
    assert f'mean IoU of {n.max() / n.sum() / 4:.4f} and a pixel accuracy of {n.max() / n.sum():.4f}' in r.baseline
    for f in ('report.md', 'report.html'): assert r.baseline in (tmp_path/'r'/f).read_text()

# the folder
@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere file names are Unicode')
def test_names_that_are_no_utf8_or_no_text(tmp_path, recwarn):
    data = folders(tmp_path/'d', n=11)
    stems = {'p003': 'caf\udce9', 'p004': 'line\rbreak\tand\x01more', 'p005': '\udcff\udcfe'}
    for old, new in stems.items():
        for sub in ('images', 'masks'): os.rename(data.root/sub/f'{old}.png', data.root/sub/f'{new}.png')
    space = LabelSpace.from_names(['background', 'c\x01at', 'd\udce9g', 'b\rird'], ignore_ids=(9,))
    ds = SegDataset.from_folders(data.root/'images', data.root/'masks', space)
    models, out = {'mod\udce9l': model(1, space), 'two\n': model(2, space)}, tmp_path/'r\udce9p'
    r = compare(models, ds, out, measure=False)
    assert not [w for w in recwarn if 'Glyph' in str(w.message)]
    for new in stems.values(): assert (out/'truth'/f'{new}.png').is_file() and all((f/f'{new}.png').is_file() for f in (out/'predictions').iterdir())
    texts = {f: (out/f).read_bytes().decode() for f in ('report.html', 'report.md', 'scores.json')}
    assert r'mod\udce9l' in texts['report.html'] and all(r'mod\\udce9l' in texts[f] for f in ('report.md', 'scores.json'))   # there a backslash is written \\
    assert r'caf\\udce9' in texts['report.html']
    stored = json.loads(texts['scores.json'])
    assert stored['classes'] == [n.encode('utf-8', 'backslashreplace').decode() for n in space.names] and set(stored['models']) == {'mod\\udce9l', 'two\n'}
    for text in (repr(r), r._repr_html_(), *r.verdicts): text.encode()
    import xml.dom.minidom, base64, re
    svgs = [base64.b64decode(b) for b in re.findall('image/svg\\+xml;base64,([^"]+)', texts['report.html'])]
    assert len(svgs) >= 4
    for svg in svgs: xml.dom.minidom.parseString(svg)                            # a picture that a browser can draw
    again = compare({'mod\udce9l': model(1, space)}, ds, out, measure=False)
    assert again.photo(ds.stems.index('caf\udce9'))['truth'].shape == (40, 48)

def test_hostile_stem_stays_inside(tmp_path):
    for stem in ('../out', '/etc/x', 'a/b'):
        with pytest.raises(ValueError, match='leave its folder'): evaluate_masks([(stem, np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))], CATS, out=tmp_path/'f')
    assert not list(tmp_path.rglob('*.png'))

def test_folder_of_somebody_else_is_left_alone(ds, tmp_path):
    (tmp_path/'truth').mkdir(); (tmp_path/'truth/mine.png').write_bytes(b'x')
    with pytest.raises(ValueError, match='expected an empty or new folder'): compare({'one': model(1)}, ds, tmp_path)
    assert (tmp_path/'truth/mine.png').exists()

def test_no_trace_of_an_earlier_comparison(ds, tmp_path):
    compare({'one': model(1), 'two': model(2)}, ds, tmp_path/'r', measure=False)
    compare({'three': model(3)}, ds, tmp_path/'r', measure=False, n_images=4)
    assert os.listdir(tmp_path/'r/predictions') == ['three'] and len(os.listdir(tmp_path/'r/truth')) == 4
    assert len(list((tmp_path/'r/pictures').iterdir())) == 4

def contents(out):
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file() and p.suffix in ('.png', '.csv')}
    scores = json.loads((out/'scores.json').read_text())
    for m in scores['models'].values(): m.pop('seconds')
    scores.pop('date')
    return files, scores

def test_evaluations_from_elsewhere_can_be_compared_and_written(tmp_path):
    made = {n: evaluate_masks(noisy(s, i, 12), CATS, n, out=tmp_path/n) for i, (n, s) in enumerate({'a': .1, 'b': .02}.items())}
    r = compare(made, out=tmp_path/'r')
    assert r.differences[0].better == 'b' and len(os.listdir(tmp_path/'r/predictions/a')) == 12 and 'No photo is shown' in (tmp_path/'r/report.html').read_text()

def test_three_models_and_names_that_clash(ds, tmp_path):
    r = compare({'m!': model(1), 'm?': model(2), 'M_': model(3)}, ds, tmp_path/'r', measure=False, n_photos=3)
    assert len(r.differences) == 3 and len({f.lower() for f in os.listdir(tmp_path/'r/predictions')}) == 3 and '3 pairs' in (tmp_path/'r/report.md').read_text()

def test_compare_is_a_function_and_comparison_a_module():
    import seglab, types
    assert isinstance(seglab.compare, types.FunctionType) and isinstance(sys.modules['seglab.comparison'], types.ModuleType)

def test_costs_of_a_convolution_known_on_paper():
    conv = Segmenter(nn.Conv2d(3, 8, 3, padding=1), list('abcdefgh'))
    r = measure_costs({'c': conv}, (10, 10), rounds=3, device='cpu')['c']
    assert r['parameters'] == 224 and r['flops'] == 2 * 100 * 8 * 27 and r['latency_ms'] > 0 and r['images_per_second'] > 0

# costs and calibration of both models, against other computations

def unet_and_segformer(labels=LABELS):
    from seglab.segformer import build_segformer
    from seglab.unet import build_unet
    torch.manual_seed(0)
    return dict(unet=build_unet(labels, 'resnet18', None),
                segformer=build_segformer(labels, weights=None, hidden_sizes=[16, 32, 64, 96], depths=[1, 2, 1, 1], decoder_hidden_size=64))

@pytest.fixture(scope='module')
def both(): return unet_and_segformer()

def flops_by_hand(segmenter, h, w):
    "Two per multiply-add of every convolution and linear layer, and of the two products of every attention."
    found, hooks = [], []
    def conv(m, x, y): found.append(2 * y.numel() * m.in_channels // m.groups * m.kernel_size[0] * m.kernel_size[1])
    def linear(m, x, y): found.append(2 * y.numel() * m.in_features)
    for m in segmenter.modules():
        if isinstance(m, nn.Conv2d): hooks.append(m.register_forward_hook(conv))
        if isinstance(m, nn.Linear): hooks.append(m.register_forward_hook(linear))
    with torch.inference_mode(): segmenter.eval()(torch.zeros(1, 3, h, w, dtype=torch.uint8))
    for hook in hooks: hook.remove()
    config = getattr(segmenter.net, 'config', None)
    if getattr(config, 'model_type', '') == 'segformer':
        stride = 1
        for s, sr, c, heads, depth in zip(config.strides, config.sr_ratios, config.hidden_sizes, config.num_attention_heads, config.depths):
            stride *= s
            n = (h // stride) * (w // stride)
            found.append(depth * 2 * 2 * n * (n // sr**2) * (c // heads * heads))  # q·k and weights·v: n queries, n/sr² keys, c numbers each
    return sum(found)

@pytest.mark.parametrize('name', ['unet', 'segformer'])
def test_flops_and_parameters_equal_a_count_by_hand(both, name):
    m = both[name]
    r = measure_costs({name: m}, (64, 96), batch_size=1, rounds=1, device='cpu')[name]
    assert r['flops'] == flops_by_hand(m, 64, 96) > 1e6
    assert r['parameters'] == sum(int(np.prod(p.shape)) for p in m.state_dict(keep_vars=True).values() if isinstance(p, nn.Parameter))

@pytest.mark.parametrize('name', ['unet', 'segformer'])
def test_memory_equals_what_torchs_allocator_says(both, name):
    from torch.profiler import ProfilerActivity, profile
    m, x = both[name].eval(), torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    with torch.inference_mode():
        m(x)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: m(x)
    events = [e for e in p.profiler.kineto_results.events() if e.name() == '[memory]']
    peak = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max()
    weights = sum(t.nbytes for t in [*m.parameters(), *m.buffers()])
    got = measure_costs({name: m}, (128, 128), batch_size=1, rounds=1, device='cpu')[name]['peak_memory_bytes'] - weights
    print(name, got, peak)
    assert .6 * peak <= got <= 1.02 * peak, 'all but the scratch space inside kernels, which torch counts too'

def test_latency_is_the_median_of_warm_passes(monkeypatch):
    "A clock that only the model moves: the first pass of a turn is cold, one pass is disturbed; neither shows."
    import seglab.costs as module
    now, passes = [0.], []
    class Slow(nn.Module):
        def __init__(self, cost): super().__init__(); self.p, self.cost, self.n = nn.Parameter(torch.zeros(1)), cost, 0
        def forward(self, x):
            cold = not passes or passes[-1] is not self                          # another model ran in between
            passes.append(self); self.n += 1
            now[0] += self.cost * len(x) + (.5 if cold else 0) + (3 if self.n == 9 else 0)
            return torch.zeros(len(x), 2, *x.shape[2:]) + self.p
    monkeypatch.setattr(module.time, 'perf_counter', lambda: now[0])
    r = measure_costs({n: Segmenter(Slow(c), ['a', 'b']) for n, c in (('quick', .01), ('slow', .04))}, (8, 8), batch_size=4, rounds=5, seconds=1e9, device='cpu')
    assert np.isclose(r['quick']['latency_ms'], 10) and np.isclose(r['slow']['latency_ms'], 40)
    assert np.isclose(r['quick']['images_per_second'], 100) and np.isclose(r['slow']['images_per_second'], 25)
    turns = [a is not b for a, b in zip(passes, passes[1:])]
    assert sum(turns) >= 2 * 5 - 1, 'the models take turns'

@pytest.mark.parametrize('name', ['unet', 'segformer'])
def test_calibration_equals_torchmetrics_and_boundaries_scipys(both, ds, name):
    from scipy import ndimage
    from torchmetrics.classification import MulticlassCalibrationError
    m, metric = both[name].eval(), MulticlassCalibrationError(4, n_bins=15, norm='l1', ignore_index=255)
    counts = np.zeros((2, 4), int)
    for i in range(len(ds)):
        image, truth = ds.raw(i)
        with torch.inference_mode(): probs = m(torch.as_tensor(image).permute(2, 0, 1)[None]).softmax(1)     # (1,K,H,W)
        metric.update(probs, torch.as_tensor(truth)[None].long())
        pred, ignored, d = probs.argmax(1)[0].numpy(), truth == 255, max(1, round(.02 * np.hypot(*truth.shape)))
        band = lambda a: a & ~ndimage.binary_erosion(a | ignored, np.ones((2*d + 1, 2*d + 1))) & ~ignored   # beyond the frame is outside
        for k in range(4):
            p, t = band((pred == k) & ~ignored), band((truth == k) & ~ignored)
            counts[:, k] += (p & t).sum(), (p | t).sum()
    got = evaluate(m, ds, name=name)
    assert abs(got.scores['ece'] - float(metric.compute())) < 1e-5
    assert (got.boundary_counts == counts).all()
    assert got.scores['mean_boundary_iou'] == np.mean([a / b for a, b in counts.T if b])

def test_model_comes_back_as_it_was(ds):
    m = model(1).train(); evaluate(m, ds)
    assert m.training and torch.is_grad_enabled() and next(m.parameters()).requires_grad

def test_memory_does_not_grow_with_photos_beyond_their_rows():
    rng = np.random.default_rng(0); kinds = LabelSpace.from_names([f'c{i}' for i in range(81)])
    few = [np.kron(rng.integers(0, 81, (2, 2), np.uint8), np.ones((8, 8), np.uint8)) for _ in range(50)]
    photos = lambda n: ((f'{i}', few[(i+1) % 50], few[i % 50]) for i in range(n))
    tracemalloc.start()
    e = evaluate_masks(photos(600), kinds, boundary=False)
    now, peak = tracemalloc.get_traced_memory(); tracemalloc.stop()
    assert peak < 600 * 700 + 2_000_000, 'a few hundred bytes a photo, not a matrix of 81 x 81'
    assert len(e.counts) < 600 * 9

# classes by name, truth that is checked, data in every wrapping

def chosen(names, values): return LabelSpace.from_dict(dict(names=names, ids=[[v] for v in values], ignore_ids=[9]))

@pytest.mark.parametrize('seed', range(12))
def test_a_model_right_by_name_scores_one_in_any_order(tmp_path, seed):
    "Random label spaces and orders: an oracle that answers by name is never scored under another's name."
    rng = np.random.default_rng(seed)
    K, words = int(rng.integers(2, 7)), ['background', *rng.permutation(['cat', 'dog', 'bird', 'rust', 'dent', 'car', 'sky', 'tree'])]
    data = folders(tmp_path, n=3, names=words[:K], seed=seed, void=False)
    theirs = list(rng.permutation(words[:K])) if seed % 2 else [*rng.permutation(words[:K]), 'unicorn']
    space = LabelSpace.from_names(theirs)

    class Oracle(nn.Module):
        "Knows the truth of each photo, in its own classes."
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1)); self.at = 0
        def forward(self, x):
            out = []
            for _ in x:
                truth = data.raw(self.at)[1]; self.at += 1
                own = np.array([theirs.index(n) for n in data.label_space.names])[truth]
                out.append(nn.functional.one_hot(torch.as_tensor(own), len(theirs)).permute(2, 0, 1).float() * 9)
            return torch.stack(out) + self.w

    oracle = Segmenter(Oracle(), space)
    if 'unicorn' in theirs:
        with pytest.raises(ValueError, match="'unicorn', which has no counterpart.*mapping={'unicorn': …}"): evaluate(oracle, data, classes=data.label_space)
    e = evaluate(oracle, data, mapping={'unicorn': None} if 'unicorn' in theirs else None)
    assert all(v == 1 for v in e.scores['per_category_iou'].values()), e.scores['per_category_iou']

def test_foreign_values_prove_nothing(ds):
    "cat is not scored as dog because both are 1."
    theirs = chosen(['background', 'dog', 'cat', 'horse'], [0, 1, 2, 3])
    with pytest.raises(ValueError, match='has no counterpart'): label_mapping(chosen(['background', 'scratch'], [0, 1]), theirs)
    assert label_mapping(chosen(['background', 'cat', 'dog'], [0, 1, 2]), theirs).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="mask value 1 is 'cat' in one and 'scratch' in the other"):
        evaluate(model(1, chosen(['background', 'cat', 'dog', 'bird'], [0, 1, 2, 3])), ds, classes=chosen(['background', 'scratch', 'dent', 'rust'], [0, 1, 2, 3]))

def test_many_become_one_by_a_mapping_and_the_report_says_so(ds, tmp_path):
    fine = LabelSpace.from_names(['sky', 'lion', 'tiger', 'poodle', 'sparrow'])
    with pytest.raises(ValueError, match='mapping='): evaluate(model(1, fine), ds)
    r = compare({'m': model(1, fine)}, ds, tmp_path/'r', mapping=dict(sky='background', lion='cat', tiger='cat', poodle='dog', sparrow=None), measure=False)
    stored = json.loads((tmp_path/'r/scores.json').read_text())['models']['m']
    assert stored['mapping'] == dict(sky='background', lion='cat', tiger='cat', poodle='dog', sparrow=None)
    for text in ((tmp_path/'r/report.md').read_text(), (tmp_path/'r/report.html').read_text()): assert 'lion, tiger → cat' in text and 'sparrow → nothing' in text
    assert np.array(stored['confusion_matrix'])[:, 3].sum() == 0

def test_a_prepared_folder_of_other_categories_is_not_scored_under_the_models_names(tmp_path):
    "Scratch, dent and rust were once counted as person, bicycle and car."
    from seglab.masks import prepare
    (tmp_path/'photos').mkdir()
    cv2.imwrite(str(tmp_path/'photos/a.png'), np.zeros((32, 32, 3), np.uint8))
    square = [[4, 4, 20, 4, 20, 20, 4, 20]]
    coco = dict(images=[dict(id=1, file_name='a.png', height=32, width=32)], categories=[dict(id=i, name=n) for i, n in enumerate(['scratch', 'dent', 'rust'], 1)],
                annotations=[dict(id=1, image_id=1, category_id=1, segmentation=square, area=256, bbox=[4, 4, 16, 16], iscrowd=0)])
    (tmp_path/'c.json').write_text(json.dumps(coco))
    prepare(tmp_path/'c.json', tmp_path/'photos', tmp_path/'p', size_hw=None, split='val', workers=1)
    theirs = model(1, chosen(['background', 'person', 'bicycle', 'car'], [0, 1, 2, 3]))
    with pytest.raises(ValueError, match="'person', which has no counterpart"): evaluate(theirs, tmp_path/'p')
    e = evaluate(theirs, tmp_path/'p', mapping=dict(person='scratch', bicycle=None, car=None))
    assert e.label_space.names == ['background', 'scratch', 'dent', 'rust'] and len(e) == 1
    assert evaluate(model(1, chosen(['background', 'rust', 'dent', 'scratch'], [0, 1, 2, 3])), tmp_path/'p').label_space.names[1] == 'scratch'

@pytest.mark.parametrize('space', [LabelSpace.from_names(['background', 'object']), LabelSpace.from_names({0: 'background', 255: 'object'})])
def test_black_and_white_truth_is_refused(space):
    masks = [(f'{i}', np.zeros((8, 8), np.uint8), np.where(np.eye(8, dtype=bool), 255, 0).astype(np.uint8)) for i in range(3)]
    with pytest.raises(ValueError, match='black and white|these are mask values'): evaluate_masks(masks, space)
    assert evaluate_masks([(s, p, (t > 0).astype(np.uint8)) for s, p, t in masks], space).scores['mean_iou'] < 1

def test_labels_that_no_class_has_are_refused(ds):
    class One(torch.utils.data.Dataset):
        def __len__(self): return 1
        def __getitem__(self, i): return dict(pixel_values=torch.zeros(3, 8, 8, dtype=torch.uint8), labels=torch.full((8, 8), 4))
    with pytest.raises(ValueError, match='4'): evaluate(model(1), One())

def test_empty_groups_are_none(ds):
    "Photos without a group were one group '' and the verdict said that 1 group is too few."
    import copy
    same = copy.copy(ds)
    for groups, n in (([''] * 14, 14), (['', 'a', 'a'] + [float('nan')] * 11, 13), (['a'] * 14, 1)):
        same.groups = groups
        c = compare({'one': model(1), 'two': model(2)}, same, measure=False)
        assert (c.n_units, c.grouped) == (n, n < 14)
    assert '1 groups of photos are too few' in c.verdicts[0]

def test_several_runs_are_one_entry(ds, tmp_path):
    "Scores are means over runs, the verdict speaks of the recipe, and the report can be opened again."
    c = compare({'conv': [model(1), model(2), model(3)], 'other': model(4)}, ds, tmp_path/'r', measure=False)
    alone = [evaluate(model(s), ds).scores['mean_iou'] for s in (1, 2, 3)]
    stored = json.loads((tmp_path/'r/scores.json').read_text())['models']['conv']
    assert np.isclose(stored['mean_iou'], np.mean(alone)) and [r['mean_iou'] for r in stored['runs']] == alone
    low, high = c.intervals['conv']
    assert low < min(alone) < max(alone) < high, 'three runs say little about how runs vary'
    assert 'judged by 3 runs of conv' in (tmp_path/'r/report.md').read_text() and any('conv is 3 runs' in s for s in c.notes)
    again = Comparison(tmp_path/'r')
    assert again.intervals == c.intervals and again.verdicts == c.verdicts and again.notes == c.notes
    one = compare({'conv': [model(1)], 'other': model(4)}, ds, measure=False)
    assert one.intervals['conv'] == compare({'conv': model(1), 'other': model(4)}, ds, measure=False).intervals['conv']

def test_subsets_and_joined_sets_are_scored_like_their_photos(ds):
    from torch.utils.data import ConcatDataset, Subset
    m = model(1)
    whole = evaluate(m, ds)
    parts = ConcatDataset([Subset(ds, [0, 1, 2]), Subset(Subset(ds, range(3, len(ds))), range(len(ds) - 3))])
    joined = evaluate(m, parts, workers=2, batch_size=5)
    assert joined.stems == whole.stems and joined.digest == whole.digest and (joined.matrix == whole.matrix).all()
    twice = evaluate(m, ConcatDataset([ds, ds]))
    assert len(set(twice.stems)) == 2 * len(ds) and (twice.matrix == 2 * whole.matrix).all()
    few = Subset(ds, [5, 1])
    assert [e.stems for e in compare({'a': m, 'b': model(2)}, few, measure=False).evaluations.values()] == [[ds.stems[5], ds.stems[1]]] * 2

def test_the_training_half_of_a_pair_is_scored_without_augmentation(ds):
    from seglab.dataset import train_tfms, valid_tfms
    import copy
    train, val, m = copy.copy(ds), copy.copy(ds), model(1)
    train.tfms, val.tfms = train_tfms((24, 24)), valid_tfms((24, 24))
    scored = evaluate(m, (train, val), split='train')
    assert scored.digest == evaluate(m, (train, val)).digest and train.tfms is not None
    with pytest.raises(ValueError, match="split='test': expected 'train' or 'val'"): evaluate(m, (train, val), split='test')

def test_groups_are_what_is_drawn_and_counted(tmp_path):
    made = {}
    for n, share in (('a', .1), ('b', .05)):
        made[n] = Evaluation(CATS, n, boundary=False, out=tmp_path/n, truth_out=tmp_path/'t')
        for i, (stem, p, t) in enumerate(noisy(share, 1, 40)): made[n].add(stem, p, t, f'drive {i // 10}')
    r = compare(made, out=tmp_path/'r')
    assert r.grouped and r.n_units == 4 and r.differences[0].better is None and '4 groups of photos are too few' in r.verdicts[0]
    assert (tmp_path/'r/scores_per_photo.csv').read_text().splitlines()[0] == 'stem,group,a,b'
    again = Comparison(tmp_path/'r')
    assert again.n_units == 4 and again.intervals == r.intervals and '40 photos in 4 groups' in (tmp_path/'r/report.md').read_text()

def test_a_report_opened_again_says_the_same(made):
    result, out = made
    again = Comparison(out)
    assert again.table.drop(columns=[]).equals(result.table) and again.verdicts == result.verdicts and again.notes == result.notes
    assert again.class_intervals == result.class_intervals and again.recipes == result.recipes
    shot = again.photo(2)
    assert (shot['truth'] == result.photo(2)['truth']).all() and set(shot['preds']) == set(result.evaluations)

def test_a_report_whose_masks_were_changed_is_refused(ds, tmp_path):
    compare({'m': model(1)}, ds, tmp_path/'r', measure=False)
    mask = next((tmp_path/'r/truth').glob('*.png'))
    m = cv2.imread(str(mask), -1); m[5, 5] = (m[5, 5] + 1) % 4; cv2.imwrite(str(mask), m)
    with pytest.raises(ValueError, match='expected the masks that were scored'): Comparison(tmp_path/'r')

def test_scores_of_each_photo_as_a_table(made):
    import pandas as pd
    result, out = made
    table = pd.read_csv(out/'scores_per_photo.csv')
    assert list(table.columns) == ['stem', 'one', 'two/2'] and list(table.stem) == result.stems
    assert np.allclose(table['one'], result.evaluations['one'].per_image['mean_iou'])

def test_rare_classes_are_named_and_photos_per_class_are_told(ds, tmp_path):
    rare = [(f'{i}', np.zeros((6, 6), np.uint8), np.eye(6, dtype=np.uint8) * (1 if i < 2 else 0)) for i in range(12)]
    r = Comparison({'m': evaluate_masks(rare, CATS)})
    assert r.support.tolist() == [12, 2] and any('1 of the classes is seen in fewer than 5 photos: cat (2)' in s for s in r.notes)

def test_a_verdict_never_differs_by_nothing():
    from seglab.comparison import verdict
    for d, low, high in ((3e-6, 1e-6, 5e-6), (3e-6, -1e-6, 5e-6), (0., 0., 0.)):
        assert '0.0000' not in verdict('a', 'b', d, low, high, 200).sentence
    assert verdict('a', 'b', .2, .1, .3, MIN_PHOTOS - 1).sentence.startswith('No winner between a and b')
    sure, unsure = (verdict('a', 'b', .2, low, .3, 90).sentence for low in (.1, -.1))
    assert 'unlikely to be chance. This holds for these two trained models' in sure and unsure.startswith('No winner') and unsure.endswith('so it may be chance.')

def test_large_photos_pass_in_bounded_memory(ds, monkeypatch):
    import seglab.answers as module
    whole = evaluate(model(1), ds, batch_size=14)
    sizes, ask = [], Segmenter.photo_logits
    monkeypatch.setattr(Segmenter, 'photo_logits', lambda m, x: sizes.append(len(x)) or ask(m, x))
    monkeypatch.setattr(module, '_LOGITS', 3 * 4 * 4 * 40 * 48)
    assert (evaluate(model(1), ds, batch_size=14).matrix == whole.matrix).all() and max(sizes) == 3

def test_one_mapping_speaks_of_several_models(ds):
    "A foreign model's names are no names of mine: the mapping was once refused for either."
    fine = model(1, LabelSpace.from_names(['sky', 'lion', 'tiger']))
    r = compare({'fine': fine, 'mine': model(0)}, ds, mapping=dict(sky='background', lion='cat', tiger='cat', dog=None), measure=False)
    assert r.evaluations['fine'].mapping == dict(sky='background', lion='cat', tiger='cat') and r.evaluations['mine'].mapping['dog'] is None
    for wrong, said in ((['cat'], 'expected a dict'), (dict(lyon='cat'), "did you mean 'lion'"), ({0: 'cat'}, 'classes that exist')):
        with pytest.raises(ValueError, match=said): compare({'fine': fine, 'mine': model(0)}, ds, mapping=wrong, measure=False)

@pytest.mark.parametrize('mapping', [None, dict(cat='dog', dog='cat'), dict(cat='dog'), dict(background=None)], ids=str)
def test_planes_give_what_whole_logits_give(ds, mapping):
    "Nothing is enlarged but one class plane of one photo, and no pixel, and no probability, differs for it."
    m = model(3).eval()
    into = label_mapping(m.label_space, ds.label_space, mapping)
    found = evaluate(m, ds, mapping=mapping, batch_size=3)
    for i, stem in enumerate(ds.stems[:4]):
        image, truth = ds.raw(i)
        p = m.predict_logits(image).softmax(0).double()
        own = torch.zeros(ds.label_space.num_labels, *truth.shape, dtype=torch.double)
        for k, t in enumerate(into):
            if t != IGNORE: own[t] += p[k]
        pred, sure = renamed(m.predict_logits(image)[None], into)
        kept = [k for k, t in enumerate(into) if t != IGNORE]
        assert (own.argmax(0).numpy() == pred[0].numpy()).mean() > .999 and torch.allclose(sure[0].double(), own.amax(0)/p[kept].sum(0), atol=1e-5)
    assert found.calibration.table.pixels.sum() == found.matrix.sum()

def test_no_number_is_no_answer(ds):
    broken = model(1)
    next(broken.parameters()).data.fill_(float('nan'))
    with pytest.raises(ValueError, match='finite logits; got NaN or infinity for photo'): evaluate(broken, ds)

@pytest.mark.parametrize('kw', [dict(n_images=-1), dict(n_images=0), dict(n_images=2.5), dict(batch_size=0), dict(workers=-1), dict(workers='x'), dict(device='cud')], ids=str)
def test_amounts_that_cannot_be_meant(kw, ds):
    "n_images=-1 once scored all photos but the last."
    with pytest.raises(UserError, match=f'{next(iter(kw))}='): evaluate(model(1), ds, **kw)

@pytest.mark.parametrize('kw', [dict(n_boot=0), dict(n_boot=-1), dict(confidence=95), dict(confidence=0), dict(confidence=float('nan')), dict(seed=-1)], ids=str)
def test_bootstraps_that_cannot_be_meant(kw):
    with pytest.raises(UserError, match=f'{next(iter(kw))}='): Comparison({}, **kw)
