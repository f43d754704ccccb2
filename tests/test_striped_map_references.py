"""StripedMap and references: what it lets go of, when, and what finalizers may do."""

import gc
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ftbus import StripedMap, _core
from ftbus.testing import eventually, run_threads

SCALE = float(os.environ.get("FTB_SCALE", "1"))


def scaled(n: int) -> int:
    """Return n stretched by FTB_SCALE, at least 1."""
    return max(1, int(n * SCALE))


class Tag:
    """What a weak reference can watch."""


def watched() -> tuple[Tag, weakref.ref[Tag]]:
    """Return an object and a weak reference to it."""
    value = Tag()
    return value, weakref.ref(value)


def is_dead(reference: weakref.ref[Any]) -> bool:
    """Return whether the object is gone, after what can be done for that was done."""
    if reference() is None:
        return True
    _core.reclaim()
    gc.collect()
    return reference() is None


def test_a_replaced_or_removed_value_goes_at_once() -> None:
    m: StripedMap[str, Any] = StripedMap()
    removals: list[Callable[[], object]] = [
        lambda: m.__setitem__("a", 1),
        lambda: m.__delitem__("a"),
        lambda: m.pop("a"),
        lambda: m.popitem(),
        lambda: m.clear(),
        lambda: m.update(a=1),
        lambda: m.update_with("a", lambda _: 1),
        lambda: m.replace("a", m["a"], 1),
    ]
    for remove in removals:
        m["a"], reference = watched()
        remove()
        assert reference() is None
        m.clear()


def test_a_map_that_goes_lets_its_values_go() -> None:
    m: StripedMap[Any, Any] = StripedMap()
    m["a"], reference = watched()
    iterator = iter(m.values())
    assert next(iterator) is reference()
    del m
    assert reference() is not None  # the iterator holds the map
    del iterator
    assert reference() is None


def test_a_key_object_is_kept_and_released() -> None:
    def key() -> type:
        return type("Local", (), {})

    m: StripedMap[Any, int] = StripedMap()
    text = "".join(["not ", "interned"])
    before = sys.getrefcount(text)
    m[text] = 1
    m["".join(["not ", "interned"])] = 2
    assert next(iter(m)) is text
    assert sys.getrefcount(text) == before + 1
    del m[text]
    assert sys.getrefcount(text) == before
    m[key()] = 1
    gc.collect()
    assert [found.__name__ for found in m] == ["Local"]


def test_small_values_do_not_pile_up() -> None:
    m: StripedMap[str, Any] = StripedMap()
    m["a"] = 0.0
    for _ in range(100):
        m["a"] = random.random()
    before = sys.getallocatedblocks()
    for _ in range(10_000):
        m["a"] = random.random()
    assert sys.getallocatedblocks() - before < 500


def test_values_removed_beside_readers_all_go(seed: int) -> None:
    m: StripedMap[int, Any] = StripedMap()
    references: list[weakref.ref[Any]] = []
    done = threading.Event()

    def run(index: int) -> None:
        if index > 0:
            while not done.is_set():
                m.get(index)
                m.get(0)
            return
        try:
            for i in range(scaled(3000)):
                value, reference = watched()
                m[i % 4] = value
                references.append(reference)
        finally:
            done.set()

    run_threads(4, run)
    m.clear()
    eventually(lambda: all(map(is_dead, references)))


def test_cycles_through_the_map_are_collected() -> None:
    m: StripedMap[Any, Any] = StripedMap()
    value, reference = watched()
    value.map = m  # type: ignore[attr-defined]
    m["a"] = value
    m["self"] = m
    m_reference = weakref.ref(m)
    del m, value
    gc.collect()
    assert reference() is None
    assert m_reference() is None


def test_cycles_through_an_iterator_are_collected() -> None:
    m: StripedMap[Any, Any] = StripedMap((i, None) for i in range(10))
    value, reference = watched()
    m["a"] = value
    value.iterator = iter(m.items())  # type: ignore[attr-defined]
    next(value.iterator)  # type: ignore[attr-defined]
    del m, value
    gc.collect()
    assert reference() is None


def collect_beside_writers(seed: int) -> weakref.ref[Any]:
    """Fill a map with cycles that go through it; return a weak reference to it."""
    m: StripedMap[Any, Any] = StripedMap()
    done = threading.Event()

    def run(index: int) -> None:
        if index == 0:
            try:
                for _ in range(scaled(8)):
                    gc.collect()
            finally:
                done.set()
            return
        rng = random.Random(seed + index)
        while not done.is_set():
            cycle = Tag()
            cycle.map, cycle.self = m, cycle  # type: ignore[attr-defined]
            m[rng.randrange(3000)] = cycle
            m.pop(rng.randrange(3000), None)
            next(iter(m.items()), None)

    run_threads(3, run)
    return weakref.ref(m)


def test_collections_beside_writers(seed: int) -> None:
    """Hunts: the collector walking tables that are being changed or freed."""
    reference = collect_beside_writers(seed)
    eventually(lambda: is_dead(reference))


def test_finalizers_may_use_the_map() -> None:
    m: StripedMap[Any, Any] = StripedMap()
    log: list[str] = []

    class Hostile:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            log.append(self.name)
            m["again"] = self.name
            m.pop(self.name, None)
            m.update_with("count", lambda value: value + 1, 0)
            assert list(m)
            gc.collect()

    for name in ("set", "pop", "del", "clear", "popitem"):
        m[name] = Hostile(name)
    m["set"] = 1
    m.pop("pop")
    del m["del"]
    assert log == ["set", "pop", "del"]
    m.clear()
    assert sorted(log) == ["clear", "del", "pop", "popitem", "set"]
    assert m.keys() <= {"again", "count"}
    m.clear()
    m["last"] = Hostile("last")
    m.popitem()
    assert log[-1] == "last"


def test_a_finalizer_may_replace_its_own_key_again_and_again() -> None:
    m: StripedMap[str, Any] = StripedMap()
    left = [50]

    class Phoenix:
        def __del__(self) -> None:
            if left[0] > 0:
                left[0] -= 1
                m["a"] = Phoenix()
                m.pop("a")

    m["a"] = Phoenix()
    del m["a"]
    assert left == [0]
    assert "a" not in m


def test_a_deep_nest_of_maps_goes_without_overflow() -> None:
    m: StripedMap[str, Any] = StripedMap()
    for _ in range(scaled(20_000)):
        m = StripedMap(inner=m)
    del m


def test_weak_references_to_the_map() -> None:
    m: StripedMap[str, int] = StripedMap()
    reference = weakref.ref(m)
    assert reference() is m
    del m
    assert reference() is None


def test_pin_keeps_the_map_and_not_what_it_holds() -> None:
    m: StripedMap[str, Any] = StripedMap()
    assert m.pin() is m
    m["a"], reference = watched()
    assert m["a"] is reference()
    m.clear()
    assert reference() is None
