"""What Prometheus and OpenTelemetry share: names, and which keys get series."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from ftbus.labels import label
from ftbus.stats import merge_counters

if TYPE_CHECKING:
    from ftbus.bus import EventBus
    from ftbus.stats import BusStats, Counters, TopicStats

# Field of Counters: name, what it counts.
COUNTERS: Final = {
    "emitted": ("events_emitted", "Events emitted: handled in the emitting thread"),
    "posted": ("events_posted", "Events offered to the queue, accepted or not"),
    "delivered": ("events_delivered", "Posted events whose handlers have run"),
    "dropped": ("events_dropped", "Posted events given up by overflow policy or close"),
    "rejected": ("events_rejected", "Posted events refused with an exception"),
    "unheard": ("events_unheard", "Events for which no handler ran"),
    "handled": ("handler_calls", "Handler calls"),
    "failed": ("handler_failures", "Handler calls that raised"),
    "encoded": ("events_encoded", "Events encoded into bytes"),
    "shared": ("encodings_shared", "Handler calls given bytes that were there already"),
}

# Field of BusStats: name, what it is now.
GAUGES: Final = {
    "pending": ("events_pending", "Posted events not yet handled"),
    "queued": ("events_queued", "Events in the queue"),
    "queued_max": ("events_queued_max", "The most events seen in the queue at once"),
    "queue_size": ("queue_size", "How many events the queue holds"),
}

# Field of WorkerStats: name, what it counts, the factor to its unit.
WORKERS: Final = {
    "busy_ns": (
        "worker_busy_seconds",
        "Time between taking and finishing batches",
        1e9,
    ),
    "taken": ("worker_events", "Events taken from the queue", 1),
    "stolen": ("worker_events_stolen", "Events taken from another worker's ring", 1),
    "parks": ("worker_parks", "Times the worker went to sleep", 1),
}

# Field of Times: name, what was timed.
TIMES: Final = {
    "emit": ("emit_duration_seconds", "One emit, its handlers included (sampled)"),
    "wait": ("wait_duration_seconds", "Posted events: from post to handler (sampled)"),
    "handler": ("handler_duration_seconds", "One handler call (sampled)"),
    "encode": ("encode_duration_seconds", "Turning one event into bytes (sampled)"),
}

TYPES_MAX: Final = 50
"""Exception types with a series of their own; one per distinct type otherwise."""


class KeySeries:
    """The keys that have series of their own: `limit` at most, and for good.

    A free place goes to the key with the most traffic among those that have none. It
    keeps it, and what had no place when there was none left is counted in "(other)"
    from then on, so every series, "(other)" too, only grows. Keys of one label have a
    place each and one series together. Any thread.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Reading the figures may run finalizers, which may read them too.
        self._lock = threading.RLock()
        self._keys: dict[int, object] = {}  # by identity; by the lock

    def read(self, bus: EventBus) -> tuple[BusStats, dict[str, Counters]]:
        """Return the figures, and the counters by label.

        Those of the keys without series are summed.
        """
        with self._lock:  # the figures of two readers are not mixed up
            free = self._limit - len(self._keys)
            stats = bus._counters(free, self._keys.values())
            keys = [row.key for row in stats.topics if row.key is not None]
            self._keys.update({id(key): key for key in keys})
        return stats, _labelled(stats.topics)


def _labelled(topics: tuple[TopicStats, ...]) -> dict[str, Counters]:
    groups: dict[str, list[Counters]] = {}
    for row in topics:
        groups.setdefault(label(row.key), []).append(row)
    return {
        name: group[0] if len(group) == 1 else merge_counters(group)
        for name, group in groups.items()
    }
