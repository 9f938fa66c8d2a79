#!/usr/bin/env python
"""Write README.md (and its pictures) from nbs/index.ipynb, after filling in the list of notebooks there and in the sidebar,
and the project's address wherever it is said.

With --check, only say whether all of them are in step.
"""
import base64, html, json, re, sys
from html.parser import HTMLParser
from pathlib import Path

from execnb.nbio import dict2nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup

import house

CALLOUT = re.compile(r'^:::\s*\{\.callout-(note|tip|warning|important|caution)\}\n(.*?)^:::\s*$', re.M | re.S)
PAGE_LINK = re.compile(r'\]\((?=(?:lib/|tasks/)?[\w-]+\.(?:ipynb|qmd)[)#])')
NESTED_LINK = re.compile(r'\[([^\[\]]*)\[(`[^`\n]+`)\]\([^)]*\)([^\[\]]*)\]\(')
NUMBER = re.compile(r'^\d+_')
HIDDEN = ('hide', 'default_exp', 'export')
PICTURES = 'README_files'
LISTING = re.compile(r'(<!-- house -->\n).*?(<!-- /house -->)', re.S)
SEQUENCE = ('masks dataset unet segformer compare files images names raster coco photos paint packed groups bulk labels own sample fetch doctor '
            'model zoo losses runs recipes trainer live train tiles nets card metrics intervals answers costs plan report share cli').split()
TASKS = 'coco masks large rare better ship'.split()
BANDS = {'': 'The story', '1': 'Toolbox: data', '2': 'Toolbox: models and training', '3': 'Toolbox: judging and sharing', '4': 'Toolbox: the shell'}

def bands(nbs):
    "The numbered notebooks in bands: {title of the band: paths}."
    out, place = {}, lambda p: (p.parent != nbs, p.name[:1] if p.parent != nbs else '', SEQUENCE.index(name) if (name := NUMBER.sub('', p.stem)) in SEQUENCE else 99)
    for path in sorted(house.notebooks(nbs), key=place):
        if path.name[0].isdigit(): out.setdefault(BANDS[path.name[0] if path.parent != nbs else ''], []).append(path)
    return out

def listing(nbs):
    "The notebooks, their length and minutes, as tables."
    parts = []
    for band, paths in bands(nbs).items():
        rows = ['| | | lines | minutes |', '|:---|:---|---:|---:|']
        for path in paths:
            f, (name, about) = house.figures(path), house.title(path)
            rows.append(f'| [{name}]({path.relative_to(nbs).as_posix()}) | {about} | {f.lines} | {f.minutes:.0f} |')
        parts.append(('' if not parts else f'**{band}**\n\n') + '\n'.join(rows))
    return '\n\n'.join(parts) + '\n'

def fill_listing(path, nbs, text=None):
    "The front page's notebook with the listing filled in, as JSON text."
    text = text or path.read_text(encoding='utf-8')
    nb = json.loads(text)
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown' and LISTING.search(source):
            cell['source'] = LISTING.sub(lambda m: m[1] + listing(nbs) + m[2], source).splitlines(keepends=True)
            return json.dumps(nb, indent=1, ensure_ascii=False) + '\n'
    return text

def page_title(path):
    "What a page of Markdown or a notebook is called."
    if path.suffix == '.ipynb': return house.title(path)[0]
    return re.search(r'^title: "(.+)"$', path.read_text(encoding='utf-8'), re.M)[1]

def sidebar(nbs):
    """The site's sidebar: what seglab is, a page for each task, the notebooks in bands, the project's pages; and the
    navigation bar's link to the source."""
    entry = lambda href, text: f'          - href: {href}\n            text: {json.dumps(text, ensure_ascii=False)}\n'
    section = lambda name, pages: f'      - section: {json.dumps(name)}\n        contents:\n' + ''.join(entry(*p) for p in pages)
    middle = [section(band, [(p.relative_to(nbs).as_posix(), house.title(p)[0]) for p in paths]) for band, paths in bands(nbs).items()]
    git, fixed = get_config().git_url, lambda *names: [(n, page_title(nbs/n)) for n in names if (nbs/n).exists()]
    start = section('Start here', [('index.ipynb', 'What seglab is'), *fixed('gallery.ipynb', 'any_model.ipynb', 'glossary.qmd')])
    tasks = fixed(*(f'tasks/{name}.qmd' for name in TASKS))
    project = fixed('speed.ipynb', 'scale.qmd')
    project += [(f'{git}/blob/main/{name}.md', text) for name, text in (('CONTRIBUTING', 'Contributing'), ('CHANGELOG', 'Changes'))]
    navbar = f'website:\n  navbar:\n    right:\n      - icon: github\n        text: GitHub\n        href: {git}\n        aria-label: The source on GitHub\n'
    return (navbar + '  sidebar:\n    contents:\n' + start + (section('By task', tasks) if tasks else '')
            + ''.join(middle) + section('Project', project))

def addressed(cfg):
    "What says the project's address, with the address of settings.ini: {path: text}, of those that differ."
    there = re.compile(rf'https://github\.com/[\w.-]+/{cfg.repo}\b')
    said = {p: p.read_text(encoding='utf-8') for p in [cfg.config_path/'CITATION.cff', *house.notebooks(cfg.nbs_path)] if p.exists()}
    return {p: new for p, text in said.items() if (new := there.sub(cfg.git_url, text)) != text}

