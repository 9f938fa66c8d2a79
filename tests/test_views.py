"Several views of a photo: the exact mean of probabilities, tiles, memory, rows of their own, and nothing of it saved."
import json
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from seglab.answers import command_line
from seglab.cli import main
from seglab.comparison import Comparison, compare, evaluate
from seglab.dataset import LabelSpace, SegDataset
from seglab.files import UserError
from seglab.model import Segmenter, evaluating
from seglab.runs import _COLUMNS
from seglab.share import export_onnx, predict_files
from seglab.tiles import predict_tiled
from seglab.views import Views, with_tta
from support.data import write_masks
from support.tiny import FULL, NAMES, saved_run, tiny

class LeftNeighbour(nn.Module):
    "Three maps from a pixel and the one on its left: mirrored, the net answers otherwise."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(6, 3, 1)
    def forward(self, x): return self.mix(torch.cat([x, F.pad(x, (1, 0))[..., :-1]], 1))

class Symmetric(nn.Module):
    "A net that answers a mirrored photo by the mirrored answer: its kernels are their own mirror images."
    def __init__(self, maps=3):
        super().__init__()
        torch.manual_seed(0)
        half = torch.randn(maps, 3, 3, 3)
        self.kernel = nn.Parameter(half + half.flip(-1))
    def forward(self, x): return F.conv2d(x, self.kernel, padding=1)

