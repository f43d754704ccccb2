"""The mutants of what readers read without a lock: keys and the map.

The numbers in the names are those of core/ftb_reclaim.c. See mutants.py.
"""

from __future__ import annotations

from mutants_base import Mutant

RECLAIM = "core/ftb_reclaim.h"
RECLAIM_C = "core/ftb_reclaim.c"
RECLAIM_MODEL = "models/reclaim.cpp"
TURN = "core/ftb_turn.h"
GRACE = "core/ftb_grace.h"
GRACE_MODEL = "models/grace.cpp"
MAP = "core/ftb_map.c"
HASH = "core/ftb_xxh3.c"

READERS: tuple[Mutant, ...] = (
    # Reclamation: the numbers are those of core/ftb_reclaim.c; (2) and (6) are broken
    # in the model, which has them as ftb_map.c, ftb_topic.c and their callers do.
    Mutant(
        "reclaim-1-enter",
        RECLAIM,
        "ftb_store_seq_cst(",
        "ftb_store_release(",
        ("model reclaim", "model grace"),
    ),
    Mutant(
        "reclaim-2-table",
        RECLAIM_MODEL,
        "ftb_load_seq_cst(&link)",
        "ftb_load_acquire(&link)",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-2-thing",
        RECLAIM_MODEL,
        "ftb_load_seq_cst(&in_table->slot)",
        "ftb_load_acquire(&in_table->slot)",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-3-hold",
        RECLAIM,
        "ftb_store_release(&thread->hazard[slot]",
        "ftb_store_relaxed(&thread->hazard[slot]",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-4-leave",
        RECLAIM,
        "ftb_store_release(&thread->seq",
        "ftb_store_relaxed(&thread->seq",
        ("model reclaim", "model grace"),
    ),
    Mutant(
        "reclaim-5-drop",
        RECLAIM,
        "ftb_store_release(&thread->hazard[--",
        "ftb_store_relaxed(&thread->hazard[--",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-6-thing",
        RECLAIM_MODEL,
        "ftb_exchange_seq_cst(",
        "ftb_exchange_acq_rel(",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-6-table",
        RECLAIM_MODEL,
        "ftb_store_seq_cst(&link",
        "ftb_store_release(&link",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-7-first-look",
        RECLAIM,
        "uint64_t seen = ftb_load_seq_cst(",
        "uint64_t seen = ftb_load_acquire(",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-7-next-look",
        RECLAIM,
        "ftb_load_acquire(&thread->seq) == seen",
        "ftb_load_relaxed(&thread->seq) == seen",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-7-impatient",
        RECLAIM,
        "            return false;\n        }\n        ftb_relax",
        "            return true;\n        }\n        ftb_relax",
        (
            "model reclaim",
            "test_reclaim",
        ),
    ),
    Mutant(
        "reclaim-8-scan",
        RECLAIM,
        "ftb_load_acquire(&thread->hazard[i])",
        "ftb_load_relaxed(&thread->hazard[i])",
        ("model reclaim",),
    ),
    Mutant(
        "reclaim-peak-forgotten",
        RECLAIM,
        "if (FTB_UNLIKELY(thread->depth > ftb_load_relaxed(&thread->depth_peak))) {",
        "if (ftb_load_relaxed(&thread->depth_peak) == 0) {",
        (
            "model reclaim",
            "test_reclaim",
        ),
    ),
    Mutant(
        "reclaim-push",
        RECLAIM,
        "ftb_cas_seq_cst(",
        "ftb_cas_acq_rel(",
        ("model reclaim", "model grace"),
    ),
    Mutant(
        "reclaim-push-relaxed",
        RECLAIM,
        "ftb_cas_seq_cst(",
        "ftb_cas_relaxed(",
        (
            "model reclaim",
            "test_reclaim_threads thread",
        ),
    ),
    Mutant(
        "reclaim-list-head",
        RECLAIM,
        "ftb_load_seq_cst(&threads->head)",
        "ftb_load_acquire(&threads->head)",
        ("model reclaim", "model grace"),
    ),
    Mutant(
        "reclaim-own",
        RECLAIM,
        "ftb_cas_acquire(",
        "ftb_cas_relaxed(",
        (
            "model reclaim",
            "test_reclaim_threads thread",
        ),
    ),
    Mutant(
        "reclaim-disown",
        RECLAIM,
        "ftb_store_release(&thread->in_use",
        "ftb_store_relaxed(&thread->in_use",
        (
            "model reclaim",
            "test_reclaim_threads thread",
        ),
    ),
    Mutant(
        "reclaim-disown-holding",
        RECLAIM,
        "while (thread->depth > 0)",
        "for (thread->depth = 0; thread->depth > 0;)",
        ("test_reclaim_threads",),
    ),
    Mutant(
        "reclaim-retire",
        RECLAIM,
        "ftb_cas_release(list",
        "ftb_cas_relaxed(list",
        (
            "model reclaim_asked",
            "test_reclaim_threads thread",
        ),
    ),
    Mutant(
        "reclaim-sections-ignored",
        RECLAIM_C,
        "ftb__sections_closed(&threads) && hazard",
        "hazard",
        ("test_reclaim",),
    ),
    Mutant(
        "reclaim-blind-without-memory",
        RECLAIM_C,
        "        if (grown == NULL) {\n            return false;",
        "        if (grown == NULL) {\n            return true;",
        ("test_reclaim",),
    ),
    Mutant(
        "reclaim-fork-unlocked",
        RECLAIM_C,
        "pthread_atfork(lock_for_fork, unlock_after_fork, unlock_in_child);",
        "(void)lock_for_fork, (void)unlock_in_child;",
        ("test_reclaim_threads",),
    ),
    Mutant(
        "reclaim-fork-keeps-slots",
        RECLAIM_C,
        "i < FTB_DEPTH_MAX; i++",
        "i < thread->depth * 0; i++",
        ("test_reclaim_threads",),
    ),
    Mutant(
        "reclaim-take",
        RECLAIM,
        "ftb_exchange_acquire(list",
        "ftb_exchange_relaxed(list",
        (
            "model reclaim_asked",
            "test_reclaim_threads thread",
        ),
    ),
    Mutant(
        "reclaim-fork-keeps-turn",
        RECLAIM_C,
        "ftb_store_relaxed(&turn.state, FTB_TURN_FREE)",
        "(void)turn.state",
        ("test_reclaim_threads",),
    ),
    # Nobody who asks the reclaimer is forgotten; the numbers are those of
    # core/ftb_turn.h.
    Mutant(
        "turn-2-ask",
        TURN,
        "ftb_exchange_release(",
        "ftb_exchange_relaxed(",
        ("model reclaim_asked", "test_turn thread"),
    ),
    Mutant(
        "turn-2-asks-only-if-free",
        TURN,
        "    return ftb_exchange_release(&turn->state, FTB_TURN_ASKED) == "
        "FTB_TURN_FREE;",
        "    uint32_t state = FTB_TURN_FREE;\n"
        "    return ftb_cas_release(&turn->state, &state, FTB_TURN_ASKED);",
        ("model reclaim_asked", "test_turn"),
    ),
    Mutant(
        "turn-2-asks-by-a-store",
        TURN,
        "    return ftb_exchange_release(&turn->state, FTB_TURN_ASKED) == "
        "FTB_TURN_FREE;",
        "    uint32_t state = FTB_TURN_FREE;\n"
        "    bool is_free = ftb_cas_release(&turn->state, &state, FTB_TURN_ASKED);\n"
        "    if (!is_free) {\n"
        "        ftb_store_release(&turn->state, FTB_TURN_ASKED);\n"
        "    }\n"
        "    return is_free;",
        ("model reclaim_asked",),
    ),
    Mutant(
        "turn-3-tries-the-lock",
        TURN,
        "        ftb_mutex_lock(&turn->lock);",
        "        if (!ftb_mutex_try_lock(&turn->lock)) {\n"
        "            ftb_store_release(&turn->state, FTB_TURN_FREE);\n"
        "            break;\n"
        "        }",
        ("model reclaim_asked", "test_turn"),
    ),
    Mutant(
        "turn-4-begin",
        TURN,
        "ftb_exchange_acquire(",
        "ftb_exchange_relaxed(",
        ("model reclaim_asked", "test_turn thread"),
    ),
    Mutant(
        "turn-4-begins-after-the-round",
        TURN,
        "        ftb__turn_begin(turn, is_last);\n        round(context);",
        "        round(context);\n        ftb__turn_begin(turn, is_last);",
        ("model reclaim_asked", "test_turn"),
    ),
    Mutant(
        "turn-4-last-leaves-who-asks",
        TURN,
        "        ftb__turn_begin(turn, is_last);\n        round(context);",
        "        ftb__turn_begin(turn, false);\n"
        "        round(context);\n"
        "        (void)(is_last && ftb_exchange_release(&turn->state, FTB_TURN_FREE));",
        ("model reclaim_asked", "test_turn"),
    ),
    Mutant(
        "turn-6-ends-blindly",
        TURN,
        "    return ftb_cas_relaxed(&turn->state, &state, FTB_TURN_FREE);",
        "    return ftb_exchange_release(&turn->state, FTB_TURN_FREE) <= state + 1;",
        ("model reclaim_asked", "test_turn"),
    ),
    Mutant(
        "turn-6-before-the-round",
        TURN,
        "        round(context);\n"
        "        ftb_mutex_unlock(&turn->lock);\n"
        "        if (!is_last && ftb__turn_end(turn)) {",
        "        bool is_done = !is_last && ftb__turn_end(turn);\n"
        "        ftb_mutex_unlock(&turn->lock);\n"
        "        round(context);\n"
        "        if (is_done) {",
        ("model reclaim_asked", "test_turn"),
    ),
    # A writer that waits for sections; (2) and (6) as py/striped_map_core.c has them.
    Mutant(
        "grace-2-slot",
        GRACE_MODEL,
        "ftb_load_seq_cst(&slot)",
        "ftb_load_acquire(&slot)",
        ("model grace",),
    ),
    Mutant(
        "grace-2-value",
        GRACE_MODEL,
        "ftb_load_seq_cst(&found->now)",
        "ftb_load_acquire(&found->now)",
        ("model grace",),
    ),
    Mutant(
        "grace-6-swap",
        GRACE_MODEL,
        "ftb_cas_seq_cst(",
        "ftb_cas_acq_rel(",
        ("model grace",),
    ),
    Mutant(
        "grace-6-slot",
        GRACE_MODEL,
        "ftb_store_seq_cst(&slot",
        "ftb_store_release(&slot",
        ("model grace",),
    ),
    Mutant(
        "grace-6-remove",
        GRACE_MODEL,
        "ftb_exchange_seq_cst(",
        "ftb_exchange_release(",
        ("model grace",),
    ),
    Mutant(
        "grace-7-note",
        GRACE,
        "ftb_load_seq_cst(",
        "ftb_load_acquire(",
        ("model grace",),
    ),
    Mutant(
        "grace-7-notes-none",
        GRACE,
        "return (blocker->seq & 1) != 0;",
        "return (blocker->seq & 1) > 1;",
        ("model grace",),
    ),
    Mutant(
        "grace-gone", GRACE, "ftb_load_acquire(", "ftb_load_relaxed(", ("model grace",)
    ),
    Mutant(
        "grace-gone-at-once",
        GRACE,
        "return ftb_load_acquire(&blocker->thread->seq) != blocker->seq;",
        "return blocker->seq != 0;",
        ("model grace",),
    ),
    # The map.
    Mutant(
        "map-remove-cuts-chain",
        MAP,
        "(uintptr_t)SLOT_REMOVED);",
        "(uintptr_t)SLOT_EMPTY);",
        ("test_map",),
    ),
    Mutant(
        "map-table-not-retired",
        MAP,
        "ftb_retire(&old->retired, old, table_free);",
        "table_free(&old->retired);",
        ("test_map thread",),
    ),
    Mutant(
        "map-table-published-empty",
        MAP,
        "    struct ftb_table *old = ftb_load_relaxed(&stripe->table); "
        "/* relaxed: locked */\n"
        "    for",
        "    struct ftb_table *old = ftb_load_relaxed(&stripe->table);\n"
        "    ftb_store_seq_cst(&stripe->table, fresh);\n"
        "    sched_yield();\n"
        "    for",
        ("test_map",),
    ),
    Mutant(
        "map-slot-load",
        MAP,
        "ftb_load_seq_cst(&table->slots[i])",
        "ftb_load_relaxed(&table->slots[i])",
        ("test_map thread",),
    ),
    Mutant(
        "map-table-load",
        MAP,
        "ftb_load_seq_cst(&map_stripe",
        "ftb_load_relaxed(&map_stripe",
        ("test_map thread",),
    ),
    Mutant(
        "map-table-relaxed",
        MAP,
        "ftb_store_seq_cst(&stripe->table",
        "ftb_store_relaxed(&stripe->table",
        ("test_map thread",),
    ),
    Mutant(
        "map-slot-relaxed",
        MAP,
        "ftb_store_seq_cst(&table->slots[i], slot",
        "ftb_store_relaxed(&table->slots[i], slot",
        ("test_map thread",),
    ),
    Mutant(
        "map-keeps-removed",
        MAP,
        "stripe->removed_n++;",
        "(void)stripe;",
        ("test_map",),
    ),
    Mutant(
        "map-tag-of-the-slot",
        MAP,
        "(hash >> 40)",
        "(hash >> 8)",
        ("test_map",),
    ),
    # The hash.
    Mutant(
        "hash-last-block",
        HASH,
        "in_block == STRIPES_PER_BLOCK - 1",
        "in_block == STRIPES_PER_BLOCK",
        ("test_key",),
    ),
    Mutant(
        "hash-17-to-240-boundary",
        HASH,
        "if (len <= 128) {",
        "if (len < 128) {",
        ("test_key",),
    ),
)
