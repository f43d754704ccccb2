"""Log-linear histograms of durations: 32 buckets per octave, 1 ns to 2**40 ns.

The layout is that of HdrHistogram (Gil Tene, 2012) with 5 bits of precision: values up
to 63 ns have a bucket each, and every further octave is cut into 32 buckets of equal
width, so a value is known to within 1/32 (3.1 %). csrc/core/ftb_histogram.h fills them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import chain
from math import ceil
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUB_BITS = 5
OCTAVES = 36
BUCKETS = OCTAVES << SUB_BITS
MAX_NS = (1 << (OCTAVES + SUB_BITS - 1)) - 1


def bucket_of(value_ns: int) -> int:
    """Return the number of the bucket a duration falls into; it is clamped first."""
    value_ns = min(max(value_ns, 0), MAX_NS)
    octave = max(0, value_ns.bit_length() - SUB_BITS - 1)
    return (octave << SUB_BITS) + (value_ns >> octave)


def bounds_of(bucket: int) -> tuple[int, int]:
    """Return the smallest and the largest duration (ns) of a bucket, both inclusive."""
    octave = max(0, (bucket >> SUB_BITS) - 1)
    lowest = (bucket - (octave << SUB_BITS)) << octave
    return lowest, lowest + (1 << octave) - 1


def _pack(buckets: Iterable[tuple[int, int]]) -> bytes:
    """Return Histogram.packed of buckets in ascending order."""
    return array("Q", chain.from_iterable(buckets)).tobytes()


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long something took, in nanoseconds; immutable, safe to share.

    Percentiles are off by at most 1/32 (3.1 %) of their value, and merging loses
    nothing: the buckets of two histograms are the same.
    """

    count: int = 0
    """Durations recorded."""
    sum_ns: int = 0
    """Nanoseconds in total, exactly."""
    min_ns: int = 0
    """The shortest, in nanoseconds; 0 if there is none. After since(): its bucket's."""
    max_ns: int = 0
    """The longest, in nanoseconds; 0 if there is none. After since(): its bucket's."""
    packed: bytes = field(default=b"", repr=False)
    """The buckets as the core gives them: native unsigned 64-bit numbers, in pairs."""

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Pairs (upper bound in ns, inclusive; durations in it), ascending.

        Empty ones are left out; counts are not cumulative. Made anew at each call.
        """
        return tuple(self._pairs())

    def _pairs(self) -> Iterable[tuple[int, int]]:
        numbers = memoryview(self.packed).cast("Q").tolist()
        return zip(numbers[::2], numbers[1::2], strict=True)

    @property
    def mean_ns(self) -> float:
        """The arithmetic mean in nanoseconds, exact; 0.0 if nothing was recorded."""
        return self.sum_ns / self.count if self.count else 0.0

    @property
    def p50_ns(self) -> int:
        """The median in nanoseconds."""
        return self.percentile(50)

    @property
    def p90_ns(self) -> int:
        """The 90th percentile in nanoseconds."""
        return self.percentile(90)

    @property
    def p99_ns(self) -> int:
        """The 99th percentile in nanoseconds."""
        return self.percentile(99)

    @property
    def p999_ns(self) -> int:
        """The 99.9th percentile in nanoseconds."""
        return self.percentile(99.9)

    def percentile(self, q: float) -> int:
        """Return the duration (ns) that q percent of all do not exceed; 0 if empty.

        q: 0 to 100. Nearest rank; within its bucket the rank decides by linear
        interpolation, and the result stays within min_ns and max_ns.

        Raises ValueError for another q.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"percentile {q!r} is not in 0..100")
        return self._percentiles((q,))[0]

    def _percentiles(self, descending: Iterable[float]) -> list[int]:
        """Return percentiles in one pass from the end: the high ones are near."""
        values = []
        numbers = memoryview(self.packed).cast("Q")
        place = len(numbers) - 1
        before = self.count - numbers[place] if numbers else 0
        for q in descending:
            rank = max(1, ceil(self.count * q / 100))
            if rank >= self.count:
                values.append(self.max_ns)
                continue
            while before >= rank:
                place -= 2
                before -= numbers[place]
            upper, n = numbers[place - 1], numbers[place]
            lower, _ = bounds_of(bucket_of(upper))
            into = rank - before  # 1 .. n
            value = lower + (upper - lower) * into // (n + 1)
            values.append(min(max(value, self.min_ns), self.max_ns))
        return values

    def merged(self, other: Histogram) -> Self:
        """Return the histogram of the durations of both, exactly."""
        if not self.count or not other.count:
            full = self if self.count else other
            return type(self)(
                full.count, full.sum_ns, full.min_ns, full.max_ns, full.packed
            )
        counts = dict(self._pairs())
        for upper, n in other._pairs():
            counts[upper] = counts.get(upper, 0) + n
        return type(self)(
            self.count + other.count,
            self.sum_ns + other.sum_ns,
            min(self.min_ns, other.min_ns),
            max(self.max_ns, other.max_ns),
            _pack(sorted(counts.items())),
        )

    def since(self, earlier: Histogram) -> Self:
        """Return what was recorded after `earlier`, a snapshot of the same histogram.

        Counts and sum are exact; min and max are known only as far as their buckets.
        """
        if not earlier.count:
            return type(self)(
                self.count, self.sum_ns, self.min_ns, self.max_ns, self.packed
            )
        if self.count <= earlier.count:
            return type(self)()
        before = dict(earlier._pairs())
        buckets = [
            (upper, left)
            for upper, n in self._pairs()
            if (left := n - before.get(upper, 0)) > 0
        ]
        if not buckets:
            return type(self)()
        lowest, _ = bounds_of(bucket_of(buckets[0][0]))
        return type(self)(
            sum(n for _, n in buckets),
            max(0, self.sum_ns - earlier.sum_ns),
            max(lowest, self.min_ns),
            min(buckets[-1][0], self.max_ns),
            _pack(buckets),
        )

    def to_dict(self, buckets: bool = True) -> dict[str, Any]:
        """Return the figures and the usual percentiles, ready for JSON.

        buckets: with the buckets too.
        """
        p999_ns, p99_ns, p90_ns, p50_ns = self._percentiles((99.9, 99, 90, 50))
        tree: dict[str, Any] = {
            "count": self.count,
            "sum_ns": self.sum_ns,
            "min_ns": self.min_ns,
            "max_ns": self.max_ns,
            "mean_ns": self.mean_ns,
            "p50_ns": p50_ns,
            "p90_ns": p90_ns,
            "p99_ns": p99_ns,
            "p999_ns": p999_ns,
        }
        if buckets:
            tree["buckets"] = [list(pair) for pair in self.buckets]
        return tree


EMPTY = Histogram()


def from_counts(
    counts: Mapping[int, int], sum_ns: int, min_ns: int, max_ns: int
) -> Histogram:
    """Make a Histogram of the counts by bucket number."""
    return Histogram(
        sum(counts.values()),
        sum_ns,
        min_ns,
        max_ns,
        _pack((bounds_of(bucket)[1], counts[bucket]) for bucket in sorted(counts)),
    )


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """Return the histogram of the durations of all, exactly; in one pass."""
    full = [each for each in histograms if each.count]
    if len(full) <= 1:
        return full[0] if full else EMPTY
    counts: dict[int, int] = {}
    for each in full:
        for upper, n in each._pairs():
            counts[upper] = counts.get(upper, 0) + n
    return Histogram(
        sum(each.count for each in full),
        sum(each.sum_ns for each in full),
        min(each.min_ns for each in full),
        max(each.max_ns for each in full),
        _pack(sorted(counts.items())),
    )
