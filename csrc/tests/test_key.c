/* ftb_xxh3.h and ftb_key.h: the hash against known values, keys of every length.
 *
 * A wrong branch, secret offset or block boundary in the hash changes partitions and
 * routing between versions; a wrong length limit reads past a key. */
#include "check.h"
#include "keys.h"

#include "ftb_key.h"
#include "ftb_xxh3.h"

struct known {
    uint32_t len_bytes;
    uint64_t hash;
};

/* xxh3_64 of the first len_bytes of pattern_byte(0), pattern_byte(1), ..., computed with
 * the reference implementation, xxHash 0.8. */
static const struct known known_hashes[] = {
    {0, 0x2d06800538d394c2u},    {1, 0x4c5cca45d0f4811fu},
    {2, 0x29c60963cbfa4e6eu},    {3, 0x6e3e2670e61106acu},
    {4, 0x5c4c63133443d03fu},    {5, 0x49f5eb3111280b63u},
    {6, 0x71655f8cab99dd4eu},    {7, 0x46a5c724d51fe43fu},
    {8, 0xf9fd4dd0b04d78f5u},    {9, 0x7c20df9712c26edfu},
    {10, 0x47261a89ca37d745u},   {11, 0xf817bcdc15e2dbf9u},
    {12, 0x16d2dff54dc2ee45u},   {13, 0x413d6b8b972b0623u},
    {14, 0xb67890b9c5261bbfu},   {15, 0xb345a7b2698ba575u},
    {16, 0x86abf6baccea0858u},   {17, 0xb58bf5dc5022d071u},
    {31, 0x48442fcd5518b086u},   {32, 0xe3712ed84c04a66eu},
    {33, 0xa4dee99b093e1f73u},   {64, 0x1291d2d4042330ddu},
    {65, 0x97c6bf83217e5ec9u},   {96, 0x81296929fc063365u},
    {97, 0xf145a45b658ab9ddu},   {128, 0x10d17f72c0ccba41u},
    {129, 0x1648bdc3db49d1a2u},  {144, 0xb46dbfc6d9e31abau},
    {239, 0xf0d154819adb16cdu},  {240, 0xb6cfaf343fab81e6u},
    {241, 0x956cae592c67279eu},  {256, 0xb15e550733c5dfacu},
    {1023, 0xc92d4d9179333a26u}, {1024, 0x47277c283bdebab9u},
    {1025, 0xd983ebe0192ed6a1u}, {1088, 0xdb403b4b0ef16868u},
    {1089, 0xd50c091c111a5fcbu}, {2048, 0x8fb3e264a45f1bffu},
    {2049, 0x8e78ecd82b0979d4u}, {5000, 0x1b329fd7e3156d85u},
};

#define KNOWN_N (sizeof known_hashes / sizeof known_hashes[0])
#define LONGEST_BYTES 5000

static uint64_t seed;

static uint8_t
pattern_byte(uint32_t i)
{
    return (uint8_t)((i * 131 + 7) ^ (i >> 8) * 29);
}

static void
pattern_fill(uint8_t *bytes, uint32_t len_bytes)
{
    for (uint32_t i = 0; i < len_bytes; i++) {
        bytes[i] = pattern_byte(i);
    }
}

/* On the heap and exactly as long, so that AddressSanitizer sees a read past it; at every
 * alignment, so that UndefinedBehaviorSanitizer sees a read that assumes one. */
static void
test_hash_is_the_reference(void)
{
    for (size_t k = 0; k < KNOWN_N; k++) {
        uint32_t len = known_hashes[k].len_bytes;
        for (uint32_t shift = 0; shift < 8; shift++) {
            uint8_t *bytes = malloc(len + shift + (len + shift == 0));
            CHECK(bytes != NULL);
            pattern_fill(bytes + shift, len);
            CHECK(ftb_xxh3_64(bytes + shift, len) == known_hashes[k].hash);
            free(bytes);
        }
    }
}

