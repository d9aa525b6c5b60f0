# make quickstart   set up, train a tiny SAM3 on real MR slices, evaluate it          (about 8 minutes on 2 cores)
# make test         set up, run the tests                                              (JOBS=2 processes of one thread)
# make test-newest  the fast tests on the newest libraries that pyproject.toml allows
# make test-page    the page in a headless Chromium, where one is installed
# make lint         set up, style and type checks
PYTHON3 ?= python3
JOBS ?= 2
BIN := .venv/bin
NEWEST := .venv-newest/bin
PAGE := .venv-page/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
export TOKENIZERS_PARALLELISM = false

.PHONY: setup quickstart test test-newest test-page lint

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON3=python3.11")'
	$(PYTHON3) -m venv .venv
	$(BIN)/python $(INSTALL) -r requirements.lock
	$(BIN)/python $(INSTALL) --no-deps --editable .
	touch $@

quickstart: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/quickstart.sh

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS)

# On top of the locked environment, so that only what is newer is fetched: torch with its CUDA libraries is 7 GB.
test-newest: setup
	$(PYTHON3) -m venv --clear .venv-newest
	echo $(CURDIR)/.venv/lib/python3*/site-packages > $$(echo .venv-newest/lib/python3*/site-packages)/locked.pth
	$(NEWEST)/python $(INSTALL) --upgrade --upgrade-strategy eager --editable '.[dev,dicom,lora]'
	$(NEWEST)/python -m pip freeze --path $$(echo .venv-newest/lib/python3*/site-packages)
	OMP_NUM_THREADS=1 $(NEWEST)/python -m pytest --numprocesses $(JOBS) -m 'not slow'

# In an environment of its own, as gradio needs an older pillow.
test-page: setup
	$(PYTHON3) -m venv --clear .venv-page
	echo $(CURDIR)/.venv/lib/python3*/site-packages > $$(echo .venv-page/lib/python3*/site-packages)/locked.pth
	$(PAGE)/python $(INSTALL) --editable '.[page]' playwright
	OMP_NUM_THREADS=1 $(PAGE)/python -m pytest tests/demo -rs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
