"Nets from files of strangers: checkpoints with prefixes, pickles, lying safetensors, configurations that would run or fetch something."
import copy, json, re, struct
from pathlib import Path
import pytest, torch

from seglab.files import UserError
from seglab.model import Segmenter
from seglab.nets import load_state, read_weights
from seglab.zoo import build_model, from_smp
from support.faults import one_sentence
from support.hub import Logger, elsewhere, serving
from support.tiny import Bomb, NAMES, SEGFORMER, edit, tiny

# ---------------------------------------------------------------- checkpoints

PREFIXES = '', 'module.', 'model.', '_orig_mod.', 'net.', 'segmenter.net.', 'module._orig_mod.net.', 'model.net.', '_orig_mod.module.'

@pytest.mark.parametrize('wrap', [None, 'state_dict', 'model_state_dict', 'model', 'network'])
def test_checkpoints_of_other_trainers_load(wrap, tmp_path):
    s = tiny()
    own = s.net.state_dict()
    for p in PREFIXES:
        state = {f'{p}{k}': v for k, v in own.items()}
        torch.save({wrap: state, 'epoch': 3} if wrap else state, tmp_path/'c.pth')
        torch.manual_seed(1)
        fresh = build_model('segformer', NAMES, weights=None, **SEGFORMER).load_weights(tmp_path/'c.pth')
        assert all(torch.equal(v, own[k]) for k, v in fresh.net.state_dict().items()), (wrap, p)

def test_a_prefix_that_nobody_knows_is_named(tmp_path):
    s = tiny()
    torch.save({f'student.backbone.{k}': v for k, v in s.net.state_dict().items()}, tmp_path/'c.pth')
    with pytest.raises(UserError, match=r"begin with 'student\.backbone'"): s.load_weights(tmp_path/'c.pth')
    encoder = from_smp('unet', NAMES, 'tu-mobilenetv3_small_050', None).net.encoder      # its own names begin with model.
    load_state(encoder, encoder.state_dict(), 'x')

@pytest.fixture
def bomb(tmp_path, monkeypatch):
    "Where the bomb would leave its mark; checked at the end, whatever the test did."
    mark = tmp_path/'exploded'
    monkeypatch.setenv('BOMB', str(mark))
    yield lambda path, **kw: torch.save({'weight': Bomb()}, path, **kw)
    assert not mark.exists(), 'the pickle was run'

def test_the_bomb_is_live(tmp_path, monkeypatch):
    monkeypatch.setenv('BOMB', str(tmp_path/'exploded'))
    torch.save({'weight': Bomb()}, tmp_path/'b.pth')
    torch.load(tmp_path/'b.pth', weights_only=False)
    assert (tmp_path/'exploded').exists()

@pytest.mark.parametrize('new', [True, False], ids=['zip', 'plain pickle'])
@pytest.mark.parametrize('name', ['best_model.pth', 'pytorch_model.bin', 'model.safetensors', 'last.pt', 'model.ckpt'])
def test_weights_that_run_code_are_refused(bomb, tmp_path, name, new):
    bomb(tmp_path/name, _use_new_zipfile_serialization=new)
    s = tiny()
    for load in (lambda: s.load_weights(tmp_path/name), lambda: build_model('unet', NAMES, weights=tmp_path/name, encoder_name='resnet18')):
        with pytest.raises(UserError, match='expected (a )?readable weights') as e: load()
        one_sentence(str(e.value))

@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.safetensors'])
def test_folders_whose_weights_run_code_are_refused(bomb, tmp_path, name):
    folder = tiny().save_pretrained(tmp_path/'run'/'best')
    (folder/'model.safetensors').unlink()
    bomb(folder/name)
    for use in (lambda: Segmenter.from_any(tmp_path/'run'), lambda: build_model(folder, NAMES)):
        with pytest.raises(UserError) as e: use()
        one_sentence(str(e.value))

def test_best_model_next_to_good_weights_is_never_opened(bomb, tmp_path):
    folder = tiny().save_pretrained(tmp_path/'best')
    for name in ('best_model.pth', 'training_args.bin', 'optimizer.pt', 'model.pkl'): bomb(folder/name)
    Segmenter.from_any(folder)

