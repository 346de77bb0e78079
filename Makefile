# make run: all notebooks, headless, on the phantom.   make test: all tests but the slow ones, which are
# make test-slow: kills, fuzzing, several processes, more data sets, and make test-browser: sliders moved in JupyterLab,
# for which Chromium is needed.   make lab: JupyterLab.   make book: a site of the notebooks.
# The environment is made when missing, and again when pyproject.toml or constraints.txt changes.
#   make run PYTHON=python3.12      another Python
#   make run TORCH_INDEX=ADDRESS    PyTorch from another index than pip's own, e.g. the one for CPUs alone; kept for .venv
#   make run CONSTRAINTS=           the newest versions, not those of constraints.txt
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOG    := $(VENV)/install.log
PIP    := $(BIN)/python -m pip --disable-pip-version-check --log $(LOG) install $$quiet
TORCH_INDEX ?= $(shell cat $(VENV)/.torch_index 2>/dev/null)
TORCH  := $(or $(if $(CONSTRAINTS),$(shell grep -E '^torch(vision)?==' $(CONSTRAINTS))),torch torchvision)
CHECK  := .ci/preflight.py
BOOK   := .book

.PHONY: run test test-slow test-browser lab lint book address clean

run: $(STAMP)
	$(BIN)/python -m deepchest_utils notebooks

test: $(STAMP)
	$(BIN)/python -m pytest -n logical --dist worksteal $(TEST_OPTIONS)

lab: $(STAMP)
	$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n logical --dist worksteal $(TEST_OPTIONS)

test-browser: $(STAMP)
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || \
	  { echo "Chromium is missing: on Debian, apt-get install chromium"; exit 1; }
	@command -v chromedriver >/dev/null || \
	  { echo "chromedriver is missing: on Debian, apt-get install chromium-driver"; exit 1; }
	$(BIN)/python -m pytest -m browser

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: $(BOOK)/.installed  # a site of the notebooks as they are committed; nothing is run
	$(BOOK)/bin/sphinx-build -q -E -c .ci/book . $(BOOK)/site
	@echo "open $(BOOK)/site/index.html"

address:  # the repository's, from pyproject.toml into notebooks, README and CITATION.cff
	$(PYTHON) .ci/address.py

clean:
	rm -rf $(VENV) $(BOOK) .coverage runs data/processed .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is missing: install Python 3.11 or newer, or name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) $(CHECK) before . $(if $(TORCH_INDEX),cpu)
	$(PYTHON) -m venv --clear $(VENV)
	@test -t 1 || quiet=--quiet; \
	{ $(if $(TORCH_INDEX),$(PIP) $(TORCH) --index-url $(TORCH_INDEX) &&) \
	  $(PIP) --editable '.[dev]' $(addprefix --constraint ,$(CONSTRAINTS)); } || $(PYTHON) $(CHECK) cause $(LOG)
	@$(BIN)/python $(CHECK) device
	@$(if $(TORCH_INDEX),echo '$(TORCH_INDEX)' > $(VENV)/.torch_index)
	@touch $@

$(BOOK)/.installed: .ci/book/requirements.txt
	$(PYTHON) -m venv --clear $(BOOK)
	$(BOOK)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@
