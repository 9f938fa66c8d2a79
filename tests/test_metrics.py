"Metrics on real masks, and at their edges, against torchmetrics and by hand."
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from seglab.metrics import (Calibration, argmax, baseline_iou, boundary_counts, boundary_iou, boundary_width, confidence,
                            confusion_matrix, nanmean, scores)

@pytest.fixture(scope='module')
def camvid():
    if not os.environ.get('SEGLAB_DATA'): pytest.skip('SEGLAB_DATA is not set: the real masks are not at hand')
    files = sorted((Path(os.environ['SEGLAB_DATA'])/'camvid'/'valannot').glob('*.png'))[:24]
    masks = np.stack([np.array(Image.open(f)) for f in files])                              # (N,H,W) 0…10, 11 = void
    return torch.from_numpy(np.where(masks == 11, 255, masks).astype(np.uint8))

@pytest.mark.parametrize('batch_size', [1, 5, 24])
def test_real_masks_against_torchmetrics(camvid, batch_size):
    truth, pred = camvid, camvid.roll(1, 0)                                                 # the next frame as a prediction
    pred = torch.where(pred == 255, torch.zeros_like(pred), pred)
    matrix = sum(confusion_matrix(p, t, 11) for p, t in zip(pred.split(batch_size), truth.split(batch_size)))
    assert torch.equal(matrix, MulticlassConfusionMatrix(11, ignore_index=255)(pred.long(), truth.long()))
    for average, ours in (('macro', scores(matrix)['mean_iou']), ('weighted', scores(matrix)['frequency_weighted_iou'])):
        theirs = MulticlassJaccardIndex(11, average=average, ignore_index=255)(pred.long(), truth.long()).item()
        assert abs(ours - theirs) < 1e-6

def test_boundaries_of_real_masks(camvid):
    counts = boundary_counts(camvid, camvid, 11)
    assert (counts[0] == counts[1]).all() and counts.sum() > 0                              # itself: IoU 1 everywhere

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize('ignore_index', [255, -100, 0, 2, None])
@pytest.mark.parametrize('K', [1, 3, 200, 300])
def test_random_masks(dtype, ignore_index, K):
    rng = np.random.default_rng(K)
    p, t = rng.integers(0, K, (2, 3, 20, 21))
    limit = torch.iinfo(dtype)
    if K - 1 > limit.max or ignore_index is not None and not limit.min <= ignore_index <= limit.max:
        pytest.skip('values do not fit this dtype')
    if ignore_index is not None: t[rng.random(t.shape) < .2] = ignore_index
    keep = np.ones(t.shape, bool) if ignore_index is None else t != ignore_index
    expected = np.zeros((K, K), int)
    np.add.at(expected, (t[keep], p[keep]), 1)
    assert np.array_equal(confusion_matrix(torch.tensor(p).to(dtype), torch.tensor(t).to(dtype), K, ignore_index), expected)

@pytest.mark.parametrize('wrong', [-1, 5, 254, 256, -256, 2**31])
def test_values_out_of_range_are_told(wrong):
    good = torch.randint(0, 5, (2, 8, 8))
    bad = good.clone(); bad[0, 0, 0] = wrong
    with pytest.raises(ValueError, match=f'in target; got {wrong} '): confusion_matrix(good, bad, 5)
    with pytest.raises(ValueError, match=f'in pred; got {wrong} '): confusion_matrix(bad, good, 5)
    ignored = good.clone(); ignored[0, 0, 0] = 255
    confusion_matrix(bad, ignored, 5)                                                       # where ignored it does not matter

def test_logits_in_any_layout():
    logits, target = torch.randn(3, 21, 17, 19), torch.randint(0, 21, (3, 17, 19))
    expected = confusion_matrix(logits.argmax(1), target, 21)
    for x in (logits, logits.contiguous(memory_format=torch.channels_last), logits.bfloat16().float(), logits.double()):
        assert torch.equal(confusion_matrix(x, target, 21), confusion_matrix(x.argmax(1), target, 21))
    assert torch.equal(confusion_matrix(logits, target, 21), expected)

