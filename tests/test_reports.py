"""The report for people: what needs care first, and what was sampled."""

import pytest

from ftbus import EventBus, reports

WAIT = 30  # seconds; only a hang takes that long


@pytest.mark.parametrize("rich", [True, False])
def test_report_leads_with_what_matters(rich: bool) -> None:
    def fast(event: int) -> None: ...

    def slow(event: int) -> None:
        sum(range(20_000))

    def fail(event: int) -> None:
        raise LookupError("on purpose")

    with EventBus(
        workers=1, name="game", timing="all", errors="log", on_error=lambda *_: None
    ) as bus:
        for n in range(30):
            bus.on(n, fast)
            bus.post(n)
        bus.on("[key]", slow)
        bus.on("[key]", fail)
        bus.emit("[key]")
        bus.emit("unnamed")
        bus.post(0, partition="a")
        assert bus.drain(WAIT)
        stats = bus.stats()
        text = reports.report(stats, rich=rich)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0].startswith(
        "game: 2 emitted, 31 posted, 33 handler calls, 1 failed, 0 dropped, 0 rejected"
    )
    assert lines[1].startswith("timed: every event")
    titles = [
        "slowest handlers",
        "queue, longest waits",
        "failures, by type",
        "busiest keys",
        "workers",
    ]
    found = [n for title in titles for n, x in enumerate(lines) if x.startswith(title)]
    assert len(found) == len(titles)
    assert found == sorted(found)
    assert "LookupError" in text
    assert "'[key]'" in text
    assert "groups busy" in text
    assert f"... and {len(stats.topics) - 20} more" in lines
    # The slow one leads the slowest: its rows are sorted by the 99th percentile.
    times = [row.time.p99_ns for row in stats.handlers]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("rich", [True, False])
def test_what_was_lost_is_listed(rich: bool) -> None:
    bus = EventBus(workers=1)
    bus.on("key", lambda event: None)
    bus.post("key")
    assert bus.drain(WAIT)
    bus.close()
    with pytest.raises(RuntimeError, match="closed"):
        bus.post("key")
    text = reports.report(bus.stats(), rich=rich)
    assert "dropped and rejected" in text
    assert "slowest handlers" not in text  # they are gone


def test_report_says_what_was_sampled() -> None:
    with EventBus(timing_interval=7) as bus:
        bus.set_timing("key", "off")
        line = bus.report().splitlines()[1]
        assert "about 1 event in 7" in line
        assert "1 keys have a timing of their own" in line
    with EventBus(timing="off") as bus:
        assert bus.report().splitlines()[1].startswith("timed: none")
    with EventBus(stats=False) as bus:
        assert bus.report().splitlines()[1].startswith("stats=False")


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "-"), (7, "7 ns"), (1234, "1.23 us"), (5e6, "5 ms"), (2.5e9, "2.5 s")],
)
def test_durations_have_units(ns: float, text: str) -> None:
    assert reports._ns(ns) == text
