"""Handles: references as integers between Buffers and native code, good once."""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import ftbus
from ftbus import Buffer, BufferPool, HandleError, buffers, testing
from ftbus.buffers import buffer_from_handle, handle_of

HANDLES = 64


def test_a_handle_becomes_a_buffer_over_the_same_memory(pool: BufferPool) -> None:
    buf = pool.from_bytes(b"packet")
    twin = buffer_from_handle(handle_of(buf))
    assert twin.address == buf.address
    assert twin == b"packet"
    assert twin.readonly
    assert buf.refcount == 2


def test_it_keeps_the_memory_without_the_buffer() -> None:
    pool = BufferPool(name="test")
    handle = handle_of(pool.from_bytes(b"packet"))
    assert pool.live == 1
    assert buffer_from_handle(handle) == b"packet"
    assert pool.live == 0


def test_it_is_good_once(pool: BufferPool) -> None:
    handle = handle_of(pool.from_bytes(b"first"))
    buf = buffer_from_handle(handle)
    address = buf.address
    for _ in range(2):
        with pytest.raises(HandleError, match="taken before") as caught:
            buffer_from_handle(handle)
        assert caught.value.handle == handle
    buf.release()
    recycled = pool.from_bytes(b"other")
    assert recycled.address == address
    with pytest.raises(BufferError):
        buffer_from_handle(handle)


@pytest.mark.parametrize("number", [0, 1, -1, -(2**63), 2**63, 2**64 - 1, 2**64, 2**99])
def test_other_integers_are_refused(number: int) -> None:
    with pytest.raises(HandleError, match="never given out") as caught:
        buffer_from_handle(number)
    assert caught.value.handle == number


def test_addresses_are_no_handles(pool: BufferPool) -> None:
    buf = pool.from_bytes(b"packet")
    for number in (buf.address, buf.address + 64, id(buf), buffers.arena_address(pool)):
        with pytest.raises(HandleError):
            buffer_from_handle(number)
    assert buf.refcount == 1


@pytest.mark.thread_unsafe(reason="a guess may hit a handle of another thread")
def test_guesses_near_a_handle_are_refused(pool: BufferPool, seed: int) -> None:
    rng = random.Random(seed)
    handle = handle_of(pool.from_bytes(b"packet"))
    guesses = {handle ^ (1 << bit) for bit in range(70)}
    guesses |= {rng.getrandbits(64) for _ in range(10_000)} - {handle}
    for guess in guesses:
        with pytest.raises(HandleError):
            buffer_from_handle(guess)
    assert buffer_from_handle(handle) == b"packet"


@pytest.mark.parametrize("thing", ["1", b"1", 1.0, None, Buffer(b"1")])
def test_all_else_is_a_type_error(thing: Any) -> None:
    with pytest.raises(TypeError):
        buffer_from_handle(thing)


def test_an_index_object_is_a_handle(pool: BufferPool) -> None:
    class Number:
        def __init__(self, value: int) -> None:
            self.value = value

        def __index__(self) -> int:
            return self.value

    handle = Number(handle_of(pool.from_bytes(b"x")))
    assert buffer_from_handle(handle) == b"x"
    with pytest.raises(HandleError, match="taken before") as caught:
        buffer_from_handle(handle)
    assert caught.value.handle is handle


def test_the_pool_is_checked_and_the_handle_survives(pool: BufferPool) -> None:
    other = BufferPool(name="other")
    handle = handle_of(pool.from_bytes(b"packet"))
    with pytest.raises(HandleError, match="another pool"):
        buffer_from_handle(handle, True, other)
    with pytest.raises(TypeError, match="BufferPool"):
        buffer_from_handle(handle, True, "pool")  # type: ignore[arg-type]
    assert buffer_from_handle(handle, True, pool) == b"packet"


def test_writable_only_without_other_holders(pool: BufferPool) -> None:
    buf = pool.from_bytes(b"packet")
    handle = handle_of(buf)
    with pytest.raises(HandleError, match="others hold"):
        buffer_from_handle(handle, False)
    buf.release()
    writable = buffer_from_handle(handle, False)
    writable[0:3] = b"POC"
    assert writable.freeze() == b"POCket"


