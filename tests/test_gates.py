"""Each gate of tools/gates.py holds on a clean tree and fails on a planted fault."""
import importlib.util, json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

def markdown(text): return dict(cell_type='markdown', metadata={}, source=text, id='a' * 8)
def code(text, id='b' * 8): return dict(cell_type='code', metadata={}, source=text, id=id, outputs=[], execution_count=None)

def write_notebook(path, *cells):
    for i, cell in enumerate(cells): cell['id'] = f'cell{i:04d}'
    kernel = dict(display_name='python3', language='python', name='python3')
    path.write_text(json.dumps(dict(cells=list(cells), metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5), indent=1) + '\n')

def gate(tree, *names):
    "Run gates in a tree; exit status and what was printed."
    env = {**os.environ, 'PYTHONPATH': str(tree)}
    done = subprocess.run([sys.executable, 'tools/gates.py', *names], cwd=tree, env=env, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stderr + done.stdout

def exported(name, source): return code(f'#| export\ndef {name}(\n    x:int, # a number\n)->int: # {source}\n    "Compute {source}."\n    return {source}')

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A small project of the same shape: the same tools and settings, three notebooks, a site, a README, a command."
    tree = tmp_path_factory.mktemp('made')/'project'
    (tree/'nbs'/'lib').mkdir(parents=True)
    for name in ('tools', 'settings.ini', 'setup.py', 'MANIFEST.in', 'LICENSE', 'nbs/_quarto.yml', 'nbs/nbdev.yml', 'nbs/styles.css', 'nbs/favicon.svg'):
        copy = shutil.copytree if (ROOT/name).is_dir() else shutil.copy
        copy(ROOT/name, tree/name)
    write_notebook(tree/'nbs/index.ipynb', markdown('# toy\n\n> A toy.'), markdown('Uses `double`; see [Files](00_files.ipynb).\n\n<!-- house -->\n<!-- /house -->'))
    write_notebook(tree/'nbs/00_files.ipynb', markdown('# Files\n\n> Doubling.'), code('#| default_exp files'), exported('double', '2*x'),
                   code('assert double(2) == 4'))
    write_notebook(tree/'nbs/lib/40_cli.ipynb', markdown('# The command\n\n> A command.'), code('#| default_exp cli'), code('#| export\nfrom seglab.files import double'),
                   code('#| export\ndef main()->int: # exit code\n    "The command."\n    return double(0)'), code('assert main() == 0'))
    (tree/'seglab').mkdir()
    text = (ROOT/'seglab/__init__.py').read_text()
    start = text.index('_PUBLIC = dict(')
    (tree/'seglab/__init__.py').write_text(text[:start] + "_PUBLIC = dict(files='double')\n" + text[text.index('_HOME = '):])
    (tree/'seglab/report.html.jinja').write_text('a template')
    env = {**os.environ, 'PYTHONPATH': str(tree)}
    for command in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=tree, env=env, check=True)
    subprocess.run([sys.executable, 'tools/readme.py'], cwd=tree, env=env, check=True)
    return tree

@pytest.fixture
def tree(made, tmp_path):
    "A copy of it to plant a fault in."
    return shutil.copytree(made, tmp_path/'project')

def edit(path, change):
    nb = json.loads(path.read_text())
    change(nb['cells'])
    path.write_text(json.dumps(nb, indent=1) + '\n')

def test_all_hold_on_a_clean_tree(tree):
    status, text = gate(tree, 'clean', 'export', 'readme', 'names', 'symbols', 'messages', 'house', 'package', 'notebooks', 'docs')
    assert status == 0, text
    assert text.strip().splitlines()[-1] == 'notebooks: 3 passed, 0 failed'

def test_clean_sees_an_execution_count(tree):
    edit(tree/'nbs/00_files.ipynb', lambda cells: cells[-1].update(execution_count=7))
    status, text = gate(tree, 'clean')
    assert status == 1 and 'nbdev_clean changed nbs/00_files.ipynb' in text

def test_export_sees_a_module_edited_by_hand(tree):
    (tree/'seglab/files.py').write_text((tree/'seglab/files.py').read_text() + '\nby_hand = 1\n')
    status, text = gate(tree, 'export')
    assert status == 1 and 'nbdev_export changed seglab/files.py' in text

def test_readme_sees_a_stale_readme(tree):
    (tree/'README.md').write_text('old')
    edit(tree/'nbs/00_files.ipynb', lambda cells: cells[0].update(source='# Doubles\n\n> Doubling.'))
    status, text = gate(tree, 'readme')
    assert status == 1 and 'README.md, nbs/index.ipynb, nbs/sidebar.yml not in step' in text

