"""What pooled buffers cost: against bytearray and bytes, handed from thread to thread,
and one event encoded once for 16 handlers against each doing it for itself.

    python benchmarks/buffers.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import gc
import json
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import report
from harness import Bind, Burst, Case, Check, Comparison, Suite

import ftbus
from ftbus.codecs import StructCodec

EMPTY = "empty loop"
HANDLERS = 16
BATCH = 64  # buffers that change threads together
BATCHES_MAX = 16  # how many of these may be under way

KIB_JSON: dict[str, Any] = {
    "tick": 123_456,
    "players": [
        {"id": i, "x": i * 1.5, "y": -2.25 * i, "name": f"player-{i}"}
        for i in range(21)
    ],
}
KIB = len(json.dumps(KIB_JSON, separators=(",", ":")))


# Allocating. Each thread binds its own method: a shared one is counted by both.


def pooled() -> Callable[[int], Any]:
    return ftbus.default_pool.allocate


def through_cffi() -> Callable[[int], Any]:
    """Drive the same arena by its C functions, as other native code's cffi would."""
    from ftbus import buffers, cabi

    arena = cabi.ffi.cast("ftb_arena_t *", buffers.arena_address(ftbus.default_pool))
    new, release = cabi.lib.ftb_block_new, cabi.lib.ftb_block_release
    zero = cabi.lib.ftb_block_zero

    def allocate(size: int) -> None:
        block = new(arena, size)
        zero(block, size)
        release(block)

    return allocate


# Where memory may come from: the module that must be there, and what makes a function
# from a size to something that gives its memory back when it goes.
ALLOCATORS: dict[str, tuple[str, Callable[[], Callable[[int], Any]]]] = {
    "pool.allocate": ("", pooled),
    "bytearray": ("", lambda: bytearray),
    "bytes": ("", lambda: bytes),
    "cffi, call by call": ("ftbus.cabi", through_cffi),
}


def run_empty(n: int) -> None:
    for _ in repeat(None, n):
        pass


def run_allocate(allocate: Callable[[int], Any], size: int, n: int) -> None:
    for _ in repeat(None, n):
        allocate(size)


def allocate_setup(name: str, size: int) -> Bind:
    make = ALLOCATORS[name][1]
    return lambda thread: partial(run_allocate, make(), size)


def from_bytes_setup(copy: Callable[[], Callable[[Any], Any]], size: int) -> Bind:
    """Copies of a bytearray of each thread's own."""

    def bind(thread: int) -> Burst:
        make, data = copy(), bytearray(size)

        def burst(n: int) -> None:
            for _ in repeat(None, n):
                make(data)

        return burst

    return bind


def allocate_suite() -> Suite:
    cases = [Case(EMPTY, lambda: lambda thread: run_empty, EMPTY)]
    comparisons = []
    for size, label, target in ((64, "64 B", None), (1024, "1 KiB", 0.5)):
        for name, (module, _) in ALLOCATORS.items():
            setup = partial(allocate_setup, name, size)
            cases.append(Case(f"{name}: {label}", setup, EMPTY, module=module))
        ours = f"pool.allocate: {label}"
        comparisons += [
            Comparison(ours, f"bytearray: {label}", "time", target),
            Comparison(ours, f"bytes: {label}", "time"),
            Comparison(ours, ours, "speed", 1.85, threads=2),
            Comparison(*[f"bytearray: {label}"] * 2, "speed", threads=2),
        ]
    copies = {"pool.from_bytes": lambda: ftbus.default_pool.from_bytes}
    for name, copy in {**copies, "bytes of": lambda: bytes}.items():
        setup = partial(from_bytes_setup, copy, 1024)
        cases.append(Case(f"{name}: 1 KiB", setup, EMPTY))
    ours = "pool.from_bytes: 1 KiB"
    comparisons += [
        Comparison(ours, "bytes of: 1 KiB", "time"),
        Comparison(ours, ours, "speed", 1.85, threads=2),
    ]
    note = (
        "allocate, bytearray and bytes give memory of zeros, from_bytes copies. The\n"
        "buffer goes with the next turn of the loop."
    )
    return Suite("allocate and release", cases, comparisons, note)


# Encoding. A handler looks at the bytes' length, as one that sends them would.


def use(data: Any) -> None:
    len(data)


def dump_and_use(event: Any) -> None:
    use(json.dumps(event))


def emitting(handlers: Sequence[Callable[[Any], Any]], encoded: bool) -> Bind:
    bus = ftbus.EventBus().pin()
    for handler in handlers:
        bus.subscribe("key", handler, encoded=encoded)

    def bind(thread: int) -> Burst:
        emit = bus.topic("key").emit

        def burst(n: int) -> None:
            for _ in repeat(None, n):
                emit(KIB_JSON)

        return burst

    return bind


def functions(body: Callable[[Any], Any]) -> list[Callable[[Any], Any]]:
    """Return handlers that are not one object, nor shared with other cases."""
    return [lambda event: body(event) for _ in range(HANDLERS)]


