"""Queueing: partitions, overflow, conservation, drain, close, and call."""

import asyncio
import collections
import concurrent.futures
import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from ftbus import (
    BusClosedError,
    BusStats,
    EventBus,
    HandlerErrors,
    InvalidOptionError,
    QueueFullError,
)
from ftbus.testing import eventually, run_threads

WAIT = 30  # seconds; only a hang takes that long
OVERFLOWS = ["block", "raise", "drop_newest", "drop_oldest"]


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


# post


def test_post_runs_handlers_on_the_workers() -> None:
    with EventBus(workers=2, name="pool") as bus:
        seen: list[tuple[object, str]] = []
        bus.on("key", lambda e: seen.append((e, threading.current_thread().name)))
        assert bus.post("key", 1) is True
        assert bus.topic("key").post(2) is True
        assert bus.post("key") is True
        assert bus.topic("key").post() is True
        assert bus.post(key="key", event=3) is True
        assert bus.drain(WAIT)
        assert sorted(map(str, (event for event, _ in seen))) == [
            "1",
            "2",
            "3",
            "None",
            "None",
        ]
        assert all(name.startswith("pool-worker-") for _, name in seen)


def test_post_without_handlers_is_delivered() -> None:
    with EventBus(workers=1) as bus:
        assert bus.post("nobody", 1)
        assert bus.drain(WAIT)
        assert bus.stats().delivered == 1


def test_post_many_posts_each() -> None:
    with EventBus(workers=2) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        assert bus.post_many("key", range(1000)) == 1000
        assert bus.topic("key").post_many(iter([1000])) == 1
        assert bus.post_many("key", []) == 0
        assert bus.drain(WAIT)
        assert sorted(seen) == list(range(1001))


@pytest.mark.parametrize("partition", [None, "p"])
def test_post_many_passes_on_what_the_iterable_raises(partition: Any) -> None:
    with EventBus(workers=1) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)

        def events() -> Iterator[int]:
            yield from range(100)
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            bus.post_many("key", events(), partition=partition)
        with pytest.raises(TypeError):
            bus.post_many("key", 5)  # type: ignore[arg-type]
        assert bus.drain(WAIT)
        assert seen == list(range(100))
        check_conservation(bus.stats())


def test_post_many_with_a_partition_function() -> None:
    with EventBus(workers=3) as bus:
        seen: dict[str, list[int]] = {"even": [], "odd": []}
        bus.on("key", lambda n: seen["odd" if n % 2 else "even"].append(n))
        posted = bus.post_many(
            "key", range(2000), partition=lambda n: "odd" if n % 2 else "even"
        )
        assert posted == 2000
        assert bus.drain(WAIT)
        assert seen["even"] == list(range(0, 2000, 2))
        assert seen["odd"] == list(range(1, 2000, 2))

        def fail(event: int) -> str:
            if event == 3:
                raise LookupError(event)
            return "p"

        with pytest.raises(LookupError):
            bus.post_many("key", range(5), partition=fail)
        assert bus.drain(WAIT)
        assert bus.stats().posted == 2003


def test_posted_events_fan_out_over_idle_workers() -> None:
    with EventBus(workers=3) as bus:
        meeting = threading.Barrier(3)
        bus.on("key", lambda event: meeting.wait(WAIT))
        for _ in range(3):
            bus.post("key")
        assert bus.drain(WAIT)
        assert bus.stats().failed == 0


def test_events_behind_a_blocked_one_run_on_the_other_worker() -> None:
    """However many the blocked worker had grown used to taking at once."""
    with EventBus(workers=2) as bus:
        bus.on("quick", lambda event: None)
        bus.post_many("quick", range(20000))
        assert bus.drain(WAIT)
        for _ in range(20):
            done = threading.Event()
            late: list[int] = []

            def handler(event: int, done: Any = done, late: Any = late) -> None:
                if event:
                    done.set()
                elif not done.wait(2):
                    late.append(event)

            bus.on("key", handler)
            bus.post_many("key", range(8))
            assert bus.drain(WAIT)
            bus.off("key")
            assert late == []


