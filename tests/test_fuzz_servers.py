"""Mutated requests to the servers: sound answers, no crash, bounded memory."""

import threading
from pathlib import Path
from typing import Any

import fuzz_servers
import pytest

from ftbus import EventBus
from ftbus.monitoring.stats_server import REQUEST_BYTES_MAX
from ftbus.testing import eventually

pytestmark = pytest.mark.thread_unsafe(reason="it counts the threads of the process")

ROUNDS = 200
GROWTH_MAX = 64 << 20


def test_servers_answer_whatever_is_sent(
    tmp_path: Path, seed: int, caplog: Any
) -> None:
    threads = threading.active_count()
    fuzz_servers.run_all(seed, 40, tmp_path)  # what is allocated once is not counted
    before = fuzz_servers.peak_bytes()
    fuzz_servers.run_all(seed + 1, ROUNDS, tmp_path)
    assert fuzz_servers.peak_bytes() - before < GROWTH_MAX
    assert eventually(lambda: threading.active_count() <= threads, 30)
    assert caplog.records == []


def test_answer_takes_any_line(seed: int, tmp_path: Path) -> None:
    mutator = fuzz_servers.Mutator("stats_server", seed)
    with (
        EventBus(name="fuzzed") as bus,
        bus.serve_stats(tmp_path / "fuzzed.sock") as server,
    ):
        for _ in range(5000):
            line = mutator.next()[:REQUEST_BYTES_MAX]
            reply, _ = server.answer(line)
            assert reply.endswith(b"\n")
            fuzz_servers.check_stats_answer(line, reply)


def test_corpora_are_read_and_mutated(seed: int) -> None:
    for name in ("stats_server", "dashboard"):
        one = fuzz_servers.Mutator(name, seed)
        two = fuzz_servers.Mutator(name, seed)
        made = [one.next() for _ in range(200)]
        assert made == [two.next() for _ in range(200)]
        assert len(set(made)) > 100
