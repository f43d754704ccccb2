"""A plugin of pytest: how many events, threads and faults the stress tests saw."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet

import pytest
from stressing import counts

from ftbus import EventBus, dispatch

FOLDER = Path(__file__).parent

totals: Counter[str] = Counter()


@contextmanager
def counting() -> Iterator[None]:
    """Count the threads that start, and the events of each bus when it is closed.

    A bus may be closed by several threads at once; one of them counts its events.
    """
    start, close = threading.Thread.start, dispatch.close
    counted: WeakSet[EventBus] = WeakSet()
    lock = threading.Lock()

    def start_counted(thread: threading.Thread) -> None:
        start(thread)
        counts.add(threads=1)

    def close_counted(bus: EventBus, *, drain: bool, timeout: float) -> int:
        left = close(bus, drain=drain, timeout=timeout)
        with lock:
            is_first = bus not in counted
            counted.add(bus)
        if is_first:
            stats = bus.stats(max_keys=0)
            counts.add(events=stats.emitted + stats.posted, faults=stats.failed)
        return left

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_counted)
        patch.setattr(dispatch, "close", close_counted)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note what a stress test did in its report, which processes of xdist hand on."""
    if not item.path.is_relative_to(FOLDER):
        return (yield)
    with counting():
        counts.take()
        try:
            return (yield)
        finally:
            item.user_properties.extend(counts.take().items())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        totals.update(dict(report.user_properties))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if totals:
        terminalreporter.line(
            f"{totals['events']:,} events, {totals['threads']:,} threads, "
            f"{totals['faults']:,} faults injected"
        )
