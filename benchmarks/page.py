"""docs/benchmarks.md and its plots, from what the benchmarks wrote as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plots
import scaling

NAMES = ["emit", "seed", "map", "buffers", "dispatch", "costs", "scaling"]
VERDICTS = {None: "", True: "met", False: "**missed**"}

HEAD = """\
# Benchmarks

This page is written by `make bench-full` (`make bench`: fewer rounds, about five
minutes); no figure in it is typed by hand. What each benchmark does, and how it is
measured, is in `benchmarks/README.md`.

Every figure is the median over rounds in which all contenders take turns, with the
quartiles behind it; a ratio is taken within each round. "x" is time in units of the
other's, without the empty loop's; "times" is how many times as many operations per
second. A target that was missed says so.
"""


def load(folder: Path) -> dict[str, Any]:
    """Return what each benchmark found, for those that were run."""
    files = {name: folder / f"{name}.json" for name in NAMES}
    return {n: json.loads(f.read_text()) for n, f in files.items() if f.exists()}


def write(found_in: Path, docs: Path) -> list[str]:
    """Write the page and the plots; return their names."""
    found = load(found_in)
    if not found:
        return []
    images = plots.draw_all(found, docs / "images")
    parts = [HEAD, machine_part(found), target_part(found)]
    parts += [picture(name, title) for name, title in images.items()]
    parts += [model_part(found["scaling"])] if "scaling" in found else []
    parts += [figures_part(name, one) for name, one in found.items()]
    page = docs / "benchmarks.md"
    page.write_text("\n".join(parts).rstrip() + "\n")
    return [page.name, *images]


def machine_part(found: dict[str, Any]) -> str:
    lines = ["## The machine", ""]
    lines += ["| | when | load at the start | rounds, burst |", "|---|---|---|---|"]
    for name, one in found.items():
        load_average = ", ".join(f"{x:.1f}" for x in one["machine"]["load_average"])
        settings = one["settings"]
        many = f"{settings['rounds']}, {settings['burst_ms']:g} ms"
        when = one["machine"]["date"]
        cut = ", interrupted" if one["interrupted"] else ""
        lines.append(f"| `{name}.py` | {when} | {load_average} | {many}{cut} |")
    kinds = {describe(one["machine"]) for one in found.values()}
    peers = {
        f"{peer.partition('.')[0]} {it['version']}"
        for one in found.values()
        for peer, it in one["peers"].items()
        if it["version"] and not peer.startswith("ftbus")
    }
    lines += ["", *sorted(kinds)]
    if peers:
        lines += ["", f"Compared with {', '.join(sorted(peers))}."]
    cores = min(one["machine"]["cores"] for one in found.values())
    lines += ["", warning(found, cores)] if is_busy(found) else []
    return "\n".join([*lines, ""])


def is_busy(found: dict[str, Any]) -> bool:
    """Say whether something else kept a core busy when a benchmark started.

    Each benchmark after the first sees the load of the one before it: up to a core more
    than it has threads.
    """
    machines = [one["machine"] for one in found.values()]
    return any(it["load_average"][0] > it["cores"] + 1 for it in machines)


def warning(found: dict[str, Any], n: int) -> str:
    most = max(one["machine"]["load_average"][0] for one in found.values())
    return (
        f"**The machine was busy**: a load of up to {most:.1f} on {n} cores. Ratios\n"
        "on one thread still mean something; rates, latencies and gains by threads\n"
        "do not."
    )


def describe(machine: dict[str, Any]) -> str:
    gil = "on" if machine["gil_enabled"] else "off"
    build = "optimized" if machine["optimized_build"] else "not profile-optimized"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; "
        f"Python {machine['python']}, {build}, GIL {gil}; ftbus {machine['ftbus']}."
    )


def target_part(found: dict[str, Any]) -> str:
    """Everything with a target, in one table."""
    lines = ["## Targets", "", "| what | found | quartiles | target | |"]
    lines.append("|---|---|---|---|---|")
    for one in found.values():
        for suite in one["suites"]:
            for it in suite["comparisons"]:
                if it["target"] is not None:
                    lines.append(row(suite["name"], it))
        for check in one["checks"]:
            if check["target"] is not None:
                value = f"{check['value']:,.4g} {check['unit']}".strip()
                verdict = VERDICTS[check["met"]]
                target = f"<= {check['target']:g}"
                lines.append(f"| {check['name']} | {value} | | {target} | {verdict} |")
    return "\n".join([*lines, ""])


def row(suite: str, it: dict[str, Any]) -> str:
    is_time = it["kind"] == "time"
    spread = (it["net"] if is_time else None) or it["ratio"]
    unit, sign = ("x", "<=") if is_time else (" times", ">=")
    case, peer = (
        name if threads == 1 else f"{name}, {threads} threads"
        for name, threads in (
            (it["case"], it["threads"]),
            (it["peer"], it["peer_threads"]),
        )
    )
    against = "1 thread" if it["case"] == it["peer"] else peer
    cells = [
        f"{suite}: {case}, against {against}",
        f"{spread['median']:.2f}{unit}",
        f"{spread['low']:.2f} to {spread['high']:.2f}",
        "" if it["target"] is None else f"{sign} {it['target']:g}{unit}",
        VERDICTS[it["met"]],
    ]
    return f"| {' | '.join(cells)} |"


def model_part(one: dict[str, Any]) -> str:
    """Say what the model of docs/scaling.md expects of more cores."""
    found = scaling.model(one)
    if found is None:
        return ""
    line_ns, rows = found
    cores = [f"{n} cores" if n > 1 else "1 core" for n in scaling.MODEL_CORES]
    lines = [
        "## A model of more cores",
        "",
        "Millions of operations per second by the [model](scaling.md): a write to a",
        f"line that another core wrote last took {line_ns:.1f} ns here. A model is no",
        "measurement; `benchmarks/scaling.py` makes one on a larger machine.",
        "",
        f"| case | shared writes | {' | '.join(cores)} |",
        "|---|" + "--:|" * (1 + len(cores)),
    ]
    for name, n, *rates in rows:
        lines.append(f"| {name} | {n} | {' | '.join(f'{r:,.4g}' for r in rates)} |")
    return "\n".join([*lines, ""])


def picture(name: str, title: str) -> str:
    """Return a plot in two colour schemes."""
    return (
        f"## {title}\n\n<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" '
        f'srcset="images/{name}-dark.svg">\n'
        f'  <img alt="{title}" src="images/{name}-light.svg">\n</picture>\n'
    )


def figures_part(name: str, one: dict[str, Any]) -> str:
    """All figures of a benchmark."""
    lines = [f"## All figures of {name}.py", ""]
    for suite in one["suites"]:
        lines += [f"### {suite['name'].capitalize()}", ""]
        if suite["note"]:
            lines += [suite["note"], ""]
        lines += ["| case | ns | quartiles | millions/s |", "|---|--:|---|--:|"]
        for case in suite["cases"]:
            ns, threads = case["ns"], case["threads"]
            label = case["name"] + (f", {threads} threads" if threads > 1 else "")
            between = f"{ns['low']:,.1f} to {ns['high']:,.1f}"
            rate = 1000 / ns["median"]
            cells = [label, f"{ns['median']:,.1f}", between, f"{rate:,.4g}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        if suite["comparisons"]:
            lines += [
                "| ratio | found | quartiles | target | |",
                "|---|---|---|---|---|",
            ]
            lines += [row(suite["name"], it) for it in suite["comparisons"]]
            lines.append("")
    if one["checks"]:
        lines += ["| what | found | |", "|---|--:|---|"]
        for check in one["checks"]:
            value = f"{check['value']:,.6g}"
            lines.append(f"| {check['name']} | {value} | {check['unit']} |")
        lines.append("")
    return "\n".join(lines)
