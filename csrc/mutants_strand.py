"""The mutants of the strand: the order within one partition.

See mutants.py.
"""

from __future__ import annotations

from mutants_base import Mutant

STRAND = "core/ftb_strand.h"

STRANDS: tuple[Mutant, ...] = (
    # The strand: links, the announcement, the hand-over of the ownership.
    Mutant(
        "strand-link-store",
        STRAND,
        "ftb_store_release(",
        "ftb_store_relaxed(",
        ("model strand", "test_strand thread"),
    ),
    Mutant(
        "strand-link-load",
        STRAND,
        "ftb_load_acquire(",
        "ftb_load_relaxed(",
        ("model strand", "test_strand thread"),
    ),
    Mutant(
        "strand-tail-acquire",
        STRAND,
        "ftb_exchange_acq_rel(",
        "ftb_exchange_release(",
        ("model strand",),
    ),
    Mutant(
        "strand-tail-release",
        STRAND,
        "ftb_exchange_acq_rel(",
        "ftb_exchange_acquire(",
        ("model strand",),
    ),
    Mutant(
        "strand-announce",
        STRAND,
        "ftb_exchange_release(",
        "ftb_exchange_relaxed(",
        ("model strand",),
    ),
    Mutant(
        "strand-begin",
        STRAND,
        "ftb_exchange_acquire(",
        "ftb_exchange_relaxed(",
        ("model strand", "test_strand thread"),
    ),
    Mutant(
        "strand-look-again",
        STRAND,
        "ftb_exchange_acquire(",
        "ftb_exchange_relaxed(",
        ("model strand",),
        nth=2,
    ),
    Mutant(
        "strand-let-go",
        STRAND,
        "ftb_cas_release(",
        "ftb_cas_relaxed(",
        ("model strand", "test_strand thread"),
    ),
    Mutant(
        "strand-let-go-blindly",
        STRAND,
        "if (ftb_cas_release(&strand->state, &state, FTB_STRAND_IDLE)) {",
        "if (ftb_exchange_acq_rel(&strand->state, FTB_STRAND_IDLE) < 9 + state) {",
        ("model strand",),
    ),
)
