/* A packet parser that writes payloads straight into ftbus's pooled blocks.
 *
 * A packet is eight bytes of header, big-endian: magic (2), kind (2), length of the
 * payload (4); then the payload. A stream belongs to one thread at a time. */
#ifndef NETCODE_H
#define NETCODE_H

#include <stddef.h>
#include <stdint.h>

#include "ftb_arena_api.h"

/* cdef: begin */

typedef struct ftb_arena ftb_arena_t;
typedef struct netcode_stream netcode_stream_t;

#define NETCODE_MAGIC 0xF7B5
#define NETCODE_HEADER_BYTES 8

/* What goes wrong; the first two end the stream, as nobody knows where the next packet
 * begins. */
#define NETCODE_BAD_MAGIC -1   /* a header does not begin with NETCODE_MAGIC */
#define NETCODE_TOO_LONG -2    /* a payload is longer than the stream's limit */
#define NETCODE_NO_MEMORY -3   /* the arena is at its limit: try again later */
#define NETCODE_READ_FAILED -4 /* see errno */
#define NETCODE_END -5         /* the peer closed its end; a packet may be incomplete */

/* The handle carries one reference to the block with the payload. */
struct netcode_packet {
    uint64_t handle;
    uint32_t length;
    uint16_t kind;
};

/* Before all else: the arena of the ftbus that runs, by the address of its table.
 * Returns 1, or 0 if that ftbus does not fit the headers this was compiled with. */
int netcode_use_arena(const void *table);

/* A stream whose payloads have at most `payload_limit` bytes and go to that arena, which
 * must outlive it. NULL without memory. */
netcode_stream_t *netcode_stream_new(ftb_arena_t *arena, uint32_t payload_limit);

/* Free it and the payload it was in the middle of. NULL is allowed. */
void netcode_stream_free(netcode_stream_t *stream);

/* Parse bytes. Writes at most packets_n packets and sets *used to how many bytes were
 * consumed: fewer than size if the packets are full or memory is short. Returns how
 * many packets, or, if there are none, one of the faults above. */
int netcode_feed(
    netcode_stream_t *stream, const unsigned char *data, size_t size, size_t *used,
    struct netcode_packet *packets, int packets_n);

/* Read what a blocking or non-blocking socket has, once, and parse it; the rest of a
 * long payload is read into its block directly. Returns as above. */
int netcode_receive(
    netcode_stream_t *stream, int fd, struct netcode_packet *packets, int packets_n);

/* Give up packets whose handles nobody will take. */
void netcode_drop(const struct netcode_packet *packets, int packets_n);

/* cdef: end */

#endif
