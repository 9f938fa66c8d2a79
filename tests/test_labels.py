"""No label that would fail the loss passes the check, and none that would not is refused. `SEGLAB_LONG=1` tries far more of them."""
import io, json, os, warnings
import albumentations as A
import cv2, numpy as np, pytest, torch, torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from seglab.images import IGNORE, LabelError
from seglab.dataset import ByEpoch, CheckedCollate, EvalBatches, LabelSpace, SegDataset, check_dataset, check_samples, make_loader
from seglab.labels import TruthCheck, check_labels, explain_labels

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
    space = LabelSpace.from_names([f'class {i}' for i in range(K)]) if space else None
    cause, why = explain_labels(bad, K, good, ignore, shape=shape, space=space)
    assert cause and len(why) > 20

# The causes as a user makes them: a folder of photos and masks, opened with names; nothing is handed to the detectors directly.

def blobs(*values, hw=(64, 64), n=6):
    "n masks of the first value with a few rectangles of the others."
    rng, out = np.random.default_rng(0), []
    for _ in range(n):
        m = np.full(hw, values[0], np.uint8)
        for v in values[1:]:
            y, x = rng.integers(0, max(hw[0] - 24, 1), 2)
            m[y:y+rng.integers(8, 24), x:x+rng.integers(8, 24)] = v
        out.append(m)
    return out

def png(m, path): Image.fromarray(m).save(path.with_suffix('.png'))
def through_jpeg(m, path):
    lossy = io.BytesIO()
    Image.fromarray(m).save(lossy, 'JPEG')
    Image.open(lossy).save(path.with_suffix('.png'))
def resized(how, *values, hw=(100, 100)): return [cv2.resize(m, (64, 64), interpolation=how) for m in blobs(*values, hw=hw)]
def reduced(m): return np.where((m == 0) | (m == 255), 255, m - 1).astype(np.uint8)
def classes(n): return [f'class {i}' for i in range(n)]
def gappy(*ids): return LabelSpace.from_names({i: f'id {i}' for i in ids})

def opened(folder, masks, names, save=png, tfms=None):
    (folder/'photos').mkdir(); (folder/'masks').mkdir()
    for i, m in enumerate(masks):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*m.shape[:2], 3), np.uint8)).save(folder/'photos'/f'p{i}.png')
        save(m, folder/'masks'/f'p{i}')
    return SegDataset.from_folders(folder/'photos', folder/'masks', names, tfms=tfms)

