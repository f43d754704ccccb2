"""The collector for prometheus_client, read as a Prometheus server would."""

import random
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from ftbus import EventBus, Histogram, InvalidOptionError, histograms
from ftbus.monitoring import series

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client import (  # noqa: E402
    CollectorRegistry,
    generate_latest,
    start_http_server,
)
from prometheus_client.openmetrics import exposition as openmetrics  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics_parser  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from ftbus.monitoring import prometheus  # noqa: E402
from ftbus.monitoring.prometheus import Collector  # noqa: E402

pytestmark = pytest.mark.thread_unsafe(reason="one bus for each test")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(workers=2, name="scraped") as bus:
        yield bus


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what a scrape says, by name and labels; it says nothing twice."""
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name, tuple(sorted(sample.labels.items()))
            assert name not in found
            found[name] = sample.value
    return found


def scrape(collector: Collector) -> dict[Any, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return samples(generate_latest(registry).decode())


def of(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted({"bus": "scraped", **labels}.items()))]


def use(bus: EventBus) -> None:
    def fail(event: object) -> None:
        raise LookupError(event)

    bus.on("moved", lambda event: None)
    bus.on("said", lambda event: None, encoded=True)
    bus.on("said", fail)
    for number in range(9):
        bus.emit("moved", number)
    for number in range(5):
        bus.post("said", number)
    bus.post("nobody listens")
    bus.drain(30)


def test_scrape_over_http_says_what_stats_says(bus: EventBus) -> None:
    use(bus)
    registry = CollectorRegistry()
    registry.register(Collector(bus))
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as reply:
            found = samples(reply.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    stats = bus.stats()
    for key in ("moved", "said"):
        row = stats.topic(key)
        for field, (name, _) in series.COUNTERS.items():
            value = of(found, f"ftbus_{name}_total", key=key)
            assert value == getattr(row, field), (key, field)
    for field, (name, _) in series.COUNTERS.items():
        total = sum(v for (n, _), v in found.items() if n == f"ftbus_{name}_total")
        assert total == getattr(stats, field), field
    for field, (name, _) in series.GAUGES.items():
        assert of(found, f"ftbus_{name}") == getattr(stats, field)
    for index, worker in enumerate(stats.workers):
        taken = of(found, "ftbus_worker_events_total", worker=str(index))
        assert taken == worker.taken
    for error in stats.errors:
        assert of(found, "ftbus_exceptions_total", type=error.type) == error.count
    for field, (name, _) in series.TIMES.items():
        times = getattr(stats.times, field)
        assert of(found, f"ftbus_{name}_count") == times.count
        assert of(found, f"ftbus_{name}_sum") == pytest.approx(times.sum_ns / 1e9)
        assert of(found, f"ftbus_{name}_bucket", le="+Inf") == times.count


def test_keys_are_bounded_and_every_series_only_grows(bus: EventBus, seed: int) -> None:
    chance = random.Random(seed)
    keys = [f"key-{number}" for number in range(40)]
    for key in keys[:20]:
        bus.topic(key)
    collector = Collector(bus, max_keys=5)
    before: dict[Any, float] = {}
    for round_ in range(8):
        for _ in range(50):
            # The traffic moves on to other keys from round to round.
            bus.emit(keys[min(39, chance.randrange(10) + round_ * 4)])
        if round_ == 3:
            for key in keys[20:]:
                bus.topic(key)
        now = scrape(collector)
        grown = {n: v for n, v in now.items() if n[0] == "ftbus_events_emitted_total"}
        assert len(grown) <= 6
        assert set(before) <= set(grown)
        assert all(grown[name] >= value for name, value in before.items())
        assert sum(grown.values()) == bus.stats().emitted
        before = grown


def test_key_that_comes_when_there_is_space_gets_it(bus: EventBus) -> None:
    collector = Collector(bus, max_keys=2)
    bus.topic("first")
    bus.emit("first")
    assert of(scrape(collector), "ftbus_events_emitted_total", key="first") == 1
    for key, times in (("rare", 1), ("often", 9)):
        bus.topic(key)
        for _ in range(times):
            bus.emit(key)
    for _ in range(100):
        bus.emit("rare")
    found = scrape(collector)
    assert of(found, "ftbus_events_emitted_total", key="rare") == 101
    assert of(found, "ftbus_events_emitted_total", key="(other)") == 9
    assert of(found, "ftbus_events_emitted_total", key="first") == 1


def test_keys_of_one_name_are_one_series(bus: EventBus) -> None:
    for key in ("7", 7, "x" * 300 + "a", "x" * 300 + "b", "(other)"):
        bus.topic(key)
        bus.emit(key)
    found = scrape(Collector(bus))
    assert of(found, "ftbus_events_emitted_total", key="7") == 2
    values = [v for (n, _), v in found.items() if n == "ftbus_events_emitted_total"]
    assert sorted(values) == [1, 2, 2]


@pytest.mark.parametrize("key", ['"\n\\', "€ {le='1'}", "a\tb", "#", " "])
def test_keys_of_every_kind_survive_the_format(bus: EventBus, key: str) -> None:
    bus.topic(key)
    bus.emit(key)
    found = scrape(Collector(bus))
    assert of(found, "ftbus_events_emitted_total", key=key) == 1


def test_several_buses_share_a_registry(bus: EventBus) -> None:
    registry = CollectorRegistry()
    with EventBus(name="second") as second:
        registry.register(Collector(bus, second))
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(Collector(bus))
        second.topic("key")
        second.emit("key")
        found = samples(generate_latest(registry).decode())
        name = "ftbus_events_emitted_total", (("bus", "second"), ("key", "key"))
        assert found[name] == 1
        assert of(found, "ftbus_events_pending") == 0


def test_bus_is_not_kept_alive() -> None:
    bus = EventBus(name="gone")
    collector = Collector(bus)
    bus.close()
    assert scrape(collector)
    del bus
    assert scrape(collector) == {}


@pytest.mark.parametrize("max_keys", [-1, 1.5, True, None])
def test_bad_limits_are_refused(bus: EventBus, max_keys: Any) -> None:
    with pytest.raises(InvalidOptionError):
        Collector(bus, max_keys=max_keys)


def test_buses_need_names_of_their_own(bus: EventBus) -> None:
    with pytest.raises(InvalidOptionError):
        Collector()
    with EventBus(name="scraped") as other, pytest.raises(InvalidOptionError):
        Collector(bus, other)


def recorded(values: list[int]) -> Histogram:
    counts: dict[int, int] = {}
    for value in values:
        bucket = histograms.bucket_of(value)
        counts[bucket] = counts.get(bucket, 0) + 1
    return histograms.from_counts(counts, sum(values), min(values), max(values))


def test_classic_buckets_put_every_duration_on_the_right_side(seed: int) -> None:
    chance = random.Random(seed)
    values = [int(10 ** chance.uniform(0, 11)) for _ in range(5000)]
    values += [1 << power for power in range(38)]
    values += [(1 << power) - 1 for power in range(38)]
    for le, total in prometheus.classic(recorded(values)):
        bound_ns = float(le) * 1e9
        # A bound itself is in the bucket above: durations are below it, not at it.
        assert total == sum(value < bound_ns for value in values), le
    assert prometheus.classic(Histogram())[-1] == ("+Inf", 0)


def test_native_buckets_survive_a_scrape(bus: EventBus, seed: int) -> None:
    chance = random.Random(seed)
    values = [0, 0, *(int(10 ** chance.uniform(2, 9)) for _ in range(1000))]
    native = prometheus.native(recorded(values))
    family = prometheus.HistogramMetricFamily("ftbus_x", "x", labels=["bus"])
    family.add_sample("ftbus_x", {"bus": "b"}, 0, native_histogram=native)
    registry = CollectorRegistry()

    class One(prometheus.registry.Collector):
        def collect(self) -> Any:
            yield family

    registry.register(One())
    text = openmetrics.generate_latest(registry, version="2.0.0").decode()
    (read,) = openmetrics_parser.text_string_to_metric_families(text)
    (sample,) = read.samples
    got = sample.native_histogram
    assert (got.count_value, got.zero_count) == (1002, 2)
    assert got.sum_value == pytest.approx(sum(values) / 1e9)
    # Not from the library's parser: it takes no span that begins below 1 s.
    spans = re.search(r"positive_spans:\[([^\]]*)\]", text)
    assert spans is not None
    counts, n, index = {}, 0, 0
    deltas = iter(got.pos_deltas)
    for span in spans[1].split(","):
        offset, _, length = span.partition(":")
        index += int(offset)
        for _ in range(int(length)):
            n += next(deltas)
            counts[index] = n
            index += 1
    assert sum(counts.values()) == 1000
    for place, n in counts.items():
        # Of what is in a bucket, all are there to within our own 1/32.
        low, high = 2 ** ((place - 1) / 8) * 1e9, 2 ** (place / 8) * 1e9
        inside = sum(
            low * (1 - 1 / 16) < value <= high * (1 + 1 / 16) for value in values
        )
        assert n <= inside


def test_native_histograms_replace_the_classic_ones(bus: EventBus) -> None:
    use(bus)
    registry = CollectorRegistry()
    registry.register(Collector(bus, native_histograms=True))
    text = openmetrics.generate_latest(registry, version="2.0.0").decode()
    assert "_bucket" not in text
    families = {
        f.name: f for f in openmetrics_parser.text_string_to_metric_families(text)
    }
    (sample,) = families["ftbus_emit_duration_seconds"].samples
    assert sample.native_histogram.count_value == bus.stats().times.emit.count
