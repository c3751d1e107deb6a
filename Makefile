# Everything starts here. Each target sets up what it needs, once; see scripts/setup.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-train test test-all lint format types bench fuzz conformance lock clean

BIN := .venv/bin
# On all cores; tests/conftest.py says which tests run one at a time.
PARALLEL := -n auto

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## run the bundled example end to end: private, checked before and proven after (SIMULATED)
	@scripts/setup demo
	@$(BIN)/confide demo

demo-train: ## train a model privately, use it in an agent, verify the whole chain (SIMULATED)
	@scripts/setup demo-train
	@$(BIN)/confide demo train

test: ## the fast tests
	@scripts/setup test
	@$(BIN)/python -m pytest -q -m "not slow" $(PARALLEL)

test-all: ## all tests, the long ones too
	@scripts/setup test
	@$(BIN)/python -m pytest -q $(PARALLEL)

lint: ## ruff: rules and format
	@scripts/setup checks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: ## let ruff rewrite the files
	@scripts/setup checks
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: ## mypy, strict
	@scripts/setup checks
	@$(BIN)/mypy
	@for file in tests/*/conftest.py; do $(BIN)/mypy $$file || exit 1; done

bench: ## measure against the budgets; prints what was met and what was not
	@scripts/setup test
	@$(BIN)/python -m bench

fuzz: ## a minute of hostile bytes at every parser (FUZZ_SECONDS=n for longer)
	@scripts/setup test
	@$(BIN)/python -m fuzz --seconds $(or $(FUZZ_SECONDS),60)

VECTORS := $(or $(CONFIDE_VECTORS),../shared/vectors)
STAGES := tdx snp nvidia eventlog dstack

conformance: ## our vectors and the shared ones through the verifier, and second implementations beside it
	@scripts/setup test
	@$(BIN)/python -m conformance conformance/vectors/*
	@if [ -d $(VECTORS) ]; then $(BIN)/python -m conformance $(addprefix $(VECTORS)/,$(STAGES)); \
	else echo "SHARED VECTORS ABSENT: only our own ran (CONFIDE_VECTORS names their folder)"; fi
	@$(BIN)/python -m pytest -q tests/conformance tests/vectors tests/differential

lock: ## write the lock files anew, keeping versions (needs uv)
	@scripts/lock

clean: ## remove what the targets made in this folder
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
