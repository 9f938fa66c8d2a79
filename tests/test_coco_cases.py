"""Annotation files as real exports write them: whose annotation, which file, which way up, how many bits, and what to say where nothing fits."""
import gzip, json, zipfile
from pathlib import Path

import numpy as np, pytest
from PIL import Image
from seglab.files import UserError
from seglab.masks import prepare

pytestmark = pytest.mark.filterwarnings('ignore:__array__:DeprecationWarning')
BOX = [[10, 10, 40, 10, 40, 30, 10, 30]]   # 600 pixels
BALL = dict(id=1, name='ball'),

def photo(path, w=64, h=48, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (w, h), (value,)*3).save(path)

def ann(i, image_id=None, cat=1, seg=BOX, **kw): return dict(id=i, image_id=i if image_id is None else image_id, category_id=cat, iscrowd=0, segmentation=seg) | kw

def coco(names, anns=None, cats=BALL, **kw):
    images = [dict(id=i, file_name=n, width=64, height=48) | kw for i, n in enumerate(names, 1)]
    return dict(images=images, categories=list(cats), annotations=[ann(i) for i, _ in enumerate(names, 1)] if anns is None else anns)

@pytest.fixture
def d(tmp_path):
    (tmp_path/'img').mkdir()
    return tmp_path

def put(d, what, name='ann.json'):
    (d/name).write_text(json.dumps(what))
    return d/name

def run(d, what, out='out', images='img', **kw):
    files = [put(d, w, f'{out}{k}.json') for k, w in enumerate(what)] if isinstance(what, list) else put(d, what, f'{out}.json')
    return prepare(files, d/images, d/out, **dict(size_hw=None, workers=1) | kw)

def said(*args, **kw):
    with pytest.raises(UserError) as e: run(*args, **kw)
    return str(e.value)

def mask(p, stem): return np.array(Image.open(p.path/'masks'/f'{stem}.png'))
def noted(p): return p.audit[p.audit.action == 'noted'].code.tolist()

# --- which way up

def turned(d, name, orientation, shape=(48, 64), ext='jpg'):
    "A photo that the annotator saw with a red bar at the top left, stored as its EXIF orientation says."
    upright = np.full((*shape, 3), 90, np.uint8)
    upright[4:14, 4:24] = 255, 0, 0
    store = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(store[orientation](upright))).save(d/'img'/f'{name}.{ext}', exif=exif, **({'quality': 95} if ext == 'jpg' else {}))

BAR = [[4, 4, 24, 4, 24, 14, 4, 14]]
def overlap(p, stem):
    image = np.array(Image.open(next((p.path/'images').glob(f'{stem}.*')))).astype(int)
    red, m = (image[..., 0] - image[..., 1]) > 80, mask(p, stem) == 1
    return (red & m).sum()/(red | m).sum()

@pytest.mark.parametrize('ext', ['jpg', 'png', 'tif', 'webp'])
def test_one_photo_that_fits_only_turned_turns_all(d, ext):
    for o in range(2, 9): turned(d, f'o{o}', o, ext=ext)
    p = run(d, coco([f'o{o}.{ext}' for o in range(2, 9)], [ann(i, seg=BAR) for i in range(1, 8)]))
    assert min(overlap(p, f'o{o}') for o in range(2, 9)) > .85
    assert p.codes['repaired'] == dict(exif_rotated=7) and not noted(p)

def test_photos_that_fit_only_as_stored_turn_none(d):
    for o, shape in ((6, (64, 48)), (3, (48, 64))): turned(d, f'o{o}', o, shape)           # o6 is stored 48 high
    p = run(d, coco(['o6.jpg', 'o3.jpg'], [ann(1), ann(2)]))
    stored = np.array(Image.open(d/'img'/'o3.jpg')).astype(int)
    assert abs(np.array(Image.open(p.path/'images'/'o3.jpg')).astype(int) - stored).mean() < 3
    assert p.counts['annotations']['used'] == 2 and not noted(p)

