"The command as a shell sees it: help, one-line mistakes, exit codes, Ctrl-C, streams, and every verb's example."
import csv, json, os, re, shlex, shutil, signal, subprocess, sys
from contextlib import chdir
from pathlib import Path
import cv2, numpy as np, pytest
from seglab import cli
from support.faults import posix

VERBS = list(cli._verbs)
MAIN = 'import sys; from seglab.cli import main; sys.exit(main())'

def run(*args, code=MAIN, env=None, **kw):
    "The command in a process of its own."
    kw = dict(capture_output=True, text=True, timeout=600) | kw
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], env={**os.environ, 'COLUMNS': '100', 'HF_HUB_OFFLINE': '1', **(env or {})}, **kw)

@pytest.fixture
def quick(capfd, monkeypatch):
    "The command in this process: (exit code, standard output, standard error)."
    monkeypatch.setenv('COLUMNS', '100')
    monkeypatch.setattr('warnings.showwarning', None)                  # put back afterwards
    def call(*args):
        capfd.readouterr()
        try: code = cli.main(args)
        except SystemExit as e: code = e.code
        return code, *capfd.readouterr()
    return call

def mistake(done, *said):
    "One line on standard error, exit code 1, no traceback."
    code, out, err = done if isinstance(done, tuple) else (done.returncode, done.stdout, done.stderr)
    assert code == 1, (code, out, err)
    lines = [line for line in err.splitlines() if line.startswith('seglab')]
    assert len(lines) == 1 and 'Traceback' not in err, err
    for s in said: assert s in lines[0], lines[0]
    return lines[0]

# ---------------------------------------------------------------- help

@pytest.mark.parametrize('verb', VERBS)
def test_help_fits_a_screen_and_shows_an_example(verb, quick):
    for option in ('-h', '--help'):
        code, out, err = quick(verb, option)
        assert code == 0 and not err
        lines = out.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 110, out
        assert f'example:\n  seglab {verb} ' in out
        assert '_' not in ''.join(re.findall(r'^  (--\S+)', out, re.M)), 'options are spelled with hyphens'

def disagreements(verb):
    "Options whose help or default is not that of the function behind, which is imported and asked."
    from importlib import import_module
    from fastcore.docments import docments
    out, spec = [], cli._verbs[verb]
    seen = {*docments(spec.func, returns=False)}
    helps = {a.dest: a.help for a in cli._parser(verb)._actions if a.help != '==SUPPRESS=='}
    for behind, which in spec.behind.items():
        module, _, name = behind.partition('.')
        module = import_module(f'seglab.{module}')
        pars = docments(getattr(module, name, None) or getattr(module.SegDataset, name), full=True, returns=False)
        source = cli._read_source(behind)[0]
        for k in cli._picked([k for k in pars if k in source and k not in ('cls', 'self')], which):
            here = spec.names.get(k, k)
            if here in seen or seen.add(here) or here in [w.rstrip('+') for w in spec.words]: continue
            default = spec.defaults.get(here, pars[k].default)
            want = cli._help(cli._Par(here, '', default, ' '.join((pars[k].docment or '').split()))).replace('%%', '%')
            if default is True: want = f'switch off: {want}'
            elif isinstance(default, (int, float, str)) and default is not False and default != '' and source[k].default is not ...:
                want += f' [{default:g}]' if isinstance(default, float) else f' [{default}]'
            if helps[here].replace('%%', '%') != want: out.append(f'{verb}: {here}: {helps[here]!r} is not {want!r}')
    return out

@pytest.mark.parametrize('verb', VERBS)
def test_the_help_is_that_of_the_functions_behind(verb): assert not disagreements(verb)

