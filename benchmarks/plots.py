"""The plots of docs/benchmarks.md: SVG, in a light and a dark variant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OURS, OTHERS = ("#2a78d6", "#3987e5"), ("#8a8984", "#8f8e88")  # light, dark
SERIES = [  # further lines, when several are ours or matter
    ("#2a78d6", "#3987e5"),
    ("#1baf7a", "#199e70"),
    ("#eda100", "#c98500"),
    ("#e34948", "#e66767"),
    ("#4a3aa7", "#9085e9"),
    ("#eb6834", "#d95926"),
    ("#008300", "#5aa55a"),
    ("#8a8984", "#8f8e88"),
]
INK, MUTED, GRID = (
    ("#0b0b0b", "#ffffff"),
    ("#52514e", "#c3c2b7"),
    ("#e1e0d9", "#3a3a37"),
)
SIZE = (7.6, 3.8)

type Found = dict[str, Any]
type Draw = Callable[[Any, Found, int], bool]  # draws into axes, in light 0 or dark 1


def cases(found: Found, file: str, suite: str) -> dict[tuple[str, int], Found]:
    """Return the cases of a suite, by name and threads; empty if it was not run."""
    suites = {each["name"]: each for each in found.get(file, {}).get("suites", ())}
    listed = suites.get(suite, {}).get("cases", ())
    return {(case["name"], case["threads"]): case["ns"] for case in listed}


def checks(found: Found, file: str) -> dict[str, float]:
    return {
        each["name"]: each["value"] for each in found.get(file, {}).get("checks", ())
    }


def rate(ns: Found) -> float:
    return 1000 / float(ns["median"])


def draw_emit(axes: Any, found: Found, scheme: int) -> bool:
    """Bars: one handler, one thread, millions of events per second."""
    emit = cases(found, "emit", "1 handler")
    ours = "topic.emit bound per thread"
    names = [n for n, threads in emit if threads == 1 and "loop" not in n]
    names = [n for n in names if "topic" not in n and "bus" not in n and "int" not in n]
    if (ours, 1) not in emit:
        return False
    shown = sorted([ours, "hand loop", *names], key=lambda n: rate(emit[n, 1]))
    values = [rate(emit[n, 1]) for n in shown]
    colors = [(OURS if n == ours else OTHERS)[scheme] for n in shown]
    labels = ["ftbus" if n == ours else n for n in shown]
    axes.barh(labels, values, color=colors, height=0.62)
    for i, value in enumerate(values):
        axes.text(value, i, f" {value:.2f}", va="center", color=MUTED[scheme])
    axes.set_xlabel("million events per second, 1 handler, 1 thread")
    axes.grid(visible=False, axis="y")
    return True


def lines(
    axes: Any, scheme: int, series: dict[str, list[tuple[float, Found]]], unit: str
) -> bool:
    """Lines with their quartiles; "rate" or "ns"."""
    for i, (label, points) in enumerate(series.items()):
        xs = [x for x, _ in points]

        def value(ns: Found, field: str) -> float:
            return 1000 / ns[field] if unit == "rate" else float(ns[field])

        ys = [value(ns, "median") for _, ns in points]
        ends = [[value(ns, field) for _, ns in points] for field in ("low", "high")]
        color = SERIES[i % len(SERIES)][scheme]
        axes.plot(
            xs, ys, color=color, marker="o", markersize=5, linewidth=2, label=label
        )
        axes.fill_between(xs, ends[0], ends[1], color=color, alpha=0.15, linewidth=0)
    if unit == "rate":
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=MUTED[scheme], fontsize=8.5)
    return bool(series)


def draw_scaling(axes: Any, found: Found, scheme: int) -> bool:
    """Lines: millions of emits per second over threads."""
    them = cases(found, "scaling", "scaling over threads")
    names = {
        "topic.emit bound per thread": "ftbus, topic.emit",
        "bus.emit shared, pinned": "ftbus, pinned bus.emit",
        "hand loop": "for h in d[k]: h(e)",
        "dict + RLock": "dict + RLock",
    }
    series = {
        label: [(threads, ns) for (n, threads), ns in them.items() if n == name]
        for name, label in names.items()
        if (name, 1) in them
    }
    axes.set_xlabel("threads")
    axes.set_ylabel("million events/s")
    axes.set_xticks(sorted({x for points in series.values() for x, _ in points}))
    return lines(axes, scheme, series, "rate")


def draw_seed(axes: Any, found: Found, scheme: int) -> bool:
    """Lines: every step from the seed to ftbus, over threads."""
    them = cases(found, "seed", "seed to ftbus, 4 handlers")
    names = list(dict.fromkeys(name for name, _ in them))
    series = {
        name: [(threads, ns) for (n, threads), ns in them.items() if n == name]
        for name in names
        if name != "ftbus with StructCodec"
    }
    axes.set_xlabel("threads")
    axes.set_ylabel("million events/s")
    axes.set_xticks([1, 2, 4, 8])
    return lines(axes, scheme, series, "rate")


def draw_latency(axes: Any, found: Found, scheme: int) -> bool:
    """Percentiles of the hand-off to a sleeping thread, and to a busy worker."""
    pattern = re.compile(r"(wake by (.*)|post to handler, worker half busy): (p[\d.]+)")
    ways: dict[str, dict[str, float]] = {}
    for name, value in checks(found, "dispatch").items():
        if it := pattern.fullmatch(name):
            label = it[2] or "bus.post, worker half busy"
            ways.setdefault(label, {})[it[3]] = value
    for i, (label, points) in enumerate(ways.items()):
        color = SERIES[i][scheme]
        axes.plot(
            points.keys(),
            points.values(),
            color=color,
            marker="o",
            linewidth=2,
            label=label,
        )
    axes.set_yscale("log")
    axes.set_ylabel("microseconds")
    axes.set_xlabel("percentile, from just before the post to the handler's first line")
    axes.legend(frameon=False, labelcolor=MUTED[scheme], fontsize=8.5)
    return bool(ways)


def bars(axes: Any, scheme: int, them: dict[str, Found], ours: str, label: str) -> bool:
    """Bars: medians in ns with their quartiles; what contains `ours` stands out."""
    names = list(reversed(them))
    values = [them[n]["median"] for n in names]
    spans = [
        [them[n]["median"] - them[n]["low"] for n in names],
        [them[n]["high"] - them[n]["median"] for n in names],
    ]
    colors = [(OURS if ours in n else OTHERS)[scheme] for n in names]
    axes.barh(
        names, values, xerr=spans, color=colors, height=0.62, ecolor=MUTED[scheme]
    )
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    return bool(them)


def draw_encode(axes: Any, found: Found, scheme: int) -> bool:
    them = cases(found, "buffers", "one event, many readers")
    ones = {name: ns for (name, threads), ns in them.items() if threads == 1}
    return bars(axes, scheme, ones, "encoded=True", "ns per event, 16 handlers")


def draw_map(axes: Any, found: Found, scheme: int) -> bool:
    them = cases(found, "map", "read 1,000 keys, an object each")
    ones = {
        name if threads == 1 else f"{name}, {threads} threads": ns
        for (name, threads), ns in them.items()
        if "m[k]" in name
    }
    return bars(axes, scheme, ones, "StripedMap", "ns per read")


def draw_costs(axes: Any, found: Found, scheme: int, suite: str) -> bool:
    """Lines: ns over the number at the end of each case's name."""
    series: dict[str, list[tuple[float, Found]]] = {}
    for (name, _), ns in cases(found, "costs", suite).items():
        label, _, number = name.rpartition(": ")
        series.setdefault(label, []).append((float(number.replace(",", "")), ns))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(suite.removeprefix("cost by "))
    axes.set_ylabel("ns per event")
    return lines(axes, scheme, series, "ns")


