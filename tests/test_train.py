"`fit`: what is the same run and what is another, every argument used or refused, optimisers, callbacks, other people's nets."
import math, os, shutil, subprocess, sys
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset
from seglab.dataset import LabelSpace, SegDataset, train_tfms, valid_tfms
from seglab.files import UserError, write_json
from seglab.images import IGNORE
from seglab.model import Segmenter
from seglab.runs import Run, last_checkpoint
from seglab.train import _scale_note, fit, what_becomes_of_arguments
from support.faults import LONG, one_sentence
from support.training import LABELS, Stripes, tiny


def go(out, model=None, data=None, **kw):
    return fit(model or tiny(), data or (Stripes(6), Stripes(3, 50)), out=out, **dict(epochs=1, lr=1e-3, recipe='assignment', progress=False, pictures=0, precision='fp32') | kw)


@pytest.fixture(scope='module')
def run(tmp_path_factory): return go(tmp_path_factory.mktemp('r')/'run')


def loss_of(gamma): return lambda logits, labels: gamma * F.cross_entropy(logits, labels, ignore_index=IGNORE)


def frozen():
    model = tiny()
    model.net.segformer.requires_grad_(False)
    return model


@pytest.mark.parametrize('what,kw', [
    ('start', dict(model=lambda: tiny(1))), ('architecture', dict(model=lambda: tiny(classifier_dropout_prob=.9))), ('trainable', dict(model=frozen)),
    ('data_digest', dict(data=(Stripes(6, 9), Stripes(3, 50)))), ('data_digest', dict(data=(Subset(Stripes(9), range(6)), Stripes(3, 50)))),
    ('loss', dict(loss=loss_of(1))), ('lr', dict(lr=2e-3)), ('epochs', dict(epochs=.5)), ('keep_best', dict(keep_best='mean_iou'))])
def test_another_run_in_the_same_folder_is_refused(run, what, kw):
    if 'model' in kw: kw = kw | dict(model=kw['model']())
    with pytest.raises(UserError, match=f'differs in .*{what}') as e: go(run.path, **kw)
    one_sentence(str(e.value))


def test_losses_with_other_values_are_other_runs(tmp_path):
    go(tmp_path/'r', loss=loss_of(2))
    with pytest.raises(UserError, match='loss_digest'): go(tmp_path/'r', loss=loss_of(5))


def test_a_finished_run_says_so(run, capsys):
    files = {p: p.stat().st_mtime_ns for p in run.path.rglob('*') if p.is_file() and p.name != '.lock'}
    again = go(run.path)
    assert 'is finished, nothing was trained' in capsys.readouterr().out and again.scores == run.scores
    assert files == {p: p.stat().st_mtime_ns for p in run.path.rglob('*') if p.is_file() and p.name != '.lock'}
    with pytest.raises(UserError, match='give more epochs='): go(run.path, model=run.load())


@pytest.mark.parametrize('lost, unfinished, epochs', [('', False, 1), ('scores.json', True, 1), ('model.safetensors', False, 2)])
def test_a_run_that_lost_its_best_weights_says_so(run, tmp_path, lost, unfinished, epochs):
    "Finished, killed after an evaluation, or given more epochs: nothing would bring them back."
    shutil.copytree(run.path, tmp_path/'r')
    gone = tmp_path/'r'/'best'/lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    if unfinished: write_json(tmp_path/'r/config.json', run.config | dict(finished=None))
    with pytest.raises(UserError, match='expected a run with its best weights; got') as e: go(tmp_path/'r', epochs=epochs)
    one_sentence(str(e.value))
    assert str(e.value).endswith(f"a run without best/{lost or 'best_model.pth'}, which it had. Put it back, or start again with resume=False.")


def test_a_run_that_was_never_validated_has_no_best_weights_to_lose(tmp_path):
    for _ in range(2): assert not (go(tmp_path/'r', eval_strategy='no').path/'best').exists()


