"""stats(max_keys=): a few rows, and sums as exact as with all of them."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import BusStats, EventBus, Histogram, InvalidOptionError, errors
from ftbus.stats import merge_counters, merge_times
from ftbus.testing import run_threads

KEYS = 60


def nothing(event: object) -> None: ...


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(workers=2, timing="all", on_error=lambda *_: None) as bus:
        yield bus


def use(bus: EventBus, chance: random.Random) -> None:
    """Emit and post over all keys, unevenly; leave the bus quiet."""
    for _ in range(300):
        key = min(chance.randrange(KEYS), chance.randrange(KEYS))
        if chance.random() < 0.5:
            bus.emit(key, 1)
        else:
            bus.post(key, 1)
    bus.emit("nobody named this")
    assert bus.drain(WAIT)


def subscribe(bus: EventBus) -> None:
    for key in range(KEYS):
        for number in range(1 + key % 3):
            bus.on(key, lambda event: None, encoded=number == 1)


def check_same_sums(one: BusStats, all_of_it: BusStats) -> None:
    """Check that both say the same in total, and that rows add up to it."""
    assert one.to_counts() == all_of_it.to_counts()
    assert one.times == all_of_it.times
    assert one.lookups == all_of_it.lookups
    assert merge_counters(one.topics) == merge_counters(all_of_it.topics)
    assert merge_times(row.times for row in one.topics) == one.times
    handlers = sum(row.handlers for row in one.topics)
    assert handlers == sum(row.handlers for row in all_of_it.topics)


def figures(times: Histogram) -> tuple[Any, ...]:
    """Return what since() knows exactly."""
    return times.count, times.sum_ns, times.buckets


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("max_keys", [0, 1, 7, KEYS - 1, KEYS, 1000])
def test_sums_are_those_of_all_rows(
    bus: EventBus, seed: int, max_keys: int, exact: bool
) -> None:
    subscribe(bus)
    use(bus, random.Random(seed))
    complete = bus.stats()
    bounded = bus.stats(max_keys=max_keys, exact=exact)
    check_same_sums(bounded, complete)
    assert bounded.max_keys == max_keys
    assert len(bounded.topics) == min(max_keys, KEYS) + 1
    for row in bounded.topics:
        if row.key is not None:
            assert row == complete.topic(row.key)
    others = [row for row in complete.topics if row.key is not None]
    busiest = sorted(
        (row.emitted + row.posted + row.handled for row in others), reverse=True
    )
    kept = sorted(
        (
            row.emitted + row.posted + row.handled
            for row in bounded.topics
            if row.key is not None
        ),
        reverse=True,
    )
    assert kept == busiest[:max_keys]


def test_named_keys_have_rows_besides_the_busiest(bus: EventBus) -> None:
    for key in ("a", "b", "c", "d"):
        bus.on(key, nothing)
    bus.emit_many("a", range(9))
    bus.emit_many("b", range(5))
    stats = bus.stats(max_keys=1, keys=["d", "a", "d", "never named"])
    assert [row.key for row in stats.topics] == ["a", "b", "d", None]
    assert stats.topic("d").handlers == stats.topic(None).handlers == 1
    assert {row.key for row in stats.handlers} >= {"a", "b", "d"}
    check_same_sums(stats, bus.stats())


def test_handlers_without_a_kept_key_are_the_slowest_and_most_called(
    bus: EventBus,
) -> None:
    bus.on("kept", nothing)
    for key in range(50):
        bus.on(key, nothing)
        bus.set_timing(key, "off")
        bus.emit_many(key, range(key))
    stats = bus.stats(max_keys=0, keys=("kept",))
    assert [row.key for row in stats.handlers] == ["kept"]
    # None was timed: by calls alone.
    rows = bus.stats(max_keys=6, keys=("kept",)).handlers
    assert {row.key for row in rows} == {"kept", *range(38, 50)}
    assert [row.calls for row in rows if row.key == 38] == [38]


def test_the_longest_call_gets_a_row(bus: EventBus) -> None:
    for key in range(20):
        bus.on(key, nothing)
        bus.set_timing(key, "off")
        bus.emit_many(key, range(10))
    bus.set_timing(3, "all")
    bus.emit(3)
    rows = bus.stats(max_keys=2, keys=()).handlers
    assert 3 in {row.key for row in rows}


def test_since_of_bounded_readings_adds_up(bus: EventBus, seed: int) -> None:
    chance = random.Random(seed)
    subscribe(bus)
    use(bus, chance)
    earlier: list[BusStats] = [
        bus.stats(),
        bus.stats(max_keys=0),
        bus.stats(max_keys=10),
        bus.stats(max_keys=10, keys=[KEYS - 1]),
    ]
    for key in range(KEYS - 5, KEYS):
        bus.emit_many(key, range(200))  # others are the busiest now
    bus.on("new", nothing)
    bus.emit_many("new", range(500))
    use(bus, chance)
    later = [bus.stats(), bus.stats(max_keys=0), bus.stats(max_keys=10)]
    wanted = later[0].since(earlier[0])
    for then in earlier:
        for now in later:
            delta = now.since(then)
            assert delta.to_counts() == wanted.to_counts()
            assert merge_counters(delta.topics).to_counts() == wanted.to_counts()
            for row in delta.topics:
                assert min(row.to_counts().values()) >= 0
                if row.key is not None:
                    assert row.to_counts() == wanted.topic(row.key).to_counts()
            for name in ("emit", "wait", "handler", "encode"):
                merged = merge_times(row.times for row in delta.topics)
                assert figures(getattr(merged, name)) == figures(
                    getattr(wanted.times, name)
                )
            assert sum(row.handlers for row in delta.topics) == sum(
                row.handlers for row in wanted.topics
            )
            assert all(row.calls >= 0 for row in delta.handlers)


def test_reset_is_the_baseline_of_bounded_readings(bus: EventBus, seed: int) -> None:
    subscribe(bus)
    use(bus, random.Random(seed))
    bus.reset_stats()
    assert set(bus.stats(max_keys=5).to_counts().values()) == {0}
    assert set(bus.stats(max_keys=5).topic(None).to_counts().values()) == {0}
    use(bus, random.Random(seed + 1))
    bounded, complete = bus.stats(max_keys=5), bus.stats()
    assert bounded.to_counts() == complete.to_counts()
    assert merge_counters(bounded.topics) == merge_counters(complete.topics)


def test_rows_add_up_while_others_emit(bus: EventBus) -> None:
    subscribe(bus)
    seen: list[BusStats] = []

    def work(index: int) -> None:
        for n in range(50 if index == 0 else 2000):
            if index == 0:
                seen.append(bus.stats(max_keys=5))
            else:
                bus.emit(n % KEYS)

    run_threads(3, work)
    emitted = [stats.emitted for stats in seen]
    assert emitted == sorted(emitted)
    for then, now in itertools.pairwise(seen):
        assert all(row.emitted >= 0 for row in now.since(then).topics)
    check_same_sums(bus.stats(max_keys=5), bus.stats())


def test_bus_that_does_not_count_by_key() -> None:
    with EventBus(workers=1, stats=False) as bus:
        for key in range(5):
            bus.on(key, nothing)
            bus.post(key)
        assert bus.drain(WAIT)
        stats = bus.stats(max_keys=2, keys=(3,))
        assert (stats.posted, stats.delivered, len(stats.topics)) == (5, 5, 4)


@pytest.mark.parametrize("max_keys", [-1, 1.5, True, "1"])
def test_bad_bounds_are_refused(bus: EventBus, max_keys: Any) -> None:
    with pytest.raises(InvalidOptionError):
        bus.stats(max_keys=max_keys)
    with pytest.raises(errors.UnsupportedKeyError):
        bus.stats(max_keys=1, keys=[object()])
