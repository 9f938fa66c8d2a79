#!/usr/bin/env python
"""Build the site from the notebooks into _docs/ without Quarto, and check every link and anchor of it.

nbdev processes the notebooks (API blocks, links between symbols), smalldocs renders them. Where Quarto is installed,
`nbdev_docs` builds the same pages from the same configuration.
"""
import ast, json, re, shutil, subprocess, sys
from html import unescape
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

EXECUTED = re.compile(r'^\s*#\s*\|\s*(?:exports?|exporti|exec_doc|eval:\s*false)\b', re.M)
NUMBER = re.compile(r'^\d+_')
NOTEBOOK_LINK = re.compile(r'(\]\((?:\.\./|[\w-]+/)*)\d+_([\w-]+\.ipynb)')
NESTED_LINK = re.compile(r'\[([^\[\]]*)\[(`[^`\n]+`)\]\([^)]*\)([^\[\]]*)\]\(')   # nbdev links a symbol that is a link already
PRIVATE_LINK = re.compile(r'\[(`(?:\w+\.)*_\w+(?:\.\w+)*`)\]\([^)]*\)')   # the site has no block for a private name
PRIVATE_BLOCK = re.compile(r'^#+ (?:\w+\.)*_(?!_)\w*', re.M)
INHERITED = re.compile(r'^\*(?:Return repr\(self\)|Return hash\(self\)|Return self==value|Helper for pickle)\.\*', re.M)
WEB_FONT = re.compile(r'@import url\([^)]*fonts\.googleapis\.com[^)]*\);?')
MATH = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
KATEX = re.compile(r'<link[^>]*katex[^>]*>|<script[^>]*katex[^>]*></script>')
HOME = re.compile(r'\b(?:__main__|seglab\.\w+|pathlib|numpy|torch)\.(?=\w)|:NoneType(?==None)')   # says little in a signature
SIGNATURE_LINK = re.compile(r'\[([^\]]*)\]\([^)]*\)')
SIGNATURE = re.compile(r'^```python\n(.*?)^```\n+', re.M | re.S)
SAYS_NOTHING = re.compile(r'^```python\n+def \w+\(\n\s*\*args, \*\*kwargs\n\)[^\n]*\n+```\n*', re.M)   # of a named tuple
API_NAME, API_WORDS = re.compile(r'^### (.+)$', re.M), re.compile(r'^\*(.+?)\*$', re.M | re.S)
DEFINED = re.compile(r'^(?:async )?(?:def|class) (\w+)', re.M)
PARAMETER = re.compile(r'^    \*{0,2}(\w+)[^#\n]*# (.+)$', re.M)
CONTENTS = re.compile(r'<nav id="TOC"[^>]*>.*?(<ul>.*?)</nav>', re.S)
LINE = re.compile(r'#L(\d+)')
IMPORT = re.compile(r'(?:from [\w.]+ )?import [\w., ]+(?: as \w+)?$')
LONGEST_OPEN = 25    # lines of source that a chapter shows without being asked

def page_name(path): return path.with_name(NUMBER.sub('', path.name))

def short_signature(line):
    "A line of a signature without the homes of its types; its comment stays as it is."
    code, mark, comment = line.partition('#')
    return HOME.sub('', code) + mark + comment

def mend_api_block(text, base):
    "Keep nbdev's API markdown readable for a plain renderer: no links inside code blocks, no dunder taken for bold."
    out, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.startswith('```'): inside = not inside
        elif inside: line = short_signature(SIGNATURE_LINK.sub(r'\1', line))
        elif re.match(r'#+ ', line): line = line.replace('__', r'\_\_')
        out.append(line)
    return SAYS_NOTHING.sub('', PRIVATE_LINK.sub(r'\1', ''.join(out))).replace(base + '/', '@site/')

def is_noise(text):
    "Whether an API block says nothing to a reader: a private name, or a method whose words are Python's own."
    return '### ' in text and bool(PRIVATE_BLOCK.search(text) or INHERITED.search(text))

def api_text(cell):
    "The Markdown of a cell's API block; empty where it is none."
    source = ''.join(cell['source'])
    if not (cell.get('outputs') and source.lstrip().startswith('#|') and 'show_doc(' in source): return ''
    return ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell['outputs'])

