"""A small server for one bus: a thread that accepts, and one for each connection.

What a client does can cost its own connection, never the bus: connections are bounded
in number, requests in size, and every wait for a client ends at a deadline. Nothing
here is called by the threads that emit or handle, and no lock is held over code of the
application's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import selectors
import socket
import threading
import time
import weakref
from abc import ABC, abstractmethod
from contextvars import Context
from typing import TYPE_CHECKING, Final

from ftbus.closing import Closing
from ftbus.errors import BusClosedError
from ftbus.registry import Registry

if TYPE_CHECKING:
    from ftbus.bus import EventBus

_JOIN_S: Final = 1.0
_LINGER_S: Final = 1.0
_LINGER_BYTES_MAX: Final = 1 << 20
_PAUSE_S: Final = 0.1  # after the system had no descriptor or thread for a connection
_ACCEPTS_PER_S: Final = 500  # who connects again and again waits, and takes no core

logger = logging.getLogger("ftbus")


class TimedReader(io.RawIOBase):
    """The bytes of a socket, until a deadline and up to a number of them.

    allow() sets both. Past the deadline a read raises TimeoutError, past the number it
    finds the end. Only the thread that serves the connection uses it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0
        self._left = 0

    def allow(self, seconds: float, size: int) -> None:
        """Let the next `size` bytes take `seconds`, all in all."""
        self._deadline = time.monotonic() + seconds
        self._left = size

    @property
    def is_spent(self) -> bool:
        """Whether all that was allowed has been read."""
        return self._left == 0

    def linger(self) -> None:
        """Send the end, and take a moment's worth of what else comes.

        A close with bytes unread would reset the connection, and the reply with it.
        """
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self.allow(_LINGER_S, _LINGER_BYTES_MAX)
            waste = bytearray(1 << 14)
            while self.readinto(waste):
                pass

    def readable(self) -> bool:
        """Return True: io.BufferedReader asks."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill the buffer with what is there; 0 at the end."""
        left = min(len(buffer), self._left)
        seconds = self._deadline - time.monotonic()
        if left == 0:
            return 0
        if seconds <= 0:
            raise TimeoutError("the client was too slow")
        self._connection.settimeout(seconds)
        n = self._connection.recv_into(memoryview(buffer)[:left])
        self._left -= n
        return n


class Server(Closing, ABC):
    """Serve connections until close(), bus.close() or the end of the bus.

    A subclass says what a connection gets: serve() in a thread of its own, refuse() if
    there are too many. A context manager. Any thread.
    """

    connections_max = 16

    def __init__(self, bus: EventBus, listener: socket.socket, name: str) -> None:
        """Start to accept on a socket that listens, and own it."""
        # The other way round the bus would live as long as the thread.
        self.bus = weakref.ref(bus, self._note_end_of_bus)
        self._listener = listener
        self._name = f"{bus.name}-{name}"
        self._process = os.getpid()
        self._lock = threading.RLock()  # a finalizer may end a server while it is held
        self._connections: dict[socket.socket, threading.Thread] = {}  # by the lock
        self._has_ended = False  # by the lock
        self._second_s = 0.0  # when counting began; by the accepting thread alone
        self._accepted = 0  # since then
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        listener.setblocking(False)
        self._thread = threading.Thread(
            # An empty context: what the caller has set is not the server's.
            target=Context().run,
            args=(self._accept_all,),
            name=self._name,
            daemon=True,
        )
        try:
            with bus._lock:
                if bus._closing:
                    raise BusClosedError(bus, f"serve {name}")
                bus._sinks.add(self)
            _servers.add(self)
            self._thread.start()
        except BaseException:
            self.close()
            raise

    # For subclasses

    @abstractmethod
    def serve(self, connection: socket.socket) -> None:
        """Talk to a client; afterwards the connection is closed."""

    def refuse(self, connection: socket.socket) -> None:
        """Tell a client, without waiting for it, that there are too many."""

    def clean_up(self) -> None:
        """Remove what was made beside the socket, once, in the process it is of."""

    # Ending

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._has_ended

    def close(self) -> None:
        """Accept nothing more, and break off what is being served. Idempotent.

        Waits a second at most for the threads.
        """
        with self._lock:
            is_first = not self._has_ended
            self._has_ended = True
            connections = list(self._connections.items())
        if is_first:
            if os.getpid() == self._process:
                self.clean_up()
            bus = self.bus()
            if bus is not None:
                with bus._lock:
                    bus._sinks.discard(self)
            self._wake()
        for connection, _ in connections:
            with contextlib.suppress(OSError):  # it was closed just now
                connection.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is None:  # it could not be started
            self._close_sockets()
        deadline = time.monotonic() + _JOIN_S
        for thread in (self._thread, *(thread for _, thread in connections)):
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    end = close  # the name by which bus.close() ends what it feeds

    def _wake(self) -> None:
        with self._lock:
            if self._waker.fileno() >= 0:
                try:  # needs nothing of this module, which may be gone at exit
                    self._waker.send(b"\0")
                except OSError:
                    return  # full: then it is awake

    def _note_end_of_bus(self, _: object) -> None:
        """Let the thread close: this is called wherever the last reference went."""
        if not self._has_ended:
            self._wake()

    def _close_sockets(self) -> None:
        with self._lock:  # nothing is sent to a descriptor that is another's by then
            self._waker.close()
        self._listener.close()
        self._woken.close()

    def _after_fork_child(self) -> None:
        """Leave the parent's connections alone; the descriptors here are copies."""
        self._lock = threading.RLock()
        self._has_ended = True
        self._close_sockets()
        for connection in self._connections:
            connection.close()
        self._connections = {}

    # The accepting thread

    def _accept_all(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._woken, selectors.EVENT_READ)
                while not self._has_ended and self.bus() is not None:
                    selector.select()
                    self._accept()
                    self._hold_back()
        finally:
            self.close()
            self._close_sockets()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError:
            self._pause(_PAUSE_S)  # no descriptor is left, perhaps for a moment only
            return
        thread = threading.Thread(
            target=Context().run,
            args=(self._serve, connection),
            name=f"{self._name}-connection",
            daemon=True,
        )
        with self._lock:
            is_wanted = (
                len(self._connections) < self.connections_max and not self._has_ended
            )
            if is_wanted:
                self._connections[connection] = thread
        if not is_wanted:
            connection.setblocking(False)
            with contextlib.suppress(OSError), connection:
                self.refuse(connection)
            return
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had
            self._drop(connection)
            self._pause(_PAUSE_S)

    def _hold_back(self) -> None:
        """Wait for the next second if enough clients were accepted in this one."""
        now_s = time.monotonic()
        if now_s >= self._second_s + 1.0:
            self._second_s, self._accepted = now_s, 0
        self._accepted += 1
        if self._accepted >= _ACCEPTS_PER_S:
            self._pause(self._second_s + 1.0 - now_s)

    def _pause(self, seconds: float) -> None:
        self._woken.settimeout(max(1e-3, seconds))
        with contextlib.suppress(TimeoutError):
            self._woken.recv(1)

    # The thread of a connection

    def _serve(self, connection: socket.socket) -> None:
        try:
            self.serve(connection)
        except OSError:
            return  # the client has gone, was too slow, or the server is ending
        except Exception:
            logger.exception("%s could not serve a client", self._name)
        finally:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.pop(connection, None)
        connection.close()


_servers: Registry[Server] = Registry()


def _after_fork_child() -> None:
    for server in _servers.live():
        server._after_fork_child()


os.register_at_fork(after_in_child=_after_fork_child)
