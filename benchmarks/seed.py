"""From a dict under a lock to ftbus, one optimization after another: events per second
on 1 to 8 threads, allocations per event, and how often threads wait for each other.

    python benchmarks/seed.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import resource
import sys
import threading
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
from harness import Bind, Burst, Case, Check, Comparison, Crew, Suite

import ftbus
from ftbus.codecs import StructCodec

type Emit = Callable[[dict[str, Any]], object]

DOMAIN, CATEGORY, NAME = "game", "player", "moved"
KEY = sys.intern(f"{DOMAIN}:{CATEGORY}:{NAME}")
THREADS = (1, 2, 4, 8)
HANDLERS = (4, 16)
EVENTS_COUNTED = 2000
WORK_STEPS = 25_000  # about a millisecond


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

    def __init__(self, make_lock: Callable[[], Any] = Lock) -> None:
        self._readers = 0
        self._count = make_lock()
        self._access = make_lock()

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

    def __init__(self, make_lock: Callable[[], Any] = Lock) -> None:
        self._handlers: dict[str, list[Callable[[Any], object]]] = {}
        self._lock = ReadersWriterLock(make_lock)

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


def seed(
    handlers: Sequence[Any], make_lock: Callable[[], Any] = Lock
) -> Callable[[], Emit]:
    bus = SeedBus(make_lock)
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


def sleeps(barrier: threading.Barrier, burst: Burst, n: int) -> int:
    """Run a burst with others; return how often this thread went to sleep meanwhile."""
    barrier.wait()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    burst(n)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


def wait_checks(events: int, threads: int = 2) -> list[Check]:
    """Count how often emitting threads sleep, which they do for locks and nothing else.

    By the system's count of voluntary context switches of each thread. What spins
    before it sleeps, as CPython's locks do, and then gets the lock is not seen.
    """
    checks = []
    crew = Crew(threads)
    try:
        for name in LADDER:
            report.progress(f"counting waits: {name}")
            bind = step(name, 4)
            bursts = crew.each([partial(bind, i) for i in range(threads)])
            crew.each([partial(burst, 100) for burst in bursts])
            barrier = threading.Barrier(threads)

            slept = sum(
                crew.each([partial(sleeps, barrier, burst, events) for burst in bursts])
            )
            what = f"waits per 1,000 events, {threads} threads, 4 handlers: {name}"
            target = 1 if name in (FTBUS, FIXED) else None
            checks.append(Check(what, slept * 1000 / (events * threads), "", target))
    finally:
        crew.close()
    return checks


class WatchedLock:
    """A lock that counts how often it was found taken. Only the holder counts."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.found_taken = 0

    def acquire(self) -> None:
        was_taken = not self._lock.acquire(blocking=False)
        if was_taken:
            self._lock.acquire()
        self.found_taken += was_taken

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


def contention_checks(events: int, threads: int = 2) -> list[Check]:
    """Count how often an emit of the seed finds its lock taken; ftbus has none."""
    locks: list[WatchedLock] = []

    def make_lock() -> WatchedLock:
        locks.append(WatchedLock())
        return locks[-1]

    make = seed(peers.functions(4), make_lock)
    crew = Crew(threads)
    try:
        crew.time_ns([partial(run_emit, make(), new_event())] * threads, events)
    finally:
        crew.close()
    found = sum(lock.found_taken for lock in locks) * 1000 / (events * threads)
    what = f"locks found taken per 1,000 events, {threads} threads, 4 handlers: {SEED}"
    return [Check(what, found, "", None)]


def main(argv: Sequence[str] | None = None) -> int:
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    suites = [*(ladder_suite(n) for n in HANDLERS), parallel_suite()]
    checks: list[Callable[[], list[Check]]] = [
        partial(allocation_checks, min(EVENTS_COUNTED, options.most)),
        partial(wait_checks, min(20_000, options.most)),
        partial(contention_checks, min(20_000, options.most)),
    ]
    return report.run(options, suites, checks)


if __name__ == "__main__":
    sys.exit(main())
