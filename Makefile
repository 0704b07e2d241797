# The two commands: `make demo` runs the main job, `make test` runs the tests. Both create .venv or
# reuse it, install what is missing and run.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
SIDE_BY_SIDE := $(MAKE) --no-print-directory --jobs 2 --output-sync=none
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-servers test-units test-slow check check-serving check-others soak lint

demo: $(BIN)/.installed
	@$(BIN)/fastmtp demo $(ARGS)

# Two processes side by side, each with one thread and about half of the work. With ARGS, what they
# name in one process. `make test-slow` runs what is left out: what is nearly shown by others, and
# costs more.
test: $(BIN)/.installed lint
ifeq ($(ARGS),)
	$(SIDE_BY_SIDE) test-servers test-units
else
	$(BIN)/python -m pytest $(ARGS)
endif

# Starts engines instead of servers; with the units, so that both halves take as long.
ENGINES := $(addprefix tests/served/test_,hidden_states.py entry_points.py)

test-servers: $(BIN)/.installed
	$(PYTEST) -m "not slow" tests/served $(addprefix --ignore ,$(ENGINES))

test-units: $(BIN)/.installed
	$(PYTEST) -m "not slow" $(filter-out tests/served/,$(wildcard tests/*/)) $(ENGINES)

test-slow: $(BIN)/.installed
	$(BIN)/python -m pytest -m slow tests

# For a change at hand: no test that starts SGLang or other processes, compiles or trains.
check: $(BIN)/.installed
	$(SIDE_BY_SIDE) lint check-serving check-others

CHECK := $(PYTEST) -q -m "not slow and not heavy"
NEAR_SGLANG := $(addprefix tests/,serving kernels contract doctor benchmarks)
check-serving: $(BIN)/.installed
	$(CHECK) $(NEAR_SGLANG)

check-others: $(BIN)/.installed
	$(CHECK) $(addprefix --ignore ,tests/served $(NEAR_SGLANG))

# 10,000 compared requests with aborts; writes benchmarks/results/soak.json.
soak: $(BIN)/.installed
	SOAK_REQUESTS=10000 SOAK_RESULT=benchmarks/results/soak.json \
		$(BIN)/python -m pytest tests/served/test_soak.py

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/.installed: pyproject.toml scripts/install
	@scripts/install $(PYTHON) $(VENV)
	@touch $@
