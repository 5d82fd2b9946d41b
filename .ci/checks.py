"""Runs every notebook and every check of the repository; `checks.py WORD` runs those with the word in their name.

One line an item, two items at a time, what went wrong below it; the last line counts. Nothing of the repository is
changed: checks that would write do so in a temporary copy."""
import ast, difflib, json, os, re, shlex, shutil, signal, subprocess, sys, tempfile, time, tomllib, zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from configparser import ConfigParser
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT/'dfecs_nb'
WORKERS, LIMIT, TAIL = 2, 900, 60    # items at a time, seconds for one, lines shown of one that failed
HEAVY = {'torch', 'torchvision', 'cv2', 'mediapipe', 'face_alignment', 'dlib', 'ipywidgets', 'jax', 'tensorflow'}
running = set()                      # child processes, ended when this one is interrupted

class Failed(Exception): "What went wrong, for the reader"
class Skipped(Exception): "Why an item does not apply"

def environment():
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'PYTHONPATH')}
    env |= dict(MPLBACKEND='agg', OMP_NUM_THREADS='1', PYTHONHASHSEED='0',
                HYPOTHESIS_STORAGE_DIRECTORY=str(Path(tempfile.gettempdir())/'dfecs_nb-hypothesis'))
    data = ROOT.parent/'shared'/'data'
    if data.is_dir(): env.setdefault('DFECS_DATA', str(data))
    return env

def run(*cmd, cwd=ROOT, **env):
    "Output of a command; `Failed` with its output if it fails or takes too long"
    p = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=environment() | env, text=True, errors='replace',
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         start_new_session=True)
    running.add(p)
    try: out, _ = p.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        end(p)
        raise Failed(f'{p.communicate()[0]}\nno end after {LIMIT} s') from None
    finally: running.discard(p)
    if p.returncode: raise Failed(out.strip() or f'{cmd[0]}: exit status {p.returncode}, no output')
    return out

def end(p):
    "End a child process and its children"
    try: os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError: return

def tool(name, *args, **kw): return run(Path(sys.executable).with_name(name), *args, **kw)
def python(*args, **kw): return run(sys.executable, *args, **kw)

@contextmanager
def copied():
    "A temporary copy of the repository: the files of its folder, nbs, dfecs_nb and .ci"
    with tempfile.TemporaryDirectory(prefix='dfecs_nb-') as tmp:
        top = Path(tmp).resolve()/'dfecs_nb'
        top.mkdir()
        for p in ROOT.iterdir():
            if p.is_file(): shutil.copy2(p, top/p.name)
        skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'nbdev.yml')
        for d in ('nbs', 'dfecs_nb', '.ci'): shutil.copytree(ROOT/d, top/d, symlinks=True, ignore=skip)
        yield top

def contents(top, *patterns):
    "The files below `top` that fit: {path: bytes}"
    files = {p for pattern in patterns for p in top.glob(pattern) if p.is_file() and '__pycache__' not in p.parts}
    return {p.relative_to(top).as_posix(): p.read_bytes() for p in sorted(files)}

# --- notebooks

def notebooks():
    "The notebooks that have cells to run; later rooms first, since they take longest"
    books = (p.relative_to(ROOT) for p in (ROOT/'nbs').rglob('*.ipynb'))
    books = [p for p in books if not any(part[0] in '._' for part in p.parts)]
    code = re.compile(r'"cell_type":\s*"code"')
    return sorted((p for p in books if code.search((ROOT/p).read_text(encoding='utf-8'))), reverse=True)

def browser():
    "A Chromium or Chrome for the notebook that tests the panels, None if there is none"
    names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'
    return os.environ.get('CHROME_BIN') or next(filter(None, map(shutil.which, names)), None)

