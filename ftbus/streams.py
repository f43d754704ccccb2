"""Async iteration over the events of a key."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self

from ftbus import handlers, interrupts
from ftbus.errors import InvalidOptionError, StreamFullError

if TYPE_CHECKING:
    from types import TracebackType

    from ftbus.bus import EventBus

    type StreamOverflow = Literal["block", "raise", "drop_newest", "drop_oldest"]

__all__ = ["EventStream"]

_OVERFLOWS = ("block", "raise", "drop_newest", "drop_oldest")
_SIZE_MAX = 1 << 30


class EventStream:
    """The events of a key as an async iterator; made by bus.stream().

    It is subscribed from when it is made until aclose(), the end of an `async with`
    block, or until nobody holds it any more, as after `break`. It ends when the bus is
    closed, after what it holds has been taken; bus.off() only keeps events out. Events
    come in from any thread; those that come while the loop is busy share one wake-up.

    Iterate on the loop it was made on; several tasks share the events among them.
    """

    def __init__(
        self,
        bus: EventBus,
        key: object,
        maxsize: int,
        overflow: StreamOverflow,
        options: dict[str, Any],
    ) -> None:
        if type(maxsize) is not int or not 1 <= maxsize <= _SIZE_MAX:
            raise InvalidOptionError("maxsize", maxsize, f"1 to {_SIZE_MAX}")
        if overflow not in _OVERFLOWS:
            raise InvalidOptionError("overflow", overflow, f"one of {_OVERFLOWS}")
        loop = handlers.loop_of(None)
        self._sink = _Sink(bus, key, loop, maxsize, overflow)
        with bus._lock:
            bus._sinks.add(self._sink)
        try:  # the bus holds the sink, but nobody holds the stream
            subscription = bus.subscribe(key, self._sink, **options)
        except BaseException:
            self._sink.end()
            raise
        self._closer = weakref.finalize(self, _close, subscription, self._sink)
        self._closer.atexit = False  # type: ignore[misc]

    @property
    def dropped(self) -> int:
        """How many events the overflow policy has dropped."""
        return self._sink.dropped

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._sink.take()

    async def aclose(self) -> None:
        """Unsubscribe, and forget what has not been taken. Idempotent."""
        self._closer()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<EventStream of {self._sink.key!r}, {len(self._sink.events)} waiting>"


def _close(subscription: Any, sink: _Sink) -> None:
    subscription.cancel()
    sink.end()
    sink.events.clear()


class _Sink:
    """What a stream holds: filled by any thread, emptied by its event loop."""

    def __init__(
        self,
        bus: EventBus,
        key: object,
        loop: asyncio.AbstractEventLoop,
        maxsize: int,
        overflow: StreamOverflow,
    ) -> None:
        self.bus = weakref.ref(bus)
        self.key = key
        self.events: deque[Any] = deque()
        self.dropped = 0
        self._maxsize = maxsize
        self._overflow = overflow
        self._loop = loop
        self._process = os.getpid()
        # All below by this lock. A finalizer may emit while it is held.
        self._changed = threading.Condition(threading.RLock())
        self._has_ended = False
        self._is_woken = False
        self._arrived = asyncio.Event()  # used by the loop's thread only

    def __call__(self, event: object) -> None:
        """Take an event in. Raises StreamFullError, or RuntimeError without a loop."""
        if self._loop.is_closed() or os.getpid() != self._process:
            raise RuntimeError(f"{self._loop!r} is closed: nobody reads {self.key!r}")
        with self._changed:
            if len(self.events) >= self._maxsize and not self._make_space():
                return
            if self._has_ended:
                return
            self.events.append(event)
            must_wake = not self._is_woken
            self._is_woken = True
        if must_wake:
            self._wake()

    def _make_space(self) -> bool:
        """Do as the overflow policy says; return whether there is space now."""
        if self._overflow == "drop_oldest":
            self.events.popleft()
            self.dropped += 1
            return True
        if self._overflow == "drop_newest":
            self.dropped += 1
            return False
        if self._overflow == "raise" or self._is_loop_here():
            raise StreamFullError(self.key, self._maxsize)
        while len(self.events) >= self._maxsize and not self._has_ended:
            self._changed.wait(interrupts.SLICE_S)
            bus = self.bus()
            if bus is None or bus.closed or self._loop.is_closed():
                raise StreamFullError(self.key, self._maxsize)
        return True

    def _is_loop_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # closed just now
            with self._changed:
                self._is_woken = False
            raise

    async def take(self) -> Any:
        """Return the next event; raises StopAsyncIteration at the end."""
        while True:
            with self._changed:
                if self.events:
                    event = self.events.popleft()
                    if self._overflow == "block":
                        self._changed.notify()
                    return event
                if self._has_ended:
                    raise StopAsyncIteration
                self._arrived.clear()
                self._is_woken = False
            await self._arrived.wait()

    def end(self) -> None:
        """Take nothing in any more; wake everybody who waits. Any thread."""
        with self._changed:
            if self._has_ended:
                return
            self._has_ended = True
            self._changed.notify_all()
        bus = self.bus()
        if bus is not None:
            with bus._lock:
                bus._sinks.discard(self)
        if not self._loop.is_closed() and os.getpid() == self._process:
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:
                return  # closed just now: nobody waits on it

    def __repr__(self) -> str:
        return f"<stream of {self.key!r}>"