# Partitions


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_partition_is_first_in_first_out_per_poster(workers: int) -> None:
    with EventBus(workers=workers) as bus:
        events, posters, partitions = 400, 4, 5
        seen: dict[object, list[tuple[int, int]]] = collections.defaultdict(list)
        bus.on("key", lambda event: seen[event[0]].append(event[1:]))
        names: list[Any] = ["a", 1, b"a", "b", -1]

        def post(index: int) -> None:
            for n in range(events):
                name = names[n % partitions]
                bus.post("key", (name, index, n), partition=name)

        run_threads(posters, post)
        assert bus.drain(WAIT)
        for name in names:
            assert len(seen[name]) == events * posters // partitions
            for index in range(posters):
                own = [n for poster, n in seen[name] if poster == index]
                assert own == sorted(own)


def test_partition_runs_one_event_at_a_time() -> None:
    with EventBus(workers=4) as bus:
        running: collections.Counter[int] = collections.Counter()
        overlaps: list[int] = []
        lock = threading.Lock()

        def handler(partition: int) -> None:
            with lock:
                running[partition] += 1
                if running[partition] > 1:
                    overlaps.append(partition)
            sum(range(200))
            with lock:
                running[partition] -= 1

        bus.on("key", handler)

        def post(index: int) -> None:
            for n in range(500):
                bus.post("key", n % 3, partition=n % 3)

        run_threads(3, post)
        assert bus.drain(WAIT)
        assert overlaps == []
        assert bus.stats().delivered == 1500


def test_partition_orders_events_of_several_keys() -> None:
    with EventBus(workers=4) as bus:
        seen: list[int] = []
        for key in range(5):
            bus.on(key, seen.append)
        for n in range(1000):
            bus.post(n % 5, n, partition="one")
        assert bus.drain(WAIT)
        assert seen == list(range(1000))


def test_partition_goes_on_after_a_failure() -> None:
    errors: list[BaseException] = []
    with EventBus(workers=2, on_error=lambda e, k, h: errors.append(e)) as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            if event % 10 == 0:
                raise SystemExit if event % 20 else ValueError
            seen.append(event)

        bus.on("key", handler)
        bus.post_many("key", range(100), partition="one")
        assert bus.drain(WAIT)
        assert seen == [n for n in range(100) if n % 10]
        assert len(errors) == 10


# Overflow


def test_queue_takes_exactly_its_size() -> None:
    with held_bus(queue_size=5, overflow="raise") as (bus, gate):
        for n in range(5):
            assert bus.post("key", n)
        for n in range(3):
            with pytest.raises(QueueFullError) as caught:
                bus.post("key", n)
            assert caught.value.bus is bus
            assert caught.value.key == "key"
            assert caught.value.queue_size == 5
        stats = bus.stats()
        assert (stats.posted, stats.rejected, stats.pending) == (9, 3, 6)
        assert stats.queued_max == 5
        check_conservation(stats)
        gate.open()
        assert bus.drain(WAIT)
        assert gate.seen == ["first", *range(5)]
        check_conservation(bus.stats())


def test_drop_newest_drops_what_is_posted() -> None:
    with held_bus(queue_size=3, overflow="drop_newest") as (bus, gate):
        assert [bus.post("key", n) for n in range(5)] == [True] * 3 + [False] * 2
        assert bus.post_many("key", range(10)) == 0
        gate.open()
        assert bus.drain(WAIT)
        assert gate.seen == ["first", 0, 1, 2]
        stats = bus.stats()
        assert (stats.posted, stats.delivered, stats.dropped) == (16, 4, 12)


def test_drop_oldest_drops_what_waits_longest() -> None:
    with held_bus(queue_size=3, overflow="drop_oldest") as (bus, gate):
        assert all(bus.post("key", n) for n in range(8))
        gate.open()
        assert bus.drain(WAIT)
        assert gate.seen == ["first", 5, 6, 7]
        stats = bus.stats()
        assert (stats.posted, stats.delivered, stats.dropped) == (9, 4, 5)


