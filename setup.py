"Reads the dependency lists of settings.ini; everything else about the package stands in pyproject.toml."
import shlex
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
if not cfg.read('settings.ini', encoding='utf-8'): raise FileNotFoundError('settings.ini is missing: is it listed in MANIFEST.in?')
lists = {k: shlex.split(v) for k,v in cfg['DEFAULT'].items() if k.endswith('requirements')}
extras = {k.removesuffix('_requirements'): v for k,v in lists.items() if k!='requirements'}
extras['all'] = sorted({r for name in ('track', 'mediapipe', 'dlib', 'dask') for r in extras[name]})
setup(install_requires=lists['requirements'], extras_require=extras)
