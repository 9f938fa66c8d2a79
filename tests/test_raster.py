"Polygons and run lengths to pixels, against pycocotools, bit for bit."
import random

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pycocotools import mask as coco_mask

from seglab import raster
from seglab.files import UserError
from seglab.images import IGNORE, resize_mask
from seglab.raster import BadAnnotation, Runs, counts_to_runs, decode_counts, encode_counts, mask_to_rle, paint, rings_to_runs, rle_to_mask, runs_to_grid, union_of_runs
from support import fuzz
from support.faults import LONG, peak_of

quiet = settings(max_examples=2000 if LONG else 150, deadline=None, derandomize=not LONG, suppress_health_check=list(HealthCheck))
number = st.one_of(st.integers(-60, 160), st.floats(-60, 160, allow_nan=False).map(lambda v: round(v, 2)), st.floats(-60, 160, allow_nan=False))
polygon = st.lists(st.lists(st.tuples(number, number), min_size=3, max_size=20).map(lambda ps: [c for p in ps for c in p]), min_size=1, max_size=4)
side = st.integers(1, 70)


def by_pycocotools(segmentation, h, w):
    if isinstance(segmentation, list): segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))
    elif isinstance(segmentation['counts'], list): segmentation = coco_mask.frPyObjects(segmentation, h, w)
    return coco_mask.decode(segmentation)


