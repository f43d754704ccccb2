"""Async handlers: on which loop they run, and where their failures go."""

import asyncio
import functools
import gc
import threading
import weakref
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import EventBus, HandlerErrors, InvalidOptionError, handlers
from ftbus.testing import eventually, run_threads


def test_async_handler_runs_on_the_loop_it_was_registered_from() -> None:
    with EventBus(workers=2) as bus:
        seen: list[tuple[object, bool]] = []

        async def main() -> None:
            loop, done = asyncio.get_running_loop(), asyncio.Event()

            @bus.on("key")
            async def handler(event: int) -> None:
                seen.append((event, asyncio.get_running_loop() is loop))
                if len(seen) == 6:
                    done.set()

            assert bus.emit("key", 0) == 1
            bus.post("key", 1)
            await asyncio.to_thread(run_threads, 4, lambda n: bus.emit("key", n + 2))
            await asyncio.wait_for(done.wait(), WAIT)

        asyncio.run(main())
        assert sorted(seen) == [(n, True) for n in range(6)]


def test_async_handlers_share_one_wake_up() -> None:
    with EventBus() as bus:
        wakes = [0]

        class Loop(asyncio.SelectorEventLoop):
            def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
                wakes[0] += 1
                return super().call_soon_threadsafe(*args, **kwargs)

        async def main() -> list[int]:
            seen: list[int] = []

            async def handler(event: int) -> None:
                seen.append(event)

            bus.on("key", handler)
            for n in range(500):  # without giving the loop a chance
                bus.emit("key", n)
            while len(seen) < 500:
                await asyncio.sleep(0)
            return seen

        with asyncio.Runner(loop_factory=Loop) as runner:
            seen = runner.run(main())
        assert seen == list(range(500))
        assert wakes[0] <= 3


def test_async_handler_takes_a_loop() -> None:
    with EventBus() as bus:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        seen: list[object] = []

        async def handler(event: object) -> None:
            seen.append((event, threading.current_thread() is thread))

        bus.on("key", handler, loop=loop)
        bus.emit("key", 1)
        eventually(lambda: seen == [(1, True)])
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_async_handler_without_a_loop_is_refused() -> None:
    async def handler(event: object) -> None:
        pass

    with EventBus() as bus:
        with pytest.raises(InvalidOptionError) as caught:
            bus.on("key", handler)
        assert caught.value.option == "loop"
        loop = asyncio.new_event_loop()
        with pytest.raises(InvalidOptionError):
            bus.on("key", handler, loop=loop, weak=True)
        with pytest.raises(InvalidOptionError):
            bus.on("key", print, loop=loop)
        loop.close()


def test_async_callable_object_and_partial_are_async_handlers() -> None:
    class Function:
        async def __call__(self, event: object) -> None:
            seen.append(("object", event))

    async def function(prefix: str, event: object) -> None:
        seen.append((prefix, event))

    seen: list[object] = []
    with EventBus() as bus:

        async def main() -> None:
            bus.on("key", Function())
            bus.on("key", functools.partial(function, "partial"))
            assert bus.emit("key", 1) == 2
            while len(seen) < 2:
                await asyncio.sleep(0)

        asyncio.run(main())
    assert seen == [("object", 1), ("partial", 1)]


def test_async_handler_on_a_closed_loop_is_a_failure_each_time() -> None:
    async def handler(event: object) -> None:
        pass

    with EventBus() as bus:
        loop = asyncio.new_event_loop()
        bus.on("key", handler, loop=loop)
        bus.emit("key")  # waits for a loop that never runs
        loop.close()
        for _ in range(3):
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key")
            assert isinstance(caught.value.exceptions[0], RuntimeError)
        assert bus.off("key", handler) == 1


