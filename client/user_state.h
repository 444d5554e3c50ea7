/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small files that libcairn keeps for its user between runs: where an interrupted upload was, and
 * the digests of files that have not changed.  All of it may be lost at any time, at the cost of
 * repeated work; so failures here are never errors.
 */
#ifndef CLIENT_USER_STATE_H
#define CLIENT_USER_STATE_H

#include <stdbool.h>
#include <sys/stat.h>

#include "digest.h"

/* -- Uploads: $XDG_STATE_HOME/cairn/uploads, else ~/.local/state/… ---------------------------- */

/*
 * The session of one upload, locked against other processes that push the same blob to the same
 * place; fd is -1 if there is no such file, or somebody else has it: then nothing is remembered.
 */
struct upload_state {
    int fd;
    char path[4096];
};
void upload_state_open(struct upload_state *state, const char *server, const char *repo,
                       const struct digest *d);
/* The remembered location, malloc'ed, or NULL. */
char *upload_state_load(const struct upload_state *state);
void upload_state_save(const struct upload_state *state, const char *location);
/* The upload is over: forget it. */
void upload_state_remove(struct upload_state *state);
/* Let go, keeping what was saved. */
void upload_state_close(struct upload_state *state);

/* -- Digests: $XDG_CACHE_HOME/cairn/digests, else ~/.cache/… ---------------------------------- */

/*
 * The digest of a regular file, by device, inode, size and times of change.  A file that changed
 * less than some seconds ago is not remembered, for it could change again without its times showing
 * it.
 */
bool digest_cache_get(const struct stat *st, struct digest *ret_digest);
void digest_cache_put(const struct stat *st, const struct digest *d);
void digest_cache_drop(const struct stat *st);

#endif
