"Recipes: what `auto` plans, what `fit` does with it, weights in groups, the moving average, minutes."
from dataclasses import asdict, fields, replace
import pytest, torch
from safetensors.torch import load_file
from torch import nn
from seglab import costs, recipes, train as train_module
from seglab.dataset import LabelSpace
from seglab.files import UserError
from seglab.losses import get_loss
from seglab.model import Segmenter
from seglab.recipes import Recipe, Situation, auto_recipe, averaged, epochs_in, situation_of, training_bytes, weight_groups
from seglab.train import fit
from seglab.zoo import from_smp
from support.training import LABELS, Stripes, tiny

DATA = Stripes(6), Stripes(3, 50)


def go(out, model=None, **kw):
    return fit(model or tiny(), DATA, out=out, **dict(progress=False, pictures=0, precision='fp32') | kw)


def unet(start='resnet18, imagenet'):
    return Segmenter(from_smp('unet', LABELS, 'resnet18', None).net, LABELS, base_weights=start)


def test_the_default_is_auto_and_every_argument_wins(tmp_path):
    run = go(tmp_path/'a', epochs=1)
    assert run.recipe.name == 'auto' and run.recipe.why and run.settings.lr == run.recipe.lr == 1e-4
    assert run.settings.training_args['lr_scheduler_type'] == 'constant_with_warmup' and run.settings.loss == 'ce+dice'
    asked = dict(epochs=2, lr=3e-4, batch_size=2, loss='ce', weight_decay=.2, keep_best='loss')
    assert 'epochs' not in run.recipe.why and 'lr' in run.recipe.why                   # no reasons for what was asked for
    run = go(tmp_path/'b', **asked, max_grad_norm=.5, lr_scheduler_type='linear')
    assert {k: getattr(run.settings, k) for k in asked} == asked
    assert run.settings.training_args['max_grad_norm'] == .5 and run.settings.training_args['lr_scheduler_type'] == 'linear'


def test_the_assignments_recipe_is_what_it_was(tmp_path):
    run = go(tmp_path/'a', recipe='assignment', epochs=1)
    s = run.settings
    assert (s.lr, s.batch_size, s.loss, s.weight_decay, s.keep_best, s.training_args, s.ema, s.decay_norms) == (5e-5, 4, 'ce', .01, 'loss', {}, 0, True)
    assert Recipe().epochs == 10 and set(run.history.lr.dropna()) == {5e-5}


def test_a_plan_is_kept_when_the_machine_changes(tmp_path, monkeypatch):
    first = go(tmp_path/'r', epochs=1)
    planned = asdict(first.recipe)
    monkeypatch.setattr(recipes, '_RATES', dict.fromkeys(recipes._RATES, (.5, .5)))        # as if another machine planned otherwise
    again = go(tmp_path/'r')                                                         # what is not said is as the run has it
    assert asdict(again.recipe) == planned and again.finished
    with pytest.raises(UserError, match='lr'): go(tmp_path/'r', lr=.5, epochs=1)


def test_a_recipe_of_ones_own(tmp_path):
    mine = Recipe('mine', epochs=3, lr=1e-3, schedule='polynomial', warmup=.1, clip=1., ema=.9, accumulate=2)
    run = go(tmp_path/'r', recipe=mine)
    assert run.recipe == replace(mine, loss='ce') and run.settings.ema == .9
    assert run.settings.training_args == dict(lr_scheduler_type='polynomial', warmup_steps=.1, gradient_accumulation_steps=2, max_grad_norm=1.)
    with pytest.raises(UserError, match="recipe='best': expected 'auto', 'assignment'"): go(tmp_path/'s', recipe='best')


def test_an_optimiser_of_ones_own_keeps_its_rates(tmp_path):
    seen = []
    def optimizer(weights):
        seen.append(torch.optim.SGD(weights, lr=.1))
        return seen[0]
    go(tmp_path/'r', unet(), epochs=1, optimizer=optimizer)
    assert len(seen[0].param_groups) == 1 and seen[0].param_groups[0]['initial_lr'] == .1


