"""bus.serve_stats(): what it answers, whom, and what a bad client cannot do."""

import contextlib
import enum
import gc
import json
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftbus import AddressInUseError, BusClosedError, EventBus, InvalidOptionError
from ftbus.monitoring import snapshots, sockets
from ftbus.monitoring.stats_client import StatsClient, StatsUnavailableError
from ftbus.monitoring.stats_server import REQUEST_BYTES_MAX, StatsServer
from ftbus.testing import eventually

pytestmark = pytest.mark.thread_unsafe(reason="one runtime folder for the process")

ASK = b'{"version": 1, "request": "stats"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the sockets of this test to itself."""
    monkeypatch.setenv("FTBUS_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(workers=2, name="served") as bus:
        yield bus


def exchange(address: Any, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines as they are; return all replies until the server closes."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as raw:
        raw.settimeout(30)
        raw.connect(address if isinstance(address, tuple) else str(address))
        with contextlib.suppress(ConnectionError):  # it has closed: read why
            for line in lines:
                raw.sendall(line)
            raw.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError), raw.makefile("rb") as file:
            return [json.loads(line) for line in file]
    return []


def test_figures_are_those_of_stats(bus: EventBus) -> None:
    bus.on("moved", lambda event: None)
    bus.on("moved", lambda event: 1 / 0)
    with pytest.raises(ExceptionGroup):
        bus.emit("moved", 1)
    bus.topic("queued")
    for number in range(5):
        bus.post("queued", number)
    bus.drain()
    with bus.serve_stats() as server, StatsClient(server.address) as client:
        message = client.stats()
    wanted = json.loads(
        json.dumps(snapshots.to_dict(snapshots.bounded(bus.stats(max_keys=100), 9)))
    )
    given = message["stats"]
    for passing in ("uptime_s", "counted_s", "rates", "workers", "buffers"):
        given.pop(passing)
        wanted.pop(passing)
    assert given == wanted
    assert {row["key"] for row in given["topics"]} == {"moved", "queued"}
    assert message["process"]["pid"] == os.getpid()
    assert message["version"] == 1


def test_socket_is_this_users_alone_and_goes_with_the_bus(folder: Path) -> None:
    bus = EventBus(name="a/strange name")
    server = bus.serve_stats()
    path = server.address
    assert isinstance(path, Path)
    assert path.parent == folder
    assert path.name == f"{os.getpid()}-a-strange-name.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sockets.running() == [path]
    assert server.token is None
    bus.close()
    assert server.closed
    assert sockets.running() == []
    assert not path.exists()
    server.close()
    with pytest.raises(BusClosedError):
        bus.serve_stats()
    assert list(folder.iterdir()) == []


def test_several_buses_have_a_socket_each(bus: EventBus) -> None:
    with bus.serve_stats() as one, bus.serve_stats() as two:
        assert one.address != two.address
        for server in (one, two):
            with StatsClient(server.address) as client:
                assert client.stats()["stats"]["name"] == "served"


def test_folder_that_others_can_write_to_is_refused(
    bus: EventBus, folder: Path
) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="FTBUS_RUNTIME_DIR"):
        bus.serve_stats()


def test_another_user_is_denied(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    with bus.serve_stats() as server:
        monkeypatch.setattr(sockets, "peer_user", lambda _: os.geteuid() + 1)
        (reply,) = exchange(server.address)
        assert reply["error"] == "denied"


def test_peer_user_is_what_the_kernel_says() -> None:
    one, two = socket.socketpair()
    with one, two:
        assert sockets.peer_user(one) == os.geteuid()


def test_peer_user_is_asked_for_in_macos_words(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Connection:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            asked.append((level, option))
            # struct xucred: version 0, user 501, 2 groups, which may fill up to 16
            answer = struct.pack("=IIhxx16I", 0, 501, 2, 20, 12, *[0] * 14)
            assert size == len(answer) == 76
            return answer

    monkeypatch.delattr(socket, "SO_PEERCRED")
    assert sockets.peer_user(Connection()) == 501  # type: ignore[arg-type]
    assert asked == [(0, 1)]  # SOL_LOCAL, LOCAL_PEERCRED


def test_tcp_wants_the_token(bus: EventBus) -> None:
    with bus.serve_stats(0) as server:
        assert isinstance(server.address, tuple)
        assert server.address[0] == "127.0.0.1"
        assert server.token is not None
        assert len(server.token) >= 32
        with StatsClient(server.address, token=server.token) as client:
            assert client.stats()["stats"]["name"] == "served"
        for token in (None, "", "wrong", server.token + "x", "\N{SNOWMAN}", "\ud800"):
            with (
                StatsClient(server.address, token=token) as client,
                pytest.raises(StatsUnavailableError) as caught,
            ):
                client.stats()
            assert caught.value.code == "denied"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", "invalid"),
        (b"[]\n", "invalid"),
        (b"null\n", "invalid"),
        (b"\xff\xfe\n", "invalid"),
        (b"[" * 4000 + b"\n", "invalid"),
        (b"9" * 4000 + b"\n", "invalid"),
        (b'{"version": 2, "request": "stats"}\n', "invalid"),
        (b'{"version": 1, "request": "shutdown"}\n', "invalid"),
        (b'{"version": 1, "request": "stats"}', "too_long"),  # not a line
        (b"x" * REQUEST_BYTES_MAX, "too_long"),
        (b"x" * (REQUEST_BYTES_MAX * 64), "too_long"),
    ],
)
def test_bad_request_is_answered_and_harms_nobody(
    bus: EventBus, line: bytes, code: str
) -> None:
    with bus.serve_stats() as server:
        assert [reply["error"] for reply in exchange(server.address, line)] == [code]
        assert len(exchange(server.address, ASK, ASK, ASK)) == 3


