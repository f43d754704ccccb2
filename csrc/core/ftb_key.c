#include "ftb_key.h"

enum ftb_result
ftb_key_init(struct ftb_key *key, const struct ftb_keyview *view)
{
    uint8_t *target = key->bytes.in_place;
    if (view->len_bytes > FTB_KEY_INLINE_BYTES) {
        target = ftb_alloc(view->len_bytes);
        if (target == NULL) {
            return FTB_NOMEM;
        }
        key->bytes.heap = target;
    }
    memcpy(target, view->data, view->len_bytes);
    key->hash = view->hash;
    key->len_bytes = view->len_bytes & FTB_KEY_MAX_BYTES; /* which it does not exceed */
    key->kind = view->kind & 7u;
    return FTB_OK;
}

void
ftb_key_fini(struct ftb_key *key)
{
    if (key->len_bytes > FTB_KEY_INLINE_BYTES) {
        ftb_free(key->bytes.heap);
    }
    key->len_bytes = 0;
}
