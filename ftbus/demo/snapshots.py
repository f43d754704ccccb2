"""Snapshots: the world at one tick, its encoding in pooled memory, and the replay file.

The replay file holds every snapshot as it was sent, each behind its length (u32).
"""

from __future__ import annotations

import os
import tempfile
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ftbus.demo import protocol

if TYPE_CHECKING:
    from collections.abc import Buffer as BytesLike
    from collections.abc import Iterator
    from pathlib import Path

    import ftbus
    from ftbus.demo.protocol import Record

_LENGTH: Final = Struct("<I")


class Frame(NamedTuple):
    """The world at one tick: the event of SNAPSHOT."""

    tick: int
    elapsed_ms: int
    records: list[Record]


class SnapshotCodec:
    """Encode frames straight into pooled memory, which the bus then shares as it is."""

    name = "snapshot"

    def __init__(self, pool: ftbus.BufferPool) -> None:
        """Take the memory from a pool."""
        self._pool = pool

    def encode(self, frame: Frame, /) -> ftbus.Buffer:
        """Return the frame as it goes over the wire."""
        return protocol.encode_snapshot(self._pool, *frame)

    def decode(self, data: BytesLike, /) -> Frame:
        """Return the frame that was encoded; raises DatagramError if it was not."""
        return Frame(*protocol.decode_snapshot(memoryview(data)))


class Replay:
    """A replay being written, by one thread, and then read."""

    def __init__(self, path: Path | None) -> None:
        """Create the file; without a path, one that is gone once it is closed."""
        # Unbuffered: the snapshot's bytes go from the pool to the kernel.
        if path is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        else:
            self._file = path.open("w+b", buffering=0)

    def record(self, snapshot: ftbus.Buffer) -> None:
        """Write one snapshot from where it lies; raises OSError if the disk is full."""
        length = len(snapshot)
        written = os.writev(self._file.fileno(), (_LENGTH.pack(length), snapshot))
        if written != _LENGTH.size + length:
            raise OSError(f"wrote {written} bytes of a snapshot of {length}")

    def snapshots(self) -> Iterator[memoryview]:
        """Yield the snapshots from the first on; the last may be cut short."""
        self._file.seek(0)
        while prefix := self._file.read(_LENGTH.size):
            length = _LENGTH.unpack(prefix)[0]
            yield memoryview(self._file.read(length) or b"")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
