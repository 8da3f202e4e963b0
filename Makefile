# Everything runs in .venv, made once from constraints.txt and refreshed when the requirements change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
REQUIREMENTS := constraints.txt setup.cfg setup.py pyproject.toml
FAST := not slow and not multiprocess
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: install it, or name it with make PYTHON=/path/to/python3.11"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

# The build backend comes first and builds without isolation: nothing outside constraints.txt is ever installed.
$(VENV)/.installed: $(REQUIREMENTS) | $(BIN)/python
	@echo "Installing the pinned requirements into $(VENV): a few minutes the first time ..."
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable '.[test]'
	@$(BIN)/python -c 'import cv2' \
	  || { echo "OpenCV lacks a system library: apt-get install libgl1 libglib2.0-0, then run make again"; exit 2; }
	@touch $@

$(VENV)/.linters: $(VENV)/.installed
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## create .venv and install the pinned requirements

.PHONY: demo
demo: setup ## the whole story on generated videos: data, two training stages, edits, report
	$(BIN)/icve demo $(ARGS)

# The tests' tensors are tiny: one thread is as fast as two and does not suffer on a busy machine.
test test-slow: export OMP_NUM_THREADS ?= 1
WORKERS := 2
PYTEST := $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist loadfile

.PHONY: test
test: setup ## the fast tests
	$(PYTEST) -m '$(FAST)' $(ARGS)

.PHONY: test-slow
test-slow: setup ## the slow and multi-process tests alone
	$(PYTEST) --durations=20 -m 'not ($(FAST))' $(ARGS)

.PHONY: test-all
test-all: test test-slow ## every test

.PHONY: test-changed
test-changed: export OMP_NUM_THREADS ?= 1
test-changed: $(VENV)/.linters ## the fast tests that a change touches; the first run is of all, and takes notes
	$(BIN)/python -m pytest -q -rs --testmon --testmon-forceselect -m '$(FAST)' $(ARGS)

.PHONY: lint
lint: $(VENV)/.linters ## check style, types and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.linters ## apply formatting and safe style fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## remove builds and caches (not .venv, not runs/)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .testmondata*
	find icve tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