def test_a_slice_stays_a_slice(pool: BufferPool) -> None:
    buf = pool.from_bytes(b"0123456789")
    part = buffer_from_handle(handle_of(buf[2:5]))
    assert part == b"234"
    with pytest.raises(IndexError):
        part[3]
    assert buffer_from_handle(handle_of(buf[10:])) == b""


def test_bytes_beyond_the_frozen_length_are_not_shown(pool: BufferPool) -> None:
    buf = pool.allocate(10)
    buf[:] = b"0123456789"
    buf.freeze(4)
    assert buffer_from_handle(handle_of(buf)) == b"0123"


def test_only_frozen_buffers_have_handles(pool: BufferPool) -> None:
    buf = pool.allocate(3)
    with pytest.raises(BufferError, match="freeze it first"):
        handle_of(buf)
    with pytest.raises(BufferError, match="freeze it first"):
        handle_of(buf[1:])
    buf.freeze()
    handle = handle_of(buf)
    buf.release()
    with pytest.raises(BufferError, match="released"):
        handle_of(buf)
    assert len(buffer_from_handle(handle)) == 3
    for thing in (b"bytes", None, memoryview(b"x")):
        with pytest.raises(TypeError, match="only a Buffer"):
            handle_of(thing)  # type: ignore[arg-type]


def test_argument_counts(pool: BufferPool) -> None:
    with pytest.raises(TypeError, match="1 to 3 arguments"):
        buffer_from_handle()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="1 to 3 arguments"):
        buffer_from_handle(1, True, pool, 4)  # type: ignore[call-arg]


def test_a_failed_truth_value_leaves_the_handle(pool: BufferPool) -> None:
    class Neither:
        def __bool__(self) -> bool:
            raise ZeroDivisionError

    handle = handle_of(pool.from_bytes(b"x"))
    with pytest.raises(ZeroDivisionError):
        buffer_from_handle(handle, Neither())  # type: ignore[arg-type]
    assert buffer_from_handle(handle) == b"x"


def test_it_outlives_its_pool() -> None:
    handle = handle_of(BufferPool(name="brief").from_bytes(b"packet"))
    assert buffer_from_handle(handle) == b"packet"


def test_a_leak_guard_sees_handles_that_nobody_takes() -> None:
    with (
        pytest.raises(AssertionError, match="1 buffers"),
        testing.no_leaks(within=0.01),
    ):
        handle = handle_of(Buffer(b"lost"))
    buffer_from_handle(handle)


def test_one_thread_gets_the_buffer(pool: BufferPool) -> None:
    bufs = [pool.from_bytes(b"%d" % i) for i in range(HANDLES)]
    handles = [handle_of(buf) for buf in bufs]

    def take_all(thread: int) -> int:
        taken = 0
        for i, handle in enumerate(handles):
            try:
                buf = buffer_from_handle(handle)
            except HandleError:
                continue
            assert buf == b"%d" % i
            taken += 1
        return taken

    assert sum(testing.run_threads(4, take_all)) == HANDLES
    assert {buf.refcount for buf in bufs} == {1}


def test_threads_hand_over_to_each_other(pool: BufferPool) -> None:
    rounds = 500
    lanes: list[list[int]] = [[] for _ in range(4)]

    def work(thread: int) -> None:
        for i in range(rounds):
            lanes[thread].append(handle_of(pool.from_bytes(b"%d %d" % (thread, i))))
        for i in range(rounds):
            lane = (thread + 1) % 4
            handle = testing.eventually(lambda: lanes[lane][i : i + 1], 60)[0]
            assert buffer_from_handle(handle, True, pool) == b"%d %d" % (lane, i)

    testing.run_threads(4, work)


