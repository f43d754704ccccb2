"""Guarantee: every total is exactly what happened, whoever did it, and none goes back.

Hunts for counts that are lost between threads, when a thread ends, or when handlers are
subscribed and cancelled under emits (calls are inferred from runs: ftb_tally.h),
and for an exact reading that is not one moment. FTB_SCALE=1 takes two seconds.
Mutants: tally-unmarked.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from stressing import WAIT, assert_conserved, fresh_seed, scaled

from ftbus import BusStats, EventBus
from ftbus.testing import run_threads

THREADS = 8
KEYS = 5
ROUNDS = 1000
BATCH = 10


class Count:
    """A number that any thread may add to; each writes a cell of its own."""

    def __init__(self) -> None:
        self._cells: dict[int, list[int]] = {}

    def add(self, n: int = 1) -> None:
        ident = threading.get_ident()
        cell = self._cells.get(ident)
        if cell is None:  # an ident may be used again, by one thread at a time
            cell = self._cells.setdefault(ident, [0])
        cell[0] += n

    @property
    def total(self) -> int:
        return sum(cell[0] for cell in self._cells.values())


class OnPurpose(Exception):
    pass


class Ledger:
    """What the test knows of one key."""

    def __init__(self) -> None:
        self.emitted, self.posted = Count(), Count()
        self.steady_calls, self.failing_calls, self.failed = Count(), Count(), Count()
        self.churned_calls, self.once_calls = Count(), Count()

    def steady(self, event: int) -> None:
        self.steady_calls.add()

    def failing(self, event: int) -> None:
        self.failing_calls.add()
        if event % 7 == 0:
            self.failed.add()
            raise OnPurpose

    def once(self, event: int) -> None:
        self.once_calls.add()

    def churned(self) -> Callable[[int], None]:
        """Return a handler that is a new object each time."""
        return lambda event: self.churned_calls.add()

    @property
    def handled(self) -> int:
        counts = (self.steady_calls, self.failing_calls, self.churned_calls)
        return sum(count.total for count in (*counts, self.once_calls))


def hammer(bus: EventBus, ledgers: list[Ledger], random_: random.Random) -> None:
    """Do one thing or another to one key."""
    key = random_.randrange(len(ledgers))
    ledger, event = ledgers[key], random_.randrange(1000)
    match random_.randrange(10):
        case 0 | 1 | 2:
            bus.emit(key, event)
            ledger.emitted.add()
        case 3 | 4:
            bus.emit_many(key, range(event, event + BATCH))
            ledger.emitted.add(BATCH)
        case 5:
            bus.post(key, event, partition=random_.choice([None, event % 20]))
            ledger.posted.add()
        case 6:
            bus.post_many(key, range(event, event + BATCH))
            ledger.posted.add(BATCH)
        case 7:
            bus.topic(key).emit(event)
            ledger.emitted.add()
        case 8:
            with bus.subscribe(key, ledger.churned(), priority=random_.choice([-1, 1])):
                bus.emit_many(key, range(BATCH))
            ledger.emitted.add(BATCH)
        case _:
            bus.once(key, ledger.once)
            bus.emit(key, event)
            ledger.emitted.add()


def watch(bus: EventBus, is_over: threading.Event) -> int:
    """Check that no figure goes back, and that exact ones belong together."""
    seen, before = 0, bus.stats()
    while not is_over.is_set():
        now = bus.stats(exact=seen % 2 == 0)
        assert_not_less(before, now)
        before = now
        seen += 1
    return seen


def assert_not_less(before: BusStats, now: BusStats) -> None:
    for name, n in before.to_counts().items():
        assert getattr(now, name) >= n, name
    calls = {row.serial: row for row in before.handlers}
    for row in now.handlers:
        then = calls.get(row.serial)
        if then is not None:
            assert row.calls >= then.calls, row
            assert row.failed >= then.failed, row
            assert row.time.count >= then.time.count, row


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("timing", ["off", "sampled", "all"])
def test_every_total_is_what_happened(timing: Any, seed: int) -> None:
    drawn = fresh_seed(seed)
    ledgers = [Ledger() for _ in range(KEYS)]
    is_over = threading.Event()
    with EventBus(
        workers=2,
        queue_size=256,
        errors="log",
        on_error=lambda *_: None,
        timing=timing,
        timing_interval=7,
    ) as bus:
        for key, ledger in enumerate(ledgers):
            bus.on(key, ledger.steady)
            bus.on(key, ledger.failing, priority=key % 3 - 1)

        def work(index: int) -> int:
            if index == THREADS:
                return watch(bus, is_over)
            random_ = random.Random(drawn + index)
            try:
                for _ in range(scaled(ROUNDS)):
                    hammer(bus, ledgers, random_)
            finally:
                with lock:
                    left[0] -= 1
                    if left[0] == 0:
                        is_over.set()
            return 0

        lock, left = threading.Lock(), [THREADS]
        seen = run_threads(THREADS + 1, work)[THREADS]
        assert bus.drain(WAIT)
        stats = assert_conserved(bus)
        for key, ledger in enumerate(ledgers):
            row = stats.topic(key)
            assert row.emitted == ledger.emitted.total
            assert row.posted == row.delivered == ledger.posted.total
            assert row.handled == ledger.handled
            assert row.failed == ledger.failed.total
            calls = [
                (each.calls, each.failed)
                for each in bus.stats(exact=True).handlers_of(key)
                if not each.name.endswith("once")  # some wait for their event
            ]
            assert calls == [
                (ledger.steady_calls.total, 0),
                (ledger.failing_calls.total, ledger.failed.total),
            ]
        assert sum(row.count for row in stats.errors) == stats.failed
        assert {row.type.rpartition(".")[2] for row in stats.errors} <= {"OnPurpose"}
        assert stats.partitions.queued == 0
    print(
        f"timing={timing}: {stats.emitted} emitted, {stats.posted} posted, "
        f"{stats.handled} handled, {stats.failed} failed, read {seen} times: all exact"
    )


@pytest.mark.timeout(3600)
def test_exact_readings_are_of_one_moment(seed: int) -> None:
    """An emit counts an event and two calls: a reading has both or neither."""
    del seed
    is_over = threading.Event()
    with EventBus() as bus:
        for key in range(KEYS):
            bus.on(key, lambda event: None)
            bus.on(key, lambda event: None)

        def work(index: int) -> int:
            if index > 0:
                n = 0
                while not is_over.is_set():
                    bus.emit(n % KEYS)
                    n += 1
                return n
            try:
                for _ in range(scaled(30)):
                    stats = bus.stats(exact=True)
                    for row in stats.topics:
                        assert row.handled == 2 * row.emitted
                    # Each thread goes through the keys in turn.
                    emitted = [stats.topic(key).emitted for key in range(KEYS)]
                    assert max(emitted) - min(emitted) <= THREADS
            finally:
                is_over.set()
            return 0

        emitted = sum(run_threads(THREADS, work))
        assert bus.stats().emitted == emitted
        assert bus.stats().handled == 2 * emitted
