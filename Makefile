VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# pip compiles one module after the other; all processors do it in half the time. Of these few are ever imported, and some are for other Pythons.
RARE   := /(tests?|diffusers|transformers/models)/
# A file's tests share what they set up. What measures is marked `alone` and has the machine to itself.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install quickstart browser test test-fast lint clean

help:  ## Shows this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Makes .venv and installs genopt with what its tests need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "genopt needs Python 3.11 or newer, and $(PYTHON) is older; run for example: make install PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing genopt and what it needs into $(VENV); the first time takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip  # with the one that comes with Python 3.11 the next line took 160 s, with 26.3 94
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test,lint]'
	@$(BIN)/python -W ignore -m compileall -qq -j 0 -x '$(RARE)' $(VENV) || true
	@touch $@

quickstart: install  ## Optimizes a small model and deploys the winner; pass flags with ARGS="--budget 10m"
	$(BIN)/genopt quickstart $(ARGS)

lint: install  ## Checks style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-fast: install  ## Runs the tests that need neither Ray nor a network
	$(BIN)/python -m pytest $(PARALLEL) -m "not (gpu or benchmark)" tests/unit tests/contract

browser: install
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || $(BIN)/playwright install --with-deps chromium

test: lint browser  ## Runs everything that CI runs
	$(BIN)/python -m pytest $(PARALLEL) -m "not (gpu or benchmark or alone)" tests/unit tests/contract tests/ray tests/e2e tests/packaging
	$(BIN)/python -m pytest -m "alone and not (gpu or benchmark)" tests/ray tests/e2e

clean:  ## Removes what builds and tools leave behind; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find genopt tests jobs serving cluster -name __pycache__ -type d -prune -exec rm -rf {} +
