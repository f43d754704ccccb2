"""The readings of a soak as an SVG file: memory, throughput and latency over time."""

from __future__ import annotations

from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 800, 150, 90, 30, 50
CHARTS = (
    ("uss_bytes", "memory that is the process's own, MiB", 2.0**20),
    ("events_per_s", "events a second, emitted and delivered", 1.0),
    ("p99_us", "p99 from post to handler, ms", 1000.0),
)


def plot(readings: dict[str, list[float]]) -> str:
    """Return an SVG document with one chart below the other."""
    times = readings["at_s"]
    height = TOP + len(CHARTS) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{LEFT + WIDTH + 30}" height="{height}" fill="white"/>',
    ]
    for n, (name, title, unit) in enumerate(CHARTS):
        values = [value / unit for value in readings[name]]
        parts += _chart(TOP + n * (HEIGHT + GAP), title, times, values)
    return "\n".join([*parts, "</svg>", ""])


def _chart(
    top: float, title: str, times: list[float], values: list[float]
) -> list[str]:
    points = [(x, y) for x, y in zip(times, values, strict=True) if y == y]
    last_s = max(times, default=0.0) or 1.0
    most = max((y for _, y in points), default=0.0) or 1.0
    line = " ".join(
        f"{LEFT + x / last_s * WIDTH:.1f},{top + HEIGHT * (1 - y / most):.1f}"
        for x, y in points
    )
    return [
        f'<text x="{LEFT}" y="{top - 8}">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" '
        'fill="none" stroke="#999"/>',
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:.4g}</text>',
        f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>',
        f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 15}" text-anchor="end">'
        f"{last_s:.0f} s</text>",
        f'<polyline points="{line}" fill="none" stroke="#1f5fa8"/>',
    ]
