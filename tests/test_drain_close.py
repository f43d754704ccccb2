"""drain and close, from anywhere and at the same time as everything else."""

import concurrent.futures
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from dispatching import OVERFLOWS, WAIT, Gate, check_conservation, held_bus

from ftbus import BusClosedError, EventBus, HandlerErrors, QueueFullError
from ftbus.testing import eventually, run_threads


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("drain", [True, False])
def test_nothing_is_lost_when_closed_under_load(overflow: Any, drain: bool) -> None:
    bus = EventBus(workers=2, queue_size=32, overflow=overflow)
    handled: list[int] = []
    bus.on("key", handled.append)
    posting = threading.Semaphore(0)
    left: list[int] = []

    def work(index: int) -> None:
        if index == 0:
            for _ in range(3):
                assert posting.acquire(timeout=WAIT)
            left.append(bus.close(drain=drain, timeout=WAIT))
            return
        n = 0
        while True:
            try:
                bus.post("key", n, partition=index if n % 2 else None)
            except QueueFullError:
                pass
            except BusClosedError:
                return
            n += 1
            if n == 50:
                posting.release()

    run_threads(4, work)
    stats = bus.stats()
    assert stats.pending == 0
    assert stats.delivered == stats.handled == len(handled)
    check_conservation(stats)
    if drain:
        assert left == [0]


def test_drain_without_anything_posted_returns_at_once() -> None:
    with EventBus(workers=1) as bus:
        assert bus.drain() is True
        assert bus.drain(0) is True
        assert bus.stats().workers == ()


def test_drain_says_whether_all_was_handled() -> None:
    with held_bus() as (bus, gate):
        assert bus.drain(0) is False
        assert bus.drain(0.02) is False
        gate.open()
        assert bus.drain() is True


def test_drain_waits_for_what_handlers_post() -> None:
    with EventBus(workers=2) as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            if event:
                bus.post("key", event - 1)
            seen.append(event)

        bus.on("key", handler)
        bus.post("key", 200)
        assert bus.drain(WAIT)
        assert sorted(seen) == list(range(201))


def test_drain_in_several_threads() -> None:
    with EventBus(workers=2) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)

        def work(index: int) -> bool:
            bus.post_many("key", range(500))
            return bus.drain(WAIT)

        assert run_threads(4, work) == [True] * 4
        assert len(seen) == 2000


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_drain_from_handlers_waits_for_the_others_only(workers: int) -> None:
    with EventBus(workers=workers) as bus:
        results: list[bool] = []
        meeting = threading.Barrier(workers)

        def handler(event: object) -> None:
            meeting.wait(WAIT)
            results.append(bus.drain(WAIT))

        bus.on("drain", handler)
        for n in range(workers):
            bus.post("drain", n)
        assert bus.drain(WAIT)
        assert results == [True] * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_drain_from_a_handler_leaves_out_what_waits_behind_it(workers: int) -> None:
    """In its own partition; the other partitions' events are waited for."""
    with EventBus(workers=workers) as bus:
        results: list[tuple[bool, int]] = []
        others: list[int] = []
        gate = Gate()

        def handler(event: int) -> None:
            if event == 0:
                gate(event)
                results.append((bus.drain(WAIT), len(others)))

        bus.on("key", handler)
        bus.on("other", others.append)
        for n in range(5):
            bus.post("key", n, partition=1)
        bus.post_many("other", range(10), partition=lambda n: 2 + n % 3)
        gate.wait_entered()
        gate.open()
        assert bus.drain(WAIT)
        assert results == [(True, 10)]
        assert bus.stats().delivered == 15


@pytest.mark.parametrize("drain", [True, False])
def test_close_from_a_handler_leaves_what_waits_behind_it(drain: bool) -> None:
    bus = EventBus(workers=2)
    left: list[int] = []
    gate = Gate()

    def handler(event: int) -> None:
        gate(event)
        left.append(bus.close(drain=drain))

    bus.on("key", handler)
    for n in range(5):
        bus.post("key", n, partition=1)
    gate.wait_entered()
    gate.open()
    eventually(lambda: left == [4])
    assert bus.close() == 0
    stats = bus.stats()
    assert (stats.delivered, stats.dropped, stats.pending) == (1, 4, 0)
    check_conservation(stats)


def test_close_drains_and_is_idempotent() -> None:
    bus = EventBus(workers=2)
    seen: list[int] = []
    bus.on("key", seen.append)
    bus.post_many("key", range(1000))
    threads = list(bus._threads)
    assert bus.close() == 0
    assert len(seen) == 1000
    assert not any(thread.is_alive() for thread in threads)
    assert bus.close() == 0
    assert bus.close(drain=False, timeout=0) == 0


def test_close_without_drain_drops_and_counts() -> None:
    with held_bus(queue_size=100) as (bus, gate):
        bus.post_many("key", range(10))
        for n in range(10):
            bus.post("key", n, partition="p")
        closer = threading.Thread(target=lambda: left.append(bus.close(drain=False)))
        left: list[int] = []
        closer.start()
        eventually(lambda: bus.stats().dropped == 20)
        gate.open()
        closer.join(WAIT)
        assert left == [20]
        assert gate.seen == ["first"]
        check_conservation(bus.stats())


