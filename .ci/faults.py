"""Fault tests: kills, a full disk, damaged files, many writers at once. `faults.py WORD` runs those with the word in
their name; `faults.py SEED` repeats one mutation of the fuzzer, with the whole error.

One line an item, what went wrong below it; the last line counts. Everything happens in temporary folders. A new test is
a function of a temporary folder that says in words what it did, raises `Failed` or `Skipped`, and stands in `ITEMS`."""
import json, multiprocessing, os, queue, random, resource, shutil, subprocess, sys, tempfile, threading, time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault('OMP_NUM_THREADS', '1')
KILLS, MUTATIONS, HANG, MEMORY, SEED = 20, 2016, 10, 1000, 20260101    # hang: seconds; memory: MB more than at first

class Failed(Exception): "What went wrong, for the reader"
class Skipped(Exception): "Why a test does not apply"

def check(ok, what):
    if not ok: raise Failed(what)

def same(a, b, what): check(a.read_bytes()==b.read_bytes(), f'{what}: {a.name} is not the file of a run without faults')

# --- processes

def ready():
    "Processes that begin with the library loaded"
    ctx = multiprocessing.get_context('forkserver'); ctx.set_forkserver_preload(['fuzz'])
    return ctx

def tracked(film, out, begun=None):
    "One video, in segments; what a killed process does"
    import fuzz
    if begun: begun.touch()
    fuzz.track_long(film, out, fuzz.Square(), segment=50, run_in=5, progress=False)

def voted(path, name, n):
    import fuzz
    model = fuzz.sample_units()
    for i in range(n):
        vote = fuzz.make_vote(model, f'AU{i%10+1}', f'{name}{i//10}', 'unsure', comment=f'{i}\n"')
        fuzz.append_vote(path, vote)

# --- kills

def film(path, n):
    import fuzz
    return fuzz.write_video(path, (fuzz.square(i) for i in range(n)), 25)

def kills(top):
    "kill -9 at any moment and start again: at most one segment is lost, and the result is the same to the last byte"
    import fuzz
    ctx, rng, video, plain = ready(), random.Random(SEED), film(top/'v.avi', 2000), top/'plain'/'v.parquet'
    since = time.monotonic(); tracked(video, plain); whole = time.monotonic()-since; killed = finished = again = 0
    while killed<KILLS or not finished:
        out, begun = top/f'run{finished}'/'v.parquet', top/f'begun{killed}'
        p = ctx.Process(target=tracked, args=(video, out, begun)); p.start()
        while p.is_alive() and not begun.exists(): time.sleep(.005)
        p.join(rng.uniform(0, .5*whole)); begun.unlink(missing_ok=True)
        if p.is_alive(): p.kill(); killed += 1; again += 1
        p.join(); check(p.exitcode in (0, -9), f'a run ended with {p.exitcode}')
        if p.exitcode==0:
            fuzz.load_table(out); same(out, plain, 'killed'); finished += 1; again = 0
            check([f.name for f in out.parent.iterdir()]==['v.parquet'], 'something is left beside the result')
        check(again<2*KILLS, 'killed runs do not come forward')
    return f'{killed} kills, {finished} results, all the same bytes as without kills'

PROGRAM = ('import sys; from dfecs_nb.long_videos import track_all; from fuzz import Square\n'
           'track_all(sys.argv[1], sys.argv[2], Square, jobs=2, segment=50, run_in=5, progress=False)')

def program(top, out):
    "`track_all` as a program of its own, with two helpers"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path[:2]))
    return subprocess.Popen([sys.executable, '-c', PROGRAM, str(top), str(out)], env=env, stderr=subprocess.DEVNULL)

def children(pid):
    "Processes started by a process"
    found = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(pid)], capture_output=True, text=True).stdout
    return [int(p) for p in found.split()]

def folder_of_videos(top):
    "kill -9 of the program that tracks a folder, and of one of its helpers; then it is finished"
    videos, rng = top/'videos', random.Random(SEED); videos.mkdir()
    for i,n in enumerate((900, 700, 500)): film(videos/f'v{i}.avi', n)
    for i in range(3): tracked(videos/f'v{i}.avi', top/'whole'/f'v{i}.parquet')
    for _ in range(4):
        p = program(videos, top/'out'); stop = time.monotonic()+60
        begun = lambda: any(top.glob('out/.*.parts/*.parquet'))
        while not begun() and p.poll() is None and time.monotonic()<stop: time.sleep(.02)
        time.sleep(rng.uniform(0, .4)); helpers = children(p.pid); p.kill(); p.wait(); stop = time.monotonic()+20
        while any(map(alive, helpers)) and time.monotonic()<stop: time.sleep(.05)
        check(not any(map(alive, helpers)), 'a helper outlives its program')
    check(program(videos, top/'out').wait(120)==0, 'the last run failed')
    for i in range(3): same(top/'out'/f'v{i}.parquet', top/'whole'/f'v{i}.parquet', 'folder')
    left = sorted(f.name for f in (top/'out').iterdir()); check(len(left)==3, f'something is left: {left}')
    return '4 kills of the program, no helper left, the same bytes'

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')')[1].split()[0] not in 'ZX'
    except OSError: return False

