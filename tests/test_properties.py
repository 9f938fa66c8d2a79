"""Properties that hold for every annotation file, polygon and RLE.

A short run is part of the tests; `SEGLAB_LONG=1` judges 10,000 mutated files. A file that breaks a promise is printed with its
seed and kept in tests/regressions, where every later run finds it.
"""
import json, subprocess, sys, tempfile, threading, time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from support import fuzz, judge
from support.faults import LONG
from seglab.files import UserError
from seglab.masks import prepare
from seglab.coco import read_coco

HERE = Path(__file__).parent
N_FILES = 10_000 if LONG else 400
EXAMPLES = 2000 if LONG else 60
WAIT = 180  # seconds that one file may take, on a busy machine
quiet = settings(max_examples=EXAMPLES, deadline=None, derandomize=not LONG, suppress_health_check=list(HealthCheck))


# --- mutated files, in processes with limits

def run_judge(folder, *args):
    "Judge files in another process; yields (name, verdict). A crash, a hang or a broken promise is a verdict too."
    p = subprocess.Popen([sys.executable, str(HERE/'support'/'judge.py'), str(folder), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    err, last = [], [time.monotonic()]
    threading.Thread(target=lambda: err.extend(p.stderr), daemon=True).start()

    def watch():
        while p.poll() is None:
            if time.monotonic() - last[0] > WAIT: p.kill()
            time.sleep(.5)
    threading.Thread(target=watch, daemon=True).start()
    name = None
    for line in p.stdout:
        last[0] = time.monotonic()
        if line[0] == '>': name = line[2:].strip()
        else:
            yield name, line.strip()
            name = None
    if p.wait() or name: yield name or 'start', f'! ended with {p.returncode} after {time.monotonic() - last[0]:.0f} s: {"".join(err)[-600:]}'


def judged(folder, start, stop):
    "Judge the mutated files of these seeds, whatever happens to the process."
    while start < stop:
        for name, verdict in run_judge(folder, 'seed', start, stop):
            start = int(name.split()[1]) + 1 if name != 'start' else stop
            yield name, verdict
            if verdict.startswith('! ended'): break
        else: break


def test_mutated_files_are_refused_or_accounted_for(tmp_path):
    verdicts, bad = {}, []
    for name, verdict in judged(tmp_path, 0, N_FILES):
        verdicts[verdict.split(maxsplit=2)[1]] = verdicts.get(verdict.split(maxsplit=2)[1], 0) + 1
        if verdict[0] == '!':
            seed = int(name.split()[1])
            (HERE/'regressions'/f'seed_{seed}.json').write_bytes(fuzz.mutate(seed))
            bad.append(f'{name}: {verdict}')
    print(verdicts)
    assert not bad, f'{len(bad)} of {N_FILES} files broke a promise; kept in tests/regressions:\n' + '\n'.join(bad[:20])
    assert sum(verdicts.values()) == N_FILES
    assert verdicts['prepared'] > N_FILES/2  # most mutations leave something to do


def test_regressions(tmp_path):
    files = sorted((HERE/'regressions').glob('*.json'))
    verdicts = dict(run_judge(tmp_path, 'files', *files))
    assert set(verdicts) == set(map(str, files))
    assert not [v for v in verdicts.items() if v[1][0] == '!']


def test_a_mutation_is_its_seed():
    for seed in range(50): assert fuzz.mutate(seed) == fuzz.mutate(seed)


def test_the_judge_sees_a_wrong_pixel(tmp_path, monkeypatch):
    "The oracle is no rubber stamp: a mask with one pixel changed is found."
    images, file = judge.photos(tmp_path/'photos'), tmp_path/'a.json'
    coco = dict(images=[dict(id=1, file_name='a.jpg', height=judge.H, width=judge.W)], categories=[dict(id=1, name='x')],
                annotations=[dict(id=5, image_id=1, category_id=1, segmentation=[[5, 5, 30, 5, 30, 30]])])
    file.write_text(json.dumps(coco))
    assert judge.judge(file, images, tmp_path/'out') == 'prepared'

    def spoiled(*args, **kw):
        done = prepare(*args, **kw)
        f = next((tmp_path/'out'/'masks').iterdir())
        mask = cv2.imread(str(f), cv2.IMREAD_UNCHANGED)
        mask[39, 0] = 1
        cv2.imwrite(str(f), mask)
        return done
    monkeypatch.setattr(judge, 'prepare', spoiled)
    with pytest.raises(AssertionError, match='is not what pycocotools makes'): judge.judge(file, images, tmp_path/'out')


# --- random polygons and RLE against pycocotools, bit for bit

number = st.one_of(st.integers(-60, 160), st.floats(-60, 160, allow_nan=False).map(lambda v: round(v, 2)), st.floats(-60, 160, allow_nan=False))
polygon = st.lists(st.lists(st.tuples(number, number), min_size=3, max_size=20).map(lambda ps: [c for p in ps for c in p]), min_size=1, max_size=4)


@st.composite
def rle(draw, h, w):
    "Counts of a random mask of random stripes, plain or packed."
    cuts = sorted(draw(st.lists(st.integers(0, h*w), max_size=20)))
    counts = [b - a for a, b in zip([0, *cuts], [*cuts, h*w])]
    return dict(size=[h, w], counts=fuzz.packed(counts) if draw(st.booleans()) else counts)


@st.composite
def images(draw):
    "A few image sizes with a few segmentations each."
    out = []
    for _ in range(draw(st.integers(1, 4))):
        h, w = draw(st.integers(1, 100)), draw(st.integers(1, 100))
        out.append((h, w, draw(st.lists(st.one_of(polygon, rle(h, w)), min_size=1, max_size=4))))
    return out


def coco_of(images, folder):
    "A COCO file and photos of just these sizes and segmentations."
    coco = dict(images=[], annotations=[], categories=[dict(id=i, name=str(i)) for i in range(1, 9)])
    for i, (h, w, segmentations) in enumerate(images):
        cv2.imwrite(str(folder/f'{i}.png'), np.zeros((h, w, 3), np.uint8))
        coco['images'].append(dict(id=i, file_name=f'{i}.png', height=h, width=w))
        for k, s in enumerate(segmentations):
            coco['annotations'].append(dict(id=i*10 + k, image_id=i, category_id=1 + (i + k) % 8, segmentation=s, iscrowd=int((i + 3*k) % 7 == 6)))
    (folder/'coco.json').write_text(json.dumps(coco))
    return coco


def far(annotation, h, w):
    "Does seglab repair this one (reaching out further than the image is large)?"
    if isinstance(annotation['segmentation'], dict): return False
    x, y = ([v for r in annotation['segmentation'] for v in r[i::2]] for i in (0, 1))
    return min(x) < -w or max(x) > 2*w or min(y) < -h or max(y) > 2*h


@quiet
@given(images())
def test_masks_are_those_of_pycocotools(images):
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        coco = coco_of(images, d)
        empty = [a for a in coco['annotations'] if not judge.raster(a['segmentation'], *images[a['image_id']][:2]).any()]
        try: done = prepare(d/'coco.json', d, d/'out', size_hw=None, workers=1)
        except UserError:
            assert all(a['iscrowd'] or a in empty for a in coco['annotations'])      # with nothing to paint it is refused
            return
        n = done.counts['annotations']
        assert n['used'] + n['repaired'] + n['dropped'] == n['total'] == len(coco['annotations'])
        assert done.counts['images'] | dict(total=len(images), written=len(images), failed=0) == done.counts['images']
        for i, (h, w, _) in enumerate(images):
            mask = cv2.imread(str(d/'out'/'masks'/f'{i}.png'), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(mask, judge.painted([a for a in coco['annotations'] if a['image_id'] == i], h, w))
        assert n['dropped'] == len(empty)  # nothing that covers a pixel is dropped, nothing that covers none is used
        assert n['repaired'] == sum(far(a, *images[a['image_id']][:2]) for a in coco['annotations'] if a not in empty)


@quiet
@given(st.binary(max_size=400) | st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
       lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(fuzz.KEYS), inner, max_size=4), max_leaves=20).map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_read_or_refused_in_one_sentence(data):
    with tempfile.TemporaryDirectory() as d:
        file = Path(d)/'any.json'
        file.write_bytes(data)
        try: read_coco(file)
        except ValueError as e: assert '\n' not in str(e) and 'any.json' in str(e)
