SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python

# --- train ------------------------------------------------------------------------------------------
ENV ?= BreakoutNoFrameskip-v4
N ?=
ARGS ?=

# --- install ----------------------------------------------------------------------------------------
# SB3 uses PyTorch on the CPU only, so we install its CPU build. PyTorch is not in requirements.lock, because its builds
# depend on different packages. If PIP_FIND_LINKS names a folder of wheels, uv takes PyTorch from there; otherwise uv
# finds the build that TORCH_BACKEND names.
TORCH := torch==2.13.0
TORCH_BACKEND ?= cpu
ifdef PIP_FIND_LINKS
TORCH_BUILD = --find-links "$(PIP_FIND_LINKS)"
else
TORCH_BUILD = --torch-backend=$(TORCH_BACKEND)
endif
UV_PIP = $(PYTHON) -m uv pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start Python dozens of times; imports take half as long if Python may store compiled modules
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(PYTHON) -m pytest -n 2 --dist worksteal

# --- release ----------------------------------------------------------------------------------------
PYTHON_VERSION ?= 3.11
BUILD = SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(PYTHON) -m uv build --no-build-isolation --offline --quiet
SMOKE := build/smoke

.PHONY: train test slow bench bench-jax pytest coverage docs docs-serve lint type format commit-checks dist dist-check \
  smoke lock clean

train: $(VENV)/installed
	$(PYTHON) -m rl_zoo3.train --algo deepspi --env $(ENV) -P $(if $(N),-n $(N)) $(ARGS)

# all but the tests marked slow
test: lint type pytest

pytest: $(VENV)/installed
	$(PYTEST)

# the tests marked slow, which seldom fail
slow: $(VENV)/installed
	$(PYTEST) -m slow

# takes a third longer than pytest
coverage: $(VENV)/installed
	$(PYTEST) --cov --cov-report=term

# the documentation site, into site/; fails at a broken link, and where code that a page shows is gone
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

# the same on 127.0.0.1:8000, built anew when a page changes
docs-serve: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs serve --dev-addr 127.0.0.1:8000

# the figures in docs/results/README.md; takes about ten minutes on two cores. DEVICES="2 8": DeepSPI on as many, too
DEVICES ?=
bench: $(VENV)/installed
	$(PYTHON) benchmarks/throughput.py --name throughput $(if $(DEVICES),--devices $(DEVICES))

# the figures on environments inside jit in docs/results/README.md; takes about half an hour on two cores
bench-jax: $(VENV)/installed bench/rejax/installed
	$(PYTHON) benchmarks/jax_envs.py --rejax bench/rejax/bin/python

# rejax, which wants another gymnax, in a virtual environment of its own
bench/rejax/installed: $(VENV)/installed
	test -x bench/rejax/bin/python || $(PYTHON) -m venv bench/rejax
	$(UV_PIP) install --python bench/rejax/bin/python --quiet rejax==0.1.3 gymnax==0.0.9 six jax==0.10.2
	@touch $@

lint: $(VENV)/installed
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check

type: $(VENV)/installed
	$(PYTHON) -m mypy

format: $(VENV)/installed
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

commit-checks: format type pytest

# sdist and wheel of the working tree; the same commit gives the same bytes
dist: $(VENV)/installed
	rm -rf dist
	$(BUILD) --out-dir dist
	@ls -l dist

# both again, from a clone: any difference fails
dist-check: dist
	rm -rf build/clone
	git clone --quiet . build/clone
	$(BUILD) --out-dir build/clone/dist build/clone
	diff -r dist build/clone/dist
	@cd dist && sha256sum *.whl *.tar.gz

# a user's installation: the wheel and whatever it depends on, in a clean environment of PYTHON_VERSION; on a CPU
smoke: dist
	$(PYTHON) -m uv venv --quiet --clear --python $(PYTHON_VERSION) $(SMOKE)
	$(PYTHON) -m uv pip install --python $(SMOKE) --quiet $(TORCH_BUILD) "$(TORCH)+cpu" "$$(echo dist/*.whl)[zoo]"
	cd $(SMOKE) && env -u PYTHONPATH bin/python ../../tests/smoke.py

$(VENV)/installed: requirements.lock pyproject.toml sbx_deepspi/zoo/hook.py sbx_deepspi/zoo/hook.pth
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
	rm -rf $(VENV) bench site .jax_cache .mypy_cache .pytest_cache .ruff_cache .coverage dist build