def test_unknown_request_leaves_the_connection_open(bus: EventBus) -> None:
    with bus.serve_stats() as server:
        replies = exchange(server.address, b'{"version":1,"request":"?"}\n', ASK)
        assert [reply.get("error") for reply in replies] == ["invalid", None]


def test_too_many_clients_are_told_so(bus: EventBus) -> None:
    with bus.serve_stats() as server, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(StatsClient(server.address))
            for _ in range(StatsServer.connections_max)
        ]
        for client in clients:
            client.stats()
        with (
            StatsClient(server.address) as client,
            pytest.raises(StatsUnavailableError) as caught,
        ):
            client.stats()
        assert caught.value.code == "busy"
        clients[0].close()

        def is_served() -> bool:
            with (
                contextlib.suppress(StatsUnavailableError),
                StatsClient(server.address) as client,
            ):
                return bool(client.stats())
            return False

        assert eventually(is_served, 30)


def test_clients_that_do_not_read_hold_up_neither_bus_nor_close(bus: EventBus) -> None:
    bus.on("key", lambda event: None)
    with contextlib.ExitStack() as stack:
        server = bus.serve_stats()
        for _ in range(StatsServer.connections_max):
            raw = stack.enter_context(socket.socket(socket.AF_UNIX))
            raw.connect(str(server.address))
            raw.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:  # until its side is full too
                    raw.send(ASK * 50)
        for _ in range(100):
            bus.emit("key")
            bus.post("key")
        assert bus.drain(30)
        assert bus.stats().handled == 200
        bus.close(timeout=30)
        left = [t.name for t in threading.enumerate() if "served-stats" in t.name]
        assert eventually(lambda: not left or not _threads("served-stats"), 30)


def _threads(word: str) -> list[str]:
    return [t.name for t in threading.enumerate() if word in t.name]


def test_who_connects_again_and_again_has_to_wait(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftbus.monitoring.server._ACCEPTS_PER_S", 3)
    pauses = []
    pause = StatsServer._pause

    def note(self: StatsServer, seconds: float) -> None:
        pauses.append(seconds)
        pause(self, seconds / 100)

    monkeypatch.setattr(StatsServer, "_pause", note)
    with bus.serve_stats() as server:
        for _ in range(6):
            assert len(exchange(server.address, ASK)) == 1
    assert pauses
    assert all(0 < seconds <= 1 for seconds in pauses)


def test_client_that_resets_is_no_news(bus: EventBus, caplog: Any) -> None:
    with bus.serve_stats(0) as server:
        for _ in range(10):
            raw = socket.create_connection(server.address)
            raw.sendall(b"{")
            linger = struct.pack("ii", 1, 0)  # close by a reset
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            raw.close()
        with StatsClient(server.address, token=server.token) as client:
            assert client.stats()
    assert caplog.records == []


def test_keys_are_bounded_and_the_rest_summed(bus: EventBus) -> None:
    for number in range(50):
        bus.topic(f"key-{number}")
        for _ in range(number + 1):
            bus.emit(f"key-{number}")
    with bus.serve_stats(max_keys=3) as server, StatsClient(server.address) as client:
        rows = client.stats()["stats"]["topics"]
    assert [row["key"] for row in rows] == ["key-49", "key-48", "key-47", "(other)"]
    assert [row["emitted"] for row in rows] == [50, 49, 48, sum(range(48))]


def test_keys_of_one_name_are_one_row(bus: EventBus) -> None:
    for key in ("7", 7, "x" * 200 + "a", "x" * 200 + "b"):
        bus.topic(key)
        bus.emit(key)
    with bus.serve_stats() as server, StatsClient(server.address) as client:
        rows = client.stats()["stats"]["topics"]
    assert {row["key"]: row["emitted"] for row in rows} == {
        "7": 2,
        "x" * 119 + "…": 2,
    }


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("plain", "plain"),
        (7, "7"),
        (b"raw", "b'raw'"),
        (Colour.RED, "Colour.RED"),
        (Path, f"{Path.__module__}.Path"),
        ("x" * 500, "x" * 119 + "…"),
    ],
)
def test_keys_of_every_kind_are_named(bus: EventBus, key: Any, text: str) -> None:
    bus.on(key, lambda event: None)
    with bus.serve_stats() as server, StatsClient(server.address) as client:
        (row,) = client.stats()["stats"]["topics"]
    assert row["key"] == text


