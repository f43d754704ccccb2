"""Faults: handlers that raise, change the bus while it runs them, and emit in turn.

Hunts for a failure that is counted twice or not at all, for handlers that a failing one
keeps from running, for a worker that ends, and for deadlocks of a handler that cancels,
closes or emits where it runs.
Mutants: py-failure-counted-twice.
"""

import random
import threading
from typing import Any

import pytest
from stressing import WAIT, assert_conserved, fresh_seed, scaled

from ftbus import BusClosedError, EventBus, HandlerErrors, Subscription
from ftbus.testing import eventually, run_threads

EMITTERS = 8
HANDLERS = 8


@pytest.mark.parametrize("verb", ["emit", "post"])
def test_failures_are_contained_counted_and_reported_once_each(verb: str) -> None:
    rounds = scaled(600)
    reports: list[tuple[Any, Any, Any]] = []
    seen = [[0] * EMITTERS for _ in range(HANDLERS)]
    with EventBus(
        workers=3, errors="log", on_error=lambda *args: reports.append(args)
    ) as bus:

        def make(index: int) -> Any:
            lock = threading.Lock()

            def handle(event: tuple[int, int]) -> None:
                emitter, number = event
                with lock:
                    seen[index][emitter] += 1
                if index == 3 and number % 3 == 0:
                    raise ValueError(event)

            return handle

        handlers = [make(index) for index in range(HANDLERS)]
        for handler in handlers:
            bus.on("key", handler)

        def work(emitter: int) -> None:
            for number in range(rounds):
                getattr(bus, verb)("key", (emitter, number))

        run_threads(EMITTERS, work)
        assert bus.drain(WAIT)
        stats = assert_conserved(bus)
        failing = len(range(0, rounds, 3)) * EMITTERS
        assert seen == [[rounds] * EMITTERS] * HANDLERS
        assert stats.handled == rounds * EMITTERS * HANDLERS
        assert stats.failed == failing == len(reports)
        assert {key for _, key, _ in reports} == {"key"}
        assert all(handler is handlers[3] for _, _, handler in reports)
        told = [error.args[0] for error, _, _ in reports]
        assert len(set(told)) == failing, "an exception was reported twice"
        if verb == "post":
            assert len(bus._threads) == 3
            assert all(thread.is_alive() for thread in bus._threads)


@pytest.mark.thread_unsafe(reason="replaces sys.unraisablehook")
def test_storm_of_every_kind_of_exception_leaves_the_workers_alone(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """BaseExceptions too, and an on_error that raises them in its turn."""
    lost: list[None] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: lost.append(None))
    kinds = [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, RecursionError]
    drawn = fresh_seed(seed)
    reports: list[None] = []

    def on_error(error: BaseException, key: object, handler: object) -> None:
        reports.append(None)
        if error.args[0] % 3 == 0:
            raise type(error)("again")

    with EventBus(workers=3, on_error=on_error) as bus:

        def handle(event: tuple[int, int]) -> None:
            number, kind = event
            raise kinds[kind](number)

        bus.on("key", handle)
        threads: list[threading.Thread] = []

        def work(index: int) -> int:
            random_ = random.Random(drawn + index)
            numbers = [random_.randrange(1000) for _ in range(scaled(500))]
            for number in numbers:
                event = (number, random_.randrange(len(kinds)))
                bus.post("key", event, partition=number % 7)
            threads.extend(bus._threads)
            return sum(number % 3 == 0 for number in numbers)

        again = run_threads(4, work)
        assert bus.drain(WAIT)
        stats = assert_conserved(bus)
        assert stats.failed == stats.posted == len(reports)
        assert len(lost) == sum(again)
        assert set(threads) == set(bus._threads)
        assert all(thread.is_alive() for thread in bus._threads)