def test_no_evidence_is_said_and_can_be_decided(d):
    turned(d, 'a', 3), turned(d, 'square', 6, (48, 48)), turned(d, 'unsized', 2)
    c = coco(['a.jpg', 'square.jpg', 'unsized.jpg'], [ann(i, seg=BAR) for i in (1, 2, 3)])
    c['images'][1]['width'] = 48
    del c['images'][2]['width'], c['images'][2]['height']
    p = run(d, c)
    assert noted(p) == ['exif_unknown']*3 and p.info['notes'] and p.counts['annotations']['used'] == 3
    assert overlap(p, 'a') < .1
    p = run(d, c, 'applied', exif='apply')
    assert min(overlap(p, s) for s in ('a', 'square', 'unsized')) > .85 and not noted(p)
    p = run(d, c, 'ignored', exif='ignore')
    assert p.counts['annotations']['used'] == 3 and not noted(p) and overlap(p, 'a') < .1

def test_evidence_both_ways_is_for_each_photo(d):
    turned(d, 'turned', 6), turned(d, 'stored', 8, (64, 48)), turned(d, 'head', 3)
    p = run(d, coco(['turned.jpg', 'stored.jpg', 'head.jpg'], [ann(i, seg=BAR) for i in (1, 2, 3)]))
    assert overlap(p, 'turned') > .85 and p.codes['repaired'] == dict(exif_rotated=1) and noted(p) == ['exif_unknown']

def test_evidence_is_that_of_one_file(d):
    "What one annotation file shows says nothing about another one's tool."
    turned(d, 'side', 6), turned(d, 'head1', 3), turned(d, 'head2', 3)
    p = run(d, [coco(['side.jpg', 'head1.jpg'], [ann(1, seg=BAR), ann(2, seg=BAR)]), coco(['head2.jpg'], [ann(1, seg=BAR)])])
    assert overlap(p, 'head1') > .85 and overlap(p, 'head2') < .1 and noted(p) == ['exif_unknown']

@pytest.mark.parametrize('pack', [False, True])
def test_evidence_that_comes_last_and_a_second_call(d, pack):
    "Forty photos are made before the one that shows how they were annotated."
    for i in range(40): turned(d, f'h{i:02}', 3)
    c = coco([f'h{i:02}.jpg' for i in range(40)] + ['late.jpg'], [ann(i, seg=BAR) for i in range(1, 42)])
    photo(d/'img'/'late.jpg', 10, 10)                                        # for now it fits in no way
    kw = dict(pack=pack, size_hw=(48, 64))
    assert run(d, c, **kw).counts['images'] == dict(total=41, written=40, failed=1, records=41, empty=0)
    turned(d, 'late', 6)
    p, whole = run(d, c, **kw), run(d, c, 'whole', workers=2, **kw)
    assert p.counts == whole.counts and p.codes['repaired'] == dict(exif_rotated=41)
    for f in ('images.npy', 'masks.npy') if pack else ('images/h07.jpg', 'images/late.jpg', 'audit.csv'): assert (p.path/f).read_bytes() == (whole.path/f).read_bytes()

# --- whose annotation

def test_text_ids_are_what_they_are(d):
    c = coco([f'{i}.png' for i in range(4)], [])
    for k, i in enumerate(('1', '01', '001', '0001')):
        photo(d/'img'/f'{k}.png')
        c['images'][k]['id'] = i
        c['annotations'].append(ann(k, i, seg=[[10, 10, 20 + k, 10, 20 + k, 20, 10, 20]]))
    p = run(d, c)
    assert [(mask(p, str(k)) == 1).sum() for k in range(4)] == [100, 110, 120, 130]

