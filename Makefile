# `make help` lists the targets. Everything runs in .venv, made from a hashed lock; Python 3.11 and pip are all it needs.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOCK ?= cpu
PORT ?= 5000
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTORCH_INDEX := https://download.pytorch.org/whl/cpu
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false
export PATH := $(BIN):$(PATH)

.PHONY: help env demo plan repro test test-all lint types format mlflow-ui lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(VENV)/recipe-lock.sha256  ## Make .venv from requirements/cpu.lock (LOCK=cuda on a GPU host)

$(VENV)/recipe-lock.sha256: requirements/$(LOCK).lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "error: this needs Python 3.11, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Install it, or name it: make PYTHON=..." >&2; exit 4; }
	$(PYTHON) -m venv $(VENV)
	@# The CPU build of torch comes from pip's configured links where they have it, else from the PyTorch project.
	@# Its index is named at the second try only: one that can't be reached costs pip minutes.
	@set -o pipefail; mkdir -p $(VENV)/log; echo "installing requirements/$(LOCK).lock"; \
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements/$(LOCK).lock \
	  2>$(VENV)/log/pip.txt || { \
	  grep -q 'No matching distribution found for torch' $(VENV)/log/pip.txt \
	    || { grep -v '^WARNING' $(VENV)/log/pip.txt >&2; exit 4; }; \
	  $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements/$(LOCK).lock \
	    --extra-index-url $(PYTORCH_INDEX); }
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@sha256sum requirements/$(LOCK).lock > $@

demo: env  ## Run the embedded default from rows to registered adapter, and say where to look
	dvc repro
	@echo
	@recipe summary

plan: env  ## Say what a recipe needs before anything is downloaded (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && recipe plan

repro: env  ## Run what is out of date in a recipe folder (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && dvc repro

test: env  ## The fast tests: offline, on a CPU, at most 8 minutes
	pytest -m "not slow and not docker and not browser and not gpu" --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

test-all: env  ## All tests that this machine can run
	pytest -m "not gpu" --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

lint: env  ## Style
	ruff format --check .
	ruff check .

types: env  ## Types
	mypy

format: env  ## Format the code
	ruff format .
	ruff check --fix .

mlflow-ui: env  ## Browse the experiments on http://127.0.0.1:5000 (PORT=...)
	@mkdir -p mlflow
	@echo "http://127.0.0.1:$(PORT)"
	mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///mlflow/mlflow.db \
	  --artifacts-destination mlflow/artifacts

# Where torch's CPU wheel lies, if not on the PyTorch project's index: make lock FIND_LINKS=/folder
lock:  ## Compile the hashed locks from requirements/*.in (needs uv)
	uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	  $(if $(FIND_LINKS),--find-links $(FIND_LINKS),--extra-index-url $(PYTORCH_INDEX)) --no-emit-find-links --no-emit-index-url \
	  --custom-compile-command 'make lock' -o requirements/cpu.lock requirements/{cpu,runtime,dev}.in
	uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-emit-index-url \
	  --custom-compile-command 'make lock' -o requirements/cuda.lock requirements/{cuda,runtime,dev}.in

clean:  ## Remove what the pipeline made here; DVC's cache and MLflow's store stay
	rm -rf data models reports metrics .recipe
