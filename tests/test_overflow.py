"""A full queue: the policies, conservation, handlers that post to it."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from dispatching import OVERFLOWS, WAIT, Gate, check_conservation, held_bus

from ftbus import BusClosedError, EventBus, QueueFullError
from ftbus.testing import eventually, run_threads


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


@contextmanager
def full_bus(**options: Any) -> Iterator[EventBus]:
    """Make a bus that blocks, and check in the end that nothing failed or was lost."""
    errors: list[BaseException] = []
    with EventBus(
        overflow="block", on_error=lambda e, k, h: errors.append(e), **options
    ) as bus:
        yield bus
        assert bus.drain(WAIT)
        assert errors == []
        check_conservation(bus.stats())


@pytest.mark.parametrize(
    ("workers", "queue_size", "fan_out", "first"), [(1, 1, 3, [4]), (3, 2, 4, [4, 4])]
)
def test_handlers_that_post_to_their_own_full_bus_go_on(
    workers: int, queue_size: int, fan_out: int, first: list[int]
) -> None:
    with full_bus(workers=workers, queue_size=queue_size) as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            seen.append(event)
            if event:
                for _ in range(fan_out):
                    bus.post("key", event - 1)

        bus.on("key", handler)
        bus.post_many("key", first)
        assert bus.drain(WAIT)
        assert len(seen) == len(first) * sum(fan_out**n for n in range(5))


def test_deep_chain_of_posts_to_a_full_bus_loses_nothing() -> None:
    """Helping out nests: past some depth a handler waits, and may be refused."""
    with full_bus(workers=1, queue_size=1) as bus:
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
        assert stats.delivered == handled[0]
        assert stats.posted == 151


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


def test_a_post_goes_on_with_any_space_if_no_more_can_come() -> None:
    """What would make enough space to wake a post may itself wait for the post."""
    posted = threading.Event()
    with held_bus(queue_size=8) as (bus, gate):
        bus.on("waits", lambda event: seen.append(posted.wait(WAIT)))
        seen: list[bool] = []
        for _ in range(8):
            bus.post("waits")

        def post_one_more() -> None:
            bus.post("waits")
            posted.set()

        poster = threading.Thread(target=post_one_more)
        poster.start()
        eventually(lambda: bus.stats().posted == 10)  # it finds the queue full
        gate.open()
        poster.join(WAIT)
        assert posted.is_set()
        assert bus.drain(WAIT)
        assert seen == [True] * 9
