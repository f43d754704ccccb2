"""The demo's pure parts: the wire format, the windows, the world, the histogram."""

import os
import random
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftbus import BufferPool
from ftbus.demo import board, netcode, protocol, world
from ftbus.demo.protocol import DatagramError

TOKEN = 0x0123456789ABCDEF
PLAYERS = 8

records = st.lists(
    st.tuples(
        st.integers(0, 0xFFFF),
        st.floats(width=32, allow_nan=False),
        st.floats(width=32, allow_nan=False),
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, 0xFFFFFFFF),
    ),
    max_size=80,
    unique_by=lambda record: record[0],
).map(sorted)


def an_input(player: int = 3, sequence: int = 1, token: int = TOKEN) -> bytes:
    target = bytearray(protocol.INPUT_BYTES)
    protocol.pack_input(
        target,
        player=player,
        sequence=sequence,
        token=token,
        tick=77,
        duration_us=5000,
        heading=64,
        buttons=protocol.BUTTON_MOVE,
    )
    return bytes(target)


def an_ack(seen: list[int]) -> bytes:
    return protocol.pack_ack(
        player=3,
        number=9,
        token=TOKEN,
        sequence=41,
        applied=41,
        place=(1.5, 2.5),
        score=7,
        health=100,
        seen=seen,
    )


# Wire format


def test_input_comes_back_as_it_was_packed() -> None:
    datagram = an_input(player=3, sequence=65535)
    checked = protocol.check_input(datagram, len(datagram), TOKEN, PLAYERS)
    assert checked == (3, 65535)
    assert protocol.read_input(datagram) == (77, 5000, 64, protocol.BUTTON_MOVE)


@pytest.mark.parametrize("length", range(protocol.INPUT_BYTES))
def test_input_cut_short_is_truncated(length: int) -> None:
    datagram = an_input()[:length]
    with pytest.raises(DatagramError) as caught:
        protocol.check_input(datagram, length, TOKEN, PLAYERS)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (an_input() + b"!", "malformed"),
        (an_input(player=PLAYERS), "malformed"),
        (an_input(token=TOKEN + 1), "foreign"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "foreign"),
        (an_ack([1, 2]), "malformed"),
        (b"", "truncated"),
    ],
)
def test_what_is_no_input_is_refused_with_its_reason(
    datagram: bytes, reason: str
) -> None:
    with pytest.raises(DatagramError) as caught:
        protocol.check_input(datagram, len(datagram), TOKEN, PLAYERS)
    assert caught.value.reason == reason


@given(st.binary(max_size=protocol.DATAGRAM_BYTES))
def test_any_bytes_are_an_input_or_refused(datagram: bytes) -> None:
    with pytest.raises(DatagramError):  # nobody guesses the token
        protocol.check_input(datagram, len(datagram), TOKEN, PLAYERS)


@given(st.integers(0, protocol.INPUT_BYTES - 1), st.integers(1, 255))
def test_input_with_a_changed_byte_is_an_input_or_refused(at: int, flip: int) -> None:
    datagram = bytearray(an_input())
    datagram[at] ^= flip
    try:
        player, _ = protocol.check_input(datagram, len(datagram), TOKEN, PLAYERS)
    except DatagramError:
        return
    assert player < PLAYERS
    protocol.read_input(datagram)


@pytest.mark.parametrize("seen", [[], [0], [7, 1, 2], list(range(8))])
def test_ack_comes_back_as_it_was_packed(seen: list[int]) -> None:
    ack = memoryview(an_ack(seen))
    assert protocol.read_header(ack, len(ack), TOKEN) == (protocol.KIND_ACK, 3, 9)
    assert protocol.read_ack(ack, len(ack), PLAYERS) == (41, 41, 1.5, 2.5)


