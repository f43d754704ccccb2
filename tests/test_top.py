"""`python -m ftbus top`, in a terminal of its own and without one."""

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftbus import EventBus
from ftbus.testing import eventually

pytest.importorskip("rich")

from rich.console import Console

from ftbus.monitoring import snapshots, top_view

pytestmark = pytest.mark.thread_unsafe(reason="one runtime folder for the process")

LIMIT_S = 60


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the sockets of this test to itself."""
    monkeypatch.setenv("FTBUS_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def fail(event: object) -> None:
    raise LookupError("no such player")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    hook = lambda *_: None  # noqa: E731
    with EventBus(workers=2, name="watched", timing="all", on_error=hook) as bus:
        bus.on("player.moved", lambda event: None)
        bus.on("player.said", fail)
        for number in range(20):
            bus.post("player.moved", number)
            bus.post("player.said", number)
        bus.drain(LIMIT_S)
        yield bus


def run_top(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftbus", "top", *options],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


class Terminal:
    """`top` in a pseudo-terminal."""

    def __init__(self, *options: str, rows: int = 30, columns: int = 100) -> None:
        try:
            self.ours, theirs = os.openpty()
        except OSError as error:  # a container without /dev/pts
            pytest.skip(f"no pseudo-terminal to be had: {error}")
        self._resize(theirs, rows, columns)
        unset = ("COLUMNS", "LINES")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ftbus", "top", "--interval", "0.1", *options],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={
                **{k: v for k, v in os.environ.items() if k not in unset},
                "TERM": "xterm-256color",
            },
        )
        os.close(theirs)
        self.shown = ""

    def _resize(self, terminal: int, rows: int, columns: int) -> None:
        fcntl.ioctl(
            terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0)
        )

    def resize(self, rows: int, columns: int) -> None:
        self._resize(self.ours, rows, columns)

    def press(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def read(self) -> str:
        """Return what came since the last time; wait for something."""
        with contextlib.suppress(OSError):  # how it says that all have left it
            if select.select([self.ours], [], [], LIMIT_S)[0]:
                new = os.read(self.ours, 1 << 16).decode(errors="replace")
                self.shown += new
                return new
        return ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match once what is shown from now on matches."""
        deadline = time.monotonic() + LIMIT_S
        start = len(self.shown)
        while not (found := re.search(pattern, self.shown[start:])):
            assert self.read() or self.process.poll() is None, self.shown
            assert time.monotonic() < deadline, self.shown
        return found

    def finish(self) -> int:
        while self.process.poll() is None or self.read():
            self.read()
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminals() -> Iterator[Any]:
    opened: list[Terminal] = []

    def open_one(*options: str, **size: int) -> Terminal:
        opened.append(Terminal(*options, **size))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.close()


def test_live_view_shows_the_figures_until_ctrl_c(
    bus: EventBus, terminals: Any
) -> None:
    with bus.serve_stats():
        terminal = terminals()
        terminal.wait_for("watched")
        terminal.wait_for("player.moved")
        terminal.wait_for("LookupError")
        for word in ("worker 0", "slowest handlers", "busiest keys", "exceptions"):
            assert word in terminal.shown
        terminal.press("\x03")
        assert terminal.finish() == 0
    assert "\x1b[?1049h" in terminal.shown  # the other screen, and back again
    assert "\x1b[?1049l" in terminal.shown
    assert "\x1b[?25h" in terminal.shown  # with a cursor
    assert "Traceback" not in terminal.shown


def test_live_view_fits_a_terminal_that_changes(bus: EventBus, terminals: Any) -> None:
    for number in range(60):
        bus.on(f"key-{number}", lambda event: None)
        bus.emit(f"key-{number}")
    with bus.serve_stats():
        terminal = terminals(rows=40, columns=120)
        terminal.wait_for("watched")
        for rows, columns in ((20, 60), (24, 80), (50, 160)):
            terminal.resize(rows, columns)
            terminal.wait_for("watched")
            frame = terminal.wait_for(r"(?s)\x1b\[H(.*?)\x1b\[H")[1]
            lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame).splitlines()
            assert len(lines) <= max(rows, 40)


