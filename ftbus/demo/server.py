"""The game server: which event leads to what, and the threads that make events.

    datagram --> INPUT ----> apply_input ----> MOVED ----> update_interest
                        |                             '--> update_score --> TAGGED
                        '--> acknowledge
                 TAGGED ---> take_tag
    tick ------> SNAPSHOT -> show, broadcast, record

Inputs and tags are posted with the player as their partition: the workers run different
players side by side, and the events of one player one after another. So a handler
changes its own player without a lock; what it wants of another, it posts to that one.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Final

from ftbus import BufferPool, EventBus, Key
from ftbus.demo import netcode, protocol, world
from ftbus.demo.snapshots import Frame, Replay, SnapshotCodec
from ftbus.demo.transport import Datagram, Receiver, open_sockets
from ftbus.demo.world import Player, State

if TYPE_CHECKING:
    from pathlib import Path

    from ftbus import Buffer

INPUT: Final = Key("player.input")
MOVED: Final = Key("player.moved")
TAGGED: Final = Key("player.tagged")
SNAPSHOT: Final = Key("world.snapshot")

SILENCE_NS_MAX: Final = 5_000_000_000  # after it a player gets no more snapshots


class GameServer:
    """An authoritative server for players 0 to players-1 on one UDP port.

    port: 0, or one that is in use, makes the kernel pick one; see `port_in_use`.
    workers: threads that run handlers, None for one per core.
    tick_hz: snapshots per second.
    replay: where to write the snapshots; None for a file that is gone afterwards.
    """

    def __init__(
        self,
        *,
        players: int,
        port: int = 0,
        workers: int | None = None,
        tick_hz: float = 30.0,
        replay: Path | None = None,
    ) -> None:
        self.token = int.from_bytes(os.urandom(8))
        """What the datagrams of this server and its players carry."""
        self.players = [Player(player_id) for player_id in range(players)]
        self.pool = BufferPool(name="game")
        self.replay = Replay(replay)
        self.snapshots = 0
        """Snapshots made; the newest one's tick. Written by the tick thread alone."""
        self.unsent_snapshots = 0
        """Those that the kernel took not for some player. By the tick thread alone."""
        self.late_ticks = 0
        """Ticks skipped because the one before took too long."""
        self.first_failure: str | None = None
        """The traceback of the first handler that failed."""
        self._tick_s = 1.0 / tick_hz
        self._view: Buffer | None = None  # the records of the newest snapshot
        self._started_ns = time.perf_counter_ns()
        self._is_stopping = threading.Event()
        # Pinned: it lives as long as the process, and every thread uses it.
        self.bus = EventBus(
            workers=workers,
            codec=SnapshotCodec(self.pool),
            errors="log",
            on_error=self._note_failure,
            name="game",
        ).pin()
        self._subscribe()
        cores = os.process_cpu_count() or 1
        self._sockets, is_wanted = open_sockets(port, cores)
        self.port: int = self._sockets[0].getsockname()[1]
        self.port_in_use = None if is_wanted else port
        self.receivers = [
            Receiver(
                source,
                self.bus.topic(INPUT),
                self.pool,
                token=self.token,
                players=players,
            )
            for source in self._sockets
        ]
        self._ticker = threading.Thread(target=self._run_ticks, name="ticker")

    def _subscribe(self) -> None:
        bus = self.bus
        bus.on(INPUT, self.apply_input, priority=2)
        bus.on(INPUT, self.acknowledge, priority=1)
        bus.on(MOVED, self.update_interest, priority=2)
        bus.on(MOVED, self.update_score, priority=1)
        bus.on(TAGGED, self.take_tag)
        bus.on(SNAPSHOT, self.show, encoded=True, priority=2)
        bus.on(SNAPSHOT, self.broadcast, encoded=True, priority=1)
        bus.on(SNAPSHOT, self.replay.record, encoded=True)

    # Handlers of one player's events, run by the workers, one at a time for each player

    def apply_input(self, datagram: Datagram) -> None:
        """Validate an input that is due, and move its player."""
        player = self.players[datagram.player]
        if player.address != datagram.address:
            if player.address is not None:
                player.strangers += 1
                return
            player.address = datagram.address
            player.started_ns = time.perf_counter_ns()
        now_ns = player.heard_ns = time.perf_counter_ns()
        tick, duration_us, heading, buttons = protocol.read_input(datagram.buffer)
        if buttons & ~protocol.BUTTONS_ALL:
            player.malformed += 1
            return
        verdict = player.inputs.accept(datagram.sequence)
        if verdict is not netcode.NEXT:
            player.duplicates += verdict is netcode.DUPLICATE
            player.ahead += verdict is netcode.AHEAD
            return
        if not world.is_in_time(player, duration_us, now_ns):
            player.speeding += 1
            duration_us = 0
        player.snapshot_seen = tick
        player.buttons = buttons
        player.state = world.move(player.state, heading, buttons, duration_us / 1e6)
        self.bus.emit(MOVED, player)

    def update_interest(self, player: Player) -> None:
        """Find out whom the player sees, in the records of the newest snapshot.

        Every worker unpacks them for itself from the bytes that also went to the
        players, and so shares no objects with the others.
        """
        view = self._view
        if view is not None:
            others = protocol.RECORD.iter_unpack(view)
            player.seen = world.in_sight(player.id, player.state, others)

    def update_score(self, player: Player) -> None:
        """Let a player that fires tag whom it sees straight ahead."""
        if not player.buttons & protocol.BUTTON_FIRE:
            return
        now_ns = time.perf_counter_ns()
        if now_ns < player.next_tag_ns:
            return
        player.next_tag_ns = now_ns + world.TAG_INTERVAL_NS
        target = world.target_of(player.state, player.seen)
        if target is not None:
            player.tags_made += 1
            player.state = player.state._replace(score=player.state.score + 1)
            self.bus.post(TAGGED, target, partition=target)

    def take_tag(self, target: int) -> None:
        """Take a tagged player's health, and start it anew when there is none left."""
        player = self.players[target]
        player.tags_taken += 1
        health = player.state.health - world.TAG_DAMAGE
        if health > 0:
            player.state = player.state._replace(health=health)
        else:
            x, y = world.spawn_point(player.id + player.tags_taken)
            _, _, heading, _, score = player.state
            player.state = State(x, y, heading, world.HEALTH_MAX, score)

    def acknowledge(self, datagram: Datagram) -> None:
        """Tell the player its newest input that was applied, and what came of it."""
        datagram.buffer.release()
        player = self.players[datagram.player]
        player.acks += 1
        x, y, _, health, score = player.state
        ack = protocol.pack_ack(
            player=player.id,
            number=player.acks % netcode.SEQUENCES,
            token=self.token,
            sequence=player.inputs.last,
            applied=player.inputs.applied,
            place=(x, y),
            score=score,
            health=health,
            seen=[other for other, _, _ in player.seen],
        )
        try:
            datagram.socket.sendto(ack, player.address or datagram.address)
        except OSError:
            player.unsent += 1  # the player will ask again

    # Handlers of snapshots, run by the tick thread; all three get the same bytes

    def show(self, snapshot: Buffer) -> None:
        """Let update_interest see this snapshot from now on."""
        self._view = snapshot[protocol.SNAPSHOT_BODY.size :]

    def broadcast(self, snapshot: Buffer) -> None:
        """Send a snapshot to every player that we hear from, without a copy."""
        send = self._sockets[0].sendmsg
        heard_since_ns = time.perf_counter_ns() - SILENCE_NS_MAX
        for player in self.players:
            if player.address is None or player.heard_ns < heard_since_ns:
                continue
            header = protocol.pack_snapshot_header(
                player.id, player.inputs.last, self.token
            )
            try:
                send((header, snapshot), (), 0, player.address)
            except OSError:
                self.unsent_snapshots += 1  # the next one replaces it

    def _run_ticks(self) -> None:
        """Emit the world once per tick, from the tick thread."""
        due_s = time.perf_counter()
        while not self._is_stopping.wait(max(0.0, due_s - time.perf_counter())):
            self.snapshots += 1
            elapsed_ms = (time.perf_counter_ns() - self._started_ns) // 1_000_000
            records = [(player.id, *player.state) for player in self.players]
            self.bus.emit(SNAPSHOT, Frame(self.snapshots, elapsed_ms, records))
            due_s += self._tick_s
            while due_s < time.perf_counter() - self._tick_s:
                due_s += self._tick_s
                self.late_ticks += 1

    # Life

    def start(self) -> None:
        """Start receiving and ticking."""
        for receiver in self.receivers:
            receiver.start()
        self._ticker.start()

    def stop(self) -> int:
        """Handle what was received, end all threads; return the events left over."""
        for receiver in self.receivers:
            receiver.stop()
        for receiver in self.receivers:
            receiver.join()
        self._is_stopping.set()
        self._ticker.join()
        self.bus.drain(timeout=15.0)
        left = self.bus.close()
        self._view = None
        for opened in self._sockets:
            opened.close()
        return left

    def refused(self) -> Counter[str]:
        """Return the datagrams not acted on, by reason; exact once stopped."""
        total: Counter[str] = Counter()
        for receiver in self.receivers:
            total.update(receiver.refused.copy())
        total["malformed"] += sum(player.malformed for player in self.players)
        total["foreign"] += sum(player.strangers for player in self.players)
        return +total

    def snapshot_lag(self) -> float:
        """Return how many ticks the median player's newest snapshot is behind ours."""
        return self.snapshots - median(player.snapshot_seen for player in self.players)

    def _note_failure(self, error: BaseException, key: object, handler: object) -> None:
        """Keep the first failure for the report; the bus counts them all."""
        if self.first_failure is None:
            trace = "".join(traceback.format_exception(error))
            self.first_failure = f"{handler!r} of {key!r}: {trace}"
