"""The outside of a benchmark: options, progress, peers, the table and the JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from typing import Any

import harness
from harness import Check, Round, Row, Samples, Suite

import ftbus

PROGRESS_SECONDS = 5


def parse(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Return the options, which all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, shorter bursts")
    add("--rounds", type=int, help="rounds per suite (100; quick: 30)")
    add("--burst-ms", type=float, help="how long a burst takes (20; quick: 6)")
    add("--only", metavar="PATTERN", help='what matches, as in "1 handler: *pinned*"')
    add("--most", type=int, default=1_000_000, help="the most topics or keys")
    add("--json", metavar="FILE", help="write everything to this file too")
    options = parser.parse_args(argv)
    if options.rounds is None:
        options.rounds = 30 if options.quick else 100
    if options.burst_ms is None:
        options.burst_ms = 6.0 if options.quick else 20.0
    if options.rounds < 1 or options.burst_ms <= 0 or options.most < 1:
        parser.error("--rounds, --burst-ms and --most are positive")
    return options


def run(
    options: argparse.Namespace,
    suites: Sequence[Suite],
    checks: Sequence[Callable[[], Sequence[Check]]] = (),
) -> int:
    """Measure, print the table, write the JSON. Ctrl-C leaves what there is by then."""
    found: dict[str, Any] = {"machine": machine(), "settings": vars(options)}
    modules = {case.module for suite in suites for case in suite.cases if case.module}
    missing = {module: probe(module) for module in sorted(modules)}
    found["peers"] = {
        module: {"version": None if reason else version(module), "left_out": reason}
        for module, reason in missing.items()
    }
    found |= {"interrupted": True, "checks": [], "suites": []}
    print_header(found)
    with interruptible():
        for suite in suites:
            chosen = select(suite, options.only or "*", missing)
            if chosen.cases:
                run_one(chosen, options, found["suites"])
        for check in [] if options.only else checks:
            for one in check():
                print_check(one)
                found["checks"].append({**asdict(one), "met": one.met})
        found["interrupted"] = False
    if sys._is_gil_enabled() != found["machine"]["gil_enabled"]:
        raise SystemExit("something turned the GIL on: these figures mean nothing")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
    return 130 if found["interrupted"] else 0


def run_one(
    suite: Suite, options: argparse.Namespace, found: list[dict[str, Any]]
) -> None:
    """Measure a suite, print its part of the table, add its part of the JSON."""
    rounds: list[Round] = []
    burst_ns = options.burst_ms * 1e6
    try:
        for one in harness.run_suite(suite, options.rounds, burst_ns, progress):
            rounds.append(one)
    finally:
        progress("")
        if rounds:
            samples = harness.by_case(rounds)
            rows = harness.compare_all(suite, samples)
            print_suite(suite, samples, rows)
            found.append(suite_json(suite, samples, rows))


def select(suite: Suite, pattern: str, missing: dict[str, str]) -> Suite:
    """Return the part of a suite that matches, with the peers it needs."""
    cases = [case for case in suite.cases if not missing.get(case.module)]

    def matches(name: str) -> bool:
        return fnmatchcase(f"{suite.name}: {name}", f"*{pattern}*")

    present = {case.name for case in cases}
    comparisons = [
        one
        for one in suite.comparisons
        if matches(one.case) and {one.case, one.peer} <= present
    ]
    wanted = {case.name for case in cases if matches(case.name)}
    wanted |= {one.peer for one in comparisons}
    wanted |= {case.empty for case in cases if case.name in wanted}
    cases = [case for case in cases if case.name in wanted]
    return replace(suite, cases=cases, comparisons=comparisons)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the block, and nothing more."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the rest was not measured", file=sys.stderr)


_last_shown = 0.0


def progress(text: str) -> None:
    """Show what is going on: in place on a terminal, else a line every few seconds."""
    global _last_shown
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text and time.monotonic() - _last_shown > PROGRESS_SECONDS:
        _last_shown = time.monotonic()
        print(text, file=sys.stderr, flush=True)


# Peers and the machine


PROBE = """
import importlib, sys
was_on = sys._is_gil_enabled()
module = sys.argv[1]
try:
    importlib.import_module(module)
except ModuleNotFoundError as error:
    is_missing = error.name == module.partition(".")[0]
    print("not installed" if is_missing else f"cannot be imported: {error}")
except Exception as error:
    print(f"cannot be imported: {error}")
if sys._is_gil_enabled() and not was_on:
    print("importing it turns the GIL on")