def test_more_epochs_continue(tmp_path, capsys):
    "3 epochs are 2 and 1 more, with the optimiser's state; the history says so."
    whole, model = go(tmp_path/'whole', epochs=3), tiny()
    go(tmp_path/'run', model, epochs=2)
    part = go(tmp_path/'run', model, epochs=3)
    for name in ('model.safetensors',): assert (last_checkpoint(part.path)/name).read_bytes() == (last_checkpoint(whole.path)/name).read_bytes()
    assert part.history.mean_iou.dropna().tolist() == whole.history.mean_iou.dropna().tolist()
    assert part.config['continued'][0]['epochs'] == 2 and 'continued after 2 epochs' in repr(part)


def test_the_model_holds_the_best_weights(tmp_path):
    "Not the last ones: two steps uphill ruin them, and are no longer noted as the best."
    from transformers import TrainerCallback
    model, first = tiny(), {}
    class Uphill(TrainerCallback):
        def on_epoch_begin(self, args, state, control, optimizer, **kw):
            if round(state.epoch or 0) != 1: return
            first.update({k: v.clone() for k, v in model.net.state_dict().items()})
            optimizer.param_groups[0]['lr'] = -1.
    run = go(tmp_path/'r', model, epochs=2, lr_scheduler_type='constant', callbacks=[Uphill()], keep_best='loss')
    one, two = run.history.eval_loss.dropna()
    assert one < two and not model.training
    for weights in (torch.load(run.best/'best_model.pth', weights_only=True), model.net.state_dict()):
        assert all(torch.equal(v, first[k]) for k, v in weights.items())


@pytest.mark.parametrize('names,what', [(['sky', 'car', 'road'], 'the classes of the data'), (['sky'], 'at least two classes')])
def test_classes_that_cannot_be_trained(tmp_path, names, what):
    "As many as the data has, in another order; a single one."
    with pytest.raises(UserError, match=what) as e: go(tmp_path/'r', tiny(label_space=LabelSpace.from_names(names)))
    one_sentence(str(e.value))
    assert not (tmp_path/'r').exists()


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='an empty folder or a run of ours'): go(tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir() if p.name != '.lock'] == [('notes.txt', 'mine')]


def test_a_function_is_built_under_the_seed(tmp_path):
    def build(): return Segmenter(nn.Conv2d(3, 3, 1), LABELS)
    a, b, c = (go(tmp_path/n, build, seed=s) for n, s in (('a', 1), ('b', 1), ('c', 2)))
    assert a.settings.start == b.settings.start != c.settings.start
    assert (a.best/'best_model.pth').read_bytes() == (b.best/'best_model.pth').read_bytes()


def test_stopped_by_hand_and_called_again_in_the_same_session(tmp_path):
    "The model has other weights by then; it is known for the one that was being trained."
    from transformers import TrainerCallback
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 3: raise KeyboardInterrupt
    model, whole = tiny(), go(tmp_path/'whole', epochs=2)
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'r', model, epochs=2, callbacks=[Stop()])
    run = go(tmp_path/'r', model, epochs=2)
    assert (last_checkpoint(run.path)/'model.safetensors').read_bytes() == (last_checkpoint(whole.path)/'model.safetensors').read_bytes()


def test_the_number_format_stays_as_the_run_began(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(avx512_bf16=True), raising=False)
    assert go(tmp_path/'r', precision='auto', use_cpu=True).settings.precision == 'bf16'
    monkeypatch.setattr(torch.cpu, 'get_capabilities', dict, raising=False)
    assert go(tmp_path/'r', precision='auto', use_cpu=True).finished


def folder_of(root, size_hw=(256, 256), n=2):
    import cv2, numpy as np
    for kind in ('images', 'masks'):
        (root/kind).mkdir(parents=True)
        for i in range(n): cv2.imwrite(str(root/kind/f'{i}.png'), np.full((*size_hw, 3)[:2 + (kind == 'images')], i % 3, np.uint8))
    return root/'images', root/'masks'


def test_training_and_validation_at_two_scales_is_said(tmp_path):
    import albumentations as A
    images, masks = folder_of(tmp_path/'data')
    def part(tfms): return SegDataset.from_folders(images, masks, LABELS, tfms)
    assert _scale_note((part(train_tfms((64, 64))), part(valid_tfms((64, 64))))) == []
    [note] = _scale_note((part(A.RandomCrop(64, 64)), part(valid_tfms((64, 64)))))
    assert '4.0 times as large in training as in validation' in note
    assert note in go(tmp_path/'r', data=(part(A.RandomCrop(64, 64)), part(valid_tfms((64, 64)))), batch_size=2).config['notes']