def cells(book):
    "Run the cells of one notebook as nbdev-test does; those flagged `ui` if there is a browser"
    from nbdev.config import get_config
    from nbdev.test import nb_test_cells
    flags, named = get_config(ROOT).tst_flags.split(), []
    if not nb_test_cells(ROOT/book, skip_flags=flags):
        if not nb_test_cells(ROOT/book, skip_flags=flags, force_flags=['ui']):
            raise Skipped('all its cells are flagged ' + ', '.join(flags))
        if not browser(): raise Skipped('no Chromium or Chrome was found')
        named = ['--flags', 'ui']
    out = tool('nbdev-test', book, '--n-workers', 0, *named)
    if 'Success.' not in out: raise Failed(f'nbdev-test did not run this notebook: {out}')

def clean():
    "nbdev-clean has nothing to do, and no cell stores an error or a live widget"
    with copied() as top:
        old = contents(top, 'nbs/**/*.ipynb')
        out = tool('nbdev-clean', cwd=top)
        wrong = [f for f, text in contents(top, 'nbs/**/*.ipynb').items() if text != old[f]]
    if 'Failed to clean' in out: raise Failed(out)
    if wrong: raise Failed('nbdev-clean changes ' + ', '.join(wrong) + '\nRun .venv/bin/nbdev-clean.')
    for f, text in old.items():
        for c in json.loads(text)['cells']:
            for o in c.get('outputs', []):
                at = f"{f}, cell {c['id']}"
                if o['output_type'] == 'error': raise Failed(f"{at}: the stored output is an error: {o['ename']}")
                live = any('widget-view' in kind for kind in o.get('data', {}))
                if live: raise Failed(f'{at}: the stored output is a live widget')
    return f'{len(old)} notebooks'

def sync():
    "nbdev-export, into an empty library, makes exactly the library there is"
    parts = 'dfecs_nb/**/*.py', 'nbs/llms.txt', 'pyproject.toml'
    with copied() as top:
        old = contents(top, *parts)
        for f in old:
            if f.startswith('dfecs_nb') and Path(f).name != '__init__.py': (top/f).unlink()
        tool('nbdev-export', cwd=top)
        new = contents(top, *parts)
    wrong = [f'{f}: no notebook makes it' for f in sorted(old.keys() - new.keys())]
    wrong += [f'{f}: missing' for f in sorted(new.keys() - old.keys())]
    for f in sorted(f for f in old.keys() & new.keys() if old[f] != new[f]):
        a, b = (text.decode(errors='replace').splitlines() for text in (old[f], new[f]))
        lines = difflib.unified_diff(a, b, f, 'as the notebooks make it', lineterm='', n=0)
        wrong += [line[:200] for line in lines][:20]
    if wrong: raise Failed('\n'.join([*wrong, 'Edit notebooks, not the library; then run .venv/bin/nbdev-export.']))
    return f'{len(old)} files'

# --- library

def imports():
    "Importing a module loads nothing heavy, and `dfecs_nb.ffm` comes fast"
    modules = ['ffm', *sorted(p.stem for p in LIB.glob('[!_]*.py'))]
    code = f"""import importlib, sys
for name in {modules}:
    importlib.import_module('dfecs_nb.' + name)
    loaded = sorted({HEAVY} & sys.modules.keys())
    if loaded: sys.exit(f'import dfecs_nb.{{name}} loads {{", ".join(loaded)}}')"""
    python('-c', code)
    timed = 'import time; t = time.perf_counter(); import dfecs_nb.ffm; print("\\n", time.perf_counter() - t)'
    seconds = float(python('-c', timed).split()[-1])       # told, not judged: the machine may be busy
    return f'dfecs_nb.ffm in {seconds:.1f} s'

def lint(): tool('ruff', 'check', '--no-cache', '--quiet', '--output-format', 'concise')

def lengths():
    "Lines have at most 120 characters, but for the list `__all__` of a module, which nbdev wraps in its own way"
    wrong = []
    for p in [*sorted(LIB.glob('[!_]*.py')), *sorted((ROOT/'.ci').glob('*.py'))]:
        listed = False
        for i, line in enumerate(p.read_text(encoding='utf-8').splitlines(), 1):
            listed = line.startswith('__all__ = [') or listed and line.startswith(' '*11)
            if len(line) > 120 and not listed: wrong.append(f'{p.relative_to(ROOT)}:{i}: {len(line)} characters')
    if wrong: raise Failed('\n'.join([*wrong, 'A line has at most 120.']))

