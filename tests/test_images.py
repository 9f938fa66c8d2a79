"Photos and masks to arrays and back; which way up, how many bits, resizing."
import io, os, pickle, struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from seglab import images
from seglab.files import UserError
from seglab.images import (IGNORE, MAX_PIXELS, BadImage, ImageHeader, LabelError, check_size, decode_image, encode_image, encode_mask, image_header,
                           image_orientation, nearest_index, read_image, read_image_bytes, read_mask, resize_geometry, resize_image, resize_mask, used_bits,
                           write_mask)
from support.data import drawn

quiet = settings(max_examples=80, deadline=None, derandomize=True)
PHOTO = drawn(48, 64)
BACK = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def data_of(array, kind='PNG', orientation=None, **kw):
    "A picture file's bytes, with an EXIF note."
    f = io.BytesIO()
    if orientation: kw['exif'] = Image.Exif(); kw['exif'][274] = orientation
    (Image.fromarray(array) if isinstance(array, np.ndarray) else array).save(f, kind, **kw)
    return f.getvalue()


def tiff16(array, **tags):
    "A 16-bit TIFF of several channels, as OpenCV writes it."
    return cv2.imencode('.tif', array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


# --- reading

@pytest.mark.parametrize('mode', ['L', '1', 'P', 'LA', 'RGBA', 'CMYK', 'RGB', 'YCbCr'])
def test_any_mode_is_rgb(tmp_path, mode):
    kind = 'JPEG' if mode in ('CMYK', 'YCbCr') else 'PNG'
    a, how = decode_image(data_of(Image.new('RGB', (7, 5), (200, 200, 200)).convert(mode), kind), 'x')
    assert a.shape == (5, 7, 3) and a.dtype == np.uint8 and how == '' and abs(int(a[0, 0, 0]) - 200) <= (55 if mode in '1P' else 2)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'PPM', 'JPEG2000', 'JPEG'])
def test_kinds(tmp_path, kind):
    (tmp_path/'x').write_bytes(data_of(PHOTO, kind, **dict(lossless=True) if kind == 'WEBP' else {}))
    a = read_image(tmp_path/'x')
    same(a, np.array(Image.open(tmp_path/'x').convert('RGB')))
    assert image_header(tmp_path/'x') == ImageHeader(48, 64) == image_header((tmp_path/'x').read_bytes())


def test_jpegs_are_the_same_with_and_without_turbo(monkeypatch):
    data = data_of(PHOTO, 'JPEG', quality=90)
    fast = decode_image(data, 'x')[0]
    monkeypatch.setattr(images, 'simplejpeg', None)
    same(decode_image(data, 'x')[0], fast)


def test_reuse_lends_memory():
    data = data_of(PHOTO, 'JPEG')
    a = decode_image(data, 'x', reuse=True)[0]
    kept = a.copy()
    decode_image(data_of(255 - PHOTO, 'JPEG'), 'x', reuse=True)
    b = decode_image(data, 'x')[0]
    same(b, kept)
    assert not np.array_equal(a, kept) or images.simplejpeg is None


# --- which way up

@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'JPEG', 'WEBP'])
@pytest.mark.parametrize('o', [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize('square', [False, True])
def test_every_orientation(kind, o, square):
    photo = PHOTO[:, :48] if square else PHOTO
    kw = dict(lossless=True) if kind == 'WEBP' else dict(quality=95, subsampling=0) if kind == 'JPEG' else {}
    data = data_of(photo, kind, o, **kw)
    stored, turned = np.array(Image.open(io.BytesIO(data_of(photo, kind, **kw))).convert('RGB')), np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert('RGB')) if kind != 'TIFF' else Image.open(io.BytesIO(data)))
    assert image_header(data) == ImageHeader(*photo.shape[:2], o) and image_orientation(data) == o
    a, how = decode_image(data, 'x', turn=False)
    same(a, stored); assert how == ''
    a, how = decode_image(data, 'x', turn=True)
    same(a, turned); assert how == 'exif_rotated'*(o > 1) and a.flags.c_contiguous
    same(decode_image(data, 'x')[0], stored)                                                        # unless told, as it is stored
    same(decode_image(data, 'x', expect=stored.shape[:2])[0], stored)
    if o > 4 and not square:
        a, how = decode_image(data, 'x', expect=turned.shape[:2])
        same(a, turned); assert how == 'exif_rotated'
        for turn, size in ((True, stored), (False, turned)):
            with pytest.raises(BadImage, match='height and width swapped') as e: decode_image(data, 'x', expect=size.shape[:2], turn=turn)
            assert e.value.code == 'size_mismatch'
    else:
        with pytest.raises(BadImage, match='the annotation file says 64×49'): decode_image(data, 'x', expect=(64, 49))


