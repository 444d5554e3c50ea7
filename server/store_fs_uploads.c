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

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define UPLOAD_PATH_MAX 64 /* uploads/<32 hex>/owner */

static char *upload_path(const char *id, const char *name, char path[UPLOAD_PATH_MAX])
{
    snprintf(path, UPLOAD_PATH_MAX, "uploads/%s/%s", id, name);
    return path;
}

static char *upload_name(const char *id, char name[UPLOAD_PATH_MAX])
{
    snprintf(name, UPLOAD_PATH_MAX, "upload %s", id);
    return name;
}

static int open_upload_file(const struct store_fs *fs, const char *id, const char *file, int flags,
                            int *ret_fd, uint64_t *ret_size, struct cairn_error *err)
{
    char path[UPLOAD_PATH_MAX], name[UPLOAD_PATH_MAX];

    return store_fs_open_file(fs, upload_path(id, file, path), flags, upload_name(id, name), ret_fd,
                              ret_size, err);
}

static void remove_upload(const struct store_fs *fs, const char *id)
{
    char path[UPLOAD_PATH_MAX];

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
    char path[UPLOAD_PATH_MAX];
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

static int read_owner(const struct store_fs *fs, const char *id, char owner[STORE_NAME_MAX + 1],
                      struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = -1;
    uint64_t size;
    int r = open_upload_file(fs, id, "owner", O_RDONLY, &fd, &size, err);

    if (!r && size > STORE_NAME_MAX)
        r = error_set(err, CAIRN_E_CORRUPT, "upload %s: its owner has %llu bytes, limit %d", id,
                      (unsigned long long)size, STORE_NAME_MAX);
    if (!r)
        r = store_fs_read(fd, owner, (size_t)size, 0, "an upload's owner", err);
    if (!r)
        owner[size] = 0;
    return r;
}

static int check_owner(const struct store_fs *fs, const char *id, const char *owner,
                       struct cairn_error *err)
{
    char actual[STORE_NAME_MAX + 1];
    int r = read_owner(fs, id, actual, err);

    if (r || strcmp(actual, owner) == 0)
        return r;
    return error_set(err, CAIRN_E_NOT_FOUND, "upload %s is not of %s", id, owner);
}

int store_fs_upload_size(struct store *store, const char *id, const char *owner, uint64_t *ret_size,
                         struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    CLEANUP_CLOSE int fd = -1;
    int r = check_owner(fs, id, owner, err);

    return r ? r : open_upload_file(fs, id, "data", O_RDONLY, &fd, ret_size, err);
}

/* Is fd's file still the upload's data, and nothing else's? */
static int check_claimed(const struct store_fs *fs, const char *id, int fd, struct stat *ret_st,
                         struct cairn_error *err)
{
    char path[UPLOAD_PATH_MAX];
    struct stat now;

    if (fstat(fd, ret_st) != 0)
        return error_set_errno(err, errno, "cannot stat upload %s", id);
    if (ret_st->st_nlink != 1 ||
        fstatat(fs->root, upload_path(id, "data", path), &now, AT_SYMLINK_NOFOLLOW) != 0 ||
        now.st_ino != ret_st->st_ino || now.st_dev != ret_st->st_dev)
        return error_set(err, CAIRN_E_NOT_FOUND, "upload %s has ended", id);
    return CAIRN_OK;
}

/* Open and lock the data of an upload; closing the descriptor lets go. */
static int claim(const struct store_fs *fs, const char *id, int *ret_fd, struct stat *ret_st,
                 struct cairn_error *err)
{
    char name[UPLOAD_PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    uint64_t size;
    int r = open_upload_file(fs, id, "data", O_RDWR, &fd, &size, err);

    if (!r)
        r = store_fs_lock(fd, LOCK_EX, upload_name(id, name), err);
    if (!r)
        r = check_claimed(fs, id, fd, ret_st, err);
    if (!r)
        *ret_fd = steal_fd(&fd);
    return r;
}

static int check_size(const char *id, const struct stat *st, uint64_t expected,
                      struct cairn_error *err)
{
    if ((uint64_t)st->st_size == expected)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CONFLICT, "upload %s has %llu bytes, not %llu", id,
                     (unsigned long long)st->st_size, (unsigned long long)expected);
}

int store_fs_upload_append(struct store *store, const char *id, uint64_t off, const void *buf,
                           size_t len, struct cairn_error *err)
{
    char name[UPLOAD_PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    int r = claim(store_fs_of(store), id, &fd, &st, err);

    if (!r)
        r = check_size(id, &st, off, err);
    if (r)
        return r;
    r = store_fs_write(fd, buf, len, off, upload_name(id, name), err);
    if (r && ftruncate(fd, st.st_size) != 0)
        error_prefix(err, r, "cannot cut off what was written");
    return r;
}

int store_fs_upload_read(struct store *store, const char *id, void *buf, size_t len, uint64_t off,
                         struct cairn_error *err)
{
    char name[UPLOAD_PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    uint64_t size;
    int r = open_upload_file(store_fs_of(store), id, "data", O_RDONLY, &fd, &size, err);

    return r ? r : store_fs_read(fd, buf, len, off, upload_name(id, name), err);
}

int store_fs_upload_commit(struct store *store, const char *id, uint64_t size, const char *key,
                           struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    char path[UPLOAD_PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    int r = claim(fs, id, &fd, &st, err);

    if (!r)
        r = check_size(id, &st, size, err);
    if (r)
        return r;
    if (fsync(fd) != 0)
        return error_set_errno(err, errno, "cannot sync upload %s", id);
    r = store_fs_publish(fs, upload_path(id, "data", path), key, false, err);
    if (r == CAIRN_E_CONFLICT)
        r = CAIRN_OK;
    /* Moved, but maybe not durably: it is an upload no more, and what is left of it can go. */
    if (!r || faccessat(fs->root, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0)
        remove_upload(fs, id);
    return r;
}

int store_fs_upload_abort(struct store *store, const char *id, struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    int r = claim(fs, id, &fd, &st, err);

    if (!r)
        remove_upload(fs, id);
    return r;
}

/* -- All uploads -------------------------------------------------------------------------- */

typedef int (*upload_id_fn)(const struct store_fs *fs, const char *id, void *arg,
                            struct cairn_error *err);

static int for_each_upload(const struct store_fs *fs, upload_id_fn fn, void *arg,
                           struct cairn_error *err)
{
    int fd = openat(fs->root, "uploads", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    int r = CAIRN_OK;

    if (!dir) {
        r = error_set_errno(err, errno, "cannot list uploads");
        cleanup_close(&fd);
        return r;
    }
    for (errno = 0; !r && (entry = readdir(dir)); errno = 0)
        if (strlen(entry->d_name) == STORE_ID_LEN)
            r = fn(fs, entry->d_name, arg, err);
    if (!r && errno)
        r = error_set_errno(err, errno, "cannot list uploads");
    closedir(dir);
    return r;
}

static uint64_t age_of(const struct stat *st)
{
    time_t now = time(NULL);

    return now > st->st_mtime ? (uint64_t)(now - st->st_mtime) : 0;
}

struct lister {
    store_upload_fn fn;
    void *arg;
};

static int list_upload(const struct store_fs *fs, const char *id, void *arg,
                       struct cairn_error *err)
{
    char path[UPLOAD_PATH_MAX], owner[STORE_NAME_MAX + 1];
    const struct lister *lister = arg;
    struct store_upload upload = {.id = id, .owner = owner};
    struct stat st;
    int r;

    if (fstatat(fs->root, upload_path(id, "data", path), &st, AT_SYMLINK_NOFOLLOW) != 0)
        return CAIRN_OK; /* not there yet, or no more */
    r = read_owner(fs, id, owner, err);
    if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_CORRUPT) /* nobody's: it goes when it is old */
        return CAIRN_OK;
    upload.size = (uint64_t)st.st_size;
    upload.age_s = age_of(&st);
    return r ? r : lister->fn(lister->arg, &upload, err);
}

int store_fs_list_uploads(struct store *store, store_upload_fn fn, void *arg,
                          struct cairn_error *err)
{
    struct lister lister = {.fn = fn, .arg = arg};

    return for_each_upload(store_fs_of(store), list_upload, &lister, err);
}

struct expiry {
    uint64_t age_s;
    struct store_expired done;
};

static int expire_upload(const struct store_fs *fs, const char *id, void *arg,
                         struct cairn_error *err)
{
    struct expiry *expiry = arg;
    CLEANUP_CLOSE int fd = -1;
    char path[UPLOAD_PATH_MAX];
    struct stat st;

    (void)err;
    if (fstatat(fs->root, upload_path(id, "", path), &st, 0) != 0 || age_of(&st) < expiry->age_s)
        return CAIRN_OK;
    /* Without data it never was complete, or was not removed completely. */
    if (fstatat(fs->root, upload_path(id, "data", path), &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        (age_of(&st) < expiry->age_s || claim(fs, id, &fd, &st, NULL) ||
         age_of(&st) < expiry->age_s))
        return CAIRN_OK;
    remove_upload(fs, id);
    expiry->done.nr++;
    expiry->done.bytes += fd >= 0 ? (uint64_t)st.st_size : 0;
    return CAIRN_OK;
}

int store_fs_expire_uploads(struct store *store, uint64_t age_s, struct store_expired *ret_expired,
                            struct cairn_error *err)
{
    struct expiry expiry = {.age_s = age_s};
    int r = for_each_upload(store_fs_of(store), expire_upload, &expiry, err);

    if (!r)
        *ret_expired = expiry.done;
    return r;
}
