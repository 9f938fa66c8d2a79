"""Semantic segmentation from COCO annotations to an honest comparison of U-Net and SegFormer."""
__version__ = "0.1.0"
from warnings import filterwarnings as _filterwarnings

_filterwarnings('ignore', message='IProgress not found')    # tqdm's, in a notebook without widgets: its bars are text then

# The public names: the one list, in the order of the work. Each is loaded from its module on first use, so
# `import seglab` loads neither torch nor numpy. All other names are reached through their modules (`seglab.raster`).
_PUBLIC = dict(
    masks='prepare Prepared split_of show_image show_mask overlay palette',
    coco='read_coco',
    images='IGNORE BACKGROUND LabelError',
    doctor='check',
    dataset='LabelSpace label_space SegDataset SegData load_data check_dataset class_weights train_tfms valid_tfms',
    model='Segmenter',
    zoo='build_model from_smp from_transformers',
    unet='build_unet',
    segformer='build_segformer',
    losses='get_loss',
    train='fit',
    runs='Run',
    metrics='confusion_matrix scores',
    comparison='evaluate evaluate_masks compare Comparison',
    plan='learning_curve LearningCurve',
    share='predict_files export_onnx share_folder push_to_hub log_artifact',
    sample='make_sample draw_scene',
    fetch='fetch_coco find_coco',
    files='UserError')
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)

def _explain(obj):
    """Add the comments of the parameters to the docstring of a function, of a class and of its public methods:
    `help(seglab.fit)`, `seglab.fit?` and `run.load?` show them."""
    from inspect import isclass, isfunction
    from fastcore.docments import docments
    if isclass(obj):
        for name, member in vars(obj).items():
            func = getattr(member, '__func__', member)              # a class method's own function
            if name[0] != '_' and isfunction(func): _explain(func)
    doc = obj.__doc__ or ''
    if '\n\nParameters' in doc: return obj
    pars = {name: text for name, text in docments(obj).items() if name not in ('self', 'cls', 'return') and text}
    if pars: doc += '\n\nParameters\n' + '\n'.join(f'  {name}: {" ".join(text.split())}' for name, text in pars.items())
    obj.__doc__ = doc
    return obj

def __getattr__(name):
    from importlib import import_module
    from importlib.util import find_spec
    if name in _HOME:
        value = getattr(import_module(f'seglab.{_HOME[name]}'), name)
        if callable(value): _explain(value)
        globals()[name] = value
        return value
    if not name.startswith('_') and find_spec(f'seglab.{name}'): return import_module(f'seglab.{name}')
    raise AttributeError(f"module 'seglab' has no attribute {name!r}; dir(seglab) lists the public names")

def __dir__(): return __all__
