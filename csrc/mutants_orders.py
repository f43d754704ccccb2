"""Whether the mutants cover every memory order, and the orders they cannot reach.

Every access in the FILES that is more than relaxed is one of three: a mutant makes it
one step weaker (and a check notices), or MIRRORED names the mutants of a model that do,
or KEPT says why it is not weaker although no check here would notice. See mutants.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mutants_base import Kept, Mirrored, Mutant

# With those of the Python layer whose protocol a model checks.
FILES = ("core/*.[ch]", "arena/*.[ch]", "py/striped_map_*.c")

ACCESS = re.compile(
    r"(?<!#define )\bftb_(load|store|exchange|cas|add|sub|and|or)"
    r"_(relaxed|acquire|release|acq_rel|seq_cst)\("
)

READERS_OF_TOPICS = ("reclaim-2-thing", "grace-2-slot")
UNLINKING = ("reclaim-6-thing", "reclaim-6-table", "grace-6-slot")
WAITSET = ("eventcount-change", "eventcount-look")

MIRRORED = (
    Mirrored("core/ftb_map.c", "ftb_load_seq_cst(&table->slots[i])", READERS_OF_TOPICS),
    Mirrored(
        "core/ftb_map.c",
        "ftb_load_seq_cst(&map_stripe(map, view->hash)->table)",
        ("reclaim-2-table",),
    ),
    Mirrored(
        "core/ftb_map.c",
        "ftb_store_seq_cst(&stripe->table, fresh)",
        ("reclaim-6-table",),
    ),
    Mirrored(
        "core/ftb_map.c",
        "ftb_store_seq_cst(&table->slots[slot_ix], (uintptr_t)SLOT_REMOVED)",
        ("reclaim-6-table", "grace-6-slot"),
    ),
    Mirrored(
        "core/ftb_topic.h", "ftb_load_seq_cst(&topic->snapshot)", ("reclaim-2-thing",)
    ),
    Mirrored(
        "core/ftb_topic.c",
        "ftb_exchange_seq_cst(&topic->snapshot",
        ("reclaim-6-thing",),
    ),
    Mirrored(
        "py/striped_map_core.c",
        "entry != NULL ? ftb_load_seq_cst(&entry->value) : NULL",
        ("grace-2-value",),
    ),
    Mirrored(
        "py/striped_map_iter.c",
        "Py_NewRef(ftb_load_seq_cst(&entry->value))",
        ("grace-2-value",),
    ),
    Mirrored(
        "py/striped_map_core.c",
        "while (old != NULL && !ftb_cas_seq_cst(&entry->value",
        ("grace-6-swap",),
    ),
    Mirrored(
        "py/striped_map_core.c",
        "is_swapped = ftb_cas_seq_cst(&entry->value",
        ("grace-6-swap",),
    ),
    Mirrored(
        "py/striped_map_core.c",
        "ftb_exchange_seq_cst(&entry->value, (PyObject *)NULL)",
        ("grace-6-remove",),
        ("release",),
    ),
    Mirrored(
        "core/ftb_pool_offer.c",
        "ftb_load_seq_cst(&pool->watchers_n)",
        ("watch-offered", "watch-asleep"),
    ),
    Mirrored(
        "core/ftb_pool_offer.c",
        "ftb_sub_seq_cst(&pool->watchers_n",
        ("watch-ended", "watch-given-up"),
    ),
    Mirrored("core/ftb_pool.c", "ftb_or_seq_cst(&pool->word", WAITSET),
    Mirrored("core/ftb_pool_take.c", "ftb_sub_seq_cst(&pool->word", WAITSET),
    Mirrored(
        "core/ftb_pool_wait.c",
        "return ftb__word_queued(ftb_load_seq_cst(&pool->word))",
        WAITSET,
    ),
    Mirrored("core/ftb_pool_wait.c", "return (ftb_load_seq_cst(&pool->word)", WAITSET),
    Mirrored(
        "core/ftb_pool_wait.c",
        "return ftb__word_unfinished(ftb_load_seq_cst(&pool->word))",
        WAITSET,
    ),
)

LETTER_OF_C11 = (
    "by the letter of C11 a seq_cst load may otherwise miss a later seq_cst change for "
    "this one; C++20 forbids that, and relacy and processors never do it"
)
LINEARIZABLE = (
    "what one thread does to several keys has one order for all threads: the map is "
    "linearizable; on x86 the unlocking that follows, or the read-modify-write itself, "
    "hides the difference"
)
DRAIN_DEKKER = (
    "own_n is added before the word is read, and the word subtracted from before own_n "
    "is read: one of them sees the other, as in ftb_waitset; on x86 both are full "
    "barriers"
)
FLAG = "a flag that carries nothing; acquire is what this code uses unless it must not"
ASKED = "what a user or a test asks for: it costs nothing where it is called"
LOCKED = "the stripes' locks order it; this once for each bus it costs nothing"
CHILD = "it orders two stores for a fork's child: a child would have to be forked \
between two instructions, on a processor that reorders stores"

ANY_CHANGE = ("acq_rel", "acquire", "release", "relaxed")
SHARES = (
    "without it an idle worker may sleep on beside an open fan: its owner then runs "
    "all handlers itself, one after another"
)

SEQLOCK = (
    "what is between the two of seq may not be seen outside them; on x86 stores, and "
    "loads, keep their order among themselves"
)

KEPT = (
    Kept("core/ftb_tally.c", "ftb_store_release(&tally->calls", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_store_release(&ledger->mark", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_store_release(&cell->version", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_store_release(&ledger->seq", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_load_acquire(&cell->version", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_load_acquire(&cell->emitted", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_load_acquire(&cell->ledger", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_load_acquire(&ledger->mark", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_load_acquire(&tally->calls", ("relaxed",), SEQLOCK),
    Kept("core/ftb_tally.c", "ftb_load_acquire(&ledger->seq", ("relaxed",), SEQLOCK),
    Kept(
        "core/ftb_topic.c",
        "ftb_store_seq_cst(&bus->is_observed",
        ("release", "relaxed"),
        "the stripes' locks, which are taken next, order it",
    ),
    Kept(
        "core/ftb_chain.h",
        "ftb_load_acquire(&chain->push_level)",
        ("relaxed",),
        LETTER_OF_C11,
    ),
    Kept(
        "core/ftb_chain.h",
        "ftb_cas_acq_rel(&chain->push_level",
        ("acquire", "release", "relaxed"),
        LETTER_OF_C11,
    ),
    Kept("core/ftb_ring.h", "ftb_or_seq_cst(&ring->tail", ANY_CHANGE, LETTER_OF_C11),
    Kept("core/ftb_fan.h", "ftb_store_seq_cst(&fan->claim", ("release",), SHARES),
    Kept(
        "core/ftb_fan.h",
        "ftb_load_seq_cst(&fan->claim)",
        ("acquire", "relaxed"),
        SHARES,
    ),
    Kept(
        "core/ftb_pool_offer.c",
        "ftb_add_seq_cst(&pool->watchers_n",
        ANY_CHANGE,
        LETTER_OF_C11,
    ),
    Kept("core/ftb_pool_fan.c", "ftb_add_seq_cst(&pool->fans_n", ANY_CHANGE, SHARES),
    Kept("core/ftb_pool_fan.c", "ftb_sub_seq_cst(&pool->fans_n", ANY_CHANGE, SHARES),
    Kept(
        "core/ftb_pool_fan.c",
        "ftb_load_seq_cst(&pool->fans_n",
        ("acquire", "relaxed"),
        SHARES,
    ),
    Kept(
        "core/ftb_pool_fan.c",
        "ftb_add_seq_cst(&pool->word",
        ANY_CHANGE,
        "on x86 any change of the word is a full barrier before the claim",
    ),
    Kept(
        "core/ftb_strand.h",
        "(node = ftb_load_acquire(&node->next))",
        ("relaxed",),
        "the next step reads the node that it leads to; on x86 every load acquires",
    ),
    Kept(
        "arena/ftb_handle.c",
        "ftb_load_acquire(&block->rc)",
        ("relaxed",),
        "it looks for misuse; the caller's own reference is what keeps the block",
    ),
    Kept(
        "arena/ftb_leak.c",
        "ftb_store_release(&site_fn",
        ("relaxed",),
        "set once, by the import, before there is a buffer to watch",
    ),
    Kept(
        "arena/ftb_leak.c",
        "ftb_store_release(&ftb__leak_period.value",
        ("relaxed",),
        "set by the import, or by whoever chooses a level: any moment will do",
    ),
    Kept(
        "arena/ftb_leak.c",
        "ftb_load_acquire(&site_fn)",
        ("relaxed",),
        "set once, by the import, before there is a buffer to watch",
    ),
    Kept(
        "core/ftb_base.c",
        "ftb_store_seq_cst(&fault_countdown",
        ("release", "relaxed"),
        "a hook for tests, armed before their threads start",
    ),
    Kept("core/ftb_idle.h", "ftb_and_acq_rel(word", ("acquire",), LETTER_OF_C11),
    Kept("core/ftb_park.h", "ftb_sub_release(", ("relaxed",), LETTER_OF_C11),
    Kept("core/ftb_park.h", "ftb_add_release(", ("relaxed",), LETTER_OF_C11),
    Kept(
        "core/ftb_map.c",
        "ftb_store_seq_cst(&table->slots[i], slot_of(entry))",
        ("release",),
        LINEARIZABLE,
    ),
    Kept(
        "core/ftb_map.c",
        "ftb_store_seq_cst(&table->slots[i], (uintptr_t)SLOT_EMPTY)",
        ("release", "relaxed"),
        "release would do: who ends a probe here comes after the removals beyond; it "
        "carries no data, so no check sees a race",
    ),
    Kept(
        "core/ftb_topic.c",
        "ftb_exchange_acq_rel(&handlers[i]->state",
        ("acquire", "release", "relaxed"),
        "the state carries nothing, and the stripe is locked: any exchange would do",
    ),
    Kept(
        "core/ftb_topic.c",
        "ftb_store_seq_cst(&bus->is_closed",
        ("release", "relaxed"),
        LOCKED,
    ),
    Kept(
        "arena/ftb_arena.c",
        "ftb_store_release(&ftb_load_relaxed(&registry_slots)[slot]",
        ("relaxed",),
        CHILD,
    ),
    Kept("arena/ftb_arena.c", "ftb_store_release(&registry_slots", ("relaxed",), CHILD),
    Kept("arena/ftb_arena.c", "ftb_store_release(&registry_n", ("relaxed",), CHILD),
    Kept(
        "py/striped_map_core.c",
        "bool has_value = entry != NULL && ftb_load_seq_cst(&entry->value)",
        ("acquire", "relaxed"),
        "nothing is read through the value; " + LINEARIZABLE,
    ),
    Kept(
        "py/striped_map_core.c",
        "old = ftb_load_seq_cst(&entry->value);",
        ("acquire", "relaxed"),
        "the swap that follows decides, unless it is NULL; " + LINEARIZABLE,
    ),
    Kept(
        "py/striped_map_core.c",
        "ftb_exchange_seq_cst(&entry->value, (PyObject *)NULL)",
        ("acq_rel", "acquire"),
        "the slot was unlinked before, and orders the readers; " + LINEARIZABLE,
    ),
    Kept(
        "py/striped_map_core.c",
        "PyObject *value = ftb_load_acquire(&entry->value)",
        ("relaxed",),
        "the sections in which it was stored are closed, which orders it already",
    ),
    Kept("core/ftb_pool.c", "ftb_load_seq_cst(", ("acquire", "relaxed"), ASKED),
    Kept(
        "core/ftb_pool.c",
        "ftb_store_seq_cst(&pool->is_stopped",
        ("release", "relaxed"),
        "the unparks that follow release it, to workers and to who waits for the drain",
    ),
    Kept(
        "core/ftb_pool_post.c",
        "ftb_cas_seq_cst(&pool->word",
        ("acq_rel", "acquire", "release", "relaxed"),
        "the swap counts; what the event carries is ordered by its ring",
    ),
    Kept(
        "core/ftb_pool_take.c",
        "ftb_load_seq_cst(&pool->drain_own_n)",
        ("acquire", "relaxed"),
        DRAIN_DEKKER,
    ),
    Kept(
        "core/ftb_pool_wait.c",
        "ftb_load_seq_cst(&pool->drain_own_n)",
        ("acquire", "relaxed"),
        DRAIN_DEKKER,
    ),
    Kept(
        "core/ftb_pool_wait.c",
        "ftb_add_seq_cst(&pool->drain_own_n",
        ("acq_rel", "acquire", "release", "relaxed"),
        DRAIN_DEKKER,
    ),
    Kept(
        "core/ftb_pool_wait.c",
        "ftb_sub_seq_cst(&pool->drain_own_n",
        ("acq_rel", "acquire", "release", "relaxed"),
        "nobody waits for the sum to shrink: any subtraction would do",
    ),
    Kept(
        "core/ftb_pool_wait.c",
        "ftb_load_seq_cst(&pool->is_stopped)",
        ("acquire", "relaxed"),
        "as ftb_pool_stop notifies the waitset after it, under the waitset's mutex",
    ),
    Kept(
        "core/ftb_pool_take.c",
        "ftb_load_acquire(&pool->is_stopped)",
        ("relaxed",),
        FLAG,
    ),
    Kept(
        "core/ftb_pool_wait.c",
        "ftb_load_acquire(&pool->is_stopped)",
        ("relaxed",),
        FLAG,
    ),
)


class Access(NamedTuple):
    """One atomic access in a file's text."""

    offset: int
    op: str
    order: str


