"""The comparison's numbers against other people's arithmetic, its honesty on simulated models, and its manners with a folder."""
import json, os, signal, subprocess, sys, textwrap, time, tracemalloc
from pathlib import Path
import cv2, numpy as np, pytest, torch
from torch import nn
from seglab.compare import (Comparison, MIN_PHOTOS, bootstrap_ious, compare, costs, evaluate, evaluate_masks, interval, label_mapping)
from seglab.dataset import LabelSpace, SegDataset
from seglab.model import Segmenter, from_smp

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
    assert sorted(os.listdir(out/'predictions')) == ['one', 'two_2'], 'a slash in a name makes no folder'

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
            assert (rows[c][1 + 3*m], rows[c][3 + 3*m]) == (f'{iou[k]:.4f}', f'{dice[k]:.4f}')
            assert f'<td>{iou[k]:.4f}</td>' in page and f'<td>{dice[k]:.4f}</td>' in page

def test_intervals_equal_scipys(made):
    from scipy.stats import bootstrap
    result, _ = made
    dense = {n: np.zeros((result.n, 4, 3)) for n in result.evaluations}
    for n, e in result.evaluations.items(): dense[n][e.counts[:, 0], e.counts[:, 1]] = e.counts[:, 2:]
    def mean_iou(name, rows):
        tp, t, p = dense[name][rows].sum(0).T
        with np.errstate(invalid='ignore'): return np.nanmean(tp / (t + p - tp))
    def check(statistic, got):
        r = bootstrap((np.arange(result.n),), lambda i: statistic(i.astype(int)), n_resamples=4000, method='percentile', vectorized=False, random_state=1)
        low, high = r.confidence_interval
        assert np.allclose(got, (low, high), atol=.1 * (high - low)), (got, low, high)
    check(lambda i: mean_iou('one', i), result.intervals['one'])
    check(lambda i: mean_iou('two/2', i) - mean_iou('one', i), result.differences[0]['interval'])

def full_of_one_class(right, size):
    return np.stack([np.arange(len(right)), 0 * right, right, 0 * right + size, right], 1).astype(np.int32)

def test_interval_holds_the_truth_about_95_times_in_100():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        table = full_of_one_class(rng.binomial(200, rng.beta(8, 2, 60)), 200)
        low, high = interval(bootstrap_ious([table], 60, 1, n_boot=400, seed=seed)[0, :, 0])
        hits += low <= .8 <= high
    assert 180 <= hits <= 199

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
    many = [two(.06, .052, 700, s).differences[0]['better'] for s in range(3)]
    few = [two(.06, .052, 12, s).differences[0]['better'] for s in range(10)]
    assert many == ['b'] * 3 and few.count('b') <= 5
    assert two(.3, .01, MIN_PHOTOS - 1).differences[0]['better'] is None, 'too few photos to call anything'

def test_no_difference_is_rarely_called_one():
    assert sum(two(.05, .05, 60, s).differences[0]['better'] is not None for s in range(40)) <= 6

def test_against_itself(ds):
    m = model(1)
    r = compare({'one': m, 'again': m}, ds, measure=False)
    d = r.differences[0]
    assert d['mean_iou'] == 0 and d['interval'] == [0, 0] and d['better'] is None and 'not shown' in r.verdicts[0]

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
    assert c.differences[0]['better'] is None and json.dumps(c.to_dict(), allow_nan=False)

# label spaces and sizes
FINE = LabelSpace.from_dict(dict(names=['background', 'cat', 'dog', 'bird'], ids=[[0], [1], [2], [3]], ignore_ids=[9]))
THINGS = LabelSpace.from_dict(dict(names=['background', 'object'], ids=[[0], [1, 2, 3]], ignore_ids=[9]))
OTHER = LabelSpace.from_dict(dict(names=['background', 'furry', 'flying'], ids=[[0], [1, 2], [3]], ignore_ids=[9]))
CUT = LabelSpace.from_dict(dict(names=['background', 'catdog', 'rest'], ids=[[0], [1], [2, 3]], ignore_ids=[9]))

def test_other_label_space_is_mapped_with_a_sentence(ds, tmp_path):
    fine, coarse = model(1, FINE), model(2, THINGS)
    r = compare({'fine': fine, 'coarse': coarse}, ds, tmp_path/'r', measure=False)
    assert r.labels.names == THINGS.names and any('fine answers in 4 classes' in s for s in r.notes)
    assert 'fine answers in 4 classes' in (tmp_path/'r/report.html').read_text()
    probs = fine.eval()(torch.as_tensor(ds[0]['pixel_values'])[None]).softmax(1)
    pred = (probs[:, 1:].sum(1) > probs[:, 0]).numpy()[0]
    assert (read(tmp_path/'r/predictions/fine')[0] == pred).mean() > .9999

