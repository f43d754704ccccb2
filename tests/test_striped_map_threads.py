"""StripedMap under threads: nothing lost, nothing freed too early, nothing seen twice.

FTB_SCALE stretches these tests: with FTB_SCALE=100, test_mixed_operations_lose_nothing
makes ten million operations.
"""

import itertools
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from builds import TSAN

from ftbus import StripedMap
from ftbus.testing import run_threads

THREADS = 8
SCALE = float(os.environ.get("FTB_SCALE", "1"))


def scaled(n: int) -> int:
    """Return n stretched by FTB_SCALE, at least 1."""
    return max(1, int(n * SCALE))


def constant(value: Any) -> Callable[[Any], Any]:
    """Return a function that returns the value."""
    return lambda _: value


# Writers


def test_mixed_operations_lose_nothing(seed: int) -> None:
    """Hunts: a write lost to a rehash, a removal or a swap that came between.

    Each thread owns an eighth of the keys, is alone to write them and checks every
    result against its own dict; all read each other's, and shrink and grow the tables.
    """
    operations = scaled(100_000) // THREADS
    m: StripedMap[Any, Any] = StripedMap()
    models: list[dict[Any, Any]] = [{} for _ in range(THREADS)]

    def run(index: int) -> None:
        rng = random.Random(seed * THREADS + index)
        model = models[index]
        kinds: list[Callable[[int], Any]] = [
            lambda i: i * THREADS + index,
            lambda i: f"{index}.{i}",
            lambda i: b"%d.%d" % (index, i),
        ]
        span = 300
        for step in range(operations):
            if step % 4000 == 0:
                span = rng.choice((10, 300, 2000))
            key = kinds[step % 3](rng.randrange(span))
            value: Any = [index, step] if step % 2 else step
            old = model.get(key)
            match rng.randrange(10):
                case 0 | 1:
                    m[key] = model[key] = value
                case 2:
                    assert m.pop(key, None) == model.pop(key, None)
                case 3:
                    assert m.setdefault(key, value) == model.setdefault(key, value)
                case 4:
                    done = m.replace(key, old, value)
                    assert done == (key in model)
                    if done:
                        model[key] = value
                case 5:
                    model[key] = [old, 0] if step % 3 else 0
                    assert m.update_with(key, constant(model[key]), 0) is model[key]
                case 6:
                    other = kinds[step % 3](rng.randrange(span))
                    assert m.get(other) == model.get(other)
                case 7:
                    assert (key in m) == (key in model)
                case 8:
                    m.get(rng.randrange(span * THREADS))  # somebody's
                case 9:
                    if key in model:
                        del model[key]
                        del m[key]
            if step % 1000 == 999 and span == 10:
                for key in list(model):
                    assert m.pop(key) == model.pop(key)

    run_threads(THREADS, run)
    expected = dict(itertools.chain(*(model.items() for model in models)))
    assert m._is_valid()
    assert m == expected


def test_counters_are_exact(seed: int) -> None:
    """Hunts: an update lost between reading a value and replacing it.

    The values are tuples, new ones for each number: one replaced without having been
    read is a wrong count, and one dropped too often a crash.
    """
    rounds = scaled(40_000) // THREADS
    m: StripedMap[Any, tuple[int, ...]] = StripedMap()

    def run(index: int) -> None:
        rng = random.Random(seed + index)
        for _ in range(rounds):
            key = rng.randrange(4)
            m.update_with(key, lambda value: (value[0] + 1, index), default=(0,))

    run_threads(THREADS, run)
    assert sum(value[0] for value in m.values()) == rounds * THREADS


def test_counters_by_replace_are_exact() -> None:
    rounds = scaled(16_000) // THREADS
    m = StripedMap(n=0)

    def run(_: int) -> None:
        for _ in range(rounds):
            while not m.replace("n", (value := m["n"]), value + 1):
                pass

    run_threads(THREADS, run)
    assert m["n"] == rounds * THREADS


def test_each_item_is_popped_once() -> None:
    n = scaled(20_000)
    m = StripedMap((i, i) for i in range(n))

    def run(index: int) -> list[int]:
        popped = []
        while True:
            try:
                if index % 2:
                    popped.append(m.popitem()[1])
                else:
                    popped.append(m.pop(len(popped) * (index + 1) % n))
            except KeyError:
                if not m:
                    return popped
                if index % 2 == 0:
                    index += 1

    assert sorted(itertools.chain(*run_threads(4, run))) == list(range(n))
    assert m._is_valid()


def test_setdefault_stores_one_for_all() -> None:
    """Hunts: two threads that add the same key, each sure that it is missing."""
    n = scaled(5000)
    m: StripedMap[int, object] = StripedMap()
    found = run_threads(
        4, lambda _: [m.setdefault(i % n, object()) for i in range(4 * n)]
    )
    assert all(list(map(id, values)) == list(map(id, found[0])) for values in found)
    assert len(m) == n
    assert m._is_valid()


