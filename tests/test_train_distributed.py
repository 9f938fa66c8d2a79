"Under torchrun (gloo, CPU): every validation photo counts once, the scores are those that one process counts, and all processes end with the same weights."
import os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from torch.utils.data import Dataset
from seglab.dataset import LabelSpace, collate
from seglab.metrics import confusion_matrix
from seglab.model import Segmenter
from seglab.runs import Run, weights_digest
from seglab.train import fit
from support.faults import LONG

pytestmark = pytest.mark.skipif(sys.platform == 'win32' or not torch.distributed.is_available(), reason='needs torch.distributed with gloo')
LABELS = LabelSpace.from_names(['sky', 'road', 'car'])


class Photos(Dataset):
    "Some with most pixels ignored, so that a mean of means would differ from the mean."
    def __init__(self, n, seed): self.n, self.seed, self.label_space = n, seed, LABELS
    def __len__(self): return self.n
    def __getitem__(self, i):
        g = np.random.default_rng((self.seed, i))
        y = np.zeros((64, 64), np.uint8); y[32:] = 1
        a, b = g.integers(0, 32, 2); y[a:a+21, b:b+21] = 2
        x = np.array([[200, 220, 255], [90, 90, 90], [220, 30, 30]])[y] + g.normal(0, 30, (64, 64, 3))
        y[:int(g.integers(0, 60))] = 255
        return dict(pixel_values=torch.from_numpy(x.clip(0, 255).astype(np.uint8)).permute(2, 0, 1), labels=torch.from_numpy(y))


class Double(Segmenter):
    "A segmenter in double precision from the net's input to its logits, which Segmenter itself rounds to float32."
    def forward(self, pixel_values):
        logits = self.net(self.normalize(pixel_values).double())
        logits = getattr(logits, 'logits', logits)
        return logits if logits.shape[-2:] == pixel_values.shape[-2:] else torch.nn.functional.interpolate(logits, pixel_values.shape[-2:], mode='bilinear')


def model(name):
    torch.manual_seed(0)
    return Double(_net(name).double(), LABELS)


def _net(name):
    if name == 'unet':
        import segmentation_models_pytorch as smp
        return smp.Unet('resnet18', encoder_depth=3, decoder_channels=(16, 8, 8), encoder_weights=None, classes=3)
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    c = SegformerConfig(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16, drop_path_rate=0.,
                        hidden_dropout_prob=0., classifier_dropout_prob=0., id2label=LABELS.id2label, label2id=LABELS.label2id)
    return SegformerForSemanticSegmentation(c)


def go(out, name, batch_size, callbacks=()):
    "Plain SGD: Adam would blow the last bit of a gradient near zero up to a whole step."
    return fit(model(name), (Photos(7, 0), Photos(5, 1)), epochs=2, lr=.05, batch_size=batch_size, recipe='assignment', precision='fp32', out=Path(out)/name, progress=False,
               pictures=0, logging_steps=1, optim='sgd', per_device_eval_batch_size=2, callbacks=[*callbacks])


def told(out, name):
    "A callback that writes down the digest of this process's weights after its last step, before the best ones are read back."
    from transformers import TrainerCallback
    class Tell(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kw):
            (Path(out)/f'{name}-{args.process_index}.digest').write_text(weights_digest(dict(model.named_parameters())))
    return Tell()


def launch(out, processes, batch_size):
    "This file, as a script, under torchrun."
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]))
    r = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes),
                        __file__, str(out), str(batch_size)], env=env, capture_output=True, text=True, timeout=900)
    assert r.returncode == 0, r.stderr[-3000:]


def recount(run, name, batch_size=2):
    "The confusion matrix of the run's best weights by one process, in batches of the same size."
    seg, val, m = model(name).eval(), Photos(5, 1), 0
    seg.net.load_state_dict(torch.load(run.best/'best_model.pth', weights_only=True))
    with torch.no_grad():
        for i in range(0, 5, batch_size):
            b = collate([val[j] for j in range(i, min(i + batch_size, 5))])
            m = m + confusion_matrix(seg(b['pixel_values']).argmax(1), b['labels'], 3)
    return m.tolist()


# 7 photos: with a global batch of 4, two processes share a last batch of 3; with 3, one photo and two fillers are left for three
SHARES = [(2, 2), (3, 1)] if LONG else [(2, 2)]
NETS = ['unet', 'segformer'] if LONG else ['segformer']

@pytest.fixture(scope='module', params=SHARES, ids=lambda p: f'{p[0]} processes')
def runs(request, tmp_path_factory):
    "How many processes, and where they trained."
    processes, batch_size = request.param
    out = tmp_path_factory.mktemp('runs')
    launch(out/'many', processes, batch_size)
    return processes, out


@pytest.mark.parametrize('name', NETS)
def test_scores_are_exact_and_every_photo_counts_once(runs, name):
    processes, run = runs[0], Run(runs[1]/'many'/name)
    assert run.settings.processes == processes and run.history.step.tolist()[-1] == 4
    s = run.scores
    assert np.sum(s['confusion_matrix']) == sum(int((Photos(5, 1)[i]['labels'] != 255).sum()) for i in range(5))
    assert s['confusion_matrix'] == recount(run, name)


@pytest.mark.parametrize('name', NETS)
def test_processes_end_with_the_same_weights(runs, name):
    processes, out = runs
    digests = [(out/'many'/f'{name}-{i}.digest').read_text() for i in range(processes)]
    assert len(set(digests)) == 1


if __name__ == '__main__':
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    for name in NETS: go(sys.argv[1], name, int(sys.argv[2]), [told(sys.argv[1], name)])
    torch.distributed.destroy_process_group()
