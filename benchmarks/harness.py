"""What the benchmarks share: cases, threads, rounds, and the statistics of ratios.

Every case of a suite runs a short burst in each round, one after the other, and ratios
are taken within a round before their median is: whatever slows the machine for a while
slows both sides of a ratio. Nothing here knows ftbus.
"""

from __future__ import annotations

import gc
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

type Burst = Callable[[int], object]  # burst(n) does the operation n times
type Bind = Callable[[int], Burst]  # bind(i) makes the burst of thread i, in it
type Round = dict[tuple[str, int], float]  # ns per operation, by case and threads
type Samples = dict[tuple[str, int], list[float]]  # the same, of all rounds

CALIBRATION_NS = 1_000_000
CORES = os.process_cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Case:
    """One contender: setup() runs once, in the first thread, and returns bind."""

    name: str
    setup: Callable[[], Bind]
    empty: str = ""  # the case that runs the same loop without a body
    threads: tuple[int, ...] = (1, 2)
    ops: int = 1  # operations in what burst(1) does
    module: str = ""  # the peer to import; a case whose peer is not there is left out


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ratio of a case to a peer, and what it should be.

    "time" is the case's time in units of the peer's, at most `target`, which judges the
    net figure: the empty loop's time is first taken off both. "speed" is how many times
    as many operations per second, at least `target`, which judges the gross figure.
    """

    case: str
    peer: str
    kind: Literal["time", "speed"]
    target: float | None = None
    threads: int = 1
    peer_threads: int = 1


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases that take turns."""

    name: str
    cases: Sequence[Case]
    comparisons: Sequence[Comparison]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A number that takes no rounds, at most `target`."""

    name: str
    value: float
    unit: str
    target: float | None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Spread:
    """Where samples lie."""

    median: float
    low: float  # the quartiles
    high: float
    least: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Row:
    """A comparison with its figures."""

    comparison: Comparison
    gross: Spread
    net: Spread | None  # without the empty loops
    ceiling: Spread | None  # a gain by threads in units of the empty loop's own
    of_minima: float  # the ratio of the best rounds: what a noisy machine leaves

    @property
    def met(self) -> bool | None:
        target = self.comparison.target
        if self.comparison.kind == "time":
            if target is None or self.net is None:
                return None
            return self.net.median <= target
        return None if target is None else self.gross.median >= target


# Statistics


def spread(samples: Sequence[float]) -> Spread:
    """Sum samples up; one is enough."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high, min(samples), len(samples))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def net_ratios(
    above: Sequence[float],
    below: Sequence[float],
    above_loop: Sequence[float],
    below_loop: Sequence[float],
) -> list[float]:
    """Divide round by round what is left without the empty loops.

    A round in which a burst took no longer than the empty loop says nothing, and is
    left out.
    """
    rounds = zip(above, below, above_loop, below_loop, strict=True)
    return [(a - m) / (b - n) for a, b, m, n in rounds if a > m and b > n]


def by_case(rounds: Sequence[Round]) -> Samples:
    """Turn a list of rounds into lists by case."""
    keys = rounds[0] if rounds else ()
    return {key: [found[key] for found in rounds] for key in keys}


def compare(suite: Suite, comparison: Comparison, samples: Samples) -> Row | None:
    """Return the comparison's figures; None if one side was not measured."""
    loops = {case.name: case.empty for case in suite.cases}
    case = (comparison.case, comparison.threads)
    peer = (comparison.peer, comparison.peer_threads)
    if case not in samples or peer not in samples:
        return None
    sides = (case, peer) if comparison.kind == "time" else (peer, case)
    above, below = (samples[side] for side in sides)
    empty = [samples.get((loops[name], threads), []) for name, threads in sides]
    gross = ratios(above, below)
    net: list[float] = []
    ceiling: list[float] = []
    if all(empty) and comparison.threads == comparison.peer_threads:
        net = net_ratios(above, below, *empty)
    elif all(empty):
        ceiling = ratios(gross, ratios(*empty))
    return Row(
        comparison,
        spread(gross),
        spread(net) if net else None,
        spread(ceiling) if ceiling else None,
        min(above) / min(below),
    )


def compare_all(suite: Suite, samples: Samples) -> list[Row]:
    """Return the figures of the comparisons that were measured."""
    found = (compare(suite, comparison, samples) for comparison in suite.comparisons)
    return [row for row in found if row is not None]


