"""The data set: label spaces, parts and folds, augmentation, batches, wrappers. Each test was seen failing with the fault in its name."""
import itertools, json, os, subprocess, sys, unicodedata, warnings
from pathlib import Path
import albumentations as A
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from seglab.bulk import pack
from seglab.dataset import (ByEpoch, CheckedCollate, EpochBatches, EvalBatches, LabelSpace, SegData, SegDataset, as_data, check_dataset, check_samples,
                            class_counts, class_weights, collate, folds, label_space, load_data, make_loader, show_batch, train_tfms, valid_tfms)
from seglab.files import UserError
from seglab.images import IGNORE, LabelError
from seglab.masks import palette, prepare
from seglab.own import CAMVID, check_photo, class_groups, epoch_holders, look_through
from seglab.sample import make_sample

LONG = bool(os.environ.get('SEGLAB_LONG'))
budget = settings(max_examples=2000 if LONG else 60, deadline=None, derandomize=not LONG, suppress_health_check=list(HealthCheck))

@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp('sample')
    raw = make_sample(root/'raw', n=20, size_hw=(96, 128))
    return raw/'annotations/instances_sample.json', raw/'sample'

@pytest.fixture
def folder(sample, tmp_path):
    prepare(*sample, tmp_path/'prepared', size_hw=64, workers=1)
    return tmp_path/'prepared'

def write(folder, masks, photos=None, size=(16, 20)):
    "A folder of photos and one of masks."
    for d in ('photos', 'masks'): (folder/d).mkdir(parents=True)
    for k, (name, m) in enumerate(masks.items()):
        x = np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8) if photos is None else photos[name]
        Image.fromarray(x).save(folder/'photos'/f'{name}.png')
        Image.fromarray(m).save(folder/'masks'/f'{name}.png')
    return folder/'photos', folder/'masks'