@pytest.mark.parametrize("partitions", [1, 2])
def test_drop_oldest_keeps_the_order_of_a_partition(partitions: int) -> None:
    with held_bus(queue_size=4, overflow="drop_oldest") as (bus, gate):
        for n in range(20):
            assert bus.post("key", n, partition=n % partitions)
        gate.open()
        assert bus.drain(WAIT)
        numbers = gate.seen[1:]
        assert len(numbers) == 4
        for partition in range(partitions):
            own = [n for n in numbers if n % partitions == partition]
            assert own == sorted(own)
        assert 19 in numbers


def test_drop_oldest_behind_a_running_event_of_the_partition_drops_the_newest() -> None:
    gate = Gate()
    with EventBus(workers=1, queue_size=2, overflow="drop_oldest") as bus:
        bus.on("key", gate)
        bus.post("key", "first", partition="p")
        gate.wait_entered()
        posted = [bus.post("key", n, partition="p") for n in range(4)]
        gate.open()
        assert bus.drain(WAIT)
        stats = bus.stats()
        assert stats.dropped == 2
        assert stats.delivered == 3
        assert gate.seen[0] == "first"
        assert gate.seen[1:] == sorted(gate.seen[1:])
        assert posted.count(False) <= 2
        check_conservation(stats)


def test_block_waits_until_there_is_space() -> None:
    with held_bus(queue_size=1, overflow="block") as (bus, gate):
        assert bus.post("key", 1)
        thread = threading.Thread(target=bus.post, args=("key", 2))
        thread.start()
        eventually(lambda: bus.stats().posted == 3)
        assert bus.stats().pending == 3
        assert bus._pool_stats()["queued"] == 1
        gate.open()
        thread.join(WAIT)
        assert bus.drain(WAIT)
        assert gate.seen == ["first", 1, 2]


@pytest.mark.parametrize("timeout", [0, 0.0, 0.05])
def test_block_with_timeout_refuses_in_time(timeout: float) -> None:
    with held_bus(queue_size=1, overflow="block") as (bus, gate):
        bus.post("key", 1)
        start = time.monotonic()
        for use in (
            lambda: bus.post("key", 2, timeout=timeout),
            lambda: bus.topic("key").post(2, timeout=timeout),
            lambda: bus.post("key", 2, partition="p", timeout=timeout),
            lambda: bus.post_many("key", [2, 3], timeout=timeout),
        ):
            with pytest.raises(QueueFullError):
                use()
        took = time.monotonic() - start
        assert 4 * timeout * 0.9 <= took < 10
        stats = bus.stats()
        assert stats.rejected == 4
        check_conservation(stats)


def test_blocked_poster_hears_of_the_close() -> None:
    with held_bus(queue_size=1, overflow="block") as (bus, gate):
        bus.post("key", 1)
        raised: list[BaseException] = []

        def post() -> None:
            try:
                bus.post("key", 2)
            except BusClosedError as error:
                raised.append(error)

        thread = threading.Thread(target=post)
        thread.start()
        eventually(lambda: bus.stats().posted == 3)
        closer = threading.Thread(target=bus.close)
        closer.start()
        thread.join(WAIT)
        assert len(raised) == 1
        gate.open()
        closer.join(WAIT)
        stats = bus.stats()
        assert (stats.delivered, stats.rejected) == (2, 1)


