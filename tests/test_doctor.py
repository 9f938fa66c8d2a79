"Twelve planted faults are named, and clean samples are left alone."
import json, os
from pathlib import Path
import pytest
from support.planted import PLANTED, plant
from seglab.doctor import check

LONG = bool(os.environ.get('SEGLAB_LONG'))
DATA = Path(os.environ.get('SEGLAB_DATA', 'none'))

@pytest.mark.parametrize('fault', PLANTED)
def test_each_planted_fault_is_named(tmp_path, fault):
    found = check(*plant(tmp_path/'raw', fault), progress=False).findings
    assert PLANTED[fault] in [f.name for f in found], [f.sentence for f in found]
    assert [f.harm for f in found] == sorted((f.harm for f in found), reverse=True) and len(found) <= 10

@pytest.mark.parametrize('seed', range(100, 120 if LONG else 104))
def test_no_false_alarm_on_clean_samples(tmp_path, seed):
    assert [f.sentence for f in check(*plant(tmp_path/'raw', None, seed=seed), progress=False).findings if f.harm > .3] == []