@pytest.mark.parametrize('note', [0, 9, 77, 'six'])
def test_notes_that_make_no_sense(note):
    exif = Image.Exif()
    try:
        exif[274] = note
        data = data_of(PHOTO, 'JPEG', exif=exif)
    except Exception: pytest.skip('PIL writes no such note')
    assert image_orientation(data) == 1
    same(decode_image(data, 'x', turn=True)[0], decode_image(data, 'x', turn=False)[0])


def test_a_broken_note_is_no_note():
    data = data_of(PHOTO, 'JPEG', 6)
    at = data.index(b'Exif\0\0')
    for n in range(8, 27):
        broken = data[:at + 6] + os.urandom(n) + data[at + 6 + n:]
        a, _ = decode_image(broken, 'x', turn=True)
        assert a.shape in ((48, 64, 3), (64, 48, 3)) and image_header(broken)[:2] == (48, 64)


def test_an_upright_photo_says_so_in_its_first_bytes(monkeypatch):
    data = data_of(PHOTO, 'JPEG')
    monkeypatch.setattr(images, '_pil_open', lambda *a: pytest.fail('asked PIL'))
    assert image_header(data) == ImageHeader(48, 64)
    if images.simplejpeg: decode_image(data, 'x', turn=True)


def test_a_note_behind_the_pixels():
    "PNG allows its EXIF chunk at the end, after the picture."
    import zlib
    data, exif = data_of(PHOTO), data_of(PHOTO, orientation=6)
    at = exif.index(b'eXIf') - 4
    chunk = exif[at:at + 12 + int.from_bytes(exif[at:at + 4], 'big')]
    late = data[:-12] + chunk + data[-12:]
    assert image_orientation(late) == 6 and decode_image(late, 'x', turn=True)[0].shape == (64, 48, 3)
    wide = cv2.imencode('.png', np.stack([RAMP*60]*3, -1).astype(np.uint16))[1].tobytes()
    late = wide[:-12] + chunk + wide[-12:]
    assert image_header(late) == ImageHeader(48, 64, 6, 16) and used_bits(late) == 12
    same(decode_image(late, 'x', window=12, turn=True)[0][..., 0], np.rot90((RAMP*60 >> 4).astype(np.uint8), -1))


# --- how many bits

