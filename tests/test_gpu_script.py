"bench/gpu.py runs through without a GPU in its tiny mode, says on what it ran, and does nothing twice."
import json, math, os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='kills and clocks are POSIX')
PARTS = ['labels', 'throughput', 'camvid_unet', 'camvid_segformer', 'camvid', 'coco', 'evaluate']


def gpu(home, *parts, **options):
    "Run the script as on a machine without a GPU; the process."
    words = [w for k, v in options.items() for w in ([f'--{k}'] if v is True else [f'--{k}', str(v)])]
    env = {k: v for k, v in os.environ.items() if k != 'SEGLAB_DATA'} | dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', MPLBACKEND='Agg')
    return subprocess.run([sys.executable, str(ROOT/'bench'/'gpu.py'), *parts, '--work', str(home/'work'), '--out', str(home/'results'), *words],
                          env=env, capture_output=True, text=True, timeout=1800)

def read(home, part): return json.loads((home/'results'/f'gpu_{part}.json').read_text())


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "All parts, once."
    home = tmp_path_factory.mktemp('gpu')
    r = gpu(home, *PARTS, tiny=True)
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
    assert r.stdout.startswith('There is no GPU here: running on the CPU')
    return home


def test_every_file_says_where_it_comes_from(home):
    for part in PARTS:
        d = read(home, part)
        assert d['part'] == part and d['complete'] and d['tiny'] and not d['on_gpu'], part
        assert 'CPU' in d['device'] and d['date'] and d['versions']['torch'] and d['seconds'] > 0, part
        assert str(home) not in json.dumps(d), f'{part}: a path of this machine'

def test_every_cause_is_caught(home):
    d = read(home, 'labels')
    assert d['all_caught_and_usable'] and d['caught'] == d['of'] >= 25
    assert {r['where'] for r in d['causes']} == {'check', 'fit'} and all(r['said'] for r in d['causes'])

def test_throughput_has_all_variants(home):
    d = read(home, 'throughput')
    assert {(r['model'], r['variant']) for r in d['rows']} == {(m, v) for m in ('unet', 'segformer') for v in ('plain loop', 'workers', 'fit')}
    assert d['classes'] == 81 and all(r['images_per_second'] > 0 and 0 <= r['wait'] <= 1 and r['matrix_share'] > 0 for r in d['rows'])
    assert all(r['head_share'] > 0 for r in d['rows'] if r['model'] == 'segformer' and r['variant'] == 'fit')

def test_trainings_tell_scores_curves_and_their_plan(home):
    c, f, k = (read(home, n) for n in ('camvid_unet', 'camvid_segformer', 'coco'))
    assert set(c['trainings']) == {'unet-defaults', 'unet-better'} and c['better_minus_defaults'] is not None
    assert set(f['trainings']) == {'segformer-better'} and f['goal']['wanted'] == .55
    assert c['sample_hw'] == [64, 64]                                                # 45×60 padded to multiples of 32
    assert set(k['scored']) == {'things', 'supercategories'}
    for d in (c, f, k):
        for t in d['trainings'].values():
            assert t['epochs'] >= 1 and t['epoch_seconds_measured'] > 0 and len(t['curves']['step']) and t['train_seconds'] > 0
        for s in d['scored'].values():
            for m in s['scores'].values():
                low, high = m['mean_iou_interval']
                assert 0 <= low <= high <= 1 and 0 <= m['mean_iou'] <= 1 and set(m['per_category_iou']) == set(m['per_category_iou_interval'])

def test_all_on_camvid_are_compared(home):
    d = read(home, 'camvid')
    assert set(d['scores']) == {'unet-defaults', 'unet-better', 'segformer-better'} and len(d['differences']) == 3
    assert d['scores']['unet-better']['mean_iou'] == read(home, 'camvid_unet')['scored']['camvid']['scores']['unet-better']['mean_iou']

def test_the_same_scores_on_device_and_cpu(home):
    for m in read(home, 'evaluate')['models'].values():
        assert m['equal'] and m['counting_exact'] and m['images_per_second'] > 0 and math.isfinite(m['mean_iou'])

def test_a_second_call_does_nothing_and_a_cut_part_goes_on(home):
    before = {part: (home/'results'/f'gpu_{part}.json').read_bytes() for part in PARTS}
    f = home/'results'/'gpu_coco.json'
    cut = json.loads(f.read_text())
    keys = list(cut['trainings'])
    f.write_text(json.dumps(dict(cut, complete=False, scored={}, trainings={k: cut['trainings'][k] for k in keys[:-1]})))
    runs = {k: (home/'work'/'coco'/k/'config.json').stat().st_mtime_ns for k in keys}
    r = gpu(home, *PARTS, tiny=True)
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.count('done before, on ') == len(PARTS) - 1
    assert all((home/'results'/f'gpu_{p}.json').read_bytes() == before[p] for p in PARTS if p != 'coco')
    now = read(home, 'coco')
    assert now['complete'] and list(now['trainings']) == keys and now['scored'] == cut['scored']
    assert runs == {k: (home/'work'/'coco'/k/'config.json').stat().st_mtime_ns for k in keys}, 'a finished training was done again'

def test_a_part_is_cut_in_time_and_a_failed_one_stays_failed(tmp_path):
    (tmp_path/'results').mkdir()
    (tmp_path/'results'/'gpu_labels.json').write_text(json.dumps(dict(complete=True, tiny=True, device='x', date='2000-01-01', all_caught_and_usable=False)))
    r = gpu(tmp_path, 'labels', 'throughput', tiny=True, minutes=.02)
    assert r.returncode == 1 and 'labels: failed, throughput: cut' in r.stdout, r.stdout + r.stderr
    r = gpu(tmp_path, 'camvid', tiny=True)
    assert r.returncode == 1 and 'camvid: lacks data' in r.stdout, r.stdout + r.stderr
    d = read(tmp_path, 'throughput')
    assert not d['complete'] and d['minutes_allowed'] == .02 and d['seconds'] < 60

def test_mistakes_are_one_sentence(tmp_path):
    r = gpu(tmp_path, 'speed')
    assert r.returncode == 1 and 'speed is no part' in r.stderr and 'Traceback' not in r.stderr
