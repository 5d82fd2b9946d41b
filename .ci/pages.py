"""Builds the documentation pages without Quarto: nbdev processes the notebooks, nbconvert writes the pages.

Finds broken exported cells, missing or overfull titles, dead links between pages, notebooks that the sidebar forgets.
The site itself is built by Quarto (`nbdev-docs`); these pages have the same names and content, a sidebar in the same
order, a search in titles and headings, and light and dark colors (pages.css and pages.js, beside this file)."""
import argparse, html, json, os, re, shutil, sys, tomllib, traceback, warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml
from readme import page_of

ROOT = Path(__file__).resolve().parent.parent
URLS = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']
HERE = Path(__file__).resolve().parent
CELLS = """{% extends 'basic/index.html.j2' %}
{% block in_prompt %}{% endblock %}{% block output_area_prompt %}{% endblock %}
{% block input_group %}{% if cell.metadata.fold %}<details class="fold"><summary>{{ cell.metadata.fold }}</summary>
{{ super() }}</details>{% else %}{{ super() }}{% endif %}{% endblock %}"""
SHELL = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="stylesheet" href="{up}pages.css"><script src="{up}pages.js" defer></script>{math}
</head>
<body data-up="{up}"><input type="checkbox" id="menu"><label for="menu">Menu</label>
<nav class="side">{side}</nav><main>{body}<nav class="steps">{steps}</nav></main></body></html>"""
MATH = """<script>MathJax = {tex: {inlineMath: [['$', '$']]}}</script>
<script src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js" async></script>"""

CHECKS = re.compile(r'\b(test_\w+|expect_fail|assert\w*)\b')
IMAGE = 'alt="No description has been provided for this image"'

def overfull(nb):
    "What stands in the title cell beside title, subtitle and options: nbdev drops it without a word"
    first = next((c.source for c in nb.cells if c.cell_type == 'markdown' and re.match(r'#\s', c.source)), '')
    return re.sub(r'^#\s.*\n*(?:>.*\n*)*(?:-\s*[\w-]+:.*\n*)*', '', first).strip()

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
    if directives.get('code-fold') == 'true': hidden['fold'] = directives.get('code-summary', 'Code').strip('"')
    elif not outputs and CHECKS.search(source): hidden['fold'] = 'Checks'
    source = re.sub(r'(?m)^#\|.*\n?', '', source)
    return dict(cell_type='code', metadata=hidden, execution_count=None, outputs=outputs, source=source)

def page(path, dest, links):
    "Build the page of the notebook `path` (relative to nbs); gives what is wrong, and its headings {anchor: text}"
    import nbformat
    from fastcore.nbio import read_nb
    from nbconvert import HTMLExporter
    from nbdev.processors import FilterDefaults
    os.environ['IN_TEST'] = '1'
    warnings.simplefilter('ignore')
    try:
        nb = read_nb(ROOT/'nbs'/path)
        if lost := overfull(nb): return f'{path}: the title cell holds more than title and subtitle: {lost[:60]!r}', {}
        FilterDefaults()(nb)
        front = getattr(nb, 'frontmatter_', None) or {}
        if 'title' not in front: return f'{path}: no title; begin with the cell `# Title`, empty line, `> subtitle`', {}
        cells = [plain(c) for c in nb.cells if c.source and not re.fullmatch(r'---\n[\w-]+:.*\n---', c.source.strip())
                 and not re.search(r'^show_doc\((\w+\.)*_', c.source, flags=re.M)]
        doc = nbformat.from_dict(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=4))
        doc = nbformat.v4.rwbase.rejoin_lines(doc)
        nbformat.validate(doc)
        exporter = HTMLExporter()
        exporter.raw_template = CELLS
        body, _ = exporter.from_notebook_node(doc)
        up = '../'*(len(path.parts)-1)
        body = origin(path) + relink(body, up)
        words = ''.join(c['source'] for c in cells if c['cell_type'] == 'markdown')
        math = MATH if re.search(r'\$[^$\n]+\$', words) else ''
        if raw := re.search(r'>([^<]*)</code></a>\]\(', body):
            return f'{path}: nbdev links `{raw[1]}` by itself; take the Markdown link away from around it', {}
        here = page_of(path).as_posix()
        text = SHELL.format(title=html.escape(front['title']), up=up, math=math, body=body,
                            side=menu(links, up, here), steps=steps(links, up, here))
        out = dest/page_of(path)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding='utf-8')
        return None, {a: html.unescape(re.sub(r'<[^>]+>', '', h)) for a, h in
                      re.findall(r'<h[23] id="([^"]*)">(.*?)</h[23]>', body, flags=re.S)}
    except Exception as e:
        where = '' if e.__cause__ else '\n' + ''.join(traceback.format_exc().splitlines(True)[-12:])
        return f'{path}: {type(e).__name__}: {e}{where}', {}

