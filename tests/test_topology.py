"""Where workers go, on machines that are only folders."""

import os
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest

from ftbus import EventBus, InvalidOptionError, topology
from ftbus.testing import eventually
from ftbus.topology import Core, place_workers, read_cores

linux_only = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system has no affinity masks"
)


def make_system(root: Path, nodes: list[list[list[int]]], offline: set[int]) -> Path:
    """Write a /sys: nodes of caches of processors."""
    every = {cpu for node in nodes for cache in node for cpu in cache}
    (root / "cpu").mkdir(parents=True)
    (root / "cpu" / "online").write_text(listed(every - offline))
    for number, node in enumerate(nodes):
        folder = root / "node" / f"node{number}"
        folder.mkdir(parents=True)
        folder.joinpath("cpulist").write_text(listed({c for g in node for c in g}))
        for cache in node:
            for cpu in cache:
                for index, (level, sharers) in enumerate([(1, {cpu}), (3, {*cache})]):
                    place = root / "cpu" / f"cpu{cpu}" / "cache" / f"index{index}"
                    place.mkdir(parents=True)
                    (place / "level").write_text(f"{level}\n")
                    (place / "shared_cpu_list").write_text(listed(sharers - offline))
    return root


def listed(cpus: set[int]) -> str:
    """Write numbers as the kernel does, with ranges where it can."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs) + "\n"


TWO_BY_EIGHT = [[[*range(8)]], [[*range(8, 16)]]]
FOUR_BY_SIXTEEN = [
    [[*range(n * 16, n * 16 + 8)], [*range(n * 16 + 8, n * 16 + 16)]] for n in range(4)
]
ASYMMETRIC = [[[0, 1, 2, 3], [4, 5]], [[6]]]
INTERLEAVED = [[[0, 2, 4, 6]], [[1, 3, 5, 7]]]  # as BIOSes number them, too


def cores_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[list[list[int]]],
    offline: set[int] | None = None,
    allowed: set[int] | None = None,
) -> list[Core]:
    every = {cpu for node in nodes for cache in node for cpu in cache}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed or every)
    return read_cores(make_system(tmp_path, nodes, offline or set()))


@linux_only
@pytest.mark.thread_unsafe(reason="patches os")
@pytest.mark.parametrize(
    "nodes", [TWO_BY_EIGHT, FOUR_BY_SIXTEEN, ASYMMETRIC, INTERLEAVED]
)
def test_cores_are_read_with_node_and_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[list[list[int]]]
) -> None:
    assert cores_of(tmp_path, monkeypatch, nodes) == [
        Core(number, min(cache), cpu)
        for number, node in enumerate(nodes)
        for cache in node
        for cpu in cache
    ]


@linux_only
@pytest.mark.thread_unsafe(reason="patches os")
def test_cores_offline_or_outside_the_mask_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = cores_of(
        tmp_path, monkeypatch, TWO_BY_EIGHT, offline={1, 9}, allowed={0, 1, 2, 8, 9}
    )
    assert [core.cpu for core in cores] == [0, 2, 8]
    assert [core.node for core in cores] == [0, 0, 1]


@linux_only
def test_what_the_system_does_not_tell_counts_as_shared(tmp_path: Path) -> None:
    cores = read_cores(tmp_path)
    assert {core.cpu for core in cores} == os.sched_getaffinity(0)
    assert {(core.node, core.cache) for core in cores} == {(0, 0)}


@linux_only
def test_this_machine_can_be_read() -> None:
    assert {core.cpu for core in read_cores()} <= os.sched_getaffinity(0)
    assert read_cores()


def groups(packed: bytes) -> list[int]:
    return list(array("I", packed))


def machine(nodes: list[list[list[int]]]) -> list[Core]:
    return [
        Core(number, min(cache), cpu)
        for number, node in enumerate(nodes)
        for cache in node
        for cpu in cache
    ]


def test_one_node_is_nothing_to_decide() -> None:
    assert place_workers(4, "auto", machine([[[0, 1], [2, 3]]])) is None
    assert place_workers(4, "off", machine(TWO_BY_EIGHT)) is None
    assert place_workers(4, "auto", []) is None


def test_workers_are_spread_over_the_nodes_and_caches() -> None:
    placed = place_workers(8, "auto", machine(FOUR_BY_SIXTEEN))
    assert placed is not None
    assert groups(placed.node_of) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert groups(placed.cache_of) == list(range(8))
    assert placed.touches
    assert placed.cpus[3] == frozenset(range(24, 32))
    assert not set.intersection(*map(set, placed.cpus))


def test_more_workers_than_cores_share_them_evenly() -> None:
    placed = place_workers(32, "pin", machine(TWO_BY_EIGHT))
    assert placed is not None
    assert groups(placed.node_of) == [0] * 16 + [1] * 16
    assert list(placed.cpus[::2]) == [frozenset({n}) for n in range(16)]
    assert placed.cpus[::2] == placed.cpus[1::2]


def test_pinning_binds_each_worker_to_one_core_on_any_machine() -> None:
    placed = place_workers(2, "pin", machine([[[0, 1, 2, 3]]]))
    assert placed is not None
    assert placed.cpus == (frozenset({0}), frozenset({2}))
    assert not placed.touches


@pytest.mark.parametrize("nodes", [TWO_BY_EIGHT, FOUR_BY_SIXTEEN, ASYMMETRIC])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64, 100])
def test_groups_ascend_as_the_pool_wants_them(
    nodes: list[list[list[int]]], workers: int
) -> None:
    placed = place_workers(workers, "auto", machine(nodes))
    assert placed is not None
    pairs = list(zip(groups(placed.node_of), groups(placed.cache_of), strict=True))
    assert pairs == sorted(pairs)
    assert len({cache: node for node, cache in pairs}) == len(set(pairs))
    assert len(pairs) == len(placed.cpus) == workers


@linux_only
def test_pinned_workers_run_where_they_belong() -> None:
    with EventBus(workers=2, numa="pin") as bus:
        seen: set[tuple[str, frozenset[int]]] = set()

        def handler(event: object) -> None:
            name = threading.current_thread().name
            seen.add((name, frozenset(os.sched_getaffinity(0))))

        bus.on("key", handler)

        def both_have_run() -> bool:
            bus.post_many("key", range(200))
            assert bus.drain(30)
            return len(seen) == 2

        eventually(both_have_run)
    cores = read_cores()
    first, last = cores[0].cpu, cores[len(cores) // 2].cpu
    assert {name.rsplit("-")[-1]: cpus for name, cpus in seen} == {
        "0": frozenset({first}),
        "1": frozenset({last}),
    }


@linux_only
@pytest.mark.thread_unsafe(reason="patches the module")
@pytest.mark.parametrize("nodes", [TWO_BY_EIGHT, ASYMMETRIC])
def test_bus_works_on_a_machine_with_several_nodes(
    monkeypatch: pytest.MonkeyPatch, nodes: list[list[list[int]]]
) -> None:
    monkeypatch.setattr(topology, "read_cores", lambda: machine(nodes))
    with EventBus(workers=5, numa="auto") as bus:
        seen: list[int] = []
        bus.on("key", seen.append)
        for i in range(500):
            bus.post("key", i, partition=i % 7)
        bus.post_many("key", range(500, 1000))
        assert bus.drain(30)
        assert sorted(seen) == list(range(1000))


def test_invalid_numa_is_refused() -> None:
    value: Any = "yes"
    with pytest.raises(InvalidOptionError) as caught:
        EventBus(numa=value)
    assert caught.value.option == "numa"
