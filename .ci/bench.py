"""Runs the benchmark notebooks, stores in them what they measured, and prints it; `bench.py WORD` runs those with the
word in their name. The exit status is 1 if a notebook misses one of its goals; it is then left as it was."""
import os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def tell(nb):
    "Print the headings and the text outputs of a notebook"
    for c in nb.cells:
        headings = [line for line in c.source.splitlines() if line.startswith('#')] if c.cell_type == 'markdown' else []
        outputs = [o.get('text', o.get('data', {}).get('text/plain', '')) for o in c.get('outputs', [])]
        for text in (*headings, *outputs): print(''.join(text).rstrip(), flush=True)

def one(book):
    "Run one notebook in its folder and keep its outputs; an exception if it misses a goal"
    import pandas as pd
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb, write_nb
    pd.set_option('display.width', 160, 'display.max_columns', 20)
    nb = read_nb(book)
    try: CaptureShell(path=str(book.parent)).run_all(nb, exc_stop=True)
    finally: tell(nb)
    write_nb(nb, book)
    subprocess.run([Path(sys.executable).with_name('nbdev-clean'), '--fname', book], cwd=ROOT, check=True)

def main():
    words = sys.argv[1:]
    if len(words) == 2 and words[0] == '--one': return one(Path(words[1]))
    books = [b for b in sorted((ROOT/'nbs/benchmarks').glob('*.ipynb')) if not words or any(w in b.stem for w in words)]
    env = os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='agg')      # set before numpy is loaded
    data = ROOT.parent/'shared'/'data'
    if data.is_dir(): env.setdefault('DFECS_DATA', str(data))           # recorded faces, if they are there
    alone = [sys.executable, '-P', __file__, '--one']                   # -P: torch is not the torch.py of this folder
    return any([subprocess.run([*alone, b], cwd=ROOT, env=env).returncode for b in books])

if __name__ == '__main__': sys.exit(main())
