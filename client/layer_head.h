/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header that a pulled layer came with.
 *
 * `pull --chain` changes a layer's backing name; what it replaced is kept in the folder's
 * `.heads/`, so that a push of the same file can send, or rather not send again, the layer as it
 * was published. The head is only ever used where the bytes that it makes have the digest recorded
 * with it.
 */
#ifndef CLIENT_LAYER_HEAD_H
#define CLIENT_LAYER_HEAD_H

#include "digest.h"
#include "source.h"

/* Keep the first len bytes of the layer d, which is to be called name in the folder. */
int layer_head_save(int folder_fd, const char *name, const struct digest *d, const void *head,
                    size_t len, struct cairn_error *err);

/* The digest that the file at path had when it was pulled; false if nothing is known. */
bool layer_head_digest(const char *path, struct digest *ret_digest);

/* src, which is that file, with its original head.  src is handed over, also on failure. */
int layer_head_restore(const char *path, struct source *src, struct source **ret_original,
                       struct cairn_error *err);

#endif
