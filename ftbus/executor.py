"""A bus's workers behind the interface of concurrent.futures."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import Executor, wait
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from ftbus import interrupts
from ftbus.errors import (
    DeadlockError,
    EventDroppedError,
    ExecutorBrokenError,
    ExecutorShutdownError,
    InvalidOptionError,
)
from ftbus.futures import TaskFuture
from ftbus.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ftbus.bus import EventBus

__all__ = ["BusExecutor"]


class BusExecutor(Executor):
    """A concurrent.futures.Executor on the workers of a bus; made by bus.executor().

    It shares workers and queue with the bus's events: a full queue blocks submit,
    raises QueueFullError or drops (the Future then raises EventDroppedError), as the
    bus's overflow says. Waiting for a Future in a function that runs here runs it there
    and then if no other worker has started it, so submits may be nested.

    shutdown() ends this executor, not the bus. When the interpreter exits, what was
    submitted still runs, as with ThreadPoolExecutor. Any thread.
    """

    def __init__(
        self,
        bus: EventBus,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        context: Context | None = None,
    ) -> None:
        if context is not None and not isinstance(context, Context):
            raise InvalidOptionError(
                "context", context, "None or a contextvars.Context"
            )
        if initializer is not None and not callable(initializer):
            raise InvalidOptionError("initializer", initializer, "a callable or None")
        self._bus = bus
        self._initializer = initializer
        self._initargs = initargs
        # A copy, as threads may not share one; None is that of who submits.
        self._context = None if context is None else context.copy()
        self._initialized = threading.local()
        self._broken: BaseException | None = None
        self._is_shut_down = False
        self._lock = threading.RLock()  # a finalizer may submit while it is held
        self._unfinished: set[_Job] = set()
        _executors.add(self)

    def submit[T](
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> TaskFuture[T]:
        """Queue fn(*args, **kwargs) for the workers; return a Future of its result.

        The function sees the context variables that are set here, or those of the
        executor's context. cancel() succeeds until it starts. Raises
        ExecutorShutdownError (a RuntimeError), ExecutorBrokenError (a
        BrokenThreadPool), and what post raises.
        """
        call = partial(fn, *args, **kwargs)
        context = copy_context() if self._context is None else self._context.copy()
        job = _Job(self, partial(context.run, call) if len(context) else call, fn)
        future: TaskFuture[T] = job.future
        with self._lock:
            self._check_usable()
            self._unfinished.add(job)
        try:
            if not self._bus._submit(job, None):
                job.dropped()
        except BaseException:
            job.take()
            self._finish(job)
            raise
        return future

    def map[T](
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[T]:
        """Return an iterator of fn's results, in order; all is submitted at once.

        timeout: seconds from now until the last result must be there.
        chunksize: how many calls make one task; more than 1 is worth it for many short
            calls. The results of a chunk come when all of it has run.
        buffersize: with CPython 3.14 or later, how many tasks may be submitted ahead.

        The iterator raises what fn raised, TimeoutError, and CancelledError.
        """
        if chunksize < 1:
            raise InvalidOptionError("chunksize", chunksize, "1 or more")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **options)
        calls = zip(*iterables, strict=False)
        chunks = super().map(
            partial(_run_chunk, fn),
            itertools.batched(calls, chunksize),  # noqa: B911 (a last one is shorter)
            timeout=timeout,
            **options,
        )
        return _chain(chunks)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more; the bus and its workers go on.

        wait: return when all that was submitted has run; in a function that runs here,
            all but what runs in this thread already.
        cancel_futures: cancel what has not started.

        Functions that wait for each other in this way would never end: the last of
        them to ask gets DeadlockError, and the executor is shut down all the same.
        What else they wait for (a lock, a Future, drain()) is not looked at: to be
        safe, wait outside of what runs here. Idempotent.
        """
        with self._lock:
            self._is_shut_down = True
            unfinished = list(self._unfinished)
        if cancel_futures:
            for job in unfinished:
                job.future.cancel()
        if wait:
            me = threading.get_ident()
            others = [job for job in unfinished if job.thread != me]
            with _waiting(self, others):
                self._wait(others)

    def _wait(self, jobs: list[_Job]) -> None:
        if self._bus._executing():
            for job in jobs:
                job.future._help(None)
        else:
            futures = [job.future for job in jobs]
            while wait(futures, interrupts.slice_s()).not_done:
                pass

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise ExecutorBrokenError(self, self._broken)
        if self._is_shut_down or _is_exiting:
            raise ExecutorShutdownError(self)

    def _initialize(self) -> None:
        """Run the initializer unless it has run in this thread."""
        if self._initializer is None or getattr(self._initialized, "done", False):
            return
        if self._broken is None:
            self._initialized.done = True  # it may itself submit, and wait
            try:
                self._initializer(*self._initargs)
            except BaseException as error:
                self._initialized.done = False
                self._break(error)
            else:
                return
        assert self._broken is not None
        raise ExecutorBrokenError(self, self._broken)

    def _break(self, error: BaseException) -> None:
        with self._lock:
            self._broken = error
            unfinished = list(self._unfinished)
        for job in unfinished:
            if job.take() is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(ExecutorBrokenError(self, error))
                self._finish(job)
        self._bus._report_failure(error, None, self._initializer)

    def _finish(self, job: _Job) -> None:
        with self._lock:
            self._unfinished.discard(job)

    def __repr__(self) -> str:
        if self._broken is not None:
            state = "broken"
        else:
            state = "shut down" if self._is_shut_down else "open"
        return f"<BusExecutor of {self._bus.name!r}, {state}>"


