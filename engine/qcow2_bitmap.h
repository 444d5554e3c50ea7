/* SPDX-License-Identifier: Apache-2.0 */
/* What a persistent bitmap says.  Internal to the engine; see qcow2_image.h. */
#ifndef ENGINE_QCOW2_BITMAP_H
#define ENGINE_QCOW2_BITMAP_H

#include "qcow2_header.h"

int qcow2_bitmap_check_usable(const struct source *src, const struct qcow2_bitmap *bitmap,
                              struct cairn_error *err);

/* hdr has passed qcow2_header_check_supported and qcow2_header_check_tables. */
int qcow2_bitmap_read(struct source *src, const struct qcow2_header *hdr,
                      const struct qcow2_bitmap *bitmap, qcow2_dirty_fn fn, void *arg,
                      struct cairn_error *err);

#endif
