"Segmenter on many nets of both libraries: one contract, one road from photo to mask."
import json, re, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import segmentation_models_pytorch as smp
from seglab.dataset import LabelSpace
from seglab.files import UserError
from seglab.model import Segmenter, check_contract, check_model, check_segmenter, count_flops, evaluating
from seglab.nets import count_parameters
from seglab.zoo import from_smp, from_transformers
from support.faults import LONG
from support.tiny import FULL, NAMES, SEGFORMER, SHAPES, balanced, photo, tiny

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.mark.parametrize('kind', FULL if LONG else ['smp unet', 'smp segformer', 'segformer', 'upernet'])
def test_contract(kind):
    check_segmenter(FULL[kind](NAMES))

@pytest.mark.parametrize('kind', SHAPES if LONG else ['smp pan', 'smp tu-', 'beit', 'mask2former'])
def test_any_size_and_saved(kind, tmp_path):
    s = SHAPES[kind](NAMES).eval()
    loaded = Segmenter.from_pretrained(s.save_pretrained(tmp_path/'m'))
    own, back = s.net.state_dict(), loaded.net.state_dict()
    assert own.keys() == back.keys() and all(torch.equal(v, back[k]) for k, v in own.items())
    assert (loaded.label_space, loaded.mean, loaded.std, loaded.size_hw) == (s.label_space, s.mean, s.std, s.size_hw)
    with torch.no_grad():                                      # what BEiT caches in inference mode could never be trained with
        for hw in ((1, 1), (33, 70), (1000, 37), (64, 64)):
            x = torch.randint(0, 256, (2, 3, *hw), dtype=torch.uint8)
            y = s(x)
            assert y.shape == (2, 3, *hw) and y.dtype == torch.float32 and y.isfinite().all()
            assert torch.allclose(y, loaded(x), atol=1e-5)

def test_a_long_thin_photo():
    for s in (from_smp('unet', NAMES, 'resnet18', None), from_transformers('segformer', NAMES, **SEGFORMER)):
        assert s.predict(np.zeros((1000, 37, 3), np.uint8)).shape == (1000, 37)

def test_float_and_bytes_and_grey_agree():
    s = from_transformers('segformer', NAMES, **SEGFORMER).eval()
    x = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    assert torch.allclose(s(x), s(x / 255.), atol=1e-4)
    assert torch.equal(s(x[:, :1]), s(x[:, :1].expand(-1, 3, -1, -1)))

def test_predict_takes_what_people_have(tmp_path):
    s = from_transformers('segformer', NAMES, **SEGFORMER).eval()
    rgb = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    grey, exif = rgb[..., 0], Image.Exif()
    exif[274] = 6                                              # it lies on its side
    Image.fromarray(rgb).save(tmp_path/'rgb.png'); Image.fromarray(grey).save(tmp_path/'grey.png')
    Image.fromarray(rgb).save(tmp_path/'turned.png', exif=exif)
    Image.fromarray(np.dstack([rgb, grey])).save(tmp_path/'alpha.png')
    Image.fromarray(grey.astype(np.uint16)*257).save(tmp_path/'deep.png')
    mask, grey_mask = s.predict(rgb), s.predict(np.stack([grey]*3, -1))
    for same in ('rgb.png', 'alpha.png'): assert (s.predict(tmp_path/same) == mask).all(), same
    assert (s.predict(tmp_path/'turned.png') == s.predict(np.rot90(rgb, -1).copy())).all()
    for same in (tmp_path/'grey.png', tmp_path/'deep.png', grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)):
        assert (s.predict(same) == grey_mask).all(), same
    for same in (Image.fromarray(rgb), Image.fromarray(np.dstack([rgb, grey])), rgb/255., (rgb/255.).astype(np.float32),
                 torch.from_numpy(rgb).permute(2, 0, 1)/255, rgb[::-1][::-1]): assert (s.predict(same) == mask).all()
    for batch in (np.stack([rgb]*3), [rgb]*3, (tmp_path/'rgb.png',)*3, [str(tmp_path/'rgb.png'), Image.fromarray(rgb), rgb],
                  torch.from_numpy(np.stack([rgb]*3)).permute(0, 3, 1, 2)):
        masks = s.predict(batch)
        assert len(masks) == 3 and all((m == mask).all() for m in masks)
    assert s.predict([]) == []
    for wrong in (rgb.astype(np.float32), rgb.astype(int), (rgb/255. - .5)/.2, rgb[None, None], rgb[:0], 'nowhere.png', None, rgb[..., :2],
                  np.dstack([rgb, grey]), rgb.astype(np.uint16)*257, torch.zeros(4, 8, 8), Image.fromarray(grey.astype(np.int32))):
        with pytest.raises((ValueError, FileNotFoundError)) as e: s.predict(wrong)
        assert len(str(e.value)) > 20