def test_clear_beside_writers_keeps_what_comes_later() -> None:
    """Hunts: an entry written to after its table was detached, and dropped twice."""
    m: StripedMap[int, list[int]] = StripedMap()
    done = threading.Event()

    def run(index: int) -> None:
        if index == 0:
            for _ in range(scaled(200)):
                m.clear()
            done.set()
            return
        step = 0
        while not done.is_set():
            step += 1
            key = step % 500
            m[key] = [key]
            value = m.get(key)
            assert value is None or value == [key]
            m.update_with(key, lambda old: [old[0]], [key])

    run_threads(4, run)
    assert m._is_valid()
    assert all(value == [key] for key, value in m.items())
    m.clear()
    assert len(m) == 0


class Pair:
    """A value that is seen to be freed: its slots are empty then."""

    __slots__ = ("first", "second")

    def __init__(self, number: int) -> None:
        self.first = self.second = number


@pytest.mark.parametrize("way", ["set", "pop", "clear"])
def test_values_are_whole_while_they_are_replaced(way: str) -> None:
    """Hunts: a reader that takes its reference after the writer dropped the map's."""
    m: StripedMap[str, Pair] = StripedMap()
    done = threading.Event()

    def write() -> None:
        pairs = [Pair(i) for i in range(scaled(40_000))]  # what goes is not made anew
        while pairs:
            m["a"] = pairs.pop()
            if way == "pop":
                m.pop("a", None)
            elif way == "clear":
                m.clear()

    def run(index: int) -> None:
        if index == 0:
            try:
                write()
            finally:
                done.set()
            return
        while not done.is_set():
            for _ in range(100):
                value = m.get("a")
                if value is not None:
                    assert value.first == value.second
                for value in m.values():
                    assert value.first == value.second

    run_threads(3, run)


# Iteration


def test_an_iterator_shared_by_threads_gives_each_key_to_one(seed: int) -> None:
    n = scaled(20_000)
    m = StripedMap((i, i) for i in range(n))
    iterator = iter(m.items())
    parts = run_threads(4, lambda _: list(iterator))
    assert sorted(itertools.chain(*parts)) == [(i, i) for i in range(n)]


def test_iteration_never_raises_and_is_complete_under_writers(seed: int) -> None:
    """Hunts: a key seen twice or never because a table was replaced, a freed value."""
    stay = {i: [i] for i in range(2000)}
    m: StripedMap[Any, Any] = StripedMap(stay)
    rounds = scaled(6)
    left = threading.Semaphore(0)
    done = threading.Event()

    def write(index: int) -> None:
        rng = random.Random(seed + index)
        while not done.is_set():
            names = [f"{index}.{i}" for i in range(2000)]
            rng.shuffle(names)
            for name in names:
                m[name] = [name]
            for key in rng.sample(range(2000), 50):
                m[key] = [key]
            for name in names:
                del m[name]
        left.release()

    def read() -> None:
        for _ in range(rounds):
            seen = list(m)
            assert len(seen) == len(set(seen))
            assert stay.keys() <= set(seen)
            assert all(pair[1] == [pair[0]] for pair in m.items())
            assert all(isinstance(value, list) for value in m.values())

    def run(index: int) -> None:
        if index < 2:
            write(index)
        else:
            try:
                read()
            finally:
                done.set()

    run_threads(3, run)
    assert m == stay
    assert m._is_valid()


# Fork

FORK = """
import os, threading, warnings
from ftbus import StripedMap

warnings.simplefilter("ignore")
m = StripedMap((i, [i]) for i in range(1000))
done = threading.Event()

def write(index):
    i = 0
    while not done.is_set():
        i += 1
        m[f"{index}.{i % 100}"] = [i]
        m[i % 1000] = [i % 1000]
        m.pop(f"{index}.{(i + 50) % 100}", None)
        m.get(i % 1000)

threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
for thread in threads:
    thread.start()
codes = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        assert m._is_valid()
        assert all(m[i] == [i] for i in range(1000))
        for i in range(5000):
            m[i] = i
        assert len(list(m)) == len(m) >= 5000
        m.clear()
        os._exit(0 if len(m) == 0 else 1)
    codes.append(os.waitpid(child, 0)[1])
done.set()
for thread in threads:
    thread.join()
print(codes)
"""


@pytest.mark.skipif(TSAN, reason="ThreadSanitizer ends such children")
def test_a_forks_child_can_use_the_map(python: Callable[..., Any]) -> None:
    """Hunts: a lock that a thread of the parent held when it was forked."""
    result = python(FORK)
    assert result.stdout == f"{[0] * 10}\n", result.stderr
