"""Check the stress tests: break the extension in the ways they name, and see them fail.

Each stress test's docstring ends in a line "Mutants: one, two." The names are those of
csrc/mutants.py, or of the few below, which break the layer between the core and Python.
For each, a copy of the project is broken, built and put before the plain one; the file
must then fail, crash or hang.

    python stress/mutate.py [PART OF A NAME ...]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STRESS = Path(__file__).resolve().parent
ROOT = STRESS.parent
sys.path.insert(0, str(ROOT / "csrc"))

from mutants import MUTANTS  # noqa: E402
from mutants_base import Mutant  # noqa: E402

COPIED = ("csrc", "ftbus", "setup.py", "pyproject.toml", "README.md", "LICENSE")
ROUNDS = 5  # of a test that races
# Without a mutant a test takes this long at most; with one, it hangs if it takes so
# many times as long as without, and some seconds.
LIMIT_S = 600.0
HANG_FACTOR = 4.0
HANG_S = 30.0

CLAIM = "if (!ftb_cas_acq_rel(&handler->state, &active, FTB_HANDLER_SPENT)) {"
PY_MUTANTS = (
    Mutant(
        "py-once-claimed-twice",
        "py/special.c",
        CLAIM,
        "active = ftb_load_acquire(&handler->state);\n"
        "    bool is_mine = active == FTB_HANDLER_ACTIVE;\n"
        "    for (int i = 0; i < 100000 && is_mine; i++) {\n"
        "        (void)ftb_load_acquire(&handler->state);\n"
        "    }\n"
        "    if (is_mine) {\n"
        "        ftb_store_release(&handler->state, FTB_HANDLER_SPENT);\n"
        "    } else {",
        ("stress",),
    ),
    Mutant(
        "py-cancel-waits-for-nobody",
        "py/subscription.c",
        "if (wait && wait_quiet(self) < 0) {",
        "if (wait > 1 && wait_quiet(self) < 0) {",
        ("stress",),
    ),
    Mutant(
        "py-map-replace-unchecked",
        "py/striped_map_core.c",
        "is_swapped = ftb_cas_seq_cst(&entry->value, &found, value); /* (6) */",
        "for (int i = 0; i < 20000; i++) {\n"
        "            (void)ftb_load_acquire(&entry->value);\n"
        "        }\n"
        "        found = ftb_exchange_seq_cst(&entry->value, value);\n"
        "        is_swapped = found != NULL;",
        ("stress",),
    ),
    Mutant(
        "py-map-drops-inside-a-drop",
        "py/striped_map_drop.c",
        "is_dropping_local = true;",
        "is_dropping_local = false;",
        ("stress",),
    ),
    Mutant(
        "py-failed-subscribe-kept",
        "py/subscription.c",
        "if (handler_fill(self->handler, callable, original) < 0) {\n"
        "        Py_DECREF(self);\n",
        "if (handler_fill(self->handler, callable, original) < 0) {\n",
        ("stress",),
    ),
    Mutant(
        "py-failure-counted-twice",
        "py/special.c",
        "delivery->failed_n++;",
        "delivery->failed_n += 2;",
        ("stress",),
    ),
    Mutant(
        "py-dropped-event-kept",
        "py/worker.c",
        "while (e->bus == bus && ftb_pool_evict_behind(",
        "while (e->bus == NULL && ftb_pool_evict_behind(",
        ("stress",),
    ),
    Mutant(
        "py-context-not-left",
        "py/context.c",
        "if (PyContext_Exit(entered->context) < 0) {",
        "if (PyErr_Occurred()) {",
        ("stress",),
    ),
)
ALL = {mutant.name: mutant for mutant in (*MUTANTS, *PY_MUTANTS)}


def stress_files() -> list[Path]:
    """Return the stress tests."""
    return sorted(STRESS.glob("test_*.py"))


def mutants_line(path: Path) -> str:
    """Return what a stress test's docstring says behind "Mutants:", on one line."""
    docstring = path.read_text().split('"""')[1]
    found = re.search(r"^Mutants: (.*)\Z", docstring.strip(), re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()).removesuffix(".") if found else ""


def named(path: Path) -> list[str]:
    """Return the mutants that a stress test names."""
    line = mutants_line(path)
    return [] if line.startswith("none, ") else line.split(", ")


def run(path: Path, library: Path, limit_s: float) -> str:
    """Run a stress test on what was built; return how it failed, or nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", "--timeout", f"{limit_s:.0f}"]
    command += [f"--count={ROUNDS}", str(path)]
    variables = {"FTBUS_LIB": str(library), "PYTHONPATH": str(library)}
    settings = {"PYTHONSAFEPATH": "1", "PYTHONMALLOC": "mimalloc_debug"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **variables, **settings},
            capture_output=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode > 1:
        sys.exit(f"{path.name}: {done.stdout.decode()[-2000:]}{done.stderr.decode()}")
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    return "fails" if done.returncode else ""


def limit_of(path: Path, library: Path) -> float:
    """See a stress test pass without a mutant; return how long one may take with it."""
    start = time.monotonic()
    if found := run(path, library, LIMIT_S):
        sys.exit(f"{path.name}: {found} without any mutant")
    return HANG_S + HANG_FACTOR * (time.monotonic() - start)


def build(folder: Path, name: str) -> Path:
    """Build the extension in a copy of the project; return where to import it."""
    library = folder / name
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(library)],
        cwd=folder,
        env={**os.environ, "FTBUS_WERROR": "0"},
        check=True,
        capture_output=True,
    )
    return library


def jobs(parts: list[str]) -> Iterator[tuple[Mutant, list[Path]]]:
    """Yield the mutants that are wanted, each with the files that name it."""
    files: dict[str, list[Path]] = {}
    for path in stress_files():
        for name in named(path):
            files.setdefault(name, []).append(path)
    for name, paths in sorted(files.items()):
        if not parts or any(part in name for part in parts):
            yield ALL[name], paths


def main() -> int:
    """Run the mutants that the arguments choose; return the exit status."""
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="ftb-stress-mutants-") as name:
        folder = Path(name)
        for each in COPIED:
            source = ROOT / each
            if source.is_dir():
                ignored = shutil.ignore_patterns("build", "*.so", "__pycache__")
                shutil.copytree(source, folder / each, ignore=ignored)
            else:
                shutil.copy2(source, folder / each)
        wanted = list(jobs(sys.argv[1:]))
        library = build(folder, "whole")
        used = {path for _, paths in wanted for path in paths}
        limits_s = {path: limit_of(path, library) for path in sorted(used)}
        print(f"{len(used)} stress tests pass without a mutant", flush=True)
        for mutant, paths in wanted:
            target = folder / "csrc" / mutant.file
            text = target.read_text()
            target.write_text(mutant.apply(text))
            library = build(folder, "lib")
            for path in paths:
                start = time.monotonic()
                found = run(path, library, limits_s[path])
                survivors += not found
                took = time.monotonic() - start
                row = f"{mutant.name:28} {path.name:28} {found or 'SURVIVES':10}"
                print(f"{row} {took:5.1f} s", flush=True)
            target.write_text(text)
    print(f"{survivors} stress tests let a mutant pass")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