@pytest.mark.parametrize('source, gap', [
    ('#| export\ndef half(\n    x:int,\n)->int: # half\n    "Halve."\n    return x//2', 'half: no docment for x'),
    ('#| export\ndef half(\n    x:int, # a number\n)->int: # half\n    return x//2', 'half: no docstring'),
    ('#| export\ndef half(\n    x:int, # a number\n)->int:\n    "Halve."\n    return x//2', 'half: no docment for the return'),
    ('#| export\nclass Half:\n    "Halves."\n    def __init__(self, x): self.x = x', 'Half: no docment for x'),
    ('#| export\ndef half(\n    x:int, # a number\n)->int: # half\n    "Halve."\n    return x//2', 'half: no example in view'),
])
def test_symbols_sees_a_gap(tree, source, gap):
    edit(tree/'nbs/00_files.ipynb', lambda cells: cells.append({**code(source), 'id': 'planted1'}))
    status, text = gate(tree, 'symbols')
    assert status == 1 and gap in text, text

DEVIANT = [
    ("raise UserError(f'{x} is wrong; use another.')", 'files.py:1: not of the form'),
    ("raise UserError('x=1: expected 2, got 1.')", 'says "got" without a semicolon'),
    ("raise mistake('x', 1, 'expected 2')", 'expected= says more'),
    ("raise mistake('x', 1, '2', 'use 2')", 'todo= is not a sentence'),
    ("raise mistake('x', 1, '2', got='got 1')", 'got= says more'),
    ("def half(x):\n    'Halve'", 'half: the docstring is not one line'),
    ("class Half:\n    'Halve.\\n\\nTwice.'", 'Half: the docstring is not one line'),
]
IN_FORM = """
def half(x):
    text = 'x=1: expected 2; got 1.'
    raise UserError(text)
def whole(x):
    'Is it whole?'
    raise UserError(f'{name}: expected JSON; got {x}. {todo}')
def third(x):
    'A third.'
    raise mistake('x', 1, f'one of {known}', 'Give another.', 'text')
def _tenth(x):
    'A tenth'
    raise LabelError('any sentence', 'code') if x else UserError(done.complaint)
"""

@pytest.mark.parametrize('source, said', DEVIANT)
def test_messages_sees_another_form(tree, source, said):
    (tree/'seglab/files.py').write_text(source + '\n')
    status, text = gate(tree, 'messages')
    assert status == 1 and said in text, text

def test_messages_leaves_the_form_alone(tree):
    (tree/'seglab/files.py').write_text(IN_FORM)
    status, text = gate(tree, 'messages')
    assert status == 0 and 'messages: 0 faults' in text, text

@pytest.mark.parametrize('change, said', [
    (("files='double'", "files='double treble'"), "no module has: ['treble']"),
    (('__all__ = ', 'extra = 1\n__all__ = '), "not on the list: ['extra']"),
    (('__all__ = ', 'import numpy\n__all__ = '), 'loads torch, numpy or pandas'),
    (('def __dir__(): return __all__', "def __dir__(): return [*__all__, 'more']"), "not the written list: ['more']"),
])
def test_names_sees_what_is_handed_out(tree, change, said):
    file = tree/'seglab/__init__.py'
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change))
    status, text = gate(tree, 'names')
    assert status == 1 and said in text, text

@pytest.mark.parametrize('book, cells, said', [
    ('00_files', [code('#| export\nx = "' + 120*'x' + '"')], 'a line of 126 columns'),
    ('00_files', [code('#| export\n' + '\n'.join(f'x{i} = {i}' for i in range(451)))], '00_files.ipynb: 456 exported lines'),
    ('00_files', [markdown('word '*3001)], '3005 words'), ('00_files', [code('1')]*130, '134 cells'),
    ('00_files', [code('#| export\n' + '\n'.join(f'def _f{i}(): pass' for i in range(11)))], '11 private names'),
    ('lib/40_cli', [exported('double', '3*x')], 'double: defined in cli and files'),
    ('lib/40_cli', [code('#| export\nfrom seglab.files import _half')], 'cli: imports the private name _half of files'),
    ('00_files', [code('#| export\nfrom seglab.cli import main')], 'files: imports upwards, from cli'),
    ('index', [markdown('[here](files.html)')], 'the link files.html should end in .ipynb'),
    ('index', [markdown('[here](lib/41_gone.ipynb)')], 'the link lib/41_gone.ipynb leads nowhere'),
])
def test_house_sees_a_broken_rule(tree, book, cells, said):
    add = [{**c, 'id': f'planted{i}'} for i, c in enumerate(cells)]
    edit(tree/f'nbs/{book}.ipynb', lambda there: there.extend(add))
    env = {**os.environ, 'PYTHONPATH': str(tree)}
    subprocess.run([Path(sys.executable).with_name('nbdev_export')], cwd=tree, env=env, check=True)
    status, text = gate(tree, 'house')
    assert status == 1 and said in text, text

def test_house_sees_a_chapter_whose_call_comes_late(tree):
    shutil.move(tree/'nbs/00_files.ipynb', tree/'nbs/00_masks.ipynb')
    edit(tree/'nbs/00_masks.ipynb', lambda cells: cells.append({**code('prepare = len\nprepare([])'), 'id': 'planted1'}))
    status, text = gate(tree, 'house')
    assert status == 1 and '00_masks.ipynb: its call first runs at cell 4 of 5' in text, text

