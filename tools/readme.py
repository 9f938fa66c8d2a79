#!/usr/bin/env python
"""Write README.md (and its pictures) from nbs/index.ipynb; with --check, only say whether they are in step."""
import base64, html, re, sys
from html.parser import HTMLParser
from pathlib import Path

from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup

CALLOUT = re.compile(r'^:::\s*\{\.callout-(note|tip|warning|important|caution)\}\n(.*?)^:::\s*$', re.M | re.S)
PAGE_LINK = re.compile(r'\]\((?=(?:lib/)?[\w-]+\.(?:ipynb|qmd)[)#])')
HIDDEN = ('hide', 'default_exp', 'export')
PICTURES = 'README_files'

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
        return f'<img src="{name}" alt="{html.escape(opts.get("fig-alt", "picture"), quote=True)}">'
    if 'text/markdown' in data: return joined(data['text/markdown'])
    if 'class="dataframe"' in joined(data.get('text/html', '')): return table(joined(data['text/html']))
    if 'text/html' in data: return joined(data['text/html'])
    if 'text/plain' in data: return '```\n' + joined(data['text/plain']) + '\n```'
    return ''

def render(nb, link=lambda s: s):
    "The notebook as (markdown, {picture name: bytes})."
    parts, pictures = [], {}
    for cell in nb.cells:
        if cell.cell_type == 'markdown': parts.append(link(PAGE_LINK.sub('](nbs/', CALLOUT.sub(alert, cell.source))))
        elif cell.cell_type == 'code':
            opts, source = options(cell.source)
            if any(key.split(' ')[0] in HIDDEN for key in opts): continue
            if opts.get('echo') != 'false' and source: parts.append(f'```python\n{source}\n```')
            parts += [o for o in (output(out, opts, pictures) for out in cell.get('outputs', [])) if o]
    head = f'<!-- Written by tools/readme.py from nbs/{get_config().readme_nb}; edit the notebook, then `make readme`. -->\n\n'
    return head + '\n\n'.join(p.strip('\n') for p in parts) + '\n', pictures

def main(check=False):
    cfg = get_config()
    root = cfg.config_path
    text, pictures = render(read_nb(cfg.nbs_path/cfg.readme_nb), NbdevLookup().linkify)
    wanted = {'README.md': text.encode(), **pictures}
    there = {p.relative_to(root).as_posix() for p in (root/PICTURES).glob('*')} | {'README.md'}
    stale = sorted(name for name in wanted.keys() | there
                   if name not in wanted or not (root/name).exists() or (root/name).read_bytes() != wanted[name])
    if check and stale: sys.exit(f"readme: {', '.join(stale)} not in step with nbs/{cfg.readme_nb}; run `make readme` and commit")
    for name in stale:
        if name not in wanted: (root/name).unlink()
        else:
            (root/name).parent.mkdir(exist_ok=True)
            (root/name).write_bytes(wanted[name])
    print('readme: in step' if not stale else f"readme: wrote {', '.join(stale)}")

if __name__ == '__main__': main('--check' in sys.argv[1:])