def accesses(text: str) -> list[Access]:
    """Return every atomic access of a text, in order."""
    return [Access(m.start(), m[1], m[2]) for m in ACCESS.finditer(text)]


def one_step_weaker(op: str, order: str) -> tuple[str, ...]:
    """Return the orders next below one: two where an order has two halves."""
    if order == "seq_cst":
        return {"load": ("acquire",), "store": ("release",)}.get(op, ("acq_rel",))
    if order == "acq_rel":
        return ("acquire", "release")
    return () if order == "relaxed" else ("relaxed",)


def weaker(op: str, order: str) -> Iterator[str]:
    """Yield all orders below one."""
    for below in one_step_weaker(op, order):
        yield below
        yield from weaker(op, below)


def order_changed(mutant: Mutant, text: str) -> tuple[int, str] | None:
    """Return which access gets which order; None if the mutant does another thing."""
    before, after = accesses(text), accesses(mutant.apply(text))
    if [access.op for access in before] != [access.op for access in after]:
        return None
    changes = [
        (i, new.order)
        for i, (old, new) in enumerate(zip(before, after, strict=True))
        if old.order != new.order
    ]
    return changes[0] if len(changes) == 1 else None


def listed(text: str, row: Kept | Mirrored) -> Iterator[int]:
    """Yield the index of the access in each occurrence of the row's text.

    Raises:
        ValueError: There is none, or an occurrence has no or several accesses in it.
    """
    found = accesses(text)
    spans = [range(m.start(), m.end()) for m in re.finditer(re.escape(row.text), text)]
    for span in spans:
        inside = [
            i
            for i, access in enumerate(found)
            if access.offset in span and access.order != "relaxed"
        ]
        if len(inside) != 1:
            raise ValueError(f"{row.file}: not one access in {row.text!r}")
        yield inside[0]
    if not spans:
        raise ValueError(f"{row.file} has no such text: {row.text!r}")


