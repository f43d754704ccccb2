"""The game server, face to face."""

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbus.demo import protocol, transport, world
from ftbus.demo.server import GameServer

pytestmark = pytest.mark.thread_unsafe(reason="it runs processes and threads itself")

LIMIT_S = 60


class Client:
    """A player that this test plays by hand."""

    def __init__(self, server: GameServer, player: int = 0) -> None:
        self.server = server
        self.player = player
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect((protocol.HOST, server.port))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def input(self, sequence: int, **changes: int) -> bytes:
        datagram = bytearray(protocol.INPUT_BYTES)
        fields = {"tick": 0, "duration_us": 0, "heading": 0, "buttons": 0, **changes}
        protocol.pack_input(
            datagram,
            player=self.player,
            sequence=sequence,
            token=self.server.token,
            **fields,
        )
        return bytes(datagram)

    def receive(self, kind: int) -> tuple[int, memoryview]:
        """Return (sequence, datagram) of the next datagram of a kind."""
        while True:
            datagram = memoryview(self.socket.recv(65536))
            found, player, sequence = protocol.read_header(
                datagram, len(datagram), self.server.token
            )
            assert player == self.player
            if found == kind:
                return sequence, datagram

    def play(self, sequence: int, **changes: int) -> tuple[int, int, int]:
        """Send an input; return (ack's number, newest applied, number applied)."""
        self.socket.send(self.input(sequence, **changes))
        number, ack = self.receive(protocol.KIND_ACK)
        last, applied, _, _ = protocol.read_ack(ack, len(ack), 1024)
        return number, last, applied


@contextlib.contextmanager
def running(players: int = 2, tick_hz: float = 100.0) -> Iterator[GameServer]:
    """Run a server, and check in the end that nothing failed or leaked."""
    server = GameServer(players=players, tick_hz=tick_hz)
    server.start()
    try:
        yield server
    finally:
        left = server.stop()
        server.replay.close()
    stats = server.bus.stats()
    assert left == 0
    assert stats.posted == stats.delivered
    assert stats.encoded == server.snapshots > 0
    assert server.first_failure is None
    assert server.pool.live == 0


def test_inputs_are_applied_once_and_in_order() -> None:
    with running() as server, Client(server) as client:
        assert client.play(1) == (1, 1, 1)
        assert client.play(1) == (2, 1, 1)  # again: acknowledged again, not applied
        assert client.play(3) == (3, 1, 1)  # 2 is missing
        assert client.play(2) == (4, 2, 2)
        assert client.play(3) == (5, 3, 3)
        player = server.players[0]
        assert (player.duplicates, player.ahead) == (1, 1)


def test_moves_are_applied_unless_they_are_too_fast() -> None:
    with running() as server, Client(server) as client:
        player = server.players[0]
        player.state = world.State(30.5, 13.5, 0, 100, 0)
        client.play(1, duration_us=50_000, buttons=protocol.BUTTON_MOVE)
        assert player.state.x == pytest.approx(30.5 + 0.05 * world.SPEED)
        client.play(2, duration_us=10**9, buttons=protocol.BUTTON_MOVE, heading=9)
        assert player.state.x == pytest.approx(30.5 + 0.05 * world.SPEED)
        assert player.state.heading == 9
        assert player.speeding == 1


def test_snapshots_say_what_was_applied_and_how_the_world_is() -> None:
    with running() as server, Client(server) as client:
        client.play(1)
        ticks = []
        for _ in range(3):
            newest, datagram = client.receive(protocol.KIND_SNAPSHOT)
            assert newest == 1
            tick, _, records = protocol.decode_snapshot(
                datagram[protocol.HEADER.size :]
            )
            ticks.append(tick)
            assert [record[0] for record in records] == [0, 1]
        assert ticks == sorted(set(ticks))