def test_predict_warns_of_nothing(tmp_path):
    s = from_transformers('segformer', NAMES, **SEGFORMER)
    frozen = np.zeros((8, 9, 3), np.uint8)
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for image in (Image.fromarray(frozen), frozen, frozen[..., 0]): s.predict(image)

def test_floats_out_of_range_are_refused():
    s = from_smp('unet', NAMES, 'resnet18', None).eval()
    for x in (torch.rand(1, 3, 32, 32)*255, torch.randn(1, 3, 32, 32)*2):
        with pytest.raises(ValueError, match='expected floats 0…1'): s(x)
    s(torch.rand(1, 3, 32, 32)*1.2 - .1)                       # bicubic resizing overshoots

@pytest.mark.parametrize('kind', ['smp unet', 'segformer'])
def test_half_precision_and_channels_last(kind):
    s = FULL[kind](NAMES).eval()
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        full = s(x)
        assert torch.allclose(full, s.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), atol=1e-3)
        with torch.autocast('cpu', torch.bfloat16): auto = s(x)
        half = s.to(torch.bfloat16)(x)
    for y in (auto, half):
        assert y.dtype == torch.float32 and (y - full).abs().mean() < .1 * full.abs().mean().clamp_min(.1)
    assert s._mean.dtype == torch.float32

@pytest.mark.parametrize('kind', ['smp unet'] + ['segformer']*LONG)
def test_compiles_into_one_graph(kind):
    s = FULL[kind](NAMES).eval()
    x = torch.randint(0, 256, (2, 3, 65, 64), dtype=torch.uint8)
    with torch.no_grad():
        s(x)                                                   # transformers installs its hooks on the first call
        assert torch.allclose(torch.compile(s, backend='eager', fullgraph=True)(x), s(x), atol=1e-5)

def test_single_image_that_cannot_be_trained_on():
    s = from_smp('deeplabv3plus', NAMES, 'resnet18', None).train()
    with pytest.raises(ValueError, match='batch of at least 2'): s(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))

def test_any_module_and_mismatched_head(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1))
    s = Segmenter(net, NAMES).eval()
    assert s.predict(np.zeros((9, 8, 3), np.uint8)).shape == (9, 8)
    loaded = Segmenter.from_pretrained(s.save_pretrained(tmp_path/'m'), net=nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1)))
    x = torch.rand(1, 3, 20, 20)
    assert torch.equal(loaded(x), s(x))
    with pytest.raises(ValueError, match='a module of your own'): Segmenter.from_pretrained(tmp_path/'m')
    with pytest.raises(ValueError, match="'2 classes': expected 3, which the net answers for"): Segmenter(FULL['segformer'](NAMES).net, ['a', 'b'])

def test_flops_of_the_published_figures():
    s = from_smp('unet', [f'class {i}' for i in range(81)], 'resnet34', None)
    assert abs(count_flops(s) * 3 / 1e9 - 51.1) < 1.5 and 24e6 < count_parameters(s) < 25e6

@pytest.mark.parametrize('page,result', [('02_unet', '02_unet_sample'), ('03_segformer', '03_segformer_sample')])
def test_the_picture_on_top_of_a_chapter_is_of_the_run_below(page, result):
    "The recorded picture, the figure printed beside it and the training further down must be one and the same."
    nbs = Path(__file__).resolve().parents[1]/'nbs'
    printed = ''.join(''.join(o.get('text', '')) for c in json.loads((nbs/f'{page}.ipynb').read_text())['cells'] for o in c.get('outputs', []))
    top, run = re.search(r'mean IoU (0\.\d\d), background everywhere', printed), re.search(r'mean IoU (0\.\d{3}), background everywhere', printed)
    recorded = json.loads((nbs/'results'/f'{result}.json').read_text())['mean_iou']
    assert f'{recorded:.2f}' == top[1] and f'{recorded:.3f}' == run[1]

