"""Load a bus for minutes or hours and see that nothing grows, slows down or gets lost.

Four threads emit and post at a steady rate to a thousand keys, and subscribe and cancel
meanwhile; some handlers raise, some take the event as bytes; a second bus has a slow
consumer that stops for 5 s in every minute, and drops. Each second memory, threads,
descriptors, queue and latency are read; every 20 s the load pauses, so that what must
be exact can be read exactly: no event lost, doubled or out of order, no handler and no
buffer left, no object more than before.

    python stress/soak.py --minutes 3 --out build/soak.json

writes the readings there and a plot beside it. Ctrl-C ends it with a report on what was
seen until then. The exit status is 0 if every condition held.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import sys
import threading
import time
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from soak_judge import Verdict, judge
from soak_plot import plot

from ftbus import EventBus, HandlerErrors, _core, default_pool

EMITTERS = 4
WORKERS = 4
KEYS = 1000
ENCODED_KEYS = 20
BURST_S = 0.02
CHURN_SHARE = 0.05
FAILURE_SHARE = 0.01
QUIET_EVERY_S = 20
PAUSE_FROM_S, PAUSE_TO_S = 25, 30  # of each minute
DRAIN_S = 120.0  # more than any machine needs: a hang
SUB_BUCKETS_BITS = 3
NEVER = 1 << 20  # what the first bucket starts at, the others one more each

EMITTED, POSTED, FAILING = range(3)  # what an event is

FIELDS = (
    "at_s",
    "rss_bytes",
    "uss_bytes",
    "threads",
    "fds",
    "arena_bytes",
    "queued",
    "events_per_s",
    "p99_us",
    "load",
)
QUIET_FIELDS = ("at_s", "blocks", "handlers", "buffers", "heap_bytes")


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2() returns: bytes and counts, of all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


MALLINFO2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
if MALLINFO2 is not None:
    MALLINFO2.restype = Mallinfo2


def heap_bytes() -> float:
    """Return how much of malloc's memory is in use, of all arenas; nan if unknown."""
    if MALLINFO2 is None:
        return float("nan")
    found = MALLINFO2()
    return float(found.uordblks + found.hblkhd)


def bucket_of(ns: int) -> int:
    """Return the bucket of a latency; eight of them to each doubling."""
    bits = max(ns, 1).bit_length()
    rest = (ns << SUB_BUCKETS_BITS >> (bits - 1)) & ((1 << SUB_BUCKETS_BITS) - 1)
    return bits << SUB_BUCKETS_BITS | rest


def upper_us(bucket: int) -> float:
    """Return the end of a bucket in microseconds."""
    bits, rest = divmod(bucket, 1 << SUB_BUCKETS_BITS)
    return (1 + (rest + 1) / (1 << SUB_BUCKETS_BITS)) * 2.0 ** (bits - 1) / 1000


class Ledger:
    """What handlers saw. A key's posted events come one at a time: no lock needed."""

    def __init__(self) -> None:
        self.last = array("q", [-1] * (KEYS * EMITTERS))
        self.seen = array("q", bytes(8 * KEYS))
        self.emitted = array("q", bytes(8 * EMITTERS))  # handled where they are emitted
        self.faults: list[str] = []
        # Lists: others read them meanwhile, and an array is not made for that.
        self._latencies: dict[int, list[int]] = {}

    def handle(self, event: tuple[int, int, int, int, int]) -> None:
        key, emitter, number, sent_ns, kind = event
        if kind == EMITTED:
            self.emitted[emitter] += 1
            return
        place = key * EMITTERS + emitter
        if self.last[place] >= number:
            self.faults.append(f"{number} after {self.last[place]} at {place}")
        self.last[place] = number
        self.seen[key] += 1
        mine = self._latencies.get(threading.get_ident())
        if mine is None:
            # Each an object of its own from the start: small integers are none.
            mine = list(range(NEVER, NEVER + 512))
            self._latencies[threading.get_ident()] = mine
        mine[bucket_of(time.perf_counter_ns() - sent_ns)] += 1
        if kind == FAILING:
            raise ValueError("on purpose")

    def latencies(self) -> array[int]:
        """Return how many events fell into each bucket, of all threads."""
        columns = enumerate(zip(*self._latencies.values(), strict=True), NEVER)
        return array(
            "q", [sum(counts) - never * len(counts) for never, counts in columns]
        )