SPAWNED = """
import torch
from torch.utils.data import TensorDataset
from seglab.model import Segmenter
from seglab.train import fit
def part(n): return TensorDataset(torch.zeros(n, 3, 16, 16, dtype=torch.uint8), torch.arange(16).clamp(max=1).byte().repeat(n, 16, 1))
run = fit(Segmenter(torch.nn.Conv2d(3, 2, 1), ['sky', 'road']), (part(4), part(2)), epochs=1, out='run', workers=2, progress=False,
          dataloader_multiprocessing_context='spawn')
print('finished', run.finished)
"""


@pytest.mark.skipif(not LONG, reason='SEGLAB_LONG: starts processes that import torch')
def test_workers_that_are_spawned_by_a_script_without_a_main_guard(tmp_path):
    "The script runs once, and ends with a sentence or a result; it does not start itself without end."
    (tmp_path/'script.py').write_text(SPAWNED)
    r = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                       env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')])))
    assert r.stdout.count('finished True') == 1 or r.returncode == 1 and '__main__' in r.stderr, r.stderr[-2000:]


def test_epochs_reach_what_is_wrapped(tmp_path):
    base = Stripes(6)
    go(tmp_path/'r', data=(Subset(base, [0, 2, 4]), Stripes(3)), epochs=2)
    assert {e for e, _ in base.seen} == {0, 1}


def test_order_differs_by_epoch_and_seed(tmp_path):
    orders = []
    for seed in (0, 1):
        ds = Stripes(6)
        go(tmp_path/str(seed), data=(ds, Stripes(3)), epochs=2, seed=seed)
        orders += [[i for _, i in ds.seen[-12:-6]], [i for _, i in ds.seen[-6:]]]
    assert len(set(map(tuple, orders))) == 4


def test_class_names_are_compared(tmp_path):
    other = Stripes(6)
    other.label_space = LabelSpace.from_names(['sky', 'car', 'road'])
    with pytest.raises(ValueError, match="'car'"): go(tmp_path/'r', data=(other, Stripes(3)))
    assert not (tmp_path/'r').exists()


# --- arguments

ODD = dict(lr_scheduler_kwargs={}, warmup_steps=1, max_steps=1, lr_scheduler_type='cosine', optim='adamw_torch', adam_beta1=.5, adam_beta2=.5,
           adam_epsilon=1e-3, gradient_accumulation_steps=2, max_grad_norm=1., activation_checkpointing=True, gradient_checkpointing=True,
           logging_strategy='epoch', logging_steps=1, logging_first_step=True, log_level='info', log_level_replica='info', eval_strategy='steps',
           eval_steps=1, eval_delay=1, per_device_eval_batch_size=1, eval_on_start=True, save_strategy='steps', save_steps=1, save_total_limit=2,
           restore_callback_states_from_checkpoint=True, use_cpu=True, dataloader_drop_last=True, dataloader_pin_memory=False, torch_empty_cache_steps=1,
           log_on_each_node=False, skip_memory_metrics=False, ddp_timeout=9)
SKIP = {'torch_compile_backend', 'torch_compile_mode', 'tf32', 'debug', 'full_determinism', 'weight_decay', 'seed', 'report_to', 'project'}


ALONE = [dict(max_steps=1), dict(lr_scheduler_type='cosine', lr_scheduler_kwargs={}, warmup_steps=1), dict(activation_checkpointing=True), dict(gradient_checkpointing=True),
         dict(logging_strategy='epoch'), dict(eval_strategy='steps', eval_steps=1, eval_delay=1)]


