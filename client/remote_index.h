/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of a chain that a service keeps: its L1, and slices by need.  Immutable as the chain;
 * all functions may be called from any thread.
 */
#ifndef CLIENT_REMOTE_INDEX_H
#define CLIENT_REMOTE_INDEX_H

#include "chain_index.h"
#include "client.h"
#include "slice_cache.h"

struct remote_index;

/* client, ref (by digest) and m, which is ref's manifest, are borrowed; cache is where slices are
 * kept, and what other chains left there is used. */
int remote_index_open(struct cairn_client *client, const struct ref *ref, const struct manifest *m,
                      struct slice_cache *cache, struct remote_index **ret_index,
                      struct cairn_error *err);
void remote_index_free(struct remote_index *index);
CLEANUP_DEFINE(struct remote_index *, remote_index_free)

struct index_l1 *remote_index_l1(struct remote_index *index);             /* borrowed */
struct index_slices remote_index_slices(struct remote_index *index);      /* borrows the index */
struct slice_cache *remote_index_cache(const struct remote_index *index); /* borrowed */
uint64_t remote_index_requests(const struct remote_index *index);         /* so far */

#endif
