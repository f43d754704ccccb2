"""Faults: memory that cannot be had, and payloads of every size.

Hunts for a reference that is lost or given up twice on the way out of a failed call,
for a handler that is half subscribed, for a lock that is kept, for sizes whose sum
overflows, and for payloads that are copied.
Mutants: arena-limit-of-one, py-failed-subscribe-kept.
"""

import os
import sys
import sysconfig
from typing import Any

import pytest
from builds import IS_INSTRUMENTED
from nomemory import CALLS, LEFT_OUT, Call
from stressing import WAIT, counts

import ftbus
from ftbus import ArenaLimitError, Buffer, BufferPool, EventBus
from ftbus.testing import no_leaks

needs_hooks = pytest.mark.skipif(
    sysconfig.get_config_var("TEST_MODULES") != "yes",
    reason="this interpreter was built without _testcapi, which makes memory fail",
)
not_when_checked = pytest.mark.skipif(
    IS_INSTRUMENTED or "debug" in os.environ.get("PYTHONMALLOC", ""),
    reason="what CPython frees twice is filled there, and ends the process earlier",
)
CPYTHON_CRASHES = sysconfig.get_config_var("Py_GIL_DISABLED") and sys.version_info < (
    3,
    14,
)
CRASHING = {"BusExecutor.map"}
frees_twice = pytest.mark.skipif(
    not CPYTHON_CRASHES,
    reason="PyList_New does so without a GIL, and in 3.14 (gh-118331) no more",
)
starts_a_process = pytest.mark.thread_unsafe(reason="starts a process")


@needs_hooks
@starts_a_process
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_allocation_failures_leave_the_bus_usable(python: Any, call: Call) -> None:
    if call.name in CRASHING and CPYTHON_CRASHES:
        pytest.skip("Executor.map's own list displays crash: see the test of that")
    done = python(call.program(), "-W", "ignore")
    assert (done.returncode, done.stderr) == (0, "")
    print(f"{call.name}: {done.stdout.strip()} calls raised MemoryError")
    counts.add(faults=int(done.stdout))


def test_every_public_call_is_swept_over() -> None:
    swept = {call.name.partition(" ")[0] for call in CALLS} | LEFT_OUT.keys()
    kinds = [EventBus, ftbus.Topic, ftbus.Subscription, ftbus.StripedMap, Buffer]
    public = {
        f"{kind.__name__}.{name}"
        for kind in [*kinds, BufferPool]
        for name in dir(kind)
        if callable(getattr(kind, name)) and not name.startswith("_")
    }
    assert public - swept == set()
    assert not LEFT_OUT.keys() & {call.name for call in CALLS}


LOSING = """
import os, sys, _testcapi
$setup
use()
before = sys.getrefcount(item)
$first
_testcapi.set_nomemory(0, 1)
try:
    use()
except MemoryError:
    pass
finally:
    _testcapi.remove_mem_hooks()
print(before - sys.getrefcount(item), flush=True)
os._exit(0)  # its end would find that the count is wrong
"""


def losing(setup: str, first: str = "") -> str:
    """Return a program that prints how many references a failing use() loses."""
    return LOSING.replace("$setup", setup).replace("$first", first)


MAKE_FUNCTION = """
def use():
    return lambda event: None
item = use.__code__.co_consts[1]
spare = [item] * 10
"""


@needs_hooks
@starts_a_process
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="3.14 may have it right")
def test_cpython_itself_gives_up_code_objects_when_memory_fails(python: Any) -> None:
    """Why the sweep holds spare references to them."""
    done = python(losing(MAKE_FUNCTION))
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


DISPLAY = """
class Item: pass
item = Item()
def use():
    return [item]
"""

MAP = """
import gc, sys, _testcapi
from concurrent.futures import Executor, Future
class Now(Executor):
    def submit(self, fn, /, *args):
        future = Future()
        future.set_result(fn(*args))
        return future
executor = Now()
def function(x):
    return x
def once():
    executor.map(function, (1, 2))
once()
gc.collect()
gc.disable()
lost = []
for first in range(300):
    before = sys.getrefcount(executor), sys.getrefcount(function)
    _testcapi.set_nomemory(first, first + 1)
    try:
        once()
    except (MemoryError, RuntimeError, SystemError):
        _testcapi.remove_mem_hooks()
    finally:
        _testcapi.remove_mem_hooks()
    after = sys.getrefcount(executor), sys.getrefcount(function)
    if after != before:
        lost.append((first, before, after))
gc.enable()
gc.collect()
print(lost)
"""


