"""The public surface: a sorted list, pinned here, and documented."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import ftbus

PUBLIC = [
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
BUS = [
    "acall",
    "add_observer",
    "call",
    "close",
    "closed",
    "drain",
    "emit",
    "emit_many",
    "every",
    "executor",
    "name",
    "off",
    "on",
    "once",
    "pin",
    "post",
    "post_later",
    "post_many",
    "remove_observer",
    "report",
    "reset_stats",
    "serve_dashboard",
    "serve_stats",
    "set_timing",
    "stats",
    "stream",
    "subscribe",
    "topic",
]
TOPIC = [
    "acall",
    "bus",
    "call",
    "emit",
    "emit_many",
    "every",
    "key",
    "on",
    "post",
    "post_later",
    "post_many",
    "stats",
    "stream",
    "subscribe",
]


def public_names(thing: object) -> list[str]:
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def test_public_names_are_pinned_and_sorted() -> None:
    assert ftbus.__all__ == PUBLIC == sorted(PUBLIC)
    assert all(hasattr(ftbus, name) for name in PUBLIC)


def test_nothing_else_is_public_but_modules() -> None:
    others = [
        name
        for name in public_names(ftbus)
        if name not in PUBLIC and not inspect.ismodule(getattr(ftbus, name))
    ]
    assert others == []


@pytest.mark.parametrize(
    ("kind", "names"), [(ftbus.EventBus, BUS), (ftbus.Topic, TOPIC)]
)
def test_methods_are_pinned(kind: type, names: list[str]) -> None:
    assert public_names(kind) == names


def test_everything_public_says_what_it_is() -> None:
    missing = []
    for name in PUBLIC:
        thing: Any = getattr(ftbus, name)
        members = public_names(thing) if inspect.isclass(thing) else []
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            members = []  # what Exception has is not ours to explain
        if not inspect.getdoc(thing):
            missing.append(name)
        missing += [
            f"{name}.{member}"
            for member in members
            if callable(getattr(thing, member))
            and not inspect.getdoc(getattr(thing, member))
        ]
    assert missing == []


def test_methods_written_in_c_have_signatures() -> None:
    for kind, names in ((ftbus.EventBus, BUS), (ftbus.Topic, TOPIC)):
        for name in names:
            method = getattr(kind, name)
            if callable(method):
                assert inspect.signature(method)


def test_modules_all_have_a_docstring_and_import() -> None:
    for info in pkgutil.iter_modules(ftbus.__path__):
        if info.name not in ("__main__", "cabi", "_cabi"):  # test_cabi.py has these
            assert importlib.import_module(f"ftbus.{info.name}").__doc__, info.name


def test_stub_of_the_core_names_what_the_core_has() -> None:
    from ftbus import _core

    stub = (Path(ftbus.__file__).parent / "_core.pyi").read_text()
    for name in public_names(_core):
        assert re.search(rf"^(def |class )?{name}\b", stub, re.MULTILINE), name
    for kind in ("Bus", "Topic", "Subscription"):
        for name in public_names(getattr(_core, kind)):
            assert f"def {name}(" in stub, f"{kind}.{name}"


def test_package_is_typed() -> None:
    assert (Path(ftbus.__file__).parent / "py.typed").exists()