def runs_of(rings, h, w):
    "The union of an object's rings, as part 0."
    runs = rings_to_runs(np.concatenate(rings).astype(float), np.array([len(r)//2 for r in rings]), [h]*len(rings), [w]*len(rings))
    return union_of_runs(runs._replace(part=np.zeros_like(runs.part)), h, w)


def fill(runs, h, w):
    m = np.zeros((h, w), np.uint8)
    for _, x, a, b in zip(*runs): m[a:b, x] += 1
    return m


@quiet
@given(polygon, side, side)
def test_polygons(rings, h, w):
    m = fill(runs_of(rings, h, w), h, w)
    assert np.array_equal(m, by_pycocotools(rings, h, w))                     # also: no pixel twice


def test_polygons_on_the_grid_and_beside_it():
    rng = np.random.default_rng(1)
    for i in range(3000 if LONG else 500):
        h, w = rng.integers(1, 40, 2).tolist()
        rings = [rng.uniform(-20, 60, 2*rng.integers(3, 9)).round(rng.integers(0, 3)).tolist() for _ in range(rng.integers(1, 4))]
        assert np.array_equal(fill(runs_of(rings, h, w), h, w), by_pycocotools(rings, h, w)), (rings, h, w)


def test_many_polygons_on_photos_of_different_sizes_at_once():
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 60, (40, 2))
    rings = [rng.uniform(-10, 70, 2*rng.integers(3, 9)) for _ in sizes]
    runs = rings_to_runs(np.concatenate(rings), np.array([len(r)//2 for r in rings]), sizes[:, 0], sizes[:, 1])
    for k, ((h, w), r) in enumerate(zip(sizes.tolist(), rings)): assert np.array_equal(fill(runs.take(runs.part == k), h, w), by_pycocotools([r.tolist()], h, w))


@pytest.mark.parametrize('far', [1e6, 1e9, 1e15, 1e300])
def test_coordinates_far_away_cost_nothing(far):
    ring = np.array([-far, -far, far, -far, far, far, -far, far])
    def go(): assert (fill(rings_to_runs(ring, np.array([4]), [12], [9]), 12, 9) == 1).all()
    assert peak_of(go) < 2**24


def test_an_outline_beyond_all_measure(monkeypatch):
    monkeypatch.setattr(raster, 'MAX_CROSSINGS', 100)
    zigzag = np.array([[-5, 3, 50, 5] for _ in range(40)], float).ravel()
    with pytest.raises(BadAnnotation) as e: rings_to_runs(zigzag, np.array([80]), [20], [40])
    assert e.value.code == 'too_complex' and 'columns' in e.value.detail


def test_outlines_in_pieces(monkeypatch):
    "More crossings than are worked on at a time: the same pixels."
    rng = np.random.default_rng(3)
    rings = [rng.uniform(-10, 70, 40) for _ in range(6)]
    args = np.concatenate(rings), np.full(6, 20), [50]*6, [60]*6
    def pixels(runs): return [fill(runs.take(runs.part == k), 50, 60) for k in range(6)]
    whole = pixels(rings_to_runs(*args))
    for most in (700, 1000, 2000):
        monkeypatch.setattr(raster, 'MAX_CROSSINGS', most)
        assert np.array_equal(pixels(rings_to_runs(*args)), whole)


# --- run lengths

@quiet
@given(st.lists(st.integers(0, 2**31), max_size=40))
def test_counts_come_back(counts):
    assert decode_counts(encode_counts(counts)).tolist() == counts
    assert encode_counts(counts).decode() == fuzz.packed(counts)


@pytest.mark.parametrize('seed', range(200 if LONG else 30))
def test_rle_is_cocos(seed):
    rng = random.Random(seed)
    h, w = rng.randint(1, 60), rng.randint(1, 60)
    counts = fuzz.counts(rng, h*w)
    rle = coco_mask.frPyObjects(dict(size=[h, w], counts=counts), h, w)
    assert encode_counts(counts) == rle['counts'] and decode_counts(rle['counts']).tolist() == counts
    want = coco_mask.decode(rle)
    for c in (counts, rle['counts'], rle['counts'].decode()): assert np.array_equal(rle_to_mask(dict(size=[h, w], counts=c)), want)
    assert np.array_equal(fill(counts_to_runs(counts, h), h, w), want)
    assert mask_to_rle(want)['counts'].encode() == coco_mask.encode(np.asfortranarray(want))['counts']
    assert mask_to_rle(want, False) == dict(size=[h, w], counts=decode_counts(coco_mask.encode(np.asfortranarray(want))['counts']).tolist())


@pytest.mark.parametrize('mask', [np.zeros((3, 4)), np.ones((3, 4)), np.eye(5, dtype=bool), np.array([[0, 7], [255, 0]], np.uint8), np.ones((1, 1))])
def test_masks_of_any_kind(mask):
    for compressed in (True, False): assert np.array_equal(rle_to_mask(mask_to_rle(mask, compressed)), (mask != 0).astype(np.uint8))
    assert mask_to_rle(mask)['counts'].encode() == coco_mask.encode(np.asfortranarray((mask != 0).astype(np.uint8)))['counts']


@pytest.mark.parametrize('s, words', [(b'5~', 'outside'), (b'\x00', 'outside'), (b'/', 'outside'), (b'o', 'inside a number'), (b'0o', 'inside'), (b'ooooooo0', 'too long'), (bytes([200]), 'outside')])
def test_strings_that_are_none(s, words):
    with pytest.raises(ValueError, match=words): decode_counts(s)
    with pytest.raises(ValueError, match=words): rle_to_mask(dict(size=[4, 4], counts=s))


@pytest.mark.parametrize('counts', [[5, 5], [17], [-1, 17], [10**12, 16 - 10**12], [2**62, 2**62, 16], []])
def test_counts_that_do_not_fit(counts):
    with pytest.raises(UserError, match='sum to 4×4'): rle_to_mask(dict(size=[4, 4], counts=counts))


def test_a_string_longer_than_its_photo_costs_nothing():
    "Thirty megabytes that would unpack to gigabytes."
    s = b'0'*30_000_000
    def go():
        with pytest.raises(ValueError, match='30,000,000 counts for 307,200 pixels'): decode_counts(s, 480*640)
    assert peak_of(go) < 400*2**20
    long = [0]*2000 + [16]
    assert decode_counts(encode_counts(long)).tolist() == long                                     # without a photo there is no limit
    with pytest.raises(ValueError, match='2,001 counts'): decode_counts(encode_counts(long), 16)
    assert decode_counts(encode_counts([0]*900 + [16]), 16).sum() == 16                            # some empty runs are harmless


# --- runs

@quiet
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 9), st.integers(1, 9)), max_size=30), st.integers(1, 3))
def test_unions(runs, times):
    runs = [(p, x, y, min(y + n, 10)) for p, x, y, n in runs]
    arrays = Runs(*np.array(runs, np.int64).reshape(-1, 4).T)
    out = union_of_runs(arrays, 10, 8, times)
    for p in range(4): assert np.array_equal(fill(out.take(out.part == p), 10, 8), (fill(arrays.take(arrays.part == p), 10, 8) >= times).astype(np.uint8))
    assert list(zip(*out)) == sorted(zip(*out))


# --- painting

def scene(rng, parts, h, w):
    "Random blobs, as runs and as masks."
    y, x = np.mgrid[0:h, 0:w]
    masks = [(y - rng.uniform(0, h))**2 + (x - rng.uniform(0, w))**2 < rng.uniform(1, h)**2*rng.uniform(.02, 1) for _ in range(parts)]
    runs = [counts_to_runs(mask_to_rle(m, False)['counts'], h) for m in masks]
    return Runs(*map(np.concatenate, zip(*(r._replace(part=np.full_like(r.part, i)) for i, r in enumerate(runs))))), masks


def painted(runs, photo, orders, values, sizes, size_hw=None, aspect='squash', claims=None):
    return paint(runs_to_grid(runs, photo, sizes, size_hw, aspect), photo, orders, values, sizes, size_hw, aspect, claims)


def naive(masks, order, values, claims=None):
    out = np.zeros(masks[0].shape, np.uint8)
    for i in order: out[masks[i]] = values[i]
    if claims is not None: out[sum(masks[i].astype(int) for i in order if claims[i]) > 1] = IGNORE
    return out


@pytest.mark.parametrize('parts', [1, 2, 7, 51, 52, 53, 54, 60, 130])
@pytest.mark.parametrize('size_hw, aspect', [(None, 'squash'), ((20, 31), 'squash'), ((20, 31), 'pad'), ((20, 31), 'crop'), ((90, 120), 'squash'), ((90, 120), 'pad')])
def test_painting_is_painting_one_after_the_other(parts, size_hw, aspect):
    rng = np.random.default_rng(parts)
    h, w = rng.integers(20, 60, 2).tolist()
    runs, masks = scene(rng, parts, h, w)
    order, values = rng.permutation(parts).tolist(), rng.integers(1, 256, parts).astype(np.uint8)
    for claims in (None, np.arange(parts) % 3 > 0):
        got, = painted(runs, np.zeros(parts, np.int64), [order], values, [(h, w)], size_hw, aspect, claims)
        assert np.array_equal(got, resize_mask(naive(masks, order, values, claims), size_hw, aspect))


def test_fifty_three_that_lie_on_one_another():
    "One more than fit into an integer's bits, all over the same pixels."
    for n in (52, 53, 54, 64, 65):
        runs = Runs(np.arange(n), np.zeros(n, np.int64), np.arange(n), np.full(n, 70))
        got, = painted(runs, np.zeros(n, np.int64), [list(range(n))], np.arange(1, n + 1, dtype=np.uint8), [(70, 1)])
        assert got[:, 0].tolist() == [*range(1, n + 1), *[n]*(70 - n)]


def test_several_photos_at_once(monkeypatch):
    rng = np.random.default_rng(9)
    shapes, parts = [(30, 40), (50, 20), (1, 60), (44, 44)], [5, 60, 0, 53]
    scenes = [scene(rng, n, *s) if n else (Runs(*[np.zeros(0, np.int64)]*4), []) for n, s in zip(parts, shapes)]
    first = np.cumsum([0, *parts])
    runs = Runs(*map(np.concatenate, zip(*(r._replace(part=r.part + f) for (r, _), f in zip(scenes, first)))))
    photo, values = np.repeat(np.arange(4), parts), rng.integers(1, 256, sum(parts)).astype(np.uint8)
    orders = [(f + rng.permutation(n)).tolist() for f, n in zip(first, parts)]
    for canvas in (raster._CANVAS, 100):
        monkeypatch.setattr(raster, '_CANVAS', canvas)
        for k, got in enumerate(paint(runs, photo, orders, values, shapes)):
            want = naive(scenes[k][1], [i - first[k] for i in orders[k]], values[first[k]:]) if parts[k] else np.zeros(shapes[k], np.uint8)
            assert np.array_equal(got, want)


def test_nothing_to_paint():
    none = Runs(*[np.zeros(0, np.int64)]*4)
    got, = painted(none, np.zeros(0, np.int64), [[]], np.zeros(0, np.uint8), [(3, 4)], (6, 4), 'pad')
    assert got[:3].tolist() == [[0]*4]*3 and (got[3:] == IGNORE).all()
    assert painted(none, np.zeros(0, np.int64), [[]], np.zeros(0, np.uint8), [(3, 4)], claims=np.zeros(0, bool))[0].shape == (3, 4)
    assert not len(counts_to_runs([12], 3).part) and not len(counts_to_runs([], 3).part)


def test_tables_of_giants_are_not_kept():
    "Ten photos one pixel wide and twenty million rows high."
    raster._before.cache_clear()
    for n in (20_000, 30_000, 40_000):
        run = Runs(*np.array([[0], [0], [5], [n]]))
        got, = painted(run, np.zeros(1, np.int64), [[0]], np.uint8([7]), [(n, 1)], (64, 64))
        assert (got == 7).all()
    assert raster._before.cache_info().currsize <= 1                         # that of the width
