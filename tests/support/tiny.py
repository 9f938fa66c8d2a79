"Small nets of both libraries, saved runs, photos, and a pickle that would explode."
import json, os
import cv2, numpy as np, torch
from seglab.zoo import build_model, from_smp, from_transformers

NAMES = ['background', 'cat', 'dog']
SEGFORMER = dict(depths=[1]*4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)
SWIN = dict(image_size=64, patch_size=4, embed_dim=8, depths=[1]*4, num_heads=[1, 1, 2, 2], window_size=4,
            out_features=['stage1', 'stage2', 'stage3', 'stage4'])
VIT = dict(image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16)

def upernet(names):
    from transformers import ConvNextConfig, UperNetConfig
    backbone = ConvNextConfig(depths=[1]*4, hidden_sizes=[8, 8, 16, 16], out_features=['stage1', 'stage2', 'stage3', 'stage4'])
    return from_transformers(UperNetConfig(backbone_config=backbone, hidden_size=16, pool_scales=[1, 2]), names)

def mask2former(names):
    from transformers import Mask2FormerConfig, SwinConfig
    return from_transformers(Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN), hidden_dim=32, mask_feature_size=32, feature_size=32, num_attention_heads=2,
        decoder_layers=2, encoder_layers=1, num_queries=5, dim_feedforward=16, encoder_feedforward_dim=16), names)

def maskformer_config():
    from transformers import DetrConfig, MaskFormerConfig, SwinConfig
    decoder = DetrConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
                         decoder_attention_heads=2, num_queries=5, use_pretrained_backbone=False, backbone=None)
    return MaskFormerConfig(backbone_config=SwinConfig(**SWIN), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32)

FULL = {                                                       # the whole contract, learning and saving included
    'smp unet': lambda n: from_smp('unet', n, 'resnet18', None),
    'smp fpn': lambda n: from_smp('fpn', n, 'mobilenet_v2', None),
    'smp deeplabv3plus': lambda n: from_smp('deeplabv3plus', n, 'resnet18', None),
    'smp segformer': lambda n: from_smp('segformer', n, 'resnet18', None),
    'segformer': lambda n: from_transformers('segformer', n, **SEGFORMER),
    'mobilevit': lambda n: from_transformers('mobilevit', n, hidden_sizes=[16, 24, 32],
                                             neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32]),
    'upernet': upernet}
SHAPES = {                                                     # any size in, that size out, and saved and loaded
    'smp unetplusplus': lambda n: from_smp('unetplusplus', n, 'resnet18', None),
    'smp deeplabv3': lambda n: from_smp('deeplabv3', n, 'resnet18', None),
    'smp linknet': lambda n: from_smp('linknet', n, 'resnet18', None),
    'smp manet': lambda n: from_smp('manet', n, 'resnet18', None),
    'smp pspnet': lambda n: from_smp('pspnet', n, 'resnet18', None),
    'smp pan': lambda n: from_smp('pan', n, 'resnet18', None),
    'smp upernet': lambda n: from_smp('upernet', n, 'resnet18', None),
    'smp dpt': lambda n: from_smp('dpt', n, 'tu-vit_tiny_patch16_224', None),
    'smp tu-': lambda n: from_smp('unet', n, 'tu-mobilenetv3_small_050', None),
    'beit': lambda n: from_transformers('beit', n, out_indices=[0, 1, 2, 3], use_relative_position_bias=True, **VIT),
    'data2vec-vision': lambda n: from_transformers('data2vec-vision', n, out_indices=[0, 1, 2, 3], **VIT),
    'dpt': lambda n: from_transformers('dpt', n, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8]*4,
                                       fusion_hidden_size=8, is_hybrid=False, **VIT),
    'mobilevitv2': lambda n: from_transformers('mobilevitv2', n, width_multiplier=.25),
    'mobilenet_v2': lambda n: from_transformers('mobilenet_v2', n, depth_multiplier=.25),
    'maskformer': lambda n: from_transformers(maskformer_config(), n),
    'mask2former': mask2former}

def tiny(names=NAMES, **kw):
    "A SegFormer of a few thousand weights, in evaluation mode."
    torch.manual_seed(0)
    s = build_model('segformer', names, weights=None, **SEGFORMER)
    for k, v in kw.items(): setattr(s, k, v)
    return s.eval()

def balanced(s, image):
    "A random net mostly answers one class everywhere: shift its last bias so that several appear."
    head = [m for m in s.net.modules() if getattr(m, 'bias', None) is not None and m.bias.ndim == 1 and len(m.bias) in (1, s.num_labels)][-1]
    logits = s.predict_logits(image).flatten(1)[-len(head.bias):].median(1).values
    with torch.no_grad(): head.bias -= logits
    return s

def saved_run(path, model=None, **config):
    "A finished run folder, as `fit` leaves it, with everything in it that must not leave."
    model = model or tiny()
    best = model.save_pretrained(path/'best')
    torch.save(model.state_dict(), best/'best_model.pth')
    names = model.label_space.names
    iou = dict(zip(names, [.9, .4, None, .1]))
    (best/'scores.json').write_text(json.dumps(dict(mean_iou=.4321, mean_accuracy=.5, overall_accuracy=.75, per_category_iou=iou, loss=.7, epoch=3., step=12)))
    (path/'checkpoint-12').mkdir()
    for name in ('optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'training_args.bin', 'trainer_state.json'): (path/'checkpoint-12'/name).write_bytes(b'x')
    (path/'config.json').write_text(json.dumps(dict(settings=dict(data='/home/ada/secret/processed', lr=1e-3), finished=dict(step=12, epoch=3, seconds=9)) | config))
    (path/'history.csv').write_text('step,epoch,eval_loss,mean_iou\n12,3,.7,.5\n')
    (path/'pictures').mkdir()
    for n in ('1', '2'): cv2.imwrite(str(path/'pictures'/f'epoch_{n}.png'), np.zeros((4, 4, 3), np.uint8))
    return path

def photo(path, h, w, seed=0, smooth=False):
    "A photo of noise, or of smooth shapes."
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.default_rng(seed).integers(0, 256, (6, 7, 3) if smooth else (h, w, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(a, (w, h), interpolation=cv2.INTER_CUBIC) if smooth else a)
    return path

class Bomb:
    "Makes a folder when it is unpickled."
    def __reduce__(self): return os.mkdir, (os.environ['BOMB'],)

def edit(file, **change): file.write_text(json.dumps(json.loads(file.read_text()) | change))
