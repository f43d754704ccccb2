"""The mutants of the queue: chain, fan, ring, sleeping and waking, the pool.

See mutants.py.
"""

from __future__ import annotations

from mutants_base import Mutant
from mutants_offer import OFFERS
from mutants_strand import STRANDS

EVENTCOUNT_MODEL = "models/eventcount.cpp"
RING = "core/ftb_ring.h"
PARK = "core/ftb_park.h"
IDLE = "core/ftb_idle.h"
CHAIN = "core/ftb_chain.h"
FAN = "core/ftb_fan.h"
POOL_FAN = "core/ftb_pool_fan.c"
POST = "core/ftb_pool_post.c"
TAKE = "core/ftb_pool_take.c"
WAIT = "core/ftb_pool_wait.c"

QUEUE: tuple[Mutant, ...] = (
    # The chain: a ring is closed before the next one is used.
    Mutant(
        "chain-not-closed",
        CHAIN,
        "        ftb_ring_close(&chain->rings[level]); /* (2) */\n",
        "",
        ("model chain", "test_chain"),
    ),
    Mutant(
        "chain-passed",
        CHAIN,
        "ftb_load_seq_cst(&chain->rings[level].tail)",
        "ftb_load_acquire(&chain->rings[level].tail)",
        ("model chain",),
    ),
    Mutant(
        "chain-passed-too-soon",
        CHAIN,
        "== (head | FTB_RING_CLOSED)",
        "!= head",
        ("model chain", "test_chain"),
    ),
    # The fan: one event's handlers, claimed one by one.
    Mutant(
        "fan-free-load",
        FAN,
        "ftb_load_acquire(&fan->left_n)",
        "ftb_load_relaxed(&fan->left_n)",
        ("model fan", "test_pool_fan thread"),
    ),
    Mutant(
        "fan-open",
        FAN,
        "ftb_store_seq_cst(&fan->claim",
        "ftb_store_relaxed(&fan->claim",
        ("model fan", "test_pool_fan thread"),
    ),
    Mutant(
        "fan-claim",
        FAN,
        "ftb_cas_acquire(&fan->claim",
        "ftb_cas_relaxed(&fan->claim",
        ("model fan",),
    ),
    Mutant(
        "fan-done-acquire",
        FAN,
        "ftb_sub_acq_rel(&fan->left_n",
        "ftb_sub_acquire(&fan->left_n",
        ("model fan", "test_pool_fan thread"),
    ),
    Mutant(
        "fan-done-release",
        FAN,
        "ftb_sub_acq_rel(&fan->left_n",
        "ftb_sub_release(&fan->left_n",
        ("model fan",),
    ),
    Mutant(
        "fan-claimed-before-counted",
        POOL_FAN,
        "    ftb_add_seq_cst(&pool->word, FTB_WORD_UNFINISHED_ONE);\n",
        "",
        ("test_pool_fan",),
    ),
    Mutant(
        "fan-never-counted-down",
        POOL_FAN,
        "        ftb_sub_seq_cst(&pool->fans_n, 1);\n",
        "",
        ("test_pool_fan",),
    ),
    *OFFERS,
    # The ring: a cell goes from producer to consumer and back.
    Mutant(
        "ring-free-load",
        RING,
        "ftb_load_acquire(",
        "ftb_load_relaxed(",
        ("model ring", "test_ring thread"),
    ),
    Mutant(
        "ring-full-load",
        RING,
        "ftb_load_acquire(",
        "ftb_load_relaxed(",
        ("model ring", "test_ring thread"),
        nth=2,
    ),
    Mutant(
        "ring-full-load-more",
        RING,
        "ftb_load_acquire(",
        "ftb_load_relaxed(",
        ("model ring_several", "test_ring thread"),
        nth=3,
    ),
    Mutant(
        "ring-publish-relaxed",
        RING,
        "ftb_store_seq_cst(",
        "ftb_store_relaxed(",
        ("model ring", "test_ring thread"),
    ),
    Mutant(
        "ring-publish-release",
        RING,
        "ftb_store_seq_cst(",
        "ftb_store_release(",
        ("model park",),
    ),
    Mutant(
        "ring-free-store",
        RING,
        "ftb_store_release(",
        "ftb_store_relaxed(",
        ("model ring", "test_ring thread"),
    ),
    Mutant(
        "ring-empty-load",
        RING,
        "ftb_load_seq_cst(",
        "ftb_load_acquire(",
        ("model park",),
    ),
    Mutant(
        "ring-claim-unchecked",
        RING,
        "if (turn != ftb_ring_turn_at(ring, first + free_n)) {",
        "if (turn > ftb_ring_turn_at(ring, first + free_n)) {",
        ("model ring", "test_ring"),
    ),
    *STRANDS,
    # The parker and the waitset.
    Mutant(
        "parker-unpark-order",
        PARK,
        "ftb_exchange_release(",
        "ftb_exchange_relaxed(",
        ("model parker", "test_park thread"),
    ),
    Mutant(
        "parker-wake-order",
        PARK,
        "ftb_exchange_acquire(",
        "ftb_exchange_relaxed(",
        ("model parker",),
    ),
    Mutant(
        "parker-note-order",
        PARK,
        "ftb_exchange_acquire(",
        "ftb_exchange_relaxed(",
        ("model parker",),
        nth=2,
    ),
    Mutant(
        "parker-take-note-order",
        PARK,
        "ftb_cas_acquire(",
        "ftb_cas_relaxed(",
        ("model parker", "test_park thread"),
    ),
    Mutant(
        "parker-signal-unlocked",
        PARK,
        "    ftb_mutex_lock(&parker->mutex);\n    ftb_mutex_unlock(&parker->mutex);\n",
        "",
        ("model parker",),
    ),
    Mutant(
        "waitset-prepare",
        PARK,
        "ftb_add_seq_cst(",
        "ftb_add_acq_rel(",
        ("model eventcount",),
    ),
    Mutant(
        "waitset-notify",
        PARK,
        "ftb_load_seq_cst(",
        "ftb_load_acquire(",
        ("model eventcount",),
    ),
    Mutant(
        "waitset-epoch-unlocked",
        PARK,
        "    ftb_mutex_lock(&waitset->mutex);\n"
        "    /* Release: 1 above; waiters compare the epoch under the mutex. */\n"
        "    ftb_add_release(&waitset->word, UINT64_C(1) << 32);\n"
        "    ftb_mutex_unlock(&waitset->mutex);\n",
        "    ftb_add_release(&waitset->word, UINT64_C(1) << 32);\n",
        ("model eventcount",),
    ),
    Mutant(
        "waitset-epoch-still",
        PARK,
        "ftb_add_release(&waitset->word, UINT64_C(1) << 32)",
        "(void)0",
        ("model eventcount", "test_park"),
    ),
    Mutant(
        "relative-wait-believed",
        "core/ftb_park.c",
        "    return ftb_now_ns() >= deadline_ns;\n",
        "    return true;\n",
        ("test_park_relative",),
    ),
    # As the pool's admission word: changed before notify, looked at after prepare.
    Mutant(
        "eventcount-change",
        EVENTCOUNT_MODEL,
        "ftb_add_seq_cst(&slots_n",
        "ftb_add_acq_rel(&slots_n",
        ("model eventcount",),
    ),
    Mutant(
        "eventcount-look",
        EVENTCOUNT_MODEL,
        "if (ftb_load_seq_cst(&slots_n)",
        "if (ftb_load_acquire(&slots_n)",
        ("model eventcount",),
    ),
    # The idle bits.
    Mutant("idle-set", IDLE, "ftb_or_seq_cst(", "ftb_or_acq_rel(", ("model park",)),
    Mutant(
        "idle-has-any-order",
        IDLE,
        "ftb_load_seq_cst(",
        "ftb_load_acquire(",
        ("model park_chain",),
    ),
    Mutant(
        "idle-claim",
        IDLE,
        "ftb_load_seq_cst(",
        "ftb_load_acquire(",
        ("model park",),
        nth=2,
    ),
    Mutant(
        "idle-claim-swap", IDLE, "ftb_cas_release(", "ftb_cas_relaxed(", ("model idle",)
    ),
    Mutant(
        "idle-clear-look",
        IDLE,
        "ftb_load_acquire(",
        "ftb_load_relaxed(",
        ("model idle",),
    ),
    Mutant(
        "idle-clear-swap", IDLE, "ftb_and_acq_rel(", "ftb_and_release(", ("model idle",)
    ),
    Mutant(
        "idle-has-any",
        IDLE,
        "&idle->words[i]) != 0",
        "&idle->words[i]) != 0 && i == idle->words_n",
        ("model park_chain",),
    ),
    Mutant("idle-clear-nothing", IDLE, "word & ~bit)", "word)", ("test_park",)),
    # The pool: bounds, close, and every wake-up.
    Mutant(
        "pool-bound",
        POST,
        "pool->queue_size - ftb__word_queued(word)",
        "pool->queue_size + 1 - ftb__word_queued(word)",
        ("test_pool", "test_pool_stress"),
    ),
    Mutant(
        "pool-close-ignored",
        POST,
        "(word & FTB_WORD_CLOSED) != 0",
        "word == 0 && pool == NULL",
        ("test_pool_close",),
    ),
    Mutant(
        "pool-post-wakes-nobody",
        POST,
        "    ftb__pool_put(pool, ring_ix, item, 1, FTB_RING_PLAIN);\n        }\n"
        "        ftb__pool_wake(pool, ring_ix);",
        "    ftb__pool_put(pool, ring_ix, item, 1, FTB_RING_PLAIN);\n        }",
        ("test_pool_stress",),
    ),
    Mutant(
        "pool-token-wakes-nobody",
        POST,
        "strand, true);",
        "strand, false);",
        ("test_pool_stress",),
    ),
    # The pause widens a gap of nanoseconds, which the second look closes.
    Mutant(
        "pool-no-second-look",
        WAIT,
        "    ftb_idle_set(&pool->idle, worker_ix);\n"
        "    bool has_found = ftb__pool_has_work(pool, worker_ix)",
        "    nanosleep(&(struct timespec){.tv_nsec = 30000}, NULL);\n"
        "    ftb_idle_set(&pool->idle, worker_ix);\n"
        "    bool has_found = false",
        ("test_pool_stress",),
    ),
    Mutant(
        "pool-take-wakes-nobody",
        TAKE,
        "if (ftb_idle_has_any(&pool->idle)",
        "if (pool == NULL",
        ("test_pool_stress",),
    ),
    Mutant(
        "pool-space-wakes-nobody",
        TAKE,
        "if (queued_n > 0 && ftb__word_queued(word) <= pool->room_queued) {",
        "if (queued_n > 1000) {",
        ("test_pool_stress",),
    ),
    Mutant(
        "pool-space-not-passed-on",
        WAIT,
        "(has_at_most(pool, pool->room_queued)) {\n            ftb_waitset_notify(",
        "(pool == NULL) {\n            ftb_waitset_notify(",
        ("test_pool_close",),
    ),
    Mutant(
        "pool-drain-wakes-nobody",
        TAKE,
        "if (unfinished_n > 0",
        "if (unfinished_n > 1000",
        ("test_pool_stress",),
    ),
    Mutant(
        "pool-forgets-partition",
        TAKE,
        "if (batch->strand != NULL && ftb_strand_end_local(batch->strand)) {",
        "if (batch->strand != NULL && !ftb_strand_end_local(batch->strand)) {",
        ("test_pool",),
    ),
    Mutant(
        "pool-ignores-stop",
        TAKE,
        "ftb_load_acquire(&pool->is_stopped)",
        "pool == NULL",
        ("test_pool_close",),
    ),
    # Lingering: only if something is queued, too little, and until its time is over.
    Mutant(
        "pool-lingers-with-an-empty-queue",
        TAKE,
        "return queued_n > 0 && 2 *",
        "return 2 *",
        ("test_pool_linger",),
    ),
    Mutant(
        "pool-lingers-with-enough",
        TAKE,
        "2 * (uint64_t)(batch->n + queued_n) < worker->batch_n",
        "batch->n < worker->batch_n",
        ("test_pool_linger",),
    ),
    Mutant(
        "pool-never-lingers",
        WAIT,
        "while (worker->stamp_ns < worker->linger_until_ns) {",
        "while (pool == NULL) {",
        ("test_pool_linger",),
    ),
    Mutant(
        "pool-lingers-from-the-end",
        TAKE,
        "? batch->start_ns + pool->linger_ns",
        "? ftb_now_ns() + pool->linger_ns",
        ("test_pool_linger",),
    ),
)
