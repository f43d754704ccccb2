"""bus.stats() for Prometheus: a collector for prometheus_client.

    from prometheus_client import REGISTRY, start_http_server
    from ftbus.monitoring.prometheus import Collector

    REGISTRY.register(Collector(bus))
    start_http_server(9000, addr="127.0.0.1")

Nothing is counted twice: a scrape reads what the bus counts anyway.
"""

from __future__ import annotations

import weakref
from itertools import accumulate
from math import ceil, inf, log2
from typing import TYPE_CHECKING, Final

from ftbus.errors import InvalidOptionError
from ftbus.labels import OTHER
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
    from prometheus_client import registry
    from prometheus_client.core import (
        BucketSpan,
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        NativeHistogram,
    )
except ModuleNotFoundError as error:
    raise missing(__name__, "prometheus-client", error) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from ftbus.bus import EventBus
    from ftbus.histograms import Histogram
    from ftbus.stats import BusStats, Counters

__all__ = ["Collector"]

# Powers of two are bounds of the bus's own buckets, so that no event is counted on the
# wrong side of one: 512 ns to 17 s.
_BOUNDS_NS: Final = tuple(1 << power for power in range(9, 35))
_SCHEMA: Final = 3  # native buckets: 8 per octave; the bus's are finer, 32

type _Pair = tuple[BusStats, dict[str, Counters]]


class Collector(registry.Collector):
    """What a registry of prometheus_client asks at each scrape.

    buses: one or more; each is told apart by its name, in the label "bus". They are
        not kept alive; one that is gone is left out.
    max_keys: how many keys of each bus get series of their own; the others are summed
        in key="(other)". A key that has one keeps it.
    native_histograms: give histograms as native ones, and not as classic buckets. They
        are seen in an OpenMetrics 2.0 scrape only; prometheus_client calls them
        experimental.

    Any thread. Raises InvalidOptionError.
    """

    def __init__(
        self,
        *buses: EventBus,
        max_keys: int = 100,
        native_histograms: bool = False,
    ) -> None:
        if type(max_keys) is not int or max_keys < 0:
            raise InvalidOptionError("max_keys", max_keys, "0 or more")
        names = [bus.name for bus in buses]
        if not names or len(set(names)) < len(names):
            raise InvalidOptionError("buses", names, "buses with names of their own")
        self._sources = [(weakref.ref(bus), KeySeries(max_keys)) for bus in buses]
        self._is_native = native_histograms

    def describe(self) -> list[Metric]:
        """Return the names of the metrics, so that none is registered twice."""
        return list(self._families([]))

    def collect(self) -> Iterator[Metric]:
        """Read the counters of every bus; yield the metrics."""
        pairs = [
            series.read(bus)
            for reference, series in self._sources
            if (bus := reference()) is not None
        ]
        yield from self._families(pairs)

    def _families(self, pairs: list[_Pair]) -> Iterator[Metric]:
        rows = [(stats.name, by_label) for stats, by_label in pairs]
        for field, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(f"ftbus_{name}", text, labels=["bus", "key"])
            for bus, by_label in rows:
                for key, row in by_label.items():
                    counter.add_metric([bus, key], getattr(row, field))
            yield counter
        for field, (name, text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"ftbus_{name}", text, labels=["bus"])
            for stats, _ in pairs:
                gauge.add_metric([stats.name], getattr(stats, field))
            yield gauge
        for field, (name, text, unit) in WORKERS.items():
            worker = CounterMetricFamily(
                f"ftbus_{name}", text, labels=["bus", "worker"]
            )
            for stats, _ in pairs:
                for index, each in enumerate(stats.workers):
                    value = getattr(each, field)
                    worker.add_metric([stats.name, str(index)], value / unit)
            yield worker
        yield _exceptions(pairs)
        for field, (name, text) in TIMES.items():
            timed = HistogramMetricFamily(f"ftbus_{name}", text, labels=["bus"])
            for stats, _ in pairs:
                self._add(timed, stats.name, getattr(stats.times, field))
            yield timed

    def _add(self, family: HistogramMetricFamily, bus: str, times: Histogram) -> None:
        if self._is_native:
            family.add_sample(
                family.name, {"bus": bus}, 0, native_histogram=native(times)
            )
        else:
            family.add_metric([bus], classic(times), times.sum_ns / 1e9)


def _exceptions(pairs: list[_Pair]) -> Metric:
    family = CounterMetricFamily(
        "ftbus_exceptions", "Exceptions raised by handlers", labels=["bus", "type"]
    )
    for stats, _ in pairs:
        for error in stats.errors[:TYPES_MAX]:
            family.add_metric([stats.name, error.type], error.count)
        if len(stats.errors) > TYPES_MAX:
            rest = sum(error.count for error in stats.errors[TYPES_MAX:])
            family.add_metric([stats.name, OTHER], rest)
    return family


def classic(times: Histogram) -> list[tuple[str, float]]:
    """Return (le in seconds, cumulative count), with "+Inf" at the end."""
    counts = dict.fromkeys((*_BOUNDS_NS, inf), 0)
    bounds = iter(counts)
    bound = next(bounds)
    for upper_ns, n in times.buckets:
        while upper_ns > bound:
            bound = next(bounds)
        counts[bound] += n
    return [
        ("+Inf" if bound == inf else repr(bound / 1e9), total)
        for bound, total in zip(counts, accumulate(counts.values()), strict=True)
    ]


def native(times: Histogram) -> NativeHistogram:
    """Return the same in exponential buckets, 8 per octave.

    A bucket of ours that lies across the bound of two of them goes to the upper one:
    it is a quarter as wide at the most.
    """
    counts: dict[int, int] = {}
    zero = 0
    for upper_ns, n in times.buckets:
        if upper_ns == 0:
            zero += n
        else:
            index = ceil(log2(upper_ns / 1e9) * (1 << _SCHEMA))
            counts[index] = counts.get(index, 0) + n
    spans: list[tuple[int, int]] = []
    deltas: list[int] = []
    last_index, last_n = None, 0
    for index, n in sorted(counts.items()):
        if last_index is not None and index == last_index + 1:
            spans[-1] = spans[-1][0], spans[-1][1] + 1
        else:
            spans.append((index - (last_index + 1 if last_index is not None else 0), 1))
        deltas.append(n - last_n)
        last_index, last_n = index, n
    return NativeHistogram(
        times.count,
        times.sum_ns / 1e9,
        _SCHEMA,
        0.0,
        zero,
        pos_spans=[BucketSpan(*span) for span in spans] or None,
        pos_deltas=deltas or None,
    )
