#include "ftb_xxh3.h"

#include <string.h>

#define PRIME32_1 0x9E3779B1u
#define PRIME32_2 0x85EBCA77u
#define PRIME32_3 0xC2B2AE3Du
#define PRIME64_1 0x9E3779B185EBCA87u
#define PRIME64_2 0xC2B2AE3D27D4EB4Fu
#define PRIME64_3 0x165667B19E3779F9u
#define PRIME64_4 0x85EBCA77C2B2AE63u
#define PRIME64_5 0x27D4EB2F165667C5u
#define PRIME_MX1 0x165667919E3779F9u
#define PRIME_MX2 0x9FB21C651E98DF25u

#define SECRET_BYTES 192
#define STRIPE_BYTES 64
#define STRIPES_PER_BLOCK ((SECRET_BYTES - STRIPE_BYTES) / 8)

/* The specification's default secret: random bytes, part of the algorithm. */
static const uint8_t secret[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21,
    0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4,
    0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a,
    0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e,
    0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3,
    0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97,
    0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa,
    0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff,
    0xfa, 0x13, 0x63, 0xeb, 0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16,
    0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc,
    0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16,
    0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t
read64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline uint32_t
read32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}

static inline uint64_t
rotl64(uint64_t v, int bits)
{
    return (v << bits) | (v >> (64 - bits));
}

static inline uint64_t
mul128_fold64(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t
avalanche(uint64_t h)
{
    h ^= h >> 37;
    h *= PRIME_MX1;
    return h ^ (h >> 32);
}

static inline uint64_t
avalanche_xxh64(uint64_t h)
{
    h ^= h >> 33;
    h *= PRIME64_2;
    h ^= h >> 29;
    h *= PRIME64_3;
    return h ^ (h >> 32);
}

static inline uint64_t
mix16(const uint8_t *in, const uint8_t *key)
{
    return mul128_fold64(read64(in) ^ read64(key), read64(in + 8) ^ read64(key + 8));
}

static uint64_t
hash_0_to_16(const uint8_t *in, size_t len)
{
    if (len > 8) {
        uint64_t lo = read64(in) ^ (read64(secret + 24) ^ read64(secret + 32));
        uint64_t hi =
            read64(in + len - 8) ^ (read64(secret + 40) ^ read64(secret + 48));
        return avalanche(len + __builtin_bswap64(lo) + hi + mul128_fold64(lo, hi));
    }
    if (len >= 4) {
        uint64_t both = read32(in + len - 4) + ((uint64_t)read32(in) << 32);
        uint64_t h = both ^ (read64(secret + 8) ^ read64(secret + 16));
        h ^= rotl64(h, 49) ^ rotl64(h, 24);
        h *= PRIME_MX2;
        h ^= (h >> 35) + len;
        h *= PRIME_MX2;
        return h ^ (h >> 28);
    }
    if (len > 0) {
        uint32_t combined = ((uint32_t)in[0] << 16) | ((uint32_t)in[len >> 1] << 24)
                            | in[len - 1] | ((uint32_t)len << 8);
        return avalanche_xxh64(combined ^ (read32(secret) ^ read32(secret + 4)));
    }
    return avalanche_xxh64(read64(secret + 56) ^ read64(secret + 64));
}

static uint64_t
hash_17_to_240(const uint8_t *in, size_t len)
{
    uint64_t acc = len * PRIME64_1;
    if (len <= 128) {
        for (size_t i = (len - 1) / 32 + 1; i-- > 0;) {
            acc += mix16(in + 16 * i, secret + 32 * i);
            acc += mix16(in + len - 16 * (i + 1), secret + 32 * i + 16);
        }
        return avalanche(acc);
    }
    for (size_t i = 0; i < 8; i++) {
        acc += mix16(in + 16 * i, secret + 16 * i);
    }
    acc = avalanche(acc);
    for (size_t i = 8; i < len / 16; i++) {
        acc += mix16(in + 16 * i, secret + 16 * (i - 8) + 3);
    }
    return avalanche(acc + mix16(in + len - 16, secret + 136 - 17));
}

static void
accumulate_stripe(uint64_t acc[8], const uint8_t *in, const uint8_t *key)
{
    for (size_t i = 0; i < 8; i++) {
        uint64_t value = read64(in + 8 * i);
        uint64_t keyed = value ^ read64(key + 8 * i);
        acc[i ^ 1] += value;
        acc[i] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
    }
}

static void
scramble(uint64_t acc[8])
{
    const uint8_t *key = secret + SECRET_BYTES - STRIPE_BYTES;
    for (size_t i = 0; i < 8; i++) {
        acc[i] ^= acc[i] >> 47;
        acc[i] ^= read64(key + 8 * i);
        acc[i] *= PRIME32_1;
    }
}

static uint64_t
hash_long(const uint8_t *in, size_t len)
{
    uint64_t acc[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                       PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    size_t stripes_n = (len - 1) / STRIPE_BYTES;
    for (size_t i = 0; i < stripes_n; i++) {
        size_t in_block = i % STRIPES_PER_BLOCK;
        accumulate_stripe(acc, in + i * STRIPE_BYTES, secret + 8 * in_block);
        if (in_block == STRIPES_PER_BLOCK - 1) { /* never the last, shorter block's */
            scramble(acc);
        }
    }
    accumulate_stripe(
        acc, in + len - STRIPE_BYTES, secret + SECRET_BYTES - STRIPE_BYTES - 7);
    uint64_t h = len * PRIME64_1;
    for (size_t i = 0; i < 4; i++) {
        h += mul128_fold64(
            acc[2 * i] ^ read64(secret + 11 + 16 * i),
            acc[2 * i + 1] ^ read64(secret + 11 + 16 * i + 8));
    }
    return avalanche(h);
}

uint64_t
ftb_xxh3_64(const void *data, size_t len_bytes)
{
    const uint8_t *in = data;
    if (len_bytes <= 16) {
        return hash_0_to_16(in, len_bytes);
    }
    if (len_bytes <= 240) {
        return hash_17_to_240(in, len_bytes);
    }
    return hash_long(in, len_bytes);
}
