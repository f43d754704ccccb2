"""An in-process event bus and concurrent dispatcher for free-threaded Python."""

from os import path as _path

try:
    from ftbus._core import Key, Subscription
except ModuleNotFoundError as _error:
    if _error.name != "ftbus._core":
        raise
    raise ModuleNotFoundError(
        f"{_path.dirname(__file__)} has no compiled core for this Python: if it is the "
        "source, run from another folder, or compile it here by pip install -e .",
        name=_error.name,
    ) from None
from ftbus.buffers import Buffer, BufferPool, PoolStats, default_pool
from ftbus.bus import EventBus
from ftbus.errors import (
    AddressInUseError,
    ArenaLimitError,
    BusClosedError,
    BusForkedError,
    CodecError,
    DeadlockError,
    EmitDepthError,
    EventDroppedError,
    ExecutorBrokenError,
    ExecutorShutdownError,
    FtbusError,
    HandleError,
    HandlerErrors,
    HandlerTypeError,
    InvalidOptionError,
    QueueFullError,
    StatsUnstableError,
    StreamFullError,
    UnknownCodecError,
    UnsupportedKeyError,
)
from ftbus.histograms import Histogram
from ftbus.observers import Observer
from ftbus.stats import (
    BusStats,
    Counters,
    ErrorStats,
    HandlerStats,
    LookupStats,
    PartitionStats,
    RateStats,
    Times,
    TopicStats,
    WorkerStats,
)
from ftbus.striped_map import StripedMap
from ftbus.timers import Timer
from ftbus.topic import Topic

__version__ = "0.1.0"

__all__ = [
    "AddressInUseError",
    "ArenaLimitError",
    "Buffer",
    "BufferPool",
    "BusClosedError",
    "BusForkedError",
    "BusStats",
    "CodecError",
    "Counters",
    "DeadlockError",
    "EmitDepthError",
    "ErrorStats",
    "EventBus",
    "EventDroppedError",
    "ExecutorBrokenError",
    "ExecutorShutdownError",
    "FtbusError",
    "HandleError",
    "HandlerErrors",
    "HandlerStats",
    "HandlerTypeError",
    "Histogram",
    "InvalidOptionError",
    "Key",
    "LookupStats",
    "Observer",
    "PartitionStats",
    "PoolStats",
    "QueueFullError",
    "RateStats",
    "StatsUnstableError",
    "StreamFullError",
    "StripedMap",
    "Subscription",
    "Timer",
    "Times",
    "Topic",
    "TopicStats",
    "UnknownCodecError",
    "UnsupportedKeyError",
    "WorkerStats",
    "default_pool",
    "get_include",
]


def get_include() -> str:
    """Return the folder of ftbus's C headers, for code that fills pooled buffers.

    It holds ftb_arena.h, ftb_arena_api.h and ftb_arena_import.h; the first says what
    each function does, the second how code in another shared object calls them.
    """
    return _path.join(_path.dirname(__file__), "include")
