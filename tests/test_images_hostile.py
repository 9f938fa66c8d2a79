"Photos and masks that strangers made: bombs, pipes, sockets, links, lies; bad sectors."
import errno, io, os, random, socket, struct, threading, zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from seglab import images
from seglab.files import UserError
from seglab.images import BadImage, LabelError, decode_image, encode_image, encode_mask, image_header, read_image, read_image_bytes, read_mask, used_bits
from support.data import BOMBS, drawn, png_bomb
from support.faults import LONG, peak_of, posix

BIG = 200*2**20
PHOTO = drawn()
pytestmark = pytest.mark.filterwarnings('error')                        # PIL's warnings reach nobody
READERS = [read_image, read_mask, image_header, used_bits]


def refused(read, path):
    "Does a reader refuse a file in one sentence? Returns the code."
    with pytest.raises((UserError, FileNotFoundError)) as e: read(path)
    assert '\n' not in str(e.value) and len(str(e.value)) < 600 and '\x1b' not in str(e.value), str(e.value)
    return getattr(e.value, 'code', getattr(e.value, 'cause', type(e.value).__name__))


# --- what is no file

@posix
@pytest.mark.parametrize('kind', ['pipe', 'socket', 'folder', 'device', 'proc'])
def test_what_is_no_file(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)                                           # a socket's path is short
    path = Path('x.jpg')
    if kind == 'pipe': os.mkfifo(path)
    if kind == 'socket': s = socket.socket(socket.AF_UNIX); s.bind(str(path))
    if kind == 'folder': path.mkdir()
    if kind == 'device': path = Path('/dev/zero')
    if kind == 'proc':
        path = Path('/proc/self/status')
        if not path.exists(): pytest.skip('no /proc here')
    for read in READERS: assert refused(read, path) in ('image_unreadable', 'image_missing', 'UserError', 'unknown_ids')
    if kind == 'socket': s.close()


def test_missing_files(tmp_path):
    for name in ('none.jpg', 'x'*300, 'a\0b.jpg', 'folder/none.jpg', 'n\x1b[2J.png'):
        for read in READERS: assert refused(read, tmp_path/name) in ('image_missing', 'FileNotFoundError')


