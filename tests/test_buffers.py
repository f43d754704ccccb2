"""Buffer: bytes that threads share."""

from __future__ import annotations

import copy
import os
import pickle
import select
import socket
import struct
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ftbus import Buffer, BufferPool
from ftbus.buffers import default_pool
from ftbus.testing import run_threads

SIZES = [0, 1, 63, 64, 65, 1000, 4096, 40_000, 256 * 1024, 300_000]


class TestAllocate:
    @pytest.mark.parametrize("size", SIZES)
    def test_memory_is_zero_even_when_used_before(
        self, pool: BufferPool, size: int
    ) -> None:
        for _ in range(3):
            buf = pool.allocate(size)
            assert len(buf) == buf.nbytes == size
            assert bytes(buf) == bytes(size)
            assert not buf.readonly
            buf[:] = b"\xaa" * size
            buf.release()

    @pytest.mark.parametrize("size", [-1, -(2**80), 2**39 + 1, 2**63, 2**100])
    def test_absurd_sizes_are_named(self, pool: BufferPool, size: int) -> None:
        with pytest.raises(ValueError, match=str(size)):
            pool.allocate(size)

    @pytest.mark.parametrize("size", ["1", 1.0, None])
    def test_sizes_are_integers(self, pool: BufferPool, size: Any) -> None:
        with pytest.raises(TypeError):
            pool.allocate(size)

    def test_an_index_object_is_a_size(self, pool: BufferPool) -> None:
        class Three:
            def __index__(self) -> int:
                return 3

        assert len(pool.allocate(Three())) == 3

    def test_memory_comes_back_when_the_buffer_goes(self) -> None:
        pool = BufferPool(name="test")
        first = pool.allocate(1000).address
        assert pool.allocate(1000).address == first
        assert pool.live == 0

    def test_steady_use_never_misses(self) -> None:
        pool = BufferPool(name="test")
        pool.allocate(1024)
        before = pool.stats()
        for _ in range(1000):
            pool.allocate(1024)
        after = pool.stats()
        assert after.misses == before.misses
        assert after.hits == before.hits + 1000


class TestFromBytes:
    @pytest.mark.parametrize("size", SIZES)
    def test_is_a_frozen_copy(self, pool: BufferPool, size: int) -> None:
        source = bytearray(i % 251 for i in range(size))
        buf = pool.from_bytes(source)
        expected = bytes(source)
        source[:] = bytes(size)
        assert bytes(buf) == expected
        assert buf.readonly

    def test_takes_any_bytes_like_object(self, pool: BufferPool) -> None:
        for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
            assert pool.from_bytes(data) == b"abc"
        assert pool.from_bytes(pool.from_bytes(b"abc")) == b"abc"

    @pytest.mark.parametrize("data", ["abc", 3, None, [1, 2]])
    def test_refuses_all_else(self, pool: BufferPool, data: Any) -> None:
        with pytest.raises(TypeError):
            pool.from_bytes(data)

    def test_refuses_bytes_that_do_not_lie_together(self, pool: BufferPool) -> None:
        with pytest.raises(BufferError):
            pool.from_bytes(memoryview(b"abcdef")[::2])

    def test_the_constructor_copies_into_the_default_pool(self) -> None:
        assert Buffer(b"abc").readonly
        writable = Buffer(b"abc", readonly=False)
        writable[0] = 120
        assert writable == b"xbc"


