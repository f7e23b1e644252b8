# `make demo` and `make test` set everything up by themselves; they need Python >= 3.11, pip, make and a C++17 compiler. Without
# the compiler the demo runs on the torch reference, and the tests fail. The demo installs potq alone, the rest adds [dev].
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SCHEME ?= apot4
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export TQDM_DISABLE ?= 1

CXX_FILES := $(sort $(shell find csrc benchmarks/peers src/potq/hardware/c tests/hardware firmware -name '*.cpp' -o -name '*.[ch]'))
SHELL_FILES := .ci/run $(shell find csrc tools -name '*.sh')
LIBRARY_FILES := csrc/CMakeLists.txt $(filter-out csrc/tests/% benchmarks/% src/% tests/% firmware/%,$(CXX_FILES))
TOOLS := PATH="$(abspath $(BIN)):$$PATH"
# a process a core, four at most: some tests take gigabytes. Neighbours share fixtures, so each process begins with a stretch
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
CHECK_KERNELS := $(TOOLS) csrc/tests/check.sh
# $(call STATIC,ARCHITECTURE,OPTIONS)
STATIC = $(TOOLS) cmake -S csrc -B build/static-$(1) -DPOTQ_STATIC=ON $(2) && \
  $(TOOLS) cmake --build build/static-$(1) --target potq-run --parallel && cp build/static-$(1)/potq-run build/potq-run-$(1)
CROSS := aarch64-linux-gnu-g++
FUZZ_SECONDS ?= 600
FUZZ_CXX ?= $(notdir $(firstword $(wildcard /usr/bin/clang++ /usr/bin/clang++-*)))

.PHONY: demo test selftest lint format docs prose bench gates bench-smoke tables tables-check pictures check-deep fuzz potq-run firmware firmware-test hardware wheel clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py --scheme $(SCHEME) --setup-times $(VENV)/.demo

# an install without the compiled library (a compiler that was missing or failed) would skip its tests: not here
test: selftest
	@$(BIN)/python -c 'import sys; from potq.native import missing; sys.exit(missing())' || \
	  { rm $(VENV)/.demo; echo 'Run make again: it installs potq anew.' >&2; exit 1; }
	$(PYTEST) --cov --cov-report=term --cov-fail-under=90

