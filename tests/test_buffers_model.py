"""Buffers and their pool against a small model: every step, in this thread or another.

The model knows blocks of bytes, Buffers over them and exports of these; it says of each
step what it does or which error it must raise, and after each step the pool's figures
and every content must be what it says.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from builds import TSAN
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from natively import STEAL

from ftbus import ArenaLimitError, Buffer, BufferPool
from ftbus.testing import eventually

pytestmark = pytest.mark.thread_unsafe(reason="it has a thread of its own per machine")

Run = Callable[..., subprocess.CompletedProcess[str]]
HEADER_BYTES = 64
SIZES = st.sampled_from([0, 1, 7, 64, 65, 200, 1000, 5000, 40_000, 300_000])
SCALE = float(os.environ.get("FTB_SCALE", "1"))
EXAMPLES = max(1, int((3 if TSAN else 30) * SCALE))  # there all is some 20 times slower


class Helper:
    """A thread that runs what it is told, one call at a time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            try:
                outcome: Any = (call(), None)
            except Exception as error:
                outcome = (None, error.with_traceback(None))
            del call
            self._results.put(outcome)
            del outcome

    def run(self, call: Callable[[], Any]) -> Any:
        self._calls.put(call)
        result, error = self._results.get()
        try:
            if error is not None:
                raise error
            return result
        finally:
            del error  # or it would hold, by its traceback, what the call refers to

    def end(self) -> None:
        self._calls.put(None)
        self._thread.join()


@dataclass(eq=False)
class Block:
    """Memory of a pool: what is in it."""

    pool: Pool
    data: bytearray


@dataclass(eq=False)
class Model:
    """A Buffer over data[start : start + length] of a block."""

    block: Block
    start: int
    length: int
    root: Model | None
    real: Any  # the Buffer; None once nobody but exports or slices refer to it
    frozen: bool = False  # of a slice with a root: see is_frozen
    released: bool = False
    exports: int = 0
    writers: int = 0  # exports that may write: its own, and of its slices
    slices: list[Model] = field(default_factory=list)  # those whose root this is

    @property
    def is_frozen(self) -> bool:
        return self.frozen if self.root is None else self.root.frozen

    @property
    def is_alive(self) -> bool:
        """Whether the object exists."""
        kept = self.real is not None or self.exports > 0
        return kept or any(one.is_alive for one in self.slices)

    @property
    def holds(self) -> bool:
        """Whether it counts as a holder of the block."""
        return self.is_alive and (not self.released or self.exports > 0)

    @property
    def content(self) -> bytes:
        return bytes(self.block.data[self.start : self.start + self.length])


@dataclass(eq=False)
class Export:
    """A memoryview of a Buffer."""

    of: Model
    view: Any


@dataclass(eq=False)
class Pool:
    """A pool, and every Buffer over its blocks there ever was."""

    real: Any
    limit_bytes: int
    allocs: int = 0
    buffers: list[Model] = field(default_factory=list)

    def holders(self) -> dict[Block, int]:
        """Return the live blocks and how many hold each."""
        found: dict[Block, int] = {}
        for buffer in self.buffers:
            if buffer.holds:
                found[buffer.block] = found.get(buffer.block, 0) + 1
        return found