RAMP = np.mgrid[0:48, 0:64][1]


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM', 'JPEG2000'])
@pytest.mark.parametrize('colour', [False, True])
@pytest.mark.parametrize('bits', [10, 12, 14, 16])
def test_bits_used(kind, colour, bits):
    a = (RAMP*(2**bits - 1)//63).astype(np.uint16)
    if colour:
        if kind in ('PPM', 'JPEG2000'): pytest.skip('eight bits by PIL')
        a = np.stack([a, a//2, a//4], -1)
        data = cv2.imencode('.png' if kind == 'PNG' else '.tif', a[..., ::-1])[1].tobytes()
    else: data = data_of(a, kind)
    assert image_header(data).bits == 16 and not image_header(data).signed and used_bits(data) == bits
    shown = decode_image(data, 'x', window=bits)[0]
    same(shown, np.broadcast_to((a >> (bits - 8)).astype(np.uint8).reshape(48, 64, -1), (48, 64, 3)).copy())
    assert len(np.unique(shown[..., 0])) == 64
    same(decode_image(data, 'x')[0][..., 0], (a.reshape(48, 64, -1)[..., 0] >> 8).astype(np.uint8))    # alone: the upper eight


def test_a_set_decides_for_its_slices():
    "Two slices that differ by four levels: by themselves one is scaled and the other is not; with a window both are alike."
    b, c = ((RAMP*4 + add).astype(np.uint16) for add in (0, 4))
    alone = [decode_image(data_of(a), 'x')[0].astype(int) for a in (b, c)]
    together = [decode_image(data_of(a), 'x', window=12)[0].astype(int) for a in (b, c)]
    assert np.abs(alone[0] - alone[1]).max() > 200 and np.abs(together[0] - together[1]).max() <= 1


def test_windows():
    a = (RAMP*65).astype(np.uint16)
    w = decode_image(data_of(a), 'x', window=(1000, 3000))[0][..., 0]
    assert w[0, 0] == 0 and w[0, -1] == 255 and (np.diff(w[0].astype(int)) >= 0).all()
    same(w, ((a.clip(1000, 3000).astype(int) - 1000)*256//2001).astype(np.uint8))
    eight = PHOTO[..., 0]
    for window in (None, 12, (10, 20)): same(decode_image(data_of(eight), 'x', window=window)[0][..., 0], eight)     # 8 bits have their range
    same(decode_image(data_of(eight.astype(np.uint16)), 'x')[0][..., 0], eight)


@pytest.mark.parametrize('a, words', [((RAMP*100 - 1024).astype(np.int32), 'numbers of 32 bits, some below zero'), ((RAMP*70_000).astype(np.int32), '32 bits'), ((RAMP/7).astype(np.float32), 'fractions')])
def test_signed_wide_and_float_values_need_a_window(a, words):
    data = data_of(a, 'TIFF')
    for window in (None, 12):
        with pytest.raises(BadImage, match=f'{words}.*window=') as e: decode_image(data, 'x.tif', window=window)
        assert e.value.code == 'image_unreadable' and '\n' not in str(e.value)
    lo, hi = float(a.min()), float(a.max())
    shown = decode_image(data, 'x.tif', window=(int(lo), int(hi)))[0][..., 0]
    assert shown[0, 0] == 0 and shown[0, -1] >= 254 and (np.diff(shown[0].astype(int)) >= 0).all()


def test_signed_sixteen_bits():
    data = tiff_of(np.array([[-1000, 0], [1000, 3000]], '<i2'), 16, 2)
    assert image_header(data)[3:] == (16, True)
    with pytest.raises(BadImage, match='16 bits, some below zero'): decode_image(data, 'ct.tif', window=12)
    assert decode_image(data, 'ct.tif', window=(-1000, 3000))[0][..., 0].tolist() == [[0, 63], [127, 255]]


def tiff_of(a, bits, sampleformat, channels=1):
    "A plain TIFF, written by hand."
    h, w = a.shape[:2]
    tags = [(256, 4, w), (257, 4, h), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, channels), (278, 4, h), (279, 4, a.nbytes), (339, 3, sampleformat)]
    ifd = struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHIHxx' if k == 3 else '<HHII', t, k, 1, v) for t, k, v in tags) + bytes(4)
    return b'II*\0' + struct.pack('<I', 8 + a.nbytes) + a.tobytes() + ifd


@pytest.mark.parametrize('channels', [5, 7])
def test_five_bands(tmp_path, channels):
    (tmp_path/'bands.tif').write_bytes(tiff_of(np.zeros((4, 6, channels), np.uint8), 8, 1, channels))
    with pytest.raises(BadImage, match=f'bands.tif .* {channels} channels of 8 bits; a photo has 1, 3 or 4') as e: read_image(tmp_path/'bands.tif')
    assert '\n' not in str(e.value)


def test_colour_tiffs_of_sixteen_bits_turn():
    a = np.stack([RAMP*60, RAMP*30, RAMP*10], -1).astype(np.uint16)
    data = cv2.imencode('.tif', a[..., ::-1])[1].tobytes()
    same(decode_image(data, 'x', window=12)[0], (a >> 4).astype(np.uint8))


# --- sizes

@pytest.mark.parametrize('size, want', [(None, None), (5, (5, 5)), (np.int64(5), (5, 5)), ((3, 4), (3, 4)), ([3, 4], (3, 4))])
def test_sizes(size, want): assert check_size(size) == want


@pytest.mark.parametrize('size', [0, -1, True, 16385, (5,), (5, 5, 5), (0, 5), (True, 5), 5., '5', (5, None)])
def test_sizes_that_are_none(size):
    with pytest.raises(UserError, match='size_hw=.*each from 1 to 16384'): check_size(size)


def test_aspects():
    with pytest.raises(UserError, match="aspect='stretch': expected 'squash', 'pad' or 'crop'"): check_size(5, 'stretch')
    for aspect in ('squash', 'pad', 'crop'):
        assert resize_image(PHOTO, (20, 31), aspect).shape == (20, 31, 3) and resize_mask(PHOTO[..., 0], (20, 31), aspect).shape == (20, 31)
    assert resize_image(PHOTO, None) is PHOTO and resize_image(PHOTO, PHOTO.shape[:2]) is not None


@quiet
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.sampled_from(['squash', 'pad', 'crop']))
def test_masks_take_the_nearest_label(h, w, H, W, aspect):
    mask = np.random.default_rng(h*w).integers(0, 9, (h, w), np.uint8)
    (sh, sw), (top, left, gh, gw), _ = resize_geometry(h, w, (H, W), aspect)
    want = np.full((H, W), IGNORE, np.uint8)
    want[:gh, :gw] = cv2.resize(mask, (sw, sh), interpolation=cv2.INTER_NEAREST_EXACT)[top:top + gh, left:left + gw]
    same(resize_mask(mask, (H, W), aspect), want)
    assert resize_image(mask, (H, W), aspect).shape == (H, W)


def test_tables_are_opencvs_and_bounded():
    for n, m in ((1, 1), (5, 9), (9, 5), (640, 256), (20_000, 256), (256, 20_000), (20_000_000, 3)):
        place = np.arange(n, dtype=np.int32).view(np.float32)[None]
        want = cv2.resize(place, (m, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0].view(np.int32)
        assert np.array_equal(nearest_index(n, m), want) and np.array_equal(nearest_index(n, m, m//3, m), want[m//3:])
    images._nearest.cache_clear()
    for n in range(9000, 9020): nearest_index(n, 256); nearest_index(256, n)
    assert images._nearest.cache_info().currsize == 0                         # giants' tables are not kept: 512 of them are 32 MB at most


@pytest.mark.parametrize('shape', [(1, 40_000), (40_000, 1), (3, 30_000)])
@pytest.mark.parametrize('size', [64, 256])
def test_strips_are_cut_before_they_are_scaled(shape, size):
    from support.faults import peak_of
    strip = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).view(np.uint8).reshape(*shape, 4)[..., 0].copy()
    out = {}
    def go(): out.update(image=resize_image(np.repeat(strip[..., None], 3, 2), size, 'crop'), mask=resize_mask(strip, size, 'crop'))
    assert peak_of(go) < 200*2**20
    n = max(shape)
    middle = strip.ravel()[n//2 - 2:n//2 + 2] if min(shape) == 1 else None
    assert out['image'].shape == (size, size, 3) and out['mask'].shape == (size, size)
    if min(shape) == 1: assert set(np.unique(out['mask'])) <= set(middle.tolist()) and int(middle.min()) <= out['image'].min() and out['image'].max() <= int(middle.max())


def test_the_longest_strip(tmp_path):
    strip = np.zeros((1, 5_000_000), np.uint8)
    assert resize_image(strip, 256, 'crop').shape == resize_mask(strip, 256, 'crop').shape == (256, 256)


def test_long_photos_are_cropped_near_where_they_were():
    "Where the cut comes before the scaling, the result is that of the long way, to a rounding of the place."
    strip = drawn(4, 4000)
    strip = np.repeat(strip, 2, 0)
    (sh, sw), (top, left, h, w), _ = resize_geometry(*strip.shape[:2], (256, 256), 'crop')
    assert sh*sw > 2**24
    long_way = images._resample(strip, sh, sw)[top:top + h, left:left + w]
    assert np.abs(resize_image(strip, 256, 'crop').astype(int) - long_way).max() <= 3


def test_photos_shrink_by_area():
    big = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8), (0, 0), 2)
    error = resize_image(big, (256, 256)).astype(float) - cv2.resize(big, (256, 256), interpolation=cv2.INTER_AREA)
    assert 20*np.log10(255/error.std()) > 44


# --- writing

@quiet
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_masks_come_back(h, w, seed):
    mask = np.random.default_rng(seed).integers(0, 256 if seed else 2, (h, w)).astype(np.uint8)
    same(cv2.imdecode(np.frombuffer(encode_mask(mask), np.uint8), cv2.IMREAD_UNCHANGED), mask)
    same(np.array(Image.open(io.BytesIO(encode_mask(mask)))), mask)


def test_masks_of_other_types():
    same(np.array(Image.open(io.BytesIO(encode_mask(np.eye(3, dtype=bool))))), np.eye(3, dtype=np.uint8))
    with pytest.raises(AssertionError): encode_mask(np.full((2, 2), 300))


@pytest.mark.parametrize('turbo', [True, False])
def test_photos_come_back(monkeypatch, turbo):
    if not turbo: monkeypatch.setattr(images, 'simplejpeg', None)
    same(decode_image(encode_image(PHOTO, 'png'), 'x')[0], PHOTO)
    red = np.zeros((32, 32, 3), np.uint8); red[..., 0] = 200
    again = decode_image(encode_image(red, 'jpg'), 'x')[0]
    assert np.abs(again.astype(int) - red).max() < 6                          # red stays red
    assert len(encode_image(PHOTO, 'jpg', 40)) < len(encode_image(PHOTO)) < len(encode_image(PHOTO, 'jpg', 100))
    assert Image.open(io.BytesIO(encode_image(PHOTO[:, ::-1]))).size == (64, 48)
    for kind in (True, 'gif', None):
        with pytest.raises(UserError, match="kind="): encode_image(PHOTO, kind)


def test_write_mask(tmp_path):
    assert write_mask(tmp_path/'m', 'a.b', PHOTO[..., 0]) == tmp_path/'m'/'a.b.png' and os.listdir(tmp_path/'m') == ['a.b.png']
    same(read_mask(tmp_path/'m'/'a.b.png'), PHOTO[..., 0])
    for stem in ('../x', '/x', 'a/b', r'a\..\..\b', 'C:x', 'a\0b'):
        with pytest.raises(UserError, match='index.csv|file'): write_mask(tmp_path/'m', stem, PHOTO[..., 0])
    assert os.listdir(tmp_path) == ['m']


# --- masks

def test_kinds_of_masks(tmp_path):
    m = PHOTO[..., 0]//64
    coloured = Image.fromarray(m).convert('P'); coloured.putdata(m.ravel()); coloured.putpalette([i*3 % 256 for i in range(768)])
    for name, write in dict(grey=lambda f: Image.fromarray(m).save(f), palette=coloured.save, sixteen=lambda f: Image.fromarray(m.astype(np.uint16)).save(f), two=lambda f: Image.fromarray(m > 1).save(f)).items():
        write(tmp_path/f'{name}.png')
        same(read_mask(tmp_path/f'{name}.png'), (m > 1).astype(np.uint8) if name == 'two' else m)
    Image.fromarray(m.astype(np.float32)).save(tmp_path/'f.tif'); same(read_mask(tmp_path/'f.tif'), m)


@pytest.mark.parametrize('name, make, cause', [
    ('a.jpg', lambda m: Image.fromarray(m), 'jpeg_mask'), ('b.png', lambda m: Image.fromarray(np.stack([m, m, 9 - m], -1)), 'rgb_mask'), ('c.png', lambda m: Image.fromarray(np.stack([m]*3, -1)), 'rgb_mask'),
    ('d.tif', lambda m: Image.fromarray(m.astype(np.int32) - 1), 'padding'), ('e.png', lambda m: Image.fromarray(m.astype(np.uint16)*100), 'too_large'), ('f.tif', lambda m: Image.fromarray(m.astype(np.float32) + .5), 'dtype')])
def test_masks_that_are_none(tmp_path, name, make, cause):
    make((PHOTO[..., 0] % 9).astype(np.uint8)).save(tmp_path/name)
    with pytest.raises(LabelError, match=f"mask='{name}': expected .*; got ") as e: read_mask(tmp_path/name)
    assert e.value.cause == cause and '\n' not in str(e.value) and isinstance(e.value, UserError)


@pytest.mark.parametrize('data, words', [(b'', 'it is empty'), (b'<html>', 'XML or HTML'), (b'version https://git-lfs', 'git lfs pull')])
def test_masks_that_are_no_pictures(tmp_path, data, words):
    (tmp_path/'a.png').write_bytes(data)
    with pytest.raises(UserError, match=words) as e: read_mask(tmp_path/'a.png')
    assert 'BytesIO' not in str(e.value)


def test_errors_survive_a_process():
    for e in (BadImage('image_missing', 'x: none'), LabelError('too large', 'too_large')):
        again = pickle.loads(pickle.dumps(e))
        assert type(again) is type(e) and str(again) == str(e) and getattr(again, 'code', getattr(again, 'cause', 0)) == getattr(e, 'code', getattr(e, 'cause', 0))
    worker = LabelError('Caught LabelError in worker 1.\nTraceback …\nseglab.images.LabelError: mask x holds 300.\ncause: too_large\n')
    assert str(worker) == 'mask x holds 300.' and worker.cause == 'too_large'
