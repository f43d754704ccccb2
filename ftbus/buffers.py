"""Pooled, reference-counted bytes: Buffer, BufferPool and what a pool says of itself.

A pool hands out a writable Buffer; fill it in place (``struct.pack_into``,
``sock.recv_into``, ``buf[0:4] = ...``), ``freeze()`` it, and give it to as many
readers as there are: ``sock.sendmsg([buf])``, ``memoryview(buf)`` and slices share
the bytes. The memory returns to the pool with the last of them. Buffers and pools may
be used from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftbus._core import Buffer, BufferPool, default_pool

__all__ = ["Buffer", "BufferPool", "ClassStats", "PoolStats", "default_pool"]


@dataclass(frozen=True, slots=True)
class ClassStats:
    """One size class of a pool; counts are of buffers."""

    capacity_bytes: int
    """What one buffer of this class can hold."""
    allocs: int
    """Handed out since the pool was made."""
    misses: int
    """Of these, how many needed memory from the system."""
    live: int
    """Handed out and not yet given back."""
    cached: int
    """Ready for the next allocation."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment.

    While other threads work, two figures may belong to two moments of the call; at rest
    ``allocs == live + frees`` and ``allocs == hits + misses`` hold exactly.
    """

    name: str
    """The pool's name."""
    limit_bytes: int
    """The most it may hold from the system; 0 means no limit."""
    reserved_bytes: int
    """What it holds from the system now, headers and ready buffers included."""
    peak_bytes: int
    """The most it ever held."""
    live: int
    """Buffers' blocks handed out and not yet given back."""
    live_bytes: int
    """The capacity of these."""
    large_live: int
    """Of these, how many are above the largest class, and so not pooled."""
    allocs: int
    """Blocks handed out since the pool was made."""
    frees: int
    """Blocks given back since then."""
    hits: int
    """Allocations served from memory the pool held ready."""
    misses: int
    """Allocations that needed memory from the system."""
    caches: int
    """Threads that ever held blocks ready at the same time, at most."""
    classes: tuple[ClassStats, ...]
    """The size classes that were used, smallest first; larger buffers have none."""

    @property
    def hit_rate(self) -> float:
        """The share of allocations served without the system, 0.0 to 1.0."""
        return self.hits / self.allocs if self.allocs else 0.0


def _pool_stats(figures: dict[str, Any]) -> PoolStats:
    """Wrap what the core counted; BufferPool.stats() calls this."""
    classes = tuple(ClassStats(**row) for row in figures.pop("classes"))
    return PoolStats(**figures, classes=classes)
