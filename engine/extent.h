/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents: a guest range with one status.  The same struct describes what one layer holds and
 * what a chain shows.
 */
#ifndef ENGINE_EXTENT_H
#define ENGINE_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

/* The first four are packed into two bits of the index format: never renumber them. */
enum extent_kind {
    EXTENT_ZERO = 0,       /* reads as zeros, no host cluster */
    EXTENT_ZERO_ALLOC = 1, /* reads as zeros, host cluster preallocated at host_off */
    EXTENT_DATA = 2,       /* bytes as they are at host_off */
    EXTENT_COMPRESSED = 3, /* (part of) one compressed cluster, stored at host_off */
    EXTENT_HOLE = 4,       /* nothing here: falls through to the layer below; reads as zeros at
                              the bottom */
};

struct extent {
    uint64_t guest_off; /* multiple of 512 */
    uint64_t len;       /* in bytes, multiple of 512, not 0 */
    uint64_t host_off;  /* in the layer's file; 0 for ZERO and HOLE.  DATA and ZERO_ALLOC: where
                           guest_off's byte is.  COMPRESSED: where the cluster's compressed data
                           begins, whichever part of the cluster the extent shows */
    uint32_t compressed_len; /* bytes from host_off that hold the cluster, else 0.  May be more
                                than is needed, and reach past the end of the file */
    uint16_t layer;          /* ordinal, 0 = base */
    uint8_t kind;            /* enum extent_kind */
};

/* Does the kind have a host offset that advances with the guest offset? */
static inline bool extent_kind_linear(uint8_t kind)
{
    return kind == EXTENT_DATA || kind == EXTENT_ZERO_ALLOC;
}

static inline bool extent_reads_zero(uint8_t kind)
{
    return kind != EXTENT_DATA && kind != EXTENT_COMPRESSED;
}

/* Can b, which begins where a ends, be said in one extent with a? */
static inline bool extent_mergeable(const struct extent *a, const struct extent *b)
{
    if (a->layer != b->layer || a->kind != b->kind || a->guest_off + a->len != b->guest_off)
        return false;
    if (extent_kind_linear(a->kind))
        return a->host_off + a->len == b->host_off;
    return a->kind != EXTENT_COMPRESSED;
}

/* Drop the first n bytes of e, n < e->len. */
static inline void extent_trim_front(struct extent *e, uint64_t n)
{
    e->guest_off += n;
    e->len -= n;
    if (extent_kind_linear(e->kind))
        e->host_off += n;
}

#endif
