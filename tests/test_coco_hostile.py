"""What an annotation file can do to `prepare`: each case in a process with limits on memory and time."""
import json, os, subprocess, sys

from support.faults import posix
from support.hostile import RING, coco, photo

CHILD = '''
import json, os, resource, sys
from seglab.masks import prepare
pages = int(open('/proc/self/statm').read().split()[0]) if os.path.exists('/proc/self/statm') else 0
if pages: resource.setrlimit(resource.RLIMIT_AS, (pages*4096 + 2**30,)*2)
try:
    p = prepare(sys.argv[1], sys.argv[2], sys.argv[3], workers=1)
    print(json.dumps(dict(counts=p.counts, codes=p.codes)))
except (ValueError, OSError) as e: print(json.dumps(dict(error=str(e))))
'''

def env(): return dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')

def limited(tmp_path, text, seconds=90):
    "Prepare in a process that may take 1 GiB more than its imports."
    (tmp_path/'photos').mkdir(exist_ok=True)
    if not (tmp_path/'photos'/'0.jpg').exists(): photo(tmp_path/'photos'/'0.jpg')
    (tmp_path/'a.json').write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
    r = subprocess.run([sys.executable, '-c', CHILD, str(tmp_path/'a.json'), str(tmp_path/'photos'), str(tmp_path/'out')],
                       capture_output=True, text=True, timeout=seconds, env=env())
    assert r.returncode == 0, r.stderr[-2000:]
    return json.loads(r.stdout.splitlines()[-1])

def accounted(answer, total):
    a = answer['counts']['annotations']
    assert a['used'] + a['repaired'] + a['dropped'] == a['total'] == total
    return answer['codes']

def rle(counts, size=(48, 64)): return dict(counts=counts, size=list(size))

nan, inf = float('nan'), float('inf')
SEGMENTATIONS = [   # (segmentation, action, code)
    ([[10, 10, nan, 10, 50, 40]], 'dropped', 'not_finite'), ([[10, 10, inf, 10, 50, 40]], 'dropped', 'not_finite'),
    ([[10, 10, 1e9, 10, 50, 40]], 'repaired', 'far_outside'), ([[-1e300, -1e300, 1e300, -1e300, 0, 1e300]], 'repaired', 'far_outside'),
    ([[10, 10, 10**400, 10, 50, 40]], 'dropped', 'not_finite'), ([[1, 1, 5, 5]], 'dropped', 'box_ring'), ([[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]], 'dropped', 'outside'),
    (rle([5, 5]), 'dropped', 'rle_sum'), (rle([10**12, 10**12]), 'dropped', 'rle_sum'), (rle([-5, 48*64 + 5]), 'dropped', 'rle_counts'),
    (rle([nan, 3]), 'dropped', 'rle_counts'), (rle('\x7f\x7f\x7f'), 'dropped', 'rle_string'), (rle('o'*10**6), 'dropped', 'rle_sum'), (rle([0]*10**6 + [48*64]), 'dropped', 'rle_sum'),
    (rle(''), 'dropped', 'rle_sum'), (rle([48*64], (10**6, 10**6)), 'dropped', 'rle_size'), (rle({'a': 1}), 'dropped', 'rle_counts'),
    ([[0, 0]*10**5], 'dropped', 'zero_area'), ([[-1e9, 7, 1e9, 7]*10**5 + [3, 40]], None, None), (None, 'dropped', 'missing_segmentation'),
    ({}, 'dropped', 'rle_keys'), ('text', 'dropped', 'not_json'), ([[[[[[RING]]]]]], 'dropped', 'nested'), ([{}], 'dropped', 'rle_keys'),
    ([[{}, 1, 1, 1, 1, 1]], 'dropped', 'not_numbers'), (True, 'dropped', 'missing_segmentation'), ([[3, 3]], 'dropped', 'few_points'), ([[1, 1, 5, 1, 5, 5], [nan]], 'repaired', 'not_finite'),
]

