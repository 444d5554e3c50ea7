/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the fs: backend: what its objects (store_fs.c) and uploads (store_fs_uploads.c) share. */
#ifndef SERVER_STORE_FS_H
#define SERVER_STORE_FS_H

#include "store_backend.h"

struct store_fs {
    struct store store;
    int root; /* every path is relative to it */
};

static inline struct store_fs *store_fs_of(struct store *store)
{
    return (struct store_fs *)store;
}

/* Open a regular file for flags (O_CLOEXEC and O_NOFOLLOW are added); NOT_FOUND names what. */
int store_fs_open_file(const struct store_fs *fs, const char *path, int flags, const char *what,
                       int *ret_fd, uint64_t *ret_size, struct cairn_error *err);

int store_fs_read(int fd, void *buf, size_t len, uint64_t off, const char *what,
                  struct cairn_error *err);
int store_fs_write(int fd, const void *buf, size_t len, uint64_t off, const char *what,
                   struct cairn_error *err);

/* Hold a lock on fd's file (LOCK_SH or LOCK_EX) among all threads and processes until fd is closed;
 * waiting ends with CAIRN_E_UNAVAILABLE at a deadline. */
int store_fs_lock(int fd, int operation, const char *what, struct cairn_error *err);

/*
 * Give the synced file at path from its place in the store, key, and make that durable.
 * CAIRN_E_CONFLICT if the key exists, unless replace; then, too, the key is durable.
 */
int store_fs_publish(const struct store_fs *fs, const char *from, const char *key, bool replace,
                     struct cairn_error *err);

/* The uploads (store_fs_uploads.c), as in store_ops. */
int store_fs_upload_new(struct store *store, const char *owner, const char *id,
                        struct cairn_error *err);
int store_fs_upload_size(struct store *store, const char *id, const char *owner, uint64_t *ret_size,
                         struct cairn_error *err);
int store_fs_upload_append(struct store *store, const char *id, uint64_t off, const void *buf,
                           size_t len, struct cairn_error *err);
int store_fs_upload_read(struct store *store, const char *id, void *buf, size_t len, uint64_t off,
                         struct cairn_error *err);
int store_fs_upload_commit(struct store *store, const char *id, uint64_t size, const char *key,
                           struct cairn_error *err);
int store_fs_upload_abort(struct store *store, const char *id, struct cairn_error *err);
int store_fs_list_uploads(struct store *store, store_upload_fn fn, void *arg,
                          struct cairn_error *err);
int store_fs_expire_uploads(struct store *store, uint64_t age_s, struct store_expired *ret_expired,
                            struct cairn_error *err);

#endif
