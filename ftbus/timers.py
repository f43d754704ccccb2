"""Events that are posted later, or again and again."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol

from ftbus.errors import BusClosedError, BusForkedError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftbus.bus import EventBus
    from ftbus.topic import Topic

__all__ = ["Timer"]

# Cancelled timers stay in the heap until they come up, or are more than half of it, and
# more than this.
_CANCELLED_MAX = 64

_JOIN_S = 1.0
_RETRY_S = 0.01  # after the thread had no memory to go on


class Clock(Protocol):
    """What the timers go by; tests bring their own."""

    def now(self) -> float:
        """Return seconds that never go back."""

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        """Wait for a notification, seconds at most; the caller holds the lock."""


class MonotonicClock:
    """time.monotonic."""

    now = staticmethod(time.monotonic)

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        """Wait for a notification, seconds at most."""
        if seconds is not None:
            seconds = min(seconds, threading.TIMEOUT_MAX)
        changed.wait(seconds)


class Timer:
    """Something that is to happen; made by bus.post_later() and bus.every().

    Any thread.
    """

    __slots__ = (
        "_action",
        "_interval_s",
        "_start",
        "_ticks",
        "_timers",
        "_when",
        "missed",
    )

    def __init__(
        self,
        timers: Timers,
        delay_s: float,
        interval_s: float | None,
        action: Callable[[], object],
    ) -> None:
        self._timers = timers
        self._action: Callable[[], object] | None = action
        self._interval_s = interval_s
        self._start = timers.clock.now()
        self._ticks = 1
        self._when = self._start + delay_s
        self.missed = 0
        """Ticks left out, as their time had passed when the thread came to it."""

    @property
    def when(self) -> float:
        """When it happens next, or was to happen last, by time.monotonic()."""
        return self._when

    @property
    def active(self) -> bool:
        """Whether it will happen, or happen again."""
        return self._action is not None

    def cancel(self) -> bool:
        """Let it happen no more; return whether it would have. Idempotent.

        An event that is already queued is still handled.
        """
        return self._timers.cancel(self)

    def _advance(self, now: float) -> bool:
        """Go to the next tick after `now`; return whether there is one.

        The ticks are at start + k * interval, whatever the delays before, so that they
        do not drift. Those that have passed are left out, and counted.
        """
        if self._interval_s is None:
            return False
        passed = max(self._ticks, math.floor((now - self._start) / self._interval_s))
        self.missed += passed - self._ticks
        self._ticks = passed + 1
        self._when = self._start + self._ticks * self._interval_s
        return True

    def __repr__(self) -> str:
        left = self._when - self._timers.clock.now()
        state = f"in {left:.3f} s" if self.active else "done"
        every = f"every {self._interval_s} s, " if self._interval_s is not None else ""
        return f"<Timer {every}{state}>"


class Timers:
    """The timers of one bus, and the thread they happen in, started by the first."""

    def __init__(self, bus: EventBus, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or MonotonicClock()
        self._bus = bus
        # A finalizer may set or cancel a timer while it is held.
        self._changed = threading.Condition(threading.RLock())
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()  # of timers that are due at the same time
        self._cancelled_n = 0
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    def add(
        self,
        delay_s: float,
        interval_s: float | None,
        action: Callable[[], object],
        doing: str,
    ) -> Timer:
        """Start a timer that calls action() in the thread; it must not block."""
        timer = Timer(self, delay_s, interval_s, action)
        with self._changed:
            if self._is_stopped or self._bus.closed:
                raise BusClosedError(self._bus, doing)
            if self._thread is None:
                self._start()
            self._push(timer)
            if self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def cancel(self, timer: Timer) -> bool:
        """See Timer.cancel."""
        with self._changed:
            action, timer._action = timer._action, None
            if action is None:
                return False
            self._cancelled_n += 1
            if self._cancelled_n > max(_CANCELLED_MAX, len(self._heap) // 2):
                self._heap = [entry for entry in self._heap if entry[2].active]
                heapq.heapify(self._heap)
                self._cancelled_n = 0
        return True  # what the action refers to goes only now, without the lock

    def stop(self) -> None:
        """Cancel all timers and end the thread."""
        with self._changed:
            self._is_stopped = True
            actions = [entry[2]._action for entry in self._heap]
            for _, _, timer in self._heap:
                timer._action = None
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        actions.clear()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def after_fork_child(self) -> None:
        """Forget the timers: their thread stayed in the parent process."""
        self._changed = threading.Condition(threading.RLock())
        for _, _, timer in self._heap:
            timer._action = None
        self._heap = []
        self._thread = None

    def _push(self, timer: Timer) -> None:
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))

    def _start(self) -> None:
        name = f"{self._bus.name}-timers"
        # An empty context: what the first who sets a timer has set is not the thread's.
        target = Context().run
        thread = threading.Thread(
            target=target, args=(self._run,), name=name, daemon=True
        )
        thread.start()
        self._thread = thread

    def _run(self) -> None:
        due: Callable[[], object] | None = None
        while True:
            try:
                due = self._next_due()
                if due is None:
                    return
                due()
            except BaseException as error:
                with suppress(BaseException):
                    self._bus._report_failure(error, None, due or self)
                if due is None:  # no memory to wait with; the timers are still there
                    time.sleep(_RETRY_S)
            due = None

    def _next_due(self) -> Callable[[], object] | None:
        """Wait for a timer and return its action; None when the timers are stopped."""
        with self._changed:
            while not self._is_stopped:
                now = self.clock.now()
                if not self._heap:
                    self.clock.wait(self._changed, None)
                elif not self._heap[0][2].active:
                    heapq.heappop(self._heap)
                    self._cancelled_n = max(0, self._cancelled_n - 1)
                elif self._heap[0][0] > now:
                    self.clock.wait(self._changed, self._heap[0][0] - now)
                else:
                    entry = heapq.heappop(self._heap)
                    timer = entry[2]
                    action = timer._action
                    ticks, missed = timer._ticks, timer.missed
                    try:
                        if timer._advance(now):
                            self._push(timer)
                        else:
                            timer._action = None
                    except BaseException:  # no memory: it is due all the same
                        timer._ticks, timer.missed = ticks, missed
                        timer._when = entry[0]
                        heapq.heappush(self._heap, entry)
                        raise
                    return action
            return None


class _Post:
    """Post one event, or one that a factory makes; what goes wrong is reported."""

    def __init__(
        self,
        topic: Topic,
        event: object,
        factory: Callable[[], object] | None,
        partition: object,
        context: Context | None,
    ) -> None:
        self._topic = topic
        self._event = event
        self._factory = factory
        self._partition = partition
        self._context = copy_context() if context is None else context.copy()

    def __call__(self) -> None:
        bus = self._topic._event_bus
        try:
            event = self._event
            if self._factory is not None:
                event = self._context.copy().run(self._factory)
            # Without waiting for space: the other timers would be late.
            self._topic.post(
                event, partition=self._partition, timeout=0, context=self._context
            )
        except BusClosedError:
            return  # closed while this was due
        except BaseException as error:
            bus._report_failure(error, self._topic.key, self._factory or self)

    def __repr__(self) -> str:
        return f"<timer for {self._topic.key!r}>"


def timers_of(bus: EventBus, doing: str) -> Timers:
    """Return the bus's timers, made on first use. Raises BusClosedError."""
    with bus._lock:
        if bus._closing or bus.closed:
            raise BusClosedError(bus, doing)
        if bus._is_forked:
            raise BusForkedError(bus, doing)
        if bus._timers is None:
            bus._timers = Timers(bus)
        return bus._timers


