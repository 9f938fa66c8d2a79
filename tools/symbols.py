#!/usr/bin/env python
"""Every public symbol has a one-line docstring, a docment for each parameter and the return, an example and a test.

    symbols.py [NOTEBOOK …]     default: every notebook under nbs/
"""
import ast, io, json, re, sys, tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPORTED = re.compile(r'^\s*#\s*\|\s*exports?\s*$', re.M)
HIDDEN = re.compile(r'^\s*#\s*\|\s*hide\s*$', re.M)
FENCE = re.compile(r'^```[^\n]*\n(.*?)^```', re.M | re.S)
CHECK = re.compile(r'\b(test_\w+\(|assert\b|expect_fail\()')

def comment_lines(source):
    "Numbers of the lines that carry a comment."
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}

def parameters(fn):
    "Parameters of a function that a caller sees, with the line each ends on."
    a = fn.args
    named = a.posonlyargs + a.args + a.kwonlyargs + [v for v in (a.vararg, a.kwarg) if v]
    return [(p.arg, p.end_lineno) for p in named if p.arg not in ('self', 'cls')]

def is_patch(fn): return any('patch' in ast.unparse(d) for d in fn.decorator_list)

def patched_class(fn):
    "The class that a `@patch`ed function becomes a method of."
    return ast.unparse(fn.args.args[0].annotation).strip("'\"").split('|')[0].strip()

def returns_line(fn):
    "The line on which the signature ends; a docment of the return stands there."
    return fn.body[0].lineno - 1

def gaps_of_function(fn, lines, name, source):
    "What the signature of one function leaves unsaid."
    params = parameters(fn)
    if is_patch(fn): params = params[1:]
    bare = [p for p, line in params if line not in lines]
    gaps = [f"{name}: no docment for {', '.join(bare)}"] if bare else []
    wants_return = fn.name != '__init__' and not any('property' in ast.unparse(d) for d in fn.decorator_list)
    if wants_return and not any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in ast.walk(fn)):
        gives = any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(fn))
        last = max([line for _, line in params], default=fn.lineno)
        signature = range(last, fn.body[0].lineno + 1)
        if gives and fn.returns is None: gaps.append(f'{name}: no return annotation')
        elif gives and params and not any(i in lines for i in signature if i >= fn.returns.end_lineno): gaps.append(f'{name}: no docment for the return')
    return gaps

def public(name): return not name.startswith('_')

def gaps_of_cell(source):
    "(symbols, gaps) of one exported cell."
    lines, symbols, gaps = comment_lines(source), [], []
    def documented(node, name):
        doc = ast.get_docstring(node)
        if not doc: gaps.append(f'{name}: no docstring')
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and public(node.name):
            owner = patched_class(node) if is_patch(node) else ''
            if owner.startswith('_'): continue
            name = f'{owner}.{node.name}' if owner else node.name
            symbols.append(name)
            documented(node, name)
            gaps += gaps_of_function(node, lines, name, source)
        elif isinstance(node, ast.ClassDef) and public(node.name):
            symbols.append(node.name)
            documented(node, node.name)
            for fn in node.body:
                if not isinstance(fn, ast.FunctionDef): continue
                if fn.name == '__init__': gaps += gaps_of_function(fn, lines, node.name, source)
                elif public(fn.name):
                    documented(fn, f'{node.name}.{fn.name}')
                    gaps += gaps_of_function(fn, lines, f'{node.name}.{fn.name}', source)
    return symbols, gaps

def main(paths):
    paths = [Path(p) for p in paths] or sorted((ROOT/'nbs').rglob('[0-9]*.ipynb'))
    symbols, gaps, shown = {}, [], {}
    tested = '\n'.join(p.read_text(encoding='utf-8') for p in sorted((ROOT/'tests').glob('test_*.py')))
    for path in paths:
        book = json.loads(path.read_text(encoding='utf-8'))['cells']
        cells = [''.join(c['source']) for c in book if c['cell_type'] == 'code']
        fenced = [block for c in book if c['cell_type'] == 'markdown' for block in FENCE.findall(''.join(c['source']))]
        shown[path.name] = '\n'.join([c for c in cells if not EXPORTED.search(c) and not HIDDEN.search(c)] + fenced)
        tested += '\n'.join(c for c in cells if not EXPORTED.search(c) and CHECK.search(c)) + '\n'
        for cell in cells:
            if not EXPORTED.search(cell): continue
            cell = '\n'.join('' if l.startswith(('%', '!')) else l for l in cell.splitlines())
            names, found = gaps_of_cell(cell)
            symbols.update({n: path.name for n in names})
            gaps += [f'{path.name}: {g}' for g in found]
    for name, book in symbols.items():
        word = re.compile(rf'\b{re.escape(name.rpartition(".")[2])}\b')
        if not word.search(shown[book]): gaps.append(f'{book}: {name}: no example in view')
        if not word.search(tested): gaps.append(f'{book}: {name}: no test')
    for gap in gaps: print(gap)
    print(f'symbols: {len(symbols)} public, {len(gaps)} gaps')
    sys.exit(1 if gaps else 0)

if __name__ == '__main__': main(sys.argv[1:])
