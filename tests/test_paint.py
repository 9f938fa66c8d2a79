"The small parts behind `prepare`: what is read, how an annotation is ruled, one photo prepared by hand."
import json

import cv2, numpy as np, pytest

from seglab.coco import Annotation, ImageRecord, Ruling, judge_annotation, noted, parse_coco, read_coco, read_json_bytes
from seglab.images import MAX_PIXELS
from seglab.paint import PaintRules, PhotoJob, can_be_read, first_look, mark_of, prepare_photos
from seglab.photos import Photo, Plan, plan_photos

RING = [[2, 2, 12, 2, 12, 12, 2, 12]]
COCO = dict(images=[dict(id=1, file_name='a.png', height=20, width=30)], categories=[dict(id=5, name='cat')],
            annotations=[dict(id=9, image_id=1, category_id=5, iscrowd=0, segmentation=RING)])

@pytest.fixture
def plan(tmp_path):
    cv2.imwrite(str(tmp_path/'a.png'), np.full((20, 30, 3), 90, np.uint8))
    (tmp_path/'a.json').write_text(json.dumps(COCO))
    return plan_photos([read_coco(tmp_path/'a.json')], [tmp_path])

def test_reading_by_parts(tmp_path, plan):
    data = read_json_bytes(tmp_path/'a.json')
    file = parse_coco(data, 'a.json')
    assert json.loads(data) == COCO and file.images == [ImageRecord(1, 'a.png', 20, 30)] == read_coco(tmp_path/'a.json').images
    a = noted(file.annotations[0], 'id_type', category_id=6)
    assert (a.note, a.category_id, a.id, file.annotations[0].note) == ('id_type', 6, 9, '')
    assert isinstance(plan, Plan) and isinstance(plan.photos[0], Photo) and (plan.n_records, plan.n_empty, plan.orphans) == (1, 0, [])

@pytest.mark.parametrize('ann,ruled', [
    (Annotation(1, 1, 5), None), (Annotation(1, 1, 5, 1), None), (Annotation(1, 1, 6), ('dropped', 'unknown_category')),
    (Annotation(1, 1, 7), ('dropped', 'not_kept')), (Annotation(1, 1, None), ('dropped', 'missing_key')), (Annotation(None, 1, 5), ('repaired', 'missing_key'))])
def test_the_first_look(ann, ruled):
    look = first_look(ann, PaintRules({5: 5}, others=frozenset([7])))
    assert look is ruled if ruled is None else isinstance(look, Ruling) and look[:2] == ruled

def test_crowds_that_are_dropped():
    assert first_look(noted(Annotation(1, 1, 5), 'same'), PaintRules({5: 5})).code == 'duplicate_id'
    assert first_look(Annotation(1, 1, 5, 1), PaintRules({5: 5}, crowd='drop')) == Ruling('dropped', 'crowd', "crowd='drop'")

def test_one_photo_by_hand(tmp_path, plan):
    photo, out = plan.photos[0], tmp_path/'out'
    for folder in ('images', 'masks'): (out/folder).mkdir(parents=True)
    job = PhotoJob(PaintRules({5: 5}), str(out), False, MAX_PIXELS, None)
    done, = prepare_photos([photo], job)
    mask = cv2.imread(str(out/'masks'/'a.png'), -1)
    assert (done.used, done.painted, done.code, done.suffix) == (1, 1, '', '.png') and can_be_read(photo, job)
    assert done.mark == mark_of((tmp_path/'a.png').read_bytes()) != mark_of(b'other')
    assert np.array_equal(mask == 5, np.pad(np.ones((10, 10), bool), ((2, 8), (2, 18)))) and not mask[mask != 5].any()
    assert judge_annotation(photo.anns[0], (20, 30)).action == 'used'
    (tmp_path/'a.png').write_bytes(b'no photo')
    assert prepare_photos([photo], job)[0].code == 'image_unreadable' and not can_be_read(photo, job)
