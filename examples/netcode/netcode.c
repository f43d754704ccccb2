#include "netcode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

FTB_ARENA_API_DEFINE;

#define STAGED_BYTES 16384

struct netcode_stream {
    ftb_arena_t *arena;
    uint32_t payload_limit;
    int fault; /* once set, the stream is at its end */
    unsigned char header[NETCODE_HEADER_BYTES];
    uint32_t header_n;  /* how much of it is there */
    ftb_block_t *block; /* the payload's, once the header is complete; else NULL */
    uint32_t filled;    /* how much of the payload is there */
    uint32_t length;    /* this and the next two are from the header */
    uint16_t kind;
    size_t staged_from; /* what netcode_receive read and did not parse yet */
    size_t staged_to;
    unsigned char staged[STAGED_BYTES];
};

int
netcode_use_arena(const void *table)
{
    return ftb_arena_api_use(table);
}

netcode_stream_t *
netcode_stream_new(ftb_arena_t *arena, uint32_t payload_limit)
{
    netcode_stream_t *stream = calloc(1, sizeof *stream);
    if (stream != NULL) {
        stream->arena = arena;
        stream->payload_limit = payload_limit;
    }
    return stream;
}

void
netcode_stream_free(netcode_stream_t *stream)
{
    if (stream != NULL && stream->block != NULL) {
        ftb_block_release(stream->block);
    }
    free(stream);
}

static uint32_t
big_endian(const unsigned char *bytes, int bytes_n)
{
    uint32_t value = 0;
    for (int i = 0; i < bytes_n; i++) {
        value = value << 8 | bytes[i];
    }
    return value;
}

/* Nothing of the header is believed before it was checked; then a block of the length it
 * names is made, so that the payload cannot outgrow it. 0 or a fault. */
static int
open_payload(netcode_stream_t *stream)
{
    stream->kind = (uint16_t)big_endian(stream->header + 2, 2);
    stream->length = big_endian(stream->header + 4, 4);
    if (big_endian(stream->header, 2) != NETCODE_MAGIC) {
        return stream->fault = NETCODE_BAD_MAGIC;
    }
    if (stream->length > stream->payload_limit) {
        return stream->fault = NETCODE_TOO_LONG;
    }
    stream->filled = 0;
    stream->block = ftb_block_new(stream->arena, stream->length);
    return stream->block != NULL ? 0 : NETCODE_NO_MEMORY;
}

/* The payload is complete: its reference goes into a handle. 0 or a fault. */
static int
close_payload(netcode_stream_t *stream, struct netcode_packet *packet)
{
    uint64_t handle = ftb_handle_new(stream->block, 0, stream->length);
    if (handle == 0) {
        return NETCODE_NO_MEMORY;
    }
    *packet = (struct netcode_packet){handle, stream->length, stream->kind};
    stream->block = NULL;
    stream->header_n = 0;
    return 0;
}

/* Copy up to what is missing, and return how much that was. */
static size_t
fill(
    unsigned char *to, uint32_t *filled, uint32_t wanted, const unsigned char *from,
    size_t size)
{
    size_t n = wanted - *filled < size ? wanted - *filled : size;
    if (n > 0) {
        memcpy(to + *filled, from, n);
        *filled += (uint32_t)n;
    }
    return n;
}

int
netcode_feed(
    netcode_stream_t *stream, const unsigned char *data, size_t size, size_t *used,
    struct netcode_packet *packets, int packets_n)
{
    int found = 0;
    int fault = stream->fault;
    *used = 0;
    while (fault == 0 && found < packets_n) {
        *used += fill(
            stream->header, &stream->header_n, NETCODE_HEADER_BYTES, data + *used,
            size - *used);
        if (stream->header_n < NETCODE_HEADER_BYTES) {
            break;
        }
        if (stream->block == NULL) {
            fault = open_payload(stream);
            continue;
        }
        *used += fill(
            ftb_block_data(stream->block), &stream->filled, stream->length,
            data + *used, size - *used);
        if (stream->filled < stream->length) {
            break;
        }
        fault = close_payload(stream, &packets[found]);
        found += fault == 0;
    }
    return found > 0 ? found : fault;
}

/* Parse what was read earlier. */
static int
feed_staged(netcode_stream_t *stream, struct netcode_packet *packets, int packets_n)
{
    size_t used;
    int found = netcode_feed(
        stream, stream->staged + stream->staged_from,
        stream->staged_to - stream->staged_from, &used, packets, packets_n);
    stream->staged_from += used;
    return found;
}

int
netcode_receive(
    netcode_stream_t *stream, int fd, struct netcode_packet *packets, int packets_n)
{
    int found = feed_staged(stream, packets, packets_n);
    if (found != 0 || stream->staged_from < stream->staged_to) {
        return found;
    }
    struct iovec parts[2] = {{NULL, 0}, {stream->staged, STAGED_BYTES}};
    if (stream->block != NULL) {
        parts[0].iov_base = ftb_block_data(stream->block) + stream->filled;
        parts[0].iov_len = stream->length - stream->filled;
    }
    ssize_t got = readv(fd, parts, 2);
    if (got <= 0) {
        return got == 0 ? NETCODE_END : NETCODE_READ_FAILED;
    }
    size_t direct = (size_t)got < parts[0].iov_len ? (size_t)got : parts[0].iov_len;
    stream->filled += (uint32_t)direct;
    stream->staged_from = 0;
    stream->staged_to = (size_t)got - direct;
    return feed_staged(stream, packets, packets_n);
}

void
netcode_drop(const struct netcode_packet *packets, int packets_n)
{
    for (int i = 0; i < packets_n; i++) {
        struct ftb_share share;
        if (ftb_handle_take(packets[i].handle, NULL, 0, &share) == FTB_HANDLE_OK) {
            ftb_block_release(share.block);
        }
    }
}
