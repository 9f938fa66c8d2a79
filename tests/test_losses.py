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