def test_text_is_a_number_only_where_that_meets_one_id(d):
    photo(d/'img'/'a.png'), photo(d/'img'/'b.png'), photo(d/'img'/'c.png')
    c = coco(['a.png', 'b.png', 'c.png'], [ann(1, '5'), ann(2, 1), ann(3, '3', cat='1')])
    c['images'][0]['id'], c['images'][1]['id'] = '1', '01'                    # 1 could be either; 3 is 3; there is no 5
    p = run(d, c)
    assert p.counts['annotations'] == dict(total=3, used=0, repaired=1, dropped=2, ignored=0) and p.codes['dropped'] == dict(unknown_image=2)

@pytest.mark.parametrize('i', [2**63, 2**64 - 1, 2**64, 0x12345678123456781234567812345678, -2**70])
def test_large_ids(d, i):
    photo(d/'img'/'a.png')
    c = coco(['a.png'], [ann(i, i, cat=i)], [dict(id=i, name='ball')])
    c['images'][0]['id'] = i
    p = run(d, c, values='class_index', workers=2)
    assert p.counts['annotations']['used'] == 1 and p.index.image_id.astype(str).tolist() == [str(i)]

def test_an_id_of_two_files_is_nobodys(d):
    for n in 'abc': photo(d/'img'/f'{n}.png')
    c = coco(['a.png', 'b.png', 'c.png'], [ann(1, 1), ann(2, 1), ann(3, 3)])
    c['images'][1]['id'] = 1
    p = run(d, c)
    assert p.index.file_name.tolist() == ['c.png'] and p.codes['dropped'] == dict(duplicate_image_id=2) and p.codes['failed'] == dict(duplicate_image_id=2)
    rows = p.audit[p.audit.action == 'failed'].detail
    assert 'b.png' in rows.iloc[0] and 'a.png' in rows.iloc[1]

# --- a photo is a file

def test_records_of_one_file_are_one_photo(d):
    names = [f'{i}.png' for i in range(10)]
    for n in names: photo(d/'img'/n)
    other = [[45, 10, 60, 10, 60, 30, 45, 30]]
    c = coco([n for n in names for _ in (1, 2)], [ann(i, seg=other if i % 2 else BOX) for i in range(1, 21)])
    c['images'][1]['file_name'] = './0.png'
    p = run(d, c, split=.4)
    assert len(p.index) == 10 and p.counts['images']['records'] == 20 and p.counts['annotations']['used'] == 20
    assert {(mask(p, str(i)) == 1).sum() for i in range(10)} == {900}

def test_two_files_over_the_same_photos(d):
    names = [f'{i}.png' for i in range(10)]
    for n in names: photo(d/'img'/n)
    things, stuff = coco(names), coco(names, [ann(i, cat=95, seg=[[0, 0, 64, 0, 64, 48, 0, 48]]) for i in range(1, 11)], [dict(id=95, name='grass')])
    for k, im in enumerate(stuff['images']): im['id'] = 100 + k
    for k, a in enumerate(stuff['annotations']): a['image_id'] = 100 + k
    p = run(d, [things, stuff], split=.4)
    assert len(p.index) == 10 and {tuple(np.unique(mask(p, str(i)))) for i in range(10)} == {(1, 95)}
    assert p.index.split.tolist() == run(d, things, 'alone', split=.4).index.split.tolist()     # the second file moves no photo

def test_records_of_one_file_that_state_two_sizes(d):
    photo(d/'img'/'a.png'), photo(d/'img'/'b.png')
    c = coco(['a.png', 'a.png', 'b.png'])
    c['images'][1].update(width=128, height=96)
    p = run(d, c)
    assert p.codes['failed'] == dict(size_mismatch=1) and 'two image records' in p.audit[p.audit.action == 'failed'].detail.iloc[0]

# --- nothing painted