def in_order(cells):
    """The API blocks of a cell in the order of its source, and in front of it: nbdev puts the last one first, the others
    behind."""
    out, run = [], []
    name = lambda c: found[1].replace('\\_', '_').rpartition('.')[2] if (found := API_NAME.search(api_text(c))) else None
    def flush():
        while run:
            source = next((c for c in run if name(c) is None), None)
            defined = DEFINED.findall(''.join(source['source'])) if source else []
            mine = [c for c in run if name(c) in defined] if source else list(run)
            at = {n: i for i, n in enumerate(defined)}
            mine.sort(key=lambda c: at[name(c)] if source else int(m[1]) if (m := LINE.search(api_text(c))) else 0)
            first = run.index(source) if source else 0
            out.extend(c for c in run[:first] if c not in mine)
            out.extend([*mine, *([source] if source else [])])
            run[:] = [c for c in run[first + bool(source):] if c not in mine] if source else []
    for c in cells:
        if name(c) is not None or 'code-summary: "Exported source"' in ''.join(c['source']): run.append(c)
        else:
            flush()
            out.append(c)
    flush()
    return out

def fold_imports(cell):
    "Fold a cell that does nothing but import: a reader came for what follows."
    lines = [line for line in ''.join(cell['source']).splitlines() if line.strip()]
    if cell['cell_type'] == 'code' and len(lines) > 3 and all(IMPORT.match(line) for line in lines):
        cell['source'] = '#| code-fold: true\n#| code-summary: "Imports"\n' + ''.join(cell['source'])

def say_once(cells, is_chapter):
    """Show each signature once. A chapter is a lesson: it shows short source, and the API block above it keeps name and
    words only. All other source is folded under the block that shows its signature."""
    blocks = {name[1].replace('\\_', '_').rpartition('.')[2]: c for c in cells if (name := API_NAME.search(api_text(c)))}
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or 'code-fold: show' not in source: continue
        shown = [blocks[n] for n in DEFINED.findall(source) if n in blocks]
        if not shown: continue
        if not is_chapter or source.count('\n') > LONGEST_OPEN:
            cell['source'] = source.replace('code-fold: show', 'code-fold: true', 1)
            continue
        for block in shown:
            for out in block['outputs']: out['data']['text/markdown'] = SIGNATURE.sub('', ''.join(out['data']['text/markdown']), 1)

def colab_link(path, cfg):
    "The line that opens a chapter in Google Colab."
    return f"[Open in Colab]({cfg.git_url.replace('//github.com/', '//colab.research.google.com/github/')}/blob/{cfg.branch}/{cfg.nbs_path.name}/{path.name}){{.colab}}"

def mend_table(text):
    "Mark the columns of a DataFrame that hold words, so that they stand to the left and numbers to the right."
    rows = [re.findall(r'<t[dh]>(.*?)</t[dh]>', row, re.S) for row in text.split('<tr')[1:]]
    number = re.compile(r'[-+−]?[\d.,:e%×+-]*(?:nan|NaN|inf)?')
    words = {i for i in range(1, max(map(len, rows), default=0)) if not all(number.fullmatch(r[i].strip()) for r in rows[1:] if len(r) == len(rows[0]))}
    if not rows or any(len(r) != len(rows[0]) for r in rows): return text
    out = []
    for row in text.split('<tr'):
        at = iter(range(len(rows[0])))
        out.append(re.sub(r'<(t[dh])>', lambda m: f'<{m[1]} class="words">' if next(at) in words else m[0], row))
    return '<tr'.join(out)

def tidy_outputs(outputs):
    "Printed lines that came one by one as one block; outputs that hold nothing, such as a bar that is gone, left out."
    out = []
    for o in outputs:
        if 'text' in o and out and out[-1].get('name') == o['name']: out[-1]['text'] = ''.join([*out[-1]['text'], *o['text']])
        elif 'text' in o or o.get('data') != {}: out.append(o)
    return [o for o in out if 'text' not in o or ''.join(o['text']).strip()]

def mend_page(path):
    "Let a page of plain Markdown link to the renamed pages."
    path.write_text(NOTEBOOK_LINK.sub(r'\1\2', path.read_text(encoding='utf-8')), encoding='utf-8')

