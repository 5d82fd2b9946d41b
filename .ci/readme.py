"""Writes README.md and its figures from nbs/index.ipynb; with --check only says whether they are up to date.

Hidden and exported cells are left out, directive lines are dropped, figures become the files nbs/figures/index-* named
by their cell (its `#| label:`, else its id), and links to pages become links to files of the repository."""
import argparse, difflib, posixpath, re, sys
from pathlib import Path

HIDE = {'hide', 'export', 'exporti', 'default_exp'}
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n'

def directives(source):
    "The directives at the top of a cell as {name: value}, and the source without them"
    lines, found = source.splitlines(), {}
    while lines and (m := re.match(r'#\|\s*([\w-]+):?\s*(.*)', lines[0])):
        found[m[1]] = m[2].strip().strip('"\'')
        lines.pop(0)
    return found, '\n'.join(lines)

def page_of(path):
    "The page that nbdev makes of the notebook `path`: its name without the number in front"
    return path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.name.lower())).with_suffix('.html')

def repo_link(url, root):
    "The link `url` of nbs/index.ipynb as seen from the repository's folder"
    if re.match(r'[a-z]+:|#|//', url): return url
    path, mark, anchor = url.partition('#')
    books = [p.relative_to(root/'nbs') for p in (root/'nbs').rglob('*.ipynb')]
    path = {page_of(p).as_posix(): p.as_posix() for p in books}.get(path, path)
    return posixpath.normpath(f'nbs/{path}') + mark + anchor

def relink(text, root):
    "A markdown text with its links, but those in code, turned into links that work in the repository's folder"
    parts = re.split(r'(^```.*?^```$|`[^`\n]+`)', text, flags=re.M | re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'(\]\(|(?:href|src)=")([^)"\s]+)', lambda m: m[1] + repo_link(m[2], root), parts[i])
    return ''.join(parts)

def visible(nb, root):
    "Keeps the cells of `nb` that a reader sees; gives the label and the caption of each"
    cells, names = [], []
    for c in nb.cells:
        d, c.source = directives(c.source)
        if HIDE & d.keys() or d.get('include') == 'false' or c.cell_type == 'raw': continue
        if 'attachment:' in c.source: sys.exit('nbs/index.ipynb: a picture is attached to a cell; make it a file')
        if c.cell_type == 'markdown': c.source = relink(re.sub(r'(?m)^:::.*\n?', '', c.source), root)
        else:
            if d.get('output') == 'false': c.outputs = []
            c.metadata['transient'] = {'remove_source': d.get('echo') == 'false'}
        cells.append(c)
        names.append((d.get('label', c.id), d.get('fig-alt') or d.get('fig-cap') or 'Figure'))
    nb.cells = cells
    return names

def render(root):
    "The text of README.md, and its figures {path: bytes}"
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    names = visible(nb, root)
    nb.metadata['language_info'] = {'name': 'python'}
    text, resources = MarkdownExporter().from_notebook_node(nb)
    figures = {}
    for old, data in resources['outputs'].items():
        cell, n, ext = re.fullmatch(r'output_(\d+)_(\d+)\.(\w+)', old).groups()
        label, caption = names[int(cell)]
        new = f'nbs/figures/index-{label}' + (f'-{n}' if n != '0' else '') + f'.{ext}'
        figures[new] = data
        text = re.sub(rf'!\[[^\]]*\]\({re.escape(old)}\)', lambda _, md=f'![{caption}]({new})': md, text)
    text = re.sub(r'<style scoped>.*?</style>\n?', '', text, flags=re.S)
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    return NOTE + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', figures

def differences(root, text, figures):
    "What on disk is not as made: lines of text, empty if all is"
    file = root/'README.md'
    old = file.read_text(encoding='utf-8') if file.exists() else ''
    made = 'as made from nbs/index.ipynb'
    out = list(difflib.unified_diff(old.splitlines(), text.splitlines(), 'README.md', made, lineterm='', n=1))
    for name, data in figures.items():
        if not (root/name).exists(): out.append(f'{name}: missing')
        elif (root/name).read_bytes() != data: out.append(f'{name}: not the figure in nbs/index.ipynb')
    out += [f'{f.relative_to(root)}: no such figure in nbs/index.ipynb' for f in unused(root, figures)]
    return out + dead_links(root, text, figures)

def dead_links(root, text, figures):
    "Links of README.md to files that are not there"
    links = re.findall(r'\]\(([^)\s]+)|(?:href|src)="([^"]+)', re.sub(r'(?ms)^```.*?^```$|`[^`\n]+`', '', text))
    files = {(a or b).partition('#')[0] for a, b in links if not re.match(r'[a-z]+:|#|//', a or b)}
    dead = sorted(f for f in files if not (f in figures or (root/f).exists()))
    return [f'README.md: the link to {f} leads nowhere' for f in dead]

def unused(root, figures):
    "Figures on disk that the notebook no longer makes"
    return [f for f in sorted((root/'nbs/figures').glob('index-*')) if f.relative_to(root).as_posix() not in figures]

def write(root, text, figures):
    (root/'README.md').write_text(text, encoding='utf-8')
    if figures: (root/'nbs/figures').mkdir(exist_ok=True)
    for f in unused(root, figures): f.unlink()
    for name, data in figures.items(): (root/name).write_bytes(data)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', nargs='?', default=Path(__file__).parent.parent, type=Path, help='the repository')
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 if something is not up to date')
    args = parser.parse_args()
    root = args.root.resolve()
    text, figures = render(root)
    if args.check and (lines := differences(root, text, figures)): sys.exit('\n'.join([*lines, 'Run `make readme`.']))
    if not args.check:
        write(root, text, figures)
        made = f'README.md: {len(text.split())} words, {len(figures)} figures'
        print(*dead_links(root, text, figures), made, sep='\n')
