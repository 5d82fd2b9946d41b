"""Exit status 0 if pip would install a build of torch for the processor, 1 if it would take one for graphics cards.

PyPI's torch for Linux comes with several gigabytes of CUDA packages, which no test here needs. The tests then run
without torch and face-alignment, and this says how to have them."""
import json, platform, subprocess, sys

ask = [sys.executable, '-m', 'pip', 'install', '--quiet', '--dry-run', '--ignore-installed', '--no-deps',
       '--report', '-', '-c', 'constraints.txt', 'torch']
p = subprocess.run(ask, capture_output=True, text=True)
if p.returncode: sys.exit(f'torch cannot be had here: {p.stderr.strip() or "pip gave no answer"}')
needs = json.loads(p.stdout)['install'][0]['metadata'].get('requires_dist', [])
if platform.system() == 'Linux' and any(n.startswith(('nvidia', 'cuda')) for n in needs):
    sys.exit('pip would take a torch for graphics cards (several GB): testing without torch and face-alignment.\n'
             'To have them: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make clean-env test')