def documented():
    "Public functions and classes have a docstring, a comment for each parameter, and an example or check right after"
    count, bare, alone = 0, [], []
    for book in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        code = [''.join(c['source']) for c in json.loads(book.read_text(encoding='utf-8'))['cells']
                if c['cell_type'] == 'code']
        exported = [bool(re.search(r'(?m)^#\|\s*export', c)) for c in code]
        for i, cell in enumerate(code):
            near = '\n'.join([c for c, out in zip(code[i+1:], exported[i+1:]) if not out][:3])
            for d in (public(cell) if exported[i] else []):
                count, name = count + 1, f'{book.name}: {d.name}'
                if not ast.get_docstring(d) or undocumented(d, cell): bare.append(name)
                if not re.search(rf'\b{d.name}\b', near): alone.append(name)
    share = 100*(1 - len(alone)/count)
    if bare: raise Failed('\n'.join(['no docstring, or a parameter without a comment:', *bare]))
    if share < 95: raise Failed('\n'.join([f'only {share:.0f} % have an example or a check near; not so', *alone]))
    return f'{count} public names, {share:.0f} % with an example or a check in the three cells after it'

def public(cell):
    "The functions and classes that an exported cell defines for everybody"
    found = [d for d in ast.parse(cell).body if isinstance(d, (ast.FunctionDef, ast.ClassDef))]
    owners = [getattr(d.args.args[0].annotation, 'id', '') if isinstance(d, ast.FunctionDef) and d.args.args else ''
              for d in found]                                  # of methods that are patched in
    return [d for d, owner in zip(found, owners) if not (d.name.startswith('_') or owner.startswith('_'))]

def undocumented(d, cell):
    "Does a parameter of the function, or of the class's `__init__`, lack its comment?"
    if isinstance(d, ast.ClassDef):
        made = [f for f in d.body if isinstance(f, ast.FunctionDef) and f.name == '__init__']
        return any(undocumented(f, cell) for f in made)
    a, lines = d.args, cell.splitlines()
    args = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return any('#' not in lines[p.end_lineno - 1] for p in args if p.arg not in ('self', 'cls'))

def settings():
    conf = ConfigParser(delimiters=['='], interpolation=None)
    conf.read(ROOT/'settings.ini', encoding='utf-8')
    return conf['DEFAULT']

def names():
    "Names and versions agree in all files that state them"
    project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']
    version = re.search(r"__version__ = ['\"](.+)['\"]", (LIB/'__init__.py').read_text(encoding='utf-8'))[1]
    cited = re.search(r'(?m)^version: (.+)$', (ROOT/'CITATION.cff').read_text(encoding='utf-8'))[1]
    conf, link = settings(), ROOT/'nbs/_quarto.yml'
    facts = {
        'lib_name in settings.ini and name in pyproject.toml': (conf['lib_name'], project['name']),
        'the folder of the library and name in pyproject.toml': (LIB.name, project['name']),
        'repo in settings.ini and in pyproject.toml': (conf['repo'], project['urls']['Repository'].split('/')[-1]),
        'version in dfecs_nb/__init__.py and in CITATION.cff': (version, cited),
        'version in dfecs_nb/__init__.py and in settings.ini': (version, conf.get('version', version)),
        'nbs/_quarto.yml and its target': (os.readlink(link) if link.is_symlink() else 'no link', '../_quarto.yml')}
    wrong = [f'{what} differ: {a}, {b}' for what, (a, b) in facts.items() if a != b]
    if wrong: raise Failed('\n'.join(wrong))
    return f'version {version}'

# --- package

