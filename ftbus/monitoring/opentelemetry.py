"""bus.stats() for OpenTelemetry: observable instruments, and spans around handlers.

    from ftbus.monitoring import opentelemetry

    opentelemetry.observe(bus)         # metrics, of the global meter provider
    opentelemetry.trace_handlers(bus)  # spans, of the global tracer provider

A span's parent is whatever was current where the event was emitted, posted or called:
context variables travel with it.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, cast

import ftbus
from ftbus.errors import InvalidOptionError
from ftbus.failures import name_of
from ftbus.labels import OTHER, failure_fields, label
from ftbus.monitoring.extras import missing
from ftbus.monitoring.series import (
    COUNTERS,
    GAUGES,
    TIMES,
    TYPES_MAX,
    WORKERS,
    KeySeries,
)

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import Observation
except ModuleNotFoundError as error:
    raise missing(__name__, "opentelemetry-api", error) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from ftbus.bus import EventBus
    from ftbus.observers import Observer
    from ftbus.stats import BusStats

    type _Callback = Callable[[CallbackOptions], Iterable[Observation]]

__all__ = ["HandlerTracer", "observe", "trace_handlers"]

_QUANTILES: Final = {0.5: "p50_ns", 0.9: "p90_ns", 0.99: "p99_ns", 0.999: "p999_ns"}


def observe(
    bus: EventBus, provider: MeterProvider | None = None, *, max_keys: int = 100
) -> None:
    """Let a meter provider observe a bus for as long as the bus lives.

    provider: None is the global one.
    max_keys: how many keys get series of their own; the others are summed in
        ftbus.key="(other)". A key that has one keeps it.

    All instruments begin with "ftbus."; each has the attribute ftbus.bus. Durations are
    gauges with the attribute quantile, and counters of what was timed, as OpenTelemetry
    has no observable histogram. Call it once for each bus. Raises InvalidOptionError.
    """
    if type(max_keys) is not int or max_keys < 0:
        raise InvalidOptionError("max_keys", max_keys, "0 or more")
    source = _Source(bus, KeySeries(max_keys))
    meter = metrics.get_meter("ftbus", ftbus.__version__, provider)
    counter, gauge = meter.create_observable_counter, meter.create_observable_gauge
    for field, (name, text) in COUNTERS.items():
        counter(_dotted(name), [source.of_keys(field)], "1", text)
    for field, (name, text) in GAUGES.items():
        gauge(_dotted(name), [source.of_bus(field)], "1", text)
    for field, (name, text, unit) in WORKERS.items():
        kind = "s" if unit > 1 else "1"
        counter(_dotted(name), [source.of_workers(field, unit)], kind, text)
    for field, (name, text) in TIMES.items():
        base = _dotted(name.removesuffix("_seconds"))
        gauge(base, [source.of_quantiles(field)], "s", text)
        counter(f"{base}.count", [source.of_timed(field)], "1", f"{text}: how many")
        counter(f"{base}.sum", [source.of_sum(field)], "s", f"{text}: in total")
    counter("ftbus.exceptions", [source.of_errors], "1", "Exceptions of handlers")


def _dotted(name: str) -> str:
    first, _, rest = name.partition("_")
    return f"ftbus.{first}.{rest}" if rest else f"ftbus.{first}"


class _Source:
    """One snapshot for all instruments of a collection, and what they take from it."""

    def __init__(self, bus: EventBus, series: KeySeries) -> None:
        self._bus = weakref.ref(bus)
        self._series = series
        self._lock = threading.Lock()
        self._stats: BusStats | None = None
        self._rows: dict[str, Any] = {}
        self._served: set[str] = set()  # the instruments that had this snapshot

    def _snapshot(self, instrument: str) -> tuple[BusStats, dict[str, Any]] | None:
        """Return the snapshot; a new one if the instrument has had this one."""
        bus = self._bus()
        if bus is None:
            return None
        with self._lock:
            if self._stats is None or instrument in self._served:
                self._stats, self._rows = self._series.read(bus)
                self._served.clear()
            self._served.add(instrument)
            return self._stats, self._rows

    def _callback(
        self, name: str, read: Callable[[BusStats, Any], Iterator[Observation]]
    ) -> _Callback:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            found = self._snapshot(name)
            return [] if found is None else list(read(*found))

        return observe

    def of_keys(self, field: str) -> _Callback:
        """Observe a counter of each key."""

        def read(stats: BusStats, rows: Any) -> Iterator[Observation]:
            for key, row in rows.items():
                attributes = {"ftbus.bus": stats.name, "ftbus.key": key}
                yield Observation(getattr(row, field), attributes)

        return self._callback(f"key {field}", read)

    def of_bus(self, field: str) -> _Callback:
        """Observe a figure of the bus."""

        def read(stats: BusStats, _: Any) -> Iterator[Observation]:
            yield Observation(getattr(stats, field), {"ftbus.bus": stats.name})

        return self._callback(f"bus {field}", read)

    def of_workers(self, field: str, unit: float) -> _Callback:
        """Observe a counter of each worker."""

        def read(stats: BusStats, _: Any) -> Iterator[Observation]:
            for index, row in enumerate(stats.workers):
                yield Observation(
                    getattr(row, field) / unit,
                    {"ftbus.bus": stats.name, "ftbus.worker": index},
                )

        return self._callback(f"worker {field}", read)

    def of_quantiles(self, field: str) -> _Callback:
        """Observe the percentiles of what was timed; none if nothing was."""

        def read(stats: BusStats, _: Any) -> Iterator[Observation]:
            times = getattr(stats.times, field)
            for quantile, name in _QUANTILES.items() if times.count else ():
                yield Observation(
                    getattr(times, name) / 1e9,
                    {"ftbus.bus": stats.name, "quantile": quantile},
                )

        return self._callback(f"quantile {field}", read)

    def of_timed(self, field: str) -> _Callback:
        """Observe how many were timed."""

        def read(stats: BusStats, _: Any) -> Iterator[Observation]:
            times = getattr(stats.times, field)
            yield Observation(times.count, {"ftbus.bus": stats.name})

        return self._callback(f"count {field}", read)

    def of_sum(self, field: str) -> _Callback:
        """Observe how long those took all together, in seconds."""

        def read(stats: BusStats, _: Any) -> Iterator[Observation]:
            times = getattr(stats.times, field)
            yield Observation(times.sum_ns / 1e9, {"ftbus.bus": stats.name})

        return self._callback(f"sum {field}", read)

    def of_errors(self, _: CallbackOptions) -> Iterable[Observation]:
        """Observe the exceptions by type; the rarest are summed."""
        found = self._snapshot("errors")
        if found is None:
            return
        stats = found[0]
        for error in stats.errors[:TYPES_MAX]:
            attributes = {"ftbus.bus": stats.name, "error.type": error.type}
            yield Observation(error.count, attributes)
        if len(stats.errors) > TYPES_MAX:
            rest = sum(error.count for error in stats.errors[TYPES_MAX:])
            attributes = {"ftbus.bus": stats.name, "error.type": OTHER}
            yield Observation(rest, attributes)


class HandlerTracer:
    """An observer of a bus that makes a span of each handler call.

    The span is current while the handler runs, so that what it starts, and posts, is
    below it. That of an async handler ends when its loop has got it; what it starts
    is below it all the same. The attributes are those of the semantic conventions for
    messaging.
    """

    def __init__(self, bus_name: str, provider: TracerProvider | None = None) -> None:
        self._bus_name = bus_name
        self._tracer = trace.get_tracer("ftbus", ftbus.__version__, provider)
        self._open = threading.local()  # spans of calls under way, innermost last

    def started(self, key: object, handler: object, event: object) -> None:
        """Start a span and make it the current one."""
        name = label(key)
        span = self._tracer.start_span(
            f"process {name}",
            attributes={
                "messaging.system": "ftbus",
                "messaging.client.id": self._bus_name,
                "messaging.operation.type": "process",
                "messaging.destination.name": name,
                "code.function.name": name_of(handler),
            },
        )
        token = context.attach(trace.set_span_in_context(span))
        calls: list[tuple[Span, Token[Context]]] | None
        calls = getattr(self._open, "calls", None)
        if calls is None:
            calls = self._open.calls = []
        calls.append((span, token))

    def finished(self, key: object, handler: object, event: object) -> None:
        """End the span of the call."""
        self._end()

    def failed(
        self, key: object, handler: object, event: object, error: BaseException
    ) -> None:
        """End the span of the call with the exception."""
        span = self._open.calls[-1][0]
        span.record_exception(error)
        fields = failure_fields(error, key, handler)
        span.set_attribute("error.type", fields["ftbus_error"])
        span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
        self._end()

    def _end(self) -> None:
        span, token = self._open.calls.pop()
        context.detach(token)
        span.end()


def trace_handlers(
    bus: EventBus, provider: TracerProvider | None = None
) -> HandlerTracer:
    """Make a span of each handler call of a bus; return the observer that does it.

    provider: None is the global one.

    bus.remove_observer() ends it.
    """
    tracer = HandlerTracer(bus.name, provider)
    bus.add_observer(cast("Observer", tracer))  # it needs no `dropped`
    return tracer
