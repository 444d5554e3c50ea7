/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L2 slices of chain indexes, kept for the next look-up: bounded in bytes, least recently used
 * out first.  A slice is immutable and named by (chain ID of the prefix that made it, slice), so
 * that chains which share a prefix share its slices: a disk hands its cache on when a snapshot
 * gives it a longer chain.  Thread-safe; no lock is held longer than a look-up takes.
 */
#ifndef CLIENT_SLICE_CACHE_H
#define CLIENT_SLICE_CACHE_H

#include "chain_index.h"

struct slice_cache;

int slice_cache_new(size_t max_bytes, struct slice_cache **ret_cache, struct cairn_error *err);
struct slice_cache *slice_cache_ref(struct slice_cache *cache);
void slice_cache_unref(struct slice_cache *cache);
CLEANUP_DEFINE(struct slice_cache *, slice_cache_unref)

/* A new reference, or NULL: not here. */
struct index_slice *slice_cache_get(struct slice_cache *cache, const struct digest *prefix,
                                    uint32_t slice_nr);

/* Takes a reference of its own.  Failing to keep a slice is not an error: it is fetched again. */
void slice_cache_put(struct slice_cache *cache, const struct digest *prefix, uint32_t slice_nr,
                     struct index_slice *slice);

size_t slice_cache_bytes(struct slice_cache *cache);

#endif
