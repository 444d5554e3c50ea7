/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Uploads of the fs: backend: uploads/<id>/owner says whose it is, uploads/<id>/data holds the
 * bytes so far and is created last, so that an upload that can be seen is whole.
 *
 * Whoever changes an upload locks its data file and then looks whether the file still is the
 * upload's: a commit moves it away to its key, and nothing may be written to it from then on.
 * Between link and unlink (store_fs_publish on NFS) it has two names, and counts as gone.
 * Nothing is synced before the commit, for nothing was promised.
 */
#include "store_fs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_MAX_ 64 /* uploads/<32 hex>/owner */

static char *upload_path(const char *id, const char *name, char path[PATH_MAX_])
{
    snprintf(path, PATH_MAX_, "uploads/%s/%s", id, name);
    return path;
}

static void remove_upload(const struct store_fs *fs, const char *id)
{
    char path[PATH_MAX_];

    unlinkat(fs->root, upload_path(id, "data", path), 0);
    unlinkat(fs->root, upload_path(id, "owner", path), 0);
    unlinkat(fs->root, upload_path(id, "", path), AT_REMOVEDIR);
}

static int create_file(const struct store_fs *fs, const char *path, const char *text,
                       struct cairn_error *err)
{
    CLEANUP_CLOSE int fd =
        openat(fs->root, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);

    if (fd < 0)
        return error_set_errno(err, errno, "cannot create %s", path);
    return store_fs_write(fd, text, strlen(text), 0, path, err);
}

int store_fs_upload_new(struct store *store, const char *owner, const char *id,
                        struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    char path[PATH_MAX_];
    int r;

    if (mkdirat(fs->root, upload_path(id, "", path), 0750) != 0)
        return error_set_errno(err, errno, "cannot make %s", path);
    r = create_file(fs, upload_path(id, "owner", path), owner, err);
    if (!r)
        r = create_file(fs, upload_path(id, "data", path), "", err);
    if (r)
        remove_upload(fs, id);
    return r;
}

static int check_owner(const struct store_fs *fs, const char *id, const char *owner,
                       struct cairn_error *err)
{
    char path[PATH_MAX_], text[STORE_NAME_MAX + 1];
    CLEANUP_CLOSE int fd = -1;
    uint64_t size;
    int r = store_fs_open_file(fs, upload_path(id, "owner", path), O_RDONLY, path, &fd, &size, err);

    if (r)
        return r;
    if (size != strlen(owner) || size > sizeof(text))
        return error_set(err, CAIRN_E_NOT_FOUND, "upload %s is not of %s", id, owner);
    r = store_fs_read(fd, text, (size_t)size, 0, path, err);
    if (!r && memcmp(text, owner, (size_t)size) != 0)
        r = error_set(err, CAIRN_E_NOT_FOUND, "upload %s is not of %s", id, owner);
    return r;
}

int store_fs_upload_size(struct store *store, const char *id, const char *owner, uint64_t *ret_size,
                         struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    char path[PATH_MAX_];
    CLEANUP_CLOSE int fd = -1;
    int r = check_owner(fs, id, owner, err);

    return r ? r
             : store_fs_open_file(fs, upload_path(id, "data", path), O_RDONLY, path, &fd, ret_size,
                                  err);
}

/* Is fd's file still the upload's data, and nothing else's?  Its size, if so. */
static int check_claimed(const struct store_fs *fs, const char *id, int fd, uint64_t *ret_size,
                         struct cairn_error *err)
{
    char path[PATH_MAX_];
    struct stat st, now;

    if (fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "cannot stat upload %s", id);
    if (st.st_nlink != 1 ||
        fstatat(fs->root, upload_path(id, "data", path), &now, AT_SYMLINK_NOFOLLOW) != 0 ||
        now.st_ino != st.st_ino || now.st_dev != st.st_dev)
        return error_set(err, CAIRN_E_NOT_FOUND, "upload %s has ended", id);
    *ret_size = (uint64_t)st.st_size;
    return CAIRN_OK;
}

/* Open and lock the data of an upload; closing the descriptor lets go. */
static int claim(const struct store_fs *fs, const char *id, int *ret_fd, uint64_t *ret_size,
                 struct cairn_error *err)
{
    char path[PATH_MAX_];
    CLEANUP_CLOSE int fd = -1;
    int r = store_fs_open_file(fs, upload_path(id, "data", path), O_RDWR, path, &fd, ret_size, err);

    if (!r)
        r = store_fs_lock(fd, LOCK_EX, path, err);
    if (!r)
        r = check_claimed(fs, id, fd, ret_size, err);
    if (!r)
        *ret_fd = steal_fd(&fd);
    return r;
}

int store_fs_upload_append(struct store *store, const char *id, uint64_t off, const void *buf,
                           size_t len, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = -1;
    char path[PATH_MAX_];
    uint64_t size;
    int r = claim(store_fs_of(store), id, &fd, &size, err);

    if (r)
        return r;
    if (off != size)
        return error_set(err, CAIRN_E_CONFLICT, "upload %s has %llu bytes, cannot append at %llu",
                         id, (unsigned long long)size, (unsigned long long)off);
    r = store_fs_write(fd, buf, len, off, upload_path(id, "data", path), err);
    if (r && ftruncate(fd, (off_t)size) != 0)
        error_prefix(err, r, "cannot cut off what was written");
    return r;
}

int store_fs_upload_read(struct store *store, const char *id, void *buf, size_t len, uint64_t off,
                         struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = -1;
    char path[PATH_MAX_];
    uint64_t size;
    int r = store_fs_open_file(store_fs_of(store), upload_path(id, "data", path), O_RDONLY, path,
                               &fd, &size, err);

    return r ? r : store_fs_read(fd, buf, len, off, path, err);
}

int store_fs_upload_commit(struct store *store, const char *id, uint64_t size, const char *key,
                           struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    CLEANUP_CLOSE int fd = -1;
    char path[PATH_MAX_];
    uint64_t have;
    int r = claim(fs, id, &fd, &have, err);

    if (r)
        return r;
    if (have != size)
        return error_set(err, CAIRN_E_CONFLICT, "upload %s has %llu bytes, expected %llu", id,
                         (unsigned long long)have, (unsigned long long)size);
    if (fsync(fd) != 0)
        return error_set_errno(err, errno, "cannot sync upload %s", id);
    r = store_fs_publish(fs, upload_path(id, "data", path), key, false, err);
    if (r && r != CAIRN_E_CONFLICT)
        return r;
    remove_upload(fs, id);
    return CAIRN_OK;
}

int store_fs_upload_abort(struct store *store, const char *id, struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    CLEANUP_CLOSE int fd = -1;
    uint64_t size;
    int r = claim(fs, id, &fd, &size, err);

    if (!r)
        remove_upload(fs, id);
    return r;
}