@pytest.mark.parametrize("partitioned", [False, True])
@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_nothing_is_lost_under_overflow(
    overflow: Any, partitioned: bool, seed: int
) -> None:
    with EventBus(workers=2, queue_size=16, overflow=overflow) as bus:
        lock = threading.Lock()
        handled = 0
        too_many: list[int] = []

        def handler(event: int) -> None:
            nonlocal handled
            with lock:
                handled += 1
            sum(range(100))

        for key in range(3):
            bus.on(key, handler)

        def post(index: int) -> tuple[int, int, int]:
            choices = random.Random(seed + index)
            accepted = dropped = rejected = 0
            for n in range(600):
                partition = choices.randrange(4) if partitioned else None
                try:
                    if bus.post(choices.randrange(3), n, partition=partition):
                        accepted += 1
                    else:
                        dropped += 1
                except QueueFullError:
                    rejected += 1
                if n % 100 == 0 and (queued := bus._pool_stats()["queued"]) > 16:
                    too_many.append(queued)
            return accepted, dropped, rejected

        counts = run_threads(3, post)
        assert bus.drain(WAIT)
        stats = bus.stats()
        accepted, dropped, rejected = map(sum, zip(*counts, strict=True))
        assert stats.posted == 1800 == accepted + dropped + rejected
        assert stats.rejected == rejected
        assert stats.pending == 0
        assert stats.handled == stats.delivered == handled
        assert stats.queued_max <= 16
        assert too_many == []
        check_conservation(stats)
        if overflow == "block":
            assert handled == 1800
        elif overflow == "drop_oldest":
            assert stats.delivered + stats.dropped == 1800
        else:
            assert handled == accepted
            assert stats.dropped == dropped


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


def test_handler_that_posts_to_its_own_full_bus_goes_on() -> None:
    with EventBus(workers=1, queue_size=1, overflow="block") as bus:
        seen: list[int] = []
        lock = threading.Lock()

        def handler(event: int) -> None:
            if event:
                for _ in range(3):
                    bus.post("key", event - 1)
            with lock:
                seen.append(event)

        bus.on("key", handler)
        bus.post("key", 4)
        assert bus.drain(WAIT)
        assert len(seen) == 1 + 3 + 9 + 27 + 81
        check_conservation(bus.stats())


def test_handlers_of_all_workers_may_post_to_the_full_bus() -> None:
    errors: list[BaseException] = []
    with EventBus(
        workers=3,
        queue_size=2,
        overflow="block",
        on_error=lambda e, k, h: errors.append(e),
    ) as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            seen.append(event)
            if event:
                for _ in range(4):
                    bus.post("key", event - 1)

        bus.on("key", handler)
        bus.post_many("key", [4, 4])
        assert bus.drain(WAIT)
        assert len(seen) == 2 * (1 + 4 + 16 + 64 + 256)
        assert errors == []
        check_conservation(bus.stats())


def test_deep_chain_of_posts_to_a_full_bus_loses_nothing() -> None:
    """Helping out nests: past some depth a handler waits, and may be refused."""
    errors: list[BaseException] = []
    with EventBus(
        workers=1,
        queue_size=1,
        overflow="block",
        on_error=lambda e, k, h: errors.append(e),
    ) as bus:
        budget = [150]
        handled = [0]

        def handler(event: object) -> None:
            handled[0] += 1
            if budget[0] > 0:
                budget[0] -= 2
                for _ in range(2):
                    with suppress(QueueFullError):
                        bus.post("key", timeout=0.2)

        bus.on("key", handler)
        bus.post("key")
        assert bus.drain(WAIT)
        stats = bus.stats()
        assert errors == []
        assert stats.delivered == handled[0]
        assert stats.posted == 151
        check_conservation(stats)


def test_handler_in_a_full_partition_that_posts_to_itself_is_refused_in_time() -> None:
    errors: list[BaseException] = []
    with EventBus(
        workers=1,
        queue_size=1,
        overflow="block",
        on_error=lambda e, k, h: errors.append(e),
    ) as bus:

        def handler(event: int) -> None:
            for _ in range(2):  # the second has no space, ever: it waits for this one
                bus.post("key", partition="p")

        bus.once("key", handler)
        bus.post("key", 1, partition="p")
        assert bus.drain(WAIT)
        assert [type(error) for error in errors] == [QueueFullError]
        check_conservation(bus.stats())


# drain


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


# close


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


def test_workers_survive_every_exception() -> None:
    errors: list[BaseException] = []
    raised = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException]
    with EventBus(workers=2, on_error=lambda e, k, h: errors.append(e)) as bus:

        @bus.on("key")
        def handler(event: type[BaseException]) -> None:
            raise event

        for kind in raised * 10:
            bus.post("key", kind)
        assert bus.drain(WAIT)
        assert all(thread.is_alive() for thread in bus._threads)
        assert collections.Counter(map(type, errors)) == dict.fromkeys(raised, 10)
        stats = bus.stats()
        assert stats.failed == stats.handled == stats.delivered == 50