def test_label_spaces_that_cut_across_each_other_are_refused(ds, tmp_path):
    with pytest.raises(ValueError, match='none of these label spaces can be mapped'): compare({'a': model(1, OTHER), 'b': model(2, CUT)}, ds, tmp_path/'r', measure=False)
    r = compare({'a': model(1, OTHER), 'b': model(2, CUT)}, ds, labels=THINGS, measure=False)
    assert r.labels.names == THINGS.names and sum('answers were mapped' in s for s in r.notes) == 2

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
    with pytest.raises(ValueError, match='4 classes and b in 2'): Comparison({'a': evaluate(model(1), ds), 'b': evaluate(model(1), ds, labels=THINGS)})

def test_runs_trained_at_other_sizes_are_told(ds, tmp_path):
    for n, size in (('a', [20, 24]), ('b', [40, 48])):
        from_smp('unet', LABELS, 'resnet18', None, encoder_depth=3, decoder_channels=(16, 8, 8)).save_pretrained(tmp_path/n/'best')
        (tmp_path/n/'config.json').write_text(json.dumps(dict(settings=dict(sample_hw=size, data_digest=n))))
    r = compare([tmp_path/'a', tmp_path/'b'], ds, measure=False)
    assert list(r.evaluations) == ['a', 'b'] and any('20×24 (a), 40×48 (b)' in s for s in r.notes) and any('different data' in s for s in r.notes)

def test_a_model_that_tells_nothing_apart_is_named_and_the_scale_is_given(ds, tmp_path):
    dull = model(1); nn.init.zeros_(dull.net[-1].weight); nn.init.zeros_(dull.net[-1].bias); nn.init.constant_(dull.net[-1].bias[:1], 9.)
    r = compare({'dull': dull, 'other': model(2)}, ds, tmp_path/'r', measure=False)
    assert [s for s in r.notes if 'tells nothing apart' in s] == ['dull says background everywhere: it tells nothing apart.']
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
    assert stored['classes'] == space.names and set(stored['models']) == {'mod\\udce9l', 'two\n'}
    for text in (repr(r), r._repr_html_(), *r.verdicts): text.encode()
    import xml.dom.minidom, base64, re
    svgs = [base64.b64decode(b) for b in re.findall('image/svg\\+xml;base64,([^"]+)', texts['report.html'])]
    assert len(svgs) >= 4
    for svg in svgs: xml.dom.minidom.parseString(svg)                            # a picture that a browser can draw
    again = compare({'mod\udce9l': model(1, space)}, ds, out, measure=False)
    assert again.photo(ds.stems.index('caf\udce9'))['truth'].shape == (40, 48)

def test_hostile_stem_stays_inside(tmp_path):
    for stem in ('../out', '/etc/x', 'a/b', '..', 'a\\b'):
        with pytest.raises(ValueError, match='leave its folder'): evaluate_masks([(stem, np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))], CATS, folder=tmp_path/'f')
    assert not list(tmp_path.rglob('*.png'))

def test_folder_of_somebody_else_is_left_alone(ds, tmp_path):
    (tmp_path/'truth').mkdir(); (tmp_path/'truth/mine.png').write_bytes(b'x')
    with pytest.raises(ValueError, match='did not write'): compare({'one': model(1)}, ds, tmp_path)
    assert (tmp_path/'truth/mine.png').exists()

def test_a_second_comparison_in_the_same_folder_is_told(ds, tmp_path):
    from seglab.compare import _begin
    with _begin(tmp_path/'r'):
        with pytest.raises(ValueError, match='another comparison is writing'): compare({'one': model(1)}, ds, tmp_path/'r', measure=False)
    compare({'one': model(1)}, ds, tmp_path/'r', measure=False)

def test_no_trace_of_an_earlier_comparison(ds, tmp_path):
    compare({'one': model(1), 'two': model(2)}, ds, tmp_path/'r', measure=False)
    compare({'three': model(3)}, ds, tmp_path/'r', measure=False, n_images=4)
    assert os.listdir(tmp_path/'r/predictions') == ['three'] and len(os.listdir(tmp_path/'r/truth')) == 4
    assert len(list((tmp_path/'r/pictures').iterdir())) == 4

KILLED = textwrap.dedent('''
    import sys, torch
    sys.path.insert(0, sys.argv[3])
    from test_compare import *
    ds = SegDataset.from_folders(sys.argv[1] + '/images', sys.argv[1] + '/masks', LABELS)
    print('ready', flush=True)
    compare({'one': model(1), 'two': model(2)}, ds, sys.argv[2], measure=False, batch_size=2)
''')
def contents(out):
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file() and p.suffix in ('.png', '.csv')}
    scores = json.loads((out/'scores.json').read_text())
    for m in scores['models'].values(): m.pop('seconds')
    scores.pop('date')
    return files, scores

