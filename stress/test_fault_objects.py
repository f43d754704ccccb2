"""Faults: hostile keys, and finalizers and callbacks that use what is being changed.

Hunts for user code that runs under a lock of the core, for a map that a failing key
leaves half changed, for an object that a callback brings back while it is freed, and
for finalizers that run on top of each other.
Mutants: py-map-drops-inside-a-drop.
"""

import gc
import random
import threading
import weakref
from contextlib import suppress
from typing import Any

import pytest
from stressing import WAIT, assert_conserved, counts, fresh_seed, scaled

from ftbus import Buffer, EventBus, QueueFullError, StripedMap, UnsupportedKeyError
from ftbus.testing import eventually, run_threads


class Failing:
    """Cannot be hashed or compared."""

    def __hash__(self) -> int:
        raise LookupError("hash")

    def __eq__(self, other: object) -> bool:
        raise LookupError("eq")


class Sub(str):
    """Looks like a str and answers like none."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise LookupError("hash")

    def __eq__(self, other: object) -> bool:
        raise LookupError("eq")


class Number(int):
    def __hash__(self) -> int:
        return -1

    def __eq__(self, other: object) -> bool:
        return True


HOSTILE = [
    Failing(),
    Sub("key"),
    Number(5),
    2**200,
    -(2**63) - 1,
    2**64,
    1.5,
    None,
    True,
    ("key",),
    ["key"],
    {"key": 1},
    bytearray(b"key"),
    memoryview(b"key"),
    float("nan"),
    lambda: None,
    "\ud800",
]
GOOD = ["key", "", "\0", "k" * 100_000, b"key", b"", -1, -2, 0, 2**63 - 1, -(2**63)]


def test_hostile_keys_are_refused_and_change_nothing(seed: int) -> None:
    """While others use the bus and the map with good keys."""
    drawn = fresh_seed(seed)
    keys: StripedMap[Any, int] = StripedMap()
    with EventBus(workers=2) as bus:
        seen = [0]
        lock = threading.Lock()

        def count(event: object) -> None:
            with lock:
                seen[0] += 1

        for key in GOOD:
            bus.on(key, count)
            keys[key] = 0
        topics_n = len(bus.stats().topics)

        def attack(random_: random.Random) -> None:
            key = random_.choice(HOSTILE)
            uses = [
                lambda: bus.emit(key, 1),
                lambda: bus.post(key, 1),
                lambda: bus.on(key, count),
                lambda: bus.topic(key),
                lambda: bus.off(key),
                lambda: bus.call(key, 1),
                lambda: bus.post("key", 1, partition=key or 1.5),
                lambda: keys.__setitem__(key, 1),
                lambda: keys[key],
                lambda: keys.pop(key),
                lambda: keys.setdefault(key, 1),
            ]
            with pytest.raises((UnsupportedKeyError, UnicodeEncodeError)):
                random_.choice(uses)()

        def work(index: int) -> int:
            random_ = random.Random(drawn + index)
            for number in range(scaled(400)):
                if index % 2:
                    attack(random_)
                else:
                    key = random_.choice(GOOD)
                    assert bus.emit(key, number) == 1
                    bus.post(key, number, partition=key)
                    keys.update_with(key, lambda n: n + 1)
            return 0 if index % 2 else scaled(400)

        good = sum(run_threads(4, work))
        counts.add(faults=2 * scaled(400))
        assert bus.drain(WAIT)
        assert seen[0] == 2 * good
        assert sum(keys.values()) == good
        assert len(keys) == len(GOOD)
        assert keys._is_valid()
        assert len(bus.stats().topics) == topics_n
        assert_conserved(bus)


def test_finalizers_of_payloads_emit_and_subscribe() -> None:
    """Ten thousand payloads, each of which uses the bus when it dies."""
    payloads_n = scaled(10_000)
    with EventBus(workers=2, queue_size=256) as bus:
        died: list[int] = []

        class Payload:
            __slots__ = ("n",)

            def __init__(self, n: int) -> None:
                self.n = n

            def __del__(self) -> None:
                bus.emit("died", self.n)
                subscription = bus.subscribe("other", ignore)
                subscription.cancel()
                if self.n % 100 == 0:
                    with suppress(QueueFullError):
                        bus.post("buried", self.n, timeout=0)

        def ignore(event: object) -> None:
            pass

        bus.on("key", ignore)
        bus.on("buried", ignore)
        bus.on("died", died.append)

        def work(index: int) -> None:
            for n in range(index, payloads_n, 4):
                if n % 3 == 0:
                    bus.post("key", Payload(n), partition=n % 5)
                elif n % 3 == 1:
                    bus.emit("key", Payload(n))
                else:
                    bus.call("key", Payload(n))

        run_threads(4, work)
        assert bus.drain(WAIT)
        gc.collect()
        eventually(lambda: len(died) == payloads_n, 30)
        assert sorted(died) == list(range(payloads_n))
        counts.add(faults=payloads_n)
        assert bus.drain(WAIT)
        assert bus.stats().topic("other").handlers == 0
        assert_conserved(bus)


def test_weakref_callbacks_cancel_and_emit() -> None:
    """Handlers that die while their key is emitted, posted and walked by others."""
    rounds = scaled(2500)
    with EventBus(workers=2) as bus:
        gone: list[int] = []

        class Owner:
            def handle(self, event: object) -> None:
                pass

        bus.on("gone", gone.append)
        stop = threading.Event()

        def work(index: int) -> int:
            if index >= 2:
                while not stop.is_set():
                    bus.emit("key", index)
                    bus.post("key", index, partition=index)
                    if bus.stats().pending > 500:
                        bus.drain(WAIT)
                return 0
            for n in range(rounds):
                owner = Owner()
                bus.on("key", owner.handle, weak=True)
                other = bus.subscribe("key", Owner().handle)

                def callback(reference: object, n: int = n, other: Any = other) -> None:
                    other.cancel()
                    bus.emit("gone", n)

                reference = weakref.ref(owner, callback)
                bus.emit("key", n)
                del owner
                eventually(lambda reference=reference: reference() is None)
            if index == 0:
                stop.set()
            return rounds

        def guarded(index: int) -> int:
            try:
                return work(index)
            finally:
                if index < 2:
                    stop.set()

        total = sum(run_threads(4, guarded))
        assert bus.drain(WAIT)
        eventually(lambda: len(gone) == total)
        eventually(lambda: bus.stats().topic("key").handlers == 0)
        assert bus.emit("key") == 0
        counts.add(faults=total)
        assert_conserved(bus)


def test_finalizers_of_values_use_the_map_they_are_in() -> None:
    keys: StripedMap[int, Any] = StripedMap()
    died: list[int] = []

    class Value:
        __slots__ = ("n",)

        def __init__(self, n: int) -> None:
            self.n = n

        def __del__(self) -> None:
            keys.get(self.n)
            keys.pop(-self.n - 1, None)
            keys.setdefault(-self.n - 1, self.n)
            died.append(self.n)

    def work(index: int) -> None:
        for n in range(index, scaled(4000), 4):
            keys[n % 50] = Value(n)
            keys.pop((n * 7) % 50, None)
            if n % 500 == 0:
                list(keys.items())

    run_threads(4, work)
    for n in range(50):
        keys.pop(n, None)
    eventually(lambda: len(died) == scaled(4000))
    assert sorted(died) == list(range(scaled(4000)))
    counts.add(faults=len(died))
    assert keys._is_valid()


def test_finalizers_of_values_that_waited_for_a_reader_do_not_nest() -> None:
    """Thousands wait when a reader has lost its core in the middle of a look-up."""
    keys: StripedMap[Any, Any] = StripedMap(read=1)
    values_n = scaled(20_000)
    stop = threading.Event()
    depths: list[int] = []
    depth = [0]

    class Value:
        def __del__(self) -> None:
            depth[0] += 1
            keys.pop("new", None)
            keys.setdefault("new", 1)  # drops what waits
            depths.append(depth[0])
            depth[0] -= 1

    def work(index: int) -> None:
        if index == 0:  # alone makes and drops them: the depth is this thread's
            try:
                for _ in range(values_n):
                    keys["written"] = Value()
                keys.pop("written")
            finally:
                stop.set()
        while not stop.is_set():
            for _ in range(1000):
                keys["read"]

    run_threads(6, work)
    eventually(lambda: len(keys) > 0 and len(depths) == values_n)
    assert max(depths) == 1
    counts.add(faults=values_n)


def test_buffers_that_die_in_every_thread_go_back_to_their_pool() -> None:
    with EventBus(workers=2) as bus:
        bus.on("key", lambda event: None, encoded=True)
        kept: list[Buffer] = []
        lock = threading.Lock()

        def keep(event: Buffer) -> None:
            with lock:
                kept.append(event)
                if len(kept) > 50:
                    kept.pop(len(kept) // 2)

        bus.on("key", keep, encoded=True)

        def work(index: int) -> None:
            for n in range(scaled(1000)):
                bus.emit("key", ["event", index, n])
                bus.post("key", "x" * (n % 3000), partition=n % 3)

        run_threads(4, work)
        assert bus.drain(WAIT)
        stats = assert_conserved(bus)
        assert stats.encoded == 8 * scaled(1000)
        kept.clear()