class _Job:
    """One submitted call, as the workers run it, or who waits for it."""

    __slots__ = ("_call", "_executor", "_fn", "_once", "bus", "future", "thread")

    def __init__(
        self, executor: BusExecutor, call: Callable[[], Any], fn: object
    ) -> None:
        self.bus = executor._bus
        self.future: TaskFuture[Any] = TaskFuture(self)
        self.thread: int | None = None  # set by the thread that runs it
        self._executor = executor
        self._call: Callable[[], Any] | None = call
        self._fn = fn  # for messages
        # Whoever gets it has the call to run, or to forget: one thread only.
        self._once = threading.Lock()

    def take(self) -> Callable[[], Any] | None:
        """Return the call, to the first who asks."""
        if not self._once.acquire(blocking=False):
            return None
        call, self._call, self._fn = self._call, None, None
        return call

    def __call__(self) -> None:
        call = self.take()
        if call is None:
            return
        self.thread = threading.get_ident()
        future = self.future
        try:
            if not future.set_running_or_notify_cancel():
                return
            try:
                self._executor._initialize()
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        finally:
            self._executor._finish(self)
            del self, call, future  # what was raised refers to this frame

    def run_one(self) -> bool:
        """Run this if nobody has started it, for one that waits for it."""
        if self._once.locked():
            return False
        self.bus._run_task(self)
        return True

    def cancel_unstarted(self) -> None:
        """Forget the call, whose Future has been cancelled."""
        if self.take() is not None:
            self.future.set_running_or_notify_cancel()
            self._executor._finish(self)

    def failed(self, error: BaseException) -> None:
        """Let the Future say what kept this job from doing so."""
        if not self.future.done():
            self.future.set_exception(error)

    def dropped(self) -> None:
        """Let the Future say that this will not run."""
        fn = self._fn
        if self.take() is not None:
            if self.future.set_running_or_notify_cancel():
                self.future.set_exception(EventDroppedError(self.bus, fn))
            self._executor._finish(self)


def _run_chunk[T](fn: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> list[T]:
    return [fn(*args) for args in calls]


def _chain[T](chunks: Iterator[list[T]]) -> Iterator[T]:
    """Yield what the chunks hold, without keeping what has been yielded."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


class _Wait:
    """A thread that waits for jobs while it runs others."""

    def __init__(self, jobs: list[_Job], running: list[_Job]) -> None:
        self.jobs = frozenset(jobs)
        self.running = frozenset(running)

    def reaches(self, waits: list[_Wait]) -> bool:
        """Whether what this waits for waits, directly or not, for what this runs."""
        reached, left = [self], list(waits)
        for one in reached:
            if one.jobs & self.running:
                return True
            reached += [other for other in left if one.jobs & other.running]
            left = [other for other in left if other not in reached]
        return False


# Of all executors. A thread neither ends a job that it runs while it waits, nor does it
# start one there that counts; so a circle is complete as its last wait begins.
_waits: list[_Wait] = []


@contextmanager
def _waiting(executor: BusExecutor, jobs: list[_Job]) -> Iterator[None]:
    """Refuse to wait for jobs that wait for what this thread runs."""
    me = threading.get_ident()
    running: list[_Job] = []
    for live in _executors.live():
        with live._lock:
            running += [job for job in live._unfinished if job.thread == me]
    if not running:  # nobody waits for this thread
        yield
        return
    own = _Wait(jobs, running)
    with _lock:
        if own.reaches(_waits):
            remedy = "it is shut down; wait for it outside of what it runs"
            raise DeadlockError(executor, remedy)
        _waits.append(own)
    try:
        yield
    finally:
        with _lock:
            if own in _waits:  # a fork's child has forgotten it
                _waits.remove(own)


_executors: Registry[BusExecutor] = Registry()
_lock = threading.RLock()
_is_exiting = False


def finish_all() -> None:
    """Run what was submitted when the interpreter exits, however long it takes."""
    global _is_exiting
    _is_exiting = True
    for executor in _executors.live():
        executor.shutdown()


def _after_fork_child() -> None:
    """Forget what the workers in the parent process will run."""
    global _lock
    _lock = threading.RLock()
    _waits.clear()
    for executor in _executors.live():
        executor._lock = threading.RLock()
        executor._unfinished = set()


os.register_at_fork(
    before=lambda: _lock.acquire(),
    after_in_parent=lambda: _lock.release(),
    after_in_child=_after_fork_child,
)