# Running


class Crew:
    """The threads that run bursts: this one is number 0, the others wait in between.

    The same threads run every burst, so that what a thread made stays its own. On 3.13t
    the first thread ever started also makes functions and classes immortal.
    """

    def __init__(self, size: int) -> None:
        self._jobs: list[queue.SimpleQueue[Callable[[], Any] | None]] = []
        self._results: list[queue.SimpleQueue[Any]] = []
        for _ in range(size - 1):
            self._jobs.append(queue.SimpleQueue())
            self._results.append(queue.SimpleQueue())
            ends = (self._jobs[-1], self._results[-1])
            threading.Thread(target=self._serve, args=ends, daemon=True).start()

    @staticmethod
    def _serve(jobs: queue.SimpleQueue[Any], results: queue.SimpleQueue[Any]) -> None:
        while (job := jobs.get()) is not None:
            try:
                results.put(job())
            except BaseException as error:
                results.put(error)
            del job  # what it holds must not live until the next one

    def each(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run calls[i] in thread i, all at once; return what they return."""
        for jobs, call in zip(self._jobs, calls[1:], strict=False):
            jobs.put(call)
        found = [calls[0]()]
        found += [results.get() for results in self._results[: len(calls) - 1]]
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return found

    def time_ns(self, bursts: Sequence[Burst], n: int) -> int:
        """Run the bursts at once; return the time from the barrier to the last end."""
        arrived: list[None] = []
        spans: list[tuple[int, int]] = self.each(
            [partial(_span, arrived, len(bursts), burst, n) for burst in bursts]
        )
        return max(end for _, end in spans) - min(start for start, _ in spans)

    def close(self) -> None:
        for jobs in self._jobs:
            jobs.put(None)


def _span(arrived: list[None], n_threads: int, burst: Burst, n: int) -> tuple[int, int]:
    """Time a burst that starts when all threads are there.

    They spin: waking up from a barrier takes a thread long enough to show in a burst.
    Where there are more threads than cores, those who wait make room for the others.
    """
    is_crowded = n_threads > CORES
    arrived.append(None)
    while len(arrived) < n_threads:
        if is_crowded:
            os.sched_yield()
    start = time.perf_counter_ns()
    burst(n)
    return start, time.perf_counter_ns()


@dataclass(frozen=True, slots=True)
class Runner:
    """One case ready to run: a burst for each thread, long enough to be timed."""

    case: Case
    bursts: list[Burst]
    n: int


def prepare(crew: Crew, case: Case, burst_ns: float) -> Runner:
    """Set a case up, warm it up, and find how much of it takes burst_ns."""
    bind = case.setup()
    bursts = crew.each([partial(bind, i) for i in range(max(case.threads))])
    crew.time_ns(bursts[:1], 1)  # not to be counted: threads start, memory is touched
    n, elapsed = 1, crew.time_ns(bursts[:1], 1)
    while elapsed < min(CALIBRATION_NS, burst_ns):
        n *= 2
        elapsed = crew.time_ns(bursts[:1], n)
    return Runner(case, bursts, max(1, round(n * burst_ns / elapsed)))


def run_round(crew: Crew, runners: Sequence[Runner]) -> Round:
    """Give every case one burst per number of threads: ns per operation.

    That is the time divided by the operations of all threads together.
    """
    found: Round = {}
    for runner in runners:
        for threads in runner.case.threads:
            elapsed = crew.time_ns(runner.bursts[:threads], runner.n)
            ops = runner.n * runner.case.ops * threads
            found[runner.case.name, threads] = elapsed / ops
    return found


def run_suite(
    suite: Suite, rounds: int, burst_ns: float, progress: Callable[[str], None]
) -> Iterator[Round]:
    """Yield every round's figures; one more round, the first, warms up."""
    size = max(max(case.threads) for case in suite.cases)
    with closing(Crew(size)) as crew:
        runners = []
        for i, case in enumerate(suite.cases, 1):
            progress(f"{suite.name}: setting up {i} of {len(suite.cases)}, {case.name}")
            runners.append(prepare(crew, case, burst_ns))
        gc.collect()
        run_round(crew, runners)
        for i in range(1, rounds + 1):
            progress(f"{suite.name}: round {i} of {rounds}")
            yield run_round(crew, runners)