def uncovered(folder: Path, mutants: Iterable[Mutant]) -> Iterator[str]:
    """Yield a line for each order that nothing here covers, and each row that is stale.

    Args:
        folder: The folder of the C sources.
        mutants: All of them.

    Raises:
        ValueError: A row's text is not in its file.
    """
    mutants = list(mutants)
    names = {mutant.name for mutant in mutants}
    for row in MIRRORED:
        yield from (f"no mutant {name}" for name in row.mutants if name not in names)
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        file = path.relative_to(folder).as_posix()
        text = path.read_text()
        found = accesses(text)
        noticed: list[set[str]] = [set() for _ in found]
        kept: list[set[str]] = [set() for _ in found]
        for mutant in mutants:
            change = order_changed(mutant, text) if mutant.file == file else None
            if change is not None:
                i, order = change
                noticed[i] |= {order, *weaker(found[i].op, order)}
        for mirror in MIRRORED:
            for i in listed(text, mirror) if mirror.file == file else ():
                op, own = found[i].op, found[i].order
                for order in mirror.orders or one_step_weaker(op, own):
                    noticed[i] |= {order, *weaker(op, order)}
        for keep in KEPT:
            for i in listed(text, keep) if keep.file == file else ():
                kept[i] |= set(keep.orders)
        for i, access in enumerate(found):
            where = f"{file}:{text.count(chr(10), 0, access.offset) + 1}"
            for order in weaker_uncovered(access, noticed[i], kept[i]):
                yield f"{where}: {access.op} {access.order}: no mutant {order}"
            for order in sorted(kept[i] & noticed[i]):
                yield f"{where}: {access.op} {order}: a mutant, and listed as kept"


def weaker_uncovered(
    access: Access, noticed: set[str], kept: set[str]
) -> Iterator[str]:
    """Yield the orders below the access's own that are not noticed and not kept."""
    for order in one_step_weaker(access.op, access.order):
        if order in noticed:
            continue
        if order in kept:
            below = Access(access.offset, access.op, order)
            yield from weaker_uncovered(below, noticed, kept)
        else:
            yield order
