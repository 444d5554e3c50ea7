/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What opening a disk does if it was not closed cleanly.
 */
#ifndef CLIENT_DISK_RECOVER_H
#define CLIENT_DISK_RECOVER_H

#include "disk.h"

/*
 * Check the active layer of the disk's folder, which is not open yet, and give its leaked clusters
 * back.  Damage of any other kind is CAIRN_E_CORRUPT and left as it is.  What was done is recorded
 * in disk.json and said in disk->notice; disk->unchecked if there was no memory for a check.
 */
int disk_recover(struct cairn_disk *disk, struct cairn_error *err);

#endif
