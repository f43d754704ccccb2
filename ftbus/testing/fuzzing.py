"""Feed bytes to whatever reads bytes: kept ones, damaged ones and made-up ones.

For parsers of what comes over a wire. A target is a function of bytes that returns, or
raises one of the exceptions that it documents; anything else is a finding, and so are a
hang and memory that grows. Inputs follow from a seed, so that it can be repeated.
"""

from __future__ import annotations

import faulthandler
import gc
import resource
import struct
import sys
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["FindingError", "Outcome", "corpus", "cut", "damaged", "fuzz"]

_NUMBERS = (0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_CHECKS = 1000  # inputs between two looks at the memory
_MIB = 1 << 20


class FindingError(AssertionError):
    """An input that a target does not cope with.

    data: the input. It is kept in the folder that fuzz() was given, too.
    """

    def __init__(self, data: bytes, why: str) -> None:
        self.data = data
        super().__init__(f"{why}: {data[:200].hex()}{'...' * (len(data) > 200)}")


class Outcome(NamedTuple):
    """What a run saw."""

    inputs: int
    refused: int
    """Inputs that raised a documented exception."""


def corpus(folder: Path) -> list[bytes]:
    """Return the contents of the files of a folder, in the order of their names."""
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]


def damaged(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return bytes that are nearly these: with one to four changes of some kind.

    others: inputs that parts may be taken from.
    """
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.getrandbits(8)
            case 2:
                del changed[at : at + rng.randrange(1, 20)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 4:  # a number at its edge, where a length may be
                kind = rng.choice("bhiq")
                size = struct.calcsize(kind)
                number = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
                order = rng.choice(["little", "big"])
                changed[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
            case 5:
                del changed[at:]
            case _:
                other = rng.choice(others) if others else bytes(changed)
                start = rng.randrange(len(other) + 1)
                changed[at:] = other[start:]
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """Return the bytes in pieces of any size, also of none, as a stream has them."""
    most = rng.choice([1, 7, 100, 10_000]) if len(data) < 5000 else 10_000
    pieces = []
    while data:
        size = rng.randrange(most + 1)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def fuzz(
    target: Callable[[bytes], object],
    seeds: Sequence[bytes],
    rng: random.Random,
    *,
    refuses: type[Exception] | tuple[type[Exception], ...] = (),
    inputs: int = 0,
    seconds: float = 0.0,
    length_max: int = 4096,
    grows_max: int = 64 * _MIB,
    hang_s: float = 60.0,
    keep: Path | None = None,
) -> Outcome:
    """Feed the seeds, then damaged seeds and random bytes; return what happened.

    refuses: what the target documents to raise for bad input.
    inputs, seconds: how many, or for how long; the run ends when both are reached.
    length_max: of random inputs, in bytes.
    grows_max: how much the process's largest size may grow, in bytes.
    hang_s: a thousand inputs, or one of them, that take this long end the process, with
        all stacks printed.
    keep: a folder to write the input of a finding to.

    Raises FindingError.
    """
    until = time.monotonic() + seconds
    before = _largest()
    n = refused = 0
    try:
        for data in _inputs(seeds, rng, length_max):
            if n >= len(seeds) and n >= inputs and time.monotonic() >= until:
                break
            if n % _CHECKS == 0:
                faulthandler.dump_traceback_later(hang_s, exit=True)
            try:
                target(data)
            except refuses:
                refused += 1
            except Exception as error:
                raise _kept(keep, data, f"{type(error).__name__}: {error}") from error
            n += 1
            if n % _CHECKS == 0 and _largest() - before > grows_max:
                gc.collect()
                raise _kept(keep, data, f"grew by {_largest() - before} bytes")
    finally:
        faulthandler.cancel_dump_traceback_later()
    return Outcome(n, refused)


def _inputs(
    seeds: Sequence[bytes], rng: random.Random, length_max: int
) -> Iterator[bytes]:
    yield from seeds
    while True:
        if seeds and rng.random() < 0.9:
            yield damaged(rng.choice(seeds), rng, seeds)
        else:
            yield rng.randbytes(rng.randrange(length_max + 1))


def _largest() -> int:
    """Return the most memory that this process ever had, in bytes."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _kept(folder: Path | None, data: bytes, why: str) -> FindingError:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"finding-{zlib.crc32(data):08x}"
        (folder / name).write_bytes(data)
    return FindingError(data, why)
