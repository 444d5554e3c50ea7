/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of a manifest's layers, read from the service by ranges: for what the chain index does
 * not tell.  Small reads, which is how images are parsed, go through a small cache that all layers
 * share.  Thread-safe.
 */
#ifndef CLIENT_REMOTE_BLOBS_H
#define CLIENT_REMOTE_BLOBS_H

#include "client.h"

struct remote_blobs;

/* client and m are borrowed, repo is copied. */
int remote_blobs_new(struct cairn_client *client, const char *repo, const struct manifest *m,
                     struct remote_blobs **ret_blobs, struct cairn_error *err);
void remote_blobs_free(struct remote_blobs *blobs);
CLEANUP_DEFINE(struct remote_blobs *, remote_blobs_free)

/* Exactly len bytes at host_off of a layer, zeros past its end: as struct chain_blobs wants it. */
int remote_blobs_pread(void *blobs, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                       struct cairn_error *err);

/* A layer as a source, which must not outlive blobs. */
int remote_blobs_source(struct remote_blobs *blobs, uint32_t layer, struct source **ret_src,
                        struct cairn_error *err);

#endif
