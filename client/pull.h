/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside pull: one file with a disk's content, or a folder with its layers.
 */
#ifndef CLIENT_PULL_H
#define CLIENT_PULL_H

#include "client.h"

#define PULL_WORKERS     4
#define PULL_PIECE_BYTES ((size_t)1 << 20) /* of one request: seconds even on a slow line */

int pull_chain(struct cairn_client *client, const struct ref *ref, const char *folder,
               struct cairn_error *err);

#endif
