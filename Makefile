# Two commands for newcomers, `make demo` and `make test`; both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all coverage mutations lint timm-tests format wheel clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/' | expand -t 18

setup: $(READY) ## create .venv with torch, the detection stack and this project

$(READY): tools/setup.sh requirements/constraints.txt requirements/openmmlab.txt pyproject.toml
	PYTHON=$(PYTHON) tools/setup.sh $(VENV)
	@touch $@

demo: $(READY) ## make a small data set, train a Mask R-CNN on it, evaluate, draw predictions and memory (about 15 minutes on 2 cores)
	$(BIN)/python tools/demo.py

test: $(READY) lint ## format check, lint, types, and all tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile -rs --durations=20

test-all: $(READY) lint ## the same with what takes minutes: the long soak, all kills, thousands of random networks
	$(BIN)/python -m pytest -n 2 --dist loadfile -rs --durations=20 --long

coverage: $(READY) ## what no test of the engine and the models reaches
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov revbifpn --cov-report term-missing:skip-covered tests/reversible tests/models

mutations: $(READY) ## break the code in a copy, fault by fault, and look for the tests that fail (long)
	$(BIN)/python tools/mutate.py --jobs 2

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

timm-tests: $(READY) ## run the tests that timm keeps for its own models on S0 to S6 (downloads timm's source)
	$(BIN)/python tools/timm_suite.py -k "not pretrained"

format: $(READY) ## rewrite the code as ruff formats it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(READY) ## build the wheel into dist/, with configs and model index inside
	$(BIN)/python -m pip wheel . --no-deps --no-build-isolation -w dist

clean: ## remove what the demo and the tools wrote (not .venv)
	rm -rf work_dirs data/demo_digits build dist .pytest_cache .mypy_cache .ruff_cache
