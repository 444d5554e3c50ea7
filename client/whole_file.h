/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that appear under their name only when they are complete: written under a temporary name in
 * the same folder, then moved into place, never over a file that is there.
 */
#ifndef CLIENT_WHOLE_FILE_H
#define CLIENT_WHOLE_FILE_H

#include "cleanup.h"
#include "error.h"

struct whole_file {
    char *path;
    char *temporary; /* does not exist yet; NULL: nothing to remove */
};

/* CAIRN_E_CONFLICT if path exists.  Nothing is created. */
int whole_file_begin(struct whole_file *file, const char *path, struct cairn_error *err);
/* The temporary file, which its writer has synced, becomes path, durably. */
int whole_file_finish(struct whole_file *file, struct cairn_error *err);
/* Remove the temporary file, if it was not finished. */
void whole_file_release(struct whole_file *file);

/* Make what was created, renamed or removed in path's folder durable. */
int sync_folder_of(const char *path, struct cairn_error *err);

#endif
