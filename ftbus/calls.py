"""Calling for results: one task per handler, one Future for all of them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import InvalidStateError
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from ftbus import _core
from ftbus.dispatch import check_timeout
from ftbus.errors import (
    BusClosedError,
    EventDroppedError,
    HandlerErrors,
    InvalidOptionError,
    QueueFullError,
)
from ftbus.futures import TaskFuture
from ftbus.handlers import AsyncHandler

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ftbus._core import Claim
    from ftbus.bus import EventBus

_DID_NOT_RUN = object()


class _Call:
    """One call under way: its tasks, results by handler, and the Future for it all."""

    __slots__ = (
        "_errors",
        "_has_begun",
        "_is_settled",
        "_left",
        "_queued_n",
        "_results",
        "bus",
        "context",
        "future",
        "key",
        "lock",
        "tasks",
    )

    def __init__(
        self, bus: EventBus, key: object, handlers_n: int, context: Context | None
    ) -> None:
        self.bus = bus
        self.key = key
        self.context = context
        self.future: TaskFuture[list[Any]] = TaskFuture(self)
        self.tasks: list[_Task] = []
        self.lock = threading.Lock()
        self._queued_n = 0
        self._left = handlers_n
        self._has_begun = False
        self._is_settled = False
        self._results: dict[int, Any] = {}  # by handler; none for one that did not run
        self._errors: dict[int, Exception] = {}

    def queue(self, timeout: float | None) -> None:
        """Queue the tasks that are not, in order; raises if one is refused."""
        while self._queued_n < len(self.tasks):
            task = self.tasks[self._queued_n]
            if not self.bus._submit(task, timeout):
                task.dropped()
            self._queued_n += 1

    def refuse(self, error: BaseException) -> None:
        """Do without what could not be queued. Raises if that is all of it."""
        refused = self.tasks[self._queued_n :]
        if self._queued_n == 0 or not isinstance(error, Exception):
            self.cancel_unstarted()
            raise error
        for task in refused:  # the others run already: the Future says so
            if task.cancel():
                self.finish(task.index, error=error)

    def begin(self) -> bool:
        """Let the Future be running, from now on too late for cancel().

        Returns False if it has been cancelled before.
        """
        with self.lock:
            if not self._has_begun:
                self._has_begun = True
                if not self.future.set_running_or_notify_cancel():
                    self._is_settled = True
            return not self.future.cancelled()

    def run_one(self) -> bool:
        """Run a handler that nobody has started, for one that waits for this call."""
        for task in self.tasks:
            if task.is_waiting:
                self.bus._run_task(task)
                return True
        return False

    def cancel_unstarted(self) -> None:
        """Run no handler that has not started; of the others nothing changes."""
        self.begin()
        for task in self.tasks:
            if task.cancel():
                self.finish(task.index)
        if self._is_settled:
            self.tasks = []

    def run(self, index: int, claim: Claim, event: object) -> None:
        """Run one handler and keep what comes of it, if it is an Exception."""
        function = claim.function
        args: tuple[Any, ...] = (event,)
        if isinstance(function, AsyncHandler):
            args += (function.start,)
        try:
            if self.context is None:
                result = claim.run(*args)
            else:  # one of its own: handlers run at the same time
                result = self.context.copy().run(claim.run, *args)
        except Exception as error:
            _note(error, claim)
            self.finish(index, error=error)
        else:
            if result is claim:  # cancelled meanwhile
                self.finish(index)
            elif isinstance(function, AsyncHandler):
                result.add_done_callback(partial(self._finish_async, index, claim))
            else:
                self.finish(index, result)
        finally:
            # What was raised refers to this frame, and a handler may keep it.
            del self, claim, function, event, args

    def _finish_async(self, index: int, claim: Claim, done: Future[Any]) -> None:
        error = (
            RuntimeError("its event loop cancelled it")
            if done.cancelled()
            else done.exception()
        )
        try:
            if error is not None:
                _count_failed(claim)
                self.bus._note_failure(error, claim.key, claim.handler)
            if error is None:
                self.finish(index, done.result())
            elif isinstance(error, Exception):
                _note(error, claim)
                self.finish(index, error=error)
            else:
                self.abort(error)
        finally:
            del self, claim, done, error

    def finish(
        self, index: int, result: object = _DID_NOT_RUN, error: Exception | None = None
    ) -> None:
        """Keep the outcome of one handler; with the last, settle the Future."""
        with self.lock:
            if error is not None:
                self._errors[index] = error
            elif result is not _DID_NOT_RUN:
                self._results[index] = result
            self._left -= 1
            must_settle = self._left == 0 and not self._is_settled
            self._is_settled |= must_settle
        if must_settle:
            self.settle()

    def abort(self, error: BaseException) -> None:
        """End the Future for a handler that will not end itself."""
        self.begin()
        with self.lock:
            self._is_settled = True
        if not self.future.done():  # also if settling it is what failed
            with suppress(InvalidStateError):
                self.future.set_exception(error)
        self.tasks = []  # they refer back to this

    def settle(self) -> None:
        """Give the Future the results, or all failures, in handler order."""
        results = [self._results[index] for index in sorted(self._results)]
        if self._errors:
            errors = [self._errors[index] for index in sorted(self._errors)]
            ran = len(results) + len(errors)
            with suppress(InvalidStateError):
                self.future.set_exception(HandlerErrors(self.key, errors, ran))
        else:
            with suppress(InvalidStateError):
                self.future.set_result(results)
        self.tasks = []  # they refer back to this


def _count_failed(claim: Claim) -> None:
    """Count the failure of an async handler; without memory it is not counted."""
    if isinstance(claim.function, AsyncHandler):
        with suppress(MemoryError):
            claim.function.count_failed()


def _note(error: Exception, claim: Claim) -> None:
    """Say which handler failed; a repr that fails must not hide the failure."""
    with suppress(Exception):
        error.add_note(f"ftbus: handler {claim.handler!r} of key {claim.key!r}")


def call(
    bus: EventBus,
    key: object,
    event: object,
    timeout: float | None,
    context: Context | None,
) -> TaskFuture[list[Any]]:
    """Queue one task per handler; the Future completes with the last of them.

    Raises if the first is refused; if a later one is, the Future says so.
    """
    state = _prepare(bus, key, event, context)
    try:
        state.queue(timeout)
    except BaseException as error:
        state.refuse(error)
    return state.future


async def acall(
    bus: EventBus,
    key: object,
    event: object,
    timeout: float | None,
    context: Context | None,
) -> list[Any]:
    """Do the same, and wait for the results, without ever blocking the event loop."""
    if timeout is not None:
        check_timeout(timeout)
    state = _prepare(bus, key, event, context)
    may_block = bus._overflow == "block" and timeout != 0
    try:
        try:
            if may_block and bus._is_full():
                await asyncio.to_thread(state.queue, timeout)
            else:
                state.queue(0 if may_block else timeout)
        except QueueFullError:
            if not may_block:
                raise
            await asyncio.to_thread(state.queue, timeout)
    except BaseException as error:
        state.refuse(error)
    try:
        return await asyncio.wrap_future(state.future)
    except asyncio.CancelledError:
        if not state.future.cancel():
            state.cancel_unstarted()
        raise


def _prepare(
    bus: EventBus, key: object, event: object, context: Context | None
) -> _Call:
    """Claim the handlers of a key and make their tasks."""
    if context is not None and not isinstance(context, Context):
        raise InvalidOptionError("context", context, "None or a contextvars.Context")
    if bus.closed:
        raise BusClosedError(bus, "call")
    keys: tuple[object, ...] = (key,)
    if isinstance(key, type):
        keys += tuple(base for base in key.__mro__[1:] if base is not object)
    claims: list[Claim] = []  # what is not run gives its handler back when it goes
    encoded: object = None
    try:
        for each in keys:
            claims += bus._claim_handlers(each)
        if any(claim.flags & _core.ENCODED for claim in claims):
            encoded = bus._encode(key, event)
    except BaseException:
        claims.clear()  # the traceback keeps the list
        raise
    context = copy_context() if context is None else context.copy()
    state = _Call(bus, key, len(claims), context if len(context) else None)
    for index, claim in enumerate(claims):
        payload = encoded if claim.flags & _core.ENCODED else event
        state.tasks.append(_Task(state, index, claim, payload))
    if not claims:
        state.settle()
    return state


class _Task:
    """One handler of a call, as the workers run it, or who waits for the call."""

    __slots__ = ("_call", "_claim", "_event", "index")

    def __init__(self, call: _Call, index: int, claim: Claim, event: object) -> None:
        self.index = index
        self._call = call
        # Whoever takes these has the handler to run, or to give back: one thread only.
        self._claim: Claim | None = claim
        self._event = event

    @property
    def is_waiting(self) -> bool:
        """Whether nobody has started this; only a hint."""
        return self._claim is not None

    def __call__(self) -> None:
        claim, event = self._take()
        if claim is None:
            return
        try:
            if self._call.bus.closed:  # and released its handlers, in another thread
                claim.give_back()
                self._abort_dropped()
            elif self._call.begin():
                self._call.run(self.index, claim, event)
            else:
                claim.give_back()
        finally:
            del claim, event  # a SystemExit refers to this frame

    def _take(self) -> tuple[Claim | None, object]:
        with self._call.lock:
            taken = self._claim, self._event
            self._claim = self._event = None  # this stays queued, perhaps for long
        return taken

    def failed(self, error: BaseException) -> None:
        """Let the Future say what kept this task from keeping its own outcome."""
        self._call.abort(error)

    def cancel(self) -> bool:
        """Give the handler back; return whether it had not started."""
        claim, _ = self._take()
        if claim is not None:
            claim.give_back()
        return claim is not None

    def dropped(self) -> None:
        """Let the Future say that this handler will not run."""
        if self.cancel():
            self._abort_dropped()

    def _abort_dropped(self) -> None:
        self._call.abort(EventDroppedError(self._call.bus, self._call.key))
