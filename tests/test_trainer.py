"Below `fit`: divisors over accumulated batches, modes, the order of photos, patience, optimisers, number formats, trackers that fail."
import os
from pathlib import Path
from types import SimpleNamespace as Like
from unittest import mock
import pytest, torch
from torch import nn
from seglab.files import UserError
from seglab.images import IGNORE
from seglab.losses import get_loss
from seglab.model import Segmenter
from seglab.runs import Settings, last_checkpoint
from seglab.train import _training_args
from seglab.trainer import EpochLines, Job, LossError, _has_idle_weights, _make_optimizer, make_trainer, pick_precision, quiet, wandb_reporter
from support.faults import one_sentence
from support.training import LABELS, Stripes, tiny


class Patchy(Stripes):
    "Photo i has 8*i rows without labels, so that a mean of means is not the mean."
    def __getitem__(self, i):
        s = super().__getitem__(i)
        s['labels'][:8*(i % 4)] = IGNORE
        return s


def trained(path, model=None, data=None, job=None, **asked):
    "A trainer after its training."
    recipe = Settings(**dict(lr=1e-2, batch_size=2, epochs=1) | asked)
    job = Job(path, model or net(), data or (Patchy(4), Stripes(2, 50)), get_loss('ce'), recipe, EpochLines(show=False), n_pictures=0, **job or {})
    with quiet():
        trainer = make_trainer(job, _training_args(path, recipe, [], 0))
        trainer.train()
    return trainer


def net():
    torch.manual_seed(0)
    return Segmenter(nn.Conv2d(3, 3, 3, padding=1), LABELS)


def weights(trainer): return [p.detach().clone() for p in trainer.step_module.segmenter.parameters()]


def test_accumulated_batches_are_one_batch(tmp_path):
    "The divisor is that of all labelled pixels of a step, whatever their shares."
    sgd = dict(optim='sgd')
    whole = trained(tmp_path/'a', batch_size=4, training_args=sgd)
    parts = trained(tmp_path/'b', batch_size=2, training_args=sgd | dict(gradient_accumulation_steps=2))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-7)


def test_evaluation_leaves_the_mode_alone(tmp_path):
    trainer = trained(tmp_path/'a')
    for mode in (True, False):
        trainer.model.train(mode)
        trainer.evaluate()
        assert trainer.model.training == mode


def test_the_order_follows_from_the_seed(tmp_path):
    orders = []
    for seed in (0, 1):
        trainer = trained(tmp_path/str(seed), data=(Stripes(8), Stripes(2)), seed=seed)
        orders.append([i for batch in trainer.batches for _, i in batch])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8)) and orders[0] != orders[1]


def test_a_loss_that_is_no_number(tmp_path):
    model = net()
    with torch.no_grad(): model.net.bias[0] = float('nan')
    with pytest.raises(LossError, match='at step 1 with lr=0.01') as e: trained(tmp_path/'a', model)
    one_sentence(str(e.value))
    assert last_checkpoint(tmp_path/'a').name == 'checkpoint-0'


def test_a_checkpoint_holds_the_scores_of_its_own_weights(tmp_path):
    trainer = trained(tmp_path/'a', epochs=2)
    state = trainer.state.load_from_json(str(last_checkpoint(tmp_path/'a')/'trainer_state.json'))
    assert state.global_step == 4 and [r['step'] for r in state.log_history if 'eval_loss' in r] == [2, 4]


def test_as_many_checkpoints_as_asked_for(tmp_path):
    trained(tmp_path/'a', epochs=3, job=dict(keep=2))
    assert sorted(p.name for p in (tmp_path/'a').glob('checkpoint-*')) == ['checkpoint-4', 'checkpoint-6']


def test_patience():
    job = Job(Path('.'), None, (), None, Settings(patience=2, keep_best='mean_iou'))
    out = [job.out_of_patience([dict(eval_mean_iou=v) for v in values]) for values in ([], [.5, .4], [.5, .4, .5], [.5, .4, .6])]
    assert out == [False, False, True, False]


ADAM = Like(learning_rate=.1, weight_decay=.3, adam_beta1=.8, adam_beta2=.99, adam_epsilon=1e-6, device=torch.device('cpu'))


def optimizer_of(rates=.1, optimizer=None): return _make_optimizer(Job(Path('.'), net(), (), None, Settings(lr=rates)), ADAM, optimizer)


def test_the_optimisers_settings():
    [group] = optimizer_of().param_groups
    assert (group['lr'], group['weight_decay'], group['betas'], group['eps']) == (.1, .3, (.8, .99), 1e-6)
    assert [g['lr'] for g in optimizer_of({'weight': .01, '*': .1}).param_groups] == [.01, .1]          # the first pattern that fits


@pytest.mark.parametrize('kw', [dict(rates={'weight': 1.}), dict(rates={'*': 1., 'bias': 2.}), dict(optimizer=lambda weights: 7),
                                dict(optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.))])
def test_no_optimiser(kw):
    with pytest.raises(UserError) as e: optimizer_of(**kw)
    one_sentence(str(e.value))


def test_looking_for_idle_weights_leaves_no_gradient():
    model = tiny()
    assert not _has_idle_weights(model) and all(p.grad is None for p in model.parameters())


def test_number_formats():
    with pytest.raises(UserError, match='without a CUDA GPU'): pick_precision('fp16', use_cpu=True)
    emulated = mock.patch.object(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    with mock.patch.object(torch.cuda, 'is_available', lambda: True), emulated: assert pick_precision('auto') == 'fp32'


def test_wandb_that_cannot_begin_is_a_line():
    pytest.importorskip('wandb')
    said = []
    with mock.patch('wandb.init', side_effect=OSError('nothing works')), mock.patch.dict(os.environ, WANDB_MODE='offline'):
        assert wandb_reporter(Job(Path('.'), net(), (), None, Settings(), Like(say=said.append)), 'seglab', dict(name='x', wandb_id='1')) is None
    assert said[-1] == 'W&B: nothing works; training goes on without it'
