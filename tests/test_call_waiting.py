"""Waiting for a call from its own bus's workers, and cancelling one."""

import asyncio
import concurrent.futures
import gc
import threading
import weakref
from typing import Any

import pytest
from dispatching import WAIT, Gate, check_conservation, held_bus

from ftbus import EmitDepthError, EventBus, EventDroppedError, HandlerErrors
from ftbus.testing import eventually, run_threads

# Nested calls


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_call_nested_deeper_than_there_are_workers(workers: int) -> None:
    with EventBus(workers=workers) as bus:

        @bus.on("key")
        def handler(depth: int) -> int:
            return 1 + bus.call("key", depth - 1).result(WAIT)[0] if depth else 0

        assert bus.call("key", 20).result(WAIT) == [20]
        assert bus.drain(WAIT)
        check_conservation(bus.stats())
        assert bus.stats().handled == 21


@pytest.mark.parametrize("workers", [1, 2])
def test_call_nested_as_a_tree_with_several_handlers(workers: int) -> None:
    with EventBus(workers=workers) as bus:

        def handler(depth: int) -> int:
            if not depth:
                return 1
            futures = [bus.call("key", depth - 1) for _ in range(2)]
            return sum(sum(future.result(WAIT)) for future in futures)

        bus.on("key", handler)
        bus.on("key", lambda depth: handler(depth))

        def call(index: int) -> list[int]:
            return bus.call("key", 3).result(WAIT)

        assert run_threads(2, call) == [[64, 64]] * 2
        assert bus.drain(WAIT)
        check_conservation(bus.stats())


def test_call_from_a_handler_raises_what_the_inner_handlers_raise() -> None:
    with EventBus(workers=1) as bus:
        seen: list[BaseException | None] = []

        @bus.on("inner")
        def inner(event: object) -> None:
            raise LookupError(event)

        @bus.on("outer")
        def outer(event: object) -> None:
            seen.append(bus.call("inner", 1).exception(WAIT))
            bus.call("inner", 2).result()

        with pytest.raises(HandlerErrors) as caught:
            bus.call("outer").result(WAIT)
        assert isinstance(seen[0], HandlerErrors)
        (error,) = caught.value.exceptions
        assert isinstance(error, HandlerErrors)
        assert error.exceptions[0].args == (2,)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_inner_handler_that_is_interrupted_is_reported(
    kind: type[BaseException],
) -> None:
    errors: list[BaseException] = []
    with EventBus(workers=1, on_error=lambda e, k, h: errors.append(e)) as bus:
        seen: list[type[BaseException]] = []

        @bus.on("inner")
        def inner(event: object) -> None:
            raise kind

        @bus.on("outer")
        def outer(event: object) -> None:
            seen.append(type(bus.call("inner").exception(WAIT)))

        assert bus.call("outer").result(WAIT) == [None]
        assert seen == [kind]
        assert [type(error) for error in errors] == [kind]


def test_call_nested_without_end_fails_and_the_bus_goes_on() -> None:
    with EventBus(workers=2) as bus:

        @bus.on("key")
        def handler(event: object) -> object:
            return bus.call("key").result()

        with pytest.raises(HandlerErrors) as caught:
            bus.call("key").result(WAIT)
        error: BaseException = caught.value
        while isinstance(error, HandlerErrors):
            (error,) = error.exceptions
        assert isinstance(error, EmitDepthError | RecursionError)
        bus.off("key")
        assert bus.drain(WAIT)
        check_conservation(bus.stats())


def test_deep_stack_that_waits_for_a_call_loses_no_task() -> None:
    """A stack with no room to run the task raises, and the task runs elsewhere."""
    with EventBus(workers=1) as bus:
        done = threading.Event()
        bus.on("inner", lambda event: done.set())

        @bus.on("outer")
        def outer(event: object) -> list[Any]:
            future = bus.call("inner")

            has_tried = False

            def deepen() -> Any:
                nonlocal has_tried
                try:
                    return deepen()
                except RecursionError:
                    if has_tried:
                        raise
                    has_tried = True
                    return future.result(0.01)

            with pytest.raises((RecursionError, TimeoutError)):
                deepen()
            return future.result(WAIT)

        assert bus.call("outer").result(WAIT) == [[None]]
        assert done.is_set()


def test_handler_waits_for_a_call_of_an_async_handler_that_calls() -> None:
    """The only worker waits for a coroutine, which waits for a worker."""
    with EventBus(workers=1) as bus:

        async def main() -> None:
            @bus.on("async")
            async def middle(event: int) -> int:
                return (await bus.acall("inner", event))[0] + 1

            bus.on("inner", lambda event: event + 1)
            bus.on("outer", lambda event: bus.call("async", event).result(WAIT)[0] + 1)
            assert await asyncio.wait_for(bus.acall("outer", 1), WAIT) == [4]

        asyncio.run(main())


def test_waiting_handler_runs_others_while_another_worker_needs_them() -> None:
    with EventBus(workers=2) as bus:
        posted = threading.Event()
        bus.on("needed", lambda event: posted.set())

        @bus.on("inner")
        def inner(event: object) -> bool:
            bus.post("needed")
            return posted.wait(WAIT)

        inner_runs = Gate()
        bus.on("inner", inner_runs, priority=1)

        @bus.on("outer")
        def outer(event: object) -> object:
            future = bus.call("inner")
            inner_runs.open()
            return future.result(WAIT)

        assert bus.call("outer").result(WAIT) == [[None, True]]