NOTHING = {
    'boxes': (coco(['a.png'], [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9])]), 'boxes without outlines'),
    'no categories': ({k: v for k, v in coco(['a.png']).items() if k != 'categories'}, 'Add "categories"'),
    'null categories': (coco(['a.png'], [ann(1, cat=None)]), 'without a category_id'),
    'renamed keys': (coco(['a.png'], [dict(id=1, item_id=1, category_id=1, segmentation=BOX)]), 'without a category_id or an image_id'),
    'no annotations': (coco(['a.png'], []), 'without annotations'),
    'crowds': (coco(['a.png'], [ann(1, iscrowd=1, segmentation=dict(size=[48, 64], counts=[490, 20, 28, 20, 2514]))]), "crowd='paint'"),
    'outside': (coco(['a.png'], [ann(1, seg=[[640, 480, 700, 480, 700, 500]])]), 'outside their photos'),
    'normalised': (coco(['a.png'], [ann(1, seg=[[.1, .1, .9, .1, .9, .9, .1, .9]])]), 'Multiply them by width and height'),
    'other images': (coco(['a.png'], [ann(1, 77)]), 'images that the file does not list'),
    'missing photo': (coco(['absent.png']), 'none of the 1 photos there'),
    'swapped size': (coco(['a.png'], width=48, height=64), 'swapped'),
    'no images': (coco([]), 'a file that lists images')}

@pytest.mark.parametrize('kind', NOTHING)
@pytest.mark.parametrize('pack', [False, True])
def test_nothing_painted_is_an_error_and_leaves_nothing(d, kind, pack):
    photo(d/'img'/'a.png')
    what, words = NOTHING[kind]
    text = said(d, what, size_hw=32, pack=pack)
    assert words in text and '\n' not in text and not (d/'out').exists()
    (d/'mine').mkdir()
    said(d, what, 'mine', size_hw=32, pack=pack)
    assert not [f.name for f in (d/'mine').iterdir() if f.name != '.lock']

def test_objects_too_small_for_the_masks(d):
    photo(d/'img'/'a.png', 640, 480)
    dot = [[101, 101, 103, 101, 103, 103, 101, 103]]
    c = coco(['a.png'], [ann(1, seg=dot), ann(2, 1, seg=[[200, 200, 400, 200, 400, 400, 200, 400]])], width=640, height=480)
    p = run(d, c, size_hw=32)
    assert p.counts['annotations'] == dict(total=2, used=2, repaired=0, dropped=0, ignored=0) and p.codes['noted'] == dict(lost_by_resizing=1)
    assert p.audit.annotation_id.tolist() == ['1'] and '32×32' in p.audit.detail.iloc[0]
    assert 'no pixel is left at this size' in said(d, coco(['a.png'], [ann(1, seg=dot)], width=640, height=480), 'none', size_hw=32)

def test_a_category_of_crowds_only_is_named(d):
    photo(d/'img'/'a.png')
    p = run(d, coco(['a.png'], [ann(1), ann(2, 1, 2, iscrowd=1)], [*BALL, dict(id=2, name='sand')]))
    assert p.counts['annotations']['ignored'] == 1 and p.counts['annotations']['used'] == 2
    assert any('sand' in n and '--crowd paint' in n and 'ball' not in n for n in p.info['notes'])

# --- the same OUT again

def test_wrong_folder_then_right(d):
    photo(d/'img'/'sub'/'a.png')
    (d/'other').mkdir()
    c = coco(['sub/a.png'])
    said(d, c, images='other')
    assert len(run(d, c).index) == 1

def test_photos_that_arrive_later_are_taken(d):
    photo(d/'img'/'a.png')
    c = coco(['a.png', 'b.png'])
    assert len(run(d, c).index) == 1
    photo(d/'img'/'b.png')
    assert len(run(d, c).index) == 2 and not (d/'out'/'.journal').exists()

def test_other_photos_of_the_same_names_are_refused(d):
    photo(d/'img'/'a.png'), photo(d/'other'/'a.png', value=91)
    c = coco(['a.png'])
    run(d, c)
    assert 'the photos that this folder was prepared from' in said(d, c, images='other')
    Path(d/'img').rename(d/'moved')
    assert len(run(d, c, images='moved').index) == 1                          # the same photos in another place