# ---------------------------------------------------------------- one road

@pytest.mark.parametrize('kind', ['smp unet', 'segformer', 'beit'])
@pytest.mark.parametrize('size_hw', [None, (64, 96)])
def test_all_ways_to_an_answer_are_one(kind, size_hw, tmp_path):
    "Noise as photo, the model at a size of its own: two kernels would differ in 0.5 % of the pixels."
    s = Segmenter((FULL | SHAPES)[kind](NAMES).net, NAMES, size_hw=size_hw).eval()
    file = photo(tmp_path/'p.png', 130, 171)
    image = np.array(Image.open(file))
    balanced(s, image)
    x, mask = torch.from_numpy(image).permute(2, 0, 1)[None], s.predict(file)
    with evaluating(s): logits, masks = s.predict_batch(x), s.predict_masks(x)
    assert len(np.unique(mask)) > 1 and logits.shape == (1, 3, 130, 171)
    for same in (logits.argmax(1)[0], masks[0], s.predict_logits(image).argmax(0), s.predict(image), s.predict([image, image])[1]): assert np.array_equal(same, mask)
    with evaluating(s): small = s.predict_batch(x, (40, 50))
    assert torch.allclose(small, s.predict_batch(x, size_hw=(40, 50)).detach(), atol=1e-5) and small.shape == (1, 3, 40, 50)
    if size_hw:                                                # the model sees what torchvision's v2 makes of the photo, in bytes
        from torchvision.transforms.v2 import functional as tvF
        with evaluating(s): assert torch.equal(s(tvF.resize(x, list(s.fixed_hw or size_hw), antialias=True), size_hw=(130, 171)), logits)

def test_evaluating_leaves_everything_as_it_was():
    s = FULL['smp unet'](NAMES).train()
    s.net.encoder.eval()                                       # frozen by its owner
    modes = [m.training for m in s.modules()]
    with pytest.raises(KeyError), evaluating(s) as same:
        assert same is s and not any(m.training for m in s.modules()) and not torch.is_grad_enabled()
        raise KeyError
    assert [m.training for m in s.modules()] == modes and torch.is_grad_enabled()
    s.predict(np.zeros((8, 9, 3), np.uint8))
    assert [m.training for m in s.modules()] == modes
    with evaluating(s, 'cpu'): assert s.device.type == 'cpu'

def test_a_model_learns_after_it_has_predicted():
    "BEiT keeps a table between two calls; made in inference mode it could not be trained with."
    s = SHAPES['beit'](NAMES).eval()
    s.predict(np.zeros((64, 64, 3), np.uint8))
    s(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).sum().backward()

def test_padding_is_cut_off_and_not_squeezed():
    "A net that answers with its own input: each pixel must stay where it is."
    class Same(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(1))
        def forward(self, x): return x * self.w
    s = Segmenter(Same(), NAMES, (0, 0, 0), (1, 1, 1)).eval()
    s.divisor = 32
    x = torch.randint(0, 256, (1, 3, 33, 70), dtype=torch.uint8)
    assert torch.allclose(s(x), x / 255)

def test_normalisation_to_the_digit():
    s = tiny()
    x = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    want = (x.double() / 255 - torch.tensor(s.mean).double().view(1, 3, 1, 1)) / torch.tensor(s.std).double().view(1, 3, 1, 1)
    assert (s.normalize(x).double() - want).abs().max() < 1e-5

@pytest.mark.parametrize('dtype', [torch.uint16, torch.int32, torch.int64, torch.int16, torch.bool])
def test_integers_that_are_no_bytes_are_refused(dtype):
    with pytest.raises(UserError, match='expected uint8'): tiny()(torch.ones(1, 3, 32, 32).to(dtype))

