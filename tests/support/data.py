"Data that tests draw: photos, small COCO files, folders of photos and masks."
import json, struct, zlib
from pathlib import Path

import cv2
import numpy as np

CATEGORIES = [dict(id=1, name='cat', supercategory='animal'), dict(id=2, name='dog', supercategory='animal')]
BOX = [[10, 10, 40, 10, 40, 30, 10, 30]]   # 600 pixels


def drawn(h=48, w=64, seed=0):
    "A photo of coarse random colours, (h,w,3) uint8."
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (w, h), interpolation=cv2.INTER_CUBIC)


def write_photos(folder, names, h=48, w=64):
    "Photos under these names; folders are made."
    for i, n in enumerate(names):
        path = Path(folder)/n
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix.lower() if path.suffix else '.png', drawn(h, w, i))[1].tobytes())
    return Path(folder)


def annotation(i, image_id=None, category_id=1, segmentation=BOX, **kw):
    return dict(id=i, image_id=i if image_id is None else image_id, category_id=category_id, iscrowd=0, segmentation=segmentation) | kw


def coco_dict(names, annotations=None, categories=CATEGORIES, h=48, w=64):
    "A COCO dict: a record for each photo, an annotation on each unless given."
    return dict(images=[dict(id=i, file_name=n, height=h, width=w) for i, n in enumerate(names, 1)], categories=list(categories),
                annotations=[annotation(i) for i, _ in enumerate(names, 1)] if annotations is None else annotations)


def write_coco(folder, names, photos='photos', file='coco.json', **kw):
    "Photos and their COCO file below a folder: (file, photo folder)."
    images = write_photos(Path(folder)/photos, names)
    (Path(folder)/file).write_text(json.dumps(coco_dict(names, **kw)), encoding='utf-8')
    return Path(folder)/file, images


def write_masks(root, n=4, classes=3, size_hw=(32, 40), stems=None):
    "A folder of photos and one of index masks below root: (images, masks)."
    rng = np.random.default_rng(0)
    root = Path(root)
    for d in ('images', 'masks'): (root/d).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        stem = stems[i] if stems else f'p{i}'
        mask = cv2.resize(rng.integers(0, classes, (4, 5), np.uint8), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
        photo = (mask[..., None]*60 + rng.integers(0, 50, (*size_hw, 3))).astype(np.uint8)
        (root/'images'/f'{stem}.png').write_bytes(cv2.imencode('.png', photo)[1].tobytes())
        (root/'masks'/f'{stem}.png').write_bytes(cv2.imencode('.png', mask)[1].tobytes())
    return root/'images', root/'masks'


# --- files that declare more than they hold

def png_bomb(h, w, channels=1):
    "A few bytes that declare many pixels; deflated zeros as far as they go. channels: 1, 3, or 0 for a palette."
    rows = zlib.compress(bytes(2_000_000), 9)
    parts = ((b'IHDR', struct.pack('>IIBBBBB', w, h, 8, {1: 0, 3: 2, 0: 3}[channels], 0, 0, 0)), *([(b'PLTE', bytes(768))] if not channels else []),
             (b'IDAT', rows), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d)) for k, d in parts)


BOMBS = {'wide.png': png_bomb(20_000, 20_000, 3), 'grey.png': png_bomb(30_000, 30_000), 'palette.png': png_bomb(30_000, 30_000, 0),
         'gif.gif': b'GIF89a' + struct.pack('<HH', 60_000, 60_000) + b'\x80\0\0' + bytes(6) + b',' + struct.pack('<4HB', 0, 0, 60_000, 60_000, 0) + b'\x02\x02D\x01\0;',
         'bmp.bmp': b'BM' + struct.pack('<IIIIiiHHIIiiII', 1000, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(900)}
