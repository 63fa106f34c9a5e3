# `make help` lists the targets. Everything runs in .venv, which requirements/install creates from hashed locks.
# PYTHON=... selects its interpreter.
# The default lock is the installed one; `make env LOCK=cuda` installs a different one.
INSTALLED := $(patsubst requirements/%.lock,%,$(shell sed 's/.* //' .venv/recipe-lock.sha256 2>/dev/null))
LOCK ?= $(or $(INSTALLED),cpu)
PORT ?= 5000
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTORCH_INDEX := https://download.pytorch.org/whl/cpu
export DVC_NO_ANALYTICS := 1
# DVC runs independent stages, and writes a new dvc.lock, in the iteration order of a set, which this seed fixes.
export PYTHONHASHSEED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false
export PATH := $(BIN):$(PATH)

.PHONY: help env demo plan repro test test-all test-long browser pictures lint types format bench bench-prepare bench-pipeline mlflow-ui lock docs presets clean
.PHONY: docker-train docker-demo docker-shell docker-build docker-check docker-pin docker-test docker-test-cuda
.PHONY: services-up services-down services-train services-backup services-restore

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

env: $(VENV)/recipe-lock.sha256  ## Create .venv from requirements/cpu.lock (LOCK=cuda on a GPU host)

ifneq ($(INSTALLED),$(LOCK))
.PHONY: $(VENV)/recipe-lock.sha256
endif
$(VENV)/recipe-lock.sha256: requirements/$(LOCK).lock requirements/tools.lock requirements/install pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install $(LOCK) $(VENV)

demo: env  ## Run the demo, from rows to a registered adapter, and print the results
	dvc repro
	@echo
	@recipe summary
	@echo "First            source .venv/bin/activate"

plan: env  ## Estimate what a recipe needs, before any download (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && recipe plan

repro: env  ## Run the stages of a recipe folder that are out of date (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && dvc repro

test: env  ## Run the fast tests: offline, on a CPU, at most 8 minutes
	pytest -n 2 --dist loadgroup -m "not slow and not docker and not browser and not gpu and not cuda_image" --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

browser: $(VENV)/browser-lock.sha256  ## Install the packages that control Chromium in the browser tests

$(VENV)/browser-lock.sha256: $(VENV)/recipe-lock.sha256 requirements/browser.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements/browser.lock
	@sha256sum requirements/browser.lock > $@

pictures: browser  ## Run the browser tests and regenerate the README's pictures (docs/pictures)
	PICTURES=docs/pictures pytest -m browser

test-all: env browser  ## Run all tests that this machine supports, except the longest
	pytest -n 2 --dist loadgroup -m "not long and not gpu and not cuda_image" --durations=20 --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

test-long: env browser  ## Run the tests that take longer than CI allows; docs/ has their last results
	pytest -m long --durations=0

lint: env  ## Check style and formatting
	ruff format --check .
	ruff check .

types: env  ## Check types
	mypy

format: env  ## Format the code
	ruff format .
	ruff check --fix .

bench: env  ## Compare training speed and memory with the tutorial's settings and `trl sft` (OPTIONS=..., see bench/train.py)
	python -m bench.train $(OPTIONS)

bench-prepare: env  ## Compare prepare with SFTTrainer: rows per second, memory (OPTIONS=..., see bench/prepare.py)
	python -m bench.prepare $(OPTIONS)

bench-pipeline: env  ## Time `recipe --help`, a no-op `dvc repro`, and startup until the first training step
	python -m bench.pipeline $(OPTIONS)

mlflow-ui: env  ## Browse the experiments on http://127.0.0.1:5000 (PORT=...; RECIPE=... links to that recipe's last run)
	@mkdir -p mlflow
	@echo "the last run: $$(cd $(or $(RECIPE),.) && recipe link --server http://127.0.0.1:$(PORT))"
	mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///mlflow/mlflow.db \
	  --artifacts-destination mlflow/artifacts

# In a container: the host needs Docker, and for a GPU also NVIDIA's driver and container toolkit, but no Python.

docker-train:  ## Check the host, build the image, plan and run a recipe on the GPU (RECIPE=presets/xgen-7b-alpaca)
	@LOCK=cuda docker/host train

docker-demo:  ## Run the demo in a container, on any Linux x86-64 host with Docker; no GPU needed
	@LOCK=cpu RECIPE=. docker/host train

docker-shell:  ## Open a shell in the image, in the recipe folder (LOCK=cpu without a GPU)
	@docker/host shell

docker-build:  ## Only build the image (LOCK=cpu for the image without CUDA)
	@docker/host build

docker-check:  ## Check this host and list what is missing
	@docker/host check

docker-pin:  ## Write the digest of the base image into docker/Dockerfile (TAG=bookworm-YYYYMMDD-slim)
	@docker/host pin

docker-test: env  ## Build the CPU image, and run the demo and tests in it (as root or a member of the group docker)
	pytest -m docker

docker-test-cuda: env  ## Build the CUDA image (downloads several GB) and check its packages
	pytest -s -m cuda_image

services-up:  ## Start MLflow on PostgreSQL (docker/compose.yaml) on http://127.0.0.1:5000
	@docker/services up

services-down:  ## Stop the services; the data is kept
	@docker/services down

services-train:  ## Run a recipe in the image and log to the services (RECIPE=..., COMMAND="recipe register")
	@docker/services train $(COMMAND)

services-backup:  ## Back up the database and the artifacts to a file (BACKUP=FILE)
	@docker/services backup "$(or $(BACKUP),services.backup)"

services-restore:  ## Restore the database and the artifacts from a file (BACKUP=FILE)
	@docker/services restore "$(or $(BACKUP),services.backup)"

# To take torch's CPU wheel from a folder instead of the PyTorch index: make lock FIND_LINKS=/folder
COMPILE := uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
CPU_TORCH = $(if $(FIND_LINKS),--find-links $(FIND_LINKS),--extra-index-url $(PYTORCH_INDEX))
lock: env  ## Compile the hashed locks from requirements/*.in
	$(COMPILE) $(CPU_TORCH) -o requirements/cpu.lock $(addprefix requirements/,cpu.in stages.in)
	$(COMPILE) -o requirements/cuda.lock $(addprefix requirements/,cuda.in stages.in)
	@# tools.lock is installed in addition to cpu.lock or cuda.lock, so it omits cpu.lock's packages and agrees with both.
	$(COMPILE) -c requirements/cpu.lock -c requirements/cuda.lock -o requirements/tools.lock requirements/tools.in \
	  $$(sed -n 's/^\([A-Za-z0-9_.-]*\)==.*/--no-emit-package \1/p' requirements/cpu.lock)
	$(COMPILE) -c requirements/cpu.lock -c requirements/tools.lock -o requirements/browser.lock requirements/browser.in
	$(COMPILE) $(CPU_TORCH) -c requirements/cpu.lock -c requirements/tools.lock --no-emit-package torch \
	  -o requirements/tasks.lock requirements/tasks.in
	$(COMPILE) -o requirements/server.lock requirements/server.in
	$(COMPILE) -o requirements/uv.lock requirements/uv.in

docs: env  ## Write docs/cli.md from the commands' help texts
	python docs/cli_reference.py

presets: env  ## Copy the root dvc.yaml to the presets; run it after editing that file
	@for folder in presets/*/; do sed "s|^  - root: \.$$|  - root: ../..|" dvc.yaml > "$$folder/dvc.yaml"; done

clean:  ## Remove the pipeline's outputs; DVC's cache and MLflow's store are kept
	rm -rf data models reports metrics .recipe
