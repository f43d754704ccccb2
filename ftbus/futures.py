"""Futures of what runs on a bus's workers: waiting for one in a handler helps."""

from __future__ import annotations

import math
import time
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Protocol

from ftbus import interrupts

if TYPE_CHECKING:
    from ftbus.bus import EventBus

__all__ = ["TaskFuture"]

# A handler that waits for what others are running looks this often whether something is
# queued that nobody else may be left to run.
_PAUSE_MIN_S = 0.005
_PAUSE_MAX_S = 0.05

# Python frames that running a task takes, from result() to its function, with some to
# spare: a recursion error in between would lose the task.
_FRAMES = 30


class Work(Protocol):
    """What a TaskFuture stands for: one task or more, queued on a bus."""

    bus: EventBus

    def run_one(self) -> bool:
        """Run a task that nobody has started; return whether there was one."""

    def cancel_unstarted(self) -> None:
        """Let no task start that has not, and drop what they hold."""


class TaskFuture[T](Future[T]):
    """A concurrent.futures.Future of work that is queued on a bus.

    cancel() succeeds until the work has started. Where a handler waits for it on one of
    the bus's own workers, result() and exception() run the work there and then if no
    other worker has started it; so calls may be nested deeper than there are workers.
    If it has been started, they look after a pause whether something else is queued and
    run that: hold no lock over result() that other handlers take. A timeout is looked
    at between what they run.

    concurrent.futures.wait and as_completed do not help: a handler that uses them needs
    another worker to be free. Any thread.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work: Work | None = work

    def result(self, timeout: float | None = None) -> T:
        """Return what the work returned, or raise what it raised.

        timeout: seconds to wait, None for as long as it takes.

        Raises TimeoutError, and CancelledError if it was cancelled or dropped.
        """
        try:
            return super().result(self._help(timeout))
        finally:
            del self  # what was raised refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the work raised, or None; otherwise like result."""
        return super().exception(self._help(timeout))

    def cancel(self) -> bool:
        """Cancel the work unless it has started; return whether it is cancelled.

        What was queued for it stays there, empty, until a worker comes to it.
        """
        work = self._work
        if not super().cancel():
            return False
        if work is not None:
            work.cancel_unstarted()
            self._work = None
        return True

    def set_result(self, result: T) -> None:
        """Set the result; for ftbus itself."""
        super().set_result(result)
        self._work = None  # it refers back to this

    def set_exception(self, exception: BaseException | None) -> None:
        """Set the exception; for ftbus itself."""
        super().set_exception(exception)
        self._work = None

    def _help(self, timeout: float | None) -> float | None:
        """Run what this waits for, or let signals in; return what is left to wait."""
        work = self._work
        if work is None or (timeout is not None and timeout <= 0):
            return timeout
        if not work.bus._executing():
            return self._wait_in_slices(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _PAUSE_MIN_S
        while not self.done():
            _check_headroom(_FRAMES)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return 0.0
            if work.run_one():
                continue
            if self._wait(pause if left is None else min(pause, left)):
                break
            if not work.bus._help():
                pause = min(2 * pause, _PAUSE_MAX_S)
        return timeout

    def _wait_in_slices(self, timeout: float | None) -> float | None:
        """Wait in the main thread, where signals run; return what is left to wait."""
        slice_s = interrupts.slice_s()
        if slice_s is None:
            return timeout
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if self._wait(min(slice_s, left)):
                return timeout
        return 0.0

    def _wait(self, seconds: float) -> bool:
        """Wait; return whether this is done."""
        try:
            super().exception(seconds)
        except TimeoutError:
            return False
        except CancelledError:
            pass
        return True


def _check_headroom(frames: int) -> None:
    """Raise RecursionError if there is no room for so many frames more."""
    if frames:
        _check_headroom(frames - 1)