def mend_notebook(path, cache, cfg):
    """Rename-proof one processed notebook: relative links, no output-file, mended API blocks, each signature once.
    Returns its title, its HTML file and its public names."""
    nb = json.loads(path.read_text(encoding='utf-8'))
    depth = len(path.relative_to(cache).parts) - 1
    up, base = '../' * depth, cfg.doc_host + cfg.doc_baseurl
    is_chapter = not depth and NUMBER.match(path.name)
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'raw' or source.startswith('---'): source = re.sub(r'^output-file:.*\n', '', source, flags=re.M)
        if cell['cell_type'] == 'markdown': source = PRIVATE_LINK.sub(r'\1', NOTEBOOK_LINK.sub(r'\1\2', NESTED_LINK.sub(r'[\1\2\3](', source).replace(base + '/', up)))
        cell['source'] = source
        if cell.get('outputs') and source.lstrip().startswith('#|') and 'show_doc(' in source:
            cell['outputs'] = [o for o in cell['outputs'] if not is_noise(''.join(o.get('data', {}).get('text/markdown', '')))]
        if cell.get('outputs'): cell['outputs'] = tidy_outputs(cell['outputs'])
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            if 'class="dataframe"' in ''.join(data.get('text/html', '')): data['text/html'] = mend_table(''.join(data['text/html']))
            if 'text/markdown' in data:
                data['text/markdown'] = mend_api_block(''.join(data['text/markdown']), base).replace('@site/', up)
                data.pop('text/plain', None)
    href = page_name(path).relative_to(cache).with_suffix('.html').as_posix()
    title = re.search(r'^title: (.+)$', ''.join(nb['cells'][0]['source']), re.M)
    nb['cells'] = in_order(nb['cells'])
    for cell in nb['cells']: fold_imports(cell)
    entries = api_entries(nb['cells'], href)
    say_once(nb['cells'], is_chapter)
    if is_chapter: nb['cells'].insert(1, dict(cell_type='markdown', id='colab', metadata={}, source=colab_link(path, cfg)))
    page_name(path).write_text(json.dumps(nb), encoding='utf-8')
    if page_name(path) != path: path.unlink()
    return title[1].strip('\'"') if title else path.stem, href, entries

class Entry(NamedTuple):
    "A public name of one page."
    page: str      # its HTML file
    name: str      # as its heading says it
    words: str     # its docstring
    params: list   # (name, comment) of each parameter

    @property
    def href(self): return f"{self.page}#{self.name.lower()}"

def api_entries(cells, page):
    "The public names of one mended notebook."
    out = []
    for text in filter(None, map(api_text, cells)):
        name, words, signature = API_NAME.search(text), API_WORDS.search(text), SIGNATURE.search(text)
        if not name: continue
        said = SIGNATURE_LINK.sub(r'\1', ' '.join(words[1].split())) if words else ''
        out.append(Entry(page, name[1].replace('\\_', '_'), said, PARAMETER.findall(signature[1] if signature else '')))
    return out

def api_page(pages, handed_out):
    "The index of all public names, in Markdown: what `import seglab` hands out, then every page's."
    def rows(entries): return [f"| [`{e.name}`]({e.href}) | {e.words} |" for e in entries]
    head = ['| | |', '|:---|:---|']
    first = {e.name: e for _, _, found in pages for e in found if e.name in handed_out}
    parts = ['---\ntitle: "All names"\ndescription: "Every public name with what it does, page by page. The search box knows their parameters too."\n---\n',
             '## What `import seglab` hands out\n', *head, *rows(first[n] for n in sorted(first, key=str.casefold))]
    for title, href, found in pages: parts += ['', f'## [{title}]({href})', '', *head, *rows(found)]
    return '\n'.join(parts) + '\n'

def add_parameters(site, pages, handed_out):
    "Let the search box find a function by what its parameters say: 'learning rate' leads to `fit`."
    file = site/'search.json'
    found = json.loads(file.read_text(encoding='utf-8'))
    for e in (e for _, _, found_there in pages for e in found_there if e.name in handed_out):
        for name, comment in e.params:
            found.append(dict(objectID=f'{e.href}@{name}', href=e.href, title=f'{e.name}({name}=…)', section=comment.partition(',')[0], text=f'{comment}. {e.words}'))
    file.write_text(json.dumps(found, ensure_ascii=False), encoding='utf-8')

def mend_configuration(cache):
    "Let the sidebar point at the renamed pages, and at the index of names; the pages in its order."
    import yaml
    sidebar = cache/'sidebar.yml'
    cfg = yaml.safe_load(sidebar.read_text(encoding='utf-8'))
    for section in cfg['website']['sidebar']['contents']:
        for page in section['contents']:
            if '://' not in page['href']: page['href'] = page_name(Path(page['href'])).as_posix()
    sections = cfg['website']['sidebar']['contents']
    order = [Path(page['href']).with_suffix('.html').as_posix() for section in sections for page in section['contents']]
    sections[0]['contents'].append(dict(href='api.qmd', text='All names'))
    sidebar.write_text(yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True), encoding='utf-8')
    return order

