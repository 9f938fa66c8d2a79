"""Structure-aware mutation of COCO files: every key dropped, retyped, nested, blown up; reproducible from one number."""
import copy, json, random, re

ODD_NUMBERS = [0, -1, 1, 0.5, -0.0, 1e9, -1e9, 1e308, 5e-324, 2**31, 2**63, 2**64, -2**63 - 1, 10**40, float('nan'), float('inf'), float('-inf'), 255, 256, 1e15, 3.0]
ODD_VALUES = [None, True, False, '', 'x', '1', ' 7 ', '1e3', 'ÿ\u2028\ud800', '\x00', [], {}, [[]], [[[]]], {'a': 1}, [None], [{}], 'y'*5000, '../../x', '/etc/hostname']
KEYS = ['id', 'image_id', 'category_id', 'segmentation', 'bbox', 'iscrowd', 'area', 'file_name', 'height', 'width', 'size', 'counts', 'name', 'supercategory',
        'images', 'annotations', 'categories']


def healthy(rng, files=('a.jpg', 'b.jpg', 'grey.jpg'), h=40, w=50):
    "A small COCO dict with all three kinds of segmentation. The photos it names are `h` by `w`."
    images = [dict(id=10 + i, file_name=f, height=h, width=w) for i, f in enumerate(files)]
    categories = [dict(id=i, name=n, supercategory=s) for i, n, s in ((1, 'person', 'person'), (18, 'dog', 'animal'), (90, 'toothbrush', 'indoor'))]
    annotations = []
    for i in range(rng.randint(1, 8)):
        kind = rng.randrange(4)
        if kind < 2: seg = [ring(rng, h, w) for _ in range(rng.randint(1, 3))]
        elif kind == 2: seg = dict(size=[h, w], counts=counts(rng, h*w))
        else: seg = dict(size=[h, w], counts=packed(counts(rng, h*w)))
        annotations.append(dict(id=100 + i, image_id=rng.choice(images)['id'], category_id=rng.choice(categories)['id'], segmentation=seg,
                                bbox=[1, 2, 10, 12], area=99.5, iscrowd=int(rng.random() < .15)))
    return dict(info={}, licenses=[], images=images, annotations=annotations, categories=categories)


def ring(rng, h, w, reach=.2):
    "A ring of points in and a little around the image."
    n = rng.randint(3, 12)
    whole = rng.random() < .3
    point = lambda s: rng.randint(0, s) if whole else round(rng.uniform(-reach*s, (1 + reach)*s), rng.choice([0, 1, 2, 6]))
    return [c for _ in range(n) for c in (point(w), point(h))]


def counts(rng, total):
    "Counts that sum to `total`; some may be zero."
    cuts = sorted(rng.randint(0, total) for _ in range(rng.randint(0, 12)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total])]


def packed(counts):
    "COCO's packed string, written from its description: differences to the one before last, six bits a character."
    out = []
    for i, c in enumerate(counts):
        x, more = c - counts[i - 2] if i > 2 else c, True
        while more:
            bits, x = x & 31, x >> 5
            more = x != (-1 if bits & 16 else 0)
            out.append(chr((bits | 32*more) + 48))
    return ''.join(out)


def places(node):
    "Every place in a JSON value, as paths of keys and numbers."
    out, todo = [], [((), node)]
    while todo:
        path, node = todo.pop()
        out.append(path)
        inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        todo += [(path + (k,), v) for k, v in inner]
    return out


def at(root, path):
    for k in path: root = root[k]
    return root


def change(rng, old, root):
    "Another value in the place of `old`."
    kind = rng.randrange(12)
    if kind == 0: return rng.choice(ODD_VALUES)
    if kind == 1: return rng.choice(ODD_NUMBERS)
    if kind == 2: return str(old)
    if kind == 3: return [old]
    if kind == 4: return {'value': old}
    if kind == 5: return copy.deepcopy(at(root, rng.choice(places(root))))
    if kind == 6 and isinstance(old, list): return old*rng.choice([2, 3, 50])
    if kind == 7 and isinstance(old, list): return old[:rng.randrange(len(old) + 1)]
    if kind == 8 and isinstance(old, (list, str)): return old[::-1]
    if kind == 9 and isinstance(old, str): return ''.join(chr(min(0x10ffff, max(0, ord(c) + rng.choice([0, 0, 0, 1, -40, 99])))) for c in old[:200])
    if kind == 10 and isinstance(old, (int, float)) and not isinstance(old, bool): return old*rng.choice([-1, 1000, 1e-3]) + rng.choice([0, 1, .5])
    if kind == 11: return [[[old]]] if rng.random() < .5 else f'@deep{rng.choice([5, 60, 70, 1200, 100_000])}'
    return rng.choice(ODD_NUMBERS + ODD_VALUES)


def mutate(seed):
    "One mutated COCO file: its bytes."
    rng = random.Random(seed)
    coco = healthy(rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        there = places(coco)
        if len(there) > 50_000: break  # copies of copies: the file would be larger than the judge's memory
        path = rng.choice(there)
        if rng.random() < .5 and isinstance(coco.get('annotations'), list):
            inner = places(coco['annotations'])  # the heart of the matter gets half of the blows
            path = ('annotations', *rng.choice(inner))
        if not path: continue
        parent, key = at(coco, path[:-1]), path[-1]
        what = rng.randrange(6)
        if what == 0: del parent[key]
        elif what == 1 and isinstance(parent, dict): parent[rng.choice(KEYS)] = parent.pop(key)
        elif what == 2 and isinstance(parent, list): parent.insert(key, change(rng, parent[key], coco))
        else: parent[key] = change(rng, parent[key], coco)
        if not isinstance(coco, dict): break
    return blow(rng, dump(coco))


def dump(value):
    "JSON text of a value; `@deepN` becomes N brackets."
    return re.sub(r'"@deep(\d+)"', lambda m: '['*int(m[1]) + '1' + ']'*int(m[1]), json.dumps(value)).encode()


def blow(rng, data):
    "Now and then damage the text itself."
    if rng.random() < .9: return data
    what, i = rng.randrange(6), rng.randrange(len(data))
    if what == 0: return data[:i]
    if what == 1: return data[:i] + bytes([rng.randrange(256)]) + data[i + 1:]
    if what == 2: return b'\xef\xbb\xbf' + data
    if what == 3: return data + b'{}'
    if what == 4: return data.decode().encode('utf-16')
    return data.replace(b'"id"', b'"id": 3, "id"', 1)
