# GridSense. `make` alone lists the targets. Nothing is needed but make and Python 3.11: every target sets up what it uses.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first interpreter that is 3.11 or later; `make PYTHON=/path/to/python setup` overrides it.
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python3.12 python3.13 python,$(shell \
  $(p) -c 'import sys; print("$(p)") if sys.version_info >= (3, 11) else None' 2>/dev/null)))
PACKAGES := gridsense streams models baselines
RUN := .venv/bin/python
# One core a worker; a test run is bound by the processor.
WORKERS ?= auto

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test lint types format train bench check lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready .venv-tools/.ready ## make .venv from the hash-locked requirements; the program is then .venv/bin/gridsense

demo: setup ## watch a simulated grid of 50 PMUs and more for three minutes, in the terminal
	@.venv/bin/gridsense demo

test: setup lint types ## everything that must hold: lint, types, import contracts, docstrings and all tests
	@$(RUN) -m pytest -n $(WORKERS) $(ARGS)

lint: setup ## ruff, formatting, import contracts, docstrings
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports --no-logo
	@.venv-tools/bin/pydoclint --quiet $(PACKAGES)

types: setup ## mypy, strict
	@.venv/bin/mypy

format: setup ## format the code and mend what ruff can mend by itself
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

train: setup ## train the bundled sequence model by Tensor2Tensor, export it, and verify it in TensorFlow and JAX of today
	@.venv/bin/gridsense train gridsense/demo/ambient.parquet models/corpus/*.parquet \
	  --known gridsense/demo/demo.parquet --to models/bundled --force $(ARGS)
	@.venv/bin/python scripts/engines/environment.py >/dev/null
	@.venv-engines/bin/gridsense model verify models/bundled --frames 10000

bench: setup ## all measurements against a peer or a limit; ARGS=--quick ends within a minute each
	@for script in scripts/bench/*.py; do echo "== $$script"; $(RUN) "$$script" $(ARGS); done

check: setup ## all promises that are checked end to end, an hour; ARGS=--quick ends within a minute each
	@for script in scripts/check/*.py; do echo "== $$script"; $(RUN) "$$script" $(ARGS); done

lock: .venv-tools/.ready ## resolve the requirements anew and write the locks; ARGS=--upgrade takes the newest of everything
	@scripts/lock.sh $(ARGS)

clean: ## remove what these targets made
	rm -rf .venv .venv-tools .venv-peers .venv-engines .venv-t2t .venv-*.lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

# Making an environment: only what the lock names, each file checked against its hash; the project itself is built by
# the locked hatchling, so that nothing unlocked is fetched. The environment is current while it is newer than the lock.
define make_venv
	@if [ -z "$(PYTHON)" ]; then \
	  echo "GridSense needs Python 3.11 or later, and neither python3.11 nor python3 is one; install it," \
	    "or say where it is: make PYTHON=/path/to/python setup" >&2; exit 2; fi
	@echo "setting up $(@D) with $$($(PYTHON) --version) ..."
	@[ -x $(@D)/bin/python ] || $(PYTHON) -m venv $(@D) || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@$(@D)/bin/python -m pip install --quiet --require-hashes --no-deps -r $<
endef

.venv/.ready: requirements-dev.txt pyproject.toml
	$(make_venv)
	@.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@.venv/bin/python -m pip check --quiet || .venv/bin/python -m pip check
	@touch $@

.venv-tools/.ready: requirements-tools.txt
	$(make_venv)
	@touch $@