class TestItems:
    def test_read_and_write(self, pool: BufferPool) -> None:
        buf = pool.allocate(4)
        buf[0], buf[-1] = 1, 255
        buf[1:3] = b"ab"
        assert [buf[i] for i in range(4)] == list(buf) == [1, 97, 98, 255]
        assert 97 in buf
        assert 96 not in buf

    def test_indexes_are_checked(self, pool: BufferPool) -> None:
        buf = pool.allocate(4)
        for index in (4, -5, 2**80):
            with pytest.raises(IndexError):
                buf[index]
            with pytest.raises(IndexError):
                buf[index] = 0
        with pytest.raises(TypeError):
            buf["0"]  # type: ignore[call-overload]

    @pytest.mark.parametrize("byte", [-1, 256, 2**80])
    def test_bytes_are_checked(self, pool: BufferPool, byte: int) -> None:
        with pytest.raises((ValueError, OverflowError)):
            pool.allocate(4)[0] = byte

    def test_a_slice_must_be_filled_exactly(self, pool: BufferPool) -> None:
        buf = pool.allocate(4)
        with pytest.raises(ValueError, match="3 bytes do not fill a slice of 2"):
            buf[0:2] = b"abc"
        assert bytes(buf) == bytes(4)

    def test_bytes_cannot_be_deleted(self, pool: BufferPool) -> None:
        with pytest.raises(TypeError):
            del pool.allocate(4)[0]

    def test_copy_from(self, pool: BufferPool) -> None:
        buf = pool.allocate(6)
        assert buf.copy_from(b"abc") == 3
        assert buf.copy_from(memoryview(b"xy"), 4) == 2
        assert bytes(buf) == b"abc\0xy"
        for data, offset in ((b"abc", 4), (b"", 7), (bytes(7), 0), (b"a", 2**62)):
            with pytest.raises(ValueError, match="do not fit"):
                buf.copy_from(data, offset)
        with pytest.raises(ValueError, match="negative"):
            buf.copy_from(b"a", -1)
        assert buf.copy_from(buf[0:3], 1) == 3  # overlapping
        assert bytes(buf) == b"aabcxy"

    def test_a_large_copy(self, pool: BufferPool) -> None:
        data = os.urandom(3_000_000)
        buf = pool.allocate(len(data) + 1)
        assert buf.copy_from(data, 1) == len(data)
        assert bytes(buf[1:]) == data == bytes(pool.from_bytes(data))


class TestSlices:
    def test_share_the_memory(self) -> None:
        pool = BufferPool(name="test")
        buf = pool.from_bytes(b"0123456789")
        part = buf[2:8]
        assert isinstance(part, Buffer)
        assert part == b"234567"
        assert part[1:-1] == b"3456"
        assert part.address == buf.address
        assert buf.refcount == 2
        assert pool.live == 1

    def test_outlive_the_whole(self) -> None:
        pool = BufferPool(name="test")
        buf = pool.from_bytes(b"0123456789")
        part = buf[2:4]
        buf.release()
        del buf
        assert part == b"23"
        assert pool.live == 1

    @pytest.mark.parametrize("step", [2, -1])
    def test_other_steps_are_for_memoryview(self, pool: BufferPool, step: int) -> None:
        buf = pool.from_bytes(b"0123")
        with pytest.raises(ValueError, match="memoryview"):
            buf[::step]
        assert bytes(memoryview(buf)[::step]) == b"0123"[::step]

    def test_are_as_writable_as_the_whole(self, pool: BufferPool) -> None:
        buf = pool.allocate(8)
        part = buf[2:6]
        inner = part[1:3]
        inner[0] = 7
        assert buf[3] == 7
        with pytest.raises(BufferError, match="slice"):
            part.freeze()
        buf.freeze()
        assert part.readonly
        assert inner.readonly
        with pytest.raises(BufferError, match="frozen"):
            inner[0] = 8
        assert hash(inner) == hash(b"\7\0")

    def test_an_export_of_a_slice_keeps_the_whole_writable(
        self, pool: BufferPool
    ) -> None:
        buf = pool.allocate(8)
        view = memoryview(buf[2:4])
        with pytest.raises(BufferError, match="1 exports"):
            buf.freeze()
        view.release()
        buf.freeze()

    def test_a_slice_stays_writable_when_the_whole_is_released(
        self, pool: BufferPool
    ) -> None:
        buf = pool.allocate(8)
        part = buf[0:4]
        buf.release()
        part[0] = 1
        with memoryview(part) as view:
            view[1] = 2
        assert part == b"\1\2\0\0"


