"""call: results, failures, and Futures."""

import asyncio
import concurrent.futures
import threading
from typing import Any

import pytest
from dispatching import WAIT, check_conservation, held_bus

from ftbus import EventBus, HandlerErrors, QueueFullError
from ftbus.testing import run_threads


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


def test_cancel_of_a_once_handler_that_a_call_has_claimed_says_so() -> None:
    with held_bus() as (bus, gate):
        seen: list[object] = []
        subscription = bus.subscribe("once", seen.append, once=True)
        future = bus.call("once", "event")
        assert subscription.cancel()  # it has not started, and now it will not
        assert not subscription.cancel()
        gate.open()
        assert future.result(WAIT) == []
        assert seen == []
