"""The worker threads: starting, calling for results, closing."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ftbus import _core
from ftbus.errors import BusClosedError, HandlerErrors, InvalidOptionError
from ftbus.handlers import AsyncHandler

if TYPE_CHECKING:
    from ftbus._core import Claim
    from ftbus.bus import EventBus

# Handlers may recurse: below 1 MiB CPython's own recursion limit comes too late.
_STACK_BYTES_MIN = 1 << 20

_LATECOMERS_S = 1.0

_DID_NOT_RUN = object()


def worker_count(workers: int | None) -> int:
    """Return the number of workers asked for, or one per usable core."""
    return (os.process_cpu_count() or 1) if workers is None else workers


def start_workers(bus: EventBus) -> None:
    """Start the threads, then make the pool. Caller holds bus._lock.

    In this order, because events that are queued need a worker, and a system that
    cannot start a thread must get no pool.
    """
    gate = threading.Event()
    threads: list[threading.Thread] = []

    def run(index: int) -> None:
        gate.wait()
        if threads:  # else the bus could not start
            # An empty context: what the first poster has set is not the workers'.
            contextvars.Context().run(bus._work, index)

    try:
        for index in range(bus._workers):
            name = f"{bus.name}-worker-{index}"
            thread = threading.Thread(target=run, args=(index,), name=name, daemon=True)
            _start_with_stack(thread)
            threads.append(thread)
        if bus._threads:  # a finalizer that ran in between has posted
            threads = []
        else:
            bus._start_pool()
            bus._threads = threads
    except BaseException:
        threads = []
        raise
    finally:
        gate.set()


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
        # Its handlers are queued: cancel() is too late, and says so.
        self.future.set_running_or_notify_cancel()
        self._lock = threading.Lock()
        self._left = handlers_n
        self._is_settled = False
        self._results: list[Any] = [_DID_NOT_RUN] * handlers_n
        self._errors: dict[int, Exception] = {}

    def run(self, index: int, claim: Claim, event: object) -> None:
        """Run one handler and keep what comes of it, if it is an Exception."""
        function = claim.function
        try:
            if isinstance(function, AsyncHandler):
                result = claim.run(event, function.start)
            else:
                result = claim.run(event)
        except Exception as error:
            _note(error, claim)
            self.finish(index, error=error)
        else:
            if result is claim:  # cancelled meanwhile
                self.finish(index)
            elif isinstance(function, AsyncHandler):
                result.add_done_callback(
                    lambda done: self._finish_async(index, claim, done)
                )
            else:
                self.finish(index, result)

    def _finish_async(self, index: int, claim: Claim, done: Future[Any]) -> None:
        if done.cancelled():
            error: BaseException | None = RuntimeError("its event loop cancelled it")
        else:
            error = done.exception()
        if error is None:
            self.finish(index, done.result())
        elif isinstance(error, Exception):
            _note(error, claim)
            self.finish(index, error=error)
        else:
            self.abort(error)

    def finish(
        self, index: int, result: object = _DID_NOT_RUN, error: Exception | None = None
    ) -> None:
        """Keep the outcome of one handler; with the last, settle the Future."""
        with self._lock:
            self._results[index] = result
            if error is not None:
                self._errors[index] = error
            self._left -= 1
            must_settle = self._left == 0 and not self._is_settled
            self._is_settled |= must_settle
        if must_settle:
            self.settle()

    def abort(self, error: BaseException) -> None:
        """End the Future for a handler that will not end itself."""
        with self._lock:
            self._is_settled = True
        if not self.future.done():  # also if settling it is what failed
            with suppress(InvalidStateError):
                self.future.set_exception(error)

    def settle(self) -> None:
        """Give the Future the results, or all failures, in handler order."""
        results = [value for value in self._results if value is not _DID_NOT_RUN]
        if self._errors:
            errors = [self._errors[index] for index in sorted(self._errors)]
            ran = len(results) + len(errors)
            with suppress(InvalidStateError):
                self.future.set_exception(HandlerErrors(self.key, errors, ran))
        else:
            with suppress(InvalidStateError):
                self.future.set_result(results)


def _note(error: Exception, claim: Claim) -> None:
    """Say which handler failed; a repr that fails must not hide the failure."""
    with suppress(Exception):
        error.add_note(f"ftbus: handler {claim.handler!r} of key {claim.key!r}")


def call(
    bus: EventBus, key: object, event: object, timeout: float | None
) -> Future[list[Any]]:
    """Queue one task per handler; the Future completes with the last of them."""
    if bus.closed:
        raise BusClosedError(bus, "call")
    keys: tuple[object, ...] = (key,)
    if isinstance(key, type):
        keys += tuple(base for base in key.__mro__[1:] if base is not object)
    claims: list[Claim] = []
    try:
        for each in keys:
            claims += bus._claim_handlers(each)
        return _submit_all(bus, key, event, claims, timeout)
    except BaseException:
        for claim in claims:
            claim.give_back()
        raise


def _submit_all(
    bus: EventBus,
    key: object,
    event: object,
    claims: list[Claim],
    timeout: float | None,
) -> Future[list[Any]]:
    """Queue the claimed handlers. Raises if the first is refused.

    If a later one is, the others run already: then the Future says so.
    """
    state = _Call(key, len(claims))
    if not claims:
        state.settle()
        return state.future
    encoded: object = None
    if any(claim.flags & _core.ENCODED for claim in claims):
        encoded = bus._encode(key, event)
    for index, claim in enumerate(claims):
        payload = encoded if claim.flags & _core.ENCODED else event
        task = _Task(state, index, claim, payload)
        try:
            if not bus._submit(task, timeout):
                task.dropped()
        except Exception as error:
            if index == 0:
                raise
            for refused in range(index, len(claims)):
                claims[refused].give_back()
                state.finish(refused, error=error)
            break
    return state.future


class _Task:
    """One handler of a call, as the workers run it."""

    __slots__ = ("_call", "_claim", "_event", "_index")

    def __init__(self, call: _Call, index: int, claim: Claim, event: object) -> None:
        self._call = call
        self._index = index
        self._claim = claim
        self._event = event

    def __call__(self) -> None:
        self._call.run(self._index, self._claim, self._event)

    def failed(self, error: BaseException) -> None:
        """Let the Future say what kept this task from keeping its own outcome."""
        self._call.abort(error)

    def dropped(self) -> None:
        """Let the Future say that this handler will not run."""
        self._claim.give_back()
        self._call.abort(CancelledError("the event was dropped before it ran"))


def close(bus: EventBus, *, drain: bool, timeout: float) -> int:
    """Drain, stop and release a bus; return the number of events left."""
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidOptionError("timeout", timeout, "0 or more seconds")
    deadline = time.monotonic() + timeout
    with bus._lock:
        bus._closing = True
    bus._close_pool()
    if drain:
        bus._drain(timeout)
    bus._stop_pool()
    left = bus._drop_queued()
    stuck = _join(bus, deadline)
    left += bus._drop_queued()  # what a running partition held back before
    if not stuck:
        left += _drop_latecomers(bus)
    left += bus._unstarted()  # what this thread took together with its own event
    bus._clear_handlers()
    if bus._handles:
        bus._handles.clear()
    return left + bus.stats().pending if stuck else left


def _drop_latecomers(bus: EventBus) -> int:
    """Drop what was admitted before the close, but is being put into the queue now.

    A thread between the two was interrupted for a moment; its event must not stay. In a
    fork's child that thread may not exist.
    """
    deadline = time.monotonic() + _LATECOMERS_S
    pause = threading.Event()
    left = 0
    while bus._pool_stats()["queued"] and time.monotonic() < deadline:
        left += bus._drop_queued()
        pause.wait(0.001)
    return left


def _join(bus: EventBus, deadline: float) -> bool:
    """Wait for the workers to end; return whether one has not.

    Not for this thread, and not for those that are closing the bus themselves: they
    may be waiting here for this one.
    """
    me = threading.current_thread()
    with bus._lock:
        bus._closers.add(me)
        others = [thread for thread in bus._threads if thread not in bus._closers]
    try:
        for thread in others:
            left = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            thread.join(max(0.0, left))
        return any(thread.is_alive() for thread in others)
    finally:
        with bus._lock:
            bus._closers.discard(me)
