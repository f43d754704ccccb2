"""Which queued event is next: urgency, order by key, and how workers wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import EventBus, InvalidOptionError, QueueFullError
from ftbus.testing import run_threads


@contextmanager
def busy_worker(**options: Any) -> Iterator[tuple[EventBus, threading.Event]]:
    """Make a bus whose only worker is in a handler until the event is set."""
    entered, leave = threading.Event(), threading.Event()

    def block(event: object) -> None:
        entered.set()
        assert leave.wait(WAIT)

    with EventBus(workers=1, **options) as bus:
        bus.on("block", block)
        bus.post("block")
        assert entered.wait(WAIT)
        try:
            yield bus, leave
        finally:
            leave.set()


def test_urgent_events_run_before_those_that_wait() -> None:
    with busy_worker() as (bus, leave):
        seen: list[object] = []
        bus.on("key", seen.append)
        topic = bus.topic("key")
        bus.post_many("key", range(5))
        bus.post("key", 5, partition="one")
        bus.post("key", "first", urgent=True)
        topic.post("second", urgent=True)
        topic.post_many(["third", "fourth"], urgent=True)
        leave.set()
        assert bus.drain(WAIT)
        assert seen == ["first", "second", "third", "fourth", 0, 1, 2, 3, 4, 5]


def test_urgent_events_do_not_starve_the_others() -> None:
    with busy_worker() as (bus, leave):
        left, seen = [10_000], threading.Event()

        def again(event: object) -> None:
            left[0] -= 1
            if left[0] and not seen.is_set():
                bus.post("again", urgent=True)

        bus.on("again", again)
        bus.on("plain", lambda event: seen.set())
        bus.post("again", urgent=True)
        bus.post("plain")
        leave.set()
        assert bus.drain(WAIT)
        assert left[0] > 9_000  # it ran among the first, not after the last


def test_urgent_events_count_and_are_bounded_like_others() -> None:
    with busy_worker(queue_size=3, overflow="raise") as (bus, leave):
        bus.on("key", lambda event: None)
        bus.post("key")
        bus.post("key", urgent=True)
        bus.post("key", urgent=True)
        with pytest.raises(QueueFullError):
            bus.post("key", urgent=True)
        leave.set()
        assert bus.drain(WAIT)
        stats = bus.stats().topic("key")
        assert (stats.posted, stats.delivered, stats.rejected) == (4, 3, 1)


def test_oldest_that_is_dropped_is_not_urgent_if_others_wait() -> None:
    with busy_worker(queue_size=2, overflow="drop_oldest") as (bus, leave):
        seen: list[object] = []
        bus.on("key", seen.append)
        bus.post("key", "urgent", urgent=True)
        for i in range(3):
            bus.post("key", i)
        leave.set()
        assert bus.drain(WAIT)
        assert seen == ["urgent", 2]


def test_urgent_event_of_a_partition_is_refused() -> None:
    with EventBus(workers=1) as bus:
        bus.on("key", lambda event: None)
        with pytest.raises(InvalidOptionError, match="urgent"):
            bus.post("key", partition="one", urgent=True)
        assert bus.stats().posted == 0


def test_order_by_key_is_first_in_first_out_and_one_at_a_time() -> None:
    with EventBus(workers=4, order="key") as bus:
        keys, posters, events = "abc", 3, 300
        seen: dict[str, list[tuple[int, int]]] = {key: [] for key in keys}
        running = dict.fromkeys(keys, 0)

        def handler_of(key: str) -> Any:
            def handle(event: tuple[int, int]) -> None:
                running[key] += 1
                assert running[key] == 1
                seen[key].append(event)
                running[key] -= 1

            return handle

        for key in keys:
            bus.on(key, handler_of(key))

        def post(index: int) -> None:
            for n in range(events):
                bus.post(keys[n % 3], (index, n))
            bus.post_many("a", ((index, events + n) for n in range(50)))

        run_threads(posters, post)
        assert bus.drain(WAIT)
        assert bus.stats().failed == 0
        for key in keys:
            for index in range(posters):
                own = [n for poster, n in seen[key] if poster == index]
                assert own == sorted(own)
                assert len(own) == events // 3 + (50 if key == "a" else 0)


def test_named_partition_and_urgency_go_before_order_by_key() -> None:
    barrier = threading.Barrier(2)
    with EventBus(workers=2, order="key") as bus:
        bus.on("key", lambda event: barrier.wait(WAIT))
        bus.post("key", partition=1)  # both run at once, or the barrier breaks
        bus.post("key", partition=2)
        assert bus.drain(WAIT)
        bus.post("key")
        bus.post("key", urgent=True)
        assert bus.drain(WAIT)
        assert bus.stats().failed == 0


@pytest.mark.parametrize("latency", ["low", "balanced", "cpu"])
def test_every_latency_delivers(latency: Any) -> None:
    with EventBus(workers=2, latency=latency) as bus:
        seen: list[object] = []
        bus.on("key", seen.append)
        for i in range(100):
            bus.post("key", i)
            assert bus.drain(WAIT)
        assert seen == list(range(100))


@pytest.mark.parametrize(
    ("option", "value"),
    [("latency", "fast"), ("latency", None), ("order", "partition"), ("order", 1)],
)
def test_invalid_choices_are_refused(option: str, value: object) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        EventBus(**{option: value})  # type: ignore[arg-type]
    assert (caught.value.option, caught.value.value) == (option, value)