def test_a_folder_that_something_else_wrote_into(d):
    photo(d/'img'/'a.png'), photo(d/'img'/'b.png')
    c = coco(['a.png', 'b.png'])
    p = run(d, c)
    Image.new('L', (64, 48), 7).save(p.path/'masks'/'a.png')
    assert 'something else has written here' in said(d, c)
    (p.path/'masks'/'a.png').unlink()
    assert (mask(run(d, c), 'a') == 1).sum() == 600

# --- bits

def test_range_by_the_set(d):
    x = np.mgrid[0:48, 0:64][1]
    for n, a in (('a', x*65), ('b', x*4), ('c', x*4 + 4)): Image.fromarray(a.astype(np.uint16)).save(d/'img'/f'{n}.png')
    c = coco(['a.png', 'b.png', 'c.png'])
    p = run(d, c)
    a, b, e = (np.array(Image.open(p.path/'images'/f'{n}.png'))[..., 0].astype(int) for n in 'abc')
    assert len(np.unique(a)) == 64 and np.abs(b - e).max() <= 1 and noted(p) == ['depth'] and '12 bits' in p.info['notes'][0]
    p = run(d, c, 'sixteen', depth=16)
    assert np.array_equal(np.array(Image.open(p.path/'images'/'a.png'))[..., 0], x*65 >> 8)
    p = run(d, c, 'window', window=(0, 63*65))
    assert np.array(Image.open(p.path/'images'/'a.png')).max() == 255

@pytest.mark.parametrize('top,bits', [(255, 8), (1023, 10), (4095, 12), (16383, 14), (65535, 16)])
@pytest.mark.parametrize('ext', ['png', 'tif'])
def test_bits(d, top, bits, ext):
    x = np.linspace(0, top, 48*64).astype(np.uint16).reshape(48, 64)
    Image.fromarray(x).save(d/'img'/f'a.{ext}')
    p = run(d, coco([f'a.{ext}']))
    assert np.array_equal(np.array(Image.open(p.path/'images'/'a.png'))[..., 0], x >> bits - 8)

def test_colour_of_16_bits(d):
    import cv2
    x = np.stack([np.full((48, 64), v) for v in (100, 2000, 4000)], 2).astype(np.uint16)
    cv2.imwrite(str(d/'img'/'a.png'), x[..., ::-1])
    p = run(d, coco(['a.png']))
    assert np.array(Image.open(p.path/'images'/'a.png'))[0, 0].tolist() == [6, 125, 250]

def test_other_numbers_are_refused_or_windowed(d):
    Image.fromarray(np.mgrid[0:48, 0:64][1].astype(np.int32) - 9).save(d/'img'/'a.tif')
    assert 'some below zero' in said(d, coco(['a.tif']))
    p = run(d, coco(['a.tif']), window=(0, 51))
    grey = np.array(Image.open(p.path/'images'/'a.png'))[0, [0, 9, 10, 63], 0].tolist()
    assert grey[:2] == [0, 0] and 3 < grey[2] < 6 and grey[3] > 250

# --- names

@pytest.mark.parametrize('name,root', [('images\\a.png', 'img'), ('./b.png', 'img'), ('../img/b.png', 'img'), ('e\u0301 c.png', 'img'), ('%C3%A9%20c.png', 'img'),
                                       ('b.PNG', 'img'), ('deep/e.png', 'img/deep'), ('old/folder/e.png', 'img')])
def test_names_of_other_systems(d, name, root):
    for f in ('images/a.png', 'b.png', 'é c.png', 'deep/e.png'): photo(d/'img'/f)
    p = run(d, coco([name]), images=root)
    assert len(p.index) == 1 and [c[:5] for c in noted(p)] == ([] if name == './b.png' else ['name_'])

def test_absolute_names_and_urls(d):
    photo(d/'img'/'b.png')
    assert len(run(d, coco([str(d/'img'/'b.png')])).index) == 1
    c = coco(['x'], coco_url='http://images.cocodataset.org/val2017/b.png')
    del c['images'][0]['file_name']
    assert len(run(d, c, 'lvis').index) == 1