@pytest.mark.parametrize('where', ['open', 'read'])
@pytest.mark.parametrize('number', [errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_a_bad_sector_is_the_photos_fault_and_other_troubles_are_not(tmp_path, monkeypatch, where, number):
    (tmp_path/'x.jpg').write_bytes(encode_image(PHOTO))
    def bad(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(images.os, where, bad)
    with pytest.raises(BadImage if number == errno.EIO else OSError, match='disk cannot read' if number == errno.EIO else None) as e: read_image_bytes(tmp_path/'x.jpg')
    if number == errno.EIO: assert e.value.code == 'image_unreadable'


def test_nothing_stays_open(tmp_path):
    if not Path('/proc/self/fd').exists(): pytest.skip('no /proc here')
    (tmp_path/'good.jpg').write_bytes(encode_image(PHOTO)); (tmp_path/'bad.png').write_bytes(b'\x89PNG\r\n\x1a\n'); (tmp_path/'note.jpg').write_bytes(note()); (tmp_path/'d').mkdir()
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(20):
        for name in ('good.jpg', 'bad.png', 'note.jpg', 'd', 'none'):
            for read in READERS:
                try: read(tmp_path/name)
                except (UserError, OSError): pass
    assert len(os.listdir('/proc/self/fd')) <= before + 1


def note(o=6):
    f = io.BytesIO(); exif = Image.Exif(); exif[274] = o
    Image.fromarray(PHOTO).save(f, 'JPEG', exif=exif)
    return f.getvalue()


def test_long_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, '_MAX_BYTES', 1000)
    (tmp_path/'long.jpg').write_bytes(encode_image(PHOTO) + bytes(1001))
    for read in READERS: assert refused(read, tmp_path/'long.jpg') in ('image_too_large',)


@posix
def test_a_sparse_file_of_many_gigabytes(tmp_path):
    with open(tmp_path/'huge.png', 'wb') as f: f.truncate(2**33)
    def go():
        for read in READERS: refused(read, tmp_path/'huge.png')
    assert peak_of(go) < BIG


def test_a_file_that_grows_while_it_is_read(tmp_path):
    path = tmp_path/'x.bin'
    path.write_bytes(bytes(1000))
    stop = threading.Event()
    def grow():
        while not stop.is_set():
            with path.open('ab') as f: f.write(bytes(1000))
    t = threading.Thread(target=grow); t.start()
    try:
        for _ in range(50): assert len(read_image_bytes(path)) >= 1000
    finally: stop.set(); t.join()


# --- bombs

@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='this system cannot tell the peak of a stretch of work')
def test_the_peak_is_seen():
    "After a larger one, too: the tests here look at the right thing."
    np.ones(2*BIG, np.uint8)
    assert peak_of(lambda: None) < .1*BIG and peak_of(lambda: np.ones(BIG, np.uint8)) > .9*BIG


@pytest.mark.parametrize('name', BOMBS)
def test_bombs(tmp_path, name):
    assert len(BOMBS[name]) < 10_000
    (tmp_path/name).write_bytes(BOMBS[name])
    def go():
        for read in (read_image, read_mask): assert refused(read, tmp_path/name) in ('image_too_large', 'unknown_ids', 'UserError')
        assert image_header(tmp_path/name)[:2] != (0, 0)
    assert peak_of(go) < BIG


def test_sizes_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    "A limit below the photo's own pixels: each way in refuses, and names the option."
    files = dict(jpg=encode_image(PHOTO), png=encode_image(PHOTO, 'png'), mask=encode_mask(PHOTO[..., 0]), note=note())
    for name, data in files.items():
        (tmp_path/name).write_bytes(data)
        with pytest.raises(BadImage, match=f'{name} declares .*max_pixels=3,071') as e: decode_image(data, name, max_pixels=48*64 - 1)
        assert e.value.code == 'image_too_large'
        decode_image(data, name, max_pixels=48*64)
        with pytest.raises(BadImage, match='max_pixels=99'): read_image(tmp_path/name, max_pixels=99)
    monkeypatch.setattr(images, 'MAX_PIXELS', 48*64 - 1)
    with pytest.raises(UserError, match="mask='mask': expected at most .* pixels.*; got a header that declares more"): read_mask(tmp_path/'mask')
    monkeypatch.setattr(images, 'MAX_PIXELS', 48*64)
    read_mask(tmp_path/'mask')


def test_a_limit_can_be_raised():
    "Beyond PIL's own limit of 179 million pixels, and PIL's limit is as before afterwards."
    before = Image.MAX_IMAGE_PIXELS
    for size, limit, ok in (((1000, 190_000), 2*10**8, True), ((1000, 190_000), 10**8, False)):
        data = png_bomb(*size)
        with pytest.raises(BadImage) as e: decode_image(data, 'x', max_pixels=limit)
        assert e.value.code == ('image_unreadable' if ok else 'image_too_large')         # its pixels are missing: it was let through to the decoder
    assert Image.MAX_IMAGE_PIXELS == before


# --- what is no picture

@pytest.mark.parametrize('kind', ['ICO', 'TGA', 'PCX', 'SGI', 'DDS', 'EPS', 'PDF', 'ICNS', 'IM', 'MSP', 'SPIDER', 'XBM', 'HDF5'])
def test_only_pictures_of_a_short_list(tmp_path, kind):
    "PIL would open these; some of its readers run programs."
    im = Image.fromarray(PHOTO)
    f = io.BytesIO()
    import warnings
    warnings.simplefilter('ignore')
    try: (im.convert('1') if kind in ('MSP', 'XBM') else im.convert('F') if kind == 'SPIDER' else im).save(f, kind)
    except (KeyError, OSError, ValueError): pytest.skip(f'PIL writes no {kind} here')
    (tmp_path/'x.png').write_bytes(f.getvalue())
    with pytest.raises(BadImage, match='not a picture of a known kind|a PDF'): read_image(tmp_path/'x.png')
    with pytest.raises(UserError, match="mask='x.png': expected a picture; got a file that cannot be read"): read_mask(tmp_path/'x.png')


@pytest.mark.parametrize('data', [b'', b'<html><body>404', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'GIF89a', b'BM', b'II*\0', b'MM\0*\0\0\0\x08', b'RIFF\0\0\0\0WEBP', b'P5\n9', b'%!PS-Adobe', b'version https://git-lfs.github.com/spec/v1\n', b'\0'*5000])
def test_what_is_no_picture(tmp_path, data):
    (tmp_path/'x.jpg').write_bytes(data)
    for read in READERS: assert refused(read, tmp_path/'x.jpg') in ('image_unreadable', 'unknown_ids', 'UserError')


def damaged(data, rng):
    data = bytearray(data)
    what = rng.randrange(4)
    if what == 0: return bytes(data[:rng.randrange(len(data))])
    for _ in range(rng.choice([1, 3, 30])):
        i = rng.randrange(min(len(data), 200) if what == 1 else len(data))
        data[i] = rng.randrange(256)
    if what == 3: data[rng.randrange(len(data)):] = bytes(rng.randrange(200))
    return bytes(data)


def samples():
    rgb, grey = Image.fromarray(PHOTO), Image.fromarray(PHOTO[..., 0])
    for kind, im, kw in (('JPEG', rgb, {}), ('JPEG', rgb.convert('CMYK'), {}), ('PNG', rgb, {}), ('PNG', grey, {}), ('PNG', rgb.convert('P'), {}), ('GIF', rgb, {}), ('BMP', rgb, {}), ('WEBP', rgb, {}), ('PPM', rgb, {}),
                         ('TIFF', rgb, {}), ('TIFF', grey, dict(compression='tiff_lzw')), ('PNG', Image.fromarray(PHOTO[..., 0].astype(np.uint16)*16), {}), ('TIFF', Image.fromarray(PHOTO[..., 0].astype(np.uint16)*16), {}), ('JPEG2000', rgb, {})):
        f = io.BytesIO(); im.save(f, kind, **kw)
        yield f.getvalue()
    yield cv2.imencode('.png', PHOTO.astype(np.uint16)*16)[1].tobytes()
    yield cv2.imencode('.tif', PHOTO.astype(np.uint16)*16)[1].tobytes()
    yield note()


@pytest.mark.parametrize('seed', range(400 if LONG else 17))
def test_damaged_pictures(tmp_path, seed):
    "A picture or a sentence, whatever is broken, in whichever way it is read."
    rng, good = random.Random(seed), list(samples())
    for i in range(25):
        data = damaged(good[(seed + i) % len(good)], rng)
        (tmp_path/'x').write_bytes(data)
        for read in (lambda: decode_image(data, 'x'), lambda: decode_image(data, 'x', turn=True, window=12), lambda: decode_image(data, 'x', expect=(48, 64), window=(3, 900)), lambda: read_mask(tmp_path/'x'),
                     lambda: image_header(data), lambda: image_header(tmp_path/'x'), lambda: used_bits(data)):
            try: a = read()
            except (BadImage, UserError) as e: assert '\n' not in str(e) and len(str(e)) < 600
            else: assert isinstance(a, (tuple, int, np.ndarray))


def test_warnings_are_as_before(tmp_path):
    "Also when many threads read at once."
    import warnings
    palette = Image.fromarray(PHOTO).convert('P'); palette.info['transparency'] = bytes(256)
    palette.save(tmp_path/'p.png')
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(tmp_path/'p.png') for _ in range(20)]) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert warnings.filters == before


def test_threads_do_not_disturb_each_other(tmp_path):
    "Scratch memory is each thread's own."
    photos = [drawn(200 + i, 300 - i, i) for i in range(8)]
    want = [images.resize_image(p, (150, 150)).copy() for p in photos]
    encoded = [encode_mask(p[..., 0]) for p in photos]
    wrong = []
    def work(k):
        for _ in range(30):
            if not np.array_equal(images.resize_image(photos[k], (150, 150)), want[k]) or encode_mask(photos[k][..., 0]) != encoded[k]: wrong.append(k)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong
