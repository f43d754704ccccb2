"""What StripedMap costs: against dict and the maps of cereggii and ft_utils, on 1 and 2
threads, with 1,000 and 1,000,000 keys.

    python benchmarks/map.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle
from typing import Any

import report
from harness import Bind, Burst, Case, Comparison, Suite

import ftbus

CHUNK = 1000
EMPTY = "loop over the keys"
DICT = "dict"
PINNED = "StripedMap pinned"
SHARED = "StripedMap"
ATOMIC = "cereggii.AtomicDict"
CONCURRENT = "ft_utils.ConcurrentDict"

DISTINCT = "an object each"
OWN = "an object each, half of the keys for each thread"
IMMORTAL = "a small int"
ONE = "one object for all"
NOTES = {
    DISTINCT: "A read counts a reference to the value. One thread made these objects; "
    "the other\ncounts atomically, and where both read one object they take turns.",
    OWN: "Each thread reads what it wrote.",
    IMMORTAL: "An immortal value is not counted: what is left is the map.",
    ONE: "Both threads count references to the same object, which no map can avoid.",
}

# The maps. There is one of each kind and size, filled anew for every suite.


def pinned_map() -> Any:
    return ftbus.StripedMap().pin()


def atomic_dict() -> Any:
    from cereggii import AtomicDict

    return AtomicDict()


def concurrent_dict() -> Any:
    from ft_utils.concurrency import ConcurrentDict

    return ConcurrentDict()


MAPS: dict[str, tuple[str, Callable[[], Any]]] = {
    DICT: ("", dict),
    PINNED: ("", pinned_map),
    SHARED: ("", ftbus.StripedMap),
    ATOMIC: ("cereggii", atomic_dict),
    CONCURRENT: ("ft_utils.concurrency", concurrent_dict),
}


@cache
def map_of(name: str, n: int) -> Any:
    return MAPS[name][1]()


# The keys are interned, hence immortal: threads that loop over the same keys count no
# references to them. Each thread goes through them in an order of its own.


@cache
def keys_of(n: int) -> list[str]:
    return [sys.intern(f"entity.{i}") for i in range(n)]


def part_of(n: int, thread: int, values: str) -> list[str]:
    """Return the keys that a thread uses: all, or every other one as its own."""
    return keys_of(n)[thread::2] if values == OWN else keys_of(n)


@cache
def chunks_of(n: int, thread: int, values: str) -> list[list[str]]:
    keys = part_of(n, thread, values)
    keys = random.Random(thread).sample(keys, len(keys)) * -(-CHUNK // len(keys))
    ends = range(0, len(keys) - CHUNK + 1, CHUNK)
    return [keys[start : start + CHUNK] for start in ends]


# The loops. burst(n) goes through n chunks.


def run_empty(mapping: Any, chunks: Iterator[list[str]], n: int) -> None:
    for _ in range(n):
        for _ in next(chunks):
            pass


def run_item(mapping: Any, chunks: Iterator[list[str]], n: int) -> None:
    for _ in range(n):
        for key in next(chunks):
            mapping[key]


def run_get(mapping: Any, chunks: Iterator[list[str]], n: int) -> None:
    get = mapping.get
    for _ in range(n):
        for key in next(chunks):
            get(key)


def run_write(mapping: Any, chunks: Iterator[list[str]], n: int) -> None:
    for _ in range(n):
        for key in next(chunks):
            mapping[key] = 7


def run_write_new(mapping: Any, chunks: Iterator[list[str]], n: int) -> None:
    for _ in range(n):
        for key in next(chunks):
            mapping[key] = object()


type Loop = Callable[[Any, Iterator[list[str]], int], None]


def setup(name: str, n: int, values: str, loop: Loop) -> Bind:
    """Fill a map; what is each thread's own, the thread itself makes."""
    mapping = map_of(name, n)
    if values != OWN:
        shared = object() if values == ONE else 7
        for key in keys_of(n):
            mapping[key] = object() if values == DISTINCT else shared

    def bind(thread: int) -> Burst:
        if values == OWN:
            for key in part_of(n, thread, values):
                mapping[key] = object()
        return partial(loop, mapping, cycle(chunks_of(n, thread, values)))

    return bind


def case(label: str, name: str, n: int, values: str, loop: Loop) -> Case:
    made = partial(setup, name, n, values, loop)
    return Case(label, made, EMPTY, ops=CHUNK, module=MAPS[name][0])


def scales(cases: Sequence[Case], targets: dict[str, float]) -> list[Comparison]:
    """Compare cases on two threads to themselves on one."""
    return [
        Comparison(c.name, c.name, "speed", targets.get(c.name), threads=2)
        for c in cases
    ]


def read_suite(n: int, values: str) -> Suite:
    """m[k] and a bound get, for one kind of values."""
    item, get = "{}: m[k]".format, "{}: get = m.get".format
    cases = [case(EMPTY, DICT, n, values, run_empty)]
    cases += [case(item(name), name, n, values, run_item) for name in MAPS]
    getters = (DICT, SHARED, ATOMIC)  # ft_utils has no get
    cases += [case(get(name), name, n, values, run_get) for name in getters]
    ours = item(PINNED)
    comparisons = [
        Comparison(ours, item(DICT), "time", 1.3),
        Comparison(ours, item(ATOMIC), "time"),
        Comparison(ours, item(CONCURRENT), "time"),
        Comparison(item(SHARED), item(DICT), "time"),
        Comparison(get(SHARED), get(DICT), "time", 1.3),
        Comparison(get(SHARED), get(ATOMIC), "time"),
    ]
    target = {} if values == ONE else {ours: 1.8, get(SHARED): 1.8}
    comparisons += scales(cases, target)
    return Suite(f"read {n:,} keys, {values}", cases, comparisons, NOTES[values])


def write_suite(n: int, values: str) -> Suite:
    """m[k] = v for keys that are there: the same small int, or a new object each."""
    loop = run_write if values == IMMORTAL else run_write_new
    label = "{}: m[k] = v".format
    cases = [case(EMPTY, DICT, n, values, run_empty)]
    cases += [case(label(name), name, n, values, loop) for name in MAPS]
    peers = (DICT, ATOMIC, CONCURRENT)
    comparisons = [Comparison(label(PINNED), label(peer), "time") for peer in peers]
    comparisons += scales(cases, {})
    return Suite(f"write {n:,} keys, {values}", cases, comparisons)


def main(argv: Sequence[str] | None = None) -> int:
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    sizes = sorted({min(1000, options.most), options.most})
    suites = [read_suite(n, values) for n in sizes for values in NOTES]
    suites += [write_suite(n, v) for n in sizes for v in (IMMORTAL, DISTINCT)]
    return report.run(options, suites)


if __name__ == "__main__":
    sys.exit(main())
