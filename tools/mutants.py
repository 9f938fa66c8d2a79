#!/usr/bin/env python
"""Mutants: one line of seglab is broken on purpose, and the tests that should notice are run. Not one of the gates; on demand.

    mutants.py                 all of them: an hour or more
    mutants.py train runs      those of these modules

Each runs in a copy, with `pytest -x` on the files named next to its module. What survives is printed and recorded in
nbs/results/mutants.json, with those of earlier calls. At least 95 % should be killed.
"""
import argparse, importlib, json, os, shutil, signal, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT/'nbs'/'results'/'mutants.json'

# module: [(test files, {old text: new text})]; the first occurrence is changed
MUTANTS = {
'files': [
    ('test_files_faults', {
        "fd = os.open(temp, _NEW, 0o666)": "fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)",
        "        with suppress(FileNotFoundError): os.unlink(temp)\n        raise": "        raise",
        "            while len(rest): rest = rest[os.write(fd, rest):]": "            os.write(fd, rest)",
        "if e.errno not in _NO_LOCKS: raise": "raise",
        ", fallback_to_soft=False": "",
        "        if os.getpid() == me:                                              # not in a forked child\n": "        if True:\n"}),
    ('test_files', {
        "fd = os.open(temp, _NEW, 0o666)": "fd = os.open(temp, _NEW & ~os.O_EXCL, 0o666)",
        "    return \"'\" + s if _FORMULA(s) else s": "    return s",
        "return '_' + s if _RESERVED(s) else s or default": "return s or default",
        ".encode()[:most].decode(errors='ignore')": "[:most]",
        "or '..' in win.parts": "",
        "islice(items, room - len(busy))": "islice(items, room)"})],
'images': [
    ('test_images_hostile', {
        "formats=_formats())": "formats=None)",
        "if st.st_size > _MAX_BYTES:": "if False:",
        "or h*w > max_pixels: return None": ": return None",
        "        if h*w > MAX_PIXELS: return _read_odd_mask(name, raw)\n": "",
        "if not stat.S_ISREG(st.st_mode):": "if False:"}),
    ('test_images', {
        "return cv2.imencode('.jpg', image[..., ::-1], [cv2": "return cv2.imencode('.jpg', image, [cv2",
        "if orientation in (2, 3, 6, 7)": "if orientation in (2, 3, 7, 8)",
        "lo, hi = (0, 2**window - 1)": "lo, hi = (0, 2**window)",
        "    if m.size and m.max() > 255:\n": "    if False:\n",
        "    if kind not in ('jpg', 'png'): raise": "    if False: raise"})],
'names': [
    ('test_names', {
        "    if not any(real.is_relative_to(h) for h in _homes(os.fspath(root))):": "    if False:",
        "        if rel is None: raise BadImage('unsafe_path'": "        if False: raise BadImage('unsafe_path'",
        "    if len(near) == 1: return near[0], 'name_accents'": "    if len(near) >= 1: return near[0], 'name_accents'",
        "        if stem in out:\n": "        if False:\n"})],
'raster': [
    ('test_raster', {
        "if len(order) <= _BITS: shades": "if len(order) <= _BITS + 1: shades",
        "    if length.max() > 7: raise": "    if False: raise",
        "    if total > 8*MAX_CROSSINGS: raise": "    if False: raise",
        "np.trunc(5*np.clip": "np.floor(5*np.clip",
        "    mask = np.full(size_hw, IGNORE, np.uint8)": "    mask = np.zeros(size_hw, np.uint8)"})],
'coco': [
    ('test_coco_hostile', {
        "'few_points' if len(r) < 6": "'few_points' if len(r) < 2",
        "    if not all(abs(x) < 1e308 for x in r)": "    if False",
        "    if (c > h*w).any() or c.sum() != h*w:": "    if False:",
        "    if not (_is_numbers(size) and list(size) == [h, w]):": "    if False:",
        "    if not len(runs.part) and outside: raise": "    if False: raise",
        "    return bool(((xy >= -limit) & (xy <= 2*limit)).all())": "    return True"})],
'paint': [
    ('test_bulk_hostile', {
        "key=lambda j: (-area[j], ": "key=lambda j: (area[j], "}),
    ('test_paint', {
        "    if 'same' in notes: return Ruling": "    if False: return Ruling",
        "    if ann.iscrowd and rules.crowd == 'drop'": "    if False and rules.crowd == 'drop'"}),
    ('test_coco_cases', {
        "    if not (turned if turn else fits):": "    if False:",
        "        if v.fate == 'lost':": "        if False:"})],
'photos': [
    ('test_coco_cases', {
        "            if out.setdefault(cat['id'], cat)['name'] != cat['name']:": "            if False:",
        "        if len(chosen) > 254: chosen": "        if len(chosen) > 255: chosen"})],
'groups': [
    ('test_groups', {
        " if b - a >= least]": "]"})],
'labels': [
    ('test_labels', {
        "    if not fit.all(): raise _bad_batch": "    if False: raise _bad_batch",
        "    if not strange.any(): return None": "    return None",
        "            if e.cause != 'all_ignored': raise": "            if False: raise",
        "        if fault: raise LabelError(f": "        if False: raise LabelError(f"})],
'metrics': [
    ('test_metrics', {
        "        if ignore_index < K: out[ignore_index] = 0": "        pass",
        "    return band & ~ignored": "    return band",
        "count(p[bp]) + count(t[bt]) - both": "count(p[bp]) + count(t[bt])",
        "    if out[K+1].any():": "    if False:",
        "    if out[:K, K].any():": "    if False:"})],
'tiles': [
    ('test_tiles', {
        "(w/total[a:b])": "w",
        "    last = -(-(length - tile)//divisor)*divisor": "    last = (length - tile)//divisor*divisor",
        "2*divisor <= tile <= 16384 or tile % divisor:": "2*divisor <= tile <= 16384:"})],
'answers': [
    ('test_comparison', {
        "        if e.digest != first.digest:": "        if False:",
        "        if e.label_space.names != first.label_space.names:": "        if False:",
        "    if lost: raise _no_counterpart": "    if False: raise _no_counterpart"}),
    ('test_comparison_faults', {
        "    if there and _MARK not in there:": "    if False:"})],
'share': [
    ('test_share', {
        "        if got.shape != want.shape: raise": "        if False: raise",
        "        if path.is_symlink(): raise": "        if False: raise",
        "    if not get_token(): raise": "    if False: raise"})],
'dataset': [
    ('test_dataset', {
        "round(w/zoom[0]), fill_mask=IGNORE)": "round(w/zoom[0]))",
        "A.PadIfNeeded(*size, fill_mask=IGNORE)": "A.PadIfNeeded(*size)",
        "int(i) % len(self))": "abs(int(i)))",
        "(w/h*3/4, w/h*4/3)": "(h/w*3/4, h/w*4/3)",
        "(self.seed * 1_000_003 + epoch)": "(self.seed * 1_000_003)",
        "if image_too: _same_size": "if False: _same_size",
        "if getattr(d, 'epoch', None) != epoch: d.set_epoch(epoch)": "pass"}),
    ('test_tiles', {
        "A.RandomSizedCrop((round(h/zoom[1]), round(h/zoom[0]))": "A.RandomSizedCrop((round(h/2), h)",
        "pad_if_needed=True, fill_mask=IGNORE)": "pad_if_needed=True)",
        "'native' if tile else 'squash'": "'squash'"})],
'own': [
    ('test_dataset', {
        "    if lost := sorted(extra - set(found)):": "    if False:",
        "counts = class_counts(ds)[:-1] if": "counts = class_counts(ds)[1:] if"})],
'packed': [
    ('test_packed', {
        "if any(old.get(k) != new[k] for k in ('rows', 'size_hw', 'index')): return 'the folder was prepared anew'": "pass",
        "    if len(masks) != len(stems): return": "    if False: return"})],
'bulk': [
    ('test_packed', {
        "        if d.code or d.k >= len(photos)": "        if d.k >= len(photos)"})],
'nets': [
    ('test_nets', {
        "try: config = AutoConfig.from_pretrained(name, trust_remote_code=False": "try: config = AutoConfig.from_pretrained(name, trust_remote_code=True",
        "map_location='cpu', weights_only=True)": "map_location='cpu', weights_only=False)",
        "    if strict and (wrong or missing):": "    if False:"})],
'model': [
    ('test_model', {
        "(torch.tensor(v) * 255.).view(1, 3, 1, 1)": "(torch.tensor(v) * 256.).view(1, 3, 1, 1)",
        "return _resize(logits, (h, w))[..., :H, :W] if padded else logits": "return _resize(logits, (H, W)) if padded else logits"})],
'losses': [
    ('test_losses', {
        "        self.register_buffer('factors', torch.tensor([float(c) for c, _ in terms])": "        self.register_buffer('factors', torch.tensor([1. for c, _ in terms])",
        "    return torch.stack([weighed if f is _ce else plain for f in self.funcs])": "    return torch.stack([plain for f in self.funcs])",
        "weight[torch.where(valid, labels, 0)].masked_fill(~valid, 0).sum()": "valid.sum()",
        "    if not valid.any(): return logits.sum() * 0, valid.sum()\n    loss = smp": "    loss = smp",
        "    if w is not None and all(f is _lovasz for _, f in terms):": "    if False:"})],
'runs': [
    ('test_runs', {
        "(p/f).stat().st_size == n for": "True for",
        "    for p in older[:-(keep-1) or None]:": "    for p in older:",
        "        if last is None or step > int(last.name[11:]): shutil": "        if last is not None and step > int(last.name[11:]): shutil",
        "math.isfinite(last) and all(": "all(",
        "(last > v if high": "(last >= v if high",
        "v.index(max(v) if high else min(v))": "v.index(max(v))",
        "        h.update(f'{k} {v.dtype} {tuple(v.shape)};'.encode())\n": "",
        "x.tobytes() if x.dtype != object": "x.tolist() if x.dtype == object else b'' if x.dtype != object",
        "_cells(f), read]": "_cells(f)]",
        "f.__defaults__, f.__kwdefaults__, ": "",
        "f.__kwdefaults__, _cells(f), read]": "f.__kwdefaults__, read]",
        "[x.func, x.args, x.keywords]": "[x.func]",
        "    doubts.append(type(x).__name__)\n": "",
        "yield from (str(list(ds.indices)), *_data_parts": "yield from (*_data_parts",
        "'\\n'.join(map(str, ds.stems)), ": "",
        "    yield _tfms_digest(ds.tfms, doubts)\n": "",
        "        if sum(s.st_size for s in stats) <= _MOST: yield": "        if False: yield",
        "    for files, what in ((photos, 'photos'), (masks, 'masks')):": "    for files, what in ((masks, 'masks'),):",
        "    if digest(0) != digest(0):": "    if False:",
        "    if found.format != _FORMAT:": "    if False:",
        "    _typed(self)\n    return read_json": "    return read_json",
        "        if (better := _sentence(e, path)) is None: raise": "        raise"})],
'recipes': [
    ('test_recipes', {
        "decay_norms or w.ndim > 1": "True",
        "        fitted.add(pattern)": "        fitted.update(rates)",
        "keep = min(decay, (1 + float(n)) / (10 + float(n)))": "keep = decay",
        "    with own_random(0):": "    if True:",
        "'cosine' if long else 'constant_with_warmup'": "'constant_with_warmup'",
        "- held) // photo)": ") // photo)",
        "if s.data_ptr() not in own: saved": "if False: saved",
        "    accumulate = -(-size // found.at_once)": "    accumulate = 1",
        "            optimizer.step()": "            pass"})],
'trainer': [
    ('test_trainer', {
        "    model.train(was)\n    if trainer": "    if trainer",
        "    if step < 0 and math.isfinite(logged): return": "    return",
        "    if world == 1 and len(batches) == 1: return": "    if world == 1: return",
        "len(self.train_dataset), a.per_device_train_batch_size, self.seed,": "len(self.train_dataset), a.per_device_train_batch_size, 0,",
        "since_best(values, self.high) >= self": "since_best(values, self.high) > self",
        "f'checkpoint-{state.global_step}', self.job.keep)": "f'checkpoint-{state.global_step}', 1)",
        "weight_decay=args.weight_decay, eps=args.adam_epsilon,": "",
        "betas=(args.adam_beta1, args.adam_beta2), ": "",
        "    if not isinstance(made, torch.optim.Optimizer) or": "    if False and",
        "    if precision == 'fp16' and not gpu:": "    if False:",
        "is_bf16_supported(including_emulation=False)": "is_bf16_supported()",
        "    model.zero_grad(set_to_none=True)\n": ""}),
    ('test_train_resume', {
        "    if self.postponed: control.should_save, self.postponed = True, False": "    pass"}),
    ('test_train', {
        "        if best: _save_best(": "        if True: _save_best(",
        "    self.trainer.batches.set_epoch(epoch)": "    self.trainer.batches.set_epoch(0)"}),
    ('test_tracking', {
        "        if self.ours: self.run.finish": "        self.run.finish",
        "artifact_name(job.path.name)": "job.path.name",
        "    except Exception as e:\n        why": "    except KeyError as e:\n        why"})],
'train': [
    ('test_train', {
        "    if best.is_file(): job.model.load_weights(best)\n": "",
        "        if space is not None and list(space.names) != list(model.label_space.names):": "        if False:",
        "        with own_random(seed): model = model()": "        model = model()",
        "k != 'start_norms' and old.get(k) != new[k]]": "k not in ('start_norms', 'data_digest') and old.get(k) != new[k]]",
        "    if changed and not more: raise _other_run": "    if False: raise _other_run",
        "    if more: _continue(": "    if False: _continue(",
        "        elif there:": "        elif False:",
        "        if k in _OURS: raise": "        if False: raise",
        "        if why: raise no(": "        if False: raise no(",
        "    if _is_first(): print(as_text(f'{job.path.name} is finished": "    if False: print(as_text(f'{job.path.name} is finished",
        "or .5 < train / val < 2: return []": "or True: return []",
        "    if precision == 'auto' and resume:": "    if False:",
        "                finally: _mark(model, config)": "                finally: pass",
        "    if optimizer is not None and lr is not None and": "    if False and"})]}

