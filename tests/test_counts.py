"""The sums that a run of the stress tests tells at its end."""

import threading
from types import SimpleNamespace
from typing import Any

import counts_plugin
import pytest

from ftbus import EventBus

pytestmark = pytest.mark.thread_unsafe(reason="replaces Thread.start")


def test_events_threads_and_failures_are_counted_once() -> None:
    def fail(event: object) -> None:
        raise ValueError(event)

    counts_plugin.counts.take()
    with counts_plugin.counting(), EventBus(workers=2, errors="log") as bus:
        bus.on("key", fail)
        bus.emit("key", 1)
        bus.post_many("key", range(3))
        thread = threading.Thread(target=bus.emit, args=("key", 2))
        thread.start()
        thread.join()
        bus.close()
        bus.close()
    assert counts_plugin.counts.take() == {"events": 5, "threads": 3, "faults": 5}
    assert counts_plugin.counts.take() == {}


def test_what_a_handler_leaves_behind_by_closing_is_counted() -> None:
    counts_plugin.counts.take()
    with counts_plugin.counting():
        bus = EventBus(workers=1, on_error=lambda *args: None)
        closed = threading.Event()

        def close(event: object) -> None:
            bus.close()
            closed.set()
            raise ValueError(event)

        bus.on("key", close)
        bus.post("key", 1)
        assert closed.wait(30)
        bus.close()
    assert counts_plugin.counts.take() == {"events": 1, "threads": 1, "faults": 1}


def test_sums_are_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_plugin, "totals", counts_plugin.Counter())
    lines: list[str] = []
    reporter: Any = SimpleNamespace(line=lines.append)
    counts_plugin.pytest_terminal_summary(reporter)
    assert lines == []  # nothing was counted
    for when in ("setup", "call", "teardown"):
        report: Any = SimpleNamespace(
            when=when, user_properties=[("events", 1500), ("faults", 2)]
        )
        counts_plugin.pytest_runtest_logreport(report)
    counts_plugin.pytest_terminal_summary(reporter)
    assert lines == ["1,500 events, 0 threads, 2 faults injected"]
