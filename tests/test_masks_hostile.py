"""What an annotation file, a photo or the system can do to `prepare`: each case in a process with limits on memory and time."""
import json, os, signal, struct, subprocess, sys, textwrap, time, zlib
from pathlib import Path

import cv2, numpy as np, pytest
from PIL import Image

POSIX = pytest.mark.skipif(os.name != 'posix', reason='needs signals and resource limits')
RING = [10, 10, 50, 10, 50, 40]
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

def photo(path, h=48, w=64, seed=0):
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (h, w, 3)).astype(np.uint8))

def coco(n=1, h=48, w=64, **kw):
    "A COCO dict of n photos with one annotation each."
    return dict(images=[dict(id=i, file_name=f'{i}.jpg', height=h, width=w) for i in range(n)],
                annotations=[dict(dict(id=i, image_id=i, category_id=1, iscrowd=0, segmentation=[RING]), **kw) for i in range(n)],
                categories=[dict(id=1, name='thing')])

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
    (rle([nan, 3]), 'dropped', 'rle_counts'), (rle('\x7f\x7f\x7f'), 'dropped', 'rle_string'), (rle('o'*10**6), 'dropped', 'rle_string'),
    (rle(''), 'dropped', 'rle_sum'), (rle([48*64], (10**6, 10**6)), 'dropped', 'rle_size'), (rle({'a': 1}), 'dropped', 'rle_counts'),
    ([[0, 0]*10**5], 'dropped', 'zero_area'), ([[-1e9, 7, 1e9, 7]*10**5 + [3, 40]], None, None), (None, 'dropped', 'missing_segmentation'),
    ({}, 'dropped', 'rle_keys'), ('text', 'dropped', 'missing_segmentation'), ([[[[[[RING]]]]]], 'dropped', 'nested'), ([{}], 'dropped', 'not_numbers'),
    ([[{}, 1, 1, 1, 1, 1]], 'dropped', 'not_numbers'), (True, 'dropped', 'missing_segmentation'), ([[1, 1, 5, 1, 5, 5], [nan]], 'repaired', 'not_finite'),
]

@POSIX
def test_all_hostile_segmentations(tmp_path):
    "All in one file: each is judged by itself and spoils no other."
    d = coco()
    d['annotations'] = [dict(d['annotations'][0], id=k, segmentation=s) for k, (s, _, _) in enumerate(SEGMENTATIONS)]
    accounted(limited(tmp_path, d), len(SEGMENTATIONS))
    import csv
    rows = {int(r['annotation_id']): (r['action'], r['code']) for r in csv.DictReader(open(tmp_path/'out'/'audit.csv', newline=''))}
    for k, (_, action, code) in enumerate(SEGMENTATIONS):
        if action: assert rows[k] == (action, code), SEGMENTATIONS[k][0]

NOT_COCO = [
    (b'', 'not JSON'), (b'{"images": [', 'not JSON'), (b'[1, 2]', 'outermost value is a list'), (b'7', 'outermost value is a int'), (b'null', 'outermost'),
    (b'[' * 10**6, 'not JSON'), (b'{"images": {}, "annotations": []}', 'no list "images"'), (b'\xff\xfe\x00', 'not JSON'),
    (b'{"images": [], "annotations": [' + b'9'*10**6 + b']}', None), (b'{"a": ' * 10**5 + b'1' + b'}' * 10**5, 'no list "images"')]

@POSIX
def test_not_coco(tmp_path):
    for k, (text, _) in enumerate(NOT_COCO): (tmp_path/f'{k}.json').write_bytes(text)
    child = CHILD.split('try:')[0] + '''
from seglab.masks import read_coco
for k in range(int(sys.argv[2])):
    try: read_coco(f'{sys.argv[1]}/{k}.json'); print(json.dumps(None))
    except ValueError as e: print(json.dumps(str(e)))
'''
    r = subprocess.run([sys.executable, '-c', child, str(tmp_path), str(len(NOT_COCO))], capture_output=True, text=True, timeout=90, env=env())
    assert r.returncode == 0, r.stderr[-2000:]
    for (text, words), said in zip(NOT_COCO, map(json.loads, r.stdout.splitlines())):
        assert said is None if words is None else words in said and len(said) < 300, (text[:50], said)

@POSIX
def test_deep_nesting(tmp_path):
    text = json.dumps(coco(2)).replace('"segmentation": [[10', '"segmentation": ' + '['*200_000 + ']'*200_000 + ', "x": [[10', 1)
    photo(tmp_path/'1.jpg')
    codes = accounted(limited(tmp_path, text.encode()), 2)
    assert codes['dropped'] == {'nested': 1, 'image_missing': 1} or codes['dropped'].get('nested') or codes['dropped'].get('empty_ring')