@pytest.mark.parametrize('decay_norms', [True, False])
@pytest.mark.parametrize('arch', ['unet', 'unetplusplus', 'fpn', 'deeplabv3plus', 'segformer', 'manet', 'linknet', 'pan'])
def test_each_weight_is_in_exactly_one_group(arch, decay_norms):
    net = from_smp(arch, LABELS, 'resnet18', None).net
    groups = weight_groups(net, {'encoder.*': 1e-4, '*': 1e-3}, .01, decay_norms)
    ids = [id(w) for g in groups for w in g['params']]
    assert sorted(ids) == sorted(map(id, net.parameters())) and len(set(ids)) == len(ids)
    inside = {id(w) for w in net.encoder.parameters()}
    for g in groups:
        assert {id(w) in inside for w in g['params']} == {g['lr'] == 1e-4}
        assert {w.ndim > 1 or decay_norms for w in g['params']} == {g['weight_decay'] > 0}


def test_frozen_weights_are_in_no_group():
    net = unet().net
    for p in net.encoder.parameters(): p.requires_grad = False
    with pytest.raises(UserError, match="'encoder.*' fits none"): weight_groups(net, {'encoder.*': 1e-4, '*': 1e-3})
    assert sum(len(g['params']) for g in weight_groups(net, 1e-3)) == sum(p.requires_grad for p in net.parameters())


def test_a_frozen_encoder_trains_by_auto(tmp_path):
    model = unet()
    for p in model.net.encoder.parameters(): p.requires_grad = False
    before = {k: v.clone() for k, v in model.net.encoder.named_parameters()}
    run = go(tmp_path/'r', model, epochs=1)
    assert run.finished and all(torch.equal(v, before[k]) for k, v in run.load().net.encoder.named_parameters())


@pytest.mark.parametrize('start,part,rate', [(None, None, 1e-3), ('imagenet', 'encoder.*', 2e-4)])
def test_the_start_decides_the_rates(start, part, rate):
    model = unet(start)
    assert situation_of(model, DATA).part == part
    lr = auto_recipe(model, DATA).lr
    assert lr == rate if part is None else lr == {part: rate, '*': 10*rate}


def test_attention_is_known_from_smps_and_transformers_nets():
    kinds = [situation_of(Segmenter(net, LABELS, base_weights='x'), DATA) for net in (tiny().net, from_smp('unet', LABELS, 'mit_b0', None).net, unet().net)]
    assert [k.start for k in kinds] == ['pretrained attention'] * 2 + ['pretrained convolutions']
    assert [k.part for k in kinds] == ['segformer.*', 'encoder.*', 'encoder.*']