@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL is a POSIX signal')
def test_killed_and_run_again_gives_the_same(tmp_path):
    data = folders(tmp_path/'d', n=30)
    go = lambda out: subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path/'d'), str(out), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    whole = compare({'one': model(1), 'two': model(2)}, data, tmp_path/'whole', measure=False, batch_size=2)
    p = go(tmp_path/'cut'); assert p.stdout.readline() == 'ready\n'
    end = time.time() + 60
    while len(list((tmp_path/'cut').rglob('*.png'))) < 40 and time.time() < end and p.poll() is None: time.sleep(.01)
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (tmp_path/'cut/scores.json').exists(), 'scores come last'
    (tmp_path/'cut'/'.tmp-left').write_bytes(b'half')
    compare({'one': model(1), 'two': model(2)}, data, tmp_path/'cut', measure=False, batch_size=2)
    assert contents(tmp_path/'cut') == contents(tmp_path/'whole') and not list((tmp_path/'cut').rglob('.tmp-*'))

def test_evaluations_from_elsewhere_can_be_compared_and_written(tmp_path):
    made = {n: evaluate_masks(noisy(s, i, 12), CATS, n, folder=tmp_path/n) for i, (n, s) in enumerate({'a': .1, 'b': .02}.items())}
    r = compare(made, out=tmp_path/'r')
    assert r.differences[0]['better'] == 'b' and len(os.listdir(tmp_path/'r/predictions/a')) == 12 and 'No photo is shown' in (tmp_path/'r/report.html').read_text()

def test_three_models_and_names_that_clash(ds, tmp_path):
    r = compare({'m!': model(1), 'm?': model(2), 'M_': model(3)}, ds, tmp_path/'r', measure=False, n_photos=3)
    assert len(r.differences) == 3 and len({f.lower() for f in os.listdir(tmp_path/'r/predictions')}) == 3 and '3 pairs' in (tmp_path/'r/report.md').read_text()

def test_the_module_answers_calls(ds):
    code = "import seglab.compare, seglab; assert callable(seglab.compare); from seglab.compare import compare; assert seglab.compare.compare is compare; import inspect; assert inspect.signature(seglab.compare) == inspect.signature(compare)\ntry: seglab.compare({})\nexcept ValueError as e: assert 'nothing to compare' in str(e)"
    subprocess.run([sys.executable, '-c', code], check=True)
    code = "import seglab\ntry: seglab.compare({})\nexcept ValueError as e: assert 'nothing to compare' in str(e)\nfrom seglab import compare as c; import seglab.compare; assert callable(c) and callable(seglab.compare)"
    subprocess.run([sys.executable, '-c', code], check=True)

def test_costs_of_a_convolution_known_on_paper():
    conv = Segmenter(nn.Conv2d(3, 8, 3, padding=1), list('abcdefgh'))
    r = costs({'c': conv}, (10, 10), rounds=3, device='cpu')['c']
    assert r['parameters'] == 224 and r['flops'] == 2 * 100 * 8 * 27 and r['latency_ms'] > 0 and r['images_per_second'] > 0

# costs and calibration of both models, against other computations

def unet_and_segformer(labels=LABELS):
    from seglab.segformer import build_segformer
    from seglab.unet import build_unet
    torch.manual_seed(0)
    return dict(unet=build_unet(labels, 'resnet18', weights=None),
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
    r = costs({name: m}, (64, 96), batch_size=1, rounds=1, device='cpu')[name]
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
    got = costs({name: m}, (128, 128), batch_size=1, rounds=1, device='cpu')[name]['peak_memory_bytes'] - weights
    print(name, got, peak)
    assert .6 * peak <= got <= 1.02 * peak, 'all but the scratch space inside kernels, which torch counts too'

def test_latency_is_the_median_of_warm_passes(monkeypatch):
    "A clock that only the model moves: the first pass of a turn is cold, one pass is disturbed; neither shows."
    import seglab.compare as module
    now, passes = [0.], []
    class Slow(nn.Module):
        def __init__(self, cost): super().__init__(); self.p, self.cost, self.n = nn.Parameter(torch.zeros(1)), cost, 0
        def forward(self, x):
            cold = not passes or passes[-1] is not self                          # another model ran in between
            passes.append(self); self.n += 1
            now[0] += self.cost * len(x) + (.5 if cold else 0) + (3 if self.n == 9 else 0)
            return torch.zeros(len(x), 2, *x.shape[2:]) + self.p
    monkeypatch.setattr(module.time, 'perf_counter', lambda: now[0])
    r = costs({n: Segmenter(Slow(c), ['a', 'b']) for n, c in (('quick', .01), ('slow', .04))}, (8, 8), batch_size=4, rounds=5, seconds=1e9, device='cpu')
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