def percentile_us(counts: list[int], share: float) -> float:
    """Return the latency that the share of the events did not exceed; nan if none."""
    wanted = share * sum(counts)
    for bucket, count in enumerate(counts):
        wanted -= count
        if count and wanted <= 0:
            return upper_us(bucket)
    return float("nan")


class Emitter(threading.Thread):
    """Emits and posts bursts at a steady rate, and churns subscriptions."""

    def __init__(self, soak: Soak, index: int, seed: int) -> None:
        super().__init__(name=f"emitter-{index}", daemon=True)
        self.soak = soak
        self.index = index
        self.random = random.Random(seed + index)
        self.emitted = self.posted = self.failing = self.churned = 0
        self.error: BaseException | None = None
        self._subscriptions: list[Any] = []

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error
            self.soak.meeting.abort()

    def _run(self) -> None:
        burst = max(1, round(self.soak.rate * BURST_S / EMITTERS))
        due = time.monotonic()
        while not self.soak.is_over:
            for _ in range(burst):
                self._step()
            if self.soak.is_quiet:
                while self._subscriptions:
                    self._subscriptions.pop().cancel()
                self.soak.meeting.wait()  # all are here
                self.soak.meeting.wait()  # all has been read
                due = time.monotonic()
            due = max(due + BURST_S, time.monotonic() - 1.0)  # never a second behind
            self.soak.over.wait(max(0.0, due - time.monotonic()))

    def _step(self) -> None:
        draw = self.random.random
        key = int(draw() * KEYS)
        number = self.emitted + self.posted
        if draw() < 0.5:
            self.soak.bus.emit(key, (key, self.index, number, 0, EMITTED))
            self.emitted += 1
        else:
            kind = FAILING if draw() < FAILURE_SHARE else POSTED
            event = (key, self.index, number, time.perf_counter_ns(), kind)
            self.soak.bus.post(key, event, partition=key)
            self.posted += 1
            self.failing += kind == FAILING
            if number % 16 == 0:
                self.soak.slow_bus.post("slow", event, partition="slow")
        if draw() < CHURN_SHARE:
            self._churn(int(draw() * KEYS))

    def _churn(self, key: int) -> None:
        # A closure: CPython 3.13t never frees a function of a module.
        def passing(event: object, seen: list[int] = [0]) -> None:  # noqa: B006
            seen[0] += 1

        with suppress(HandlerErrors):
            self.soak.bus.once("one", passing)
            self.churned += 1
            self.soak.bus.emit("one")
        self._subscriptions.append(self.soak.bus.subscribe(key, passing))
        if len(self._subscriptions) > 16:
            ix = int(self.random.random() * len(self._subscriptions))
            self._subscriptions.pop(ix).cancel()


