# Every target makes .venv and installs what it needs first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One worker per core; the tests of a file share what they train, so they stay together.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

# The model of the demo's second part: a directory, a bundled alias or a hub name.
MODEL ?= smollm2-135m
DEMO := gentletune demo: what a small learning rate keeps

.PHONY: help venv demo test test-attack test-all check docs wheel lowest bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      six methods on a tiny base model, then a real one at a small and a large rate; opens demo/report.html (10 to 15 minutes on 2 cores; again, seconds)"
	@echo "make test      the quick tests, on tiny models made on the spot (8 to 13 minutes on 2 cores)"
	@echo "make test-attack  fork bombs and the like against the sandbox (a minute)"
	@echo "make test-all  all of these plus tests on real pretrained weights (downloads 93 MB once)"
	@echo "make check     ruff, ruff format, mypy strict, import-linter"
	@echo "make docs      the documentation site, built strictly into site/"
	@echo "make wheel     the wheel and the source archive in dist/, tried in a clean environment"
	@echo "make lowest    the lowest versions that pyproject.toml allows, and the tests that touch them (about 10 minutes)"
	@echo "make bench     time and memory of the loss engine beside what else there is; writes benchmarks/results/"
	@echo "make venv      only the virtual environment"

$(STAMP): pyproject.toml constraints.txt
	@echo "==> Creating $(VENV) and installing gentletune with its tools (about 2 minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gentletune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch comes first and alone, so that nothing later asks for another build of it.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

venv: $(STAMP)
	@echo "==> $(VENV) is ready: source $(BIN)/activate"

demo: $(STAMP)
	@echo "==> Demo, part 1 of 2: six methods at four learning rates on the lab, a tiny base model"
	@$(BIN)/gentletune sweep -c recipes/lab.yaml --executor pool --workers 2 --output demo/lab
	@test -e demo/real/.settled.json || $(BIN)/gentletune report demo --title "$(DEMO)" --refresh 20 --open >/dev/null
	@echo "==> Demo, part 2 of 2: $(MODEL) learns to route helpdesk messages, at a small and a large learning rate"
	@$(BIN)/gentletune sweep -c recipes/demo.yaml --executor pool --workers 2 --model "$(MODEL)" --output demo/real
	@$(BIN)/gentletune report demo --title "$(DEMO)"

test: $(STAMP)
	@echo "==> Quick tests"
	@$(PYTEST)

test-attack: $(STAMP)
	@echo "==> Attacks on the sandbox"
	@$(PYTEST) --dist worksteal -m attack tests/sandbox/test_sandbox.py

test-all: $(STAMP)
	@echo "==> All tests, real models included"
	@$(PYTEST) -m '' --hypothesis-profile full

check: $(STAMP)
	@echo "==> ruff";          $(BIN)/ruff check .
	@echo "==> ruff format";   $(BIN)/ruff format --check .
	@echo "==> mypy --strict"; $(BIN)/mypy
	@echo "==> import-linter"; $(BIN)/lint-imports

docs: $(STAMP)
	@echo "==> Site: reference pages from the code, then every page, strictly; open site/index.html"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@$(BIN)/python scripts/reference.py
	@$(BIN)/zensical build --strict --clean

wheel: $(STAMP)
	@echo "==> Wheel: built, checked, and tried in an environment of its own (about 4 minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[release]'
	@rm -rf dist && $(BIN)/python -m build --outdir dist . >/dev/null
	@$(BIN)/twine check --strict dist/*
	@PYTHON="$(abspath $(BIN)/python)" scripts/try_wheel.sh dist/*.whl

lowest: $(STAMP)
	@echo "==> Lowest versions: installed into an environment of their own, and tested there (about 10 minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[release]'
	@PYTHON="$(abspath $(BIN)/python)" scripts/try_lowest.sh

bench: $(STAMP)
	@echo "==> Head: one size, the main variants (about 4 minutes)"
	@$(BIN)/python benchmarks/head.py --json benchmarks/results/head-2048.json
	@echo "==> Whole steps on SmolLM2-135M (about 4 minutes; downloads 93 MB once)"
	@$(BIN)/python benchmarks/step.py --json benchmarks/results/step-clinic.json

clean:
	rm -rf $(VENV) demo site dist docs/reference .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