def noise(h, w, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
def tensor(photo): return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
def probabilities(model, photo):
    with evaluating(model): return model.predict_batch(tensor(photo)).softmax(1)[0].numpy()

def test_an_equivariant_net_answers_as_before():
    model, photo = Segmenter(Symmetric(), list('abc')).eval(), noise(37, 53)
    np.testing.assert_allclose(probabilities(with_tta(model), photo), probabilities(model, photo), atol=1e-6)
    assert np.array_equal(with_tta(model).predict(photo), model.predict(photo))

def test_the_mean_is_of_probabilities_and_exact():
    model, photo = Segmenter(LeftNeighbour(), list('abc')).eval(), noise(20, 31)
    want = (probabilities(model, photo) + probabilities(model, photo[:, ::-1])[..., ::-1])/2
    logits = with_tta(model).predict_logits(photo)
    np.testing.assert_allclose(logits.softmax(0), want, atol=1e-6)
    np.testing.assert_allclose(logits.exp(), want, atol=1e-6)                           # they are logarithms of it
    assert np.abs(want - probabilities(model, photo)).max() > .05                         # the net does not see both alike

def test_logits_would_have_another_mean():
    class Sure(nn.Module):
        "(0, 20) on the left half of a photo, (4, 0) on the right."
        def forward(self, x):
            left = (torch.arange(x.shape[-1]) < x.shape[-1]/2).expand(len(x), 1, *x.shape[-2:])
            return torch.cat([torch.where(left, 0., 4.), torch.where(left, 20., 0.)], 1)
    got = probabilities(with_tta(Segmenter(Sure(), ['a', 'b'])), noise(8, 8))
    np.testing.assert_allclose(got[1], (1 + 1/(1 + np.exp(4)))/2, atol=1e-6)            # not sigmoid((20 - 4)/2)

def test_a_net_of_one_map():
    class One(nn.Module):
        def __init__(self): super().__init__(); self.net = LeftNeighbour()
        def forward(self, x): return self.net(x)[:, :1]
    net, photo = One(), noise(12, 18)
    model = Segmenter(net, ['background', 'object']).eval()
    def sigmoid(x):
        with torch.no_grad(): return net(model.normalize(tensor(x))).sigmoid()[0, 0].numpy()
    want = (sigmoid(photo) + sigmoid(photo[:, ::-1])[:, ::-1])/2
    np.testing.assert_allclose(probabilities(with_tta(model), photo)[1], want, atol=1e-6)

def test_sizes():
    "A net that is asked about other sizes; by hand."
    from torchvision.transforms.v2 import functional as tvF
    model, photo, want = Segmenter(LeftNeighbour(), list('abc')).eval(), noise(40, 64), 0
    for s in (.75, 1, 1.25):
        for flip in (False, True):
            x = tvF.resize(tensor(photo), [round(40*s), round(64*s)], antialias=True)
            with torch.no_grad(): y = model(x.flip(-1)).flip(-1) if flip else model(x)
            want = want + F.interpolate(y, (40, 64), mode='bilinear').softmax(1)/6
    for scales in ((.75, 1, 1.25), (1.25, .75, 1)):
        np.testing.assert_allclose(probabilities(with_tta(model, scales), photo), want[0], atol=1e-5)

@pytest.mark.parametrize('kind', ['smp unet', 'segformer'])
def test_nets_that_need_padding_or_answer_coarsely(kind):
    torch.manual_seed(0)
    model, photo = FULL[kind](NAMES).eval(), noise(45, 70)
    got = probabilities(with_tta(model, (1, .5)), photo)
    assert got.shape == (3, 45, 70) and np.isfinite(got).all()
    small = Segmenter(model.net, NAMES, size_hw=(64, 96)).eval()                          # resized: flips lie exactly on each other
    with evaluating(small):
        y, x = (small.photo_logits(tensor(p)).softmax(1) for p in (photo, photo[:, ::-1]))
        torch.testing.assert_close(with_tta(small).photo_logits(tensor(photo)).exp(), (y + x.flip(-1))/2, atol=1e-6, rtol=0)

@pytest.mark.parametrize('size_hw', [(97, 211), (130, 65), (40, 64)])
def test_tiles(size_hw):
    "A net that sees one pixel far: the answer by tiles is that for the whole photo, views and all."
    model, photo = Segmenter(LeftNeighbour(), list('abc'), tile=64).eval(), noise(*size_hw)
    whole = Segmenter(model.net, list('abc')).eval()
    np.testing.assert_allclose(probabilities(with_tta(model), photo), probabilities(with_tta(whole), photo), atol=1e-5)
    assert np.array_equal(with_tta(model).predict(photo), predict_tiled(with_tta(whole), photo, 64))

def test_tiles_stay_small(monkeypatch):
    "No view is larger than a tile, and what waits is a strip, as without TTA."
    seen, model = [], with_tta(Segmenter(LeftNeighbour(), list('abc'), tile=64).eval())
    monkeypatch.setattr(Segmenter, 'normalize', lambda self, x, real=Segmenter.normalize: seen.append(tuple(x.shape)) or real(self, x))
    with evaluating(model): blocks = [b for _, _, b in model.predict_blocks(tensor(noise(300, 200))[0])]
    assert max(max(s[-2:]) for s in seen) == 64 and max(b[0].numel() for b in blocks) <= 64*64
    assert sum(b[0].numel() for b in blocks) == 300*200

def test_training_and_saving_know_nothing_of_it(tmp_path):
    model = tiny()
    tta, x = with_tta(model), tensor(noise(64, 64)).expand(2, -1, -1, -1)
    torch.manual_seed(0); a = model.train()(x)
    torch.manual_seed(0); b = tta.train()(x)
    assert torch.equal(a, b)
    saved = [s.eval().save_pretrained(tmp_path/n) for n, s in dict(a=model, b=tta).items()]
    for f in ('seglab.json', 'README.md', 'config.json'): assert (saved[0]/f).read_text() == (saved[1]/f).read_text()
    assert type(Segmenter.from_any(tta)) is Views and type(Segmenter.from_any(saved[1])) is Segmenter

def test_onnx_answers_the_same(tmp_path):
    import onnxruntime
    model, photo = with_tta(Segmenter(LeftNeighbour(), list('abc')).eval()), noise(64, 96)
    session = onnxruntime.InferenceSession(str(export_onnx(model, tmp_path/'m.onnx', sizes=((1, 64, 96), (2, 45, 70)))))
    np.testing.assert_allclose(session.run(None, {'pixel_values': tensor(photo).numpy()})[0][0], model.predict_logits(photo), atol=1e-4)

def test_what_cannot_be():
    model = Segmenter(LeftNeighbour(), list('abc'))
    for scales in ((), (0,), (1, 5), ('1',)):
        with pytest.raises(UserError, match='scales=.*from 0.25 to 4'): with_tta(model, scales)
    model.fixed_hw = (64, 64)
    with pytest.raises(UserError, match='knows photos of'): with_tta(model, (.75, 1))
    assert with_tta(model).fixed_hw is None                                              # the net's own, found anew

# ---------------------------------------------------------------- rows of their own

HISTORY = ','.join(_COLUMNS.values()) + '\n' + ','.join({'step': '12', 'epoch': '3', 'eval_loss': '.7', 'mean_iou': '.5'}.get(c, '') for c in _COLUMNS.values()) + '\n'

def finished(path, model=None):
    "A run folder with a history that can be drawn."
    saved_run(path, model, settings=dict(loss='ce'))
    (path/'history.csv').write_text(HISTORY)
    return path

@pytest.fixture(scope='module')
def data(tmp_path_factory): return SegDataset.from_folders(*write_masks(tmp_path_factory.mktemp('data'), n=12), LabelSpace.from_names(NAMES))

def test_evaluate_scores_the_mean(data):
    model = Segmenter(LeftNeighbour(), NAMES)
    found = evaluate(with_tta(model), data)
    by_hand = [with_tta(model).predict(data[i]['pixel_values'].permute(1, 2, 0).numpy()) for i in range(12)]
    truth = [data[i]['labels'].numpy() for i in range(12)]
    assert sum((p == t)[t != 255].sum() for p, t in zip(by_hand, truth)) == np.diag(found.matrix).sum()
    assert found.notes == [f'{model.name} answers by the mean probability of 2 views: the photo and its mirror image.']

def test_a_second_row_for_each_model(data, tmp_path):
    a, b = finished(tmp_path/'a'), Segmenter(LeftNeighbour(), NAMES)
    result = compare({'a': a, 'b': b}, data, tmp_path/'out', n_boot=50, tta=True)
    assert list(result.table.index) == list(result.costs) == ['a', 'a + TTA', 'b', 'b + TTA'] and len(result.verdicts) == 6
    plain = compare({'a': a, 'b': b}, data, n_boot=50, measure=False)
    assert all(result.table.loc[n, 'mean IoU'] == plain.table.loc[n, 'mean IoU'] for n in 'ab')
    assert result.costs['b + TTA']['flops'] == 2*result.costs['b']['flops'] and result.costs['b + TTA']['parameters'] == result.costs['b']['parameters']
    text = (tmp_path/'out'/'report.md').read_text()
    assert 'at test time' in text and text.count('a + TTA answers by the mean probability of 2 views') == 1
    assert result.recipes['a + TTA']['loss'] == 'ce' and list(result.histories) == [n for n in plain.histories]
    assert list(Comparison(tmp_path/'out').evaluations) == ['a', 'a + TTA', 'b', 'b + TTA']
    assert result.command is None                                                        # b has no folder

def test_runs_of_one_recipe(data, tmp_path):
    runs = [finished(tmp_path/f'r-{i}') for i in range(2)]
    result = compare({'r': runs}, data, n_boot=50, measure=False, tta=True)
    assert list(result.evaluations) == ['r', 'r + TTA'] and [len(e.runs) for e in result.evaluations.values()] == [2, 2]

def test_the_command_says_so(data, tmp_path, monkeypatch):
    images, masks = write_masks(tmp_path/'two', n=12)
    finished(tmp_path/'a')
    assert main(['compare', str(images), str(tmp_path/'out'), str(tmp_path/'a'), '--masks', str(masks), '--classes', ','.join(NAMES), '--split', 'all', '--tta', '--n-boot', '50', '--no-measure']) == 0
    assert list(json.loads((tmp_path/'out'/'scores.json').read_text())['models']) == ['a', 'a + TTA']
    assert command_line({'a': tmp_path/'a', 'a + TTA': with_tta(tmp_path/'a')}, 'data', 'out', 'val', True) == f'seglab compare data out {tmp_path}/a --tta'
    assert command_line({'a': tmp_path/'a', 'b': with_tta(tmp_path/'a')}, 'data', 'out', 'val') is None

def test_names_and_masks_that_stand_in_the_way(data):
    model = Segmenter(LeftNeighbour(), NAMES)
    with pytest.raises(UserError, match='tta=True.*b \\+ TTA'): compare({'b': model, 'b + TTA': model}, data, tta=True)
    with pytest.raises(UserError, match='tta=True.*finished evaluation'): compare({'b': evaluate(model, data)}, data, tta=True)

def test_files_are_predicted_from_several_views(tmp_path):
    model = Segmenter(LeftNeighbour(), NAMES)
    Image.fromarray(noise(33, 47)).save(tmp_path/'a.png')
    predict_files(model, tmp_path/'a.png', tmp_path/'out', tta=True, probabilities=True)
    assert np.array_equal(np.array(Image.open(tmp_path/'out'/'masks'/'a.png')), with_tta(model).predict(noise(33, 47)))
    got = np.load(tmp_path/'out'/'probabilities'/'a.npz')['probabilities']
    np.testing.assert_allclose(got, probabilities(with_tta(model), noise(33, 47)), atol=1e-3)
