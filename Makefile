# One short task list; each task does its own set-up. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help venv demo demo-cluster test check bench bench-check bench-flat bench-host bench-idle bench-jetstream bench-peers bounds soak fuzz simulate format clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

venv: $(READY)  ## .venv with the collector and its development tools
# The interpreter under $(PYTHON): that of an activated .venv has no pip.
OUTER = $$($(PYTHON) -c 'import sys; print(sys._base_executable)')

# --without-pip and the outer pip: works where Python came without ensurepip, and saves the time of installing pip.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; try: make PYTHON=python3.11 $(MAKECMDGOALS)" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@echo "setting up $(VENV) ..."
	@$(OUTER) -m pip --python $(BIN)/python --quiet --disable-pip-version-check install --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)  ## the main job, live: sandbox, collector, an outage, and the books
	@$(BIN)/collector demo

demo-cluster: $(READY)  ## three collectors on three JetStream servers, live: sudden deaths, and the books
	@$(BIN)/collector demo --cluster

test: $(READY)  ## the whole test suite
	@$(BIN)/python -m pytest

check: $(READY)  ## lint, format, strict types, import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(READY)  ## speed beside the limits measured in the same run
	@$(BIN)/python -m bench

bench-host: $(READY)  ## what recording costs the host program, beside other libraries
	@$(OUTER) -m pip --python $(BIN)/python --quiet --disable-pip-version-check install --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m bench.host_cost

bench-check: $(READY)  ## fails where a ratio of the latest `make bench` is worse than the committed one
	@$(BIN)/python -m bench.check

bench-flat: $(READY)  ## the same speed with fifty million keys remembered and with timestamps in disorder, some minutes
	@$(BIN)/python -m bench.flat

bench-idle: $(READY)  ## what a collector with nothing to do costs, and its start
	@$(BIN)/python -m bench.idle

bench-peers: $(READY)  ## the same work by other libraries and programs; renews docs/peers.*
	@$(OUTER) -m pip --python $(BIN)/python --quiet --disable-pip-version-check install --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m bench.peers

bench-jetstream: $(READY)  ## JetStream with 1 and 3 servers, 1 to 4 collectors, beside SQLite
	@$(BIN)/python -m bench.jetstream

bounds: $(READY)  ## start, memory, log and stalls with ten million events waiting, some minutes
	@$(BIN)/python -m bench.bounds

soak: $(READY)  ## ROUNDS=1000 sudden deaths of the daemon, some twenty minutes, and the books
	@$(BIN)/python -m tests.e2e --rounds $(or $(ROUNDS),1000)

fuzz: $(READY)  ## a million hostile inputs, some minutes
	@$(BIN)/python -m tests.fuzz

SEEDS ?= 5000
FIRST ?= 0
simulate: $(READY)  ## SEEDS worlds from FIRST on: the whole agent on virtual time, with crashes and failures by seed
	@$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS)

format: $(READY)  ## what `make check` would complain about, mended where it can be
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## removes the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
