"""The demo as a whole, in processes of its own."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftbus import demo
from ftbus.demo import protocol
from ftbus.demo.report import Report
from ftbus.monitoring import sockets

pytestmark = pytest.mark.thread_unsafe(reason="it runs processes and threads itself")

LIMIT_S = 60
CLEAN = ("lost", "reordered", "undecoded", "live_buffers", "failed_handlers")
HAS_GIL_SWITCH = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class Run:
    """`python -m ftbus demo` in a process group of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.json = folder / "figures.json"
        self.runtime_folder = folder / "run"
        command = [sys.executable, "-m", "ftbus", "demo", "--json", str(self.json)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "FTBUS_RUNTIME_DIR": str(self.runtime_folder)},
        )
        self.output = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match once a line of the output matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(self.output)

    def wait_until_playing(self) -> int:
        """Return the server's port once all players play."""
        return int(self.wait_for(r"port (\d+)")[1])

    def wait_for_dashboard(self) -> tuple[int, str]:
        """Return the port and the token of the page."""
        found = self.wait_for(r"dashboard: http://127\.0\.0\.1:(\d+)/#token=(\S+)")
        return int(found[1]), found[2]

    def interrupt(self) -> None:
        """End it as Ctrl-C would."""
        self.process.send_signal(signal.SIGINT)

    def children(self) -> tuple[psutil.Process, list[psutil.Process]]:
        """Return the launcher and the players."""
        (launcher,) = psutil.Process(self.process.pid).children()
        return launcher, launcher.children()

    def finish(self) -> int:
        """Wait for the end; return the exit status."""
        rest, _ = self.process.communicate(timeout=LIMIT_S)
        self.output += rest
        return self.process.returncode

    def finish_clean(self) -> dict[str, Any]:
        """Wait for the end, without any problem; return the figures."""
        assert self.finish() == 0, self.output
        figures: dict[str, Any] = json.loads(self.json.read_text())
        assert figures["problems"] == []
        assert [figures[name] for name in CLEAN] == [0] * len(CLEAN)
        assert figures["encodes"] == figures["snapshots"]
        return figures


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Any]:
    """Start demos that the test does not leave behind."""
    started: list[Run] = []

    def start(*options: str) -> Run:
        started.append(Run(tmp_path, *options))
        return started[-1]

    yield start
    for run in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.communicate(timeout=LIMIT_S)


def test_match_ends_clean_and_says_what_was_measured(runs: Any, tmp_path: Path) -> None:
    replay = tmp_path / "replay"
    options = ("--seconds", "1", "--players", "4", "--replay", str(replay))
    run = runs(*options, "--workers", "3", "--tick", "50", "--window", "3")
    figures = run.finish_clean()
    assert figures["workers"] == 3
    assert figures["seconds"] >= 1.0
    assert figures["inputs"] >= figures["inputs_per_s"] > 0
    assert figures["handler_calls_per_s"] > figures["events_per_s"] > 0
    assert 0 < figures["ack_p50_us"] <= figures["ack_p99_us"]
    assert 0 < figures["cores_used"] <= (os.cpu_count() or 1) + 0.1
    assert sum(figures["worker_shares"]) == pytest.approx(1.0)
    assert figures["snapshots_received"] > 0
    assert figures["players_died"] == 0
    assert figures["refused"] == {}
    assert figures["interrupted"] is False
    assert figures["gil"] == ("on" if sys._is_gil_enabled() else "off")
    assert count_snapshots(replay.read_bytes()) == figures["snapshots"]
    assert "lost 0, reordered 0" in run.output