def test_stale_socket_is_replaced_and_a_live_one_is_not(
    bus: EventBus, tmp_path: Path
) -> None:
    path = tmp_path / "stats.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # never listens, as after a kill
    with bus.serve_stats(path) as server:
        assert server.address == path
        with pytest.raises(AddressInUseError, match="answers") as caught:
            bus.serve_stats(str(path))
        assert caught.value.address == path
        with StatsClient(path) as client:
            assert client.stats()
    assert not path.exists()


def test_other_files_are_left_alone(bus: EventBus, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(AddressInUseError, match="no socket"):
        bus.serve_stats(path)
    assert path.read_text() == "data"
    path.unlink()
    with bus.serve_stats(path):
        path.unlink()
        path.write_text("somebody else's now")
    assert path.exists()


def test_port_in_use_is_said(bus: EventBus) -> None:
    with bus.serve_stats(0) as server, pytest.raises(AddressInUseError):
        bus.serve_stats(server.address[1])


@pytest.mark.parametrize("where", [True, 1.5, -1, 65536, b"x", "/tmp/" + "x" * 120])
def test_bad_places_are_refused(bus: EventBus, where: Any) -> None:
    with pytest.raises(InvalidOptionError):
        bus.serve_stats(where)
    assert not _threads("served-stats")


@pytest.mark.parametrize("max_keys", [0, -1, True, "5", 10**9])
def test_bad_numbers_of_keys_are_refused(bus: EventBus, max_keys: Any) -> None:
    with pytest.raises(InvalidOptionError):
        bus.serve_stats(max_keys=max_keys)


def test_server_keeps_no_bus_alive() -> None:
    bus = EventBus(name="forgotten")
    server = bus.serve_stats()
    path = server.address
    del bus
    gc.collect()
    assert eventually(lambda: server.closed and not Path(str(path)).exists(), 30)


def test_no_code_of_the_applications_names_a_key(bus: EventBus) -> None:
    class Hostile(type):
        def __repr__(cls) -> str:
            raise AssertionError("called")

    event_class = Hostile("Event", (), {})
    bus.on(event_class, lambda event: None)
    with bus.serve_stats() as server, StatsClient(server.address) as client:
        (row,) = client.stats()["stats"]["topics"]
    assert row["key"] == f"{__name__}.Event"


def test_forks_child_serves_nothing_and_leaves_the_file(python: Any) -> None:
    done = python(
        """
import os, sys, warnings
warnings.simplefilter("ignore")
from ftbus import EventBus
from ftbus.monitoring.stats_client import StatsClient
bus = EventBus()
server = bus.serve_stats()
pid = os.fork()
if pid == 0:
    assert server.closed
    bus.close()
    server.close()
    os._exit(0 if os.path.exists(server.address) else 1)
assert os.waitpid(pid, 0)[1] == 0
with StatsClient(server.address) as client:
    assert client.stats()["process"]["pid"] == os.getpid()
print(server.address)
"""
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()  # the exit closes it


def test_client_says_who_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(StatsUnavailableError, match="nobody answers"):
        StatsClient(tmp_path / "none.sock")
    one, two = socket.socketpair()
    path = tmp_path / "mute.sock"
    with one, two, socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with StatsClient(path, timeout=0.01) as client:
            with pytest.raises(StatsUnavailableError) as caught:
                client.stats()
            assert caught.value.code == "slow"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", "gone"),
        (b"not json\n", "invalid"),
        (b"[]\n", "invalid"),
        (b'{"version": 2}\n', "invalid"),
        (b'{"version": 1, "error": "busy", "message": "later"}\n', "busy"),
    ],
)
def test_client_survives_strange_replies(
    tmp_path: Path, reply: bytes, code: str
) -> None:
    path = tmp_path / "odd.sock"
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(path))
        odd.listen()
        with StatsClient(path, timeout=30) as client:
            connection, _ = odd.accept()
            with connection:
                connection.sendall(reply)
                connection.shutdown(socket.SHUT_WR)
                with pytest.raises(StatsUnavailableError) as caught:
                    client.stats()
    assert caught.value.code == code
