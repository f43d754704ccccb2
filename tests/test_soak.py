"""The soak's own parts, and a short one: the conditions must be able to fail."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from processes import environment

ROOT = Path(__file__).parent.parent
SOAK = ROOT / "stress" / "soak.py"
sys.path.append(str(ROOT / "stress"))
sys.path.append(str(ROOT / "tools"))

soak_judge = pytest.importorskip("soak_judge", reason="no stress tests here")
soak_plot = pytest.importorskip("soak_plot", reason="no stress tests here")
MIB = float(1 << 20)


def readings(
    seconds: int = 300,
    growth: float = 0.0,
    p99_end: float = 100.0,
) -> dict[str, list[float]]:
    """Make up readings of a run whose memory grows by so many bytes a second."""
    return {
        "at_s": [float(second) for second in range(seconds)],
        "uss_bytes": [
            30 * MIB + growth * s + 5 * MIB * (s % 7 == 0) for s in range(seconds)
        ],
        "threads": [10.0] * seconds,
        "fds": [6.0] * seconds,
        "p99_us": [100.0 if s < seconds - 60 else p99_end for s in range(seconds)],
        "load": [0.5] * seconds,
        "events_per_s": [8000.0] * seconds,
    }


def quiet(
    blocks: list[float] | None = None, heap: list[float] | None = None
) -> dict[str, list[float]]:
    blocks = blocks or [1000.0] * 15
    n = len(blocks)
    return {
        "at_s": [20.0 * (ix + 1) for ix in range(n)],
        "blocks": blocks,
        "handlers": [7.0] * n,
        "heap_bytes": heap or [60 * MIB] * n,
        "buffers": [0.0] * n,
    }


def failed(verdicts: list[soak_judge.Verdict]) -> set[str]:
    return {verdict.name for verdict in verdicts if verdict.is_good is False}


def test_steady_run_is_good() -> None:
    verdicts = soak_judge.judge(readings(), quiet(), [], {"handlers": 0})
    assert failed(verdicts) == set()
    assert all(verdict.is_good for verdict in verdicts)


def test_every_condition_can_fail() -> None:
    good = readings(), quiet(), [], {"handlers": 0}
    assert failed(soak_judge.judge(readings(growth=2000), *good[1:])) == {
        "memory slope"
    }
    assert failed(soak_judge.judge(readings(growth=60_000), *good[1:])) == {
        "memory slope",
        "memory spread",
    }
    assert failed(soak_judge.judge(readings(growth=60_000), *good[1:], True)) == set()
    heap = [60 * MIB + 100_000 * n for n in range(15)]
    assert failed(soak_judge.judge(good[0], quiet(heap=heap), *good[2:])) == {
        "heap in use"
    }
    more = [1000.0 + 30 * n for n in range(15)]
    assert failed(soak_judge.judge(good[0], quiet(more), *good[2:])) == {"objects"}
    assert failed(soak_judge.judge(*good[:2], ["lost"], good[3])) == {"events exact"}
    assert failed(soak_judge.judge(*good[:3], {"buffers": 1})) == {"nothing left"}
    late = readings(p99_end=160.0)
    assert failed(soak_judge.judge(late, *good[1:])) == {"p99 holds"}
    for name in ("threads", "fds"):
        other = readings()
        other[name][-1] += 1
        assert failed(soak_judge.judge(other, *good[1:])) == {f"{name} constant"}


def test_latency_is_not_judged_on_a_machine_that_others_load() -> None:
    loaded = readings(p99_end=1000.0)
    loaded["load"][10] = 100.0
    verdicts = soak_judge.judge(loaded, quiet(), [], {})
    [latency] = [verdict for verdict in verdicts if verdict.name == "p99 holds"]
    assert latency.is_good is None
    assert "not judged" in str(latency)


def test_slope_is_the_median_of_all_pairs() -> None:
    times = [float(n) for n in range(100)]
    values = [3 * at for at in times]
    values[50] = 1e9  # one wild reading changes nothing
    assert soak_judge.slope(times, values) == pytest.approx(3)


def test_plot_is_a_picture_of_the_readings() -> None:
    tree = ElementTree.fromstring(soak_plot.plot(readings()))
    assert tree.tag.endswith("svg")
    lines = [each for each in tree if each.tag.endswith("polyline")]
    assert len(lines) == 3
    assert all(len(line.attrib["points"].split()) == 300 for line in lines)
    ElementTree.fromstring(soak_plot.plot({name: [] for name in readings()}))


@pytest.mark.thread_unsafe(reason="starts a process")
def test_interrupted_soak_reports_what_it_saw(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, str(SOAK), "--minutes", "9", "--rate", "2000"]
    with subprocess.Popen(
        [*command, "--out", str(out)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as soak:
        assert soak.stdout is not None
        lines = []
        for line in soak.stdout:
            lines.append(line)
            if "events/s, p99" in line:  # the first progress
                break
        soak.send_signal(signal.SIGINT)
        rest = soak.stdout.read()
        assert soak.wait(60) == 0, rest
    assert "interrupted" in rest
    report = json.loads(out.read_text())
    assert report["interrupted"]
    assert report["faults"] == []
    assert report["posted"] > 1000
    assert len(report["readings"]["at_s"]) >= 10
    ElementTree.fromstring(out.with_suffix(".svg").read_text())


def test_rule_for_references() -> None:
    """CPython's: every run leaves more, or any changes the descriptors."""
    refleak = pytest.importorskip("refleak", reason="no tools here")

    def noted(*rows: tuple[int, int, int]) -> list[int]:
        return [value for row in rows for value in row]

    steady = noted((100, 50, 5), (100, 50, 5), (103, 52, 5), (103, 52, 5))
    assert refleak.leaks(steady) == []
    leaking = noted((100, 50, 5), (101, 51, 5), (102, 52, 5), (103, 53, 5))
    assert refleak.leaks(leaking) == [
        "references [1, 1, 1]",
        "memory blocks [1, 1, 1]",
    ]
    opened = noted((100, 50, 5), (100, 50, 6), (100, 50, 6))
    assert refleak.leaks(opened) == ["file descriptors [1, 0]"]


PRINTS = """
import logging, sys

kept = []

def test_that_prints():
    print("text")
    logging.getLogger("name").error("text")

def test_that_leaks():
    kept.append(object())
"""
HUNT = """
import sys
import pytest, refleak
if not hasattr(sys, "gettotalrefcount"):  # then let the blocks tell
    sys.gettotalrefcount = sys.getallocatedblocks
hunter = refleak.Hunter(3, 3)
pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "test_prints.py"],
            plugins=[hunter])
print(*(name.partition("::")[2] for name in hunter.found))
"""


@pytest.mark.thread_unsafe(reason="starts a process")
def test_what_a_test_prints_is_no_leak_of_it(python: Any, tmp_path: Path) -> None:
    """Its pytest item keeps it, and would keep that of each run."""
    refleak = pytest.importorskip("refleak", reason="no tools here")
    (tmp_path / "test_prints.py").write_text(PRINTS)
    hunt = f"import os, sys\nos.chdir({str(tmp_path)!r})\n"
    hunt += f"sys.path.insert(0, {str(Path(refleak.__file__).parent)!r})\n{HUNT}"
    done = python(hunt)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "test_that_leaks", done.stdout