def linked(link):
    "A linker of symbols that leaves those alone which are links already."
    return lambda text: NESTED_LINK.sub(r'[\1\2\3](', link(text))

def alert(m):
    "One Quarto callout as GitHub's alert."
    body = '\n'.join('> ' + line if line else '>' for line in m[2].strip().splitlines())
    return f'> [!{m[1].upper()}]\n{body}\n'

def options(source):
    "The `#|` directives of a cell, and the rest of its source."
    lines = source.splitlines()
    opts = {}
    while lines and re.match(r'\s*#\s*\|', lines[0]):
        key, _, value = re.sub(r'^\s*#\s*\|\s*', '', lines.pop(0)).partition(':')
        opts[key.strip()] = value.strip().strip('"')
    return opts, '\n'.join(lines).strip('\n')

class Rows(HTMLParser):
    "The rows of an HTML table as lists of cell texts; the index column of a DataFrame left out."
    def __init__(self, text):
        super().__init__()
        self.rows, self.cell = [], None
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        if tag == 'tr': self.rows.append([])
        elif tag in ('td', 'th'): self.cell = ''
    def handle_data(self, data):
        if self.cell is not None: self.cell += data
    def handle_endtag(self, tag):
        if tag in ('td', 'th'): self.rows[-1].append(' '.join(self.cell.split()).replace('|', '\\|')); self.cell = None

def table(text):
    "A DataFrame's HTML as a table of GitHub's: its own styles would be shown as text there."
    head, *rows = [row[1:] for row in Rows(text).rows]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [head, [':---']*len(head), *rows])

def output(out, opts, pictures):
    "Markdown of one saved output; pictures are collected in `pictures`."
    data = out.get('data', {})
    joined = lambda v: v if isinstance(v, str) else ''.join(v)
    if out['output_type'] == 'stream': return '```\n' + joined(out['text']).rstrip('\n') + '\n```'
    if 'image/png' in data:
        name = f'{PICTURES}/picture-{len(pictures) + 1}.png'
        pictures[name] = base64.b64decode(joined(data['image/png']))
        raw = get_config().git_url.replace('://github.com/', '://raw.githubusercontent.com/')
        return f'<img src="{raw}/main/{name}" alt="{html.escape(opts.get("fig-alt", "picture"), quote=True)}">'
    if 'text/markdown' in data: return joined(data['text/markdown'])
    if 'class="dataframe"' in joined(data.get('text/html', '')): return table(joined(data['text/html']))
    if 'text/html' in data: return joined(data['text/html'])
    if 'text/plain' in data: return '```\n' + joined(data['text/plain']) + '\n```'
    return ''

def render(nb, link=lambda s: s):
    "The notebook as (markdown, {picture name: bytes})."
    parts, pictures = [], {}
    for cell in nb.cells:
        if cell.cell_type == 'markdown': parts.append(link(PAGE_LINK.sub(f']({get_config().git_url}/blob/main/nbs/', CALLOUT.sub(alert, cell.source))))
        elif cell.cell_type == 'code':
            opts, source = options(cell.source)
            if any(key.split(' ')[0] in HIDDEN for key in opts): continue
            if opts.get('echo') != 'false' and source: parts.append(f'```python\n{source}\n```')
            parts += [o for o in (output(out, opts, pictures) for out in cell.get('outputs', [])) if o]
    head = f'<!-- Written by tools/readme.py from nbs/{get_config().readme_nb}; edit the notebook, then `make readme`. -->\n\n'
    return head + '\n\n'.join(p.strip('\n') for p in parts) + '\n', pictures

def main(check=False):
    cfg = get_config()
    root, front = cfg.config_path, cfg.nbs_path/cfg.readme_nb
    moved = addressed(cfg)
    filled, bar = fill_listing(front, cfg.nbs_path, moved.get(front)), sidebar(cfg.nbs_path)
    text, pictures = render(dict2nb(json.loads(filled)), linked(NbdevLookup().linkify))
    relative = lambda p: p.relative_to(root).as_posix()
    wanted = {**{relative(p): t.encode() for p, t in moved.items()}, 'README.md': text.encode(), relative(front): filled.encode(), relative(cfg.nbs_path/'sidebar.yml'): bar.encode(), **pictures}
    there = {relative(p) for p in (root/PICTURES).glob('*')} | {'README.md'}
    stale = sorted(name for name in wanted.keys() | there
                   if name not in wanted or not (root/name).exists() or (root/name).read_bytes() != wanted[name])
    if check and stale: sys.exit(f"readme: {', '.join(stale)} not in step with the notebooks; run `make readme` and commit")
    for name in stale:
        if name not in wanted: (root/name).unlink()
        else:
            (root/name).parent.mkdir(exist_ok=True)
            (root/name).write_bytes(wanted[name])
    print('readme: in step' if not stale else f"readme: wrote {', '.join(stale)}")

if __name__ == '__main__': main('--check' in sys.argv[1:])
