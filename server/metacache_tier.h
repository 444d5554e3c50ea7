/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tier of the metadata cache below process memory, as metacache.c sees it.  A new kind of tier
 * is one more row in metacache_new, at its place in the order of look-up.
 *
 * Whatever a tier answers has been verified by it: a look-up gives the right value or an error.
 * CAIRN_E_NOT_FOUND is the plain miss; every other error counts as a bad value, and the look-up
 * goes on below all the same.  The error of the lowest tier is the asker's.
 */
#ifndef SERVER_METACACHE_TIER_H
#define SERVER_METACACHE_TIER_H

#include "cache.h"
#include "metacache.h"

/*
 * Under which key memory keeps a part of a prefix.  A chain ID says nothing of formats, and one
 * base taken as raw and as qcow2 makes two disks.  Publishing lets the first have the ID; that
 * neither ever shows bytes of the other must not depend on it, so the base's format is in the key.
 */
struct cache_key metacache_key(const struct meta_chain *chain, uint32_t ordinal, uint32_t slice_nr);

struct metacache_tier {
    const char *name;
    int (*get_l1)(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                  struct index_l1 **ret_l1, struct cairn_error *err);
    int (*get_slice)(void *ctx, const struct meta_chain *chain, const struct index_l1 *l1,
                     uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                     struct cairn_error *err);
    /* Keep what a lower tier found, or the builder made, if it can be kept; NULL: keeps nothing
     * that is put this way. */
    void (*put_l1)(void *ctx, const struct index_l1 *l1);
    void (*put_slice)(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                      uint32_t slice_nr, const struct index_slice *slice);
    /*
     * Before a prefix is rebuilt: false if another server has just done so, and the tiers are worth
     * another look; waits no longer than patience_ms.  end_build follows in any case.  NULL: there
     * are no others.
     */
    bool (*begin_build)(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                        unsigned patience_ms);
    void (*end_build)(void *ctx, const struct meta_chain *chain, uint32_t ordinal);
    /* Values that a look-up met beside the one it was for and found bad, and values that could not
     * be put; NULL: none. */
    void (*count)(void *ctx, uint64_t *ret_bad, uint64_t *ret_dropped);
    void (*free)(void *ctx);
    void *ctx;
};

/* Is a slice in memory; keep one there that was found beside another. */
bool metacache_has_slice(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                         uint32_t slice_nr);
void metacache_keep_slice(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                          uint32_t slice_nr, struct index_slice *slice);

/* -- Redis (metacache_redis.c) ---------------------------------------------------------------- */

/* redis is borrowed. */
int redis_tier_new(struct metacache *cache, struct redis *redis, struct metacache_tier *ret_tier,
                   struct cairn_error *err);

/* -- What the tiers of metacache_store.c need of the cache above them ------------------------- */

/* Look-ups that stop above the rebuild: for the builder, which must not wait for itself. */
int metacache_find_l1(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                      struct index_l1 **ret_l1, struct cairn_error *err);
int metacache_find_slice(struct metacache *cache, const struct meta_chain *chain,
                         const struct index_l1 *l1, uint32_t ordinal, uint32_t slice,
                         struct index_slice **ret_slice, struct cairn_error *err);
/* Put freshly built parts into memory and every tier that keeps what is put. */
void metacache_fill_l1(struct metacache *cache, const struct meta_chain *chain,
                       struct index_l1 *l1);
void metacache_fill_slice(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                          uint32_t slice_nr, struct index_slice *slice);

/* -- The store and the rebuild (metacache_store.c) -------------------------------------------- */

struct index_store;

/* max_bytes bounds what open index objects may take. */
int index_store_new(struct metacache *cache, struct store *store, size_t max_bytes,
                    struct index_store **ret_store, struct cairn_error *err);
void index_store_free(struct index_store *s);
CLEANUP_DEFINE(struct index_store *, index_store_free)

/* The two tiers on it; neither owns it. */
struct metacache_tier index_store_tier(struct index_store *s);
struct metacache_tier index_rebuild_tier(struct index_store *s);

int index_store_nr_stored(struct index_store *s, const struct meta_chain *chain,
                          uint32_t nr_prefixes, uint32_t *ret_nr_prefixes, struct cairn_error *err);
int index_store_build(struct index_store *s, const struct meta_chain *chain, uint32_t ordinal,
                      struct layer *layer, struct cairn_error *err);
void index_store_count(const struct index_store *s, uint64_t *ret_builds, uint64_t *ret_failures);

#endif