def test_workers_do_not_see_the_context_of_the_first_poster() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    with EventBus(workers=1) as bus:
        seen: list[str] = []
        bus.on("key", lambda event: seen.append(variable.get("unset")))

        def post() -> None:
            variable.set("set by the poster")
            bus.post("key")

        contextvars.Context().run(post)
        assert bus.drain(WAIT)
        assert seen == ["unset"]


def test_workers_start_with_the_first_post_and_once() -> None:
    with EventBus(workers=3) as bus:
        assert bus._threads == []
        run_threads(4, lambda index: bus.post("key"))
        assert len(bus._threads) == 3
        assert bus.drain(WAIT)


@pytest.mark.thread_unsafe(reason="replaces threading.Thread.start")
def test_post_can_be_tried_again_when_no_thread_could_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, calls = threading.Thread.start, [0]

    def failing(thread: threading.Thread) -> None:
        calls[0] += 1
        if calls[0] in (1, 3):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with EventBus(workers=2) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        for n in range(2):
            with pytest.raises(RuntimeError, match="new thread"):
                bus.post("key", n)
        assert bus.post("key", 2)
        assert bus.drain(WAIT)
        assert seen == [2]
        assert len(bus._threads) == 2


# Invalid options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 0),
        ("workers", -1),
        ("workers", 1025),
        ("workers", True),
        ("workers", 1.0),
        ("workers", "2"),
        ("queue_size", 0),
        ("queue_size", -1),
        ("queue_size", 2**30 + 1),
        ("queue_size", 2**100),
        ("queue_size", True),
        ("queue_size", None),
        ("queue_size", 10.0),
        ("overflow", "drop"),
        ("overflow", None),
        ("overflow", 0),
        ("overflow", ["block"]),
        ("errors", "ignore"),
        ("errors", None),
        ("errors", []),
        ("on_error", 5),
        ("on_error", "print"),
        ("codec", 5),
        ("codec", None),
        ("name", 5),
        ("name", None),
    ],
)
def test_invalid_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        EventBus(**{option: value})
    assert caught.value.option == option
    assert caught.value.value is value
    assert isinstance(caught.value, ValueError)
    assert option in str(caught.value)


@pytest.mark.parametrize("arguments", [(2,), (None,)])
def test_options_are_keyword_only(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        EventBus(*arguments)
    with pytest.raises(TypeError):
        EventBus(unknown=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), "1", [], 1j])
def test_invalid_timeouts_are_refused(timeout: Any) -> None:
    with EventBus(workers=1) as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        for use in (
            lambda: bus.post("key", 1, timeout=timeout),
            lambda: bus.post_many("key", [1], timeout=timeout),
            lambda: bus.topic("key").post(1, timeout=timeout),
            lambda: bus.call("key", 1, timeout=timeout),
            lambda: bus.drain(timeout),
            lambda: bus.close(timeout=timeout),
        ):
            with pytest.raises(InvalidOptionError) as caught:
                use()
            assert caught.value.option == "timeout"
            assert caught.value.value is timeout
        assert not bus.closed
        assert bus.post("key", 2)
        assert bus.drain(WAIT)
        assert seen == [2]
        assert bus.stats().posted == 1


def test_very_long_timeouts_are_no_limit() -> None:
    with EventBus(workers=1) as bus:
        for timeout in (1e9, 1e300, float("inf"), 10**12):
            assert bus.post("key", timeout=timeout)
            assert bus.drain(timeout)
        assert bus.close(timeout=1e300) == 0


# call


def test_call_returns_results_in_handler_order() -> None:
    with EventBus(workers=3) as bus:
        for n in range(10):
            bus.on("key", lambda event, n=n: (n, event), priority=-n)
        assert bus.call("key", "e").result(WAIT) == [(n, "e") for n in range(10)]
        assert bus.topic("key").call("f").result(WAIT) == [(n, "f") for n in range(10)]
        assert bus.call("nobody").result(0) == []


