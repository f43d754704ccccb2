"""Check the checkers: break the C core in every listed way and see the checks fail.

A mutant is one replacement of text in one file, in a copy of this folder: mostly a
memory order by a weaker one. Each check named with it must then fail: a model
(models/*.cpp, needs relacy-dev), or a test (tests/test_*.c, instrumented if the check
says so), which may also hang. The program fails if a check lets a mutant pass, if the
text to replace is not found, or if a memory order has neither a mutant nor a reason in
mutants_orders.py.

    python3 mutants.py [--shard K/N] [PART OF A NAME ...]
    python3 mutants.py --syntax        only see that every mutant compiles
    python3 mutants.py --orders        look for orders without a mutant, run nothing
    python3 mutants.py --table         print MUTANTS.md

To add a mutant, add it to the mutants_*.py that its file's others are in;
models/weaker.h has the orders that the code itself does not use.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mutants_arena import ARENA
from mutants_base import Mutant
from mutants_counters import COUNTERS
from mutants_orders import KEPT, MIRRORED, accesses, order_changed, uncovered
from mutants_queue import QUEUE
from mutants_readers import READERS
from mutants_topics import TOPICS

FOLDER = Path(__file__).resolve().parent
COPIED = ("Makefile", "arena", "core", "models", "tests")
# Without a mutant a test takes this long at most, on a busy machine too. With one, it
# hangs if it takes so many times as long as without, and some seconds.
TEST_LIMIT_S = 300.0
HANG_FACTOR = 4.0
HANG_S = 15.0
# relacy itself reports a deadlock, so a model that takes this long says nothing.
MODEL_LIMIT_S = 900.0
INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)


class Check(NamedTuple):
    """A program that the Makefile builds."""

    name: str
    target: str
    options: tuple[str, ...] = ()


def model(name: str) -> Check:
    """Return the check that searches models/<name>.cpp."""
    return Check(f"model {name}", f"build/models/{name}")


def c_test(name: str, san: str = "") -> Check:
    """Return the check that runs tests/test_<name>.c, maybe instrumented."""
    folder = san.replace(",", "-") or "plain"
    return Check(
        f"test_{name} {san}".rstrip(), f"build/{folder}/test_{name}", (f"SAN={san}",)
    )


def check_of(name: str) -> Check:
    """Return the check of that name, as the report prints it."""
    kind, _, rest = name.partition(" ")
    return model(rest) if kind == "model" else c_test(kind.removeprefix("test_"), rest)


MUTANTS: tuple[Mutant, ...] = (*QUEUE, *READERS, *TOPICS, *COUNTERS, *ARENA)


def make(folder: Path, target: str, *options: str) -> str:
    """Make the target in a copy of this folder; return what went wrong, or nothing."""
    # WARN: a mutant may be so broken that the compiler sees it; the check shall.
    command = ["make", "-C", str(folder), "-s", "WARN=-w", *options, target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def notices(folder: Path, check: Check, limit_s: float) -> str:
    """Run the check's program; return how it failed, or nothing if it passed."""
    is_model = check.name.startswith("model ")
    options = {f"{san}SAN_OPTIONS": "halt_on_error=1" for san in ("T", "A", "UB")}
    try:
        done = subprocess.run(
            [str(folder / check.target)],
            capture_output=True,
            timeout=limit_s,
            env={**os.environ, **options},
        )
    except subprocess.TimeoutExpired:
        if is_model:
            sys.exit(f"{check.name}: no answer in {limit_s:.0f} s")
        return "hangs"
    if done.returncode == 0:
        return ""
    return "fails" if done.returncode > 0 else f"signal {-done.returncode}"


@cache
def included(base: Path, source: str) -> set[str]:
    """Return the files that a source includes, itself too, relative to `base`."""
    found: set[str] = set()
    missing = [base / source]
    while missing:
        path = missing.pop()
        found.add(str(path.relative_to(base)))
        for name in INCLUDE.findall(path.read_text()):
            for folder in (path.parent, *(base / each for each in COPIED[1:])):
                file = (folder / name).resolve()
                if file.is_file() and str(file.relative_to(base)) not in found:
                    missing.append(file)
                    break
    return found


def has_relacy() -> bool:
    """Return whether models can be compiled here."""
    compiler = [os.environ.get("CXX", "c++"), "-E", "-x", "c++", "-"]
    source = b"#include <relacy/relacy.hpp>"
    return not subprocess.run(compiler, input=source, capture_output=True).returncode


def syntax_targets(base: Path, mutant: Mutant, with_models: bool) -> Iterator[str]:
    """Yield what to make to see that the mutant compiles.

    That is its own source, or the first that includes it, and the models it names.
    """
    sources = (
        str(path.relative_to(base))
        for folder in ("core", "arena", "tests")
        for path in sorted((base / folder).glob("*.c"))
    )
    users = (source for source in sources if mutant.file in included(base, source))
    yield from (f"build/syntax/{source}" for source in islice(users, 1))
    for check in mutant.checks:
        kind, _, name = check.partition(" ")
        if kind == "model" and with_models:
            yield f"build/syntax/models/{name}.cpp"


def syntax_errors(base: Path, with_models: bool, mutant: Mutant) -> str:
    """Return the compiler's errors with a mutant, or nothing."""
    targets = list(syntax_targets(base, mutant, with_models))
    with tempfile.TemporaryDirectory(prefix="ftb-mutant-") as name:
        folder = Path(name) / "csrc"
        shutil.copytree(base, folder)
        path = folder / mutant.file
        path.write_text(mutant.apply(path.read_text()))
        errors = "".join(make(folder, target) for target in targets)
    return f"{mutant.name} does not compile\n{errors}" if errors else ""


