"What strangers do to `fit`: numbers of other kinds, losses that read what they like, nets that tie weights, data of their own."
import functools, types
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset
from transformers import TrainerCallback
import seglab
from seglab.dataset import SegDataset
from seglab.files import UserError
from seglab.model import Segmenter
from seglab.nets import load_state
from seglab.losses import get_loss
from seglab.runs import find_settings, fingerprint
from seglab.train import fit
from seglab.zoo import build_model
from support.data import write_masks
from support.tiny import SEGFORMER
from support.training import LABELS, Stripes, tiny

NAMES = LABELS.names
DATA = Stripes(4), Stripes(2, 9)


def go(out, model=None, data=DATA, **kw):
    return fit(model or tiny(), data, out=out, **dict(epochs=1, batch_size=2, pictures=0, progress=False) | kw)


class Conv(nn.Module):
    "One layer; what the subclasses do with it is their fault."
    scale = 1
    def __init__(self): super().__init__(); torch.manual_seed(0); self.conv = nn.Conv2d(3, 3, 1)
    def forward(self, x): return self.scale*self.conv(x)


class Tied(Conv):
    def __init__(self): super().__init__(); self.again = self.conv
    def forward(self, x): return self.conv(x) + self.again(x)


class Detached(Conv):
    def forward(self, x): return self.conv(x).detach()


# --- one sentence, and no folder that cannot be read afterwards

@pytest.mark.parametrize('kw', [dict(batch_size=2.), dict(batch_size=1e9), dict(seed=-1), dict(seed=2**40), dict(seed='x'), dict(seed=None), dict(seed=True),
    dict(workers=-1), dict(workers='two'), dict(workers=1.5), dict(pictures=-1), dict(pictures='x'), dict(patience=2.5), dict(report_to=3), dict(report_to=True)], ids=str)
def test_a_number_that_cannot_be_meant_leaves_no_folder(kw, tmp_path):
    with pytest.raises(UserError, match=next(iter(kw))): go(tmp_path/'r', **kw)
    assert not (tmp_path/'r').exists()


def test_numpys_numbers_are_numbers(tmp_path):
    run = go(tmp_path/'r', epochs=np.int64(1), batch_size=np.int32(2), lr=np.float32(1e-3), seed=np.uint8(3))
    assert run.settings.batch_size == 2 and run.settings.seed == 3 and run.finished


@pytest.mark.parametrize('loss', [lambda x, y: 3., lambda x, y: F.cross_entropy(x, y, ignore_index=255, reduction='none'), lambda x, y: None])
def test_a_loss_is_one_number(loss, tmp_path):
    with pytest.raises(UserError, match='loss=.*one number'): go(tmp_path/'r', loss=loss)


@pytest.mark.parametrize('net,said', [(Detached(), 'Detach no logits'), (nn.Sequential(nn.Identity(), nn.Conv2d(4, 3, 1)), 'in_channels=.4.: expected 3')])
def test_a_net_that_cannot_be_trained_is_refused_before_the_first_step(net, said, tmp_path):
    with pytest.raises(UserError, match=said): go(tmp_path/'r', Segmenter(net, LABELS))
    assert not (tmp_path/'r').exists()


def test_tied_weights_are_saved_and_read(tmp_path):
    run = go(tmp_path/'r', Segmenter(Tied(), LABELS), epochs=2)
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    net = Tied(); net.conv.weight.data.zero_()
    assert run.load(net).net.again is net.conv and run.load(net)(x).abs().sum() > 0


# --- the identity of a run

VALUES, SPACE, LAYER = dict(gamma=1.), types.SimpleNamespace(gamma=1.), nn.CrossEntropyLoss(ignore_index=255)
PART = types.ModuleType('a_module_of_mine'); PART.gamma = 1.

def cross_entropy(x, y): return F.cross_entropy(x, y, ignore_index=255)
def by_dict(x, y): return VALUES['gamma']*cross_entropy(x, y)
def by_namespace(x, y): return SPACE.gamma*cross_entropy(x, y)
def by_module(x, y): return PART.gamma*cross_entropy(x, y)
def by_layer_inside(x, y): return (lambda: LAYER(x, y))()

class ByClass:
    gamma = 1.
    def __call__(self, x, y): return self.gamma*cross_entropy(x, y)

class BySlot:
    __slots__ = 'gamma',
    def __init__(self, gamma): self.gamma = gamma
    def __call__(self, x, y): return self.gamma*cross_entropy(x, y)

@pytest.mark.parametrize('loss,owner,name', [(by_dict, VALUES, 'gamma'), (by_namespace, SPACE, 'gamma'), (by_module, PART, 'gamma'),
    (by_layer_inside, LAYER, 'label_smoothing'), (ByClass(), ByClass, 'gamma'), (slot := BySlot(1.), slot, 'gamma')],
    ids=['dict', 'namespace', 'module', 'layer in a lambda', 'class attribute', 'slot'])
def test_whatever_a_loss_reads_is_part_of_it(loss, owner, name, monkeypatch):
    before = fingerprint(loss)
    assert fingerprint(loss) == before and before[1] == []
    (monkeypatch.setitem if isinstance(owner, dict) else monkeypatch.setattr)(owner, name, .5)
    assert fingerprint(loss)[0] != before[0]


