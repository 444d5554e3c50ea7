/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot table and the bitmap directory, for listing.  Internal to the engine. */
#ifndef ENGINE_QCOW2_LISTS_H
#define ENGINE_QCOW2_LISTS_H

#include "qcow2_header.h"

/*
 * All hdr->nb_snapshots entries, or all hdr->nb_bitmaps if the image has bitmaps; NULL if there
 * are none.  Whether the tables are where tables can be is checked here, for an image that is
 * opened only for `image info` was not asked before.
 */
int qcow2_snapshots_read(struct source *src, const struct qcow2_header *hdr,
                         struct qcow2_snapshot **ret_list, struct cairn_error *err);
void qcow2_snapshots_free(struct qcow2_snapshot *list, uint32_t nr);

int qcow2_bitmaps_read(struct source *src, const struct qcow2_header *hdr,
                       struct qcow2_bitmap **ret_list, struct cairn_error *err);
void qcow2_bitmaps_free(struct qcow2_bitmap *list, uint32_t nr);

#endif