def test_what_transformers_is_told(tmp_path, monkeypatch):
    "No code of a repository, tensors only, and for a finished model safetensors only."
    import transformers
    said, folder = [], tiny().save_pretrained(tmp_path/'m')
    for cls in (transformers.AutoConfig, transformers.AutoModelForSemanticSegmentation):
        real = cls.from_pretrained
        monkeypatch.setattr(cls, 'from_pretrained', lambda *a, real=real, **kw: said.append(kw) or real(*a, **kw))
    Segmenter.from_pretrained(folder); build_model(folder, NAMES)
    assert len(said) == 4 and all(kw['trust_remote_code'] is False and kw['local_files_only'] for kw in said)
    nets = [kw for kw in said if 'weights_only' in kw]
    assert [kw['weights_only'] for kw in nets] == [True, True] and [kw['use_safetensors'] for kw in nets] == [True, None]

def test_a_finished_model_is_never_a_pickle(tmp_path):
    folder = tiny().save_pretrained(tmp_path/'m')
    state = read_weights(folder/'model.safetensors')
    (folder/'model.safetensors').unlink()
    torch.save(state, folder/'pytorch_model.bin')
    with pytest.raises(UserError, match='expected (a )?readable weights'): Segmenter.from_pretrained(folder)

@pytest.mark.parametrize('fault', ['missing', 'shape'])
def test_a_finished_model_fits_to_the_last_tensor(fault, tmp_path):
    from safetensors.torch import save_file
    folder = tiny().save_pretrained(tmp_path/'m')
    state = read_weights(folder/'model.safetensors')
    key = next(k for k in state if 'decode_head.classifier.weight' in k)
    state = {k: v for k, v in state.items() if k != key} if fault == 'missing' else state | {key: state[key][:2].clone()}
    save_file(state, folder/'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(UserError, match='expected tensors that fit its own configuration'): Segmenter.from_pretrained(folder)

@pytest.mark.parametrize('data', [struct.pack('<Q', 2**62) + b'{}', struct.pack('<Q', 90_000_000) + b'{' + b' '*100, b'', b'{}',
                                  struct.pack('<Q', 70) + b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'])
def test_safetensors_that_lie(tmp_path, data):
    folder = tiny().save_pretrained(tmp_path/'m')
    (folder/'model.safetensors').write_bytes(data)
    with pytest.raises(UserError) as e: Segmenter.from_pretrained(folder)
    one_sentence(str(e.value))

# ---------------------------------------------------------------- configurations

SEGLAB = {                                                     # 30 damaged seglab.json; each was a traceback, or accepted without a word
    'id -1': dict(labels=dict(names=NAMES, ids=[[0], [-1], [2]])), 'id 256': dict(labels=dict(names=NAMES, ids=[[0], [1], [256]])),
    'id true': dict(labels=dict(names=NAMES, ids=[[0], [True], [2]])), 'id 1.5': dict(labels=dict(names=NAMES, ids=[[0], [1.5], [2]])),
    'id text': dict(labels=dict(names=NAMES, ids=[[0], ['1'], [2]])), 'ids flat': dict(labels=dict(names=NAMES, ids=[0, 1, 2])),
    'ids short': dict(labels=dict(names=NAMES, ids=[[0], [1]])), 'ids none': dict(labels=dict(names=NAMES, ids=None)),
    'names text': dict(labels=dict(names='abc', ids=[[0], [1], [2]])), 'names numbers': dict(labels=dict(names=[1, 2, 3], ids=[[0], [1], [2]])),
    'names twins': dict(labels=dict(names=['a', 'a', 'b'], ids=[[0], [1], [2]])), 'no names': dict(labels=dict(names=[], ids=[])),
    'ignore -1': dict(labels=dict(names=NAMES, ids=[[0], [1], [2]], ignore_ids=[-1])), 'labels 3': dict(labels=3), 'labels null': dict(labels=None),
    'one class': dict(labels=dict(names=['a'], ids=[[0]])),
    'std 0': dict(std=[.2, 0, .2]), 'std -1': dict(std=[-1, 1, 1]), 'std two': dict(std=[.2, .2]), 'std text': dict(std='abc'), 'std null': dict(std=None),
    'mean inf': dict(mean=[float('inf'), 0, 0]), 'mean nan': dict(mean=[float('nan'), 0, 0]), 'mean two': dict(mean=[1, 2]), 'mean null': dict(mean=None),
    'size three': dict(size_hw=[64, 64, 3]), 'size million': dict(size_hw=[10**6, 10**6]), 'size 0': dict(size_hw=[0, 64]), 'size negative': dict(size_hw=[-64, 64]),
    'size text': dict(size_hw='64'), 'size float': dict(size_hw=[64.5, 64]), 'tile 100': dict(tile=100), 'tile 0': dict(tile=0), 'tile text': dict(tile='512'), 'library': dict(library='os'), 'name null': dict(name=None), 'name list': dict(name=[1]),
    'base list': dict(base_weights=[1]), 'format 2': dict(format=2), 'path': dict(base_weights='~/.ssh/id_rsa'), 'name path': dict(name='../../../x')}

@pytest.fixture(scope='module')
def saved(tmp_path_factory): return tiny().save_pretrained(tmp_path_factory.mktemp('m')/'best')

def copy_of(folder, path):
    import shutil
    return Path(shutil.copytree(folder, path))

@pytest.mark.parametrize('change', SEGLAB)
def test_damaged_seglab_json(change, saved, tmp_path):
    folder = copy_of(saved, tmp_path/'m')
    edit(folder/'seglab.json', **SEGLAB[change])
    with pytest.raises(ValueError) as e: Segmenter.from_pretrained(folder)
    one_sentence(str(e.value))

CONFIG = [dict(num_labels=-1, id2label=None), dict(hidden_sizes='big'), dict(hidden_sizes=[-8, 16, 24, 32]), dict(depths=None), dict(num_attention_heads=[0]*4), dict(model_type='os'), dict(model_type=None),
          dict(decoder_hidden_size='x'), dict(hidden_dropout_prob='x'), dict(id2label=[1, 2]), dict(id2label={'a': 'b'}), dict(hidden_act='os.system'), dict(dtype='os.system')]
SMP = [dict(classes='3'), dict(classes=-1), dict(classes=None), dict(encoder_depth=99), dict(encoder_name=None), dict(encoder_name=3), dict(decoder_pyramid_channels='x'), dict(decoder_channels=[1]), dict(encoder_name='nothing'),
       dict(in_channels=0), dict(_model_class=None), dict(_model_class=['Unet']), dict(encoder_name='tu-nothing'), dict(aux_params=3), dict(in_channels=4)]

@pytest.mark.parametrize('seglab', [True, False], ids=['seglab.json', 'foreign'])
@pytest.mark.parametrize('change', range(len(CONFIG)))
def test_damaged_config_of_transformers(change, seglab, saved, tmp_path):
    folder = copy_of(saved, tmp_path/'m')
    edit(folder/'config.json', **CONFIG[change])
    if not seglab: (folder/'seglab.json').unlink()
    try: s = Segmenter.from_pretrained(folder)
    except (ValueError, OSError) as e: one_sentence(str(e))
    else: assert s(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).isfinite().all()

@pytest.mark.parametrize('change', range(len(SMP)))
def test_damaged_config_of_smp(change, smp_folder, tmp_path):
    folder = copy_of(smp_folder, tmp_path/'m')
    edit(folder/'config.json', **SMP[change])
    for drop in ('', 'seglab.json'):
        (folder/drop).unlink() if drop else None
        with pytest.raises((ValueError, OSError)) as e: Segmenter.from_pretrained(folder)
        one_sentence(str(e.value))

@pytest.mark.parametrize('change', [dict(image_mean='x'), dict(image_std=[0, 0, 0]), dict(size=dict(height='x', width=3)), dict(size=dict(height=10**6, width=10**6)), dict(image_mean=[1])])
def test_damaged_preprocessing(change, saved, tmp_path):
    folder = copy_of(saved, tmp_path/'m')
    (folder/'seglab.json').unlink()
    edit(folder/'preprocessor_config.json', **dict(do_resize=True) | change)
    with pytest.raises(UserError) as e: Segmenter.from_pretrained(folder)
    one_sentence(str(e.value))

@pytest.mark.parametrize('file', ['config.json', 'seglab.json'])
@pytest.mark.parametrize('text', ['', '[]', 'null', '{', '{"labels": 3}', '['*5000, '{"labels": {"names": ["a", "a"], "ids": [[0], [1]]}}'], ids=['empty', 'list', 'null', 'cut', 'number', 'deep', 'twins'])
def test_descriptions_that_describe_nothing(saved, tmp_path, file, text):
    folder = copy_of(saved, tmp_path/'m')
    (folder/file).write_text(text)
    with pytest.raises(ValueError) as e: Segmenter.from_pretrained(folder)
    one_sentence(str(e.value))

@pytest.mark.parametrize('file, change', [
    ('config.json', dict(backbone='../../secret')), ('config.json', dict(backbone_config=dict(weights='/etc/passwd'))), ('config.json', dict(auto_map={'AutoModel': 'evil.Net'})),
    ('preprocessor_config.json', dict(image_processor='C:\\evil.py')), ('preprocessor_config.json', dict(auto_map={'AutoImageProcessor': 'evil.P'})),
    ('model.safetensors.index.json', dict(weight_map={'w': '../other.safetensors'})), ('seglab.json', dict(base_weights='~/.ssh/id_rsa')), ('seglab.json', dict(name='../../../x'))])
def test_a_model_that_points_outside_its_folder(saved, tmp_path, file, change):
    folder = copy_of(saved, tmp_path/'m')
    if not (folder/file).exists(): (folder/file).write_text('{}')
    edit(folder/file, **change)
    with pytest.raises(UserError, match='which is refused'): Segmenter.from_pretrained(folder)

# ---------------------------------------------------------------- code and the network

@pytest.fixture(scope='module')
def smp_folder(tmp_path_factory): return from_smp('fpn', NAMES, 'mobilenet_v2', None).save_pretrained(tmp_path_factory.mktemp('s')/'best')

def test_only_options_of_the_architecture_reach_smp(smp_folder, tmp_path, monkeypatch):
    "`checkpoint_path` made older versions of timm run a pickle's code."
    folder = copy_of(smp_folder, tmp_path/'m')
    monkeypatch.setenv('BOMB', str(tmp_path/'exploded'))
    torch.save({'a': Bomb()}, folder/'best_model.pth')
    for change in (dict(encoder_name='tu-resnet10t', checkpoint_path=str(folder/'best_model.pth')), dict(encoder_name='tu-resnet10t', checkpoint_path='best_model.pth'),
                   dict(pretrained_cfg={'file': 'x'}), dict(encoder_name='tu-resnet10t', cache_dir='x'), dict(encoder_name='tu-resnet10t', drop_rate='x'), dict(anything=1),
                   dict(encoder_name='tu-resnet10t', pretrained_cfg_overlay=dict(url='http://x'))):
        edit(folder/'config.json', **json.loads((smp_folder/'config.json').read_text()) | change)
        with pytest.raises(UserError, match='which is refused|that is refused'): Segmenter.from_pretrained(folder)
        (folder/'config.json').write_text((smp_folder/'config.json').read_text())
    assert not (tmp_path/'exploded').exists()
    s = from_smp('unet', NAMES, 'tu-mobilenetv3_small_050', None, drop_rate=.1)                  # numbers for timm stay possible
    assert Segmenter.from_pretrained(s.save_pretrained(tmp_path/'timm')).num_labels == 3

def test_an_encoder_that_is_no_name_is_refused(smp_folder, tmp_path):
    folder = copy_of(smp_folder, tmp_path/'m')
    for name in ('tu-hf-hub:evil/repo', 'tu-hf_hub:evil/repo', 'tu-local-dir:x', 'evil/repo', 'tu-a/b'):
        edit(folder/'config.json', encoder_name=name)
        with pytest.raises(UserError, match='an encoder of smp or timm'): Segmenter.from_pretrained(folder)

NETWORK = [dict(backbone='evil/repo'), dict(backbone='resnet50'), dict(use_pretrained_backbone=True), dict(backbone_config=dict(model_type='timm_backbone', backbone='hf-hub:evil/repo')),
           dict(backbone='hf-hub:evil/repo', use_timm_backbone=True), dict(attn_implementation='evil/kernel'), dict(attn_implementation='flash_attention_2'), dict(_attn_implementation='evil/kernel'),
           dict(quantization_config=dict(quant_method='bitsandbytes', load_in_8bit=True)), dict(custom_pipelines=dict(x=dict(impl='x.py'))), dict(decoder_config=dict(model_type='detr', backbone='evil/repo'))]

@pytest.mark.parametrize('change', range(len(NETWORK)))
def test_what_would_fetch_something_is_refused(change, saved, tmp_path):
    folder = copy_of(saved, tmp_path/'m')
    edit(folder/'config.json', **NETWORK[change])
    for use in (lambda: Segmenter.from_any(folder), lambda: build_model(folder, NAMES)):
        with pytest.raises(UserError, match='which is refused') as e: use()
        one_sentence(str(e.value))

def test_a_local_folder_makes_no_call(saved, smp_folder, tmp_path):
    "A server that writes down what is asked, and folders of all kinds, good and evil."
    for i, change in enumerate(NETWORK): edit(copy_of(saved, tmp_path/f'hf{i}')/'config.json', **change)
    for i, change in enumerate([dict(encoder_name='tu-hf-hub:evil/repo'), dict(encoder_weights='imagenet'), dict(encoder_name='tu-mobilenetv3_small_050', encoder_weights='imagenet'), dict(encoder_name='evil/repo')]):
        edit(copy_of(smp_folder, tmp_path/f'smp{i}')/'config.json', **change)
    (copy_of(saved, tmp_path/'foreign')/'seglab.json').unlink()
    copy_of(saved, tmp_path/'good')
    bin = copy_of(saved, tmp_path/'bin')
    torch.save(read_weights(bin/'model.safetensors'), bin/'pytorch_model.bin'); (bin/'model.safetensors').unlink()
    with serving(Logger) as server:
        done = elsewhere(f'''
import sys, threading, time
from pathlib import Path
from seglab.model import Segmenter
from seglab.zoo import build_model
loaded = []
for folder in sorted(Path({str(tmp_path)!r}).iterdir()):
    if not folder.is_dir() or folder.name == 'home': continue
    for use in (Segmenter.from_any, lambda f: build_model(f, {NAMES!r}))[:1 if folder.name.startswith('smp') else 2]:
        try: use(folder); loaded.append(folder.name)
        except (ValueError, OSError) as e: pass
for t in threading.enumerate():
    if t is not threading.current_thread() and not t.daemon: t.join(20)
print(sorted(set(loaded)))
''', server.address, tmp_path/'home')
    assert done.returncode == 0, done.stderr
    assert server.asked == [], server.asked
    assert {'good', 'foreign', 'bin', 'smp1'} <= set(re.findall(r"'(\w+)'", done.stdout))

@pytest.mark.parametrize('processor, want', [(dict(image_mean=[.5]*3, image_std=[.25]*3), (.5, .25)), (dict(image_mean=[127.5]*3, image_std=[51.]*3, do_rescale=False), (.5, .2)),
                                             (dict(image_mean=[1.]*3, image_std=[.5]*3, rescale_factor=1/127.5), (.5, .25)), (dict(do_normalize=False, do_rescale=False), (0, 1/255))])
def test_a_processor_may_scale_otherwise(processor, want, tmp_path):
    "Its mean and deviation are of what it makes of bytes; they were taken as of photos 0…1."
    tiny().net.save_pretrained(tmp_path/'hf')
    (tmp_path/'hf'/'preprocessor_config.json').write_text(json.dumps(processor))
    s = Segmenter.from_pretrained(tmp_path/'hf')
    assert s.mean == pytest.approx([want[0]]*3) and s.std == pytest.approx([want[1]]*3)

def test_a_net_changed_after_it_was_built_is_loaded_by_its_owner(tmp_path):
    s = tiny()
    s.net.decode_head.classifier = torch.nn.Sequential(torch.nn.Conv2d(16, 8, 1), torch.nn.Conv2d(8, 3, 1))
    folder = s.save_pretrained(tmp_path/'m')
    torch.save(s.net.state_dict(), folder/'best_model.pth')
    with pytest.raises(UserError, match='load_weights'): Segmenter.from_pretrained(folder)
    again = Segmenter(copy.deepcopy(s.net).requires_grad_(False).apply(lambda m: [p.zero_() for p in m.parameters(False)]), NAMES).load_weights(folder/'best_model.pth')
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in s.state_dict().items())
