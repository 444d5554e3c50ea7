/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layer blobs, opened for reading: a source named after the layer, and a file descriptor where the
 * store has one.  Open blobs are shared by all disks and bounded in number, so that a chain of
 * 65,535 layers does not take as many descriptors.  Thread-safe.
 */
#ifndef SERVER_BLOBS_H
#define SERVER_BLOBS_H

#include <stdatomic.h>

#include "digest.h"
#include "source.h"
#include "store.h"

struct blob {
    atomic_uint refs;
    struct source *src; /* named `layer sha256:…` */
    int fd;             /* the source's, for sendfile; -1: the store has none */
};

/* Open a blob by itself.  CAIRN_E_NOT_FOUND if the store does not have it. */
int blob_open(struct store *store, const struct digest *digest, struct blob **ret_blob,
              struct cairn_error *err);
struct blob *blob_ref(struct blob *blob);
void blob_unref(struct blob *blob);
CLEANUP_DEFINE(struct blob *, blob_unref)
/* Has it been deleted, so that only those who have it open keep its space? */
bool blob_is_gone(const struct blob *blob);

/* The open blobs of a process: at most max_open that nobody uses at the moment. */
struct blobs;
/* How many a part of the process may keep open, by the descriptors that it may have. */
unsigned blobs_max_open(void);
int blobs_new(struct store *store, unsigned max_open, struct blobs **ret_blobs,
              struct cairn_error *err);
void blobs_free(struct blobs *blobs);
CLEANUP_DEFINE(struct blobs *, blobs_free)

/* Have it opened anew for whoever gets it next. */
void blobs_forget(struct blobs *blobs, const struct digest *digest);
/* Close what has been deleted, so that its space comes back.  To be called now and then. */
void blobs_forget_gone(struct blobs *blobs);
/* A blob, open already or opened now; a reference is handed over. */
int blobs_get(struct blobs *blobs, const struct digest *digest, struct blob **ret_blob,
              struct cairn_error *err);

#endif
