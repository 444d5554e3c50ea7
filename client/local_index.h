/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain index of local images, in memory: built prefix upon prefix, as the service does it,
 * but only the slices in force are kept.
 */
#ifndef CLIENT_LOCAL_INDEX_H
#define CLIENT_LOCAL_INDEX_H

#include "chain_index.h"

struct local_index {
    struct index_l1 *l1;          /* NULL: no layer yet */
    uint32_t nr_slices;           /* of both arrays */
    struct index_slice **slices;  /* in force for l1 */
    struct index_slice **emitted; /* of the prefix in the making */
};

/* One more layer on top; on failure only local_index_release may follow. */
int local_index_add(struct local_index *index, struct layer *layer, struct cairn_error *err);

/* ret_copy, which is empty, shares what it can. */
int local_index_copy(const struct local_index *index, struct local_index *ret_copy,
                     struct cairn_error *err);

void local_index_release(struct local_index *index);

/* Memory that it takes, as if it shared nothing. */
size_t local_index_bytes(const struct local_index *index);

/* For chain_map and the like; valid as long as the index does not change. */
struct index_slices local_index_slices(const struct local_index *index);

#endif
