"""``python -m ftbus top``: a live view of a process that called bus.serve_stats()."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbus.monitoring import sockets
from ftbus.monitoring.stats_client import StatsClient, StatsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERVALS_S = (0.1, 30.0)  # the server closes clients that ask too rarely


def main(argv: Sequence[str]) -> int:
    """Show the view until Ctrl-C or the end of the process; return the exit status.

    0: it was shown. 1: the process is not there, or went away. 2: wrong arguments, or
    rich is missing.
    """
    arguments = read_command_line(argv)
    try:
        return run(arguments)
    except StatsUnavailableError as error:
        print(f"ftbus top: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # as in `top --json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def read_command_line(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; exit with status 2 if they cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m ftbus top",
        description="Show what a running process does, which called bus.serve_stats(). "
        "Ctrl-C ends the view, and nothing else.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        help="the socket of the process (the newest one of yours)",
    )
    parser.add_argument("--once", action="store_true", help="show one moment and end")
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="between looks (1)"
    )
    arguments = parser.parse_args(argv)
    least, most = _INTERVALS_S
    if not least <= arguments.interval <= most:
        parser.error(f"--interval {arguments.interval} is not in {least:g} to {most:g}")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Connect, and show what the arguments ask for.

    Raises StatsUnavailableError and KeyboardInterrupt.
    """
    if not arguments.json and importlib.util.find_spec("rich") is None:
        text = "ftbus top: rich is missing: pip install rich, or use --json"
        print(text, file=sys.stderr)
        return 2
    path = arguments.path
    if path is None:
        found = sockets.running()
        if not found:
            folder = sockets.runtime_folder()
            text = f"no process of yours serves statistics in {folder}: "
            text += "one that calls bus.serve_stats() does"
            print(f"ftbus top: {text}", file=sys.stderr)
            return 1
        path = found[0]
        if len(found) > 1:
            others = ", ".join(str(other) for other in found[1:4])
            print(f"ftbus top: {path}; there are also {others}", file=sys.stderr)
    with StatsClient(path) as client:
        if arguments.json:
            return print_lines(client, arguments.interval, arguments.once)
        return show(client, arguments.interval, arguments.once)


def print_lines(client: StatsClient, interval_s: float, once: bool) -> int:
    """Print one line of JSON after another."""
    while True:
        print(json.dumps(client.stats()), flush=True)
        if once:
            return 0
        time.sleep(interval_s)


def show(client: StatsClient, interval_s: float, once: bool) -> int:
    """Show the view; rich is imported here, not before."""
    from rich.console import Console
    from rich.live import Live

    from ftbus.monitoring.top_view import view

    console = Console()
    before: dict[str, Any] = client.stats()
    if once:
        time.sleep(min(interval_s, 1.0))  # rates need two moments
        console.print(view(before, client.stats(), console.width, None))
        return 0
    now = before
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            shown = view(before, now, console.width, console.height)
            live.update(shown, refresh=True)
            time.sleep(interval_s)
            before, now = now, client.stats()
