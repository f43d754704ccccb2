"""What one emit costs: against a hand-written loop and other libraries, on 1 and 2
threads, with 1 to 16 handlers and 1 to 1,000,000 topics.

    python benchmarks/emit.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle, repeat
from typing import Any

import peers
import report
from harness import Bind, Case, Check, Comparison, Suite

import ftbus

HAND = "hand loop"
BOUND = "topic.emit bound per thread"
UNTIMED = f'{BOUND}, timing="off"'  # all others are sampled, which is the default
PINNED_TOPIC = "topic.emit shared, pinned"
PINNED_BUS = "bus.emit shared, pinned"
SHARED_TOPIC = "topic.emit shared, not pinned"
EMPTY = Case("empty loop", lambda: lambda thread: peers.run_empty, "empty loop")
CHUNK = 1000
ALLOCATION_EMITS = 1_000_000


def scale(name: str, target: float | None = None) -> Comparison:
    """Compare a case on two threads to itself on one."""
    return Comparison(name, name, "speed", target, threads=2)


def small_int() -> int:
    return 7


def handler_suite(n: int, time: float | None, speeds: dict[str, float]) -> Suite:
    """Everything that emits to one topic, with n plain handlers."""
    handlers = peers.functions(n)
    ours: dict[str, Callable[..., Bind]] = {
        BOUND: peers.bound,
        UNTIMED: partial(peers.bound, timing="off"),
        PINNED_TOPIC: peers.pinned_topic,
        PINNED_BUS: peers.pinned_bus,
        SHARED_TOPIC: peers.shared_topic,
    }
    ints: dict[str, Callable[..., Bind]] = {
        f"{HAND}, small int": partial(peers.hand, new_event=small_int),
        f"{BOUND}, small int": partial(peers.bound, new_event=small_int),
    }
    setups: dict[str, Callable[..., Bind]] = {HAND: peers.hand, **ours, **ints}
    cases = [EMPTY]
    cases += [
        Case(name, partial(setup, handlers), EMPTY.name)
        for name, setup in setups.items()
    ]
    cases += [
        Case(name, partial(setup, handlers), EMPTY.name, module=module)
        for name, (module, setup) in peers.PEERS.items()
    ]
    hand_int, bound_int = ints
    comparisons = [
        Comparison(BOUND, HAND, "time", time),
        *(Comparison(BOUND, peer, "speed", speeds.get(peer)) for peer in peers.PEERS),
        *(Comparison(name, HAND, "time") for name in ours if name != BOUND),
        Comparison(BOUND, UNTIMED, "time"),
        Comparison(bound_int, hand_int, "time", time),
    ]
    scaling = {BOUND, bound_int, PINNED_TOPIC, PINNED_BUS}
    comparisons += [scale(c.name, 1.85 if c.name in scaling else None) for c in cases]
    return Suite("1 handler" if n == 1 else f"{n} handlers", cases, comparisons)


def kind_suite() -> Suite:
    """What a handler is decides how it scales."""
    kinds: dict[str, Any] = {
        "function": peers.handler,
        "bound method": peers.Listener().handle,
        "closure": peers.make_closure(),
    }
    cases, comparisons = [EMPTY], [scale(EMPTY.name)]
    for kind, handler in kinds.items():
        ours, theirs = f"{BOUND}: {kind}", f"{HAND}: {kind}"
        cases.append(Case(theirs, partial(peers.hand, [handler]), EMPTY.name))
        cases.append(Case(ours, partial(peers.bound, [handler]), EMPTY.name))
        comparisons += [Comparison(ours, theirs, "time"), scale(theirs), scale(ours)]
    note = (
        "The interpreter counts a reference to what it calls, and to self, as long\n"
        "as the call lasts. A function of a module is immortal on 3.13t: not counted.\n"
        "A closure is, and so is the object of a bound method: one place in memory\n"
        "that all threads write in turn, whoever makes the call."
    )
    return Suite("kinds of handlers", cases, comparisons, note)


def timing_suite(n: int) -> Suite:
    """What counting costs, and timing some or all of the events."""
    kinds: dict[str, dict[str, Any]] = {
        "stats=False": {"stats": False},
        "counters": {"timing": "off"},
        "sampled": {"timing": "sampled"},
        "all timed": {"timing": "all"},
    }
    handlers = peers.functions(n)
    cases = [EMPTY]
    cases += [
        Case(name, partial(peers.bound, handlers, **options), EMPTY.name, threads=(1,))
        for name, options in kinds.items()
    ]
    comparisons = [
        Comparison("counters", "stats=False", "time", 1.03),
        Comparison("sampled", "counters", "time", 1.08),
        Comparison("all timed", "counters", "time"),
    ]
    return Suite(f"timing, {n} handler{'s'[: n - 1]}", cases, comparisons)


# Many topics


def run_empty_chunks(chunks: Iterator[list[str]], n: int) -> None:
    for _ in range(n):
        for _ in next(chunks):
            pass


def run_hand_chunks(
    handlers_by_key: dict[str, Any], chunks: Iterator[list[str]], event: object, n: int
) -> None:
    for _ in range(n):
        for key in next(chunks):
            for handle in handlers_by_key[key]:
                handle(event)


def run_bus_chunks(
    emit: Callable[[str, object], object],
    chunks: Iterator[list[str]],
    event: object,
    n: int,
) -> None:
    for _ in range(n):
        for key in next(chunks):
            emit(key, event)


@cache
def keys_of(n: int) -> list[str]:
    return [f"entity.{i}.moved" for i in range(n)]


def chunks_of(n: int, order: str) -> Iterator[list[str]]:
    """Return the keys over and over, in lists of CHUNK."""
    keys = keys_of(n)
    if order != "as made":
        size = CHUNK if order == "a few" else n
        keys = random.Random(n).sample(keys, min(n, size))
    keys = keys * -(-CHUNK // len(keys))
    ends = range(0, len(keys) - CHUNK + 1, CHUNK)
    return cycle([keys[start : start + CHUNK] for start in ends])


@cache
def handlers_by_key(n: int) -> dict[str, Any]:
    return {key: (peers.handler,) for key in keys_of(n)}  # noqa: C420


@cache
def crowd(n: int) -> tuple[ftbus.EventBus, float, float]:
    """Return a bus with n topics, and the bytes each takes, before and after an emit.

    Not counted are the key strings and the one function that handles all of it.
    """
    keys, bus = keys_of(n), ftbus.EventBus()
    gc.collect()
    start = resident_bytes()
    for i, key in enumerate(keys):
        bus.subscribe(key, peers.handler)
        if i % 50_000 == 0:
            report.progress(f"topics: making {i:,} of {n:,}")
    subscribed = resident_bytes()
    for key in keys:
        bus.emit(key, None)
    emitted = resident_bytes()
    return bus, (subscribed - start) / n, (emitted - start) / n


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def emit_by_key(n: int, order: str) -> Bind:
    bus, event = crowd(n)[0], object()
    return lambda thread: partial(run_bus_chunks, bus.emit, chunks_of(n, order), event)


def hand_by_key(n: int, order: str) -> Bind:
    table, event = handlers_by_key(n), object()
    return lambda thread: partial(run_hand_chunks, table, chunks_of(n, order), event)


def keys_alone(n: int, order: str) -> Bind:
    return lambda thread: partial(run_empty_chunks, chunks_of(n, order))


def topic_suite(most: int) -> Suite:
    """Emit by key with few topics and with many, in several orders."""
    some = min(1000, most)
    runs = {f"{n:,}": (n, "any") for n in sorted({1, some, most})}
    runs[f"{most:,} as made"] = (most, "as made")
    runs[f"{most:,}, to {some:,}"] = (most, "a few")
    cases, comparisons = [], []
    for label, which in runs.items():
        ours, theirs, empty = f"bus.emit: {label}", f"{HAND}: {label}", f"keys: {label}"
        setups = {empty: keys_alone, ours: emit_by_key, theirs: hand_by_key}
        cases += [
            Case(name, partial(setup, *which), empty, threads=(1,), ops=CHUNK)
            for name, setup in setups.items()
        ]
        comparisons.append(Comparison(ours, theirs, "time"))
        if which[0] > some:
            comparisons += [
                Comparison(ours, f"bus.emit: {some:,}", "time", 2),
                Comparison(theirs, f"{HAND}: {some:,}", "time"),
            ]
    note = (
        "Keys come in any order; as made: in the order of subscribing; to 1,000: only\n"
        "those of all are in use. With many topics an emit waits for memory, as the\n"
        "hand loop does for its dict. Net is without the loop over the same keys."
    )
    return Suite("topics", cases, comparisons, note)


# Memory


def extra(measure: Callable[[int], int], n: int) -> int:
    """Return what n emits add to what measuring itself shows, warmed up."""
    measure(n)
    return measure(n) - measure(0)


def allocation_checks(emits: int) -> list[Check]:
    """Count what emits leave behind, and the most they hold at any moment."""
    emit, event = peers.bus_with(peers.functions(4)).topic("key").emit, object()

    def burst(n: int) -> None:
        for _ in repeat(None, n):  # unlike range it makes no numbers
            emit(event)

    def blocks(n: int) -> int:
        before = sys.getallocatedblocks()
        burst(n)
        return sys.getallocatedblocks() - before

    def peak(n: int) -> int:
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        burst(n)
        return tracemalloc.get_traced_memory()[1] - held

    report.progress(f"counting what {emits:,} emits allocate")
    gc.collect()
    left = extra(blocks, emits)
    tracemalloc.start()
    held = extra(peak, min(emits, 1000))
    tracemalloc.stop()
    return [
        Check(f"objects left by {emits:,} emits to 4 handlers", left, "blocks", 0),
        Check("most memory that any of them held", held, "bytes", 0),
    ]


def memory_checks(n: int) -> list[Check]:
    """Tell what a topic takes from what its handler takes, by giving each a second."""
    bus, subscribed, emitted = crowd(n)
    start = resident_bytes()
    for key in keys_of(n):
        bus.subscribe(key, peers.handler)
    second = (resident_bytes() - start) / n
    return [
        Check(f"a topic with 1 handler, one of {n:,}", subscribed, "bytes", None),
        Check("the same once emitted to by one thread", emitted, "bytes", None),
        Check("a second handler for each of them", second, "bytes", None),
        Check("hence a topic beyond its handler", subscribed - second, "bytes", 300),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    thread = threading.Thread(target=gc.collect)  # see peers.functions
    thread.start()
    thread.join()
    suites = [
        handler_suite(1, 0.65, {"eventkit": 5, "pyee": 15, "blinker": 45}),
        handler_suite(4, 0.75, {}),
        handler_suite(16, None, {}),
        kind_suite(),
        timing_suite(1),
        timing_suite(4),
        topic_suite(options.most),
    ]
    emits = min(ALLOCATION_EMITS, options.most)
    checks = [partial(allocation_checks, emits), partial(memory_checks, options.most)]
    return report.run(options, suites, checks)


if __name__ == "__main__":
    sys.exit(main())
