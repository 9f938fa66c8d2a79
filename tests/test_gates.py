"""Each gate of tools/gates.py holds on a clean tree and fails on a planted fault."""
import json, os, shutil, subprocess, sys
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

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A small project of the same shape: the same tools and settings, two notebooks, a site, a README."
    tree = tmp_path_factory.mktemp('made')/'project'
    (tree/'nbs').mkdir(parents=True)
    for name in ('tools', 'settings.ini', 'nbs/_quarto.yml', 'nbs/nbdev.yml', 'nbs/styles.css', 'nbs/favicon.svg'):
        copy = shutil.copytree if (ROOT/name).is_dir() else shutil.copy
        copy(ROOT/name, tree/name)
    (tree/'nbs/sidebar.yml').write_text('website:\n  sidebar:\n    contents:\n      - section: Start\n        contents:\n'
                                        '          - {href: index.ipynb, text: Front}\n          - {href: 00_toy.ipynb, text: Toy}\n')
    write_notebook(tree/'nbs/index.ipynb', markdown('# toy\n\n> A toy.'), markdown('Uses `double`.'))
    write_notebook(tree/'nbs/00_toy.ipynb', markdown('# Toy\n\n> Doubling.'), code('#| default_exp toy'),
                   code('#| export\ndef double(\n    x:int, # a number\n)->int: # twice the number\n    "Double a number."\n    return 2*x'),
                   code('assert double(2) == 4'))
    (tree/'seglab').mkdir()
    (tree/'seglab/__init__.py').write_text('__version__ = "0.1.0"\n')
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
    status, text = gate(tree, 'clean', 'export', 'readme', 'symbols', 'notebooks', 'docs')
    assert status == 0, text
    assert text.strip().splitlines()[-1] == 'notebooks: 2 passed, 0 failed'

def test_clean_sees_an_execution_count(tree):
    edit(tree/'nbs/00_toy.ipynb', lambda cells: cells[-1].update(execution_count=7))
    status, text = gate(tree, 'clean')
    assert status == 1 and 'nbdev_clean changed nbs/00_toy.ipynb' in text

def test_export_sees_a_module_edited_by_hand(tree):
    (tree/'seglab/toy.py').write_text((tree/'seglab/toy.py').read_text() + '\nby_hand = 1\n')
    status, text = gate(tree, 'export')
    assert status == 1 and 'nbdev_export changed seglab/toy.py' in text

def test_readme_sees_a_stale_readme(tree):
    (tree/'README.md').write_text('old')
    status, text = gate(tree, 'readme')
    assert status == 1 and 'README.md not in step' in text

@pytest.mark.parametrize('source, gap', [
    ('#| export\ndef half(\n    x:int,\n)->int: # half\n    "Halve."\n    return x//2', 'half: no docment for x'),
    ('#| export\ndef half(\n    x:int, # a number\n)->int: # half\n    return x//2', 'half: no docstring'),
    ('#| export\ndef half(\n    x:int, # a number\n)->int:\n    "Halve."\n    return x//2', 'half: no docment for the return'),
    ('#| export\nclass Half:\n    "Halves."\n    def __init__(self, x): self.x = x', 'Half: no docment for x'),
    ('#| export\ndef half(\n    x:int, # a number\n)->int: # half\n    "Halve."\n    return x//2', 'half: no example in view'),
])
def test_symbols_sees_a_gap(tree, source, gap):
    edit(tree/'nbs/00_toy.ipynb', lambda cells: cells.append({**code(source), 'id': 'planted1'}))
    status, text = gate(tree, 'symbols')
    assert status == 1 and gap in text, text

def test_notebooks_counts_a_failing_cell(tree):
    edit(tree/'nbs/00_toy.ipynb', lambda cells: cells.append({**code('assert double(2) == 5'), 'id': 'planted1'}))
    status, text = gate(tree, 'notebooks')
    assert status == 1 and text.strip().splitlines()[-1] == 'notebooks: 1 passed, 1 failed', text
    assert 'assert double(2) == 5' in text and 'AssertionError' in text, 'what went wrong is shown'

@pytest.mark.parametrize('link', ['[gone](gone.html)', '[no such heading](toy.html#nowhere)'])
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
