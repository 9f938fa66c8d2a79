"Files of ours that somebody edited: index.csv, classes.json, prepare.json, packed.json and config.json, each one sentence or mended."
import json, shutil
import pytest
from seglab.bulk import _is_whole
from seglab.dataset import SegDataset, load_data
from seglab.doctor import check
from seglab.files import UserError
from seglab.masks import Prepared, prepare
from seglab.runs import Run
from support.data import write_coco
from support.tiny import edit, saved_run


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('möbel 1')
    coco, photos = write_coco(folder, [f'ä {i}.png' for i in range(5)])
    prepare(coco, photos, folder/'p', size_hw=32, workers=1, split=.4)
    load_data(folder/'p')
    return folder


@pytest.fixture
def prepared(made, tmp_path): return shutil.copytree(made/'p', tmp_path/'p')


def lines(file, change): file.write_text('\n'.join(change(file.read_text(encoding='utf-8').split('\n'))), encoding='utf-8')

NO_HEADER = lambda rows: rows[1:]
NO_STEM = lambda rows: [r.partition(',')[2] for r in rows]
EMPTY_SIDE = lambda rows: [rows[0], ','.join('' if k in (3, 4) else c for k, c in enumerate(rows[1].split(','))), *rows[2:]]
NUL = lambda rows: [rows[0], '\0\0' + rows[1], *rows[2:]]


@pytest.mark.parametrize('change', [NO_HEADER, NO_STEM], ids=['no header', 'no stem'])
def test_an_index_without_its_columns(change, prepared):
    lines(prepared/'index.csv', change)
    for ask in (SegDataset, lambda p: Prepared(p).index, check):
        with pytest.raises(UserError, match='index.csv'): ask(prepared)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_photo_that_the_index_has_twice(split, prepared):
    "It would be learnt from and scored, or count twice."
    lines(prepared/'index.csv', lambda rows: [*rows[:-1], rows[1].replace(',train,', f',{split},').replace(',val,', f',{split},'), ''])
    for ask in (SegDataset, load_data):
        with pytest.raises(UserError, match='one row for each photo'): ask(prepared)


@pytest.mark.parametrize('change', [EMPTY_SIDE, NUL], ids=['no height', 'another stem'])
def test_the_check_of_a_damaged_index(change, prepared):
    lines(prepared/'index.csv', change)
    with pytest.raises(UserError, match='index.csv'): check(prepared)


def test_an_index_that_is_no_text_is_one_sentence_for_prepare(prepared):
    (prepared/'index.csv').write_bytes(b'\xff\xfe' + (prepared/'index.csv').read_bytes())
    with pytest.raises(UserError, match='expected CSV as seglab wrote it'): _is_whole(prepared, json.loads((prepared/'prepare.json').read_text()))


@pytest.mark.parametrize('what', [{}, dict(categories=[dict(id=1)]), dict(categories=[dict(name='cat')]), dict(categories={}), dict(categories=[dict(id='x', name='cat')])], ids=str)
def test_classes_without_ids_or_names(what, prepared):
    (prepared/'classes.json').write_text(json.dumps(what))
    with pytest.raises(UserError, match='classes.json'): SegDataset(prepared)


@pytest.mark.parametrize('change', [dict(settings=dict(size_hw=[32])), dict(settings=dict(size_hw=[1, 2, 3])), dict(counts=dict(annotations={}, images={}, splits={})),
    dict(counts=dict(annotations=dict(total=1), images=dict(total=1, written=1), splits={}))], ids=str)
def test_a_prepare_json_without_its_numbers(change, prepared):
    edit(prepared/'prepare.json', **change)
    with pytest.raises(UserError, match='prepare.json'): repr(Prepared(prepared))


@pytest.mark.parametrize('change', [lambda d: d['masks'].pop(), lambda d: d.update(masks=7), lambda d: d.update(images={}), lambda d: d.update(masks=[[]]*5), lambda d: d.update(masks=[None, 3, 'x', [1], []])])
def test_a_damaged_packed_json_is_not_believed_and_not_in_the_way(change, prepared, made):
    note = json.loads((prepared/'packed.json').read_text())
    change(note)
    (prepared/'packed.json').write_text(json.dumps(note))
    assert (load_data(prepared).train[0]['labels'] == load_data(made/'p').train[0]['labels']).all()


@pytest.mark.parametrize('end', [dict(step=1, epoch=1), dict(seconds=1), dict(step='x', epoch=1, seconds=1), [], 'yes'], ids=str)
def test_an_end_without_its_numbers(end, tmp_path):
    run = saved_run(tmp_path/'r', finished=end)
    edit(run/'config.json', settings={})
    with pytest.raises(UserError, match='config.json'): repr(Run(run))
