"""The conditions that a soak has to meet, on what was read of it."""

from __future__ import annotations

import os
from itertools import combinations
from statistics import median
from typing import NamedTuple

WARM_UP_MAX_S = 600.0
SLOPE_MAX = 64 * 1024  # bytes per minute
SPREAD_MAX = 4 << 20  # bytes
FLOOR_S = 30
BLOCKS_MAX = 100
HEAP_MAX = 256 * 1024  # bytes, in all
P99_FACTOR_MAX = 1.5
PAIRS_POINTS_MAX = 600  # the slope looks at all pairs of points: n * n / 2

type Columns = dict[str, list[float]]


class Verdict(NamedTuple):
    """One condition: met, not met, or (None) not to be judged on this run."""

    name: str
    is_good: bool | None
    why: str

    def __str__(self) -> str:
        word = {True: "good", False: "FAILED", None: "not judged"}[self.is_good]
        return f"{self.name:22} {word:10} {self.why}"


TIMED = Verdict("memory", None, "events are timed: histograms still grow")


def slope(times: list[float], values: list[float]) -> float:
    """Return the median slope of all pairs of points (Theil 1950, Sen 1968)."""
    step = -(-len(times) // PAIRS_POINTS_MAX)
    points = list(zip(times, values, strict=True))[::step]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2)]
    return median(slopes)


def after(columns: Columns, start_s: float, end_s: float = float("inf")) -> Columns:
    """Return the readings of that time."""
    keep = [start_s <= at < end_s for at in columns["at_s"]]
    return {
        name: [value for value, is_kept in zip(values, keep, strict=True) if is_kept]
        for name, values in columns.items()
    }


def judge(
    readings: Columns,
    quiet: Columns,
    faults: list[str],
    left: dict[str, int],
    is_timed: bool = False,
) -> list[Verdict]:
    """Return a verdict on each condition.

    readings: one a second; quiet: those made while the load paused; faults: what was
    lost, doubled or out of order; left: what exists after the end and should not.
    is_timed: there are histograms, which get the counts of an octave when a duration
    first falls into it. Of thousands that record one duration a minute some still meet
    a longer one after hours, so memory is not judged.
    """
    seconds = max(readings["at_s"], default=0.0)
    # The longer, the more rare paths a run meets late, each with something to keep.
    start_s = min(seconds / 3, WARM_UP_MAX_S)
    warm, calm = after(readings, start_s), after(quiet, start_s)
    return [
        Verdict("events exact", not faults, "; ".join(faults[:3]) or "none lost"),
        Verdict("nothing left", not any(left.values()), str(left)),
        *([TIMED] if is_timed else [*_memory(warm), _heap(calm)]),
        _blocks(calm),
        _steady("threads", warm["threads"]),
        _steady("fds", warm["fds"]),
        _steady("handlers", calm["handlers"]),
        _steady("buffers", calm["buffers"]),
        _latency(readings, seconds),
    ]


def _memory(warm: Columns) -> list[Verdict]:
    name, uss = "memory", warm["uss_bytes"]
    if len(uss) < 30:
        return [Verdict(name, None, "less than 30 s of it")]
    per_minute = slope(warm["at_s"], uss) * 60
    # What a burst takes and gives back is no growth: the least of each half minute.
    floors = [min(uss[n : n + FLOOR_S]) for n in range(0, len(uss), FLOOR_S)]
    spread = max(floors) - min(floors)
    return [
        Verdict(
            "memory slope",
            per_minute <= SLOPE_MAX,
            f"{per_minute / 1024:.1f} KiB a minute, {SLOPE_MAX / 1024:.0f} allowed",
        ),
        Verdict(
            "memory spread",
            spread <= SPREAD_MAX,
            f"{spread / 2**20:.2f} MiB of half a minute's least, "
            f"{SPREAD_MAX / 2**20:.0f} allowed",
        ),
    ]


def _heap(calm: Columns) -> Verdict:
    name, heap = "heap in use", [size for size in calm["heap_bytes"] if size == size]
    if len(heap) < 2:
        return Verdict(name, None, "never read while the load paused")
    more = (median(heap[-5:]) - median(heap[:5])) / 1024
    text = f"{more:+.1f} KiB, {HEAP_MAX / 1024:+.0f} allowed"
    return Verdict(name, more * 1024 <= HEAP_MAX, text)


def _blocks(calm: Columns) -> Verdict:
    name, blocks = "objects", calm["blocks"]
    if len(blocks) < 2:
        return Verdict(name, None, "the load never paused twice")
    # Some of a reading's objects wait for their thread to run: the middle of five.
    more = median(blocks[-5:]) - median(blocks[:5])
    return Verdict(name, more <= BLOCKS_MAX, f"{more:+.0f}, {BLOCKS_MAX:+} allowed")


def _steady(name: str, values: list[float]) -> Verdict:
    kinds = sorted(set(values))
    is_good = len(kinds) == 1 if kinds else None
    return Verdict(f"{name} constant", is_good, ", ".join(f"{n:.0f}" for n in kinds))


def _latency(readings: Columns, seconds: float) -> Verdict:
    name = "p99 holds"
    if seconds < 180:
        return Verdict(name, None, "shorter than 3 minutes")
    early, late = (
        [us for us in after(readings, *span)["p99_us"] if us == us]
        for span in ((60.0, 120.0), (seconds - 60.0, float("inf")))
    )
    text = f"median p99 {median(early):.0f} us in minute 2, {median(late):.0f} at last"
    cores, load = os.process_cpu_count() or 1, max(readings["load"])
    if load > cores:
        return Verdict(name, None, f"{text}; others load the machine ({load:.1f})")
    return Verdict(name, median(late) <= P99_FACTOR_MAX * median(early), text)