def test_two_files_that_fit_are_none(d):
    photo(d/'img'/'x'/'a.png'), photo(d/'img'/'y'/'a.png'), photo(d/'img'/'b.png')
    p = run(d, coco(['z/a.png', 'b.png']))
    assert p.codes['failed'] == dict(image_missing=1)

def test_links_of_a_hub_cache(d):
    photo(d/'cache'/'blobs'/'0123.png')
    (d/'cache'/'blobs'/'0123.png').rename(d/'cache'/'blobs'/'0123')
    (d/'cache'/'snapshots'/'rev'/'img').mkdir(parents=True)
    (d/'cache'/'snapshots'/'rev'/'img'/'a.png').symlink_to('../../../blobs/0123')
    assert len(run(d, coco(['a.png']), images='cache/snapshots/rev/img').index) == 1
    photo(d/'away.png')
    (d/'img'/'a.png').symlink_to(d/'away.png')
    assert 'leaves the image folder' in said(d, coco(['a.png']), 'no')

# --- categories

def test_keep_takes_names_first(d):
    photo(d/'img'/'a.png')
    cats = [dict(id=i, name=str(q*10 + t)) for i, (q, t) in enumerate(((q, t) for q in (1, 2, 3, 4) for t in range(1, 9)), 1)] + [dict(id=50, name='shirt, blouse')]
    c = coco(['a.png'], [ann(1, 1, 1), ann(2, 1, 50), ann(3, 1, 11)], cats)
    for k, (keep, ids) in enumerate((('11', [1]), (11, [11]), ('shirt, blouse', [50]), ('11, 23', [1, 11]), (['shirt, blouse', 1], [1, 50]))):
        assert [x['id'] for x in run(d, c, f'o{k}', keep=keep).classes] == ids
    assert "keep='shirt': expected a category" in said(d, c, 'no', keep='shirt')

def test_one_category_too_many_is_left_out_where_it_is_not_in_use(d):
    photo(d/'img'/'a.png')
    cats = [dict(id=i, name=f'c{i}') for i in range(1, 256)]
    for n in (254, 255):
        c = coco(['a.png'], [ann(i, 1, i) for i in range(1, n + 1)], cats)
        if n == 254: assert len(run(d, c, 'fits', values='class_index').classes) == 254
        else: assert 'at most 254 categories in use' in said(d, c, 'no', values='class_index')

def test_only_categories_in_use_count(d):
    photo(d/'img'/'a.png')
    cats = [dict(id=i, name=f'c{i}') for i in range(0, 1300)]
    c = coco(['a.png'], [ann(1, 1, 3), ann(2, 1, 200, seg=[[0, 0, 5, 0, 5, 5, 0, 5]])], cats)
    p = run(d, c)
    assert set(np.unique(mask(p, 'a'))) == {0, 3, 200} and len(p.classes) == 254
    p = run(d, c, 'index', values='class_index')
    assert [(x['id'], x['category_id']) for x in p.classes] == [(1, 3), (2, 200)] and set(np.unique(mask(p, 'a'))) == {0, 1, 2}
    assert "values='class_index'" in said(d, coco(['a.png'], [ann(1, 1, 1000)], cats), 'no')

@pytest.mark.parametrize('i', [0, 1, 300])
def test_a_category_called_background_is_zero(d, i):
    photo(d/'img'/'a.png')
    c = coco(['a.png'], [ann(1, 1, 7), ann(2, 1, i, seg=[[10, 10, 20, 10, 20, 20, 10, 20]])], [dict(id=i, name='Background'), dict(id=7, name='ball')])
    for values in ('category_id', 'class_index'):
        p = run(d, c, values, values=values)
        assert p.counts['annotations']['used'] == 2 and np.unique(mask(p, 'a'), return_counts=True)[1].tolist() == [64*48 - 500, 500] and [x['name'] for x in p.classes] == ['ball']
    assert 'expected at least one annotation to paint' in said(d, coco(['a.png'], [ann(1, 1, i)], c['categories']), 'no')

