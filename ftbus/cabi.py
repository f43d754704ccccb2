"""The arena's C interface through cffi: the memory that Buffers are made of.

``lib`` has the functions of ``ftb_arena.h``, whose comments say what each does, and
``ffi`` their types. They work on the arena that runs in this process: a block that C
filled becomes a Buffer without a copy, and the other way round.

What crosses is a handle: an int that carries one reference to a block, and is good
once. Whoever takes it owns that reference.

- C makes it of its own reference (``lib.ftb_handle_new(block, start, length)``), and
  may not use the block afterwards; ``buffer_from_handle`` makes a Buffer of it, which
  gives the reference back when it goes.
- ``handle_of`` makes it of a reference added for it; C takes it
  (``lib.ftb_handle_take``) and releases the block in the end (``ftb_block_release``).
  It may read the bytes, and write to them only if ``ftb_block_is_unique``.
- A handle that nobody takes keeps its memory; ``lib.ftb_handle_count()`` counts those.

No hot path goes through here. On a free-threaded Python 3.13 cffi turns the GIL on,
unless the process was started with PYTHON_GIL=0; so without that, importing this module
raises ImportError and leaves the GIL alone. ftbus itself never imports it. Native code
without cffi has the same interface: see ``ftbus.get_include()``.
"""

from __future__ import annotations

import sys
import sysconfig
from functools import partial
from typing import TYPE_CHECKING, Any

from ftbus import _core
from ftbus.buffers import (
    arena_address,
    arena_api,
    buffer_from_handle,
    default_pool,
    handle_of,
)

if TYPE_CHECKING:
    from ftbus.buffers import BufferPool

__all__ = ["arena_api", "arena_of", "buffer_from_handle", "ffi", "handle_of", "lib"]


def _would_turn_the_gil_on() -> bool:
    """Return whether importing cffi's backend has that effect in this process."""
    is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if sys.version_info >= (3, 14) or not is_free_threaded or sys._is_gil_enabled():
        return False
    return not _core.gil_is_kept_off()


if _would_turn_the_gil_on():
    raise ImportError(
        "ftbus.cabi needs cffi, and cffi turns the GIL on in a free-threaded Python "
        f"{sys.version_info.major}.{sys.version_info.minor}, for the whole process, "
        "unless it was started with the environment variable PYTHON_GIL=0 (or python "
        "-X gil=0): start it so; Python 3.14 does without",
        name=__name__,
        path=__file__,
    )

try:
    from ftbus._cabi import ffi, lib
except ModuleNotFoundError as error:
    missing = (
        "cffi is not installed: pip install cffi ('cffi<2' for Python 3.13)"
        if error.name == "_cffi_backend"
        else "this ftbus was built without it: install cffi and setuptools first, then "
        "ftbus from source with pip install --no-build-isolation"
    )
    raise ImportError(
        f"ftbus.cabi cannot be used: {missing}", name=__name__, path=__file__
    ) from error


def arena_of(pool: BufferPool = default_pool) -> Any:
    """Return a pool's ``ftb_arena_t *``, for ``lib.ftb_block_new`` and the like.

    The pool lives at least as long as the returned object. Raises TypeError if it is
    not a BufferPool. Thread-safe.
    """
    pointer = ffi.cast("ftb_arena_t *", arena_address(pool))
    return ffi.gc(pointer, partial(_let_go, pool))


def _let_go(pool: BufferPool, pointer: object) -> None:
    """Accept what was kept together until now."""
