"""A fuzzer over all loaders: files of every kind are damaged, and each loader must read them or refuse them in words.

`fuzz.py FIRST LAST` runs the mutations of these seeds and says one line of JSON before and after each; `faults.py`
does that in processes of their own and watches time and memory. `fuzz.py SEED` repeats one, with the whole error."""
import gc, json, os, random, shutil, sys, tempfile, threading, time, traceback, warnings, zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from dfecs_nb.datasets import (load_bitbox, load_bp4d, load_ckplus, load_csv, load_disfa, load_fex, load_mediapipe,
                               load_npz, load_openface, load_paper_kpm, load_pts, load_ravdess, simulate_set)
from dfecs_nb.ffm import FullFaceModel, sample_units
from dfecs_nb.frontalization import _read_weights
from dfecs_nb.local import LocalModel
from dfecs_nb.long_videos import load_tables, track_long
from dfecs_nb.pictures import write_video
from dfecs_nb.simulation import simulate_kpm
from dfecs_nb.template import COLUMNS, as_table, data_file, load_table, neutral_face, save_table
from dfecs_nb.trackers import Tracker
from dfecs_nb.tracking import track
from dfecs_nb.votes import append_vote, load_votes, make_vote

SLOW = ('mesh', 'long', 'seen', 'several', 'ckplus', 'disfa', 'bp4d', 'paper_ckplus', 'paper_disfa', 'paper_bp4d')
tqdm.set_lock(threading.RLock())                 # its own is a semaphore, which a killed process would leave behind
DOCUMENTED = ValueError, FileNotFoundError, OSError, PermissionError   # exactly these, not their children

class Square(Tracker):
    "A tracker that costs nothing: it finds a bright square"
    name, version = 'square', '1'
    def detect(self, rgb, scale=1.):
        y, x = np.nonzero(rgb[..., 1]>128)
        return np.array([[x.min(), y.min(), x.max()+1, y.max()+1]], float) if len(x) else np.empty((0, 4))
    def points(self, rgb, box): return np.linspace(box[:2], box[2:], 68), 1.

def square(i):
    rgb = np.full((48, 64, 3), 20, np.uint8); rgb[9+i%20:23+i%20, 9+i%30:25+i%30] = 230
    return rgb

# --- well-formed files

def faces(n): return neutral_face()/3 + 50 + np.random.default_rng(0).normal(0, 1, (n, 68, 2)).cumsum(0)

def openface(n=12):
    P = faces(n); t = pd.DataFrame(np.hstack([P[..., 0], P[..., 1]]).round(1), columns=COLUMNS)
    t.insert(0, 'frame', range(1, n+1)); t.insert(1, 'timestamp', np.arange(n)/30)
    t.insert(2, 'confidence', .98); t.insert(3, 'success', 1)
    return t.assign(AU01_r=.5, AU12_c=1.)

def fex(n=8):
    t = openface(n)[COLUMNS].assign(frame=range(n), input='a/talk.mp4', FaceScore=.9, AU12=.3)
    two = t.copy(); two[COLUMNS] = two[COLUMNS]*.5
    return pd.concat([t, two]).sort_values('frame', kind='stable')

def mesh(n=2): return np.random.default_rng(1).uniform(.2, .8, (n, 478, 3))

def mesh_table():
    M = mesh(); cols = {f'{c}{i}': M[:, i, j] for j,c in enumerate('xyz') for i in range(478)}
    return pd.DataFrame({'frame': range(len(M))} | cols)

def pts(p): return 'version: 1\nn_points: 68\n{\n'+'\n'.join(f'{x:.2f} {y:.2f}' for x,y in p)+'\n}\n'

def keypoints(n=40): return as_table(faces(n), 'ada', 'clip', fps=25, tracker='drawn')

