"""Compile _netcode, this example's own cffi module.

python build.py [FOLDER]   writes it to a folder, by default this one.
"""

import sys
import tempfile
from pathlib import Path

import cffi
from setuptools import Distribution, Extension

import ftbus

HERE = Path(__file__).resolve().parent


def build(folder: Path) -> None:
    """Compile the module into a folder."""
    header = (HERE / "netcode.h").read_text()
    ffi = cffi.FFI()
    ffi.cdef(header.partition("/* cdef: begin */")[2].partition("/* cdef: end */")[0])
    ffi.set_source("_netcode", '#include "netcode.h"')
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "_netcode.c")
        ffi.emit_c_code(str(source))
        extension = Extension(
            "_netcode",
            sources=[str(source), str(HERE / "netcode.c")],
            include_dirs=[str(HERE), ftbus.get_include()],
            define_macros=[("_CFFI_NO_LIMITED_API", "1")],  # free-threading has none
            extra_compile_args=[
                "-std=c11",
                "-Wall",
                "-Wextra",
                "-Wno-unused-parameter",
            ],
        )
        command = Distribution({"ext_modules": [extension]}).get_command_obj(
            "build_ext"
        )
        command.build_lib, command.build_temp = str(folder), temporary
        command.ensure_finalized()
        command.run()


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
