"Photos that belong together: found, kept on one side, with the classes balanced."
import csv, json
from collections import Counter

import cv2, numpy as np, pytest

from seglab.coco import Annotation
from seglab.files import UserError
from seglab.groups import (Look, balance_photos, balanced_split, film_frames, group_photos, likeness, look, look_at, near_pairs, photo_hash,
                           propose_groups, read_grey)
from seglab.masks import prepare
from seglab.photos import Photo, split_of
from seglab.sample import draw_scene

def grey(i, size_hw=(240, 320)): return cv2.cvtColor(draw_scene(i, size_hw=size_hw).image, cv2.COLOR_RGB2GRAY)

def drive(n=20):
    "Frames of a camera that moves over one scene."
    big = cv2.resize(draw_scene(5).image, (640, 480))
    return [big[k:k + 240, 3*k:3*k + 320] for k in range(n)]

@pytest.mark.parametrize('quality,scale', [(95, 1), (60, .7), (30, .4)])
def test_a_copy_is_near_and_another_photo_is_not(quality, scale):
    photo = grey(0)
    copy = cv2.imdecode(cv2.imencode('.jpg', cv2.resize(photo, None, fx=scale, fy=scale), [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)
    a, b, c = map(look, (photo, copy, grey(1)))
    assert isinstance(a, Look) and a.hash == photo_hash(photo) and likeness(a, b) > .98 > likeness(a, c)
    assert near_pairs([a, c, b]) == [(0, 2)] and near_pairs([a]) == near_pairs([]) == []

def test_flat_photos_are_not_copies_of_each_other():
    assert near_pairs([look(np.full((50, 60), v, np.uint8)) for v in (0, 0, 90, 255)]) == []

@pytest.mark.parametrize('size_hw', [(1100, 1500), (600, 800), (300, 257), (60, 90), (8, 9), (1, 1)])
def test_a_jpeg_read_small_looks_the_same(tmp_path, size_hw):
    image = cv2.resize(draw_scene(0).image, size_hw[::-1], interpolation=cv2.INTER_AREA)
    for name in ('a.jpg', 'a.png'): cv2.imwrite(str(tmp_path/name), image[..., ::-1])
    small, whole = map(read_grey, (tmp_path/'a.jpg', tmp_path/'a.png'))
    assert whole.shape == size_hw and min(small.shape) >= min(128, *size_hw)
    assert max(small.shape) < 513 and (max(size_hw) < 10 or near_pairs([look(small), look(whole)]) == [(0, 1)])

def test_what_cannot_be_read_has_no_look(tmp_path):
    for name, data in (('empty.jpg', b''), ('half.jpg', cv2.imencode('.jpg', drive(1)[0])[1].tobytes()[:900]), ('text.png', b'x'*99)): (tmp_path/name).write_bytes(data)
    assert look_at([*sorted(tmp_path.iterdir()), tmp_path/'missing.jpg', ''], workers=2) == [None]*5
    assert look_at([tmp_path/'a.png'], max_pixels=10) == [None] == look_at([cv2.imwrite(str(tmp_path/'b.jpg'), drive(1)[0]) and tmp_path/'b.jpg'], max_pixels=10)

def test_numbers_alone_make_no_film():
    frames = [look(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY)) for f in drive()]
    scenes = [look(grey(i)) for i in range(20)]
    assert film_frames([f'{i:06d}.jpg' for i in range(20)], scenes) == {}
    assert set(film_frames([f'a/{i:06d}.jpg' for i in range(20)], frames).values()) == {'a/'}
    group, said = propose_groups([f'{i:06d}.jpg' for i in range(20)], scenes)
    assert len(set(group.values())) == 20 and said == '20 groups among 20 photos: none belongs to another.'

def test_ten_thousand_photos_in_500_groups():
    "Issue 15.1: no group is on two sides; the share of each class on both sides differs by less than a fifth."
    rng = np.random.default_rng(0)
    likes = rng.dirichlet([.15]*10, 500)                              # each group has classes of its own
    photos = [Photo(k, k, f'{k}.jpg', 0, 9, 9, [Annotation(k, k, int(c) + 1, 0) for c in rng.choice(10, 3, p=likes[k % 500])], group=f'g{k % 500}')
              for k in range(10_000)]
    sides = balance_photos(photos, lambda a: True, .2)
    assert all(len(s) == 1 for s in (set(sides[g::500]) for g in range(500)))
    n, of = Counter(sides), Counter((s, c) for p, s in zip(photos, sides) for c in {a.category_id for a in p.anns})
    assert abs(n['val']/10_000 - .2) < .03
    for c in range(1, 11): assert .8 < of['val', c]/n['val']/(of['train', c]/n['train']) < 1.2, c
    hashed = [split_of(p.group, .2) for p in photos]
    moved = sum(a != b for a, b in zip(sides[:500], hashed[:500]))
    assert 0 < moved < 100                                            # it starts from the hash
    again = dict(zip([p.file_name for p in photos[::-1]], balance_photos(photos[::-1], lambda a: True, .2)))
    assert [again[p.file_name] for p in photos] == sides

def test_a_photo_more_moves_few_groups():
    rng = np.random.default_rng(1)
    classes = {f'g{k}': dict(zip('abcd', rng.poisson(3, 4).tolist())) for k in range(300)}
    before = balanced_split(classes)
    after = balanced_split({g: {c: v + (g == 'g7') for c, v in n.items()} for g, n in classes.items()})
    assert before['g7'] == after['g7'] and sum(before[g] != after[g] for g in classes) <= 6

def test_a_class_of_two_groups_is_on_both_sides_and_one_of_one_group_anywhere():
    for seed in range(20):
        classes = {f'{seed}-{k}': {'common': 5} | ({'rare': 1} if k < 2 else {'single': 1} if k == 2 else {}) for k in range(20)}
        side = balanced_split(classes)
        assert {side[f'{seed}-0'], side[f'{seed}-1']} == {'train', 'val'} and 1 <= list(side.values()).count('val') <= 8
    assert balanced_split({}) == {} and set(balanced_split({'a': {}, 'b': {}}).values()) == {'train', 'val'}

@pytest.fixture
def film(tmp_path):
    "A drive of 20 frames, eight scenes, a copy of one of them, and a file that is no photo."
    (tmp_path/'in').mkdir()
    files = {f'drive_{k:03d}.jpg': f for k, f in enumerate(drive())} | {f'scene{"abcdefgh"[k]}.jpg': draw_scene(k).image for k in range(8)}
    files['copy.png'] = cv2.resize(draw_scene(3).image, (160, 120), interpolation=cv2.INTER_AREA)
    for name, image in files.items(): cv2.imwrite(str(tmp_path/'in'/name), image[..., ::-1])
    (tmp_path/'in'/'bad.jpg').write_bytes(b'no photo')
    names = [*files, 'bad.jpg']
    coco = dict(images=[dict(id=k, file_name=n) for k, n in enumerate(names)], categories=[dict(id=c, name=str(c)) for c in (1, 2)],
                annotations=[dict(id=k, image_id=k, category_id=1 + k % 2, iscrowd=0, segmentation=[[9, 9, 40, 9, 40, 40, 9, 40]]) for k in range(len(names))])
    (tmp_path/'a.json').write_text(json.dumps(coco))
    return tmp_path

def test_prepare_finds_groups(film, capsys):
    kw = dict(size_hw=32, workers=1, groups='auto', balanced=True, split=.3)
    done = prepare(film/'a.json', film/'in', film/'out', **kw)
    said = "groups='auto': 9 groups among 29 photos: 1 film (20 frames), "
    assert said in capsys.readouterr().out and any(n.startswith(said) for n in done.info['notes']) and 'near-duplicate' in str(done)
    rows = {r['file_name']: r for r in csv.DictReader(open(film/'out'/'index.csv', encoding='utf-8'))}
    assert len({r['split'] for n, r in rows.items() if n[:5] == 'drive'}) == 1 == len({rows[n]['split'] for n in ('scened.jpg', 'copy.png')})
    assert rows['drive_000.jpg']['group'] == 'film drive_' and rows['scenea.jpg']['group'] == ''
    assert {r['split'] for r in rows.values()} == {'train', 'val'}
    before = (film/'out'/'index.csv').read_bytes()
    prepare(film/'a.json', film/'in', film/'out', **kw)               # the same again
    assert (film/'out'/'index.csv').read_bytes() == before
    with pytest.raises(UserError, match='balanced=False'): prepare(film/'a.json', film/'in', film/'out', **kw | dict(balanced=False))

def test_what_balanced_needs(film):
    for split in ('val', {'val': .1}, 0, 1., ['val']):
        with pytest.raises(UserError, match='split=.*a fraction between 0 and 1, as balanced=True wants'):
            prepare(film/'a.json', film/'in', film/'out', balanced=True, split=split)
    with pytest.raises(UserError, match='balanced='): prepare(film/'a.json', film/'in', film/'out', balanced='yes')
    assert not (film/'out').exists()

def test_groups_of_a_plan(film):
    photos = [Photo(k, k, p.name, 0, None, None, [], path=str(p)) for k, p in enumerate(sorted((film/'in').iterdir()))]
    assert group_photos(photos, workers=1).startswith('9 groups among 29')
    assert {p.file_name: p.group for p in photos}['bad.jpg'] == ''