def test_every_training_argument_is_used_or_refused(tmp_path):
    "Over the whole list of the installed transformers; those that get along with each other in one run. SEGLAB_LONG tries each by itself."
    fates = what_becomes_of_arguments()
    used = {name: ODD[name] for name, fate in fates.items() if fate == 'used' and name in ODD}
    apart = {name for kw in ALONE for name in kw}
    rest = {k: v for k, v in used.items() if k not in apart}
    for i, kw in enumerate([{k: v} for k, v in used.items()] if LONG else [*({k: v for k, v in kw.items() if k in used} for kw in ALONE), rest]):
        assert go(tmp_path/str(i), data=(Stripes(2), Stripes(2)), batch_size=1, **kw).finished, kw
    model, pair = tiny(), (Stripes(2), Stripes(2))
    for name, fate in fates.items():
        if fate.startswith('used'): continue
        with pytest.raises(UserError) as e: fit(model, pair, out=tmp_path/name, **{name: 7})
        one_sentence(str(e.value))
        assert not (tmp_path/name).exists(), name


@pytest.mark.parametrize('kw', [dict(epochs=math.inf), dict(epochs=math.nan), dict(batch_size=0), dict(lr=-1), dict(resume='runs/x/checkpoint-24'),
                                dict(precision='fp8'), dict(precision='fp16'), dict(optim_args='x'), dict(weight_decai=1), dict(keep_best='f1'), dict(class_weights=[1, 1, 1], loss=loss_of(1)),
                                dict(size_hw=(8, 8)), dict(lr_scheduler_type='cosin'), dict(report_to='nosuch_tracker', epochs=0)])
def test_what_cannot_be_meant_is_one_sentence(kw, tmp_path):
    with pytest.raises(UserError) as e: go(tmp_path/'r', **kw)
    one_sentence(str(e.value))
    assert not (tmp_path/'r').exists()


def test_adams_settings_are_used(tmp_path):
    runs = [go(tmp_path/str(i), epochs=2, **kw) for i, kw in enumerate((dict(), dict(adam_beta1=.5), dict(adam_beta2=.5), dict(adam_epsilon=1.), dict(weight_decay=9.)))]
    assert len({(r.best/'best_model.pth').read_bytes() for r in runs}) == 5


def test_a_single_class_is_refused(tmp_path):
    with pytest.raises(UserError, match='two classes'): go(tmp_path/'r', Segmenter(nn.Conv2d(3, 1, 1), ['cat']))


def test_somebody_elses_folder_is_left_alone(tmp_path):
    write_json(tmp_path/'config.json', dict(model_type='segformer')); (tmp_path/'checkpoint-5').mkdir()
    for resume in (True, False):
        with pytest.raises(UserError): go(tmp_path, resume=resume)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != '.lock') == ['checkpoint-5', 'config.json']


def test_groups_optimisers_and_callbacks(tmp_path):
    from transformers import TrainerCallback
    class Count(TrainerCallback):
        steps = 0
        def on_step_end(self, *a, **kw): self.steps += 1
    count = Count()
    a = go(tmp_path/'a', lr={'segformer.*': 1e-5, '*': 1e-2}, callbacks=[count])
    b = go(tmp_path/'b', lr=None, optimizer=lambda weights: torch.optim.SGD(weights, lr=.1))
    assert count.steps == 2 and a.finished and b.finished
    with pytest.raises(UserError, match='no lr= with optimizer='): go(tmp_path/'c', optimizer=torch.optim.SGD)


def test_a_net_of_ones_own(tmp_path):
    run = go(tmp_path/'r', Segmenter(nn.Conv2d(3, 3, 1), LABELS))
    assert torch.equal(run.load(net=nn.Conv2d(3, 3, 1)).net.weight, torch.load(run.best/'best_model.pth', weights_only=True)['weight'])
    with pytest.raises(UserError, match='Wrap'): go(tmp_path/'s', nn.Conv2d(3, 3, 1))


def test_what_others_put_into_a_run_stays(tmp_path, capsys):
    "resume=False once deleted the run, and refused the folder then, for what share_folder and export_onnx had written there."
    go(tmp_path/'r')
    (tmp_path/'r'/'notes.txt').write_text('mine'); (tmp_path/'r'/'share').mkdir()
    assert go(tmp_path/'r', lr=2e-3, resume=False, progress=True).settings.lr == 2e-3
    assert (tmp_path/'r'/'notes.txt').read_text() == 'mine' and 'of the run before these stay: notes.txt, share' in capsys.readouterr().out