@pytest.mark.parametrize("drain", [True, False])
def test_close_with_a_stuck_handler_returns_in_time(drain: bool) -> None:
    with held_bus() as (bus, gate):
        bus.post_many("key", range(5))
        start = time.monotonic()
        left = bus.close(drain=drain, timeout=0.2)
        assert time.monotonic() - start < 10
        assert left == 6
        assert bus.closed
        with pytest.raises(BusClosedError):
            bus.post("key")
        gate.open()
        eventually(lambda: bus.stats().pending == 0)
        stats = bus.stats()
        assert stats.delivered == 1
        assert stats.dropped == 5
        check_conservation(stats)
        assert bus.close() == 0
        assert gate.seen == ["first"]


def test_close_in_several_threads() -> None:
    for drain in (True, False):
        bus = EventBus(workers=2)
        seen: list[int] = []
        bus.on("key", seen.append)
        bus.post_many("key", range(2000))
        left = run_threads(
            4, lambda index, bus=bus, drain=drain: bus.close(drain=drain)
        )
        stats = bus.stats()
        assert stats.delivered == len(seen)
        assert sum(left) == stats.dropped
        assert stats.delivered + stats.dropped == 2000
        assert bus.closed


@pytest.mark.parametrize("workers", [1, 3])
def test_close_from_a_handler(workers: int) -> None:
    bus = EventBus(workers=workers)
    results: list[Any] = []
    seen: list[int] = []
    done = threading.Event()

    def closer(event: object) -> None:
        results.append(bus.close(timeout=WAIT))
        results.append(bus.closed)
        done.set()

    bus.on("key", seen.append)
    bus.on("close", closer)
    bus.post("close")
    assert done.wait(WAIT)
    assert results == [0, True]
    assert bus.close() == 0
    stats = bus.stats()
    assert stats.pending == 0
    check_conservation(stats)


def test_close_from_a_handler_accounts_for_what_was_taken_with_it() -> None:
    """What the same worker took together with the closing event is run or dropped."""
    for size in (2, 20, 200):
        bus = EventBus(workers=1)
        seen: list[int] = []
        left: list[int] = []
        done = threading.Event()
        gate = Gate()
        bus.on("gate", gate)
        bus.on("key", seen.append)

        def closer(
            event: object, bus: Any = bus, left: Any = left, done: Any = done
        ) -> None:
            left.append(bus.close(timeout=WAIT))
            done.set()

        bus.on("close", closer)
        bus.on("warm", lambda event: None)
        bus.post_many("warm", range(5000))
        bus.drain(WAIT)
        bus.post("gate")
        gate.wait_entered()
        bus.post("close")
        bus.post_many("key", range(size))
        gate.open()
        assert done.wait(WAIT)
        bus.close()
        stats = bus.stats()
        assert stats.pending == 0
        assert len(seen) + stats.dropped == size
        assert left == [stats.dropped]
        check_conservation(stats)


def test_close_from_two_handlers_at_once() -> None:
    bus = EventBus(workers=2)
    meeting = threading.Barrier(2)
    results: list[int] = []

    def closer(event: object) -> None:
        meeting.wait(WAIT)
        results.append(bus.close(timeout=WAIT))

    bus.on("close", closer)
    start = time.monotonic()
    bus.post("close")
    bus.post("close")
    eventually(lambda: len(results) == 2, WAIT)
    assert time.monotonic() - start < WAIT / 2
    assert bus.close() == 0
    assert bus.stats().pending == 0


@pytest.mark.parametrize("verb", ["emit", "post", "call"])
def test_verbs_race_with_close(verb: str) -> None:
    for _ in range(5):
        bus = EventBus(workers=2)
        bus.on("key", lambda event: 1)

        def work(index: int, bus: EventBus = bus) -> None:
            if index == 0:
                bus.close()
                return
            futures = []
            while True:
                try:
                    futures.append(getattr(bus, verb)("key", index))
                except BusClosedError:
                    break
            if verb == "call":
                for future in futures:
                    with suppress(concurrent.futures.CancelledError, HandlerErrors):
                        assert future.result(WAIT) in ([1], [])

        run_threads(3, work)
        check_conservation(bus.stats())
        assert bus.stats().pending == 0


def test_close_waits_for_a_worker_that_is_closing_too() -> None:
    """It is not waited for by a worker only, which it may be waiting for itself."""
    bus = EventBus(workers=2)
    held, past = threading.Event(), threading.Event()
    seen: list[bool] = []

    def close() -> None:
        bus.close(drain=False, timeout=WAIT)
        seen.append(any(thread.is_alive() for thread in bus._threads))

    outer = threading.Thread(target=close)

    def close_as_well(event: object) -> None:
        bus.close(drain=False, timeout=WAIT)
        past.set()
        outer.join(0.2)  # it would have ended by now

    bus.on("hold", lambda event: held.wait(WAIT))
    bus.on("close", close_as_well)
    bus.post("hold")
    bus.post("close")
    eventually(lambda: bus._closers)
    outer.start()
    eventually(lambda: outer.ident is not None)
    held.set()
    outer.join()
    assert past.is_set()
    assert seen == [False]
