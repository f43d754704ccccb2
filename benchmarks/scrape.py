"""What it costs emitting threads to be looked at: python benchmarks/scrape.py --quick.

Two threads emit, over 10,000 keys with a handler each, while a third reads the figures
up to 100 times a second: by stats(max_keys=100), as a Prometheus server, or in another
process through the socket of serve_stats(). One that only counts shows what any third
thread costs. They take turns within each round, and what is reported is the median,
over the rounds, of the throughput in units of that without a third thread, and how much
time a read takes of a core: the reading thread's own, next to nothing for the socket.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ftbus import EventBus

THREADS = 2
_BATCH = 200  # emits between two looks at the clock


@dataclass
class Way:
    """A way to read, and what was measured with it."""

    name: str
    read: Callable[[], object] | None
    reads: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    per_s: list[float] = field(default_factory=list)  # emits, of all threads


@contextmanager
def reading(way: Way, hz: float) -> Iterator[None]:
    """Read so often, if it can be done, in a thread of its own."""
    is_over = threading.Event()

    def run() -> None:
        due = began = time.perf_counter()
        while not is_over.wait(max(0.0, due - time.perf_counter())):
            assert way.read is not None
            way.read()
            way.reads += 1
            due = max(due + 1 / hz, time.perf_counter())
        way.seconds += time.perf_counter() - began
        way.cpu_s += time.thread_time()

    thread = threading.Thread(target=run)
    if way.read is not None:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if way.read is not None:
            thread.join()


def emit_per_s(bus: EventBus, keys: list[str], seconds: float) -> float:
    """Return how many events the threads emit per second, all together."""
    barrier = threading.Barrier(THREADS)
    rates: list[float] = []

    def run(number: int) -> None:
        own = keys[number::THREADS] + keys[(number + 1) % THREADS :: THREADS]
        emits = [bus.topic(key).emit for key in own]
        barrier.wait()
        n, place, began = 0, 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            for emit in emits[place : place + _BATCH]:
                emit(1)
            n += min(_BATCH, len(emits) - place)
            place = place + _BATCH if place + _BATCH < len(emits) else 0
        rates.append(n / elapsed)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


class SocketReader:
    """Another process that asks the socket; read() asks it to ask once."""

    PROGRAM = """
import sys
from ftbus.monitoring.stats_client import StatsClient
with StatsClient(sys.argv[1], timeout=60) as client:
    for line in sys.stdin:
        client.stats()
        print(flush=True)
"""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> None:
        """Have it asked once, and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def count() -> None:
    """Take a core and nothing else: what any third thread would cost."""
    end_s = time.thread_time() + 0.1
    while time.thread_time() < end_s:
        pass


def prometheus(bus: EventBus) -> Callable[[], object] | None:
    """Return what a scrape does, if prometheus_client is there."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ModuleNotFoundError:
        return None
    from ftbus.monitoring.prometheus import Collector

    registry = CollectorRegistry()
    registry.register(Collector(bus))
    return lambda: generate_latest(registry)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--hz", type=float, default=100.0, help="reads per second")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each burst")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 seconds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 3, 2.0
    keys = [f"key.{number}" for number in range(options.keys)]
    with tempfile.TemporaryDirectory() as folder, EventBus(workers=1) as bus:
        bus.pin()
        for key in keys:
            bus.on(key, lambda event: None)
        server = bus.serve_stats(Path(folder) / "scrape.sock")
        reader = SocketReader(Path(str(server.address)))
        ways = [Way("nobody", None), Way("a busy thread", count)]
        ways.append(Way("stats(max_keys)", partial(bus.stats, max_keys=100)))
        if (scrape := prometheus(bus)) is not None:
            ways.append(Way("prometheus", scrape))
        ways.append(Way("stats socket", reader.read))
        emit_per_s(bus, keys, options.seconds)  # warms up
        for _ in range(options.rounds):
            for way in ways:
                with reading(way, options.hz):
                    way.per_s.append(emit_per_s(bus, keys, options.seconds))
        reader.close()
    report(ways, options.json)


def report(ways: list[Way], path: Path | None) -> None:
    """Print a line for each way, and write the same as JSON."""
    figures = {}
    alone = ways[0].per_s
    for way in ways:
        ratios = [one / other for one, other in zip(way.per_s, alone, strict=True)]
        reads_per_s = way.reads / way.seconds if way.seconds else 0.0
        cpu_ms = 1e3 * way.cpu_s / way.reads if way.reads else 0.0
        figures[way.name] = {
            "emits_per_s": statistics.median(way.per_s),
            "reads_per_s": reads_per_s,
            "cpu_ms_per_read": cpu_ms,
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
        print(
            f"{way.name:15} {statistics.median(way.per_s) / 1e6:6.2f} M emits/s  "
            f"{reads_per_s:6.1f} reads/s of {cpu_ms:6.2f} ms  "
            f"{statistics.median(ratios):.3f} of nobody's "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
    if path is not None:
        path.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
