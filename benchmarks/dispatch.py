"""What handing events to threads costs: throughput, latency, fairness and idle CPU.

python benchmarks/dispatch.py [--quick] [--only PATTERN] [--json FILE]
"""

from __future__ import annotations

import asyncio
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from types import FunctionType
from typing import Any

import peers
import report
from harness import Bind, Case, Check, Comparison, Suite

import ftbus

POST = "topic.post"
POST_MANY = "topic.post_many"
PARTITION = "topic.post, 1,000 partitions"
SIMPLE = "queue.SimpleQueue + loop"
EXECUTOR = "ThreadPoolExecutor.submit"
CALL = "bus.call"
SEQUENTIAL = "one after another"
EVENTS = 2000  # in what a burst does once: many to one wake-up, as under load
PARTITIONS = [f"player-{i}" for i in range(1000)]
EVENT_PARTITIONS = PARTITIONS * (EVENTS // len(PARTITIONS))


# Throughput: a burst posts n * EVENTS and returns when they have been handled. Events
# are objects of their own, made before: one that is posted over and over would be a
# place in memory whose reference count both sides write.


def new_events() -> list[object]:
    return [object() for _ in range(EVENTS)]


def posting(
    method: str, use: Callable[[Callable[..., object], list[object]], None]
) -> Callable[[int], Bind]:
    """Return what makes a bus; a burst repeats use(the method of its topic, events)."""

    def make(workers: int) -> Bind:
        bus = ftbus.EventBus(workers=workers).pin()
        topic = bus.topic("key")
        topic.subscribe(peers.handler)

        def burst(post: Callable[..., object], events: list[object], n: int) -> None:
            for _ in repeat(None, n):
                use(post, events)
            bus.drain()

        return lambda thread: partial(burst, getattr(topic, method), new_events())

    return make


def post_each(post: Callable[..., object], events: list[object]) -> None:
    for event in events:
        post(event)


def post_all(post_many: Callable[..., object], events: list[object]) -> None:
    post_many(events)


def post_partitioned(post: Callable[..., object], events: list[object]) -> None:
    for event, partition in zip(events, EVENT_PARTITIONS, strict=True):
        post(event, partition=partition)


def consume(
    get: Callable[[], Any], handle: Callable[[Any], object], done: threading.Semaphore
) -> None:
    """Do no more for an event than the least that ends a loop by hand: compare it."""
    while True:
        while (event := get()) is not None:
            handle(event)
        done.release()


def through_queue(make: Callable[[], Any], workers: int) -> Bind:
    """What is usually written: threads that loop over a queue."""
    channel, done = make(), threading.Semaphore(0)
    for _ in range(workers):
        threading.Thread(
            target=consume, args=(channel.get, peers.handler, done), daemon=True
        ).start()

    def burst(put: Callable[[object], object], events: list[object], n: int) -> None:
        for _ in repeat(None, n):
            for event in events:
                put(event)
        put(None)
        done.acquire()

    return lambda thread: partial(burst, channel.put, new_events())


def culsans(workers: int) -> Bind:
    from culsans import Queue

    return through_queue(lambda: Queue().sync_q, workers)


def through_executor(workers: int) -> Bind:
    executor = ThreadPoolExecutor(workers)

    def burst(events: list[object], n: int) -> None:
        for _ in repeat(None, n):
            for event in events:
                future = executor.submit(peers.handler, event)
        future.result()

    return lambda thread: partial(burst, new_events())


def pyee_executor(workers: int) -> Bind:
    from pyee.executor import ExecutorEventEmitter

    executor = ThreadPoolExecutor(workers)
    emitter = ExecutorEventEmitter(executor=executor)
    emitter.on("key", peers.handler)

    def burst(events: list[object], n: int) -> None:
        for _ in repeat(None, n):
            for event in events:
                emitter.emit("key", event)
        executor.submit(int).result()

    return lambda thread: partial(burst, new_events())


def asyncio_queue() -> Bind:
    """One thread: a producer and a consumer task that share a loop."""
    made = new_events()

    def burst(n: int) -> None:
        async def consumer(events: asyncio.Queue[object]) -> None:
            for _ in repeat(None, n * EVENTS):
                peers.handler(await events.get())

        async def main() -> None:
            events: asyncio.Queue[object] = asyncio.Queue(1024)
            task = asyncio.create_task(consumer(events))
            for _ in repeat(None, n):
                for event in made:
                    await events.put(event)
            await task

        asyncio.run(main())

    return lambda thread: burst


def throughput_suite(size: int, targets: dict[str, float]) -> Suite:
    """`size` producers and as many workers."""
    contenders: dict[str, tuple[str, Callable[[], Bind]]] = {
        POST: ("", partial(posting("post", post_each), size)),
        POST_MANY: ("", partial(posting("post_many", post_all), size)),
        PARTITION: ("", partial(posting("post", post_partitioned), size)),
        SIMPLE: ("", partial(through_queue, queue.SimpleQueue, size)),
        "queue.Queue + loop": ("", partial(through_queue, queue.Queue, size)),
        EXECUTOR: ("", partial(through_executor, size)),
        "culsans + loop": ("culsans", partial(culsans, size)),
        "pyee ExecutorEventEmitter": ("pyee", partial(pyee_executor, size)),
    }
    if size == 1:
        contenders["asyncio.Queue, one thread"] = ("", asyncio_queue)
    cases = [
        Case(name, setup, threads=(size,), ops=EVENTS, module=module)
        for name, (module, setup) in contenders.items()
    ]
    ours = (POST, POST_MANY, PARTITION)
    comparisons = [
        Comparison(POST, peer, "speed", targets.get(peer), size, size)
        for peer in contenders
        if peer not in ours
    ]
    comparisons += [
        Comparison(mine, SIMPLE, "speed", None, size, size) for mine in ours[1:]
    ]
    name = f"{size} producer{'s' * (size > 1)}, {size} worker{'s' * (size > 1)}"
    return Suite(name, cases, comparisons)


# call: handlers of equal work, on both cores


def work(steps: int) -> int:
    total = 0
    for i in range(steps):
        total += i
    return total


def workers_of(n: int) -> list[Callable[[object], int]]:
    return [FunctionType(work.__code__, globals()) for _ in range(n)]


def bus_of(handlers: int, workers: int) -> ftbus.EventBus:
    bus = ftbus.EventBus(workers=workers).pin()
    for handle in workers_of(handlers):
        bus.subscribe("key", handle)
    return bus


def calling(handlers: int, workers: int, steps: int) -> Bind:
    bus = bus_of(handlers, workers)

    def burst(n: int) -> None:
        for _ in repeat(None, n):
            bus.call("key", steps).result()

    return lambda thread: burst


def sharing(handlers: int, workers: int, steps: int) -> Bind:
    bus = bus_of(handlers, workers)

    def burst(n: int) -> None:
        for _ in repeat(None, n):
            bus.post("key", steps)
            bus.drain()

    return lambda thread: burst


def sequentially(handlers: int, steps: int) -> Bind:
    functions = workers_of(handlers)

    def burst(n: int) -> None:
        for _ in repeat(None, n):
            for handle in functions:
                handle(steps)

    return lambda thread: burst


def by_executor(handlers: int, workers: int, steps: int) -> Bind:
    """As fast as two threads go on this machine, less what an executor costs."""
    functions = workers_of(handlers)
    executor = ThreadPoolExecutor(workers)

    def burst(n: int) -> None:
        for _ in repeat(None, n):
            futures = [executor.submit(handle, steps) for handle in functions]
            for future in futures:
                future.result()

    return lambda thread: burst


def call_suite() -> Suite:
    cases, comparisons = [], []
    for label, steps in (("1 ms", 25_000), ("10 ms", 250_000)):
        names = (SEQUENTIAL, CALL, "one event, shared", "ThreadPoolExecutor")
        loop, call, shared, executor = (f"{name}, {label}" for name in names)
        cases += [
            Case(loop, partial(sequentially, 4, steps), threads=(1,)),
            Case(call, partial(calling, 4, 2, steps), threads=(1,)),
            Case(shared, partial(sharing, 4, 2, steps), threads=(1,)),
            Case(executor, partial(by_executor, 4, 2, steps), threads=(1,)),
        ]
        target = 1.9 if label == "10 ms" else None
        comparisons += [
            Comparison(call, loop, "speed", target),
            Comparison(shared, loop, "speed"),
            Comparison(executor, loop, "speed"),
            Comparison(call, executor, "speed"),
        ]
    note = "4 handlers that compute for about so long each, on 2 workers."
    return Suite("call", cases, comparisons, note)


# Latency: from just before the hand-over to the first line on the other side


@contextmanager
def bus_wake() -> Iterator[Callable[[], float]]:
    """Post to a bus whose worker sleeps."""
    with ftbus.EventBus(workers=1) as bus:
        arrived = queue.SimpleQueue[int]()
        bus.on("key", lambda event: arrived.put(time.perf_counter_ns()))

        def once() -> float:
            start = time.perf_counter_ns()
            bus.post("key")
            return arrived.get() - start

        yield once


@contextmanager
def condition_wake() -> Iterator[Callable[[], float]]:
    """Notify a thread that waits on a threading.Condition."""
    condition, arrived = threading.Condition(), queue.SimpleQueue[int]()
    state = {"go": False, "stop": False}

    def waiter() -> None:
        with condition:
            while not state["stop"]:
                condition.wait_for(lambda: state["go"])
                now = time.perf_counter_ns()
                state["go"] = False
                arrived.put(now)

    thread = threading.Thread(target=waiter)
    thread.start()

    def once() -> float:
        start = time.perf_counter_ns()
        with condition:
            state["go"] = True
            condition.notify()
        return arrived.get() - start

    yield once
    state["stop"] = True
    once()
    thread.join()


@contextmanager
def lock_wake() -> Iterator[Callable[[], float]]:
    """Release a lock that a thread waits for: as bare as Python has it."""
    gate, arrived = threading.Lock(), queue.SimpleQueue[int]()
    gate.acquire()
    stop: list[bool] = []

    def waiter() -> None:
        while not stop:
            gate.acquire()
            arrived.put(time.perf_counter_ns())

    thread = threading.Thread(target=waiter)
    thread.start()

    def once() -> float:
        start = time.perf_counter_ns()
        gate.release()
        return arrived.get() - start

    yield once
    stop.append(True)
    once()
    thread.join()


WAKES = {"bus.post": bus_wake, "threading.Condition": condition_wake, "Lock": lock_wake}


def latency_checks(rounds: int) -> list[Check]:
    """Wake a sleeping thread in several ways, in turn; it has time to fall asleep."""
    samples: dict[str, list[float]] = {name: [] for name in WAKES}
    pause = threading.Event()
    with (
        bus_wake() as bus,
        condition_wake() as condition,
        lock_wake() as lock,
    ):
        ways = dict(zip(WAKES, (bus, condition, lock), strict=True))
        for i in range(rounds + 50):
            if i % 500 == 0:
                report.progress(f"waking: {i:,} of {rounds:,}")
            for name, once in ways.items():
                pause.wait(0.0005)
                samples[name].append(once())
    checks, medians = [], {}
    for name, found in samples.items():
        ranked = sorted(found[50:])
        medians[name] = statistics.median(ranked)
        for label, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
            value = ranked[min(len(ranked) - 1, int(share * len(ranked)))]
            checks.append(Check(f"wake by {name}: {label}", value / 1000, "us", None))
    for peer in ("threading.Condition", "Lock"):
        ratio = medians["bus.post"] / medians[peer]
        checks.append(Check(f"p50 by bus.post in units of {peer}", ratio, "times", 2))
    return checks


def loaded_latency_checks(events: int) -> list[Check]:
    """Time from post to handler while one producer keeps one worker half busy."""
    waits: list[int] = []

    def handle(posted_ns: int) -> None:
        waits.append(time.perf_counter_ns() - posted_ns)
        work_until = time.perf_counter_ns() + 5_000
        while time.perf_counter_ns() < work_until:
            pass

    with ftbus.EventBus(workers=1) as bus:
        bus.on("key", handle)
        next_ns = time.perf_counter_ns()
        for _ in range(events):
            next_ns += 10_000
            while time.perf_counter_ns() < next_ns:
                pass
            bus.post("key", time.perf_counter_ns())
        bus.drain()
    ranked = sorted(waits)
    return [
        Check(
            f"post to handler, worker half busy: {label}",
            ranked[min(len(ranked) - 1, int(share * len(ranked)))] / 1000,
            "us",
            None,
        )
        for label, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    ]


# Fairness and CPU


def fairness_checks(events: int) -> list[Check]:
    """A partition with a thousand times the events must not hold up the others."""
    ends: dict[str, int] = {}
    with ftbus.EventBus(workers=2) as bus:
        bus.on("key", lambda name: ends.__setitem__(name, time.perf_counter_ns()))
        start = time.perf_counter_ns()
        for i in range(events):
            bus.post("key", "busy", partition="busy")
            if i % 1000 == 0:
                bus.post("key", "quiet", partition="quiet")
        bus.post("key", "last", partition="quiet")
        posted = time.perf_counter_ns()
        bus.drain()
    behind = (ends["last"] - posted) / (ends["busy"] - start)
    name = "a quiet partition's last event after its post, in shares of the whole run"
    return [Check(name, behind, "shares", 0.1)]


def idle_checks(seconds: float) -> list[Check]:
    """CPU time that a bus with workers uses while nothing happens."""
    with ftbus.EventBus(workers=2) as bus:
        bus.on("key", peers.handler)
        bus.post("key")
        bus.drain()
        pause = threading.Event()
        pause.wait(0.1)
        report.progress(f"idle for {seconds:g} s")
        before = time.process_time()
        pause.wait(seconds)
        used = time.process_time() - before
    return [Check(f"CPU of an idle bus in {seconds:g} s", used * 1000, "ms", 10)]


def main(argv: Sequence[str] | None = None) -> int:
    options = report.parse(argv, (__doc__ or "").partition("\n\n")[0])
    suites = [
        throughput_suite(1, {SIMPLE: 2, EXECUTOR: 80}),
        throughput_suite(2, {SIMPLE: 2.5}),
        call_suite(),
    ]
    scale = 0.1 if options.quick else 1
    checks: list[Callable[[], list[Check]]] = [
        partial(latency_checks, min(int(10_000 * scale), options.most)),
        partial(loaded_latency_checks, min(int(100_000 * scale), options.most)),
        partial(fairness_checks, min(int(200_000 * scale), options.most)),
        partial(idle_checks, min(10 * scale, options.most / 1000)),
    ]
    return report.run(options, suites, checks)


if __name__ == "__main__":
    sys.exit(main())
