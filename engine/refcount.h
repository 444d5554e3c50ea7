/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host clusters of an active layer: handing them out and taking them back.  Internal to the engine.
 *
 * The refcount blocks (16-bit, through the table cache) say which clusters are free.  In memory
 * there is only a count of the free clusters in each page of them: unknown at first, learnt one
 * page per allocation, so that opening costs nothing and free space is found all the same.
 *
 * Policy: behind the neighbour in guest order, if that cluster is free; else the lowest free ones;
 * else the end of the file.  A run of clusters asked for at once is handed out as one run where
 * there is one.  The file is made longer, in steps, before clusters beyond its end are handed out,
 * so every entry that is ever written points into the file.
 *
 * All functions ending in _locked need the layer's lock; those that take an error may let go of it.
 */
#ifndef ENGINE_REFCOUNT_H
#define ENGINE_REFCOUNT_H

#include "table_cache.h"

struct refcounts;

struct refcount_layout {
    unsigned cluster_bits;
    uint64_t table_off; /* of the refcount table, in the file */
    uint32_t table_clusters;
    uint64_t file_size;
};

/* Registers itself as the cache's table_freed_fn.  All but layout is borrowed. */
int refcounts_new(struct table_cache *cache, struct hostfile *file, pthread_mutex_t *lock,
                  const struct refcount_layout *layout, struct refcounts **ret_refcounts,
                  struct cairn_error *err);
void refcounts_free(struct refcounts *r);

/*
 * 1 to want adjoining clusters, at goal (a host offset, 0: no wish) if that is free; counted, in
 * the open batch.
 */
int refcount_alloc_locked(struct refcounts *r, uint64_t want, uint64_t goal, uint64_t *ret_host_off,
                          uint64_t *ret_nr, struct cairn_error *err);

/* Exactly that many adjoining clusters, at the end of the file: for tables. */
int refcount_alloc_run_locked(struct refcounts *r, uint64_t nr, uint64_t *ret_host_off,
                              struct cairn_error *err);

/* Clusters that no durable table refers to (others: table_free_locked) are free again, at once. */
int refcount_release_locked(struct refcounts *r, uint64_t host_off, uint64_t len,
                            struct cairn_error *err);

/* May an entry point at this cluster: aligned, below every cluster ever handed out, and neither
 * the header nor the refcount table. */
bool refcount_plausible_locked(const struct refcounts *r, uint64_t host_off);

/* Cut the file behind its last used cluster.  Nothing may be in flight. */
int refcount_trim_locked(struct refcounts *r, struct cairn_error *err);

/* Where the refcount table is now; it moves when it grows. */
void refcount_table_locked(const struct refcounts *r, uint64_t *ret_host_off,
                           uint32_t *ret_clusters);

#endif
