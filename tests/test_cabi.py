"""ftbus.cabi: refused where it would turn the GIL on; elsewhere the whole arena.

The tests of the arena's functions are in arena_functions.py. Where they cannot run in
this process, they run in one of their own, started with PYTHON_GIL=0.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import GIL_OFF, IS_GIL_AT_STAKE, output_of

from ftbus import _cabi_build

ROOT = Path(__file__).parent.parent
FUNCTIONS = Path(__file__).parent / "arena_functions.py"
IS_KEPT_OFF = "0" in (sys._xoptions.get("gil"), os.environ.get("PYTHON_GIL"))
IS_REFUSED_HERE = IS_GIL_AT_STAKE and not sys._is_gil_enabled() and not IS_KEPT_OFF

pytestmark = pytest.mark.thread_unsafe(reason="starts a process")
where_the_gil_is_at_stake = pytest.mark.skipif(
    not IS_GIL_AT_STAKE, reason="importing cffi does not touch the GIL here"
)

if not IS_REFUSED_HERE:
    pytest.register_assert_rewrite("arena_functions")
    from arena_functions import *  # noqa: F403


@pytest.mark.skipif(not IS_REFUSED_HERE, reason="they run in this process")
def test_the_arena_function_by_function() -> None:
    options = ("-q", "-s", "-p", "no:xdist")
    command = ("-P", "-m", "pytest", *options, FUNCTIONS)
    assert " passed" in output_of(*command, folder=ROOT, within=600, **GIL_OFF)


IMPORT = """
import sys
try:
    import ftbus.cabi
except ImportError as error:
    print(error.name, error)
print(sys._is_gil_enabled(), *sorted({"cffi", "_cffi_backend"} & sys.modules.keys()))
"""


@where_the_gil_is_at_stake
@pytest.mark.parametrize(
    ("prelude", "options", "variable"),
    [
        ("", (), ""),
        ("import os; os.environ['PYTHON_GIL'] = '0'", (), ""),
        ("", ("-E",), "0"),
    ],
)
def test_refuses_rather_than_turn_the_gil_on(
    python: Callable[..., Any], prelude: str, options: tuple[str, ...], variable: str
) -> None:
    done = python(prelude + IMPORT, "-W", "error", *options, PYTHON_GIL=variable)
    assert done.returncode == 0
    assert done.stdout.startswith("ftbus.cabi ftbus.cabi needs cffi, and cffi turns")
    assert "PYTHON_GIL=0" in done.stdout
    assert done.stdout.endswith("\nFalse\n")
    assert done.stderr == ""


@where_the_gil_is_at_stake
@pytest.mark.parametrize(
    ("options", "variable"), [((), "0"), (("-X", "gil=0"), ""), (("-X", "gil=0"), "1")]
)
def test_works_where_the_gil_is_kept_off(
    python: Callable[..., Any], options: tuple[str, ...], variable: str
) -> None:
    done = python(IMPORT, "-W", "error", *options, PYTHON_GIL=variable)
    assert (done.stdout, done.stderr) == ("False _cffi_backend\n", "")


@where_the_gil_is_at_stake
def test_works_where_the_gil_is_wanted(python: Callable[..., Any]) -> None:
    done = python(IMPORT, "-W", "error", PYTHON_GIL="1")
    assert (done.stdout, done.stderr) == ("True _cffi_backend\n", "")


@pytest.mark.parametrize(
    ("missing", "advice"),
    [("_cffi_backend", "pip install cffi"), ("ftbus._cabi", "built without it")],
)
def test_says_what_is_missing(
    python: Callable[..., Any], missing: str, advice: str
) -> None:
    prelude = f"import sys; sys.modules[{missing!r}] = None"
    done = python(prelude + IMPORT, **GIL_OFF)
    assert done.stdout.startswith("ftbus.cabi ftbus.cabi cannot be used: ")
    assert advice in done.stdout
    assert done.stderr == ""


OTHER_TABLE = """
import ctypes, struct
from ftbus import _core
make = ctypes.pythonapi.PyCapsule_New
make.restype = ctypes.py_object
make.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
head = struct.pack("II", {version}, {size_bytes})
table = ctypes.create_string_buffer(head + bytes(500))
_core._arena_api = make(ctypes.addressof(table), b"ftbus._core._arena_api", None)
"""


@pytest.mark.parametrize(("version", "size_bytes"), [(2, 500), (1, 100), (0, 0)])
def test_another_version_of_the_table_is_refused(
    python: Callable[..., Any], version: int, size_bytes: int
) -> None:
    prelude = OTHER_TABLE.format(version=version, size_bytes=size_bytes)
    done = python(prelude + IMPORT, **GIL_OFF)
    assert "compiled with headers of another ftbus" in done.stdout
    assert done.returncode == 0


class TestBuild:
    def test_cffi_parses_the_text_between_the_marks(self, tmp_path: Path) -> None:
        header = tmp_path / "a.h"
        begin, end = _cabi_build.BEGIN, _cabi_build.END
        header.write_text(f"#include <a>\n{begin}\nint f(void);\n{end}\n#endif\n")
        assert _cabi_build.declarations(header) == "\nint f(void);\n"

    @pytest.mark.parametrize(
        "marks",
        [
            (),
            (_cabi_build.BEGIN,),
            (_cabi_build.END,),
            (_cabi_build.END, _cabi_build.BEGIN),
            (_cabi_build.BEGIN, _cabi_build.BEGIN, _cabi_build.END),
            (_cabi_build.BEGIN, _cabi_build.END, _cabi_build.END),
        ],
    )
    def test_other_marks_are_an_error(
        self, tmp_path: Path, marks: tuple[str, ...]
    ) -> None:
        header = tmp_path / "a.h"
        header.write_text("\n".join(marks))
        with pytest.raises(ValueError, match=r"a\.h needs one"):
            _cabi_build.declarations(header)

    def test_without_cffi_the_core_is_built_alone(
        self, python: Callable[..., Any], tmp_path: Path
    ) -> None:
        program = (
            "import runpy, sys, setuptools\n"
            "from setuptools.command.build_ext import build_ext\n"
            "sys.modules['cffi'] = None\n"
            "setuptools.setup = lambda **options: given.update(options)\n"
            "given = {}\n"
            "runpy.run_path('setup.py')\n"
            "build_ext.run = lambda self: print(*(e.name for e in self.extensions))\n"
            "command = given['cmdclass']['build_ext'](\n"
            "    setuptools.Distribution({'ext_modules': given['ext_modules']}))\n"
            f"command.build_lib = command.build_temp = {str(tmp_path)!r}\n"
            "command.ensure_finalized()\n"
            "from pathlib import Path\n"
            "old = Path(command.get_ext_fullpath('ftbus._cabi'))\n"
            "old.parent.mkdir(parents=True, exist_ok=True)\n"
            "old.touch()\n"
            "command.run()\n"
            "print(old.exists())\n"
        )
        done = python(program, FTBUS_WERROR="0")
        assert done.stdout == "ftbus._core\nFalse\n", done.stderr
        assert "ftbus.cabi is left out" in done.stderr
        copies = sorted(path.name for path in tmp_path.rglob("*.h"))
        assert copies == ["ftb_arena.h", "ftb_arena_api.h", "ftb_arena_import.h"]

        strict = python(program, FTBUS_WERROR="1")
        assert strict.returncode != 0
        assert "ModuleNotFoundError: import of cffi halted" in strict.stderr

    def test_the_extra_and_the_group_agree(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        extra = project["project"]["optional-dependencies"]["cabi"]
        assert extra == project["dependency-groups"]["cabi"]