class Targets:
    "Well-formed files in a folder, and for each kind: which of them to damage, and how to read them"
    def __init__(self, top):
        self.top, self.kinds, self.errors = top, {}, 'warn'; d = self.folder
        def plain(folder, name, read): self.add(folder, name, lambda p, n=name, r=read: r(p/n))
        save_table(keypoints(), d('table')/'t.parquet'); plain('table', 't.parquet', load_table)
        save_table(keypoints(), d('text')/'t.csv'); self.add('text', 't.csv*', lambda p: load_table(p/'t.csv'))
        keypoints().to_parquet(d('pandas')/'p.parquet'); plain('pandas', 'p.parquet', load_table)
        for k in 'ab': save_table(as_table(faces(9), k), d('tables')/f'{k}.parquet')
        self.add('tables', '*.parquet', load_tables)
        sample_units().save(d('model')/'m.npz'); plain('model', 'm.npz', FullFaceModel.load)
        shutil.copy(data_file('sample_units.npz'), d('shipped')/'old.npz')
        plain('shipped', 'old.npz', FullFaceModel.load)
        X = simulate_kpm(2, 40, random_state=0)[0]
        LocalModel(3, max_iter=2).fit(X).save(d('local')/'l.npz'); plain('local', 'l.npz', LocalModel.load)
        shutil.copy(data_file('frontalization_weights.npy'), d('weights')/'w.npy')
        plain('weights', 'w.npy', _read_weights)
        model = sample_units(); units = [f'AU{i}' for i in (1, 2, 3)]
        for u in units: append_vote(d('votes')/'v.csv', make_vote(model, u, 'eva', 'not', [17], 'a, "b"\n'))
        plain('votes', 'v.csv', lambda p: load_votes(p, model)); self.videos(); self.foreign(); self.sets()
        self.order = [k for k in self.kinds for _ in range(1 if k in SLOW else 3)]
    def folder(self, name): (self.top/name).mkdir(exist_ok=True); return self.top/name
    def add(self, folder, pattern, read): self.kinds[folder] = (pattern, read)
    def videos(self):
        for kind in ('avi', 'mp4'):
            write_video(self.folder(kind)/f'v.{kind}', (square(i) for i in range(40)), 25)
            self.add(kind, 'v.*', lambda p, k=kind: track(next(p.glob('v*')), Square(), progress=False))
        write_video(self.folder('long')/'v.avi', (square(i) for i in range(60)), 25)
        def long(p):
            video = next(p.glob('v*'))
            return track_long(video, p/'out.parquet', Square(), segment=20, run_in=5, progress=False)
        self.add('long', 'v.*', long)
        write_video(self.folder('seen')/'v.avi', (square(i) for i in range(30)), 25)
        long(self.folder('seen')); self.add('seen', 'out.parquet', long)             # a damaged result is made again
        from dfecs_nb.pictures import _cv2
        for i,end in enumerate(('png', 'jpg', 'png')):
            (self.folder('pictures')/f'{i}.{end}').write_bytes(_cv2().imencode('.'+end, square(i))[1].tobytes())
        self.add('pictures', '*', lambda p: track(p, Square(), progress=False))
    def foreign(self):
        d = self.folder; text = openface().to_csv(index=False)
        (d('openface')/'o.csv').write_text(text); self.add('openface', '*', lambda p: load_openface(p, labels=True))
        for k in 'ab': (d('several')/f'{k}.csv').write_text(text)
        self.add('several', '*', lambda p: load_openface(p, labels=True, errors=self.errors))
        (d('fex')/'f.csv').write_text(fex().to_csv(index=False))
        self.add('fex', '*', lambda p: load_fex(p, labels=True, errors=self.errors))
        for i,p in enumerate(faces(4)): (d('pts')/f'{i}.pts').write_text(pts(p))
        self.add('pts', '*', lambda p: load_pts(p, errors=self.errors))
        np.savez(d('npz')/'n.npz', points=faces(6), frame=np.arange(6), subject=np.array(['a']*6))
        np.savez_compressed(d('npz')/'c.npz', points=faces(6)); np.save(d('npz')/'f.npy', faces(6))
        self.add('npz', '*', lambda p: load_npz(p, errors=self.errors))
        own = openface()[['frame', *COLUMNS]]; own.to_csv(d('csv')/'wide.csv', index=False)
        self.add('csv', '*', load_csv)
        rows = [(f, i, *p) for f,q in enumerate(faces(3)) for i,p in enumerate(q)]
        pd.DataFrame(rows, columns=['frame', 'point', 'x', 'y']).to_csv(d('rows')/'l.csv', index=False)
        self.add('rows', '*', load_csv)
        mesh_table().to_csv(d('mesh')/'m.csv', index=False); np.savez(d('mesh')/'n.npz', mesh=mesh())
        mesh_table().to_parquet(d('mesh')/'p.parquet')
        self.add('mesh', '*', lambda p: load_mediapipe(p, size=(640, 480), errors=self.errors))
        row = lambda P: '\n'.join(' '.join(f'{v:.2f}' for v in p[17:].ravel()) for p in P)
        (d('bitbox')/'b.3DI').write_text(row(faces(5))); self.add('bitbox', '*', load_bitbox)
        with zipfile.ZipFile(d('ravdess')/'set.zip', 'w', zipfile.ZIP_DEFLATED) as z:
            for k in (1, 2): z.writestr(f'01-01-05-02-01-02-{k:02}.csv', text)
        self.add('ravdess', 'set.zip', lambda p: load_ravdess(p/'set.zip', labels=True, errors=self.errors))
    def sets(self):
        for name,load in dict(ckplus=load_ckplus, disfa=load_disfa, bp4d=load_bp4d).items():
            simulate_set(name, self.top/name, 1, 10 if name!='bp4d' else 60)
            self.add(name, '*', lambda p, f=load: f(p, labels=True, errors=self.errors))
            read = lambda p, n=name: load_paper_kpm(n, p, labels=True, errors=self.errors)
            self.add(f'paper_{name}', '*', read)
    def copy(self, kind, to):
        shutil.copytree(self.top/kind.removeprefix('paper_'), to)
        return to

