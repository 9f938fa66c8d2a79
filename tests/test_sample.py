"The drawn data set: true to its annotations, the same for everyone, complete."
import hashlib, json
import numpy as np, pytest
from pycocotools import mask as coco_mask
from seglab.files import UserError
from seglab.sample import SAMPLE_CATEGORIES, Scene, draw_scene, make_sample

def painted(scene):
    "A scene's annotations by pycocotools alone: crowds beneath, then the largest first."
    out, todo = np.zeros(scene.mask.shape, np.uint8), []
    for a in scene.annotations:
        seg, (h, w) = a['segmentation'], scene.mask.shape
        rle = coco_mask.merge(coco_mask.frPyObjects(seg, h, w)) if isinstance(seg, list) else seg if isinstance(seg['counts'], str) else coco_mask.frPyObjects(seg, h, w)
        todo.append((not a['iscrowd'], -int(coco_mask.area(rle)), coco_mask.decode(rle), 255 if a['iscrowd'] else a['category_id']))
    for _, _, m, value in sorted(todo, key=lambda t: t[:2]): out[m == 1] = value
    return out

@pytest.mark.parametrize('index', range(12))
def test_the_truth_is_what_the_annotations_say(index):
    scene = draw_scene(index, size_hw=(96, 128))
    assert isinstance(scene, Scene) and np.array_equal(painted(scene), scene.mask)

def test_everything_occurs():
    scenes = [draw_scene(i, size_hw=(64, 80)) for i in range(32)]
    anns = [a for s in scenes for a in s.annotations]
    assert {a['category_id'] for a in anns} == {c['id'] for c in SAMPLE_CATEGORIES}
    assert {'list'} < {type(a['segmentation']).__name__ if isinstance(a['segmentation'], list) else type(a['segmentation']['counts']).__name__ + ' counts' for a in anns} == {'list', 'str counts', 'list counts'}
    assert any(a['iscrowd'] for a in anns) and any(not s.annotations for s in scenes) and any(np.ptp(s.image, -1).max() == 0 for s in scenes)

def test_the_same_for_everyone_and_a_prefix(tmp_path):
    a, b = make_sample(tmp_path/'a', n=5, size_hw=(48, 64)), make_sample(tmp_path/'b', n=3, size_hw=(48, 64))
    digests = lambda d: [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((d/'sample').iterdir())]
    assert digests(a)[:3] == digests(b)
    read = lambda d: json.loads((d/'annotations'/'instances_sample.json').read_text())
    assert read(a)['images'][:3] == read(b)['images'] and read(a)['categories'] == SAMPLE_CATEGORIES
    assert not np.array_equal(draw_scene(0, seed=1).image, draw_scene(0).image)

def test_the_two_scenes_of_the_chapters():
    "Their masks are these, to the bit, whatever changes in the drawing."
    digest = lambda a: hashlib.sha256(a.tobytes()).hexdigest()[:16]
    assert [digest(draw_scene(i).mask) for i in (0, 1)] == ['0b483dfb36689688', '8159ea7f6e3e389a']

def test_broken_has_one_of_each(tmp_path):
    path = make_sample(tmp_path, n=2, size_hw=(48, 64), broken=True)
    coco = json.loads((path/'annotations'/'instances_sample.json').read_text())
    for kind in ('annotations', 'images'):
        broken = [r['broken'] for r in coco[kind] if 'broken' in r]
        assert len(broken) == len(set(broken)) > 15, kind

@pytest.mark.parametrize('size_hw', [64, (8, 64), (64,), None])
def test_a_size_is_a_pair(size_hw):
    with pytest.raises(UserError, match='size_hw=.*expected .height, width.'): draw_scene(size_hw=size_hw)
