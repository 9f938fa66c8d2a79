"""No label that would fail the loss passes the check, and none that would not is refused. `SEGLAB_LONG=1` tries far more of them."""
import json, os
import numpy as np, torch, torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from seglab.dataset import IGNORE, LabelError, LabelSpace, check_labels, explain_labels

LONG = bool(os.environ.get('SEGLAB_LONG'))
budget = settings(max_examples=20_000 if LONG else 150, deadline=None, derandomize=not LONG, suppress_health_check=list(HealthCheck))

def loss_takes(labels, num_labels, ignore_index):
    "Does cross-entropy answer with a finite number?"
    logits = torch.zeros(len(labels), num_labels, *labels.shape[1:])
    try: return bool(torch.isfinite(F.cross_entropy(logits, labels, ignore_index=ignore_index)))
    except (IndexError, RuntimeError, ValueError): return False

def check_takes(labels, num_labels, ignore_index):
    "Does the label check let it pass?"
    try: check_labels(labels, num_labels, ignore_index)
    except LabelError as e:
        assert 20 < len(str(e)) < 900 and e.cause
        return False
    return True

@st.composite
def batches(draw):
    "(labels int64 (B,H,W), K, ignore value): mostly right, with a few values that may be wrong."
    K = draw(st.sampled_from([1, 2, 3, 5, 21, 81, 91, 150, 254]))
    ignore = draw(st.sampled_from([255, 255, 255, -100, -1, 254]).filter(lambda i: not 0 <= i < K))
    shape = draw(st.tuples(*[st.integers(1, 4)]*3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, K, shape)
    odd = draw(st.lists(st.sampled_from([0, K-1, K, K+1, -1, -100, 90, 91, 156, 254, 255, 256, 1000, -2**40, 2**40, ignore]), max_size=4))
    if draw(st.booleans()) and odd: labels = rng.choice(odd, shape)
    else:
        for v in odd: labels.reshape(-1)[rng.integers(labels.size)] = v
    return torch.from_numpy(labels.astype(np.int64)), K, ignore

@given(batches())
@budget
def test_check_agrees_with_the_loss(batch):
    labels, K, ignore = batch
    assert check_takes(labels, K, ignore) == loss_takes(labels, K, ignore)
    assert check_takes(labels.numpy(), K, ignore) == check_takes(labels, K, ignore)

@given(batches())
@budget
def test_bytes_agree_with_the_loss(batch):
    labels, K, ignore = batch
    labels = (labels % 256).to(torch.uint8)
    assert check_takes(labels, K, ignore) == loss_takes(labels.long(), K, ignore)

@given(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int32, torch.int16, torch.int8, torch.bool]), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_other_types_are_refused_as_the_loss_refuses_them(dtype, K):
    labels = torch.zeros(1, 2, 2, dtype=dtype)
    assert not loss_takes(labels, K, IGNORE) and not check_takes(labels, K, IGNORE)

@st.composite
def spaces(draw):
    "A random label space: any values to any classes, some ignored, some unknown."
    K = draw(st.integers(1, 254))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = [[] for _ in range(K)]
    values = rng.permutation(256)[:draw(st.integers(0, 256))]
    ignored = []
    for v in values.tolist():
        k = int(rng.integers(-1, K))
        (ignored if k < 0 else ids[k]).append(v)
    return LabelSpace.from_dict(dict(names=[f'class {i}' for i in range(K)], ids=[sorted(i) for i in ids], ignore_ids=sorted(ignored)))

@given(spaces(), st.integers(0, 2**32 - 1), st.booleans())
@budget
def test_only_classes_and_ignore_come_out_of_a_label_space(space, seed, only_known):
    rng = np.random.default_rng(seed)
    pool = np.flatnonzero(space.known) if only_known else np.arange(256)
    mask = rng.choice(pool, (7, 5)).astype(np.uint8)
    strange = {int(v) for v in np.unique(mask) if not space.known[v]}
    try: labels = space.encode(mask, "mask 'x'")
    except LabelError as e:
        assert strange and "mask 'x'" in str(e)
        for v in sorted(strange)[:6]: assert f'{v} ({(mask == v).sum()} px)' in str(e)
        return
    assert not strange
    assert set(np.unique(labels)) <= {*range(space.num_labels), IGNORE}
    assert (labels == space.table[mask]).all()
    if (labels != IGNORE).any(): check_labels(labels[None], space.num_labels)
    void = np.flatnonzero(space.known & (space.table == IGNORE))
    if len(void) or not (labels == IGNORE).any(): assert (space.encode(space.decode(labels)) == labels).all()

@given(spaces())
@budget
def test_a_label_space_survives_json(space):
    again = LabelSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space and (again.table == space.table).all() and (again.known == space.known).all()
    assert again.colors.shape == (space.num_labels, 3) and repr(again)

@given(st.dictionaries(st.integers(-300, 300), st.integers(1, 10**6), min_size=1, max_size=300), st.dictionaries(st.integers(0, 255), st.integers(1, 10**6), max_size=20),
       st.integers(1, 254), st.sampled_from([255, -100, None]), st.sampled_from([None, (4, 4), (2, 4, 4), (64, 64, 3)]), st.booleans())
@budget
def test_every_finding_has_an_explanation(bad, good, K, ignore, shape, space):
    cause, why = explain_labels(bad, K, good, ignore, shape=shape, space=space)
    assert cause and len(why) > 20
