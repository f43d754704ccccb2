"""Compile ftbus._core; everything else about the package is in pyproject.toml.

FTBUS_WERROR=1 turns warnings into errors, which our own checks do and users, whose
compilers are newer than ours, should not. FTBUS_SAN=thread or address,undefined
compiles the extension with sanitizers.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDERS = ["csrc/arena", "csrc/core", "csrc/py"]
SANITIZERS = os.environ.get("FTBUS_SAN", "")


class ParallelBuild(build_ext):
    """Compile the source files of one extension side by side."""

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
    if os.environ.get("FTBUS_WERROR") == "1":
        flags.append("-Werror")
    if SANITIZERS:
        # Instrumented code confuses gcc about what is initialized.
        flags += [f"-fsanitize={SANITIZERS}", "-Wno-maybe-uninitialized"]
        flags += ["-O1", "-fno-omit-frame-pointer"]
    return flags


core = Extension(
    "ftbus._core",
    sources=[name for folder in FOLDERS for name in sorted(glob(f"{folder}/*.c"))],
    depends=[name for folder in FOLDERS for name in sorted(glob(f"{folder}/*.h"))],
    include_dirs=FOLDERS,
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=compile_flags(),
    extra_link_args=[f"-fsanitize={SANITIZERS}"] if SANITIZERS else [],
)

setup(
    ext_modules=[core],
    cmdclass={"build_ext": ParallelBuild},
    # Instrumented objects must not be linked into a plain build or the reverse.
    options={"build": {"build_base": f"build/{SANITIZERS or 'plain'}"}},
)
