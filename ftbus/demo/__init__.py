"""An authoritative game server on ftbus: ``python -m ftbus demo``.

Read it in this order: protocol.py (what goes over the wire), netcode.py (exactly once
and in order over UDP), world.py (the game), server.py (which event leads to what),
transport.py and snapshots.py (bytes in and out); then players.py (the other side) and
match.py (both together), with board.py, reading.py, view.py, report.py and compare.py
for what is measured.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ftbus.demo import protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status.

    0: nothing was lost, reordered, leaked or left undecoded, also if Ctrl-C ended it
    early. 1: something was, and the report says what. 2: it could not be run.
    """
    arguments = read_command_line(argv)
    # Imported late: a player needs this package, but not what the server needs.
    from ftbus.demo import compare, match, report

    options = match.Options(
        seconds=arguments.seconds,
        players=arguments.players,
        workers=arguments.workers,
        tick_hz=arguments.tick,
        window=arguments.window,
        port=arguments.port,
        replay=arguments.replay,
        dashboard=arguments.dashboard,
    )
    try:
        with match.Interrupt() as interrupt:
            if arguments.gil == "compare":
                figures, status = compare.compare(options, interrupt)
                print(compare.text(figures))
            else:
                result = match.Match(options).run(interrupt)
                figures, status = result.to_dict(), result.exit_status
                print(result.text())
        if arguments.json is not None:
            report.write_json(arguments.json, figures)
    except OSError as error:
        print(f"ftbus demo: {error}", file=sys.stderr)
        return 2
    return status


# Option: least, most.
_LIMITS: Final = {
    "players": (1, protocol.PLAYERS_MAX),
    "seconds": (0.01, 86400.0),
    "workers": (1, 1024),
    "tick": (0.1, 1000.0),
    "window": (1, 64),
    "port": (0, 65535),
    "dashboard": (0, 65535),
}


def read_command_line(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; exit with status 2 if they cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m ftbus demo",
        description="Run a game server and its players on this machine, and report. "
        "The exit status is 1 if anything was lost, reordered, leaked or left "
        "undecoded. Ctrl-C ends it early, with the report. While it runs, `python -m "
        "ftbus top` shows its bus.",
    )
    add = parser.add_argument
    add("--players", type=int, default=64, metavar="N", help="player processes (64)")
    add("--seconds", type=float, default=10.0, metavar="S", help="under load (10)")
    add("--workers", type=int, metavar="N", help="threads for handlers (one per core)")
    add("--tick", type=float, default=30.0, metavar="HZ", help="snapshots/s (30)")
    add("--window", type=int, default=2, metavar="N", help="inputs in flight each (2)")
    add("--port", type=int, default=0, metavar="N", help="UDP port (any that is free)")
    add("--replay", type=Path, metavar="FILE", help="keep the snapshots in this file")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file")
    add(
        "--dashboard",
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="show it in a browser too, at a port of this machine (any that is free)",
    )
    add("--gil", choices=["compare"], help="run with the GIL on, then off; compare")
    arguments = parser.parse_args(argv)
    for name, (least, most) in _LIMITS.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name} {value} is not in {least} to {most}")
    always_on = not sysconfig.get_config_var("Py_GIL_DISABLED")
    if arguments.gil == "compare" and always_on:
        parser.error("--gil compare: in this interpreter the GIL is always on")
    return arguments
