"Killed at any moment and called again, `fit` ends with the same weights and the same history, bit for bit."
import functools, os, signal
from pathlib import Path
import cv2, numpy as np, pytest, torch
import accelerate, segmentation_models_pytorch                            # imported once here, not in each child
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments  # noqa: F401
from support.fresh_process import Child, well
from seglab import trainer as T
from seglab import files as files_module
from seglab.dataset import LabelSpace, SegDataset, train_tfms
from seglab.model import Segmenter
from seglab.recipes import Recipe
from seglab.runs import Run, last_checkpoint
from seglab.train import fit

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
CLOCK = ['images_per_second', 'data_wait', 'eval_images_per_second']
LABELS = LabelSpace.from_names(['sky', 'road', 'car'])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "11 photos and masks on disk; augmentation on."
    root = tmp_path_factory.mktemp('data')
    for split, n in (('train', 11), ('val', 5)):
        (root/split).mkdir(); (root/f'{split}_masks').mkdir()
        for i in range(n):
            g = np.random.default_rng(i + (split == 'val') * 100)
            y = np.zeros((48, 48), np.uint8); y[24:] = 1
            a, b = g.integers(0, 24, 2); y[a:a+16, b:b+16] = 2
            x = np.array([[200, 220, 255], [90, 90, 90], [220, 30, 30]])[y] + g.normal(0, 20, (48, 48, 3))
            cv2.imwrite(str(root/split/f'{i}.png'), x.clip(0, 255).astype(np.uint8)); cv2.imwrite(str(root/f'{split}_masks'/f'{i}.png'), y)
    return root


def go(data, out, workers=0, seed=0, side=32, **kw):
    "One call of fit: dropout, batch norm, augmentation, an uneven last batch, checkpoints in mid-epoch."
    torch.manual_seed(seed)
    c = SegformerConfig(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16,
                        drop_path_rate=.1, hidden_dropout_prob=.1, classifier_dropout_prob=.1, id2label=LABELS.id2label, label2id=LABELS.label2id)
    sets = (SegDataset.from_folders(data/'train', data/'train_masks', LABELS, tfms=train_tfms((side, side))),
            SegDataset.from_folders(data/'val', data/'val_masks', LABELS))
    args = dict(epochs=3, lr=1e-3, recipe='assignment', out=out, workers=workers, progress=False, pictures=1, logging_steps=2, save_strategy='steps', save_steps=3)
    return fit(Segmenter(SegformerForSemanticSegmentation(c), LABELS), sets, **(args | kw))


def dies(sig, data, out, patch, **kw):
    "Call fit in a child that kills itself where `patch` says; it must die of that signal."
    def work():
        patch(lambda: os.kill(os.getpid(), sig))
        go(data, out, **kw)
    code, said = Child(work).wait()
    assert code == -sig, f'the child should have died of {sig}, but ended with {code}: {said}'


def at_step(n):
    "Die when step n is done."
    def patch(die):
        was = T._Callback.on_step_end
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == n: die()
            was(self, args, state, control, **kw)
        T._Callback.on_step_end = on_step_end
    return patch


def in_checkpoint(n):
    "Die when checkpoint n is written but not yet marked as complete."
    def patch(die):
        was = T.complete_checkpoint
        def complete(path, keep=1):
            if path.name == f'checkpoint-{n}':
                (path/'optimizer.pt').write_bytes(b'half')
                die()
            was(path, keep)
        T.complete_checkpoint = complete
    return patch


def in_best(nth):
    "Die between the two renames that swap best/, at the n-th time."
    def patch(die):
        was, seen = Path.rename, []
        def rename(self, target):
            if self.name.startswith('.tmp-') and Path(target).name == 'best':
                seen.append(1)
                if len(seen) == nth: die()
            return was(self, target)
        Path.rename = rename
    return patch