rotate = lambda **kw: A.Compose([A.Rotate((20, 40), p=1, **kw)])
WRONG = {                                     # title: (cause, words of the sentence, masks, names, how they are saved or transformed)
    'ids from 1': ('off_by_one', ['5 (', 'px)', 'enumerate(names, 1)'], blobs(1, 2, 3, 4, 5), classes(5), {}),
    'void without a name': ('off_by_one', ['11 (', 'ignore_ids=(11,)'], blobs(0, 3, 10, 11), classes(11), {}),
    'category ids, 81 names': ('raw_category_ids', ['90 (', "'toothbrush'", "label_space('coco80')"], blobs(0, 1, 18, 90), classes(81), {}),
    'category ids, a few names': ('raw_category_ids', ['18 (', "'dog'"], blobs(0, 1, 18), classes(3), {}),
    'every pixel one more': ('off_by_one', ['19 (', 'take it back'], [m + 1 for m in blobs(0, 1, 18, 60)], gappy(0, 1, 18, 24, 60), {}),
    'too few names': ('num_labels', ['4 (', 'name all 5'], blobs(0, 1, 2, 3, 4), classes(2), {}),
    'black and white': ('binary', ['0 (', '255 (', "255: 'object'"], blobs(0, 255), classes(2), {}),
    'black and white, three names': ('binary', ["255: 'object'"], blobs(0, 255), classes(3), {}),
    'black and white, one name': ('binary', ["255: 'object'"], blobs(0, 255), classes(1), {}),
    'grey levels': ('grey_levels', ['128 (', "128: '...'"], blobs(0, 128, 255), classes(3), {}),
    'bilinear, ids with gaps': ('interpolated', ["'p0'", 'nearest'], resized(cv2.INTER_LINEAR, 0, 40, 80), gappy(0, 40, 80), {}),
    'bilinear over ignore': ('interpolated', ['nearest'], resized(cv2.INTER_LINEAR, 0, 1, 255, hw=(30, 30)), classes(2), {}),
    'bilinear black and white': ('interpolated', ['nearest'], resized(cv2.INTER_LINEAR, 0, 255, hw=(30, 30)), gappy(0, 255), {}),
    'bicubic': ('interpolated', ['11 (', 'nearest'], resized(cv2.INTER_CUBIC, 0, 4, 10, hw=(30, 30)), classes(11), {}),
    'transform interpolates': ('interpolated', ['Compose', 'mask_interpolation'], blobs(0, 1, 2), classes(3), dict(tfms=rotate(mask_interpolation=cv2.INTER_LINEAR, fill_mask=255))),
    'transform pads with 0': ('padding_as_class', ['fill_mask=255'], blobs(0, 1, 2), classes(3), dict(tfms=rotate())),
    'transform reduces labels': ('reduced_twice', ['down by one'], blobs(0, 1, 2, 3), classes(4), dict(tfms=lambda image, mask: dict(image=image, mask=reduced(mask)))),
    'JPEG files': ('jpeg_mask', ['p0.jpg', 'PNG'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: Image.fromarray(m).save(p.with_suffix('.jpg')))),
    'JPEG files called PNG': ('jpeg_mask', ['p0.png', 'PNG'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: Image.fromarray(m).save(p.with_suffix('.png'), 'JPEG'))),
    'JPEG, then PNG': ('jpeg_mask', ["'p0'", 'JPEG'], blobs(0, 40, 80), gappy(0, 40, 80), dict(save=through_jpeg)),
    'JPEG of black and white': ('jpeg_mask', ["'p0'", 'JPEG'], blobs(0, 255), gappy(0, 255), dict(save=through_jpeg)),
    'colours': ('rgb_mask', ['p0.png', 'Turn its colours into ids'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: png(np.stack([m*80, m*20, m], -1), p))),
    'grey in three channels': ('rgb_mask', ['getchannel(0)'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: png(np.stack([m]*3, -1), p))),
    'colours and alpha': ('rgb_mask', ['RGBA'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: png(np.stack([m*80, m*20, m, m*0+255], -1), p))),
    'VOC palette read as grey': ('palette_as_grey', ['38 (', '75 ('], [np.array([0, 38, 75], np.uint8)[m] for m in blobs(0, 1, 2)], classes(21), {}),
    'bytes wrapped': ('uint8_wrap', ['254 (', 'np.where'], [m - 1 for m in blobs(1, 2, 255)], classes(2), {}),
    '-100 in bytes': ('uint8_wrap', ['156 (', '-100'], [np.where(m == 2, 156, m).astype(np.uint8) for m in blobs(0, 1, 2)], classes(2), {}),
    'negative numbers in a TIFF': ('padding', ['-1 (', '255'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: Image.fromarray(m.astype(np.int32) - 1).save(p.with_suffix('.tif')))),
    'fractions in a TIFF': ('dtype', ['fractions'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: Image.fromarray(m.astype(np.float32)/2).save(p.with_suffix('.tif')))),
    'sixteen bits': ('too_large', ['1000', 'Renumber'], blobs(0, 1, 2), classes(3), dict(save=lambda m, p: Image.fromarray(m.astype(np.uint16)*500).save(p.with_suffix('.png')))),
    'object everywhere': ('one_class', ['nothing to tell apart'], [np.ones((64, 64), np.uint8)]*3, classes(2), {}),
    'background alone': ('one_class', ['nothing to tell apart', "'class 0'"], [np.zeros((64, 64), np.uint8)]*3, classes(3), {}),
    'one class': ('one_class', ['the only class', 'background'], [np.zeros((64, 64), np.uint8)]*3, classes(1), {}),
    'nothing but ignore': ('all_ignored', ['6 masks'], [np.full((64, 64), 255, np.uint8)]*6, classes(2), {}),
}
ODD = {                                       # in range, so that only a person can tell: a warning, and the training goes on
    'interpolated within range': ('rise in steps', resized(cv2.INTER_LINEAR, 0, 4, 10), classes(11)),
    'reduced twice on the disk': ('reduced once too often', [reduced(reduced(m)) for m in blobs(0, 1, 2, 3, 4)], classes(4)),
    'one mask black and white': ("1 of 7 masks hold 0 and 255 only (first 'p6')", blobs(0, 1) + blobs(0, 255, n=1), classes(2)),
    "COCO's ids, none above 80": ('category ids', [np.resize(np.array([0, *range(1, 12), *range(13, 26), 27, 28, 31, 32, 79], np.uint8).repeat(2), (64, 64))]*3, classes(81)),
}
GOOD = {
    'few of many classes': (blobs(0, 3), classes(20), png),
    'some masks all ignore': (blobs(0, 1) + [np.full((64, 64), 255, np.uint8)]*3, classes(2), png),
    'a palette': (blobs(0, 1, 2), classes(3), lambda m, p: (im := Image.fromarray(m).convert('P'), im.putdata(m.ravel()), im.save(p.with_suffix('.png')))),
    'one bit': (blobs(0, 1), classes(2), lambda m, p: png(m.astype(bool), p)),
    'sixteen bits, small ids': (blobs(0, 1, 2), classes(3), lambda m, p: Image.fromarray(m.astype(np.uint16)).save(p.with_suffix('.png'))),
    'void between the classes': ([np.where(cv2.dilate(m, np.ones((3, 3))) != cv2.erode(m, np.ones((3, 3))), 255, m) for m in blobs(0, 5, 9)], classes(10), png),
    'black and white, both named': (blobs(0, 255) + [np.zeros((64, 64), np.uint8)]*2, gappy(0, 255), png),
    'all 254': ([np.arange(254, dtype=np.uint8).repeat(20).reshape(127, 40)]*2, classes(254), png),
}

