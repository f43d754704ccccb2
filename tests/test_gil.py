"""The GIL: ftbus and all it imports leave it off."""

import os
import sys
import sysconfig
from typing import Any

import pytest

pytestmark = [
    pytest.mark.thread_unsafe(reason="starts a process"),
    pytest.mark.skipif(
        not sysconfig.get_config_var("Py_GIL_DISABLED"),
        reason="this build has a GIL",
    ),
]

USE_ALL = """
import asyncio, pkgutil, importlib, sys
import ftbus
for info in pkgutil.iter_modules(ftbus.__path__):
    if info.name not in ("__main__", "cabi", "_cabi", "demo"):
        importlib.import_module(f"ftbus.{info.name}")
import ftbus.monitoring
for info in pkgutil.iter_modules(ftbus.monitoring.__path__):
    try:
        importlib.import_module(f"ftbus.monitoring.{info.name}")
    except ModuleNotFoundError as error:  # an optional package
        assert error.name.partition(".")[0] != "ftbus", error
for codec in ("json", "pickle", "raw"):
    with ftbus.EventBus(workers=2, codec=codec) as bus:
        bus.on("key", lambda event: None, encoded=True)
        bus.emit("key", b"bytes")
        bus.post("key", b"bytes")
        bus.call("key", b"bytes").result(30)
        bus.drain(30)
        bus.report()
async def main():
    with ftbus.EventBus() as bus:
        async def handler(event): pass
        bus.on("key", handler)
        bus.emit("key")
        await asyncio.sleep(0)
asyncio.run(main())
print(sys._is_gil_enabled())
"""


def test_import_leaves_the_gil_off_and_warns_of_nothing(python: Any) -> None:
    program = "import ftbus, sys; print(sys._is_gil_enabled())"
    done = python(program, "-W", "error", PYTHON_GIL="")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "False\n")


def test_using_everything_leaves_the_gil_off(python: Any) -> None:
    done = python(USE_ALL, "-W", "error", PYTHON_GIL="")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "False\n")


def test_everything_works_with_the_gil_on(python: Any) -> None:
    done = python(USE_ALL, "-X", "gil=1")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "True\n")


def test_import_brings_in_nothing_that_is_slow_or_foreign(python: Any) -> None:
    done = python("import ftbus, sys; print(*sys.modules)")
    modules = set(done.stdout.split())
    foreign = {"cffi", "_cffi_backend", "numpy", "msgspec", "rich", "xxhash", "pytest"}
    assert not modules & foreign
    assert not modules & {"ftbus.cabi", "ftbus._cabi", "ftbus._cabi_build"}
    assert not modules & {"prometheus_client", "opentelemetry", "http.server"}
    assert not [name for name in modules if name.startswith("ftbus.monitoring")]
    assert "ftbus.demo" not in modules
    assert "ftbus.testing" not in modules


def test_these_tests_themselves_run_without_it() -> None:
    asked_for = "1" in (sys._xoptions.get("gil"), os.environ.get("PYTHON_GIL"))
    assert asked_for or not sys._is_gil_enabled()