@pytest.mark.parametrize('photos', [1, 3, 40, 343, 5000, 118_287])
@pytest.mark.parametrize('gpu', [False, True])
@pytest.mark.parametrize('at_once', [1, 3, 7, 10**6])
def test_lengths_make_sense(photos, gpu, at_once):
    length, steps, why = recipes._length(Situation(photos, at_once, 'random convolutions', None, gpu))
    wished, a_step = min(photos, 16 if gpu else 8), length['batch_size'] * length['accumulate']
    assert 10 <= length['epochs'] <= 200 and 1 <= length['batch_size'] <= at_once
    assert wished <= a_step < wished + length['accumulate']                        # equal parts
    assert steps == length['epochs'] * -(-photos // wished)
    assert ('half of the memory' in why) == (length['accumulate'] > 1) == (at_once < wished)


def test_a_long_run_lets_its_rate_fall(monkeypatch):
    monkeypatch.setattr(recipes, 'device_memory', lambda device: 1 << 36)
    schedules = [auto_recipe(tiny(), (Stripes(300), Stripes(3)), device).schedule for device in ('cpu', 'cuda')]
    assert schedules == ['constant_with_warmup', 'cosine']


@pytest.mark.parametrize('kind,classes', [('unet', 5), ('unet', 60), ('segformer', 5), ('deeplabv3plus', 30), ('fpn', 5)])
def test_a_step_takes_the_memory_that_was_counted(kind, classes):
    names = [f'c{i}' for i in range(classes)]
    model = tiny(label_space=LabelSpace.from_names(names)) if kind == 'segformer' else from_smp(kind, names, 'resnet18', None)
    held, photo = training_bytes(model, (64, 96))
    model.train()
    def most(n):
        batch = torch.zeros(n, 3, 64, 96, dtype=torch.uint8), torch.zeros(n, 64, 96, dtype=torch.uint8)
        model.zero_grad()
        with costs._Live([*model.parameters(), *model.buffers(), *batch]) as live:
            loss = get_loss('ce+dice')(model(batch[0]), batch[1])
            there = live.peak
            loss.backward()
        return there, live.peak
    few, many = most(2), most(8)
    assert 1 < (many[0] - few[0]) / (6*photo) < 1.4                                 # for each photo, up to the loss; dropout is not counted
    assert many[1] <= 1.4 * 8*photo + held and few[1] <= 1.4 * 2*photo + held       # with gradients, weights beside


def test_a_frozen_encoder_saves_nothing():
    model, frozen = unet(), unet()
    for p in frozen.net.encoder.parameters(): p.requires_grad = False
    (held, photo), (less, smaller) = training_bytes(model, (64, 64)), training_bytes(frozen, (64, 64))
    assert less < held and smaller < photo


def test_little_memory_makes_small_batches(tmp_path, monkeypatch):
    held, photo = training_bytes(tiny(), DATA[0][0]['labels'].shape)
    monkeypatch.setattr(recipes, 'device_memory', lambda device: 2 * (held + 3*photo))
    recipe = auto_recipe(tiny(), DATA)
    assert (recipe.batch_size, recipe.accumulate) == (3, 2) and '3 photos at a time' in str(recipe)
    run = go(tmp_path/'r', epochs=1)
    assert run.recipe.accumulate == 2
    monkeypatch.setattr(recipes, 'device_memory', lambda device: 0)                 # a plan stays what it was
    assert auto_recipe(tiny(), DATA).batch_size == 1 and go(tmp_path/'r', epochs=2).recipe.accumulate == 2


def test_average_follows_its_formula():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    mean, want = averaged(net, .5), None
    for n in range(6):
        with torch.no_grad(): net[0].weight.copy_(torch.randn_like(net[0].weight))
        net(torch.randn(2, 3, 4, 4))
        mean.update_parameters(net)
        now = net[0].weight.detach().clone()
        want = now if want is None else want + (1 - min(.5, (1 + n)/(10 + n))) * (now - want)
    assert torch.allclose(mean.module[0].weight, want, atol=1e-6) and not any(p.requires_grad for p in mean.parameters())
    assert mean.module[1].num_batches_tracked == net[1].num_batches_tracked == 6


def test_the_average_is_what_is_kept(tmp_path):
    plain, smooth = (go(tmp_path/n, epochs=2, recipe=Recipe(epochs=2, lr=1e-2, ema=e)) for n, e in (('a', 0.), ('b', .99)))
    weights = [torch.load(r.best/'best_model.pth', weights_only=True) for r in (plain, smooth)]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    last = load_file(next(smooth.path.glob('checkpoint-*'))/'model.safetensors')
    kept = {k.removeprefix('average.module.net.'): v for k, v in last.items() if k.startswith('average.module.net.')}
    assert kept.keys() == weights[1].keys()
    model = smooth.load()
    assert all(torch.equal(v, weights[1][k]) for k, v in model.net.state_dict().items())


def test_minutes_become_epochs_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train_module, 'epochs_in', lambda minutes, *a, **kw: asked.append(minutes) or 1.5)
    run = go(tmp_path/'r', minutes=2)
    again = go(tmp_path/'r', minutes=2)                                              # not timed again
    assert asked == [2] and run.settings.epochs == again.settings.epochs == 1.5 and again.recipe.minutes == 2
    assert '2 minutes' in run.recipe.why['epochs']
    with pytest.raises(UserError, match='minutes=2: expected minutes= or epochs='): go(tmp_path/'s', minutes=2, epochs=3)
    with pytest.raises(UserError, match='minutes=-1: expected a number above 0'): go(tmp_path/'t', minutes=-1)


def test_timing_changes_nothing(tmp_path):
    model, state = tiny(), torch.random.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    epochs = epochs_in(.01, Recipe(), model, DATA, get_loss('ce'), torch.device('cpu'))
    assert epochs > 0 and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())


def test_whole_steps_are_timed(monkeypatch):
    done = []
    monkeypatch.setattr(torch.optim.AdamW, 'step', lambda self: done.append([p.grad is not None for g in self.param_groups for p in g['params']]))
    epochs_in(.01, Recipe(), tiny(), DATA, get_loss('ce'), torch.device('cpu'))
    assert len(done) == 7 and all(map(all, done))


def test_a_recipe_prints_every_reason():
    recipe = auto_recipe(tiny(), DATA)
    assert all(w in str(recipe) for w in recipe.why.values()) and str(recipe).startswith('auto: ')
    assert {f.name for f in fields(Recipe)} >= {'epochs', 'lr', 'batch_size', 'loss', 'weight_decay', 'keep_best'}
