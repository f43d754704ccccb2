"""Guarantee: whatever was handed over is let go as soon as its last use is over.

Hunts for an event that a queue, a ring's free place, a worker's batch or a result
keeps, for a handler that outlives its subscription, and for buffers whose memory never
comes back.
Mutants: none, as a reference that the layer to Python keeps is no change of the core's
logic; tools/refleak.py looks for the same from the other side.
"""

import gc
import random
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from stressing import WAIT, assert_conserved, fresh_seed, scaled

from ftbus import EventBus, HandlerErrors, QueueFullError, StripedMap, default_pool
from ftbus.testing import eventually, run_threads


class Watched:
    """Can be watched dying."""

    __slots__ = ("__weakref__", "n")

    def __init__(self, n: int = 0) -> None:
        self.n = n

    def handle(self, event: object) -> None:
        pass


class Watch:
    """Weak references to everything that has to go."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[Any]] = []
        self._lock = threading.Lock()

    def new(self, n: int = 0) -> Watched:
        watched = Watched(n)
        with self._lock:
            self._references.append(weakref.ref(watched))
        return watched

    def alive(self) -> int:
        return sum(reference() is not None for reference in self._references)

    def check_all_gone(self, collects: bool = False) -> None:
        def is_gone() -> bool:
            if collects:
                gc.collect()
            return self.alive() == 0

        eventually(is_gone, 30)


def test_an_event_is_let_go_when_its_last_handler_returns() -> None:
    """At once, without a collection: nothing else has run since."""
    gc.disable()
    try:
        with EventBus(workers=1) as bus:
            watch = Watch()
            bus.on("key", lambda event: None)
            bus.on("key", lambda event: None)
            for _ in range(scaled(200)):
                assert bus.emit("key", watch.new()) == 2
                assert watch.alive() == 0
            future = bus.call("key", watch.new())
            assert future.result(WAIT) == [None, None]
            eventually(lambda: watch.alive() == 0)
            for use in (bus.post, bus.topic("key").post):
                use(*("key",) * (use == bus.post), watch.new())
                assert bus.drain(WAIT)
                eventually(lambda: watch.alive() == 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("overflow", ["block", "raise", "drop_newest", "drop_oldest"])
@pytest.mark.parametrize("drain", [True, False], ids=["drained", "dropped"])
def test_events_of_every_fate_are_let_go(overflow: Any, drain: bool, seed: int) -> None:
    """Handled, failed, dropped, refused, cancelled, left behind by a close."""
    drawn = fresh_seed(seed)
    watch = Watch()
    bus = EventBus(
        workers=2, queue_size=32, overflow=overflow, on_error=lambda *_: None
    )

    def handle(event: Watched) -> Watched:
        if event.n % 7 == 0:
            raise ValueError(event)
        return event

    bus.on("key", handle)
    bus.on("batch", lambda events: None, batch=(10, 0.01))
    bus.on("latest", lambda event: None, latest=True)

    def work(index: int) -> None:
        random_ = random.Random(drawn + index)
        uses: list[Callable[[Watched], Any]] = [
            lambda event: bus.post("key", event),
            lambda event: bus.post("key", event, partition=event.n % 5),
            lambda event: bus.post("key", event, urgent=True),
            lambda event: bus.post_many("key", [event, watch.new(1)]),
            lambda event: bus.call("key", event).cancel(),
            lambda event: bus.call("key", event),
            lambda event: bus.emit("key", event),
            lambda event: bus.emit("batch", event),
            lambda event: bus.post("latest", event),
        ]
        for n in range(scaled(400)):
            with suppress(QueueFullError, HandlerErrors):
                random_.choice(uses)(watch.new(n))

    run_threads(3, work)
    bus.close(drain=drain, timeout=WAIT)
    watch.check_all_gone(collects=True)  # tracebacks are cycles
    assert_conserved(bus)


def test_handlers_are_let_go_however_they_end(seed: int) -> None:
    drawn = fresh_seed(seed)
    watch = Watch()
    with EventBus(workers=2) as bus:
        # The workers start now. One that starts after a thread of run_threads has ended
        # may get its identifier, by which CPython without a GIL tells whose an object
        # is. Then what that thread made is the worker's, and the last reference to it,
        # dropped by another thread, waits in the worker's queue until it runs again.
        bus.post("start")
        assert bus.drain(WAIT)
        stop = threading.Event()

        def emit() -> None:
            while not stop.is_set():
                for key in range(5):
                    bus.emit(key, None)
                    bus.post(key, None, partition=key)
                if bus.stats().pending > 500:
                    bus.drain(WAIT)

        emitters = [threading.Thread(target=emit) for _ in range(2)]
        for thread in emitters:
            thread.start()

        def work(index: int) -> None:
            random_ = random.Random(drawn + index)
            for _ in range(scaled(400)):
                owner = watch.new()
                key = random_.randrange(5)
                way = random_.randrange(5)
                if way == 0:
                    bus.subscribe(key, owner.handle).cancel(wait=random_.random() < 0.1)
                elif way == 1:
                    bus.on(key, owner.handle)
                    bus.off(key, owner.handle)
                elif way == 2:
                    bus.once(key, owner.handle)
                elif way == 3:
                    bus.on(key, owner.handle, weak=True)
                else:
                    with bus.subscribe(key, owner.handle):
                        bus.emit(key, owner)

        try:
            run_threads(3, work)
        finally:
            stop.set()
            for thread in emitters:
                thread.join()
        for key in range(5):
            bus.emit(key)  # those of once that no emit has met
        assert bus.drain(WAIT)
        watch.check_all_gone()


def test_what_a_worker_made_is_let_go_by_its_next_event() -> None:
    """Another thread drops it while the worker sleeps; no collection is needed."""
    gc.disable()
    try:
        with EventBus(workers=1) as bus:
            watch = Watch()
            made: list[Watched] = []
            bus.on("make", lambda event: made.append(watch.new()))
            bus.on("next", lambda event: None)
            for _ in range(scaled(200)):
                bus.post("make")
                assert bus.drain(WAIT)
                made.clear()
                bus.post("next")
                assert bus.drain(WAIT)
                assert watch.alive() == 0
    finally:
        gc.enable()


def test_values_of_a_map_are_let_go_when_they_are_replaced(seed: int) -> None:
    drawn = fresh_seed(seed)
    watch = Watch()
    keys: StripedMap[int, Watched] = StripedMap()

    def work(index: int) -> None:
        random_ = random.Random(drawn + index)
        for n in range(scaled(2000)):
            key = random_.randrange(40)
            if n % 5 == 0:
                keys.pop(key, None)
            elif n % 5 == 1:
                keys.get(key)
            elif n % 5 == 2:
                keys.setdefault(key, watch.new())
            elif n % 5 == 3:
                keys[key] = watch.new()
            else:
                keys.update_with(key, lambda old: watch.new(), watch.new())

    run_threads(4, work)
    eventually(lambda: watch.alive() <= len(keys), 30)
    keys.clear()
    watch.check_all_gone()


def test_buffers_come_back_whoever_holds_them_last() -> None:
    before = default_pool.live
    with EventBus(workers=2) as bus:
        held: list[Any] = []
        lock = threading.Lock()

        def hold(event: Any) -> None:
            with lock:
                held.append(memoryview(event)[1:])
                if len(held) > 20:
                    held.pop(0).release()

        bus.on("key", hold, encoded=True)

        def work(index: int) -> None:
            for n in range(scaled(500)):
                bus.emit("key", ["x" * (n % 2000), index])
                bus.post("key", [n, index])

        run_threads(3, work)
        assert bus.drain(WAIT)
        held.clear()

        def is_back() -> bool:
            # CPython frees what a thread made only when that thread runs again, and a
            # worker that has nothing to do does not; a collection frees it too.
            gc.collect()
            return default_pool.live == before

        eventually(is_back, 30)