def test_end_of_the_process_is_said(bus: EventBus, terminals: Any) -> None:
    server = bus.serve_stats()
    terminal = terminals()
    terminal.wait_for("watched")
    server.close()
    assert terminal.finish() == 1
    assert "ftbus top: no statistics from" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_once_shows_one_moment(bus: EventBus) -> None:
    with bus.serve_stats() as server:
        done = run_top(str(server.address), "--once", "--interval", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("watched", "player.moved", "LookupError", "worker 1", "p99"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout


def test_json_is_what_the_process_says(bus: EventBus) -> None:
    with bus.serve_stats():
        done = run_top("--json", "--once")
    message = json.loads(done.stdout)
    assert message["stats"]["handled"] == 40
    assert message["process"]["pid"] == os.getpid()


def test_json_goes_on_until_nobody_reads(bus: EventBus) -> None:
    with bus.serve_stats():
        process = subprocess.Popen(
            [sys.executable, "-m", "ftbus", "top", "--json", "--interval", "0.1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with process, process.stderr:
            for _ in range(3):
                assert json.loads(process.stdout.readline())["version"] == 1
            process.stdout.close()
            assert process.wait(LIMIT_S) == 0
            assert process.stderr.read() == b""


def test_nobody_to_look_at_is_said(folder: Path) -> None:
    done = run_top("--once")
    assert done.returncode == 1
    assert "bus.serve_stats()" in done.stderr
    assert str(folder) in done.stderr
    done = run_top(str(folder / "none.sock"))
    assert done.returncode == 1
    assert "nobody answers" in done.stderr


def test_newest_of_several_is_shown(bus: EventBus) -> None:
    with bus.serve_stats() as one, EventBus(name="newer") as other:
        os.utime(one.address, (0, 0))  # type: ignore[arg-type]
        other.serve_stats()
        done = run_top("--json", "--once")
        assert json.loads(done.stdout)["stats"]["name"] == "newer"
        assert str(one.address) in done.stderr


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "1e9", "x"])
def test_bad_intervals_are_refused(interval: str) -> None:
    assert run_top("--interval", interval).returncode == 2


def test_signal_that_ends_it_leaves_no_traceback(bus: EventBus) -> None:
    with bus.serve_stats():
        process = subprocess.Popen(
            [sys.executable, "-m", "ftbus", "top", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (0, b"")


def message(bus: EventBus) -> Any:
    taken = snapshots.Snapshots().message(bus)
    return json.loads(taken)


def draw(before: Any, now: Any, width: int, height: int | None) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(top_view.view(before, now, width, height))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 60, 89, 90, 200])
@pytest.mark.parametrize("height", [12, 24, 60, None])
def test_view_fits_every_terminal(
    bus: EventBus, width: int, height: int | None
) -> None:
    before = message(bus)
    bus.emit("player.moved")
    lines = draw(before, message(bus), width, height)
    assert all(len(line) <= width for line in lines)
    if height is not None:
        assert len(lines) <= max(height, 24)


def test_view_of_a_process_that_was_started_anew(bus: EventBus) -> None:
    before = message(bus)
    now = message(bus)
    before["process"]["pid"] += 1
    before["stats"]["uptime_s"] += 1000
    assert any("player.moved" in line for line in draw(before, now, 100, None))


def test_names_send_no_commands_to_the_terminal(bus: EventBus) -> None:
    bus.on("\x1b[2J\x07evil\r\n[red]", lambda event: None)
    text = "\n".join(draw(message(bus), message(bus), 120, None))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "evil" in text
    assert "[red]" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.25, "0.2"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (1234567, "1.23M"),
        (12e9, "12.0G"),
    ],
)
def test_counts_in_three_digits(value: float | None, text: str) -> None:
    assert top_view.count(value) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.00 us"),
        (12_345_678, "12.3 ms"),
        (59e9, "59.0 s"),
        (61e9, "1 min 1 s"),
        (7200e9, "2 h 0 min"),
    ],
)
def test_durations_in_their_unit(ns: float | None, text: str) -> None:
    assert top_view.duration(ns) == text


def test_socket_is_found_without_a_path(bus: EventBus, terminals: Any) -> None:
    with bus.serve_stats():
        terminal = terminals()
        terminal.wait_for("watched")
        terminal.process.terminate()
        assert eventually(lambda: terminal.process.poll() is not None, LIMIT_S)
