"""Compile ftbus._core and ftbus._cabi; all else about the package is in pyproject.toml.

ftbus._cabi is the arena through cffi. Where cffi cannot be imported, or what it makes
does not compile, ftbus is built without it, and `import ftbus.cabi` says so.

FTBUS_WERROR=1 turns warnings into errors, which our own checks do and users, whose
compilers are newer than ours, should not; a build without ftbus._cabi is then an error
too. FTBUS_SAN=thread or address,undefined compiles the extensions with sanitizers, and
FTBUS_SAN=stores so that each store is a call, for benchmarks/shared_lines.py.
"""

import os
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDERS = ["csrc/arena", "csrc/core", "csrc/py"]
INCLUDE = "ftbus/include"  # made by the build, like the extensions
HEADERS = [
    "csrc/arena/ftb_arena.h",
    "csrc/arena/ftb_arena_api.h",
    "csrc/py/ftb_arena_import.h",
]
SANITIZERS = os.environ.get("FTBUS_SAN", "")
COPIES = ("memset", "memcpy", "memmove")  # what else stores
IS_STRICT = os.environ.get("FTBUS_WERROR") == "1"


class Build(build_ext):
    """Compile an extension's files side by side; put the public headers into place."""

    def run(self) -> None:
        """Build everything, the C source of ftbus._cabi first."""
        [cabi] = [each for each in self.extensions if each.name == "ftbus._cabi"]
        source = Path(self.build_temp, "_cabi.c")
        builder = runpy.run_path("ftbus/_cabi_build.py")
        try:
            builder["write_source"](Path(HEADERS[0]), source)
        except ImportError as error:
            if IS_STRICT:
                raise
            self.warn(f"ftbus.cabi is left out: {error}")
            self.extensions.remove(cabi)
            Path(self.get_ext_fullpath(cabi.name)).unlink(missing_ok=True)  # an old one
        cabi.sources = [str(source)]
        super().run()
        for header, copy in self.header_copies().items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(header, copy)

    def header_copies(self) -> dict[str, Path]:
        """Return where each public header goes."""
        folder = Path(INCLUDE if self.inplace else f"{self.build_lib}/{INCLUDE}")
        return {header: folder / Path(header).name for header in HEADERS}

    def get_outputs(self) -> list[str]:
        """Return all files that are made; an installer asks for them."""
        return [*super().get_outputs(), *map(str, self.header_copies().values())]

    def build_extensions(self) -> None:
        """Build with a compiler whose compile method uses every core."""
        compile_serially = self.compiler.compile

        def compile_each(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = pool.map(lambda s: compile_serially([s], **options), sources)
                return [name for names in compiled for name in names]

        self.compiler.compile = compile_each
        super().build_extensions()


def compile_flags() -> list[str]:
    """Return the compiler's flags for this environment."""
    flags = ["-std=c11", "-O3", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # CPython's slots and tables leave parameters unused and fields out by design.
    flags += ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]
    if IS_STRICT:
        flags.append("-Werror")
    if SANITIZERS == "stores":
        # Nothing may take it for ThreadSanitizer, whose calls are only borrowed.
        flags += ["-fsanitize=thread", "-U__SANITIZE_THREAD__", "-O1"]
        flags += ["-Wno-maybe-uninitialized"]
        flags += [f"-fno-builtin-{name}" for name in COPIES]
    elif SANITIZERS:
        # Instrumented code confuses gcc about what is initialized.
        flags += [f"-fsanitize={SANITIZERS}", "-Wno-maybe-uninitialized"]
        flags += ["-O1", "-fno-omit-frame-pointer"]
    return flags


def link_flags() -> list[str]:
    """Return the linker's flags for this environment."""
    if SANITIZERS == "stores":
        return [f"-Wl,--wrap={name}" for name in COPIES]
    return [f"-fsanitize={SANITIZERS}"] if SANITIZERS else []


def extension(name: str, sources: list[str], **options: Any) -> Extension:
    """Return an extension that is compiled as this environment asks."""
    return Extension(
        name,
        sources=sources,
        depends=[name for folder in FOLDERS for name in sorted(glob(f"{folder}/*.h"))],
        include_dirs=FOLDERS,
        extra_compile_args=compile_flags(),
        extra_link_args=link_flags(),
        **options,
    )


core = extension(
    "ftbus._core",
    [name for folder in FOLDERS for name in sorted(glob(f"{folder}/*.c"))],
    define_macros=[("_GNU_SOURCE", "1")],
)
cabi = extension(
    "ftbus._cabi",
    [],  # written by the build
    # A free-threaded Python has no limited API.
    define_macros=[("_GNU_SOURCE", "1"), ("_CFFI_NO_LIMITED_API", "1")],
    optional=not IS_STRICT,
)

setup(
    ext_modules=[core, cabi],
    cmdclass={"build_ext": Build},
    # Instrumented objects must not be linked into a plain build or the reverse.
    options={"build": {"build_base": f"build/{SANITIZERS or 'plain'}"}},
)
