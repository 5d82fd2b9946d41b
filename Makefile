# dfecs_nb. `make` alone lists the targets.
#
# Everything is installed into .venv, by Python 3.11, 3.12 or 3.13. PYTHON=python3.13 chooses another Python (and remakes .venv).
# Stamps in .venv carry a checksum of the files that decide what is installed: nothing is installed twice, and a change installs again.

CHECK := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for p in .venv/bin/python python3 python3.12 python3.11 python3.13; do $$p -c '$(CHECK)' 2>/dev/null && { echo $$p; break; }; done)
endif
$(shell .venv/bin/python -c '' 2>/dev/null || rm -f .venv/.python-* .venv/.demo-* .venv/.test-*)
PYVER := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
SUM   := $(PYVER)-$(shell cat settings.ini setup.py pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
VENV  := .venv/.python-$(PYVER)
DEMO  := .venv/.demo-$(SUM)
TEST  := .venv/.test-$(SUM)
BENCH := .venv/.bench-$(SUM)-$(shell cksum < .ci/bench.txt | cut -d' ' -f1)
BIN   := .venv/bin
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-faults bench readme docs clean clean-env

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(DEMO) ## The whole pipeline on a simulated video: demo/report.html
	$(BIN)/dfecs demo -o demo

test: $(TEST) ## All notebooks and checks; the last line counts them
	$(BIN)/python .ci/checks.py

test-faults: $(TEST) ## Killed programs, full disks, damaged files (5 minutes)
	$(BIN)/python .ci/faults.py

bench: $(BENCH) ## Speed and quality against other libraries (10 minutes); WORD=speed runs one of them
	$(BIN)/python .ci/bench.py $(WORD)

readme: $(TEST) ## Write README.md and its figures from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

docs: $(TEST) ## The documentation pages, in _docs: with Quarto where it is installed, else plain pages
	@if command -v quarto >/dev/null 2>&1; then $(BIN)/nbdev-docs && test -f _docs/index.html; else $(BIN)/python .ci/pages.py _docs; fi

clean-env: ## Remove .venv
	rm -rf .venv

clean: ## Remove everything that is made, but .venv
	rm -rf _docs _proc _check build dist demo .quarto .ruff_cache .hypothesis nbs/nbdev.yml nbs/sidebar.yml
	find nbs dfecs_nb .ci \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(VENV):
	@case '$(PYVER)' in 3.11|3.12|3.13) ;; *) \
	  echo 'Python 3.11, 3.12 or 3.13 is needed; $(if $(PYTHON),$(PYTHON) is $(or $(PYVER),not a Python that runs),none was found). Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)' >&2; exit 1;; esac
	@[ "`$(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null`" = '$(PYVER)' ] || { rm -rf .venv; $(PYTHON) -m venv .venv; } || { \
	  rm -rf .venv; echo '$(PYTHON) -m venv failed. On Debian and Ubuntu: apt install python$(PYVER)-venv' >&2; exit 1; }
	@touch $@

$(DEMO): | $(VENV)
	@rm -f .venv/.demo-* .venv/.test-*
	@echo 'Installing into .venv (a minute or two) ...'
	@$(PIP) -e '.[offline]'
	@touch $@

$(TEST): | $(VENV)
	@rm -f .venv/.demo-* .venv/.test-*
	@echo 'Installing into .venv (a few minutes) ...'
	@extras=dev,offline,dlib,dask; if $(BIN)/python .ci/torch.py; then extras=$$extras,track; fi; $(PIP) 'setuptools>=77' -e ".[$$extras]"
	@touch $@ $(DEMO)

$(BENCH): $(TEST)
	@echo 'Installing what the benchmarks compare with ...'
	@$(PIP) -c .ci/bench.txt -e '.[bench]'
	@touch $@
