"""Write the C source of ftbus._cabi; setup.py runs this where cffi can be imported.

cffi parses the public header itself, exactly the text between its two cdef marks, so
the binding cannot differ from what C code includes. cffi's setuptools integration is
left out: it refuses free-threaded builds, on which the plain source compiles.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MODULE = "ftbus._cabi"
BEGIN, END = "/* cdef: begin */", "/* cdef: end */"

# The names of ftb_arena.h go through the running arena's table (ftb_arena_api.h), which
# is found before cffi's own entry point makes the module. So there is never a `lib`
# without an arena, nor one with an arena of its own.
PREAMBLE = """
#include "ftb_arena_import.h"

FTB_ARENA_API_DEFINE;

#define PyInit__cabi cabi_init_by_cffi
"""
ENTRY_POINT = """
#undef PyInit__cabi
PyMODINIT_FUNC
PyInit__cabi(void)
{
    return ftb_arena_api_import() < 0 ? NULL : cabi_init_by_cffi();
}
"""


def declarations(header: Path) -> str:
    """Return the text between the cdef marks of ftb_arena.h.

    Raises ValueError if the header does not have each mark once, in this order.
    """
    text = header.read_text()
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"{header} needs one {BEGIN!r} and then one {END!r}")
    return inside


def write_source(header: Path, source: Path) -> None:
    """Write the module's C source, made from the header; leave one that is the same.

    Raises ImportError if there is no cffi; on a free-threaded Python 3.13 importing it
    turns the GIL of this process on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the GIL
        import cffi

        ffi = cffi.FFI()
    ffi.cdef(declarations(header))
    ffi.set_source(MODULE, PREAMBLE)
    source.parent.mkdir(parents=True, exist_ok=True)
    fresh = source.with_suffix(".new.c")
    ffi.emit_c_code(str(fresh))
    text = fresh.read_text() + ENTRY_POINT
    fresh.unlink()
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
