"""How far percentiles of the histograms are from the exact ones, which numpy computes.

    python benchmarks/histograms.py [--samples N] [--seed N]

Five shapes of durations; the largest error must be at most 1/32 (3.125 %), as wide as a
bucket. Needs numpy, which `make bench` installs.
"""

from __future__ import annotations

import argparse
import sys

import numpy

from ftbus.histograms import Histogram, bucket_of, from_counts

QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99)
LIMIT = 1 / 32


def shapes(n: int, seed: int) -> dict[str, numpy.ndarray]:
    """Return n durations in ns of each shape."""
    random = numpy.random.default_rng(seed)
    modes = random.normal(300, 20, n), random.normal(9e6, 3e5, n)
    drawn = {
        "uniform": random.uniform(100, 1e6, n),
        "exponential": 1 + random.exponential(5_000, n),
        "lognormal": random.lognormal(10, 1.5, n),
        "bimodal": numpy.where(random.random(n) < 0.7, *modes),
        "constant": numpy.full(n, 12_345),
    }
    return {
        name: numpy.maximum(1, values).astype(numpy.int64)
        for name, values in drawn.items()
    }


def histogram_of(values: numpy.ndarray) -> Histogram:
    """Count the values as the core would."""
    counts: dict[int, int] = {}
    for value, n in zip(*numpy.unique(values, return_counts=True), strict=True):
        bucket = bucket_of(int(value))
        counts[bucket] = counts.get(bucket, 0) + int(n)
    return from_counts(counts, int(values.sum()), int(values.min()), int(values.max()))


def largest_error(values: numpy.ndarray) -> tuple[float, float]:
    """Return the largest relative error over the quantiles, and at which it is."""
    histogram = histogram_of(values)
    exact = numpy.percentile(values, QUANTILES, method="inverted_cdf")
    return max(
        (abs(histogram.percentile(q) - float(value)) / float(value), q)
        for q, value in zip(QUANTILES, exact, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    worst = 0.0
    print(f"{options.samples:,} samples, numpy {numpy.__version__}")
    for name, values in shapes(options.samples, options.seed).items():
        error, q = largest_error(values)
        worst = max(worst, error)
        print(f"{name:12} largest error {100 * error:.2f} % (percentile {q})")
    print(f"largest of all {100 * worst:.2f} %, limit {100 * LIMIT:.3f} %")
    return worst > LIMIT


if __name__ == "__main__":
    sys.exit(main())