def mutants(modules):
    "(module, test files, old, new) of each."
    return [(m, tests.split(), old, new) for m in modules for tests, changes in MUTANTS[m] for old, new in changes.items()]

def killed(copy, module, tests, old, new, seconds):
    "Do these tests notice?"
    file = copy/'seglab'/f'{module}.py'
    good = file.read_text(encoding='utf-8')
    if old not in good: sys.exit(f'{module}: no longer there: {old!r}')
    file.write_text(good.replace(old, new, 1), encoding='utf-8')
    try: return tried(copy, ['-q', '-x', '-p', 'no:cacheprovider', *(f'tests/{t}.py' for t in tests)], seconds) != 0
    finally: file.write_text(good, encoding='utf-8')

def tried(copy, arguments, seconds):
    "Exit status of pytest in a fork of this process, which has imported what takes long; 1 where it takes too long."
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.chdir(copy)
        os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE='1')      # no mutant is remembered
        sys.path[:0], sys.dont_write_bytecode = [str(copy)], True
        for stream in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        import pytest
        os._exit(int(pytest.main(arguments)))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (done := os.waitpid(child, os.WNOHANG))[0]: return os.waitstatus_to_exitcode(done[1])
        time.sleep(.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1

def warm():
    "Import what every test needs, but for seglab itself."
    for name in ('pytest', 'torch', 'transformers', 'segmentation_models_pytorch', 'albumentations', 'pandas'): importlib.import_module(name)

def missing():
    "Mutants whose text is no longer in their module; `tests/test_mutants.py` asks."
    text = {m: (ROOT/'seglab'/f'{m}.py').read_text(encoding='utf-8') for m in MUTANTS}
    return [(m, old) for m, _, old, _ in mutants(MUTANTS) if old not in text[m]]

def record(found):
    "Add to what earlier calls found."
    old = json.loads(RECORD.read_text(encoding='utf-8'))['modules'] if RECORD.exists() else {}
    modules = {m: (old | found)[m] for m in MUTANTS if m in old | found}
    total, dead = (sum(r[k] for r in modules.values()) for k in ('mutants', 'killed'))
    RECORD.write_text(json.dumps(dict(mutants=total, killed=dead, modules=modules), indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    print(f'{dead} of {total} killed, counting earlier calls')

def main(modules, seconds):
    todo, found = mutants(modules or MUTANTS), {}
    warm()
    with tempfile.TemporaryDirectory() as temp:
        copy = Path(temp)
        for folder in ('seglab', 'tests', 'tools'): shutil.copytree(ROOT/folder, copy/folder, ignore=shutil.ignore_patterns('__pycache__'))
        for m, tests, old, new in todo:
            start, dead = time.perf_counter(), killed(copy, m, tests, old, new, seconds)
            r = found.setdefault(m, dict(mutants=0, killed=0, survived=[], date=time.strftime('%Y-%m-%d')))
            r['mutants'] += 1; r['killed'] += dead
            if not dead: r['survived'].append([old, new])
            print(f"{'killed  ' if dead else 'SURVIVED'} {m:8} {time.perf_counter() - start:4.0f} s  {old.strip()[:90]!r}", flush=True)
    record(found)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('modules', nargs='*', metavar='module', help=f"of {', '.join(MUTANTS)}; all by default")
    p.add_argument('--seconds', type=int, default=300, help='a run of tests that takes longer counts as killed')
    a = p.parse_args()
    if unknown := set(a.modules) - set(MUTANTS): p.error(f'no mutants of {", ".join(sorted(unknown))}')
    main(a.modules, a.seconds)
