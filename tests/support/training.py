"Small nets and data sets to train on."
import gc
import torch
from torch.utils.data import Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from seglab.dataset import LabelSpace
from seglab.model import Segmenter

gc.freeze()                                         # accelerate collects garbage before each training; what is imported is none
LABELS = LabelSpace.from_names(['sky', 'road', 'car'])


class Stripes(Dataset):
    "n pictures of stripes, the first row ignored; `shift` makes them others, augmented by epoch."
    def __init__(self, n, shift=0): self.n, self.shift, self.label_space, self.epoch, self.seen = n, shift, LABELS, 0, []
    def set_epoch(self, epoch): self.epoch = epoch
    def __len__(self): return self.n
    def __getitem__(self, i):
        self.seen.append((self.epoch, i))
        y = torch.arange(32, dtype=torch.uint8).div(11, rounding_mode='floor').clamp(max=2).repeat(32, 1)
        if i % 2: y = y.T.contiguous()
        x = (y * 100)[None].repeat(3, 1, 1) + torch.randint(0, 30, (3, 32, 32), generator=torch.Generator().manual_seed(i + self.shift), dtype=torch.uint8)
        y = y.clone(); y[0] = 255
        return dict(pixel_values=x, labels=y)


def tiny(seed=0, label_space=LABELS, **kw):
    "The smallest SegFormer."
    torch.manual_seed(seed)
    c = SegformerConfig(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16,
                        id2label=label_space.id2label, label2id=label_space.label2id, **kw)
    return Segmenter(SegformerForSemanticSegmentation(c), label_space)