# --- a full disk

@contextmanager
def small_disk(top):
    "(folder, function that fills it but for some bytes, function that frees it, what it is)"
    place = top/'disk'; place.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'none', str(place)]
    mounted = shutil.which('mount') and not subprocess.run(mount, capture_output=True).returncode
    try:
        if mounted:
            filler = place/'filler'
            def fill(rest):
                free = os.statvfs(place)
                filler.write_bytes(bytes(max(0, free.f_bavail*free.f_bsize-rest)))
            yield place, fill, lambda: filler.unlink(missing_ok=True), 'a tmpfs of 8 MB'
        else:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            limit = lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
            yield place, limit, lambda: limit(hard), 'a limit on the size of files'
            limit(hard)
    finally:
        if mounted: subprocess.run(['umount', place], check=True)

def full_disk(top):
    "Nothing is written half on a full disk: old files stay whole, nothing is left over, the error says it"
    import fuzz
    model, video = fuzz.sample_units(), film(top/'v.avi', 700)
    with small_disk(top) as (d, fill, free, what):
        for name in ('t.parquet', 't.csv'): fuzz.save_table(fuzz.keypoints(20), d/name)
        model.save(d/'m.npz'); fuzz.append_vote(d/'votes.csv', fuzz.make_vote(model, 'AU1', 'eva', 'not'))
        before, tasks = {p: p.read_bytes() for p in d.iterdir() if p.name!='filler'}, writers(d, model, video)
        for name,write in tasks.items():
            fill(12_000)
            try: write()
            except OSError as e: check(len(str(e))>20, f'{name}: the error says too little: {e!r}')
            else: raise Failed(f'{name}: no error on a full disk')
            finally: free()
            for p,data in before.items(): check(p.read_bytes()==data, f'{name}: {p.name} has changed')
            left = [p.name for p in {p for p in d.rglob('*') if p.is_file()}-set(before)
                    if p.parent==d or p.name.startswith('.part-')]              # finished segments of a video stay
            check(not left, f'{name}: {left} is left over')
        for write in tasks.values(): write()                                    # there is room again
        now = len(fuzz.load_table(d/'t.parquet')), len(fuzz.load_votes(d/'votes.csv'))
        check(now==(900, 1), f'what was saved later is not there: {now}')
        tracked(video, top/'long.parquet'); same(d/'long.parquet', top/'long.parquet', 'full disk')
    return f'{len(tasks)} writers on {what}: old files whole, one OSError each, then as if nothing had been'

def writers(d, model, video):
    "What is written onto the full disk: {name: function}"
    import fuzz
    large, vote = fuzz.keypoints(900), fuzz.make_vote(model, 'AU1', 'eva', 'not', comment='x'*30_000)
    return dict(save_table=lambda: fuzz.save_table(large, d/'t.parquet'),
                save_csv=lambda: fuzz.save_table(large, d/'t.csv'), save_model=lambda: model.save(d/'m.npz'),
                append_vote=lambda: fuzz.append_vote(d/'votes.csv', vote),
                write_video=lambda: film(d/'film.avi', 900), track_long=lambda: tracked(video, d/'long.parquet'))

# --- damaged files