"""


def probe(module: str) -> str:
    """Return "" if a module can be imported here, or else why it is left out.

    Tried in a process of its own: an import that turns the GIL on leaves it on.
    """
    command = [sys.executable, "-W", "ignore", "-c", PROBE, module]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return f"importing it ends the process with {found.returncode}"
    return found.stdout.strip().replace("\n", "; ")


def version(module: str) -> str:
    try:
        return importlib.metadata.version(module.partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def machine() -> dict[str, Any]:
    """Return what the figures depend on, as it is at the start."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            models = (line for line in lines if line.startswith("model name"))
            model = next(models, f":{model}").partition(":")[2].strip()
    config = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return {
        "processor": model,
        "cores": os.process_cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "load_average": list(os.getloadavg()),
        "python": sys.version.replace("\n", " "),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "gil_enabled": sys._is_gil_enabled(),
        "optimized_build": "--enable-optimizations" in config,
        "ftbus": ftbus.__version__,
    }


# The table and the JSON


LEGEND = """\
ns       wall time divided by the operations of all threads: median, quartiles, minimum
ratio    median of the ratios within each round; "1.5x": 1.5 times as long, "1.5": 1.5
         times as many per second, 2 threads together
net      the same without the empty loop's time; targets in x judge this one, as the
         loop is the benchmark's own, and the others judge "ratio", which users see
best     ratio of the two minima: the better guide on a noisy machine
ceiling  ratio of 2 threads to 1, in units of what the empty loop reaches"""
VERDICTS = {None: "", True: "met", False: "MISSED"}


def print_header(found: dict[str, Any]) -> None:
    it = found["machine"]
    load = ", ".join(f"{value:.1f}" for value in it["load_average"])
    gil = "on" if it["gil_enabled"] else "off"
    build = "optimized" if it["optimized_build"] else "plain"
    print(f"{it['processor']}, {it['cores']} cores, {it['system']}, load {load}")
    print(f"Python {it['python']}, {build} build, GIL {gil}; ftbus {it['ftbus']}")
    for name, peer in found["peers"].items():
        print(f"  {name} {peer['version'] or 'left out: ' + peer['left_out']}")
    print(LEGEND)


def print_check(check: Check) -> None:
    target = "" if check.target is None else f"  (<= {check.target:g})"
    value = f"{check.value:,.6g} {check.unit}{target} {VERDICTS[check.met]}"
    print(f"{check.name}: {value}".rstrip(), flush=True)


COLUMNS = "{:<45}{:>9}{:>20}{:>9}  {:<32}{:>7}{:>7}{:>7}{:>8}{:>9} {}"


def print_suite(suite: Suite, samples: Samples, rows: Sequence[Row]) -> None:
    """Print a line per case and number of threads, and more if it has more ratios."""
    n_rounds = len(next(iter(samples.values())))
    print(f"\n{suite.name} ({n_rounds} rounds)")
    head = ["case", "ns", "quartiles", "min", "ratio to", "ratio", "net", "best"]
    print(COLUMNS.format(*head, "ceiling", "target", "").rstrip())
    for key, values in samples.items():
        it = harness.spread(values)
        quartiles = f"{it.low:.1f} - {it.high:.1f}"
        left = [label(*key), f"{it.median:.1f}", quartiles, f"{it.least:.1f}"]
        own = [r for r in rows if (r.comparison.case, r.comparison.threads) == key]
        for cells in [row_cells(row) for row in own] or [[""] * 7]:
            print(COLUMNS.format(*left, *cells).rstrip())
            left = [""] * len(left)
    if suite.note:
        print(suite.note)
    sys.stdout.flush()


def row_cells(row: Row) -> list[str]:
    """Return the cells from "ratio to" on."""
    one = row.comparison
    sign, unit = ("<=", "x") if one.kind == "time" else (">=", "")
    spreads = [s and s.median for s in (row.gross, row.net, row.ceiling)]
    gross, net, ceiling = ("" if s is None else f"{s:.2f}{unit}" for s in spreads)
    return [
        "1 thread" if one.case == one.peer else label(one.peer, one.peer_threads),
        gross,
        net,
        f"{row.of_minima:.2f}{unit}",
        ceiling,
        "" if one.target is None else f"{sign} {one.target:g}{unit}",
        VERDICTS[row.met],
    ]


def label(name: str, threads: int) -> str:
    return name if threads == 1 else f"{name}, {threads} threads"


def suite_json(suite: Suite, samples: Samples, rows: Sequence[Row]) -> dict[str, Any]:
    loops = {case.name: case.empty for case in suite.cases}
    return {
        "name": suite.name,
        "note": suite.note,
        "cases": [
            {
                "name": name,
                "threads": threads,
                "empty": loops[name],
                "ns": asdict(harness.spread(values)),
                "samples": values,
            }
            for (name, threads), values in samples.items()
        ],
        "comparisons": [
            {
                **asdict(row.comparison),
                "ratio": asdict(row.gross),
                "net": row.net and asdict(row.net),
                "of_ceiling": row.ceiling and asdict(row.ceiling),
                "of_minima": row.of_minima,
                "met": row.met,
            }
            for row in rows
        ],
    }