@POSIX
def test_many_large_objects(tmp_path):
    "A hundred thousand objects as large as the photo, on one photo: some painted, the others dropped with a code, and no memory lost."
    (tmp_path/'photos').mkdir(); photo(tmp_path/'photos'/'0.jpg', 480, 640)
    d = coco(1, 480, 640)
    d['annotations'] = [dict(d['annotations'][0], id=i, segmentation=[[0, 0, 640, 0, 640, 480, 0, 480]]) for i in range(50_000)]
    codes = accounted(limited(tmp_path, d, 120), 50_000)
    assert codes['dropped'].keys() == {'too_complex'}

@POSIX
def test_strange_records(tmp_path):
    d, a = coco(), coco()['annotations'][0]
    d['annotations'] += [5, None, [], 'x', {}, dict(a, id=[1]), dict(a, id=10**40), dict(a, image_id={}), dict(a, image_id=True), dict(a, id=3, category_id=[1]),
                         dict(a, id=4, category_id=1e400), dict(a, id='\ud800'), dict(a, image_id='\ud800'), dict(a, id=6, iscrowd={}), dict(a, id=7, iscrowd=nan)]
    d['images'] += [None, 7, {}, dict(id=5), dict(id='\ud800', file_name='\ud800.jpg'), dict(id=8, file_name='0.jpg', height=-1, width='x'), dict(id=9, file_name='a'*5000)]
    d['categories'] += [None, {}, dict(id='x'), dict(id=2, name='\ud800', supercategory=[1])]
    accounted(limited(tmp_path, d), len(d['annotations']))

def png_header(h, w):
    parts = (b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)), (b'IDAT', zlib.compress(b'\0'*1000))
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(b)) + k + b + struct.pack('>I', zlib.crc32(k + b)) for k, b in parts)

@POSIX
def test_hostile_photos(tmp_path):
    photos = tmp_path/'photos'
    photos.mkdir()
    photo(photos/'0.jpg')
    good = (photos/'0.jpg').read_bytes()
    (tmp_path/'outside.jpg').write_bytes(good)
    (tmp_path/'away').mkdir(); (tmp_path/'away'/'in.jpg').write_bytes(good)
    (photos/'link.jpg').symlink_to(tmp_path/'outside.jpg')
    (photos/'linked').symlink_to(tmp_path/'away')
    (photos/'folder.jpg').mkdir()
    os.mkfifo(photos/'pipe.jpg')
    for name, data in {'cut.jpg': good[:len(good)//2], 'empty.jpg': b'', 'text.jpg': b'<html>', 'huge.png': png_header(60000, 60000), 'large.png': png_header(11000, 11000),
                       'lies.png': png_header(48, 64), 'script.eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'}.items(): (photos/name).write_bytes(data)
    names = {'cut.jpg': 'image_unreadable', 'empty.jpg': 'image_unreadable', 'text.jpg': 'image_unreadable', 'huge.png': 'image_too_large', 'large.png': 'image_too_large',
             'lies.png': 'image_unreadable', 'script.eps': 'image_unreadable', 'pipe.jpg': 'image_unreadable', 'absent.jpg': 'image_missing', '../outside.jpg': 'unsafe_path',
             str(tmp_path/'outside.jpg'): 'unsafe_path', 'link.jpg': 'unsafe_path', 'linked/in.jpg': 'unsafe_path', 'a/../../outside.jpg': 'unsafe_path', '\0': 'missing_key'}
    d = coco(len(names) + 1)
    for im, name in zip(d['images'][1:], names): im['file_name'] = name
    for im in d['images'][1:]: im.pop('height')
    d['images'].append(dict(id=99, file_name='folder.jpg'))
    answer = limited(tmp_path, d)
    accounted(answer, len(names) + 1)
    import csv
    rows = {int(r['image_id']): r['code'] for r in csv.DictReader(open(tmp_path/'out'/'audit.csv', newline='')) if r['action'] == 'failed'}
    assert {names_i: rows[k] for k, names_i in enumerate(names, 1)} == names
    assert rows[99] in ('image_unreadable', 'image_missing')

def kinds(photos):
    "One drawn picture in every kind of file, 48×64 as stored -> their names."
    y, x = np.mgrid[:48, :64]
    im, names = Image.fromarray(np.stack([4*x, 5*y, 128 + 0*x], 2).astype(np.uint8)), []
    def save(name, mode='RGB', **kw): (im.quantize() if mode == 'P' else im.convert(mode)).save(photos/name, **kw); names.append(name)
    (photos/'sub folder').mkdir(parents=True)
    for name, kw in {'plain.jpg': {}, 'UPPER.JPG': {}, 'progressive.jpeg': dict(progressive=True), 'ünï cödé.jpg': {}, 'full.jpg': dict(subsampling=0), 'sub folder/日本.webp': dict(lossless=True),
                     'a.bmp': {}, 'a.tiff': {}, 'no_suffix': dict(format='PNG'), 'a_png.jpg': dict(format='PNG'), 'a_jpg.png': dict(format='JPEG')}.items(): save(name, **kw)
    for mode, name in dict(L='grey.jpg', CMYK='cmyk.jpg', RGBA='alpha.png', LA='grey_alpha.png', P='palette.png', I='sixteen.png').items():
        if mode == 'I': Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*256).save(photos/name); names.append(name)
        else: save(name, mode)
    for o in range(1, 9):
        exif = Image.Exif(); exif[274] = o
        for end in ('jpg', 'png', 'tif'): save(f'exif{o}.{end}', exif=exif)
    return np.asarray(im), names