@pytest.mark.parametrize('title', WRONG)
def test_a_folder_made_wrong_is_refused_with_its_cause(tmp_path, title):
    cause, words, masks, names, how = WRONG[title]
    with pytest.raises(LabelError) as e: check_dataset(opened(tmp_path, masks, names, **how))
    assert e.value.cause == cause, e.value
    for w in words: assert w in str(e.value), (w, str(e.value))

@pytest.mark.parametrize('title', ODD)
def test_a_folder_that_looks_wrong_is_spoken_of(tmp_path, title):
    words, masks, names = ODD[title]
    ds = opened(tmp_path, masks, names)
    with pytest.warns(UserWarning) as told: report = check_dataset(ds)
    assert any(words in str(w.message) for w in told) and any(words in n for n in report.notes)

@pytest.mark.parametrize('title', GOOD)
def test_a_good_folder_passes_in_silence(tmp_path, title):
    masks, names, save = GOOD[title]
    ds = opened(tmp_path, masks, names, save)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert check_dataset(ds).images == len(masks)

@given(spaces(), st.integers(0, 2**32 - 1), st.booleans())
@budget
def test_truth_that_is_scored_passes_the_check_of_truth_that_is_trained_on(space, seed, prepared):
    rng = np.random.default_rng(seed)
    pool = [[0, IGNORE], [IGNORE], [*range(space.num_labels)], [0, 1, IGNORE]][rng.integers(4)]
    labels = rng.choice([v for v in pool if v < space.num_labels or v == IGNORE], (3, 6, 5)).astype(np.uint8)
    check, found = TruthCheck(space, prepared), set(np.unique(labels).tolist())
    for y in labels: check.add(y)
    wrong = 'all_ignored' if found == {IGNORE} else None
    if found == {0, IGNORE} and not prepared and (space.table[0] != IGNORE or space.table[IGNORE] != IGNORE): wrong = 'binary'
    try: assert check.finish().counts.sum() == labels.size and wrong is None
    except LabelError as e: assert e.cause == wrong

