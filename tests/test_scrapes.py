"""Several readers at once, while keys and handlers come and go under them."""

import itertools
import json
import random
from dataclasses import fields
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import BusStats, EventBus
from ftbus.labels import OTHER, label
from ftbus.monitoring.series import KeySeries
from ftbus.monitoring.snapshots import Snapshots
from ftbus.stats import Counters, merge_counters, merge_times
from ftbus.testing import run_threads

NAMES = [each.name for each in fields(Counters)]
KEYS = 150
LONG = "x" * 200


def nothing(event: object) -> None: ...


def check_sums(stats: BusStats) -> None:
    assert merge_counters(stats.topics).to_counts() == stats.to_counts()
    merged = merge_times(row.times for row in stats.topics)
    for name in ("emit", "wait", "handler", "encode"):
        rows, total = getattr(merged, name), getattr(stats.times, name)
        assert rows.buckets == total.buckets


def check_grown(before: dict[str, Counters], now: dict[str, Counters]) -> None:
    """No series is gone, and none has a counter that fell."""
    assert set(before) <= set(now)
    for name, then in before.items():
        for counter in NAMES:
            assert getattr(now[name], counter) >= getattr(then, counter), name


@pytest.mark.thread_unsafe(reason="starts threads of its own")
def test_scrapes_at_once_while_keys_and_handlers_come_and_go(seed: int) -> None:
    with EventBus(workers=2, timing="sampled", timing_interval=3) as bus:
        shared = KeySeries(20)
        seen: list[list[BusStats]] = [[], []]
        has_ended = [False, False]

        def change(index: int) -> None:
            chance = random.Random(seed + index)
            subscriptions: list[Any] = []
            for round_ in range(1200):
                # The range of keys grows, and its busy part moves on.
                key = chance.randrange(1 + round_ * KEYS // 1200)
                if chance.random() < 0.2:
                    subscriptions.append(bus.subscribe(key, lambda event: None))
                if len(subscriptions) > 20:
                    subscriptions.pop(chance.randrange(20)).cancel()
                for _ in range(3):
                    bus.emit(key, 1)
                bus.post(key, 1)
                bus.emit("nobody named this")
            has_ended[index] = True

        def read_series(series: KeySeries) -> None:
            before: dict[str, Counters] = {}
            while not all(has_ended):
                stats, now = series.read(bus)
                assert len(now) <= 21
                assert merge_counters(now.values()).to_counts() == stats.to_counts()
                check_grown(before, now)
                before = now

        def read_stats(into: list[BusStats]) -> None:
            while not all(has_ended):
                into.append(bus.stats(max_keys=7, keys=(1, 2)))
                del into[:-50]

        def read_json() -> None:
            snapshots, emitted = Snapshots(rows=5), 0
            while not all(has_ended):
                snapshots._stale_s = -1.0  # a new one each time
                stats = json.loads(snapshots.message(bus))["stats"]
                assert emitted <= stats["emitted"]
                assert (
                    sum(row["emitted"] for row in stats["topics"]) == (stats["emitted"])
                )
                assert len(stats["topics"]) <= 6
                assert len(stats["handlers"]) <= 5
                emitted = stats["emitted"]

        def work(index: int) -> None:
            if index < 2:
                change(index)
            elif index < 4:
                read_series(shared)
            elif index == 4:
                read_series(KeySeries(20))
            elif index == 5:
                read_json()
            else:
                read_stats(seen[index - 6])

        run_threads(8, work)
        assert bus.drain(WAIT)
        for readings in seen:
            for stats in readings:
                check_sums(stats)
            for then, now in itertools.pairwise(readings):
                check_grown({"all": then}, {"all": now})
        last, complete = bus.stats(max_keys=7), bus.stats()
        check_sums(last)
        check_sums(complete)
        assert last.to_counts() == complete.to_counts()
        assert last.times == complete.times
        assert complete.emitted == 2 * 1200 * 4
        assert complete.delivered == 2 * 1200
        assert sum(row.handlers for row in last.topics) == len(complete.handlers)


@pytest.mark.parametrize("max_keys", [0, 2, 5, 100])
def test_rows_without_times_leave_those_of_the_bus(max_keys: int) -> None:
    with EventBus(workers=1, timing="all") as bus:
        for key in range(5):
            bus.on(key, nothing)
            bus.on(key, nothing)
            for _ in range(key + 1):
                bus.emit(key)
                bus.post(key)
        assert bus.drain(WAIT)
        complete, counters = bus.stats(), bus._counters(max_keys)
        assert complete.times.handler.count == 2 * 2 * 15
        assert counters.times == bus.stats(max_keys=2).times == complete.times
        assert counters.to_counts() == complete.to_counts()
        bus.reset_stats()
        bus.emit(3)
        assert bus._counters(max_keys).times.emit.count == 1
        assert bus._counters(max_keys).emitted == 1


def test_label_is_cut_only_if_it_is_too_long() -> None:
    assert label("y" * 120) == "y" * 120
    assert label("y" * 121) == label("y" * 300) == "y" * 119 + "…"


def test_keys_at_the_limit_that_have_one_label() -> None:
    """Bug hunted: places are counted by label, or a series takes back what it said."""
    one, two, three = (LONG + end for end in "abc")
    with EventBus(workers=1) as bus:
        series = KeySeries(2)
        before: dict[str, Counters] = {}
        for keys, wanted in (
            ([one], {label(LONG): 1}),
            ([one, two], {label(LONG): 3}),  # the limit
            ([one, two, three], {label(LONG): 5, OTHER: 1}),
            ([three, three], {label(LONG): 5, OTHER: 3}),
        ):
            for key in keys:
                bus.topic(key)
                bus.emit(key)
            _, now = series.read(bus)
            counted = {name: row.emitted for name, row in now.items() if row.emitted}
            assert counted == wanted
            check_grown(before, now)
            before = now
        message = json.loads(Snapshots(rows=2).message(bus))
        rows = {row["key"]: row["emitted"] for row in message["stats"]["topics"]}
        # Each of the two busiest keys has a place; in the answer they are one row.
        assert rows == {label(LONG): 6, OTHER: 2}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_rows_of_one_label_are_summed_once(rows: int) -> None:
    with EventBus(workers=1, timing="all") as bus:
        for number, end in enumerate("abc", 1):
            bus.on(LONG + end, nothing)
            for _ in range(number):
                bus.emit(LONG + end)
        stats = json.loads(Snapshots(rows=rows).message(bus))["stats"]
        shown = sum((3, 2, 1)[:rows])
        wanted = {label(LONG): shown} | ({OTHER: 6 - shown} if rows < 3 else {})
        found = {row["key"]: row for row in stats["topics"]}
        assert {key: row["emitted"] for key, row in found.items()} == wanted
        timed = {key: row["times"]["handler"]["count"] for key, row in found.items()}
        assert timed == wanted
        assert len(stats["handlers"]) == rows
