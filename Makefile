# No root and nothing done before: each target sets up what it needs, once, and again when pyproject.toml or
# constraints.txt changes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Extras that `make test` and `make lint` install, e.g. EXTRAS=dev,ml
EXTRAS ?= dev
DEMO_ARGS ?= demo --unattended
TEST_ARGS ?=
# Behaviour tests wait for processes and for time to pass: four side by side use two cores.
TEST_JOBS ?= 4
BENCH_ARGS ?=
# Which versions all targets install; CONSTRAINTS= installs the newest ones that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
export CONSTRAINTS

BIN := $(VENV)/bin
comma := ,
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-$(subst $(comma),-,$(EXTRAS))
DOCS_READY := $(VENV)/.ready-docs

.PHONY: help demo test lint docs bench constraints clean

help:
	@echo 'make demo    a whole study on this machine, unattended'
	@echo 'make test    all tests that this machine has the parts for; TEST_ARGS="-k spool" picks some'
	@echo 'make lint    ruff, mypy strict, the dependency rule'
	@echo 'make docs    the documentation, into site/'
	@echo 'make bench   the benchmarks: JSON and a table'
	@echo 'make constraints   the newest versions of all that is installed for this, into constraints.txt'
	@echo 'make clean   remove what the other targets made, $(VENV) included'

demo: $(RUN_READY)
	$(BIN)/pilot-hitl $(DEMO_ARGS)

test: $(DEV_READY)
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(TEST_ARGS)

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(DOCS_READY)
	$(BIN)/mkdocs build --strict

bench: $(RUN_READY)
	$(BIN)/pilot-hitl bench $(BENCH_ARGS)

$(RUN_READY): pyproject.toml $(CONSTRAINTS) tools/venv.sh
	tools/venv.sh '$(PYTHON)' '$(VENV)' .
	@touch $@

$(DEV_READY): pyproject.toml $(CONSTRAINTS) tools/venv.sh
	tools/venv.sh '$(PYTHON)' '$(VENV)' '.[$(EXTRAS)]'
	@touch $@ $(RUN_READY)

$(DOCS_READY): pyproject.toml $(CONSTRAINTS) tools/venv.sh
	tools/venv.sh '$(PYTHON)' '$(VENV)' '.[docs]'
	@touch $@ $(RUN_READY)

constraints:
	tools/refresh-constraints '$(PYTHON)'

clean:
	rm -rf '$(VENV)' build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