# the compiled library by its own tests, without Python, and potq-run: seconds, once it is built
selftest: $(VENV)/.ready
	$(CHECK_KERNELS) native program

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/shellcheck $(SHELL_FILES)
	$(TOOLS) actionlint $(wildcard .github/workflows/*.yml)
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/hadolint --ignore DL3008 deploy/Containerfile  # Debian keeps no old versions to pin

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# the site, build/site/index.html; a warning is an error
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d build/doctrees . build/site

# how long the sentences of README and docs are; fails if they are too long. Needs nothing but Python
prose:
	$(PYTHON) tools/prose.py

# the figures of README and docs; most want the texts and models of POTQ_DATA, or further packages (see benchmarks/README.md)
bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks.ptq.quantize_speed
	$(BIN)/python -m benchmarks.ptq.apot_search --perplexity
	$(BIN)/python -m benchmarks.ptq.signed_tables
	$(BIN)/python -m benchmarks.ptq.token_weights
	$(BIN)/python -m benchmarks.ptq.scale_methods
	$(BIN)/python -m benchmarks.ptq.default --text test
	$(BIN)/python -m benchmarks.ptq.rtn_table
	$(BIN)/python -m benchmarks.kernels.activations
	$(BIN)/python -m benchmarks.kernels.cpu
	$(BIN)/python -m benchmarks.kernels.call
	$(BIN)/python -m benchmarks.ptq.cost
	$(BIN)/python -m benchmarks.ptq.ablation
	$(BIN)/python -m benchmarks.ptq.table --work build/bench/ptq
	$(BIN)/python -m benchmarks.gpu.instructions
	$(BIN)/python -m benchmarks.qat.step
	$(BIN)/python -m benchmarks.qat.tinystories
	$(BIN)/python -m benchmarks.qat.nanogpt
	$(BIN)/python -m benchmarks.qat.smollm2 --work build/bench/qat
	$(BIN)/python -m benchmarks.first_hour.measure
	$(BIN)/python -m benchmarks.models.table
	$(BIN)/python -m benchmarks.models.mixtral --work build/bench/mixtral
	for part in experts ranks time memory; do $(BIN)/python -m benchmarks.scale.measure $$part --work build/bench/scale; done
	$(BIN)/python -m benchmarks.decode.speed --work build/bench/decode
	$(BIN)/python -m benchmarks.decode.blocks_8b --work build/bench/decode
	$(BIN)/python -m benchmarks.serve.measure --work build/bench/decode
	$(BIN)/python -m benchmarks.decode.agreement
	$(BIN)/python -m benchmarks.decode.tasks --work build/bench/decode
	$(BIN)/python -m benchmarks.export.measure --work build/bench/export --speed 5

# circuits: area, delay, toggles, a core with a co-processor, and what is worth building. What it wants says docs/gates.md
gates: $(VENV)/.deep
	$(BIN)/python -m benchmarks.hardware.gates
	$(BIN)/python -m benchmarks.hardware.coprocessor --work build/bench/coprocessor
	$(BIN)/python -m benchmarks.hardware.frontier --work build/bench/hardware

# whether this machine is as fast as it was, in two minutes
bench-smoke: $(VENV)/.ready
	$(BIN)/python -m benchmarks.decode.smoke

# the generated tables of README and docs, and docs/goals.md, from benchmarks/results; nothing is measured
tables: $(VENV)/.ready
	$(BIN)/python -m benchmarks.tables

tables-check: $(VENV)/.ready
	$(BIN)/python -m benchmarks.tables --check

pictures: $(VENV)/.ready
	$(BIN)/python -m benchmarks.pictures

# the engine as one static program, build/potq-run-ARCHITECTURE, for this machine and, where its compiler is, for aarch64
potq-run: $(VENV)/.ready
	$(call STATIC,$(shell uname -m),)
	if command -v $(CROSS) >/dev/null; then \
	  $(call STATIC,aarch64,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CROSS)); fi

# inputs that crash the engine: every fuzz target for so many seconds; wants a clang with libFuzzer
fuzz: $(VENV)/.ready
	$(TOOLS) CXX=$(FUZZ_CXX) csrc/tests/fuzz/run.sh $(FUZZ_SECONDS)

# what takes too long for every commit: sanitizers, aarch64, the long self-test, packages, half an hour of a server under load
# with faults, firmware on simulated cores; many more random examples for every property. On Debian or Ubuntu: apt-get install
# g++ g++-aarch64-linux-gnu qemu-user, and what docs/hardware.md and docs/gates.md name, or those tests are skipped
check-deep: wheel $(VENV)/.deep
	$(CHECK_KERNELS)
	HYPOTHESIS_PROFILE=deep $(PYTEST) -q

# a model of POTQ_DATA as firmware of a board, run in its emulator (see firmware/README.md for boards and packages)
BOARD ?= cortex-m3
firmware: $(VENV)/.ready
	@test -n "$(POTQ_DATA)" || { echo 'Set POTQ_DATA to the folder that has tinystories-656k.' >&2; exit 1; }
	$(BIN)/python -m potq quantize "$(POTQ_DATA)/tinystories-656k" build/firmware/stories --scheme pot3 --force
	$(BIN)/python -m firmware.build build/firmware/stories $(BOARD) build/firmware/$(BOARD) --run

# the figures of docs/hardware.md, which are simulated or computed; wants what it names
hardware: $(VENV)/.deep
	$(BIN)/python -m benchmarks.hardware.cores --work build/bench/cores
	$(BIN)/python -m benchmarks.hardware.integer_model

# every board tells the integer model's story, token for token, simulated cores too
firmware-test: $(VENV)/.deep
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -q tests/hardware/test_firmware.py

# sdist and wheel in dist/, repaired for other systems and tried in a fresh environment
wheel: $(VENV)/.ready
	$(TOOLS) tools/wheel.sh

$(VENV)/.demo: pyproject.toml constraints.txt src/potq/version.py tools/install.py $(LIBRARY_FILES)
	$(PYTHON) tools/install.py $(VENV) demo

$(VENV)/.ready: $(VENV)/.demo
	$(PYTHON) tools/install.py $(VENV) ready

$(VENV)/.deep: $(VENV)/.ready
	$(PYTHON) tools/install.py $(VENV) deep

$(VENV)/.docs: $(VENV)/.demo
	$(PYTHON) tools/install.py $(VENV) docs

clean:
	rm -rf $(VENV) build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
