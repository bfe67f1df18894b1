SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python

# --- train ------------------------------------------------------------------------------------------
ENV ?= BreakoutNoFrameskip-v4
N ?=
ARGS ?=

# --- install ----------------------------------------------------------------------------------------
# SB3 needs PyTorch only to hold tensors on the CPU, so its CPU build is the one to have. It stands beside the
# lock, because its builds need different packages. Where wheels lie in a folder (PIP_FIND_LINKS), it is found
# there; elsewhere uv chooses the build by name.
TORCH := torch==2.13.0
TORCH_BACKEND ?= cpu
ifdef PIP_FIND_LINKS
TORCH_BUILD = --find-links "$(PIP_FIND_LINKS)"
else
TORCH_BUILD = --torch-backend=$(TORCH_BACKEND)
endif
UV_PIP = $(PYTHON) -m uv pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python starts some sixty times in the tests: modules that are compiled already halve what it takes to import them
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test bench pytest coverage lint type format commit-checks lock clean

train: $(VENV)/installed
	$(PYTHON) -m rl_zoo3.train --algo deepspi --env $(ENV) -P $(if $(N),-n $(N)) $(ARGS)

test: lint type pytest

pytest: $(VENV)/installed
	$(PYTHON) -m pytest -n 2 --dist worksteal

# takes a third longer
coverage: $(VENV)/installed
	$(PYTHON) -m pytest -n 2 --dist worksteal --cov --cov-report=term

# what docs/results/README.md shows; about ten minutes on two cores
bench: $(VENV)/installed
	$(PYTHON) benchmarks/throughput.py --name throughput

lint: $(VENV)/installed
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check

type: $(VENV)/installed
	$(PYTHON) -m mypy

format: $(VENV)/installed
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

commit-checks: format type pytest

$(VENV)/installed: requirements.lock pyproject.toml sbx_deepspi/zoo_hook.py sbx_deepspi/zoo_hook.pth
	@echo "Installing into $(VENV) (a few minutes, the first time) ..."
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv
	$(UV_PIP) install --python $(PYTHON) --quiet --no-deps --require-hashes -r requirements.lock
	$(UV_PIP) install --python $(PYTHON) --quiet $(TORCH_BUILD) "$(TORCH)"
	$(UV_PIP) install --python $(PYTHON) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock:
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv
	$(UV_PIP) compile pyproject.toml --all-extras --universal --upgrade --generate-hashes --quiet \
	  --no-emit-package torch $(TORCH_BUILD) --constraint <(echo "$(TORCH)+cpu") \
	  --no-annotate --no-header --output-file requirements.lock

clean:
	rm -rf $(VENV) .jax_cache .mypy_cache .pytest_cache .ruff_cache .coverage dist build