def test_all_kinds_of_photos(tmp_path):
    "Colours, bit depths, formats, names, EXIF orientations: the photo as it is stored, and a mask of the same size."
    from seglab.masks import prepare
    stored, names = kinds(tmp_path/'photos')
    d = coco(len(names))
    for im, name in zip(d['images'], names): im['file_name'] = name
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path/'photos', tmp_path/'out', size=None, workers=1)
    assert p.counts['annotations'] == dict(total=len(names), used=len(names), repaired=0, dropped=0), p.audit
    there = {f.stem: f for f in (p.path/'images').iterdir()}
    grey = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY).astype(int)
    for row in p.index.itertuples():
        image, mask = np.asarray(Image.open(there[row.stem])).astype(int), np.asarray(Image.open(p.path/'masks'/f'{row.stem}.png'))
        assert image.shape == (48, 64, 3) and mask.shape == (48, 64) and mask[20, 40] == 1 and mask[5, 40] == 0, row.file_name
        want = grey[..., None] if row.file_name in ('grey.jpg', 'grey_alpha.png', 'sixteen.png') else stored
        assert np.abs(image - want).mean() < 5, row.file_name

def test_turned_photos(tmp_path):
    "Where the file says 64×48, that is how the annotator saw it: turned, photo and mask alike, in every format."
    from seglab.masks import prepare
    stored, names = kinds(tmp_path/'photos')
    names = [n for n in names if n[:5] in ('exif5', 'exif6', 'exif7', 'exif8')]
    d = coco(len(names), 64, 48, segmentation=[[5, 5, 25, 5, 25, 60]])
    for im, name in zip(d['images'], names): im['file_name'] = name
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path/'photos', tmp_path/'out', size=None, workers=1)
    assert p.codes['repaired'] == dict(exif_rotated=len(names)) == dict(exif_rotated=12)
    there, turned = {f.stem: f for f in (p.path/'images').iterdir()}, {5: stored.swapaxes(0, 1), 6: np.rot90(stored, -1), 7: np.rot90(stored, 2).swapaxes(0, 1), 8: np.rot90(stored)}
    for row in p.index.itertuples():
        image, mask = np.asarray(Image.open(there[row.stem])).astype(int), np.asarray(Image.open(p.path/'masks'/f'{row.stem}.png'))
        assert mask.shape == image.shape[:2] == (64, 48) and mask[20, 20] == 1, row.file_name
        assert np.abs(image - turned[int(row.file_name[4])]).mean() < 3, row.file_name

@pytest.mark.parametrize('id,action', [(0, 'used'), (-5, 'used'), (2**53 + 1, 'used'), (2**63 - 1, 'used'), (7.0, 'repaired'), ('7', 'repaired'), (2**63, 'dropped'), (7.5, 'dropped'), (True, 'dropped')])
def test_ids(tmp_path, id, action):
    "Any integer of 64 bits is an id, and stays what it is."
    from seglab.masks import prepare
    photo(tmp_path/'0.jpg')
    d = coco()
    d['images'][0]['id'] = d['annotations'][0]['image_id'] = d['annotations'][0]['id'] = id
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path, tmp_path/'out', size=32, workers=1)
    assert p.counts['annotations'] == dict(total=1, used=0, repaired=0, dropped=0) | {action: 1}
    if action != 'dropped': assert p.index.image_id.tolist() == [int(id)]

