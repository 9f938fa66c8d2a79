"Faults that an older version had and no other file of tests covers: damaged notes, reports of any names, streams, disks, memory."
import errno, json, os, shutil, subprocess, sys
from concurrent.futures import Executor, Future
from pathlib import Path

import cv2, numpy as np, pytest

from seglab import cli
from seglab.comparison import Comparison, compare, evaluate, evaluate_masks
from seglab.dataset import LabelSpace, SegDataset, load_data
from seglab.files import UserError, disk_errors
from seglab.masks import Prepared, prepare
from seglab.plan import LearningCurve
from seglab.runs import Run
from seglab.share import predict_files, share_folder
from seglab.train import fit
from support.data import annotation, write_coco, write_masks, write_photos, coco_dict
from support.faults import one_sentence, peak_of, posix
from support.fresh_process import Child
from support.tiny import NAMES, edit, saved_run, tiny


def refused(f, *said, kind=UserError):
    "One sentence, whatever is damaged."
    with pytest.raises(kind) as e: f()
    one_sentence(str(e.value))
    for s in said: assert s in str(e.value), str(e.value)


# --- reports: names of any kind, and a scores.json that somebody edited

def answers(seed, n=12):
    rng, truth = np.random.default_rng(seed), np.zeros((16, 16), np.uint8)
    truth[2:9, 3:12] = 1
    for i in range(n): yield f'p{i}', np.where(rng.random(truth.shape) < .1, 1 - truth, truth).astype(np.uint8), truth

@pytest.fixture(scope='module')
def reported(tmp_path_factory):
    "A comparison of evaluations that were made before, under names that make no folder: (result, its folder, one of them)."
    d = tmp_path_factory.mktemp('reports')
    a, b = (evaluate_masks(answers(s), ['background', 'cat'], out=d/str(s), truth_out=d/'t') for s in (1, 2))
    return compare({'<b>': a, 'CON': b, 'a/b': b, 'A/B': b, '\x1b[2J': b}, out=d/'r', n_boot=50), d/'r', a

def test_a_report_of_given_evaluations_opens_again(reported, tmp_path):
    result, folder, given = reported
    again = Comparison(folder)
    assert again.table.equals(result.table) and str(again) == str(result) and given.folder.name == '1'      # the given one is left alone
    assert all((folder/m['predictions']).is_dir() for m in result.to_dict()['models'].values())
    assert Comparison(compare(again.evaluations, out=tmp_path/'r', n_boot=50).home).verdicts == Comparison(folder).verdicts
    assert '\x1b' not in str(result) + (folder/'report.md').read_text()

MODEL = [dict(runs=[]), dict(runs=3), dict(runs=[{}]), dict(seconds='x'), dict(notes=3), dict(mapping=[1]), dict(reliability={}), dict(cost=dict(a=1)), dict(recipe=3), dict(runs=[dict(predictions='../../x')]),
         dict(reliability=dict(pixels=[1], confidence=[.5], accuracy=[])), dict(reliability=dict(pixels=['x'], confidence=[.5], accuracy=[1]))]
WHOLE = [dict(bootstrap=-1), dict(bootstrap=dict(draws=-1, seed=0, confidence=.95)), dict(bootstrap=dict(draws=10**12, seed=0, confidence=.95)), dict(bootstrap=dict(draws=9, seed=0, confidence=2)),
         dict(label_space=3), dict(label_space={}), dict(label_space=dict(names=['a'], ids=-1)), dict(label_space=dict(names=['a', 'b'], ids=[[0], [-1]])), dict(models=[]), dict(models={}), dict(models=dict(a=1)),
         dict(truth_digest=None), dict(caveats=7), dict(command=[])]

@pytest.mark.parametrize('change', [*({'models': m} for m in MODEL), *WHOLE], ids=str)
def test_damaged_scores_of_a_report(change, reported, tmp_path):
    folder = shutil.copytree(reported[1], tmp_path/'r')
    stored = json.loads((folder/'scores.json').read_text())
    if change.get('models') in MODEL: change = dict(models={n: m | change['models'] for n, m in stored['models'].items()})
    edit(folder/'scores.json', **change)
    refused(lambda: Comparison(folder))

def test_a_report_without_its_tables(reported, tmp_path):
    refused(lambda: Comparison(tmp_path), 'is no report', kind=FileNotFoundError)
    folder = shutil.copytree(reported[1], tmp_path/'r')
    (folder/'scores_per_photo.csv').write_text('name,a\nx,1\n')
    refused(lambda: Comparison(folder), 'a column of stems')

# --- other notes of ours

@pytest.mark.parametrize('scores', [{}, [], dict(epoch=1, step=1, loss='x', mean_iou=.5), dict(epoch=[], step=1, loss=1, mean_iou=.5), dict(step=1, epoch=1, loss=1)], ids=str)
def test_damaged_scores_of_a_run(scores, tmp_path):
    run = Run(saved_run(tmp_path/'r'))
    edit(run.path/'config.json', settings={})
    (run.best/'scores.json').write_text(json.dumps(scores))
    for use in (lambda: repr(run), run.load): refused(use, 'scores.json')

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')
    prepare(*write_coco(folder, [f'{i}.png' for i in range(6)]), folder/'p', size_hw=32, workers=1, split=.4)
    return folder

