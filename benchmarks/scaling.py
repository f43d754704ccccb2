"""How far it scales: the same work on 1, 2, 4 ... all cores, as one JSON to send back.

python benchmarks/scaling.py [--quick] [--only PATTERN] [--json scaling.json]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import peers
import report
from harness import Bind, Case, Check, Comparison, Suite

import ftbus

EMPTY = "empty loop"
BOUND = "topic.emit bound per thread"
PINNED = "bus.emit shared, pinned"
MAP = "StripedMap pinned: m[k]"
BUFFER = "pool.allocate, 1 KiB"
HAND = "hand loop"
LOCKED = "dict + RLock"
ONE_OBJECT = "one object, its reference count written"
MODEL_CORES = (1, 2, 4, 8, 16, 32, 64, 128)


def thread_counts(cores: int) -> tuple[int, ...]:
    """Return 1, 2, 4 and so on, and the number of cores."""
    powers = {1 << i for i in range(cores.bit_length()) if 1 << i <= cores}
    return tuple(sorted(powers | {cores}))


def reading_map() -> Bind:
    table = ftbus.StripedMap({"key": 7}).pin()

    def burst(n: int) -> None:
        for _ in repeat(None, n):
            table["key"]

    return lambda thread: burst


def allocating() -> Bind:
    def burst(allocate: Callable[[int], object], n: int) -> None:
        for _ in repeat(None, n):
            allocate(1024)

    return lambda thread: partial(burst, ftbus.default_pool.allocate)


def counting_references() -> Bind:
    """All threads take and drop references to one object: two writes to one line."""
    shared = [object()]

    def burst(n: int) -> None:
        it = shared
        for _ in repeat(None, n):
            it[0]

    return lambda thread: burst


def contenders() -> dict[str, Callable[[], Bind]]:
    handlers = peers.functions(1)
    return {
        EMPTY: lambda: lambda thread: peers.run_empty,
        BOUND: partial(peers.bound, handlers),
        PINNED: partial(peers.pinned_bus, handlers),
        MAP: reading_map,
        BUFFER: allocating,
        HAND: partial(peers.hand, handlers),
        LOCKED: partial(peers.locked, handlers),
        ONE_OBJECT: counting_references,
    }


def scaling_suite(threads: tuple[int, ...]) -> Suite:
    cases = [Case(name, setup, EMPTY, threads) for name, setup in contenders().items()]
    comparisons = [
        Comparison(case.name, case.name, "speed", None, n)
        for case in cases
        for n in threads[1:]
    ]
    note = (
        "The time is divided by the operations of all threads together. Emits have\n"
        "one handler. ceiling is the gain in units of the empty loop's, which is what\n"
        "the machine gives: clock, shared cores and memory are in it."
    )
    return Suite("scaling over threads", cases, comparisons, note)


# The model: see docs/scaling.md.

# Writes per operation to cache lines that all threads write: reference counts go up and
# down, a lock is taken and given back.
LINES_WRITTEN = {BOUND: 0, PINNED: 0, MAP: 0, BUFFER: 0, HAND: 2, ONE_OBJECT: 2}


def modelled(local_ns: float, line_ns: float, lines_n: int, cores: int) -> float:
    """Return millions of operations per second of so many cores.

    local_ns: what one operation takes on one core. line_ns: what it takes to write a
    cache line that another core wrote last; such writes to one line happen one after
    the other, whichever cores do them. lines_n: how many an operation makes.
    """
    by_cores = 1000 * cores / local_ns
    if lines_n == 0 or cores == 1:
        return by_cores
    return min(by_cores, 1000 / (line_ns * lines_n))


def model(found: dict[str, Any]) -> tuple[float, list[list[Any]]] | None:
    """Return the cost of a contended line in ns and the model's rows, from a run.

    A row has the case, its writes and the rates for MODEL_CORES, in millions/s. None if
    it was a run on one core.
    """
    ns = {
        (case["name"], case["threads"]): case["ns"]["median"]
        for suite in found["suites"]
        for case in suite["cases"]
    }
    counts = [threads for name, threads in ns if name == ONE_OBJECT and threads > 1]
    if not counts:
        return None
    line_ns = ns[ONE_OBJECT, min(counts)] / LINES_WRITTEN[ONE_OBJECT]
    rows = [
        [name, n, *(modelled(ns[name, 1], line_ns, n, cores) for cores in MODEL_CORES)]
        for name, n in LINES_WRITTEN.items()
        if (name, 1) in ns
    ]
    return line_ns, rows


def caches() -> list[Check]:
    """Tell the caches apart: what a line's way from core to core depends on."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size, shared = (
            (folder / name).read_text().strip()
            for name in ("level", "type", "size", "shared_cpu_list")
        )
        kib = float(size.rstrip("K"))
        name = f"L{level} {kind.lower()} cache of cpu0, shared by cpus {shared}"
        found.append(Check(name, kib, "KiB", None))
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    return [*found, Check("memory nodes", len(nodes), "", None)]


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--json" not in argv:
        argv += ["--json", "scaling.json"]
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    threads = thread_counts(os.process_cpu_count() or 1)
    code = report.run(options, [scaling_suite(threads)], [caches])
    print(f"Everything is in {options.json}: that is the file to send back.")
    return code


if __name__ == "__main__":
    sys.exit(main())
