"""From a dict under a lock to ftbus, one optimization after another: events per second
on 1 to 8 threads, allocations per event, and how often threads wait for each other.

    python benchmarks/seed.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from json import JSONEncoder
from threading import Lock
from types import FunctionType
from typing import Any, NamedTuple

import allocations
import peers
import report
import waits
from harness import Bind, Case, Check, Comparison, Crew, Suite

import ftbus
from ftbus.codecs import StructCodec

type Emit = Callable[[dict[str, Any]], object]

DOMAIN, CATEGORY, NAME = "game", "player", "moved"
KEY = sys.intern(f"{DOMAIN}:{CATEGORY}:{NAME}")
THREADS = (1, 2, 4, 8)
HANDLERS = (4, 16)
EVENTS_COUNTED = 2000
WORK_STEPS = 25_000  # about a millisecond
COUNTING = "--count-waits"


class Moved(NamedTuple):
    """The event as one of a fixed layout."""

    player: int
    x: float
    y: float
    tick: int


def new_event() -> dict[str, Any]:
    return {"player": 7, "x": 101.5, "y": -3.25, "tick": 123_456}


# What json.dumps does with these options, without making an encoder for each event: the
# codec of ftbus does the same, so that the ladder does not measure that.
encode = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


# The seed


class ReadersWriterLock:
    """Readers share it, writers have it alone (Courtois, Heymans and Parnas, 1971)."""

    def __init__(self) -> None:
        self._readers = 0
        self._count = Lock()
        self._access = Lock()

    def acquire_read(self) -> None:
        with self._count:
            self._readers += 1
            if self._readers == 1:
                self._access.acquire()

    def release_read(self) -> None:
        with self._count:
            self._readers -= 1
            if self._readers == 0:
                self._access.release()

    def acquire_write(self) -> None:
        self._access.acquire()

    def release_write(self) -> None:
        self._access.release()


class SeedBus:
    """An event bus as it is usually written first: correct, and shared by threads."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Callable[[Any], object]]] = {}
        self._lock = ReadersWriterLock()

    def on(self, key: str, handler: Callable[[Any], object]) -> None:
        self._lock.acquire_write()
        try:
            self._handlers.setdefault(key, []).append(handler)
        finally:
            self._lock.release_write()

    def emit(self, domain: str, category: str, name: str, event: Any) -> int:
        key = f"{domain}:{category}:{name}"
        self._lock.acquire_read()
        try:
            found = list(self._handlers.get(key, ()))
        finally:
            self._lock.release_read()
        for handle in found:
            handle(encode(event).encode())
        return len(found)


# The ladder. Each step is the one before with one thing changed. What a step makes is
# called in each thread, and returns that thread's emit.


def seed(handlers: Sequence[Any]) -> Callable[[], Emit]:
    bus = SeedBus()
    for handle in handlers:
        bus.on(KEY, handle)

    def emit(event: dict[str, Any]) -> int:
        return bus.emit(DOMAIN, CATEGORY, NAME, event)

    return lambda: emit


def striped_map(handlers: Sequence[Any]) -> Callable[[], Emit]:
    """No lock around the look-up; the list is copied as before, for others append."""
    table = ftbus.StripedMap({KEY: list(handlers)}).pin()
    domain, category, name = DOMAIN, CATEGORY, NAME

    def make() -> Emit:
        get = table.get

        def emit(event: dict[str, Any]) -> int:
            key = f"{domain}:{category}:{name}"
            found = list(get(key, ()))
            for handle in found:
                handle(encode(event).encode())
            return len(found)

        return emit

    return make


def interned_keys(handlers: Sequence[Any]) -> Callable[[], Emit]:
    """The key is made, and its hash computed, once."""
    table = ftbus.StripedMap({KEY: list(handlers)}).pin()

    def make() -> Emit:
        get = table.get

        def emit(event: dict[str, Any]) -> int:
            found = list(get(KEY, ()))
            for handle in found:
                handle(encode(event).encode())
            return len(found)

        return emit

    return make