# --- groups and photos without annotations

def test_groups(d):
    names = [f'p{k//4}_{k}.png' for k in range(40)]
    for n in names: photo(d/'img'/n, 16, 12), photo(d/'img'/'b'/n, 16, 12)
    c = coco(names, [ann(i, seg=[[1, 1, 9, 1, 9, 9]]) for i in range(1, 41)], width=16, height=12)
    for k, im in enumerate(c['images']): im['patient'] = k//4
    (d/'g.csv').write_text('file,group\n' + ''.join(f'{n},{n[:2]}\n' for n in names))
    splits = []
    for k, g in enumerate((r'^(p\d+)_', 'patient', d/'g.csv', lambda n: n.split('_')[0])):
        p = run(d, c, f'o{k}', split=.5, groups=g)
        assert (p.index.groupby('group').split.nunique() == 1).all() and p.index.group.nunique() == 10 and p.index.split.nunique() == 2
        splits.append(p.index.split.tolist())
    assert splits[0] == splits[2] == splits[3]
    assert 'no group for any photo' in said(d, c, 'no', groups='street')
    assert 'one split for all photos of a group' in said(d, [c, dict(c, images=[dict(i, file_name='b/' + i['file_name']) for i in c['images']])], 'two', groups='patient', split=['train', 'val'])

def test_only_annotated(d):
    for n in 'abc': photo(d/'img'/f'{n}.png')
    c = coco(['a.png', 'b.png', 'c.png'], [ann(1, 3)])
    assert run(d, c).counts['images']['empty'] == 2
    p = run(d, c, 'some', only_annotated=True)
    assert p.index.file_name.tolist() == ['c.png']

# --- kinds of files

def test_packed_files_and_other_formats(d):
    photo(d/'img'/'a.png')
    (d/'a.json.gz').write_bytes(gzip.compress(json.dumps(coco(['a.png'])).encode()))
    assert len(prepare(d/'a.json.gz', d/'img', d/'gz', workers=1).index) == 1
    with zipfile.ZipFile(d/'z.json', 'w') as z: z.writestr('r.json', '{}')
    (d/'lfs.json').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n')
    (d/'half.json.gz').write_bytes((d/'a.json.gz').read_bytes()[:60])
    c = coco(['a.png'])
    put(d, c | dict(annotations={'1': c['annotations'][0]}), 'object.json')
    put(d, [dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=.9)], 'results.json')
    put(d, dict(videos=[], annotations=[], categories=[]), 'vis.json')
    put(d, dict(image=dict(image_id=1), annotations=[]), 'sa1b.json')
    for file, words in dict(z='zip', lfs='git lfs pull', object='an object', results='images_from', vis='YouTube-VIS', sa1b='SA-1B').items():
        with pytest.raises(UserError, match=words): prepare(d/f'{file}.json', d/'img', d/'out')
    with pytest.raises(UserError, match='damaged gz'): prepare(d/'half.json.gz', d/'img', d/'out')
    assert not (d/'out').exists()

def test_a_list_of_results(d):
    photo(d/'img'/'a.png')
    val = put(d, coco(['a.png'], []), 'val.json')
    results = put(d, [dict(image_id=1, category_id=1, segmentation=dict(size=[48, 64], counts=[490, 20, 28, 20, 2514]), score=.5)], 'results.json')
    p = prepare(results, d/'img', d/'out', size_hw=None, images_from=val, workers=1)
    assert p.counts['annotations']['used'] == 1 and (mask(p, 'a') == 1).sum() == 40

