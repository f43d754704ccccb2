"""Pooled, reference-counted bytes: Buffer, BufferPool and what a pool says of itself.

A pool hands out a writable Buffer; fill it in place (``struct.pack_into``,
``sock.recv_into``, ``buf[0:4] = ...``), ``freeze()`` it, and give it to as many
readers as there are: ``sock.sendmsg([buf])``, ``memoryview(buf)`` and slices share
the bytes. The memory returns to the pool with the last of them. Buffers and pools may
be used from any thread.

Which buffers are held longer than meant is what the leak levels tell: with
``FTBUS_LEAK_LEVEL=sampled`` (one allocation in 128) or ``all`` in the environment, or
``set_leak_level()``, a buffer's memory is watched, and the place of its allocation and
the last four uses are reported if it is still held when its pool, the bus that encoded
it, or the process ends.

Native code has the same memory: see ftbus.get_include() for C, ftbus.cabi for cffi.
What crosses between the two is a handle, an int that carries one reference:
``buffer_from_handle(handle)`` makes a Buffer of what C filled, ``handle_of(buffer)``
gives C a share in a Buffer. ``arena_api`` is the address of the arena's function table
(ftb_arena_api.h), ``arena_address(pool)`` that of a pool's arena.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftbus import _core
from ftbus._core import (
    Buffer,
    BufferPool,
    arena_address,
    arena_api,
    buffer_from_handle,
    default_pool,
    handle_of,
)
from ftbus.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftbus.bus import EventBus

__all__ = [
    "Buffer",
    "BufferPool",
    "ClassStats",
    "HeldBuffer",
    "LeakLevel",
    "PoolStats",
    "arena_address",
    "arena_api",
    "buffer_from_handle",
    "default_pool",
    "handle_of",
    "held_buffers",
    "leak_level",
    "set_leak_level",
]

type LeakLevel = Literal["off", "sampled", "all"]

_PERIODS: dict[str, int] = {"off": 0, "sampled": 128, "all": 1}
_REPORTED_MAX = 20

logger = logging.getLogger("ftbus.buffers")


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


@dataclass(frozen=True, slots=True)
class HeldBuffer:
    """Watched memory of a pool that somebody still holds."""

    serial: int
    """The order of allocation, among all that are watched."""
    size_bytes: int
    """What was asked for."""
    thread: int
    """The ident of the thread that allocated it."""
    site: tuple[str, ...]
    """Where, as "file:line in function", innermost first; "native code" elsewhere."""
    touches: tuple[str, ...]
    """Where it was used last, up to four places, the latest first."""

    def __str__(self) -> str:
        lines = [f"{self.size_bytes} bytes, allocated by thread {self.thread} at"]
        lines += [f"    {line}" for line in self.site]
        lines += [f"  used at {line}" for line in self.touches]
        return "\n".join(lines)


_level: str = "off"


def set_leak_level(level: LeakLevel) -> None:
    """Watch no allocation, one in 128 ("sampled"), or all, from now on.

    What is watched already stays so until its memory is given back. "all" makes every
    use of a buffer some microseconds slower, "sampled" one in 128; "off" costs nothing.

    Raises InvalidOptionError for another level. Thread-safe.
    """
    global _level
    if level not in _PERIODS:
        raise InvalidOptionError("level", level, f"one of {tuple(_PERIODS)}")
    _level = level
    _core.watch_buffers(_PERIODS[level])


def leak_level() -> str:
    """Return the level that is in force: "off", "sampled" or "all"."""
    return _level


def held_buffers(of: BufferPool | EventBus | None = None) -> list[HeldBuffer]:
    """Return the watched buffers whose memory is held now, in order of allocation.

    of: only those of a pool, or those that a bus encoded.
    """
    found = _core.watched_buffers() if of is None else _core.watched_buffers(of)
    return _held(found)


def _held(found: Sequence[tuple[int, int, int, str, list[str]]]) -> list[HeldBuffer]:
    return [
        HeldBuffer(serial, size, thread, tuple(site.split("\n")), tuple(touches))
        for serial, size, thread, site, touches in found
    ]


def _describe(what: str, held: Sequence[HeldBuffer]) -> str:
    """Return the text of a report."""
    sampled = " (of one allocation in 128)" if _level == "sampled" else ""
    lines = [f"watched buffers{sampled} that {what}: {len(held)}"]
    lines += [str(one) for one in held[:_REPORTED_MAX]]
    if len(held) > _REPORTED_MAX:
        lines.append(f"... and {len(held) - _REPORTED_MAX} more")
    return "\n".join(lines)


def _report_pool(name: str, found: list[Any]) -> None:
    """Log what outlives its pool; the core calls this when a pool ends."""
    logger.warning("%s", _describe(f"outlive their pool {name!r}", _held(found)))


def _report_bus(bus: EventBus) -> None:
    """Log what a closed bus has encoded and somebody still holds."""
    if not _core.watched_buffers(bus):
        return
    gc.collect()  # what only a cycle holds is not held
    held = held_buffers(bus)
    if held:
        logger.warning("%s", _describe(f"outlive {bus!r}, which encoded them", held))


@atexit.register
def _report_exit() -> None:
    """Print what is held at exit, when logging may be gone."""
    if not _core.watched_buffers():
        return
    gc.collect()
    held = held_buffers()
    if held:
        print(f"ftbus: {_describe('are still held at exit', held)}", file=sys.stderr)


def _level_from_environment() -> None:
    level = os.environ.get("FTBUS_LEAK_LEVEL", "off")
    if level in _PERIODS:
        set_leak_level(level)  # type: ignore[arg-type]
    else:
        warnings.warn(
            f"FTBUS_LEAK_LEVEL={level!r} is none of {', '.join(_PERIODS)}: ignored",
            RuntimeWarning,
            stacklevel=2,
        )


_level_from_environment()
