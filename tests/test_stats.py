"""Counters: exact at rest, per key and per worker, and how they are shown."""

import contextlib
import dataclasses
import enum
import gc
import json
import threading
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import (
    BusStats,
    Counters,
    ErrorStats,
    EventBus,
    HandlerErrors,
    HandlerStats,
    Histogram,
    Key,
    LookupStats,
    PartitionStats,
    RateStats,
    Times,
    TopicStats,
    WorkerStats,
)
from ftbus.testing import run_threads


class Color(enum.Enum):
    RED = 1


class Event:
    pass


def counts(row: Counters, *names: str) -> tuple[int, ...]:
    return tuple(getattr(row, name) for name in names)


def test_new_bus_has_counted_nothing() -> None:
    with EventBus(name="fresh") as bus:
        stats = bus.stats()
        assert isinstance(stats, BusStats)
        assert stats.name == "fresh"
        assert set(counts(stats, *[f.name for f in dataclasses.fields(Counters)])) == {
            0
        }
        assert (stats.pending, stats.queued_max, stats.workers) == (0, 0, ())
        assert stats.topic("unused") == TopicStats(key="unused")


def test_emit_and_its_handlers_are_counted_by_key() -> None:
    with EventBus() as bus:
        bus.on("two", lambda event: None)
        bus.on("two", lambda event: None)
        bus.topic("none")
        for _ in range(5):
            bus.emit("two")
        bus.emit_many("two", range(3))
        bus.topic("two").emit()
        bus.emit("none")
        bus.emit("unnamed")
        stats = bus.stats()
        assert counts(stats.topic("two"), "emitted", "handled", "handlers") == (
            9,
            18,
            2,
        )
        assert counts(stats.topic("none"), "emitted", "handled", "handlers") == (
            1,
            0,
            0,
        )
        assert counts(stats.topic(None), "emitted", "handled") == (1, 0)
        assert counts(stats, "emitted", "handled", "failed") == (11, 18, 0)
        assert bus.topic("two").stats() == stats.topic("two")


def test_counters_of_many_threads_add_up() -> None:
    with EventBus(workers=2) as bus:
        topics = [bus.topic(n) for n in range(20)]

        def fail(event: int) -> None:
            if event % 5 == 0:
                raise ValueError

        for topic in topics:
            topic.on(lambda event: None)
            topic.on(fail)
        seen: list[BusStats] = []

        def work(index: int) -> None:
            if index == 0:
                for _ in range(20):
                    seen.append(bus.stats())
                return
            for n in range(1000):
                with contextlib.suppress(HandlerErrors):
                    topics[n % 20].emit(n)

        run_threads(4, work)
        stats = bus.stats()
        assert counts(stats, "emitted", "handled", "failed") == (3000, 6000, 600)
        for row in stats.topics:
            if row.key is not None:
                assert counts(row, "emitted", "handled") == (150, 300)
        emitted = [one.emitted for one in seen]
        assert emitted == sorted(emitted)
        assert all(0 <= n <= 3000 for n in emitted)


def test_counts_of_threads_that_ended_are_kept() -> None:
    with EventBus() as bus:
        bus.on("key", lambda event: None)
        for n in range(100):
            thread = threading.Thread(target=bus.emit, args=("key", n))
            thread.start()
            thread.join()
        assert bus.stats().handled == 100


def test_counters_of_a_new_bus_start_at_zero_whatever_was_there_before() -> None:
    """Their cells are used again, by key of whatever bus."""
    for _ in range(20):
        with EventBus() as bus:
            for n in range(50):
                bus.on(n, lambda event: None)
                assert bus.emit(n) == 1
            assert bus.stats().handled == 50
            assert all(row.handled <= 1 for row in bus.stats().topics)
        del bus


def test_reset_starts_a_new_baseline() -> None:
    with EventBus(workers=1) as bus:
        bus.on("key", lambda event: None)
        bus.emit("key")
        bus.post("key")
        assert bus.drain(WAIT)
        bus.reset_stats()
        stats = bus.stats()
        assert counts(stats, "emitted", "posted", "delivered", "handled") == (0,) * 4
        assert stats.topic("key").handled == 0
        assert stats.topic("key").handlers == 1
        assert [worker.taken for worker in stats.workers] == [0]
        bus.on("new", lambda event: None)
        bus.emit("new")
        bus.emit("key")
        stats = bus.stats()
        assert stats.handled == 2
        assert stats.topic("new").handled == stats.topic("key").handled == 1
        bus.reset_stats()
        assert bus.stats().handled == 0


def test_since_subtracts_an_earlier_snapshot() -> None:
    with EventBus(workers=1) as bus:
        bus.on("key", lambda event: None)
        bus.emit("key")
        before = bus.stats()
        bus.post_many("key", range(5))
        assert bus.drain(WAIT)
        delta = bus.stats().since(before)
        assert counts(delta, "emitted", "posted", "handled") == (0, 5, 5)
        assert delta.topic("key").posted == 5
        assert sum(worker.taken for worker in delta.workers) == 5


