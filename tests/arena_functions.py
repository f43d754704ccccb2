"""The arena through ftbus.cabi, function by function; test_cabi.py runs this."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ftbus
from ftbus import BufferPool, EventBus, HandleError, cabi, default_pool, testing
from ftbus.cabi import arena_of, buffer_from_handle, ffi, handle_of, lib

SIZES = [0, 1, 63, 64, 65, 1000, 4096, 40_000, 256 * 1024, 300_000]


@pytest.fixture
def arena() -> Iterator[Any]:
    """Yield an arena made in C, and require that the test gave everything back."""
    arena = lib.ftb_arena_new(0)
    assert arena != ffi.NULL
    yield arena
    assert stats_of(arena).live_blocks == 0
    assert lib.ftb_arena_check(arena) == 1
    lib.ftb_arena_free(arena)


def stats_of(arena: Any) -> Any:
    stats = ffi.new("struct ftb_arena_stats *")
    lib.ftb_arena_stats(arena, stats)
    return stats


def filled(arena: Any, content: bytes) -> Any:
    """Return a block with that content and one reference."""
    block = lib.ftb_block_new(arena, len(content))
    ffi.memmove(lib.ftb_block_data(block), content, len(content))
    return block


def content_of(block: Any) -> bytes:
    return bytes(ffi.buffer(lib.ftb_block_data(block), lib.ftb_block_length(block)))


def take(handle: int, arena: Any = ffi.NULL, unique: int = 0) -> tuple[int, Any]:
    share = ffi.new("struct ftb_share *")
    return lib.ftb_handle_take(handle, arena, unique, share), share


class TestBinding:
    def test_it_has_what_the_header_has(self) -> None:
        header = (Path(ftbus.get_include()) / "ftb_arena.h").read_text()
        functions = re.findall(r"^[a-z][\w* ]*?\b(ftb_\w+)\(", header, re.MULTILINE)
        constants = re.findall(r"^ +(FTB_\w+) = |^#define (FTB_\w+) \d", header, re.M)
        names = {*functions, *(a or b for a, b in constants)}
        assert len(functions) > 20
        assert set(dir(lib)) == names

    def test_every_function_is_driven_here(self) -> None:
        source = Path(__file__).read_text()
        functions = [name for name in dir(lib) if name.startswith("ftb_")]
        assert [name for name in functions if f"lib.{name}(" not in source] == []

    def test_constants_and_layouts_are_those_of_the_compiler(self) -> None:
        assert lib.FTB_ARENA_CLASSES == 49
        assert lib.FTB_BLOCK_MAX_BYTES == 2**39
        assert (lib.FTB_BLOCK_OK, lib.FTB_BLOCK_LIMIT, lib.FTB_BLOCK_NOMEM) == (0, 1, 3)
        assert ffi.sizeof("struct ftb_arena_stats") == 8 * (11 + 49 * 5)
        assert ffi.sizeof("struct ftb_share") == 24

    def test_its_functions_are_those_of_the_running_core(self) -> None:
        before = default_pool.live
        block = lib.ftb_block_new(arena_of(), 10)
        assert default_pool.live == before + 1
        lib.ftb_block_release(block)
        assert default_pool.live == before


class TestArenas:
    def test_both_sides_read_the_same_counters(self) -> None:
        pool = BufferPool(limit_bytes=1 << 20, name="test")
        arena = arena_of(pool)
        block = filled(arena, b"from C")
        buf = pool.from_bytes(bytes(100_000))
        theirs, ours = stats_of(arena), pool.stats()
        assert ours.live == theirs.live_blocks == 2
        for name in ("limit_bytes", "reserved_bytes", "peak_bytes", "live_bytes"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in ("allocs", "frees", "hits", "misses", "large_live", "caches"):
            assert getattr(ours, name) == getattr(theirs, name)
        used = [each for each in theirs.classes if each.allocs]
        assert [each.capacity_bytes for each in used] == [
            each.capacity_bytes for each in ours.classes
        ]
        assert [(each.live, each.cached) for each in used] == [(1, 0), (1, 0)]
        lib.ftb_block_release(block)
        buf.release()
        assert pool.live == stats_of(arena).live_blocks == 0
        assert lib.ftb_arena_check(arena) == 1

    def test_a_pool_lives_as_long_as_its_pointer(self) -> None:
        arena = arena_of(BufferPool(name="test"))
        block = filled(arena, b"still there")
        assert content_of(block) == b"still there"
        lib.ftb_block_release(block)

    def test_only_pools_have_arenas(self) -> None:
        with pytest.raises(TypeError, match="BufferPool"):
            arena_of(b"pool")  # type: ignore[arg-type]

    def test_the_limit_holds_and_is_told_apart_from_no_memory(self) -> None:
        arena = lib.ftb_arena_new(10_000)
        block = ffi.new("ftb_block_t **")
        assert lib.ftb_block_try_new(arena, 5000, block) == lib.FTB_BLOCK_OK
        assert lib.ftb_block_try_new(arena, 6000, block) == lib.FTB_BLOCK_LIMIT
        assert lib.ftb_block_new(arena, 6000) == ffi.NULL
        lib.ftb_block_release(block[0])
        lib.ftb_arena_free(arena)
        lib.ftb_arena_free(ffi.NULL)

    def test_absurd_sizes_are_no_memory(self, arena: Any) -> None:
        block = ffi.new("ftb_block_t **")
        for size in (2**39 + 1, 2**63, 2**64 - 1):
            assert lib.ftb_block_try_new(arena, size, block) == lib.FTB_BLOCK_NOMEM
        assert block[0] == ffi.NULL

    def test_trim_gives_all_back(self, arena: Any) -> None:
        blocks = [lib.ftb_block_new(arena, size) for size in SIZES]
        for block in blocks:
            lib.ftb_block_release(block)
        reserved = stats_of(arena).reserved_bytes
        assert reserved > 256 * 1024
        assert lib.ftb_arena_trim(arena) == reserved
        assert stats_of(arena).reserved_bytes == 0
        assert stats_of(arena).peak_bytes > reserved  # the large one went at once

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_fork_child_may_go_on(self, arena: Any) -> None:
        block = filled(arena, b"from the parent")
        child = os.fork()
        if child == 0:
            lib.ftb_arena_after_fork_child()
            own = filled(arena, b"own")
            good = content_of(own) == b"own" and content_of(block) != b"own"
            lib.ftb_block_release(own)
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        lib.ftb_block_release(block)


class TestBlocks:
    @pytest.mark.parametrize("size", SIZES)
    def test_holds_what_was_asked_for(self, arena: Any, size: int) -> None:
        block = lib.ftb_block_new(arena, size)
        assert lib.ftb_block_length(block) == size
        assert lib.ftb_block_capacity(block) >= size
        assert int(ffi.cast("uintptr_t", lib.ftb_block_data(block))) % 64 == 0
        ffi.buffer(lib.ftb_block_data(block), size)[:] = b"\xaa" * size
        assert content_of(block) == b"\xaa" * size
        lib.ftb_block_release(block)
        again = lib.ftb_block_new(arena, size)
        lib.ftb_block_zero(again, size)
        assert content_of(again) == bytes(size)
        lib.ftb_block_release(again)

    def test_length_can_be_set_up_to_the_capacity(self, arena: Any) -> None:
        block = lib.ftb_block_new(arena, 10)
        capacity = lib.ftb_block_capacity(block)
        for length in (0, 7, capacity):
            lib.ftb_block_set_length(block, length)
            assert lib.ftb_block_length(block) == length
        lib.ftb_block_release(block)

    def test_references_are_counted(self, arena: Any) -> None:
        block = lib.ftb_block_new(arena, 10)
        assert lib.ftb_block_is_unique(block) == 1
        assert lib.ftb_block_retain(block) == block
        lib.ftb_block_retain_many(block, 5)
        assert lib.ftb_block_refcount(block) == 7
        assert lib.ftb_block_is_unique(block) == 0
        for left in range(6, 0, -1):
            lib.ftb_block_release(block)
            assert lib.ftb_block_refcount(block) == left
        assert lib.ftb_block_is_unique(block) == 1
        lib.ftb_block_release(block)

    def test_the_generation_tells_of_recycling(self, arena: Any) -> None:
        block = lib.ftb_block_new(arena, 10)
        generation = lib.ftb_block_generation(block)
        lib.ftb_block_release(block)
        assert lib.ftb_block_new(arena, 10) == block
        assert lib.ftb_block_generation(block) == generation + 1
        lib.ftb_block_release(block)


class TestHandles:
    def test_from_c_to_c(self, arena: Any) -> None:
        before = lib.ftb_handle_count()
        handle = lib.ftb_handle_new(filled(arena, b"packet"), 1, 4)
        assert handle != 0
        assert lib.ftb_handle_count() == before + 1
        result, share = take(handle)
        assert result == lib.FTB_HANDLE_OK
        assert (share.start, share.length) == (1, 4)
        assert content_of(share.block) == b"packet"
        assert take(handle)[0] == lib.FTB_HANDLE_STALE
        lib.ftb_block_release(share.block)
        assert lib.ftb_handle_count() == before

    def test_ranges_beyond_the_length_get_none(self, arena: Any) -> None:
        block = filled(arena, b"packet")
        for start, length in ((0, 7), (7, 0), (6, 1), (2**64 - 1, 1), (1, 2**64 - 1)):
            assert lib.ftb_handle_new(block, start, length) == 0
        assert lib.ftb_block_refcount(block) == 1
        lib.ftb_block_release(block)

    def test_refusals_leave_the_handle(self, arena: Any) -> None:
        block = lib.ftb_block_retain(filled(arena, b"packet"))
        handle = lib.ftb_handle_new(block, 0, 6)
        assert take(handle, arena_of())[0] == lib.FTB_HANDLE_FOREIGN
        assert take(handle, arena, 1)[0] == lib.FTB_HANDLE_SHARED
        lib.ftb_block_release(block)
        result, share = take(handle, arena, 1)
        assert result == lib.FTB_HANDLE_OK
        lib.ftb_block_release(share.block)

    def test_a_block_that_c_filled_becomes_a_buffer(self, arena: Any) -> None:
        block = filled(arena, b"from the net")
        address = int(ffi.cast("uintptr_t", block))
        buf = buffer_from_handle(lib.ftb_handle_new(block, 0, 12))
        assert (buf.address, buf.refcount, buf.readonly) == (address, 1, True)
        assert memoryview(buf) == b"from the net"
        assert stats_of(arena).live_blocks == 1
        buf.release()
        assert stats_of(arena).live_blocks == 0

    def test_it_may_be_writable_if_c_let_go(self, arena: Any) -> None:
        buf = buffer_from_handle(lib.ftb_handle_new(filled(arena, b"abc"), 0, 3), False)
        buf[0] = 65
        assert buf.freeze() == b"Abc"
        block = lib.ftb_block_retain(filled(arena, b"abc"))
        handle = lib.ftb_handle_new(block, 0, 3)
        with pytest.raises(HandleError, match="others hold"):
            buffer_from_handle(handle, False)
        assert buffer_from_handle(handle) == b"abc"
        lib.ftb_block_release(block)

    def test_a_buffer_is_shared_with_c(self) -> None:
        pool = BufferPool(name="test")
        buf = pool.from_bytes(b"0123456789")
        handle = handle_of(buf[3:6])
        assert buf.refcount == 2
        del buf
        result, share = take(handle, arena_of(pool))
        assert result == lib.FTB_HANDLE_OK
        data = lib.ftb_block_data(share.block) + share.start
        assert bytes(ffi.buffer(data, share.length)) == b"345"
        assert pool.live == 1
        lib.ftb_block_release(share.block)
        assert pool.live == 0

    def test_stale_handles_never_show_recycled_bytes(self, arena: Any) -> None:
        block = filled(arena, b"first")
        handle = lib.ftb_handle_new(block, 0, 5)
        lib.ftb_block_release(take(handle)[1].block)
        recycled = filled(arena, b"other")
        assert recycled == block
        with pytest.raises(HandleError) as caught:
            buffer_from_handle(handle)
        assert isinstance(caught.value, BufferError)
        assert lib.ftb_block_refcount(recycled) == 1
        lib.ftb_block_release(recycled)

    def test_the_wrong_pool_is_refused(self, arena: Any) -> None:
        handle = lib.ftb_handle_new(filled(arena, b"abc"), 0, 3)
        with pytest.raises(HandleError, match="another pool"):
            buffer_from_handle(handle, True, default_pool)
        assert buffer_from_handle(handle) == b"abc"

    @pytest.mark.parametrize("number", [0, -1, 2**64 - 1, 2**200])
    def test_other_integers_are_refused(self, number: int) -> None:
        with pytest.raises(HandleError):
            buffer_from_handle(number)
        if 0 <= number < 2**64:
            assert take(number)[0] == lib.FTB_HANDLE_STALE

    def test_pointers_are_not_handles(self, arena: Any) -> None:
        block = filled(arena, b"abc")
        with pytest.raises(TypeError):
            buffer_from_handle(block)
        with pytest.raises(HandleError):
            buffer_from_handle(int(ffi.cast("uintptr_t", block)))
        lib.ftb_block_release(block)

    def test_c_may_write_into_a_writable_buffer(self) -> None:
        buf = BufferPool(name="test").allocate(6)
        with ffi.from_buffer("unsigned char[]", buf, require_writable=True) as data:
            ffi.memmove(data, b"packet", 6)
            with pytest.raises(BufferError, match="may write"):
                buf.freeze()
        assert buf.freeze() == b"packet"

    def test_a_handler_reads_what_c_filled(self, arena: Any) -> None:
        seen = []
        with EventBus() as bus:
            bus.on("packet", lambda buf: seen.append(bytes(memoryview(buf)[1:])))
            for content in (b"1abc", b"2def"):
                block = filled(arena, content)
                handle = lib.ftb_handle_new(block, 0, len(content))
                bus.emit("packet", buffer_from_handle(handle))
        assert seen == [b"abc", b"def"]

    def test_threads_in_c_and_python(self) -> None:
        pool = BufferPool(name="test")
        arena = arena_of(pool)
        before = lib.ftb_handle_count()

        def work(thread: int) -> None:
            for i in range(500):
                content = b"%d %d" % (thread, i)
                handle = lib.ftb_handle_new(filled(arena, content), 0, len(content))
                back = handle_of(buffer_from_handle(handle, True, pool))
                result, share = take(back, arena, 1)
                assert result == lib.FTB_HANDLE_OK
                assert content_of(share.block) == content
                lib.ftb_block_release(share.block)

        testing.run_threads(4, work)
        assert lib.ftb_handle_count() == before
        assert pool.live == 0
        assert lib.ftb_arena_check(arena) == 1


@pytest.mark.thread_unsafe(reason="starts a process")
class TestMisuse:
    def test_a_release_too_many_ends_the_process(
        self, python: Callable[..., Any]
    ) -> None:
        done = python(
            "from ftbus.cabi import arena_of, lib\n"
            "block = lib.ftb_block_new(arena_of(), 10)\n"
            "lib.ftb_block_release(block)\n"
            "lib.ftb_block_release(block)\n"
        )
        assert done.returncode != 0
        assert "released too often" in done.stderr

    def test_a_buffer_notices_that_its_reference_was_released(
        self, python: Callable[..., Any]
    ) -> None:
        done = python(
            "import os\n"
            "from ftbus import Buffer\n"
            "from ftbus.cabi import arena_of, ffi, handle_of, lib\n"
            "buf = Buffer(b'mine')\n"
            "share = ffi.new('struct ftb_share *')\n"
            "lib.ftb_handle_take(handle_of(buf), ffi.NULL, 0, share)\n"
            "lib.ftb_block_release(share.block)\n"
            "lib.ftb_block_release(share.block)  # the Buffer's\n"
            "assert lib.ftb_block_new(arena_of(), 4) == share.block\n"
            "try:\n"
            "    print(bytes(buf))\n"
            "except BufferError as error:\n"
            "    print(error, flush=True)\n"
            "os._exit(0)\n"
        )
        assert done.stdout == "native code released the block of this Buffer\n"
        assert done.returncode == 0


def test_the_module_says_what_it_exports() -> None:
    assert cabi.__doc__
    assert sorted(cabi.__all__) == cabi.__all__
    assert all(hasattr(cabi, name) for name in cabi.__all__)
