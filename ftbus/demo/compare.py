"""The same match twice, with the GIL on and then off, side by side."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ftbus.demo.match import Interrupt, Options

_LOOK_S: Final = 0.1
_COMPARED: Final = (
    ("inputs_per_s", "inputs/s", 0),
    ("events_per_s", "events/s", 0),
    ("handler_calls_per_s", "handler calls/s", 0),
    ("ack_p50_us", "input to ack, p50 us", 0),
    ("ack_p99_us", "input to ack, p99 us", 0),
    ("cores_used", "cores used by the server", 2),
)


def compare(options: Options, interrupt: Interrupt) -> tuple[dict[str, Any], int]:
    """Run both matches; return {"on": figures, "off": ..., "ratio": ...} and a status.

    A ratio is the figure with the GIL off, divided by that with the GIL on. After an
    interrupt there may be fewer figures. The status is the higher of the two.
    """
    tree: dict[str, Any] = {}
    worst = 0
    for gil in ("on", "off"):
        if interrupt.is_wanted:
            break
        tree[gil], status = _run(gil, options, interrupt)
        worst = max(worst, status)
    if tree.get("on") and tree.get("off"):
        tree["ratio"] = {
            name: tree["off"][name] / tree["on"][name] if tree["on"][name] else None
            for name, _, _ in _COMPARED
        }
    return tree, worst


def _run(
    gil: str, options: Options, interrupt: Interrupt
) -> tuple[dict[str, Any] | None, int]:
    """Run one match in its own interpreter; return its figures and exit status."""
    with tempfile.TemporaryDirectory(prefix="ftbus-demo-") as folder:
        figures = Path(folder, "figures.json")
        switch = f"gil={int(gil == 'on')}"
        match = subprocess.Popen(
            [
                *(sys.executable, "-X", switch, "-m", "ftbus", "demo"),
                *options.to_argv(),
                *("--json", str(figures)),
            ]
        )
        is_told = False
        while True:
            try:
                status = match.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if interrupt.is_wanted and not is_told:
                    match.terminate()  # it may have heard of it already, or not
                    is_told = True
        if not figures.exists():
            return None, status or 1
        return json.loads(figures.read_text()), status


def text(tree: dict[str, Any]) -> str:
    """Return the comparison for people."""
    if "ratio" not in tree:
        return "no comparison: a match brought no figures"
    lines = [f"{'':26}{'GIL on':>12}{'GIL off':>12}{'off / on':>10}"]
    for name, title, digits in _COMPARED:
        on, off, ratio = (tree[column][name] for column in ("on", "off", "ratio"))
        shown = f"{ratio:10.2f}" if ratio is not None else f"{'-':>10}"
        lines.append(f"{title:26}{on:12,.{digits}f}{off:12,.{digits}f}{shown}")
    return "\n".join(lines)
