# The two commands: `make demo` runs the main job, `make test` runs the tests. Both create .venv or
# reuse it, install what is missing and run.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test test-servers test-units test-slow soak lint

demo: $(BIN)/.installed
	@$(BIN)/fastmtp demo $(ARGS)

# Two processes side by side, each with one thread and half of the work. With ARGS, what they name in
# one process. `make test-slow` runs what is left out: other servers than the rest, and little else.
OTHER_SERVERS := $(addprefix tests/served/test_,entry_points.py bench.py real_model.py \
	tool_calls.py hidden_states.py)
test: $(BIN)/.installed lint
ifeq ($(ARGS),)
	$(MAKE) --no-print-directory --jobs 2 --output-sync=none test-servers test-units
else
	$(BIN)/python -m pytest $(ARGS)
endif

test-servers: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/served \
		$(addprefix --ignore ,$(OTHER_SERVERS))

test-units: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --ignore tests/served
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(OTHER_SERVERS)

test-slow: $(BIN)/.installed
	$(BIN)/python -m pytest -m slow tests

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
