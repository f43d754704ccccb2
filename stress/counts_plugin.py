"""A plugin of pytest: how many events, threads and faults the stress tests saw."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from stressing import counts

from ftbus import EventBus, dispatch

FOLDER = Path(__file__).parent

totals: Counter[str] = Counter()


@contextmanager
def counting() -> Iterator[None]:
    """Count the threads that start, and the events of each bus that is closed.

    What a bus counts after a close of it has returned, as when a handler of its closes
    it, is added by later ones, or at the end if it still exists.
    """
    start, close = threading.Thread.start, dispatch.close
    counted: WeakKeyDictionary[EventBus, tuple[int, int]] = WeakKeyDictionary()
    lock = threading.RLock()

    def start_counted(thread: threading.Thread) -> None:
        start(thread)
        counts.add(threads=1)

    def count(bus: EventBus) -> None:
        with lock:
            stats = bus.stats(max_keys=0)
            events, faults = stats.emitted + stats.posted, stats.failed
            events_before, faults_before = counted.get(bus, (0, 0))
            counted[bus] = events, faults
            counts.add(events=events - events_before, faults=faults - faults_before)

    def close_counted(bus: EventBus, *, drain: bool, timeout: float) -> int:
        left = close(bus, drain=drain, timeout=timeout)
        count(bus)
        return left

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_counted)
        patch.setattr(dispatch, "close", close_counted)
        yield
    for bus in list(counted):
        count(bus)


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
