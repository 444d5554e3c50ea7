/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest and index of a chain that a service keeps: one request to open, slices by need.
 * Immutable as the chain; all functions may be called from any thread.
 */
#ifndef CLIENT_REMOTE_INDEX_H
#define CLIENT_REMOTE_INDEX_H

#include "chain_index.h"
#include "client.h"
#include "manifest.h"
#include "slice_cache.h"

struct remote_index;

/* The chain that ref names now.  client is borrowed; cache is where slices are kept, and what other
 * chains left there is used. */
int remote_index_open(struct cairn_client *client, const struct ref *ref, struct slice_cache *cache,
                      struct remote_index **ret_index, struct cairn_error *err);
void remote_index_free(struct remote_index *index);
CLEANUP_DEFINE(struct remote_index *, remote_index_free)

/* All borrowed. */
const struct ref *remote_index_pinned(const struct remote_index *index); /* repo@sha256:… */
const struct manifest *remote_index_manifest(const struct remote_index *index);
struct index_l1 *remote_index_l1(struct remote_index *index);        /* borrowed */
struct index_slices remote_index_slices(struct remote_index *index); /* borrows the index */
struct chain_index *remote_index_held(struct remote_index *index);   /* the same, for look-ups */
struct slice_cache *remote_index_cache(const struct remote_index *index);
uint64_t remote_index_requests(const struct remote_index *index); /* so far */

#endif
