"""StripedMap: walking it while it changes, and its size."""

import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import ftbus
from ftbus import StripedMap

# Iteration


def test_iteration_of_many_keys_returns_each_once() -> None:
    n = 20_000
    m = StripedMap((i, -i) for i in range(n))
    assert sorted(m) == list(range(n))
    assert sorted(m.values()) == list(range(1 - n, 1))
    assert sorted(m.items()) == [(i, -i) for i in range(n)]


def test_an_iterator_stays_exhausted() -> None:
    m = StripedMap(a=1)
    iterator = iter(m)
    assert list(iterator) == ["a"]
    m["b"] = 2
    assert list(iterator) == []


@pytest.mark.parametrize("shift", range(8))
def test_iteration_while_the_map_is_rehashed(shift: int) -> None:
    """Hunts: a walk that loses its place when it goes on in another table."""
    stay = range(500)
    for first in range(shift, 500, 40):
        m: StripedMap[Any, int] = StripedMap((i, i) for i in stay)
        m.update((f"go {i}", i) for i in range(3000))
        iterator = iter(m)
        seen: list[Any] = list(itertools.islice(iterator, first))
        for i in range(3000):
            del m[f"go {i}"]  # shrinks the tables
        seen += itertools.islice(iterator, first)
        m.update((f"new {i}", i) for i in range(3000))  # grows them
        seen += iterator
        assert len(seen) == len(set(seen))
        assert set(stay) <= set(seen)


def test_iteration_while_the_loop_writes() -> None:
    m = StripedMap((i, i) for i in range(1000))
    for key in m:
        m[key + 1_000_000] = 1
        m.pop(key)
        if len(m) > 5000:
            m.clear()
    for key in m.keys():  # noqa: SIM118
        m.pop(key, None)


# Size


def test_a_million_keys() -> None:
    n = 1_000_000
    m: StripedMap[int, int] = StripedMap()
    empty = sys.getsizeof(m)
    for i in range(n):
        m[i] = i
    assert len(m) == n
    assert sys.getsizeof(m) < n * 110
    assert all(m[i] == i for i in range(0, n, 101))
    assert sum(1 for _ in m) == n
    for i in range(0, n, 2):
        del m[i]
    assert len(m) == n // 2
    assert m._is_valid()
    m.clear()
    assert sys.getsizeof(m) == empty


def test_a_map_shrinks_as_keys_go() -> None:
    m = StripedMap((i, i) for i in range(50_000))
    full = sys.getsizeof(m)
    for i in range(49_500):
        del m[i]
    assert sys.getsizeof(m) < full / 20
    assert sorted(m) == list(range(49_500, 50_000))


def test_keys_that_come_and_go_leave_no_tombstones() -> None:
    m: StripedMap[int, int] = StripedMap()
    empty = sys.getsizeof(m)
    for i in range(100_000):
        m[i] = i
        del m[i]
    assert sys.getsizeof(m) == empty
    assert m._is_valid()


def test_mapping_protocol_of_typing() -> None:
    def total(mapping: Mapping[str, int]) -> int:
        return sum(mapping.values())

    assert total(StripedMap(a=1, b=2)) == 3
    assert ftbus.StripedMap is StripedMap
    assert isinstance(iter(StripedMap()), Iterator)
