"""What becomes of a handler before the core sees it: weak and async ones."""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections import deque
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from ftbus import _core, coalescing
from ftbus.errors import HandlerTypeError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future

    from ftbus.bus import EventBus

    type Handler = Callable[[Any], Any]
    type _Entry = tuple[AsyncHandler, object, Context | None]


def prepare(
    bus: EventBus,
    key: object,
    handler: Handler,
    *,
    weak: bool,
    loop: asyncio.AbstractEventLoop | None,
    latest: coalescing.Latest = False,
    batch: tuple[int, float] | None = None,
) -> tuple[Handler, int]:
    """Return what the core should call for a handler, and its flags.

    Raises HandlerTypeError for what cannot be called, and InvalidOptionError for a weak
    handler that nothing else would keep alive.
    """
    if not callable(handler):
        raise HandlerTypeError(key, handler)
    is_coalescing = latest is not False or batch is not None
    if weak and is_coalescing:
        raise InvalidOptionError("weak", weak, "weak=False with latest or batch")
    target = handler
    if is_async(handler):
        if weak:
            raise InvalidOptionError("weak", weak, "weak=False for an async handler")
        target = AsyncHandler(bus, key, handler, loop_of(loop))
    if is_coalescing:
        wrapper = coalescing.prepare(bus, key, handler, target, latest, batch)
        if isinstance(target, AsyncHandler):
            target.subscribed = weakref.ref(wrapper)
        return wrapper, 0
    if target is not handler:
        return target, 0
    if loop is not None:
        raise InvalidOptionError("loop", loop, "loop only with an async handler")
    if not weak:
        return handler, 0
    _check_weak(handler)
    return handler, _core.WEAK


def loop_of(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """Return the loop asked for, or the one that is running here."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop
    if loop is None:
        with suppress(RuntimeError):
            return asyncio.get_running_loop()
    raise InvalidOptionError(
        "loop", loop, "an event loop, or register async handlers where one is running"
    )


def is_async(handler: object) -> bool:
    """Return whether calling the handler makes a coroutine."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 (an object with async __call__)
    )


def _check_weak(handler: Handler) -> None:
    """Refuse a weak handler that would be gone at once, or has no weak references."""
    target = (
        getattr(handler, "__self__", None) if inspect.ismethod(handler) else handler
    )
    name = getattr(target, "__qualname__", "")
    owner = getattr(target, "__self__", None) if inspect.isbuiltin(target) else None
    if owner is not None and not inspect.ismodule(owner):
        raise InvalidOptionError(
            "weak", handler, "weak=False: a built-in method is made anew each time"
        )
    if inspect.isfunction(target) and ("<lambda>" in name or "<locals>" in name):
        raise InvalidOptionError(
            "weak",
            handler,
            "weak=False: nothing else keeps a lambda or local function alive",
        )
    try:
        weakref.ref(target)
    except TypeError:
        raise InvalidOptionError(
            "weak",
            handler,
            f"weak=False: a {type(target).__name__} has no weak references",
        ) from None


class AsyncHandler:
    """Start an async handler on its event loop, whichever thread the event is in.

    Events that arrive before the loop gets to them share one wake-up.
    """

    __slots__ = ("__weakref__", "_bus", "_function", "_inbox", "_key", "subscribed")

    def __init__(
        self,
        bus: EventBus,
        key: object,
        function: Callable[[Any], Coroutine[Any, Any, Any]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._bus = weakref.ref(bus)
        self._key = key
        self._function = function
        self._inbox = _inbox_of(loop)
        # What the core calls, which counts the failures: this, or what calls this.
        self.subscribed: weakref.ref[Any] = weakref.ref(self)

    def __call__(self, event: object) -> None:
        """Queue the event for the loop; raises RuntimeError if the loop is closed."""
        context = copy_context()
        self._inbox.put(self, event, context if len(context) else None)

    def start(self, event: object) -> Future[Any]:
        """Run the handler on its loop; return a Future of its result."""
        coroutine = self._function(event)
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._inbox.loop)
        except BaseException:
            coroutine.close()
            raise

    async def run(self, event: object) -> None:
        """Run the handler; what it raises is counted and reported."""
        try:
            await self._function(event)
        except Exception as error:
            self.report(error)

    def count_failed(self) -> None:
        """Count a failure that came after the call had returned. Any thread."""
        bus = self._bus()
        if bus is not None:
            bus._count_failed(self._key, self.subscribed())

    def report(self, error: Exception) -> None:
        """Count a failure that nobody waits for, and hand it on."""
        bus = self._bus()
        if bus is not None:
            self.count_failed()
            bus._note_failure(error, self._key, self._function)
            bus._report_failure(error, self._key, self._function)

    def __repr__(self) -> str:
        return f"<async {self._function!r}>"


class _Inbox:
    """What is to be started on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.RLock()  # a finalizer may emit while it is held
        self._waiting: deque[_Entry] = deque()
        self._is_woken = False
        self._tasks: set[asyncio.Task[None]] = set()  # used by the loop's thread only

    def after_fork_child(self) -> None:
        """Make the lock new, whoever held it, and forget what waits for the parent."""
        self._lock = threading.RLock()
        self._waiting.clear()
        self._is_woken = False

    def put(
        self, handler: AsyncHandler, event: object, context: Context | None
    ) -> None:
        if self.loop.is_closed():  # a wake-up that it never got to must not hide that
            self._give_up()
            raise RuntimeError(f"{self.loop!r} is closed")
        entry = handler, event, context
        with self._lock:
            self._waiting.append(entry)
            must_wake = not self._is_woken
            self._is_woken = True
        if must_wake:
            try:
                self.loop.call_soon_threadsafe(self._run_waiting)
            except RuntimeError:
                self._give_up(but=entry)  # that is the caller's to report
                raise

    def _take_waiting(self) -> list[_Entry]:
        with self._lock:
            batch = list(self._waiting)
            self._waiting.clear()
            self._is_woken = False
        return batch

    def _give_up(self, but: _Entry | None = None) -> None:
        """Report what the loop was to run when it was closed."""
        for entry in self._take_waiting():
            if entry is not but:
                error = RuntimeError(f"{self.loop!r} was closed before it ran")
                entry[0].report(error)

    def _run_waiting(self) -> None:
        for handler, event, context in self._take_waiting():
            # None would be the context of whoever woke the loop.
            task = self.loop.create_task(
                handler.run(event), context=context or Context()
            )
            self._tasks.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._tasks.discard)


# Weak on both sides, as an inbox refers to its loop: it lives as long as its handlers.
_inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[_Inbox]] = (
    weakref.WeakKeyDictionary()
)
_inboxes_lock = threading.RLock()


def _inbox_of(loop: asyncio.AbstractEventLoop) -> _Inbox:
    with _inboxes_lock:
        reference = _inboxes.get(loop)
        inbox = reference() if reference is not None else None
        if inbox is None:
            inbox = _Inbox(loop)
            _inboxes[loop] = weakref.ref(inbox)
        return inbox


def after_fork_child() -> None:
    """Forget the event loops: their threads stayed in the parent process."""
    global _inboxes, _inboxes_lock
    for reference in list(_inboxes.values()):
        if (inbox := reference()) is not None:
            inbox.after_fork_child()
    _inboxes = weakref.WeakKeyDictionary()
    _inboxes_lock = threading.RLock()
