"What decides the weights of a run, and what its folder says when it is damaged or somebody else's."
import functools
from pathlib import Path
import cv2, numpy as np, pytest, torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from seglab import runs
from seglab.dataset import LabelSpace, SegDataset
from seglab.files import UserError, write_json
from seglab.runs import (Run, _data_digest, begin_run, clear_run, complete_checkpoint, drop_incomplete, fingerprint, is_best,
                         last_checkpoint, run_errors, since_best, setting_differences, weights_digest, Settings)
from support.faults import one_sentence

GAMMA = 2
SPACE = LabelSpace.from_names(['sky', 'road'])


def power(x): return x ** GAMMA


class Focal(nn.Module):
    def __init__(self, gamma): super().__init__(); self.gamma = gamma
    def forward(self, logits, labels): return logits.mean() ** self.gamma


class Smooth(Focal):
    def forward(self, logits, labels): return logits.mean() + self.gamma


def closed(gamma): return lambda x: x*gamma


@pytest.mark.parametrize('a,b', [
    (Focal(2), Focal(5)), (Focal(2), Smooth(2)), (functools.partial(power, 1), functools.partial(power, 7)),
    (lambda x: x + 1, lambda x: x + 2), (closed(1), closed(2)), (lambda x, g=1: x*g, lambda x, g=2: x*g), (np.zeros(3), np.ones(3)), (dict(a=1), dict(a=2)), ({1, 2}, {1, 3})])
def test_things_that_differ(a, b):
    assert fingerprint(a)[0] != fingerprint(b)[0] and fingerprint(a) == fingerprint(a)


def test_a_global_that_a_loss_reads(monkeypatch):
    before = fingerprint(power)
    monkeypatch.setitem(globals(), 'GAMMA', 3)
    assert fingerprint(power) != before


def test_what_cannot_be_looked_into_is_a_doubt(): assert fingerprint(iter([1]))[1] == ['list_iterator']


def test_weights_in_another_memory_order_are_the_same():
    net = nn.Conv2d(3, 4, 3)
    before = weights_digest(net.state_dict())
    assert weights_digest(net.to(memory_format=torch.channels_last).state_dict()) == before


def own(n, value=.5): return TensorDataset(torch.full((n, 3, 8, 8), value), torch.zeros(n, 8, 8, dtype=torch.uint8))


def test_data_sets_of_ones_own():
    assert _data_digest([own(4)]) == _data_digest([own(4)])
    digests = [_data_digest([d])[0] for d in (own(4), own(5), own(4, .25), Subset(own(4), [0, 1]), Subset(own(4), [1, 2]), ConcatDataset([own(2), own(2, .25)]))]
    assert len(set(digests)) == len(digests)
    assert _data_digest([own(100)])[1] == ['TensorDataset: 64 of 100 samples were compared']


