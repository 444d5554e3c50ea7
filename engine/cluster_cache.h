/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What chain_read and the cluster cache say to each other; users see chain_read.h.
 */
#ifndef ENGINE_CLUSTER_CACHE_H
#define ENGINE_CLUSTER_CACHE_H

#include <stdatomic.h>

#include "chain_read.h"

/* One decompressed cluster.  Written before it is put into a cache, never after. */
struct cluster {
    atomic_uint refs;
    uint32_t len;
    uint8_t data[];
};

/* One reference; data is left for the caller to fill in. */
int cluster_new(uint32_t len, struct cluster **ret_cluster, struct cairn_error *err);
void cluster_unref(struct cluster *cluster);
CLEANUP_DEFINE(struct cluster *, cluster_unref)

/* A reference to the cluster that is stored at host_off of the layer, or NULL. */
struct cluster *cluster_cache_get(struct cluster_cache *cache, const struct digest *layer,
                                  uint64_t host_off);

/* Keep a reference, if there is room and it is not there yet.  Best effort: cannot fail. */
void cluster_cache_put(struct cluster_cache *cache, const struct digest *layer, uint64_t host_off,
                       struct cluster *cluster);

/* Bytes in use, for tests and statistics. */
size_t cluster_cache_bytes(struct cluster_cache *cache);

#endif
