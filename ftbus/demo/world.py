"""The game: a map, players that walk and tag each other, and what each of them sees.

Thread rule: a Player is written to by the handlers of its own partition only, so there
is no lock. Other threads read `player.state`, an immutable value replaced as a whole,
and never see half a move.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from ftbus.demo.netcode import ReceiveWindow
from ftbus.demo.protocol import BUTTON_MOVE, SEEN_MAX, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

# One byte a tile, "#" is wall. Constants of the code are not reference-counted in a
# free-threaded interpreter, so any number of threads may read this one side by side.
TILES: Final = (
    b"################################################################"
    b"#..............................................................#"
    b"#...#......................................................#...#"
    b"#...#...............#......##########......#...............#...#"
    b"#.......#########...#......................#...#########.......#"
    b"#.......#...........#......................#...........#.......#"
    b"#.......#...............#......##......#...............#.......#"
    b"#.......#...............#......##......#...............#.......#"
    b"#.......#...#########...#...##....##...#...#########...#.......#"
    b"#.......................#..............#.......................#"
    b"#.......................#..............#.......................#"
    b"#...######......###.....#..............#.....###......######...#"
    b"#...######......###.....#..............#.....###......######...#"
    b"#.......................#..............#.......................#"
    b"#.......................#..............#.......................#"
    b"#.......#...#########...#...##....##...#...#########...#.......#"
    b"#.......#...............#......##......#...............#.......#"
    b"#.......#...............#......##......#...............#.......#"
    b"#.......#...........#......................#...........#.......#"
    b"#.......#########...#......................#...#########.......#"
    b"#...#...............#......##########......#...............#...#"
    b"#...#......................................................#...#"
    b"#..............................................................#"
    b"################################################################"
)
WIDTH: Final = 64
HEIGHT: Final = 24
WALL: Final = 35  # ord("#")

SPEED: Final = 6.0  # tiles/s
STEP_S_MAX: Final = 0.1  # the longest that one input may move for
CLOCK_SLACK_NS: Final = 500_000_000  # by which a player's clock may be ahead of ours
TURN: Final = math.tau / 256  # a heading is a byte: 256 to the full turn

VIEW_TILES: Final = 24.0
LOOKED_AT_MAX: Final = 16  # players whose line of sight is followed

TAG_DAMAGE: Final = 20
HEALTH_MAX: Final = 100
TAG_INTERVAL_NS: Final = 250_000_000
TAG_HALF_ANGLE_COS: Final = 0.9  # tags reach 26 degrees to either side


type Sighting = tuple[int, float, float]
"""Who was seen, and where: player, x, y."""


class State(NamedTuple):
    """What everyone may know of a player."""

    x: float
    """Tiles from the left."""
    y: float
    """Tiles from the top."""
    heading: int
    """0 is right, 64 is down, 256 would be right again."""
    health: int
    score: int


class Player:
    """The server's side of one player. Only its own partition's handlers write it."""

    __slots__ = (
        "acks",
        "address",
        "ahead",
        "buttons",
        "duplicates",
        "heard_ns",
        "id",
        "inputs",
        "malformed",
        "next_tag_ns",
        "seen",
        "snapshot_seen",
        "speeding",
        "started_ns",
        "state",
        "strangers",
        "tags_made",
        "tags_taken",
        "unsent",
        "walked_ns",
    )

    def __init__(self, player_id: int) -> None:
        self.id = player_id
        self.state = State(*spawn_point(player_id), 0, HEALTH_MAX, 0)
        self.inputs = ReceiveWindow()
        self.address: tuple[str, int] | None = None
        """Where its datagrams come from; None until the first one."""
        self.acks = 0
        """Acks sent; the next one's number."""
        self.buttons = 0
        """Of the input being applied."""
        self.seen: list[Sighting] = []
        """Who is in its sight, the most relevant first."""
        self.snapshot_seen = 0
        """The newest tick it says it has."""
        self.started_ns = 0
        """When its first input came, by time.perf_counter_ns(), as all times here."""
        self.heard_ns = 0
        """When its newest input came."""
        self.walked_ns = 0
        """How long its moves have taken, as it says."""
        self.next_tag_ns = 0
        """When it may tag again."""
        self.tags_made = 0
        self.tags_taken = 0
        self.duplicates = 0
        """Inputs that came again."""
        self.ahead = 0
        """Inputs that came before the one that was due."""
        self.speeding = 0
        """Inputs whose move would have been too fast."""
        self.malformed = 0
        """Inputs with buttons that do not exist."""
        self.strangers = 0
        """Inputs in its name from another address."""
        self.unsent = 0
        """Acks that the kernel would not take."""


