/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metadata cache (DESIGN 4.5): L1s and L2 slices of chain indexes, by chain ID.
 *
 * Look-ups go down the tiers: process memory (bounded in bytes, LRU), then each lower tier, in
 * order, and what is found below is filled in above.  Today's lower tiers are the store's index
 * object and the rebuild from the layers' tables; Redis joins as one more between memory and
 * store.  Everybody who misses one entry at the same time waits for one fetch.
 */
#ifndef SERVER_METACACHE_H
#define SERVER_METACACHE_H

#include "chain_index.h"
#include "manifest.h"
#include "store.h"

/* What a miss is about.  chain_ids are those of all prefixes of the chain, so that a tier can
 * find, or rebuild, any of them. */
struct meta_chain {
    uint32_t depth;
    const struct digest *chain_ids;
    const struct manifest_layer *layers;
};

struct metacache;
struct metacache_tier; /* see metacache.c: name, get and put for L1s and slices */

int metacache_new(size_t max_bytes, struct store *store, struct metacache **ret_cache,
                  struct cairn_error *err);
void metacache_free(struct metacache *cache);

/* The L1 of prefix ordinal (0 = base) of a chain; a reference is handed over. */
int metacache_l1(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                 struct index_l1 **ret_l1, struct cairn_error *err);
int metacache_slice(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                    uint32_t slice, struct index_slice **ret_slice, struct cairn_error *err);

struct metacache_stats {
    uint64_t hits, misses, fills, evictions, bytes, entries;
};
void metacache_get_stats(struct metacache *cache, struct metacache_stats *ret_stats);

#endif