class Fuzzer:
    "A process that damages and reads files; watched from here"
    def __init__(self, first, last):
        self.last, self.faults, self.ends, self.worst = last, [], {}, [0, 0]; self.begin(first)
    def begin(self, first):
        command = [sys.executable, str(HERE/'fuzz.py'), str(first), str(self.last)]
        p = self.process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.said, self.seed, self.errors, self.base = queue.Queue(), None, [], None
        threading.Thread(target=self.hear, args=(p.stdout, self.said), daemon=True).start()
        threading.Thread(target=self.errors.extend, args=(p.stderr,), daemon=True).start()
    def hear(self, out, said):
        for line in out: said.put(json.loads(line))
        said.put(None)
    def memory(self):
        try: text = Path(f'/proc/{self.process.pid}/status').read_text()
        except OSError: return 0
        return next((int(row.split()[1])/1e3 for row in text.splitlines() if row.startswith('VmRSS')), 0)
    def run(self):
        "Until all seeds are done; after a crash or a hang with the next one"
        since = time.monotonic()
        while True:
            try: said = self.said.get(timeout=.25)
            except queue.Empty: said = {}
            if said: since = time.monotonic(); self.note(said)
            if self.base is None and self.seed is not None: self.base = self.memory()
            slow = self.seed is not None and time.monotonic()-since>HANG
            large = self.base is not None and self.memory()-self.base>MEMORY
            if slow or large: self.process.kill()
            if said is None or slow or large:
                code = self.process.wait()
                if self.seed is None or self.seed>=self.last-1 and not code:
                    if code: raise Failed(f'the fuzzer ended with {code}: {"".join(self.errors)[-2000:]}')
                    return self
                why = f'more than {MEMORY} MB of memory' if large else f'the process died ({code})'
                if slow: why = f'no end after {HANG} s'
                self.faults.append(f'seed {self.seed}: {why}'); since = time.monotonic()
                if self.seed+1>=self.last: return self
                self.begin(self.seed+1)
    def note(self, said):
        if 'begin' in said: self.seed = said['begin']
        if 'end' not in said: return
        self.ends[said['end']] = self.ends.get(said['end'], 0)+1
        self.worst = [max(a, b) for a,b in zip(self.worst, (said['s'], said['mb']))]
        if said['mb']>MEMORY: self.faults.append(f'seed {said["seed"]}: {said["mb"]} MB')
        if said['s']>HANG: self.faults.append(f'seed {said["seed"]}: {said["s"]} s')
        if said['end']=='fault':
            self.faults.append(f'seed {said["seed"]} ({said["kind"]}, {said["did"]}): {said["why"]}')

def damaged(top):
    "Every loader reads a damaged file or refuses it in words: no other error, no crash, no hang, no flood of memory"
    half = MUTATIONS//2; runs = [Fuzzer(SEED+a, SEED+a+half) for a in (0, half)]
    threads = [threading.Thread(target=finish, args=(r,)) for r in runs]
    for t in threads: t.start()
    for t in threads: t.join()
    faults = [f for r in runs for f in r.faults]
    n = {k: sum(r.ends.get(k, 0) for r in runs) for k in ('read', 'refused')}
    check(not faults, '\n'.join([f'{len(faults)} faults; repeat one with: python .ci/faults.py SEED', *faults]))
    check(sum(n.values())==MUTATIONS, f'only {sum(n.values())} of {MUTATIONS} mutations were tried')
    slowest, most = (max(r.worst[i] for r in runs) for i in (0, 1))
    return (f'{MUTATIONS} mutations: {n["refused"]} refused, {n["read"]} read; '
            f'slowest {slowest:.1f} s, at most {most} MB')

def finish(fuzzer):
    try: fuzzer.run()
    except Failed as e: fuzzer.faults.append(str(e))

# --- many writers

def votes(top):
    "Four processes write one votes file at once: nothing is lost, nothing twice"
    import fuzz
    ctx, n, path = ready(), 40, top/'votes.csv'; ps = [ctx.Process(target=voted, args=(path, w, n)) for w in 'abcd']
    for p in ps: p.start()
    for p in ps: p.join(); check(p.exitcode==0, f'a writer ended with {p.exitcode}')
    with warnings.catch_warnings(): warnings.simplefilter('error'); found = fuzz.load_votes(path, history=True)
    want = sorted((f'{w}{i//10}', f'AU{i%10+1}', f'{i}\n"') for w in 'abcd' for i in range(n))
    got = sorted(map(tuple, found[['voter', 'unit', 'comment']].to_numpy()))
    check(got==want, f'{len(want)} votes were cast, {len(found)} are there')
    p = ctx.Process(target=voted, args=(path, 'k', 2000)); p.start(); time.sleep(1); p.kill(); p.join()
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); later = fuzz.load_votes(path, history=True)
    check(found.equals(later.iloc[:len(found)]), 'a killed writer damaged the votes of others')
    fuzz.append_vote(path, fuzz.make_vote(fuzz.sample_units(), 'AU1', 'last', 'not'))
    check(fuzz.load_votes(path).voter.iloc[-1]=='last', 'no vote after a kill')
    return f'4 writers, {len(want)} votes, one writer killed'

# --- a worker of a cluster

def study(top):
    "A folder of keypoint motion and an unfitted model, small enough for a fault test, large enough to be killed in"
    from dfecs_nb.ffm import FullFaceModel
    from dfecs_nb.folders import save_tables
    from dfecs_nb.hfm import HierarchicalFaceModel
    from dfecs_nb.pfm import PUBLISHED, PartFaceModel
    from dfecs_nb.simulation import simulate_kpm
    save_tables(simulate_kpm(4, 6000, random_state=0)[0], top/'kpm')
    parts = {p: PartFaceModel(p, *s, max_iter=3) for p,s in PUBLISHED['disfa'].items()}
    second = HierarchicalFaceModel(12, .01, .01, penalty='sklearn', n_init=0, max_iter=3)
    return FullFaceModel(50, pfm=parts, hfm=second)