def check_syntax(wanted: list[Mutant]) -> int:
    """See that these mutants compile; return how many do not."""
    with tempfile.TemporaryDirectory(prefix="ftb-mutants-") as name:
        base = Path(name).resolve() / "csrc"
        base.mkdir()
        copy_to(base)
        with_models = has_relacy()
        check = partial(syntax_errors, base, with_models)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            errors = [error for error in threads.map(check, wanted) if error]
    print("".join(errors), end="")
    left_out = "" if with_models else "; models left out, which need relacy-dev"
    print(f"{len(wanted)} mutants, {len(errors)} do not compile{left_out}")
    return len(errors)


def run_mutant(
    base: Path, limits_s: dict[Check, float], mutant: Mutant
) -> list[tuple[str, str, str, float]]:
    """Return a row of the table for each check of the mutant."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="ftb-mutant-") as name:
        folder = Path(name) / "csrc"
        shutil.copytree(base, folder)
        path = folder / mutant.file
        path.write_text(mutant.apply(path.read_text()))
        for check in map(check_of, mutant.checks):
            start = time.monotonic()
            if error := make(folder, check.target, *check.options):
                sys.exit(f"{mutant.name} does not compile\n{error}")
            found = notices(folder, check, limits_s[check])
            rows.append((mutant.name, check.name, found, time.monotonic() - start))
    return rows


def copy_to(base: Path) -> None:
    """Copy this folder to `base`, and add the orders that only mutants use."""
    for name in COPIED:
        source = FOLDER / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, base / name)
    atomic = base / "core" / "ftb_atomic.h"
    text = atomic.read_text()
    end = text.rindex("#endif")
    atomic.write_text(text[:end] + '#include "../models/weaker.h"\n\n' + text[end:])


def prepare(base: Path, checks: Iterable[Check]) -> dict[Check, float]:
    """Copy this folder to `base`, build the checks there and see the tests pass.

    Returns:
        How long each check may take with a mutant, in seconds.
    """
    limits_s = {}
    copy_to(base)
    for check in checks:
        if error := make(base, check.target, *check.options):
            sys.exit(error)
        if check.name.startswith("model "):
            limits_s[check] = MODEL_LIMIT_S
            continue
        start = time.monotonic()
        if notices(base, check, TEST_LIMIT_S):
            sys.exit(f"{check.name} fails without any mutant")
        limits_s[check] = HANG_S + HANG_FACTOR * (time.monotonic() - start)
    return limits_s


def run(wanted: list[Mutant]) -> int:
    """Run these mutants and print a row for each check; return how many survived.

    None is run unless all compile.
    """
    if check_syntax(wanted):
        return 1
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="ftb-mutants-") as name:
        base = Path(name) / "csrc"
        base.mkdir()
        names = dict.fromkeys(check for mutant in wanted for check in mutant.checks)
        limits_s = prepare(base, map(check_of, names))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for rows in threads.map(partial(run_mutant, base, limits_s), wanted):
                for mutant_name, check_name, found, seconds in rows:
                    survivors += not found
                    row = f"{mutant_name:28} {check_name:36} {found or 'SURVIVES':10}"
                    print(f"{row} {seconds:5.1f} s", flush=True)
    print(f"{len(wanted)} mutants, {survivors} checks let one pass")
    return survivors


def what_changes(mutant: Mutant) -> str:
    """Return the mutant's change in a few words."""
    text = (FOLDER / mutant.file).read_text()
    change = order_changed(mutant, text)
    if change is None:
        return "logic"
    ix, order = change
    access = accesses(text)[ix]
    return f"{access.op}: {access.order} to {order}"


def table() -> str:
    """Return MUTANTS.md: every mutant, and every order without one."""
    lines = [
        "# Mutants",
        "",
        "Made by `python3 mutants.py --table`. `make mutants` breaks the code in each "
        "of these ways, and every check named must fail then.",
        "",
        "| mutant | file | what it changes | noticed by |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {mutant.name} | `{mutant.file}` | {what_changes(mutant)} | "
        f"{', '.join(mutant.checks)} |"
        for mutant in MUTANTS
    ]
    lines += [
        "",
        "## Orders that a model has as the code does",
        "",
        "x86 makes no difference between these and weaker ones, so no test sees it; a "
        "model makes the same accesses, and there the mutants are noticed.",
        "",
        "| file | access | mutants |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{row.file}` | `{row.text}` | {', '.join(row.mutants)} |"
        for row in MIRRORED
    ]
    lines += [
        "",
        "## Orders that could be weaker as far as any check here can see",
        "",
        "| file | access | could be | why it is not |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{row.file}` | `{row.text}` | {', '.join(row.orders)} | {row.why} |"
        for row in KEPT
    ]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the program's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="run those with one of these in them")
    parser.add_argument(
        "--shard", default="1/1", metavar="K/N", help="every N-th from K"
    )
    parser.add_argument("--syntax", action="store_true", help="only compile them")
    parser.add_argument("--orders", action="store_true", help="run nothing")
    parser.add_argument("--table", action="store_true", help="print MUTANTS.md")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the mutants that the arguments choose; return the exit status."""
    options = parse(sys.argv[1:])
    if options.table:
        print(table(), end="")
        return 0
    missing = list(uncovered(FOLDER, MUTANTS))
    for line in missing:
        print(line)
    if options.orders:
        return 1 if missing else 0
    shard, _, shards_n = options.shard.partition("/")
    wanted = [
        mutant
        for mutant in MUTANTS
        if not options.names or any(part in mutant.name for part in options.names)
    ][int(shard) - 1 :: int(shards_n)]
    failures = check_syntax(wanted) if options.syntax else run(wanted)
    return 1 if failures or missing else 0


if __name__ == "__main__":
    sys.exit(main())
