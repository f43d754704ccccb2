"""Check the checkers: break the C core in every listed way and see the checks fail.

A mutant is one replacement of text in one file, in a copy of this folder: mostly a
memory order by a weaker one. Each check named with it must then fail: a model
(models/*.cpp, needs relacy-dev), or a test (tests/test_*.c, instrumented if the check
says so), which may also hang. The program fails if a check lets a mutant pass, or if
the text to replace is not found.

    python3 mutants.py [PART OF A NAME ...]

To add a mutant, add it to MUTANTS or to mutants_readers.py; models/weaker.h has the
orders that the code itself does not use. What no check here can see goes to UNSEEN,
with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutants_readers import READERS, UNSEEN_READERS

FOLDER = Path(__file__).resolve().parent
COPIED = ("Makefile", "arena", "core", "models", "tests")
# A mutant that makes a test hang is dead after this long; the tests take a few seconds.
HANG_S = 40.0
# relacy itself reports a deadlock, so a model that takes this long says nothing.
MODEL_LIMIT_S = 900.0


class Check(NamedTuple):
    """A program that the Makefile builds."""

    name: str
    target: str
    options: tuple[str, ...] = ()


class Mutant(NamedTuple):
    """One way to break the code, and the checks that must notice."""

    name: str
    file: str
    old: str
    new: str
    checks: tuple[Check, ...]
    nth: int = 1  # which occurrence of `old`, from 1


class Unseen(NamedTuple):
    """An order that no check here can tell from a weaker one."""

    file: str
    what: str
    why: str


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


RING = "core/ftb_ring.h"
STRAND = "core/ftb_strand.h"
PARK = "core/ftb_park.h"
IDLE = "core/ftb_idle.h"
POST = "core/ftb_pool_post.c"
TAKE = "core/ftb_pool_take.c"
WAIT = "core/ftb_pool_wait.c"

MUTANTS = (
    # The ring: a cell goes from producer to consumer and back.
    Mutant(
        "ring-free-load",
        *(RING, "ftb_load_acquire(", "ftb_load_relaxed("),
        (model("ring"), c_test("ring", "thread")),
    ),
    Mutant(
        "ring-full-load",
        *(RING, "ftb_load_acquire(", "ftb_load_relaxed("),
        (model("ring"), c_test("ring", "thread")),
        nth=2,
    ),
    Mutant(
        "ring-full-load-more",
        *(RING, "ftb_load_acquire(", "ftb_load_relaxed("),
        (model("ring_several"), c_test("ring", "thread")),
        nth=3,
    ),
    Mutant(
        "ring-publish-relaxed",
        *(RING, "ftb_store_seq_cst(", "ftb_store_relaxed("),
        (model("ring"), c_test("ring", "thread")),
    ),
    Mutant(
        "ring-publish-release",
        *(RING, "ftb_store_seq_cst(", "ftb_store_release("),
        (model("park"),),
    ),
    Mutant(
        "ring-free-store",
        *(RING, "ftb_store_release(", "ftb_store_relaxed("),
        (model("ring"), c_test("ring", "thread")),
    ),
    Mutant(
        "ring-empty-load",
        *(RING, "ftb_load_seq_cst(", "ftb_load_acquire("),
        (model("park"),),
    ),
    Mutant(
        "ring-claim-unchecked",
        RING,
        "if (turn != ftb_ring_turn_at(ring, first + free_n)) {",
        "if (turn > ftb_ring_turn_at(ring, first + free_n)) {",
        (model("ring"), c_test("ring")),
    ),
    # The strand: links, the announcement, the hand-over of the ownership.
    Mutant(
        "strand-link-store",
        *(STRAND, "ftb_store_release(", "ftb_store_relaxed("),
        (model("strand"),),
    ),
    Mutant(
        "strand-link-load",
        *(STRAND, "ftb_load_acquire(", "ftb_load_relaxed("),
        (model("strand"), c_test("strand", "thread")),
    ),
    Mutant(
        "strand-announce-acquire",
        *(STRAND, "ftb_exchange_acq_rel(", "ftb_exchange_acquire("),
        (model("strand"),),
        nth=2,
    ),
    Mutant(
        "strand-begin",
        *(STRAND, "ftb_exchange_acq_rel(", "ftb_exchange_release("),
        (model("strand"),),
        nth=3,
    ),
    Mutant(
        "strand-look-again",
        *(STRAND, "ftb_exchange_acq_rel(", "ftb_exchange_release("),
        (model("strand"),),
        nth=4,
    ),
    Mutant(
        "strand-let-go",
        *(STRAND, "ftb_cas_acq_rel(", "ftb_cas_acquire("),
        (model("strand"), c_test("strand", "thread")),
    ),
    Mutant(
        "strand-let-go-blindly",
        STRAND,
        "if (ftb_cas_acq_rel(&strand->state, &state, FTB_STRAND_IDLE)) {",
        "if (ftb_exchange_acq_rel(&strand->state, FTB_STRAND_IDLE) < 9 + state) {",
        (model("strand"),),
    ),
    # The parker and the waitset.
    Mutant(
        "parker-unpark-order",
        *(PARK, "ftb_exchange_acq_rel(", "ftb_exchange_acquire("),
        (model("parker"), c_test("park", "thread")),
    ),
    Mutant(
        "parker-wake-order",
        *(PARK, "ftb_exchange_acq_rel(", "ftb_exchange_release("),
        (model("parker"),),
        nth=2,
    ),
    Mutant(
        "parker-note-order",
        *(PARK, "ftb_exchange_acq_rel(", "ftb_exchange_release("),
        (model("parker"),),
        nth=3,
    ),
    Mutant(
        "parker-take-note-order",
        *(PARK, "ftb_cas_acquire(", "ftb_cas_relaxed("),
        (model("parker"), c_test("park", "thread")),
    ),
    Mutant(
        "parker-signal-unlocked",
        PARK,
        "    ftb_mutex_lock(&parker->mutex);\n    ftb_mutex_unlock(&parker->mutex);\n",
        "",
        (model("parker"),),
    ),
    Mutant(
        "waitset-prepare",
        *(PARK, "ftb_add_seq_cst(", "ftb_add_acq_rel("),
        (model("eventcount"),),
    ),
    Mutant(
        "waitset-notify",
        *(PARK, "ftb_load_seq_cst(", "ftb_load_acquire("),
        (model("eventcount"),),
    ),
    Mutant(
        "waitset-epoch-unlocked",
        PARK,
        "    ftb_mutex_lock(&waitset->mutex);\n"
        "    /* relaxed: waiters compare the epoch under the mutex */\n"
        "    ftb_add_relaxed(&waitset->word, UINT64_C(1) << 32);\n"
        "    ftb_mutex_unlock(&waitset->mutex);\n",
        "    ftb_add_relaxed(&waitset->word, UINT64_C(1) << 32);\n",
        (model("eventcount"),),
    ),
    Mutant(
        "waitset-epoch-still",
        *(PARK, "ftb_add_relaxed(&waitset->word, UINT64_C(1) << 32)", "(void)0"),
        (model("eventcount"), c_test("park")),
    ),
    # The idle bits.
    Mutant(
        "idle-set",
        *(IDLE, "ftb_or_seq_cst(", "ftb_or_acq_rel("),
        (model("park"),),
    ),
    Mutant(
        "idle-claim",
        *(IDLE, "ftb_load_seq_cst(", "ftb_load_acquire("),
        (model("park"),),
        nth=3,
    ),
    Mutant(
        "idle-has-any",
        *(IDLE, "&idle->words[i]) != 0", "&idle->words[i]) == 0"),
        (model("park_chain"),),
    ),
    Mutant(
        "idle-clear-nothing",
        *(IDLE, "word & ~bit)", "word)"),
        (c_test("park"),),
    ),
    # The pool: bounds, close, and every wake-up.
    Mutant(
        "pool-bound",
        POST,
        "pool->queue_size - ftb__word_queued(word)",
        "pool->queue_size + 1 - ftb__word_queued(word)",
        (c_test("pool"), c_test("pool_stress")),
    ),
    Mutant(
        "pool-close-ignored",
        *(POST, "(word & FTB_WORD_CLOSED) != 0", "word == 0 && pool == NULL"),
        (c_test("pool_close"),),
    ),
    Mutant(
        "pool-post-wakes-nobody",
        POST,
        "ftb__pool_put(pool, ring_ix, item, 1, FTB_RING_PLAIN);\n"
        "        ftb__pool_wake(pool, ring_ix);",
        "ftb__pool_put(pool, ring_ix, item, 1, FTB_RING_PLAIN);",
        (c_test("pool_stress"),),
    ),
    Mutant(
        "pool-token-wakes-nobody",
        *(POST, "strand, true);", "strand, false);"),
        (c_test("pool_stress"),),
    ),
    Mutant(  # the pause widens a gap of nanoseconds, which the second look closes
        "pool-no-second-look",
        WAIT,
        "    ftb_idle_set(&pool->idle, worker_ix);\n"
        "    bool has_found = ftb__pool_has_work(pool, worker_ix)",
        "    nanosleep(&(struct timespec){.tv_nsec = 30000}, NULL);\n"
        "    ftb_idle_set(&pool->idle, worker_ix);\n"
        "    bool has_found = false",
        (c_test("pool_stress"),),
    ),
    Mutant(
        "pool-take-wakes-nobody",
        *(TAKE, "if (ftb_idle_has_any(&pool->idle)", "if (pool == NULL"),
        (c_test("pool_stress"),),
    ),
    Mutant(
        "pool-space-wakes-nobody",
        *(TAKE, "if (queued_n > 0) {", "if (queued_n > 1000) {"),
        (c_test("pool_stress"),),
    ),
    Mutant(
        "pool-space-not-passed-on",
        WAIT,
        "        if (has_space(pool)) {\n            ftb_waitset_notify(",
        "        if (pool == NULL) {\n            ftb_waitset_notify(",
        (c_test("pool_close"),),
    ),
    Mutant(
        "pool-drain-wakes-nobody",
        *(TAKE, "if (unfinished_n > 0", "if (unfinished_n > 1000"),
        (c_test("pool_stress"),),
    ),
    Mutant(
        "pool-forgets-partition",
        TAKE,
        "if (batch->strand != NULL && ftb_strand_end_local(batch->strand)) {",
        "if (batch->strand != NULL && !ftb_strand_end_local(batch->strand)) {",
        (c_test("pool"),),
    ),
    Mutant(
        "pool-ignores-stop",
        *(TAKE, "ftb_load_acquire(&pool->is_stopped)", "pool == NULL"),
        (c_test("pool_close"),),
    ),
    *(
        Mutant(name, file, old, new, tuple(map(check_of, checks)))
        for name, file, old, new, checks in READERS
    ),
)

UNSEEN = (
    Unseen(
        STRAND,
        "exchange of the tail in push: acq_rel",
        "a producer's NULL in its node must come before its successor's link in the "
        "order of that location; relacy orders the writes to a location as it runs "
        "them, and x86 makes every exchange a full barrier",
    ),
    Unseen(
        STRAND,
        "exchange of the state in push: the acquire in acq_rel",
        "not needed: begin acquires what the last owner released, see 2 in the header",
    ),
    Unseen(
        PARK,
        "unpark's exchange: the acquire in acq_rel",
        "not needed: the waker reads nothing that the owner wrote",
    ),
    Unseen(
        IDLE,
        "the bits' clearing: seq_cst in clear, acq_rel in claim",
        "more than is needed: the order against a worker that goes to sleep is decided "
        "by its set and by the loads in claim",
    ),
    Unseen(
        IDLE,
        "has_any's load: seq_cst",
        "it decides between this thread's token, put back without a wake-up, and "
        "another worker's bit; to tell it from acquire takes three workers, two rings "
        "and a post of several events in one schedule",
    ),
    Unseen(
        "core/ftb_pool_internal.h",
        "the admission word: seq_cst everywhere",
        "its waits are those of ftb_waitset, whose model has a counter in its place; "
        "on x86 a read-modify-write has only this order",
    ),
    *(Unseen(*row) for row in UNSEEN_READERS),
)


def replace_nth(text: str, mutant: Mutant) -> str:
    """Return the text with the mutant's occurrence of `old` replaced."""
    parts = text.split(mutant.old)
    if len(parts) <= mutant.nth:
        sys.exit(f"{mutant.name}: {mutant.file} has no such text: {mutant.old!r}")
    before, after = parts[: mutant.nth], parts[mutant.nth :]
    return mutant.old.join(before) + mutant.new + mutant.old.join(after)


