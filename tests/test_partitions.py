"""Partitions: order, and one event at a time."""

import collections
import threading
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import EventBus
from ftbus.testing import run_threads


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_partition_is_first_in_first_out_per_poster(workers: int) -> None:
    with EventBus(workers=workers) as bus:
        events, posters, partitions = 400, 4, 5
        seen: dict[object, list[tuple[int, int]]] = collections.defaultdict(list)
        bus.on("key", lambda event: seen[event[0]].append(event[1:]))
        names: list[Any] = ["a", 1, b"a", "b", -1]

        def post(index: int) -> None:
            for n in range(events):
                name = names[n % partitions]
                bus.post("key", (name, index, n), partition=name)

        run_threads(posters, post)
        assert bus.drain(WAIT)
        for name in names:
            assert len(seen[name]) == events * posters // partitions
            for index in range(posters):
                own = [n for poster, n in seen[name] if poster == index]
                assert own == sorted(own)


def test_partition_runs_one_event_at_a_time() -> None:
    with EventBus(workers=4) as bus:
        running: collections.Counter[int] = collections.Counter()
        overlaps: list[int] = []
        lock = threading.Lock()

        def handler(partition: int) -> None:
            with lock:
                running[partition] += 1
                if running[partition] > 1:
                    overlaps.append(partition)
            sum(range(200))
            with lock:
                running[partition] -= 1

        bus.on("key", handler)

        def post(index: int) -> None:
            for n in range(500):
                bus.post("key", n % 3, partition=n % 3)

        run_threads(3, post)
        assert bus.drain(WAIT)
        assert overlaps == []
        assert bus.stats().delivered == 1500


def test_partition_orders_events_of_several_keys() -> None:
    with EventBus(workers=4) as bus:
        seen: list[int] = []
        for key in range(5):
            bus.on(key, seen.append)
        for n in range(1000):
            bus.post(n % 5, n, partition="one")
        assert bus.drain(WAIT)
        assert seen == list(range(1000))


def test_partition_goes_on_after_a_failure() -> None:
    errors: list[BaseException] = []
    with EventBus(workers=2, on_error=lambda e, k, h: errors.append(e)) as bus:
        seen: list[int] = []

        def handler(event: int) -> None:
            if event % 10 == 0:
                raise SystemExit if event % 20 else ValueError
            seen.append(event)

        bus.on("key", handler)
        bus.post_many("key", range(100), partition="one")
        assert bus.drain(WAIT)
        assert seen == [n for n in range(100) if n % 10]
        assert len(errors) == 10


def test_partition_does_not_wait_for_another() -> None:
    """However many there are: no two of these fall on one strand."""
    partitions = 5000
    with EventBus(workers=2, queue_size=2 * partitions) as bus:
        done = threading.Event()
        seen: list[int] = []

        def handler(event: int) -> None:
            if event == 0:
                assert done.wait(WAIT)
            seen.append(event)
            if len(seen) == partitions - 1:
                done.set()

        bus.on("key", handler)
        for n in range(partitions):
            bus.post("key", n, partition=f"player-{n}")
        assert bus.drain(WAIT)
        assert sorted(seen) == list(range(partitions))
        assert seen[-1] == 0
        assert bus.stats().failed == 0
