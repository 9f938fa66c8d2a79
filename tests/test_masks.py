"""The masks chapter: colours and pictures, splits, `Prepared`, and the arguments of `prepare`. What hostile files do is in test_coco and test_bulk."""
import json, os, subprocess, sys
from collections import Counter
from pathlib import Path

import cv2, matplotlib, numpy as np, pytest

from seglab.files import UserError
from seglab.images import BACKGROUND, IGNORE
from seglab.names import add_glyphs
from seglab.masks import (Prepared, colorize, legend, overlay, palette, picture_grid, prepare, show_image, show_mask,
                          show_predictions, split_of)
from seglab.sample import SAMPLE_CATEGORIES, make_sample
from support.faults import one_sentence

matplotlib.use('Agg')
import matplotlib.pyplot as plt

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    root = make_sample(tmp_path_factory.mktemp('sample'), n=6, size_hw=(48, 64))
    return root/'annotations'/'instances_sample.json', root/'sample'

@pytest.fixture(scope='module')
def prepared(sample, tmp_path_factory):
    return prepare(*sample, tmp_path_factory.mktemp('prepared')/'out', size_hw=32, workers=1)

rng = np.random.default_rng(0)
PHOTO, MASK = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), rng.choice([0, 1, 3, 255], (6, 8)).astype(np.uint8)


# --- colours

def test_the_palette():
    p = palette()
    assert p.shape == (256, 3) and p.dtype == np.uint8
    assert p[BACKGROUND].tolist() == [0]*3 and p[IGNORE].tolist() == [211]*3
    assert p[1:8].tolist() == [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]]
    assert len(np.unique(p, axis=0)) > 250
    p[1] = 7
    assert palette()[1].tolist() == [230, 159, 0]                           # a copy: nobody repaints it for the others

def test_the_sample_has_colours_that_differ():
    ids = [BACKGROUND, IGNORE, *(c['id'] for c in SAMPLE_CATEGORIES)]
    lab = cv2.cvtColor(np.float32(palette()[ids])[None]/255, cv2.COLOR_RGB2LAB)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 999*np.eye(len(ids))
    assert apart.min() > 30

@pytest.mark.parametrize('colors', [[(9, 9, 9)], [(0, 0, 0), (1, 2, 3), (4, 5, 6), (7, 8, 9)], np.full((256, 3), 9)])
def test_ignore_has_one_colour(colors):
    assert colorize(np.uint8([[255]]), colors)[0, 0].tolist() == [211]*3
    assert colorize(np.uint8([[0]]), colors)[0, 0].tolist() == list(np.asarray(colors)[0])

def test_colorize():
    c = colorize(MASK)
    assert c.shape == (6, 8, 3) and c.dtype == np.uint8
    for v in np.unique(MASK): assert (c[MASK == v] == palette()[v]).all()

@pytest.mark.parametrize('alpha', [0, .25, .5, 1])
def test_overlay(alpha):
    out = overlay(PHOTO, MASK, alpha)
    here = MASK != BACKGROUND
    assert (out[~here] == PHOTO[~here]).all()
    assert np.abs(out[here] - ((1 - alpha)*PHOTO[here].astype(float) + alpha*palette()[MASK[here]])).max() <= .5

def test_overlay_of_another_size():
    with pytest.raises(UserError, match=r'mask=.*expected the image.s size, \(6, 8\).*resize_mask'): overlay(PHOTO, MASK[:4])


# --- pictures

def words(legend): return [t.get_text() for t in legend.get_texts()]

def test_show_image():
    ax = show_image(MASK, title='a')
    assert ax.get_title() == 'a' and not ax.axison and ax.get_images()[0].get_array().shape == (6, 8)
    assert show_image(PHOTO, ax) is ax

def test_show_mask_names_what_occurs():
    ax = show_mask(MASK, {1: 'cat', 2: 'absent'})
    assert words(ax.get_legend()) == ['background', 'cat', '3', 'ignore']
    assert show_mask(MASK).get_legend() is None

@pytest.mark.parametrize('name', ['$', '$x^$', r'$\frac{a$', 'a_b^c', 'caf\u00e9'])
def test_a_name_is_no_formula(name):
    ax = legend({1: name}, plt.subplots()[1])
    show_image(PHOTO, ax, name)
    ax.figure.canvas.draw()
    assert words(ax.get_legend()) == [name] and ax.get_title() == name

def test_a_name_with_an_escape_sequence():
    assert words(legend({1: 'a\x1b[31mb'}, plt.subplots()[1]).get_legend()) == [r'a\x1b[31mb']

