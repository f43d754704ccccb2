"""Look for references that tests leak, by CPython's own rule (its regrtest's -R).

Each test runs a few times to warm up and then a few times more. It leaks if every one
of the latter ends with more references than the one before, or with more memory blocks,
or if any ends with another number of file descriptors. For a debug build of CPython:

    python3.13td tools/refleak.py [-R 3:3] [ARGUMENTS OF PYTEST ...]

Tests that start processes, and those of hypothesis, which draw others each time, are
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from ftbus import _core
from ftbus.testing import eventually

SETTLED_S = 10.0


def note_counts(noted: array[int], at: int) -> None:
    """Note references, memory blocks and descriptors once they hold still."""
    last = array("q", [0])

    def is_settled() -> bool:
        sys._clear_internal_caches()  # of types: it keeps names that were looked up
        gc.collect()
        _core.reclaim()
        before, last[0] = last[0], sys.gettotalrefcount()
        return last[0] == before

    with contextlib.suppress(AssertionError):  # the test leaves a thread at work
        eventually(is_settled, SETTLED_S)
    noted[at + 2] = len(os.listdir("/proc/self/fd"))
    noted[at] = sys.gettotalrefcount()
    noted[at + 1] = sys.getallocatedblocks()


def leaks(noted: Sequence[int]) -> list[str]:
    """Return what of references, blocks and descriptors leaks, by the rule."""
    refs, blocks, fds = (
        [now - then for then, now in zip(noted[ix::3], noted[ix + 3 :: 3])]
        for ix in range(3)
    )
    found = []
    if all(delta >= 1 for delta in refs):
        found.append(f"references {refs}")
    if all(delta >= 1 for delta in blocks):
        found.append(f"memory blocks {blocks}")
    if any(fds):
        found.append(f"file descriptors {fds}")
    return found


class Hunter:
    """A plugin that runs each test several times and compares."""

    def __init__(self, warm_ups: int, runs: int) -> None:
        self.warm_ups = warm_ups
        self.runs = runs
        self.tests_n = 0
        self.found: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what cannot be compared."""
        items[:] = [item for item in items if not self._is_left_out(item)]

    def _is_left_out(self, item: Any) -> bool:
        reasons = [mark.kwargs.get("reason", "") for mark in item.iter_markers()]
        is_drawn = hasattr(getattr(item, "obj", None), "hypothesis")
        return is_drawn or any("process" in reason for reason in reasons)

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        """Run it; the reports of the first time are the test's."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        if all(report.passed for report in reports):
            self._hunt(item, nextitem)
        del reports
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _hunt(self, item: Any, nextitem: Any) -> None:
        self.tests_n += 1
        for _ in range(self.warm_ups - 1):
            runtestprotocol(item, log=False, nextitem=nextitem)
        # Of full size from the start: what is noted must not look like a leak.
        noted = array("q", bytes(8 * 3 * (self.runs + 1)))
        for ix in range(self.runs + 1):
            if ix > 0:
                runtestprotocol(item, log=False, nextitem=nextitem)
            item._report_sections.clear()  # pytest keeps what each run has printed
            note_counts(noted, 3 * ix)
        found = leaks(noted)
        if found:
            self.found[item.nodeid] = found

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """List what leaks."""
        terminalreporter.section("references")
        for name, found in self.found.items():
            terminalreporter.line(f"{name} leaks {', '.join(found)}")
        terminalreporter.line(f"{self.tests_n} tests, {len(self.found)} leak")


def keep_functions_mortal() -> None:
    """Let functions and classes die although threads were started.

    CPython 3.13 without a GIL makes them immortal otherwise, and a test that defines a
    class would leak it each time.
    """
    try:
        from _testinternalcapi import suppress_immortalization
    except ImportError:
        return
    suppress_immortalization(True)


def main() -> int:
    """Hunt; return the exit status."""
    if not hasattr(sys, "gettotalrefcount"):
        print("This needs a debug build: python3 tools/interpreter.py --kind debug")
        return 2
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-R", default="3:3", metavar="WARM-UPS:RUNS")
    options, arguments = parser.parse_known_args()
    warm_ups, _, runs = options.R.partition(":")
    keep_functions_mortal()
    hunter = Hunter(int(warm_ups), int(runs))
    os.chdir(Path(__file__).resolve().parent.parent)
    plugins = ["-p", "no:xdist", "-p", "no:repeat", "-p", "no:randomly", "-q"]
    status = pytest.main([*plugins, *arguments], plugins=[hunter])
    return int(status) or (1 if hunter.found else 0)


if __name__ == "__main__":
    sys.exit(main())
