"""The report with every name chosen by a stranger: nothing runs, nothing is markup, and each escape is needed."""
import json, re
from html.parser import HTMLParser
import cv2, numpy as np, pytest, torch
from torch import nn
import seglab.report as report
from seglab.comparison import compare
from seglab.dataset import LabelSpace, SegDataset
from seglab.model import Segmenter

EVIL = ['background', '<script>alert(1)</script>', '</script><img src=x onerror=alert(2)>', '"onload=alert(3) $x_1$', '=cmd|x!A1']
STEMS = ["<img src=x onerror=alert(4)>", "it's & <b>", '__proto__', 'plain']
MODELS = ['<script>alert(7)</script>', '"onload=alert(8) $', '| [x](http://evil)']

class Seen(HTMLParser):
    "All tags of a page with their attributes."
    def __init__(self, text): super().__init__(); self.tags = []; self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))

def model(seed):
    torch.manual_seed(seed)
    return Segmenter(nn.Conv2d(3, len(EVIL), 1), EVIL)

@pytest.fixture(scope='module')
def evil(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp('evil'), np.random.default_rng(0)
    for d in ('images', 'masks'): (root/d).mkdir()
    for stem in STEMS:
        mask = cv2.resize(rng.integers(0, len(EVIL), (4, 5), np.uint8), (40, 32), interpolation=cv2.INTER_NEAREST)
        for d, a in (('images', np.stack([mask * 40] * 3, -1)), ('masks', mask)): (root/d/f'{stem}.png').write_bytes(cv2.imencode('.png', a)[1].tobytes())
    ds = SegDataset.from_folders(root/'images', root/'masks', LabelSpace.from_names(EVIL))
    return root/'r', compare({n: model(i) for i, n in enumerate(MODELS)}, ds, root/'r', measure=False, n_boot=50)

def harmless(text, scripts):
    "No script, handler or address of a stranger's in a page."
    tags = Seen(text).tags
    assert sum(t == 'script' for t, _ in tags) == scripts, [t for t in tags if t[0] == 'script']
    for tag, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith('on') and not re.match(r'\s*javascript:', value or '', re.I), (tag, attributes)
            if name in ('src', 'href'): assert value.startswith('data:image/'), value
    return tags

def test_nothing_of_a_strangers_runs(evil):
    text = (evil[0]/'report.html').read_text()
    tags = harmless(text, 2)
    policy = [a['content'] for t, a in tags if t == 'meta' and a.get('http-equiv') == 'Content-Security-Policy']
    assert len(policy) == 1 and "default-src 'none'" in policy[0] and 'unsafe-inline' not in policy[0].split('script-src')[1]
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert [c['name'] for c in data['classes']] == EVIL and sorted(p['name'] for p in data['photos']) == sorted(STEMS)
    harmless(evil[1]._repr_html_(), 0)

def test_the_policy_names_the_hash_of_the_script_that_is_there(evil):
    from base64 import b64encode
    from hashlib import sha256
    text = (evil[0]/'report.html').read_text()
    script = re.findall(r'<script>(.*?)</script>', text, re.S)[0]
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in [a['content'] for t, a in Seen(text).tags if a.get('http-equiv')][0]

def raw_markup(text):
    found = re.findall(r'(?<!\\)<[a-zA-Z!/][^>]*>|(?<!\\)!?\[(?:[^\]\\]|\\.)*\]\([^)]*\)', text)
    return [m for m in found if not re.match(r'!\[.*\]\(pictures/[\w.+=@%~-]+\.png\)', m)]

def test_markdown_and_table_hold_no_markup_and_no_formula(evil):
    assert raw_markup((evil[0]/'report.md').read_text()) == []
    for line in (evil[0]/'scores_per_photo.csv').read_text().splitlines(): assert line[0] not in '=+@-'

@pytest.mark.parametrize('escape', ['autoescape', 'data'])
def test_each_escape_is_needed(evil, monkeypatch, escape):
    "With one of them taken away the judge above sees it."
    import jinja2
    made = jinja2.Environment
    if escape == 'autoescape': monkeypatch.setattr(jinja2, 'Environment', lambda **kw: made(**kw | dict(autoescape=False)))
    else: monkeypatch.setattr(report, 'page_data', lambda c, photos: json.dumps(dict(names=EVIL)))
    page = report._html(evil[1], {}, [dict(name='x')], 'said')
    with pytest.raises(AssertionError): harmless(page, 2)
