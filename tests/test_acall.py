"""acall: calling for results from an event loop."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from dispatching import WAIT, Gate, check_conservation, held_bus

from ftbus import (
    BusClosedError,
    EventBus,
    EventDroppedError,
    HandlerErrors,
    InvalidOptionError,
    QueueFullError,
)
from ftbus.testing import eventually


def run[T](main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(WAIT):
            return await main

    return asyncio.run(bounded())


def test_acall_returns_results_in_handler_order() -> None:
    with EventBus(workers=2) as bus:
        for n in range(5):
            bus.on("key", lambda event, n=n: (n, event), priority=-n)

        async def main() -> None:
            assert await bus.acall("key", 1) == [(n, 1) for n in range(5)]
            assert await bus.topic("key").acall(2) == [(n, 2) for n in range(5)]
            assert await bus.topic("key").acall() == [(n, None) for n in range(5)]
            assert await bus.acall("nobody") == []
            results = await asyncio.gather(*(bus.acall("key", n) for n in range(50)))
            assert [result[4] for result in results] == [(4, n) for n in range(50)]

        run(main())
        assert bus.drain(WAIT)
        check_conservation(bus.stats())


def test_acall_raises_what_call_raises() -> None:
    with EventBus(workers=1) as bus:

        @bus.on("key")
        def handler(event: object) -> None:
            raise LookupError(event)

        async def main() -> None:
            with pytest.raises(HandlerErrors) as caught:
                await bus.acall("key", 1)
            assert caught.value.exceptions[0].args == (1,)
            with pytest.raises(TypeError):
                await bus.acall("key", 1, 2)
            with pytest.raises(InvalidOptionError):
                await bus.acall("key", timeout=-1)
            bus.close()
            with pytest.raises(BusClosedError):
                await bus.acall("key")

        run(main())


def test_acall_of_async_handlers_on_the_same_loop() -> None:
    with EventBus(workers=1) as bus:

        async def main() -> None:
            @bus.on("key")
            async def handler(event: int) -> int:
                await asyncio.sleep(0)
                return event + 1

            assert await bus.acall("key", 1) == [2]

        run(main())


@pytest.mark.parametrize("timeout", [None, WAIT])
def test_acall_waits_for_space_without_blocking_the_loop(timeout: Any) -> None:
    with held_bus(queue_size=1) as (bus, gate):
        bus.post("key")
        bus.on("call", lambda event: event)
        bus.on("call", lambda event: event)

        async def main() -> None:
            call = asyncio.create_task(bus.acall("call", 1, timeout=timeout))
            await asyncio.sleep(0)  # the call has started; the loop goes on
            assert not call.done()
            gate.open()
            assert await call == [1, 1]

        run(main())
        assert bus.drain(WAIT)
        stats = bus.stats()
        check_conservation(stats)
        assert stats.delivered == 4


@pytest.mark.parametrize(
    ("overflow", "timeout"), [("block", 0), ("block", 0.01), ("raise", None)]
)
def test_acall_that_finds_no_space_is_refused(overflow: Any, timeout: Any) -> None:
    with held_bus(queue_size=1, overflow=overflow) as (bus, gate):
        bus.post("key")
        once = bus.subscribe("call", lambda event: event, once=True)

        async def main() -> None:
            with pytest.raises(QueueFullError):
                await bus.acall("call", 1, timeout=timeout)
            gate.open()
            assert once.active
            eventually(lambda: bus.stats().pending == 0)
            assert await bus.acall("call", 2) == [2]

        run(main())
        check_conservation(bus.stats())


def test_acall_that_is_dropped_raises_no_cancelled_error() -> None:
    with held_bus(queue_size=1, overflow="drop_oldest") as (bus, gate):
        bus.on("call", lambda event: event)

        async def main() -> None:
            call = asyncio.create_task(bus.acall("call", 1))
            await asyncio.sleep(0)
            bus.post("key")
            with pytest.raises(EventDroppedError):
                await call
            assert not call.cancelled()
            gate.open()

        run(main())


def test_cancelling_the_task_cancels_a_call_that_has_not_started() -> None:
    with held_bus() as (bus, gate):
        seen: list[object] = []
        bus.on("call", seen.append)

        async def main() -> None:
            call = asyncio.create_task(bus.acall("call", 1))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await bus.acall("call", 2)
            gate.open()
            assert await bus.acall("call", 3) == [None]

        run(main())
        assert seen == [3]
        assert bus.drain(WAIT)
        check_conservation(bus.stats())


def test_cancelling_the_task_keeps_the_other_handlers_from_starting() -> None:
    gate = Gate()
    with EventBus(workers=1) as bus:
        seen: list[object] = []
        bus.on("call", gate)
        for _ in range(3):
            bus.on("call", seen.append)
        once = bus.subscribe("call", seen.append, once=True)

        async def main() -> None:
            call = asyncio.create_task(bus.acall("call", 1))
            await asyncio.to_thread(gate.wait_entered)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        run(main())
        gate.open()
        assert bus.drain(WAIT)
        assert seen == []
        assert gate.seen == [1]
        assert once.active
        check_conservation(bus.stats())


def test_cancelling_the_task_while_it_waits_for_space() -> None:
    with held_bus(queue_size=1) as (bus, gate):
        bus.post("key")
        seen: list[object] = []
        bus.on("call", seen.append)

        async def main() -> None:
            call = asyncio.create_task(bus.acall("call", 1))
            await asyncio.to_thread(eventually, lambda: bus.stats().posted == 3)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            gate.open()

        run(main())
        assert bus.drain(WAIT)
        assert seen == []
        check_conservation(bus.stats())


def test_acall_whose_loop_is_closed_before_the_end_harms_nobody() -> None:
    gate = Gate()
    with EventBus(workers=1) as bus:
        bus.on("call", gate)
        loop = asyncio.new_event_loop()

        async def main() -> None:
            call = asyncio.ensure_future(bus.acall("call"))
            await asyncio.to_thread(gate.wait_entered)
            call.cancel()
            await asyncio.wait([call])

        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        gate.open()
        assert bus.drain(WAIT)
        bus.on("other", lambda event: threading.current_thread().name)
        assert bus.call("other").result(WAIT)
