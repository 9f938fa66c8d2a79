"Losses: sums and divisors, class weights, what is refused."
import pytest, torch
import torch.nn.functional as F
from seglab.dataset import LabelSpace
from seglab.files import UserError
from seglab.images import IGNORE
from seglab.losses import SegLoss, get_loss
from support.faults import one_sentence

SPACE = LabelSpace.from_names(['sky', 'road', 'car'])


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[0, :3], labels[1, 0] = IGNORE, IGNORE
    return torch.randn(2, 3, 8, 8, requires_grad=True), labels


@pytest.mark.parametrize('weights', [None, [1., 2., 5.]])
def test_cross_entropy_is_torchs(batch, weights):
    w = None if weights is None else torch.tensor(weights)
    torch.testing.assert_close(get_loss('ce', SPACE, weights)(*batch), F.cross_entropy(*batch, w, ignore_index=IGNORE))


@pytest.mark.parametrize('name', ['ce', 'focal', 'ce+0.5*focal', 'ce+0.5*dice'])
@pytest.mark.parametrize('weights', [None, {'car': 5}])
def test_the_divisor_is_known_from_the_labels(batch, name, weights):
    loss = get_loss(name, SPACE, weights)
    assert torch.allclose(loss.sums(*batch)[1], loss.divisors(batch[1]))


def test_factors_count(batch):
    ce, dice = (get_loss(n)(*batch) for n in ('ce', 'dice'))
    torch.testing.assert_close(get_loss('ce+0.5*dice')(*batch), ce + .5*dice)


@pytest.mark.parametrize('name', ['ce', 'dice', 'focal', 'lovasz', 'ce+0.5*lovasz'])
def test_no_labelled_pixel_is_a_zero_with_a_gradient(batch, name):
    logits, labels = batch
    loss = get_loss(name)(logits, torch.full_like(labels, IGNORE))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize('loss,weights', [
    ('lovasz', [1, 1, 2]), (F.cross_entropy, [1, 1, 2]), ('ce', [1, 2]), ('ce', [0, 0, 0]), ('ce', [1, 1, -1]), ('ce', [1, 1, float('nan')]),
    ('ce', {'cat': 2}), ('ce', 'heavy'), ('cee', None), ('ce+', None)])
def test_what_would_not_be_used_is_refused(loss, weights):
    with pytest.raises(UserError) as e: get_loss(loss, SPACE, weights)
    one_sentence(str(e.value))


def test_a_loss_of_ones_own_is_taken_as_it_is(batch):
    loss = get_loss(lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=IGNORE))
    assert isinstance(loss, SegLoss) and get_loss(loss) is loss
    torch.testing.assert_close(loss(*batch), get_loss('ce')(*batch))


@pytest.mark.parametrize('loss', ['0*ce', '0.*ce+dice', '1e999*ce', '1.2.3*ce', '1e*ce', 'ce+', 'CE'])
def test_a_factor_is_a_number_above_0(loss):
    with pytest.raises(UserError, match='loss='): get_loss(loss)


def test_class_weights_of_pandas_and_with_a_gradient():
    import pandas as pd
    assert get_loss('ce', SPACE, pd.Series({'car': 10., 'sky': 1., 'road': 2.})).weight.tolist() == [1, 2, 10]     # by name, in any order
    for w in (pd.Series([1., 2., 3.]), torch.tensor([1., 2, 3], requires_grad=True)): assert get_loss('ce', SPACE, w).weight.tolist() == [1, 2, 3]


def test_a_loss_that_is_a_module_follows_its_input_and_has_nothing_to_train():
    weighed = torch.nn.CrossEntropyLoss(weight=torch.ones(3), ignore_index=IGNORE)
    moved = []
    weighed.to = lambda device: moved.append(device.type) or weighed
    get_loss(weighed)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4))
    assert moved == ['cpu']
    weighed.temperature = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match='requires_grad_'): get_loss(weighed)