def test_the_legend_takes_the_colours_of_the_mask():
    ax = legend({1: 'cat', 255: 'ignore'}, plt.subplots()[1], [(0, 0, 0), (51, 102, 204)])
    assert [tuple(round(255*c) for c in h.get_facecolor()[:3]) for h in ax.get_legend().get_patches()] == [(51, 102, 204), (211, 211, 211)]

def test_show_predictions():
    fig = show_predictions([PHOTO]*2, [MASK]*2, {'a $': [MASK]*2, 'b': [MASK*0]*2}, names={1: 'cat', 3: 'dog'}, titles=['one', 'two'])
    assert len(fig.axes) == 2*4
    assert [ax.get_title() for ax in fig.axes] == ['photo', 'truth', 'a $', 'b'] + ['']*4
    assert (fig.axes[6].get_images()[0].get_array() == overlay(PHOTO, MASK)).all() and (fig.axes[7].get_images()[0].get_array() == PHOTO).all()
    assert words(fig.legends[0]) == ['background', 'cat', 'dog', 'ignore']
    assert [fig.axes[i].texts[0].get_text() for i in (0, 4)] == ['one', 'two']
    fig.canvas.draw()

def test_show_predictions_of_one_photo():
    fig = show_predictions([PHOTO], [MASK], {'a': [MASK]}, palette()[:4])
    assert len(fig.axes) == 3 and not fig.legends

def test_picture_grid():
    small = PHOTO[:3, :4], MASK[:3, :4]
    for gap in (0, 1, 4):
        grid = picture_grid([PHOTO, small[0]], [MASK, small[1]], {'a': [MASK*0, small[1]]}, gap=gap)
        assert grid.shape == (6 + gap + 3, 3*8 + 2*gap, 3) and grid.dtype == np.uint8
        assert (grid[:6, :8] == PHOTO).all() and (grid[:6, 8 + gap:16 + gap] == overlay(PHOTO, MASK)).all() and (grid[:6, -8:] == PHOTO).all()
        assert (grid[-3:, 8 + 2*gap:12 + 2*gap] == overlay(*small)).all() and (grid[-3:, 12 + 2*gap:] == 255).all()
    assert (picture_grid([PHOTO], [MASK], [MASK]) == picture_grid([PHOTO], [MASK], {'a': [MASK]})).all()

