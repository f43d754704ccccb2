"""Topic: a key of one bus with the look-up done.

The hot methods (emit, emit_many, post, post_many) come from the C core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ftbus import _core, calls, timers

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from contextvars import Context

    from ftbus._core import Subscription
    from ftbus.bus import EventBus, Handler, Overflow
    from ftbus.stats import TopicStats
    from ftbus.streams import EventStream
    from ftbus.timers import Timer

__all__ = ["Topic"]


class Topic(_core.Topic):
    """A key of one bus with the look-up done; made by bus.topic(key).

    Share it between threads freely. For the best speed bind `emit = topic.emit` once
    in each thread, or pin the bus.
    """

    __slots__ = ()

    @property
    def _event_bus(self) -> EventBus:
        return cast("EventBus", self.bus)

    def subscribe(self, handler: Handler, **options: Any) -> Subscription:
        """Register a handler; the options are those of EventBus.subscribe."""
        return self._event_bus.subscribe(self.key, handler, **options)

    def on(self, handler: Any = None, /, **options: Any) -> Any:
        """Register a handler and return it unchanged; without one, be a decorator."""
        return self._event_bus.on(self.key, handler, **options)

    def call(
        self,
        event: object = None,
        *,
        timeout: float | None = None,
        context: Context | None = None,
    ) -> Future[list[Any]]:
        """Run the handlers in parallel; see EventBus.call."""
        return calls.call(self._event_bus, self.key, event, timeout, context)

    async def acall(
        self,
        event: object = None,
        *,
        timeout: float | None = None,
        context: Context | None = None,
    ) -> list[Any]:
        """Run the handlers in parallel and await the results; see EventBus.acall."""
        bus = self._event_bus
        return await calls.acall(bus, self.key, event, timeout, context)

    def stream(
        self,
        *,
        maxsize: int = 1024,
        overflow: Overflow = "drop_oldest",
        **options: Any,
    ) -> EventStream:
        """Subscribe an async iterator; see EventBus.stream."""
        return self._event_bus.stream(
            self.key, maxsize=maxsize, overflow=overflow, **options
        )

    def post_later(
        self,
        delay_s: float,
        event: object = None,
        *,
        partition: object = None,
        context: Context | None = None,
    ) -> Timer:
        """Post an event after a delay; see EventBus.post_later."""
        return timers.post_later(
            self._event_bus, delay_s, self.key, event, partition, context
        )

    def every(
        self,
        interval_s: float,
        event: object = None,
        *,
        factory: Callable[[], Any] | None = None,
        partition: object = None,
        context: Context | None = None,
    ) -> Timer:
        """Post an event again and again; see EventBus.every."""
        return timers.every(
            self._event_bus, interval_s, self.key, event, factory, partition, context
        )

    def stats(self) -> TopicStats:
        """Return this topic's counters."""
        return self._event_bus.stats(max_keys=0, keys=(self.key,)).topic(self.key)

    def __repr__(self) -> str:
        return f"<Topic {self.key!r} of {self._event_bus.name!r}>"
