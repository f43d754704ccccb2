"""Helpers for tests of concurrent code: ftbus's own, and yours.

They need no test framework. With pytest, a guard around every test is three lines in
conftest.py::

    @pytest.fixture(autouse=True)
    def leak_guard():
        with ftbus.testing.no_leaks():
            yield

Which buffer it was, and where it came from, ftbus.testing.pytest_plugin says.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ftbus import _core, buffers, interrupts
from ftbus.buffers import default_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["eventually", "no_leaks", "run_threads"]

_STEP_S = 0.005


def run_threads[T](n: int, function: Callable[[int], T]) -> list[T]:
    """Run function(0) ... function(n - 1) at once in n threads; return their results.

    The threads meet at a barrier first, so that they really race. The results are in
    the order of the arguments.

    Raises what a thread raised; if several did, a BaseExceptionGroup of it all.
    """
    barrier = threading.Barrier(n)
    results: list[Any] = [None] * n
    errors: list[BaseException | None] = [None] * n

    def run(index: int) -> None:
        try:
            barrier.wait()
            results[index] = function(index)
        except BaseException as error:
            errors[index] = error

    threads = [
        threading.Thread(target=run, args=(index,), name=f"run_threads-{index}")
        for index in range(n)
    ]
    try:
        for thread in threads:
            thread.start()
    except BaseException:
        barrier.abort()  # those that did start must not wait for the others
        raise
    for thread in threads:
        interrupts.join(thread, math.inf)
    raised = [error for error in errors if error is not None]
    if len(raised) == 1:
        raise raised[0]
    if raised:
        raise BaseExceptionGroup(f"{len(raised)} of {n} threads failed", raised)
    return results


def eventually[T](condition: Callable[[], T], within: float = 5.0) -> T:
    """Ask until the condition is true; return what it returned.

    within: seconds to go on asking. It may be generous: a test that passes does not
        wait for it.

    Raises AssertionError if the condition stays false.
    """
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() >= deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"{name} was still {value!r} after {within} s")
        pause.wait(_STEP_S)
    return value


@contextmanager
def no_leaks(within: float = 5.0) -> Iterator[None]:
    """Check that the block leaves no handler and no buffer behind.

    Counted are the handlers of all buses and the buffers of the default pool, in the
    whole process. What other threads still hold has `within` seconds to go away, with
    the help of the garbage collector. A block that raises is not checked. Where buffers
    come from is named if they are watched: see ftbus.buffers.set_leak_level.

    Raises AssertionError.
    """
    before = _live()
    known = {held.serial for held in buffers.held_buffers()}
    yield

    def is_settled() -> bool:
        if not _exceeds(_live(), before):
            return True
        gc.collect()
        _core.reclaim()
        return not _exceeds(_live(), before)

    try:
        eventually(is_settled, within)
    except AssertionError:
        left = _exceeds(_live(), before)
        if left:
            text = f"left behind: {', '.join(left)}"
            held = [h for h in buffers.held_buffers() if h.serial not in known]
            raise AssertionError("\n".join([text, *map(str, held)])) from None


def _live() -> dict[str, int]:
    return {
        "handlers": _core.live_handlers(),
        "buffers": default_pool.live,
    }


def _exceeds(now: dict[str, int], before: dict[str, int]) -> list[str]:
    return [
        f"{now[name] - before[name]} {name}" for name in now if now[name] > before[name]
    ]
