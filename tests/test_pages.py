"""The pages for tasks and the glossary: short, their commands parse, their Python binds, their links lead somewhere."""
import ast, builtins, importlib, inspect, re, shlex
from pathlib import Path

import numpy as np, pytest

import seglab
from seglab import cli
from seglab.report import ERRORS
from support.colour import ciede2000, lab

NBS = Path(__file__).resolve().parents[1]/'nbs'
TASKS = sorted((NBS/'tasks').glob('*.qmd'))
FENCE = re.compile(r'^```(\w+)\n(.*?)^```$', re.M | re.S)
LINK = re.compile(r'\]\(([^)\s#]+)(?:#[^)]*)?\)')

def blocks(text, kind): return [body for language, body in FENCE.findall(text) if language == kind]

def prose(text): return FENCE.sub('', text.split('---\n', 2)[2])

def shell_faults(body):
    "What is wrong with the lines of a shell block: each is a `seglab VERB …` that the command understands."
    faults = []
    for line in body.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        if not words: continue
        if words[0] != 'seglab' or words[1] not in cli._verbs: faults.append(f'{line}: no command of seglab'); continue
        try: cli._given(words[1], words[2:])
        except (SystemExit, ValueError) as e: faults.append(f'{line}: {e}')
    return faults

def resolved(node):
    "The object that a dotted name such as `seglab.Run` is; None where it does not begin with seglab."
    names = ast.unparse(node).split('.')
    if names[0] != 'seglab' or not all(n.isidentifier() for n in names): return None
    found = seglab
    for name in names[1:]: found = getattr(found, name)
    return found

def binds(call):
    "Does the function take these arguments?"
    func = resolved(call.func)
    if not callable(func) or any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords): return
    inspect.signature(func).bind(*call.args, **{k.arg: k.value for k in call.keywords})

def python_faults(body):
    "What is wrong with a Python block: names that nobody made, attributes that are not there, calls that do not bind."
    tree = ast.parse(body)
    made, faults = set(dir(builtins)), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)): made |= {a.asname or a.name.partition('.')[0] for a in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): made.add(node.id)
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.ImportFrom):
                for a in node.names: getattr(importlib.import_module(node.module), a.name)
            elif isinstance(node, ast.Attribute): resolved(node)
            elif isinstance(node, ast.Call): binds(node)
            elif isinstance(node, ast.Name) and node.id not in made: faults.append(f'{node.id} is not defined')
        except (AttributeError, TypeError, ImportError) as e: faults.append(f'{ast.unparse(node)}: {e}')
    return faults

@pytest.mark.parametrize('page', TASKS, ids=lambda p: p.stem)
def test_a_page_for_a_task(page):
    text = page.read_text()
    assert re.match(r'---\ntitle: "[^"]+"\ndescription: "[^"]+"\n---\n', text)
    assert len(text.split()) < 300, f'{len(text.split())} words'
    faults = [f for body in blocks(text, 'sh') for f in shell_faults(body)]
    faults += [f for body in blocks(text, 'python') for f in python_faults(body)]
    assert not faults, faults
    assert {language for language, _ in FENCE.findall(text)} == {'sh', 'python'}
    last = text.strip().splitlines()[-1]
    assert last.startswith('How it works: [') and LINK.findall(last), 'it ends in the page that explains it'

def test_there_is_a_page_for_each_task(): assert len(TASKS) == 6

@pytest.mark.parametrize('page', [*TASKS, NBS/'glossary.qmd'], ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(prose(page.read_text())) if '://' not in link]
    there = {re.sub(r'^\d+_', '', p.stem) for p in [*NBS.glob('*.ipynb'), *NBS.glob('lib/*.ipynb')]}
    gone = [link for link in links if not ((page.parent/link).exists() or link.endswith('.html') and Path(link).stem in there)]
    assert links and not gone, gone

def test_each_term_of_the_glossary_has_one_sentence_and_a_link():
    terms = re.findall(r'^### (.+)\n(.+)$', (NBS/'glossary.qmd').read_text(), re.M)
    assert len(terms) > 35
    for term, said in terms: assert re.fullmatch(r'[^.]+(?:\.\D[^.]*)?\. See \[[^\]]+\]\([^)]+\)\.', said), f'{term}: {said}'

@pytest.mark.parametrize('line', ['seglab train data runs/unet --loss', 'seglab train data runs/unet --epochz 3', 'seglab paint a b', 'segleb train a b'])
def test_a_wrong_command_is_noticed(line): assert shell_faults(line)

@pytest.mark.parametrize('body', ['import seglab\nseglab.fitt(1)', 'import seglab\nseglab.fit()', 'print(nobody)', 'from seglab.own import gone',
                                  'import seglab\nseglab.check(1, nonsense_of_mine=2, out=3, data=4)', 'import seglab\nseglab.Run.reload'])
def test_wrong_python_is_noticed(body): assert python_faults(body)

