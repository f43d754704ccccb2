"""How the cost of an event grows with handlers, topics, partitions and bytes.

python benchmarks/costs.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import cycle, repeat
from typing import Any

import peers
import report
from harness import Bind, Case, Comparison, Suite

import ftbus

HANDLERS = (1, 2, 4, 8, 16, 32, 64)
TOPICS = (1, 10, 100, 1_000, 10_000, 100_000)
PARTITIONS = (1, 10, 100, 1_000)
PAYLOADS = (16, 256, 4_096, 65_536)
EVENTS = 2000  # in what a burst of posts does once
CHUNK = 1000
HAND, OURS = "hand loop", "topic.emit"


def handler_suite() -> Suite:
    cases, comparisons = [], []
    for n in HANDLERS:
        handlers = peers.functions(n)
        ours, theirs = f"{OURS}: {n}", f"{HAND}: {n}"
        cases.append(Case(ours, partial(peers.bound, handlers), threads=(1,)))
        cases.append(Case(theirs, partial(peers.hand, handlers), threads=(1,)))
        comparisons.append(Comparison(ours, theirs, "time"))
    return Suite("cost by number of handlers", cases, comparisons)


# Topics. The keys are interned and come in the order in which they were subscribed.


@cache
def keys_of(n: int) -> list[str]:
    return [sys.intern(f"entity.{i}.moved") for i in range(n)]


def chunks_of(n: int) -> Any:
    keys = keys_of(n) * -(-CHUNK // n)
    ends = range(0, len(keys) - CHUNK + 1, CHUNK)
    return cycle([keys[start : start + CHUNK] for start in ends])


def emitting(n: int) -> Bind:
    bus, event = ftbus.EventBus().pin(), object()
    for key in keys_of(n):
        bus.subscribe(key, peers.handler)

    def burst(emit: Callable[..., object], chunks: Any, times: int) -> None:
        for _ in repeat(None, times):
            for key in next(chunks):
                emit(key, event)

    return lambda thread: partial(burst, bus.emit, chunks_of(n))


def topic_suite(most: int) -> Suite:
    sizes = [n for n in TOPICS if n <= most]
    cases = [
        Case(f"bus.emit: {n:,}", partial(emitting, n), threads=(1,), ops=CHUNK)
        for n in sizes
    ]
    first = cases[0].name
    comparisons = [Comparison(case.name, first, "time") for case in cases[1:]]
    return Suite("cost by number of topics", cases, comparisons)


# Partitions: one producer, one worker, until all is handled.


def posting(n: int) -> Bind:
    bus = ftbus.EventBus(workers=1).pin()
    topic = bus.topic("key")
    topic.subscribe(peers.handler)
    partitions = [f"player-{i % n}" for i in range(EVENTS)]
    events = [object() for _ in range(EVENTS)]

    def burst(post: Callable[..., object], times: int) -> None:
        for _ in repeat(None, times):
            for event, partition in zip(events, partitions, strict=True):
                post(event, partition=partition)
        bus.drain()

    return lambda thread: partial(burst, topic.post)


def partition_suite(most: int) -> Suite:
    cases = [
        Case(f"topic.post: {n:,}", partial(posting, n), threads=(1,), ops=EVENTS)
        for n in PARTITIONS
        if n <= most
    ]
    comparisons = [Comparison(case.name, cases[0].name, "time") for case in cases[1:]]
    return Suite("cost by number of partitions", cases, comparisons)


# Payload: events that are bytes already, copied once into a pooled buffer, or for each
# of the handlers by hand.


def reading(data: Any) -> None:
    len(data)


def shared_bytes(size: int) -> Bind:
    bus = ftbus.EventBus(codec="raw").pin()
    topic = bus.topic("key")
    for _ in range(4):
        topic.subscribe(lambda data: reading(data), encoded=True)

    def burst(data: bytearray, times: int) -> None:
        emit, from_bytes = topic.emit, ftbus.default_pool.from_bytes
        for _ in repeat(None, times):
            emit(from_bytes(data))

    return lambda thread: partial(burst, bytearray(size))


def copied_bytes(size: int) -> Bind:
    handlers = {"key": tuple((lambda data: reading(data)) for _ in range(4))}

    def burst(data: bytearray, times: int) -> None:
        for _ in repeat(None, times):
            for handle in handlers["key"]:
                handle(bytes(data))

    return lambda thread: partial(burst, bytearray(size))


def payload_suite() -> Suite:
    cases, comparisons = [], []
    for size in PAYLOADS:
        ours, theirs = f"one Buffer for 4: {size:,}", f"bytes for each of 4: {size:,}"
        cases.append(Case(ours, partial(shared_bytes, size), threads=(1,)))
        cases.append(Case(theirs, partial(copied_bytes, size), threads=(1,)))
        comparisons.append(Comparison(ours, theirs, "time"))
    return Suite("cost by payload bytes", cases, comparisons)


def main(argv: Sequence[str] | None = None) -> int:
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    suites = [
        handler_suite(),
        topic_suite(options.most),
        partition_suite(options.most),
        payload_suite(),
    ]
    return report.run(options, suites)


if __name__ == "__main__":
    sys.exit(main())