class Soak:
    """The load, the readings and the conditions."""

    def __init__(self, seconds: int, rate: int, seed: int, timing: Any) -> None:
        self.seconds = seconds
        self.rate = rate
        self.is_quiet = self.is_over = False
        self.over = threading.Event()
        self.meeting = threading.Barrier(EMITTERS + 1)
        self.gate = threading.Event()
        self.gate.set()
        self.ledger = Ledger()
        self.slow_seen = 0
        self.reported = [0]
        self.bus = EventBus(
            workers=WORKERS,
            queue_size=8192,
            on_error=self._on_error,
            timing=timing,
            name="soak",
        )
        self.slow_bus = EventBus(
            workers=1, queue_size=256, overflow="drop_oldest", name="slow"
        )
        self.emitters = [Emitter(self, index, seed) for index in range(EMITTERS)]
        self.process = psutil.Process()
        # Of full size from the start, so that the readings themselves do not grow.
        self._rows_n = self._quiet_n = 0
        self._rows = array("d", bytes(8 * len(FIELDS) * (seconds + 10)))
        quiet_n = seconds // QUIET_EVERY_S + 2
        self._quiet = array("d", bytes(8 * len(QUIET_FIELDS) * quiet_n))
        self._counts = array("q", bytes(8 * 512))
        self._events_n = 0
        self._read_at = time.monotonic()

    def _on_error(self, error: BaseException, key: object, handler: object) -> None:
        self.reported.append(0) if not isinstance(error, ValueError) else None

    def _handle_slow(self, event: object) -> None:
        self.gate.wait()
        self.slow_seen += 1  # one partition: one at a time

    def run(self) -> None:
        """Run the load for its time; show progress."""
        for key in range(KEYS):
            self.bus.on(key, self.ledger.handle)
        for key in range(ENCODED_KEYS):
            self.bus.on(key, len, encoded=True)
        self.slow_bus.on("slow", self._handle_slow)
        self.started = self._read_at = time.monotonic()
        for emitter in self.emitters:
            emitter.start()
        try:
            for second in range(1, self.seconds + 1):
                self._sleep_until(self.started + second)
                self._read()
                if second % 60 == PAUSE_FROM_S:
                    self.gate.clear()
                elif second % 60 == PAUSE_TO_S:
                    self.gate.set()
                if second % QUIET_EVERY_S == 0:
                    self._read_quietly()
                if second % 10 == 0 or second == self.seconds:
                    self._show(second)
        finally:
            self._stop()

    def _sleep_until(self, when: float) -> None:
        self.over.wait(max(0.0, when - time.monotonic()))

    def _read(self) -> None:
        now = time.monotonic()
        stats = self.bus.stats()
        events_n = stats.emitted + stats.delivered
        counts = self.ledger.latencies() or self._counts
        new = [n - before for n, before in zip(counts, self._counts, strict=True)]
        memory = self.process.memory_full_info()
        row = (
            now - self.started,
            memory.rss,
            memory.uss,
            self.process.num_threads(),
            self.process.num_fds(),
            default_pool.stats().live_bytes,
            stats.pending,
            (events_n - self._events_n) / (now - self._read_at),
            percentile_us(new, 0.99),
            os.getloadavg()[0],
        )
        at = self._rows_n * len(FIELDS)
        self._rows[at : at + len(FIELDS)] = array("d", row)
        self._rows_n += 1
        self._counts, self._events_n, self._read_at = counts, events_n, now

    def _read_quietly(self) -> None:
        """Let the emitters pause, drain, and read what is exact only then."""
        self.is_quiet = True
        self.meeting.wait(DRAIN_S)
        self.is_quiet = False
        self._check_exact()
        gc.collect()
        _core.reclaim()
        # The allocator's own count is not to be read while others allocate.
        row = (
            time.monotonic() - self.started,
            sys.getallocatedblocks(),
            _core.live_handlers(),
            default_pool.live,
            heap_bytes(),
        )
        at = self._quiet_n * len(QUIET_FIELDS)
        self._quiet[at : at + len(QUIET_FIELDS)] = array("d", row)
        self._quiet_n += 1
        self.meeting.wait(DRAIN_S)
        self._read_at = time.monotonic()

    def _check_exact(self) -> None:
        """Add to the faults whatever was lost, doubled or not counted."""
        faults = self.ledger.faults
        for bus in (self.bus, self.slow_bus):
            if not bus.drain(DRAIN_S):
                faults.append(f"{bus!r} is not drained after {DRAIN_S} s")
        stats, slow = self.bus.stats(), self.slow_bus.stats()
        seen = sum(self.ledger.seen)
        emitted = sum(e.emitted for e in self.emitters)
        churned = sum(e.churned for e in self.emitters)
        for what, one, two in (
            ("emitted", emitted + churned, stats.emitted),
            ("emitted: seen", emitted, sum(self.ledger.emitted)),
            ("posted", sum(e.posted for e in self.emitters), stats.posted),
            ("delivered", stats.posted, stats.delivered),
            ("seen", seen, stats.delivered),
            ("failed", sum(e.failing for e in self.emitters), stats.failed),
            ("slow: conserved", slow.posted, slow.delivered + slow.dropped),
            ("slow: seen", self.slow_seen, slow.delivered),
            ("reported", len(self.reported), 1),
        ):
            if one != two:
                faults.append(f"{what}: {one} is not {two}")

    def _show(self, second: int) -> None:
        at = (self._rows_n - 1) * len(FIELDS)
        row = dict(zip(FIELDS, self._rows[at : at + len(FIELDS)], strict=True))
        print(
            f"{second:6} of {self.seconds} s: {row['events_per_s']:8.0f} events/s, "
            f"p99 {row['p99_us']:8.0f} us, uss {row['uss_bytes'] / 2**20:6.1f} MiB, "
            f"{len(self.ledger.faults)} faults",
            flush=True,
        )

    def _stop(self) -> None:
        """End the threads; look once more with nothing running."""
        self.is_over = True
        self.over.set()
        self.gate.set()
        self.meeting.abort()
        for emitter in self.emitters:
            emitter.join(DRAIN_S)
            error = emitter.error
            if error is not None and not isinstance(
                error, threading.BrokenBarrierError
            ):
                self.ledger.faults.append(f"{emitter.name}: {error!r}")
        self._check_exact()
        for bus in (self.bus, self.slow_bus):
            left = bus.close(timeout=DRAIN_S)
            if left:
                self.ledger.faults.append(f"{bus!r} leaves {left} events")

    def report(self, is_interrupted: bool) -> dict[str, Any]:
        """Return everything that was read, and the verdicts."""
        readings = _columns(FIELDS, self._rows, self._rows_n)
        quiet = _columns(QUIET_FIELDS, self._quiet, self._quiet_n)
        stats, slow = self.bus.stats(), self.slow_bus.stats()
        for emitter in self.emitters:
            emitter._subscriptions.clear()
        gc.collect()
        _core.reclaim()
        left = {"handlers": _core.live_handlers(), "buffers": default_pool.live}
        is_timed = stats.timing != "off"
        verdicts = judge(readings, quiet, self.ledger.faults, left, is_timed)
        return {
            "interrupted": is_interrupted,
            "emitted": stats.emitted,
            "posted": stats.posted,
            "handler_calls": stats.handled,
            "failed": stats.failed,
            "slow_dropped": slow.dropped,
            "cores": os.process_cpu_count(),
            "python": sys.version,
            "gil": sys._is_gil_enabled(),
            "verdicts": [verdict._asdict() for verdict in verdicts],
            "faults": self.ledger.faults,
            "readings": readings,
            "quiet_readings": quiet,
        }