def immutable_tuples(handlers: Sequence[Any]) -> Callable[[], Emit]:
    """Nobody appends to a tuple, so nobody has to copy it."""
    table = ftbus.StripedMap({KEY: tuple(handlers)}).pin()

    def make() -> Emit:
        get = table.get

        def emit(event: dict[str, Any]) -> int:
            found = get(KEY, ())
            for handle in found:
                handle(encode(event).encode())
            return len(found)

        return emit

    return make


def encode_once(handlers: Sequence[Any]) -> Callable[[], Emit]:
    """All handlers share the bytes."""
    table = ftbus.StripedMap({KEY: tuple(handlers)}).pin()

    def make() -> Emit:
        get = table.get

        def emit(event: dict[str, Any]) -> int:
            found = get(KEY, ())
            data = encode(event).encode()
            for handle in found:
                handle(data)
            return len(found)

        return emit

    return make


def pooled_buffers(handlers: Sequence[Any]) -> Callable[[], Emit]:
    """The bytes lie in memory that native code and other threads can share."""
    table = ftbus.StripedMap({KEY: tuple(handlers)}).pin()

    def make() -> Emit:
        get, from_bytes = table.get, ftbus.default_pool.from_bytes

        def emit(event: dict[str, Any]) -> int:
            found = get(KEY, ())
            data = from_bytes(encode(event).encode())
            for handle in found:
                handle(data)
            return len(found)

        return emit

    return make


def all_of_it(handlers: Sequence[Any], codec: Any = "json") -> Callable[[], Emit]:
    bus = ftbus.EventBus(codec=codec).pin()
    topic = bus.topic(KEY)
    for handle in handlers:
        topic.subscribe(handle, encoded=True)
    return lambda: topic.emit


def fixed_layout(handlers: Sequence[Any]) -> Callable[[], Emit]:
    """The same with events of a fixed layout, packed straight into the buffer."""
    return all_of_it(handlers, StructCodec("moved", "<IddQ", Moved))


def fixed_event() -> Moved:
    return Moved(**new_event())


SEED = "seed: dict, readers-writer lock"
FTBUS = "= ftbus, all of it"
FIXED = "ftbus with StructCodec"
LADDER: dict[str, Callable[[Sequence[Any]], Callable[[], Emit]]] = {
    SEED: seed,
    "+ striped map": striped_map,
    "+ interned keys": interned_keys,
    "+ immutable tuples": immutable_tuples,
    "+ encode once": encode_once,
    "+ pooled buffers": pooled_buffers,
    FTBUS: all_of_it,
    FIXED: fixed_layout,
}
EVENTS: dict[str, Callable[[], Any]] = {FIXED: fixed_event}


def run_emit(emit: Emit, event: Any, n: int) -> None:
    for _ in repeat(None, n):
        emit(event)


def step(name: str, n_handlers: int) -> Bind:
    make = LADDER[name](peers.functions(n_handlers))
    event = EVENTS.get(name, new_event)
    return lambda thread: partial(run_emit, make(), event())


def ladder_suite(n_handlers: int) -> Suite:
    """Every step on 1 to 8 threads, in units of the seed on as many."""
    cases = [
        Case(name, partial(step, name, n_handlers), threads=THREADS) for name in LADDER
    ]
    comparisons = [
        Comparison(name, SEED, "speed", 5 if (name, n) == (FTBUS, 2) else None, n, n)
        for name in LADDER
        if name != SEED
        for n in THREADS
    ]
    comparisons += [Comparison(name, name, "speed", None, 2) for name in (SEED, FTBUS)]
    note = (
        f"{n_handlers} handlers that want the event as bytes and do nothing with it.\n"
        "Each step keeps what the ones before it changed. ftbus counts events, calls\n"
        "the other handlers if one fails and takes new ones meanwhile; a step does not."
    )
    return Suite(f"seed to ftbus, {n_handlers} handlers", cases, comparisons, note)


# Parallel dispatch: it pays when handlers have something to do.


def compute(data: Any) -> int:
    total = 0
    for i in range(WORK_STEPS):
        total += i
    return total


def computing(n: int) -> list[Callable[[Any], int]]:
    return [FunctionType(compute.__code__, globals()) for _ in range(n)]


