# `make` alone lists what there is. Everything is made inside this folder: .venv, .run, .cache, build, dist.

PYTHON ?= python3
# The compiler that setuptools will call.
COMPILER = $${CC:-$$($(PYTHON) -c 'import sysconfig; print((sysconfig.get_config_var("CC") or "cc").split()[0])')}
VENV_PYTHON := .venv/bin/python
NPM_SMALL := $(CURDIR)/.cache/npm_small
# 4 GB, made once of this machine's own files.
LAYERS := $(CURDIR)/.cache/layers
# For pytest: make test ARGS="-k index -x". With -n0 all tests run in one process, which -s and --pdb need.
ARGS ?=
# Most tests wait for something, so there are more processes than cores.
PARALLEL := -n 4 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test torture lint docs c bench dist clean needed npm_small

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

run: .venv/package ## start the daemon on CACHE=/path, or on a demo cache into which images land
	@exec $(VENV_PYTHON) bench/demo.py .run "$$CACHE"

# Some environments tell Python to keep no bytecode: each of the many processes would compile chunkd anew.
test torture: export PYTHONDONTWRITEBYTECODE :=

test: .venv/dev npm_small ## run the tests; ARGS="..." goes to pytest
	NPM_SMALL="$(NPM_SMALL)" $(VENV_PYTHON) -m pytest $(PARALLEL) $(ARGS)

torture: .venv/dev npm_small ## run the tests that take minutes: kills, power cuts, lost events, a long day
	IN_TORTURE=1 NPM_SMALL="$(NPM_SMALL)" $(VENV_PYTHON) -m pytest $(PARALLEL) \
	  -m "torture or counted or hypothesis" $(addprefix --hypothesis-seed=,$(TORTURE_SEED)) $(ARGS)

lint: .venv/dev ## check format, style and types
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy

docs: .venv/docs ## build the pages in docs/ to build/docs, and check their links
	$(VENV_PYTHON) -m properdocs build --strict --quiet

c: ## compile the C core with every warning an error
	@for compiler in gcc clang; do \
	  command -v $$compiler >/dev/null || { echo "$$compiler is not there"; continue; }; \
	  for file in cgear.c crules.c; do \
	    echo $$compiler -std=c11 -Wall -Wextra -Werror $$file; \
	    $$compiler -std=c11 -Wall -Wextra -Werror -O3 -c -o /dev/null $$file || exit 1; done; done

bench: .venv/bench npm_small ## run the benchmarks, on a machine with nothing else to do
	$(VENV_PYTHON) bench/layers.py "$(LAYERS)"
	$(VENV_PYTHON) bench/kernel.py
	$(VENV_PYTHON) bench/rules.py
	$(VENV_PYTHON) bench/scan.py "$(NPM_SMALL)" "$(LAYERS)/gzip" "$(LAYERS)/zstd" "$(LAYERS)/huge"
	$(VENV_PYTHON) bench/latency.py "$(LAYERS)/sizes"
	$(VENV_PYTHON) bench/memory.py "$(LAYERS)/memory"
	$(VENV_PYTHON) bench/start.py
	$(VENV_PYTHON) bench/small.py
	$(VENV_PYTHON) bench/stats.py
	$(VENV_PYTHON) bench/courtesy.py "$(NPM_SMALL)"
	$(VENV_PYTHON) bench/net.py "$(NPM_SMALL)"
	$(VENV_PYTHON) bench/sweep.py "$(NPM_SMALL)"
	$(VENV_PYTHON) bench/index.py
	$(VENV_PYTHON) bench/shares.py
	$(VENV_PYTHON) bench/images.py
	$(VENV_PYTHON) bench/landings.py
	$(VENV_PYTHON) bench/replay.py
	$(VENV_PYTHON) bench/fleet.py
	$(VENV_PYTHON) bench/plan.py
	$(VENV_PYTHON) bench/bucket.py "$(NPM_SMALL)"
	$(VENV_PYTHON) bench/bars.py

dist: .venv/package ## build the sdist, and from it the wheel
	$(VENV_PYTHON) -m pip install --quiet build
	rm -rf dist
	$(VENV_PYTHON) -m build

clean: ## remove whatever was made here
	rm -rf .venv .run .cache build dist daemon/*.egg-info daemon/chunkd/chunkers/_c*.so daemon/chunkd/chunkers/_c*.c
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# --- what the targets need

# 90 real layers, 64 MB. Without npm, or without its registry, the tests with them are skipped, and say so.
npm_small: .venv/package
	@if command -v npm >/dev/null; then $(VENV_PYTHON) tests/fetch_npm_small.py "$(NPM_SMALL)" || true; \
	else echo "npm is missing (Debian: apt install npm): what needs the 90 npm layers is left out"; fi

.venv/package: pyproject.toml setup.py cgear.c crules.c $(wildcard cffi_build/*.py cffi_build/*.cdef)
	@$(MAKE) --no-print-directory needed
	$(PYTHON) -m venv .venv
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/package
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(VENV_PYTHON) -m pip install --quiet --group dev
	@touch $@

.venv/docs: .venv/dev
	$(VENV_PYTHON) -m pip install --quiet --group docs
	@touch $@

.venv/bench: .venv/dev
	$(VENV_PYTHON) -m pip install --quiet --group bench
	@touch $@

needed:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is missing (Debian: apt install python3 python3-dev python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed, and $(PYTHON) is $$($(PYTHON) -V); name another with PYTHON=..."; exit 1; }
	@missing=; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  missing="$$missing\n  venv, Python's module for virtual environments (Debian: apt install python3-venv)"; \
	[ -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || \
	  missing="$$missing\n  Python.h, Python's headers (Debian: apt install python3-dev)"; \
	compiler=$(COMPILER); command -v "$${compiler%% *}" >/dev/null || \
	  missing="$$missing\n  $$compiler, the C compiler (Debian: apt install gcc libc6-dev; or name another with CC=...)"; \
	[ -z "$$missing" ] || { printf "missing for $(PYTHON):$$missing\n"; exit 1; }
