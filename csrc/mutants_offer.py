"""The mutants of the offer: an open batch, and who watches it.

See mutants.py.
"""

from __future__ import annotations

from mutants_base import Mutant

OFFER = "core/ftb_offer.h"
POOL_OFFER = "core/ftb_pool_offer.c"
WATCH_MODEL = "models/watch.cpp"

OFFERS: tuple[Mutant, ...] = (
    # The offer: what is left of an open batch.
    Mutant(
        "offer-open",
        OFFER,
        "ftb_store_seq_cst(&offer->word",
        "ftb_store_relaxed(&offer->word",
        ("model offer", "test_pool_offer thread"),
    ),
    Mutant(
        "offer-open-release",
        OFFER,
        "ftb_store_seq_cst(&offer->word",
        "ftb_store_release(&offer->word",
        ("model watch",),
    ),
    Mutant(
        "offer-look",
        OFFER,
        "ftb_load_seq_cst(&offer->word",
        "ftb_load_acquire(&offer->word",
        ("model watch",),
    ),
    Mutant(
        "offer-copied",
        OFFER,
        "ftb_sub_release(&offer->word",
        "ftb_sub_relaxed(&offer->word",
        ("model offer",),
    ),
    Mutant(
        "offer-close",
        OFFER,
        "ftb_load_acquire(&offer->word",
        "ftb_load_relaxed(&offer->word",
        ("model offer",),
    ),
    Mutant(
        "offer-closed-too-soon",
        OFFER,
        "(word & FTB_OFFER_COPIERS) == 0;",
        "word != 0;",
        ("model offer",),
    ),
    Mutant(
        "offer-opening-unnumbered",
        OFFER,
        "& ~(FTB_OFFER_OPENING_ONE - 1)) + FTB_OFFER_OPENING_ONE;",
        "& ~(FTB_OFFER_OPENING_ONE - 1));",
        ("model offer",),
    ),
    Mutant(
        "offer-stolen-uncounted",
        OFFER,
        "FTB_OFFER_NEXT_ONE + FTB_OFFER_STOLEN_ONE;",
        "FTB_OFFER_NEXT_ONE;",
        ("model offer", "test_pool_offer"),
    ),
    # Who watches the open batches; as ftb_pool_offer.c has it, in the model.
    Mutant(
        "watch-offered",
        WATCH_MODEL,
        "if (ftb_load_seq_cst(&watchers_n) == 0) { /* O2",
        "if (ftb_load_acquire(&watchers_n) == 0) { /* O2",
        ("model watch",),
    ),
    Mutant(
        "watch-asleep",
        WATCH_MODEL,
        "is_open && ftb_load_seq_cst(&watchers_n)",
        "is_open && ftb_load_acquire(&watchers_n)",
        ("model watch",),
    ),
    Mutant(
        "watch-given-up",
        WATCH_MODEL,
        "ftb_sub_seq_cst(&watchers_n, 1); /* V2 */",
        "ftb_sub_acq_rel(&watchers_n, 1); /* V2 */",
        ("model watch",),
    ),
    Mutant(
        "watch-ended",
        WATCH_MODEL,
        "ftb_sub_seq_cst(&watchers_n, 1); /* V2 */",
        "ftb_sub_acq_rel(&watchers_n, 1); /* V2 */",
        ("model watch",),
        nth=2,
    ),
    Mutant(
        "watch-not-handed-on",
        WATCH_MODEL,
        "if (ftb_idle_has_any(&idle)",
        "if (false && ftb_idle_has_any(&idle)",
        ("model watch",),
    ),
    Mutant(
        "watch-nobody-woken",
        WATCH_MODEL,
        "            wake();\n        }\n        while",
        "        }\n        while",
        ("model watch",),
    ),
    Mutant(
        "pool-offer-wakes-nobody",
        POOL_OFFER,
        "if (FTB_UNLIKELY(!has_watcher(pool))) {",
        "if (pool == NULL) {",
        ("test_pool_offer",),
    ),
    Mutant(
        "pool-sleeps-beside-an-offer",
        POOL_OFFER,
        "if (!*watches && look.is_open && !has_watcher(pool)) {",
        "if (pool == NULL) {",
        ("test_pool_offer",),
    ),
    Mutant(
        "pool-offer-wakes-for-each",
        POOL_OFFER,
        "&& look.openings == before.openings) {",
        "|| look.openings != before.openings) {",
        ("test_pool_offer",),
    ),
    Mutant(
        "pool-finishes-what-was-taken",
        POOL_OFFER,
        "    batch->n -= stolen_n;\n",
        "",
        ("test_pool_offer",),
    ),
)