class TestFreeze:
    def test_makes_read_only_and_returns_the_buffer(self, pool: BufferPool) -> None:
        buf = pool.allocate(8)
        assert buf.freeze() is buf
        assert buf.readonly
        assert buf.freeze() is buf
        with pytest.raises(BufferError, match="frozen"):
            buf[0] = 1
        with pytest.raises(BufferError, match="frozen"):
            buf.copy_from(b"a")
        with pytest.raises((BufferError, TypeError)):
            struct.pack_into("B", buf, 0, 1)
        assert memoryview(buf).readonly

    def test_shortens(self, pool: BufferPool) -> None:
        buf = pool.allocate(8)
        buf[:3] = b"abc"
        assert buf.freeze(3) == b"abc"
        assert len(buf) == 3
        assert memoryview(buf).nbytes == 3
        assert buf.freeze(3) is buf
        with pytest.raises(BufferError, match="frozen"):
            buf.freeze(2)

    @pytest.mark.parametrize("length", [-1, 9])
    def test_never_lengthens(self, pool: BufferPool, length: int) -> None:
        buf = pool.allocate(8)
        with pytest.raises(ValueError, match=rf"{length} is not in 0\.\.8"):
            buf.freeze(length)
        assert not buf.readonly

    def test_waits_for_no_writer(self, pool: BufferPool) -> None:
        buf = pool.allocate(8)
        with memoryview(buf) as view:
            with pytest.raises(BufferError, match="exports may write"):
                buf.freeze()
            view[0] = 1
        assert buf.freeze()[0] == 1

    def test_one_of_many_freezes_decides_the_length(self, pool: BufferPool) -> None:
        for _ in range(50):
            buf = pool.allocate(64)
            won: list[int] = []

            def freeze(ix: int, buf: Buffer = buf, won: list[int] = won) -> None:
                try:
                    buf.freeze(ix + 1)
                    won.append(ix + 1)
                except (BufferError, ValueError):
                    pass

            run_threads(2, freeze)
            assert len(buf) in won
            assert buf.readonly


class TestRelease:
    def test_ends_all_use(self) -> None:
        pool = BufferPool(name="test")
        buf = pool.from_bytes(b"secret")
        buf.release()
        buf.release()
        assert pool.live == 0
        assert buf.released
        uses: list[Callable[[], object]] = [
            lambda: len(buf),
            lambda: bytes(buf),
            lambda: memoryview(buf),
            lambda: buf[0],
            lambda: buf[0:1],
            lambda: buf.hex(),
            lambda: buf == b"secret",
            lambda: buf < b"secret",
            lambda: hash(buf),
            lambda: buf.freeze(),
            lambda: buf.copy_from(b"a"),
            lambda: pickle.dumps(buf),
            lambda: buf.refcount,
            lambda: buf.address,
            lambda: buf.nbytes,
            lambda: buf.__enter__(),
            lambda: default_pool.from_bytes(buf),
        ]
        for use in uses:
            with pytest.raises(BufferError, match="released"):
                use()
        assert "released" in repr(buf)

    def test_exports_keep_the_bytes(self) -> None:
        pool = BufferPool(name="test")
        buf = pool.from_bytes(b"abc")
        view = memoryview(buf)
        buf.release()
        other = pool.from_bytes(b"xyz")
        assert bytes(view) == b"abc"
        assert pool.live == 2
        view.release()
        assert pool.live == 1
        assert other == b"xyz"

    def test_with_releases_at_the_end(self, pool: BufferPool) -> None:
        with pool.allocate(8) as buf:
            assert len(buf) == 8
        assert buf.released
        with pytest.raises(ZeroDivisionError), pool.allocate(8) as buf:
            raise ZeroDivisionError
        assert buf.released

    def test_while_others_read(self) -> None:
        """No reader sees anything but the bytes, or the error."""
        pool = BufferPool(name="test")
        for i in range(100):
            buf = pool.from_bytes(b"a" * 200)

            def body(ix: int, buf: Buffer = buf) -> None:
                if ix == 0:
                    buf.release()
                    pool.from_bytes(b"b" * 200)
                    return
                try:
                    for _ in range(50):
                        assert bytes(buf) == b"a" * 200
                        assert buf[0:5] == b"aaaaa"
                except BufferError:
                    assert buf.released

            run_threads(2 + i % 2, body)
            assert pool.live == 0


