"""BufferPool: its limit, its counts, its end; threads and forks."""

from __future__ import annotations

import gc
import os
import sys
import weakref

import pytest

from ftbus import ArenaLimitError, Buffer, BufferPool, PoolStats, _core
from ftbus.buffers import ClassStats, default_pool
from ftbus.testing import run_threads


class TestLimit:
    def test_is_an_error_with_its_facts(self) -> None:
        pool = BufferPool(limit_bytes=100_000, name="small")
        with pytest.raises(ArenaLimitError, match="small") as caught:
            pool.allocate(200_000)
        assert caught.value.pool is pool
        assert caught.value.requested_bytes == 200_000
        assert caught.value.limit_bytes == pool.limit_bytes == 100_000
        assert isinstance(caught.value, MemoryError)
        with pytest.raises(ArenaLimitError):
            pool.from_bytes(bytes(200_000))
        assert pool.stats().reserved_bytes == 0

    def test_holds_and_recovers(self) -> None:
        pool = BufferPool(limit_bytes=100_000)
        held: list[Buffer] = []
        with pytest.raises(ArenaLimitError):
            held.extend(pool.allocate(1000) for _ in range(200))
        assert len(held) > 70
        assert pool.stats().peak_bytes <= 100_000
        held.clear()
        # The memory is cached in pieces of 1000 bytes, and must be given back first.
        assert len(pool.allocate(60_000)) == 60_000

    def test_must_make_sense(self) -> None:
        with pytest.raises(ValueError, match="-1 is negative"):
            BufferPool(limit_bytes=-1)
        with pytest.raises(TypeError):
            BufferPool(100)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            BufferPool(name=b"x")  # type: ignore[arg-type]


class TestPool:
    def test_stats_add_up(self) -> None:
        pool = BufferPool(name="test")
        held = [pool.allocate(size) for size in (10, 10, 1000, 500_000)]
        pool.allocate(10)
        stats = pool.stats()
        assert isinstance(stats, PoolStats)
        assert isinstance(stats.classes[0], ClassStats)
        assert stats.name == pool.name == "test"
        assert (stats.live, stats.large_live, stats.caches) == (4, 1, 1)
        assert stats.allocs == 5 == stats.live + stats.frees
        assert stats.allocs == stats.hits + stats.misses
        assert stats.live_bytes >= 501_020
        assert stats.peak_bytes >= stats.reserved_bytes > stats.live_bytes
        assert [(c.capacity_bytes, c.live, c.cached) for c in stats.classes] == [
            (64, 2, 1),
            (1024, 1, 0),
        ]
        assert stats.hit_rate == stats.hits / 5
        assert "'test', 4 live" in repr(pool)
        held.clear()

    def test_trim_gives_back(self) -> None:
        pool = BufferPool(name="test")
        buf = pool.allocate(1000)
        pool.allocate(1000)
        pool.allocate(5000)
        assert pool.trim() > 6000
        assert pool.trim() == 0
        del buf
        assert pool.trim() == 1152 + (pool.stats().reserved_bytes)

    def test_buffers_outlive_their_pool(self) -> None:
        pool = BufferPool()
        small, large = pool.from_bytes(b"abc"), pool.allocate(400_000)
        view = memoryview(large)
        del pool, large
        gc.collect()
        assert small == b"abc"
        view[399_999] = 1

    def test_pools_come_and_go(self) -> None:
        for i in range(200):
            pool = BufferPool(limit_bytes=i * 1000, name=f"pool {i}")
            reference = weakref.ref(pool)
            assert pool.allocate(10).nbytes == 10 if i else True
            del pool
            assert reference() is None

    def test_the_default_pool_is_shared(self) -> None:
        assert default_pool is _core.default_pool
        assert default_pool.name == "default"
        assert default_pool.limit_bytes == 0

    def test_types_are_final(self) -> None:
        for kind in (Buffer, BufferPool):
            with pytest.raises(TypeError):
                type("Sub", (kind,), {})


class TestThreads:
    def test_buffers_made_here_and_dropped_there(self) -> None:
        pool = BufferPool(name="test")
        rounds = 3000
        queues: list[list[Buffer]] = [[], []]

        def body(ix: int) -> None:
            if ix < 2:
                for i in range(rounds):
                    data = bytes([i % 256]) * (10 + i % 500)
                    queues[ix].append(pool.from_bytes(data))
                return
            taken = 0
            while taken < rounds:
                try:
                    buf = queues[ix - 2].pop()
                except IndexError:
                    continue
                assert bytes(buf) == bytes([buf[0]]) * len(buf)
                taken += 1

        run_threads(4, body)
        stats = pool.stats()
        assert stats.live == 0
        assert stats.allocs == stats.frees == 2 * rounds

    def test_one_buffer_read_by_many(self, pool: BufferPool) -> None:
        buf = pool.from_bytes(bytes(range(256)))

        def body(ix: int) -> None:
            for i in range(2000):
                part = buf[i % 200 : i % 200 + 50]
                assert part[0] == i % 200
                assert hash(part[:3]) == hash(bytes(part[:3]))
                with memoryview(part) as view:
                    assert view[-1] == i % 200 + 49

        run_threads(4, body)
        assert buf.refcount == 1

    def test_short_threads_leave_nothing(self) -> None:
        pool = BufferPool(name="test")
        for _ in range(50):
            run_threads(4, lambda ix: pool.allocate(1000).release())
        stats = pool.stats()
        assert stats.caches <= 8
        assert stats.reserved_bytes <= 8 * 2000

    @pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="no such build")
    def test_the_gil_stays_as_it_was(self) -> None:
        import sysconfig

        free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
        assert sys._is_gil_enabled() is (not free_threaded) or os.environ.get(
            "PYTHON_GIL"
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_child_can_allocate() -> None:
    child = os.fork()
    if child == 0:
        ok = False
        try:
            ok = bytes(default_pool.from_bytes(b"abc")) == b"abc"
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