def test_samples_that_change_are_a_doubt():
    class Odd:
        n = 0
        def __len__(self): return 3
        def __getitem__(self, i):
            Odd.n += 1
            return torch.full((3, 8, 8), Odd.n % 200, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
    assert 'differ from call to call' in _data_digest([Odd()])[1][0]


def folder(root, n=3, tfms=None, value=1):
    "A data set of files."
    for kind in ('images', 'masks'): (root/kind).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        cv2.imwrite(str(root/'images'/f'{i}.png'), np.zeros((8, 8, 3), np.uint8))
        cv2.imwrite(str(root/'masks'/f'{i}.png'), np.full((8, 8), value if i else 0, np.uint8))
    return SegDataset.from_folders(root/'images', root/'masks', SPACE, tfms)


def test_data_sets_of_files(tmp_path):
    "Photos by name and size, masks by content, transforms by what they do."
    import albumentations as A
    whole = _data_digest([folder(tmp_path/'a')])
    assert whole == _data_digest([folder(tmp_path/'b')]) and not whole[1]
    others = [folder(tmp_path/'c', 2), folder(tmp_path/'d', value=0), folder(tmp_path/'e', tfms=A.Compose([A.HorizontalFlip(p=.5)])),
              folder(tmp_path/'f', tfms=A.Compose([A.HorizontalFlip(p=.4)])), folder(tmp_path/'g'), folder(tmp_path/'h')]
    (tmp_path/'g'/'images'/'1.png').rename(tmp_path/'g'/'images'/'x.png'); (tmp_path/'g'/'masks'/'1.png').rename(tmp_path/'g'/'masks'/'x.png')
    others[4] = SegDataset.from_folders(tmp_path/'g'/'images', tmp_path/'g'/'masks', SPACE)
    cv2.imwrite(str(tmp_path/'h'/'images'/'1.png'), np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    digests = {whole[0], *(_data_digest([d])[0] for d in others)}
    assert len(digests) == 1 + len(others)


def test_what_a_state_dict_is_besides_its_bytes():
    a = torch.arange(4.)
    digests = [weights_digest(s) for s in (dict(w=a), dict(v=a), dict(w=a.reshape(2, 2)), dict(w=a.view(torch.int32)))]
    assert len(set(digests)) == 4


# --- checkpoints

def checkpoint(run, n, mark=True):
    p = run/f'checkpoint-{n}'
    p.mkdir(); (p/'model.safetensors').write_bytes(b'weights')
    if mark: complete_checkpoint(p)
    return p


def test_older_ones_go_after_the_mark(tmp_path, monkeypatch):
    checkpoint(tmp_path, 3)
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(runs, 'write_json', full)
    with pytest.raises(OSError): checkpoint(tmp_path, 6)
    assert last_checkpoint(tmp_path).name == 'checkpoint-3'


def test_a_checkpoint_that_lost_its_end_is_passed_over(tmp_path):
    checkpoint(tmp_path, 3)
    p = checkpoint(tmp_path, 6, mark=False)
    complete_checkpoint(p, keep=2)
    assert last_checkpoint(tmp_path) == p and len(list(tmp_path.glob('checkpoint-*'))) == 2
    (p/'model.safetensors').write_bytes(b'wei')
    assert last_checkpoint(tmp_path).name == 'checkpoint-3'


def test_which_is_best():
    nan = float('nan')
    assert [is_best(v, high) for v, high in (([1., 2.], True), ([1., 2.], False), ([2., 2.], True), ([1., nan], True), ([nan, 1.], False), ([nan], True))] == [True, False, False, False, True, False]
    assert [since_best(v, high) for v, high in (([3., 1., 2.], False), ([3., 1., 2.], True), ([nan, .5], True))] == [1, 2, 0]


def test_only_what_is_ours_is_cleared(tmp_path):
    checkpoint(tmp_path, 3, mark=False); (tmp_path/'checkpoint-best').mkdir()
    drop_incomplete(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint-best']
    for foreign in (dict(model_type='segformer'), dict(settings=dict(lr=1))):
        write_json(tmp_path/'config.json', foreign)
        with pytest.raises(UserError) as e: clear_run(tmp_path)
        one_sentence(str(e.value))
    begin_run(tmp_path, Settings())
    checkpoint(tmp_path, 4); (tmp_path/'notes.txt').write_text('mine')
    clear_run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['checkpoint-best', 'notes.txt']


# --- damaged files

@pytest.mark.parametrize('text', ['', '[]', '{', '{"settings": 3}', '{"settings": {"lr": 1, "parameters": "many"}}', '\udcff', 'null', '{"settings": {}, "finished": 7}'])
def test_a_damaged_config_is_one_sentence(text, tmp_path):
    (tmp_path/'config.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    for ask in (lambda r: r.config, lambda r: r.finished, lambda r: r.settings, repr):
        with pytest.raises(UserError) as e: ask(Run(tmp_path))
        one_sentence(str(e.value))


@pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', 'step,epoch\n1,x\n', '\x00'])
def test_a_damaged_history_is_one_sentence(text, tmp_path):
    begin_run(tmp_path, Settings())
    (tmp_path/'history.csv').write_text(text)
    with pytest.raises(UserError) as e: Run(tmp_path).history
    one_sentence(str(e.value))


def test_what_explains_itself_passes_through(tmp_path):
    with pytest.raises(KeyError), run_errors(tmp_path): raise KeyError('mine')


def test_differences_in_words():
    old = vars(Settings(start='a', lr=.1))
    assert setting_differences(old, old | dict(start='b', lr=.2)) == ['lr (there 0.1, now 0.2)', 'start: the weights to start from']


def test_torch_errors_about_labels_are_explained(tmp_path):
    with pytest.raises(UserError, match='restart the kernel'), run_errors(tmp_path): raise RuntimeError('CUDA error: device-side assert triggered')