def test_terminal_shows_a_table_while_the_match_goes_on() -> None:
    pytest.importorskip("rich")
    try:
        ours, theirs = os.openpty()
    except OSError as error:  # a container without /dev/pts
        pytest.skip(f"no pseudo-terminal to be had: {error}")
    process = subprocess.Popen(
        [sys.executable, "-m", "ftbus", "demo", "--seconds", "1.2", "--players", "2"],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that all have left it
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert process.wait(LIMIT_S) == 0
    for name in (
        "inputs/s",
        "events/s",
        "p50",
        "p99",
        "queue depth",
        "workers' shares",
    ):
        assert name.encode() in shown


def test_match_can_be_looked_at_from_outside(runs: Any, tmp_path: Path) -> None:
    run = runs("--seconds", "60", "--players", "2", "--dashboard")
    port, token = run.wait_for_dashboard()
    run.wait_until_playing()
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)) as page:
        page.request("GET", "/api/stats", headers={"Authorization": f"Bearer {token}"})
        stats = json.loads(page.getresponse().read())["stats"]
    assert stats["name"] == "game"
    assert {row["key"] for row in stats["topics"]} >= {"player.input", "player.moved"}
    (path,) = sockets.running(run.runtime_folder)
    shown = subprocess.run(
        [sys.executable, "-m", "ftbus", "top", str(path), "--json", "--once"],
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert json.loads(shown.stdout)["process"]["pid"] == run.process.pid
    run.interrupt()
    run.finish_clean()
    assert list(run.runtime_folder.iterdir()) == []


def test_dashboard_whose_port_is_in_use_is_said(runs: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        run = runs("--dashboard", str(other.getsockname()[1]))
        assert run.finish() == 2
        assert "the port is in use" in run.output


def count_snapshots(replay: bytes) -> int:
    ticks = []
    while replay:
        length = int.from_bytes(replay[:4], "little")
        tick, _, records = protocol.decode_snapshot(memoryview(replay)[4 : 4 + length])
        assert len(records) == 4
        ticks.append(tick)
        replay = replay[4 + length :]
    assert ticks == list(range(1, len(ticks) + 1))
    return len(ticks)


def test_killed_player_is_counted_and_the_match_goes_on(runs: Any) -> None:
    run = runs("--seconds", "60", "--players", "4")
    run.wait_until_playing()
    _, players = run.children()
    players[1].kill()
    run.wait_for("players 3")
    run.interrupt()
    figures = run.finish_clean()
    assert figures["players_died"] == 1
    assert "note: 1 player processes died" in run.output


def test_killed_launcher_ends_the_match_early(runs: Any) -> None:
    run = runs("--seconds", "60", "--players", "3")
    run.wait_until_playing()
    launcher, players = run.children()
    launcher.kill()
    figures = run.finish_clean()
    assert figures["seconds"] < 30
    assert figures["players_died"] <= 3
    assert psutil.wait_procs(players, timeout=LIMIT_S)[1] == []


def test_no_player_outlives_a_killed_server(runs: Any) -> None:
    run = runs("--seconds", "60", "--players", "3")
    run.wait_until_playing()
    launcher, players = run.children()
    run.process.kill()
    assert psutil.wait_procs([launcher, *players], timeout=LIMIT_S)[1] == []


@pytest.mark.parametrize("to_all", [True, False])
def test_ctrl_c_ends_the_match_with_its_report(runs: Any, to_all: bool) -> None:
    """A terminal tells all processes of the group; `kill -INT` tells the server."""
    run = runs("--seconds", "60", "--players", "4")
    run.wait_until_playing()
    launcher, players = run.children()
    (os.killpg if to_all else os.kill)(run.process.pid, signal.SIGINT)
    figures = run.finish_clean()
    assert figures["interrupted"] is True
    assert figures["seconds"] < 30
    assert figures["players_died"] == 0
    assert "note: interrupted after" in run.output
    assert psutil.wait_procs([launcher, *players], timeout=LIMIT_S)[1] == []


def test_port_in_use_and_stray_datagrams_are_reported(runs: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((protocol.HOST, 0))
        taken = other.getsockname()[1]
        run = runs("--seconds", "60", "--players", "2", "--port", str(taken))
        port = run.wait_until_playing()
        for stray in (b"", b"\xb5\xf7\x01", b"x" * 26, b"x" * 5000):
            other.sendto(stray, (protocol.HOST, port))
        run.wait_for("refused 4")
        run.interrupt()
        figures = run.finish_clean()
    assert figures["port_in_use"] == taken
    assert figures["port"] == port != taken
    assert figures["refused"] == {"truncated": 2, "foreign": 2}
    assert f"note: port {taken} was in use" in run.output
    assert "note: 2 datagrams refused: foreign" in run.output


@pytest.mark.skipif(not HAS_GIL_SWITCH, reason="the GIL is always on")
def test_gil_compare_runs_both_ways(runs: Any) -> None:
    run = runs("--gil", "compare", "--seconds", "0.5", "--players", "2")
    assert run.finish() == 0, run.output
    figures = json.loads(run.json.read_text())
    assert figures["on"]["gil"] == "on"
    assert figures["off"]["gil"] == "off"
    ratio = figures["off"]["inputs_per_s"] / figures["on"]["inputs_per_s"]
    assert figures["ratio"]["inputs_per_s"] == pytest.approx(ratio)
    assert "off / on" in run.output


@pytest.mark.parametrize(
    "options",
    [
        ["--players", "0"],
        ["--players", str(protocol.PLAYERS_MAX + 1)],
        ["--seconds", "nan"],
        ["--tick", "-1"],
        ["--port", "65536"],
        ["--gil", "maybe"],
    ],
)
def test_command_line_that_cannot_be_is_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_replay_that_cannot_be_written_is_one_sentence(runs: Any) -> None:
    run = runs("--replay", "/nowhere/replay")
    assert run.finish() == 2
    assert run.output.splitlines() == [
        "ftbus demo: [Errno 2] No such file or directory: '/nowhere/replay'"
    ]


# The report


def clean_report(**changes: Any) -> Report:
    figures = dict.fromkeys((field.name for field in dataclasses.fields(Report)), 0)
    figures["inputs"] = 1
    empty = {"worker_shares": (), "refused": {}, "first_failure": None, "gil": "off"}
    return Report(**{**figures, **empty, "port_in_use": None, **changes})


def test_clean_report_is_exit_status_0() -> None:
    assert clean_report(snapshots=3, encodes=3).exit_status == 0


@pytest.mark.parametrize("name", [*CLEAN, "encodes"])
def test_each_problem_is_exit_status_1_and_said(name: str) -> None:
    report = clean_report(**{name: 7})
    assert report.exit_status == 1
    assert re.search(r"PROBLEM: .*\b7\b", report.text())
    assert report.to_dict()["problems"] == report.problems()


def test_match_without_any_input_is_exit_status_1_unless_it_was_interrupted() -> None:
    assert clean_report(inputs=0).exit_status == 1
    assert clean_report(inputs=0, interrupted=True).exit_status == 0


def test_what_was_lived_with_is_exit_status_0_and_said() -> None:
    report = clean_report(players_died=2, refused={"foreign": 3}, interrupted=True)
    assert report.exit_status == 0
    assert report.text().count("note: ") == 3
