/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work that is tried on a thread that must not wait (one of libmicrohttpd's, which has hundreds of
 * other connections to serve).  Most requests need nothing but what is in memory, and for those the
 * way to a worker and back costs more than the answer.  So their handler is tried where the
 * request is, between nowait_begin and nowait_end: whatever would wait (the store, a cache that
 * has to fetch, a file's bytes that are not in the page cache) refuses instead.  If anything has,
 * the result is worth nothing, whatever the handler made of the refusal, and a worker starts anew.
 *
 * A handler that is tried must have no effect before the last thing that may refuse.  Locks that
 * nobody holds while waiting for a disk or a network are no waiting.
 */
#ifndef SERVER_NOWAIT_H
#define SERVER_NOWAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

void nowait_begin(void);
/* Has nothing refused since? */
bool nowait_end(void);

/* CAIRN_OK where waiting is allowed, else CAIRN_E_UNAVAILABLE: to be called before waiting. */
int nowait_check(struct cairn_error *err);

/*
 * The same for bytes of a file, len > 0, that are in the page cache or not.  The last one is looked
 * at: what a reader or read-ahead brings in comes in order, so the others are there, too; where
 * they are not the sender waits for the disk once, as it would for a worker's reply.  A file system
 * that cannot tell counts as one that has to wait.
 */
int nowait_check_file(int fd, uint64_t off, uint64_t len, struct cairn_error *err);

#endif
