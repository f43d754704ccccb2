"""The mutants of topics: snapshots of handlers, waits for them.

See mutants.py.
"""

from __future__ import annotations

from mutants_base import Mutant

SNAPSHOT = "core/ftb_snapshot.c"
TOPIC = "core/ftb_topic.c"
TOPIC_H = "core/ftb_topic.h"
QUIET = "core/ftb_quiet.c"

TOPICS: tuple[Mutant, ...] = (
    # Snapshots and topics.
    Mutant(
        "topic-frees-at-once",
        SNAPSHOT,
        "ftb_retire(ftb_snapshot_retired(snapshot), snapshot, snapshot_free);",
        "(void)snapshot_free, ftb_snapshot_discard(snapshot);",
        (
            "test_topic_stress",
            "test_topic_stress address,undefined",
        ),
    ),
    Mutant(
        "topic-hold",
        TOPIC_H,
        "ftb_load_seq_cst(&topic->snapshot)",
        "ftb_load_relaxed(&topic->snapshot)",
        ("test_topic_stress thread",),
    ),
    Mutant(
        "topic-publish",
        TOPIC,
        "ftb_exchange_seq_cst(&topic->snapshot",
        "ftb_exchange_relaxed(&topic->snapshot",
        ("test_topic_stress thread",),
    ),
    Mutant(
        "topic-handler-acquire",
        SNAPSHOT,
        "ftb_sub_acq_rel(",
        "ftb_sub_release(",
        ("test_topic_stress thread",),
    ),
    Mutant(
        "topic-handler-release",
        SNAPSHOT,
        "ftb_sub_acq_rel(",
        "ftb_sub_acquire(",
        ("test_topic_stress thread",),
    ),
    Mutant(
        "topic-bus-acquire",
        TOPIC,
        "ftb_sub_acq_rel(",
        "ftb_sub_release(",
        ("test_topic_stress thread",),
    ),
    Mutant(
        "topic-bus-release",
        TOPIC,
        "ftb_sub_acq_rel(",
        "ftb_sub_acquire(",
        ("test_topic_stress thread",),
    ),
    Mutant(
        "topic-equal-priority-first",
        SNAPSHOT,
        "handlers[i]->priority < added",
        "handlers[i]->priority <= added",
        ("test_topic",),
    ),
    Mutant(
        "topic-add-after-close",
        TOPIC,
        "if (ftb_load_relaxed(&bus->is_closed) == 0) {",
        "if (bus != NULL) {",
        ("test_topic_stress",),
    ),
    Mutant(
        "topic-cancels-before-memory",
        TOPIC,
        "        struct ftb_snapshot *room = ftb_snapshot_reserve(old->n);\n",
        "        *removed_n = handlers_cancel_locked(old, match, context);\n"
        "        struct ftb_snapshot *room = ftb_snapshot_reserve(old->n);\n",
        ("test_topic",),
    ),
    Mutant(
        "topic-waits-for-any-older",
        QUIET,
        "    while (i < snapshot->n "
        "&& ftb_snapshot_handlers(snapshot)[i] != handler) {\n"
        "        i++;",
        "    while (i < snapshot->n\n"
        "           && ftb_load_acquire(&handler->topic->snapshot) == snapshot) {\n"
        "        i++;",
        ("test_topic",),
    ),
    Mutant(
        "topic-waits-for-nobody",
        QUIET,
        "while (ftb_hazard_find(",
        "while (handler == NULL && ftb_hazard_find(",
        ("test_topic",),
    ),
    # Waits for handlers.
    Mutant(
        "quiet-waits-for-itself",
        QUIET,
        "return is_held && wait->thread != other->thread;",
        "return is_held;",
        ("test_quiet",),
    ),
    Mutant(
        "quiet-looks-one-step",
        QUIET,
        "b->is_reached = has_grown = true;",
        "b->is_reached = true;",
        ("test_quiet",),
    ),
    Mutant(
        "quiet-looks-at-later-slots",
        QUIET,
        "i < other->depth",
        "i < other->thread->depth",
        ("test_quiet",),
    ),
    Mutant(
        "quiet-keeps-refused",
        QUIET,
        "    if (is_circle) {\n        remove_locked(wait);\n    }\n",
        "",
        ("test_quiet",),
    ),
    Mutant(
        "quiet-keeps-ended",
        QUIET,
        "        remove_locked(wait);\n        pthread_mutex_unlock",
        "        pthread_mutex_unlock",
        ("test_quiet",),
    ),
    Mutant(
        "quiet-unlocked",
        QUIET,
        "    pthread_mutex_lock(&lock);\n    wait->next",
        "    wait->next",
        ("test_quiet thread",),
    ),
    Mutant(
        "quiet-child-keeps-waits",
        QUIET,
        "    waits = NULL;\n}",
        "}",
        ("test_quiet",),
    ),
)