def promised():
    "The dependency lists of settings.ini: {extra: requirements}, '' for those without an extra"
    lists = {k: v for k, v in settings().items() if k == 'requirements' or k.endswith('_requirements')}
    lists = {k.removesuffix('requirements').rstrip('_'): shlex.split(v) for k, v in lists.items()}
    return lists | {'all': [r for extra in ('track', 'mediapipe', 'dlib', 'dask') for r in lists[extra]]}

def active(requirements, version, extra=''):
    "The requirements that hold for a Python version and an extra, in one spelling"
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    env = {'python_version': version, 'python_full_version': f'{version}.0', 'extra': extra}
    held = [r for r in map(Requirement, requirements) if r.marker is None or r.marker.evaluate(env)]
    return {(canonicalize_name(r.name), str(r.specifier), *sorted(r.extras)) for r in held}

def package():
    "The wheel built from the sdist has every dependency, extra and file, and its modules can be imported"
    with copied() as top:
        python('-m', 'build', '--no-isolation', '--outdir', top/'dist', top, cwd=top)   # the wheel from the sdist
        wheel, = top.glob('dist/*.whl')
        with zipfile.ZipFile(wheel) as z: files = {n: z.read(n) for n in z.namelist()}
        info = next(n for n in files if n.endswith('.dist-info/METADATA')).removesuffix('METADATA')
        meta = Parser().parsestr(files[info + 'METADATA'].decode())
        requires, extras = meta.get_all('Requires-Dist', []), meta.get_all('Provides-Extra', [])
        wrong = []
        for extra, asked in promised().items():
            if extra and extra not in extras: wrong.append(f'the wheel has no extra {extra}')
            for version in ('3.11', '3.12', '3.13'):
                want, have = active(asked, version), active(requires, version, extra)
                if extra: have -= active(requires, version) - want
                if want == have: continue
                where = f'Python {version}, ' + (f'extra {extra}' if extra else 'no extra')
                wrong.append(f'{where}: only settings.ini or only the wheel has '
                             + ', '.join(sorted(map(' '.join, want ^ have))))
        if meta['License-Expression'] != 'MIT': wrong.append('the wheel does not name the licence')
        if info + 'licenses/LICENSE' not in files: wrong.append('LICENSE is not in the wheel')
        commands = files.get(info + 'entry_points.txt', b'')
        if b'dfecs = dfecs_nb.cli:main' not in commands: wrong.append('the wheel has no command dfecs')
        wrong += [f'{f} is not in the wheel' for f, b in contents(top, 'dfecs_nb/**/*').items() if files.get(f) != b]
        wrong += [f'{n} does not belong into the wheel' for n in files if not n.startswith(('dfecs_nb/', info))]
        if wrong: raise Failed('\n'.join(wrong))
        python('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', top/'site', wheel)
        modules = ', '.join(f'dfecs_nb.{p.stem}' for p in LIB.glob('[!_]*.py'))
        code = f'import {modules}; assert dfecs_nb.__file__.startswith({str(top/"site")!r}), dfecs_nb.__file__'
        python('-c', code, cwd=top/'site', PYTHONPATH=str(top/'site'))
        return f'wheel of {wheel.stat().st_size/1e6:.1f} MB, {len(files)} files'

# --- documentation

def readme(): python('.ci/readme.py', '--check')

def pages():
    with tempfile.TemporaryDirectory(prefix='dfecs_nb-') as tmp:
        return python('.ci/pages.py', tmp).splitlines()[-1].split(' in ')[0]