def _columns(
    names: tuple[str, ...], rows: array[float], rows_n: int
) -> dict[str, list[float]]:
    wide = len(names)
    return {
        name: list(rows[ix : rows_n * wide : wide]) for ix, name in enumerate(names)
    }


def parse() -> argparse.Namespace:
    """Return the program's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rate", type=int, default=8000, help="events per second")
    parser.add_argument("--timing", choices=("off", "sampled", "all"), default="off")
    parser.add_argument("--out", type=Path, default=Path("build/soak.json"))
    default = int(os.environ.get("FTB_SEED", random.SystemRandom().getrandbits(32)))
    parser.add_argument("--seed", type=int, default=default)
    return parser.parse_args()


def main() -> int:
    """Run, write what was read, print the verdicts; return the exit status."""
    options = parse()
    seconds = max(1, round(options.minutes * 60))
    print(
        f"{seconds} s at {options.rate} events/s, --seed {options.seed} "
        f"--timing {options.timing}",
        flush=True,
    )
    soak = Soak(seconds, options.rate, options.seed, options.timing)
    is_interrupted = False
    try:
        soak.run()
    except KeyboardInterrupt:
        is_interrupted = True
        print("interrupted: the report is on what was seen until now")
    except threading.BrokenBarrierError:
        pass  # the faults say why
    report = soak.report(is_interrupted)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))
    options.out.with_suffix(".svg").write_text(plot(report["readings"]))
    for name in ("emitted", "posted", "handler_calls", "failed", "slow_dropped"):
        print(f"{name:14} {report[name]}")
    verdicts = [Verdict(**verdict) for verdict in report["verdicts"]]
    for verdict in verdicts:
        print(verdict)
    print(f"{options.out} and its .svg have the readings")
    return 0 if all(verdict.is_good is not False for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
