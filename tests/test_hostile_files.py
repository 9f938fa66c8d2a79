"""Files of strangers on the whole road: checkpoints, packed arrays, runs, prepared folders and photos that are out for harm.
What one module refuses by itself is in its own tests (nets, share, report, images, names, bulk)."""
import json, os, re, shutil
from pathlib import Path

import numpy as np, pytest, torch

from seglab.comparison import compare, evaluate
from seglab.dataset import LabelSpace, SegDataset, check_dataset
from seglab.images import read_mask
from seglab.masks import prepare
from seglab.runs import Run, _COLUMNS
from seglab.sample import make_sample
from seglab.share import files_to_share, predict_files, share_folder
from seglab.train import fit
from support.data import BOMBS, png_bomb, write_masks
from support.faults import LONG, one_sentence, peak_of, posix
from support.tiny import Bomb, NAMES, saved_run, tiny

def photos(root, n=4, names=NAMES): return SegDataset.from_folders(*write_masks(root, n, len(names), (32, 40)), LabelSpace.from_names(names))

def prepared(root, **options):
    raw = make_sample(root/'s', n=3, size_hw=(48, 64))
    return prepare(raw/'annotations'/'instances_sample.json', raw/'sample', root/'p', size_hw=32, workers=1, split='val', **options)

@pytest.fixture(scope='module')
def ds(tmp_path_factory): return photos(tmp_path_factory.mktemp('photos'))

@pytest.fixture
def bomb(tmp_path, monkeypatch):
    "Writes a pickle that runs code, and checks at the end that it was not run."
    mark = tmp_path/'exploded'
    monkeypatch.setenv('BOMB', str(mark))
    yield lambda path: torch.save({'weight': Bomb()}, path)
    assert not mark.exists(), 'the pickle was run'

def test_pickles_next_to_good_weights_are_never_opened(bomb, ds, tmp_path):
    run = saved_run(tmp_path/'run')
    for name in ('best_model.pth', 'training_args.bin', 'optimizer.pt', 'model.pkl'): bomb(run/'best'/name)
    Run(run).load(); evaluate(run, ds)
    assert not any(n.endswith(('.pth', '.bin', '.pt', '.pkl')) for n in files_to_share(run))