def origin(path):
    "Where the page comes from: its notebook, and the line that imports what it defines"
    book = f'<a href="{URLS["Repository"]}/blob/main/nbs/{path.as_posix()}">notebook</a>'
    exports = re.search(r'#\|\s*default_exp\s+(\w+)', (ROOT/'nbs'/path).read_text(encoding='utf-8'))
    line = f' · <code>from dfecs_nb.{exports[1]} import *</code>' if exports else ''
    return f'<p class="origin">{book}{line}</p>'

def menu(links, up, here):
    "The pages by section; the section of the page `here` is open"
    def row(target, text):
        return f'<li><a href="{up}{target}"{" class=here" if target == here else ""}>{html.escape(text)}</a></li>'
    parts = [f'<details{" open" if any(p[0] == here for p in pages) else ""}><summary>{html.escape(section)}</summary>'
             f'<ul>{"".join(row(*p) for p in pages)}</ul></details>' for section, pages in links.items()]
    first, name = next(iter(links.values()))[0]
    search = '<input type="search" id="search" placeholder="Search" aria-label="Search titles and headings">'
    return f'<a class="brand" href="{up}{first}">{html.escape(name)}</a>{search}<ul id="found"></ul>{"".join(parts)}'

def steps(links, up, here):
    "Links to the page before and the page after, in reading order"
    pages = sum(links.values(), [])
    i = [p[0] for p in pages].index(here) if here in [p[0] for p in pages] else None
    if i is None: return ''
    near = [(pages[k], mark) for k, mark in ((i-1, '← {}'), (i+1, '{} →')) if 0 <= k < len(pages)]
    return ''.join(f'<a href="{up}{target}">{mark.format(html.escape(text))}</a>' for (target, text), mark in near)

def dress(dest, found, links):
    "Writes what the pages share: colors of code, layout, and the search's list of pages and headings"
    from pygments.formatters import HtmlFormatter
    light, dark = (HtmlFormatter(style=s).get_style_defs('.highlight') for s in ('default', 'github-dark'))
    code = f'{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n'
    (dest/'pages.css').write_text(code + (HERE/'pages.css').read_text(encoding='utf-8'), encoding='utf-8')
    index = [[target, text, list(found.get(target, {}).items())] for pages in links.values() for target, text in pages]
    js = (HERE/'pages.js').read_text(encoding='utf-8')
    (dest/'pages.js').write_text(f'const PAGES = {json.dumps(index, ensure_ascii=False)};\n{js}', encoding='utf-8')

def heading_id(text):
    "The anchor that Quarto gives a heading"
    text = html.unescape(re.sub(r'<[^>]+>', '', text))
    return re.sub(r'^[^a-z]+', '', '-'.join(''.join(c for c in text if c.isalnum() or c in '_-. ').lower().split()))

def relink(body, up):
    "Links to notebooks and to the site's address become links to pages, with anchors as Quarto makes them"
    body = body.replace(f'href="{URLS["Documentation"]}', f'href="{up}')
    body = re.sub(r'(<a [^>]*)>source</a>\{[^}]*\}', r'\1 class="source">source</a>', body)    # attributes for Quarto
    def heading(m): return f'<{m[1]} id="{heading_id(m[2])}">{m[2]}</{m[1]}>'
    def link(m):
        if re.match(r'[a-z]+:|//', m[1]): return m[0]
        return f'href="{page_of(Path(m[1])).as_posix()}{m[2] or ""}"'
    body = re.sub(r'<(h[1-6])[^>]*>(.*?)<a class="anchor-link".*?</a></\1>', heading, body, flags=re.S)
    body = described(body.replace('__main__.', ''))
    return re.sub(r'href="([^"#]+\.ipynb)(#[^"]*)?"', link, body)

def described(body):
    "Figures are described by the heading above them"
    above = ''
    def name(m):
        nonlocal above
        if not m[1]: return f'alt="Figure: {html.escape(above)}"'
        above = html.unescape(re.sub(r'<[^>]+>', '', m[1]))
        return m[0]
    return re.sub(rf'<h[1-6][^>]*>(.*?)</h[1-6]>|{IMAGE}', name, body, flags=re.S)

def dead_links(dest):
    "Links of the pages in `dest` that lead nowhere: to a page, a place on a page, a file, or a file of the repository"
    out, text = [], {p: p.read_text(encoding='utf-8') for p in sorted(dest.rglob('*.html'))}
    blob = URLS['Repository'] + '/blob/main/'
    for p, body in text.items():
        body = re.sub(r'<nav class=.*?</nav>', '', body, flags=re.S)
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
        done = list(pool.map(page, books, [dest]*len(books), [links]*len(books)))
    wrong += [e for e, _ in done if e]
    dress(dest, {page_of(b).as_posix(): heads for b, (_, heads) in zip(books, done)}, links)
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
