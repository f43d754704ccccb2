"""The worker threads: starting, calling for results, closing."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from ftbus import _core
from ftbus.errors import BusClosedError, HandlerErrors
from ftbus.handlers import AsyncHandler

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftbus.bus import EventBus

# Handlers may recurse: below 1 MiB CPython's own recursion limit comes too late.
_STACK_BYTES_MIN = 1 << 20


def worker_count(workers: int | None) -> int:
    """Return the number of workers asked for, or one per usable core."""
    return (os.process_cpu_count() or 1) if workers is None else workers


def start_workers(bus: EventBus) -> None:
    """Make the pool and start its threads. Caller holds bus._lock."""
    bus._start_pool()
    for index in range(bus._workers):
        # An empty context: what the first poster has set is not the workers' business.
        run = contextvars.Context().run
        thread = threading.Thread(
            target=run,
            args=(bus._work, index),
            name=f"{bus.name}-worker-{index}",
            daemon=True,
        )
        _start_with_stack(thread)
        bus._threads.append(thread)


def _start_with_stack(thread: threading.Thread) -> None:
    """Start a thread on a stack of at least 1 MiB, whatever size is configured."""
    configured = threading.stack_size()
    if 0 < configured < _STACK_BYTES_MIN:
        threading.stack_size(_STACK_BYTES_MIN)
        try:
            thread.start()
        finally:
            threading.stack_size(configured)
    else:
        thread.start()


class _Call:
    """One call under way: results by handler, and the Future for all of them."""

    def __init__(self, key: object, handlers_n: int) -> None:
        self.key = key
        self.future: Future[list[Any]] = Future()
        self._lock = threading.Lock()
        self._left = handlers_n
        self._results: list[Any] = [None] * handlers_n
        self._errors: list[tuple[int, Exception]] = []

    def run(self, index: int, function: Callable[[Any], Any], event: object) -> None:
        """Run one handler, unless the call has ended, and keep what comes of it."""
        if self.future.done():
            return
        try:
            if isinstance(function, AsyncHandler):
                function.start(event).add_done_callback(
                    lambda done: self._finish_async(index, done)
                )
                return
            result = function(event)
        except Exception as error:
            error.add_note(f"ftbus: handler {function!r} of key {self.key!r}")
            self._finish(index, None, error)
        except BaseException as error:
            self.abort(error)
            raise
        else:
            self._finish(index, result, None)

    def _finish_async(self, index: int, done: Future[Any]) -> None:
        if done.cancelled():
            self._finish(index, None, RuntimeError("the event loop cancelled it"))
        elif isinstance(error := done.exception(), Exception):
            self._finish(index, None, error)
        elif error is not None:
            self.abort(error)
        else:
            self._finish(index, done.result(), None)

    def _finish(self, index: int, result: object, error: Exception | None) -> None:
        with self._lock:
            self._results[index] = result
            if error is not None:
                self._errors.append((index, error))
            self._left -= 1
            is_last = self._left == 0 and not self.future.done()
        if is_last:
            self.settle()

    def abort(self, error: BaseException) -> None:
        """End the Future when a handler was interrupted or will not run."""
        with self._lock:
            self._left -= 1
            is_first = not self.future.done()
        if is_first:
            self.future.set_exception(error)

    def settle(self) -> None:
        """Give the Future its results, or all failures in handler order."""
        if self._errors:
            errors = [error for _, error in sorted(self._errors, key=lambda e: e[0])]
            self.future.set_exception(
                HandlerErrors(self.key, errors, len(self._results))
            )
        else:
            self.future.set_result(self._results)


def call(
    bus: EventBus, key: object, event: object, timeout: float | None
) -> Future[list[Any]]:
    """Queue one task per handler; the Future completes with the last of them."""
    if bus.closed:
        raise BusClosedError(bus, "call")
    keys = key.__mro__[:-1] if isinstance(key, type) else (key,)
    handlers = [pair for each in keys for pair in bus._claim_handlers(each)]
    state = _Call(key, len(handlers))
    if not handlers:
        state.settle()
        return state.future
    encoded: object = None
    if any(flags & _core.ENCODED for _, flags in handlers):
        encoded = bus._encode(key, event)
    for index, (function, flags) in enumerate(handlers):
        payload = encoded if flags & _core.ENCODED else event
        try:
            bus._submit(_Task(state, index, function, payload), timeout)
        except BaseException as error:
            state.abort(error)  # what is queued already then does not run
            raise
    return state.future


class _Task:
    """One handler of a call, as the workers run it."""

    __slots__ = ("_arguments", "_call")

    def __init__(
        self, call: _Call, index: int, function: Callable[[Any], Any], event: object
    ) -> None:
        self._call = call
        self._arguments = (index, function, event)

    def __call__(self) -> None:
        self._call.run(*self._arguments)

    def dropped(self) -> None:
        """Let the Future say that this handler will not run."""
        self._call.abort(CancelledError("the event was dropped before it ran"))


def close(bus: EventBus, *, drain: bool, timeout: float) -> int:
    """Drain, stop and release a bus; return the number of events left."""
    deadline = time.monotonic() + timeout
    with bus._lock:
        bus._closing = True
    bus._close_pool()
    if drain:
        bus._drain(timeout)
    bus._stop_pool()
    left = bus._drop_queued()
    me = threading.current_thread()
    for thread in bus._threads:
        if thread is not me:
            thread.join(max(0.0, deadline - time.monotonic()))
    left += bus._drop_queued()  # what a running partition held back before
    stuck = sum(thread.is_alive() for thread in bus._threads if thread is not me)
    bus._clear_handlers()
    if bus._handles:
        bus._handles.clear()
    if stuck == 0:
        return left
    return left + int(bus._pool_stats()["pending"])