def decode_and_use(data: Any) -> None:
    use(data.decode())


def load_and_use(data: Any) -> None:
    use(json.loads(bytes(data)))


def encode_suite() -> Suite:
    each = "each handler its json.dumps"
    once = f"encoded=True, {HANDLERS} handlers"
    decoding = "the same, and each buffer.decode()"
    loading = "the same, and each its json.loads"
    kinds = {
        each: (dump_and_use, False),
        once: (use, True),
        decoding: (decode_and_use, True),
        loading: (load_and_use, True),
    }
    cases = [
        Case(name, partial(emitting, functions(body), encoded), threads=(1,))
        for name, (body, encoded) in kinds.items()
    ]
    comparisons = [
        Comparison(once, each, "speed", 10),
        Comparison(decoding, loading, "speed"),
    ]
    note = f"One event of {KIB:,} bytes as JSON, emitted to {HANDLERS} handlers."
    return Suite("one event, many readers", cases, comparisons, note)


# Numbers that take no rounds.


class Sample(NamedTuple):
    """An event of a fixed layout."""

    number: int
    x: float
    y: float


def copied_bytes(codec: Any, event: Any, encoded: bool) -> tuple[float, float]:
    """Return encodes per event and the bytes copied after or besides encoding."""
    events_n = 100
    copies: list[int] = []

    def keep_bytes(data: Any) -> None:
        copies.append(len(bytes(data)))

    with ftbus.EventBus(codec=codec) as bus:
        for _ in range(HANDLERS):
            bus.subscribe("key", use if encoded else keep_bytes, encoded=True)
        for _ in range(events_n):
            bus.emit("key", event)
        encodes = bus.stats().encoded / events_n
    if encoded and not hasattr(codec, "encode_into"):
        copies += [len(codec.encode(event))] * int(encodes * events_n)  # into the pool
    return encodes, sum(copies) / events_n


def encode_checks() -> list[Check]:
    codec = ftbus.codecs.get("json")
    layout = StructCodec("sample", "<Idd", Sample)
    encodes, copied = copied_bytes(codec, KIB_JSON, True)
    _, each = copied_bytes(codec, KIB_JSON, False)
    _, in_place = copied_bytes(layout, Sample(1, 2.0, 3.0), True)
    name = f"{HANDLERS} handlers"
    return [
        Check(f"encodes per event, {name} with encoded=True", encodes, "", 1),
        Check(f"bytes copied per event, {name}", copied, "bytes", KIB),
        Check("the same if each makes bytes of it", each, "bytes", None),
        Check("the same with encode_into (StructCodec)", in_place, "bytes", 0),
    ]


def steady_checks(n: int) -> list[Check]:
    """Count allocations that a warm pool has to ask the system for."""
    pool = ftbus.BufferPool()
    kept = [pool.allocate(1024) for _ in range(BATCH)]
    del kept
    before = pool.stats()
    run_allocate(pool.allocate, 1024, n)
    after = pool.stats()
    misses = after.misses - before.misses
    assert after.allocs - before.allocs == n
    return [Check(f"misses in {n:,} steady allocations", misses, "", 0)]


def hand_over(pool: ftbus.BufferPool, n: int) -> None:
    """Allocate n buffers here, and release them in another thread."""
    batches: queue.SimpleQueue[list[ftbus.Buffer] | None] = queue.SimpleQueue()
    credits = threading.Semaphore(BATCHES_MAX)

    def consume() -> None:
        while (batch := batches.get()) is not None:
            batch.clear()
            credits.release()

    consumer = threading.Thread(target=consume)
    consumer.start()
    allocate = pool.allocate
    for _ in repeat(None, n // BATCH):
        credits.acquire()
        batches.put([allocate(1024) for _ in repeat(None, BATCH)])
    batches.put(None)
    consumer.join()


def hand_over_checks(n: int) -> list[Check]:
    """Tell whether memory grows when one thread allocates and another releases."""
    pool = ftbus.BufferPool()
    report.progress(f"handing {n:,} buffers over")
    hand_over(pool, BATCH * BATCHES_MAX * 4)
    gc.collect()
    warm = pool.stats()
    hand_over(pool, n)
    done = pool.stats()
    bound = (BATCHES_MAX + 4) * BATCH * (1024 + 64)  # under way, and in two caches
    what = f"of {n:,} buffers handed from thread to thread"
    return [
        Check(f"still live {what}", done.live, "", 0),
        Check("memory held at most meanwhile", done.peak_bytes, "bytes", bound),
        Check(
            "of it, beyond what the warm-up took",
            max(0, done.peak_bytes - warm.peak_bytes),
            "bytes",
            None,
        ),
        Check("misses", done.misses - warm.misses, "", (BATCHES_MAX + 4) * BATCH),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    n = min(10 * options.most, 200_000 if options.quick else 10_000_000)
    suites = [allocate_suite(), encode_suite()]
    checks = [encode_checks, partial(steady_checks, n), partial(hand_over_checks, n)]
    return report.run(options, suites, checks)


if __name__ == "__main__":
    sys.exit(main())
