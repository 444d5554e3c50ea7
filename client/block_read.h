/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a chain's data through the host's block cache: what is there comes from there, what is
 * missing is fetched, with one request wherever it is contiguous for the guest, and kept.
 */
#ifndef CLIENT_BLOCK_READ_H
#define CLIENT_BLOCK_READ_H

#include "block_cache.h"
#include "extent.h"

/* Where layers and missing bytes come from.  Called from any thread. */
struct block_fetch {
    /* The layer's place in the cache, or NULL: it has none now.  *ret_borrowed: it is not the
     * caller's to unref. */
    struct block_layer *(*open)(void *ctx, uint32_t ordinal, bool *ret_borrowed);
    uint64_t (*layer_size)(void *ctx, uint32_t ordinal);
    /* Bytes of one layer as they are stored, inside it. */
    int (*layer)(void *ctx, uint32_t ordinal, void *buf, size_t len, uint64_t host_off,
                 struct cairn_error *err);
    /* Guest bytes, whatever layers they are in. */
    int (*guest)(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err);
    void *ctx;
};

/*
 * Read a run of DATA extents, each beginning where the one before ends.  Past the end of a layer
 * there are zeros.
 */
int block_read_run(const struct block_fetch *fetch, const struct extent *run, size_t nr, void *buf,
                   struct cairn_error *err);

/* Only what is in the cache: false, with buf undefined, if that is not all of it. */
bool block_read_cached(const struct block_fetch *fetch, const struct extent *run, size_t nr,
                       void *buf);

#endif
