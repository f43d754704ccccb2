# What developers run; `make help` lists it. The interpreter is found or built by
# tools/interpreter.py, everything else comes from the package index into .venv.

KIND ?= ft
VENV ?= .venv
MINUTES ?= 3
SOAK_ARGS ?=
FUZZ_ARGS ?=
FUZZ_SERVERS_ARGS ?=
DEMO_ARGS ?= --seconds 10 --players 64
PYTEST_ARGS ?=
BENCH_ARGS ?= --quick

PYTHON := $(VENV)/bin/python
BENCH_VENV := $(VENV)-bench
DOCS_VENV := $(VENV)-docs
DIST_VENV := $(VENV)-dist
BENCH := PYTHONPATH=. $(BENCH_VENV)/bin/python
PYTEST := $(PYTHON) -m pytest
PIP := python -m pip install --quiet --disable-pip-version-check
CORES := $(shell nproc 2>/dev/null || echo 2)
C_SOURCES := $(wildcard csrc/arena/*.[ch] csrc/core/*.[ch] csrc/py/*.[ch])
C_TEXTS := $(C_SOURCES) $(wildcard csrc/tests/*.[ch] csrc/models/*.h csrc/models/*.cpp \
                                   examples/*/*.[ch] benchmarks/*.c)

export FTBUS_WERROR ?= 1

# An instrumented copy of the package stands on the path before the plain one (a safe path
# keeps the current folder out of it, in the processes that tests start too), and pytest's
# output is not captured, so that a report is seen even if the process dies of it.
INSTRUMENT = FTBUS_SAN=$(SAN) $(PYTHON) setup.py --quiet build --build-lib $(SAN_LIB)
SAN_LIB = build/$(SAN)/lib
# faulthandler's dump of a test that takes long reads frames that change: a false report.
SAN_PYTEST := -m pytest -s -p no:xdist --timeout=1500 -o faulthandler_timeout=1500
SITE = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# The interpreter lies outside the project: without it a venv is of no use.
$(foreach venv,$(VENV) $(BENCH_VENV) $(DOCS_VENV) $(DIST_VENV),\
    $(shell test -x $(venv)/bin/python || rm -f $(venv)/.packages))

.PHONY: help demo setup test stress stress-memory soak fuzz test-gil test-gil-on \
        test-parallel test-asan test-tsan test-refleak check check-san check-valgrind \
        bench bench-full scaling shared-lines models mutants mutants-stress docs dist wheel-check \
        format lint clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: setup ## run the game server demo (DEMO_ARGS="--seconds 10 --players 64")
	$(PYTHON) -m ftbus demo $(DEMO_ARGS)

setup: $(VENV)/.extension ## find or build the interpreter, make .venv, compile the core

GROUPS_$(VENV) := --group lint --group cabi
GROUPS_$(BENCH_VENV) := --group bench --group cabi
GROUPS_$(DOCS_VENV) := --group docs
GROUPS_$(DIST_VENV) := --group dist

# Made anew whenever its contents change; the stamp comes last, so what an interrupted
# run leaves behind is not taken for a venv.
%/.packages: pyproject.toml
	rm -rf $*
	python=$$(python3 tools/interpreter.py --kind $(KIND)) && "$$python" -m venv $*
	$*/bin/$(PIP) --upgrade pip setuptools
	$*/bin/$(PIP) $(GROUPS_$*)
	@touch $@

$(VENV)/.extension: $(VENV)/.packages setup.py ftbus/_cabi_build.py $(C_SOURCES)
	$(VENV)/bin/$(PIP) --no-build-isolation --editable '.[test,demo,cabi]'
	@touch $@

test: setup check ## the C core's tests, then the Python tests (PYTEST_ARGS="-k emit")
	$(PYTEST) -n logical $(PYTEST_ARGS)

stress: setup ## the stress tests (STRESS_ARGS="--count 20", FTB_SCALE, FTB_SEED)
	$(PYTEST) stress -n logical $(STRESS_ARGS)

stress-memory: setup ## the same, with freed objects filled and checked
	PYTHONMALLOC=mimalloc_debug $(PYTEST) stress -n logical $(STRESS_ARGS)

fuzz: setup ## feed bad bytes to all that reads bytes (FUZZ_ARGS, FUZZ_SERVERS_ARGS: --seconds 60)
	$(PYTHON) stress/fuzz.py $(FUZZ_ARGS)
	$(PYTHON) tests/fuzz_servers.py $(FUZZ_SERVERS_ARGS)

mutants-stress: setup ## break the extension in the ways that stress tests name
	$(PYTHON) stress/mutate.py $(MUTANTS)

soak: setup ## minutes of steady load; nothing may grow (MINUTES=3, SOAK_ARGS="--rate 8000")
	$(PYTHON) stress/soak.py --minutes $(MINUTES) $(SOAK_ARGS)

test-gil: ## the Python and stress tests on an ordinary interpreter, with the GIL
	$(MAKE) KIND=gil VENV=.venv-gil stress test

test-gil-on: setup ## the Python tests on the free-threaded interpreter, the GIL switched on
	PYTHON_GIL=1 $(PYTEST) -n logical tests stress $(PYTEST_ARGS)

test-parallel: setup ## every Python test in four threads at once, five times
	$(PYTEST) --parallel-threads=4 --iterations=5 $(PYTEST_ARGS)

test-asan: SAN := address,undefined
test-asan: setup ## the Python tests with the extension under address and undefined
	$(INSTRUMENT)
	FTBUS_LIB=$(SAN_LIB) PYTHONSAFEPATH=1 PYTHONPATH=$(SAN_LIB) PYTHONMALLOC=mimalloc_debug \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	$(PYTHON) $(SAN_PYTEST) $(PYTEST_ARGS)

test-tsan: SAN := thread
test-tsan: setup ## the Python tests, interpreter and extension under ThreadSanitizer
	$(INSTRUMENT)
	python=$$(python3 tools/interpreter.py --kind tsan) && \
	FTBUS_LIB=$(SAN_LIB) PYTHONSAFEPATH=1 PYTHONPATH=$(SAN_LIB):$(SITE) \
	TSAN_OPTIONS=suppressions=$(CURDIR)/tools/tsan.supp:handle_segv=0:exitcode=66 \
	"$$python" $(SAN_PYTEST) $(PYTEST_ARGS)

REFLEAK_TESTS ?= tests/test_bus.py tests/test_post.py tests/test_call.py \
                 tests/test_handlers.py tests/test_errors.py tests/test_context.py \
                 tests/test_drain_close.py tests/test_overflow.py tests/test_buffers.py \
                 tests/test_striped_map_references.py tests/test_streams.py
test-refleak: setup ## references that tests leak, on a debug build (REFLEAK_TESTS=tests)
	python=$$(python3 tools/interpreter.py --kind debug) && \
	export PYTHONPATH=$(SITE) FTBUS_WERROR=0 && \
	"$$python" setup.py --quiet build --build-lib build/debug/lib && \
	FTBUS_LIB=build/debug/lib PYTHONSAFEPATH=1 PYTHONPATH=build/debug/lib:$(SITE) \
	"$$python" tools/refleak.py -R 3:3 $(REFLEAK_TESTS) --timeout 900

# The other libraries have a venv of their own, so that no test can come to need them.
bench: setup $(BENCH_VENV)/.packages ## benchmarks, docs/benchmarks.md (BENCH_ARGS=--quick)
	$(BENCH) benchmarks $(BENCH_ARGS)

bench-full: ## the same with all rounds: the figures to publish, from a quiet machine
	$(MAKE) bench BENCH_ARGS=

scaling: setup ## the same work on 1 to all cores: scaling.json, to send back
	PYTHONPATH=. $(PYTHON) benchmarks/scaling.py --json scaling.json

shared-lines: setup ## count the cache lines that threads share per emit: none may be
	$(PYTHON) benchmarks/shared_lines.py

models: ## search the models of the lock-free pieces (needs Debian's relacy-dev)
	$(MAKE) -j$(CORES) -C csrc models

mutants: ## weaken the C core in every listed way: a model or a test must notice
	$(MAKE) -C csrc mutants

check: ## the C core's tests, which need no Python
	$(MAKE) -j$(CORES) -C csrc check

check-san: ## the same under ThreadSanitizer, then address and undefined
	$(MAKE) -j$(CORES) -C csrc check SAN=thread
	$(MAKE) -j$(CORES) -C csrc check SAN=address,undefined

check-valgrind: export FTB_SCALE := 0.02
check-valgrind: ## the C core's tests under valgrind's memcheck
	$(MAKE) -C csrc memcheck

docs: setup $(DOCS_VENV)/.packages ## build the documentation into build/site, strictly
	$(PYTHON) tools/reference.py docs/reference.md
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict --quiet --site-dir build/site

dist: $(DIST_VENV)/.packages ## the source distribution and this interpreter's wheel
	rm -rf dist
	FTBUS_WERROR=0 $(DIST_VENV)/bin/python -m build
	CIBW_ENABLE=cpython-freethreading $(DIST_VENV)/bin/cibuildwheel --print-build-identifiers --platform linux

wheel-check: dist ## install the wheel into a clean venv, run README's example there
	$(DIST_VENV)/bin/python tools/check_wheel.py dist/*.whl

format: setup ## format the Python and C sources
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(VENV)/bin/clang-format -i $(C_TEXTS)

lint: setup ## check format, style and types, declared and real
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_TEXTS)
	$(PYTHON) -m mypy
	PYTHON_GIL=0 $(PYTHON) tools/stubtest.py

clean: ## remove what was compiled
	rm -rf build dist *.egg-info ftbus/*.so ftbus/include .venv*/.extension
	$(MAKE) -C csrc clean

distclean: clean ## remove the virtual environments too (the interpreter's cache stays)
	rm -rf .venv* .mypy_cache .pytest_cache .ruff_cache .hypothesis