def mixed_cells(nbs):
    """Every cell that would run for the docs although only its imports are wanted, as (notebook, first line).
    nbdev runs each cell with an import in it, and warns where something else stands beside."""
    found = []
    for path in sorted(nbs.rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts: continue
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] != 'code' or source.startswith('%%') or EXECUTED.search(source) or 'nbdev_export()' in source: continue
            lines = [line for line in source.splitlines() if not line.startswith(('%', '!', '#'))]
            nodes = [type(n) for n in ast.walk(ast.parse('\n'.join(lines)))]
            if {ast.Import, ast.ImportFrom} & set(nodes) and {ast.Expr, ast.Assign} & set(nodes):
                found.append((path.relative_to(nbs).as_posix(), next(line for line in lines if line.strip())))
    return found

def keep_fonts_at_home(site):
    "Take the theme's web font out: the page then asks no other host for it, and looks the same without a network."
    for css in site.rglob('themes/*.css'): css.write_text(WEB_FONT.sub('', css.read_text(encoding='utf-8')), encoding='utf-8')

def keep_math_at_home(site):
    "Write formulas as MathML, which browsers draw themselves, so that no page fetches KaTeX."
    def drawn(m): return convert(unescape(m[2]), display='block' if m[1] == 'display' else 'inline')
    for page in site.rglob('*.html'): page.write_text(KATEX.sub('', MATH.sub(drawn, page.read_text(encoding='utf-8'))), encoding='utf-8')

def add_phone_contents(site):
    "Give a narrow screen the page's contents too: folded, above the text. The style sheet hides them on a wide one."
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        found = CONTENTS.search(text)
        if not found: continue
        links = re.sub(r' (?:id|class|data-scroll-target)="[^"]*"', '', found[1])
        folded = f'<details class="phone-contents"><summary>On this page</summary>{links}</details>'
        at = text.index('</header>', text.index('id="title-block-header"')) + len('</header>')
        page.write_text(text[:at] + folded + text[at:], encoding='utf-8')

class Links(HTMLParser):
    "The ids and the links of one page."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        for key in ('id', 'name'):
            if attrs.get(key): self.ids.add(attrs[key])
        for key in ('href', 'src'):
            if attrs.get(key): self.links.append(attrs[key])

def broken_links(site):
    "Every link and anchor inside the built site that leads nowhere, as (page, link)."
    pages = {p: Links(p.read_text(encoding='utf-8')) for p in site.rglob('*.html')}
    bad = []
    for page, found in pages.items():
        for link in found.links:
            url = urlsplit(link)
            if url.scheme or url.netloc or link.startswith('//'): continue
            target = page if not url.path else (page.parent/unquote(url.path)).resolve()
            if target.is_dir(): target = target/'index.html'
            if not target.exists(): bad.append((page.relative_to(site), link))
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                bad.append((page.relative_to(site), link))
    return bad

def main():
    cfg = get_config()
    mixed = mixed_cells(cfg.nbs_path)
    for name, line in mixed: print(f'docs: {name}: an import and other code in one cell, split it: {line}', file=sys.stderr)
    if mixed: sys.exit(f'docs: {len(mixed)} cells to split')
    refresh_quarto_yml()
    _build_modidx()
    cache = proc_nbs(force=True)
    for path in sorted(cache.rglob('*.qmd')): mend_page(path)
    order = mend_configuration(cache)
    pages = sorted((mend_notebook(path, cache, cfg) for path in sorted(cache.rglob('*.ipynb'))), key=lambda p: order.index(p[1]) if p[1] in order else len(order))
    pages, handed_out = [p for p in pages if p[2]], dir(import_module(cfg.lib_name))
    (cache/'api.qmd').write_text(api_page(pages, handed_out), encoding='utf-8')
    done = subprocess.run([Path(sys.executable).with_name('smalldocs'), 'render', '--strict', str(cache)])
    if done.returncode: sys.exit('docs: smalldocs found the faults above')
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(cache/cfg.doc_path.name, cfg.doc_path)
    keep_fonts_at_home(cfg.doc_path)
    keep_math_at_home(cfg.doc_path)
    add_phone_contents(cfg.doc_path)
    add_parameters(cfg.doc_path, pages, handed_out)
    bad = broken_links(cfg.doc_path.resolve())
    for page, link in bad: print(f'docs: {page}: broken link {link}', file=sys.stderr)
    if bad: sys.exit(f'docs: {len(bad)} broken links')
    print(f'docs: {len(list(cfg.doc_path.rglob("*.html")))} pages in {cfg.doc_path.name}/, links hold')

if __name__ == '__main__': main()
