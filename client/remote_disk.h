/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A chain that a service keeps, read by its own index: the bottom of every disk.  Immutable and
 * reference-counted; all functions may be called from any thread.
 */
#ifndef CLIENT_REMOTE_DISK_H
#define CLIENT_REMOTE_DISK_H

#include "chain_index.h"
#include "client.h"

struct remote_disk;

/*
 * Open the chain that ref names now; it is pinned by its manifest's digest.  client is borrowed
 * and must outlive the chain.  previous (may be NULL) is a chain of which this is likely to share
 * a prefix: what is known of its index is used.
 */
int remote_disk_open(struct cairn_client *client, const struct ref *ref,
                     const struct remote_disk *previous, struct remote_disk **ret_rd,
                     struct cairn_error *err);
struct remote_disk *remote_disk_ref(struct remote_disk *rd);
void remote_disk_unref(struct remote_disk *rd);
CLEANUP_DEFINE(struct remote_disk *, remote_disk_unref)

/* All borrowed. */
const struct ref *remote_disk_pinned(const struct remote_disk *rd); /* repo@sha256:… */
const struct manifest *remote_disk_manifest(const struct remote_disk *rd);
const struct digest *remote_disk_chain_id(const struct remote_disk *rd);
uint64_t remote_disk_size(const struct remote_disk *rd);

/* Read guest bytes; past the end of the chain there are zeros. */
int remote_disk_pread(struct remote_disk *rd, void *buf, size_t len, uint64_t guest_off,
                      struct cairn_error *err);

/* chain_map of a range, past the end of the chain a hole. */
int remote_disk_map(struct remote_disk *rd, uint64_t guest_off, uint64_t len,
                    struct extent *ret_extents, size_t max, size_t *ret_nr,
                    struct cairn_error *err);

struct remote_disk_stats {
    uint64_t nr_reads;       /* requests for content */
    uint64_t read_bytes;     /* that they brought */
    uint64_t nr_index_reads; /* requests for the index */
    uint64_t index_bytes;    /* slices in memory now */
    struct block_cache_stats blocks; /* of this process; zeros without a block cache */
};
void remote_disk_get_stats(struct remote_disk *rd, struct remote_disk_stats *ret_stats);

#endif
