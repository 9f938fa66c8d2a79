#!/usr/bin/env python
"""The house at a glance: each notebook's size, and whether the house keeps its rules.

    house.py             the listing
    house.py --check     the listing, then every rule that is broken; exit status 1 if there is one

A chapter (nbs/NN_*.ipynb) has at most 130 cells, 3,000 words, 450 exported lines and 10 private names, and the call that it
is about runs in its first fifth. A toolbox page (nbs/lib/) has at most 450 exported lines. No exported line is wider than
120 columns. Modules import only from modules above them, no private name of another one, and no two define the same name.
Links between notebooks end in .ipynb and lead somewhere.
"""
import ast, json, re, sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
ORDER = ('files images names raster coco photos paint packed groups bulk masks labels own dataset sample fetch metrics findings '
         'doctor nets card tiles model views zoo unet segformer losses recipes runs live trainer train intervals answers costs report '
         'comparison plan share demo cli').split()
CALLS = {'00_masks': r'\bprepare\(', '01_dataset': r'\bload_data\(', '04_compare': r'\bcompare\('}
# names that two modules may define, each with its reason
TWICE = {'Verdict': 'of one geometry (coco), and of two models (comparison): each page knows only its own'}
WIDEST, WORDS_A_MINUTE, WORDS_A_LINE = 120, 220, 3       # a line of code takes as long as three words
DIRECTIVE = re.compile(r'^\s*#\s*\|\s*(\w+)')
LINK = re.compile(r'\]\(([^)\s]+)\)')

class Figures(NamedTuple):
    "What was counted in one notebook."
    cells: int
    words: int
    lines: int      # exported, without imports
    public: int
    private: int
    widest: int
    at: int|None    # index of the first cell that runs the call which the chapter is about
    call: str|None

    @property
    def minutes(self): return (self.words + WORDS_A_LINE*self.lines)/WORDS_A_MINUTE

def notebooks(nbs):
    "Chapters first, then the toolbox."
    found = [p for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    return sorted(found, key=lambda p: (p.parent != nbs, p.name))

def cells(path): return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
def directives(source): return {m[1] for line in source.splitlines() if (m := DIRECTIVE.match(line))}
def is_exported(kind, source): return kind == 'code' and bool({'export', 'exports'} & directives(source))
def code_lines(source): return [line for line in source.splitlines() if line.strip() and not DIRECTIVE.match(line)]

def parsed(source):
    "The statements of a cell; none where it is no Python (magics)."
    try: return ast.parse(source).body
    except SyntaxError: return []

def figures(path):
    "Count one notebook."
    all_cells = cells(path)
    exported = [s for kind, s in all_cells if is_exported(kind, s)
                and not all(isinstance(n, (ast.Import, ast.ImportFrom, ast.Try)) for n in parsed(s))]
    names = [n.name for s in exported for n in parsed(s) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    call = CALLS.get(path.stem)
    runs = (i for i, (kind, s) in enumerate(all_cells) if kind == 'code' and call and re.search(call, s) and not is_exported(kind, s))
    return Figures(len(all_cells), sum(len(s.split()) for kind, s in all_cells if kind == 'markdown'), sum(len(code_lines(s)) for s in exported),
                   sum(n[0] != '_' for n in names), sum(n[0] == '_' for n in names),
                   max([len(line) for kind, s in all_cells if is_exported(kind, s) for line in code_lines(s)], default=0), next(runs, None), call)

def over_budget(path, f):
    "What is over its budget, in words."
    chapter = path.parent.name != 'lib' and path.name[:2].isdigit()
    bad = [f'{f.lines} exported lines'] if f.lines > 450 else []
    bad += [f'a line of {f.widest} columns'] if f.widest > WIDEST else []
    if chapter:
        bad += [f'{n} {what}' for n, what, most in ((f.cells, 'cells', 130), (f.words, 'words', 3000), (f.private, 'private names', 10)) if n > most]
        if f.call and (f.at is None or f.at > f.cells/5): bad.append(f'its call first runs at cell {f.at} of {f.cells}')
    return bad

def is_patch(node): return any('patch' in ast.unparse(d) for d in node.decorator_list)

def module_faults(package):
    "Names defined twice, private names imported from another module, imports that run upwards."
    defined, faults = defaultdict(list), []
    for path in sorted(package.glob('[a-z]*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not is_patch(node) and node.name not in TWICE: defined[node.name].append(path.stem)
        if path.stem not in ORDER: faults.append(f'{path.stem}: not in the order of modules (tools/house.py)')
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom): continue
            source = (node.module or '') if node.level else (node.module or '').removeprefix('seglab.') if (node.module or '').startswith('seglab.') else None
            if not source: continue
            faults += [f'{path.stem}: imports the private name {a.name} of {source}' for a in node.names if a.name[0] == '_' and not a.name.startswith('__')]
            if source in ORDER and path.stem in ORDER and ORDER.index(source) > ORDER.index(path.stem):
                faults.append(f'{path.stem}: imports upwards, from {source}')
    return faults + [f'{name}: defined in {" and ".join(dict.fromkeys(mods))}' for name, mods in defined.items() if len(set(mods)) > 1]

def link_faults(nbs):
    "Links between notebooks that do not end in .ipynb, or lead nowhere."
    faults = []
    pages = {re.sub(r'^\d+_', '', p.stem): p for p in notebooks(nbs)}
    for path in notebooks(nbs):
        text = '\n'.join(re.sub(r'```.*?```|`[^`\n]*`', '', s, flags=re.S) for kind, s in cells(path) if kind == 'markdown')
        for link in LINK.findall(text):
            target = unquote(link.partition('#')[0])
            if not target or '://' in target or target.startswith(('mailto:', 'data:')): continue
            where = f'{path.relative_to(nbs).as_posix()}: the link {link}'
            stem = re.sub(r'^\d+_', '', Path(target).stem)
            if stem in pages and not target.endswith('.ipynb') and not (path.parent/target).exists(): faults.append(f'{where} should end in .ipynb')
            elif not (path.parent/target).exists(): faults.append(f'{where} leads nowhere')
    return faults

def title(path):
    "Title and subtitle of a notebook."
    first = '\n'.join(s for kind, s in cells(path)[:2] if kind == 'markdown')
    name, about = (re.search(pattern, first, re.M) for pattern in (r'^# (.+)$', r'^> (.+)$'))
    return name[1].strip() if name else path.stem, about[1].strip() if about else ''

def main(check=False, root=ROOT):
    nbs, faults = root/'nbs', []
    print(f"{'notebook':28}{'cells':>6}{'words':>7}{'lines':>7}{'public':>8}{'private':>9}{'widest':>8}{'minutes':>9}   over budget")
    for path in notebooks(nbs):
        f, name = figures(path), path.relative_to(nbs).as_posix()
        bad = over_budget(path, f)
        faults += [f'{name}: {b}' for b in bad]
        print(f'{name:28}{f.cells:6}{f.words:7,}{f.lines:7,}{f.public:8}{f.private:9}{f.widest:8}{f.minutes:9.0f}   {"; ".join(bad)}')
    faults += module_faults(root/'seglab') + link_faults(nbs)
    if not check: return
    for fault in faults: print(f'house: {fault}')
    print(f'house: {len(faults)} faults')
    sys.exit(1 if faults else 0)

if __name__ == '__main__': main('--check' in sys.argv[1:])