def test_call_runs_handlers_in_parallel() -> None:
    with EventBus(workers=3) as bus:
        meeting = threading.Barrier(3)
        for _ in range(3):
            bus.on("key", lambda event: meeting.wait(WAIT))
        assert sorted(bus.call("key").result(WAIT)) == [0, 1, 2]


def test_call_collects_failures_in_handler_order() -> None:
    with EventBus(workers=2) as bus:
        for n in range(4):

            def handler(event: object, n: int = n) -> int:
                if n % 2:
                    raise ValueError(n)
                return n

            bus.on("key", handler)
        future = bus.call("key", 1)
        with pytest.raises(HandlerErrors) as caught:
            future.result(WAIT)
        assert [error.args for error in caught.value.exceptions] == [(1,), (3,)]
        assert caught.value.key == "key"
        assert caught.value.ran == 4
        assert "handler" in caught.value.exceptions[0].__notes__[0]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_call_of_a_handler_that_is_interrupted_does_not_hang(
    kind: type[BaseException],
) -> None:
    with EventBus(workers=2, on_error=lambda e, k, h: None) as bus:
        bus.on("key", lambda event: 1)

        @bus.on("key")
        def handler(event: object) -> None:
            raise kind

        with pytest.raises(kind):
            bus.call("key").result(WAIT)
        bus.off("key", handler)
        assert bus.call("key").result(WAIT) == [1]


def test_call_with_hostile_handlers_and_errors_does_not_hang() -> None:
    class Hostile:
        def __call__(self, event: object) -> None:
            raise ValueError("from hostile")

        def __repr__(self) -> str:
            raise LookupError("no repr")

    class NoNotes(Exception):
        @property
        def add_note(self) -> None:  # type: ignore[override]
            raise LookupError("no notes")

    def raise_no_notes(event: object) -> None:
        raise NoNotes

    with EventBus(workers=1) as bus:
        bus.on("key", Hostile())
        bus.on("key", raise_no_notes)
        with pytest.raises(HandlerErrors) as caught:
            bus.call("key").result(WAIT)
        assert [type(e) for e in caught.value.exceptions] == [ValueError, NoNotes]


def test_call_refuses_what_emit_refuses() -> None:
    with EventBus(workers=1) as bus:
        with pytest.raises(TypeError):
            bus.call()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            bus.call("key", 1, 2)


def test_call_that_is_dropped_says_so() -> None:
    for overflow in ("drop_newest", "drop_oldest"):
        with held_bus(queue_size=1, overflow=overflow) as (bus, gate):
            bus.on("call", lambda event: "result")
            futures = [bus.call("call") for _ in range(3)]
            gate.open()
            outcomes = []
            for future in futures:
                try:
                    outcomes.append(future.result(WAIT))
                except concurrent.futures.CancelledError:
                    outcomes.append("dropped")
            assert sorted(map(str, outcomes)) == ["['result']", "dropped", "dropped"]
            assert bus.drain(WAIT)
            check_conservation(bus.stats())


def test_call_dropped_by_close_says_so() -> None:
    with held_bus() as (bus, gate):
        bus.on("call", lambda event: "result")
        future = bus.call("call")
        closer = threading.Thread(target=bus.close, kwargs={"drain": False})
        closer.start()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(WAIT)
        gate.open()
        closer.join(WAIT)


def test_call_on_a_full_queue_is_refused_and_keeps_once_handlers() -> None:
    with held_bus(queue_size=2, overflow="raise") as (bus, gate):
        bus.post_many("key", range(2))
        seen: list[object] = []
        bus.once("call", seen.append)
        with pytest.raises(QueueFullError):
            bus.call("call", 1)
        gate.open()
        assert bus.drain(WAIT)
        assert bus.call("call", 2).result(WAIT) == [None]
        assert seen == [2]


def test_call_that_only_partly_fits_reports_the_rest_in_its_future() -> None:
    with held_bus(queue_size=2, overflow="raise") as (bus, gate):
        bus.post("key")
        for n in range(3):
            bus.on("call", lambda event, n=n: n)
        future = bus.call("call")
        gate.open()
        with pytest.raises(HandlerErrors) as caught:
            future.result(WAIT)
        assert [type(e) for e in caught.value.exceptions] == [QueueFullError] * 2
        assert bus.drain(WAIT)
        check_conservation(bus.stats())