def test_async_handler_failure_goes_to_on_error() -> None:
    errors: list[tuple[Any, Any, Any]] = []
    with EventBus(on_error=lambda *args: errors.append(args)) as bus:

        async def handler(event: object) -> None:
            raise ValueError(event)

        async def main() -> None:
            bus.on("key", handler)
            assert bus.emit("key", 5) == 1
            while not errors:
                await asyncio.sleep(0)

        asyncio.run(main())
    ((error, key, function),) = errors
    assert isinstance(error, ValueError)
    assert error.args == (5,)
    assert key == "key"
    assert function is handler


async def failing(event: object) -> None:
    raise ValueError(event)


def failures_of(bus: EventBus, key: object) -> list[int]:
    """Return how often each handler of a key failed, by order of subscription."""
    return [row.failed for row in bus.stats().handlers_of(key)]


def test_failures_of_async_handlers_are_in_their_rows() -> None:
    errors: list[Any] = []

    async def fine(event: object) -> None:
        pass

    async def main(bus: EventBus) -> None:
        twice = bus.subscribe("key", failing)
        bus.subscribe("key", fine)
        bus.subscribe("key", failing)
        bus.emit("key", 1)
        while len(errors) < 2:
            await asyncio.sleep(0)
        assert failures_of(bus, "key") == [1, 0, 1]
        twice.cancel()
        bus.emit("key", 2)
        while len(errors) < 3:
            await asyncio.sleep(0)
        assert failures_of(bus, "key") == [0, 2]
        assert bus.stats().topic("key").failed == bus.stats().failed == 3

    with EventBus(on_error=lambda *args: errors.append(args)) as bus:
        asyncio.run(main(bus))


def test_failure_of_a_cancelled_async_handler_is_in_the_totals() -> None:
    errors: list[Any] = []

    async def main(bus: EventBus) -> None:
        subscription = bus.subscribe("key", failing)
        bus.emit("key", 1)
        subscription.cancel()
        while not errors:
            await asyncio.sleep(0)
        assert failures_of(bus, "key") == []
        assert bus.stats().failed == 1

    with EventBus(on_error=lambda *args: errors.append(args)) as bus:
        asyncio.run(main(bus))


def test_failures_of_async_handlers_of_batches_are_in_their_rows() -> None:
    errors: list[Any] = []

    async def main(bus: EventBus) -> None:
        bus.subscribe("key", failing, batch=(2, 60.0))
        for number in range(4):
            bus.emit("key", number)
        while len(errors) < 2:
            await asyncio.sleep(0)
        assert failures_of(bus, "key") == [2]

    with EventBus(on_error=lambda *args: errors.append(args)) as bus:
        asyncio.run(main(bus))


def test_failures_of_called_async_handlers_are_in_their_rows() -> None:
    async def main(bus: EventBus) -> None:
        bus.subscribe("key", failing)
        for count in range(1, 4):
            with pytest.raises(ExceptionGroup):
                await bus.acall("key", 1)
            assert failures_of(bus, "key") == [count]
        assert bus.stats().topic("key").failed == 3
        (row,) = bus.stats().errors
        assert (row.count, row.key) == (3, "'key'")
        assert row.handler.endswith("failing")

    with EventBus(workers=1) as bus:
        asyncio.run(main(bus))


@pytest.mark.thread_unsafe(reason="calls what a fork's child calls")
def test_fork_child_can_put_to_a_loop_whose_lock_was_held() -> None:
    loop = asyncio.new_event_loop()
    inbox = handlers._inbox_of(loop)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with inbox._lock:
            entered.set()
            assert leave.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert entered.wait(WAIT)
        inbox.after_fork_child()
        assert inbox._lock.acquire(blocking=False)
        inbox._lock.release()
    finally:
        leave.set()
        thread.join()
        loop.close()


def test_loop_is_let_go_with_its_handlers() -> None:
    with EventBus() as bus:

        async def main() -> "weakref.ref[Any]":
            async def handler(event: object) -> None:
                pass

            bus.on("key", handler)
            bus.emit("key")
            await asyncio.sleep(0)
            bus.off("key")
            return weakref.ref(asyncio.get_running_loop())

        reference = asyncio.run(main())
        gc.collect()
        assert reference() is None