@needs_hooks
@not_when_checked
@starts_a_process
@frees_twice
def test_cpython_itself_frees_a_lists_items_twice_when_memory_fails(
    python: Any,
) -> None:
    """Why the sweep makes an empty list first: the display gives up another's item."""
    done = python(losing(DISPLAY))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    done = python(losing(DISPLAY, first="[]"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@needs_hooks
@not_when_checked
@starts_a_process
@frees_twice
def test_cpython_itself_crashes_when_memory_fails_in_executor_map(python: Any) -> None:
    """Why the sweep leaves that out: of its list displays one follows the other."""
    assert python(MAP).returncode < 0


def test_huge_payloads_are_handed_on_by_reference() -> None:
    payload = bytearray(1 << 20)
    with EventBus(workers=1) as bus:
        seen: list[Any] = []
        bus.on("key", seen.append)
        bus.emit("key", payload)
        bus.post("key", payload)
        assert bus.drain(WAIT)
        bus.call("key", payload).result(WAIT)
        assert all(each is payload for each in seen)
        assert len(seen) == 3


HUGE = """
import psutil, ftbus
payload = bytearray(1 << 30)  # pages that are never touched take no memory
bus = ftbus.EventBus(workers=2)
seen = []
bus.on("key", lambda event: seen.append(len(event)))
bus.post("key", payload)
assert bus.drain(60)
before = psutil.Process().memory_info().rss
for n in range(1000):
    bus.emit("key", payload)
    bus.post("key", payload, partition=n % 3)
assert bus.drain(60)
assert bus.call("key", payload).result(60) == [None]
grown = psutil.Process().memory_info().rss - before
assert bus.close() == 0
assert seen == [1 << 30] * 2002
print(grown >> 20)
"""


@starts_a_process
def test_a_gibibyte_by_reference_takes_no_memory(python: Any) -> None:
    done = python(HUGE)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) < 64
    counts.add(events=2002)


BLOCK_MAX = 1 << 39
SIZES_TOO_LARGE = [
    BLOCK_MAX + 1,
    sys.maxsize,
    sys.maxsize // 2,
    sys.maxsize - 64,
    2**63 - 1 - 4096,
    2**62,
    2**48,
]


@pytest.mark.parametrize("size", SIZES_TOO_LARGE)
@pytest.mark.parametrize("limit_bytes", [0, 1 << 20])
def test_sizes_beyond_the_largest_are_refused(size: int, limit_bytes: int) -> None:
    pool = BufferPool(limit_bytes=limit_bytes, name="huge")
    with pytest.raises(ValueError, match=str(BLOCK_MAX)):
        pool.allocate(size)
    assert pool.live == 0
    assert pool.stats().reserved_bytes < 1 << 20
    with pool.allocate(10) as buffer:
        assert len(buffer) == 10


def test_largest_size_is_refused_by_the_limit() -> None:
    pool = BufferPool(limit_bytes=1 << 20, name="huge")
    with pytest.raises(ArenaLimitError):
        pool.allocate(BLOCK_MAX)
    assert pool.live == 0


@pytest.mark.parametrize("size", [-1, -sys.maxsize, 2**63, 2**64, 2**200])
def test_sizes_that_are_none_are_refused(size: int) -> None:
    pool = BufferPool(name="none")
    with pytest.raises(ValueError, match="not in 0"):
        pool.allocate(size)
    assert pool.live == 0


def test_sizes_around_the_limit() -> None:
    with no_leaks():
        pool = BufferPool(limit_bytes=1 << 20, name="limited")
        assert len(pool.allocate(0)) == 0
        assert len(pool.allocate(1)) == 1
        with pytest.raises(ArenaLimitError) as caught:
            pool.allocate((1 << 20) + 1)
        assert caught.value.pool is pool
        held: list[Buffer] = []
        with pytest.raises(ArenaLimitError):
            while True:
                held.append(pool.allocate(1000))
        assert pool.stats().reserved_bytes <= 1 << 20
        assert len(held) > 500
        held.clear()
        pool.trim()
        assert pool.live == 0
        assert len(pool.allocate(1 << 19)) == 1 << 19


def test_events_as_large_as_the_pool_allows_are_encoded_once() -> None:
    event = "x" * (4 << 20)
    with no_leaks(), EventBus(workers=1) as bus:
        lengths: list[int] = []
        for _ in range(3):
            bus.on("key", lambda event: lengths.append(len(event)), encoded=True)
        bus.emit("key", event)
        bus.post("key", event)
        assert bus.drain(WAIT)
        assert lengths == [len(event) + 2] * 6
        assert bus.stats().encoded == 2
