#!/usr/bin/env python
"""Errors have one form, `name=value: expected X; got Y. Do Z.`, and a docstring is one line that ends like a sentence.

    messages.py             all that deviates, over seglab/*.py
    messages.py --check     the same, and fail if there is any

It looks at the text that can be read off the code: `UserError(…)`, and the parts given to `mistake(…)`. `LabelError`
and `BadImage` carry a code for programs, and sentences of their own; symbols.py looks after parameters.
"""
import ast, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORM = re.compile(r'[^.]*?(?<=\S): expected \S.*[.…]', re.S)
BLANK = '…'   # in place of what is known only when the code runs

def text_of(node, names):
    "The text of an expression, as far as it can be read. names: {name: expression} of the function around it."
    def of(x): return text_of(x, names)
    if isinstance(node, ast.Constant) and isinstance(node.value, str): return node.value
    if isinstance(node, ast.JoinedStr): return ''.join(map(of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add): return of(node.left) + of(node.right)
    if isinstance(node, ast.IfExp): return of(node.body)
    if isinstance(node, ast.Name) and node.id in names:
        return text_of(names[node.id], {k: v for k, v in names.items() if k != node.id})
    return BLANK

def fault_of_text(text):
    "What is wrong with a whole message; None where nothing is."
    if not re.search('[a-z]', text): return None                           # all of it is made when the code runs
    if not FORM.fullmatch(text): return 'not of the form name=value: expected X; got Y. Do Z.'
    if re.search(r'(?<!;) got ', text): return 'says "got" without a semicolon before it'

def faults_of_parts(call, names):
    "What is wrong with the parts given to `mistake`, which writes the words between them itself."
    if any(isinstance(a, ast.Starred) for a in call.args): return
    given = dict(zip(('name', 'value', 'expected', 'todo', 'got'), call.args)) | {k.arg: k.value for k in call.keywords}
    part = {k: text_of(v, names) for k, v in given.items()}
    if re.search(r'[.;]$|\bgot\b|^expected', part.get('expected', '')): yield 'expected= says more than what would work'
    if not re.search(r'[.?…]$|^$', part.get('todo', '')): yield 'todo= is not a sentence'
    if re.search(r'[.;]$|^got ', part.get('got', '')): yield 'got= says more than what was given'

def functions(tree):
    "The module and its functions, outer ones first, each with the last value of every name that it assigns."
    for fn in ast.walk(tree):
        if isinstance(fn, (ast.Module, ast.FunctionDef)):
            assigned = [n for n in ast.walk(fn) if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
            yield fn, {n.targets[0].id: n.value for n in assigned}

def faults_of_errors(tree):
    "(line, what is wrong, text) of the messages of a module."
    found = {}                                                             # the innermost function has the last word
    for fn, names in functions(tree):
        for call in ast.walk(fn):
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else None
            if name == 'UserError' and call.args:
                text = text_of(call.args[0], names)
                found[call.lineno, call.col_offset] = [(f, text) for f in [fault_of_text(text)] if f]
            elif name == 'mistake':
                found[call.lineno, call.col_offset] = [(f, '') for f in faults_of_parts(call, names)]
    return [(line, *f) for (line, _), faults in sorted(found.items()) for f in faults]

def faults_of_docstrings(tree):
    "(line, what is wrong, text) of the docstrings of public functions, classes and methods."
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
        doc = ast.get_docstring(node)
        if doc and not re.fullmatch(r'.*[.?]', doc):
            yield node.lineno, f'{node.name}: the docstring is not one line that ends in a period', doc

def main(args):
    failed = 0
    for path in sorted((ROOT/'seglab').glob('[a-z]*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for line, fault, text in [*faults_of_errors(tree), *faults_of_docstrings(tree)]:
            failed += 1
            shown = ' '.join(text.split())[:110]
            where = f'{path.relative_to(ROOT).as_posix()}:{line}'
            print(f'{where}: {fault}' + (f'\n    {shown}' if shown else ''))
    print(f'messages: {failed} faults')
    sys.exit(1 if '--check' in args and failed else 0)

if __name__ == '__main__': main(sys.argv[1:])
