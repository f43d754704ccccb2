"""Instruments and spans, read through the SDK's own in-memory reader and exporter."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from ftbus import EventBus, InvalidOptionError
from ftbus.monitoring import series

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from opentelemetry.trace import StatusCode, get_current_span

from ftbus.monitoring import opentelemetry

pytestmark = pytest.mark.thread_unsafe(reason="one bus for each test")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(workers=2, name="observed") as bus:
        yield bus


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def meters(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


def read(reader: InMemoryMetricReader) -> dict[str, dict[tuple[Any, ...], float]]:
    """Return {instrument: {attribute values besides the bus: value}}."""
    data = reader.get_metrics_data()
    found: dict[str, dict[tuple[Any, ...], float]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "ftbus"
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    attributes = dict(point.attributes)
                    assert attributes.pop("ftbus.bus") == "observed"
                    values = found.setdefault(metric.name, {})
                    values[tuple(attributes.values())] = point.value
    return found


def test_instruments_say_what_stats_says(
    bus: EventBus, reader: InMemoryMetricReader, meters: MeterProvider
) -> None:
    def fail(event: object) -> None:
        raise LookupError(event)

    bus.on("moved", lambda event: None)
    bus.on("said", fail)
    opentelemetry.observe(bus, meters)
    for _ in range(2):  # each collection has a snapshot of its own
        for number in range(5):
            bus.emit("moved", number)
            bus.post("said", number)
        bus.drain(30)
        found = read(reader)
        stats = bus.stats()
        for key in ("moved", "said"):
            for field, (name, _) in series.COUNTERS.items():
                value = found[opentelemetry._dotted(name)][key,]
                assert value == getattr(stats.topic(key), field)
        for field, (name, _) in series.GAUGES.items():
            assert found[opentelemetry._dotted(name)][()] == getattr(stats, field)
        for index, worker in enumerate(stats.workers):
            assert found["ftbus.worker.events"][index,] == worker.taken
            busy = found["ftbus.worker.busy_seconds"][index,]
            assert 0 <= busy <= worker.busy_ns / 1e9  # it may not be idle just yet
        for error in stats.errors:
            assert found["ftbus.exceptions"][error.type,] == error.count
        for field in series.TIMES:
            times = getattr(stats.times, field)
            base = f"ftbus.{field}.duration"
            assert found[f"{base}.count"][()] == times.count
            assert found[f"{base}.sum"][()] == pytest.approx(times.sum_ns / 1e9)
            if times.count:
                assert found[base][0.99,] == pytest.approx(times.p99_ns / 1e9)


def test_keys_are_bounded(
    bus: EventBus, reader: InMemoryMetricReader, meters: MeterProvider
) -> None:
    opentelemetry.observe(bus, meters, max_keys=2)
    for number in range(6):
        bus.topic(f"key-{number}")
        for _ in range(number + 1):
            bus.emit(f"key-{number}")
    emitted = read(reader)["ftbus.events.emitted"]
    assert emitted == {("key-5",): 6, ("key-4",): 5, ("(other)",): 10}
    with pytest.raises(InvalidOptionError):
        opentelemetry.observe(bus, meters, max_keys=-1)


def test_bus_is_not_kept_alive(
    reader: InMemoryMetricReader, meters: MeterProvider
) -> None:
    bus = EventBus(name="observed")
    opentelemetry.observe(bus, meters)
    assert read(reader)
    bus.close()
    del bus
    gc.collect()
    assert read(reader) == {}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracers(spans: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()


def by_name(spans: InMemorySpanExporter) -> dict[str, Any]:
    found = {span.name: span for span in spans.get_finished_spans()}
    assert len(found) == len(spans.get_finished_spans())
    return found


@pytest.mark.parametrize("verb", ["emit", "post", "call"])
def test_spans_follow_an_event_from_where_it_came(
    bus: EventBus, spans: InMemorySpanExporter, tracers: TracerProvider, verb: str
) -> None:
    seen = []

    def first(event: object) -> None:
        seen.append(get_current_span().get_span_context().span_id)
        bus.post("second", event)

    def second(event: object) -> None:
        seen.append(get_current_span().get_span_context().span_id)

    bus.on("first", first)
    bus.on("second", second)
    opentelemetry.trace_handlers(bus, tracers)
    with tracers.get_tracer("test").start_as_current_span("request"):
        result = getattr(bus, verb)("first", 1)
        if verb == "call":
            result.result(30)
    bus.drain(30)
    found = by_name(spans)
    request, one, two = (
        found[name] for name in ("request", "process first", "process second")
    )
    assert one.parent.span_id == request.context.span_id
    assert two.parent.span_id == one.context.span_id
    assert seen == [one.context.span_id, two.context.span_id]
    assert one.attributes["messaging.destination.name"] == "first"
    assert one.attributes["code.function.name"].endswith("first")
    assert not get_current_span().get_span_context().is_valid


def test_span_of_a_failure_says_so(
    bus: EventBus, spans: InMemorySpanExporter, tracers: TracerProvider
) -> None:
    def fail(event: object) -> None:
        raise LookupError("no such player")

    bus.on("key", fail)
    tracer = opentelemetry.trace_handlers(bus, tracers)
    with pytest.raises(ExceptionGroup):
        bus.emit("key", 1)
    span = by_name(spans)["process key"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "builtins.LookupError"
    (event,) = span.events
    assert event.attributes["exception.message"] == "no such player"
    assert bus.remove_observer(tracer)
    with pytest.raises(ExceptionGroup):
        bus.emit("key", 1)
    assert len(spans.get_finished_spans()) == 1


def test_spans_nest_with_the_handlers(
    bus: EventBus, spans: InMemorySpanExporter, tracers: TracerProvider
) -> None:
    bus.on("outer", lambda event: bus.emit("inner", event))
    bus.on("inner", lambda event: None)
    opentelemetry.trace_handlers(bus, tracers)
    bus.emit("outer", 1)
    found = by_name(spans)
    inner, outer = found["process inner"], found["process outer"]
    assert inner.parent.span_id == outer.context.span_id
    assert outer.parent is None