def half(hw=(16, 20)): return (np.arange(hw[1]) < hw[1]//2).astype(np.uint8)[None].repeat(hw[0], 0)
def refused(words, f, *args, **kw):
    with pytest.raises((UserError, LabelError)) as e: f(*args, **kw)
    assert words in str(e.value) and '\n' not in str(e.value), str(e.value)
    return e.value

# which classes

CATS = [dict(id=1, name='cat', supercategory='animal'), dict(id=2, name='dog', supercategory='animal'), dict(id=7, name='cup, mug'), dict(id=9, name='3')]

@pytest.mark.parametrize('written', ['background', 'Background', 'BACKGROUND', ' background '])
@pytest.mark.parametrize('classes', ['all', 'things', 'supercategories', 'cat', 'background,cat', ['Background', 'cat'], [1]])
def test_a_category_called_background_joins_class_0(written, classes):
    for others in ('background', 'ignore'):
        space = label_space(classes, [*CATS, dict(id=30, name=written)], others=others)
        assert space.table[30] == 0 and space.names[0] == 'background' and sum(n.strip().lower() == 'background' for n in space.names) == 1

def test_a_supercategory_called_background_joins_class_0():
    space = label_space('supercategories', [dict(id=1, name='sky', supercategory='background'), dict(id=2, name='cat', supercategory='animal')])
    assert space.names == ['background', 'animal'] and space.ids == [[0, 1], [2]]

@pytest.mark.parametrize('classes,groups', [
    ('cup, mug', {'cup, mug': [7]}), ('cat,dog', {'cat': [1], 'dog': [2]}), (['cup, mug', 'cat'], {'cup, mug': [7], 'cat': [1]}), (['cat,dog'], {'cat': [1], 'dog': [2]}),
    ('1,2', {'cat': [1], 'dog': [2]}), ([2, 'cat'], {'dog': [2], 'cat': [1]}), ('3', {'3': [9]}), (9, {'3': [9]}), ('cat,1', {'cat': [1]}), ([np.int64(2)], {'dog': [2]})])
def test_names_with_commas_and_ids(classes, groups): assert class_groups(classes, CATS)[0] == groups

def test_a_name_that_is_another_ones_id_is_not_guessed():
    cats = [*CATS, dict(id=3, name='cow')]
    assert "'3', the name of category 9 and the id of 'cow'" in str(refused("classes=[3]", class_groups, '3', cats))
    assert class_groups([3], cats)[0] == {'cow': [3]}

def test_categories_that_share_a_name_are_one_class():
    assert class_groups('all', [dict(id=1, name='cat'), dict(id=5, name='cat')])[0] == {'cat': [1, 5]}

def test_unknown_classes_are_one_sentence():
    refused("the unknown class 'dgo' (did you mean 'dog'?)", label_space, 'cat,dgo', CATS)
    refused('no class', label_space, [], CATS)
    refused("classes='all' takes every category", label_space, 'coco80', CATS)
    refused('preset for folders of index masks', label_space, 'camvid', CATS)

def test_camvid_is_one_thing():
    assert CAMVID == 'sky building pole road sidewalk tree signsymbol fence car pedestrian bicyclist'.split()
    space = label_space('camvid')
    assert space.names == CAMVID and space.table[:13].tolist() == [*range(11), 255, 255] and space.known[11] and not space.known[12]

@pytest.mark.parametrize('d', [dict(names=['a'], ids=[[-1]]), dict(names=['a'], ids=[[True]]), dict(names=['a'], ids=[[0.]]), dict(names=['a'], ids=[[256]]), dict(names=['a'], ids=[['1']]),
    dict(names=['a', 'b'], ids=[[1], [1]]), dict(names=['a'], ids=[[1]], ignore_ids=[1]), dict(names=['a'], ids=[[1]], ignore_ids=[-1]), dict(names=[None], ids=[[1]]), dict(names=['a'], ids=[1]),
    dict(names=['a'], ids=None), dict(names='a', ids=[[1]]), dict(names=['a'], ids=[[1], [2]]), dict(names=[], ids=[]), dict(), dict(names=['a'], ids={'0': 1})])
def test_damaged_label_spaces_are_one_sentence(d): refused('expected', LabelSpace.from_dict, d)

def test_ignore_has_one_colour():
    space = LabelSpace.from_names({0: 'background', 255: 'object', 7: 'rim'})
    assert (space.palette[IGNORE] == palette()[IGNORE]).all() and space.palette.shape == (256, 3) and (space.palette[:3] == space.colors).all()
    assert len({tuple(c) for c in space.colors}) == 3

# what is refused before a training

def test_nothing_but_background_is_refused_for_training_and_not_for_validation(folder):
    for p in (folder/'masks').glob('*.png'): Image.fromarray(np.where(np.asarray(Image.open(p)) > 0, 255, 0).astype(np.uint8)).save(p)
    e = refused('nothing to tell apart', check_dataset, SegDataset(folder, 'train'))
    assert e.cause == 'one_class' and "crowd='paint'" in str(e)
    assert check_dataset(SegDataset(folder, 'val')).counts[1:-1].sum() == 0
    refused('nothing to tell apart', check_dataset, SegDataset(folder, 'val'), trains=True)

def test_a_photo_of_another_size_than_its_mask_is_found_by_the_scan(tmp_path):
    ds = SegDataset.from_folders(*write(tmp_path, {'a': half(), 'b': half()}), ['x', 'y'])
    Image.new('RGB', (5, 5)).save(tmp_path/'photos'/'b.png')
    assert refused("photo 'b' is (5, 5) and its mask (16, 20)", check_dataset, ds).cause == 'size'
    refused("photo 'b'", ds.raw, 1)

@pytest.mark.parametrize('note', [5, 6, 7, 8])
def test_a_photo_on_its_side_is_turned_to_its_mask(tmp_path, note):
    "As a phone stores it: the mask was drawn on the upright photo. Without a note it is refused."
    upright = np.arange(16*20*3, dtype=np.uint8).reshape(16, 20, 3)
    photos, masks = write(tmp_path, {'a': half(), 'b': half()})
    stored = {5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1)}[note]
    exif = Image.Exif(); exif[274] = note
    Image.fromarray(np.ascontiguousarray(stored)).save(photos/'b.png', exif=exif)
    ds = SegDataset.from_folders(photos, masks, ['x', 'y'])
    check_dataset(ds)
    assert (ds.raw(1)[0] == upright).all()
    Image.fromarray(np.ascontiguousarray(stored)).save(photos/'b.png')
    refused("photo 'b' is (20, 16) and its mask (16, 20)", check_dataset, SegDataset.from_folders(photos, masks, ['x', 'y']))

