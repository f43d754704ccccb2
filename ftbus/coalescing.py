"""Handlers that get only the newest event, or many events at once.

Both take an event in when it is delivered, so it counts as delivered and handled then,
and what a later run of the handler raises is counted as failed and reported. The tasks
that run them are counted as posted events without a key. So the conservation law holds
exactly, whatever is coalesced.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from ftbus.errors import BusClosedError, InvalidOptionError, QueueFullError
from ftbus.timers import timers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftbus.bus import EventBus
    from ftbus.timers import Timer

    type Handler = Callable[[Any], Any]
    type Latest = bool | Callable[[Any], object]

# How long an event waits for a slow batch handler before it is taken in all the same:
# the handler may itself be waiting for it, by drain().
_SLOW_S = 1.0

_EVENTS_MAX = 1 << 30


def prepare(
    bus: EventBus,
    key: object,
    handler: Handler,
    target: Handler,
    latest: Latest,
    batch: tuple[int, float] | None,
) -> Handler:
    """Return what the core should call for a handler with these options."""
    if batch is not None:
        if latest is not False:
            raise InvalidOptionError("latest", latest, "either latest or batch")
        return BatchHandler(bus, key, handler, target, *_checked(batch))
    if target is not handler:
        raise InvalidOptionError("latest", latest, "latest=False for an async handler")
    if latest is not True and not callable(latest):
        raise InvalidOptionError("latest", latest, "a bool, or a function of the event")
    return LatestHandler(bus, key, handler, None if latest is True else latest)


def _checked(batch: object) -> tuple[int, float]:
    if isinstance(batch, tuple) and len(batch) == 2:
        events, seconds = batch
        is_count = type(events) is int and 1 <= events <= _EVENTS_MAX
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if is_count and is_number and 0 < seconds < math.inf:
            return events, seconds
    raise InvalidOptionError(
        "batch", batch, "(max_events, max_seconds), 1 or more and more than 0"
    )


class _Coalescing:
    """What the two have in common: a lock, and a way to report."""

    def __init__(self, bus: EventBus, key: object, handler: Handler) -> None:
        self._bus = weakref.ref(bus)
        self._key = key
        self._handler = handler
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        # A finalizer may emit while it is held.
        self._changed = threading.Condition(threading.RLock())

    def _report(self, error: BaseException) -> None:
        bus = self._bus()
        if bus is not None:
            bus._count_failed(self._key, self)
            bus._note_failure(error, self._key, self._handler)
            bus._report_failure(error, self._key, self._handler)


class LatestHandler(_Coalescing):
    """Run a handler on the workers, for the newest event that came until it starts.

    The run is a task at the end of the queue, so all events that are queued before it
    come first; if the queue is full, or being closed, the thread of the event runs it.
    There is one slot for each group of events, or for all; runs of one slot do not
    overlap.
    """

    def __init__(
        self,
        bus: EventBus,
        key: object,
        handler: Handler,
        group: Callable[[Any], object] | None,
    ) -> None:
        self._group = group
        super().__init__(bus, key, handler)

    def _reset(self) -> None:
        super()._reset()
        self._slots: dict[object, _Slot] = {}

    def __call__(self, event: object) -> None:
        """Keep the event, in the place of an older one."""
        if os.getpid() != self._process:
            self._reset()
        name = None if self._group is None else self._group(event)
        context = copy_context()
        with self._changed:
            slot = self._slots.get(name)
            must_queue = slot is None
            if slot is None:
                slot = self._slots[name] = _Slot(self, name)
            replaced, slot.held = slot.held, (event, context)
        del replaced  # without the lock: the older event may have a finalizer
        if must_queue and not self._queue(slot):
            self.run(slot)

    def _queue(self, slot: _Slot) -> bool:
        """Queue a slot's run; return False if that cannot be done."""
        bus = self._bus()
        if bus is None or bus._closing or bus._is_full():
            return False
        try:
            return bus._submit(slot, 0)
        except (QueueFullError, BusClosedError):
            return False

    def run(self, slot: _Slot) -> None:
        """Run the handler with what the slot holds, until it holds nothing."""
        while (held := self._take(slot)) is not None:
            event, context = held
            try:
                context.run(self._handler, event)
            except BaseException as error:
                self._report(error)
            del held, event, context
            with self._changed:
                if slot.held is None:
                    self._slots.pop(slot.name, None)
                    return
            if self._queue(slot):
                return

    def _take(self, slot: _Slot) -> tuple[object, Context] | None:
        with self._changed:
            held, slot.held = slot.held, None
        return held

    def drop(self, slot: _Slot) -> None:
        """Forget what the slot holds."""
        with self._changed:
            self._slots.pop(slot.name, None)
            held, slot.held = slot.held, None
        del held

    def __repr__(self) -> str:
        return f"<latest of {self._handler!r}>"


class _Slot:
    """The newest event of one group, and the task that handles it."""

    __slots__ = ("_owner", "held", "name")

    def __init__(self, owner: LatestHandler, name: object) -> None:
        self.name = name
        self.held: tuple[object, Context] | None = None
        self._owner = owner

    def __call__(self) -> None:
        self._owner.run(self)

    def failed(self, error: BaseException) -> None:
        """Forget the event; the error is reported."""
        self._owner.drop(self)

    def dropped(self) -> None:
        """Forget the event: the overflow policy or close() gave it up."""
        self._owner.drop(self)