def test_future_of_a_call_works_with_the_standard_tools() -> None:
    with held_bus() as (bus, gate):
        bus.on("call", lambda event: event)
        futures = [bus.call("call", n) for n in range(3)]
        called: list[Any] = []
        futures[0].add_done_callback(called.append)
        cancelled = futures[1].cancel()
        gate.open()
        done, waiting = concurrent.futures.wait(futures, timeout=WAIT)
        assert not waiting
        assert called == [futures[0]]
        assert futures[1].cancelled() == cancelled
        results = [
            f.result()
            for f in concurrent.futures.as_completed(futures, WAIT)
            if not f.cancelled()
        ]
        assert sorted(results) == [[0], [2]] if cancelled else [[0], [1], [2]]


def test_call_in_many_threads() -> None:
    with EventBus(workers=3) as bus:
        for n in range(3):
            bus.on("key", lambda event, n=n: event * n)

        def call(index: int) -> None:
            futures = [bus.call("key", index * 1000 + i) for i in range(100)]
            for i, future in enumerate(futures):
                event = index * 1000 + i
                assert future.result(WAIT) == [0, event, 2 * event]

        run_threads(4, call)
        assert bus.drain(WAIT)
        check_conservation(bus.stats())


def test_call_from_a_handler_on_another_worker() -> None:
    with EventBus(workers=2) as bus:
        bus.on("inner", lambda event: event + 1)
        bus.on("outer", lambda event: bus.call("inner", event).result(WAIT)[0] + 1)
        assert bus.call("outer", 1).result(WAIT) == [3]


def test_call_counts_its_handlers() -> None:
    with EventBus(workers=1, on_error=lambda e, k, h: None) as bus:
        bus.on("key", lambda event: 1)

        @bus.on("key")
        def fail(event: object) -> None:
            raise ValueError

        with pytest.raises(HandlerErrors):
            bus.call("key").result(WAIT)
        assert bus.drain(WAIT)
        row = bus.stats().topic("key")
        assert (row.handled, row.failed) == (2, 1)


def test_call_of_async_handlers() -> None:
    with EventBus(workers=2) as bus:

        async def main() -> None:
            loop = asyncio.get_running_loop()

            @bus.on("key")
            async def good(event: int) -> int:
                await asyncio.sleep(0)
                assert asyncio.get_running_loop() is loop
                return event + 1

            @bus.on("key")
            def plain(event: int) -> int:
                return event + 2

            future = asyncio.wrap_future(bus.call("key", 1))
            assert await asyncio.wait_for(future, WAIT) == [2, 3]

            @bus.on("key")
            async def bad(event: int) -> None:
                raise ValueError(event)

            @bus.on("key")
            async def cancelled(event: int) -> None:
                raise asyncio.CancelledError

            with pytest.raises(HandlerErrors) as caught:
                await asyncio.wait_for(asyncio.wrap_future(bus.call("key", 1)), WAIT)
            assert [type(e) for e in caught.value.exceptions] == [
                ValueError,
                RuntimeError,
            ]

        asyncio.run(main())


def test_call_of_an_async_handler_whose_loop_is_closed_fails() -> None:
    async def handler(event: object) -> None:
        pass

    with EventBus(workers=1) as bus:
        loop = asyncio.new_event_loop()
        bus.on("key", handler, loop=loop)
        loop.close()
        with pytest.raises(HandlerErrors):
            bus.call("key").result(WAIT)


def test_call_encodes_once() -> None:
    with EventBus(workers=2) as bus:
        for _ in range(3):
            bus.on("key", bytes, encoded=True)
        bus.on("key", lambda event: event)
        assert bus.call("key", [1, 2]).result(WAIT) == [b"[1,2]"] * 3 + [[1, 2]]
        assert bus.stats().encoded == 1


Verb = Callable[..., Any]


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