@pytest.mark.parametrize("drain", [True, False])
def test_handler_that_closes_the_bus_and_then_waits(drain: bool) -> None:
    bus = EventBus(workers=1)
    outcomes: list[object] = []
    done = threading.Event()
    bus.on("inner", lambda event: "ran")

    @bus.on("outer")
    def outer(event: object) -> None:
        future = bus.call("inner")
        bus.close(drain=drain, timeout=WAIT)
        try:
            outcomes.append(future.result(WAIT))
        except EventDroppedError:
            outcomes.append("dropped")
        done.set()

    bus.post("outer")
    assert done.wait(WAIT)
    assert outcomes == [["ran"] if drain else "dropped"]
    bus.close()
    check_conservation(bus.stats())
    assert bus.stats().pending == 0


def test_result_with_timeout_in_a_handler_times_out() -> None:
    with EventBus(workers=2) as bus:
        gate = Gate()
        bus.on("inner", gate)

        @bus.on("outer")
        def outer(event: object) -> list[str]:
            future = bus.call("inner")
            gate.wait_entered()  # on the other worker
            raised = []
            for timeout in (0, 0.0, -1, 0.01):
                for wait in (future.result, future.exception):
                    try:
                        wait(timeout)
                    except TimeoutError:
                        raised.append(timeout)
            gate.open()
            future.result(WAIT)
            return raised

        assert bus.call("outer").result(WAIT) == [[0, 0, 0.0, 0.0, -1, -1, 0.01, 0.01]]


def test_waiting_thread_that_is_no_worker_runs_nothing_itself() -> None:
    with EventBus(workers=1, name="bus") as bus:
        bus.on("key", lambda event: threading.current_thread().name)
        assert bus.call("key").result(WAIT) == ["bus-worker-0"]


def test_waiting_handler_of_another_bus_runs_nothing_itself() -> None:
    with EventBus(workers=1, name="one") as one, EventBus(workers=1, name="two") as two:
        two.on("key", lambda event: threading.current_thread().name)
        one.on("key", lambda event: two.call("key").result(WAIT))
        assert one.call("key").result(WAIT) == [["two-worker-0"]]


# cancel


def test_cancel_before_any_handler_has_started() -> None:
    with held_bus() as (bus, gate):
        seen: list[object] = []
        for _ in range(3):
            bus.on("call", seen.append)
        once = bus.subscribe("call", seen.append, once=True)
        future = bus.call("call", 1)
        assert not future.running()
        assert future.cancel()
        assert future.cancelled()
        assert future.cancel()
        done, waiting = concurrent.futures.wait([future], timeout=WAIT)
        assert done == {future}
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(0)
        assert once.active
        gate.open()
        assert bus.drain(WAIT)
        assert seen == []
        assert bus.call("call", 2).result(WAIT) == [None] * 4
        assert seen == [2] * 4
        stats = bus.stats()
        check_conservation(stats)
        assert stats.delivered == stats.posted == 1 + 4 + 4


def test_cancel_after_a_handler_has_started_is_too_late() -> None:
    gate = Gate()
    with EventBus(workers=1) as bus:
        bus.on("call", gate)
        bus.on("call", lambda event: "ran")
        future = bus.call("call")
        gate.wait_entered()
        assert future.running()
        assert not future.cancel()
        gate.open()
        assert future.result(WAIT) == [None, "ran"]
        assert not future.cancel()


def test_cancelled_call_lets_go_of_the_event_at_once() -> None:
    class Event:
        pass

    with held_bus() as (bus, gate):
        bus.on("call", lambda event: None)
        event = Event()
        gone = weakref.ref(event)
        future = bus.call("call", event)
        del event
        assert gone() is not None
        assert future.cancel()
        gc.collect()
        assert gone() is None


def test_finished_call_lets_go_of_everything_without_the_collector() -> None:
    class Event:
        pass

    gc.disable()
    try:
        with EventBus(workers=1) as bus:
            bus.on("call", lambda event: None)
            event = Event()
            gone = weakref.ref(event)
            assert bus.call("call", event).result(WAIT) == [None]
            assert bus.drain(WAIT)
            del event
            eventually(lambda: gone() is None)
    finally:
        gc.enable()


def test_cancel_races_with_the_start(seed: int) -> None:
    with EventBus(workers=2) as bus:
        ran: list[int] = []
        bus.on("call", ran.append)
        bus.on("call", ran.append)
        outcomes: list[bool] = []
        for n in range(300):
            future = bus.call("call", n)
            if future.cancel():
                assert future.cancelled()
            else:
                assert future.result(WAIT) == [None, None]
            outcomes.append(future.cancelled())
        assert bus.drain(WAIT)
        assert sorted(ran) == sorted(
            2 * [n for n, cancelled in enumerate(outcomes) if not cancelled]
        )
        check_conservation(bus.stats())


def test_cancel_in_several_threads_at_once_gives_one_answer() -> None:
    for _ in range(30):
        with held_bus() as (bus, gate):
            bus.on("call", lambda event: None)
            future = bus.call("call")
            called: list[object] = []
            future.add_done_callback(called.append)
            assert run_threads(3, lambda index: future.cancel()) == [True] * 3
            assert called == [future]
            gate.open()


def test_dropped_call_names_its_bus_and_key() -> None:
    with held_bus(queue_size=1, overflow="drop_oldest") as (bus, gate):
        bus.on("call", lambda event: None)
        future = bus.call("call")
        bus.post("key")
        error = future.exception(WAIT)
        assert isinstance(error, EventDroppedError)
        assert isinstance(error, concurrent.futures.CancelledError)
        assert (error.bus, error.what) == (bus, "call")
        assert "'call'" in str(error)
        assert not future.cancelled()
        gate.open()