class Machine(RuleBasedStateMachine):
    buffers: Bundle[Model] = Bundle("buffers")
    exports: Bundle[Export] = Bundle("exports")

    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper()
        self.all_exports: list[Export] = []

    @initialize(limit_bytes=st.sampled_from([0, 4_000, 100_000, 1_000_000]))
    def make_pool(self, limit_bytes: int) -> None:
        self.pool = Pool(BufferPool(limit_bytes=limit_bytes), limit_bytes)
        self.ended: list[Pool] = []

    def do(self, elsewhere: bool, call: Callable[[], Any]) -> Any:
        return self.helper.run(call) if elsewhere else call()

    def refuses(
        self, elsewhere: bool, error: type[Exception], call: Callable[[], Any]
    ) -> None:
        with pytest.raises(error):
            self.do(elsewhere, call)

    # Steps

    @rule(target=buffers, size=SIZES, elsewhere=st.booleans())
    def allocate(self, size: int, elsewhere: bool) -> Any:
        pool = self.pool
        try:
            real = self.do(elsewhere, lambda: pool.real.allocate(size))
        except ArenaLimitError as error:
            stats = pool.real.stats()
            assert pool.limit_bytes > 0
            assert stats.reserved_bytes + HEADER_BYTES + size > pool.limit_bytes
            assert (error.requested_bytes, error.limit_bytes) == (
                size,
                pool.limit_bytes,
            )
            return multiple()
        pool.allocs += 1
        block = Block(pool, bytearray(size))
        model = Model(block, 0, size, None, real)
        pool.buffers.append(model)
        return model

    @rule(target=buffers, data=st.binary(max_size=300), elsewhere=st.booleans())
    def from_bytes(self, data: bytes, elsewhere: bool) -> Any:
        pool = self.pool
        try:
            real = self.do(elsewhere, lambda: pool.real.from_bytes(data))
        except ArenaLimitError:
            assert pool.limit_bytes > 0
            return multiple()
        pool.allocs += 1
        block = Block(pool, bytearray(data))
        model = Model(block, 0, len(data), None, real, frozen=True)
        pool.buffers.append(model)
        return model

    @rule(
        of=buffers,
        data=st.binary(min_size=1, max_size=100),
        offset=st.integers(0, 300),
        elsewhere=st.booleans(),
    )
    def write(self, of: Model, data: bytes, offset: int, elsewhere: bool) -> None:
        real = of.real
        if real is None:
            return
        if of.released or of.is_frozen:
            self.refuses(elsewhere, BufferError, lambda: real.copy_from(data, offset))
        elif offset + len(data) > of.length:
            self.refuses(elsewhere, ValueError, lambda: real.copy_from(data, offset))
        else:
            assert self.do(elsewhere, lambda: real.copy_from(data, offset)) == len(data)
            start = of.start + offset
            of.block.data[start : start + len(data)] = data

    @rule(of=buffers, length=st.none() | st.integers(-1, 400), elsewhere=st.booleans())
    def freeze(self, of: Model, length: int | None, elsewhere: bool) -> None:
        real = of.real
        if real is None:
            return
        wanted = of.length if length is None else length
        if not 0 <= wanted <= of.length:
            self.refuses(elsewhere, ValueError, lambda: real.freeze(length))
        elif (
            of.root is not None
            or of.released
            or (of.frozen and wanted != of.length)
            or (not of.frozen and of.writers > 0)
        ):
            self.refuses(elsewhere, BufferError, lambda: real.freeze(length))
        else:
            assert self.do(elsewhere, lambda: real.freeze(length)) is real
            of.frozen = True
            of.length = wanted

    @rule(
        target=buffers,
        of=buffers,
        start=st.integers(0, 300),
        stop=st.integers(0, 300),
        elsewhere=st.booleans(),
    )
    def cut(self, of: Model, start: int, stop: int, elsewhere: bool) -> Any:
        real = of.real
        if real is None:
            return multiple()
        if of.released:
            self.refuses(elsewhere, BufferError, lambda: real[start:stop])
            return multiple()
        part = self.do(elsewhere, lambda: real[start:stop])
        start, stop, _ = slice(start, stop).indices(of.length)
        root = None if of.is_frozen else (of.root or of)
        length = max(0, stop - start)
        model = Model(of.block, of.start + start, length, root, part)
        model.frozen = of.is_frozen
        of.block.pool.buffers.append(model)
        if root is not None:
            root.slices.append(model)
        return model

    @rule(target=exports, of=buffers, elsewhere=st.booleans())
    def export(self, of: Model, elsewhere: bool) -> Any:
        real = of.real
        if real is None:
            return multiple()
        if of.released:
            self.refuses(elsewhere, BufferError, lambda: memoryview(real))
            return multiple()
        view = self.do(elsewhere, lambda: memoryview(real))
        assert view.readonly == of.is_frozen
        of.exports += 1
        if not view.readonly:
            (of.root or of).writers += 1
        export = Export(of, view)
        self.all_exports.append(export)
        return export

    @rule(of=exports, index=st.integers(0, 300), byte=st.integers(0, 255))
    def write_export(self, of: Export, index: int, byte: int) -> None:
        if of.view is None or index >= len(of.view):
            return
        if of.view.readonly:
            with pytest.raises(TypeError):
                of.view[index] = byte
        else:
            of.view[index] = byte
            of.of.block.data[of.of.start + index] = byte

    @rule(of=exports, elsewhere=st.booleans())
    def end_export(self, of: Export, elsewhere: bool) -> None:
        if of.view is None:
            return
        if not of.view.readonly:
            (of.of.root or of.of).writers -= 1
        box = [of.view]
        of.view = None
        of.of.exports -= 1
        self.do(elsewhere, box[0].release)

    @rule(of=buffers, elsewhere=st.booleans())
    def release(self, of: Model, elsewhere: bool) -> None:
        if of.real is not None:
            self.do(elsewhere, of.real.release)
            of.released = True
            assert of.real.released

    @rule(of=buffers, elsewhere=st.booleans())
    def hand_over_and_drop(self, of: Model, elsewhere: bool) -> None:
        box = [of.real]
        of.real = None
        self.do(elsewhere, box.clear)

    @rule(of=buffers, elsewhere=st.booleans())
    def decode(self, of: Model, elsewhere: bool) -> None:
        real = of.real
        if real is None:
            return
        if of.released or not of.is_frozen:
            self.refuses(elsewhere, BufferError, lambda: real.decode("raw"))
        else:
            value = self.do(elsewhere, lambda: bytes(real.decode("json-or-raw")))
            assert value == of.content

    @rule()
    def trim(self) -> None:
        assert self.pool.real.trim() >= 0

    @rule(limit_bytes=st.sampled_from([0, 10_000]))
    def end_pool(self, limit_bytes: int) -> None:
        """Its Buffers outlive it, and the next pool knows nothing of them."""
        self.pool.real = None
        self.ended.append(self.pool)
        self.pool = Pool(BufferPool(limit_bytes=limit_bytes), limit_bytes)

    # What must hold

    @invariant()
    def contents_are_the_models(self) -> None:
        for pool in (self.pool, *self.ended) if hasattr(self, "pool") else ():
            held = pool.holders()
            for buffer in pool.buffers:
                if buffer.real is not None and not buffer.released:
                    assert buffer.real == buffer.content
                    assert buffer.real.readonly == buffer.is_frozen
                    assert buffer.real.refcount == held[buffer.block]
        for export in self.all_exports:
            if export.view is not None:
                assert (
                    export.view
                    == export.of.block.data[
                        export.of.start : export.of.start + len(export.view)
                    ]
                )

    @invariant()
    def figures_are_exact(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = self.pool.holders()
        # An object whose last reference goes in another thread than its own is freed
        # there, when that thread gets on.
        self.helper.run(lambda: None)
        eventually(lambda: self.pool.real.live == len(held))
        stats = self.pool.real.stats()
        assert stats.allocs == self.pool.allocs
        assert stats.frees == self.pool.allocs - len(held)
        assert stats.hits + stats.misses == stats.allocs
        wanted = sum(len(block.data) for block in held)
        assert stats.live_bytes >= wanted
        assert stats.reserved_bytes >= stats.live_bytes + HEADER_BYTES * len(held)
        assert stats.peak_bytes >= stats.reserved_bytes
        if self.pool.limit_bytes:
            assert stats.peak_bytes <= self.pool.limit_bytes

    def teardown(self) -> None:
        for export in self.all_exports:
            if export.view is not None:
                export.view.release()
                export.view = None
        for pool in (self.pool, *self.ended) if hasattr(self, "pool") else ():
            for buffer in pool.buffers:
                buffer.real = None
        self.helper.run(lambda: None)
        self.helper.end()
        if hasattr(self, "pool"):
            eventually(lambda: self.pool.real.live == 0)


class JsonOrRaw:
    """Keeps the Buffer it was given, as a codec may."""

    name = "json-or-raw"

    def encode(self, event: Any, /) -> Any:
        raise AssertionError("nothing is encoded here")

    def decode(self, data: Any, /) -> Any:
        return bytes(data)


@pytest.fixture(autouse=True)
def codec() -> Any:
    from ftbus import codecs

    codecs.register(JsonOrRaw(), replace=True)
    yield
    codecs._registry.pop(JsonOrRaw.name, None)


@pytest.mark.timeout(600)
def test_buffers_do_as_the_model_says() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            # A shrink would wait out each step that fails by waiting for a figure.
            phases=[Phase.explicit, Phase.generate],
        ),
    )


