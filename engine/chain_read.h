/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a chain's content through its index: the one place where extents become bytes.
 */
#ifndef ENGINE_CHAIN_READ_H
#define ENGINE_CHAIN_READ_H

#include "chain_index.h"

/* The bytes of the chain's layers, by ordinal.  Called from any thread. */
struct chain_blobs {
    /* Read exactly len bytes at host_off of layer; bytes past the end of the layer are zeros. */
    int (*pread)(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                 struct cairn_error *err);
    void *ctx;
};

/*
 * Decompressed clusters, kept for the next read: bounded in bytes, LRU, shared by all chains of a
 * process, keyed by layer digest and host offset.  Thread-safe.
 */
struct cluster_cache;
int cluster_cache_new(size_t max_bytes, struct cluster_cache **ret_cache, struct cairn_error *err);
void cluster_cache_free(struct cluster_cache *cache);
CLEANUP_DEFINE(struct cluster_cache *, cluster_cache_free)
/* Drop what was decompressed of a layer: its bytes have turned out to be damaged. */
void cluster_cache_forget(struct cluster_cache *cache, const struct digest *layer);

struct chain_reader {
    const struct index_l1 *l1;
    struct index_slices slices;
    struct chain_blobs blobs;
    const struct digest *layers; /* digests by ordinal, for the cluster cache and messages; NULL:
                                    no cache, and blobs' own messages say which layer */
    struct cluster_cache *cache; /* may be NULL */
    bool far; /* the blobs are a network away: extents are read several at a time, by threads */
};

/*
 * Read exactly len guest bytes at guest_off, any alignment, within the virtual size.  On failure
 * buf's content is undefined and the message names the layer by digest.  Thread-safe.
 */
int chain_read(const struct chain_reader *reader, void *buf, size_t len, uint64_t guest_off,
               struct cairn_error *err);

/* Read the content of one extent (as chain_map gave it) into buf, e->len bytes. */
int chain_read_extent(const struct chain_reader *reader, const struct extent *e, void *buf,
                      struct cairn_error *err);

#endif
