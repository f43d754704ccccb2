# What developers run; `make help` lists it. The interpreter is found or built by
# tools/interpreter.py, everything else comes from the package index into .venv.

KIND ?= ft
VENV ?= .venv
DEMO_ARGS ?= --seconds 10 --players 64
PYTEST_ARGS ?=

PYTHON := $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check
CORES := $(shell nproc 2>/dev/null || echo 2)
C_SOURCES := $(wildcard csrc/arena/*.[ch] csrc/core/*.[ch] csrc/py/*.[ch])
C_TEXTS := $(C_SOURCES) $(wildcard csrc/tests/*.[ch] csrc/models/*.h csrc/models/*.cpp)

export FTBUS_WERROR ?= 1

# The interpreter lies outside the project: without it a venv is of no use.
$(shell test -x $(PYTHON) || rm -f $(VENV)/.packages)

.PHONY: help demo setup test test-gil test-parallel check check-san format lint clean \
        distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: setup ## run the game server demo (DEMO_ARGS="--seconds 10 --players 64")
	$(PYTHON) -m ftbus demo $(DEMO_ARGS)

setup: $(VENV)/.extension ## find or build the interpreter, make .venv, compile the core

# Made anew whenever its contents change; the stamp comes last, so what an interrupted
# run leaves behind is not taken for a venv.
$(VENV)/.packages: pyproject.toml
	rm -rf $(VENV)
	python=$$(python3 tools/interpreter.py --kind $(KIND)) && "$$python" -m venv $(VENV)
	$(PIP) --upgrade pip setuptools
	$(PIP) --group dev
	@touch $@

$(VENV)/.extension: $(VENV)/.packages setup.py $(C_SOURCES)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

test: setup check ## the C core's tests, then the Python tests (PYTEST_ARGS="-k emit")
	$(PYTEST) -n logical $(PYTEST_ARGS)

test-gil: ## the Python tests on an ordinary interpreter, with the GIL
	$(MAKE) KIND=gil VENV=.venv-gil test

test-parallel: setup ## every Python test in four threads at once, five times
	$(PYTEST) --parallel-threads=4 --iterations=5 $(PYTEST_ARGS)

check: ## the C core's tests, which need no Python
	$(MAKE) -j$(CORES) -C csrc check

check-san: ## the same under ThreadSanitizer, then address and undefined
	$(MAKE) -j$(CORES) -C csrc check SAN=thread
	$(MAKE) -j$(CORES) -C csrc check SAN=address,undefined

format: setup ## format the Python and C sources
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(VENV)/bin/clang-format -i $(C_TEXTS)

lint: setup ## check format, style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_TEXTS)
	$(PYTHON) -m mypy

clean: ## remove what was compiled
	rm -rf build dist *.egg-info ftbus/*.so .venv*/.extension
	$(MAKE) -C csrc clean

distclean: clean ## remove the virtual environments too (the interpreter's cache stays)
	rm -rf .venv* .mypy_cache .pytest_cache .ruff_cache .hypothesis
