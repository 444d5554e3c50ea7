/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The states of a local qcow2 image: its internal snapshots and its active disk, each of them a
 * disk of its own on top of the same backing chain; and the difference between two of them as a
 * layer.
 */
#ifndef CLIENT_STATES_H
#define CLIENT_STATES_H

#include "client.h"
#include "local_chain.h"
#include "local_index.h"
#include "qcow2_image.h"

#define STATE_ACTIVE UINT32_MAX

struct states {
    const struct local_chain *chain; /* borrowed; its top is the image */
    struct source *top;
    struct qcow2_image *image;
    const struct qcow2_snapshot *snapshots; /* borrowed from image */
    uint32_t nr_snapshots;

    struct local_index below; /* the backing chain; an empty layer where there is none */
    struct digest *digests;   /* by ordinal: names that tell the layers apart, no more */

    struct source *lower; /* the last layer of the backing chain that was read, or NULL */
    uint32_t lower_ordinal;
};

/* The top of the chain must be a qcow2 image.  One file is open from here on, and another one. */
int states_open(const struct local_chain *chain, struct states *ret_states,
                struct cairn_error *err);
void states_release(struct states *states);

/* The number of the snapshot with this name or ID. */
int states_find(const struct states *states, const char *name_or_id, uint32_t *ret_snapshot,
                struct cairn_error *err);

/* What snapshot (or STATE_ACTIVE) shows, over the backing chain.  ret_index is empty before. */
int states_index(const struct states *states, uint32_t snapshot, struct local_index *ret_index,
                 struct cairn_error *err);

struct state_distance {
    bool differ;         /* may the two show different disks? */
    uint64_t data_bytes; /* that a layer between them would hold */
};
/* From from (of states_index, or the backing chain) to to. */
int states_distance(const struct states *states, const struct local_index *from,
                    const struct local_index *to, struct state_distance *ret_distance,
                    struct cairn_error *err);

/*
 * A new file at path: the layer that turns a disk that shows from into one that shows to.  parent
 * is the chain ID of what shows from, NULL for an empty disk.  The same states give the same bytes.
 * what is told to the client's progress.
 */
int states_write_layer(struct states *states, const struct local_index *from,
                       const struct local_index *to, const struct digest *parent,
                       struct cairn_client *client, const char *what, const char *path,
                       struct cairn_error *err);

#endif
