"The list of mutants fits the code: each old text is still there, and each test file that should notice."
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('mutants', ROOT/'tools'/'mutants.py')
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)


def test_every_mutant_can_be_made(): assert mutants.missing() == [] and len(mutants.mutants(mutants.MUTANTS)) >= 60


def test_every_test_file_is_there():
    assert not [t for _, tests, *_ in mutants.mutants(mutants.MUTANTS) for t in tests if not (ROOT/'tests'/f'{t}.py').is_file()]


def test_a_mutant_is_noticed_or_not(tmp_path):
    for folder in ('seglab', 'tests'): (tmp_path/folder).mkdir()
    (tmp_path/'seglab'/'m.py').write_text('A = 1\n')
    (tmp_path/'tests'/'test_m.py').write_text("from pathlib import Path\ndef test_a(): assert 'A = 1' in Path('seglab/m.py').read_text()\n")
    assert mutants.killed(tmp_path, 'm', ['test_m'], 'A = 1', 'A = 2', 60)
    assert not mutants.killed(tmp_path, 'm', ['test_m'], 'A = 1', 'A = 1 ', 60)
    assert (tmp_path/'seglab'/'m.py').read_text() == 'A = 1\n'