def post_later(
    bus: EventBus,
    delay_s: float,
    key: object,
    event: object,
    partition: object,
    context: Context | None,
) -> Timer:
    """See EventBus.post_later."""
    _check_seconds("delay_s", delay_s, 0.0)
    action = _Post(
        _topic_of(bus, key, partition, context), event, None, partition, context
    )
    return timers_of(bus, "post_later").add(delay_s, None, action, "post_later")


def every(
    bus: EventBus,
    interval_s: float,
    key: object,
    event: object,
    factory: Callable[[], Any] | None,
    partition: object,
    context: Context | None,
) -> Timer:
    """See EventBus.every."""
    _check_seconds("interval_s", interval_s, 1e-6)
    if factory is not None and not (callable(factory) and event is None):
        raise InvalidOptionError("factory", factory, "a callable, and no event")
    topic = _topic_of(bus, key, partition, context)
    action = _Post(topic, event, factory, partition, context)
    return timers_of(bus, "every").add(interval_s, interval_s, action, "every")


def _topic_of(
    bus: EventBus, key: object, partition: object, context: Context | None
) -> Topic:
    if context is not None and not isinstance(context, Context):
        raise InvalidOptionError("context", context, "None or a contextvars.Context")
    if partition is not None:
        bus._check_key(partition)
    return bus.topic(key)


def _check_seconds(option: str, value: object, least: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value < math.inf:  # type: ignore[operator]
        raise InvalidOptionError(option, value, f"{least} or more seconds, and an end")