def test_picture_grid_in_other_colours():
    colors = [(0, 0, 0), (1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert (picture_grid([PHOTO], [MASK], [MASK], colors)[:, -8:] == overlay(PHOTO, MASK, colors=colors)).all()


# --- splits

def test_a_split_is_the_same_for_ever():
    assert [split_of(i) for i in (139, 176, 213, 250, 285, 632, 724)] == ['val', 'train', 'train', 'train', 'train', 'train', 'train']
    assert [split_of(f'{i:03}.jpg', .5) for i in range(8)] == [split_of(f'{i:03}.jpg', .5) for i in range(8)]
    assert split_of(7) == split_of('7')

@pytest.mark.parametrize('split, want', [(.2, {'val': .2, 'train': .8}), ({'val': .1, 'test': .1}, {'val': .1, 'test': .1, 'train': .8}),
                                         ({'val': .5, 'test': .5}, {'val': .5, 'test': .5}), ({'a': .3, 'b': .2, 'c': .4}, {'a': .3, 'b': .2, 'c': .4, 'train': .1}),
                                         (0., {'train': 1}), (1., {'val': 1}), ('test', {'test': 1}), ({'val': 0, 'test': .3}, {'test': .3, 'train': .7})])
def test_the_fractions(split, want):
    n = 4000
    got = Counter(split_of(i, split) for i in range(n))
    assert got.keys() == want.keys()
    for k, f in want.items(): assert abs(got[k]/n - f) < .03

def test_more_photos_move_none(sample, tmp_path):
    few, more = (prepare(*sample, tmp_path/str(n), size_hw=16, n_images=n, workers=1).index.set_index('image_id').split for n in (3, 6))
    assert few.to_dict() == more[few.index].to_dict()


# --- Prepared

def test_reopened(prepared):
    again = Prepared(str(prepared.path))
    assert repr(again) == repr(prepared) and again._repr_markdown_() == prepared._repr_markdown_()
    assert again.settings['size_hw'] == [32, 32] and again.counts['images']['written'] == len(again.index) == 6
    assert [c['name'] for c in again.classes] == [c['name'] for c in SAMPLE_CATEGORIES] and len(again.audit) == 0

def test_the_summary_adds_up(tmp_path):
    root = make_sample(tmp_path/'s', n=2, size_hw=(96, 128), broken=True)
    p = prepare(root/'annotations'/'instances_sample.json', root/'sample', tmp_path/'out', size_hw=32, workers=1)
    a = p.counts['annotations']
    assert a['used'] + a['repaired'] + a['dropped'] == a['total'] == len(json.loads((root/'annotations'/'instances_sample.json').read_text())['annotations'])
    for action in ('repaired', 'dropped'): assert sum(p.codes[action].values()) == a[action] == (p.audit.action == action).sum()
    assert p.counts['images']['failed'] == sum(p.codes['failed'].values())
    text, page = repr(p), p._repr_markdown_()
    for codes in p.codes.values():
        for code, n in codes.items(): assert code in text and f'{n:,}' in text and code.replace('_', r'\_') in page

def small(tmp_path, annotations, n=2, side=40):
    "A COCO file of n grey photos with these annotations: (image id, category id, iscrowd, ring)."
    (tmp_path/'photos').mkdir(exist_ok=True)
    for i in range(n): cv2.imwrite(str(tmp_path/'photos'/f'{i}.png'), np.full((side, side, 3), 99, np.uint8))
    coco = dict(images=[dict(id=i, file_name=f'{i}.png', height=side, width=side) for i in range(n)], categories=[dict(id=5, name='tree'), dict(id=6, name='$hrub')],
                annotations=[dict(id=k, image_id=i, category_id=c, iscrowd=crowd, segmentation=[ring]) for k, (i, c, crowd, ring) in enumerate(annotations)])
    (tmp_path/'a.json').write_text(json.dumps(coco))
    return tmp_path/'a.json', tmp_path/'photos', tmp_path/'out'

HALF, DOT = [0, 0, 40, 0, 40, 20, 0, 20], [21, 21, 22, 21, 22, 22, 21, 22]

def test_painted_and_only_ignored(tmp_path):
    p = prepare(*small(tmp_path, [(0, 5, 0, HALF), (0, 6, 1, HALF), (1, 6, 1, HALF)]), size_hw=8, workers=1)
    for text in (repr(p), p._repr_markdown_().replace('\\', '')):
        assert '3 annotations = 3 used + 0 repaired + 0 dropped' in text and '1 of them painted, 2 only ignored' in text
        assert 'Every annotation of $hrub is a crowd' in text and "crowd='paint'" in text and 'tree' not in text

def test_painted_crowds_are_not_spoken_of(tmp_path):
    text = repr(prepare(*small(tmp_path, [(0, 5, 0, HALF), (1, 6, 1, HALF)]), size_hw=8, crowd='paint', workers=1))
    assert 'ignored' not in text and 'crowd' not in text

def test_lost_objects_and_empty_photos(tmp_path):
    p = prepare(*small(tmp_path, [(0, 5, 0, HALF), (0, 6, 0, DOT)], n=4), size_hw=4, workers=1)
    for text in (repr(p), p._repr_markdown_().replace('\\', '')):
        assert '1 object without a pixel at this size' in text and '3 photos without an annotation (only_annotated=True' in text

def test_only_annotated(tmp_path):
    p = prepare(*small(tmp_path, [(1, 5, 0, HALF)], n=4), size_hw=4, only_annotated=True, workers=1)
    assert p.index.image_id.tolist() == [1] and '3 photos without an annotation left out' in repr(p)

def test_nothing_painted_is_an_error(tmp_path):
    with pytest.raises(UserError, match="crowd='paint'") as e: prepare(*small(tmp_path, [(0, 5, 1, HALF)]), size_hw=4, workers=1)
    one_sentence(str(e.value))

def test_groups_stay_together(sample, tmp_path):
    index = prepare(*sample, tmp_path/'out', size_hw=8, groups=r'(\d)\.jpg', split=.5, workers=1).index
    assert index.groupby('group').split.nunique().max() == 1 and index.split.nunique() == 2 and index.group.tolist() == [s[-1] for s in index.stem]
    assert index.split.tolist() == [split_of(g, .5) for g in index.group]

@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_pair_and_show(tmp_path, pack, suffix):
    (tmp_path/'photos').mkdir()
    names = ['a[1].' + suffix, 'a1.' + suffix, '$x$ (2).' + suffix]
    for i, name in enumerate(names): cv2.imwrite(str(tmp_path/'photos'/name), np.full((40, 40, 3), 60*i + 20, np.uint8))
    coco = dict(images=[dict(id=i, file_name=n, height=40, width=40) for i, n in enumerate(names)], categories=[dict(id=5, name='$')],
                annotations=[dict(id=i, image_id=i, category_id=5, iscrowd=0, segmentation=[[0, 0, 40, 0, 40, 20, 0, 20]]) for i in range(3)])
    (tmp_path/'a.json').write_text(json.dumps(coco))
    p = prepare(tmp_path/'a.json', tmp_path/'photos', tmp_path/'out', size_hw=20, pack=pack, workers=1)
    for i in range(3):
        image, mask = p.pair(i)
        assert image.shape == (20, 20, 3) and abs(int(image.mean()) - 60*i - 20) < 3
        assert (mask[:10] == 5).all() and (mask[10:] == 0).all() and mask.dtype == np.uint8
    fig = p.show(2)
    assert len(fig.axes) == 4 and words(fig.legends[0]) == ['background', '$']
    assert len(p.show(99).axes) == 6
    fig.canvas.draw()

def test_a_lost_file(sample, tmp_path):
    p = prepare(*sample, tmp_path/'out', size_hw=8, n_images=2, workers=1)
    for f in (p.path/'images'/f'{p.index.stem[0]}.jpg', p.path/'masks'/f'{p.index.stem[1]}.png'): f.unlink()
    for i in (0, 1):
        with pytest.raises((OSError, ValueError)) as e: p.pair(i)
        one_sentence(str(e.value))

def copied(prepared, tmp_path):
    "A folder like the prepared one, to damage."
    for name in ('prepare.json', 'classes.json', 'index.csv', 'audit.csv'): (tmp_path/name).write_bytes((prepared.path/name).read_bytes())
    return tmp_path

def test_no_prepared_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='is no prepared folder: prepare.json is missing') as e: Prepared(tmp_path)
    one_sentence(str(e.value))

def test_an_unfinished_folder(prepared, tmp_path):
    (tmp_path/'prepare.json').write_text(json.dumps(dict(settings=prepared.settings)))
    with pytest.raises(UserError, match='expected a finished folder.*same prepare again') as e: Prepared(tmp_path)
    one_sentence(str(e.value))

@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{"settings": 3}', '{"settings": {}, "counts": []}', '{"settings": {}, "counts": {"annotations": {"total": "x"}}}',
                                  '{"settings": {}, "counts": {}}', '{"settings": {"size_hw": "big"}}', '{"settings": {"size": 256, "fit": "squash"}}', '{"settings": {"size_hw": null}, "codes": 7}', '{"settings": {"size_hw": null}, "notes": [7]}',
                                  '{"settings": {"size_hw": null}, "counts": {"annotations": {"total": "x"}}}', '\ud83d'.encode('utf-8', 'surrogatepass').decode('latin1')])