# --- damage

def flip(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8, 64))): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data
def cut(data, rng): return data[:rng.randrange(len(data))]
def behead(data, rng): return data[rng.randrange(1, min(len(data), 200)+1):]
def empty(data, rng): return bytearray()
def grow(data, rng):
    return data + rng.choice((bytearray(rng.randbytes(rng.randrange(1, 5000))), data, bytearray(3000), b'\n'*9))
def noise(data, rng): return bytearray(rng.randbytes(len(data)))
def swap(data, rng):
    n = rng.randrange(1, max(2, len(data)//3)); a, b = rng.randrange(len(data)), rng.randrange(len(data))
    data[a:a+n], data[b:b+n] = data[b:b+n], data[a:a+n]
    return data
def fill(data, rng):
    n, a = rng.randrange(1, max(2, min(len(data)//4, 400))), rng.randrange(len(data))
    data[a:a+n] = rng.choice((b'\0', b'\xff', b'9', b',', b'\n'))*n
    return data
def number(data, rng):
    a, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2**31-1, 2**31, 2**32-1, 2**63-1, 2**64-1, 255, 65535, 10**9)) % 2**(8*size)
    data[a:a+size] = value.to_bytes(size, rng.choice(('little', 'big')))
    return data
WORDS = (b'nan', b'-inf', b'1e999', b'9'*400, b'"', b"'", b';', b'\xef\xbb\xbf', b'\r', b'-1', b'0x1F', b'\xff\xfe',
         b'1.5', b'true', b'null', b'[', b'{')
def words(data, rng):
    a, n = rng.randrange(len(data)), rng.choice((0, 1, 5)); data[a:a+n] = rng.choice(WORDS)
    return data
DAMAGE = [flip]*5 + [number]*4 + [cut]*2 + [behead, empty, grow, noise] + [swap]*2 + [fill]*2 + [words]*3

ENDINGS = ['.csv', '.npz', '.npy', '.parquet', '.pts', '.mat', '.zip', '.txt', '.mp4', '.avi', '.png', '.3DI',
           '.CSV', '']

def damage(folder, pattern, rng):
    "Damage one file of a folder (1 of 8: give it another ending, or do it twice); what was done, in words"
    files = sorted(p for p in folder.rglob(pattern) if p.is_file()); by_end = sorted({p.suffix for p in files})
    end = rng.choice(by_end); path = rng.choice([p for p in files if p.suffix==end])
    data, did = bytearray(path.read_bytes()), []
    for _ in range(rng.choice((1, 1, 1, 2))):
        how = rng.choice(DAMAGE)
        if not data: break
        data = bytearray(how(data, rng)); did.append(how.__name__)
    path.write_bytes(data)
    if rng.random()<.08:
        end = rng.choice(ENDINGS); path.rename(path.with_suffix(end)); did.append(f'called {end or "without ending"}')
    return f'{path.relative_to(folder)}: {", ".join(did)}'

# --- one mutation

def memory(key):
    "A figure of this process in megabytes: VmRSS (now), VmHWM (the most since it was asked to forget)"
    if not Path('/proc/self/status').exists(): return 0
    rows = Path('/proc/self/status').read_text().splitlines()
    return int(next(r for r in rows if r.startswith(key)).split()[1])/1e3

def forget():
    try: Path('/proc/self/clear_refs').write_text('5')
    except OSError: return

def run(targets, seed, top, loud=False):
    "Damage and read; {'kind', 'did', 'end' (read, refused or fault), 'why', 'mb', 's'}"
    rng = random.Random(seed); kind = targets.order[seed%len(targets.order)]; pattern,read = targets.kinds[kind]
    targets.errors = rng.choice(('warn', 'raise'))
    folder = targets.copy(kind, top/f's{seed}'); did = damage(folder, pattern, rng); gc.collect(); forget()
    before, begun = memory('VmRSS'), time.monotonic(); end, why = 'read', ''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: wrong = different(kind, read(folder)); end, why = ('fault', wrong) if wrong else ('read', '')
        except Exception as e:
            end, why = 'fault', f'{type(e).__name__}: {e}'
            if type(e) in DOCUMENTED and clear(e): end, why = 'refused', str(e)
            if loud: traceback.print_exc()
    out = dict(kind=kind, did=did, end=end, why=' '.join(why.split())[:300], mb=round(memory('VmHWM')-before),
               s=round(time.monotonic()-begun, 2))
    if out['mb']>1000: out |= dict(end='fault', why=f'{out["mb"]} MB of memory. {why}')
    shutil.rmtree(folder, ignore_errors=True)
    return out

def clear(e):
    "Is this a message for people: some words in one or two lines, not a bare number or key?"
    return 15<=len(str(e))<=2000 and ' ' in str(e)

def different(kind, got):
    "What is wrong with a result of a checked file: it must be what was saved"
    if kind=='table' and not got.equals(keypoints()): return 'a damaged table was read as another one'
    units = kind in ('model', 'shipped') and sample_units().components_
    if units is not False and not np.array_equal(got.components_, units): return 'a damaged model was read'
    if kind=='seen' and got['frames']!=30: return 'a damaged result was believed'
    return ''

def whole(targets, top):
    "Undamaged, every file must be read: else nothing is tested"
    for kind,(_,read) in targets.kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore'); wrong = different(kind, read(targets.copy(kind, top/'whole')))
        shutil.rmtree(top/'whole')
        if wrong: raise AssertionError(f'{kind}: {wrong}')

def main(first, last=None):
    loud = last is None; say = lambda **kw: print(json.dumps(kw), flush=True)
    with tempfile.TemporaryDirectory(prefix='dfecs_nb-fuzz-') as top:
        targets = Targets(Path(top)); whole(targets, Path(top)); say(ready=len(targets.kinds))
        for seed in range(int(first), int(first)+1 if loud else int(last)):
            say(begin=seed); say(seed=seed, **run(targets, seed, Path(top), loud))

if __name__=='__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1'); main(*sys.argv[1:])
