# `make demo` and `make test` are all a new machine needs: each makes the environment if it is not there.
PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= torch==2.13.0
RUN := $(VENV)/bin/python
NATIVE_BUILD ?= build/native

.PHONY: install demo test test-all test-gpu bench bench-gpu lint format types check docs native clean

install: $(VENV)/.installed

# torch comes first and by itself, so that no later package chooses another build of it.
$(VENV)/.installed: pyproject.toml CMakeLists.txt $(wildcard csrc/*)
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install --quiet "$(TORCH)"
	$(RUN) -m pip install --quiet --editable ".[train,hf,eval]" --group test --group lint --group docs
	@touch $@

native:  ## build the CPU kernels in place, for work on csrc/
	cmake -S . -B $(NATIVE_BUILD) -G Ninja
	cmake --build $(NATIVE_BUILD)
	cp $(NATIVE_BUILD)/libstatescan_cpu.* src/statescan/kernels/
