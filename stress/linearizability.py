"""Whether a recorded history of calls could have come from one thread at a time.

A history is linearizable if its calls can be put into an order that an object of one
thread would answer in the same way, and in which a call that ended before another began
comes first (Herlihy and Wing 1990). The search is Wing and Gong's (1993), with Lowe's
memory (2017): a set of calls that were put in order already, with the state they lead
to, is looked at once. Objects that are made of independent keys are checked key by key,
as linearizability is local.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple


class Call(NamedTuple):
    """One call: what it was, what it answered, and when it began and ended."""

    name: str
    argument: Any
    result: Any
    start: int
    end: int


# A model answers a call: (state, name, argument) -> (state after, result).
type Model[S: Hashable] = Callable[[S, str, Any], tuple[S, Any]]


def is_linearizable[S: Hashable](
    history: Sequence[Call], model: Model[S], state: S
) -> bool:
    """Return whether some order of the calls explains all of their results."""
    calls = sorted(history, key=lambda call: call.start)
    everything = (1 << len(calls)) - 1
    seen: set[tuple[int, S]] = set()
    pending = [(0, state)]
    while pending:
        done, before = pending.pop()
        if done == everything:
            return True
        if (done, before) in seen:
            continue
        seen.add((done, before))
        first_end = min(call.end for ix, call in enumerate(calls) if not done >> ix & 1)
        for ix, call in enumerate(calls):
            if call.start > first_end:
                break  # another had ended before this began, and so before the rest
            if done >> ix & 1:
                continue
            after, result = model(before, call.name, call.argument)
            if result == call.result:
                pending.append((done | 1 << ix, after))
    return False


class Recorder:
    """Notes calls of many threads, by key, with the moments of one clock."""

    def __init__(self) -> None:
        self._clock = itertools.count()  # a step of its own is atomic
        self._lock = threading.Lock()
        self._histories: dict[Hashable, list[Call]] = {}

    def thread(self) -> ThreadRecorder:
        """Return what one thread notes its calls with, without disturbing others."""
        return ThreadRecorder(self._clock)

    def add(self, calls: list[tuple[Hashable, Call]]) -> None:
        """Take in what a thread has noted."""
        with self._lock:
            for key, call in calls:
                self._histories.setdefault(key, []).append(call)

    def failures[S: Hashable](self, model: Model[S], state: S) -> list[Any]:
        """Return the keys and histories that no order explains."""
        return [
            (key, history)
            for key, history in self._histories.items()
            if not is_linearizable(history, model, state)
        ]

    def __len__(self) -> int:
        return sum(map(len, self._histories.values()))


class ThreadRecorder:
    """Notes one thread's calls."""

    def __init__(self, clock: itertools.count[int]) -> None:
        self._clock = clock
        self.calls: list[tuple[Hashable, Call]] = []

    def __call__(
        self, key: Hashable, name: str, argument: Any, function: Callable[[], Any]
    ) -> Any:
        start = next(self._clock)
        result = function()
        end = next(self._clock)
        self.calls.append((key, Call(name, argument, result, start, end)))
        return result
