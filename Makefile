# Everything a clone needs, from nothing but python3 and the package registries.
# `make demo` and `make test` set up `.venv` by themselves; a second call installs
# nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread beat one process of two; the demo is one process.
TEST_ENV := OMP_NUM_THREADS=1
# Without the advertisement of another tool.
DOCS_ENV := $(TEST_ENV) NO_MKDOCS_2_WARNING=1

.PHONY: help demo test test-benchmarks slow lint format types architecture check \
        docs docs-serve tutorials clean

help:
	@echo "make demo          compress FC3 on MNIST, from training to report (runs/fc3)"
	@echo "make test          the default tests, about five minutes on two cores"
	@echo "make test-benchmarks  the tests of the benchmarks, about two minutes"
	@echo "make slow          the statistics that take longer"
	@echo "make check         what CI runs: test, lint, types, architecture"
	@echo "make docs          the documentation site, into site/; fails at a broken link"
	@echo "make docs-serve    the same in a browser, while you write"
	@echo "make tutorials     run the notebooks, print the seconds that each takes"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/ax-pac compress fc3 --out runs/fc3

test: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

test-benchmarks: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "benchmarks and not slow"

slow: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.installed
	$(BIN)/mypy

architecture: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m pytest tests/test_architecture.py

check: lint types architecture test test-benchmarks

docs: $(VENV)/.installed-docs
	$(DOCS_ENV) $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed-docs
	$(DOCS_ENV) $(BIN)/mkdocs serve

tutorials: $(VENV)/.installed-docs
	$(TEST_ENV) $(BIN)/python docs/hooks/tutorials.py

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
