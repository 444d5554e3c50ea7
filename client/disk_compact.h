/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealed layers of a disk folder in the form in which they are published.
 */
#ifndef CLIENT_DISK_COMPACT_H
#define CLIENT_DISK_COMPACT_H

#include "client.h"
#include "disk_folder.h"
#include "sealing.h"

/*
 * Write compact-<number>.qcow2 from sealed-<number>.qcow2, with client's progress.  *ret_made is
 * false, and nothing is left behind, if the file system has no room for it.
 */
int disk_compact(struct disk_folder *folder, uint32_t number, const struct seal_options *options,
                 struct cairn_client *client, bool *ret_made, struct cairn_error *err);

#endif
