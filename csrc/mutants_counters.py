"""The mutants of counters: shards, histograms, tallies of handlers, choices of timing.

See mutants.py.
"""

from __future__ import annotations

from mutants_base import Mutant

SHARD = "core/ftb_shard.c"
HISTOGRAM = "core/ftb_histogram.c"
TALLY = "core/ftb_tally.c"
TALLY_H = "core/ftb_tally.h"
TOPIC = "core/ftb_topic.c"
TOPIC_H = "core/ftb_topic.h"
INDEX = "core/ftb_topic_index.c"

COUNTERS: tuple[Mutant, ...] = (
    Mutant(
        "shard-page-relaxed",
        SHARD,
        "ftb_store_release(&directory->pages",
        "ftb_store_relaxed(&directory->pages",
        ("test_shard thread",),
    ),
    Mutant(
        "shard-directory-relaxed",
        SHARD,
        "ftb_store_release(&shard->directory",
        "ftb_store_relaxed(&shard->directory",
        ("test_shard thread",),
    ),
    Mutant(
        "shard-page-load",
        SHARD,
        "ftb_load_acquire(&directory",
        "ftb_load_relaxed(&directory",
        ("test_shard thread",),
    ),
    Mutant(
        "shard-directory-load",
        SHARD,
        "ftb_load_acquire(&shard",
        "ftb_load_relaxed(&shard",
        ("test_shard thread",),
    ),
    Mutant(
        "shard-frees-old-directory",
        SHARD,
        "    ftb_store_release(&shard->directory, grown); "
        "/* pairs with ftb_shard_sum */\n",
        "    ftb_store_release(&shard->directory, grown);\n"
        "    ftb_free(old);\n"
        "    grown->shorter = NULL;\n",
        ("test_shard thread",),
    ),
    Mutant(
        "shard-id-unzeroed",
        SHARD,
        "ftb_thread_each(zero_one, &id);",
        "(void)zero_one;",
        ("test_shard",),
    ),
    Mutant(
        "histogram-octave-relaxed",
        HISTOGRAM,
        "ftb_store_release(",
        "ftb_store_relaxed(",
        ("test_histogram thread",),
    ),
    Mutant(
        "histogram-octave-load",
        HISTOGRAM,
        "ftb_load_acquire(",
        "ftb_load_relaxed(",
        ("test_histogram thread",),
    ),
    Mutant(
        "histogram-forgets-clamp",
        "core/ftb_histogram.h",
        "ns = ns < FTB_HISTOGRAM_MAX_NS ? ns : FTB_HISTOGRAM_MAX_NS;",
        "",
        ("test_histogram",),
    ),
    Mutant(
        "histogram-half-octave",
        "core/ftb_histogram.h",
        "bits > FTB_HISTOGRAM_BITS + 1 ?",
        "bits > FTB_HISTOGRAM_BITS + 2 ?",
        ("test_histogram",),
    ),
    Mutant(
        "shard-ledger-relaxed",
        SHARD,
        "ftb_store_release(&cell->ledger",
        "ftb_store_relaxed(&cell->ledger",
        ("test_tally thread",),
    ),
    Mutant(
        "shard-times-relaxed",
        SHARD,
        "ftb_store_release(&ledger->times",
        "ftb_store_relaxed(&ledger->times",
        ("test_tally thread",),
    ),
    Mutant(
        "shard-ledger-load",
        SHARD,
        "ledger = ftb_load_acquire(&cell->ledger);",
        "ledger = ftb_load_relaxed(&cell->ledger);",
        ("test_tally thread",),
    ),
    Mutant(
        "shard-times-ledger-load",
        SHARD,
        "cell != NULL ? ftb_load_acquire(",
        "cell != NULL ? ftb_load_relaxed(",
        ("test_tally thread",),
    ),
    Mutant(
        "shard-times-load",
        SHARD,
        "ftb_load_acquire(&ledger->times",
        "ftb_load_relaxed(&ledger->times",
        ("test_tally thread",),
    ),
    Mutant(
        "shard-slowest-unzeroed",
        SHARD,
        "    ftb_store_relaxed(&page->slowest[id % FTB_PAGE_CELLS], (uint16_t)0);\n",
        "",
        ("test_shard",),
    ),
    Mutant(
        "shard-page-without-ledgers",
        SHARD,
        "totals->emitted += ftb_load_relaxed(&ledger->emitted);",
        "",
        ("test_shard",),
    ),
    Mutant(
        "histogram-split-wraps",
        HISTOGRAM,
        "whole->counts[i] <= part->counts[i]",
        "whole->counts[i] == part->counts[i]",
        ("test_histogram",),
    ),
    Mutant(
        "index-stale",
        INDEX,
        "bus->index == fresh || ftb_topic_index_is_whole(bus->index, bus)",
        "true",
        ("test_topic_index",),
    ),
    Mutant(
        "index-of-another",
        INDEX,
        "bus->index == fresh ||",
        "fresh != NULL ||",
        ("test_topic_index_race",),
    ),
    Mutant(
        "index-freed-in-use",
        INDEX,
        "index->refs++;",
        "",
        ("test_topic_index address,undefined",),
    ),
    Mutant(
        "topic-subscribed-again",
        TOPIC,
        "&topic->bus->subscribed, after - before",
        "&topic->bus->subscribed, after",
        ("test_topic_index",),
    ),
    Mutant(
        "tally-push",
        TALLY,
        "ftb_cas_release(",
        "ftb_cas_relaxed(",
        ("test_tally thread",),
    ),
    Mutant(
        "tally-time",
        TALLY,
        "ftb_store_release(&tally->time",
        "ftb_store_relaxed(&tally->time",
        ("test_tally thread",),
    ),
    Mutant(
        "tally-time-load",
        TALLY,
        "ftb_load_acquire(&tally->time",
        "ftb_load_relaxed(&tally->time",
        ("test_tally thread",),
    ),
    Mutant(
        "tally-find",
        TALLY,
        "ftb_load_acquire(&handler->tallies",
        "ftb_load_relaxed(&handler->tallies",
        ("test_tally thread",),
    ),
    Mutant(
        "tally-find-own",
        TALLY_H,
        "ftb_load_acquire(&handler->tallies",
        "ftb_load_relaxed(&handler->tallies",
        ("test_tally thread",),
    ),
    Mutant(
        "tally-late-handlers",
        TALLY,
        "handler->first_version <= old_version",
        "true",
        ("test_tally",),
    ),
    Mutant(
        "tally-unmarked",
        TALLY,
        "        ftb_count_local(&ledger->mark, UINT64_MAX); /* one less */",
        "        (void)ledger;",
        ("test_tally",),
    ),
    Mutant(
        "timing-choice",
        TOPIC,
        "ftb_store_release(&bus->choices",
        "ftb_store_relaxed(&bus->choices",
        ("test_tally thread",),
    ),
    Mutant(
        "timing-choice-load",
        TOPIC_H,
        "ftb_load_acquire(&topic->bus->choices)",
        "ftb_load_relaxed(&topic->bus->choices)",
        ("test_tally thread",),
    ),
)
