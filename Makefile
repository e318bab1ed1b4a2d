# Each target first creates what it needs, and is quick the second time. `make help` lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# A further index in which pip looks for PyTorch's CPU build; see "Set-up" in the README.
TORCH_INDEX ?=
# Further options of `make test`, for pytest.
PYTEST_OPTIONS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

BIN := $(VENV)/bin
INSTALL := tools/install_packages.py
SOURCES := clients/python services router mesh tests benchmarks tools
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready
# int8 takes the longest, so it goes first: `make -j 2` builds the others beside it.
CLASSIFIERS := $(addprefix models/.efficientnet-lite0-,int8 fp32 bf16)
MODELS_READY := $(CLASSIFIERS) models/.smollm2
# A change of the builder's code runs it again; it rebuilds only models whose recipe has changed.
BUILDERS := $(wildcard services/tidegate/serving/build/*.py)
PEERS_READY := .venv-peers/.ready
LITELLM_READY := .venv-litellm/.ready

.DEFAULT_GOAL := help
.PHONY: help up models servers cluster test test-long fuzz fuzz-istiod check format bench bench-vision bench-llm bench-gateway bench-shifts bench-hop bench-evidence bench-rollouts bench-traces bench-cluster bench-weights soak protos dashboards lock clean
.DELETE_ON_ERROR:

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(RUN_READY) $(MODELS_READY) ## Build the models and serve them behind Envoy, until Ctrl-C.
	@$(BIN)/tidegate up

models: $(MODELS_READY) ## Build the models for `make up`, the tests and the benchmarks.

servers: | $(VENV)/bin/python ## Build the Kubernetes and Istio servers that the tests run.
	@$(BIN)/python tools/build_servers.py

cluster: $(DEV_READY) $(MODELS_READY) servers ## Run Kubernetes and Istio with the models, as root, until Ctrl-C.
	@PYTHONPATH=tools $(BIN)/python -m cluster

test: $(DEV_READY) $(MODELS_READY) ## Run every test that this machine can run.
	@$(BIN)/python tools/build_servers.py || echo '── set-up: the tests that need these are skipped'
	@echo '── test: pytest'
	@$(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-long: $(DEV_READY) $(MODELS_READY) ## Run the tests that take minutes, such as 300 kills of the router.
	@$(BIN)/python -m pytest -m long $(PYTEST_OPTIONS)

fuzz: $(DEV_READY) ## Try fresh examples of every property test: FUZZ=PATH for some, SEED=N to repeat a run.
	@seed=$(or $(SEED),$$RANDOM$$RANDOM); again="make fuzz SEED=$$seed$(if $(FUZZ), FUZZ=$(FUZZ))"; \
	echo "── fuzz: seed $$seed; \`$$again\` repeats this run"; \
	$(BIN)/python -m pytest $(FUZZ) -m hypothesis --hypothesis-profile=fuzz --hypothesis-seed=$$seed \
	  -o timeout=3600 || { echo "── fuzz: failed; \`$$again\` repeats this run"; exit 1; }

fuzz-istiod: ## Compare the compiler with a real istiod on fresh random objects: SEED=N repeats a run.
	@$(MAKE) --no-print-directory fuzz FUZZ='tests/cluster/test_compiler_like_istiod.py -k random'

check: $(DEV_READY) ## Check formatting, lint, types, layers, protos and generated code.
	@echo '── check: dashboards'
	@$(BIN)/python tools/generate_dashboards.py --check
	@echo '── check: ruff'
	@$(BIN)/ruff format --check --quiet $(SOURCES) || { echo 'run `make format`'; exit 1; }
	@$(BIN)/ruff check --quiet $(SOURCES)
	@echo '── check: mypy'
	@$(BIN)/mypy --no-error-summary
	@echo '── check: layers'
	@$(BIN)/lint-imports --no-cache > $(VENV)/layers.txt || { cat $(VENV)/layers.txt; exit 1; }
	@echo '── check: protos'
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/buf build -o $(VENV)/protos.binpb
	@$(BIN)/buf breaking $(VENV)/protos.binpb --against protos/released.binpb
	@$(BIN)/python tools/generate_protos.py --check
	@$(BIN)/python tools/generate_rollout_reference.py --check
	@$(BIN)/python tools/generate_prometheus_rules.py --check
	@echo '── check: clean'

format: $(DEV_READY) ## Format the code and the protos.
	@$(BIN)/ruff format --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet --fix $(SOURCES)
	@$(BIN)/buf format --write

bench: bench-vision bench-llm bench-gateway bench-hop bench-shifts bench-evidence bench-rollouts ## Run every benchmark.

bench-vision: $(DEV_READY) $(MODELS_READY) $(PEERS_READY) ## Measure the CNN server beside its baseline and its peers.
	@$(BIN)/python benchmarks/vision/run.py

bench-llm: $(DEV_READY) $(MODELS_READY) ## Measure the LLM server beside its baseline, `AsyncLLM` alone, and vLLM's OpenAI server.
	@$(BIN)/python benchmarks/llm/run.py

bench-gateway: $(DEV_READY) $(MODELS_READY) $(LITELLM_READY) ## Measure the gateway beside gRPC, vLLM's OpenAI server and LiteLLM's proxy.
	@$(BIN)/python benchmarks/gateway/run.py

bench-shifts: $(DEV_READY) $(MODELS_READY) ## Change traffic in every way under load; fail if a request is lost. Twenty minutes.
	@$(BIN)/python benchmarks/mesh/shifts.py

bench-hop: $(DEV_READY) $(MODELS_READY) ## Measure the latency that the hop through Envoy adds to a call.
	@$(BIN)/python benchmarks/mesh/hop.py

bench-evidence: $(DEV_READY) ## Simulate rollouts: false aborts, detection, and other tools' rules. Minutes.
	@$(BIN)/python benchmarks/evidence/run.py

bench-rollouts: $(DEV_READY) ## Run 10, 100 and 1,000 rollouts in one router: processor, memory, lateness.
	@$(BIN)/python benchmarks/rollouts/scale.py

bench-traces: $(DEV_READY) ## Analyse 100,000 spans; fail if that takes 10 s of the processor.
	@$(BIN)/python benchmarks/traces/run.py

bench-cluster: $(DEV_READY) servers ## Run the router beside Argo Rollouts on real Kubernetes and Istio, as root. An hour.
	@$(BIN)/python tools/build_servers.py rollouts-controller
	@$(BIN)/python benchmarks/cluster/run.py

bench-weights: $(DEV_READY) servers ## Measure how soon a written split is in force on a cluster, as root. Minutes.
	@$(BIN)/python benchmarks/cluster/weights.py

soak: $(DEV_READY) $(MODELS_READY) ## Load both servers for ten minutes; check memory and statuses.
	@$(BIN)/python benchmarks/soak.py

protos: $(DEV_READY) ## Make all that is generated: stubs, the schema and tables of rollouts, Prometheus' rules.
	@$(BIN)/python tools/generate_protos.py
	@$(BIN)/python tools/generate_rollout_reference.py
	@$(BIN)/python tools/generate_prometheus_rules.py

dashboards: $(DEV_READY) ## Make the Grafana dashboards from tools/dashboards.
	@$(BIN)/python tools/generate_dashboards.py

lock: $(DEV_READY) ## Pin every package.
	@$(BIN)/python tools/lock_requirements.py

clean: ## Remove environments, models, results and caches.
	rm -rf .venv .venv-peers .venv-litellm models bench-results .tidegate dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo 'The pinned packages are for Python 3.11; name one with PYTHON=/path/to/python3.11.'; exit 1; }
	@echo '── set-up: virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV)

$(RUN_READY): requirements/run.txt requirements/torch-cpu.txt requirements/torch-cuda.txt \
    pyproject.toml | $(VENV)/bin/python
	@echo '── set-up: packages of requirements/run.txt (a few minutes the first time)'
	@$(BIN)/python $(INSTALL) requirements/run.txt --tidegate --torch-index='$(TORCH_INDEX)'
	@$(BIN)/python tools/restore_packages.py
	@touch $@

$(DEV_READY): requirements/dev.txt $(RUN_READY)
	@echo '── set-up: packages of requirements/dev.txt'
	@$(BIN)/python $(INSTALL) requirements/dev.txt
	@touch $@

$(CLASSIFIERS): models/.efficientnet-lite0-%: $(RUN_READY) $(BUILDERS)
	@echo '── models: EfficientNet-Lite0 in $*'
	@$(BIN)/tidegate model build efficientnet-lite0 --precision $*
	@touch $@

models/.smollm2: $(RUN_READY) $(BUILDERS)
	@echo '── models: SmolLM2'
	@$(BIN)/tidegate model build smollm2
	@touch $@

$(PEERS_READY): requirements/peers.txt
	@command -v h2load > /dev/null || { echo 'h2load is missing: install the package nghttp2-client'; exit 1; }
	@echo '── set-up: the peers, in .venv-peers'
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python $(INSTALL) requirements/peers.txt
	@touch $@

$(LITELLM_READY): requirements/litellm.txt
	@echo '── set-up: LiteLLM, in .venv-litellm'
	@$(PYTHON) -m venv .venv-litellm
	@.venv-litellm/bin/python $(INSTALL) requirements/litellm.txt
	@touch $@