/* Each bit of the input must count, in every length class. */
static void
test_hash_depends_on_every_bit(void)
{
    static const uint32_t lens[] = {1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1100};
    uint8_t bytes[1100];
    for (size_t k = 0; k < sizeof lens / sizeof lens[0]; k++) {
        pattern_fill(bytes, lens[k]);
        uint64_t before = ftb_xxh3_64(bytes, lens[k]);
        for (uint32_t bit = 0; bit < lens[k] * 8; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK(ftb_xxh3_64(bytes, lens[k]) != before);
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        CHECK(ftb_xxh3_64(bytes, lens[k]) == before);
    }
}

static void
test_key_keeps_its_bytes(void)
{
    uint8_t bytes[LONGEST_BYTES];
    for (uint32_t len = 0; len <= 300; len++) {
        struct ftb_key key;
        pattern_fill(bytes, len);
        struct ftb_keyview view = keyview_of(FTB_KEY_BYTES, bytes, len);
        CHECK(view.hash == ftb_xxh3_64(bytes, len));
        CHECK(ftb_key_init(&key, &view) == FTB_OK);
        CHECK(ftb_key_equals(&key, &view));
        memset(bytes, 0xDD, sizeof bytes); /* the key must not point here */
        struct ftb_keyview stored = ftb_key_view(&key);
        CHECK(stored.len_bytes == len && stored.kind == FTB_KEY_BYTES);
        CHECK(stored.hash == view.hash);
        for (uint32_t i = 0; i < len; i++) {
            CHECK(((const uint8_t *)stored.data)[i] == pattern_byte(i));
        }
        bool is_inside = (const uint8_t *)stored.data >= (const uint8_t *)&key
                         && (const uint8_t *)stored.data < (const uint8_t *)(&key + 1);
        CHECK(is_inside == (len <= FTB_KEY_INLINE_BYTES));
        ftb_key_fini(&key);
    }
}

/* Two keys differ in kind, in length or in one byte; the hash alone must never decide:
 * the views here carry a forged hash that is equal. */
static void
test_equality_compares_everything(void)
{
    uint8_t bytes[64];
    for (uint32_t len = 1; len <= 64; len++) {
        struct ftb_key key;
        pattern_fill(bytes, len);
        struct ftb_keyview view = keyview_of(FTB_KEY_STR, bytes, len), other;
        CHECK(ftb_key_init(&key, &view) == FTB_OK);
        other = view;
        other.kind = FTB_KEY_BYTES;
        CHECK(!ftb_key_equals(&key, &other));
        other = view;
        other.len_bytes = len - 1;
        CHECK(!ftb_key_equals(&key, &other));
        other = view;
        other.hash ^= 1;
        CHECK(!ftb_key_equals(&key, &other));
        for (uint32_t i = 0; i < len; i++) {
            bytes[i] ^= 0x40;
            CHECK(!ftb_key_equals(&key, &view)); /* its hash is still the old one */
            bytes[i] ^= 0x40;
        }
        CHECK(ftb_key_equals(&key, &view));
        ftb_key_fini(&key);
    }
}

static void
test_long_key_without_memory(void)
{
    uint8_t bytes[100];
    struct ftb_key key;
    pattern_fill(bytes, sizeof bytes);
    struct ftb_keyview view = keyview_of(FTB_KEY_STR, bytes, sizeof bytes);
    ftb_fault_alloc(0);
    CHECK(ftb_key_init(&key, &view) == FTB_NOMEM);
    CHECK(ftb_key_init(&key, &view) == FTB_OK); /* the fault strikes once */
    ftb_key_fini(&key);
    view.len_bytes = FTB_KEY_INLINE_BYTES;
    ftb_fault_alloc(0);
    CHECK(ftb_key_init(&key, &view) == FTB_OK); /* a short key needs none */
    ftb_fault_alloc(-1);
    ftb_key_fini(&key);
}

/* Random lengths and offsets: hashing and comparing agree with memcmp. */
static void
test_random_pairs(void)
{
    uint8_t bytes[600];
    uint64_t random = seed;
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(next_random(&random) & 1); /* equal pieces are common */
    }
    for (long n = scaled(200000); n > 0; n--) {
        uint32_t len = (uint32_t)(next_random(&random) % 40);
        uint8_t *a = bytes + next_random(&random) % 500;
        uint8_t *b = bytes + next_random(&random) % 500;
        struct ftb_key key;
        struct ftb_keyview view_a = keyview_of(FTB_KEY_BYTES, a, len);
        struct ftb_keyview view_b = keyview_of(FTB_KEY_BYTES, b, len);
        CHECK(ftb_key_init(&key, &view_a) == FTB_OK);
        CHECK(ftb_key_equals(&key, &view_b) == (memcmp(a, b, len) == 0));
        ftb_key_fini(&key);
    }
}

int
main(void)
{
    set_watchdog(120);
    seed = run_seed();
    RUN(test_hash_is_the_reference);
    RUN(test_hash_depends_on_every_bit);
    RUN(test_key_keeps_its_bytes);
    RUN(test_equality_compares_everything);
    RUN(test_long_key_without_memory);
    RUN(test_random_pairs);
    return 0;
}
