/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An internal snapshot of a published disk's top layer, as a disk of its own: the snapshot on top
 * of the layers below.  The service's index does not know it, so the tables of all layers are read
 * from here, once, and its content is read from their blobs.  Immutable; map and pread may be
 * called from any thread.
 */
#ifndef CLIENT_REMOTE_INTERNAL_H
#define CLIENT_REMOTE_INTERNAL_H

#include "chain_index.h"
#include "client.h"
#include "qcow2_image.h"

struct remote_internal;

/* snapshot: its name or ID.  client is borrowed. */
int remote_internal_open(struct cairn_client *client, const struct ref *ref, const char *snapshot,
                         struct remote_internal **ret_ri, struct cairn_error *err);
void remote_internal_free(struct remote_internal *ri);
CLEANUP_DEFINE(struct remote_internal *, remote_internal_free)

uint64_t remote_internal_size(const struct remote_internal *ri);

/* As chain_map and chain_read. */
int remote_internal_map(struct remote_internal *ri, uint64_t guest_off, uint64_t len,
                        struct extent *ret_extents, size_t max, size_t *ret_nr,
                        struct cairn_error *err);
int remote_internal_pread(struct remote_internal *ri, void *buf, size_t len, uint64_t guest_off,
                          struct cairn_error *err);

#endif
