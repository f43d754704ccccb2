"""MonitoredBus: how EventBus is looked at; figures, observers, servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ftbus import _core, monitor
from ftbus.errors import InvalidOptionError
from ftbus.reports import report

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable
    from os import PathLike

    from ftbus.bus import EventBus
    from ftbus.monitoring.dashboard import Dashboard
    from ftbus.monitoring.stats_server import StatsServer
    from ftbus.observers import Observer
    from ftbus.stats import BusStats, Timing

__all__ = ["MonitoredBus"]


class MonitoredBus(_core.Bus):
    """The part of EventBus that says what has happened. Not for use by itself."""

    _lock: threading.RLock
    _monitor: monitor.Monitor

    @property
    def _event_bus(self) -> EventBus:
        return cast("EventBus", self)

    def stats(
        self,
        *,
        exact: bool = False,
        max_keys: int | None = None,
        keys: Iterable[object] = (),
    ) -> BusStats:
        """Return the figures since the start, or since reset_stats(); never a lock.

        exact: read all counters at one moment. Every other thread that runs Python is
            stopped for that, some microseconds per key (and waited for: with more busy
            threads than cores that may take a while); the counters' sums then hold
            exactly for that moment, and each emit and delivery is in all of them or in
            none. Without it each counter is exact at a quiet moment, and some recent
            value while threads run; none goes backwards.
        max_keys: how many keys have a row of their own: those with the most traffic,
            events offered plus handler calls, since the bus was made. None is all, and
            takes time and memory in proportion to the keys. What has no row is summed,
            exactly, in the row of no key. As many handlers of keys without a row have
            one: half of them those with the longest timed call, the others those that
            are called most, of the keys whose handlers are.
        keys: that have a row, and rows for all their handlers, besides those; unknown
            ones are passed over.

        Raises StatsUnstableError if exact cannot be had on this interpreter,
        InvalidOptionError, UnsupportedKeyError.
        """
        if max_keys is not None and (type(max_keys) is not int or max_keys < 0):
            raise InvalidOptionError("max_keys", max_keys, "None, or 0 or more")
        return self._monitor.stats(self._event_bus, exact, max_keys, tuple(keys))

    def _counters(self, max_keys: int, keys: Iterable[object] = ()) -> BusStats:
        """Return stats(max_keys=..., keys=...) of which nobody wants the rows' times.

        They have none, and handlers no rows, which takes a third of the time.
        """
        bus = self._event_bus
        return self._monitor.stats(bus, False, max_keys, tuple(keys), details=False)

    def reset_stats(self) -> None:
        """Let stats() and report() count from here. No counter is ever zeroed."""
        self._monitor.reset(self._event_bus)

    def set_timing(self, key: object, timing: Timing) -> None:
        """Time none, some or all events of one key, whatever the bus does.

        timing: "off", "sampled" or "all". In effect from the next emit or post on.

        Raises InvalidOptionError (for a bus with stats=False too), UnsupportedKeyError.
        """
        if timing not in monitor.TIMINGS or not self._monitor.counting:
            wanted = f"one of {monitor.TIMINGS}, on a bus with stats=True"
            raise InvalidOptionError("timing", timing, wanted)
        self._set_timing(key, monitor.TIMINGS.index(timing))

    def report(self) -> str:
        """Return the statistics as a table for people, what needs care first."""
        return report(self.stats())

    def add_observer(self, observer: Observer) -> None:
        """Tell `observer` of each handler call, and of dropped events.

        observer: an object with some of the methods of ftbus.observers.Observer.

        Without observers this costs nothing; with one, some microseconds per call. A
        call that is under way is not told of. Idempotent. Raises InvalidOptionError.
        """
        with self._lock:
            self._monitor.observers.add(observer)
            self._set_observed(True)

    def remove_observer(self, observer: Observer) -> bool:
        """Stop telling `observer`; return whether it was told so far."""
        with self._lock:
            was_there = self._monitor.observers.remove(observer)
            self._set_observed(bool(self._monitor.observers))
        return was_there

    def serve_stats(
        self, where: str | PathLike[str] | int | None = None, *, max_keys: int = 100
    ) -> StatsServer:
        """Let other processes of this user read stats(), until close(); return it.

        where: the path of a Unix socket, which only this user can connect to; None for
            one in the user's runtime folder, where `python -m ftbus top` looks. An int
            is a TCP port on the loopback interface, 0 any that is free: there every
            user of the machine can connect, and whoever has the `token` of what is
            returned, a secret made for this process, gets the statistics.
        max_keys: rows of keys, the busiest; the rest is summed.

        It has threads of its own; see ftbus.monitoring.stats_server for the protocol.

        Raises AddressInUseError, InvalidOptionError, BusClosedError and OSError.
        """
        from ftbus.monitoring.stats_server import StatsServer

        return StatsServer(self._event_bus, where, max_keys=max_keys)

    def serve_dashboard(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        token: str | None = None,
        max_keys: int = 100,
    ) -> Dashboard:
        """Show stats() as a page at the `url` of what is returned, until close().

        port: 0 is any that is free.
        host: the address to listen at. Beyond the loopback interface everything,
            the token too, goes over the network in plain text.
        token: what the url ends with, and whoever wants the data must know; None
            makes a new one.
        max_keys: rows of keys, the busiest; the rest is summed.

        Raises AddressInUseError, InvalidOptionError, BusClosedError and OSError.
        """
        from ftbus.monitoring.dashboard import Dashboard

        bus = self._event_bus
        return Dashboard(bus, port, host=host, token=token, max_keys=max_keys)

    # Called by the core

    def _note_failure(self, error: BaseException, key: object, handler: object) -> None:
        """Count a failure under its exception type."""
        monitor = getattr(self, "_monitor", None)  # __init__ may not have been called
        if monitor is not None:
            monitor.failures.note(error, key, handler)

    def _observe(
        self, kind: str, key: object, handler: object, event: object, error: object
    ) -> None:
        """Tell the observers."""
        arguments: tuple[object, ...] = (key, handler, event)
        if kind == "failed":
            arguments += (error,)
        elif kind == "dropped":
            arguments = (key, event)
        self._monitor.observers.tell(kind, arguments)
