"""The benchmarks run, and their statistics are right; nothing here is timed."""

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from builds import IS_INSTRUMENTED, TSAN
from processes import environment

from ftbus import lifecycle

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as when one of them is the main program

import allocations  # noqa: E402
import harness  # noqa: E402
import report  # noqa: E402
import seed as ladder  # noqa: E402
import waits  # noqa: E402

SPREAD = {"median", "low", "high", "least", "rounds"}
TINY = ("--rounds", "2", "--burst-ms", "0.05")

pytestmark = pytest.mark.thread_unsafe(reason="it runs processes and threads itself")


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / name, *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def check_spread(spread: dict[str, Any] | None) -> None:
    if spread is not None:
        assert set(spread) == SPREAD
        assert spread["least"] <= spread["low"] <= spread["median"] <= spread["high"]


def check_suite(suite: dict[str, Any]) -> None:
    assert set(suite) == {"name", "note", "cases", "comparisons"}
    for case in suite["cases"]:
        assert set(case) == {"name", "threads", "empty", "ns", "samples"}
        assert len(case["samples"]) == case["ns"]["rounds"] == 2
        check_spread(case["ns"])
    measured = {(case["name"], case["threads"]) for case in suite["cases"]}
    for one in suite["comparisons"]:
        assert set(one) == {
            *("case", "threads", "peer", "peer_threads", "kind", "target", "met"),
            *("ratio", "net", "of_ceiling", "of_minima"),
        }
        assert {
            (one["case"], one["threads"]),
            (one["peer"], one["peer_threads"]),
        } <= measured
        for spread in ("ratio", "net", "of_ceiling"):
            check_spread(one[spread])


def check_json(found: dict[str, Any]) -> None:
    assert set(found) == {
        *("machine", "settings", "peers", "interrupted", "checks", "suites")
    }
    assert found["interrupted"] is False
    assert len(found["machine"]["load_average"]) == 3
    assert found["settings"]["rounds"] == 2
    for peer in found["peers"].values():
        assert (peer["version"] is None) == bool(peer["left_out"])
    for check in found["checks"]:
        assert set(check) == {"name", "value", "unit", "target", "met"}
    assert found["suites"]
    for suite in found["suites"]:
        check_suite(suite)


