"""Events behind a handler that turns out slow are run by the workers that are free."""

import threading
from typing import Any

import pytest
from dispatching import WAIT, check_conservation

from ftbus import EventBus
from ftbus.testing import eventually

BURST = 2000  # short events, with which a worker comes to take 32 at a time


class Burst:
    """One handler for a burst of short events; told to, it runs `slow` at one."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.seen: set[int] = set()
        self.slow: Any = None
        bus.on("key", self.handle)

    def handle(self, event: int) -> None:
        if event == BURST // 2 and self.slow is not None:
            self.slow()
        self.seen.add(event)

    def post(self, slow: Any = None) -> None:
        self.seen, self.slow = set(), slow
        self.bus.post_many("key", range(BURST))

    def others_are_seen(self) -> bool:
        return len(self.seen) == BURST - 1


@pytest.mark.parametrize("workers", [2, 4])
def test_handler_may_wait_for_all_events_behind_it(workers: int) -> None:
    with EventBus(workers=workers, queue_size=BURST) as bus:
        burst = Burst(bus)
        for _ in range(10):
            burst.post()
            assert bus.drain(WAIT)
            burst.post(lambda: eventually(burst.others_are_seen, WAIT))
            assert bus.drain(WAIT)
            assert len(burst.seen) == BURST
        stats = bus.stats()
        assert stats.failed == 0
        assert sum(worker.taken for worker in stats.workers) == stats.delivered
        check_conservation(stats)


def test_all_workers_but_one_may_be_stuck_in_turn() -> None:
    """Each takes what the last one left, and gets stuck behind it."""
    workers = 4
    with EventBus(workers=workers, queue_size=BURST) as bus:
        seen: set[int] = set()
        stuck = threading.Semaphore(workers - 1)

        def handle(event: int) -> None:
            if event > BURST // 2 and stuck.acquire(blocking=False):
                eventually(lambda: len(seen) >= BURST - workers + 1, WAIT)
            seen.add(event)

        bus.on("key", lambda event: None)
        bus.post_many("key", range(BURST))
        assert bus.drain(WAIT)
        bus.off("key")
        bus.on("key", handle)
        bus.post_many("key", range(BURST))
        assert bus.drain(WAIT)
        assert len(seen) == BURST
        assert bus.stats().failed == 0


def test_drain_in_a_handler_waits_for_what_others_took_from_its_batch() -> None:
    with EventBus(workers=3, queue_size=BURST) as bus:
        burst = Burst(bus)
        done: list[int] = []

        def drain() -> None:
            assert bus.drain(WAIT)
            done.append(len(burst.seen))

        for _ in range(20):
            burst.post()
            assert bus.drain(WAIT)
            all_posted = threading.Event()
            bus.once("gate", lambda event, gate=all_posted: gate.wait(WAIT))
            bus.post("gate")  # not drained before
            burst.post(drain)
            all_posted.set()
            assert bus.drain(WAIT)
        assert done == [BURST - 1] * 20
        assert bus.stats().failed == 0


def test_close_counts_what_a_stuck_handler_keeps_from_nobody() -> None:
    """All but the event that is stuck have been taken away and run by then."""
    bus = EventBus(workers=2, queue_size=BURST)
    burst = Burst(bus)
    gate = threading.Event()
    burst.post()
    assert bus.drain(WAIT)
    burst.post(lambda: gate.wait(WAIT))
    eventually(burst.others_are_seen, WAIT)
    assert bus.close(timeout=0.1) == 1
    gate.set()
    eventually(lambda: bus.stats().pending == 0)
    check_conservation(bus.stats())


def test_close_counts_what_is_behind_when_all_are_stuck() -> None:
    bus = EventBus(workers=2, queue_size=BURST)
    gate = threading.Event()
    entered = threading.Semaphore(0)
    seen: list[int] = []

    def handle(event: int) -> None:
        if event >= BURST // 2:
            entered.release()
            gate.wait(WAIT)
        seen.append(event)

    bus.on("key", lambda event: None)
    bus.post_many("key", range(BURST))
    assert bus.drain(WAIT)
    bus.off("key")
    bus.on("key", handle)
    bus.post_many("key", range(BURST))
    for _ in range(2):
        assert entered.acquire(timeout=WAIT)
    left = bus.close(drain=False, timeout=0.1)
    assert left == BURST - len(seen)
    gate.set()
    eventually(lambda: bus.stats().pending == 0)
    check_conservation(bus.stats())