@posix
def test_all_hostile_segmentations(tmp_path):
    "All in one file: each is judged by itself and spoils no other."
    d = coco()
    d['annotations'] = [dict(d['annotations'][0], id=k, segmentation=s) for k, (s, _, _) in enumerate(SEGMENTATIONS)]
    d['annotations'].append(dict(d['annotations'][0], id=99))                  # one that can be painted
    accounted(limited(tmp_path, d), len(SEGMENTATIONS) + 1)
    import csv
    rows = {int(r['annotation_id']): (r['action'], r['code']) for r in csv.DictReader(open(tmp_path/'out'/'audit.csv', newline=''))}
    for k, (_, action, code) in enumerate(SEGMENTATIONS):
        if action: assert rows[k] == (action, code), SEGMENTATIONS[k][0]

NOT_COCO = [
    (b'', 'an empty file'), (b'{"images": [', 'not JSON'), (b'[1, 2]', 'outermost value is a list'), (b'7', 'outermost value is a int'), (b'null', 'outermost'),
    (b'[' * 10**6, 'not JSON'), (b'{"images": {}, "annotations": []}', 'an object (dict)'), (b'\xff\xfe\x00', 'not JSON'),
    (b'{"images": [], "annotations": [' + b'9'*10**6 + b']}', None), (b'{"a": ' * 10**5 + b'1' + b'}' * 10**5, "no list 'images'")]

@posix
def test_not_coco(tmp_path):
    for k, (text, _) in enumerate(NOT_COCO): (tmp_path/f'{k}.json').write_bytes(text)
    child = CHILD.split('try:')[0] + '''
from seglab.coco import read_coco
for k in range(int(sys.argv[2])):
    try: read_coco(f'{sys.argv[1]}/{k}.json'); print(json.dumps(None))
    except ValueError as e: print(json.dumps(str(e)))
'''
    r = subprocess.run([sys.executable, '-c', child, str(tmp_path), str(len(NOT_COCO))], capture_output=True, text=True, timeout=90, env=env())
    assert r.returncode == 0, r.stderr[-2000:]
    for (text, words), said in zip(NOT_COCO, map(json.loads, r.stdout.splitlines())):
        assert said is None if words is None else words in said and len(said) < 300, (text[:50], said)

@posix
def test_deep_nesting(tmp_path):
    text = json.dumps(coco(3)).replace('"segmentation": [[10', '"segmentation": ' + '['*200_000 + ']'*200_000 + ', "x": [[10', 1)
    (tmp_path/'photos').mkdir()
    photo(tmp_path/'photos'/'2.jpg')
    codes = accounted(limited(tmp_path, text.encode()), 3)
    assert codes['dropped'] == {'nested': 1, 'image_missing': 1}

@posix
def test_many_large_objects(tmp_path):
    "Ten thousand objects as large as the photo, on one photo: some painted, the others dropped with a code, and no memory lost."
    (tmp_path/'photos').mkdir(); photo(tmp_path/'photos'/'0.jpg', 480, 640)
    d = coco(1, 480, 640)
    d['annotations'] = [dict(d['annotations'][0], id=i, segmentation=[[0, 0, 640, 0, 640, 480, 0, 480]]) for i in range(10_000)]
    codes = accounted(limited(tmp_path, d, 120), 10_000)
    assert codes['dropped'].keys() == {'too_complex'}

@posix
def test_strange_records(tmp_path):
    d, a = coco(), coco()['annotations'][0]
    d['annotations'] += [5, None, [], 'x', {}, dict(a, id=[1]), dict(a, id=10**40), dict(a, image_id={}), dict(a, image_id=True), dict(a, id=3, category_id=[1]),
                         dict(a, id=4, category_id=1e400), dict(a, id='\ud800'), dict(a, image_id='\ud800'), dict(a, id=6, iscrowd={}), dict(a, id=7, iscrowd=nan)]
    d['images'] += [None, 7, {}, dict(id=5), dict(id='\ud800', file_name='\ud800.jpg'), dict(id=8, file_name='0.jpg', height=-1, width='x'), dict(id=9, file_name='a'*5000)]
    d['categories'] += [None, {}, dict(id='x'), dict(id=2, name='\ud800', supercategory=[1])]
    accounted(limited(tmp_path, d), len(d['annotations']))


@posix
def test_a_gz_that_expands_without_end(tmp_path):
    "A gigabyte of spaces in a megabyte: one sentence, within the memory that is allowed."
    import gzip
    answer = limited(tmp_path, gzip.compress(b' '*2**30, 9))
    assert 'expands to more than' in answer['error']