class BatchHandler(_Coalescing):
    """Call a handler with lists of events.

    The thread that delivers the event which completes a batch calls the handler. One
    that is not complete in time is handled by a worker. Batches of one handler are
    handled one after another, so a partition's events stay in order.
    """

    def __init__(
        self,
        bus: EventBus,
        key: object,
        handler: Handler,
        target: Handler,
        max_events: int,
        max_seconds: float,
    ) -> None:
        self._target = target
        self._max_events = max_events
        self._max_seconds = max_seconds
        super().__init__(bus, key, handler)

    def _reset(self) -> None:
        super()._reset()
        self._events: list[Any] = []
        self._runner: int | None = None  # the thread that calls the handler
        self._must_flush = False
        self._timer: Timer | None = None

    def __call__(self, event: object) -> None:
        """Take the event in; call the handler if that makes a batch."""
        if os.getpid() != self._process:
            self._reset()
        with self._changed:
            self._wait_for_runner(time.monotonic() + _SLOW_S, self._max_events)
            self._events.append(event)
            self._must_flush |= not self._arm()
            is_due = self._must_flush or len(self._events) >= self._max_events
            if not is_due or self._runner is not None:
                return
            batch = self._take()
        self._run(batch, raises=True)

    @property
    def is_idle(self) -> bool:
        """Whether events wait in it and nobody is handling any."""
        return bool(self._events) and self._runner is None

    def flush(self, deadline: float | None = None) -> None:
        """Handle what there is, here, or after what is being handled.

        deadline: by time.monotonic(), how long to wait for a thread that does; None to
            leave it to that thread.
        """
        with self._changed:
            if not self._events:
                return
            self._must_flush = True
            if deadline is not None:
                self._wait_for_runner(deadline, 1)
            if self._runner is not None or not self._events:
                return
            batch = self._take()
        self._run(batch, raises=False)

    def discard(self) -> int:
        """Forget what there is; return how many events that was."""
        with self._changed:
            events, self._events = self._events, []
            self._forget()
        return len(events)

    def queue_flush(self) -> None:
        """Let a worker handle what there is; later, if the queue is full."""
        bus = self._bus()
        with self._changed:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        try:
            if bus is None or (not bus._is_full() and bus._submit(_Flush(self), 0)):
                return
        except QueueFullError:
            pass
        except BusClosedError:
            return  # close() does it
        with self._changed:
            self._arm()

    def _wait_for_runner(self, deadline: float, least: int) -> None:
        """Wait while another thread handles events and at least so many wait."""
        me = threading.get_ident()
        while self._runner not in (None, me) and len(self._events) >= least:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(min(left, threading.TIMEOUT_MAX))

    def _arm(self) -> bool:
        """Have what there is handled in time; return whether somebody will.

        Not after close() has looked for the last time. Caller holds the lock.
        """
        bus = self._bus()
        if bus is None:
            return False
        if self._timer is not None or not self._events:
            return True
        with bus._lock:
            if bus._has_ended:
                return False
            bus._batches.add(self)
        with suppress(BusClosedError):  # close() does it
            timers = timers_of(bus, "batch")
            self._timer = timers.add(self._max_seconds, None, self.queue_flush, "batch")
        return True

    def _take(self) -> list[Any]:
        """Return a batch, to be handled by this thread. Caller holds the lock."""
        self._runner = threading.get_ident()
        batch = self._events[: self._max_events]
        del self._events[: self._max_events]
        if not self._events:
            self._forget()
        return batch

    def _forget(self) -> None:
        """Note that there are no events. Caller holds the lock."""
        self._must_flush = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        bus = self._bus()
        if bus is not None:
            with bus._lock:
                bus._batches.discard(self)

    def _next(self) -> list[Any]:
        """Return the next batch if there is one, else let go."""
        with self._changed:
            if self._events and (
                self._must_flush
                or len(self._events) >= self._max_events
                or not self._arm()
            ):
                batch = self._take()
                self._changed.notify_all()  # there is space
                return batch
            self._runner = None
            self._changed.notify_all()
            return []

    def _run(self, batch: list[Any], *, raises: bool) -> None:
        """Handle a batch, and those that come up meanwhile."""
        raised: BaseException | None = None
        while batch:
            try:
                self._target(batch)
            except BaseException as error:
                if raises and raised is None:
                    raised = error
                else:
                    self._report(error)
            batch = self._next()
        if raised is not None:
            try:
                raise raised
            finally:
                del raised

    def __repr__(self) -> str:
        return f"<batches of {self._handler!r}>"


class _Flush:
    """The task that handles a batch whose time has come."""

    __slots__ = ("_batch",)

    def __init__(self, batch: BatchHandler) -> None:
        self._batch = batch

    def __call__(self) -> None:
        self._batch.flush()

    def failed(self, error: BaseException) -> None:
        """Do nothing: what fails is reported."""

    def dropped(self) -> None:
        """Try again later; when the bus is closed, close() has done it."""
        self._batch.queue_flush()
