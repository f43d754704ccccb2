"""The benchmark page says what the JSON says, and the model follows its formula."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as when one of them is the main program

import page  # noqa: E402
import scaling  # noqa: E402

MACHINE = {
    "processor": "A Processor",
    "cores": 2,
    "system": "Linux 6",
    "date": "2026-01-02 03:04",
    "load_average": [0.5, 0.4, 0.3],
    "python": "3.13.15",
    "free_threaded": True,
    "gil_enabled": False,
    "optimized_build": False,
    "ftbus": "0.1.0",
}


def spread(median: float) -> dict[str, Any]:
    low, high = median * 0.9, median * 1.1
    return {"median": median, "low": low, "high": high, "least": low, "rounds": 3}


def case(name: str, threads: int, ns: float) -> dict[str, Any]:
    return {
        "name": name,
        "threads": threads,
        "empty": "",
        "ns": spread(ns),
        "samples": [ns] * 3,
    }


def comparison(kind: str, target: float | None, met: bool | None) -> dict[str, Any]:
    return {
        **{"case": "ours", "threads": 2, "peer": "theirs", "peer_threads": 2},
        **{"kind": kind, "target": target, "met": met, "of_minima": 0.5},
        **{"ratio": spread(7.77), "net": spread(0.55), "of_ceiling": None},
    }


def found(cases: list[Any], comparisons: list[Any], load: float = 0.5) -> Any:
    suite = {"name": "a suite", "note": "", "cases": cases, "comparisons": comparisons}
    check = {
        "name": "a number",
        "value": 12.5,
        "unit": "ns",
        "target": 10,
        "met": False,
    }
    return {
        "machine": {**MACHINE, "load_average": [load, 0.4, 0.3]},
        "settings": {"rounds": 3, "burst_ms": 6.0},
        "peers": {
            "blinker": {"version": "1.9.0", "left_out": ""},
            "eventkit": {"version": None, "left_out": "not installed"},
        },
        "interrupted": False,
        "checks": [check],
        "suites": [suite],
    }


def written(tmp_path: Path, **files: Any) -> str:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page.write(tmp_path, tmp_path)
    return (tmp_path / "benchmarks.md").read_text()


def test_the_page_says_what_was_found_and_what_was_missed(tmp_path: Path) -> None:
    comparisons = [
        comparison("time", 0.6, True),
        comparison("speed", 8, False),
        comparison("speed", None, None),
    ]
    text = written(tmp_path, emit=found([case("ours", 2, 200.0)], comparisons))
    assert "A Processor, 2 cores, Linux 6; Python 3.13.15" in text
    assert "Compared with blinker 1.9.0." in text
    ours = "a suite: ours, 2 threads, against theirs, 2 threads"
    assert f"| {ours} | 0.55x | 0.50 to 0.61 | <= 0.6x | met |" in text
    assert f"| {ours} | 7.77 times | 6.99 to 8.55 | >= 8 times | **missed** |" in text
    assert "| a number | 12.5 ns | | <= 10 | **missed** |" in text
    assert "| ours, 2 threads | 200.0 | 180.0 to 220.0 | 5 |" in text
    assert "busy" not in text


def test_the_page_warns_of_a_busy_machine(tmp_path: Path) -> None:
    text = written(tmp_path, emit=found([case("ours", 1, 20.0)], [], load=9.0))
    assert "**The machine was busy**: a load of up to 9.0 on 2 cores." in text


def test_no_page_without_figures(tmp_path: Path) -> None:
    assert page.write(tmp_path, tmp_path) == []
    assert not (tmp_path / "benchmarks.md").exists()


def test_the_model_is_the_lower_of_two_limits() -> None:
    assert scaling.modelled(50, 25, 0, 128) == pytest.approx(128 * 20)
    assert scaling.modelled(50, 25, 2, 1) == 20
    assert scaling.modelled(50, 25, 2, 2) == 20  # the line's limit, 1000 / 50
    assert scaling.modelled(500, 25, 2, 2) == 4  # the cores' limit


def test_the_model_takes_its_costs_from_the_run(tmp_path: Path) -> None:
    cases = [
        case(scaling.ONE_OBJECT, 1, 20.0),
        case(scaling.ONE_OBJECT, 2, 50.0),
        case(scaling.BOUND, 1, 50.0),
        case(scaling.HAND, 1, 100.0),
    ]
    one = found(cases, [])
    line_ns, rows = scaling.model(one) or pytest.fail("no model")
    assert line_ns == 25
    by_name = {name: rates for name, _, *rates in rows}
    assert by_name[scaling.BOUND] == [20.0 * n for n in scaling.MODEL_CORES]
    assert by_name[scaling.HAND] == [10, *[20] * (len(scaling.MODEL_CORES) - 1)]
    text = written(tmp_path, scaling=one)
    assert "took 25.0 ns here" in text
    assert "| hand loop | 2 | 10 | 20 | 20 |" in text
    assert scaling.model(found(cases[:1], [])) is None


def test_threads_are_powers_of_two_and_all_cores() -> None:
    assert scaling.thread_counts(1) == (1,)
    assert scaling.thread_counts(6) == (1, 2, 4, 6)
    assert scaling.thread_counts(8) == (1, 2, 4, 8)


def test_an_unknown_benchmark_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS, "--of", "emit,sprint"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no benchmark sprint" in done.stderr
