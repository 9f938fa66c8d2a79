"""Semantic segmentation from COCO annotations to an honest comparison of U-Net and SegFormer."""
__version__ = "0.1.0"

# Public names are handed out on first use, so that `import seglab` loads neither torch nor numpy.
# Which module owns a name is read from `_modidx`, the index that `nbdev_export` writes.

def _owners():
    "Public name -> the module that defines it, from nbdev's generated index."
    from ._modidx import d
    return {key.rpartition('.')[2]: module for module, keys in d['syms'].items()
            for key in keys if key.startswith(module + '.') and '.' not in key[len(module) + 1:]
            and not key[len(module) + 1:].startswith('_')}

def __getattr__(name):
    if name.startswith('__'): raise AttributeError(f"module 'seglab' has no attribute {name!r}")
    from importlib import import_module
    owners = _owners()
    if name in owners: return getattr(import_module(owners[name]), name)
    modules = {m.rpartition('.')[2] for m in set(owners.values())}
    if name in modules: return import_module(f'seglab.{name}')
    raise AttributeError(f"module 'seglab' has no attribute {name!r}; dir(seglab) lists what there is")

def __dir__(): return sorted({*globals(), *_owners()})