def build(folder: Path, check: Check) -> None:
    """Build the check's program in a copy of this folder."""
    # WARN: a mutant may be so broken that the compiler sees it; the check shall.
    command = ["make", "-C", str(folder), "-s", "WARN=-w", *check.options, check.target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def notices(folder: Path, check: Check) -> str:
    """Run the check's program; return how it failed, or nothing if it passed."""
    is_model = check.name.startswith("model ")
    limit_s = MODEL_LIMIT_S if is_model else HANG_S
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


def run_mutant(base: Path, mutant: Mutant) -> list[tuple[str, str, str, float]]:
    """Return a row of the table for each check of the mutant."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="ftb-mutant-") as name:
        folder = Path(name) / "csrc"
        shutil.copytree(base, folder)
        path = folder / mutant.file
        path.write_text(replace_nth(path.read_text(), mutant))
        for check in mutant.checks:
            start = time.monotonic()
            build(folder, check)
            found = notices(folder, check)
            rows.append((mutant.name, check.name, found, time.monotonic() - start))
    return rows


def prepare(base: Path, checks: Iterable[Check]) -> None:
    """Copy this folder to `base`, build the checks there and see them pass."""
    for name in COPIED:
        source = FOLDER / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, base / name)
    atomic = base / "core" / "ftb_atomic.h"
    text = atomic.read_text()
    end = text.rindex("#endif")
    atomic.write_text(text[:end] + '#include "../models/weaker.h"\n\n' + text[end:])
    for check in checks:
        build(base, check)
        if not check.name.startswith("model ") and notices(base, check):
            sys.exit(f"{check.name} fails without any mutant")


def main() -> int:
    """Run the mutants whose name has one of the arguments in it, or all."""
    wanted = [
        mutant
        for mutant in MUTANTS
        if not sys.argv[1:] or any(part in mutant.name for part in sys.argv[1:])
    ]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="ftb-mutants-") as name:
        base = Path(name) / "csrc"
        base.mkdir()
        prepare(base, {check for mutant in wanted for check in mutant.checks})
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for rows in threads.map(lambda mutant: run_mutant(base, mutant), wanted):
                for mutant_name, check_name, found, seconds in rows:
                    survivors += not found
                    row = f"{mutant_name:26} {check_name:26} {found or 'SURVIVES':10}"
                    print(f"{row} {seconds:5.1f} s", flush=True)
    for unseen in UNSEEN:
        print(f"not seen: {unseen.file}, {unseen.what}: {unseen.why}")
    print(f"{len(wanted)} mutants, {survivors} checks let one pass")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
