# `make help` lists what there is.
PYTHON ?= $(shell command -v python3 || command -v python)
PORT ?= 8000
CONFIG ?= models.yml
BIN := .venv/bin
PACKAGES := $(wildcard services/*/quintet*)

# What is given behind make, and is no variable of the environment as PIP_INDEX_URL is one, must have a meaning here.
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(if $(findstring _,$(name)),,$(name))))
UNKNOWN := $(filter-out PYTHON PORT CONFIG ARGS UPGRADE BIN PACKAGES SHELL,$(GIVEN))
$(if $(UNKNOWN),$(error There is no $(UNKNOWN) here. There are PORT, CONFIG, PYTHON, ARGS, UPGRADE; "make help" says for what))

.DEFAULT_GOAL := help
.PHONY: help install up test test-fast lint lock clean bench-stack bench-embed bench-tts bench-vision bench-router \
	bench-affinity bench-chaos bench-soak fuzz-router bench-chat conformance gpu-check containers

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 23

install: ## Make .venv and install everything that is locked, as the other targets do (the first time minutes, network)
ifeq ($(PYTHON),)
	$(error Python 3.11 or newer is needed, and no python3 was found)
endif
	@$(PYTHON) scripts/bootstrap.py

up: install ## Start all services behind the router: make up [PORT=8000] [CONFIG=models.yml]
	@exec $(BIN)/quintet serve $(CONFIG) --port $(PORT)

test: install ## Run all tests: unit, contract, and end to end on the embedded models (minutes)
	@$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test-fast: install ## Run all tests but those that start the whole stack (minutes)
	@$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --ignore=tests/e2e

containers: install ## Build the images and test them: the stack on CPUs, in trouble, and what Kubernetes gets (minutes; Docker, network)
	@$(BIN)/pytest -m docker tests/compose $(wildcard tests/helm)

lint: install ## Check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy $(PACKAGES)

docs-models: install ## Write docs/models.md and models.zh-CN.md from the families that tests/models tries
	@cd tests && ../$(BIN)/python -m models.document

bench-stack: install ## Time to the first token, memory, 32 chat clients at once (minutes)
	@$(BIN)/python bench/stack/run.py

bench-embed: install ## Compare embeddings with a plain loop and infinity-emb (minutes; the first time network)
	@$(BIN)/python bench/embed/run.py

bench-tts: install ## Compare speech with Piper's own server, and the audio libraries (minutes; the first time network)
	@$(BIN)/python bench/tts/run.py

bench-vision: install ## Compare images with the bare pipeline; writes docs/benchmarks.md (minutes)
	@$(BIN)/python bench/vision/run.py --write

bench-router: install ## Compare the router with others; writes docs/benchmarks.md (minutes; network)
	@$(BIN)/python bench/router/run.py --write

fuzz-router: install ## Requests made from the router's OpenAPI document by schemathesis (minutes; the first time network): make fuzz-router [ARGS='--url URL']
	@$(BIN)/python bench/router/fuzz.py $(ARGS)

bench-affinity: install ## Simulate how conversations keep to their replicas; writes docs/benchmarks.md
	@$(BIN)/python bench/affinity/run.py --write

bench-chat: install ## Compare the chat service with transformers serve, vLLM and llama.cpp; writes docs/benchmarks.md (minutes; the first time network)
	@$(BIN)/python bench/chat/run.py --write

conformance: install ## Other projects' suites and clients against the services; writes docs/chat.md (minutes; the first time network)
	@$(BIN)/python bench/conformance/run.py --write $(ARGS)

gpu-check: install ## Correctness and speed on this machine's GPU (minutes; GPU): make gpu-check [ARGS='--only chat']
	@$(BIN)/python bench/gpu/run.py $(ARGS)

bench-chaos: install ## Kill, freeze and confuse the router's replicas for three minutes: make bench-chaos [ARGS='--clients 50']
	@$(BIN)/python bench/chaos/run.py $(ARGS)

bench-soak: install ## Half an hour of ordinary work: the router's memory, lost requests: make bench-soak [ARGS='--minutes 5']
	@$(BIN)/python bench/chaos/soak.py $(ARGS)

lock: install ## Write requirements.lock anew (network): make lock [UPGRADE=1]
	@UPGRADE=$(UPGRADE) $(BIN)/python scripts/lock.py

clean: ## Remove .venv and everything that tools have left
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
	find services tests scripts -name __pycache__ -type d -exec rm -rf {} +
