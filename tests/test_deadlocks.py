"""Handlers and functions that would wait for each other for ever are told so."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from dispatching import WAIT, Gate

from ftbus import DeadlockError, EventBus, HandlerErrors, Subscription
from ftbus.testing import eventually, run_threads


def outcome(wait: Callable[[], Any]) -> str:
    try:
        wait()
    except DeadlockError:
        return "refused"
    return "waited"


# cancel(wait=True)


def cancel_in_a_circle(n: int, verb: str) -> list[str]:
    """Let each of n handlers cancel the next while all run; return the outcomes."""
    outcomes: list[str] = []
    with EventBus(workers=n) as bus:
        barrier = threading.Barrier(n)
        subscriptions: list[Subscription] = []

        def handler(index: int) -> None:
            barrier.wait(WAIT)
            following = subscriptions[(index + 1) % n]
            outcomes.append(outcome(lambda: following.cancel(wait=True)))

        for index in range(n):
            subscriptions.append(bus.subscribe(index, handler))
        if verb == "emit":
            run_threads(n, lambda index: bus.emit(index, index))
        else:
            for index in range(n):
                getattr(bus, verb)(index, index)
            assert bus.drain(WAIT)
        assert not any(subscription.active for subscription in subscriptions)
    return outcomes


@pytest.mark.parametrize("verb", ["emit", "post", "call"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_handlers_that_cancel_each_other(n: int, verb: str) -> None:
    outcomes = cancel_in_a_circle(n, verb)
    assert sorted(outcomes) == ["refused"] + ["waited"] * (n - 1)


def test_handler_that_cancels_itself_in_two_threads() -> None:
    with EventBus() as bus:
        barrier = threading.Barrier(2)

        def handler(event: object) -> None:
            barrier.wait(WAIT)
            own.cancel(wait=True)

        own = bus.subscribe("key", handler)
        errors: list[Exception] = []

        def emit(index: int) -> None:
            try:
                bus.emit("key")
            except HandlerErrors as group:
                errors.extend(group.exceptions)

        run_threads(2, emit)
        assert [type(error) for error in errors] == [DeadlockError]
        assert isinstance(errors[0], DeadlockError)
        assert errors[0].waiting_for is own
        assert "is cancelled" in str(errors[0])
        assert not own.active


def test_chain_of_waits_is_no_circle() -> None:
    with EventBus() as bus:
        barrier = threading.Barrier(3)
        subscriptions: list[Subscription] = []
        leave = threading.Event()
        outcomes: list[str] = []

        def handler(index: int) -> None:
            barrier.wait(WAIT)
            if index == 2:
                assert leave.wait(WAIT)
                return
            following = subscriptions[index + 1]
            outcomes.append(outcome(lambda: following.cancel(wait=True)))

        for index in range(3):
            subscriptions.append(bus.subscribe(index, handler))

        def run(index: int) -> None:
            if index < 3:
                bus.emit(index, index)
                return
            eventually(
                lambda: [s.active for s in subscriptions] == [True, False, False]
            )
            # This thread runs no handler: it may wait for all of them.
            leave.set()
            outcomes.append(outcome(lambda: subscriptions[0].cancel(wait=True)))

        run_threads(4, run)
        assert outcomes == ["waited"] * 3


def test_nested_emit_waits_for_what_this_thread_has_open_further_out() -> None:
    with EventBus() as bus:
        barrier = threading.Barrier(2)
        outcomes: list[str] = []

        def outer(event: object) -> None:
            bus.emit("inner")

        def inner(event: object) -> None:
            barrier.wait(WAIT)
            outcomes.append(outcome(lambda: other_one.cancel(wait=True)))

        def other(event: object) -> None:
            barrier.wait(WAIT)
            outcomes.append(outcome(lambda: outer_one.cancel(wait=True)))

        outer_one = bus.subscribe("outer", outer)
        bus.on("inner", inner)
        other_one = bus.subscribe("other", other)
        run_threads(2, lambda index: bus.emit(("outer", "other")[index]))
        assert sorted(outcomes) == ["refused", "waited"]


# Executor.shutdown()


@pytest.mark.parametrize("n", [2, 3])
def test_functions_that_shut_down_the_executor_that_runs_them(n: int) -> None:
    with EventBus(workers=n) as bus:
        executor = bus.executor()
        barrier = threading.Barrier(n)

        def function() -> str:
            barrier.wait(WAIT)
            return outcome(executor.shutdown)

        futures = [executor.submit(function) for _ in range(n)]
        outcomes = [future.result(WAIT) for future in futures]
        # Each would wait for all the others, so that only the first can.
        assert sorted(outcomes) == ["refused"] * (n - 1) + ["waited"]


def test_functions_that_shut_down_each_others_executor() -> None:
    with EventBus(workers=2) as bus, EventBus(workers=2) as other:
        executors = [bus.executor(), other.executor()]
        barrier = threading.Barrier(2)

        def function(index: int) -> None:
            barrier.wait(WAIT)
            executors[1 - index].shutdown()

        futures = [executors[n].submit(function, n) for n in range(2)]
        errors = [future.exception(WAIT) for future in futures]
        refused = [error for error in errors if error is not None]
        assert [type(error) for error in refused] == [DeadlockError]
        assert isinstance(refused[0], DeadlockError)
        assert refused[0].waiting_for in executors
        assert "is shut down" in str(refused[0])


def test_shutdown_waits_for_a_function_that_waits_for_another_executor() -> None:
    with EventBus(workers=2) as bus:
        first, second = bus.executor(), bus.executor()
        gate = Gate()
        held = second.submit(gate, 1)
        gate.wait_entered()
        waiting = first.submit(second.shutdown)
        eventually(lambda: second._is_shut_down)
        assert not waiting.done()
        gate.open()
        first.shutdown()
        assert (held.result(WAIT), waiting.result(WAIT)) == (None, None)