@pytest.mark.parametrize('overlap', ['smallest', 'last', 'ignore'])
def test_crowded_photo(tmp_path, overlap):
    "More objects than bits in a number, crowds among them, on one photo beside others: as pycocotools paints them."
    from pycocotools import mask as coco_mask
    from seglab.masks import prepare
    rng = np.random.default_rng(0)
    n = (300, 40, 52, 53, 0)
    for i in range(len(n)): photo(tmp_path/f'{i}.jpg', 60, 90 - i)
    rings = [[(rng.uniform(0, 90, (1, 2)) + rng.uniform(-25, 25, (5, 2))).ravel().round(1).tolist() for _ in range(k)] for k in n]
    d = coco(len(n))
    for im in d['images']: im.update(height=60, width=90 - im['id'])
    d['annotations'] = [dict(image_id=i, category_id=int(rng.integers(1, 200)), iscrowd=int(rng.random() < .1), segmentation=[r]) for i, rs in enumerate(rings) for r in rs]
    for k, a in enumerate(d['annotations']): a['id'] = k
    d['categories'] = [dict(id=i, name=str(i)) for i in range(1, 200)]
    (tmp_path/'a.json').write_text(json.dumps(d))
    p = prepare(tmp_path/'a.json', tmp_path, tmp_path/'out', size=None, workers=1, overlap=overlap)
    for i in range(len(n)):
        anns = [(a, coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(a['segmentation'], 60, 90 - i)))) for a in d['annotations'] if a['image_id'] == i]
        want, claims = np.zeros((2, 60, 90 - i), np.uint8)
        for a, m in anns:
            if a['iscrowd']: want[m > 0] = 255
        objects = [x for x in anns if not x[0]['iscrowd']]
        if overlap == 'smallest': objects.sort(key=lambda x: (-int(x[1].sum()), x[0]['id']))
        for a, m in objects: want[m > 0] = a['category_id']; claims = np.minimum(claims + m, 2)
        if overlap == 'ignore': want[claims > 1] = 255
        assert np.array_equal(np.asarray(Image.open(p.path/'masks'/f'{i}.png')), want), i

def many(tmp_path, n=150):
    (tmp_path/'photos').mkdir()
    for i in range(n): photo(tmp_path/'photos'/f'{i}.jpg', seed=i)
    (tmp_path/'a.json').write_text(json.dumps(coco(n)))
    return tmp_path/'a.json', tmp_path/'photos'

def contents(folder):
    out = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}
    return out | {'prepare.json': {k: v for k, v in json.loads(out['prepare.json']).items() if k != 'seconds'}}

def start(tmp_path, a, photos, out, **kw):
    "Prepare in a process of its own, in a group of its own; from a script without a __main__ guard."
    (tmp_path/'job.py').write_text(textwrap.dedent(f'''
        import time, seglab.masks as m
        slow = m._image_bytes
        def wait(path): time.sleep(.02); return slow(path)
        m._image_bytes = wait
        m.prepare({str(a)!r}, {str(photos)!r}, {str(out)!r}, size=64, **{kw!r})'''))
    return subprocess.Popen([sys.executable, str(tmp_path/'job.py')], env=env(), start_new_session=True, stderr=subprocess.PIPE)

def until(test, seconds=60):
    stop = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < stop, 'waited in vain'
        time.sleep(.02)

@POSIX
@pytest.mark.parametrize('pack', [False, True])
def test_kill_and_resume(tmp_path, pack):
    "kill -9 in the middle with 1, 2 and 4 workers; then the same bytes as undisturbed, and nothing left over."
    from seglab.masks import prepare
    a, photos = many(tmp_path)
    want = contents(prepare(a, photos, tmp_path/'whole', size=64, workers=1, pack=pack).path)
    for workers in (1, 2, 4):
        out = tmp_path/f'killed{workers}'
        p = start(tmp_path, a, photos, out, workers=workers, pack=pack)
        until(lambda: (out/'.journal').exists() and (out/'.journal').stat().st_size > 300)
        os.kill(p.pid, signal.SIGKILL); p.wait()
        assert not (out/'index.csv').exists()
        def free():
            try: prepare(a, photos, out, size=64, workers=workers, pack=pack); return True
            except RuntimeError: return False                                  # its workers end by themselves, and let go of the lock
        until(free, 30)
        assert contents(out) == want

