# make run: all notebooks, headless, on the phantom.   make test: all tests but the slow ones, which are
# make test-slow: kills, fuzzing, several processes.   make lab: JupyterLab.
# The environment is made when missing, and again when pyproject.toml changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test test-slow lab lint clean

run: $(STAMP)
	$(BIN)/python -m deepchest_utils notebooks

test: $(STAMP)
	$(BIN)/python -m pytest $(TEST_OPTIONS)

lab: $(STAMP)
	$(BIN)/jupyter lab --ip=127.0.0.1 notebooks

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .coverage runs data/processed .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
