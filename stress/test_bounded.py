"""Guarantee: a full queue stays as full as it was made, and every loss is counted.

Hunts for a queue that takes one more than its size, for a policy that miscounts what it
drops, for a waiting poster that nobody wakes, and for memory that grows while a
consumer stands still. FTB_SCALE=50 is a million events for each policy.
Mutants: pool-bound.
"""

import gc
import threading
import time
from typing import Any

import pytest
from builds import IS_INSTRUMENTED
from stressing import WAIT, assert_conserved, scaled

from ftbus import EventBus, QueueFullError
from ftbus.testing import eventually, run_threads

POSTERS = 4
SIZE = 1024


class Stopped:
    """A consumer that stands still until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.seen = 0

    def handle(self, event: object) -> None:
        self.entered.set()
        assert self.leave.wait(WAIT)
        self.seen += 1  # one worker


@pytest.mark.timeout(1800)
@pytest.mark.thread_unsafe(reason="reads the memory of the process")
@pytest.mark.parametrize("partitions", [0, 7], ids=["free", "partitions"])
@pytest.mark.parametrize("overflow", ["block", "raise", "drop_newest", "drop_oldest"])
def test_a_stopped_consumer_costs_no_memory(overflow: Any, partitions: int) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    events = scaled(20_000)
    consumer = Stopped()
    with EventBus(workers=1, queue_size=SIZE, overflow=overflow) as bus:
        bus.on("key", consumer.handle)
        bus.post("key")
        assert consumer.entered.wait(WAIT)
        too_many: list[int] = []

        def post(n: int) -> tuple[int, int, int]:
            taken = dropped = refused = 0
            for number in range(n):
                partition = number % partitions if partitions else None
                timeout = 0 if overflow == "block" else None
                try:
                    if bus.post("key", number, partition=partition, timeout=timeout):
                        taken += 1
                    else:
                        dropped += 1
                except QueueFullError:
                    refused += 1
                if number % 500 == 0:
                    queued = bus._pool_stats()["queued"]
                    if queued > SIZE:
                        too_many.append(queued)
            return taken, dropped, refused

        def work(index: int) -> tuple[int, int, int]:
            return post(events // POSTERS)

        counts = run_threads(POSTERS, work)  # the queue is full, and warm
        gc.collect()
        before = process.memory_info().rss
        counts += run_threads(POSTERS, work)
        gc.collect()
        grown = process.memory_info().rss - before
        assert IS_INSTRUMENTED or grown < 4 << 20, (
            f"{grown} bytes for {events} events that had no place"
        )
        assert too_many == []
        consumer.leave.set()
        assert bus.drain(WAIT)
        stats = assert_conserved(bus)
        taken, dropped, refused = map(sum, zip(*counts, strict=True))
        total = 2 * (events // POSTERS) * POSTERS + 1
        assert stats.posted == total == taken + dropped + refused + 1
        assert stats.rejected == refused
        assert stats.delivered == consumer.seen
        assert stats.queued_max <= SIZE
        if overflow in ("block", "raise"):
            assert (dropped, stats.dropped) == (0, 0)
            assert consumer.seen == taken + 1 == SIZE + 1
        elif overflow == "drop_newest":
            assert stats.dropped == dropped
            assert consumer.seen == taken + 1 == SIZE + 1
        else:
            assert stats.delivered + stats.dropped == total


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_posters_that_wait_for_space_are_all_woken(size: int) -> None:
    """More posters than places, more workers than events: everyone sleeps and wakes."""
    rounds = scaled(2000)
    with EventBus(workers=3, queue_size=size, latency="cpu") as bus:
        lock, seen = threading.Lock(), [0]

        def handle(event: object) -> None:
            with lock:
                seen[0] += 1

        bus.on("key", handle)

        def work(index: int) -> None:
            for number in range(rounds):
                partition = index if number % 2 else None
                bus.post("key", number, partition=partition, timeout=WAIT)

        run_threads(6, work)
        assert bus.drain(WAIT)
        assert seen[0] == 6 * rounds
        stats = assert_conserved(bus)
        assert stats.queued_max <= size


def test_streams_are_bounded_and_count_what_they_drop() -> None:
    import asyncio

    async def main() -> None:
        events = scaled(5000)
        with EventBus(workers=2) as bus:
            async with bus.stream("key", maxsize=16) as stream:
                emitters = asyncio.gather(
                    *(
                        asyncio.to_thread(
                            lambda: [bus.emit("key", n) for n in range(events)]
                        )
                        for _ in range(3)
                    )
                )
                await asyncio.to_thread(
                    eventually, lambda: stream.dropped > 0 or bus.stats().handled, 30
                )
                await emitters
                bus.off("key")
                taken = 0
                bus.close()
                async for _ in stream:
                    taken += 1
                assert taken <= 16
                assert taken + stream.dropped == 3 * events

    asyncio.run(main())


def test_slow_consumers_do_not_hold_up_the_others() -> None:
    """One partition stands still; the others' events all get through."""
    consumer = Stopped()
    with EventBus(workers=3, queue_size=SIZE) as bus:
        bus.on("slow", consumer.handle)
        bus.on("fast", lambda event: None)
        for number in range(SIZE // 4):
            bus.post("slow", number, partition="slow")
        assert consumer.entered.wait(WAIT)
        start = time.monotonic()

        def work(index: int) -> None:
            for number in range(scaled(2000)):
                bus.post("fast", number, partition=index, timeout=WAIT)

        run_threads(4, work)
        eventually(
            lambda: bus.stats().topic("fast").delivered == 4 * scaled(2000), WAIT
        )
        assert consumer.seen == 0
        print(f"{time.monotonic() - start:.2f} s beside a partition that stands still")
        consumer.leave.set()
        assert bus.drain(WAIT)
        assert consumer.seen == SIZE // 4
        assert_conserved(bus)
