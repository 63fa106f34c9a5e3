# `make help` lists the targets. All targets except the docker and services targets run in .venv, which
# requirements/install creates from hashed lock files. PYTHON=... selects the interpreter for .venv.
# LOCK defaults to the lock file from which .venv was installed. `make env LOCK=cuda` installs a different lock file.
INSTALLED := $(patsubst requirements/%.lock,%,$(shell sed 's/.* //' .venv/recipe-lock.sha256 2>/dev/null))
LOCK ?= $(or $(INSTALLED),cpu)
PORT ?= 5000
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTORCH_INDEX := https://download.pytorch.org/whl/cpu
export DVC_NO_ANALYTICS := 1
# DVC runs independent stages, and writes a new dvc.lock, in a set's iteration order. This seed fixes that order.
export PYTHONHASHSEED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false
export PATH := $(BIN):$(PATH)

.PHONY: help env demo plan repro verify sbom test test-all test-long browser pictures lint types format bench bench-prepare bench-pipeline mlflow-ui lock docs presets clean audit
.PHONY: docker-train docker-demo docker-verify docker-shell docker-build docker-check docker-pin docker-test docker-test-cuda
.PHONY: services-up services-down services-train services-serve services-backup services-restore

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

env: $(VENV)/recipe-lock.sha256  ## Create .venv from the lock files in requirements/ (LOCK=cuda on a GPU host)

ifneq ($(INSTALLED),$(LOCK))
.PHONY: $(VENV)/recipe-lock.sha256
endif
$(VENV)/recipe-lock.sha256: requirements/$(LOCK).lock requirements/tools.lock requirements/install pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install $(LOCK) $(VENV)

demo: env  ## Run the demo, from the rows to a registered adapter, and print the results
	dvc repro
	@echo
	@recipe summary
	@echo "First            source .venv/bin/activate"

plan: env  ## Estimate a recipe's requirements before downloading data or weights (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && recipe plan

repro: env  ## Run the outdated stages of a recipe folder (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && dvc repro

verify: env  ## Rebuild the current commit, and compare every output with dvc.lock (RECIPE=presets/NAME)
	cd $(or $(RECIPE),.) && recipe verify

sbom: env  ## Write a CycloneDX bill of materials of the installed packages (SBOM=FILE)
	recipe sbom $(if $(SBOM),"$(SBOM)")

test: env  ## Run the fast tests, offline and on a CPU (takes up to 8 minutes)
	pytest -n 2 --dist loadgroup -m "not slow and not long and not docker and not browser and not gpu and not cuda_image" --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

browser: $(VENV)/browser-lock.sha256  ## Install the packages that control Chromium in the browser tests

$(VENV)/browser-lock.sha256: $(VENV)/recipe-lock.sha256 requirements/browser.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements/browser.lock
	@sha256sum requirements/browser.lock > $@

pictures: browser  ## Run the browser tests and regenerate the README's pictures (docs/pictures)
	PICTURES=docs/pictures pytest -m browser

test-all: env browser  ## Run all tests that this machine supports, except the longest ones
	pytest -n 2 --dist loadgroup -m "not long and not gpu and not cuda_image" --durations=20 --cov=recipe --cov-report=term:skip-covered --cov-fail-under=90

test-long: env browser  ## Run the tests that take longer than CI allows; docs/ contains their latest results
	pytest -m long --durations=0

lint: env  ## Check style and formatting
	ruff format --check .
	ruff check .

types: env  ## Check types
	mypy

format: env  ## Format the code
	ruff format .
	ruff check --fix .

bench: env  ## Compare the recipe's training speed and memory use with other tools' (OPTIONS=..., see bench/train.py)
	python -m bench.train $(OPTIONS)

bench-prepare: env  ## Compare the speed and memory use of prepare and SFTTrainer (OPTIONS=..., see bench/prepare.py)
	python -m bench.prepare $(OPTIONS)

bench-pipeline: env  ## Time `recipe --help`, a `dvc repro` with nothing to run, and the startup of training
	python -m bench.pipeline $(OPTIONS)

mlflow-ui: env  ## Start the MLflow UI at http://127.0.0.1:5000 (PORT=...) and print the link to the last run (RECIPE=...)
	@mkdir -p mlflow
	@echo "the last run: $$(cd $(or $(RECIPE),.) && recipe link --server http://127.0.0.1:$(PORT))"
	mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///mlflow/mlflow.db \
	  --artifacts-destination mlflow/artifacts