@POSIX
def test_second_process_is_told(tmp_path):
    from seglab.masks import prepare
    a, photos = many(tmp_path)
    p = start(tmp_path, a, photos, tmp_path/'out', workers=1)
    until(lambda: (tmp_path/'out'/'.journal').exists())
    with pytest.raises(RuntimeError, match='Another process is preparing'): prepare(a, photos, tmp_path/'out', size=64)
    assert p.wait(60) == 0
    assert contents(tmp_path/'out') == contents(prepare(a, photos, tmp_path/'alone', size=64).path)

@POSIX
def test_worker_killed(tmp_path):
    "A worker the system ends: one sentence, and the same call goes on."
    psutil = pytest.importorskip('psutil')
    from seglab.masks import prepare
    a, photos = many(tmp_path)
    p = start(tmp_path, a, photos, tmp_path/'out', workers=2)
    until(lambda: (tmp_path/'out'/'.journal').exists() and (tmp_path/'out'/'.journal').stat().st_size > 300)
    psutil.Process(p.pid).children()[-1].kill()
    text = p.communicate(timeout=60)[1].decode()
    assert p.returncode and 'ended from outside' in text.splitlines()[-1] and 'run the same command again' in text
    assert contents(prepare(a, photos, tmp_path/'out', size=64).path) == contents(prepare(a, photos, tmp_path/'alone', size=64, workers=2).path)

@POSIX
def test_script_without_guard(tmp_path):
    "A script that has threads (so that workers are not forked) and no __main__ guard."
    a, photos = many(tmp_path, 20)
    (tmp_path/'job.py').write_text(f'''
import threading, time
threading.Thread(target=time.sleep, args=(1,)).start()
from seglab.masks import prepare
print(prepare({str(a)!r}, {str(photos)!r}, {str(tmp_path/"out")!r}, workers=2))''')
    r = subprocess.run([sys.executable, str(tmp_path/'job.py')], env=env(), capture_output=True, text=True, timeout=90)
    assert r.returncode == 0 and r.stdout.count('20 of 20 photos') == 1, r.stderr

def test_full_disk(tmp_path, monkeypatch):
    from seglab import masks
    a, photos = many(tmp_path, 40)
    real, n = masks.write_atomic, iter(range(10**6))
    def full(path, data):
        if next(n) > 30: raise OSError(28, 'No space left on device')
        real(path, data)
    monkeypatch.setattr(masks, 'write_atomic', full)
    with pytest.raises(OSError, match='The disk is full; what is done'): masks.prepare(a, photos, tmp_path/'out', size=64, workers=1)
    monkeypatch.undo()
    assert len(list((tmp_path/'out'/'masks').glob('*.png'))) > 5
    assert contents(masks.prepare(a, photos, tmp_path/'out', size=64, workers=1).path) == contents(masks.prepare(a, photos, tmp_path/'x', size=64, workers=1).path)

@pytest.mark.parametrize('bench', ['prepare', 'read_coco'])
def test_benchmarks_run(bench):
    "On their own few photos they go through all their ways, and end with one line of JSON. How fast is not tested."
    r = subprocess.run([sys.executable, str(Path(__file__).parents[1]/'bench'/f'{bench}.py'), '--tiny'], env=env(), capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr[-2000:]
    said = json.loads(r.stdout.splitlines()[-1])
    assert said['bench'] == bench and said['machine'] and said['versions']['numpy'] and all(v > 0 for v in said['ratios'].values())

def test_other_folders_are_left_alone(tmp_path):
    from seglab.masks import prepare
    a, photos = many(tmp_path, 2)
    with pytest.raises(ValueError, match='neither empty nor'): prepare(a, photos, photos)
    (tmp_path/'file').write_text('x')
    with pytest.raises(ValueError, match='is a file'): prepare(a, photos, tmp_path/'file')
    prepare(a, photos, tmp_path/'out', size=64)
    for kw, word in ((dict(size=32), 'size_hw'), (dict(split=.5), 'split'), (dict(pack=True), 'pack'), (dict(n_images=1), 'n_images'), (dict(keep=[1]), 'keep'), (dict(fit='pad'), 'fit')):
        with pytest.raises(ValueError, match=f'prepared with {word}='): prepare(a, photos, tmp_path/'out', **dict(size=64) | kw)
    a.write_text(json.dumps(coco(2, iscrowd=1)))
    with pytest.raises(ValueError, match='other contents'): prepare(a, photos, tmp_path/'out', size=64)