def test_a_stale_handle_is_an_error_and_never_other_bytes(python: Run) -> None:
    """Native code that released once too often makes no Buffer show new bytes."""
    program = (
        STEAL + "import os\nfrom ftbus import default_pool\n"
        "buffer = default_pool.allocate(100)\n"
        "buffer[:3] = b'old'\n"
        "address = buffer.address\n"
        "steal(buffer.freeze())\n"
        "other = default_pool.allocate(100)\n"
        "other[:3] = b'new'\n"
        "assert other.address == address\n"
        "for use in (bytes, memoryview, lambda b: b[0], lambda b: b[0:2],\n"
        "            lambda b: b.decode('raw'), hash):\n"
        "    try:\n        use(buffer)\n"
        "    except BufferError as error:\n"
        "        assert 'native code released' in str(error), error\n"
        "    else:\n        os._exit(1)\n"
        "assert bytes(other[:3]) == b'new'\n"
        "os._exit(0)\n"  # its end would release the block once more
    )
    run = python(program)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_model_itself_notices() -> None:
    """A write that the model does not know of is found."""
    machine = Machine()
    try:
        machine.make_pool(0)
        model = machine.allocate(10, False)
        assert isinstance(model, Model)
        assert isinstance(model.real, Buffer)
        model.real[0] = 1
        with pytest.raises(AssertionError):
            machine.contents_are_the_models()
        model.block.data[0] = 1
        machine.contents_are_the_models()
        machine.figures_are_exact()
        del model
    finally:
        machine.teardown()