def test_masks_without_a_photo_are_refused(tmp_path):
    images, masks = write(tmp_path, {'a': half()})
    Image.fromarray(half()).save(masks/'b.png')
    refused("1 masks without one, first ['b']", SegDataset.from_folders, images, masks, ['x', 'y'])

@pytest.mark.parametrize('seed', [-1, 1.5, True, 'x', None])
def test_seeds_are_whole_numbers_from_0(folder, seed): refused('seed=', SegDataset, folder, seed=seed)

def test_stems_that_lost_their_zeros_are_one_sentence(folder):
    import pandas as pd
    pd.read_csv(folder/'index.csv').to_csv(folder/'index.csv', index=False)
    refused("dtype={'stem': str}", load_data, folder)

class Own(Dataset):
    "Somebody's own data set."
    def __init__(self, photo, labels=None): self.photo, self.labels, self.epochs = photo, torch.tensor(half((8, 8))).long() if labels is None else labels, []
    def __len__(self): return 4
    def __getitem__(self, i): return self.photo, self.labels

two = LabelSpace.from_names(['ground', 'cat'])
@pytest.mark.parametrize('photo', [torch.rand(3, 8, 8), torch.rand(1, 8, 8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8), Image.new('RGB', (8, 8)), Image.new('L', (8, 8)),
                                   torch.zeros(3, 8, 8, dtype=torch.uint8), torch.rand(3, 8, 8).half()])
def test_photos_of_any_form_become_a_batch(photo):
    check_samples(Own(photo), two)
    b = CheckedCollate(2)([ByEpoch(Own(photo))[0, i] for i in range(2)])
    assert b['pixel_values'].shape == (2, 3, 8, 8) and b['labels'].dtype == torch.uint8
    assert show_batch(Own(photo), two, n=2).axes

@pytest.mark.parametrize('photo,words', [(torch.randn(3, 8, 8)*3, 'do not normalise'), (torch.full((3, 8, 8), 900, dtype=torch.int32), 'torch.int32'), (np.full((3, 8, 8), 900, np.uint16), 'uint16'),
    (torch.zeros(3, 8, 8, dtype=torch.int64), 'int64'), (torch.rand(3, 8, 8)*255, 'Divide by 255'), (torch.zeros(4, 8, 8, dtype=torch.uint8), '4 channels'), (np.zeros((8, 8, 4), np.uint8), '4 channels'),
    (Image.new('RGBA', (8, 8)), '4 channels'), (torch.full((3, 8, 8), float('nan')), 'nan'), (torch.zeros(2, 8, 8, dtype=torch.uint8), '2 channels')])
def test_photos_that_a_model_would_misread_are_one_sentence(photo, words):
    refused(words, check_samples, Own(photo), two)
    refused(words, lambda: CheckedCollate(2)([ByEpoch(Own(photo))[0, 0]]))

def test_mixed_sizes_in_a_batch_name_the_way_out(tmp_path):
    images, masks = write(tmp_path, {'a': half()})
    Image.new('RGB', (8, 8)).save(images/'b.png'); Image.fromarray(half((8, 8))).save(masks/'b.png')
    ds = SegDataset.from_folders(images, masks, ['x', 'y'])
    refused('tfms=train_tfms(256)', collate, [ds[0], ds[1]])
    ds.tfms = valid_tfms(16)
    assert collate([ds[0], ds[1]])['labels'].shape == (2, 16, 16)
    Image.new('RGB', (8, 8)).save(images/'c.png'); Image.fromarray(half((8, 8))).save(masks/'c.png')
    parts = dict(masks=masks, split=dict(train=['a', 'b'], val=['c']))
    refused('size_hw=None', load_data, images, ['x', 'y'], **parts)
    assert load_data(images, ['x', 'y'], 12, **parts).train[0]['labels'].shape == (12, 12)

# augmentation

def flat(value, hw): return dict(image=np.full((*hw, 3), 100, np.uint8), mask=np.full(hw, value, np.uint8))
@pytest.mark.parametrize('tfms,hw', [(train_tfms(), (48, 64)), (train_tfms((48, 64)), (48, 64)), (valid_tfms(64, 'pad'), (48, 64)), (valid_tfms((40, 90), 'pad'), (48, 64))])
def test_what_lies_outside_the_photo_is_ignore(tmp_path, tfms, hw):
    ds = SegDataset.from_folders(*write(tmp_path, {'a': np.full(hw, 3, np.uint8)}, size=hw), [*'abcd'], tfms=tfms)
    found = set()
    for epoch in range(12):
        ds.set_epoch(epoch)
        found |= set(ds[0]['labels'].unique().tolist())
    assert found == {3, IGNORE}