def test_help_explains_the_parameters_of_functions_and_methods():
    assert "\n  crowd: iscrowd=1 becomes: 'ignore'" in seglab.prepare.__doc__
    assert '\n  path: a folder that' in seglab.Prepared.__doc__ and '\n  n: how many photos' in seglab.Prepared.show.__doc__


# --- colours

@pytest.mark.parametrize('one, two, apart', [((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 2.5, 0), (73, 25, -18), 27.1492), ((50, -1, 2), (50, 0, 0), 2.3669),
                                             ((2.0776, .0795, -1.135), (.9033, -.0636, -.5514), .9082), ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373)])
def test_ciede2000_gives_the_numbers_of_its_paper(one, two, apart): assert ciede2000(one, two) == pytest.approx(apart, abs=1e-4)

def test_the_colours_of_common_classes_and_errors_look_different():
    ids = [*range(24), seglab.IGNORE]
    classes, errors = lab(seglab.palette()[ids]), lab([color for _, color in ERRORS.values()])
    apart = ciede2000(classes[:, None], classes[None]) + 999*np.eye(len(ids))
    assert not {(ids[i], ids[j]) for i, j in np.argwhere(apart < 20)}
    assert ciede2000(errors[:, None], classes[None]).min() > 20
    assert (ciede2000(errors[:, None], errors[None]) + 999*np.eye(len(errors))).min() > 20


# --- what a notebook shows while it works

def executed(*cells):
    "What each cell sent while it ran, as (kind, data), and the outputs that are left."
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    sent = [[] for _ in cells]
    class Client(nbclient.NotebookClient):
        def process_message(self, msg, cell, i):
            if 'data' in msg['content']: sent[i].append((msg['msg_type'], msg['content']['data']))
            return super().process_message(msg, cell, i)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    Client(nb, timeout=300, kernel_name='python3').execute()
    return sent, [c.outputs for c in nb.cells]

BAR = 'import time\nfrom seglab.files import progress_bar\nfor _ in progress_bar(range(4), desc="count"): time.sleep(.5)'
FIT = """import gc, tempfile, warnings, seglab
from pathlib import Path
root = Path(tempfile.mkdtemp())
seglab.make_sample(root/'raw', n=12, size_hw=(32, 32))
data = seglab.prepare(root/'raw/annotations/instances_sample.json', root/'raw/sample', root/'data', size_hw=32, workers=1)
def fit(name, **kw):
    model = seglab.build_unet(seglab.load_data(data.path).label_space, 'resnet18', encoder_weights=None)
    gc.freeze()    # each training looks for garbage first; what is imported is none
    seglab.fit(model, data, epochs=2, recipe='assignment', out=root/name, use_cpu=True, **kw)"""

def test_a_notebook_shows_bars_and_curves_in_place_and_keeps_none(monkeypatch):
    monkeypatch.delenv('IN_TEST', raising=False)
    sent, left = executed(BAR, FIT, 'fit("all")', 'fit("bare", pictures=0)', 'fit("quiet", progress=False)')
    assert sent[0][0][0] == 'display_data' and 'count:' in sent[0][0][1]['text/plain'] and sent[0][-1] == ('update_display_data', {})
    views = [[data['text/html'].count('<img') for _, data in of if 'text/html' in data] for of in sent]
    assert views[2:] == [[4, 4], [1, 1], []]                                      # 3 photos to validate on, and the curves; 2 epochs
    shown = [o for outputs in left for o in outputs if o.output_type != 'stream' and o.data]
    assert shown == [] and not any(o.get('name') == 'stderr' for outputs in left for o in outputs)
    assert sum(o.text.count('epoch') for o in left[2] if o.output_type == 'stream') == 2

def test_a_recorded_notebook_shows_no_bar(monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    assert executed(BAR) == ([[]], [[]])


# --- the site

def test_outputs_on_the_site_hold_something(monkeypatch):
    monkeypatch.syspath_prepend(str(NBS.parent/'tools'))
    docs, line = importlib.import_module('docs'), lambda text, name='stdout': dict(output_type='stream', name=name, text=[text])
    picture, gone = dict(output_type='display_data', data={'image/png': 'x'}), dict(output_type='display_data', data={})
    found = docs.tidy_outputs([line('one\n'), line('two\n'), line('wrong\n', 'stderr'), gone, picture, line('\n')])
    assert [o.get('text') and ''.join(o['text']) for o in found] == ['one\ntwo\n', 'wrong\n', None]

def test_a_signature_that_says_nothing_is_left_out(monkeypatch):
    monkeypatch.syspath_prepend(str(NBS.parent/'tools'))
    docs = importlib.import_module('docs')
    block = '### Pull\n\n```python\n\ndef {}(\n    {}\n):\n\n```\n\n*Words.*'
    assert docs.mend_api_block(block.format('Pull', '*args, **kwargs'), 'x') == '### Pull\n\n*Words.*'
    assert 'rows' in docs.mend_api_block(block.format('Pull', 'rows, # of it'), 'x')
