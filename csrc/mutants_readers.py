"""The mutants of what readers read without a lock: keys, map, topics, counters.

Rows for mutants.py: name, file, text to replace, its replacement, the checks that must
notice. Each text occurs once, or the first occurrence is meant.
"""

from __future__ import annotations

RECLAIM = "core/ftb_reclaim.h"
RECLAIM_C = "core/ftb_reclaim.c"
RECLAIM_MODEL = "models/reclaim.cpp"
MAP = "core/ftb_map.c"
SNAPSHOT = "core/ftb_snapshot.c"
TOPIC = "core/ftb_topic.c"
SHARD = "core/ftb_shard.c"
HASH = "core/ftb_xxh3.c"

READERS: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    # Reclamation: the numbers are those of core/ftb_reclaim.c; (2) and (6) are broken
    # in the model, which has them as ftb_map.c, ftb_topic.c and their callers do.
    (
        "reclaim-1-enter",
        RECLAIM,
        "ftb_store_seq_cst(",
        "ftb_store_release(",
        ("model reclaim",),
    ),
    (
        "reclaim-2-table",
        RECLAIM_MODEL,
        "ftb_load_seq_cst(&link)",
        "ftb_load_acquire(&link)",
        ("model reclaim",),
    ),
    (
        "reclaim-2-thing",
        RECLAIM_MODEL,
        "ftb_load_seq_cst(&in_table->slot)",
        "ftb_load_acquire(&in_table->slot)",
        ("model reclaim",),
    ),
    (
        "reclaim-3-hold",
        RECLAIM,
        "ftb_store_release(&thread->hazard[slot]",
        "ftb_store_relaxed(&thread->hazard[slot]",
        ("model reclaim",),
    ),
    (
        "reclaim-4-leave",
        RECLAIM,
        "ftb_store_release(&thread->seq",
        "ftb_store_relaxed(&thread->seq",
        ("model reclaim",),
    ),
    (
        "reclaim-5-drop",
        RECLAIM,
        "ftb_store_release(&thread->hazard[--",
        "ftb_store_relaxed(&thread->hazard[--",
        ("model reclaim",),
    ),
    (
        "reclaim-6-thing",
        RECLAIM_MODEL,
        "ftb_exchange_seq_cst(",
        "ftb_exchange_acq_rel(",
        ("model reclaim",),
    ),
    (
        "reclaim-6-table",
        RECLAIM_MODEL,
        "ftb_store_seq_cst(&link",
        "ftb_store_release(&link",
        ("model reclaim",),
    ),
    (
        "reclaim-7-first-look",
        RECLAIM,
        "uint64_t seen = ftb_load_seq_cst(",
        "uint64_t seen = ftb_load_acquire(",
        ("model reclaim",),
    ),
    (
        "reclaim-7-next-look",
        RECLAIM,
        "ftb_load_seq_cst(&thread->seq) == seen",
        "ftb_load_relaxed(&thread->seq) == seen",
        ("model reclaim",),
    ),
    (
        "reclaim-7-impatient",
        RECLAIM,
        "            return false;\n        }\n        ftb_relax",
        "            return true;\n        }\n        ftb_relax",
        (
            "model reclaim",
            "test_reclaim",
        ),
    ),
    (
        "reclaim-8-scan",
        RECLAIM,
        "ftb_load_acquire(&thread->hazard[i])",
        "ftb_load_relaxed(&thread->hazard[i])",
        ("model reclaim",),
    ),
    (
        "reclaim-peak-forgotten",
        RECLAIM,
        "if (FTB_UNLIKELY(thread->depth > ftb_load_relaxed(&thread->depth_peak))) {",
        "if (ftb_load_relaxed(&thread->depth_peak) == 0) {",
        (
            "model reclaim",
            "test_reclaim",
        ),
    ),
    (
        "reclaim-push",
        RECLAIM,
        "ftb_cas_seq_cst(",
        "ftb_cas_acq_rel(",
        ("model reclaim",),
    ),
    (
        "reclaim-push-relaxed",
        RECLAIM,
        "ftb_cas_seq_cst(",
        "ftb_cas_relaxed(",
        (
            "model reclaim",
            "test_reclaim_threads thread",
        ),
    ),
    (
        "reclaim-list-head",
        RECLAIM,
        "ftb_load_seq_cst(&threads->head)",
        "ftb_load_acquire(&threads->head)",
        ("model reclaim",),
    ),
    (
        "reclaim-own",
        RECLAIM,
        "ftb_cas_acquire(",
        "ftb_cas_relaxed(",
        (
            "model reclaim",
            "test_reclaim_threads thread",
        ),
    ),
    (
        "reclaim-disown",
        RECLAIM,
        "ftb_store_release(&thread->in_use",
        "ftb_store_relaxed(&thread->in_use",
        (
            "model reclaim",
            "test_reclaim_threads thread",
        ),
    ),
    (
        "reclaim-disown-holding",
        RECLAIM,
        "while (thread->depth > 0)",
        "for (thread->depth = 0; thread->depth > 0;)",
        ("test_reclaim_threads",),
    ),
    (
        "reclaim-retire",
        RECLAIM_C,
        "ftb_cas_release(&retired",
        "ftb_cas_relaxed(&retired",
        ("test_reclaim_threads thread",),
    ),
    (
        "reclaim-sections-ignored",
        RECLAIM_C,
        "ftb__sections_closed(&threads) && hazard",
        "hazard",
        ("test_reclaim",),
    ),
    (
        "reclaim-looks-once",
        RECLAIM_C,
        "        if (ftb_load_acquire(&retired) == NULL) {\n            break;",
        "        if (round == 0) {\n            break;",
        ("test_reclaim",),
    ),
    (
        "reclaim-blind-without-memory",
        RECLAIM_C,
        "        if (grown == NULL) {\n            return false;",
        "        if (grown == NULL) {\n            return true;",
        ("test_reclaim",),
    ),
    (
        "reclaim-fork-unlocked",
        RECLAIM_C,
        "pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork);",
        "(void)lock_for_fork, (void)unlock_after_fork;",
        ("test_reclaim_threads",),
    ),
    (
        "reclaim-fork-keeps-slots",
        RECLAIM_C,
        "i < FTB_DEPTH_MAX; i++",
        "i < thread->depth * 0; i++",
        ("test_reclaim_threads",),
    ),
    # The map.
    (
        "map-remove-cuts-chain",
        MAP,
        "(uintptr_t)SLOT_REMOVED);",
        "(uintptr_t)SLOT_EMPTY);",
        ("test_map",),
    ),
    (
        "map-table-not-retired",
        MAP,
        "ftb_retire(&old->retired, old, table_free);",
        "table_free(&old->retired);",
        ("test_map thread",),
    ),
    (
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
    (
        "map-slot-relaxed",
        MAP,
        "ftb_store_seq_cst(&table->slots[i], slot",
        "ftb_store_relaxed(&table->slots[i], slot",
        ("test_map thread",),
    ),
    (
        "map-keeps-removed",
        MAP,
        "stripe->removed_n++;",
        "(void)stripe;",
        ("test_map",),
    ),
    (
        "map-tag-of-the-slot",
        MAP,
        "(hash >> 40)",
        "(hash >> 8)",
        ("test_map",),
    ),
    # Snapshots and topics.
    (
        "topic-frees-at-once",
        SNAPSHOT,
        "ftb_retire(ftb_snapshot_retired(snapshot), snapshot, snapshot_free);",
        "(void)snapshot_free, ftb_snapshot_discard(snapshot);",
        (
            "test_topic_stress",
            "test_topic_stress address,undefined",
        ),
    ),
    (
        "topic-release-relaxed",
        SNAPSHOT,
        "ftb_sub_acq_rel(",
        "ftb_sub_relaxed(",
        ("test_topic_stress thread",),
    ),
    (
        "topic-equal-priority-first",
        SNAPSHOT,
        "handlers[i]->priority < added",
        "handlers[i]->priority <= added",
        ("test_topic",),
    ),
    (
        "topic-add-after-close",
        TOPIC,
        "if (ftb_load_acquire(&bus->is_closed) == 0) {",
        "if (bus != NULL) {",
        ("test_topic_stress",),
    ),
    (
        "topic-cancels-before-memory",
        TOPIC,
        "        struct ftb_snapshot *room = ftb_snapshot_reserve(old->n);\n",
        "        *removed_n = handlers_cancel_locked(old, match, context);\n"
        "        struct ftb_snapshot *room = ftb_snapshot_reserve(old->n);\n",
        ("test_topic",),
    ),
    (
        "topic-waits-for-any-older",
        TOPIC,
        "    while (i < snapshot->n "
        "&& ftb_snapshot_handlers(snapshot)[i] != handler) {\n"
        "        i++;",
        "    while (i < snapshot->n\n"
        "           && ftb_load_acquire(&snapshot->topic->snapshot) == snapshot) {\n"
        "        i++;",
        ("test_topic",),
    ),
    (
        "topic-waits-for-nobody",
        TOPIC,
        "while (ftb_hazard_find(",
        "while (handler == NULL && ftb_hazard_find(",
        ("test_topic",),
    ),
    # Counters.
    (
        "shard-page-relaxed",
        SHARD,
        "ftb_store_release(&directory->pages",
        "ftb_store_relaxed(&directory->pages",
        ("test_shard thread",),
    ),
    (
        "shard-directory-relaxed",
        SHARD,
        "ftb_store_release(&shard->directory",
        "ftb_store_relaxed(&shard->directory",
        ("test_shard thread",),
    ),
    (
        "shard-frees-old-directory",
        SHARD,
        "    ftb_store_release(&shard->directory, grown); "
        "/* pairs with ftb_shard_sum */\n",
        "    ftb_store_release(&shard->directory, grown);\n"
        "    ftb_free(old);\n"
        "    grown->shorter = NULL;\n",
        ("test_shard thread",),
    ),
    (
        "shard-id-unzeroed",
        SHARD,
        "ftb_thread_each(zero_one, &id);",
        "(void)zero_one;",
        ("test_shard",),
    ),
    # The hash.
    (
        "hash-last-block",
        HASH,
        "in_block == STRIPES_PER_BLOCK - 1",
        "in_block == STRIPES_PER_BLOCK",
        ("test_key",),
    ),
    (
        "hash-17-to-240-boundary",
        HASH,
        "if (len <= 128) {",
        "if (len < 128) {",
        ("test_key",),
    ),
)

# File, what, why: as for Unseen in mutants.py.
UNSEEN_READERS = (
    (
        TOPIC,
        "the exchange of the snapshot, (6): seq_cst; likewise the stores of table and "
        "slot in core/ftb_map.c and the loads (2) of their readers",
        "an exchange is a full barrier on x86, whatever its order; the model makes the "
        "same accesses in models/reclaim.cpp, and there weaker ones are noticed",
    ),
    (
        RECLAIM,
        "the second and later look of (7): seq_cst",
        "more than is needed, acquire would do: a different value is a later one, and "
        "the first look has decided the order",
    ),
    (
        RECLAIM,
        "(3), (5) and (8) under ThreadSanitizer",
        "the races last for a few instructions between two sections of one thread; "
        "only the model meets them",
    ),
    (
        SNAPSHOT,
        "is_kept's load of the state: acquire",
        "more than is needed: it runs under the stripe's lock, as the cancel did",
    ),
    (
        RECLAIM_C,
        "a half-written front cache entry in a fork's child",
        "it takes a fork between two stores of another thread to one entry",
    ),
)
