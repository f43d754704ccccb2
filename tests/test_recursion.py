"""Handlers that emit without end are stopped."""

from typing import Any

import pytest
from builds import IS_INSTRUMENTED
from dispatching import WAIT, leaves

from ftbus import EmitDepthError, EventBus, HandlerErrors, _core


def test_emit_without_end_is_stopped_with_an_error() -> None:
    with EventBus() as bus:
        depth = [0]

        def handler(event: object) -> None:
            depth[0] += 1
            bus.emit("key", event)

        bus.on("key", handler)
        for _ in range(3):
            depth[0] = 0
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key", 1)
            (error,) = leaves(caught.value)
            assert isinstance(error, EmitDepthError)
            assert isinstance(error, RecursionError)
            assert error.bus is bus
            assert error.key == "key"
            assert error.limit == depth[0] == _core.DEPTH_MAX
        bus.off("key")
        assert bus.emit("key") == 0


@pytest.mark.parametrize("errors", ["raise", "log"])
def test_several_handlers_without_end_are_stopped_soon(errors: Any) -> None:
    """Not after 2 ** 64 calls: the error passes through the nested emits at once."""
    reported: list[BaseException] = []
    with EventBus(errors=errors, on_error=lambda e, k, h: reported.append(e)) as bus:
        calls = [0]

        def handler(event: object) -> None:
            calls[0] += 1
            assert calls[0] < 1000, "endless"
            bus.emit("key", event)

        for _ in range(3):
            bus.on("key", lambda event: handler(event))
        if errors == "raise":
            with pytest.raises(HandlerErrors) as caught:
                bus.emit("key", 1)
            reported = list(caught.value.exceptions)
        else:
            bus.emit("key", 1)
        assert [type(error) for error in reported] == [EmitDepthError] * 3
        assert calls[0] == 3 * _core.DEPTH_MAX


def test_emit_may_nest_up_to_the_limit() -> None:
    with EventBus() as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            seen.append(event)
            if event:
                bus.emit("key", event - 1)

        bus.on("key", handler)
        assert bus.emit("key", _core.DEPTH_MAX - 1) == 1
        assert len(seen) == _core.DEPTH_MAX


@pytest.mark.parametrize("verb", ["emit", "call"])
def test_recursion_on_a_worker_is_a_failure_like_others(verb: str) -> None:
    errors: list[BaseException] = []
    with EventBus(workers=1, on_error=lambda e, k, h: errors.append(e)) as bus:

        def handler(event: object) -> None:
            if verb == "emit":
                bus.emit("key", event)
            else:
                bus.emit("call", event)

        bus.on("key", handler)
        bus.on("call", lambda event: bus.call("key") and bus.emit("call", event))
        bus.post("key" if verb == "emit" else "call")
        bus.off("key") if verb == "call" else None
        assert bus.drain(WAIT)
        assert any(
            isinstance(leaf, EmitDepthError) for e in errors for leaf in leaves(e)
        )
        bus.off("key")
        bus.off("call")
        seen: list[object] = []
        bus.on("key", seen.append)
        bus.post("key", 1)
        assert bus.drain(WAIT)
        assert seen == [1]


@pytest.mark.thread_unsafe(reason="starts a process")
@pytest.mark.parametrize("stack_kib", [64, 256])
def test_recursion_on_small_stacks_is_stopped_without_a_crash(
    python: Any, stack_kib: int
) -> None:
    if stack_kib == 64 and IS_INSTRUMENTED:
        pytest.skip("a sanitizer's larger frames do not fit into it as often")
    done = python(
        f"""
import threading, ftbus
bus = ftbus.EventBus(workers=1, on_error=lambda e, k, h: reported.append(e))
reported = []
def leaves(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
bus.on("key", lambda event: bus.emit("key", event))
def run():
    try:
        bus.emit("key")
    except ExceptionGroup as group:
        print(type(leaves(group)).__name__)
threading.stack_size({stack_kib} * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
bus.post("key")  # the worker's stack is large enough whatever is set
bus.drain()
print(type(leaves(reported[0])).__name__)
bus.close()
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["EmitDepthError"] * 2
