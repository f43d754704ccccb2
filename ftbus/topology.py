"""Where workers run: which cores share a cache and a memory node, and who goes where.

Read from Linux's /sys once per start of a bus; on other systems, and on a machine with
one memory node, there is nothing to decide.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Core", "Placement", "place_workers", "read_cores"]

_SYS = Path("/sys/devices/system")


@dataclass(frozen=True, slots=True, order=True)
class Core:
    """A processor this process may run on. Cores sort by nearness."""

    node: int
    """The memory node it belongs to."""
    cache: int
    """The lowest processor number among those that share its last-level cache."""
    cpu: int
    """Its number."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What the pool is told: one entry per worker."""

    cache_of: bytes
    """Which workers share a cache: native 32-bit numbers, ascending."""
    node_of: bytes
    """Which workers share a memory node, likewise."""
    cpus: tuple[frozenset[int], ...]
    """The processors each worker's thread is bound to; empty: any."""
    touches: bool
    """Whether each worker should touch its queue's memory first."""


def read_cores(system: Path | None = None) -> list[Core]:
    """Return the processors this process may use, near ones next to each other.

    system: the folder to read instead of /sys/devices/system.

    Processors that are offline or outside the process's affinity mask (a cgroup's
    cpuset shows there) are left out. What /sys does not tell counts as shared by all.
    Returns an empty list where the system has no affinity masks. Thread-safe.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    root = system or _SYS
    node_of: dict[int, int] = {}
    for folder in root.glob("node/node[0-9]*"):
        for cpu in _read_list(folder / "cpulist"):
            node_of[cpu] = int(folder.name.removeprefix("node"))
    allowed = os.sched_getaffinity(0)
    online = _read_list(root / "cpu" / "online") or allowed
    return sorted(
        Core(node_of.get(cpu, 0), _cache_of(root, cpu), cpu) for cpu in allowed & online
    )


def _cache_of(root: Path, cpu: int) -> int:
    """Return the lowest processor that shares the last-level cache with this one."""
    levels: dict[int, set[int]] = {}
    for folder in root.glob(f"cpu/cpu{cpu}/cache/index[0-9]*"):
        level = _read_text(folder / "level")
        if level.isdecimal():
            levels[int(level)] = _read_list(folder / "shared_cpu_list")
    return min(levels[max(levels)], default=0) if levels else 0


def _read_list(path: Path) -> set[int]:
    """Parse a list of numbers as in 0-3,8; one that cannot be read is empty."""
    numbers: set[int] = set()
    for part in _read_text(path).split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def place_workers(workers: int, mode: str, cores: list[Core]) -> Placement | None:
    """Spread the workers over the cores; None if there is nothing to decide.

    mode: "auto" binds each worker to the cores that share a cache, if there is more
        than one memory node; "pin" binds each to one core; "off" does nothing.

    Neighbouring workers come to lie near each other, and as many on each core as the
    numbers allow. A pure function.
    """
    nodes = {core.node for core in cores}
    if mode == "off" or not cores or (mode == "auto" and len(nodes) == 1):
        return None
    chosen = [cores[index * len(cores) // workers] for index in range(workers)]
    caches = sorted({(core.node, core.cache) for core in chosen})
    together = {
        core: frozenset(
            other.cpu
            for other in cores
            if (other.node, other.cache) == (core.node, core.cache)
        )
        for core in set(chosen)
    }
    return Placement(
        array("I", [caches.index((c.node, c.cache)) for c in chosen]).tobytes(),
        array("I", [core.node for core in chosen]).tobytes(),
        tuple(
            frozenset({core.cpu}) if mode == "pin" else together[core]
            for core in chosen
        ),
        touches=len(nodes) > 1,
    )
