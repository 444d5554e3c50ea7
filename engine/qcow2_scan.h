/* SPDX-License-Identifier: Apache-2.0 */
/* From the active L1 table to extents.  Internal to the engine; see qcow2_image_scan. */
#ifndef ENGINE_QCOW2_SCAN_H
#define ENGINE_QCOW2_SCAN_H

#include "qcow2_header.h"

/* hdr has passed qcow2_header_check_supported and qcow2_header_check_tables. */
int qcow2_scan(struct source *src, const struct qcow2_header *hdr, layer_extent_fn fn, void *arg,
               struct cairn_error *err);

#endif