@pytest.mark.parametrize(
    "ack", [an_ack([1, 1]), an_ack([PLAYERS]), an_ack([1])[:-1], an_ack([]) + b"!"]
)
def test_ack_that_cannot_be_is_refused(ack: bytes) -> None:
    with pytest.raises(DatagramError):
        protocol.read_ack(memoryview(ack), len(ack), PLAYERS)


@given(records)
def test_snapshot_comes_back_as_it_was_encoded(world_records: list) -> None:
    pool = BufferPool()
    encoded = protocol.encode_snapshot(pool, 5, 1234, world_records)
    assert encoded.readonly
    decoded = protocol.decode_snapshot(memoryview(encoded))
    assert decoded == (5, 1234, world_records)
    del encoded
    assert pool.live == 0


@given(st.data())
def test_snapshot_with_a_changed_byte_is_refused(data: st.DataObject) -> None:
    encoded = protocol.encode_snapshot(BufferPool(), 5, 0, [(1, 1.0, 2.0, 3, 4, 5)])
    damaged = bytearray(encoded)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(
        st.integers(1, 255)
    )
    with pytest.raises(DatagramError):
        protocol.decode_snapshot(memoryview(damaged))


@given(st.data())
def test_snapshot_cut_short_is_truncated(data: st.DataObject) -> None:
    encoded = bytes(
        protocol.encode_snapshot(BufferPool(), 5, 0, [(1, 1.0, 2.0, 3, 4, 5)])
    )
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    with pytest.raises(DatagramError) as caught:
        protocol.decode_snapshot(memoryview(cut))
    assert caught.value.reason == "truncated"


def test_snapshot_with_players_out_of_order_is_refused() -> None:
    twice = [(1, 0.0, 0.0, 0, 0, 0), (1, 0.0, 0.0, 0, 0, 0)]
    encoded = protocol.encode_snapshot(BufferPool(), 5, 0, twice)
    with pytest.raises(DatagramError):
        protocol.decode_snapshot(memoryview(encoded))


def test_failing_encode_leaves_no_buffer_behind() -> None:
    pool = BufferPool()
    with pytest.raises(struct.error):
        protocol.encode_snapshot(pool, 5, 0, [(-1, 0.0, 0.0, 0, 0, 0)])
    assert pool.live == 0


# Windows


@given(st.integers(0, 65535), st.integers(-32768, 32767))
def test_distance_survives_the_wrap_around(older: int, ahead: int) -> None:
    assert netcode.distance((older + ahead) % netcode.SEQUENCES, older) == ahead


def test_receive_window_applies_each_number_once_across_the_wrap_around() -> None:
    window = netcode.ReceiveWindow()
    for number in range(1, 2 * netcode.SEQUENCES):
        sequence = number % netcode.SEQUENCES
        assert window.accept((sequence + 1) % netcode.SEQUENCES) is netcode.AHEAD
        assert window.accept(sequence) is netcode.NEXT
        assert window.accept(sequence) is netcode.DUPLICATE
        assert window.applied == number


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    limit=st.integers(1, 8),
    loss=st.floats(0.0, 0.6),
    start=st.sampled_from([0, netcode.SEQUENCES - 20]),
)
def test_windows_deliver_all_once_in_order_over_a_bad_network(
    seed: int, limit: int, loss: float, start: int
) -> None:
    """Datagrams get lost, repeated and overtaken, in both directions."""
    chance = random.Random(seed)
    sender, receiver = netcode.SendWindow(limit), netcode.ReceiveWindow()
    sender.sent = sender.acked = receiver.applied = start
    receiver.last = start % netcode.SEQUENCES
    to_server: list[int] = []
    to_player: list[int] = []
    applied: list[int] = []
    now_ns = 0
    latencies = 0

    def carry(queue: list[int], sequence: int) -> None:
        for _ in range(chance.choice((1, 1, 2))):
            if chance.random() >= loss:
                queue.insert(chance.randint(0, len(queue)), sequence)

    while len(applied) < 60 or sender.acked < sender.sent:
        now_ns += 20_000_000
        assert now_ns < 10**13, "it makes no progress"
        while len(applied) < 60 and sender.has_room():
            carry(to_server, sender.send(now_ns))
        for number in sender.overdue(now_ns):
            carry(to_server, number % netcode.SEQUENCES)
        for sequence in to_server:
            if receiver.accept(sequence) is netcode.NEXT:
                applied.append(sequence)
            carry(to_player, receiver.last)
        to_server.clear()
        for sequence in to_player:
            latencies += len(sender.acknowledge(sequence, now_ns))
        to_player.clear()

    count = sender.sent - start
    expected = [(start + n) % netcode.SEQUENCES for n in range(1, count + 1)]
    assert applied == expected
    assert latencies == count
    assert receiver.applied == sender.sent


