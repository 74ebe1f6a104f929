# Every verb sets up .venv first. EXTRA=cpu|gpu overrides the choice of builds.
.DEFAULT_GOAL := help
.PHONY: help serve test test-system test-gpu test-ray gpu-here check fix bench image-test chaos soak docs clean

EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PORT ?= 8000
ARGS ?=
export VENV ?= .venv
# With the builds for GPUs it serves from a GPU, or fails: never quietly from the CPU.
DEVICE := $(if $(filter gpu,$(EXTRA)),MSMLP_DEVICE=$${MSMLP_DEVICE:-cuda} )
BIN := $(VENV)/bin
SERVE := $(VENV)/.serve-$(EXTRA)
DEV := $(VENV)/.dev-$(EXTRA)
RAY := $(VENV)/.ray-$(EXTRA)

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(SERVE): pyproject.toml setup.py service/grpc/inference.proto scripts/install.sh
	scripts/install.sh $(EXTRA) serve
	@touch $@

$(DEV): pyproject.toml setup.py service/grpc/inference.proto scripts/install.sh
	scripts/install.sh $(EXTRA) serve,grpc,telemetry,train,dev
	@touch $@ $(SERVE)

$(RAY): pyproject.toml setup.py service/grpc/inference.proto scripts/install.sh
	scripts/install.sh $(EXTRA) serve,grpc,telemetry,train,dev,ray
	@touch $@ $(DEV) $(SERVE)

serve: $(SERVE) ## serve on 127.0.0.1:8000; PORT=9000 ARGS="--log-level debug"
	$(DEVICE)$(BIN)/msmlp serve --port $(PORT) $(ARGS)

# Tests wait for much of their time: four workers keep two cores busy.
test: $(DEV) ## run the test suite on a CPU, with PyPI packages only
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder $(ARGS)

test-system: $(DEV) ## run the tests that need Debian packages or CIFAR-10 (TEST_CIFAR10=FOLDER), or train as a page says
	$(BIN)/python -m pytest -m system -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

test-gpu: gpu-here $(DEV) ## run the CUDA tests; fails without a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-ray: $(RAY) ## run the tests on a Ray cluster of two nodes on this machine; Ray takes 300 MB more in .venv
	$(BIN)/python -m pytest -m ray tests/ray tests/msmlp/test_deploy.py $(ARGS)

gpu-here:
	@nvidia-smi >/dev/null 2>&1 || { echo "make test-gpu: needs a GPU, and nvidia-smi finds none" >&2; exit 1; }

chaos: $(DEV) ## let everything go wrong at length: processes, disks, clients, bombs; the property tests too
	HYPOTHESIS_PROFILE=chaos $(BIN)/python -m pytest --timeout 1800 -m "not system and not gpu" tests/service/engine tests/service/telemetry/test_totals.py tests/model/calibration tests/service/http/test_openapi.py tests/service/http/routes/test_decoding.py tests/e2e/test_frontends.py tests/e2e/test_hangs.py tests/e2e/test_end.py tests/e2e/test_json_bombs.py tests/e2e/test_reload_faults.py tests/e2e/test_secrets.py tests/chaos tests/fuzz $(ARGS)

soak: $(DEV) ## half an hour at 80 % of capacity, with a reload and kills; ARGS="--minutes 2"
	$(BIN)/python -m tests.chaos.soak $(ARGS)

check: $(DEV) ## check lint, format, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(DEV) ## fix what the linter and formatter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV) ## measure the engine against its upper bound and baselines
	$(BIN)/msmlp bench engine $(ARGS)

docs: $(DEV) ## write the generated files of the documentation
	$(BIN)/python -m scripts.docs

image-test: ## build the container image with Docker or buildah, and test it
	python3 -m scripts.image_test $(EXTRA)

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) .wheel build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
