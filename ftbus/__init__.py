"""An in-process event bus and concurrent dispatcher for free-threaded Python."""

from ftbus._core import Key, Subscription
from ftbus.buffers import Buffer, BufferPool, PoolStats, default_pool
from ftbus.bus import EventBus, Topic
from ftbus.errors import (
    ArenaLimitError,
    BusClosedError,
    BusForkedError,
    CodecError,
    EmitDepthError,
    EventDroppedError,
    FtbusError,
    HandlerErrors,
    HandlerTypeError,
    InvalidOptionError,
    QueueFullError,
    UnknownCodecError,
    UnsupportedKeyError,
)
from ftbus.stats import BusStats, Counters, TopicStats, WorkerStats
from ftbus.striped_map import StripedMap

__version__ = "0.1.0"

__all__ = [
    "ArenaLimitError",
    "Buffer",
    "BufferPool",
    "BusClosedError",
    "BusForkedError",
    "BusStats",
    "CodecError",
    "Counters",
    "EmitDepthError",
    "EventBus",
    "EventDroppedError",
    "FtbusError",
    "HandlerErrors",
    "HandlerTypeError",
    "InvalidOptionError",
    "Key",
    "PoolStats",
    "QueueFullError",
    "StripedMap",
    "Subscription",
    "Topic",
    "TopicStats",
    "UnknownCodecError",
    "UnsupportedKeyError",
    "WorkerStats",
    "default_pool",
]