def test_a_damaged_prepare_json(prepared, tmp_path, text):
    (copied(prepared, tmp_path)/'prepare.json').write_text(text, encoding='utf-8')
    with pytest.raises(UserError, match='prepare.json: expected JSON as .*same prepare again') as e: Prepared(tmp_path)
    one_sentence(str(e.value))

@pytest.mark.parametrize('text', ['', '{}', '[]', '{"categories": 3}', '{"categories": [{"id": "x", "name": "a"}]}', '{"categories": [{"id": 1}]}', '{"categories": [7]}'])
def test_a_damaged_classes_json(prepared, tmp_path, text):
    (copied(prepared, tmp_path)/'classes.json').write_text(text)
    with pytest.raises(UserError) as e: Prepared(tmp_path).classes
    one_sentence(str(e.value))

def test_lost_tables(prepared, tmp_path):
    p = Prepared(copied(prepared, tmp_path))
    for name, what in (('index.csv', 'index'), ('audit.csv', 'audit'), ('classes.json', 'classes')):
        (tmp_path/name).unlink()
        with pytest.raises(OSError) as e: getattr(p, what)
        one_sentence(str(e.value))
        assert name in str(e.value)

@pytest.mark.parametrize('text', ['', 'image_id,split\n1,val\n', 'stem\na\n', 'a;b\n1;2\n', '\xff\xfe'])
def test_a_damaged_index(prepared, tmp_path, text):
    (copied(prepared, tmp_path)/'index.csv').write_text(text, encoding='latin1')
    with pytest.raises(UserError) as e: Prepared(tmp_path).index
    one_sentence(str(e.value))
    assert 'index.csv' in str(e.value)

def test_an_index_that_pandas_wrote(prepared, tmp_path):
    p = Prepared(copied(prepared, tmp_path))
    p.index.to_csv(tmp_path/'index.csv')                                    # with its row numbers in front
    assert p.index.stem.tolist() == prepared.index.stem.tolist() and p.index.image_id.tolist() == prepared.index.image_id.tolist()

