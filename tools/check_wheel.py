"""Install a wheel into a clean venv and run README's example there.

python tools/check_wheel.py dist/ftbus-*.whl
python tools/check_wheel.py --installed    # ftbus is installed in this interpreter

The wheel must be of the interpreter that runs this. Prints what was checked; exits
with 1 and the reason if something is wrong.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "ftbus/__init__.py",
    "ftbus/py.typed",
    "ftbus/_core.pyi",
    "ftbus/include/ftb_arena.h",
    "ftbus/include/ftb_arena_api.h",
    "ftbus/include/ftb_arena_import.h",
)
# What must hold besides the example: the GIL stays off, the headers are there.
PROGRAM = """
import os, sys, sysconfig
was_on = sys._is_gil_enabled()
import ftbus
assert sys._is_gil_enabled() == was_on, "importing ftbus turns the GIL on"
assert os.listdir(ftbus.get_include()), "no C headers"
print("ftbus", ftbus.__version__, "in", os.path.dirname(ftbus.__file__))
"""


def example() -> tuple[str, str]:
    """Return README's example and what it prints."""
    text = (ROOT / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (output,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    return program, output


def check_files(wheel: Path) -> None:
    """Exit if the wheel lacks a file that users need, or has one of ours only."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    missing = [name for name in NEEDED if name not in names]
    if not any(name.startswith("ftbus/_core.") and ".so" in name for name in names):
        missing.append("ftbus/_core.*.so")
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    strays = [n for n in names if not re.match(r"ftbus(-[\w.+]+\.dist-info)?/", n)]
    if strays:
        sys.exit(
            f"{wheel.name} has {', '.join(strays)}, which is none of users' business"
        )


def check_installed(python: str) -> None:
    """Run the example in an interpreter that ftbus is installed in."""
    program, expected = example()
    with tempfile.TemporaryDirectory() as elsewhere:  # where ftbus/ is not
        print(run([python, "-I", "-W", "error", "-c", PROGRAM], elsewhere), end="")
        printed = run([python, "-I", "-W", "error", "-c", program], elsewhere)
    if printed != expected:
        sys.exit(f"README's example printed\n{printed}instead of\n{expected}")
    print("README's example prints what README says")


def run(command: list[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)[:300]}\n{done.stdout}{done.stderr}")
    return done.stdout


def main(arguments: list[str]) -> None:
    if arguments == ["--installed"]:
        check_installed(sys.executable)
        return
    if len(arguments) != 1 or not arguments[0].endswith(".whl"):
        sys.exit(__doc__)
    wheel = Path(arguments[0]).resolve()
    check_files(wheel)
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "venv", folder], folder)
        python = str(Path(folder, "bin", "python"))
        run([python, "-m", "pip", "install", "--quiet", str(wheel)], folder)
        check_installed(python)


if __name__ == "__main__":
    main(sys.argv[1:])
