/* SPDX-License-Identifier: Apache-2.0 */
/* From an L1 table to extents.  Internal to the engine; see qcow2_image_scan. */
#ifndef ENGINE_QCOW2_SCAN_H
#define ENGINE_QCOW2_SCAN_H

#include "qcow2_header.h"
#include "quote.h"

/* Whose tables are scanned: those of the active disk, or of an internal snapshot. */
struct qcow2_state {
    char what[QUOTE_MAX + 32]; /* "L1 table", for messages */
    uint64_t l1_table_offset;
    uint32_t l1_size;
    uint64_t size; /* of the disk, in bytes */
};

struct qcow2_state qcow2_state_active(const struct qcow2_header *hdr);

/* CAIRN_E_CORRUPT or _LIMIT unless the L1 table is where a snapshot's table can be. */
int qcow2_state_snapshot(const struct source *src, const struct qcow2_header *hdr,
                         const struct qcow2_snapshot *snapshot, struct qcow2_state *ret_state,
                         struct cairn_error *err);

/* hdr has passed qcow2_header_check_supported and qcow2_header_check_tables. */
int qcow2_scan(struct source *src, const struct qcow2_header *hdr, const struct qcow2_state *state,
               layer_extent_fn fn, void *arg, struct cairn_error *err);

/*
 * How many L2 entries from at on, at most max, name whole host clusters of the file, one after the
 * other, and nothing but data: nearly all entries of an image that was written in order.  What ends
 * the run is anything else, right or wrong.
 */
uint64_t qcow2_data_run(const struct qcow2_header *hdr, uint64_t file_size, const uint8_t *at,
                        uint64_t max);

/* How many entries from at on, at most max, are surely all zeros; there may be more of them. */
uint64_t qcow2_empty_run(const struct qcow2_header *hdr, const uint8_t *at, uint64_t max);

#endif