def test_scores_of_nothing_and_of_perfection():
    assert np.isnan(scores(np.zeros((3, 3)))['overall_accuracy'])
    assert scores(np.eye(3))['mean_iou'] == scores(np.eye(3))['mean_dice'] == 1

def test_more_equal_pixels_than_float32_can_count():
    "OpenCV's histogram answers in float32, which stops at 2**24."
    n = (1 << 24) + 7
    zeros = torch.zeros(1, n, dtype=torch.uint8)
    assert confusion_matrix(zeros, zeros, 2)[0, 0] == n

@pytest.mark.parametrize('hw, width', [((10, 10), 1), ((1, 1), 1), ((80, 100), 3), ((60, 80), 2), ((74, 1), 1), ((76, 1), 2), ((480, 640), 16)])
def test_width_of_the_band_is_rounded_and_at_least_one(hw, width): assert boundary_width(hw) == width

def test_boundary_of_tiny_masks_and_of_batches():
    one = np.ones((3, 1, 1), np.uint8)
    assert boundary_counts(one, one, 2).tolist() == [[0, 3], [0, 3]] and boundary_iou(boundary_counts(one, one, 2))['mean_boundary_iou'] == 1

def test_what_is_ignored_is_in_no_band():
    "Whatever is predicted there, even at the edge of the photo, which always belongs to a band."
    truth = np.repeat(np.arange(4, dtype=np.uint8), 4)[None].repeat(16, 0)
    truth[:, 8:] = 255
    pred = truth.copy(); pred[:, 8:] = 0
    other = pred.copy(); other[::2, 8:] = 3
    counts = boundary_counts(pred, truth, 4)
    assert (counts == boundary_counts(other, truth, 4)).all() and counts.tolist() == [[36, 22, 0, 0]]*2

def test_a_bin_holds_its_upper_edge_and_the_first_one_zero():
    sure = torch.tensor([[[0., .2, .2001, .4, 1.]]])
    table = Calibration(5).update(torch.zeros_like(sure), sure, torch.zeros_like(sure)).table
    assert table.pixels.tolist() == [2, 2, 0, 0, 1]

def test_calibration_from_its_table_and_without_ignore():
    sure, pred, truth = torch.rand(2, 9, 9), torch.randint(0, 3, (2, 9, 9)), torch.randint(0, 3, (2, 9, 9))
    truth[:, :2] = 255
    cal = Calibration().update(pred, sure, truth)
    again = Calibration.from_table({k: [None if v != v else v for v in col] for k, col in cal.table.to_dict('list').items()})
    assert np.isclose(again.ece, cal.ece) and again.table.pixels.sum() == 2 * 7 * 9
    assert Calibration(ignore_index=None).update(pred, sure, truth).table.pixels.sum() == 2 * 81

@pytest.mark.parametrize('K', [1, 2, 21, 300])
@pytest.mark.parametrize('size', [None, (33, 40)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_argmax_is_torchs_also_where_it_enlarges(K, size, layout):
    x = torch.rand(2, K, 9, 11) if size else torch.randint(0, 4, (2, K, 9, 11)).float()      # enlarged, ties would round
    x = x.contiguous(memory_format=layout)
    large = x if size is None else torch.nn.functional.interpolate(x, size, mode='bilinear', align_corners=False)
    assert torch.equal(argmax(x, size).long(), large.argmax(1))

def test_confidence_is_the_largest_probability_whatever_the_scale():
    x = torch.randn(2, 7, 5, 6) * 200
    assert torch.allclose(confidence(x), x.softmax(1).amax(1)) and torch.allclose(confidence(torch.zeros(1, 4, 2, 2)), torch.tensor(.25))

def test_the_baseline_is_what_such_a_model_scores():
    truth = np.random.default_rng(0).choice(5, (40, 40), p=[.1, .5, .2, .2, 0]).astype(np.uint8)
    score, k = baseline_iou(np.bincount(truth.ravel(), minlength=5))
    assert k == 1 and score == scores(confusion_matrix(np.ones_like(truth), truth, 5))['mean_iou']
    assert np.isnan(baseline_iou(np.zeros(3))[0])

def test_nanmean_of_rows():
    assert np.array_equal(nanmean([[1, np.nan, 3], [np.nan] * 3]), [2, np.nan], equal_nan=True)
