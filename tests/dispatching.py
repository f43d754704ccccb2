"""What tests share: handlers, a bus that is held up, and the conservation law."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftbus import BusStats, EventBus

WAIT = 30  # seconds; only a hang takes that long
OVERFLOWS = ["block", "raise", "drop_newest", "drop_oldest"]


class Owner:
    """An object with a handler; made in the tests, so that it can die."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def handle(self, event: object) -> None:
        self.seen.append(event)


class Gate:
    """A handler that can be held up, and what it saw."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self.seen: list[Any] = []

    def __call__(self, event: object) -> None:
        self.entered.release()
        assert self._open.wait(WAIT)
        self.seen.append(event)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=WAIT)

    def open(self) -> None:
        self._open.set()


@contextmanager
def held_bus(**options: Any) -> Iterator[tuple[EventBus, Gate]]:
    """Make a bus with one worker, which is busy with the first event."""
    gate = Gate()
    with EventBus(workers=1, **options) as bus:
        bus.on("key", gate)
        bus.post("key", "first")
        gate.wait_entered()
        try:
            yield bus, gate
        finally:
            gate.open()


def check_conservation(stats: BusStats) -> None:
    """Every event that was offered is accounted for, in total and for each key."""
    assert (
        stats.posted == stats.delivered + stats.dropped + stats.rejected + stats.pending
    )
    if not stats.pending:
        for row in stats.topics:
            assert row.posted == row.delivered + row.dropped + row.rejected


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]