def test_workers_are_counted() -> None:
    with EventBus(workers=2) as bus:
        bus.on("key", lambda event: None)
        bus.post_many("key", range(500))
        assert bus.drain(WAIT)
        stats = bus.stats()
        assert len(stats.workers) == 2
        assert all(isinstance(worker, WorkerStats) for worker in stats.workers)
        assert sum(worker.taken for worker in stats.workers) == 500
        assert all(worker.stolen <= worker.taken for worker in stats.workers)
        assert all(worker.batches <= worker.taken for worker in stats.workers)
        assert 0 < stats.queued_max <= 500


def test_topic_row_is_found_by_any_spelling_of_the_key() -> None:
    with EventBus() as bus:
        keys: list[Any] = ["a", 1, b"a", Color.RED, Event, Key("b")]
        for key in keys:
            bus.on(key, lambda event: None)
            bus.emit(key)
        stats = bus.stats()
        for key in [*keys, Key("a"), Key(1), Key(b"a"), "b"]:
            assert stats.topic(key).handled == 1
        assert bus.emit(Event()) == 1
        assert bus.stats().topic(Event).handled == 2


def test_topic_row_is_found_without_asking_the_keys() -> None:
    class Hostile(type):
        def __eq__(cls, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = type.__hash__

    class Key(metaclass=Hostile):
        pass

    with EventBus() as bus:
        for key in (b"a", Key, True.__class__, 1):
            bus.on(key, lambda event: None)
        stats = bus.stats()
        assert stats.topic(Key).handlers == stats.topic(b"a").handlers == 1
        assert stats.topic("a").handlers == stats.topic(True).handlers == 0
        assert stats.topic(1.0).handlers == 0


def test_topics_are_listed_busiest_first() -> None:
    with EventBus() as bus:
        for n in range(5):
            bus.on(n, lambda event: None)
            bus.emit_many(n, range(n))
        rows = [row.key for row in bus.stats().topics if row.handled]
        assert rows == [4, 3, 2, 1]


def test_stats_are_frozen_snapshots() -> None:
    with EventBus(workers=1) as bus:
        bus.on("key", lambda event: None)
        before = bus.stats()
        bus.emit("key")
        assert before.handled == 0
        for row in (before, before.topic("key"), WorkerStats(1, 2, 3, 4, 5)):
            with pytest.raises(dataclasses.FrozenInstanceError):
                row.handled = 5  # type: ignore[misc,union-attr]
            with pytest.raises((AttributeError, TypeError)):
                row.other = 5  # type: ignore[union-attr]


def test_to_dict_is_ready_for_json() -> None:
    with EventBus(workers=1, name="json") as bus:
        for key in ("a", b"a", 1, Color.RED, Event, Key("k")):
            bus.on(key, lambda event: None)
            bus.post(key)
        assert bus.drain(WAIT)
        tree = json.loads(json.dumps(bus.stats().to_dict()))
        assert tree["name"] == "json"
        assert tree["delivered"] == 6
        assert len(tree["workers"]) == 1
        names = {row["key"] for row in tree["topics"]}
        assert {"'a'", "b'a'", "1", repr(Color.RED), repr(Event), "Key('k')"} <= names


def test_every_field_says_what_it_is() -> None:
    """The texts under the fields are for the documentation."""
    import inspect

    kinds = [*(Counters, Times, HandlerStats, TopicStats, WorkerStats, PartitionStats)]
    kinds += [LookupStats, ErrorStats, RateStats, BusStats, Histogram]
    for kind in kinds:
        source = inspect.getsource(kind)
        for field in kind.__annotations__:
            after = source.partition(f"    {field}: ")[2].splitlines()[1]
            assert after.strip().startswith('"""'), f"{kind.__name__}.{field}"


def test_stats_hold_no_handlers_and_no_events() -> None:
    import weakref

    class Payload:
        pass

    with EventBus() as bus:
        payload = Payload()
        reference = weakref.ref(payload)
        bus.on("key", lambda event, payload=payload: None)
        bus.emit("key", payload)
        stats = bus.stats()
        bus.off("key")
        del payload
        gc.collect()
        assert reference() is None
        assert stats.handled == 1


def test_events_without_handlers_are_counted() -> None:
    with EventBus(workers=1) as bus:
        bus.topic("empty")
        bus.emit("empty")
        bus.emit("unnamed")
        bus.post("empty")
        assert bus.drain(WAIT)
        bus.on("empty", lambda event: None)
        bus.emit("empty")
        stats = bus.stats()
        assert stats.topic("empty").unheard == 2
        assert stats.unheard == 3
        assert stats.emitted == 3
        assert stats.handlers[0].calls == 1


def test_lookups_are_counted_where_they_happen() -> None:
    with EventBus() as bus:
        bus.on("key", lambda event: None)
        key = "".join(["k", "ey"])  # a new object, which no front cache knows
        bus.emit(key)
        bus.emit("unnamed")
        bus.topic("key").emit()
        for _ in range(10):
            bus.topic("key").emit()
        lookups = bus.stats().lookups
        assert (lookups.hits, lookups.misses, lookups.avoided) == (1, 1, 11)
        bus.reset_stats()
        assert bus.stats().lookups.avoided == 0


def test_failures_are_counted_by_type_with_the_last_traceback() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail(event: int) -> None:
        raise (ValueError if event % 2 else LookupError)(f"event {event}")

    with EventBus(workers=1, on_error=lambda *_: None) as bus:
        bus.on("key", fail)
        for n in range(3):
            with pytest.raises(HandlerErrors):
                bus.emit("key", n)
        bus.post("key", 3)
        with pytest.raises(HandlerErrors):
            bus.call("key", 5).result(WAIT)
        assert bus.drain(WAIT)

        def odd(event: object) -> None:
            raise Odd

        bus.on("odd", odd)
        bus.post("odd")
        assert bus.drain(WAIT)
        value, look_up, strange = bus.stats().errors
        assert (value.type, value.count) == ("builtins.ValueError", 3)
        assert value.traceback.startswith("Traceback (most recent call last):\n")
        assert value.traceback.endswith("ValueError: event 5")
        assert 'raise (ValueError if event % 2 else LookupError)(f"' in value.traceback
        assert (look_up.count, look_up.key) == (2, "'key'")
        assert look_up.handler.endswith("fail")
        assert strange.traceback.endswith("Odd: <unprintable>")
        failed = {row.key: row.failed for row in bus.stats().handlers}
        assert failed == {"key": 5, "odd": 1}
        before = bus.stats()
        with pytest.raises(HandlerErrors):
            bus.emit("key", 1)
        [only] = bus.stats().since(before).errors
        assert (only.type, only.count) == ("builtins.ValueError", 1)


def test_failures_hold_no_exception_and_no_frame() -> None:
    import weakref

    class Payload:
        pass

    def fail(event: object) -> None:
        raise ValueError

    with EventBus(errors="log", on_error=lambda *_: None) as bus:
        bus.on("key", fail)
        payload = Payload()
        reference = weakref.ref(payload)
        bus.emit("key", payload)
        stats = bus.stats()
        del payload
        gc.collect()
        assert reference() is None
        assert stats.errors[0].count == 1


def test_rates_reach_back_to_what_was_read() -> None:
    with EventBus() as bus:
        bus.on("key", lambda event: None)
        for _ in range(100):
            bus.emit("key")
        rates = bus.stats().rates
        assert [rate.window_s for rate in rates] == [1, 10, 60]
        for rate in rates:
            assert 0 < rate.seconds <= bus.stats().uptime_s
            assert rate.emitted * rate.seconds == pytest.approx(100)
            assert rate.handled == rate.emitted
            assert rate.dropped == rate.posted == 0


def test_rates_of_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftbus import monitor

    clock = [1000.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock[0])
    with EventBus() as bus:
        bus.on("key", lambda event: None)
        for second in range(200):
            for _ in range(second):
                bus.emit("key")
            clock[0] += 1
            rates = bus.stats().rates
        one, ten, sixty = rates
        assert (one.seconds, ten.seconds, sixty.seconds) == (1, 10, 60)
        assert one.emitted == 199
        assert ten.emitted == sum(range(190, 200)) / 10
        assert sixty.emitted == sum(range(140, 200)) / 60
        past = bus._monitor._past
        assert len(past) < 130  # it does not grow for ever
        assert {type(n) for _, kept in past for n in kept} == {int}  # no histograms


def test_an_exact_reading_says_the_same_at_a_quiet_moment() -> None:
    with EventBus(workers=2, timing="all") as bus:
        for key in range(5):
            bus.on(key, lambda event: None)
            bus.emit(key)
            bus.post(key)
        assert bus.drain(WAIT)
        exact, usual = bus.stats(exact=True), bus.stats()
        assert exact.to_counts() == usual.to_counts()
        assert exact.handlers == usual.handlers
        assert exact.times == usual.times
        assert exact.topic(3) == usual.topic(3)


def test_an_exact_reading_is_of_one_moment() -> None:
    with EventBus() as bus:
        bus.on("key", lambda event: None)
        bus.on("key", lambda event: None)
        is_over = threading.Event()

        def work(index: int) -> None:
            if index == 0:
                for _ in range(50):
                    row = bus.stats(exact=True).topic("key")
                    assert row.handled == 2 * row.emitted
                is_over.set()
            while not is_over.is_set():
                bus.emit("key")

        run_threads(4, work)
        assert bus.stats().handled == 2 * bus.stats().emitted


def test_handler_rows_are_named_and_ordered() -> None:
    class Listener:
        def handle(self, event: object) -> None: ...

    listener = Listener()
    with EventBus() as bus:
        bus.on("key", print, priority=-1)
        bus.on("key", listener.handle, weak=True)
        names = [row.name for row in bus.stats().handlers_of("key")]
        assert names[0] == "builtins.print"
        assert names[1].endswith("Listener.handle")
        bus.off("key", print)
        assert len(bus.stats().handlers) == 1