def test_a_checkpoint_that_runs_code_is_refused(bomb, ds, tmp_path):
    "Every pickle of a checkpoint that training would resume from."
    def go(): return fit(tiny(), (ds, ds), epochs=2, lr=1e-3, recipe='assignment', out=tmp_path/'run', pictures=0, progress=False)
    go()
    run, checkpoint = tmp_path/'run', max((tmp_path/'run').glob('checkpoint-*'))
    config = json.loads((run/'config.json').read_text())
    pickles = [f.name for f in checkpoint.iterdir() if f.suffix in ('.pt', '.pth', '.bin')]
    assert {'optimizer.pt', 'scheduler.pt', 'rng_state.pth'} <= set(pickles)
    for name in pickles:
        (run/'config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'finished'}))
        state = json.loads((checkpoint/'trainer_state.json').read_text())
        (checkpoint/'trainer_state.json').write_text(json.dumps(state | dict(global_step=state['global_step'] - 1)))
        good = (checkpoint/name).read_bytes()
        bomb(checkpoint/name)
        (checkpoint/'complete.json').write_text(json.dumps({f.name: f.stat().st_size for f in checkpoint.iterdir() if f.name != 'complete.json'}))
        try: go()
        except ValueError as e: assert 'checkpoint' in str(e); one_sentence(str(e))
        else: assert name == 'training_args.bin', f'{name} was taken for good'
        (checkpoint/name).write_bytes(good)
        (checkpoint/'trainer_state.json').write_text(json.dumps(state))

def test_packed_arrays_that_are_pickles(bomb, tmp_path):
    "images.npy and masks.npy of objects, in a folder that has nothing else."
    done = prepared(tmp_path, pack=True)
    SegDataset(done.path, classes='things')[0]
    for name in ('images.npy', 'masks.npy'): np.save(done.path/name, np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(ValueError, match='cannot be used') as e: SegDataset(done.path, classes='things')
    one_sentence(str(e.value))

def test_a_runs_config_names_paths_that_nobody_opens(ds, tmp_path):
    "Everything in config.json that looks like a path: neither read nor written, and cut from what is shared."
    secret = tmp_path/'secret.txt'
    secret.write_text('s3cret')
    run = saved_run(tmp_path/'run', settings=dict(data=str(secret), sample_hw=[32, 40], model='../../x', output_dir=str(tmp_path/'elsewhere')), name=str(tmp_path/'elsewhere'), wandb_id='../x')
    (run/'history.csv').write_text(','.join(_COLUMNS.values()) + '\n' + ','.join(['1']*len(_COLUMNS)) + '\n')
    compare([run], ds, tmp_path/'report', measure=False)
    share_folder(run, tmp_path/'share')
    for f in [*(tmp_path/'report').rglob('*'), *(tmp_path/'share').rglob('*')]:
        if f.is_file(): assert b's3cret' not in f.read_bytes() and str(tmp_path).encode() not in f.read_bytes(), f
    assert sorted(p.name for p in tmp_path.iterdir()) == ['report', 'run', 'secret.txt', 'share']

@pytest.mark.parametrize('pack', [False, True])
def test_a_prepared_folder_whose_stems_lead_outside(tmp_path, pack):
    done = prepared(tmp_path, pack=pack)
    names = SegDataset(done.path, classes='things').label_space.names
    text = (done.path/'index.csv').read_text().splitlines()
    (done.path/'index.csv').write_text('\n'.join([text[0], '../../evil,' + text[1].split(',', 1)[1], *text[2:]]) + '\n')
    with pytest.raises((ValueError, FileNotFoundError)) as e: compare({'m': tiny(names)}, SegDataset(done.path, classes='things'), tmp_path/'r', measure=False)
    one_sentence(str(e.value))
    assert not list(tmp_path.rglob('evil*'))

def test_classes_and_models_called_like_paths(tmp_path):
    names = ['background', '../../etc/passwd', '/etc/x']
    ds = photos(tmp_path/'d', names=names)
    compare({'../../m': tiny(names)}, ds, tmp_path/'r', measure=False)
    predict_files(tiny(names), tmp_path/'d'/'images', tmp_path/'o')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['d', 'o', 'r'] and len(os.listdir(tmp_path/'r'/'predictions')) == 1

@posix
def test_links_in_folders_that_are_cleared(ds, tmp_path):
    "What an earlier comparison left is cleared; what a link points to is not."
    mine = tmp_path/'mine'
    mine.mkdir(); (mine/'thesis.tex').write_text('x')
    compare({'m': tiny()}, ds, tmp_path/'r', measure=False)
    for name in ('predictions', 'truth', 'pictures'):
        shutil.rmtree(tmp_path/'r'/name)
        (tmp_path/'r'/name).symlink_to(mine)
    compare({'m': tiny()}, ds, tmp_path/'r', measure=False)
    assert [p.name for p in mine.iterdir()] == ['thesis.tex'] and not (tmp_path/'r'/'truth').is_symlink()

# ---------------------------------------------------------------- photos that declare more than they hold

BIG = 200*2**20

@pytest.mark.parametrize('name', BOMBS if LONG else ['wide.png', 'gif.gif'])
def test_a_bomb_among_photos(tmp_path, name):
    photos(tmp_path, n=3)
    predict_files(tiny(), tmp_path/'images', tmp_path/'warm')            # what is imported on the way does not count
    (tmp_path/'images'/f'bomb{Path(name).suffix}').write_bytes(BOMBS[name])
    def go():
        done = predict_files(tiny(), str(tmp_path/'images'/'*'), tmp_path/'out')
        assert [Path(p).stem for p in done.failed] == ['bomb'] and len(done.done) == 3 and re.search('safe|too large|pixels', next(iter(done.failed.values())))
        with pytest.raises(ValueError, match='pixels|safe|large'): tiny().predict(tmp_path/'images'/f'bomb{Path(name).suffix}')
    assert peak_of(go) < BIG

@pytest.mark.parametrize('kind', ['photo', 'palette mask'] + ['mask', 'both']*LONG)
def test_a_bomb_in_a_data_set(tmp_path, kind):
    ds = photos(tmp_path, n=3)
    data = png_bomb(30_000, 30_000, 0) if kind == 'palette mask' else BOMBS['grey.png']
    for folder in dict(photo=['images'], mask=['masks'], both=['images', 'masks']).get(kind, ['masks']): (tmp_path/folder/'p1.png').write_bytes(data)
    def go():
        for use in (lambda: ds[1], lambda: check_dataset(ds), lambda: evaluate(tiny(), ds), lambda: fit(tiny(), (ds, ds), epochs=1, out=tmp_path/'run', pictures=0, progress=False)):
            with pytest.raises(ValueError, match='p1') as e: use()
            assert '\n' not in str(e.value)
    assert peak_of(go) < BIG
    assert not (tmp_path/'run'/'best').exists()
    if kind != 'photo':
        with pytest.raises(ValueError, match='pixels|large'): read_mask(tmp_path/'masks'/'p1.png')
