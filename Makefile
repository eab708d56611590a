.DEFAULT_GOAL := help
.PHONY: help install install-dev serve test test-all test-next fuzz soak check lint docs train bench metrics-page sizing-page coverage

export HF_HUB_OFFLINE ?= 1
BIN := .venv/bin

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install:  ## .venv with everything that serving on a CPU needs
	@scripts/install

install-dev:  ## and what tests and checks need
	@scripts/install --dev

serve: install  ## start the server on the embedded model
	@$(BIN)/forkjoin serve $(ARGS)

# Two processes for the tests, which fill two cores. TIER: see tests/tiers.py.
TIER ?= first
WORKERS ?= 2
IN_PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: install-dev  ## the tests that a change is judged by first (ARGS="tests/unit -k fork" for others)
	@$(BIN)/python -m pytest $(or $(ARGS),$(IN_PARALLEL) --tier $(TIER))

test-all: install-dev  ## every test
	@$(BIN)/python -m pytest $(IN_PARALLEL) --tier all $(ARGS)

# The contract of the seam and what stands behind it; forks and joins without a model, and on real engines.
NEXT = tests/unit/test_seam.py tests/unit/scheduler/vllm_seam tests/unit/server \
	$(patsubst %,tests/engine/test_%.py,by_hand admitting drafts cancelling recurrent offloaded layouts tools exact) \
	'tests/engine/test_matrix.py::test_fork_and_join_are_exact_on_each_runner_scheduling_and_with_tensor_parallelism[v2-async-1]' \
	'tests/engine/test_matrix.py::test_a_stitched_join_is_what_transformers_computes_and_is_restored_when_lost[v2-async-1]' \
	'tests/engine/test_matrix.py::test_a_stitched_join_is_what_transformers_computes_and_is_restored_when_lost[v1-async-2]' \
	tests/engine/test_stitched.py::test_what_follows_a_stitched_join_is_what_the_reference_says \
	'tests/engine/test_speculation.py::test_drafts_change_nothing_but_the_speed[v1-async-draft_model-threadweaver]'

test-next: install-dev  ## the seam's tests on the next vLLM's Python, over this one's CPU libraries
	@next=$$(scripts/install-next) && PYTHONPATH=$$next $(BIN)/python -m pytest $(or $(ARGS),$(IN_PARALLEL) --tier ci $(NEXT))

lint: install-dev  ## formatter, linter, type checker
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: install-dev  ## build the docs site into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

coverage: install-dev  ## lines and branches that the tests without an engine run
	@$(BIN)/python -m coverage run -m pytest --quiet tests/unit tests/client
	@$(BIN)/python -m coverage report

soak: install-dev  ## mixed traffic with faults on the real server, for 20 minutes (MINUTES=2)
	@$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),20) $(ARGS)

fuzz: install-dev  ## a million random inputs (ARGS="--guided sequences" for those that coverage guides)
	@$(BIN)/python -m tests.fuzz $(ARGS)

check: lint test  ## what a change must pass first; .ci/run runs more

train: install-dev  ## train a model like the embedded one from scratch (about two hours on one core)
	@$(BIN)/python -m training.train --out build/training --threads 1 --steps 6000 --tokens-per-batch 4096 $(ARGS)

bench: install-dev  ## fork/join against client-side loops and sequential decoding (ARGS="run --quick")
	@PYTHONPATH=$(CURDIR) $(BIN)/forkjoin bench $(or $(ARGS),run)

metrics-page: install-dev  ## docs/metrics.md, from the metrics' definitions
	@$(BIN)/python -m scripts.metrics_page

sizing-page: install-dev  ## docs/sizing.md, with the numbers of `forkjoin doctor sizing`
	@$(BIN)/python -m scripts.sizing_page