def test_a_help_that_says_something_else_is_noticed(monkeypatch):
    read = cli._read_source
    def other(behind):
        pars, doc = read(behind)
        return {k: p._replace(text='By the way: ' + p.text) if k == 'crowd' else p for k, p in pars.items()}, doc
    monkeypatch.setattr(cli, '_read_source', other)
    assert 'crowd' in disagreements('prepare')[0]
    monkeypatch.setattr(cli, '_read_source', lambda b: ({k: p._replace(default='paint') if k == 'crowd' else p for k, p in read(b)[0].items()}, ''))
    assert 'crowd' in disagreements('prepare')[0]

def test_help_loads_nothing_heavy():
    code = f'''import sys
from seglab.cli import main
for verb in {VERBS}:
    try: main([verb, '-h'])
    except SystemExit: pass
heavy = {{'torch', 'transformers', 'pandas', 'cv2', 'numpy', 'matplotlib'}} & set(sys.modules)
sys.exit(f'heavy imports: {{heavy}}' if heavy else 0)'''
    done = run(code=code)
    assert done.returncode == 0, done.stderr

def test_version_and_overview(quick):
    import seglab
    assert quick('--version')[1].strip() == f'seglab {seglab.__version__}'
    for args in ([], ['-h'], ['--help'], ['help']):
        code, out, err = quick(*args)
        assert code == 0 and all(f'seglab {v} ' in out for v in VERBS)

def test_the_installed_script_is_this():
    from importlib.metadata import entry_points
    ours = {e.name: e.value for e in entry_points(group='console_scripts') if e.name.startswith('seglab')}
    if not ours: pytest.skip('seglab is not installed, so it has no script')
    assert ours == dict(seglab='seglab.cli:main')

# ---------------------------------------------------------------- mistakes

@pytest.mark.parametrize('args, said', [
    (['trian'], "did you mean 'train'"), (['prepare', 'a.json'], 'required: IMAGES, OUT'),
    (['prepare', 'a.json', 'b', 'c', '--size', '3'], "did you mean '--size-hw'"),
    (['train', 'a', 'b', '--batchsize', '3'], "did you mean '--batch-size'"), (['demo'], 'required: OUT'),
    (['prepare', 'a.json', 'b', 'c', '--n-images', 'many'], '--n-images: expected a whole number; got many'),
    (['prepare', 'a.json', '.', 'c', '--size-hw', 'big'], '--size-hw: expected a number such as 256, HEIGHTxWIDTH such as 360x480'),
    (['train', 'a', 'b', '--set', 'cosine'], '--set: expected name=value'), (['train', 'a', 'b', '--epochs', 'ten'], '--epochs: expected a number'),
    (['prepare', 'nothing.json', '.', 'c'], 'nothing.json'), (['train', 'nothing', 'run'], 'nothing'), (['compare', 'data', 'out'], 'MODELS'),
    (['predict', 'nothing', 'out', 'x.jpg'], 'x.jpg'), (['share', 'nothing'], 'expected'), (['share', '.', '--to', 'ftp'], '--to ftp: expected folder, hub, wandb or onnx'),
    (['share', 'x', '--to', 'hub'], '--repo user/name'), (['share', 'x', '--to', 'onnx', '--repo', 'a/b'], '--repo a/b: expected nothing, since --to onnx'),
    (['fetch', 'val2071', 'out'], 'SPLIT val2071: expected val2017'), (['fetch', 'val2017', __file__], 'expected a folder; got a file'),
    (['demo', 'out', '--coco', 'nothing'], 'nothing'), (['train', '.', 'out', '--masks', '.'], 'expected'),
    (['compare', 'd', 'o', 'm', '--suffix', '_L'], 'together with --masks. Give both, or neither.'),
    (['check'], 'required: DATA'), (['check', 'nothing'], 'nothing'), (['check', 'nothing.json', '.'], 'nothing.json'), (['check', __file__], 'an annotation file and the folder of its photos'),
    (['check', 'a', 'b', '--masks', 'm'], 'one folder of photos with --masks'), (['check', 'processed', '--crowd', 'paint'], '--crowd paint: expected nothing, since a check of a prepared folder'),
    (['check', 'a', '--masks', 'm', '--groups', 'auto'], '--groups auto: expected nothing, since a check of --masks'), (['check', 'a.json', 'b', '--window', '3'], '--window: expected two numbers such as 0,4095'),
])
def test_a_mistake_is_one_line(args, said, quick, tmp_path):
    with chdir(tmp_path): mistake(quick(*args), said)
    assert not list(tmp_path.rglob('*.lock')) or args[0] == 'fetch'

