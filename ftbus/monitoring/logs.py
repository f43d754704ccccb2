"""bus.stats() and failures for the standard logging, as records with fields.

Whatever formats records as JSON finds the fields as attributes of the record; each is
named ftbus_... so that it meets none of logging's own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from ftbus.closing import Closing
from ftbus.errors import BusClosedError, InvalidOptionError
from ftbus.labels import failure_fields
from ftbus.monitoring.series import COUNTERS, GAUGES, TIMES

if TYPE_CHECKING:
    from ftbus.bus import ErrorHook, EventBus
    from ftbus.stats import BusStats

__all__ = ["StatsLogger", "log_failures", "log_stats", "stats_fields"]

_JOIN_S: Final = 1.0


def stats_fields(stats: BusStats) -> dict[str, Any]:
    """Return the fields of a record: counters, gauges, and percentiles in seconds."""
    fields: dict[str, Any] = {"ftbus_bus": stats.name}
    for name in (*COUNTERS, *GAUGES):
        fields[f"ftbus_{name}"] = getattr(stats, name)
    fields["ftbus_uptime_s"] = stats.uptime_s
    fields["ftbus_workers"] = len(stats.workers)
    for name in TIMES:
        times = getattr(stats.times, name)
        if times.count:
            fields[f"ftbus_{name}_p50_s"] = times.p50_ns / 1e9
            fields[f"ftbus_{name}_p99_s"] = times.p99_ns / 1e9
    return fields


def log_stats(
    bus: EventBus, logger: logging.Logger | None = None, level: int = logging.INFO
) -> None:
    """Log one record of what the bus has counted.

    logger: None is "ftbus.stats".
    level: of the record.
    """
    logger = logger or logging.getLogger("ftbus.stats")
    if not logger.isEnabledFor(level):
        return
    stats = bus.stats(max_keys=0)
    logger.log(
        level,
        "%s: %d emitted, %d posted, %d handler calls, %d failed, %d dropped, "
        "%d pending",
        stats.name,
        stats.emitted,
        stats.posted,
        stats.handled,
        stats.failed,
        stats.dropped + stats.rejected,
        stats.pending,
        extra=stats_fields(stats),
    )


class StatsLogger(Closing):
    """Log the statistics again and again, from a thread of its own, until close().

    interval_s: seconds between the records; the last one comes with close().
    logger, level: as of log_stats().

    It ends with the bus too. A context manager. Any thread. Raises InvalidOptionError
    and BusClosedError.
    """

    def __init__(
        self,
        bus: EventBus,
        interval_s: float = 60.0,
        *,
        logger: logging.Logger | None = None,
        level: int = logging.INFO,
    ) -> None:
        is_number = type(interval_s) in (int, float)
        if not is_number or not 0 < interval_s <= threading.TIMEOUT_MAX:
            raise InvalidOptionError("interval_s", interval_s, "more than 0 seconds")
        self._bus = weakref.ref(bus, lambda _: self._has_ended.set())
        self._interval_s = interval_s
        self._logger = logger
        self._level = level
        self._has_ended = threading.Event()
        self._thread = threading.Thread(
            target=Context().run,
            args=(self._run,),
            name=f"{bus.name}-stats-logger",
            daemon=True,
        )
        with bus._lock:
            if bus._closing:
                raise BusClosedError(bus, "log statistics")
            bus._sinks.add(self)
        self._thread.start()

    def close(self) -> None:
        """Log a last record and end. Idempotent; waits a second at most."""
        self._has_ended.set()
        bus = self._bus()
        if bus is not None:
            with bus._lock:
                bus._sinks.discard(self)
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    end = close  # the name by which bus.close() ends what it feeds

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._has_ended.wait(self._interval_s)
            bus = self._bus()
            if bus is None:
                return
            with contextlib.suppress(Exception):  # a logging handler of the application
                log_stats(bus, self._logger, self._level)
            del bus


def log_failures(
    logger: logging.Logger | None = None, level: int = logging.ERROR
) -> ErrorHook:
    """Return an on_error for EventBus that logs failures with fields.

    logger: None is "ftbus", where a bus without on_error logs them, with the same
        fields.

    The record has ftbus_key, ftbus_handler and ftbus_error (the exception's type), and
    the traceback as exc_info.
    """
    target = logger or logging.getLogger("ftbus")

    def log(error: BaseException, key: object, handler: object) -> None:
        target.log(
            level,
            "handler %r of key %r failed",
            handler,
            key,
            exc_info=error,
            extra=failure_fields(error, key, handler),
        )

    return log
