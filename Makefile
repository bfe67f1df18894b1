SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python

# --- train ------------------------------------------------------------------------------------------
ENV ?= BreakoutNoFrameskip-v4
N ?=
ARGS ?=

# --- install ----------------------------------------------------------------------------------------
# SB3 needs PyTorch only to hold tensors on the CPU, so its CPU build is the one to have. It stands beside the
# lock, because its builds need different packages. Where wheels lie in a folder (PIP_FIND_LINKS), pip finds it
# there; elsewhere uv chooses the build by name.
TORCH := torch==2.13.0
TORCH_BACKEND ?= cpu
ifdef PIP_FIND_LINKS
INSTALL_TORCH = $(PYTHON) -m pip install --quiet "$(TORCH)"
else
INSTALL_TORCH = $(PYTHON) -m uv pip install --python $(PYTHON) --quiet --torch-backend=$(TORCH_BACKEND) "$(TORCH)"
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test pytest lint type format commit-checks lock clean

train: $(VENV)/installed
	$(PYTHON) -m rl_zoo3.train --algo deepspi --env $(ENV) -P $(if $(N),-n $(N)) $(ARGS)

test: lint type pytest

pytest: $(VENV)/installed
	$(PYTHON) -m pytest --cov --cov-report=term

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
	$(PYTHON) -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(INSTALL_TORCH)
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock:
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip compile pyproject.toml --all-extras --universal --upgrade --generate-hashes \
	  --no-emit-package torch $(LOCK_TORCH) --no-annotate --no-header --output-file requirements.lock

ifdef PIP_FIND_LINKS
LOCK_TORCH = --find-links "$(PIP_FIND_LINKS)" --constraint <(echo "$(TORCH)+cpu")
else
LOCK_TORCH = --torch-backend=cpu --constraint <(echo "$(TORCH)")
endif

clean:
	rm -rf $(VENV) .jax_cache .mypy_cache .pytest_cache .ruff_cache .coverage dist build
