# Two commands need nothing run before them: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# One OMP thread a process: two processes that spin on each other's cores are thirty times slower.
export OMP_NUM_THREADS := 1

.PHONY: help setup demo test check mutants proto bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP)  ## make .venv and install the pinned requirements

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## the main job: coordinator, drafter and verifier on this machine, every mode side by side
	$(RUN) -m deploy.cli demo

# Whole systems are held against bounds in time, so they have the machine to themselves.
ALONE := tests/deploy/ray tests/system
# What failed is run once more with nothing beside it: on a shared machine a bound may be missed for want of a core. The
# first failure stays in the output, and what fails twice fails.
AGAIN := $(RUN) -m pytest --last-failed --last-failed-no-failures none

test: $(STAMP)  ## all tests (CPU, no network)
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(ALONE)) || $(AGAIN)
	$(RUN) -m pytest $(ALONE) || $(AGAIN)

check: $(STAMP)  ## format, lint, types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

mutants: $(STAMP)  ## break one thing at a time and see that a test notices (a few minutes)
	$(RUN) -m tests.mutants

proto: $(STAMP)  ## generate paceline/wire and docs/wire.md from proto/
	$(RUN) -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. proto/paceline/wire/*.proto
	$(RUN) -m deploy.wire_reference

bench: $(STAMP)  ## the figures of docs/benchmarks.md (long: run it on a quiet machine)
	$(RUN) -m deploy.cli bench modes
	$(RUN) -m deploy.cli bench equality
	$(RUN) -m deploy.cli bench overhead
	$(RUN) -m deploy.cli bench engine
	$(RUN) -m deploy.cli bench core
	$(RUN) -m deploy.cli bench distance
	$(RUN) -m deploy.cli bench policies --ratio 6,12,25 --plot build/entropy.png
	$(RUN) -m deploy.cli bench policies --rules token,block
	$(RUN) -m deploy.cli bench failure
	$(RUN) -m deploy.cli bench overload
	$(RUN) -m deploy.cli bench fuzz
	$(RUN) -m deploy.cli bench soak

clean:  ## remove what setup and the demo made
	rm -rf $(VENV) .demo build *.egg-info
