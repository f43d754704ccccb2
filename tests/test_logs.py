"""Records of the standard logging, with fields."""

import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ftbus import BusClosedError, EventBus, InvalidOptionError
from ftbus.monitoring import logs
from ftbus.testing import eventually

pytestmark = pytest.mark.thread_unsafe(reason="one bus for each test")


class Kept(logging.Handler):
    """Keeps records; says when one has come."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def logger(kept: Kept) -> logging.Logger:
    logger = logging.Logger("test")  # not in the tree of loggers
    logger.addHandler(kept)
    return logger


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(workers=2, name="logged") as bus:
        yield bus


def test_record_has_the_figures_as_fields(
    bus: EventBus, logger: logging.Logger, kept: Kept
) -> None:
    bus.on("key", lambda event: None)
    for _ in range(3):
        bus.emit("key")
    logs.log_stats(bus, logger)
    (record,) = kept.records
    stats = bus.stats()
    assert record.levelno == logging.INFO
    assert record.ftbus_bus == "logged"
    assert record.ftbus_emitted == stats.emitted == 3
    assert record.ftbus_handled == 3
    assert record.ftbus_pending == 0
    assert record.getMessage().startswith("logged: 3 emitted, 0 posted, 3 handler")
    fields = logs.stats_fields(stats)
    assert all(name.startswith("ftbus_") for name in fields)
    if stats.times.emit.count:
        assert fields["ftbus_emit_p99_s"] == stats.times.emit.p99_ns / 1e9


def test_nothing_is_read_for_a_level_that_is_off(
    bus: EventBus, logger: logging.Logger, kept: Kept
) -> None:
    logger.setLevel(logging.ERROR)
    logs.log_stats(bus, logger)
    assert kept.records == []


def test_records_come_again_and_again_and_once_more_at_the_end(
    bus: EventBus, logger: logging.Logger, kept: Kept
) -> None:
    with logs.StatsLogger(bus, 0.001, logger=logger):
        assert eventually(lambda: len(kept.records) >= 3, 30)
    bus.on("key", lambda event: None)
    with logs.StatsLogger(bus, 3600, logger=logger, level=logging.DEBUG) as last:
        bus.emit("key")
    assert kept.records[-1].ftbus_emitted == 1
    assert kept.records[-1].levelno == logging.DEBUG
    n = len(kept.records)
    last.close()
    assert len(kept.records) == n


def test_logger_ends_with_the_bus(logger: logging.Logger, kept: Kept) -> None:
    bus = EventBus(name="logged")
    logs.StatsLogger(bus, 3600, logger=logger)
    bus.close()
    assert len(kept.records) == 1
    with pytest.raises(BusClosedError):
        logs.StatsLogger(bus)
    for interval in (0, -1, "1", float("nan"), True):
        with pytest.raises(InvalidOptionError):
            logs.StatsLogger(bus, interval)  # type: ignore[arg-type]


def test_logger_keeps_no_bus_alive(logger: logging.Logger) -> None:
    bus = EventBus(name="forgotten")
    logs.StatsLogger(bus, 3600, logger=logger)
    del bus
    gc.collect()
    names = [thread.name for thread in threading.enumerate()]

    def is_over() -> bool:
        gc.collect()
        names = [thread.name for thread in threading.enumerate()]
        return "forgotten-stats-logger" not in names

    assert names
    assert eventually(is_over, 30)


def test_handler_of_logging_that_raises_stops_nothing(
    bus: EventBus, logger: logging.Logger, kept: Kept
) -> None:
    calls = []

    def refuse(record: logging.LogRecord) -> bool:
        calls.append(record)
        raise OSError("disk full")

    logger.addFilter(refuse)
    with logs.StatsLogger(bus, 0.001, logger=logger):
        assert eventually(lambda: len(calls) >= 3, 30)


def fail(event: object) -> None:
    raise LookupError("no such player")


def test_bus_logs_failures_with_fields(bus: EventBus, caplog: Any) -> None:
    bus.on("key", fail)
    bus.post("key")
    bus.drain(30)
    (record,) = caplog.records
    assert record.name == "ftbus"
    assert record.levelno == logging.ERROR
    assert record.ftbus_key == "key"
    assert record.ftbus_handler == f"{__name__}.fail"
    assert record.ftbus_error == "builtins.LookupError"
    assert record.exc_info[1].args == ("no such player",)


def test_failures_go_to_another_logger(logger: logging.Logger, kept: Kept) -> None:
    hook = logs.log_failures(logger, logging.WARNING)
    with EventBus(workers=1, on_error=hook) as bus:
        bus.on(7, fail)
        bus.post(7)
        bus.drain(30)
    (record,) = kept.records
    assert record.levelno == logging.WARNING
    assert (record.ftbus_key, record.ftbus_handler) == ("7", f"{__name__}.fail")
