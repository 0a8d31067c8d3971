# `make demo` and `make test` are all that a new machine needs: each makes the environment if it is not there.
PYTHON ?= python3.11
VENV ?= .venv
# The CPU build is enough for everything but `make test-gpu` and `make bench-gpu`.
TORCH ?= torch==2.13.0
RUN := $(abspath $(VENV))/bin/python
NATIVE_BUILD ?= build/native
# A process a core, each with one thread: files of tests go to whichever is free.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses=auto --dist=loadfile

.PHONY: help install demo test test-all test-gpu bench bench-gpu lint format types check docs native clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## make the environment

# torch comes first and by itself, so that no later package chooses another build of it.
$(VENV)/.installed: pyproject.toml CMakeLists.txt $(wildcard csrc/*)
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	@$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install --quiet "$(TORCH)"
	$(RUN) -m pip install --quiet --editable ".[train,hf,eval,rl,signals,gguf,images,export,retrieval]" --group dev
	@touch $@

demo: install  ## train a small Mamba beside a Transformer, compare, generate (about five minutes)
	$(RUN) examples/demo.py

test: install  ## the tests of every change
	$(PYTEST) -m "not slow and not gpu" tests

test-all: install  ## those, and the slow ones
	$(RUN) -m pip install --quiet --group test-all
	$(PYTEST) -m "not gpu" tests

test-gpu: install  ## operators and parity on a CUDA device
	$(RUN) -m pytest -m gpu tests

bench: install  ## every benchmark that needs no GPU; tables and results in benchmarks/results
	$(RUN) -m pip install --quiet --group bench
	$(RUN) -m benchmarks

bench-gpu: install  ## the benchmarks of a CUDA device
	$(RUN) -m benchmarks.gpu

lint: install  ## style, and that imports go only down the house
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(abspath $(VENV))/bin/lint-imports

format: install  ## put the code in its format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

types: install  ## types of the package
	$(RUN) -m mypy

check: lint types test  ## what CI runs

docs: install  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

native:  ## build the CPU kernels in place, for work on csrc/
	cmake -S . -B $(NATIVE_BUILD) -G Ninja
	cmake --build $(NATIVE_BUILD)
	install $(NATIVE_BUILD)/libstatescan_cpu.* src/statescan/kernels/  # a new file: running processes keep the old one

clean:  ## remove what was built
	rm -rf build dist site $(VENV)/.installed src/statescan/kernels/libstatescan_cpu.*
