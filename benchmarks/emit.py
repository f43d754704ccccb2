"""What one emit costs: against a hand-written loop and other libraries, on 1 and 2
threads, with 1 to 16 handlers and 1 to 1,000,000 topics.

    python benchmarks/emit.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle, repeat
from types import FunctionType
from typing import Any

import report
from harness import Bind, Burst, Case, Check, Comparison, Suite

import ftbus

BOUND = "topic.emit, bound in each thread"
PINNED_TOPIC = "topic.emit, shared and pinned"
PINNED_BUS = "bus.emit, shared and pinned"
SHARED_TOPIC = "topic.emit, shared"
HAND = "hand loop"
CHUNK = 1000
ALLOCATION_EMITS = 1_000_000


# Handlers. Functions of a module are immortal on 3.13t once a thread was started.


def handler(event: object) -> None:
    pass


def functions(n: int) -> list[Callable[[object], None]]:
    """Return n functions that are as if each was written out in this module."""
    return [FunctionType(handler.__code__, globals()) for _ in range(n)]


class Listener:
    def handle(self, event: object) -> None:
        pass


def closure() -> Callable[[object], None]:
    def inner(event: object) -> None:
        pass

    return inner


# The loops. What they use is in their arguments, hence in local variables.


def run_empty(n: int) -> None:
    for _ in range(n):
        pass


def run_hand(handlers_by_key: dict[str, Any], event: object, n: int) -> None:
    for _ in range(n):
        for handle in handlers_by_key["key"]:
            handle(event)


def run_bound(emit: Callable[[object], object], event: object, n: int) -> None:
    for _ in range(n):
        emit(event)


def run_keyed(emit: Callable[[str, object], object], event: object, n: int) -> None:
    for _ in range(n):
        emit("key", event)


def run_topic(topic: ftbus.Topic, event: object, n: int) -> None:
    for _ in range(n):
        topic.emit(event)


def run_bus(bus: ftbus.EventBus, event: object, n: int) -> None:
    for _ in range(n):
        bus.emit("key", event)


def run_pluggy(emit: Callable[..., object], event: object, n: int) -> None:
    for _ in range(n):
        emit(event=event)


# One topic: ftbus and its peers. Each thread has an event of its own.


def hand(handlers: Sequence[Any], new_event: Callable[[], object] = object) -> Bind:
    handlers_by_key = {"key": tuple(handlers)}
    return lambda thread: partial(run_hand, handlers_by_key, new_event())


def bus_with(handlers: Sequence[Any]) -> ftbus.EventBus:
    bus = ftbus.EventBus()
    for handle in handlers:
        bus.subscribe("key", handle)
    return bus


def bound(handlers: Sequence[Any], new_event: Callable[[], object] = object) -> Bind:
    topic = bus_with(handlers).topic("key")
    return lambda thread: partial(run_bound, topic.emit, new_event())


def shared_topic(handlers: Sequence[Any]) -> Bind:
    topic = bus_with(handlers).topic("key")
    return lambda thread: partial(run_topic, topic, object())


def pinned_topic(handlers: Sequence[Any]) -> Bind:
    topic = bus_with(handlers).pin().topic("key")
    return lambda thread: partial(run_topic, topic, object())


def pinned_bus(handlers: Sequence[Any]) -> Bind:
    bus = bus_with(handlers).pin()
    return lambda thread: partial(run_bus, bus, object())


def locked(handlers: Sequence[Any]) -> Bind:
    """What is usually written: copy the list under a lock, then loop."""
    lock = threading.RLock()
    handlers_by_key = {"key": list(handlers)}

    def emit(key: str, event: object) -> None:
        with lock:
            found = list(handlers_by_key[key])
        for handle in found:
            handle(event)

    return lambda thread: partial(run_keyed, emit, object())


def eventkit(handlers: Sequence[Any]) -> Bind:
    from eventkit import Event

    event = Event()
    for handle in handlers:
        event += handle
    return lambda thread: partial(run_bound, event.emit, object())


def pyee(handlers: Sequence[Any]) -> Bind:
    from pyee import EventEmitter

    emitter = EventEmitter()
    for handle in handlers:
        emitter.on("key", handle)
    return lambda thread: partial(run_keyed, emitter.emit, object())


def blinker(handlers: Sequence[Any]) -> Bind:
    from blinker import Signal

    signal = Signal()
    for handle in handlers:
        signal.connect(handle)
    keep = tuple(handlers)  # blinker itself holds them weakly
    return lambda thread: partial(run_bound, signal.send, keep and object())


def psygnal(handlers: Sequence[Any]) -> Bind:
    from psygnal import Signal

    class Emitter:
        changed = Signal(object)

    emitter = Emitter()
    for handle in handlers:
        emitter.changed.connect(handle)
    return lambda thread: partial(run_bound, emitter.changed.emit, object())


def pluggy(handlers: Sequence[Any]) -> Bind:
    import pluggy as library

    class Spec:
        @library.HookspecMarker("benchmark")
        def handle(self, event: object) -> None:
            pass

    manager = library.PluginManager("benchmark")
    manager.add_hookspecs(Spec)
    for handle in handlers:
        plugin = type("Plugin", (), {})()
        plugin.handle = library.HookimplMarker("benchmark")(handle)
        manager.register(plugin)
    return lambda thread: partial(run_pluggy, manager.hook.handle, object())


PEERS = {
    "dict + RLock": ("", locked),
    "eventkit": ("eventkit", eventkit),
    "pyee": ("pyee", pyee),
    "blinker": ("blinker", blinker),
    "psygnal": ("psygnal", psygnal),
    "pluggy": ("pluggy", pluggy),
}
EMPTY = Case("empty loop", lambda: lambda thread: run_empty)
SMALL_INT: Callable[[], object] = lambda: 7  # noqa: E731


def scale(name: str, target: float | None = None) -> Comparison:
    """Compare a case on two threads to itself on one."""
    return Comparison(name, name, "speed", target, threads=2)


def handler_suite(n: int, time: float | None, speeds: dict[str, float]) -> Suite:
    """Everything that emits to one topic, with n plain handlers."""
    handlers = functions(n)
    ours = {
        BOUND: bound,
        PINNED_TOPIC: pinned_topic,
        PINNED_BUS: pinned_bus,
        SHARED_TOPIC: shared_topic,
    }
    cases = [EMPTY, Case(HAND, partial(hand, handlers))]
    cases += [Case(name, partial(setup, handlers)) for name, setup in ours.items()]
    cases += [
        Case(f"{HAND}, small int", partial(hand, handlers, SMALL_INT)),
        Case(f"{BOUND}, small int", partial(bound, handlers, SMALL_INT)),
    ]
    cases += [
        Case(name, partial(setup, handlers), module=module)
        for name, (module, setup) in PEERS.items()
    ]
    comparisons = [
        Comparison(BOUND, HAND, "time", time),
        *(Comparison(BOUND, peer, "speed", speeds.get(peer)) for peer in PEERS),
        Comparison(PINNED_TOPIC, HAND, "time"),
        Comparison(PINNED_BUS, HAND, "time"),
        Comparison(SHARED_TOPIC, HAND, "time"),
        Comparison(f"{BOUND}, small int", f"{HAND}, small int", "time", time),
    ]
    is_fast = {BOUND, f"{BOUND}, small int", PINNED_TOPIC, PINNED_BUS}
    comparisons += [scale(c.name, 1.85 if c.name in is_fast else None) for c in cases]
    word = "handler" if n == 1 else "handlers"
    return Suite(f"{n} {word}", cases, comparisons, EMPTY.name)


def kind_suite() -> Suite:
    """What a handler is decides how it scales."""
    kinds: dict[str, Any] = {
        "function": functions(1)[0],
        "bound method": Listener().handle,
        "closure": closure(),
    }
    setups = {HAND: hand, BOUND: bound}
    cases = [EMPTY]
    cases += [
        Case(f"{how}: {kind}", partial(setup, [handle]))
        for kind, handle in kinds.items()
        for how, setup in setups.items()
    ]
    comparisons = [
        Comparison(f"{BOUND}: {kind}", f"{HAND}: {kind}", "time") for kind in kinds
    ]
    comparisons += [scale(case.name) for case in cases]
    note = (
        "A function of a module is immortal on 3.13t: calling it counts nothing. The\n"
        "interpreter counts a reference to what it calls, and to self, for as long as\n"
        "the call lasts; of a closure, and of the object of a bound method, that count\n"
        "is one memory location that all threads write in turn. No bus can change it."
    )
    return Suite("kinds of handlers", cases, comparisons, EMPTY.name, note)


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
    if order == "any order":
        keys = random.Random(n).sample(keys, n)
    if order == "1,000 of them":
        keys = random.Random(n).sample(keys, min(n, CHUNK))
    keys = keys * -(-CHUNK // len(keys))
    ends = range(0, len(keys) - CHUNK + 1, CHUNK)
    return cycle([keys[start : start + CHUNK] for start in ends])


@cache
def crowd(n: int) -> tuple[ftbus.EventBus, float, float]:
    """Return a bus with n topics, and the bytes each takes, before and after an emit.

    Not counted are the key strings and the one function that handles all of it.
    """
    keys, bus = keys_of(n), ftbus.EventBus()
    gc.collect()
    start = resident_bytes()
    for i, key in enumerate(keys):
        bus.subscribe(key, handler)
        if i % 50_000 == 0:
            report.progress(f"making topics: {i:,} of {n:,}")
    subscribed = resident_bytes()
    for key in keys:
        bus.emit(key, None)
    emitted = resident_bytes()
    return bus, (subscribed - start) / n, (emitted - start) / n


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def topic_suite(most: int) -> Suite:
    """Emit by key, with few topics and many, in several orders."""
    counts = sorted({1, min(1000, most), most})
    runs = {f"{n:,}": (n, "any order") for n in counts}
    runs[f"{most:,} in order of making"] = (most, "in order")
    runs[f"{most:,}, to 1,000 of them"] = (most, "1,000 of them")

    def ours(n: int, order: str) -> Bind:
        bus = crowd(n)[0]
        return lambda thread: partial(
            run_bus_chunks, bus.emit, chunks_of(n, order), object()
        )

    @cache
    def table(n: int) -> dict[str, Any]:
        return {key: (handler,) for key in keys_of(n)}

    def theirs(n: int, order: str) -> Bind:
        return lambda thread: partial(
            run_hand_chunks, table(n), chunks_of(n, order), object()
        )

    def empty() -> Bind:
        return lambda thread: partial(run_empty_chunks, chunks_of(most, "any order"))

    one = {"threads": (1,), "ops": CHUNK}
    cases = [Case("empty loop over keys", empty, **one)]
    comparisons = []
    for label, (n, order) in runs.items():
        name, peer = f"bus.emit, topics: {label}", f"{HAND}, topics: {label}"
        cases.append(Case(name, partial(ours, n, order), **one))
        cases.append(Case(peer, partial(theirs, n, order), **one))
        comparisons.append(Comparison(name, peer, "time"))
        if n == most > 1000:
            base = "bus.emit, topics: 1,000"
            comparisons.append(Comparison(name, base, "time", 2.0))
            base = f"{HAND}, topics: 1,000"
            comparisons.append(Comparison(peer, base, "time"))
    note = (
        "With a million topics in any order each emit waits for memory: for the key, the\n"
        "table, the topic and its handlers. The hand loop shows what a dict waits."
    )
    return Suite("topics", cases, comparisons, cases[0].name, note)


# Memory


def allocation_checks(emits: int) -> list[Check]:
    """Count what emits leave behind, and the most they held at any moment."""
    emit = bus_with(functions(4)).topic("key").emit
    event = object()

    def burst(n: int) -> None:
        for _ in repeat(None, n):  # unlike range it makes no numbers
            emit(event)

    burst(1000)
    gc.collect()
    before = sys.getallocatedblocks()
    burst(emits)
    left = sys.getallocatedblocks() - before
    tracemalloc.start()
    burst(1000)
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    burst(1000)
    peak = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    return [
        Check(f"objects left by {emits:,} emits", left, "blocks", 0),
        Check("most memory held during 1,000 emits", peak, "bytes", None),
    ]


def memory_checks(n: int) -> list[Check]:
    _, subscribed, emitted = crowd(n)
    return [
        Check(f"a topic, of {n:,}", subscribed, "bytes", 300),
        Check(f"a topic, of {n:,}, emitted to", emitted, "bytes", None),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    thread = threading.Thread(target=gc.collect)  # see functions()
    thread.start()
    thread.join()
    suites = [
        handler_suite(1, 0.65, {"eventkit": 5, "pyee": 15, "blinker": 45}),
        handler_suite(4, 0.75, {}),
        handler_suite(16, None, {}),
        kind_suite(),
        topic_suite(options.most),
    ]
    emits = min(ALLOCATION_EMITS, options.most)
    checks = [partial(allocation_checks, emits), partial(memory_checks, options.most)]
    return report.run(options, suites, checks)


if __name__ == "__main__":
    sys.exit(main())
