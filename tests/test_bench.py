"""The benchmarks run, each on tiny input; what they find is no test's business."""
import json, re, runpy, subprocess, sys
from pathlib import Path
import pytest
from support.fresh_process import well

BENCH = Path(__file__).resolve().parents[1]/'bench'
driver = runpy.run_path(str(BENCH/'all.py'))
FULL, QUICK = driver['FULL'], driver['QUICK']


@pytest.mark.parametrize('name', FULL)
def test_every_option_is_known_to_its_script(name):
    text = (BENCH/f'{name}.py').read_text()
    for word in FULL[name] + QUICK[name]:
        if word.startswith('--'): assert f"add_argument('{word}'" in text, f'{name}.py has no {word}'


@pytest.mark.parametrize('name', FULL)
def test_each_runs(name, tmp_path):
    def work():
        sys.argv = [f'{name}.py', '--tiny']
        with open(tmp_path/'said', 'w') as sys.stdout: runpy.run_path(str(BENCH/f'{name}.py'), run_name='__main__')
    well(work)
    assert json.loads([line for line in (tmp_path/'said').read_text().splitlines() if line.startswith('{')][-1])


def test_what_they_say_is_kept(tmp_path):
    done = subprocess.run([sys.executable, BENCH/'all.py', 'start', 'read_coco', '--tiny', '--out', tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.rstrip().endswith('bench: 2 done, 0 failed'), done.stdout[-2000:] + done.stderr[-3000:]
    for name in ('start', 'read_coco'):
        kept = json.loads((tmp_path/f'bench_{name}.json').read_text())
        assert kept['mode'] == 'tiny' and kept['result'] and re.match(r'20\d\d-', kept['date']) and kept['machine']['processor']


def test_what_is_unknown_is_told():
    done = subprocess.run([sys.executable, BENCH/'all.py', 'prepair'], capture_output=True, text=True)
    assert done.returncode == 2 and 'no benchmark called prepair' in done.stderr


def test_before_and_after_run_in_turns():
    "This tree against itself."
    root = BENCH.parent
    done = subprocess.run([sys.executable, BENCH/'before_after.py', root, '--tiny'], capture_output=True, text=True, timeout=900, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result['cpu']) == set(result['wall']) == {'prepare', 'pack', 'read_coco', 'loader', 'step', 'counting'}
    assert all(r['before'] > 0 and r['after'] > 0 and r['ratio'] > 0 for r in result['wall'].values())
    done = subprocess.run([sys.executable, BENCH/'before_after.py', 'no-such-commit', '--tiny'], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1 and done.stderr.count('\n') == 1


def test_big_annotation_files(tmp_path):
    big = runpy.run_path(str(BENCH/'big_coco.py'))['write'](tmp_path/'big.json', 50, 400, photos=tmp_path/'photos', size_hw=(48, 64))
    coco = json.loads(big.read_text())
    assert [len(coco[k]) for k in ('images', 'annotations', 'categories')] == [50, 400, 8]
    assert {a['image_id'] for a in coco['annotations']} <= {i['id'] for i in coco['images']} and any(a['iscrowd'] for a in coco['annotations'])
    assert len(list((tmp_path/'photos').iterdir())) == 50