def test_other_runs_are_refused(tmp_path):
    "A normalisation, a number inside a net of one's own, callbacks: a finished run once came back for each."
    def stretched():
        s = tiny()
        s.mean, s.std = (0.,)*3, (1.,)*3
        s._set_normalisation('cpu')
        return s
    class Twice(Conv): scale = 2
    go(tmp_path/'a'); go(tmp_path/'b', Segmenter(Conv(), LABELS))
    for kw in (dict(out=tmp_path/'a', model=stretched()), dict(out=tmp_path/'a', callbacks=[TrainerCallback()]), dict(out=tmp_path/'b', model=Segmenter(Twice(), LABELS))):
        with pytest.raises(UserError, match='a run that differs in'): go(**kw)
    assert go(tmp_path/'a').finished                                    # and the same one is still the same


def test_values_of_callbacks_are_a_stated_doubt(tmp_path):
    assert any('callbacks' in n for n in go(tmp_path/'r', callbacks=[TrainerCallback()]).config['notes'])


def test_photos_drawn_anew_are_other_data(tmp_path):
    "PNGs of noise keep their size when they are mirrored; sizes alone once told photos apart."
    images, masks = write_masks(tmp_path, 8)
    def data(): return tuple(SegDataset.from_folders(images, masks, NAMES, split=s) for s in ('train', 'val'))
    go(tmp_path/'r', data=data())
    file = images/f'{data()[0].stems[0]}.png'
    old = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1] + b'\1')
    assert file.stat().st_size == old
    with pytest.raises(UserError, match='photos, masks or transforms'): go(tmp_path/'r', data=data())


# --- data and weights

def test_indices_may_be_tensors(tmp_path):
    from seglab.dataset import train_tfms
    images, masks = write_masks(tmp_path, 8)
    ds = SegDataset.from_folders(images, masks, NAMES, tfms=train_tfms((32, 40)))
    assert (ds[torch.tensor(1)]['pixel_values'] == ds[1]['pixel_values']).all()
    part = Subset(ds, torch.tensor([0, 1, 2]))
    assert go(tmp_path/'r', data=(part, Subset(ds, np.array([3, 4])))).settings.train_images == 3


def test_weights_next_to_those_of_a_loss_or_a_teacher_load():
    net = nn.Conv2d(3, 3, 1)
    state = {f'model.net.{k}': v + 1 for k, v in net.state_dict().items()} | {'loss.weight': torch.ones(3), 'teacher.weight': torch.ones(1)}
    load_state(net, dict(state), 'x.ckpt')
    assert (net.weight == state['model.net.weight']).all()


def test_weights_of_a_run_and_of_a_file(tmp_path):
    run = go(tmp_path/'r')
    def built(weights): return build_model('segformer', NAMES, weights=str(weights), **SEGFORMER)
    for folder in (run.path, run.best): assert all(torch.equal(a, b) for a, b in zip(built(folder).net.state_dict().values(), run.load().net.state_dict().values()))
    with pytest.raises(UserError, match='load_weights'): built(run.best/'model.safetensors')
    with pytest.raises(FileNotFoundError, match='is a folder'): tiny().load_weights(run.path)


# --- what is put on a net is part of it

def classifier(model): return model.net.decode_head.classifier

def twice(module, x, y): return 2*y

def doubled(model): head, f = classifier(model), classifier(model).forward; head.forward = lambda x: 2*f(x)

class Mine(Segmenter):
    def normalize(self, x): return 2*super().normalize(x)

PUT = {'forward hook': lambda m: classifier(m).register_forward_hook(twice), 'hook on the whole': lambda m: m.register_forward_hook(twice),
       'pre-hook': lambda m: classifier(m).register_forward_pre_hook(lambda m, x: (2*x[0],)), 'backward hook': lambda m: classifier(m).register_full_backward_hook(lambda m, x, y: (0*x[0],)),
       'hook of a tensor': lambda m: classifier(m).weight.register_hook(lambda g: 0*g), 'hook behind the gradient': lambda m: classifier(m).weight.register_post_accumulate_grad_hook(lambda p: p.grad.zero_()),
       'method replaced': doubled, 'subclass': lambda m: setattr(m, '__class__', Mine)}

def identity(model): return find_settings(model, DATA, get_loss())

@pytest.mark.parametrize('kind', PUT)
def test_what_is_put_on_a_net_is_part_of_a_run(kind):
    "It decides the weights, and a finished run once came back without it."
    plain, model = tiny(), tiny()
    PUT[kind](model)
    (a, _), (b, doubts) = identity(plain), identity(model)
    assert a.architecture != b.architecture == identity(model)[0].architecture and any('hooks' in d for d in doubts) == ('hook' in kind)


def test_a_hook_is_its_code_and_its_numbers():
    "One that collects activations is the same after a thousand photos."
    def collected(k, seen):
        model = tiny()
        classifier(model).register_forward_hook(lambda m, x, y: seen.append(k*y))
        return identity(model)[0].architecture
    assert collected(2, []) == collected(2, [torch.ones(1)]) != collected(3, [])


@pytest.mark.parametrize('held', [F.gelu, lambda y: y, [1, 2], dict(a=1), functools.partial(F.leaky_relu, negative_slope=.1)],
    ids=['function', 'lambda', 'list', 'dict', 'partial'])
def test_what_a_net_of_ones_own_holds_is_part_of_a_run(held):
    def found(x):
        model = Segmenter(Conv(), LABELS)
        model.net.held = x
        return identity(model)[0].architecture
    assert found(held) != found(F.relu) == found(F.relu)