class TestBytesProtocol:
    def test_system_calls_fill_and_send_it(self, pool: BufferPool) -> None:
        left, right = socket.socketpair()
        with left, right:
            head, body = pool.allocate(4), pool.from_bytes(b"payload")
            struct.pack_into("!I", head, 0, len(body))
            assert left.sendmsg([head.freeze(), body]) == 11
            received = pool.allocate(64)
            assert right.recv_into(received) == 11
            assert received.freeze(11) == b"\0\0\0\7payload"
            assert os.writev(left.fileno(), [head, body[:3]]) == 7
            again = pool.allocate(64)
            count, _ = right.recvfrom_into(again)
            assert again[:count] == b"\0\0\0\7pay"
            assert not select.select([right], [], [], 0)[0]

    def test_views_are_plain_bytes(self, pool: BufferPool) -> None:
        view = memoryview(pool.from_bytes(b"abc"))
        assert (view.format, view.itemsize, view.shape) == ("B", 1, (3,))
        assert view.c_contiguous
        assert view.tolist() == [97, 98, 99]
        assert bytearray(pool.from_bytes(b"abc")) == b"abc"
        assert b"".join([pool.from_bytes(b"a"), b"b"]) == b"ab"
        assert int.from_bytes(pool.from_bytes(b"\1\0")) == 256

    def test_compares_as_bytes_do(self, pool: BufferPool) -> None:
        values = [b"", b"a", b"ab", b"b", b"\xff", b"ab\0"]
        for left in values:
            for right in values:
                buf = pool.from_bytes(left)
                for other in (right, bytearray(right), pool.from_bytes(right)):
                    assert (buf == other) is (left == right)
                    assert (buf != other) is (left != right)
                    assert (buf < other) is (left < right)
                    assert (buf <= other) is (left <= right)
                    assert (buf > other) is (left > right)
                    assert (buf >= other) is (left >= right)
                assert (right == buf) is (left == right)
        assert pool.from_bytes(b"ace") == memoryview(b"abcde")[::2]

    def test_equals_nothing_else(self, pool: BufferPool) -> None:
        buf = pool.from_bytes(b"a")
        assert buf != "a"
        assert buf != [97]
        assert buf != None  # noqa: E711
        with pytest.raises(TypeError):
            buf < "a"  # noqa: B015

    def test_hashes_as_bytes_do(self, pool: BufferPool) -> None:
        buf = pool.from_bytes(b"key")
        assert hash(buf) == hash(b"key")
        assert {b"key": 1}[buf] == 1
        with pytest.raises(TypeError, match="freeze"):
            hash(pool.allocate(3))
        buf.release()
        assert hash(buf) == hash(b"key")  # known already

    def test_hex_and_repr(self, pool: BufferPool) -> None:
        buf = pool.from_bytes(b"\1\xff\2")
        assert buf.hex() == "01ff02"
        assert buf.hex(":", 1) == "01:ff:02"
        assert repr(buf) == f"<Buffer 3 bytes, frozen, {buf.address:#x}>"
        assert "8 bytes, writable" in repr(pool.allocate(8))

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickles_by_value(self, pool: BufferPool, protocol: int) -> None:
        for buf in (pool.from_bytes(b"abc"), pool.allocate(3)):
            twin = pickle.loads(pickle.dumps(buf[:2], protocol))
            assert twin == buf[:2]
            assert twin.readonly is buf.readonly
            assert twin.address != buf.address
            assert copy.copy(buf) == copy.deepcopy(buf) == buf

    def test_weak_references(self, pool: BufferPool) -> None:
        buf = pool.from_bytes(b"abc")
        reference = weakref.ref(buf)
        assert reference() is buf
        del buf
        assert reference() is None
