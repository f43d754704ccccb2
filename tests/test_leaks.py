"""Leak levels: which buffers are still held, where they came from, what is reported."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from natively import STEAL

from ftbus import Buffer, BufferPool, EventBus, InvalidOptionError, _core
from ftbus.buffers import default_pool, held_buffers, leak_level, set_leak_level
from ftbus.testing import no_leaks, run_threads

pytestmark = pytest.mark.thread_unsafe(reason="the level is the process's")

Run = Callable[..., subprocess.CompletedProcess[str]]
HERE = "test_leaks.py"


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Watch all, and restore the level of this run afterwards."""
    before: Any = leak_level()
    set_leak_level("all")
    yield
    set_leak_level(before)


def allocate_here(pool: BufferPool, size: int = 10) -> Buffer:
    return pool.allocate(size)


class TestHeldBuffers:
    def test_name_the_place_of_allocation_with_its_callers(self) -> None:
        pool = BufferPool()
        buffer = allocate_here(pool, 123)
        (held,) = held_buffers(pool)
        assert held.size_bytes == 123
        assert held.thread == threading.get_ident()
        assert held.site[0].endswith("in allocate_here")
        assert HERE in held.site[0]
        assert "test_name_the_place" in held.site[1]
        assert held.touches == ()
        assert str(held).splitlines()[1] == f"    {held.site[0]}"
        del buffer
        assert held_buffers(pool) == []

    def test_name_the_last_four_places_of_use(self) -> None:
        pool = BufferPool()
        buffer = allocate_here(pool)

        def write() -> None:
            buffer[0] = 1

        def export() -> None:
            memoryview(buffer).release()

        def cut() -> None:
            buffer[2:4].release()

        def freeze() -> None:
            buffer.freeze()

        def look() -> None:
            bytes(buffer)

        for use in (write, export, cut, freeze, look):
            use()
        (held,) = held_buffers(pool)
        names = [touch.rpartition(".")[2] for touch in held.touches]
        assert names == ["look", "freeze", "cut", "export"]

    def test_the_same_place_twice_in_a_row_counts_once(self) -> None:
        pool = BufferPool()
        buffer = pool.allocate(8)
        for index in range(8):
            buffer[index] = index
        (held,) = held_buffers(pool)
        assert len(held.touches) == 1
        del buffer

    def test_are_held_by_slices_exports_and_native_code_too(self) -> None:
        pool = BufferPool()
        part: Any = allocate_here(pool)[2:4]
        assert len(held_buffers(pool)) == 1
        part = memoryview(part)
        assert len(held_buffers(pool)) == 1
        part.release()
        del part
        assert held_buffers(pool) == []

    def test_are_listed_in_order_of_allocation(self) -> None:
        pool = BufferPool()
        sizes = [64, 300_000, 1, 5000, 1]
        buffers = [pool.allocate(size) for size in sizes]
        assert [held.size_bytes for held in held_buffers(pool)] == sizes
        everywhere = [held.serial for held in held_buffers()]
        assert everywhere == sorted(everywhere)
        assert len(everywhere) >= len(sizes)
        buffers.clear()
        assert held_buffers(pool) == []

    def test_stay_known_when_the_level_goes_down(self) -> None:
        pool = BufferPool()
        watched = pool.allocate(1)
        set_leak_level("off")
        unwatched = pool.allocate(1)
        assert len(held_buffers(pool)) == 1
        del watched
        assert held_buffers(pool) == []
        del unwatched

    def test_of_threads_that_come_and_go(self) -> None:
        pool = BufferPool()

        def work(index: int) -> list[Buffer]:
            buffers = [pool.allocate(64) for _ in range(100)]
            for buffer in buffers:
                buffer[0] = index
            return buffers[::2]

        kept = run_threads(4, work)
        held = held_buffers(pool)
        assert len(held) == 200
        assert len({one.serial for one in held}) == 200
        assert all("work" in one.site[0] for one in held)
        kept.clear()
        assert held_buffers(pool) == []

    def test_take_nothing_but_a_pool_or_a_bus(self) -> None:
        with pytest.raises(TypeError, match="neither a BufferPool nor a bus"):
            held_buffers(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            _core.watched_buffers(default_pool, 1)  # type: ignore[call-arg]


class TestLevels:
    def test_sampled_watches_one_in_128(self) -> None:
        set_leak_level("sampled")
        pool = BufferPool()
        buffers = [pool.allocate(64) for _ in range(128 * 20)]
        assert len(held_buffers(pool)) == 20
        buffers.clear()
        assert held_buffers(pool) == []

    def test_sampled_counts_over_short_threads_too(self) -> None:
        set_leak_level("sampled")
        pool = BufferPool()
        kept: list[Buffer] = []
        for _ in range(128):
            thread = threading.Thread(
                target=lambda: kept.extend([pool.allocate(64) for _ in range(16)])
            )
            thread.start()
            thread.join()
        assert 4 <= len(held_buffers(pool)) <= 32  # 16 on average
        kept.clear()

    def test_off_watches_nothing(self) -> None:
        set_leak_level("off")
        pool = BufferPool()
        buffers = [pool.allocate(64) for _ in range(500)]
        assert held_buffers(pool) == []
        assert leak_level() == "off"
        buffers.clear()

    def test_another_level_is_refused(self) -> None:
        with pytest.raises(InvalidOptionError, match="level='some'"):
            set_leak_level("some")  # type: ignore[arg-type]
        assert leak_level() == "all"
        with pytest.raises(ValueError, match="not in 0"):
            _core.watch_buffers(129)
        with pytest.raises((TypeError, OverflowError)):
            _core.watch_buffers(-1)


class TestReports:
    def test_a_pool_that_ends_names_what_outlives_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = BufferPool(name="short")
        buffer = allocate_here(pool)
        with caplog.at_level(logging.WARNING, "ftbus.buffers"):
            del pool
        (record,) = caplog.records
        assert "outlive their pool 'short': 1" in record.getMessage()
        assert "in allocate_here" in record.getMessage()
        del buffer

    def test_a_pool_whose_buffers_are_back_says_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = BufferPool()
        pool.allocate(1)
        del pool
        assert caplog.records == []

    def test_a_bus_that_closes_names_what_it_encoded(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept: list[Buffer] = []
        other = default_pool.allocate(5)
        bus = EventBus(name="closing")
        bus.on("key", kept.append, encoded=True)

        def emit_here() -> None:
            bus.emit("key", [1, 2, 3])

        emit_here()
        assert len(held_buffers(bus)) == 1
        bus.close()
        bus.close()
        (record,) = caplog.records
        assert "that outlive <EventBus 'closing', closed>" in record.getMessage()
        assert "emit_here" in record.getMessage()
        assert "7 bytes" in record.getMessage()
        kept.clear()
        del other

    def test_a_bus_whose_buffers_are_in_garbage_says_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Node:
            pass

        def keep(event: Buffer) -> None:
            node: Any = Node()
            node.self = node
            node.event = event

        with EventBus() as bus:
            bus.on("key", keep, encoded=True)
            bus.emit("key", [1])
        assert caplog.records == []
        gc.collect()

    def test_exit_names_what_is_still_held(self, python: Run) -> None:
        program = (
            "import ftbus\ndef f():\n    global b\n    b = ftbus.Buffer(b'x')\nf()"
        )
        run = python(program, FTBUS_LEAK_LEVEL="all")
        assert run.returncode == 0
        assert "still held at exit: 1\n" in run.stderr
        assert "<string>:4 in f\n    <string>:5 in <module>" in run.stderr
        run = python(f"{program}\ndel b", FTBUS_LEAK_LEVEL="all")
        assert run.stderr == ""
        run = python(program)
        assert run.stderr == ""

    def test_long_reports_are_cut(self, caplog: pytest.LogCaptureFixture) -> None:
        pool = BufferPool()
        buffers = [pool.allocate(1) for _ in range(25)]
        del pool
        assert "... and 5 more" in caplog.text
        buffers.clear()

    def test_a_level_in_the_environment_that_is_none_is_said(self, python: Run) -> None:
        program = "import ftbus.buffers; print(ftbus.buffers.leak_level())"
        run = python(program, FTBUS_LEAK_LEVEL="maximal")
        assert run.stdout == "off\n"
        assert "FTBUS_LEAK_LEVEL='maximal' is none of off, sampled, all" in run.stderr
        assert python(program, FTBUS_LEAK_LEVEL="sampled").stdout == "sampled\n"

    @pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
    def test_a_fork_child_begins_with_nothing_held(self, python: Run) -> None:
        program = (
            "import os, sys, warnings; warnings.simplefilter('ignore')\n"
            "import ftbus; from ftbus.buffers import held_buffers\n"
            "b = ftbus.Buffer(b'x'); pid = os.fork()\n"
            "if pid == 0:\n"
            "    c = ftbus.Buffer(b'y'); n = len(held_buffers()); del b, c\n"
            "    os._exit(0 if n == 1 and not held_buffers() else 1)\n"
            "ok = os.waitpid(pid, 0)[1] == 0 and len(held_buffers()) == 1\n"
            "del b; sys.exit(0 if ok else 1)\n"
        )
        run = python(program, FTBUS_LEAK_LEVEL="all")
        assert (run.returncode, run.stderr) == (0, "")


def test_no_leaks_names_the_places() -> None:
    kept: list[Buffer] = []
    with (
        pytest.raises(
            AssertionError, match=r"(?s)1 buffers\n1 bytes.*in allocate_here"
        ),
        no_leaks(within=0),
    ):
        kept.append(allocate_here(default_pool, 1))
    kept.clear()


class TestMisuse:
    def test_a_double_free_names_the_places(self, python: Run) -> None:
        """The core ends the process, and says where the memory came from."""
        program = (
            STEAL + "from ftbus import default_pool\n"
            "def make():\n"
            "    return default_pool.allocate(100).freeze()\n"
            "buffer = make()\n"
            "steal(buffer)\n"
            "del buffer\n"
        )
        run = python(program, FTBUS_LEAK_LEVEL="all")
        assert run.returncode < 0
        assert "released too often (double free)" in run.stderr
        places = "allocated at:\n<string>:16 in make\n<string>:17 in <module>"
        assert places in run.stderr
        assert "released at: <string>:13 in steal" in run.stderr
