"""The data set on real photos: CamVid's index masks, and COCO photos prepared into a folder."""
import os
from pathlib import Path
import numpy as np, pytest, torch
from seglab.images import IGNORE, LabelError
from seglab.dataset import (ByEpoch, CheckedCollate, EpochBatches, SegDataset, check_dataset, check_tfms, class_weights, load_data, make_loader,
                            train_tfms, valid_tfms)
from seglab.labels import check_labels
from seglab.own import CAMVID

from seglab.bulk import pack
from seglab.masks import prepare

pytestmark = pytest.mark.skipif(not os.environ.get('SEGLAB_DATA'), reason='real photos are looked for in the folder that SEGLAB_DATA names')
REAL = Path(os.environ.get('SEGLAB_DATA') or '.')

def batches(ds, n, workers=0):
    "Batches as fit makes them."
    return make_loader(ByEpoch(ds), workers, batch_sampler=EpochBatches(len(ds), n), collate_fn=CheckedCollate(ds.label_space.num_labels))

def camvid(part, **kw):
    "CamVid as any folder of photos and index masks."
    return SegDataset.from_folders(REAL/'camvid'/part, REAL/'camvid'/f'{part}annot', 'camvid', **kw)

@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    "The 343 COCO photos at 256x256."
    out = tmp_path_factory.mktemp('coco')/'prepared'
    prepare(REAL/'coco343/annotations/instances_train2017.json', REAL/'coco343/train2017', out, size_hw=256)
    return out

@pytest.mark.parametrize('part,n', [('train', 367), ('val', 101)])
def test_camvid_loads_and_passes(part, n):
    ds = camvid(part, tfms=train_tfms((96, 128)))
    report = check_dataset(ds)
    assert report.images == len(ds) == n and report.counts.sum() == n*360*480 and not report.notes
    share = dict(zip([*CAMVID, 'void'], report.counts/report.counts.sum()))
    assert share['road'] > .2 and share['building'] > .1 and share['sky'] > .05 and share['pole'] < .02 and 0 < share['void'] < .1
    w = class_weights(ds)
    assert w[CAMVID.index('pole')] > 3*w[CAMVID.index('road')]
    for b in (next(iter(batches(ds, 8))),):
        assert b['pixel_values'].shape == (8, 3, 96, 128)
        check_labels(b['labels'], 11)

def test_camvid_without_void_is_explained():
    ds = SegDataset.from_folders(REAL/'camvid/val', REAL/'camvid/valannot', CAMVID)
    with pytest.raises(LabelError, match=r'ignore_ids=\(11,\)') as e: check_dataset(ds)
    assert e.value.cause == 'off_by_one' and '0016E5_07959' in str(e.value)

@pytest.mark.parametrize('space,K', [('things', 2), ('supercategories', 13), ('all', 81), ('coco80', 81), ('voc21', 21), ('cat,dog', 3)])
def test_coco_in_every_label_space(coco, space, K):
    train, val = load_data(coco, space)
    for ds in (train, val):
        report = check_dataset(ds)
        assert ds.label_space.num_labels == K and report.counts.sum() == len(ds)*256*256 and not any('edges' in n for n in report.notes)
        assert .3 < report.counts[0]/report.counts.sum() and report.counts[-1] < .1*report.counts.sum()
    assert len(train) + len(val) == 343 and not set(train.stems) & set(val.stems)

def test_coco_packed_and_workers_change_no_pixel(coco):
    for name in ("images.npy", "masks.npy", "packed.json"): (Path(getattr(coco, "path", coco))/name).unlink(missing_ok=True)   # an earlier test may have packed
    files, _ = load_data(coco, 'coco80', seed=3, packed=False)
    epochs = []
    for ds, workers in ((files, 0), (files, 2), (load_data(pack(coco), 'coco80', seed=3)[0], 2)):
        ds.set_epoch(0)
        loader = batches(ds, 16, workers)
        epochs.append([torch.cat([b[k].flatten() for b in loader]) for k in ('pixel_values', 'labels')])
    for other in epochs[1:]:
        for a,b in zip(epochs[0], other): assert torch.equal(a, b)
    assert ds._packed and not files._packed

def test_mixed_sizes_take_a_size(tmp_path):
    prepare(REAL/'coco343/annotations/instances_train2017.json', REAL/'coco343/train2017', tmp_path/'own', size_hw=None, n_images=24)
    with pytest.raises(ValueError, match='size_hw='): load_data(tmp_path/'own')
    with pytest.raises(ValueError, match='expected photos of one size, which is what an array holds'): pack(tmp_path/'own')
    train, val = load_data(tmp_path/'own', 'things', size_hw=(96, 160))
    val.tfms = valid_tfms((96, 160), 'pad')
    for ds in (train, val):
        for b in batches(ds, 4):
            assert b['pixel_values'].shape[1:] == (3, 96, 160)
            check_labels(b['labels'], 2)

def test_our_transforms_pass_the_probe_at_real_sizes():
    for hw in ((256, 256), (360, 480)):
        for t in (train_tfms(hw), train_tfms(), valid_tfms(hw), valid_tfms((128, 128), 'pad'), valid_tfms((128, 128), 'crop')): check_tfms(t, 81, hw)