def test_send_window_waits_for_acks_and_resends_ever_more_slowly() -> None:
    window = netcode.SendWindow(2)
    assert [window.send(0), window.send(0)] == [1, 2]
    assert not window.has_room()
    assert not window.overdue(netcode.RESEND_NS_FIRST - 1)
    first = netcode.RESEND_NS_FIRST
    assert list(window.overdue(first)) == [1, 2]
    assert not window.overdue(first + 2 * first - 1)
    assert list(window.overdue(first + 2 * first)) == [1, 2]
    assert window.acknowledge(2, 4 * first) == [4 * first, 4 * first]
    assert window.has_room()
    assert not window.overdue(10 * first)


def test_ack_of_what_was_never_sent_is_an_error() -> None:
    window = netcode.SendWindow(2)
    window.send(0)
    with pytest.raises(ValueError, match="never sent"):
        window.acknowledge(2, 1)


# World


def floor_tiles() -> list[int]:
    return [tile for tile, kind in enumerate(world.TILES) if kind != world.WALL]


def test_map_is_closed_and_every_floor_tile_can_be_reached() -> None:
    assert len(world.TILES) == world.WIDTH * world.HEIGHT
    found = {floor_tiles()[0]}
    border = list(found)
    while border:
        tile = border.pop()
        assert 0 < tile % world.WIDTH < world.WIDTH - 1
        assert 0 < tile // world.WIDTH < world.HEIGHT - 1
        for other in (tile - 1, tile + 1, tile - world.WIDTH, tile + world.WIDTH):
            if world.TILES[other] != world.WALL and other not in found:
                found.add(other)
                border.append(other)
    assert sorted(found) == floor_tiles()


def test_spawn_points_are_on_the_floor() -> None:
    points = [world.spawn_point(player) for player in range(3000)]
    assert not any(world.is_wall(x, y) for x, y in points)
    assert len(set(points[:64])) >= 60


@given(
    st.integers(0, 1023),
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 3), st.floats(0.0, 5.0)),
        max_size=100,
    ),
)
def test_nobody_walks_into_a_wall(player: int, inputs: list) -> None:
    state = world.State(*world.spawn_point(player), 0, 100, 0)
    for heading, buttons, duration_s in inputs:
        before = state
        state = world.move(state, heading, buttons, duration_s)
        assert not world.is_wall(state.x, state.y)
        longest = world.SPEED * world.STEP_S_MAX
        assert abs(state.x - before.x) + abs(state.y - before.y) <= 1.5 * longest


def test_walking_longer_than_time_has_passed_is_speeding() -> None:
    player = world.Player(0)
    slack_us = world.CLOCK_SLACK_NS // 1000
    assert world.is_in_time(player, slack_us, 0)
    assert not world.is_in_time(player, 1, 0)
    assert world.is_in_time(player, 1, 1000)