def shown():
    "The commands in README.md, CONTRIBUTING.md, the lessons and the teacher's page, each once, without comments"
    texts, lines = [(ROOT/f).read_text(encoding='utf-8') for f in ('README.md', 'CONTRIBUTING.md')], []
    for book in [*sorted((ROOT/'nbs/tutorials').glob('*.ipynb')), ROOT/'nbs/teaching.ipynb']:
        for c in json.loads(book.read_text(encoding='utf-8'))['cells']:
            if c['cell_type'] == 'markdown': texts.append(''.join(c['source']))
            else: lines += re.findall(r'(?m)^\s*[%!]\s*(\w.*)$', ''.join(c['source']))
    fence = r'(?ms)^```(\w*)\n(.*?)^```'
    inline = r'([A-Z_]+=\S+ )*(make |pip |git |export |\.venv/bin/|dfecs .*--help)'     # in running text
    for text in texts:
        blocks = [body for language, body in re.findall(fence, text) if language in ('bash', 'sh', 'console')]
        lines += [part for body in blocks for line in body.splitlines() for part in line.split(' #')[0].split('&&')]
        lines += [part for part in re.findall(r'`([^`\n]+)`', re.sub(fence, '', text)) if re.match(inline, part)]
    return [line for line in dict.fromkeys(map(str.strip, lines)) if line]

def program(line):
    "The program of a command and its arguments, without variables before it and without `.venv/bin/`"
    words = shlex.split(line)
    while re.fullmatch(r'[A-Z_]+=.*', words[0]): words.pop(0)
    return words[0].removeprefix('.venv/bin/'), words[1:]

def repository():
    return tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']['Repository']

def cloned(url, tmp):
    "Clone the repository itself in the place of its address; what the note says if this is no repository"
    if url != repository(): raise Failed(f'git clone {url}: the repository is {repository()}')
    if not (ROOT/'.git').exists(): return 'git clone not run: no repository here'
    run('git', 'clone', '--quiet', '--depth', 1, ROOT.as_uri(), url.split('/')[-1], cwd=tmp)
    run('make', '-n', 'demo', cwd=tmp/url.split('/')[-1])
    return 'git clone run on this repository'

def installs(words, top):
    "Do the requirements and extras of a `pip install` exist? This project's own metadata are made, nothing is fetched"
    from packaging.requirements import Requirement
    words = [w for w in words[1:] if w not in ('-q', '-e', '--quiet')]
    known = {'setuptools', *(Requirement(v).name for v in sum(promised().values(), []))}
    while '-c' in words:
        at = words.index('-c')
        if not (ROOT/words[at+1]).is_file(): raise Failed(f'{words[at+1]} is not there')
        del words[at:at+2]
    for word in words:
        r = Requirement(word.replace('.', settings()['lib_name'], 1) if word.startswith('.') else word)
        ours = r.name == settings()['lib_name']
        if not ours and r.name not in known: raise Failed(f'{r.name} is in no list of settings.ini')
        if ours and r.extras - promised().keys(): raise Failed(f'{word}: settings.ini lists no such extra')
        if r.url and r.url != 'git+' + repository(): raise Failed(f'{word}: the repository is {repository()}')
        if word.startswith('.'):
            out = python('-m', 'pip', 'install', '-q', '--dry-run', '--no-deps', '--no-index', '--no-build-isolation',
                         word, cwd=top)
            if 'does not provide' in out: raise Failed(out)

def exists(name, words):
    "Is the program installed beside this Python, and are the files that it is given there?"
    if not Path(sys.executable).with_name(name).exists(): raise Failed(f'{name} is not installed')
    gone = [w for w in words if re.fullmatch(r'[\w./-]+\.(py|ipynb|txt)', w) and not (ROOT/w).exists()]
    if gone: raise Failed(f'{gone[0]} is not there')