def test_sentences_speak_shell():
    say = lambda s, verb='prepare': cli._in_shell(s, verb)
    assert say("size_hw=(0, 40): expected positive sides.") == '--size-hw 0x40: expected positive sides.'
    assert say("Pass weights=None, or model='unet'.", 'train') == 'Pass --weights none, or --model unet.'
    assert say("name='unett': expected a model.", 'train') == '--model unett: expected a model.'
    assert say("resume=False starts again; compile=True does not.", 'train') == '--no-resume starts again; compile=True does not.'
    assert say("out='my data': expected a new folder.") == 'OUT "my data": expected a new folder.'
    assert say("keep=['cat', 'dog']: expected names.") == '--keep cat --keep dog: expected names.'
    assert say('see page?size_hw=3 or x.split=1') == 'see page?--size-hw 3 or x.split=1'

BROKEN = '''import sys
sys.argv = ['seglab', 'prepare', 'a', 'b', 'c']
import seglab.masks, numpy as np
from seglab.files import UserError
def broken(*args, **kwargs): {0}
seglab.masks.prepare = broken
from seglab.cli import main
sys.exit(main())'''

def test_a_bug_keeps_its_traceback_and_a_mistake_has_none(quick, monkeypatch):
    from seglab.files import UserError
    def broken(error):
        def prepare(*args, **kw): raise error
        monkeypatch.setattr('seglab.masks.prepare', prepare)
        return 'prepare', 'a', 'b', 'c'
    for bug in (KeyError('key'), ValueError('ours'), RuntimeError('busy')):
        with pytest.raises(type(bug)): quick(*broken(bug))
    mistake(quick(*broken(UserError('two\n  lines'))), 'seglab prepare: two lines')
    mistake(quick(*broken(PermissionError(13, 'Permission denied', 'x'))), 'Permission denied: x')
    done = run(code=BROKEN.format('return {}["key"]'))
    assert done.returncode == 1 and 'Traceback' in done.stderr, done.stderr

# ---------------------------------------------------------------- streams and signals

@pytest.mark.parametrize('verb', VERBS)
def test_ctrl_c_says_what_is_left(verb, quick, monkeypatch):
    def stopped(**given): raise KeyboardInterrupt
    spec = cli._verbs[verb]
    monkeypatch.setitem(cli._verbs, verb, spec._replace(func=stopped))
    monkeypatch.setattr(cli, '_given', lambda name, argv: {})
    code, out, err = quick(verb)
    assert code == 130 and err == f'seglab {verb}: stopped; {spec.stopped}\n'
    assert 'resumes' in err or 'from the start' in err

