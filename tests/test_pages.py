"""The pages for tasks and the glossary: short, their commands parse, their Python binds, their links lead somewhere."""
import ast, builtins, importlib, inspect, re, shlex
from pathlib import Path

import pytest

import seglab
from seglab import cli

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
