/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tags under which the internal snapshots of an image are published: see
 * cairn_push_internal_all, which promises them.
 */
#ifndef CLIENT_SNAPSHOT_TAGS_H
#define CLIENT_SNAPSHOT_TAGS_H

#include "qcow2_image.h"

/* One for each of nr snapshots, in their order, all different and valid. */
int snapshot_tags(const char *tag, const struct qcow2_snapshot *snapshots, uint32_t nr,
                  char ***ret_tags, struct cairn_error *err);
void snapshot_tags_free(char **tags, uint32_t nr);

#endif