def test_normalised_floats_are_refused_on_every_device(monkeypatch):
    "On a GPU the first batch is looked at, and no other, since looking means waiting."
    s, looked = tiny(), []
    class Far:
        "Stands for a tensor on a GPU."
        device, ndim = torch.device('cuda'), 4
        def __init__(self, x): self.x = x
        def numel(self): return 1
        def detach(self): looked.append(1); return self.x
    with pytest.raises(UserError, match='do not normalise'): s._check_range(Far(torch.randn(1, 3, 8, 8)*2))
    for _ in range(3): s._check_range(Far(torch.rand(1, 3, 8, 8)))
    assert len(looked) == 2

# ---------------------------------------------------------------- one map for two classes

def one_map(kind):
    if kind == 'smp': return smp.Unet('resnet18', encoder_weights=None, classes=1)
    if kind == 'torch': return nn.Conv2d(3, 1, 3, padding=1)
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=1, **SEGFORMER))

@pytest.mark.parametrize('kind', ['smp', 'transformers', 'torch'])
def test_one_map_follows_its_threshold(kind, tmp_path):
    "Seen before: background everywhere, IoU 0.446 where the truth is 0.925."
    s = Segmenter(one_map(kind), ['background', 'cat']).eval()
    image = np.array(Image.open(photo(tmp_path/'p.png', 70, 90, smooth=True)))
    balanced(s, image)
    mask, logits = s.predict(image), s.predict_logits(image)
    assert 0 < mask.mean() < 1 and np.array_equal(mask, logits[1] > 0) and not logits[0].any()
    x, y = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.randint(0, 2, (2, 64, 64))
    out = s(x)
    assert torch.allclose(F.cross_entropy(out, y), F.binary_cross_entropy_with_logits(out[:, 1], y.float()), atol=1e-6)
    check_model(s, LabelSpace.from_names(['background', 'cat'])); check_contract(s)
    folder = s.save_pretrained(tmp_path/'m')
    loaded = Segmenter.from_pretrained(folder, net=one_map(kind) if kind == 'torch' else None)
    assert np.array_equal(loaded.predict(image), mask) and loaded.label_space == s.label_space
    assert 'There is one map: class 1 (cat)' in (folder/'README.md').read_text() or kind == 'torch'

def test_one_map_of_somebody_else(tmp_path):
    net = one_map('smp')
    net.save_pretrained(tmp_path/'m')
    s = Segmenter.from_any(tmp_path/'m')
    assert s.label_space.names == ['background', 'object']
    ended = smp.Unet('resnet18', encoder_weights=None, classes=1, activation='sigmoid')      # its answers are no logits
    ended.load_state_dict(net.state_dict())
    with pytest.raises(UserError, match='need logits'): Segmenter(ended, ['a', 'b'])
    ended.save_pretrained(tmp_path/'ended')
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad(): assert torch.equal(Segmenter.from_any(tmp_path/'ended')(x), s(x))

@pytest.mark.parametrize('names', [['cat'], NAMES])
def test_one_map_needs_two_names(names):
    with pytest.raises(ValueError): Segmenter(one_map('smp'), names)
    if len(names) > 1:
        with pytest.raises(UserError, match='Build the net for as many classes'): check_contract(Segmenter(one_map('torch'), names))

# ---------------------------------------------------------------- before the first step

def test_the_contract_is_asked_cheaply():
    s = tiny().train()
    state, rng = {k: v.clone() for k, v in s.state_dict().items()}, torch.get_rng_state()
    check_contract(s, (96, 64))
    assert s.training and torch.equal(rng, torch.get_rng_state()) and all(torch.equal(v, state[k]) for k, v in s.state_dict().items())
    import torchvision
    check_contract(Segmenter(torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3), NAMES))
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.c = nn.Conv2d(3, 4, 1)
        def forward(self, x): return self.c(x)
    for wrong, said in ((s.net, 'Wrap the module'), ('unet', 'a Segmenter'), (Segmenter(Two(), NAMES), r'got shape \(1, 4'), (Segmenter(nn.Identity(), NAMES), 'that can be trained')):
        with pytest.raises(UserError, match=said): check_contract(wrong)
    with torch.no_grad(): next(s.parameters()).fill_(float('nan'))
    with pytest.raises(UserError, match='finite'): check_contract(s)

