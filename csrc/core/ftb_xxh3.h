/* XXH3-64 of a byte string: the hash of every compact key.
 *
 * Stable across processes, machines and byte orders of the host, so it may be used for
 * partitioning and routing. Algorithm: Yann Collet, xxHash specification, XXH3 64-bit
 * variant, default secret, seed 0. Pure function; any thread. */
#ifndef FTB_XXH3_H
#define FTB_XXH3_H

#include <stddef.h>
#include <stdint.h>

uint64_t ftb_xxh3_64(const void *data, size_t len_bytes);

#endif
