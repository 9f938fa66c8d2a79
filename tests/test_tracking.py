"What a tracker was told is read back: Weights & Biases offline from its own log, TensorBoard from its event file."
import json, os, re, struct
from pathlib import Path
import numpy as np, pytest, torch
from torch.utils.data import Dataset
from seglab.card import artifact_name
from seglab.dataset import LabelSpace
from seglab.model import Segmenter
from seglab.runs import Run
from seglab.trainer import _home_is_writable, _wandb_mode
from seglab.train import fit
from support.faults import LONG, until

LABELS = LabelSpace.from_names(['sky', 'road', 'car'])


class Stripes(Dataset):
    def __init__(self, n): self.n, self.label_space = n, LABELS
    def __len__(self): return self.n
    def __getitem__(self, i):
        y = torch.arange(32, dtype=torch.uint8).div(11, rounding_mode='floor').clamp(max=2).repeat(32, 1)
        if i % 2: y = y.T.contiguous()
        x = (y * 100)[None].repeat(3, 1, 1) + torch.randint(0, 30, (3, 32, 32), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        y = y.clone(); y[0] = 255
        return dict(pixel_values=x, labels=y)


def train(out, **kw):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    torch.manual_seed(0)
    c = SegformerConfig(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16,
                        id2label=LABELS.id2label, label2id=LABELS.label2id)
    return fit(Segmenter(SegformerForSemanticSegmentation(c), LABELS), (Stripes(6), Stripes(3)), epochs=2, lr=1e-3, recipe='assignment', out=out,
               logging_steps=1, pictures=2, **kw)


def records(path):
    "The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, 7-byte chunk headers) around wandb's own protobuf."
    from wandb.proto.wandb_internal_pb2 import Record
    data, pos, part = Path(path).read_bytes(), 7, b''
    while pos + 7 <= len(data):
        left = 32768 - pos % 32768
        if left < 7: pos += left; continue
        _, size, kind = struct.unpack('<IHB', data[pos:pos+7])
        if kind == 0: break
        part += data[pos+7:pos+7+size]; pos += 7 + size
        if kind in (1, 4): yield Record.FromString(part); part = b''


def items(seq):
    "Key -> value of wandb's items, whose key is a string or a path."
    return {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in seq}


@pytest.fixture(scope='module')
def offline(tmp_path_factory):
    pytest.importorskip('wandb')
    import contextlib, io
    out, said = tmp_path_factory.mktemp('w')/'läufe 2', io.StringIO()
    env = {k: os.environ.pop(k, None) for k in ('WANDB_MODE', 'WANDB_API_KEY')}
    os.environ['NETRC'] = str(out)+'.no-netrc'
    try:
        with contextlib.redirect_stdout(said): run = train(out, report_to='wandb', project='tests')
    finally:
        os.environ.pop('NETRC')
        os.environ.update({k: v for k, v in env.items() if v is not None})
    [log] = (out/'wandb').glob('offline-run-*/run-*.wandb')
    until(lambda: any(r.WhichOneof('record_type') == 'exit' for r in records(log)), seconds=60)      # W&B's own process writes it
    return run, list(records(log)), said.getvalue(), log.parent


def test_says_that_it_is_offline(offline): assert 'W&B: offline (no API key found)' in offline[2]


def test_config_and_project(offline):
    run, recs, *_ = offline
    [r] = [r.run for r in recs if r.WhichOneof('record_type') == 'run']
    assert r.project == 'tests' and r.display_name == 'läufe 2' and r.run_id == run.config['wandb_id']
    config = items(r.config.update)
    for rec in recs:
        if rec.WhichOneof('record_type') == 'config': config |= items(rec.config.update)
    assert config['settings']['lr'] == 1e-3 and config['settings']['classes'] == ['sky', 'road', 'car'] and 'versions' in config


def test_losses_and_scores_equal_the_history_on_disk(offline):
    run, recs, *_ = offline
    rows = [items(r.history.item) for r in recs if r.WhichOneof('record_type') == 'history']
    h = run.history
    train_rows = h.dropna(subset=['train_loss'])
    told = {r['train/global_step']: r['train/loss'] for r in rows if 'train/loss' in r}
    assert told == dict(zip(train_rows.step, train_rows.train_loss))
    val = h.dropna(subset=['eval_loss'])
    for wandb_key, column in (('eval/loss', 'eval_loss'), ('eval/mean_iou', 'mean_iou'), ('eval/overall_accuracy', 'overall_accuracy')):
        assert [r[wandb_key] for r in rows if wandb_key in r] == val[column].tolist()


def test_overlays_and_class_table(offline):
    run, recs, _, folder = offline
    rows = [items(r.history.item) for r in recs if r.WhichOneof('record_type') == 'history']
    shown = [{k: v for k, v in r.items() if k.startswith('eval/pictures')} for r in rows if any(k.startswith('eval/pictures') for k in r)]
    assert len(shown) == 2
    masks = set()
    for row in shown:                                                          # two photos, each with both masks, every file there
        text = json.dumps(row)
        assert text.count('"predictions"') == text.count('"ground_truth"') == 2
        paths = re.findall(r'media/images/mask/[^"]+\.png', text)
        assert len(paths) == 4 and all((folder/'files'/p).is_file() for p in paths)
        masks |= {folder/'files'/p for p in paths}
    import cv2
    values = [set(np.unique(cv2.imread(str(m), cv2.IMREAD_UNCHANGED))) for m in masks]
    assert all(v <= {0, 1, 2, 255} for v in values) and any(255 in v for v in values)
    tables = [json.loads(p.read_text()) for p in folder.rglob('*.table.json')]
    assert len(tables) == 2 and tables[0]['columns'] == ['class', 'iou', 'accuracy', 'dice']
    assert [r[0] for r in tables[0]['data']] == ['sky', 'road', 'car']


def test_best_model_is_an_artifact(offline):
    run, recs, *_ = offline
    arts = [r.request.log_artifact.artifact for r in recs if r.WhichOneof('record_type') == 'request' and r.request.WhichOneof('request_type') == 'log_artifact']
    arts += [r.artifact for r in recs if r.WhichOneof('record_type') == 'artifact']
    [a] = [a for a in arts if a.type == 'model']
    assert 'best' in list(a.aliases) and a.name == artifact_name(run.path.name) == 'laufe-2'
    assert {'best_model.pth', 'seglab.json', 'README.md', 'scores.json'} <= {e.path for e in a.manifest.contents}
    assert json.loads(a.metadata)['mean_iou'] == run.scores['mean_iou']


def test_all_of_it_is_on_disk_too(offline):
    run, *_ = offline
    assert len(list((run.path/'pictures').glob('*.png'))) == 2
    assert set(run.scores['per_category_iou']) == {'sky', 'road', 'car'}


def test_wandb_disabled_is_honoured(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'disabled')
    run = train(tmp_path/'seg', report_to='wandb', progress=False)
    assert run.finished and not list(run.path.rglob('*.wandb'))


def test_without_a_key_it_is_offline(monkeypatch, tmp_path):
    pytest.importorskip('wandb')
    for name in ('WANDB_MODE', 'WANDB_API_KEY'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NETRC', str(tmp_path/'none'))
    assert _wandb_mode() == 'offline'


@pytest.mark.parametrize('name', ['größe', 'my run', '猫', 'x'*200] if LONG else ['größe 2'])
def test_any_folder_name_ends_well(name, tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    assert train(tmp_path/name, report_to='wandb', progress=False).finished


@pytest.mark.skipif(not Path('/proc/self').is_dir(), reason='a home that nobody can write to')
def test_a_home_that_is_read_only(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('HOME', '/proc/self')
    for name in ('CONFIG', 'CACHE', 'DATA'): monkeypatch.delenv(f'WANDB_{name}_DIR', raising=False)
    assert not _home_is_writable()
    assert train(tmp_path/'seg', report_to='wandb', progress=False).finished
    for name in ('CONFIG', 'CACHE', 'DATA'): os.environ.pop(f'WANDB_{name}_DIR', None)


def test_a_run_of_ones_own_is_used_and_left_open(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    mine = wandb.init(project='sweep', dir=str(tmp_path), mode='offline')
    try:
        train(tmp_path/'seg', report_to='wandb', progress=False)
        assert wandb.run is mine
        mine.log(dict(a=1))
        assert not list((tmp_path/'seg').rglob('*.wandb'))
    finally: mine.finish()


def test_whatever_wandb_says_at_the_end_is_a_line(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    def broken(*a, **kw): raise ValueError('no artifact today')
    monkeypatch.setattr(wandb.Artifact, 'add_dir', broken)
    try: assert train(tmp_path/'seg', report_to='wandb').finished
    finally: wandb.finish()
    assert 'W&B: no artifact today; the run itself is whole' in capsys.readouterr().out


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = train(tmp_path/'seg', report_to='tensorboard', progress=False)
    [f] = run.path.rglob('events.out.tfevents*')
    acc = EventAccumulator(str(f)); acc.Reload()
    told = [s.value for s in acc.Scalars('eval/mean_iou')]
    assert np.allclose(told, run.history.mean_iou.dropna())
