"""A tiny COCO file and its photos, for what is then done to them."""
import cv2, numpy as np

RING = [10, 10, 50, 10, 50, 40]

def photo(path, h=48, w=64, seed=0):
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (h, w, 3)).astype(np.uint8))

def coco(n=1, h=48, w=64, **kw):
    "A COCO dict of n photos with one annotation each."
    return dict(images=[dict(id=i, file_name=f'{i}.jpg', height=h, width=w) for i in range(n)],
                annotations=[dict(dict(id=i, image_id=i, category_id=1, iscrowd=0, segmentation=[RING]), **kw) for i in range(n)],
                categories=[dict(id=1, name='thing')])
