"""Builds the documentation pages without Quarto: nbdev processes the notebooks, nbconvert writes the pages.

Finds broken exported cells, missing titles, dead links between pages and notebooks that the sidebar forgets. The site itself is built by
Quarto (`nbdev-docs`); these pages have the same names and content in plain dress."""
import argparse, html, os, re, shutil, sys, tomllib, traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NAV = 'font: 14px sans-serif; padding: 8px 24px; border-bottom: 1px solid #ccc; line-height: 1.8'

def page_of(path):
    "The page that nbdev makes of the notebook `path`: its name without the number in front"
    return path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.name.lower())).with_suffix('.html')

def plain(cell):
    "The cell in notebook form again, without directives; None if a page does not show it"
    source = cell.source or ''
    if cell.cell_type == 'raw':      # the title cell, which nbdev turned into front matter
        front = yaml.safe_load(source.strip().strip('-'))
        return dict(cell_type='markdown', metadata={}, source=f"# {front['title']}\n\n> {front.get('description', '')}")
    if cell.cell_type == 'markdown': return dict(cell_type='markdown', metadata={}, source=re.sub(r'(?m)^:::.*\n?', '', source))
    directives = dict(re.findall(r'(?m)^#\|\s*([\w-]+):\s*(.*)', source))
    outputs = [] if directives.get('output') == 'false' else cell.get('outputs', [])
    hidden = {'transient': {'remove_source': True}} if directives.get('echo') == 'false' else {}
    return dict(cell_type='code', metadata=hidden, execution_count=None, outputs=outputs, source=re.sub(r'(?m)^#\|.*\n?', '', source))

def page(path, dest, links):
    "Build the page of the notebook `path` (relative to nbs); gives the error, None if all went well"
    import nbformat
    from fastcore.nbio import read_nb
    from nbconvert import HTMLExporter
    from nbdev.processors import FilterDefaults
    os.environ['IN_TEST'] = '1'
    try:
        nb = read_nb(ROOT/'nbs'/path)
        FilterDefaults()(nb)
        front = getattr(nb, 'frontmatter_', None) or {}
        if 'title' not in front: return f'{path}: no title (a first markdown cell with `# Title`, an empty line, `> subtitle`)'
        cells = [plain(c) for c in nb.cells if c.source]
        doc = nbformat.v4.rwbase.rejoin_lines(nbformat.from_dict(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=4)))
        nbformat.validate(doc)
        body, _ = HTMLExporter().from_notebook_node(doc, resources={'metadata': {'name': front['title']}})
        up = '../'*(len(path.parts)-1)
        nav = ' · '.join(f'<a href="{up}{target}">{html.escape(text)}</a>' for target, text in links)
        body = re.sub(r'(<body[^>]*>)', lambda m: f'{m[1]}<nav style="{NAV}">{nav}</nav>', body, count=1)
        out = dest/page_of(path)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(relink(body, up), encoding='utf-8')
    except Exception as e: return f'{path}: {type(e).__name__}: {e}\n' + ''.join(traceback.format_exc().splitlines(True)[-12:])

def relink(body, up):
    "Links to notebooks and to the site's address become links to pages"
    site = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']['Documentation']
    body = body.replace(f'href="{site}', f'href="{up}')
    def target(m): return f'href="{page_of(Path(m[1])).as_posix()}{m[2]}"' if not re.match(r'[a-z]+:|//', m[1]) else m[0]
    return re.sub(r'href="([^"#]+\.ipynb)(#[^"]*)?"', lambda m: target({**m.groupdict(), 0: m[0], 1: m[1], 2: m[2] or ''}), body)

def dead_links(dest):
    "Links of the pages in `dest` to pages and files that are not there"
    out = []
    for p in sorted(dest.rglob('*.html')):
        for url in sorted(set(re.findall(r'<(?:a|img)\b[^>]*?(?:href|src)="([^"]+)"', p.read_text(encoding='utf-8')))):
            if re.match(r'[a-z]+:|#|//', url): continue
            if not (p.parent/url.partition('#')[0]).exists(): out.append(f'{p.relative_to(dest)}: the link to {url} leads nowhere')
    return out

def sidebar(books):
    "The sidebar's notebooks in reading order, and what is wrong with it"
    conf = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    found, wrong = [], []
    def walk(contents):
        for c in [contents] if isinstance(contents, str) else contents:
            if isinstance(c, dict): walk(c.get('contents', c.get('auto', [])))
            elif '*' in c: found.extend(b for b in books if b.match(c.lstrip('/')) and b not in found)
            elif Path(c) in books: found.append(Path(c))
            else: wrong.append(f'_quarto.yml: the sidebar names {c}, which is not in nbs')
    walk(conf['website']['sidebar']['contents'])
    return found, wrong + [f'_quarto.yml: the sidebar forgets {b}' for b in books if b not in found]

def title(path):
    import json
    cells = json.loads((ROOT/'nbs'/path).read_text(encoding='utf-8'))['cells']
    titles = (re.match(r'#\s+(.+)', ''.join(c['source'])) for c in cells if c['cell_type'] == 'markdown')
    return next((m[1] for m in titles if m), path.stem)

def build(dest):
    "Build all pages in `dest`; gives what went wrong"
    books = sorted(p.relative_to(ROOT/'nbs') for p in (ROOT/'nbs').rglob('*.ipynb') if not re.search(r'(^|/)[._]', p.relative_to(ROOT/'nbs').as_posix()))
    order, wrong = sidebar(books)
    links = [(page_of(b).as_posix(), title(b)) for b in order]
    sys.path.insert(0, str(ROOT))
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        wrong += [e for e in pool.map(page, books, [dest]*len(books), [links]*len(books)) if e]
    for f in (ROOT/'nbs').rglob('*'):
        if f.suffix in {'.png', '.svg', '.jpg', '.css'}:
            (dest/f.relative_to(ROOT/'nbs')).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(f, dest/f.relative_to(ROOT/'nbs'))
    return wrong + dead_links(dest), len(books)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('dest', type=Path, help='folder of the pages; replaced')
    dest = parser.parse_args().dest.resolve()
    os.chdir(ROOT)
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    wrong, n = build(dest)
    if wrong: sys.exit('\n'.join(wrong))
    print(f'{n} pages in {dest}')
