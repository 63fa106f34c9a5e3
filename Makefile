# `make help` lists the targets. Everything runs in .venv, which requirements/install creates from hashed locks.
# PYTHON=... names another interpreter for it.
# The lock that is installed already, unless another is named: `make env LOCK=cuda` installs anew.
INSTALLED := $(patsubst requirements/%.lock,%,$(shell sed 's/.* //' .venv/recipe-lock.sha256 2>/dev/null))
LOCK ?= $(or $(INSTALLED),cpu)
PORT ?= 5000
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTORCH_INDEX := https://download.pytorch.org/whl/cpu
export DVC_NO_ANALYTICS := 1
# DVC runs stages that do not depend on each other, and writes a new dvc.lock, in the order of a set.
export PYTHONHASHSEED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false
export PATH := $(BIN):$(PATH)

.PHONY: help env demo plan repro test test-all test-long browser pictures lint types format bench bench-prepare bench-pipeline mlflow-ui lock presets clean
.PHONY: docker-train docker-demo docker-shell docker-build docker-check docker-pin docker-test docker-test-cuda
.PHONY: services-up services-down services-train services-backup services-restore

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

env: $(VENV)/recipe-lock.sha256  ## Make .venv from requirements/cpu.lock (LOCK=cuda on a GPU host)

ifneq ($(INSTALLED),$(LOCK))
.PHONY: $(VENV)/recipe-lock.sha256
endif
$(VENV)/recipe-lock.sha256: requirements/$(LOCK).lock requirements/tools.lock requirements/install pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install $(LOCK) $(VENV)

demo: env  ## Run the embedded default from rows to registered adapter, and say where to look
	dvc repro
	@echo
	@recipe summary
	@echo "First            source .venv/bin/activate"

plan: env  ## Say what a recipe needs before anything is downloaded (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && recipe plan

repro: env  ## Run what is out of date in a recipe folder (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && dvc repro

test: env  ## The fast tests: offline, on a CPU, at most 8 minutes
	pytest -n 2 --dist loadgroup -m "not slow and not docker and not browser and not gpu and not cuda_image" --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

browser: $(VENV)/browser-lock.sha256  ## Add what drives Chromium in the browser's tests

$(VENV)/browser-lock.sha256: $(VENV)/recipe-lock.sha256 requirements/browser.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements/browser.lock
	@sha256sum requirements/browser.lock > $@

pictures: browser  ## Run the browser's tests and write the README's pictures anew (docs/pictures)
	PICTURES=docs/pictures pytest -m browser

test-all: env browser  ## All tests that this machine can run, but for the longest
	pytest -n 2 --dist loadgroup -m "not long and not gpu and not cuda_image" --durations=20 --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

test-long: env browser  ## The tests that take longer than CI allows; docs/ has their last result
	pytest -m long --durations=0

lint: env  ## Style
	ruff format --check .
	ruff check .

types: env  ## Types
	mypy

format: env  ## Format the code
	ruff format .
	ruff check --fix .

bench: env  ## Training beside the tutorial's settings and `trl sft`: speed, memory (OPTIONS=..., see bench/train.py)
	python -m bench.train $(OPTIONS)

bench-prepare: env  ## Rows a second and memory, beside SFTTrainer's own preparation (OPTIONS=..., see bench/prepare.py)
	python -m bench.prepare $(OPTIONS)

bench-pipeline: env  ## Seconds of `recipe --help`, of a `dvc repro` with nothing to do, and to the first step
	python -m bench.pipeline $(OPTIONS)

mlflow-ui: env  ## Browse the experiments on http://127.0.0.1:5000 (PORT=..., RECIPE=... for its last run)
	@mkdir -p mlflow
	@echo "the last run: $$(cd $(or $(RECIPE),.) && recipe link --server http://127.0.0.1:$(PORT))"
	mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///mlflow/mlflow.db \
	  --artifacts-destination mlflow/artifacts

# In a container: the host needs Docker, and for a GPU NVIDIA's driver and container toolkit; no Python.

docker-train:  ## Check the host, build the image, plan and run a recipe on the GPU (RECIPE=presets/xgen-7b-alpaca)
	@LOCK=cuda docker/host train

docker-demo:  ## The embedded default in a container, on any Linux x86-64 host with Docker; no GPU
	@LOCK=cpu RECIPE=. docker/host train

docker-shell:  ## A shell in the image, in the recipe folder (LOCK=cpu without a GPU)
	@docker/host shell

docker-build:  ## Build the image alone (LOCK=cpu for the one without CUDA)
	@docker/host build

docker-check:  ## Say what this host lacks
	@docker/host check

docker-pin:  ## Write the digest of the base image into docker/Dockerfile (TAG=bookworm-YYYYMMDD-slim)
	@docker/host pin

docker-test: env  ## Build the CPU image and run the embedded recipe and its tests in it (root, or a user of Docker)
	pytest -m docker

docker-test-cuda: env  ## Build the CUDA image, too (several GB of downloads), and look into it
	pytest -s -m cuda_image

services-up:  ## Start MLflow on PostgreSQL (docker/compose.yaml) on http://127.0.0.1:5000
	@docker/services up

services-down:  ## Stop them; the data stays
	@docker/services down

services-train:  ## Run a recipe in the image that logs to them by name (RECIPE=..., COMMAND="recipe register")
	@docker/services train $(COMMAND)

services-backup:  ## Write both stores into a file (BACKUP=FILE)
	@docker/services backup "$(or $(BACKUP),services.backup)"

services-restore:  ## Bring both stores back from a file (BACKUP=FILE)
	@docker/services restore "$(or $(BACKUP),services.backup)"

# Where torch's CPU wheel is, if not on the PyTorch project's index: make lock FIND_LINKS=/folder
COMPILE := uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
CPU_TORCH = $(if $(FIND_LINKS),--find-links $(FIND_LINKS),--extra-index-url $(PYTORCH_INDEX))
lock: env  ## Compile the hashed locks from requirements/*.in
	$(COMPILE) $(CPU_TORCH) -o requirements/cpu.lock $(addprefix requirements/,cpu.in stages.in)
	$(COMPILE) -o requirements/cuda.lock $(addprefix requirements/,cuda.in stages.in)
	@# Beside either: what is in them already is left out, at the same versions.
	$(COMPILE) -c requirements/cpu.lock -c requirements/cuda.lock -o requirements/tools.lock requirements/tools.in \
	  $$(sed -n 's/^\([A-Za-z0-9_.-]*\)==.*/--no-emit-package \1/p' requirements/cpu.lock)
	$(COMPILE) -c requirements/cpu.lock -c requirements/tools.lock -o requirements/browser.lock requirements/browser.in
	$(COMPILE) $(CPU_TORCH) -c requirements/cpu.lock -c requirements/tools.lock --no-emit-package torch \
	  -o requirements/tasks.lock requirements/tasks.in
	$(COMPILE) -o requirements/server.lock requirements/server.in
	$(COMPILE) -o requirements/uv.lock requirements/uv.in

presets: env  ## Give the presets the root's dvc.yaml, after a change of it
	@for folder in presets/*/; do sed "s|^  - root: \.$$|  - root: ../..|" dvc.yaml > "$$folder/dvc.yaml"; done

clean:  ## Remove what the pipeline made here; DVC's cache and MLflow's store stay
	rm -rf data models reports metrics .recipe