def test_emit_runs_and_allocates_nothing(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = run("emit.py", *TINY, "--most", "2000", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    check_json(found)
    of_nothing = [check for check in found["checks"] if check["target"] == 0]
    assert [check["value"] for check in of_nothing] == [0, 0]
    assert all(suite["name"] in done.stdout for suite in found["suites"])


def test_map_runs(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = run("map.py", *TINY, "--most", "1000", "--json", str(file))
    assert done.returncode == 0, done.stderr
    check_json(json.loads(file.read_text()))


def test_buffers_run_and_nothing_is_copied_or_missed(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = run("buffers.py", *TINY, "--most", "2000", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    check_json(found)
    counted = [check for check in found["checks"] if check["target"] is not None]
    assert len(counted) >= 6
    assert all(check["met"] for check in counted), counted


def test_dispatch_runs(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = run("dispatch.py", *TINY, "--most", "500", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    check_json(found)
    assert len(found["suites"]) == 3
    assert any("in units of Lock" in check["name"] for check in found["checks"])


@pytest.mark.skipif(
    IS_INSTRUMENTED, reason="preloads a library, as the sanitizers do; takes minutes"
)
def test_seed_runs_and_ftbus_neither_waits_nor_allocates_as_much(
    tmp_path: Path,
) -> None:
    file = tmp_path / "found.json"
    # As many events as the page counts: one wait among 200 is above the target, too.
    done = run("seed.py", *TINY, "--most", "40000", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    check_json(found)
    ladders = found["suites"][:2]
    assert [len(suite["cases"]) for suite in ladders] == [8 * 4] * 2
    checks = {check["name"]: check for check in found["checks"]}
    shares = [check for name, check in checks.items() if "units of" in name]
    assert [check["met"] for check in shares] == [False, True, True, True], shares
    counts = [check for name, check in checks.items() if "per 1,000 events" in name]
    assert len(counts) == 8 * 3 * 2
    judged = [check for check in counts if check["target"] is not None]
    # With the GIL, threads wait for that.
    assert judged
    assert sys._is_gil_enabled() or all(check["met"] for check in judged)


@pytest.mark.parametrize("name", ["costs.py", "scaling.py"])
def test_costs_and_scaling_run(name: str, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = run(name, *TINY, "--most", "100", "--json", str(file))
    assert done.returncode == 0, done.stderr
    check_json(json.loads(file.read_text()))


@pytest.mark.parametrize("name", ladder.LADDER)
def test_every_step_of_the_ladder_hands_over_the_same_bytes(name: str) -> None:
    got: list[bytes] = []
    handlers = [lambda data: got.append(bytes(data)) for _ in range(3)]
    event = ladder.EVENTS.get(name, ladder.new_event)()
    before = set(lifecycle.buses.live())
    assert ladder.LADDER[name](handlers)()(event) == 3
    assert len(got) == 3
    assert len(set(got)) == 1
    if name != ladder.FIXED:
        assert json.loads(got[0]) == event
    for bus in set(lifecycle.buses.live()) - before:
        bus.close()


def test_readers_share_the_seeds_lock_and_a_writer_waits_for_the_last() -> None:
    lock = ladder.ReadersWriterLock()
    lock.acquire_read()
    lock.acquire_read()
    written = threading.Event()

    def write() -> None:
        lock.acquire_write()
        written.set()
        lock.release_write()

    writer = threading.Thread(target=write)
    writer.start()
    lock.release_read()
    assert not written.is_set()
    lock.release_read()
    writer.join()
    assert written.is_set()


WAITS = """
import ctypes, sys, threading
sys.path.insert(0, sys.argv[1])
import waits

read = waits.Reader()

def waited(call):
    before = read()
    call()
    after = read()
    return after.found_taken - before.found_taken, after.sleeps - before.sleeps

lock = threading.Lock()
mutex = (ctypes.c_char * 64)()  # all zero: a pthread mutex that is free
libc = ctypes.CDLL(None)
crew = waits.Crew(2)
print(
    [
        waited(lock.acquire),
        waited(lambda: lock.acquire(timeout=0.001)),
        waited(lambda: libc.pthread_mutex_trylock(mutex)),
        waited(lambda: libc.pthread_mutex_trylock(mutex)),
        waits.count(crew, [lambda n: lock.acquire(timeout=0.001)] * 2, 1),
    ]
)
crew.close()
"""


@pytest.mark.skipif(TSAN, reason="ctypes' own types race when threads first use them")
def test_a_lock_that_is_taken_is_counted_and_a_free_one_is_not() -> None:
    printed = waits.run_counted(["-c", WAITS, str(BENCHMARKS)])
    free, taken, free_mutex, taken_mutex, both = eval(printed, {"Waits": waits.Waits})
    assert free == free_mutex == (0, 0)
    assert taken[0] >= 1  # twice if it loses its core between two of its yields
    assert taken[1] >= 1
    assert taken_mutex == (1, 0)
    assert both.found_taken >= 1 <= both.sleeps


def test_what_is_given_back_at_once_counts_as_allocated_too() -> None:
    def burst(n: int) -> None:
        for _ in itertools.repeat(None, n):
            bytes(1000)
            bytearray(1000)

    assert 3 <= allocations.count(burst, 100) < 3.5  # a bytearray is two blocks
    assert abs(allocations.count(lambda n: None, 100)) < 0.5


def test_ctrl_c_leaves_the_rounds_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def progress(text: str) -> None:
        if "round 3 of" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(report, "progress", progress)
    file = tmp_path / "found.json"
    options = report.parse(
        ["--rounds", "1000", "--burst-ms", "0.01", "--json", str(file)], ""
    )
    suite = harness.Suite("synthetic", CASES, [])
    assert report.run(options, [suite, suite]) == 130
    found = json.loads(file.read_text())
    assert found["interrupted"] is True
    (measured,) = found["suites"]
    assert [len(case["samples"]) for case in measured["cases"]] == [2] * 6
    output = capsys.readouterr()
    assert "case, 2 threads" in output.out
    assert "interrupted" in output.err


def test_only_picks_cases_and_what_they_are_compared_to(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    pattern = "1 handler: topic.emit shared, pinned"
    done = run("emit.py", *TINY, "--only", pattern, "--json", str(file))
    assert done.returncode == 0, done.stderr
    (suite,) = json.loads(file.read_text())["suites"]
    names = {case["name"] for case in suite["cases"]}
    assert names == {"empty loop", "hand loop", "topic.emit shared, pinned"}


def test_a_missing_peer_is_reported() -> None:
    assert report.probe("no_such_library.at_all") == "not installed"
    assert report.probe("json") == ""


def test_a_peer_that_turns_the_gil_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = report.PROBE.replace("sys._is_gil_enabled()", "'json' in sys.modules")
    monkeypatch.setattr(report, "PROBE", program)
    assert report.probe("json") == "importing it turns the GIL on"


# Synthetic samples: the case takes 30 ns and the peer 50, of which 10 are the loop. In
# the second round the machine is ten times slower, which no ratio may show.


def spin(n: int) -> None:
    for _ in range(n):
        pass


CASES = [
    harness.Case(name, lambda: lambda thread: spin, "loop")
    for name in ("loop", "case", "peer")
]
SAMPLES: harness.Samples = {
    ("loop", 1): [10.0, 100.0, 10.0],
    ("loop", 2): [5.0, 50.0, 5.0],
    ("case", 1): [30.0, 300.0, 30.0],
    ("case", 2): [20.0, 200.0, 20.0],
    ("peer", 1): [50.0, 500.0, 50.0],
}


def compare(comparison: harness.Comparison) -> harness.Row:
    suite = harness.Suite("synthetic", CASES, [comparison])
    (row,) = harness.compare_all(suite, SAMPLES)
    return row


def test_a_time_ratio_is_taken_within_rounds_and_judged_net() -> None:
    row = compare(harness.Comparison("case", "peer", "time", 0.55))
    assert row.gross == harness.Spread(0.6, 0.6, 0.6, 0.6, 3)
    assert row.net == harness.Spread(0.5, 0.5, 0.5, 0.5, 3)
    assert row.ceiling is None
    assert row.of_minima == 0.6
    assert row.met is True
    assert compare(harness.Comparison("case", "peer", "time", 0.45)).met is False
    assert compare(harness.Comparison("case", "peer", "time")).met is None


def test_a_speed_ratio_is_judged_gross() -> None:
    row = compare(harness.Comparison("case", "peer", "speed", 1.6))
    assert row.gross.median == pytest.approx(5 / 3)
    assert row.net is not None
    assert row.net.median == 2.0
    assert row.met is True
    assert compare(harness.Comparison("case", "peer", "speed", 1.7)).met is False


def test_two_threads_are_compared_to_what_the_empty_loop_gains() -> None:
    row = compare(harness.Comparison("case", "case", "speed", 1.5, threads=2))
    assert row.gross.median == 1.5
    assert row.net is None
    assert row.ceiling is not None
    assert row.ceiling.median == 0.75
    assert row.met is True


def test_what_was_not_measured_is_not_compared() -> None:
    suite = harness.Suite(
        "synthetic", CASES, [harness.Comparison("case", "peer", "time", threads=4)]
    )
    assert harness.compare_all(suite, SAMPLES) == []


def test_a_round_no_longer_than_its_loop_is_left_out_of_the_net_ratio() -> None:
    assert harness.net_ratios([30, 9], [50, 50], [10, 10], [10, 10]) == [0.5]


def test_a_spread_has_the_median_and_the_quartiles() -> None:
    assert harness.spread([5, 1, 4, 2, 3]) == harness.Spread(3, 2, 4, 1, 5)
    assert harness.spread([7]) == harness.Spread(7, 7, 7, 7, 1)


def test_time_is_divided_by_the_operations_of_all_threads() -> None:
    case = harness.Case("case", lambda: lambda thread: spin, ops=10)
    crew = harness.Crew(2)
    runner = harness.prepare(crew, case, burst_ns=1000)
    times = iter([1000 * runner.n, 3000 * runner.n])
    crew.time_ns = lambda bursts, n: next(times)  # type: ignore[method-assign]
    found = harness.run_round(crew, [runner])
    assert found == {("case", 1): 100.0, ("case", 2): 150.0}
    crew.close()


def test_what_a_case_does_once_does_not_shorten_its_bursts() -> None:
    case = harness.Case("case", lambda: lambda thread: spin, threads=(1,))
    crew = harness.Crew(1)
    once = iter([50_000_000])  # the first burst starts threads, say
    crew.time_ns = lambda bursts, n: next(once, 1000 * n)  # type: ignore[method-assign]
    assert harness.prepare(crew, case, burst_ns=6_000_000).n == 6000
    crew.close()


def test_bursts_run_in_the_threads_that_bound_them() -> None:
    crew = harness.Crew(2)
    bound = crew.each([threading.get_ident] * 2)
    assert bound == crew.each([threading.get_ident] * 2)
    assert bound[0] == threading.get_ident() != bound[1]
    crew.close()


def test_what_a_burst_raises_goes_up() -> None:
    def burst(n: int) -> None:
        raise LookupError

    crew = harness.Crew(2)
    with pytest.raises(LookupError):
        crew.time_ns([spin, burst], 1)
    crew.close()
