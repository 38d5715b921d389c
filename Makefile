# Two commands: `make quickstart` (environment, then the whole road in miniature) and `make test` (all that CI checks).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# FLAGS=--fast walks the quickstart's road in less than two minutes, with less to show.
FLAGS ?=
# CI installs exactly what requirements.lock names; elsewhere the ranges of pyproject.toml hold.
LOCK := $(if $(CI),--constraint requirements.lock)
TORCH := torch==2.13.*
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test lint format lock clean

quickstart: $(VENV)/installed
	$(BIN)/yayan run quickstart $(FLAGS)

test: $(VENV)/installed-for-tests lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo 'yayan needs Python 3.11 or newer: install it, or name it: make PYTHON=python3.12 ...' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo 'no virtual environment could be made: on Debian and Ubuntu, apt install python3-venv' >&2; exit 2; }
	@touch $@

# Without an NVIDIA GPU torch's CPU build is enough (200 MB instead of several GB): PyTorch's own index has it.
$(VENV)/torch: $(VENV)/python
	@command -v nvidia-smi >/dev/null 2>&1 && $(PIP) $(LOCK) '$(TORCH)' || \
	  $(PIP) --retries 1 --timeout 20 --index-url $(TORCH_CPU_INDEX) $(LOCK) '$(TORCH)' || $(PIP) $(LOCK) '$(TORCH)'
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	@$(PIP) $(LOCK) --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed pyproject.toml
	@$(PIP) $(LOCK) --editable '.[dev]'
	@touch $@

# Write down what is installed here, for CI.
lock: $(VENV)/installed-for-tests
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
