/* Compact keys: a kind, a length, an XXH3 hash and up to 24 bytes in place.
 *
 * Equality compares kind and bytes, never calls back into user code. A key is immutable
 * once initialised, so any thread may read it. */
#ifndef FTB_KEY_H
#define FTB_KEY_H

#include <string.h>

#include "ftb_base.h"
#include "ftb_xxh3.h"

#define FTB_KEY_INLINE_BYTES 24 /* ftb__short_bytes_equal knows */

/* No key is longer. */
#define FTB_KEY_MAX_BYTES ((1u << 29) - 1)

enum ftb_key_kind {
    FTB_KEY_STR = 1,    /* bytes are UTF-8 */
    FTB_KEY_BYTES = 2,  /* bytes are themselves */
    FTB_KEY_INT = 3,    /* bytes are a little-endian int64_t */
    FTB_KEY_OBJECT = 4, /* bytes are an address: the object is its own identity */
    FTB_KEY_CLASS = 5, /* likewise, and events reach the handlers of base classes too */
};

/* A borrowed key, as a caller passes it in. `data` lives as long as the call. */
struct ftb_keyview {
    uint64_t hash;
    const void *data;
    uint32_t len_bytes;
    uint8_t kind;
};

/* A stored key. Longer than FTB_KEY_INLINE_BYTES: the bytes are on the heap. */
struct ftb_key {
    uint64_t hash;
    union {
        uint8_t in_place[FTB_KEY_INLINE_BYTES];
        uint8_t *heap;
    } bytes;
    uint32_t len_bytes : 29;
    uint32_t kind : 3;
    uint32_t
        owner_id; /* the owner's own, in what would be padding; no part of the key */
};

/* Make *view the view of `data`; hash is XXH3-64 of the bytes. Field by field, in place: a
 * struct returned by value is copied with wide loads that wait for the narrow stores
 * before them, about 10 ns per look-up. */
static inline void
ftb_keyview_init(
    struct ftb_keyview *view, enum ftb_key_kind kind, const void *data,
    uint32_t len_bytes)
{
    view->hash = ftb_xxh3_64(data, len_bytes);
    view->data = data;
    view->len_bytes = len_bytes;
    view->kind = (uint8_t)kind;
}

/* Copy the view, of at most FTB_KEY_MAX_BYTES, into *key. Returns FTB_NOMEM if a long key finds no memory. */
FTB_MUST_USE enum ftb_result
ftb_key_init(struct ftb_key *key, const struct ftb_keyview *view);

void ftb_key_fini(struct ftb_key *key);

static inline const void *
ftb_key_bytes(const struct ftb_key *key)
{
    return key->len_bytes <= FTB_KEY_INLINE_BYTES ? key->bytes.in_place
                                                  : key->bytes.heap;
}

static inline struct ftb_keyview
ftb_key_view(const struct ftb_key *key)
{
    return (struct ftb_keyview){
        key->hash, ftb_key_bytes(key), key->len_bytes, key->kind};
}

static inline uint64_t
ftb__load_u64(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline uint32_t
ftb__load_u32(const uint8_t *bytes)
{
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* Whether two keys of up to FTB_KEY_INLINE_BYTES have the same bytes, by words that may
 * overlap: a call of memcmp takes longer than the rest of a look-up. */
static inline bool
ftb__short_bytes_equal(const uint8_t *a, const uint8_t *b, uint32_t n)
{
    if (FTB_LIKELY(n >= 8)) {
        return ftb__load_u64(a) == ftb__load_u64(b)
               && ftb__load_u64(a + n - 8) == ftb__load_u64(b + n - 8)
               && (n <= 16 || ftb__load_u64(a + 8) == ftb__load_u64(b + 8));
    }
    if (n >= 4) {
        return ftb__load_u32(a) == ftb__load_u32(b)
               && ftb__load_u32(a + n - 4) == ftb__load_u32(b + n - 4);
    }
    return n == 0 || (a[0] == b[0] && a[n / 2] == b[n / 2] && a[n - 1] == b[n - 1]);
}

static inline bool
ftb_key_equals(const struct ftb_key *key, const struct ftb_keyview *view)
{
    if (key->hash != view->hash || key->len_bytes != view->len_bytes
        || key->kind != view->kind) {
        return false;
    }
    return FTB_LIKELY(view->len_bytes <= FTB_KEY_INLINE_BYTES)
               ? ftb__short_bytes_equal(
                     key->bytes.in_place, view->data, view->len_bytes)
               : memcmp(key->bytes.heap, view->data, view->len_bytes) == 0;
}

#endif