@pytest.mark.parametrize('build', [lambda: from_smp('unet', NAMES, 'resnet18', None, in_channels=4), lambda: from_transformers('segformer', NAMES, num_channels=4, **SEGFORMER),
    lambda: from_transformers('segformer', NAMES, num_channels=1, **SEGFORMER), lambda: Segmenter(smp.Unet('resnet18', encoder_weights=None, classes=3, in_channels=1), NAMES)])
def test_other_channels_are_one_sentence_before_the_first_step(build):
    with pytest.raises(UserError, match='_channels=[14]: expected 3'): build()

# ---------------------------------------------------------------- whatever stands for a model

def test_from_any(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    s = tiny()
    run = tmp_path/'run'
    s.save_pretrained(run/'best')
    class Run:
        path = run
        def load(self): return Segmenter.from_pretrained(self.path)
    s.net.save_pretrained(tmp_path/'hf')
    smp.Unet('resnet18', encoder_weights=None, classes=3).save_pretrained(tmp_path/'smp')
    x = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    with torch.no_grad():
        for same in (s, Run(), run, str(run), run/'best', tmp_path/'hf'): assert torch.allclose(Segmenter.from_any(same)(x), s(x), atol=1e-6), same
    assert Segmenter.from_any(tmp_path/'smp').library == 'smp' and Segmenter.from_any(s) is s

@pytest.mark.parametrize('make, said', [
    (lambda p: p/'gone', 'got no folder of that name'), (lambda p: 'runs/unte', 'could not be fetched|no folder of that name'), (lambda p: (p/'masks').mkdir() or p, 'folder of data'),
    (lambda p: (p/'history.csv').write_text('') and None or (p/'config.json').write_text('{}') and p, 'train it further'), (lambda p: p, 'holds no model'), (lambda p: None, 'a Segmenter, a Run'),
    (lambda p: 7, 'a Segmenter, a Run'), (lambda p: nn.Conv2d(3, 3, 1), 'Wrap the module'), (lambda p: 'unet', 'no folder of that name')])
def test_what_stands_for_no_model(make, said, tmp_path, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises((ValueError, OSError), match=said) as e: Segmenter.from_any(make(tmp_path))
    assert 'random weights' not in str(e.value) and '\n' not in str(e.value)

def test_an_own_module_is_saved_for_its_owner(tmp_path):
    net = lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    s = Segmenter(net(), NAMES, size_hw=48).eval()
    assert s.size_hw == (48, 48)
    s.save_pretrained(tmp_path/'m')
    with pytest.raises(UserError, match='net=…'): Segmenter.from_any(tmp_path/'m')
    x = torch.rand(1, 3, 20, 20)
    with torch.no_grad(): assert torch.equal(Segmenter.from_pretrained(tmp_path/'m', net=net())(x), s(x))

def test_saved_files_have_the_rights_of_others_and_nothing_is_left(tmp_path, monkeypatch):
    s = tiny()
    folder = s.save_pretrained(tmp_path/'m')
    assert len({f.stat().st_mode & 0o777 for f in folder.iterdir()}) == 1 and [p.name for p in tmp_path.iterdir()] == ['m']
    import seglab.model as module
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module, 'write_json', full)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(OSError, match='disk is full'): tiny(['a', 'b', 'c']).save_pretrained(folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before and [p.name for p in tmp_path.iterdir()] == ['m']

# ---------------------------------------------------------------- without seglab

def test_the_code_of_the_card_gives_the_same_mask_without_seglab(tmp_path):
    image, runs = photo(tmp_path/'photo.png', 150, 203, smooth=True), []
    code = 'import sys, numpy as np\n'
    kinds = ['smp unet', 'smp fpn', 'smp deeplabv3plus', 'smp pan', 'segformer', 'upernet', 'dpt', 'beit', 'one map']
    for kind in kinds if LONG else ['smp pan', 'segformer', 'one map']:
        for size_hw in (None, (64, 96)):
            net = one_map('smp') if kind == 'one map' else (FULL | SHAPES)[kind](NAMES).net
            s = balanced(Segmenter(net, NAMES[:2] if kind == 'one map' else NAMES, (.4, .5, .6), (.2, .21, .22), size_hw).eval(), image)
            folder, mask = s.save_pretrained(tmp_path/f'model{len(runs)}'), tmp_path/f'{len(runs)}.npy'
            card = re.search(r'Without seglab:\n\n```python\n(.*?)```', (folder/'README.md').read_text(), re.S).group(1)
            code += card.replace('path/to/this/folder', str(folder)).replace('photo.jpg', str(image)) + \
                    f'\nnp.save({str(mask)!r}, mask)\n'
            runs.append((kind, size_hw, s.predict(image), mask))
    code += 'assert not any(m.split(".")[0] == "seglab" for m in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path, timeout=580)
    for kind, size_hw, ours, mask in runs:
        theirs = np.load(mask)
        assert ours.shape == theirs.shape == (150, 203) and len(np.unique(ours)) > 1, (kind, size_hw)
        assert (ours == theirs).all(), f'{kind} {size_hw}: {(ours != theirs).sum()} pixels differ'

@pytest.mark.parametrize('kw', [dict(std=(0, 0, 0)), dict(std=(float('nan'),)*3), dict(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)), dict(mean=(.5, .5)), dict(mean=.5), dict(size_hw=0), dict(size_hw=(64,)),
                                dict(size_hw=(-64, 64)), dict(size_hw=(64.5, 64)), dict(size_hw='64'), dict(name=3)], ids=str)
def test_preprocessing_that_cannot_be_meant(kw):
    "std=0 once answered class 0 everywhere, and '64' was (6, 4)."
    with pytest.raises(UserError, match=f'{next(iter(kw))}=.*expected'): Segmenter(nn.Conv2d(3, 3, 1), NAMES, **kw)

def test_preprocessing_in_other_kinds_of_numbers():
    s = Segmenter(nn.Conv2d(3, 3, 1), NAMES, np.array([.5, .5, .5], np.float32), torch.full((3,), .25), size_hw=np.int64(64))
    assert s.mean == (.5,)*3 and s.std == (.25,)*3 and s.size_hw == (64, 64)

@pytest.mark.parametrize('there', ['run', 'README.md', 'link'])
def test_a_folder_of_somebody_else_is_left_alone(there, tmp_path):
    "A model saved into a run's folder replaced the run's config.json."
    out, s = tmp_path/'out', tiny()
    s.save_pretrained(out)
    if there == 'link': (out/'config.json').unlink(); (out/'config.json').symlink_to(tmp_path/'gone')
    elif there == 'run': (out/'seglab.json').unlink(); (out/'history.csv').touch()
    else: out = tmp_path/'project'; out.mkdir(); (out/there).write_text('mine')
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob('*')}
    with pytest.raises(UserError, match='out='): s.save_pretrained(out)
    assert before == {p: p.lstat().st_mtime_ns for p in tmp_path.rglob('*')}


@pytest.mark.parametrize('make', [lambda: Segmenter(nn.Conv2d(3, 3, 1), 3), lambda: from_smp('unet', 3, encoder_weights=None), lambda: from_transformers('segformer', None, None)])
def test_a_number_of_classes_is_no_list_of_names(make):
    with pytest.raises(UserError, match='names=(3|None): expected a list of class names. Name each class.'): make()


def test_a_net_without_numbers_is_one_sentence():
    "Lazy modules that saw no photo yet, and nets on the meta device; once they have numbers, they are nets as any."
    lazy, meta = nn.Sequential(nn.LazyConv2d(3, 1)), nn.Conv2d(3, 3, 1, device='meta')
    for net, first in ((lazy, '0.weight'), (meta, 'weight')):
        with pytest.raises(UserError, match=f'net=.*: expected weights that hold numbers; got none in {first}'): Segmenter(net, NAMES[:3])
    lazy(torch.zeros(1, 3, 4, 4))
    assert Segmenter(lazy, NAMES[:3])(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4, 4)
    assert Segmenter(nn.Conv2d(3, 2, 1), {4: 'a', 7: 'b'}).label_space.ids == [[4], [7]]