def one_after_another(name: str) -> Bind:
    emit = LADDER[name](computing(4))()
    return lambda thread: partial(run_emit, emit, new_event())


def by_executor() -> Bind:
    """What one would write: the pooled bytes, and a future for each handler."""
    executor, handlers = ThreadPoolExecutor(2), computing(4)

    def burst(n: int) -> None:
        event = new_event()
        for _ in repeat(None, n):
            data = ftbus.default_pool.from_bytes(encode(event).encode())
            for future in [executor.submit(handle, data) for handle in handlers]:
                future.result()

    return lambda thread: burst


def by_ftbus() -> Bind:
    bus = ftbus.EventBus(workers=2).pin()
    for handle in computing(4):
        bus.subscribe(KEY, handle, encoded=True)

    def burst(n: int) -> None:
        event = new_event()
        for _ in repeat(None, n):
            bus.call(KEY, event).result()

    return lambda thread: burst


PARALLEL = "+ parallel dispatch: bus.call, 2 workers"


def parallel_suite() -> Suite:
    cases = [
        Case(SEED, partial(one_after_another, SEED), threads=(1,)),
        Case(
            "+ pooled buffers",
            partial(one_after_another, "+ pooled buffers"),
            threads=(1,),
        ),
        Case("ThreadPoolExecutor, 2 workers", by_executor, threads=(1,)),
        Case(PARALLEL, by_ftbus, threads=(1,)),
    ]
    comparisons = [
        Comparison(case.name, SEED, "speed", 1.8 if case.name == PARALLEL else None)
        for case in cases[1:]
    ]
    note = "4 handlers that compute for about a millisecond each; one thread emits."
    return Suite("seed to ftbus, handlers that compute", cases, comparisons, note)


# Numbers that take no rounds


def allocation_checks(events: int) -> list[Check]:
    """Count allocations per event on one thread; see allocations.py."""
    checks = []
    for n_handlers in HANDLERS:
        found = {}
        for name in LADDER:
            report.progress(f"counting allocations: {name}, {n_handlers} handlers")
            found[name] = allocations.count(step(name, n_handlers)(0), events)
            what = f"allocations per event, {n_handlers} handlers: {name}"
            checks.append(Check(what, found[name], "", None))
        for name in (FTBUS, FIXED):
            what = f"allocations, {n_handlers} handlers: {name}, in units of the seed's"
            checks.append(Check(what, found[name] / found[SEED], "times", 0.1))
    return checks


def wait_checks(events: int) -> list[Check]:
    """Count how often emitting threads find a lock taken, and sleep; see waits.py."""
    if sys.platform != "linux":
        return []
    report.progress("counting waits")
    lines = waits.run_counted([__file__, COUNTING, str(events)]).splitlines()
    checks = []
    for name, threads, found_taken, slept in map(json.loads, lines):
        tail = f"per 1,000 events, {threads} threads, 4 handlers: {name}"
        target = 0.1 if name in (FTBUS, FIXED) else None
        checks.append(Check(f"locks found taken {tail}", found_taken, "", target))
        checks.append(Check(f"sleeps {tail}", slept, "", target))
    return checks


def count_waits(events: int) -> None:
    """Print a line of JSON for each step on each number of threads but one."""
    crew = Crew(max(THREADS))
    try:
        for threads in THREADS[1:]:
            for name in LADDER:
                bind = step(name, 4)
                bursts = crew.each([partial(bind, i) for i in range(threads)])
                crew.each([partial(burst, 100) for burst in bursts])
                found = waits.count(crew, bursts, max(1, events // threads))
                print(json.dumps([name, threads, *(1000 * each for each in found)]))
    finally:
        crew.close()


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == [COUNTING]:  # by wait_checks, in a process of its own
        count_waits(int(arguments[1]))
        return 0
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    suites = [*(ladder_suite(n) for n in HANDLERS), parallel_suite()]
    checks: list[Callable[[], list[Check]]] = [
        partial(allocation_checks, min(EVENTS_COUNTED, options.most)),
        partial(wait_checks, min(40_000, options.most)),
    ]
    return report.run(options, suites, checks)


if __name__ == "__main__":
    sys.exit(main())