def test_arena_addresses_tell_pools_apart(pool: BufferPool) -> None:
    assert buffers.arena_address(pool) != buffers.arena_address(buffers.default_pool)
    for thing in (None, 1, Buffer(b"")):
        with pytest.raises(TypeError, match="BufferPool"):
            buffers.arena_address(thing)  # type: ignore[arg-type]


def test_the_table_names_the_default_arena() -> None:
    """Read its head: two 32-bit numbers and the arena, as ftb_arena_api.h has them."""
    version, size_bytes = (ctypes.c_uint32 * 2).from_address(buffers.arena_api)
    head = ctypes.sizeof(ctypes.c_uint32) * 2
    arena = ctypes.c_void_p.from_address(buffers.arena_api + head)
    header = (Path(ftbus.get_include()) / "ftb_arena.h").read_text()
    functions = header.count(");\n") - header.count("__attribute__")
    assert version == 1
    assert arena.value == buffers.arena_address(buffers.default_pool)
    assert size_bytes == head + 8 + 8 * functions


def test_headers_are_those_of_the_sources() -> None:
    include = Path(ftbus.get_include())
    csrc = Path(__file__).parent.parent / "csrc"
    shipped = {path.name: path.read_bytes() for path in include.iterdir()}
    assert sorted(shipped) == [
        "ftb_arena.h",
        "ftb_arena_api.h",
        "ftb_arena_import.h",
    ]
    for name, content in shipped.items():
        (source,) = csrc.glob(f"*/{name}")
        assert source.read_bytes() == content


def test_every_public_function_is_in_the_table() -> None:
    """Its declaration, its entry and the name that code elsewhere calls it by."""
    arena = Path(__file__).parent.parent / "csrc" / "arena"
    header = (arena / "ftb_arena.h").read_text()
    table = (arena / "ftb_arena_api.h").read_text()
    declared = re.findall(r"^[a-z][\w* ]*?\bftb_(\w+)\(", header, re.MULTILINE)
    assert re.findall(r"^    X\((\w+)\)", table, re.MULTILINE) == declared
    named = re.findall(r"^#define ftb_(\w+).* \(?ftb_arena_api->(\w+)", table, re.M)
    assert named == [(name, name) for name in declared]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.thread_unsafe(reason="forks")
def test_a_fork_child_has_handles(python: Any) -> None:
    done = python(
        "import os\n"
        "from ftbus import Buffer\n"
        "from ftbus.buffers import buffer_from_handle, handle_of\n"
        "handle = handle_of(Buffer(b'parent'))\n"
        "child = os.fork()\n"
        "assert buffer_from_handle(handle) == b'parent'\n"
        "assert buffer_from_handle(handle_of(Buffer(b'own'))) == b'own'\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print('ok')\n",
        "-W",
        "ignore::DeprecationWarning",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(
    ("compiler", "standard"), [("gcc", "c11"), ("gcc", "c17"), ("g++", "c++17")]
)
def test_headers_compile_strictly(tmp_path: Path, compiler: str, standard: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    # In C++ a struct is shadowed by the function of its name, as with stat(2).
    language = ["c++"] if compiler == "g++" else ["c", "-Wshadow"]
    source = tmp_path / "source"
    source.write_text(
        '#include "ftb_arena_import.h"\n'
        "FTB_ARENA_API_DEFINE;\n"
        "ftb_block_t *probe(struct ftb_arena_stats *stats);\n"
        "ftb_block_t *probe(struct ftb_arena_stats *stats)\n"
        "{\n"
        "    if (ftb_arena_api_import() < 0) { return NULL; }\n"
        "    ftb_arena_stats(ftb_arena_api->default_arena, stats);\n"
        "    return ftb_block_new(ftb_arena_api->default_arena, 10);\n"
        "}\n"
    )
    done = subprocess.run(
        [
            *(compiler, f"-std={standard}", "-x", *language, "-fsyntax-only"),
            *("-Wall", "-Wextra", "-Wconversion", "-Werror"),
            *("-I", ftbus.get_include(), "-isystem", sysconfig.get_path("include")),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
