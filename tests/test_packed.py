"Two arrays instead of two files a photo: made, read, and distrusted."
import os

import numpy as np, pytest

from seglab.fetch import find_coco
from seglab.masks import prepare
from seglab.own import pair_stems
from seglab.packed import load_packed, open_packed, pack, read_prepared
from seglab.sample import make_sample

class Bomb:
    "Makes a folder when it is unpickled."
    def __reduce__(self): return os.mkdir, (os.environ['BOMB'],)

@pytest.fixture
def packed(tmp_path):
    return prepare(*find_coco(make_sample(tmp_path/'s', n=3, size_hw=(48, 64)))[0], tmp_path/'p', size_hw=32, pack=True, workers=1).path

def test_the_arrays_are_the_files(tmp_path, packed):
    files = prepare(*find_coco(tmp_path/'s')[0], tmp_path/'f', size_hw=32, workers=1)
    images, masks = load_packed(packed)
    assert images.shape == (3, 32, 32, 3) and masks.shape == (3, 32, 32) and images.dtype == masks.dtype == np.uint8
    for i in range(3): assert np.array_equal(masks[i], files.pair(i)[1])
    pack(files.path)
    for a, b in zip(load_packed(packed), open_packed(files.path, read_prepared(files.path)[0]['stem'])): assert a.shape == b.shape
    assert np.array_equal(masks, load_packed(files.path)[1])

def index_without(path, n):
    lines = (path/'index.csv').read_text().splitlines(keepends=True)
    (path/'index.csv').write_text(''.join(lines[:-n]))
    return read_prepared(path)[0]['stem']

def test_arrays_are_not_used_for_another_index(tmp_path):
    "With the files there they are not the newest, without them they have a row too many."
    done = prepare(*find_coco(make_sample(tmp_path/'s', n=3, size_hw=(48, 64)))[0], tmp_path/'p', size_hw=32, workers=1)
    pack(done.path)
    (done.path/'index.csv').write_text((done.path/'index.csv').read_text().replace(',train,', ',val,'))
    with pytest.warns(UserWarning, match='prepared anew'): assert open_packed(done.path, list(done.index.stem)) is None
    for folder in ('images', 'masks'): (done.path/folder).rename(done.path/f'old {folder}')
    with pytest.raises(ValueError, match='hold 3 rows for 2 photos'): open_packed(done.path, index_without(done.path, 1))

def test_a_photo_that_was_mended_is_packed(tmp_path):
    "What failed is tried again, in a folder of arrays too."
    coco = find_coco(make_sample(tmp_path/'s', n=3, size_hw=(48, 64)))[0]
    photo = sorted(coco[1].iterdir())[1]
    whole = photo.read_bytes()
    photo.write_bytes(whole[:40])
    assert len(prepare(*coco, tmp_path/'p', size_hw=32, pack=True, workers=1).index) == 2
    photo.write_bytes(whole)
    again = prepare(*coco, tmp_path/'p', size_hw=32, pack=True, workers=1)
    wanted = prepare(*coco, tmp_path/'w', size_hw=32, pack=True, workers=1)
    for name in ('images.npy', 'masks.npy', 'index.csv', 'audit.csv'): assert (again.path/name).read_bytes() == (wanted.path/name).read_bytes()

def test_packed_arrays_that_are_pickles(packed, tmp_path, monkeypatch):
    monkeypatch.setenv('BOMB', str(tmp_path/'exploded'))
    for name in ('images.npy', 'masks.npy'): np.save(packed/name, np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(ValueError, match='cannot be used'): open_packed(packed, read_prepared(packed)[0]['stem'])
    assert not (tmp_path/'exploded').exists()

def test_a_folder_whose_stems_lead_outside(tmp_path):
    done = prepare(*find_coco(make_sample(tmp_path/'s', n=3, size_hw=(48, 64)))[0], tmp_path/'p', size_hw=32, workers=1)
    with pytest.raises((ValueError, FileNotFoundError), match='leave its folder|lack the photo'):
        pair_stems(['../../evil', *done.index.stem[1:]], done.path/'images', done.path/'masks')
