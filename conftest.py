"""What holds for tests and stress: no GIL, no leaks, every bus closed, one seed."""

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import ftbus
from ftbus import lifecycle, testing
from ftbus.testing.pytest_plugin import (
    has_failed,
    pytest_runtest_makereport,  # noqa: F401 (pytest finds it here)
)

pytest_plugins = ["counts_plugin"]

ROOT = Path(__file__).parent
HANG_SECONDS = 60  # only a program that hangs takes this long

# Inherited by the processes of xdist, so that all draw from one seed.
SEED = int(
    os.environ.setdefault("FTB_SEED", str(random.SystemRandom().getrandbits(32)))
)

# A run in the background inherits an ignored SIGINT and hands it on to the programs
# that tests start in order to interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "ftbus", deadline=None, database=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ftbus")

Run = Callable[..., subprocess.CompletedProcess[str]]


def gil_is_on() -> bool:
    """Return whether the GIL is on although nobody asked for it."""
    asked_for = os.environ.get("PYTHON_GIL") == "1" or sys._xoptions.get("gil") == "1"
    return bool(
        sysconfig.get_config_var("Py_GIL_DISABLED")
        and not asked_for
        and sys._is_gil_enabled()
    )


class GilGuard:
    """Fail the whole run, not a test, if something turned the GIL on."""

    def __init__(self) -> None:
        self.is_on_in_worker = False

    @property
    def is_on(self) -> bool:
        return self.is_on_in_worker or gil_is_on()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Hear what a process of xdist found."""
        output = getattr(node, "workeroutput", {})
        self.is_on_in_worker |= output.get("gil_is_on", False)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["gil_is_on"] = gil_is_on()
        elif self.is_on:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> None:
        if self.is_on:
            terminalreporter.section("GIL", red=True, bold=True)
            terminalreporter.line(
                "The GIL was turned on during the tests: `python -m ftbus doctor "
                "MODULE` finds the import that does it."
            )


def pytest_configure(config: pytest.Config) -> None:
    wanted = os.environ.get("FTBUS_LIB")  # the instrumented copy, where one is tested
    if (
        wanted
        and Path(ftbus.__file__).resolve().parent.parent != Path(wanted).resolve()
    ):
        raise pytest.UsageError(
            f"{ftbus.__file__} is tested, and not what is in {wanted}"
        )
    config.pluginmanager.register(GilGuard(), "ftbus-gil-guard")


def pytest_report_header() -> str:
    return f"FTB_SEED={SEED} replays the random choices of this run"


class FailedAlready(Exception):
    """Keeps no_leaks from judging what the traceback of a failed test holds."""


@pytest.fixture(autouse=True)
def guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a bus open, or handlers or buffers behind."""
    before = set(map(id, lifecycle.buses.live()))
    with contextlib.suppress(FailedAlready), testing.no_leaks():
        yield
        opened = [bus for bus in lifecycle.buses.live() if id(bus) not in before]
        left_open = [repr(bus) for bus in opened if not bus.closed]
        while opened:
            opened.pop().close(drain=False, timeout=1.0)
        if has_failed(request):
            raise FailedAlready
        assert not left_open, f"left open: {', '.join(left_open)}"


@pytest.fixture
def seed() -> int:
    """Return what a test seeds its random.Random with."""
    return SEED


@pytest.fixture
def pool() -> Iterator[ftbus.BufferPool]:
    """Yield a pool, and require that the test gave everything back.

    Parallel runs of one test share it, so a test that counts makes its own.
    """
    pool = ftbus.BufferPool(name="test")
    yield pool
    gc.collect()
    assert pool.live == 0


@pytest.fixture
def python() -> Run:
    """Return a function that runs a program in a Python of its own."""

    def run(
        program: str, *options: str, within: float = HANG_SECONDS, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *options, "-c", program],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    return run
