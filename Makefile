# Every verb does its own set-up in .venv. EXTRA=cpu|gpu chooses the build by hand.
.DEFAULT_GOAL := help
.PHONY: help serve test test-system test-gpu gpu-here check fix bench image-test chaos docs clean

EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PORT ?= 8000
ARGS ?=
export VENV ?= .venv
BIN := $(VENV)/bin
SERVE := $(VENV)/.serve-$(EXTRA)
DEV := $(VENV)/.dev-$(EXTRA)

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(SERVE): pyproject.toml setup.py service/grpc/inference.proto scripts/install.sh
	scripts/install.sh $(EXTRA) serve
	@touch $@

$(DEV): pyproject.toml setup.py service/grpc/inference.proto scripts/install.sh
	scripts/install.sh $(EXTRA) serve,grpc,telemetry,train,dev
	@touch $@ $(SERVE)

serve: $(SERVE) ## the service on 127.0.0.1:$(PORT); ARGS="--log-level debug"
	$(BIN)/msmlp serve --port $(PORT) $(ARGS)

test: $(DEV) ## the test suite, on a CPU, with PyPI packages only
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

test-system: $(DEV) ## what needs Debian packages or CIFAR-10 (TEST_CIFAR10=FOLDER); nothing is skipped
	$(BIN)/python -m pytest -m system $(ARGS)

test-gpu: gpu-here $(DEV) ## every CUDA test; fails where there is no GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

gpu-here:
	@nvidia-smi >/dev/null 2>&1 || { echo "make test-gpu: there is no GPU here (nvidia-smi finds none)" >&2; exit 1; }

chaos: $(DEV) ## the property tests at length
	HYPOTHESIS_PROFILE=chaos $(BIN)/python -m pytest --timeout 1800 tests/service/engine tests/model/calibration tests/service/http/test_openapi.py $(ARGS)

check: $(DEV) ## lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(DEV) ## mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV) ## the engine against its bound and its baselines, in one run
	$(BIN)/msmlp bench engine $(ARGS)

docs: $(DEV) ## write the generated pages
	$(BIN)/python -m scripts.docs

image-test: ## build the container with Docker or buildah, and call it
	python3 -m scripts.image_test $(EXTRA)

clean: ## remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
