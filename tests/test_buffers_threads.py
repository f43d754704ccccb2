"""Many events, many holders of each in other threads: nothing is left at the end.

FTB_SCALE stretches it: 100 makes it a million events.
"""

from __future__ import annotations

import gc
import os
import queue
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ftbus import Buffer, BufferPool, EventBus
from ftbus.buffers import default_pool
from ftbus.testing import eventually, run_threads

SCALE = float(os.environ.get("FTB_SCALE", "1"))

pytestmark = [
    pytest.mark.thread_unsafe(reason="it has threads enough"),
    pytest.mark.timeout(120 * max(1.0, SCALE)),
]

EVENTS = max(100, int(10_000 * SCALE))
HOLDERS = 8
THREADS = 3
BATCH = 50

type Hold = Callable[[Buffer], Any]

# How a thread may come to hold a buffer.
HOLDS: list[Hold] = [
    lambda buffer: buffer,
    lambda buffer: buffer[1:],
    lambda buffer: buffer[1:-1][1:],
    memoryview,
    lambda buffer: memoryview(buffer[2:]),
    lambda buffer: buffer.decode(),
    lambda buffer: (buffer, buffer.decode()),
    lambda buffer: bytes(buffer),
]


def test_random_holders_in_other_threads_leave_nothing(seed: int) -> None:
    """A count that is lost, or counted twice, keeps a block or frees it early."""
    live = default_pool.live
    inboxes: list[queue.SimpleQueue[Any]] = [
        queue.SimpleQueue() for _ in range(THREADS)
    ]
    credits = threading.Semaphore(20 * THREADS)
    wrong: list[Any] = []

    def serve(index: int) -> None:
        chance = random.Random(seed + index)
        held: list[Any] = []
        while (batch := inboxes[index].get()) is not None:
            for number, buffer, hold in batch:
                if buffer[:8] != number.to_bytes(8, "big"):
                    wrong.append(number)
                held.append(hold(buffer))
            del buffer, batch
            credits.release()
            while len(held) > 100:
                del held[chance.randrange(len(held))]

    def produce() -> None:
        chance = random.Random(seed)
        outboxes: list[list[Any]] = [[] for _ in range(THREADS)]
        for number in range(EVENTS):
            size = chance.choice((8, 60, 1000, 5000))
            buffer = default_pool.allocate(size)
            buffer[:8] = number.to_bytes(8, "big")
            buffer.freeze()
            buffer.decode("raw")
            for _ in range(HOLDERS):
                to = chance.randrange(THREADS)
                outboxes[to].append((number, buffer, chance.choice(HOLDS)))
                if len(outboxes[to]) >= BATCH:
                    credits.acquire()
                    inboxes[to].put(outboxes[to])
                    outboxes[to] = []
        for inbox, rest in zip(inboxes, outboxes, strict=True):
            inbox.put(rest or [(number, buffer, HOLDS[0])])
            inbox.put(None)

    def run(index: int) -> None:
        produce() if index == THREADS else serve(index)

    run_threads(THREADS + 1, run)
    assert wrong == []
    gc.collect()
    eventually(lambda: default_pool.live <= live)


@pytest.mark.parametrize("verb", ["emit", "post", "call"])
def test_encoded_events_with_holders_leave_nothing(verb: str, seed: int) -> None:
    """The same through a bus: one encode for each event, nothing held at the end."""
    live = default_pool.live
    events = EVENTS // 10
    kept: queue.SimpleQueue[Any] = queue.SimpleQueue()
    holds = random.Random(seed).choices(HOLDS, k=HOLDERS)

    with EventBus(workers=2, queue_size=1000) as bus:
        for hold in holds:
            bus.on("key", lambda event, h=hold: kept.put(h(event)), encoded=True)
        send = getattr(bus, verb)
        for number in range(events):
            outcome = send("key", {"number": number})
            if verb == "call" and number % 50 == 0:
                outcome.result(30)
            while kept.qsize() > 200:
                kept.get()
        assert bus.drain(60)
        assert bus.stats().encoded == events
        assert bus.stats().handled == events * HOLDERS
        assert bus.stats().failed == 0
        del outcome, send
    while not kept.empty():
        kept.get()
    gc.collect()
    eventually(lambda: default_pool.live <= live)


def test_a_pool_at_its_limit_serves_many_threads() -> None:
    """Who is refused lost nothing; who waits for others' releases gets on."""
    pool = BufferPool(limit_bytes=200_000)
    rounds = max(100, int(2000 * SCALE))
    refused = [0] * 4

    def work(index: int) -> None:
        chance = random.Random(index)
        held: list[Buffer] = []
        for _ in range(rounds):
            try:
                buffer = pool.allocate(chance.choice((100, 3000, 40_000)))
            except MemoryError:
                refused[index] += 1
                held.clear()
                continue
            buffer[0] = index
            held.append(buffer)
        assert all(buffer[0] == index for buffer in held)

    run_threads(4, work)
    eventually(lambda: pool.live == 0)
    stats = pool.stats()
    assert stats.peak_bytes <= 200_000
    assert stats.allocs == stats.frees == 4 * rounds - sum(refused)
    assert sum(refused) > 0