fractions = st.floats(0.05, 0.95)
points = st.builds(
    lambda tile, x, y: (tile % world.WIDTH + x, tile // world.WIDTH + y),
    st.sampled_from(floor_tiles()),
    fractions,
    fractions,
)


def walls_around(x: float, y: float) -> int:
    """Return how many of four points around a point are inside walls."""
    around = ((dx, dy) for dx in (-0.1, 0.1) for dy in (-0.1, 0.1))
    return sum(world.is_wall(x + dx, y + dy) for dx, dy in around)


@given(points, points)
@example((1.25, 1.5), (1.25, 2.5))
@example((1.5, 1.25), (2.5, 1.25))
def test_line_of_sight_is_blocked_by_walls_alone(
    a: tuple[float, float], b: tuple[float, float]
) -> None:
    """Compared with looking at five hundred points of the line."""
    dx, dy = (b[0] - a[0]) / 500, (b[1] - a[1]) / 500
    line = [(a[0] + i * dx, a[1] + i * dy) for i in range(501)]
    walls = [walls_around(x, y) for x, y in line]
    if max(walls) == 0:
        assert world.is_visible(*a, *b)
    if max(walls) == 4:  # deep inside; else it may only touch a corner
        assert not world.is_visible(*a, *b)


def test_in_sight_prefers_who_is_near_and_in_front() -> None:
    me = world.State(32.0, 13.5, 0, 100, 0)
    others = [
        (0, 32.0, 13.5, 0, 100, 0),  # the player itself
        (1, 36.0, 13.5, 0, 100, 0),  # in front
        (2, 28.5, 13.5, 0, 100, 0),  # nearer, but behind
        (3, 33.0, 13.5, 0, 100, 0),  # nearest
        (4, 50.0, 13.5, 0, 100, 0),  # behind a wall
        (5, 32.0 + world.VIEW_TILES, 13.5, 0, 100, 0),  # too far
    ]
    seen = world.in_sight(0, me, others)
    assert [other for other, _, _ in seen] == [3, 1, 2]
    assert world.target_of(me, seen) == 3
    assert world.target_of(me._replace(heading=128), seen) == 2
    assert world.target_of(me._replace(heading=64), seen) is None


def test_in_sight_names_no_more_than_an_ack_can() -> None:
    crowd = [(i, 30.0 + i / 10, 13.5, 0, 100, 0) for i in range(40)]
    seen = world.in_sight(0, world.State(30.0, 13.5, 0, 100, 0), crowd)
    assert len(seen) == protocol.SEEN_MAX


# Histogram


@given(st.integers(0, 7_900_000_000))
def test_latency_buckets_are_within_a_thirtieth(latency_ns: int) -> None:
    us = board.bucket_us(board.bucket_of(latency_ns))
    assert abs(us - latency_ns / 1000) <= max(1.0, latency_ns / 1000 / 30)


def test_latencies_beyond_the_last_bucket_are_kept_in_it() -> None:
    assert board.bucket_of(10**15) == board.BUCKETS - 1


def test_percentiles_are_those_of_what_was_counted() -> None:
    slot = memoryview(bytearray(8 * board.SLOT_WORDS)).cast("Q")
    for us in range(1, 101):
        board.count_latency(slot, us * 1000)
    latencies = tuple(slot[-board.BUCKETS :])
    assert sum(latencies) == 100
    assert board.percentile_us(latencies, 0.50) == pytest.approx(50, rel=0.04)
    assert board.percentile_us(latencies, 0.99) == pytest.approx(99, rel=0.04)
    assert board.percentile_us((0,) * board.BUCKETS, 0.5) == 0.0


@pytest.mark.thread_unsafe(reason="it patches os")
@pytest.mark.parametrize("has_memfd", [True, False])
def test_players_see_what_is_on_the_board(
    has_memfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_memfd:  # as on macOS
        monkeypatch.delattr("os.memfd_create")
    made = board.Board.create(players=2, port=3, token=4, window=5)
    opened = board.Board(os.dup(made.fd))
    made.slot(1)[board.SENT] = 7
    assert opened.words[board.PORT] == 3
    assert opened.totals().sent == 7
    opened.close()
    made.close()