def test_the_window_has_the_shape_of_the_photo():
    y, x = np.mgrid[0:64, 0:192]
    image = np.stack([x*255//192, y*255//64, 0*x], -1).astype(np.uint8)
    tfms = train_tfms((64, 192), zoom=(1, 2), flip=0, light=0)
    for seed in range(25):
        tfms.set_random_seed(seed)
        out = tfms(image=image, mask=np.zeros((64, 192), np.uint8))['image']
        wide, high = np.ptp(out[..., 0].astype(int)), np.ptp(out[..., 1].astype(int))
        assert .65 < wide/high < 1.5, (wide, high)

def test_a_negative_index_is_the_same_sample(folder):
    ds = SegDataset(folder, tfms=train_tfms(64))
    assert torch.equal(ds[-1]['pixel_values'], ds[len(ds) - 1]['pixel_values'])
    assert torch.equal(Subset(ds, [-1])[0]['labels'], ds[len(ds) - 1]['labels'])
    with pytest.raises(IndexError): ds[len(ds)]

def test_a_transform_that_draws_from_anywhere_repeats(folder):
    def noisy(image, mask): return dict(image=(image + np.random.randint(9) + int(torch.randint(9, (1,)))).astype(np.uint8), mask=mask)
    ds = SegDataset(folder, tfms=noisy)
    state = torch.get_rng_state()
    assert torch.equal(ds[0]['pixel_values'], ds[0]['pixel_values']) and torch.equal(state, torch.get_rng_state())

# batches

@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 4))
@budget
def test_the_order_follows_from_seed_and_epoch(n, size, seed, epoch, world):
    order = torch.randperm(n, generator=torch.Generator().manual_seed((seed*1_000_003 + epoch) % 2**63)).tolist()
    shares = [EpochBatches(n, size, seed, world, r) for r in range(world)]
    for s in shares: s.set_epoch(epoch)
    steps = list(zip(*shares))
    assert all(len(list(s)) == len(s) == len(steps) for s in shares) and all(e == epoch for s in shares for b in s for e, _ in b)
    for k, step in enumerate(steps):
        want = order[k*size*world:(k + 1)*size*world]
        assert {i for b in step for _, i in b} == set(want) and all(1 <= len(b) <= size for b in step)
        if len(want) >= world: assert sorted(i for b in step for _, i in b) == sorted(want)
    assert sorted(i for r in range(world) for b in EvalBatches(n, size, world, r) for _, i in b) == list(range(n))

def test_another_epoch_and_another_seed_are_other_orders():
    def order(seed, epoch):
        b = EpochBatches(30, 4, seed)
        b.set_epoch(epoch)
        return tuple(i for batch in b for _, i in batch)
    assert len({order(s, e) for s in range(3) for e in range(3)}) == 9

@pytest.mark.parametrize('workers', [0, 2])
def test_wrapped_data_is_augmented_anew_in_each_epoch(folder, workers):
    ds = SegDataset(folder, tfms=train_tfms(64))
    nest = ConcatDataset([Subset(ds, [0, 3]), Subset(ConcatDataset([Subset(ds, [5, 1, 2])]), [2, 0])])
    order, seen = EvalBatches(4, 4), []
    for epoch in range(3):
        loader = make_loader(ByEpoch(nest), workers, batch_sampler=[[(epoch, i) for i in range(4)]], collate_fn=CheckedCollate(9))
        seen.append(next(iter(loader))['pixel_values'])
        ds.set_epoch(epoch)
        assert torch.equal(seen[-1], torch.stack([ds[i]['pixel_values'] for i in (0, 3, 2, 5)]))
    assert all((a != b).flatten(1).any(1).all() for a, b in zip(seen, seen[1:]))

