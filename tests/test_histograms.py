"""Histograms: percentiles within 1/32, merging and subtracting exact."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from ftbus import EventBus, Histogram
from ftbus.histograms import BUCKETS, EMPTY, MAX_NS, bounds_of, bucket_of, from_counts

N = 20_000
SHAPES: dict[str, Callable[[random.Random], float]] = {
    "uniform": lambda r: r.uniform(100, 1_000_000),
    "exponential": lambda r: 1 + r.expovariate(1 / 5_000),
    "lognormal": lambda r: r.lognormvariate(10, 1.5),
    "bimodal": lambda r: r.gauss(300, 20) if r.random() < 0.7 else r.gauss(9e6, 3e5),
    "constant": lambda r: 12_345,
}
QUANTILES = (0, 1, 10, 25, 50, 75, 90, 99, 99.9, 99.99, 100)


def histogram_of(values: list[int]) -> Histogram:
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    if not values:
        return EMPTY
    return from_counts(counts, sum(values), min(values), max(values))


def drawn(shape: str, seed: int, n: int = N) -> list[int]:
    random_ = random.Random(seed)
    print(f"seed {seed}")
    return [max(1, int(SHAPES[shape](random_))) for _ in range(n)]


@pytest.mark.parametrize("shape", SHAPES)
def test_percentiles_are_within_1_32(shape: str, seed: int) -> None:
    values = sorted(drawn(shape, seed))
    histogram = histogram_of(values)
    for q in QUANTILES:
        exact = values[max(1, math.ceil(N * q / 100)) - 1]
        assert abs(histogram.percentile(q) - exact) <= exact / 32, q
    assert histogram.percentile(100) == histogram.max_ns == values[-1]
    assert histogram.min_ns == values[0]
    assert histogram.mean_ns == sum(values) / N


@pytest.mark.parametrize("shape", SHAPES)
def test_merging_and_subtracting_are_exact(shape: str, seed: int) -> None:
    values = drawn(shape, seed)
    first, second = values[: N // 3], values[N // 3 :]
    whole, before = histogram_of(values), histogram_of(first)
    assert before.merged(histogram_of(second)) == whole
    assert histogram_of(second).merged(before) == whole
    after = whole.since(before)
    assert after.buckets == histogram_of(second).buckets
    assert (after.count, after.sum_ns) == (len(second), sum(second))
    # Of what was recorded since, the extremes are known as far as their buckets.
    assert bucket_of(after.min_ns) == bucket_of(min(second))
    assert bucket_of(after.max_ns) == bucket_of(max(second))


def test_empty_ones() -> None:
    assert EMPTY.count == EMPTY.percentile(50) == EMPTY.mean_ns == 0
    one = histogram_of([5])
    assert EMPTY.merged(EMPTY) == EMPTY == one.since(one) == EMPTY.since(EMPTY)
    assert EMPTY.merged(one) == one == one.merged(EMPTY) == one.since(EMPTY)
    assert EMPTY.to_dict()["p99_ns"] == 0
    assert one.to_dict()["buckets"] == [[5, 1]]


@pytest.mark.parametrize("q", [-1, 100.1, math.nan])
def test_other_percentiles_are_refused(q: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        EMPTY.percentile(q)


def test_buckets_cover_everything_once() -> None:
    end = -1
    for bucket in range(BUCKETS):
        lowest, highest = bounds_of(bucket)
        assert lowest == end + 1
        assert bucket_of(lowest) == bucket_of(highest) == bucket
        assert (highest - lowest) * 32 <= lowest
        end = highest
    assert end == MAX_NS
    assert bucket_of(MAX_NS + 1) == bucket_of(1 << 60) == BUCKETS - 1
    assert bucket_of(-1) == bucket_of(0) == 0


def test_the_core_fills_the_same_buckets() -> None:
    """Its maximum and minimum are exact, so each must lie in a bucket that has one."""
    with EventBus(timing="all") as bus:

        def spend(event: int) -> None:
            sum(range(event))

        bus.on("key", spend)
        for n in (1, 100, 10_000, 300_000):
            bus.emit("key", n)
        time: Any = bus.stats().topic("key").times.handler
        assert time.count == 4 == sum(n for _, n in time.buckets)
        uppers = [upper for upper, _ in time.buckets]
        assert uppers == sorted(uppers)
        assert all(bounds_of(bucket_of(upper))[1] == upper for upper in uppers)
        assert bounds_of(bucket_of(time.max_ns))[1] == uppers[-1]
        assert bounds_of(bucket_of(time.min_ns))[1] == uppers[0]
        assert 4 * time.min_ns <= time.sum_ns <= 4 * time.max_ns
