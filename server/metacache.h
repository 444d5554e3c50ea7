/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metadata cache (DESIGN 4.5): L1s and L2 slices of chain indexes, by chain ID.
 *
 * Look-ups go down the tiers: process memory (bounded in bytes, LRU), then each lower tier, in
 * order, and what is found below is filled in above.  The lower tiers are Redis, if there is one,
 * the store's index object, and the rebuild from the layers' tables (metacache_tier.h).  Everybody
 * who misses one entry at the same time waits for one fetch; of several servers, one rebuilds.
 *
 * Whatever a tier holds is derived from the layers: a value that is missing, altered, cut or
 * unreadable is counted and looked for further down, and the index object that it came from is
 * built anew and replaced.  Thread-safe.
 */
#ifndef SERVER_METACACHE_H
#define SERVER_METACACHE_H

#include "chain_index.h"
#include "histogram.h"
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
struct redis;

/* redis is what all servers share, or NULL; borrowed, as the store is. */
int metacache_new(size_t max_bytes, struct store *store, struct redis *redis,
                  struct metacache **ret_cache, struct cairn_error *err);
void metacache_free(struct metacache *cache);
CLEANUP_DEFINE(struct metacache *, metacache_free)

/* The L1 of prefix ordinal (0 = base) of a chain; a reference is handed over. */
int metacache_l1(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                 struct index_l1 **ret_l1, struct cairn_error *err);
/* A slice as made at prefix ordinal.  l1 is any L1 of the chain that has this prefix: what a lower
 * tier answers is checked against it. */
int metacache_slice(struct metacache *cache, const struct meta_chain *chain,
                    const struct index_l1 *l1, uint32_t ordinal, uint32_t slice,
                    struct index_slice **ret_slice, struct cairn_error *err);

/* -- Publishing ------------------------------------------------------------------------------- */

/*
 * How many prefixes of a chain have an index object, counted from the base.  Index objects are
 * made from the base up, so a few look-ups tell, also for a chain of which nothing is stored.
 */
int metacache_nr_stored(struct metacache *cache, const struct meta_chain *chain,
                        uint32_t *ret_nr_prefixes, struct cairn_error *err);

/*
 * Build prefix ordinal from its opened layer, store its index object durably, and put its parts
 * into the memory tier.  Prefixes below are taken from where they are found, or built.
 */
int metacache_build(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                    struct layer *layer, struct cairn_error *err);

/* -- Figures ---------------------------------------------------------------------------------- */

struct metacache_stats {
    uint64_t hits, misses, fills, evictions, bytes, entries; /* of the memory tier */
    uint64_t waits;                  /* misses that waited for somebody else's fetch */
    uint64_t builds;                 /* index objects built */
    uint64_t write_failures;         /* index objects that could not be stored */
    const struct histogram *latency; /* of look-ups in memory, one in CACHE_TIMED_ONE_IN */
};
void metacache_get_stats(struct metacache *cache, struct metacache_stats *ret_stats);

/* The lower tiers, top first; false if there is no tier nr. */
struct metacache_tier_stats {
    const char *name;
    uint64_t hits, misses;
    uint64_t fills;                  /* values it was given */
    uint64_t bad;                    /* found, but altered, cut or unreadable */
    uint64_t dropped;                /* not put: there was no room, or nobody to take it */
    const struct histogram *latency; /* of look-ups */
};
bool metacache_get_tier_stats(struct metacache *cache, unsigned nr,
                              struct metacache_tier_stats *ret_stats);

/* Both in /metrics. */
struct metrics;
void metacache_write_metrics(struct metacache *cache, struct metrics *m);
void redis_write_metrics(void *redis, struct metrics *m);

#endif
