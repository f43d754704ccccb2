"""Failures by exception type, with the traceback of the last one."""

from __future__ import annotations

import threading
import traceback
from typing import TYPE_CHECKING, Any

from ftbus.stats import ErrorStats

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_FRAMES_MAX = 32
_TEXT_MAX = 2000
_TYPES_MAX = 1000


def name_of(handler: object) -> str:
    """Return the qualified name of a callable, with its module; its type's if none."""
    target: Any = getattr(handler, "__wrapped__", handler)
    target = getattr(target, "func", target)  # functools.partial
    if not hasattr(target, "__qualname__"):
        target = type(target)
    return f"{getattr(target, '__module__', '?')}.{target.__qualname__}"


class Failures:
    """Those of one bus; any thread.

    What is kept of an exception are strings and line numbers: neither it nor its
    frames. The text of a traceback is made when somebody asks for it.
    """

    __slots__ = ("_lock", "_rows")

    def __init__(self) -> None:
        # Reentrant: a finalizer may run in here, and a handler of its may fail.
        self._lock = threading.RLock()
        self._rows: dict[type, _Row] = {}

    def note(self, error: BaseException, key: object, handler: object) -> None:
        """Count one failure."""
        place = _place_of(error.__traceback__)
        text = _safely(lambda: str(error))
        shown, name = _safely(lambda: repr(key)), _safely(lambda: name_of(handler))
        with self._lock:
            row = self._rows.get(type(error))
            if row is None:
                if len(self._rows) >= _TYPES_MAX:  # of classes made on the fly
                    self._rows.pop(next(iter(self._rows)))
                row = self._rows[type(error)] = _Row()
            row.count += 1
            row.place, row.text, row.key, row.handler = place, text, shown, name

    def rows(self) -> tuple[ErrorStats, ...]:
        """Return one row per exception type, most frequent first."""
        with self._lock:
            found = [(kind, row.copy()) for kind, row in self._rows.items()]
        rows = [
            ErrorStats(
                type=f"{kind.__module__}.{kind.__qualname__}",
                count=row.count,
                key=row.key,
                handler=row.handler,
                traceback=_format(kind, row),
            )
            for kind, row in found
        ]
        return tuple(sorted(rows, key=lambda row: row.count, reverse=True))


class _Row:
    __slots__ = ("count", "handler", "key", "place", "text")

    def __init__(self) -> None:
        self.count = 0
        self.place: list[tuple[str, int, str]] = []
        self.text = self.key = self.handler = ""

    def copy(self) -> _Row:
        other = _Row()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other


def _place_of(step: TracebackType | None) -> list[tuple[str, int, str]]:
    place = []
    while step is not None:
        code = step.tb_frame.f_code
        place.append((code.co_filename, step.tb_lineno or 0, code.co_name))
        step = step.tb_next
    return place[-_FRAMES_MAX:]


def _safely(make: Callable[[], str]) -> str:
    """Return what a user's __str__ or __repr__ says, cut short, if it says anything."""
    try:
        return make()[:_TEXT_MAX]
    except Exception:
        return "<unprintable>"


def _format(kind: type, row: _Row) -> str:
    frames = [
        traceback.FrameSummary(file, line, name) for file, line, name in row.place
    ]
    lines = ["Traceback (most recent call last):\n"] if frames else []
    lines += traceback.format_list(frames)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    lines.append(f"{name}: {row.text}" if row.text else name)
    return "".join(lines)