@pytest.mark.parametrize('file, old, new, said', [
    ('setup.py', "['*.jinja']", '[]', 'the wheel lacks seglab/report.html.jinja'), ('MANIFEST.in', 'settings.ini ', '', 'the sdist cannot be built'),
    ('settings.ini', 'seglab.cli:main', 'seglab.cli:mian', 'does not work outside')])
def test_package_sees_what_is_left_out(tree, file, old, new, said):
    text = (tree/file).read_text()
    assert old in text
    (tree/file).write_text(text.replace(old, new))
    status, text = gate(tree, 'package')
    assert status == 1 and said in text, text

def test_notebooks_counts_one_that_dies(tree):
    "As the system kills what takes too much memory: the others still count."
    edit(tree/'nbs/00_files.ipynb', lambda cells: cells.append(code('import os; os.kill(os.getpid(), 9)', 'd' * 8)))
    status, text = gate(tree, 'notebooks')
    assert status == 1 and text.strip().splitlines()[-1] == 'notebooks: 2 passed, 1 failed' and 'FAILED' in text, text

def test_notebooks_counts_a_failing_cell(tree):
    edit(tree/'nbs/00_files.ipynb', lambda cells: cells.append({**code('assert double(2) == 5'), 'id': 'planted1'}))
    status, text = gate(tree, 'notebooks')
    assert status == 1 and text.strip().splitlines()[-1] == 'notebooks: 2 passed, 1 failed', text
    assert 'assert double(2) == 5' in text and 'AssertionError' in text, 'what went wrong is shown'

@pytest.mark.parametrize('link', ['[gone](gone.html)', '[no such heading](files.html#nowhere)'])
def test_docs_sees_a_broken_link(tree, link):
    edit(tree/'nbs/index.ipynb', lambda cells: cells.append({**markdown(link), 'id': 'planted1'}))
    status, text = gate(tree, 'docs')
    assert status == 1, text

def test_tests_gate_sees_a_failing_test(tree):
    (tree/'tests').mkdir()
    (tree/'tests/test_healthy.py').write_text('def test_healthy(): pass\n')
    (tree/'tests/test_planted.py').write_text('import sys\ndef test_planted():\n    print("said " + "before")\n    assert [0]*300 + [len(sys.argv[0]) * 0] == [0]*300 + [7]\n')
    status, text = gate(tree, 'tests')
    assert status == 1 and 'gate tests: pytest failed' in text and '1 failed, 1 passed' in text, text
    assert 'said before' in text and 'FAILED tests/test_planted.py::test_planted' in text, text
    (tree/'tests/test_planted.py').unlink()
    status, text = gate(tree, 'tests')
    assert status == 0 and '1 passed' in text, text
    (tree/'tests/test_healthy.py').unlink()
    assert gate(tree, 'tests')[0] == 1, 'no test at all is no success'

def test_an_unknown_gate_is_told(tree):
    status, text = gate(tree, 'clena')
    assert status == 1 and 'no gate called clena' in text


# --- what the builder of the site does to a page

@pytest.fixture(scope='module')
def docs():
    spec = importlib.util.spec_from_file_location('docs', ROOT/'tools'/'docs.py')
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found

def api(name, line):
    text = f'[source](x.py#L{line})\n\n### {name}\n\n*words*'
    return code(f'#| echo: false\nshow_doc({name})') | dict(outputs=[dict(data={'text/markdown': text})])

def test_api_blocks_come_before_their_source_in_its_order(docs):
    source = code('#| code-fold: show\n#| code-summary: "Exported source"\ndef one(): pass\n\ndef two(): pass')
    prose, test = markdown('words'), code('test_eq(one(), None)')
    hidden = [api('later', 30), api('earlier', 20)]                        # of a cell whose source is not shown
    cells = docs.in_order([prose, api('two', 12), source, api('one', 10), test, *hidden])
    said = [m[1] if (m := docs.API_NAME.search(docs.api_text(c))) else c['source'] for c in cells]
    assert said == ['words', 'one', 'two', source['source'], 'test_eq(one(), None)', 'earlier', 'later']

def test_signatures_do_not_say_where_a_type_lives(docs):
    assert docs.short_signature(')->__main__.Pull | None: # see seglab.tiles.Tile') == ')->Pull | None: # see seglab.tiles.Tile'
    assert docs.short_signature('    out:NoneType=None, # a folder') == '    out=None, # a folder'

@pytest.mark.parametrize('source, folded', [('import os\n'*4, True), ('import os\n'*3, False), ('import os\n'*4 + 'x = 1', False)])
def test_a_wall_of_imports_is_folded(docs, source, folded):
    docs.fold_imports(cell := code(source))
    assert ('code-fold: true' in cell['source']) == folded
