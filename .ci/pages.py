"""Builds the documentation pages without Quarto: nbdev processes the notebooks, nbconvert writes the pages.

Finds broken exported cells, missing titles, dead links between pages and notebooks that the sidebar forgets.
The site itself is built by Quarto (`nbdev-docs`); these pages have the same names and content in plain dress."""
import argparse, html, json, os, re, shutil, sys, tomllib, traceback, warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml
from readme import page_of

ROOT = Path(__file__).resolve().parent.parent
URLS = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']
NAV = 'font: 14px sans-serif; padding: 8px 24px; border-bottom: 1px solid #ccc; line-height: 1.8'

def plain(cell):
    "A processed cell in notebook form again, without directives"
    source, markdown = cell.source or '', dict(cell_type='markdown', metadata={})
    if cell.cell_type == 'raw':      # the title cell, which nbdev turned into front matter
        front = yaml.safe_load(source.strip().strip('-'))
        return markdown | dict(source=f"# {front['title']}\n\n> {front.get('description', '')}")
    if cell.cell_type == 'markdown': return markdown | dict(source=re.sub(r'(?m)^:::.*\n?', '', source))
    directives = dict(re.findall(r'(?m)^#\|\s*([\w-]+):\s*(.*)', source))
    outputs = [] if directives.get('output') == 'false' else cell.get('outputs', [])
    hidden = {'transient': {'remove_source': True}} if directives.get('echo') == 'false' else {}
    source = re.sub(r'(?m)^#\|.*\n?', '', source)
    return dict(cell_type='code', metadata=hidden, execution_count=None, outputs=outputs, source=source)

def page(path, dest, links):
    "Build the page of the notebook `path` (relative to nbs); gives the error, None if all went well"
    import nbformat
    from fastcore.nbio import read_nb
    from nbconvert import HTMLExporter
    from nbdev.processors import FilterDefaults
    os.environ['IN_TEST'] = '1'
    warnings.simplefilter('ignore')
    try:
        nb = read_nb(ROOT/'nbs'/path)
        FilterDefaults()(nb)
        front = getattr(nb, 'frontmatter_', None) or {}
        if 'title' not in front: return f'{path}: no title; begin with a cell `# Title`, an empty line, `> subtitle`'
        cells = [plain(c) for c in nb.cells if c.source]
        doc = nbformat.from_dict(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=4))
        doc = nbformat.v4.rwbase.rejoin_lines(doc)
        nbformat.validate(doc)
        body, _ = HTMLExporter().from_notebook_node(doc, resources={'metadata': {'name': front['title']}})
        up = '../'*(len(path.parts)-1)
        nav = menu(links, up)
        body = re.sub(r'(<body[^>]*>)', lambda m: f'{m[1]}<nav style="{NAV}">{nav}</nav>', body, count=1)
        out = dest/page_of(path)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(relink(body, up), encoding='utf-8')
    except Exception as e:
        where = '' if e.__cause__ else '\n' + ''.join(traceback.format_exc().splitlines(True)[-12:])
        return f'{path}: {type(e).__name__}: {e}{where}'

def menu(links, up):
    "The pages by section, folded; the first one is always in view"
    def row(pages): return ' · '.join(f'<a href="{up}{target}">{html.escape(text)}</a>' for target, text in pages)
    rows = ''.join(f'<div><b>{html.escape(section)}</b>: {row(pages)}</div>' for section, pages in links.items())
    return f'{row(next(iter(links.values()))[:1])}<details><summary>all pages</summary>{rows}</details>'

def heading_id(text):
    "The anchor that Quarto gives a heading"
    text = html.unescape(re.sub(r'<[^>]+>', '', text))
    return re.sub(r'^[^a-z]+', '', '-'.join(''.join(c for c in text if c.isalnum() or c in '_-. ').lower().split()))

def relink(body, up):
    "Links to notebooks and to the site's address become links to pages, with anchors as Quarto makes them"
    body = body.replace(f'href="{URLS["Documentation"]}', f'href="{up}')
    def heading(m): return f'<{m[1]} id="{heading_id(m[2])}">{m[2]}</{m[1]}>'
    def link(m):
        if re.match(r'[a-z]+:|//', m[1]): return m[0]
        return f'href="{page_of(Path(m[1])).as_posix()}{m[2] or ""}"'
    body = re.sub(r'<(h[1-6])[^>]*>(.*?)<a class="anchor-link".*?</a></\1>', heading, body, flags=re.S)
    return re.sub(r'href="([^"#]+\.ipynb)(#[^"]*)?"', link, body)