def same(a, b):
    "Equal weights, history (but for the clock) and best scores."
    from safetensors.torch import load_file
    one, two = (load_file(last_checkpoint(r.path)/'model.safetensors') for r in (a, b))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert a.history.drop(columns=CLOCK).to_csv() == b.history.drop(columns=CLOCK).to_csv()
    one, two = (torch.load(r.best/'best_model.pth', weights_only=True) for r in (a, b))
    assert all(torch.equal(one[k], two[k]) for k in one) and a.scores == b.scores
    assert not list(b.path.glob('.old-*')) and not list(b.path.glob('.tmp-*')) and len(list(b.path.glob('checkpoint-*'))) == 1


@pytest.fixture(scope='module')
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'whole'
    well(functools.partial(go, data, out))
    return Run(out)


@pytest.mark.parametrize('workers,deaths', [
    (0, [(signal.SIGKILL, at_step(2)), (signal.SIGTERM, at_step(5)), (signal.SIGKILL, in_checkpoint(6)), (signal.SIGKILL, at_step(9))]),
    (0, [(signal.SIGKILL, at_step(1)), (signal.SIGKILL, at_step(2)), (signal.SIGTERM, in_best(1))]),      # three times from checkpoint-0
    (2, [(signal.SIGKILL, in_best(1)), (signal.SIGKILL, at_step(3)), (signal.SIGKILL, in_best(1)), (signal.SIGTERM, at_step(8))]),
])
def test_killed_and_resumed(workers, deaths, data, undisturbed, tmp_path):
    out = tmp_path/'run'
    for i, (sig, patch) in enumerate(deaths): dies(sig, data, out, patch, workers=workers, seed=i)
    well(functools.partial(go, data, out, workers=workers, seed=99))
    same(undisturbed, Run(out))


AUTO = Recipe('like auto', epochs=3, lr={'segformer.*': 1e-3, '*': 1e-2}, batch_size=2, accumulate=2, schedule='cosine', warmup=.1,
              decay_norms=False, clip=1., ema=.9, loss='ce+dice', keep_best='mean_iou')


@pytest.mark.parametrize('deaths', [[at_step(1), at_step(4)], [in_checkpoint(6), at_step(8)]])
def test_killed_and_resumed_with_all_that_auto_does(deaths, data, tmp_path):
    "The average of the weights, the schedule and the groups resume bit for bit."
    kw = dict(lr=None, epochs=None, recipe=AUTO)
    well(functools.partial(go, data, tmp_path/'whole', **kw))
    for i, patch in enumerate(deaths): dies(signal.SIGKILL, data, tmp_path/'run', patch, seed=i, **kw)
    well(functools.partial(go, data, tmp_path/'run', seed=99, **kw))
    same(Run(tmp_path/'whole'), Run(tmp_path/'run'))


def test_history_has_every_row_once(undisturbed):
    h = undisturbed.history
    train, val = h.dropna(subset=['train_loss']), h.dropna(subset=['eval_loss'])
    assert train.step.tolist() == sorted(set(train.step)) and train.step.iloc[-1] == 9
    assert val.step.tolist() == [3, 6, 9] and val.mean_iou.notna().all()


def test_finished_run_returns_and_other_settings_are_refused(data, undisturbed, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.path.rglob('*') if p.is_file() and p.name != '.lock'}
    again = go(data, undisturbed.path)
    assert again.scores == undisturbed.scores
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.path.rglob('*') if p.is_file() and p.name != '.lock'}
    with pytest.raises(ValueError, match=r'lr \(there 0.001, now 0.002\)'): go(data, undisturbed.path, lr=2e-3)
    with pytest.raises(ValueError, match='epochs'): go(data, undisturbed.path, epochs=2)


def test_two_processes_on_one_folder(data, tmp_path):
    out = tmp_path/'run'; out.mkdir()
    with files_module.only_me(out, 'training'), pytest.raises(ValueError, match='another process is training'): go(data, out)


def test_folder_with_other_files_is_refused(data, tmp_path):
    (tmp_path/'thesis.txt').write_text('mine')
    with pytest.raises(ValueError, match='expected an empty folder'): go(data, tmp_path)
    assert (tmp_path/'thesis.txt').read_text() == 'mine'