def test_player_in_another_name_is_foreign() -> None:
    with running() as server, Client(server) as client, Client(server) as other:
        client.play(1)
        other.socket.send(other.input(2))
        client.receive(protocol.KIND_ACK)  # not for the other one to see
        assert client.play(2) == (3, 2, 2)
        assert server.refused() == {"foreign": 1}


def test_buttons_that_do_not_exist_are_malformed() -> None:
    with running() as server, Client(server) as client:
        assert client.play(1, buttons=0x80) == (1, 0, 0)
        assert server.refused() == {"malformed": 1}


def test_tag_reaches_the_player_in_front() -> None:
    with running() as server, Client(server) as client:
        shooter, target = server.players
        shooter.state = world.State(30.5, 13.5, 0, 100, 0)
        target.state = world.State(33.5, 13.5, 0, 100, 0)
        client.play(1)
        for sequence in (2, 3):  # the snapshot after the next is newer than the states
            client.receive(protocol.KIND_SNAPSHOT)
            client.play(sequence)
        client.play(4, buttons=protocol.BUTTON_FIRE)
        client.play(5, buttons=protocol.BUTTON_FIRE)  # too soon after the first
        assert server.bus.drain(LIMIT_S)
        assert shooter.state.score == shooter.tags_made == target.tags_taken == 1
        assert target.state.health == 100 - world.TAG_DAMAGE
        for _ in range(4):
            server.take_tag(target.id)
        assert target.state.health == world.HEALTH_MAX
        assert not world.is_wall(target.state.x, target.state.y)


def test_failing_handler_costs_neither_ack_nor_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    server = GameServer(players=1, tick_hz=100.0)
    monkeypatch.setattr(world, "move", fail)
    server.start()
    with Client(server) as client:
        assert client.play(1) == (1, 1, 1)
        assert client.play(2) == (2, 2, 2)
    assert server.stop() == 0
    server.replay.close()
    assert server.bus.stats().failed == 2
    assert "out of luck" in (server.first_failure or "")
    assert server.pool.live == 0


def test_no_datagram_harms_a_running_server() -> None:
    with running(players=1) as server, Client(server) as client:
        client.play(1)
        good = client.input(1)
        changed = st.builds(
            lambda at, flip: good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :],
            st.integers(0, len(good) - 1),
            st.integers(1, 255),
        )
        cut = st.integers(0, len(good)).map(lambda length: good[:length])
        sent = 0

        @settings(max_examples=100, deadline=None)
        @given(st.one_of(st.binary(max_size=100), changed, cut))
        def attack(datagram: bytes) -> None:
            nonlocal sent
            client.socket.send(datagram)
            client.play(1)  # an ack shows that the receiver lives
            sent += 2

        attack()
        # What was changed may have been a good input, with an ack that nobody read.
        due = server.players[0].inputs.last + 1
        sent += 1
        _, newest, _ = client.play(due)
        while newest != due:
            _, ack = client.receive(protocol.KIND_ACK)
            newest, *_ = protocol.read_ack(ack, len(ack), 2)
        assert server.players[0].inputs.applied == due
        assert sum(receiver.received for receiver in server.receivers) == 1 + sent


def test_sockets_share_a_port_that_nobody_else_has() -> None:
    sockets, is_wanted = transport.open_sockets(0, 4)
    others: list[socket.socket] = []
    try:
        ports = {opened.getsockname()[1] for opened in sockets}
        assert is_wanted
        assert len(ports) == 1
        others, is_wanted = transport.open_sockets(*ports, 2)
        assert not is_wanted
        assert not ports & {opened.getsockname()[1] for opened in others}
    finally:
        for opened in sockets + others:
            opened.close()


def test_sockets_that_cannot_be_had_for_another_reason_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "ftbus.demo.transport.HOST", "192.0.2.1"
    )  # TEST-NET: never ours
    with pytest.raises(OSError, match="assign") as caught:
        transport.open_sockets(0, 2)
    assert caught.value.errno == errno.EADDRNOTAVAIL
