# Every target makes .venv itself where it is missing; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv quickstart same-bits test test-all test-grid lint ladder bench-data bench-model bench-overhead bench-reduction bench-startup bench-tracking clean

help: ## say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## make .venv with the versions of infra/requirements.lock

$(VENV)/.installed: pyproject.toml infra/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "PYTHON: got $$($(PYTHON) --version 2>&1); rayception runs on Python 3.11 to 3.13. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(VENV): python cannot make a virtual environment; it needs the venv module. On Debian and Ubuntu: apt-get install python3-venv." >&2; exit 2; }
	@echo "Installing into $(VENV) (about two minutes, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint infra/requirements.lock --editable '.[dev]'
	@touch $@

quickstart: venv ## train inception_v3 on real digits with Ray, S3 and MLflow on this machine
	@$(BIN)/rayception run jobs/quickstart.yaml

same-bits: venv ## train one job on 1, 2 and 3 ranks, one killed, one resumed: three equal digests
	@$(BIN)/python -m tests.bench.same_bits

ladder: venv ## the paper's ladder on digits, three seeds a row (half an hour), under one MLflow run
	@$(BIN)/rayception sweep jobs/ladder/[1-8]-*.yaml --seeds 3

# Unit tests run beside those with the real services, which run one after the other.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test: venv ## what to run before trusting a change: every promise, with the real services
	@$(PYTEST) -m "not exhaustive and not grid"

test-all: venv ## everything: each fault, a hundred kills, cold environments
	@$(PYTEST) -m "not grid"

test-grid: venv ## every network, with 1 to 12 micro-batches a step, on 1 to 8 ranks: the same bits
	@$(PYTEST) -m grid

lint: venv ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench-data: venv ## images per second of one core, ours beside others; MB/s from S3
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement infra/requirements-bench.txt
	@$(BIN)/python -m tests.bench.bench_data

bench-model: venv ## a training step of inception_v3, ours beside torchvision's
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement infra/requirements-bench.txt
	@$(BIN)/python -m tests.bench.bench_model

bench-overhead: venv ## a whole run beside a bare torch DDP loop on the same batches
	@$(BIN)/python -m tests.bench.bench_overhead

bench-reduction: venv ## what the exact sum of gradients costs a step, beside DDP's all-reduce
	@$(BIN)/python -m tests.bench.bench_reduction

bench-startup: venv ## where a run's time goes beside its steps, with a cold and a warm stack
	@$(BIN)/python -m tests.bench.bench_startup

bench-tracking: venv ## what metrics of every step cost a step
	@$(BIN)/python -m tests.bench.bench_tracking

clean: ## remove .venv and caches; the stack's data in .rayception stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
