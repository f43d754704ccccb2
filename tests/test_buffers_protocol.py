"""A Buffer wherever the standard library, and numpy, take bytes-like objects."""

from __future__ import annotations

import array
import binascii
import hashlib
import io
import mmap
import os
import pickle
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftbus import Buffer, BufferPool

DATA = bytes(range(256)) * 4


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    """Yield a pool, and require that nothing keeps its memory."""
    pool = BufferPool()
    yield pool
    assert pool.live == 0


class TestFilledInPlace:
    def test_by_files(self, pool: BufferPool, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_bytes(DATA)
        with path.open("rb", buffering=0) as file:
            buffer = pool.allocate(len(DATA))
            assert file.readinto(buffer) == len(DATA)
            assert buffer == DATA
            head, tail = pool.allocate(10), pool.allocate(20)
            assert os.preadv(file.fileno(), [head, tail[5:10]], 100) == 15
            assert head == DATA[100:110]
            assert tail == bytes(5) + DATA[110:115] + bytes(10)
        del buffer, head, tail

    def test_by_struct_array_and_views(self, pool: BufferPool) -> None:
        buffer = pool.allocate(32)
        struct.pack_into("<IId", buffer, 8, 1, 2, 3.5)
        assert struct.unpack_from("<IId", buffer, 8) == (1, 2, 3.5)
        with memoryview(buffer) as view, view.cast("Q") as words:
            words[0] = 2**64 - 1
        assert buffer[:8] == b"\xff" * 8
        words_read = array.array("Q", bytes(buffer[:8]))
        assert words_read[0] == 2**64 - 1
        del buffer

    def test_from_mapped_memory(self, pool: BufferPool, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_bytes(DATA)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            buffer = pool.allocate(len(DATA))
            assert buffer.copy_from(mapped) == len(DATA)
            buffer[:4] = b"abcd"
            mapped[: len(DATA)] = bytes(buffer)
        assert path.read_bytes() == b"abcd" + DATA[4:]
        del buffer


class TestRead:
    def test_by_files(self, pool: BufferPool, tmp_path: Path) -> None:
        path = tmp_path / "data"
        buffer = pool.from_bytes(DATA)
        with path.open("wb") as file:
            file.write(buffer)
            file.write(buffer[:10])
            assert os.pwritev(file.fileno(), [buffer[:3]], 2000) == 3
        assert path.read_bytes()[: len(DATA) + 10] == DATA + DATA[:10]
        assert io.BytesIO(buffer).read(300) == DATA[:300]
        del buffer

    def test_by_digests_and_compressors(self, pool: BufferPool) -> None:
        buffer = pool.from_bytes(DATA)
        assert hashlib.sha256(buffer).digest() == hashlib.sha256(DATA).digest()
        assert zlib.crc32(buffer) == zlib.crc32(DATA) == binascii.crc32(buffer)
        assert zlib.decompress(zlib.compress(buffer)) == DATA
        assert binascii.b2a_base64(buffer) == binascii.b2a_base64(DATA)
        del buffer

    def test_by_searches_and_unpacking(self, pool: BufferPool) -> None:
        buffer = pool.from_bytes(b"key=value;key=other")
        found = [match.group(1) for match in re.finditer(rb"=(\w+)", buffer)]
        assert found == [b"value", b"other"]
        assert b"xx".join([buffer[:3], buffer[4:9]]) == b"keyxxvalue"
        assert bytes(buffer).find(buffer[4:9]) == 4
        assert list(struct.iter_unpack("2s", buffer[:4])) == [(b"ke",), (b"y=",)]
        assert str(buffer[:3], "ascii") == "key"
        assert int(bytes(pool.from_bytes(b"42"))) == 42
        del buffer, found

    def test_out_of_band_by_pickle(self, pool: BufferPool) -> None:
        """A PickleBuffer of a frozen Buffer goes with no copy, and as read-only."""
        buffer = pool.from_bytes(DATA)
        carried: list[pickle.PickleBuffer] = []
        text = pickle.dumps(
            pickle.PickleBuffer(buffer), 5, buffer_callback=carried.append
        )
        assert len(text) < 50
        with carried[0].raw() as raw:
            assert raw.readonly
            assert raw == DATA
        assert pickle.loads(text, buffers=[buffer]) is buffer
        carried[0].release()
        del buffer, carried


class TestNewMemory:
    @pytest.mark.parametrize("size", [1, 64, 1000, 40_000, 300_000])
    def test_shows_nothing_of_former_use(self, size: int) -> None:
        pool = BufferPool()
        for _ in range(3):
            buffers = [pool.allocate(size) for _ in range(5)]
            for buffer in buffers:
                assert bytes(buffer) == bytes(size)
                buffer[:] = b"\xaa" * size
            buffers.clear()
            del buffer

    def test_of_copies_is_not_longer_than_the_copy(self) -> None:
        pool = BufferPool()
        pool.from_bytes(b"\xaa" * 100)
        short = pool.from_bytes(b"b")
        assert len(short) == 1
        assert len(memoryview(short)) == 1
        with pytest.raises(IndexError):
            short[1]


class TestNumpy:
    def test_shares_the_memory(self, pool: BufferPool) -> None:
        numpy = pytest.importorskip("numpy", reason="numpy is not installed here")
        buffer = pool.allocate(64)
        writable = numpy.frombuffer(buffer, dtype="<f8")
        writable[:] = range(8)
        assert struct.unpack("<8d", buffer) == tuple(range(8))
        with pytest.raises(BufferError):
            buffer.freeze()
        del writable
        readonly = numpy.frombuffer(buffer.freeze(), dtype="<f8")
        assert not readonly.flags.writeable
        assert readonly.sum() == 28
        assert pool.live == 1
        del buffer
        assert readonly[7] == 7  # the array keeps the memory
        del readonly


def test_a_buffer_is_what_typing_calls_one() -> None:
    from collections.abc import Buffer as BytesLike

    assert issubclass(Buffer, BytesLike)
