"""Guarantee: close and drain end in time, from anywhere, and say what is left.

Hunts for an event that is admitted after the close and lost, for a drain that sleeps
through its last event, for a close that waits for itself, and for a call that is never
answered because its bus went away.
Mutants: pool-close-ignored, py-dropped-event-kept.
"""

import random
import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import pytest
from stressing import WAIT, assert_conserved, fresh_seed, scaled

from ftbus import BusClosedError, EventBus, HandlerErrors, QueueFullError
from ftbus.testing import run_threads

VERBS = ["post", "post_many", "emit", "call", "partition", "later"]


@pytest.mark.parametrize("drain", [True, False], ids=["drained", "dropped"])
def test_close_at_any_moment_from_any_thread(drain: bool, seed: int) -> None:
    drawn = fresh_seed(seed)
    for turn in range(scaled(40)):
        choices = random.Random(f"{drawn} {turn}")
        bus = EventBus(
            workers=choices.choice([1, 2, 3]),
            queue_size=choices.choice([1, 16, 1024]),
            on_error=lambda *_: None,
        )
        lock, seen = threading.Lock(), [0]
        left: list[int] = []
        closing = choices.randrange(200)
        closes_in_handler = choices.random() < 0.3

        def handle(
            event: object,
            bus: EventBus = bus,
            seen: list[int] = seen,
            left: list[int] = left,
            at: int = closing,
            closes: bool = closes_in_handler,
        ) -> int:
            with lock:
                seen[0] += 1
                is_time = closes and seen[0] == at
            if is_time:
                left.append(bus.close(drain=drain, timeout=WAIT))
            return 5

        bus.on("key", handle)

        def work(
            index: int, bus: EventBus = bus, turn: int = turn, at: int = closing
        ) -> list[Any]:
            random_ = random.Random(f"{drawn} {turn} {index}")
            futures = []
            for number in range(200):
                if index == 0 and number == at and not left:
                    left.append(bus.close(drain=drain, timeout=WAIT))
                try:
                    match random_.choice(VERBS):
                        case "post":
                            bus.post("key", number)
                        case "post_many":
                            bus.post_many("key", range(3))
                        case "emit":
                            bus.emit("key", number)
                        case "call":
                            futures.append(bus.call("key", number))
                        case "partition":
                            bus.post("key", number, partition=number % 3)
                        case "later":
                            bus.post_later(0, "key", number)
                except (BusClosedError, QueueFullError):
                    pass
            return futures

        futures = [each for some in run_threads(3, work) for each in some]
        assert bus.close(timeout=WAIT) == 0
        for future in futures:  # each is answered, one way or another
            assert future.done() or future.exception(WAIT) is None
            with suppress(CancelledError, HandlerErrors, BusClosedError):
                assert future.result(WAIT) in ([5], [])
        stats = assert_conserved(bus)
        assert stats.handled == seen[0]
        assert sum(left) == stats.dropped
        assert not any(thread.is_alive() for thread in bus._threads)
        with pytest.raises(BusClosedError):
            bus.post("key")


def test_drains_of_many_threads_end_with_the_last_event() -> None:
    """Each round the drain has to be woken by the very last event."""
    with EventBus(workers=2, latency="cpu") as bus:
        lock, seen = threading.Lock(), [0]

        def handle(event: object) -> None:
            with lock:
                seen[0] += 1

        bus.on("key", handle)

        def work(index: int) -> None:
            for number in range(scaled(1500)):
                bus.post("key", number, partition=index if number % 2 else None)
                assert bus.drain(WAIT)

        run_threads(4, work)
        assert seen[0] == 4 * scaled(1500)
        assert_conserved(bus)


def test_many_buses_open_and_close_side_by_side() -> None:
    def work(index: int) -> None:
        for number in range(scaled(100)):
            with EventBus(workers=1 + number % 3, queue_size=8) as bus:
                seen: list[int] = []
                bus.on("key", seen.append)
                bus.post_many("key", range(10))
                bus.emit("key", 10)
                if number % 3 == 0:
                    assert bus.drain(WAIT)
            assert sorted(seen) == list(range(11))

    run_threads(3, work)


def test_executors_and_timers_end_with_the_bus() -> None:
    for turn in range(scaled(30)):
        bus = EventBus(workers=2, on_error=lambda *_: None)
        executor = bus.executor()
        ticks: list[object] = []
        bus.on("tick", ticks.append)
        bus.every(0.0001, "tick")
        batches: list[list[int]] = []
        left: list[int] = []
        bus.subscribe("batch", batches.append, batch=(7, 60.0))

        def work(
            index: int, bus: EventBus = bus, executor: Any = executor, turn: int = turn
        ) -> tuple[list[Any], int]:
            futures: list[Any] = []
            emitted = 0
            for number in range(50):
                if index == 0 and number == turn % 50:
                    left.append(bus.close(timeout=WAIT))
                with suppress(RuntimeError):  # the bus's, or the executor's
                    bus.emit("batch", number)
                    emitted += 1
                    futures.append(executor.submit(pow, number, 2))
            return futures, emitted

        results = run_threads(3, work)
        for futures, _ in results:
            for future in futures:
                with suppress(CancelledError):
                    future.result(WAIT)
        emitted_n = sum(emitted for _, emitted in results)
        assert sum(map(len, batches)) + sum(left) == emitted_n
        assert_conserved(bus)
