#!/usr/bin/env python
"""Build the site from the notebooks into _docs/ without Quarto, and check every link and anchor of it.

nbdev processes the notebooks (API blocks, links between symbols), smalldocs renders them. Where Quarto is installed,
`nbdev_docs` builds the same pages from the same configuration.
"""
import json, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

NUMBER = re.compile(r'^\d+_')
NOTEBOOK_LINK = re.compile(r'(\]\((?:\.\./|[\w-]+/)*)\d+_([\w-]+\.ipynb)')
PRIVATE_LINK = re.compile(r'\[(`(?:\w+\.)*_\w+`)\]\([^)]*\)')   # the site has no block for a private name
SIGNATURE_LINK = re.compile(r'\[([^\]]*)\]\([^)]*\)')

def page_name(path): return path.with_name(NUMBER.sub('', path.name))

def mend_api_block(text, base):
    "Keep nbdev's API markdown readable for a plain renderer: no links inside code blocks, no dunder taken for bold."
    out, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.startswith('```'): inside = not inside
        elif inside: line = SIGNATURE_LINK.sub(r'\1', line)
        elif re.match(r'#+ ', line): line = line.replace('__', r'\_\_')
        out.append(line)
    return PRIVATE_LINK.sub(r'\1', ''.join(out)).replace(base + '/', '@site/')

def mend_notebook(path, depth, base):
    "Rename-proof one processed notebook: relative links, no output-file, mended API blocks."
    nb = json.loads(path.read_text(encoding='utf-8'))
    up = '../' * depth
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'raw' or source.startswith('---'): source = re.sub(r'^output-file:.*\n', '', source, flags=re.M)
        if cell['cell_type'] == 'markdown': source = PRIVATE_LINK.sub(r'\1', NOTEBOOK_LINK.sub(r'\1\2', source.replace(base + '/', up)))
        cell['source'] = source
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            if 'text/markdown' in data:
                data['text/markdown'] = mend_api_block(''.join(data['text/markdown']), base).replace('@site/', up)
                data.pop('text/plain', None)
    page_name(path).write_text(json.dumps(nb), encoding='utf-8')
    if page_name(path) != path: path.unlink()

def mend_configuration(cache):
    "Let the sidebar point at the renamed pages."
    import yaml
    sidebar = cache/'sidebar.yml'
    cfg = yaml.safe_load(sidebar.read_text(encoding='utf-8'))
    for section in cfg['website']['sidebar']['contents']:
        for page in section['contents']:
            if '://' not in page['href']: page['href'] = page_name(Path(page['href'])).as_posix()
    sidebar.write_text(yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True), encoding='utf-8')

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
    refresh_quarto_yml()
    _build_modidx()
    cache = proc_nbs(force=True)
    base = cfg.doc_host + cfg.doc_baseurl
    for path in sorted(cache.rglob('*.ipynb')): mend_notebook(path, len(path.relative_to(cache).parts) - 1, base)
    mend_configuration(cache)
    done = subprocess.run([Path(sys.executable).with_name('smalldocs'), 'render', '--strict', str(cache)])
    if done.returncode: sys.exit('docs: smalldocs found the faults above')
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(cache/cfg.doc_path.name, cfg.doc_path)
    bad = broken_links(cfg.doc_path.resolve())
    for page, link in bad: print(f'docs: {page}: broken link {link}', file=sys.stderr)
    if bad: sys.exit(f'docs: {len(bad)} broken links')
    print(f'docs: {len(list(cfg.doc_path.rglob("*.html")))} pages in {cfg.doc_path.name}/, links hold')

if __name__ == '__main__': main()