def test_emits_nest_while_the_map_of_keys_grows() -> None:
    """Each level runs to its end before the one above goes on: depth first."""
    depth = 20
    with EventBus() as bus:

        def work(index: int) -> list[str]:
            order: list[str] = []

            def make(level: int) -> Any:
                def handle(event: str) -> None:
                    order.append(f"in {level}")
                    bus.on(f"{index}.{event}.{level}.new", order.append)
                    if level:
                        bus.emit(f"{index}.{level - 1}", event)
                    order.append(f"out {level}")

                return handle

            for level in range(depth):
                bus.on(f"{index}.{level}", make(level))
            for number in range(scaled(100)):
                order.clear()
                assert bus.emit(f"{index}.{depth - 1}", str(number)) == 1
            return list(order)

        expected = [f"in {level}" for level in reversed(range(depth))]
        expected += [f"out {level}" for level in range(depth)]
        assert run_threads(4, work) == [expected] * 4
        assert bus.stats().failed == 0


@pytest.mark.parametrize("verb", ["emit", "post"])
def test_handlers_that_cancel_themselves_and_their_siblings(
    verb: str, seed: int
) -> None:
    """An emit finishes its own set; what was cancelled starts in no later one.

    Without wait=True, with which two emits would wait for each other forever.
    """
    drawn = fresh_seed(seed)
    for turn in range(scaled(60)):
        random_ = random.Random(f"{drawn} {turn}")
        with EventBus(workers=3) as bus:
            subscriptions: list[Subscription] = []

            def make(victim: int) -> Any:
                def handle(event: int) -> None:
                    subscriptions[victim].cancel()
                    bus.subscribe("key", ignore).cancel()

                return handle

            def ignore(event: object) -> None:
                pass

            for _ in range(6):
                handler = make(random_.randrange(6))
                subscriptions.append(bus.subscribe("key", handler))

            def work(index: int) -> None:
                for number in range(5):
                    getattr(bus, verb)("key", number)

            run_threads(3, work)
            assert bus.drain(WAIT)
            active = [each for each in subscriptions if each.active]
            assert bus.emit("key") == len(active)
            for subscription in active:
                subscription.cancel(wait=True)
            assert bus.emit("key") == 0
            stats = assert_conserved(bus)
            assert stats.failed == 0


def test_handlers_that_close_the_bus_while_others_emit_and_post() -> None:
    for _ in range(scaled(30)):
        bus = EventBus(workers=3, queue_size=64)
        left: list[int] = []
        ran = [0] * 4

        def handle(
            event: tuple[int, int], bus: EventBus = bus, ran: list[int] = ran
        ) -> None:
            if event == (0, 20):
                left.append(bus.close(timeout=WAIT))

        bus.on("key", handle)

        def work(index: int, bus: EventBus = bus) -> int:
            for number in range(200):
                try:
                    if index % 2:
                        bus.post("key", (0, number) if index == 1 else (1, number))
                    else:
                        bus.emit("key", (1, number))
                except BusClosedError:
                    return number
            return 200

        run_threads(4, work)
        eventually(lambda left=left: left, WAIT)
        assert bus.closed
        assert bus.close(timeout=WAIT) == 0
        stats = assert_conserved(bus)
        assert stats.failed == 0
        assert left == [stats.dropped]


def test_emit_raises_to_its_own_caller_while_others_fail_too() -> None:
    """Groups of many threads never mix, nor do the levels of nested emits."""
    with EventBus() as bus:

        def inner(event: tuple[int, int]) -> None:
            raise ValueError(event)

        bus.on("inner", inner)
        bus.on("outer", lambda event: bus.emit("inner", event))

        def work(index: int) -> None:
            for number in range(scaled(300)):
                with pytest.raises(HandlerErrors) as caught:
                    bus.emit("outer", (index, number))
                (group,) = caught.value.exceptions
                assert isinstance(group, HandlerErrors)
                assert [error.args[0] for error in group.exceptions] == [
                    (index, number)
                ]

        run_threads(4, work)
        assert bus.stats().failed == 2 * 4 * scaled(300)
