/* Keys in tests. */
#ifndef FTB_TESTS_KEYS_H
#define FTB_TESTS_KEYS_H

#include "ftb_key.h"

/* The view of `data`, by value. */
static inline struct ftb_keyview
keyview_of(enum ftb_key_kind kind, const void *data, uint32_t len_bytes)
{
    struct ftb_keyview view;
    ftb_keyview_init(&view, kind, data, len_bytes);
    return view;
}

#endif