def panoptic(d, name='panoptic', crowd=0):
    "Two segments and an id that the JSON does not list."
    photo(d/'img'/'a.png')
    ids = np.zeros((48, 64), int)
    ids[5:20, 5:30], ids[10:40, 40:60], ids[45:, :4] = 70_000, 2, 999
    (d/name).mkdir()
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)).save(d/name/'a.png')
    segments = [dict(id=70_000, category_id=1, iscrowd=0), dict(id=2, category_id=7, iscrowd=crowd), dict(id=5, category_id=7, iscrowd=0)]
    put(d, coco(['a.png'], [dict(image_id=1, file_name='a.png', segments_info=segments)], [*BALL, dict(id=7, name='grass')]), 'panoptic.json')
    return ids

@pytest.mark.parametrize('crowd', [0, 1])
def test_a_panoptic_file_is_its_png(d, crowd):
    ids = panoptic(d, crowd=crowd)
    p = prepare(d/'panoptic.json', d/'img', d/'out', size_hw=None, workers=1)
    assert np.array_equal(mask(p, 'a'), np.select([ids == 70_000, ids == 2, ids == 999], [1, 255 if crowd else 7, 255]))
    assert p.counts['annotations'] == dict(total=3, used=2, repaired=0, dropped=1, ignored=crowd) and p.codes['noted'] == dict(unlisted_segment=1)
    small = prepare(d/'panoptic.json', d/'img', d/'small', size_hw=(24, 32), workers=1)
    import cv2
    assert np.array_equal(mask(small, 'a'), cv2.resize(mask(p, 'a'), (32, 24), interpolation=cv2.INTER_NEAREST_EXACT))

def test_a_panoptic_file_without_its_pngs(d):
    panoptic(d, 'elsewhere')
    with pytest.raises(UserError, match="in a folder 'panoptic' beside it"): prepare(d/'panoptic.json', d/'img', d/'out')

def test_rings_and_holes_as_pairs_have_two_readings(d):
    photo(d/'img'/'a.png'), photo(d/'img'/'b.png')
    pairs = [[[10, 10], [40, 10], [40, 40], [10, 40]], [[20, 20], [30, 20], [30, 30], [20, 30]]]
    p = run(d, coco(['a.png', 'b.png'], [ann(1, seg=pairs), ann(2, 1, seg=[pairs]), ann(3, 2)]))
    assert p.codes['dropped'] == dict(rings_or_holes=2)

def test_the_file_cannot_write_our_notes(d):
    photo(d/'img'/'a.png')
    p = run(d, coco(['a.png'], [ann(1, 1, **{' note': 'same', 'note': 'same \x1b[2J'})]))
    assert p.counts['annotations']['used'] == 1 and not len(p.audit)

def test_swapped_sides_and_other_scales_are_said(d):
    photo(d/'img'/'a.png'), photo(d/'img'/'b.png'), photo(d/'img'/'c.png')
    c = coco(['a.png', 'b.png', 'c.png'])
    c['images'][0].update(width=48, height=64)
    c['images'][1].update(width=128, height=96)
    p = run(d, c)
    rows = p.audit[p.audit.action == 'failed'].detail.tolist()
    assert '48 high and 64 wide' in rows[0] and 'height 64 and width 48: the two are swapped' in rows[0] and '2 times as large' in rows[1]

def test_an_annotation_file_edited_while_we_read(d, monkeypatch):
    "What was read is what is painted, and the digest is that of what was read."
    import hashlib
    from seglab import bulk
    photo(d/'img'/'a.png')
    file = put(d, coco(['a.png']))
    before, plan = file.read_bytes(), bulk.plan_photos
    def edited(*args, **kw):
        with open(file, 'r+b') as f: f.write(b' '*len(before)); f.truncate(10)
        return plan(*args, **kw)
    monkeypatch.setattr(bulk, 'plan_photos', edited)
    p = prepare(file, d/'img', d/'out', size_hw=None, workers=1)
    assert (mask(p, 'a') == 1).sum() == 600 and p.settings['digest'] == [hashlib.sha256(before).hexdigest()]