@pytest.fixture
def prepared(made, tmp_path): return shutil.copytree(made/'p', tmp_path/'p')

@pytest.mark.parametrize('change', [dict(annotations=3), dict(annotations=[1]), dict(crowd=[])], ids=str)
def test_damaged_settings_of_a_prepared_folder(change, prepared):
    edit(prepared/'prepare.json', settings=json.loads((prepared/'prepare.json').read_text())['settings'] | change)
    refused(lambda: Prepared(prepared), 'prepare.json')

@pytest.mark.parametrize('change', [dict(failed='x'), dict(empty=[1]), dict(written=None)], ids=str)
def test_damaged_counts_of_a_prepared_folder(change, prepared, made):
    counts = json.loads((prepared/'prepare.json').read_text())['counts']
    edit(prepared/'prepare.json', counts=counts | dict(images=counts['images'] | change))
    refused(lambda: repr(Prepared(prepared)), 'prepare.json')
    if 'empty' not in change: refused(lambda: prepare(made/'coco.json', made/'photos', prepared, size_hw=32, workers=1, split=.4), 'prepare.json')

@pytest.mark.parametrize('i', [-1, 256, 2**70])
def test_a_class_that_no_mask_can_hold(i, prepared):
    (prepared/'classes.json').write_text(json.dumps(dict(categories=[dict(id=i, name='x')])))
    refused(lambda: Prepared(prepared).classes, 'classes.json')

@pytest.mark.parametrize('stems', [None, 3, [3], {}], ids=str)
def test_damaged_marks(stems, tmp_path):
    write_photos(tmp_path/'in', ['a.png'])
    for d in ('out', 'share'): (tmp_path/d).mkdir()
    (tmp_path/'out'/'predictions.json').write_text(json.dumps(dict(stems=stems)))
    refused(lambda: predict_files(tiny(), tmp_path/'in', tmp_path/'out'), 'predictions.json')
    (tmp_path/'share'/'share.json').write_text(json.dumps(dict(files=stems)))
    refused(lambda: share_folder(tiny(), tmp_path/'share'), 'share.json')
    (tmp_path/'curve.json').write_text(json.dumps(dict(scores=stems or 1)))
    refused(lambda: LearningCurve(tmp_path), 'curve.json' if stems else 'JSON')

# --- files that change meanwhile

@pytest.mark.filterwarnings('ignore:the packed arrays')
def test_masks_replaced_by_older_ones_are_seen(prepared):
    "As `cp -p`, an archive or a backup brings them back."
    load_data(prepared)
    for f in (prepared/'masks').iterdir():
        cv2.imwrite(str(f), np.full((32, 32), 2, np.uint8))
        os.utime(f, (10**9, 10**9))
    assert set(np.unique(load_data(prepared).train[0]['labels'])) == {2}

@pytest.mark.parametrize('text', ['', '{"images": []}', None], ids=['emptied', 'rewritten', 'of the same length'])
def test_an_annotation_file_edited_while_we_paint(text, made, tmp_path):
    "What was read is painted: the file is not looked at again."
    file = Path(shutil.copy(made/'coco.json', tmp_path/'coco.json'))
    class Editing(Executor):
        def submit(self, f, *args):
            old = file.read_text()
            with open(file, 'r+') as g: g.write(old.replace('1', '9') if text is None else text); g.truncate()
            done = Future()
            done.set_result(f(*args))
            return done
    done = prepare(file, made/'photos', tmp_path/'p', size_hw=32, split=.4, executor=Editing())
    assert all(f.read_bytes() == (made/'p'/'masks'/f.name).read_bytes() for f in (tmp_path/'p'/'masks').iterdir())
    assert done.settings['digest'] == Prepared(made/'p').settings['digest']

# --- disks

def test_a_file_that_another_program_has_open(tmp_path):
    "Windows refuses to replace it: that is not a folder without the right to write."
    (tmp_path/'report.html').write_text('x')
    def replace():
        with disk_errors(tmp_path): raise PermissionError(errno.EACCES, 'Access is denied', str(tmp_path/'.tmp-1'), 5, str(tmp_path/'report.html'))
    refused(replace, 'report.html', 'another program has it open', kind=PermissionError)

@posix
def test_a_limit_on_the_size_of_files(tmp_path):
    def work():
        import resource, signal
        model = tiny()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model.save_pretrained(tmp_path/'m')
    code, said = Child(work).wait()
    assert code == 1 and said.startswith('OSError: A file grew larger than the disk or your limit allows'), said
    assert os.listdir(tmp_path) == []

@posix
def test_training_on_a_disk_without_locks(tmp_path, monkeypatch):
    import fcntl
    def none(*args): raise OSError(errno.ENOSYS, 'Function not implemented')
    monkeypatch.setattr(fcntl, 'flock', none)
    ds = SegDataset.from_folders(*write_masks(tmp_path, 4), LabelSpace.from_names(NAMES))
    assert fit(tiny(), (ds, ds), epochs=1, recipe='assignment', out=tmp_path/'r', pictures=0, progress=False).finished

