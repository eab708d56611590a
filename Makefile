# The front door. `make` alone lists what there is.

BIN := .venv/bin
SOURCES := $(wildcard server scheduler training benchmarks tests)

# Nothing here ever asks a model hub, and the tests share a small machine.
TEST_ENV := HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1

.DEFAULT_GOAL := help
.PHONY: help install dev serve test check lint format train bench

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: ## Install what serving needs into .venv (the CPU backend, locked)
	@scripts/install

dev: ## Install what the tests and linters need as well
	@scripts/install --dev

serve: install ## Serve the embedded model (options: make serve ARGS="--port 8001")
	@exec $(BIN)/forkjoin serve $(ARGS)

test: dev ## Run the tests (options: make test ARGS="-k lock")
	@$(TEST_ENV) $(BIN)/python -m pytest $(ARGS)

check: lint test ## All that CI checks: format, lint, types, tests

lint: dev ## Check format, lint and types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy $(SOURCES)

format: dev ## Rewrite the sources as the format and the fixable lints want them
	$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

train: dev ## Train the embedded model from scratch (options: ARGS="--out DIR")
	@$(BIN)/python -m training.train $(ARGS)

bench: dev ## Measure every number the README names
	@$(BIN)/python -m benchmarks $(ARGS)