def dead_links(dest):
    "Links of the pages in `dest` that lead nowhere: to a page, a place on a page, a file, or a file of the repository"
    out, text = [], {p: p.read_text(encoding='utf-8') for p in sorted(dest.rglob('*.html'))}
    blob = URLS['Repository'] + '/blob/main/'
    for p, body in text.items():
        body = re.sub(r'<nav style=.*?</nav>', '', body, flags=re.S)
        for url in sorted(set(re.findall(r'<(?:a|img)\b[^>]*?(?:href|src)="([^"]+)"', body))):
            path, _, anchor = html.unescape(url).partition('#')
            if path.startswith(blob): ok = (ROOT/path.removeprefix(blob)).exists()
            elif re.match(r'[a-z]+:|//', path): ok = True
            else:
                target = (p.parent/path).resolve() if path else p
                ok = target.exists() and (not anchor or target not in text or f'id="{anchor}"' in text[target])
            if ok: continue
            book = ROOT/'nbs'/Path(path).with_suffix('.ipynb')
            hint = f'; write {book.name}' if path.endswith('.html') and book.exists() else ''
            out.append(f'{p.relative_to(dest)}: the link to {url} leads nowhere{hint}')
    return out

def sidebar(books):
    "The sidebar's notebooks in reading order, and what is wrong with it"
    conf = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    found, wrong = {}, []                                    # {section: pages}
    def walk(contents, section):
        for c in [contents] if isinstance(contents, str) else contents:
            if isinstance(c, dict): walk(c.get('contents', c.get('auto', [])), c.get('section', section))
            elif '*' in c: found.setdefault(section, []).extend(b for b in books if b.match(c.lstrip('/')))
            elif Path(c) in books: found.setdefault(section, []).append(Path(c))
            else: wrong.append(f'_quarto.yml: the sidebar names {c}, which is not in nbs')
    walk(conf['website']['sidebar']['contents'], 'Start')
    return found, wrong + [f'_quarto.yml: the sidebar forgets {b}' for b in books if b not in sum(found.values(), [])]

def title(path):
    cells = json.loads((ROOT/'nbs'/path).read_text(encoding='utf-8'))['cells']
    titles = (re.match(r'#\s+(.+)', ''.join(c['source'])) for c in cells if c['cell_type'] == 'markdown')
    return next((m[1] for m in titles if m), path.stem)

def build(dest):
    "Build all pages in `dest`; gives what went wrong"
    books = sorted(p.relative_to(ROOT/'nbs') for p in (ROOT/'nbs').rglob('*.ipynb'))
    books = [b for b in books if not any(part[0] in '._' for part in b.parts)]
    order, wrong = sidebar(books)
    links = {section: [(page_of(b).as_posix(), title(b)) for b in pages] for section, pages in order.items()}
    sys.path.insert(0, str(ROOT))
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        wrong += [e for e in pool.map(page, books, [dest]*len(books), [links]*len(books)) if e]
    for f in (ROOT/'nbs').rglob('*'):
        if f.suffix in {'.png', '.svg', '.jpg', '.css'}:
            (dest/f.relative_to(ROOT/'nbs')).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(f, dest/f.relative_to(ROOT/'nbs'))
    large = [p for p in dest.rglob('*.html') if p.stat().st_size > 1e6]
    wrong += [f'{p.relative_to(dest)}: {p.stat().st_size/1e6:.1f} MB; a page has at most 1 MB' for p in large]
    return wrong + dead_links(dest), len(books)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('dest', type=Path, help='folder of the pages; replaced')
    dest = parser.parse_args().dest.resolve()
    os.chdir(ROOT)
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    wrong, n = build(dest)
    if wrong: sys.exit('\n'.join(wrong))
    print(f'{n} pages in {dest}')

if __name__ == '__main__':
    from pages import main      # by name, since cells that run in the worker processes take the place of __main__
    main()