@posix
def test_a_real_ctrl_c():
    code = '''import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background inherits that it is ignored
import seglab.masks
def slow(*args, **kwargs): print('at work', flush=True); time.sleep(600)
seglab.masks.prepare = slow
from seglab.cli import main
sys.exit(main())'''
    p = subprocess.Popen([sys.executable, '-c', code, 'prepare', 'a', 'b', 'c'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'at work\n'
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 130 and 'Traceback' not in err and err.startswith('seglab prepare: stopped; ') and 'the same command resumes' in err

@posix
def test_whatever_standard_output_is():
    shell = lambda what: subprocess.run(f"{sys.executable} -c '{MAIN}' {what}", shell=True, capture_output=True, text=True)
    done = shell('-h | head -1')
    assert done.stderr == '' and done.stdout.startswith('seglab')
    done = shell('-h >&-')
    assert done.returncode == 0 and done.stderr == ''
    done = shell('prepare a.json b c >&-')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    if Path('/dev/full').exists():
        code = BROKEN.format('return 1').replace('"', '\\"')
        done = subprocess.run(f'{sys.executable} -c "{code}" >/dev/full', shell=True, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count('\n') == 1 and 'No space left' in done.stderr, done.stderr

def test_a_terminal_that_knows_ascii_only():
    for env in (dict(PYTHONIOENCODING='ascii'), dict(LC_ALL='POSIX', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')):
        done = run(code=BROKEN.format(r'return "\u00d7 \u96ea"'), env=env)
        assert done.returncode == 0 and not done.stderr, (env, done.stderr)

def test_of_several_processes_one_speaks(quick, monkeypatch):
    monkeypatch.setattr('seglab.masks.prepare', lambda *args, **kw: 'done')
    assert quick('prepare', 'a', 'b', 'c')[1] == 'done\n'
    monkeypatch.setenv('RANK', '1')
    assert quick('prepare', 'a', 'b', 'c')[1] == ''

# ---------------------------------------------------------------- what is given

def given(*args): return cli._given(args[0], args[1:])

def test_hyphens_are_underscores():
    assert given('train', 'd', 'o', '--batch-size', '2', '--keep-best=mean_iou', '--no-resume') == given('train', 'd', 'o', '--batch_size', '2', '--keep_best=mean_iou', '--no_resume')
    assert given('train', 'd', 'o', '--no_resume', '--project=my_runs') == dict(data='d', out='o', resume=False, project='my_runs')
    assert given('train', 'd', 'o') == dict(data='d', out='o'), 'what is not given is left to the function'
    assert given('train', '--lr', '1e-3', 'd', '--epochs=2', 'o') == dict(data='d', out='o', lr=1e-3, epochs=2.), 'in any order'

def test_values():
    assert given('prepare', 'a', 'b', 'c', '--size-hw', '360x480', '--keep', 'cup, small', '--keep', 'dog', '--split', 'val=.1,test=.1') == dict(
        annotations=['a'], images='b', out='c', size_hw=(360, 480), keep=['cup, small', 'dog'], split=dict(val=.1, test=.1))
    assert given('prepare', 'a', 'b', 'c', '--keep', 'cat,dog')['keep'] == 'cat,dog'
    assert given('train', 'd', 'o', '--weights', 'none', '--class-weights', 'cat=2,dog=.5', '--report-to', 'wandb,tensorboard') == dict(
        data='d', out='o', weights=None, class_weights=dict(cat=2, dog=.5), report_to=['wandb', 'tensorboard'])
    assert given('train', 'd', 'o', '--set', 'warmup_steps=9,lr_scheduler_type=cosine', '--set', 'adam_beta2=.9')['set'] == dict(
        warmup_steps=9, lr_scheduler_type='cosine', adam_beta2=.9)
    assert given('train', 'd', 'o', '--precision', 'bf16')['precision'] == 'bf16'

def test_annotation_files_and_photo_folders(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr('seglab.masks.prepare', lambda a, i, out: seen.append((a, i, out)))
    for name in ('p1', 'p2', 'p3'): (tmp_path/name).mkdir()
    with chdir(tmp_path):
        files = [f'{i}.json' for i in range(12)]
        for words, want in ((['a.json', 'p1', 'out'], ('a.json', 'p1', 'out')), ([*files, 'p1', 'out'], (files, 'p1', 'out')),
                            (['a.json', 'b.json', 'p1', 'p2', 'out'], (['a.json', 'b.json'], ['p1', 'p2'], 'out')),
                            (['a.json', 'gone', 'out'], ('a.json', 'gone', 'out')), (['p1', 'p2', 'out'], ('p1', 'p2', 'out'))):
            assert cli.main(['prepare', *words]) == 0 and seen.pop() == want

# ---------------------------------------------------------------- the road, small

SMALL = dict(prepare='--size-hw 32 --workers 1 --split val=0.4', train='--weights none --epochs 1 --classes things --workers 0',
             check='--size-hw 32',
             compare='--no-measure --n-boot 50', demo='--n-images 12 --size-hw 32 --epochs 1 --seeds 2')

@pytest.fixture(scope='module')
def road(tmp_path_factory):
    "What the examples speak of: photos, masks and two runs."
    from seglab.sample import make_sample
    home = tmp_path_factory.mktemp('road')
    raw = make_sample(home/'raw', n=10, size_hw=(60, 80))
    (home/'data'/'raw'/'annotations').mkdir(parents=True)
    shutil.copy(raw/'annotations'/'instances_sample.json', home/'data/raw/annotations/instances_val2017.json')
    shutil.copytree(raw/'sample', home/'data/raw/val2017')
    (home/'holiday').mkdir()
    for p in sorted((raw/'sample').glob('*.jpg'))[:3]: shutil.copy(p, home/'holiday')
    example(home, 'prepare')
    example(home, 'train', '--encoder-name', 'resnet18', '--seed', '3')
    train(home, 'segformer', home/'data/processed', 'things')
    return home

def example(home, verb, *more):
    "Run a verb's example, made small by options at its end."
    words = shlex.split(cli._verbs[verb].example)
    assert words[:2] == ['seglab', verb]
    with chdir(home): assert cli.main([*words[1:], *shlex.split(SMALL.get(verb, '')), *more]) == 0

def train(home, name, data, classes):
    "A SegFormer too small for the shell to ask for."
    from seglab.dataset import load_data
    from seglab.train import fit
    from seglab.zoo import build_model
    data = load_data(data, classes=classes)
    net = build_model('segformer', data.label_space, None, size_hw=(32, 32), hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1],
                      decoder_hidden_size=8, depths=[1, 1, 1, 1])
    fit(net, data, epochs=1, out=home/'runs'/name, progress=False, workers=0)

def test_the_example_of_fetch_runs(tmp_path, monkeypatch):
    import hashlib, io, threading, zipfile
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from seglab import fetch
    served, zips = tmp_path/'served', {}
    for name, files in (('val2017', {'val2017/1.jpg': b'photo'}), ('annotations', {'annotations/instances_val2017.json': b'{}'})):
        served.mkdir(exist_ok=True)
        with zipfile.ZipFile(served/f'{name}.zip', 'w') as z:
            for k, v in files.items(): z.writestr(k, v)
        data = (served/f'{name}.zip').read_bytes()
        zips[name] = fetch.CocoZip(f'{name}.zip', len(data), hashlib.sha256(data).hexdigest(), 1)
    monkeypatch.setattr(fetch, 'COCO_ZIPS', zips)
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
        example(tmp_path, 'fetch', '--base-url', f'http://127.0.0.1:{server.server_port}')
        server.shutdown()
    assert (tmp_path/'data/raw/val2017/1.jpg').read_bytes() == b'photo'

def test_the_examples_of_prepare_and_train_run(road):
    about = json.loads((road/'data/processed/prepare.json').read_text())
    assert about['counts']['images']['written'] == 10 and about['settings']['size_hw'] == [32, 32]
    assert (road/'runs/unet/best/model.safetensors').exists()

def test_the_example_of_check_runs(road, quick):
    example(road, 'check')
    assert {'check.html', 'check.json'} <= {p.name for p in (road/'check').iterdir()}
    with chdir(road):
        code, out, err = quick('check', 'data/processed', '--out', 'checked')
        assert code == 0 and '10 photos' in out and 'checked/check.html' in out, err
        mistake(quick('check', 'data/processed', '--out', 'holiday'), '--out holiday')
    assert len(list((road/'holiday').iterdir())) == 3

def test_check_of_photos_and_masks(quick, tmp_path, road):
    (tmp_path/'masks').mkdir()
    for i, p in enumerate(sorted((road/'data/processed/images').iterdir())):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, i + 4:] = 1 + i % 2
        cv2.imwrite(str(tmp_path/'masks'/f'{p.stem}.png'), mask)
    code, out, err = quick('check', road/'data/processed/images', '--masks', tmp_path/'masks', '--classes', 'sky,road,car', '--size-hw', 'none', '--out', tmp_path/'c')
    assert code == 0 and (tmp_path/'c/check.html').exists(), err

def test_the_example_of_compare_runs(road):
    example(road, 'compare')
    assert {'report.html', 'report.md', 'scores.json'} <= {p.name for p in (road/'report').iterdir()}
    assert set(json.loads((road/'report/scores.json').read_text())['models']) == {'unet', 'segformer'}

def test_the_example_of_plan_runs(road, capfd):
    example(road, 'compare')
    example(road, 'plan')
    assert 'unet and segformer: these' in capfd.readouterr().out

def test_the_example_of_predict_runs(road):
    example(road, 'predict')
    assert len(list((road/'predictions/masks').iterdir())) == 3

def test_the_example_of_share_runs(road):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    example(road, 'share')
    assert list((road/'runs/unet').rglob('*.onnx'))

def test_share_as_a_folder(quick, road, tmp_path):
    code, out, err = quick('share', road/'runs/unet', '--out', tmp_path/'parcel', '--data', '10 drawn scenes')
    assert code == 0 and (tmp_path/'parcel/model.safetensors').exists(), err
    assert '10 drawn scenes' in (tmp_path/'parcel/README.md').read_text()

def test_the_seed_covers_the_head(quick, road, tmp_path, monkeypatch):
    heads = []
    def fit(model, data, **kw):
        heads.append(next(v for k, v in model.state_dict().items() if 'segmentation_head' in k and k.endswith('weight')).numpy().copy())
    monkeypatch.setattr('seglab.train.fit', fit)
    for seed in (0, 0, 1):
        assert quick('train', road/'data/processed', tmp_path/'x', '--weights', 'none', '--encoder-name', 'resnet18', '--classes', 'things', '--seed', seed)[0] == 0
    a, b, c = heads
    assert np.array_equal(a, b) and not np.allclose(a, c, atol=1e-4)

def test_train_again_does_nothing_and_other_settings_are_refused(quick, road):
    args = ['train', 'data/processed', 'runs/unet', '--model', 'unet', '--patience', '5', *shlex.split(SMALL['train']), '--encoder-name', 'resnet18']
    before = (road/'runs/unet/best/model.safetensors').stat().st_mtime_ns
    with chdir(road):
        assert quick(*args, '--seed', 3)[0] == 0
        mistake(quick(*args, '--seed', 3, '--lr', '2e-3'), 'lr')
    assert (road/'runs/unet/best/model.safetensors').stat().st_mtime_ns == before

def test_what_cannot_be_trained(quick, road, tmp_path):
    data = road/'data/processed'
    mistake(quick('train', data, tmp_path/'x', '--model', 'segformer', '--classes', 'things'), 'nvidia/mit-b0')
    mistake(quick('train', data, tmp_path/'x', '--weights', 'none', '--set', 'warmup=3'), 'warmup')
    mistake(quick('train', data, tmp_path/'x', '--weights', 'none', '--set', 'bf16=true'), 'precision')
    mistake(quick('train', data, tmp_path/'x', '--weights', 'none', '--classes', 'unicorn'), 'unicorn')
    mistake(quick('train', data, tmp_path/'x', '--weights', 'none', '--report-to', 'foo'), 'foo')
    mistake(quick('train', data, tmp_path/'x', '--weights', 'none', '--class-weights', 'yes'), 'yes')
    assert not (tmp_path/'x').exists()

def test_predict_names_the_broken_one_and_does_the_rest(quick, road, tmp_path):
    photos = sorted((road/'holiday').glob('*.jpg'))
    (tmp_path/'in').mkdir()
    for p in photos: shutil.copy(p, tmp_path/'in')
    (tmp_path/'in'/'zz.jpg').write_bytes(photos[0].read_bytes()[:500])
    mistake(quick('predict', road/'runs/unet', tmp_path/'out', tmp_path/'in'), '1 of 4', 'zz.jpg', 'the other 3')
    for p in photos: assert cv2.imread(str(tmp_path/'out/masks'/f'{p.stem}.png'), -1).shape == cv2.imread(str(p)).shape[:2]
    rows = list(csv.DictReader((tmp_path/'out/index.csv').open(encoding='utf-8')))
    assert len(rows) == 4 and [bool(r['error']) for r in rows] == [False]*3 + [True]
    code, out, err = quick('predict', road/'runs/unet', tmp_path/'out2', tmp_path/'in'/'0*.jpg', '--no-with-overlay')
    assert code == 0 and '3 masks' in out and not (tmp_path/'out2/overlays').exists(), err

def test_folders_of_photos_and_masks(quick, road, tmp_path):
    for name in ('photos', 'masks'): (tmp_path/name).mkdir()
    for i, p in enumerate(sorted((road/'data/processed/images').iterdir())):
        shutil.copy(p, tmp_path/'photos'/p.name)
        mask = np.zeros((32, 32), np.uint8)
        mask[:, i + 4:] = 1 + i % 2
        cv2.imwrite(str(tmp_path/'masks'/f'{p.stem}_L.png'), mask)
    with chdir(tmp_path):
        like = '--masks', 'masks', '--suffix', '_L', '--classes', 'sky,road,car'
        code, out, err = quick('train', 'photos', 'runs/a', *like, '--val', '.4', '--weights', 'none', '--encoder-name', 'resnet18', '--epochs', 1, '--workers', 0)
        assert code == 0, err
        for split, at_least in (('val', 1), ('all', 10)):
            code, out, err = quick('compare', 'photos', f'report-{split}', 'runs/a', *like, '--val', '.4', '--split', split, '--no-measure', '--n-boot', 50)
            assert code == 0, err
            assert len(list(Path(f'report-{split}/truth').iterdir())) >= at_least
        classes = set(json.loads(Path('report-val/scores.json').read_text())['models']['a']['per_category_iou'])
        assert classes == {'sky', 'road', 'car'}

# ---------------------------------------------------------------- the demo

def test_the_example_of_demo_runs_and_runs_again(tmp_path, quick):
    example(tmp_path, 'demo')
    for p in ('raw/annotations', 'processed/prepare.json', 'runs/unet-0/best', 'runs/segformer-1/best', 'report/report.html'): assert (tmp_path/'demo'/p).exists()
    weights = tmp_path/'demo/runs/unet-0/best/model.safetensors'
    before = weights.stat().st_mtime_ns
    args = shlex.split(SMALL['demo'])
    code, out, err = quick('demo', tmp_path/'demo', *args)
    assert code == 0 and weights.stat().st_mtime_ns == before, err
    for word in ('unet', 'segformer', 'background only', 'report.html', 'Random weights'): assert word in out
    mistake(quick('demo', tmp_path/'demo', *args, '--size-hw', 64), '--size-hw')

def test_demo_on_a_coco_folder(tmp_path):
    from seglab.sample import make_sample
    make_sample(tmp_path/'coco', n=10, size_hw=(48, 64))
    assert cli.main(['demo', tmp_path/'demo', '--coco', tmp_path/'coco', '--size-hw', '32', '--epochs', '1', '--seeds', '1']) == 0
    assert not (tmp_path/'demo/raw').exists() and (tmp_path/'demo/report/report.html').exists()
