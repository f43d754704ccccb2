"""Everything that meets an event loop, on uvloop where it is installed.

It has no wheel for 3.13t, and building it takes minutes, so it is not among the test
dependencies: pip install uvloop.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dispatching import WAIT

import ftbus

uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")


def test_handlers_calls_streams_and_executor_on_uvloop() -> None:
    async def main() -> None:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        loops = []

        async def handle(event: int) -> int:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return event

        async with ftbus.EventBus(workers=2) as bus:
            bus.subscribe("call", handle)
            bus.subscribe("call", lambda event: event * 2)
            assert await bus.acall("call", 21) == [21, 42]
            assert loops == [asyncio.get_running_loop()]
            seen: list[Any] = []
            async with bus.stream("stream", maxsize=8) as stream:
                bus.post_many("stream", range(5))
                async for event in stream:
                    seen.append(event)
                    if len(seen) == 5:
                        break
            assert sorted(seen) == list(range(5))
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(bus.executor(), lambda: 7) == 7

    uvloop.run(asyncio.wait_for(main(), WAIT))


def test_closed_loop_is_a_failure_that_is_reported() -> None:
    async def handle(event: object) -> None:
        raise AssertionError("its loop is closed")

    failures: list[BaseException] = []

    def note(error: BaseException, key: object, handler: object) -> None:
        failures.append(error)

    loop = uvloop.new_event_loop()
    with ftbus.EventBus(on_error=note) as bus:
        bus.subscribe("key", handle, loop=loop)
        loop.close()
        bus.post("key")
        assert bus.drain(WAIT)
    assert len(failures) == 1