def costs(suite: str) -> Draw:
    return lambda axes, found, scheme: draw_costs(axes, found, scheme, suite)


PLOTS: dict[str, tuple[str, Draw]] = {
    "bench-emit": ("Emit, against others", draw_emit),
    "bench-scaling": ("Emit on one topic, over threads", draw_scaling),
    "bench-seed": ("From a dict under a lock to ftbus", draw_seed),
    "bench-latency": ("Hand-off latency", draw_latency),
    "bench-encode": ("One event, encoded once", draw_encode),
    "bench-map": ("The map", draw_map),
    "bench-handlers": ("Cost by handlers", costs("cost by number of handlers")),
    "bench-topics": ("Cost by topics", costs("cost by number of topics")),
    "bench-partitions": ("Cost by partitions", costs("cost by number of partitions")),
    "bench-payload": ("Cost by payload bytes", costs("cost by payload bytes")),
}


def draw_all(found: Found, folder: Path) -> dict[str, str]:
    """Draw what was measured; return title by name. Nothing without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed")
        return {}
    matplotlib.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: title
        for name, (title, draw) in PLOTS.items()
        if all(draw_one(folder / f"{name}-{s}.svg", draw, found, s) for s in schemes())
    }


def schemes() -> Iterator[str]:
    yield from ("light", "dark")


def draw_one(file: Path, draw: Draw, found: Found, name: str) -> bool:
    """Write one file; False if there was nothing to draw."""
    from matplotlib import pyplot, rc_context

    scheme = ("light", "dark").index(name)
    muted = MUTED[scheme]
    settings = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "ftbus",  # and ids stay the same from run to run
        "font.family": "sans-serif",
        "axes.edgecolor": GRID[scheme],
        "axes.labelcolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
        "text.color": INK[scheme],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID[scheme],
        "grid.linewidth": 0.7,
    }
    with rc_context(settings):
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        is_drawn = draw(axes, found, scheme)
        if is_drawn:
            figure.savefig(file, transparent=True, metadata={"Date": None})
            text = file.read_text()
            file.write_text("\n".join(line.rstrip() for line in text.split("\n")))
        pyplot.close(figure)
    return is_drawn
