"""Handlers with latest= and batch=."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

import pytest
from dispatching import OVERFLOWS, WAIT, Gate, check_conservation, held_bus
from test_timers import Clock

from ftbus import BusClosedError, EventBus, HandlerErrors, InvalidOptionError
from ftbus.testing import eventually, run_threads
from ftbus.timers import Timers

NEVER_S = 3600.0

# latest


def test_latest_handles_the_newest_of_what_was_queued() -> None:
    with held_bus() as (bus, gate):
        seen: list[int] = []
        every: list[int] = []
        bus.on("value", seen.append, latest=True)
        bus.on("value", every.append)
        bus.post_many("value", range(100))
        gate.open()
        assert bus.drain(WAIT)
        assert seen == [99]
        assert every == list(range(100))
        bus.post("value", 100)
        assert bus.drain(WAIT)
        assert seen == [99, 100]
        stats = bus.stats()
        check_conservation(stats)
        row = stats.topic("value")
        assert (row.posted, row.delivered, row.dropped) == (101, 101, 0)
        assert (row.handled, row.failed) == (202, 0)


def test_latest_of_each_group() -> None:
    with held_bus() as (bus, gate):
        seen: list[int] = []
        bus.on("value", seen.append, latest=lambda n: n % 3)
        for n in range(100):
            bus.post("value", n)
        gate.open()
        assert bus.drain(WAIT)
        assert sorted(seen) == [97, 98, 99]


def test_latest_runs_do_not_overlap_and_end_with_the_newest() -> None:
    with EventBus(workers=3) as bus:
        seen: list[int] = []
        running: list[int] = []
        overlaps: list[int] = []

        def handler(event: int) -> None:
            running.append(event)
            overlaps.extend(running[:-1])
            sum(range(100))
            seen.append(event)
            running.remove(event)

        bus.on("value", handler, latest=True)
        for n in range(3000):
            bus.post("value", n, partition="p")
        assert bus.drain(WAIT)
        assert overlaps == []
        assert seen == sorted(seen)
        assert seen[-1] == 2999
        check_conservation(bus.stats())


def test_latest_takes_emitted_events_to_the_workers() -> None:
    with EventBus(workers=1, name="bus") as bus:
        seen: list[tuple[object, str]] = []

        def handler(event: object) -> None:
            seen.append((event, threading.current_thread().name))

        bus.on("value", handler, latest=True)
        assert bus.emit("value", 1) == 1
        assert bus.drain(WAIT)
        assert seen == [(1, "bus-worker-0")]
        assert bus.off("value", handler) == 1


def test_latest_runs_in_the_context_of_the_event() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    with held_bus() as (bus, gate):
        seen: list[tuple[object, str]] = []
        bus.on("value", lambda e: seen.append((e, variable.get())), latest=True)
        for n in range(3):
            context = Context()
            context.run(variable.set, f"of {n}")
            bus.post("value", n, context=context)
        gate.open()
        assert bus.drain(WAIT)
        assert seen == [(2, "of 2")]


def test_latest_that_fails_is_counted_and_reported() -> None:
    errors: list[tuple[Any, ...]] = []
    with EventBus(workers=1, on_error=lambda *e: errors.append(e)) as bus:

        @bus.on("value", latest=True)
        def handler(event: type[BaseException]) -> None:
            raise event

        for kind in (ValueError, SystemExit):
            bus.post("value", kind)
            assert bus.drain(WAIT)
        assert [(type(e), key, h) for e, key, h in errors] == [
            (ValueError, "value", handler),
            (SystemExit, "value", handler),
        ]
        assert bus.stats().topic("value").failed == 2
        assert [row.failed for row in bus.stats().handlers_of("value")] == [2]
        errors.clear()


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_latest_under_overflow_keeps_the_law(overflow: Any) -> None:
    with held_bus(queue_size=4, overflow=overflow) as (bus, gate):
        seen: list[int] = []
        bus.on("value", seen.append, latest=lambda n: n)
        for n in range(3):
            bus.post("value", n)
        for n in range(10, 20):
            bus.emit("value", n)
        gate.open()
        assert bus.drain(WAIT)
        if overflow != "drop_oldest":
            assert sorted(seen) == [0, 1, 2, *range(10, 20)]
        check_conservation(bus.stats())


@pytest.mark.parametrize("drain", [True, False])
def test_latest_when_the_bus_is_closed(drain: bool) -> None:
    with held_bus() as (bus, gate):
        seen: list[int] = []
        bus.on("value", seen.append, latest=True)
        bus.post_many("value", range(5))
        bus.emit("value", 5)
        closer = threading.Thread(target=bus.close, kwargs={"drain": drain})
        closer.start()
        eventually(lambda: bus._closing)
        if not drain:
            eventually(lambda: bus.stats().dropped == 6)
        gate.open()
        closer.join(WAIT)
        assert seen[-1:] == ([4] if drain else [])
        stats = bus.stats()
        assert stats.pending == 0
        check_conservation(stats)


def test_latest_in_many_threads_loses_nothing_newest() -> None:
    with EventBus(workers=2) as bus:
        seen: dict[int, list[int]] = {index: [] for index in range(4)}
        bus.on("v", lambda e: seen[e[0]].append(e[1]), latest=lambda e: e[0])

        def work(index: int) -> None:
            for n in range(500):
                bus.emit("v", (index, n))

        run_threads(4, work)
        assert bus.drain(WAIT)
        for numbers in seen.values():
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == 499
        check_conservation(bus.stats())


# batch


def test_batches_by_size() -> None:
    with EventBus(workers=1) as bus:
        seen: list[list[int]] = []
        bus.on("key", seen.append, batch=(4, NEVER_S))
        bus.post_many("key", range(10))
        assert bus.drain(WAIT)  # which handles the rest too
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert not bus._batches
        stats = bus.stats()
        check_conservation(stats)
        row = stats.topic("key")
        assert (row.delivered, row.handled) == (10, 10)


def test_batch_by_time() -> None:
    clock = Clock()
    with EventBus(workers=1) as bus:
        bus._timers = Timers(bus, clock)
        seen: list[list[int]] = []
        bus.on("key", seen.append, batch=(100, 2.0))
        bus.emit_many("key", range(3))
        clock.turn(1.9)
        assert seen == []
        bus.emit("key", 3)
        clock.turn(0.2)
        eventually(lambda: seen == [[0, 1, 2, 3]])
        bus.emit("key", 4)
        clock.turn(1.9)
        assert len(seen) == 1
        clock.turn(0.2)
        eventually(lambda: seen == [[0, 1, 2, 3], [4]])


def test_batch_is_handled_by_who_completes_it() -> None:
    with EventBus(workers=1) as bus:
        threads: list[threading.Thread] = []

        def handler(batch: object) -> None:
            threads.append(threading.current_thread())

        bus.on("key", handler, batch=(2, NEVER_S))
        assert bus.emit_many("key", [1, 2]) == 2
        assert threads == [threading.current_thread()]
        bus.emit("key", 3)
        assert bus.drain(WAIT)
        assert threads[1:] == bus._threads


def test_batch_handler_that_fails() -> None:
    errors: list[tuple[Any, ...]] = []
    with EventBus(workers=1, on_error=lambda *e: errors.append(e)) as bus:

        @bus.on("key", batch=(2, NEVER_S))
        def handler(batch: list[int]) -> None:
            raise LookupError(*batch)

        bus.emit("key", 1)
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key", 2)
        assert caught.value.exceptions[0].args == (1, 2)
        bus.post("key", 3)
        assert bus.drain(WAIT)
        assert [(e.args, key, h) for e, key, h in errors] == [((3,), "key", handler)]
        assert bus.stats().topic("key").failed == 2
        errors.clear()


def test_batches_of_one_handler_do_not_overlap_and_stay_in_order() -> None:
    with EventBus(workers=3) as bus:
        running: list[int] = []
        overlaps: list[int] = []
        seen: list[int] = []

        def handler(batch: list[int]) -> None:
            running.append(1)
            overlaps.extend(running[1:])
            seen.extend(batch)
            running.pop()

        bus.on("key", handler, batch=(7, 0.001))
        for n in range(3000):
            bus.post("key", n, partition="p")
        assert bus.drain(WAIT)
        assert seen == list(range(3000))
        assert overlaps == []


def test_batches_from_many_threads_lose_nothing() -> None:
    with EventBus(workers=2) as bus:
        seen: list[tuple[int, int]] = []
        sizes: set[int] = set()

        def handler(batch: list[tuple[int, int]]) -> None:
            sizes.add(len(batch))
            seen.extend(batch)

        bus.on("key", handler, batch=(16, 0.002))

        def work(index: int) -> None:
            for n in range(500):
                (bus.emit if n % 2 else bus.post)("key", (index, n))

        run_threads(4, work)
        assert bus.drain(WAIT)
        assert sorted(seen) == [(i, n) for i in range(4) for n in range(500)]
        assert max(sizes) <= 16
        check_conservation(bus.stats())


def test_batch_handler_may_emit_call_and_drain() -> None:
    with EventBus(workers=2) as bus:
        seen: list[list[int]] = []

        def handler(batch: list[int]) -> None:
            seen.append(batch)
            if len(seen) == 1:
                bus.emit_many("key", range(10, 15))
                bus.drain(WAIT)
                bus.call("other").result(WAIT)

        bus.on("other", lambda event: None)
        bus.on("key", handler, batch=(2, NEVER_S))
        bus.post_many("key", range(2))
        assert bus.drain(WAIT)
        assert sorted(n for batch in seen for n in batch) == [0, 1, *range(10, 15)]


def test_drain_in_a_batch_handler_waits_for_no_event_that_waits_for_it() -> None:
    with EventBus(workers=2) as bus:
        seen: list[int] = []
        gate = Gate()

        def handler(batch: list[int]) -> None:
            seen.extend(batch)
            if 0 in batch:
                gate(None)
                assert bus.drain(WAIT)

        bus.on("key", handler, batch=(1, NEVER_S))
        bus.post("key", 0)
        gate.wait_entered()
        bus.post_many("key", range(1, 4))  # these wait for the handler, for a second
        gate.open()
        assert bus.drain(WAIT)
        assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("drain", [True, False])
def test_close_handles_or_forgets_an_incomplete_batch(drain: bool) -> None:
    bus = EventBus(workers=1)
    seen: list[list[int]] = []
    bus.on("key", seen.append, batch=(10, NEVER_S))
    bus.emit_many("key", range(3))
    assert bus.close(drain=drain) == (0 if drain else 3)
    assert seen == ([[0, 1, 2]] if drain else [])
    assert not bus._batches
    with pytest.raises(BusClosedError):
        bus.emit("key", 4)
    check_conservation(bus.stats())


def test_close_handles_the_events_that_come_out_of_the_queue() -> None:
    with held_bus() as (bus, gate):
        seen: list[list[int]] = []
        bus.on("batch", seen.append, batch=(10, NEVER_S))
        bus.post_many("batch", range(3))
        closer = threading.Thread(target=bus.close)
        closer.start()
        eventually(lambda: bus._closing)
        gate.open()
        closer.join(WAIT)
        assert seen == [[0, 1, 2]]


def test_batch_is_flushed_later_if_the_queue_is_full() -> None:
    clock = Clock()
    with held_bus(queue_size=1, overflow="raise") as (bus, gate):
        bus._timers = Timers(bus, clock)
        seen: list[list[int]] = []
        bus.on("batch", seen.append, batch=(10, 1.0))
        bus.emit("batch", 1)
        bus.post("key")
        clock.turn(1.5)  # no space for the task
        gate.open()
        eventually(lambda: bus.stats().pending == 0)
        assert seen == []
        clock.turn(1.5)
        eventually(lambda: seen == [[1]])
        assert bus.stats().rejected == 0


def test_batches_of_encoded_events_and_of_async_handlers() -> None:
    async def main() -> None:
        async with EventBus(workers=1) as bus:
            seen: list[object] = []
            done = asyncio.Event()

            def encoded(batch: list[Any]) -> None:
                seen.append([*map(bytes, batch)])

            bus.on("key", encoded, batch=(2, NEVER_S), encoded=True)

            @bus.on("key", batch=(2, 9))
            async def handler(batch: list[object]) -> None:
                seen.append(batch)
                done.set()

            bus.emit_many("key", [[1], [2]])
            await asyncio.wait_for(done.wait(), WAIT)
            assert seen == [[b"[1]", b"[2]"], [[1], [2]]]

    asyncio.run(main())


def test_what_was_taken_in_is_handled_after_cancel() -> None:
    with EventBus(workers=1) as bus:
        seen: list[list[int]] = []
        with bus.subscribe("key", seen.append, batch=(10, NEVER_S)):
            bus.emit("key", 1)
        assert bus.emit("key", 2) == 0
        assert bus.drain(WAIT)
        assert seen == [[1]]


async def async_handler(event: object) -> None:
    """Do nothing; for options that are refused."""


@pytest.mark.parametrize(
    ("handler", "options"),
    [
        (print, {"batch": 5}),
        (print, {"batch": (0, 1)}),
        (print, {"batch": (1, 0)}),
        (print, {"batch": (1, -1)}),
        (print, {"batch": (True, 1)}),
        (print, {"batch": (1, True)}),
        (print, {"batch": (1.0, 1)}),
        (print, {"batch": (1, float("nan"))}),
        (print, {"batch": (1, float("inf"))}),
        (print, {"batch": (1, 1, 1)}),
        (print, {"latest": 5}),
        (print, {"latest": None}),
        (print, {"latest": True, "batch": (1, 1)}),
        (print, {"latest": True, "once": True}),
        (print, {"batch": (1, 1), "once": True}),
        (print, {"latest": True, "weak": True}),
        (print, {"batch": (1, 1), "weak": True}),
        (async_handler, {"latest": True}),
    ],
)
def test_invalid_options_are_refused(handler: Callable[..., Any], options: Any) -> None:
    async def main() -> None:
        with EventBus() as bus:
            with pytest.raises(InvalidOptionError):
                bus.subscribe("key", handler, **options)
            assert bus.emit("key") == 0

    asyncio.run(main())


def test_very_slow_batch_handler_delays_and_does_not_lose() -> None:
    with EventBus(workers=2) as bus:
        gate = Gate()
        seen: list[int] = []

        def handler(batch: list[int]) -> None:
            seen.extend(batch)
            gate(None)

        bus.on("key", handler, batch=(1, NEVER_S))
        bus.post("key", 0)
        gate.wait_entered()
        bus.post_many("key", range(1, 5))
        start = time.monotonic()
        eventually(lambda: bus.stats().handled >= 3)  # taken in after a second
        assert time.monotonic() - start < WAIT
        gate.open()
        assert bus.drain(WAIT)
        assert sorted(seen) == list(range(5))
