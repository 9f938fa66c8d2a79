"Metrics on real masks, and with several processes, against torchmetrics and by hand."
import os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from seglab.metrics import ConfusionMatrix, boundary_counts, confusion_matrix, scores

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
    acc = ConfusionMatrix(11)
    for p, t in zip(pred.split(batch_size), truth.split(batch_size)): acc.update(p, t)
    assert torch.equal(acc.matrix, MulticlassConfusionMatrix(11, ignore_index=255)(pred.long(), truth.long()))
    for average, ours in (('macro', acc.scores()['mean_iou']), ('weighted', acc.scores()['frequency_weighted_iou'])):
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
    with pytest.raises(ValueError, match=f'Targets hold {wrong} '): confusion_matrix(good, bad, 5)
    with pytest.raises(ValueError, match=f'Predictions hold {wrong} '): confusion_matrix(bad, good, 5)
    ignored = good.clone(); ignored[0, 0, 0] = 255
    confusion_matrix(bad, ignored, 5)                                                       # where ignored it does not matter

def test_logits_in_any_layout():
    logits, target = torch.randn(3, 21, 17, 19), torch.randint(0, 21, (3, 17, 19))
    expected = confusion_matrix(logits.argmax(1), target, 21)
    for x in (logits, logits.contiguous(memory_format=torch.channels_last), logits.bfloat16().float(), logits.double()):
        assert torch.equal(confusion_matrix(x, target, 21), confusion_matrix(x.argmax(1), target, 21))
    assert torch.equal(confusion_matrix(logits, target, 21), expected)

WORKER = '''
import sys, torch, torch.distributed as dist
from seglab.metrics import ConfusionMatrix
dist.init_process_group('gloo')
g = torch.Generator().manual_seed(0)
p, t = torch.randint(0, 4, (2, 7, 9, 9), generator=g)
acc, rank, n = ConfusionMatrix(4), dist.get_rank(), dist.get_world_size()
if rank < 2:                                     # the third process never sees an image
    for i in range(rank, 7, 2): acc.update(p[i:i+1], t[i:i+1])
total = acc.sync()
assert torch.equal(total.matrix, acc.sync().matrix)
assert torch.equal(total.matrix, ConfusionMatrix(4).update(p, t).matrix), rank
dist.destroy_process_group()
'''

@pytest.mark.parametrize('n', [2, 3])
def test_several_processes_count_as_one(n, tmp_path):
    (tmp_path/'worker.py').write_text(WORKER)
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', 'worker.py'],
                   check=True, cwd=tmp_path, timeout=300)

def test_scores_of_nothing_and_of_perfection():
    assert np.isnan(scores(np.zeros((3, 3)))['overall_accuracy'])
    assert scores(np.eye(3))['mean_iou'] == scores(np.eye(3))['mean_dice'] == 1
