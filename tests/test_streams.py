"""bus.stream(): async iteration over events, bounded, from any thread."""

import asyncio
import gc
import itertools
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from dispatching import WAIT, Gate, check_conservation

from ftbus import (
    BusClosedError,
    EventBus,
    HandlerErrors,
    InvalidOptionError,
    StreamFullError,
)
from ftbus.testing import eventually


def run[T](main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(WAIT):
            return await main

    return asyncio.run(bounded())


def test_stream_yields_what_is_emitted_and_posted() -> None:
    async def main() -> None:
        async with EventBus(workers=2) as bus:
            stream = bus.stream("key")
            bus.emit("key", 1)
            await asyncio.to_thread(bus.emit, "key", 2)
            assert [await anext(stream) for _ in range(2)] == [1, 2]
            bus.post_many("key", range(500), partition="p")
            seen = []
            async for event in stream:
                seen.append(event)
                if len(seen) == 500:
                    break
            assert seen == list(range(500))
            assert stream.dropped == 0
            assert "'key'" in repr(stream)
            await stream.aclose()

    run(main())


def test_stream_of_a_topic() -> None:
    async def main() -> None:
        async with EventBus(workers=1) as bus:
            topic = bus.topic("key")
            async with topic.stream(
                maxsize=2, overflow="drop_newest", priority=1
            ) as stream:
                for n in range(3):
                    topic.emit(n)
                assert [await anext(stream), await anext(stream)] == [0, 1]
                assert stream.dropped == 1
            with pytest.raises(InvalidOptionError):
                topic.stream(maxsize=0)

    run(main())


def test_stream_waits_for_events_of_other_threads() -> None:
    async def main() -> None:
        with EventBus(workers=2) as bus:
            async with bus.stream("key") as stream:
                reading = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                assert not reading.done()
                bus.post("key", 1)
                assert await reading == 1

    run(main())


def test_several_tasks_share_the_events_of_a_stream() -> None:
    async def main() -> None:
        with EventBus(workers=2) as bus:
            stream = bus.stream("key")
            seen: list[list[int]] = [[], [], []]

            async def read(index: int) -> None:
                async for event in stream:
                    seen[index].append(event)

            tasks = [asyncio.create_task(read(index)) for index in range(3)]
            await asyncio.sleep(0)
            bus.post_many("key", range(300))
            await asyncio.to_thread(bus.close)
            await asyncio.gather(*tasks)
            assert sorted(itertools.chain(*seen)) == list(range(300))

    run(main())


def test_a_burst_shares_one_wake_up() -> None:
    async def main() -> None:
        with EventBus(workers=1) as bus:
            loop = asyncio.get_running_loop()
            wakes = []
            call_soon_threadsafe = loop.call_soon_threadsafe

            def counting(*args: Any, **kwargs: Any) -> Any:
                wakes.append(args)
                return call_soon_threadsafe(*args, **kwargs)

            stream = bus.stream("key")
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            loop.call_soon_threadsafe = counting  # type: ignore[assignment]
            for n in range(100):
                bus.emit("key", n)
            assert await reading == 0
            assert [await anext(stream) for _ in range(99)] == list(range(1, 100))
            loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[assignment]
            assert len(wakes) == 1
            await stream.aclose()

    run(main())


# Overflow


@pytest.mark.parametrize(
    ("overflow", "left"), [("drop_oldest", [7, 8, 9]), ("drop_newest", [0, 1, 2])]
)
def test_full_stream_drops_and_counts(overflow: Any, left: list[int]) -> None:
    async def main() -> None:
        with EventBus(workers=1) as bus:
            stream = bus.stream("key", maxsize=3, overflow=overflow)
            assert bus.emit_many("key", range(10)) == 10
            assert [await anext(stream) for _ in range(3)] == left
            assert stream.dropped == 7
            await stream.aclose()

    run(main())


def test_full_stream_that_raises() -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        with EventBus(workers=1, on_error=lambda e, k, h: errors.append(e)) as bus:
            stream = bus.stream("key", maxsize=2, overflow="raise")
            bus.emit_many("key", range(2))
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key", 2)
            (error,) = caught.value.exceptions
            assert isinstance(error, StreamFullError)
            assert (error.key, error.maxsize) == ("key", 2)
            bus.post("key", 3)
            assert await asyncio.to_thread(bus.drain, WAIT)
            assert [type(error) for error in errors] == [StreamFullError]
            assert await anext(stream) == 0
            bus.emit("key", 4)
            assert [await anext(stream) for _ in range(2)] == [1, 4]
            assert bus.stats().failed == 2
            await stream.aclose()

    run(main())


def test_full_stream_that_blocks_holds_the_worker_up() -> None:
    async def main() -> None:
        async with EventBus(workers=1) as bus:
            stream = bus.stream("key", maxsize=2, overflow="block")
            bus.post_many("key", range(50))
            seen = [await anext(stream) for _ in range(50)]
            assert seen == list(range(50))
            assert stream.dropped == 0
            bus.emit_many("key", range(2))
            with pytest.raises(HandlerErrors):  # blocking here would be for ever
                bus.emit("key", 2)
            await stream.aclose()

    run(main())


@pytest.mark.parametrize("end", ["aclose", "close"])
def test_blocked_handler_hears_of_the_end(end: str) -> None:
    async def main() -> None:
        with EventBus(workers=1, on_error=lambda e, k, h: None) as bus:
            stream = bus.stream("key", maxsize=1, overflow="block")
            bus.post_many("key", range(2))
            await asyncio.to_thread(eventually, lambda: bus.stats().handled == 1)
            if end == "aclose":
                await stream.aclose()
                assert await asyncio.to_thread(bus.drain, WAIT)
            else:
                await asyncio.to_thread(bus.close, timeout=0)
                eventually(lambda: bus.stats().pending == 0)
            check_conservation(bus.stats())

    run(main())


# The end


def test_closing_the_bus_ends_the_stream_after_what_it_holds() -> None:
    async def main() -> None:
        bus = EventBus(workers=1)
        stream = bus.stream("key")
        bus.post_many("key", range(5))
        await asyncio.to_thread(bus.close)
        assert [event async for event in stream] == list(range(5))
        assert [event async for event in stream] == []
        with pytest.raises(BusClosedError):
            bus.stream("key")
        assert not bus._sinks

    run(main())


def test_closing_the_bus_wakes_who_waits_for_the_stream() -> None:
    async def main() -> None:
        bus = EventBus(workers=1)
        stream = bus.stream("key")

        async def read() -> list[object]:
            return [event async for event in stream]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        await asyncio.to_thread(bus.close)
        assert await reading == []

    run(main())


def test_aclose_unsubscribes_and_wakes_readers() -> None:
    async def main() -> None:
        with EventBus() as bus:
            async with bus.stream("key") as stream:
                assert bus.emit("key", 1) == 1
            assert bus.emit("key", 1) == 0
            await stream.aclose()
            assert [event async for event in stream] == []
            other = bus.stream("key")
            reading = asyncio.ensure_future(anext(other, "end"))
            await asyncio.sleep(0)
            await other.aclose()
            assert await reading == "end"

    run(main())


def test_stream_that_nobody_holds_is_unsubscribed() -> None:
    async def main() -> None:
        with EventBus() as bus:

            async def read() -> None:
                bus.emit_many("key", range(3))
                async for event in bus.stream("key"):
                    raise AssertionError(event)

            async def take_one() -> object:
                stream = bus.stream("key")
                bus.emit_many("key", range(3))
                async for event in stream:
                    return event
                return None

            assert await take_one() == 0
            gc.collect()
            assert bus.emit("key") == 0
            assert not bus._sinks

    run(main())


def test_stream_whose_loop_is_closed_is_an_error() -> None:
    with EventBus(workers=1, on_error=lambda e, k, h: None) as bus:
        streams = []

        async def main() -> None:
            streams.append(bus.stream("key"))
            bus.emit("key", 1)

        asyncio.run(main())
        with pytest.raises(HandlerErrors) as caught:
            bus.emit("key", 2)
        assert isinstance(caught.value.exceptions[0], RuntimeError)
        bus.post("key", 3)
        assert bus.drain(WAIT)
        assert bus.stats().failed == 2
        streams.clear()


def test_stream_without_a_running_loop_is_refused() -> None:
    with EventBus() as bus, pytest.raises(InvalidOptionError):
        bus.stream("key")


@pytest.mark.parametrize(
    "options",
    [
        {"maxsize": 0},
        {"maxsize": -1},
        {"maxsize": True},
        {"maxsize": 1.0},
        {"maxsize": 2**30 + 1},
        {"overflow": "drop"},
        {"overflow": None},
        {"priority": "high"},
    ],
)
def test_invalid_options_are_refused(options: Any) -> None:
    async def main() -> None:
        with EventBus() as bus:
            with pytest.raises(InvalidOptionError):
                bus.stream("key", **options)
            assert bus.emit("key") == 0
            assert not bus._sinks

    run(main())


def test_options_of_subscribe() -> None:
    async def main() -> None:
        with EventBus() as bus:
            stream = bus.stream("key", encoded=True, once=True)
            assert bus.emit("key", [1]) == 1
            assert bus.emit("key", [2]) == 0
            assert bytes(await anext(stream)) == b"[1]"
            await stream.aclose()

    run(main())


# The bus as an async context manager; async handlers


def test_leaving_an_async_with_block_does_not_block_the_loop() -> None:
    async def main() -> None:
        gate = Gate()
        async with EventBus(workers=1) as bus:
            done = []

            @bus.on("async")
            async def handler(event: object) -> None:
                done.append(event)
                gate.open()  # the handler that close() waits for

            @bus.on("key")
            def held(event: object) -> None:
                bus.emit("async", event)
                gate(event)

            bus.post("key", 1)
        assert bus.closed
        assert done == gate.seen == [1]

    run(main())


def test_failures_of_async_handlers_are_counted() -> None:
    errors: list[tuple[Any, ...]] = []

    async def main() -> None:
        async with EventBus(workers=1, on_error=lambda *e: errors.append(e)) as bus:

            @bus.on("key")
            async def handler(event: object) -> None:
                raise LookupError(event)

            bus.emit("key", 1)
            bus.post("key", 2)
            assert await asyncio.to_thread(bus.drain, WAIT)
            while len(errors) < 2:
                await asyncio.sleep(0)
            row = bus.stats().topic("key")
            assert (row.handled, row.failed) == (2, 2)
            assert {error.args[0] for error, _, _ in errors} == {1, 2}
            assert {key for _, key, _ in errors} == {"key"}
            errors.clear()

    run(main())


def test_events_that_a_closed_loop_never_got_to_are_reported() -> None:
    errors: list[BaseException] = []
    with EventBus(workers=1, on_error=lambda e, k, h: errors.append(e)) as bus:
        loop = asyncio.new_event_loop()
        seen: list[object] = []

        async def handler(event: object) -> None:
            seen.append(event)

        bus.on("key", handler, loop=loop)
        assert bus.emit("key", 1) == 1
        assert bus.emit("key", 2) == 1
        loop.close()
        assert errors == []
        with pytest.raises(HandlerErrors):
            bus.emit("key", 3)
        assert [type(error) for error in errors] == [RuntimeError] * 2
        row = bus.stats().topic("key")
        assert (row.handled, row.failed) == (3, 3)
        assert seen == []


def test_emitting_threads_race_with_the_end_of_a_stream() -> None:
    for _ in range(10):
        with EventBus(workers=2, on_error=lambda e, k, h: None) as bus:
            stop = threading.Event()

            def emit() -> None:
                while not stop.is_set():
                    bus.emit("key", 1)

            thread = threading.Thread(target=emit)

            async def main() -> None:
                stream = bus.stream("key", maxsize=8)
                thread.start()
                for _ in range(100):
                    assert await anext(stream) == 1
                await stream.aclose()

            run(main())
            stop.set()
            thread.join(WAIT)
            assert bus.emit("key") == 0
