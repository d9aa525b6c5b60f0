# make quickstart   set up, train a tiny SAM3 on real MR slices, evaluate it          (about 8 minutes on 2 cores)
# make test         set up, run the tests
# make lint         set up, style and type checks
PYTHON3 ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM = false

.PHONY: setup quickstart test lint

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON3=python3.11")'
	$(PYTHON3) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

quickstart: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/quickstart.sh

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