def test_strangers_text_stays_text(prepared, tmp_path):
    folder = tmp_path/'a\x1b[31m<b>|x'
    folder.mkdir()
    p = Prepared(copied(prepared, folder))
    p.codes = {'dropped': {'<img onerror=x>\x1b[2J|`': 3}}
    p.counts['splits'] = {'<script>\x1b[0m': 6}
    text, page = repr(p), p._repr_markdown_()
    assert '\x1b' not in text + page and '<' not in page.replace('&lt;', '')
    assert all('|' not in line.replace(r'\|', '') for line in page.splitlines())


# --- arguments

BAD = [('size_hw', 0), ('size_hw', 'big'), ('size_hw', (3,)), ('size_hw', True), ('size_hw', 20000), ('aspect', 'stretch'), ('aspect', None), ('crowd', 'paintt'), ('crowd', 1),
       ('crowd', ['paint']), ('overlap', 'first'), ('overlap', None), ('values', 'index'), ('keep', ['cat']), ('keep', 'person,cat'), ('keep', [300]), ('n_images', 0), ('n_images', 2.5),
       ('n_images', True), ('n_images', '3'), ('split', 1.5), ('split', -.1), ('split', True), ('split', ''), ('split', {'val': .7, 'test': .7}), ('split', {'': .1}), ('split', ['a', 'b']),
       ('split', float('nan')), ('split', None), ('exif', 'yes'), ('exif', True), ('depth', 7), ('depth', 17), ('depth', 'twelve'), ('depth', True), ('depth', 10.), ('window', (3, 3)), ('window', 7), ('window', (1, 2, 3)), ('window', ('a', 'b')), ('only_annotated', 'yes'), ('max_pixels', 0), ('max_pixels', None),
       ('max_pixels', 1.5), ('workers', 0), ('workers', 'all'), ('workers', True), ('pack', 'no'), ('pack', 1), ('only_annotated', 0), ('pack', None)]

@pytest.mark.parametrize('name, value', BAD, ids=[f'{n}={v!r}' for n, v in BAD])
def test_a_wrong_argument(sample, tmp_path, name, value):
    with pytest.raises(UserError) as e: prepare(*sample, tmp_path/'out', **{'workers': 1, name: value})
    one_sentence(str(e.value))
    assert str(e.value).startswith(f'{name}={value!r}: expected ' if name != 'keep' else 'keep='), str(e.value)
    assert not (tmp_path/'out').exists()

def test_pack_wants_one_size(sample, tmp_path):
    with pytest.raises(UserError, match='size_hw=None: expected one size for all photos'): prepare(*sample, tmp_path/'out', size_hw=None, pack=True)
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('value, guess', [('droop', 'drop'), ('Paint', 'paint'), ('ignored', 'ignore')])
def test_a_guess_at_what_was_meant(sample, tmp_path, value, guess):
    with pytest.raises(UserError, match=f"did you mean '{guess}'"): prepare(*sample, tmp_path/'out', crowd=value)

def test_folders_and_files(sample, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of photos 'nowhere'"): prepare(sample[0], tmp_path/'nowhere', tmp_path/'out')
    with pytest.raises(UserError, match='images=.*one for each of the 3 annotation files'): prepare([sample[0]]*3, [sample[1]]*2, tmp_path/'out')
    with pytest.raises(FileNotFoundError): prepare(tmp_path/'nowhere.json', sample[1], tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_numpy_numbers_are_numbers(sample, tmp_path):
    p = prepare(*sample, tmp_path/'out', size_hw=np.int64(16), n_images=np.int64(2), workers=np.int64(1))
    assert p.settings['size_hw'] == [16, 16] and p.counts['images']['written'] == 2

def test_masks_is_light():
    code = "import sys, seglab.masks; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules), {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True, env=dict(os.environ))

@pytest.mark.filterwarnings('error')
def test_names_in_any_script_have_glyphs(monkeypatch):
    import matplotlib.pyplot as plt
    from matplotlib import font_manager
    with plt.rc_context():
        if add_glyphs('斑马') is None: pytest.skip('no font with Chinese characters is installed')
        fig, ax = plt.subplots()
        legend({1: '斑马', 2: '우산'}, ax)
        show_image(np.zeros((4, 4, 3), np.uint8), ax, '写真')
        fig.canvas.draw()                          # a glyph that is missing warns
        plt.close(fig)
    before = plt.rcParams['font.family']
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', [])
    monkeypatch.setattr(font_manager, 'findSystemFonts', list)
    assert add_glyphs('斑马') is None and add_glyphs('zebra') is None and plt.rcParams['font.family'] == before