@pytest.mark.parametrize('start', ['spawn', 'forkserver'] if LONG else ['spawn'])
def test_workers_start_from_a_script_without_a_guard(folder, tmp_path, start):
    (tmp_path/'script.py').write_text(f'''
from seglab.dataset import *
from seglab.own import make_loader
print('script')
ds = SegDataset({str(folder)!r}, tfms=train_tfms(64))
loader = make_loader(ByEpoch(ds), 1, batch_sampler=EpochBatches(len(ds), 8), collate_fn=CheckedCollate(9), multiprocessing_context={start!r})
print(sum(len(b['labels']) for b in loader))
''')
    done = subprocess.run([sys.executable, tmp_path/'script.py'], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ['script', '20'], done.stderr[-2000:]

# wrappers, nested at random

class Base(Dataset):
    def __init__(self, k, n):
        rng = np.random.default_rng(k)
        self.masks, self.stems = rng.choice([0, 1, 2, 255], (n, 5, 7)).astype(np.uint8), [f'{k}-{i}' for i in range(n)]
        self.label_space, self.epoch, self.tfms, self.split, self.prepared, self.path = LabelSpace.from_names([*'abc']), 0, None, None, False, Path('x')
    def __len__(self): return len(self.masks)
    def __getitem__(self, i): return dict(pixel_values=torch.full((3, 5, 7), self.epoch, dtype=torch.uint8), labels=torch.tensor(self.masks[i]))
    def raw(self, i): return np.zeros((5, 7, 3), np.uint8), self.masks[i]
    def mask_values(self, i): return self.masks[i]
    def set_epoch(self, epoch): self.epoch = epoch

@st.composite
def nestings(draw, depth=3):
    kind = draw(st.sampled_from(['base', 'subset', 'concat', 'split'] if depth else ['base']))
    if kind == 'base': return Base(draw(st.integers(0, 5)), draw(st.integers(2, 5)))
    if kind == 'concat': return ConcatDataset(draw(st.lists(nestings(depth - 1), min_size=1, max_size=3)))
    inner = draw(nestings(depth - 1))
    if kind == 'split': return random_split(inner, [len(inner) - 1, 1], torch.Generator().manual_seed(draw(st.integers(0, 9))))[0] if len(inner) > 1 else inner
    return Subset(inner, draw(st.lists(st.integers(-len(inner), len(inner) - 1), min_size=1, max_size=6)))

@given(nestings(), st.integers(0, 200))
@budget
def test_any_nesting_is_looked_through(ds, epoch):
    parts = look_through(ds)
    assert len(parts.which) == len(ds) and parts.label_space.names == ['a', 'b', 'c']
    for i in range(len(ds)):
        assert (parts.ask(i, 'raw')[1] == ds[i]['labels'].numpy()).all()
        assert ByEpoch(ds)[epoch, i]['pixel_values'].unique().tolist() == [epoch]
    assert len(set(parts.stems)) == len(ds)
    for i, s in enumerate(parts.stems): assert s.startswith(parts.bases[parts.which[i]].stems[parts.at[i]])
    byhand = sum(np.bincount(np.minimum(ds[i]['labels'].numpy(), 3).ravel(), minlength=4) for i in range(len(ds)))
    assert (class_counts(ds) == byhand).all() and torch.equal(class_weights(ds), class_weights(byhand[:-1]))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert (check_dataset(ds).counts == byhand).all() and (check_samples(ds, parts.label_space).counts == byhand).all()

def test_own_wrappers_pass_the_epoch_on(folder):
    class Mine(Dataset):
        def __init__(self, inner): self.parts = dict(a=inner)
        def __len__(self): return 2
        def __getitem__(self, i): return self.parts['a'][i]
    ds = SegDataset(folder, tfms=train_tfms(64))
    a, b = (ByEpoch(Mine(Subset(ds, [1, 2])))[e, 0]['pixel_values'] for e in (0, 1))
    assert not torch.equal(a, b) and epoch_holders(Mine(ds)) == [ds]

def test_parts_with_other_classes_are_refused(folder):
    refused('one for all data sets', check_dataset, ConcatDataset([SegDataset(folder), SegDataset(folder, classes='things')]))

@pytest.mark.parametrize('i', [9, -7, 1.5, 'a', True])
def test_an_index_that_a_subset_cannot_have_is_one_sentence(tmp_path, i):
    "In any nest, and before anything runs: evaluate, compare and fit begin with the same look."
    ds = SegDataset.from_folders(*write(tmp_path, {str(k): half() for k in range(6)}), ['x', 'y'])
    said = f'indices={i!r}: expected whole numbers from -6 to 5, for the Subset is of 6 samples'
    bad = Subset(ds, [i])
    for d in (bad, ConcatDataset([ds, bad]), Subset(ConcatDataset([bad, ds]), [0]), Subset(Base(0, 6), [i])):
        for f in (as_data, check_samples): refused(said, f, d, 'val' if f is as_data else ds.label_space)
    refused(said, as_data, (ds, bad)), refused(said, class_counts, bad)
    assert len(look_through(Subset(ds, torch.tensor([5, -6]))).at) == 2 and look_through(Subset(ds, np.array([-1]))).at.tolist() == [5]

def test_weights_come_from_the_classes_and_not_from_ignore():
    ds = Base(0, 2)
    ds.masks = np.array([[[0]*5 + [1] + [255]*94]], np.uint8)
    assert class_counts(ds).tolist() == [5, 1, 0, 94]
    assert np.allclose(class_weights(ds, 1.), [2/6, 10/6, 1])

# parts, folds, colours, whatever stands for data

def test_folders_split_by_group_by_list_and_by_file(tmp_path):
    images, masks = write(tmp_path, {f'p{k//3}_{k}': half() for k in range(24)})
    make = lambda **kw: SegDataset.from_folders(images, masks, ['x', 'y'], **kw)
    patient = lambda s: s.split('_')[0]
    train, val = (make(split=s, groups=patient, val=.4) for s in ('train', 'val'))
    assert len(train) + len(val) == 24 and not set(train.groups) & set(val.groups) and set(val.groups) == {patient(s) for s in val.stems}
    (tmp_path/'val.txt').write_text('p0_0\np7_23\n')
    assert make(split=tmp_path/'val.txt').stems == ['p0_0', 'p7_23']
    pair = make(split=dict(val=['p1_3.png'], train=['p0_0', 'p0_1']))
    assert isinstance(pair, SegData) and pair.val.stems == ['p1_3'] and pair.train.stems == ['p0_0', 'p0_1']
    refused('other names', make, split=dict(train=['p0_0'], val=['p0_0']))
    refused("1 that are not there, first ['q']", make, split=['q'])
    refused("split='test'", make, split='test')
    refused("none for 'p0_0'", make, split='train', groups={})
    for f in folds(make(groups=patient), 4):
        assert not set(f.train.groups) & set(f.val.groups) and len(f.val) == 6 and len(f.train) == 18

def test_photos_and_masks_whose_names_are_spelled_in_two_ways(tmp_path):
    images, masks = write(tmp_path, {f'caf\u00e9{k}': half() for k in range(6)})
    two = [unicodedata.normalize('NFD', p.name) for p in sorted(images.iterdir())]
    for p, name in zip(sorted(images.iterdir()), two): p.rename(images/name)
    groups = {Path(n).stem: f'g{i//3}' for i, n in enumerate(two)}
    ds = SegDataset.from_folders(images, masks, ['x', 'y'], split=two[:4], groups=groups)
    assert ds.stems == [f'caf\u00e9{k}' for k in range(4)] and ds.groups == ['g0']*3 + ['g1'] and ds[0]['labels'].sum() == 160
    assert sum(len(SegDataset.from_folders(images, masks, ['x', 'y'], split=s, val=.5)) for s in ('train', 'val')) == 6

def test_a_photo_without_a_group_is_alone(sample, tmp_path):
    prepare(*sample, tmp_path/'plain', size_hw=32, workers=1)
    assert SegDataset(tmp_path/'plain').groups is None                 # an empty column is no group
    n = itertools.count()
    grouped = prepare(*sample, tmp_path/'grouped', size_hw=32, workers=1, groups=lambda name: 'film' if next(n) % 2 else '')
    assert set(grouped.index.group) == {'film', ''}
    ds = SegDataset(grouped.path)
    assert len(ds) == 20 and ds.groups.count('film') == 10 == ds.groups.count(None)
    assert ds.take([0, 1]).groups == ds.groups[:2]
    five = folds(ds, 5)
    assert sum('film' in f.val.groups for f in five) == 1 and sum(f.val.groups.count(None) for f in five) == 10
    images, masks = write(tmp_path/'own', {f'p{k}': half() for k in range(8)})
    own = SegDataset.from_folders(images, masks, ['x', 'y'], groups=lambda s: None if s > 'p3' else 'first')
    assert own.groups == ['first']*4 + [None]*4
    assert SegDataset.from_folders(images, masks, ['x', 'y'], groups=lambda s: '').groups is None
    parts = [SegDataset.from_folders(images, masks, ['x', 'y'], split=s, val=.5, groups=lambda s: '').stems for s in ('train', 'val')]
    assert parts == [SegDataset.from_folders(images, masks, ['x', 'y'], split=s, val=.5).stems for s in ('train', 'val')]

def test_a_data_set_names_its_files(folder):
    ds = SegDataset(folder, 'val')
    assert [[Path(p).stem for p in files] for files in ds.files] == [ds.stems]*2
    assert [[Path(p).stem for p in files] for files in ds.take([1]).files] == [ds.stems[1:2]]*2
    pack(folder)
    assert SegDataset(folder).files is None and SegDataset(folder).take([0]).files is None

def test_every_photo_is_validated_once(folder):
    whole = SegDataset(folder)
    for ds in (folder, whole, SegDataset(pack(folder))):
        pairs = folds(ds, 3, seed=1)
        assert sorted(s for p in pairs for s in p.val.stems) == sorted(whole.stems)
        for p in pairs:
            assert not set(p.train.stems) & set(p.val.stems) and p.label_space == whole.label_space
            for i, s in enumerate(p.val.stems): assert torch.equal(p.val[i]['labels'], whole[whole.stems.index(s)]['labels'])
        pairs[0].train.set_epoch(5)
        assert pairs[1].train.epoch == 0
    assert [p.val.stems for p in folds(folder, 3, seed=2)] != [p.val.stems for p in folds(folder, 3, seed=1)]

def test_colours_by_a_table(tmp_path):
    table = {(128, 0, 0): 'road', (0, 128, 0): 'tree', (0, 0, 0): None, (129, 0, 0): 'road'}
    rgb = np.array([*table], np.uint8)[np.random.default_rng(0).integers(0, 4, (16, 20))]
    images, masks = write(tmp_path, {'a': rgb})
    ds = SegDataset.from_folders(images, masks, colors=table)
    assert ds.label_space.names == ['road', 'tree'] and (ds.raw(0)[1] == np.select([rgb[..., 0] > 127, rgb[..., 1] > 127], [0, 1], 255)).all()
    assert SegDataset.from_folders(images, masks, ['tree', 'road'], colors=table).raw(0)[1].max() == 255
    assert check_dataset(ds).counts.sum() == 320
    refused('(0, 0, 0)', check_dataset, SegDataset.from_folders(images, masks, colors={(128, 0, 0): 'road', (0, 128, 0): 'tree', (129, 0, 0): 'road'}))
    Image.fromarray(rgb).save(masks/'a.jpg'); (masks/'a.png').unlink()
    refused('JPEG', SegDataset.from_folders(images, masks, colors=table).raw, 0)

def test_whatever_stands_for_data(folder, sample):
    data = load_data(folder)
    assert data.label_space.names[0] == 'background' and len(data) == 2
    for d in (folder, str(folder), prepare(*sample, folder, size_hw=64, workers=1)): assert as_data(d).val.stems == data.val.stems
    assert as_data(folder, 'train', 'things').label_space.num_labels == 2
    assert as_data(data) == data and as_data(tuple(data), 'train') is data.train and as_data([*data], 'val') is data.val
    assert as_data(Subset(data.train, [0]), 'val') is not None
    for bad in (None, 3, [data.train], data.train, (data.train, None), (make_loader(data.train), make_loader(data.val)), (data.train, Subset(data.val, []))): refused('expected', as_data, bad)
    refused('pair', as_data, data, 'test')
    refused('tfms=train_tfms', as_data, data, size_hw=32)

def test_arrays_of_another_index_are_not_used(folder):
    whole = SegDataset(folder)
    pack(folder)
    assert SegDataset(folder)._packed
    head, *rows = (folder/'index.csv').read_text().splitlines()
    (folder/'index.csv').write_text('\n'.join([head, *rows[::-1]]) + '\n')
    with pytest.warns(UserWarning, match='packed arrays'): ds = SegDataset(folder)
    assert ds.stems == whole.stems[::-1] and not ds._packed and np.array_equal(ds.raw(0)[1], whole.raw(len(whole) - 1)[1])
