"""The worker threads: starting, draining, closing."""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING

from ftbus import buffers, interrupts, topology
from ftbus.errors import InvalidOptionError

if TYPE_CHECKING:
    from ftbus.bus import EventBus
    from ftbus.coalescing import BatchHandler

# Handlers may recurse: below 1 MiB CPython's own recursion limit comes too late.
_STACK_BYTES_MIN = 1 << 20

_LATECOMERS_S = 1.0


def worker_count(workers: int | None) -> int:
    """Return the number of workers asked for, or one per usable core."""
    return (os.process_cpu_count() or 1) if workers is None else workers


def start_workers(bus: EventBus) -> None:
    """Start the threads, then make the pool. Caller holds bus._lock.

    In this order, because events that are queued need a worker, and a system that
    cannot start a thread must get no pool. An exception may come in from outside at
    every call, Ctrl-C for one: the workers stay if there is a pool by then.
    """
    process = os.getpid()
    gate = threading.Lock()  # let go by one call, which nothing interrupts half-way
    gate.acquire()
    threads: list[threading.Thread] = []
    cores = topology.read_cores() if bus._numa != "off" else []
    places = topology.place_workers(bus._workers, bus._numa, cores)
    groups = (places.cache_of, places.node_of) if places else (None, None)

    def run(index: int) -> None:
        with gate:
            if not threads:  # the bus could not start
                return
        if places is not None:
            with suppress(OSError):  # a processor that has just gone
                os.sched_setaffinity(0, places.cpus[index])
        # An empty context: what the first poster has set is not the workers'.
        touches = places is not None and places.touches
        Context().run(bus._work, index, touches)

    try:
        for index in range(bus._workers):
            name = f"{bus.name}-worker-{index}"
            thread = threading.Thread(target=run, args=(index,), name=name, daemon=True)
            _start_with_stack(thread)
            threads.append(thread)
        if bus._threads:  # a finalizer that ran in between has posted
            threads = []
        else:
            bus._threads = threads
            bus._start_pool(*groups)
            if os.getpid() != process:  # a finalizer has forked: they are the parent's
                bus._is_forked = bus._after_fork_child()
    except BaseException:
        if not bus._is_started:
            bus._threads = threads = []
        raise
    finally:
        gate.release()


def _start_with_stack(thread: threading.Thread) -> None:
    """Start a thread on a stack of at least 1 MiB, whatever size is configured."""
    configured = threading.stack_size()
    if 0 < configured < _STACK_BYTES_MIN:
        threading.stack_size(_STACK_BYTES_MIN)
        try:
            thread.start()
        finally:
            threading.stack_size(configured)
    else:
        thread.start()


def check_timeout(timeout: float) -> None:
    """Raise InvalidOptionError if that is no number of seconds."""
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidOptionError("timeout", timeout, "0 or more seconds")


def drain(bus: EventBus, timeout: float | None) -> bool:
    """Wait for the queue, and then for the batches that are not complete."""
    is_drained = bus._drain(timeout)
    if not bus._batches:
        return is_drained
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while is_drained and (idle := [each for each in _batches(bus) if each.is_idle]):
        if bus._closing:
            return True  # close() handles them
        if time.monotonic() >= deadline:
            return False
        for batch in idle:
            batch.queue_flush()
        left = deadline - time.monotonic()
        is_drained = bus._drain(None if left == math.inf else max(0.0, left))
    return is_drained


def _batches(bus: EventBus) -> list[BatchHandler]:
    with bus._lock:
        return list(bus._batches)


def close(bus: EventBus, *, drain: bool, timeout: float) -> int:
    """Drain, stop and release a bus; return the number of events left."""
    check_timeout(timeout)
    deadline = time.monotonic() + timeout
    with bus._lock:
        is_first = not bus._closing
        bus._closing = True
    if bus._timers is not None:
        bus._timers.stop()
    bus._close_pool()
    if drain:
        bus._drain(timeout)
        for batch in _batches(bus):
            if time.monotonic() < deadline:
                batch.flush(deadline)
    bus._stop_pool()
    left = bus._drop_queued()
    with bus._lock:
        bus._has_ended = True
    left += sum(batch.discard() for batch in _batches(bus))
    stuck = _join(bus, deadline)
    left += bus._drop_queued()  # what a running partition held back before
    if not stuck and not bus._is_forked:
        left += _drop_latecomers(bus)
    left += bus._unstarted()  # what this thread took together with its own event
    bus._clear_handlers()
    with bus._lock:
        sinks = list(bus._sinks)
    for sink in sinks:
        sink.end()
    if bus._handles:
        bus._handles.clear()
    if is_first:
        buffers._report_bus(bus)
    if bus._is_forked:
        return 0
    return left + bus.stats(max_keys=0).pending if stuck else left


def _drop_latecomers(bus: EventBus) -> int:
    """Drop what was admitted before the close, but is being put into the queue now.

    A thread between the two was interrupted for a moment; its event must not stay.
    """
    deadline = time.monotonic() + _LATECOMERS_S
    pause = threading.Event()
    left = 0
    while bus._pool_stats()["queued"] and time.monotonic() < deadline:
        left += bus._drop_queued()
        pause.wait(0.001)
    return left


def _join(bus: EventBus, deadline: float) -> bool:
    """Wait for the workers to end; return whether one has not.

    A worker does not wait for itself, nor for others that are closing the bus: they may
    be waiting here for this one.
    """
    me = threading.current_thread()
    with bus._lock:
        others = bus._threads
        if me in others:
            bus._closers.add(me)
            others = [thread for thread in others if thread not in bus._closers]
    try:
        for thread in others:
            interrupts.join(thread, deadline - time.monotonic())
        return any(thread.is_alive() for thread in others)
    finally:
        with bus._lock:
            bus._closers.discard(me)