def test_a_link_to_nothing_is_no_folder(tmp_path):
    (tmp_path/'link').symlink_to(tmp_path/'gone')
    refused(lambda: share_folder(tiny(), tmp_path/'link'), 'a link to nothing')
    assert (tmp_path/'link').is_symlink()

# --- streams and the command line

MAIN = 'import sys; from seglab.cli import main; sys.exit(main())'

@posix
@pytest.mark.parametrize('how', ['2>&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_streams_that_are_closed(how, made, tmp_path):
    words = f"prepare {made/'coco.json'} {made/'photos'} {tmp_path/'p'} --size-hw 32"
    done = subprocess.run(f"{sys.executable} -c '{MAIN}' {words} {how}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '' and len(Prepared(tmp_path/'p').index) == 6

@pytest.mark.parametrize('said', ['seed=3', 'out=x', 'data=x', 'model=x', 'recipe=x'])
def test_what_has_an_option_of_its_own_is_not_set(said, made, tmp_path, capsys):
    name = said.partition('=')[0]
    assert cli.main(['train', str(made/'p'), str(tmp_path/'r'), '--weights', 'none', '--set', said]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith('seglab')]
    assert len(err) == 1 and said in err[0] and (name in ('out', 'data') or f'--{name}' in err[0]), err
    assert not (tmp_path/'r').exists()

@pytest.mark.parametrize('kw', [dict(callbacks=3), dict(optimizer=3), dict(compile=7), dict(weight_decay='x'), dict(name=3)], ids=str)
def test_values_of_another_kind_leave_no_run(kw, tmp_path):
    ds = SegDataset.from_folders(*write_masks(tmp_path, 4), LabelSpace.from_names(NAMES))
    refused(lambda: fit(tiny(), (ds, ds), epochs=1, recipe='assignment', out=tmp_path/'r', pictures=0, progress=False, **kw))
    assert not (tmp_path/'r').exists()

EVIL = '\x1b[2J\x1b]0;owned\x07'

def test_no_name_reaches_a_terminal_raw(made, tmp_path):
    ds = SegDataset.from_folders(*write_masks(tmp_path/EVIL, 4), LabelSpace.from_names(['background', EVIL, 'x']))
    texts = [repr(ds), repr(ds.label_space), str(UserError(EVIL))]
    for f in (lambda: prepare(made/'coco.json', made/'photos', tmp_path/'q', keep=[EVIL]), lambda: load_data(made/'p', classes=[EVIL]), lambda: evaluate(tiny(ds.label_space.names), ds, mapping={EVIL + 'x': 'x'})):
        with pytest.raises(UserError) as e: f()
        texts.append(str(e.value))
    assert not [t for t in texts if '\x1b' in t or '\x07' in t]

# --- memory, names, pixels

def test_an_rle_string_of_millions_costs_no_more_than_its_length(tmp_path):
    for kind, counts in dict(letters='1'*4_000_000, packed='P'*4_000_000, zeros=[0]*2_000_000).items():
        annotations = [annotation(1, segmentation=dict(size=[48, 64], counts=counts)), annotation(2, image_id=1)]
        (tmp_path/kind).mkdir()
        coco, photos = write_coco(tmp_path/kind, ['a.png'], annotations=annotations)
        done = {}
        assert peak_of(lambda: done.update(p=prepare(coco, photos, tmp_path/kind/'p', size_hw=32, workers=1))) < 100*2**20
        assert done['p'].counts['annotations'] | dict(ignored=0) == dict(total=2, used=1, repaired=0, dropped=1, ignored=0)

@posix
def test_the_longest_names_that_a_disk_takes(tmp_path):
    names = ['漢'*85, 'a/' + '漢'*83 + '.png', 'b/' + '漢'*83 + '.png']
    (tmp_path/'coco.json').write_text(json.dumps(coco_dict(names)))
    done = prepare(tmp_path/'coco.json', write_photos(tmp_path/'photos', names), tmp_path/'p', size_hw=32, workers=1)
    assert done.counts['images']['written'] == 3 and len(os.listdir(tmp_path/'p'/'masks')) == 3

def test_predict_and_evaluate_answer_alike(tmp_path):
    "Noise, scaled to the model's size and back: one road, not two kernels."
    rng = np.random.default_rng(0)
    for d in ('images', 'masks'): (tmp_path/d).mkdir()
    cv2.imwrite(str(tmp_path/'images'/'a.png'), rng.integers(0, 256, (71, 90, 3), np.uint8))
    cv2.imwrite(str(tmp_path/'masks'/'a.png'), rng.integers(0, 3, (71, 90), np.uint8))
    model = tiny(size_hw=(48, 64))
    evaluate(model, SegDataset.from_folders(tmp_path/'images', tmp_path/'masks', LabelSpace.from_names(NAMES)), out=tmp_path/'e')
    predict_files(model, tmp_path/'images', tmp_path/'p', values='class_index')
    assert (cv2.imread(str(tmp_path/'e'/'a.png'), -1) == cv2.imread(str(tmp_path/'p'/'masks'/'a.png'), -1)).all()
