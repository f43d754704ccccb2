"""EventBus: keys, handlers, and the three verbs emit, post and call.

The hot methods (emit, emit_many, post, post_many, off, pin) come from the C core; this
file is what surrounds them, monitored.py what looks at them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from ftbus import (
    _core,
    calls,
    codecs,
    dispatch,
    handlers,
    labels,
    lifecycle,
    monitor,
    timers,
)
from ftbus.closing import Closing
from ftbus.errors import BusClosedError, InvalidOptionError
from ftbus.executor import BusExecutor
from ftbus.monitored import MonitoredBus
from ftbus.streams import EventStream
from ftbus.topic import Topic

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from contextvars import Context
    from types import TracebackType

    from ftbus._core import Subscription
    from ftbus.stats import Timing
    from ftbus.timers import Timer

    type Handler = Callable[[Any], Any]
    type ErrorHook = Callable[[BaseException, object, object], None]

__all__ = ["EventBus"]

type Overflow = Literal["block", "raise", "drop_newest", "drop_oldest"]
type Latency = Literal["low", "balanced", "cpu"]

_OVERFLOWS = ("block", "raise", "drop_newest", "drop_oldest")
# How long an idle worker looks on before it sleeps, as waking one up takes about 5 us;
# and how long after the start of a batch the next starts if events trickle in.
_SPIN_AND_LINGER_NS = {
    "low": (50_000, 0),
    "balanced": (3_000, 4_000),
    "cpu": (0, 4_000),
}
_QUEUE_MAX = 1 << 30
_WORKERS_MAX = 1024
_PRIORITY_MAX = 1 << 31

logger = logging.getLogger("ftbus")


class EventBus(MonitoredBus, Closing):
    """Deliver events to handlers: here and now, in worker threads, or for results.

    workers: threads for post and call; None is one per core the process may use. They
        start with the first post.
    queue_size: how many posted events may wait, 1 or more.
    overflow: what post does when the queue is full: "block", "raise" QueueFullError,
        "drop_newest" (the event being posted) or "drop_oldest".
    errors: what emit does with exceptions of handlers: "raise" one HandlerErrors group
        after all handlers ran, or "log" them.
    latency: how long a worker without events looks on before it sleeps: "low" (50 us),
        "balanced" (3 us) or "cpu" (not at all). In a steady stream the last two also
        let events gather for up to 4 us, which handles more of them per second. An idle
        bus uses no CPU in any case.
    order: "key" makes the key an event's partition if post names none: events of one
        key run one at a time, in the order in which they were posted.
    numa: on a machine with several memory nodes, "auto" keeps workers that are near
        each other on cores that share a cache, and lets them take work from near ones
        first; "pin" binds each worker to one core on any machine; "off" does neither.
    codec: how events become bytes for handlers registered with encoded=True: its name
        ("json", "pickle", "raw", or one that was registered) or a Codec.
    on_error: called as on_error(exception, key, handler) for what handlers of posted
        events raise (and those of emit with errors="log"); None logs to "ftbus".
    stats: False counts only what says that no event is lost: posted, delivered,
        dropped, rejected and pending, for all keys together, and the workers. No times.
    timing: which events are timed: "off", "sampled" (one in timing_interval on
        average, at random) or "all"; set_timing() says otherwise for a key.
    timing_interval: 1 or more.
    name: appears in the repr, thread names and reports.

    A bus is a context manager, async too, that closes on leaving. Every method may be
    called from any thread. Raises InvalidOptionError.
    """

    __slots__ = (
        "_batches",
        "_closers",
        "_closing",
        "_codec",
        "_handles",
        "_has_ended",
        "_is_forked",
        "_lock",
        "_monitor",
        "_numa",
        "_on_error",
        "_overflow",
        "_queue_size",
        "_sinks",
        "_threads",
        "_timers",
        "_workers",
        "name",
    )

    def __init__(
        self,
        *,
        workers: int | None = None,
        queue_size: int = 65536,
        overflow: Overflow = "block",
        errors: Literal["raise", "log"] = "raise",
        latency: Latency = "balanced",
        order: Literal["key"] | None = None,
        numa: Literal["auto", "off", "pin"] = "auto",
        codec: str | codecs.Codec = "json",
        on_error: ErrorHook | None = None,
        stats: bool = True,
        timing: Timing = "sampled",
        timing_interval: int = 32,
        name: str = "ftbus",
    ) -> None:
        self._workers = dispatch.worker_count(workers)
        if not _is_count(self._workers, _WORKERS_MAX):
            raise InvalidOptionError("workers", workers, f"None or 1 to {_WORKERS_MAX}")
        if not _is_count(queue_size, _QUEUE_MAX):
            raise InvalidOptionError("queue_size", queue_size, f"1 to {_QUEUE_MAX}")
        if overflow not in _OVERFLOWS:
            raise InvalidOptionError("overflow", overflow, f"one of {_OVERFLOWS}")
        if errors not in ("raise", "log"):
            raise InvalidOptionError("errors", errors, "'raise' or 'log'")
        if latency not in _SPIN_AND_LINGER_NS:
            raise InvalidOptionError(
                "latency", latency, f"one of {(*_SPIN_AND_LINGER_NS,)}"
            )
        if numa not in ("auto", "off", "pin"):
            raise InvalidOptionError("numa", numa, "'auto', 'off' or 'pin'")
        if order is not None and order != "key":
            raise InvalidOptionError("order", order, "None or 'key'")
        if on_error is not None and not callable(on_error):
            raise InvalidOptionError("on_error", on_error, "a callable or None")
        if not isinstance(name, str):
            raise InvalidOptionError("name", name, "a str")
        timing_number = monitor.timing_options(timing, timing_interval, stats)
        try:
            self._codec = codecs.get(codec)
        except TypeError as error:
            raise InvalidOptionError("codec", codec, "a name or a Codec") from error
        self.name = name
        self._on_error = on_error
        self._queue_size = queue_size
        self._overflow = overflow
        self._numa = numa
        self._lock = threading.RLock()  # a finalizer may post while it is held
        self._threads: list[threading.Thread] = []
        self._handles: dict[int, Topic] | None = None
        self._closing = False
        self._has_ended = False  # close() looks for incomplete batches no more
        self._is_forked = False  # this is a fork's child, the workers are not
        self._closers: set[threading.Thread] = set()
        self._sinks: set[Any] = set()  # streams to end when this is closed
        self._batches: set[Any] = set()  # handlers that hold events
        self._timers: timers.Timers | None = None
        self._monitor = monitor.Monitor(timing, timing_interval, stats)
        spin_ns, linger_ns = _SPIN_AND_LINGER_NS[latency]
        self._configure(
            self._codec,
            errors == "log",
            _OVERFLOWS.index(overflow),
            queue_size,
            self._workers,
            spin_ns,
            linger_ns,
            order == "key",
            stats,
            timing_number,
            timing_interval,
        )
        lifecycle.buses.add(self)

    # Subscribing

    def subscribe(
        self,
        key: object,
        handler: Handler,
        *,
        priority: int = 0,
        once: bool = False,
        weak: bool = False,
        encoded: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        latest: bool | Callable[[Any], object] = False,
        batch: tuple[int, float] | None = None,
    ) -> Subscription:
        """Register a handler for a key; return the Subscription that cancels it.

        key: a str, bytes, int, Key, enum member or class. Events of a class reach the
            handlers of its bases too.
        handler: called as handler(event). An async function runs on the event loop
            that is running here, or on `loop`.
        priority: higher runs first; equal ones in the order of registration.
        once: run for one event only, exactly once whatever threads emit.
        weak: do not keep the handler (for a bound method: its object) alive.
        encoded: pass the event as encoded bytes, a Buffer made once for all handlers;
            its decode() is shared too. Events that are bytes or Buffers pass untouched.
            emit and call encode in the calling thread (a call raises if that fails),
            a posted event is encoded by its worker, and a failure goes to on_error.
        latest: handle only the newest of the events that came until the handler starts,
            on the workers, one at a time. A function of the event names its group: then
            the newest of each group. The older ones count as delivered.
        batch: (max_events, max_seconds): call the handler with a list of events, when
            there are so many, or the first has waited so long. The thread of the event
            that completes a batch calls it; late ones are handled on the workers, the
            rest by drain() and close(). Batches are handled one after another.

        What latest and batch have taken in is handled even if the subscription is
        cancelled; emitted events are treated like posted ones.
        A handler added while an event is being emitted does not run for that event.
        Raises UnsupportedKeyError, HandlerTypeError, InvalidOptionError and
        BusClosedError.
        """
        if type(priority) is not int or not -_PRIORITY_MAX <= priority < _PRIORITY_MAX:
            raise InvalidOptionError("priority", priority, "an int of 32 bits")
        if once and (latest is not False or batch is not None):
            raise InvalidOptionError("once", once, "once=False with latest or batch")
        target, flags = handlers.prepare(
            self, key, handler, weak=weak, loop=loop, latest=latest, batch=batch
        )
        if once:
            flags |= _core.ONCE
        if encoded:
            flags |= _core.ENCODED
        return self._subscribe(key, target, priority, flags, handler)

    @overload
    def on[F: Handler](
        self, key: object, handler: None = None, /, **options: Any
    ) -> Callable[[F], F]: ...  # pragma: no cover
    @overload
    def on[F: Handler](
        self, key: object, handler: F, /, **options: Any
    ) -> F: ...  # pragma: no cover
    def on(self, key: object, handler: Any = None, /, **options: Any) -> Any:
        """Register a handler and return it unchanged; without one, be a decorator.

        The options are those of subscribe.
        """
        if handler is None:
            return lambda function: self.on(key, function, **options)
        self.subscribe(key, handler, **options)
        return handler

    def once(self, key: object, handler: Any = None, /, **options: Any) -> Any:
        """Register for one event only; on(key, once=True) in other words."""
        return self.on(key, handler, once=True, **options)

    def topic(self, key: object) -> Topic:
        """Return a handle on a key with the look-up done, to share between threads.

        Raises UnsupportedKeyError.
        """
        topic = Topic(self, key)
        handles = self._handles
        if handles is None:
            return topic
        # A pinned bus pins its topics, and so hands out one object per key. The core's
        # key object lives as long as the bus, which makes its id a safe name.
        first = handles.setdefault(id(topic.key), topic)
        if first is topic:
            _core.pin_object(topic)
        return first

    def pin(self) -> Self:
        """Let this bus live until close(), and return it.

        Threads that share a pinned bus or its topics do not contend for their reference
        counts: do it once, for a bus that lives as long as the process. On 3.13t the
        bus, its topics and nothing else then stay allocated; what they hold is released
        by close().
        """
        if self._handles is None:
            self._handles = {}
        return super().pin()

    def stream(
        self,
        key: object,
        *,
        maxsize: int = 1024,
        overflow: Overflow = "drop_oldest",
        **options: Any,
    ) -> EventStream:
        """Subscribe an async iterator: `async for event in bus.stream(key)`.

        maxsize: how many events may wait in it, 1 or more.
        overflow: what happens to an event that finds it full: "drop_oldest" or
            "drop_newest" drop and count it (stream.dropped), "raise" raises
            StreamFullError as a failing handler does, "block" makes the emitting or
            worker thread wait (on the stream's own event loop it raises).
        options: priority, once and encoded, as of subscribe.

        Call it where an event loop is running. Raises what subscribe raises.
        """
        return EventStream(self, key, maxsize, overflow, options)

    # Queueing

    def call(
        self,
        key: object,
        *event: object,
        timeout: float | None = None,
        context: Context | None = None,
    ) -> Future[list[Any]]:
        """Run the handlers in parallel; return a Future of their results.

        Takes (key, event), or an instance of a class alone, as emit does.

        The results are in handler order. If handlers raise, all still run and the
        Future raises HandlerErrors. `timeout` (seconds) bounds the wait for space in
        the queue. Each handler sees the context variables that are set here, or those
        of `context`, in a copy of its own. Raises what post raises.

        cancel() of the Future succeeds until the first handler starts, and then none
        does; once-handlers stay subscribed. A call that is dropped by the overflow
        policy or by close() raises EventDroppedError, a CancelledError. A handler may
        wait for a call on its own bus, nested deeper than there are workers: see
        ftbus.futures.TaskFuture.
        """
        key, payload = self._resolve(key, *event)
        return calls.call(self, key, payload, timeout, context)

    async def acall(
        self,
        key: object,
        *event: object,
        timeout: float | None = None,
        context: Context | None = None,
    ) -> list[Any]:
        """Run the handlers in parallel on the workers; await their results.

        Like call, for asyncio: the event loop is not blocked, not by a full queue
        either. If the awaiting task is cancelled, handlers that have not started do
        not run. asyncio.timeout() bounds all of it, `timeout` the wait for space.

        Raises HandlerErrors, EventDroppedError and what post raises.
        """
        key, payload = self._resolve(key, *event)
        return await calls.acall(self, key, payload, timeout, context)

    def post_later(
        self,
        delay_s: float,
        key: object,
        *event: object,
        partition: object = None,
        context: Context | None = None,
    ) -> Timer:
        """Post an event after a delay; return the Timer that cancels it.

        delay_s: seconds, 0 or more, by the monotonic clock. One thread per bus, started
            by its first timer, posts what is due, some tenths of a millisecond late on
            an idle machine.
        The other arguments are those of post. A timer does not wait for space: what a
        full queue refuses goes to on_error. close() cancels it; in a fork's child it
        does not happen.

        Raises InvalidOptionError, UnsupportedKeyError and BusClosedError.
        """
        key, payload = self._resolve(key, *event)
        return timers.post_later(self, delay_s, key, payload, partition, context)

    def every(
        self,
        interval_s: float,
        key: object,
        *event: object,
        factory: Callable[[], Any] | None = None,
        partition: object = None,
        context: Context | None = None,
    ) -> Timer:
        """Post an event again and again; return the Timer that cancels it.

        interval_s: seconds between the ticks, the first of which is one interval from
            now. They do not drift; one whose time has passed when its turn comes is
            left out, and counted in timer.missed.
        factory: called for each event, in the timers' thread, instead of `event`. What
            it raises goes to on_error.

        Otherwise like post_later.
        """
        key, payload = self._resolve(key, *event)
        return timers.every(self, interval_s, key, payload, factory, partition, context)

    def executor(
        self,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        context: Context | None = None,
    ) -> BusExecutor:
        """Return a concurrent.futures.Executor on this bus's workers.

        initializer: called as initializer(*initargs) once in each worker, before the
            first function of this executor runs there. If it raises, the executor is
            broken: submit, and what was submitted, raise ExecutorBrokenError, and
            on_error hears of it.
        context: functions see its context variables, as they are now, instead of those
            that are set where submit is called.

        Raises InvalidOptionError.
        """
        return BusExecutor(self, initializer, initargs, context)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until every posted event has been handled; return whether that is so.

        timeout: seconds, None for as long as it takes. From within a handler, the
        events this thread is itself handling are not waited for, nor those behind them
        in their partitions.
        """
        return dispatch.drain(self, timeout)

    def close(self, *, drain: bool = True, timeout: float = 15.0) -> int:
        """Stop accepting events, finish what is queued, end the workers.

        drain: handle what is queued first; else it is dropped, and counted.
        timeout: seconds for all of it.

        Returns the number of events left unhandled; 0 in a fork's child, as the parent
        handles what was queued there. Idempotent; from any thread, from a handler too
        (its own events are finished after close returns, and those behind them in their
        partitions are left). Handlers are released.
        Afterwards emit, post, call and subscribe raise BusClosedError.
        """
        return dispatch.close(self, drain=drain, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close in a thread: async handlers go on running on this loop meanwhile."""
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._workers} workers"
        return f"<EventBus {self.name!r}, {state}>"

    # Called by the core

    def _start(self) -> None:
        """Start the workers, once; the core calls this on the first post."""
        with self._lock:
            if self._threads:
                return  # another thread was first, perhaps long ago
            if self._closing:
                raise BusClosedError(self, "post")
            dispatch.start_workers(self)

    def _report_failure(
        self, error: BaseException, key: object, handler: object
    ) -> None:
        """Hand on what a handler raised when there is no caller to raise it to."""
        if self._on_error is not None:
            self._on_error(error, key, handler)
        else:
            logger.error(
                "handler %r of key %r failed",
                handler,
                key,
                exc_info=error,
                extra=labels.failure_fields(error, key, handler),
            )


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most