def commands():
    "Every shown command is run, or where that would install or take long, looked up; `dfecs` runs on short videos"
    lines, ran, looked, notes = shown(), 0, 0, []
    with tempfile.TemporaryDirectory(prefix='dfecs_nb-') as tmp, copied() as top:
        tmp = Path(tmp)
        python('-c', 'from dfecs_nb.simulation import simulate_video as make; '
               'make("video.mp4", seconds=4, size=320)', cwd=tmp)
        for video in sorted({m for line in lines for m in re.findall(r'[\w/]+\.mp4', line)}):
            (tmp/video).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tmp/'video.mp4', tmp/video)
        for line in lines:
            name, words = program(line)
            try:
                if name == 'dfecs': tool(name, *words, cwd=tmp)
                elif name.startswith('python') and words[:2] == ['-m', 'venv']: python(*words, cwd=tmp)
                elif name == 'git' and words == ['clone']: continue             # the command as such
                elif name == 'git' and words[0] == 'clone': notes.append(cloned(words[1], tmp))
                elif name == 'make': run('make', '-n', *words, cwd=top)
                elif name == 'pip' and words[0] == 'install': installs(words, top)
                elif name == 'cd': assert words == [settings()['repo']], f'the folder is {settings()["repo"]}'
                elif name != 'export': exists(name, words)
            except (Failed, AssertionError, ValueError) as e: raise Failed(f'{line}\n{e}') from None
            if name == 'dfecs' or 'venv' in words: ran += 1
            else: looked += 1
    return f'{ran} run, {", ".join(notes)}; {looked} others (make, pip, .venv/bin) tried dry or looked up'

# --- the run

def listing():
    "The files among which a notebook could leave one"
    below = [p for d in ('nbs', 'dfecs_nb') for p in (ROOT/d).rglob('*') if p.is_file()]
    below = [p for p in below if not {'__pycache__', '.ipynb_checkpoints'} & {*p.parts}]
    return {*below, *(p for p in ROOT.iterdir() if p.is_file())}

def attempt(name, f, *args):
    "Run one item: its name, its outcome, seconds, what to say"
    start = time.perf_counter()
    try: outcome, text = 'ok', f(*args) or ''
    except Failed as e: outcome, text = 'FAILED', str(e)
    except Skipped as e: outcome, text = 'skipped', str(e)
    except Exception as e: outcome, text = 'FAILED', f'{type(e).__name__}: {e}'
    return name, outcome, time.perf_counter() - start, text

def tell(name, outcome, seconds, text):
    lines = text.strip().splitlines()
    short = f'  ({lines[0]})' if lines and outcome != 'FAILED' else ''
    print(f'{outcome:8}{seconds:6.1f} s  {name}{short}', flush=True)
    if outcome == 'FAILED': print('\n'.join(f'    | {line}' for line in lines[-TAIL:]), flush=True)

def main():
    words = sys.argv[1:]
    alone = [('imports', imports)]       # by itself, since it is timed
    items = [('documentation pages', pages), ('commands of README.md and the lessons', commands),
             *((f'notebook {b.with_suffix("").relative_to("nbs")}', cells, b) for b in notebooks()),
             ('package', package), ('library is in sync with the notebooks', sync), ('notebooks are clean', clean),
             ('README.md and its figures', readme), ('ruff check', lint), ('line lengths', lengths),
             ('names and versions', names), ('public names are documented', documented)]
    alone, items = ([i for i in group if not words or any(w in i[0] for w in words)] for group in (alone, items))
    before, start, outcomes = listing(), time.perf_counter(), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for item in alone:
            outcomes.append(attempt(*item))
            tell(*outcomes[-1])
        for done in as_completed([pool.submit(attempt, *i) for i in items]):
            outcomes.append(done.result())
            tell(*outcomes[-1])
    finally:                             # after an interruption, nothing runs on
        pool.shutdown(wait=False, cancel_futures=True)
        for p in list(running): end(p)
    if not words:
        left = '\n'.join(f'{p.relative_to(ROOT)}: written while the checks ran' for p in sorted(listing() - before))
        outcomes.append(('nothing is left behind', 'FAILED' if left else 'ok', 0., left))
        tell(*outcomes[-1])
    n = {kind: sum(o[1] == kind for o in outcomes) for kind in ('ok', 'FAILED', 'skipped')}
    print(f'\n{len(outcomes)} items in {time.perf_counter() - start:.0f} s')
    if n['FAILED']: print('failed: ' + ', '.join(o[0] for o in outcomes if o[1] == 'FAILED'))
    print(f"{n['ok']} passed, {n['FAILED']} failed" + (f", {n['skipped']} skipped" if n['skipped'] else ''))
    return bool(n['FAILED'] or not outcomes)

if __name__ == '__main__': sys.exit(main())
