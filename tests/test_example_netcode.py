"""The netcode example: it compiles as its README says, serves, and survives fuzzing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from builds import TSAN
from processes import GIL_OFF, IS_GIL_AT_STAKE, output_of

EXAMPLE = Path(__file__).parent.parent / "examples" / "netcode"
# Where the interpreter itself is instrumented, the same takes fifty times as long.
STREAMS = "100" if TSAN else "3000"

pytestmark = pytest.mark.thread_unsafe(reason="starts a process")


def run(folder: Path, *arguments: str, warnings: str = "error") -> str:
    """Run one of the example's programs in its folder and return what it printed."""
    return output_of("-W", warnings, *arguments, folder=folder, within=110, **GIL_OFF)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the example, compiled as its README says."""
    folder = tmp_path_factory.mktemp("example") / "netcode"
    built = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(EXAMPLE, folder, ignore=built)
    run(folder, "build.py", warnings="default")
    return folder


def test_serves_its_peers_without_losing_a_packet(folder: Path) -> None:
    output = run(folder, "serve.py")
    assert re.match(r"20000 packets, \d+ bytes of chat\n", output)
    assert " 0 left\n" in output
    if IS_GIL_AT_STAKE:
        assert output.endswith("GIL off\n")


def test_damaged_streams_give_what_a_plain_parser_gives(
    folder: Path, seed: int
) -> None:
    output = run(folder, "fuzz.py", "--streams", STREAMS, "--seed", str(seed))
    found = re.search(r"streams: (\d+) packets and (\d+) faults found", output)
    assert found, output
    assert all(int(figure) > int(STREAMS) / 10 for figure in found.groups())


MISUSE = """
from ftbus import BufferPool, HandleError, cabi
from netcode import ProtocolError, Stream, ffi, lib
import gc
assert lib.netcode_use_arena(ffi.NULL) == 0
pool = BufferPool(name="test")
stream = Stream(pool, payload_limit=10)
header = bytes.fromhex("f7b5 0001 0000000a")
(kind, payload), = stream.feed(header + b"0123456789" + header + b"0123")
assert (kind, payload, payload.readonly, pool.live) == (1, b"0123456789", True, 2)
packet = ffi.new("struct netcode_packet *")
used = ffi.new("size_t *")
assert lib.netcode_feed(stream._stream, b"456789", 6, used, packet, 1) == 1
lib.netcode_drop(packet, 1)
try:
    cabi.buffer_from_handle(packet.handle)
except HandleError:
    lib.netcode_drop(packet, 1)
    print("dropped", pool.live)
stream.feed(header + b"0")
try:
    stream.feed(bytes(9) + b"not a packet")
except ProtocolError:
    raise SystemExit("the fault came before the packet in front of it")
for _ in range(2):
    try:
        stream.feed(header + b"0123456789")
    except ProtocolError as error:
        print(error)
del stream, payload
long = Stream(pool, payload_limit=9)
try:
    long.feed(header)
except ProtocolError as error:
    print(error)
del long
midway = Stream(pool)
midway.feed(header + b"01234")
assert pool.live == 1
del midway
gc.collect()
print("left", pool.live)
"""


def test_ownership_and_limits(folder: Path) -> None:
    assert run(folder, "-c", MISUSE).splitlines() == [
        "dropped 1",
        "no packet begins here",
        "no packet begins here",
        "a payload is longer than payload_limit",
        "left 0",
    ]


def test_without_a_build_it_says_so(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "netcode.py", tmp_path)
    output = run(
        tmp_path,
        "-c",
        "try:\n import netcode\nexcept ModuleNotFoundError as e:\n print(e.name)",
    )
    assert output == "_netcode\n"


def test_its_readme_names_what_is_there() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    named = re.findall(r"^\| `([\w.]+)`", readme, re.MULTILINE)
    commands = re.findall(r"python (\w+\.py)", readme)
    assert len(named) == 4
    assert commands == ["build.py", "serve.py", "fuzz.py"]
    assert all((EXAMPLE / name).exists() for name in named + commands)
    assert len(readme.splitlines()) <= 45