def is_wall(x: float, y: float) -> bool:
    """Return whether a point, in tiles, is inside a wall."""
    return TILES[int(y) * WIDTH + int(x)] == WALL


def spawn_point(player_id: int) -> tuple[float, float]:
    """Return the middle of a floor tile; neighbours in number start far apart."""
    tile = (player_id + 1) * 997 % len(TILES)  # 997 is prime: it visits every tile
    while TILES[tile] == WALL:
        tile = (tile + 1) % len(TILES)
    return tile % WIDTH + 0.5, tile // WIDTH + 0.5


def move(state: State, heading: int, buttons: int, duration_s: float) -> State:
    """Return the state after an input: turned, and walked unless a wall is in the way.

    Along a wall, the free one of the two directions is still walked.
    """
    x, y = state.x, state.y
    if buttons & BUTTON_MOVE:
        step = SPEED * min(duration_s, STEP_S_MAX)
        next_x = x + step * math.cos(heading * TURN)
        next_y = y + step * math.sin(heading * TURN)
        if not is_wall(next_x, y):
            x = next_x
        if not is_wall(x, next_y):
            y = next_y
    return State(x, y, heading, state.health, state.score)


def is_in_time(player: Player, duration_us: int, now_ns: int) -> bool:
    """Return whether a move is no longer than the time that has passed, and book it.

    Else a player could walk faster by saying that more time has passed.
    """
    walked_ns = player.walked_ns + 1000 * duration_us
    if walked_ns > now_ns - player.started_ns + CLOCK_SLACK_NS:
        return False
    player.walked_ns = walked_ns
    return True


def in_sight(me: int, state: State, others: Iterable[Record]) -> list[Sighting]:
    """Return whom a player sees, the most relevant first, at most SEEN_MAX.

    Relevant is who is near and in front. The likeliest are looked at along the line of
    sight, tile by tile, until enough are found.
    """
    x, y = state.x, state.y
    ahead_x = math.cos(state.heading * TURN)
    ahead_y = math.sin(state.heading * TURN)
    reach = VIEW_TILES * VIEW_TILES
    near: list[tuple[float, int, float, float]] = []
    for other, other_x, other_y, _heading, _health, _score in others:
        dx = other_x - x
        dy = other_y - y
        squared = dx * dx + dy * dy
        if squared < reach and other != me:
            facing = dx * ahead_x + dy * ahead_y
            weight = (2.0 if facing > 0.0 else 1.0) / (1.0 + squared)
            near.append((weight, other, other_x, other_y))
    near.sort(reverse=True)
    seen: list[Sighting] = []
    for _weight, other, other_x, other_y in near[:LOOKED_AT_MAX]:
        if is_visible(x, y, other_x, other_y):
            seen.append((other, other_x, other_y))
            if len(seen) == SEEN_MAX:
                break
    return seen


def is_visible(x: float, y: float, to_x: float, to_y: float) -> bool:
    """Return whether no wall lies between two points: walk the tiles on the line.

    After Amanatides and Woo: go to the next tile across whichever border is nearer.
    """
    tile = int(y) * WIDTH + int(x)
    steps = abs(int(to_x) - int(x)) + abs(int(to_y) - int(y))
    dx = to_x - x
    dy = to_y - y
    # In units of the whole line: from border to border, and to the first; 2 is never.
    step_x = abs(1.0 / dx) if dx else 2.0
    step_y = abs(1.0 / dy) if dy else 2.0
    border_x = step_x * (int(x) + 1 - x if dx > 0.0 else x - int(x)) if dx else 2.0
    border_y = step_y * (int(y) + 1 - y if dy > 0.0 else y - int(y)) if dy else 2.0
    tile_x = 1 if dx > 0.0 else -1
    tile_y = WIDTH if dy > 0.0 else -WIDTH
    for _ in range(steps):
        if border_x < border_y:
            border_x += step_x
            tile += tile_x
        else:
            border_y += step_y
            tile += tile_y
        if TILES[tile] == WALL:
            return False
    return True


def target_of(state: State, seen: Iterable[Sighting]) -> int | None:
    """Return the nearest of the players seen that a tag straight ahead would reach."""
    ahead_x = math.cos(state.heading * TURN)
    ahead_y = math.sin(state.heading * TURN)
    nearest: int | None = None
    nearest_tiles = VIEW_TILES
    for other, other_x, other_y in seen:
        dx, dy = other_x - state.x, other_y - state.y
        tiles = math.hypot(dx, dy)
        facing = dx * ahead_x + dy * ahead_y
        if tiles < nearest_tiles and facing > TAG_HALF_ANGLE_COS * tiles:
            nearest, nearest_tiles = other, tiles
    return nearest
