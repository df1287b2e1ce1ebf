# The commands of a contributor. Each makes the virtual environment it needs on first use.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install dev demo test test-fast chaos check format

help:
	@echo "make demo    generate the demo dataset on this machine, and draw it as outputs/demo.jpg"
	@echo "make test    run the tests (CPU only)"
	@echo "make test-fast    run the tests that take at most five seconds each"
	@echo "make chaos   strike small jobs with faults and print what became of them; ARGS=--help"
	@echo "make check   lint, formatting and types"
	@echo "make format  format the code and mend what the linter can"

.venv/install.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev.stamp: .venv/install.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: .venv/install.stamp
dev: .venv/dev.stamp

demo: install
	$(BIN)/toprovar-batch submit jobs/demo.yaml
	$(BIN)/toprovar-batch sheet outputs/demo --file outputs/demo.jpg

test: dev
	$(PYTEST)

test-fast: dev
	$(PYTEST) -m "not slow"

chaos: dev
	$(BIN)/python tests/chaos $(ARGS)

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