@pytest.mark.parametrize('space', [LabelSpace.from_names(classes(2)), gappy(0, 255), LabelSpace.from_names(classes(3))])
def test_black_and_white_truth_is_refused(space):
    check = TruthCheck(space)
    for m in blobs(0, 255): check.add(m)
    with pytest.raises(LabelError, match='0 .* 255') as e: check.finish()
    assert e.value.cause == 'binary'

def test_a_label_outside_the_classes_is_named_as_it_streams_past():
    with pytest.raises(LabelError, match="'street_7' holds labels outside 0...2: 3"): TruthCheck(LabelSpace.from_names(classes(3))).add(blobs(0, 3)[0], 'street_7')

class Foreign(torch.utils.data.Dataset):
    "A data set that seglab knows nothing about."
    def __init__(self, given): self.given = given
    def __len__(self): return len(self.given)
    def __getitem__(self, i): return dict(pixel_values=torch.zeros(3, 64, 64, dtype=torch.uint8), labels=self.given[i])

def int64(masks): return [torch.from_numpy(m.astype(np.int64)) for m in masks]
FOREIGN = {
    'off by one': ('off_by_one', int64(blobs(1, 2, 3, 5)), 5), 'raw ids': ('raw_category_ids', int64(blobs(0, 18, 90)), 81),
    '81 of 81': ('raw_category_ids', int64(blobs(0, 18, 81)), 81), 'num_labels': ('num_labels', int64(blobs(0, 1, 2, 3)), 2),
    '-100': ('padding', [y.masked_fill(y == 1, -100) for y in int64(blobs(0, 1, 2))], 3), '-1': ('padding', [y - 1 for y in int64(blobs(0, 1, 2))], 2),
    'black and white': ('binary', int64(blobs(0, 255)), 2), 'black and white bytes': ('binary', [torch.from_numpy(m) for m in blobs(0, 255)], 2),
    'float': ('dtype', [y.float() for y in int64(blobs(0, 1))], 2), 'int32': ('dtype', [y.int() for y in int64(blobs(0, 1))], 2),
    'bool': ('dtype', [y.bool() for y in int64(blobs(0, 1))], 2), 'channel': ('shape', [y[None, None] for y in int64(blobs(0, 1))], 2),
    'one-hot': ('shape', [F.one_hot(y, 2)[None] for y in int64(blobs(0, 1))], 2), 'above 255': ('too_large', [y*300 for y in int64(blobs(0, 1))], 2),
    'palette as grey': ('palette_as_grey', [torch.tensor([0, 38, 75])[y] for y in int64(blobs(0, 1, 2))], 21),
    'nothing but ignore': ('all_ignored', [torch.full((64, 64), 255)]*3, 2),
}

@pytest.mark.parametrize('title', FOREIGN)
def test_a_foreign_data_set_made_wrong_is_refused_with_its_cause(title):
    cause, labels, K = FOREIGN[title]
    before = torch.get_rng_state()
    with pytest.raises(LabelError) as e: check_samples(Foreign(labels), LabelSpace.from_names(classes(K)))
    assert e.value.cause == cause, e.value
    assert torch.equal(before, torch.get_rng_state())

def test_good_foreign_data_passes():
    space = LabelSpace.from_names(classes(3))
    for labels in (int64(blobs(0, 1, 2)), [torch.from_numpy(m) for m in blobs(0, 2)], blobs(0, 1), [Image.fromarray(m) for m in blobs(0, 1, 255)],
                   int64(blobs(0, 1)) + [torch.full((64, 64), 255)]*2):
        report = check_samples(Foreign(labels), space)
        assert report.images == len(labels) and report.counts.sum() == len(labels)*64*64
    assert check_samples(Foreign(int64(blobs(0, 1))*100), space, most=7).images == 7

def test_a_worker_sends_sentence_and_cause(tmp_path):
    ds = opened(tmp_path, blobs(0, 1, 11), classes(11))
    with pytest.raises(LabelError) as here: ds[0]
    loader = make_loader(ByEpoch(ds), 1, batch_sampler=EvalBatches(len(ds), 2), collate_fn=CheckedCollate(11))
    with pytest.raises(LabelError) as there: next(iter(loader))
    assert str(there.value) == str(here.value) and there.value.cause == here.value.cause == 'off_by_one'