def killed_while(work, client, wait, rng):
    "(the result of `work`, was a worker killed before it ended?)"
    pids, done = list(client.run(os.getpid).values()), []
    t = threading.Thread(target=lambda: done.append(work())); t.start(); t.join(wait); alive = t.is_alive()
    if alive: os.kill(rng.choice(pids), 9)
    t.join(120); check(done, 'the work did not end after a worker was killed'); client.wait_for_workers(2, timeout=60)
    return done[0], alive

def dead_worker(top):
    "kill -9 of a Dask worker while a folder is coded and learned from: the result is that of a run without faults"
    import fuzz
    os.environ['DASK_DISTRIBUTED__LOGGING__DISTRIBUTED'] = 'critical'              # that workers die is known
    try: from dask.distributed import Client, LocalCluster
    except ImportError: raise Skipped('Dask is not installed') from None
    from dfecs_nb.folders import TableFolder
    from sklearn.base import clone
    units, model, rng, killed = fuzz.sample_units(), study(top), random.Random(SEED), {'code': 0, 'learn': 0}
    def code(folder, out): return units.transform(folder, out=out)
    def learn(folder, out): return clone(model).fit(folder)
    def same(a, b, do):
        if do is learn: return abs(a.components_-b.components_).max() < 1e-9
        return all(fuzz.load_table(x).equals(fuzz.load_table(y)) for x,y in zip(a.files, b.files, strict=True))
    small = dict(rows=2000, block=512, memory=0); plain = TableFolder(top/'kpm', **small)
    expected = {do: do(plain, top/'plain') for do in (code, learn)}; (top/'scratch').mkdir()
    two = dict(n_workers=2, threads_per_worker=1, dashboard_address=':0', silence_logs=50)
    with LocalCluster(**two) as cluster, Client(cluster) as client:
        folder = TableFolder(top/'kpm', client, scratch=top/'scratch', **small); code(folder, top/'warm')
        for i,(do,longest) in enumerate(((code, .3), (learn, 2.5))*8):
            if killed[do.__name__]==2: continue
            wait = rng.uniform(.1, 1)*longest/(1+i//4)                            # shorter, if it was too long
            result, alive = killed_while(partial(do, folder, top/f'out{i}'), client, wait, rng)
            killed[do.__name__] += alive; check(same(result, expected[do], do), f'{do.__name__}: the results differ')
            left = [p.name for p in [*(top/'scratch').iterdir(), *(top/'kpm').glob('.*')]]
            check(not left, f'{left} is left over')
    half = [p for p in top.glob('out*/**/.*')]; check(len(half) <= killed['code'], f'{half} are left over')
    check(set(killed.values())=={2}, f'too fast to be killed: {killed}')
    return '2 workers killed while coding, 2 while learning, the same results'

# --- the run

ITEMS = {'kill and resume': kills, 'kill the program': folder_of_videos, 'full disk': full_disk,
         'many writers': votes, 'dead worker': dead_worker, 'damaged files': damaged}

def main():
    words = sys.argv[1:]; outcomes, start = [], time.perf_counter()
    if words and words[0].isdigit(): return subprocess.run([sys.executable, str(HERE/'fuzz.py'), words[0]]).returncode
    for name,test in ITEMS.items():
        if words and not any(w in name for w in words): continue
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix='dfecs_nb-faults-') as top:
            try: outcome, text = 'ok', test(Path(top).resolve())
            except Failed as e: outcome, text = 'FAILED', str(e)
            except Skipped as e: outcome, text = 'skipped', str(e)
            except Exception as e: outcome, text = 'FAILED', f'{type(e).__name__}: {e}'
        outcomes.append(outcome); short = '' if outcome=='FAILED' else f'  ({text})'
        print(f'{outcome:8}{time.perf_counter()-begun:6.1f} s  {name}{short}', flush=True)
        if outcome=='FAILED': print('\n'.join(f'    | {line[:300]}' for line in text.splitlines()[:60]), flush=True)
    print(f'\n{len(outcomes)} items in {time.perf_counter()-start:.0f} s')
    n = {k: outcomes.count(k) for k in ('ok', 'FAILED', 'skipped')}
    print(f'{n["ok"]} passed, {n["FAILED"]} failed' + (f', {n["skipped"]} skipped' if n['skipped'] else ''))
    return int(n['FAILED']>0 or not outcomes)

if __name__=='__main__': sys.exit(main())