# The targets below run in containers. The host needs Docker but not Python. To use a GPU, the host also needs the
# NVIDIA driver and the NVIDIA Container Toolkit.

docker-train:  ## Check the host, build the image, and plan and run a recipe on the GPU (RECIPE=presets/NAME)
	@LOCK=cuda docker/host train

docker-demo:  ## Run the demo in a container on any Linux x86-64 host with Docker; no GPU is needed
	@LOCK=cpu RECIPE=. docker/host train

docker-verify:  ## Rebuild the commit in a container, and compare every output (RECIPE=..., OPTIONS="--stage train", LOCK=cpu)
	@docker/host verify $(OPTIONS)

docker-shell:  ## Open a shell in the image, in the recipe folder (LOCK=cpu without a GPU)
	@docker/host shell

docker-build:  ## Build the image without running it (LOCK=cpu for the image without CUDA)
	@docker/host build

docker-check:  ## Check this host and list missing requirements
	@docker/host check

docker-pin:  ## Write the digest of the base image into docker/Dockerfile (TAG=bookworm-YYYYMMDD-slim)
	@docker/host pin

docker-test: env  ## Build the CPU image and run the demo and tests in it (as root or as a member of the docker group)
	pytest -m docker

docker-test-cuda: env  ## Build the CUDA image (downloads several GB) and check its packages
	pytest -s -m cuda_image

services-up:  ## Start MLflow with PostgreSQL (docker/compose.yaml) at http://127.0.0.1:5000
	@docker/services up

services-down:  ## Stop the services and keep their data
	@docker/services down

services-train:  ## Run a recipe, or COMMAND="recipe register", in the image, and log to the services (RECIPE=...)
	@docker/services train $(COMMAND)

services-serve:  ## Serve the adapter with vLLM (RECIPE=..., NAME=...), after `recipe export --to vllm`
	@docker/services serve

services-backup:  ## Back up the database and the artifacts to a file (BACKUP=FILE)
	@docker/services backup "$(or $(BACKUP),services.backup)"

services-restore:  ## Restore the database and the artifacts from a file (BACKUP=FILE)
	@docker/services restore "$(or $(BACKUP),services.backup)"

# To use torch's CPU wheel from a folder instead of the PyTorch index, run: make lock FIND_LINKS=/folder
COMPILE := $(VENV)/bootstrap/bin/uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
CPU_TORCH = $(if $(FIND_LINKS),--find-links $(FIND_LINKS),--extra-index-url $(PYTORCH_INDEX))
lock: env  ## Compile the hashed lock files from requirements/*.in
	$(COMPILE) $(CPU_TORCH) -o requirements/cpu.lock $(addprefix requirements/,cpu.in stages.in)
	$(COMPILE) -o requirements/cuda.lock $(addprefix requirements/,cuda.in stages.in)
	@# tools.lock is installed in addition to cpu.lock or cuda.lock. It therefore omits the packages in cpu.lock, and
	@# its versions are compatible with both lock files.
	$(COMPILE) -c requirements/cpu.lock -c requirements/cuda.lock -o requirements/tools.lock requirements/tools.in \
	  $$(sed -n 's/^\([A-Za-z0-9_.-]*\)==.*/--no-emit-package \1/p' requirements/cpu.lock)
	$(COMPILE) -c requirements/cpu.lock -c requirements/tools.lock -o requirements/browser.lock requirements/browser.in
	$(COMPILE) $(CPU_TORCH) -c requirements/cpu.lock -c requirements/tools.lock --no-emit-package torch \
	  -o requirements/tasks.lock requirements/tasks.in
	$(COMPILE) -o requirements/server.lock requirements/server.in
	$(COMPILE) -o requirements/llama.lock requirements/llama.in
	$(COMPILE) -o requirements/uv.lock requirements/uv.in

audit: env  ## Look up known vulnerabilities of the packages in the lock files (OSV=URL of another OSV service)
	python requirements/audit.py $(if $(OSV),--osv-url $(OSV))

docs: env  ## Generate docs/cli.md from the commands' help texts
	python docs/cli_reference.py

presets: env  ## Copy the root's dvc.yaml to the presets; run this target after editing the root's dvc.yaml
	@for folder in presets/*/; do sed "s|^  - root: \.$$|  - root: ../..|" dvc.yaml > "$$folder/dvc.yaml"; done

clean:  ## Remove the demo's outputs, but keep DVC's cache and MLflow's store
	rm -rf data models reports metrics .recipe
