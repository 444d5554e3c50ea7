/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder.  All changes are made so that a crash between any two steps leaves a folder that the
 * next open brings into order:
 *
 *  - disk.json is written as disk.json.new, fsynced, renamed into place, and the folder fsynced.
 *  - A folder that has no disk.json holds nothing of value but perhaps next.qcow2, which nobody
 *    was promised.  With any other file in it it is not ours, and is refused.
 *  - A new active layer is made as next.qcow2 and gets its place after the disk.json that wants it
 *    is durable.  So, if active.qcow2 is missing or is another name of the youngest sealed layer,
 *    next.qcow2 is the active layer and only its rename is missing; else next.qcow2 is the rest of
 * a switch that was not committed.
 *  - A sealed layer gets its name, as a second link, before the disk.json that names it; so every
 *    layer that disk.json names exists, and one that it does not name is not needed.
 */
#include "disk_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "checked.h"
#include "quote.h"

#define LOCK_NAME       "lock"
#define STATE_NAME      "disk.json"
#define STATE_NEW_NAME  "disk.json.new"
#define MARK_NAME       "in-use"
#define NO_STATE        "%s: no disk folder: it has no " STATE_NAME
#define STATE_BYTES_MAX ((size_t)256 << 10)

struct disk_folder {
    char *path; /* absolute */
    int fd;
    int lock_fd;
    bool made;   /* by us, just now */
    bool locked; /* by us */
    bool has_state;
    struct disk_state state;
    struct disk_state prepared;
};

const struct disk_state *disk_folder_state(const struct disk_folder *folder)
{
    return folder->has_state ? &folder->state : NULL;
}

int disk_folder_fd(const struct disk_folder *folder)
{
    return folder->fd;
}

char *disk_folder_path(const struct disk_folder *folder, const char *name)
{
    char *path;

    return asprintf(&path, "%s/%s", folder->path, name) < 0 ? NULL : path;
}

static int sync_folder(struct disk_folder *folder, struct cairn_error *err)
{
    if (fsync(folder->fd) != 0)
        return error_set_errno(err, errno, "%s: cannot sync the folder", folder->path);
    return CAIRN_OK;
}

/* -- disk.json ------------------------------------------------------------------------------ */

static int write_all(int fd, const char *buf, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, buf, len);

        if (n < 0 && errno != EINTR)
            return -1;
        if (n > 0) {
            buf += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

int disk_folder_prepare(struct disk_folder *folder, const struct disk_state *state,
                        struct cairn_error *err)
{
    CLEANUP_FREE char *json = NULL;
    CLEANUP_CLOSE int fd = -1;
    int ret = disk_state_encode(state, &json, err);

    if (ret != CAIRN_OK)
        return ret;
    unlinkat(folder->fd, STATE_NEW_NAME, 0);
    fd = openat(folder->fd, STATE_NEW_NAME, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                0600);
    if (fd < 0 || write_all(fd, json, strlen(json)) != 0 || fsync(fd) != 0) {
        ret = error_set_errno(err, errno, "%s/" STATE_NEW_NAME ": cannot write", folder->path);
        disk_folder_abandon(folder);
        return ret;
    }
    folder->prepared = *state;
    return CAIRN_OK;
}

int disk_folder_commit(struct disk_folder *folder, struct cairn_error *err)
{
    if (renameat(folder->fd, STATE_NEW_NAME, folder->fd, STATE_NAME) != 0)
        return error_set_errno(err, errno, "%s/" STATE_NAME ": cannot replace", folder->path);
    folder->state = folder->prepared;
    folder->has_state = true;
    return sync_folder(folder, err);
}

void disk_folder_abandon(struct disk_folder *folder)
{
    unlinkat(folder->fd, STATE_NEW_NAME, 0);
}

/* A whole small regular file.  *ret_len is 0 and *ret_buf NULL if there is none. */
static int read_file(int dir_fd, const char *dir, const char *name, char **ret_buf, size_t *ret_len,
                     struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    CLEANUP_FREE char *buf = NULL;
    struct stat st;
    ssize_t n;

    *ret_buf = NULL;
    *ret_len = 0;
    if (fd < 0 && errno == ENOENT)
        return CAIRN_OK;
    if (fd < 0 || fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "%s/%s: cannot open", dir, name);
    if (!S_ISREG(st.st_mode) || st.st_size > (off_t)STATE_BYTES_MAX)
        return error_set(err, CAIRN_E_CORRUPT, "%s/%s: not a regular file of at most %zu bytes",
                         dir, name, STATE_BYTES_MAX);
    buf = malloc((size_t)st.st_size + 1);
    if (!buf)
        return error_no_memory(err, name);
    n = pread(fd, buf, (size_t)st.st_size, 0);
    if (n < 0)
        return error_set_errno(err, errno, "%s/%s: cannot read", dir, name);
    *ret_buf = steal_ptr(buf);
    *ret_len = (size_t)n;
    return CAIRN_OK;
}

static int load_state(int dir_fd, const char *dir, bool *ret_has, struct disk_state *ret_state,
                      struct cairn_error *err)
{
    CLEANUP_FREE char *json = NULL;
    char what[PATH_MAX + 16];
    size_t len;
    int ret = read_file(dir_fd, dir, STATE_NAME, &json, &len, err);

    *ret_has = json != NULL;
    if (ret != CAIRN_OK || !json)
        return ret;
    snprintf(what, sizeof(what), "%s/" STATE_NAME, dir);
    return disk_state_parse(json, len, what, ret_state, err);
}

static bool has_mark(int folder_fd)
{
    return faccessat(folder_fd, MARK_NAME, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

int disk_folder_read_state(const char *path, struct disk_state *ret_state, bool *ret_marked,
                           struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool has;
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open the disk folder", path);
    ret = load_state(fd, path, &has, ret_state, err);
    if (ret == CAIRN_OK && !has)
        ret = error_set(err, CAIRN_E_NOT_FOUND, NO_STATE, path);
    *ret_marked = has_mark(fd);
    return ret;
}

/* -- Bringing into order -------------------------------------------------------------------- */

/* What active_create leaves of next.qcow2 if it is killed. */
static bool is_half_made(const char *name)
{
    static const char start[] = DISK_FOLDER_NEXT ".new-";

    return strncmp(name, start, strlen(start)) == 0;
}

/* What may lie in a folder without disk.json: what a disk that was not finished, or a server that
 * is starting, puts there. */
static bool may_be_in_new_folder(const char *name)
{
    static const char *const names[] = {
        ".",        "..",         LOCK_NAME,    STATE_NEW_NAME,     DISK_FOLDER_NEXT,
        "nbd.sock", "attach.pid", "attach.log", DISK_FOLDER_CONTROL};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return is_half_made(name);
}

typedef int (*name_fn)(struct disk_folder *folder, const char *name, struct cairn_error *err);

static int for_each_name(struct disk_folder *folder, name_fn fn, struct cairn_error *err)
{
    int fd = openat(folder->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    int ret = CAIRN_OK;
    struct dirent *de;

    if (!dir) {
        ret = error_set_errno(err, errno, "%s: cannot list the folder", folder->path);
        if (fd >= 0)
            close(fd);
        return ret;
    }
    while (ret == CAIRN_OK && (de = readdir(dir)))
        ret = fn(folder, de->d_name, err);
    closedir(dir);
    return ret;
}

static int refuse_foreign(struct disk_folder *folder, const char *name, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (may_be_in_new_folder(name))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CONFLICT, NO_STATE ", and is not empty: it has %s", folder->path,
                     quote_str(name, quoted));
}

/* What is published for a sealed layer is always unreferenced: it is made again. */
static int remove_unreferenced(struct disk_folder *folder, const char *name,
                               struct cairn_error *err)
{
    char sealed[DISK_SEALED_NAME_MAX];

    (void)err;
    if (disk_sealed_number(name) == 0 && disk_compact_number(name) == 0 && !is_half_made(name))
        return CAIRN_OK;
    for (uint32_t i = 0; i < folder->state.nr_sealed; i++)
        if (strcmp(name, disk_sealed_name(folder->state.sealed[i], sealed)) == 0)
            return CAIRN_OK;
    disk_folder_remove(folder, name);
    return CAIRN_OK;
}

/* Links are not followed: a layer is a file of this folder.  *ret_st.st_ino is 0 if it is missing.
 */
static int stat_layer(struct disk_folder *folder, const char *name, struct stat *ret_st,
                      struct cairn_error *err)
{
    if (fstatat(folder->fd, name, ret_st, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT)
            return error_set_errno(err, errno, "%s/%s: cannot stat", folder->path, name);
        memset(ret_st, 0, sizeof(*ret_st));
        return CAIRN_OK;
    }
    if (!S_ISREG(ret_st->st_mode))
        return error_set(err, CAIRN_E_CORRUPT, "%s/%s: not a regular file", folder->path, name);
    return CAIRN_OK;
}

static int check_sealed(struct disk_folder *folder, struct stat *ret_youngest,
                        struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];

    memset(ret_youngest, 0, sizeof(*ret_youngest));
    for (uint32_t i = 0; i < folder->state.nr_sealed; i++) {
        int ret =
            stat_layer(folder, disk_sealed_name(folder->state.sealed[i], name), ret_youngest, err);

        if (ret != CAIRN_OK)
            return ret;
        if (ret_youngest->st_ino == 0)
            return error_set(err, CAIRN_E_CORRUPT,
                             "%s/%s: the layer that " STATE_NAME " names is missing", folder->path,
                             name);
    }
    return CAIRN_OK;
}

/* See the head of the file. */
static int settle_active(struct disk_folder *folder, struct cairn_error *err)
{
    struct stat active, next, youngest;
    int ret = check_sealed(folder, &youngest, err);

    if (ret == CAIRN_OK)
        ret = stat_layer(folder, DISK_FOLDER_ACTIVE, &active, err);
    if (ret == CAIRN_OK)
        ret = stat_layer(folder, DISK_FOLDER_NEXT, &next, err);
    if (ret != CAIRN_OK)
        return ret;
    if (active.st_ino != 0 &&
        (active.st_ino != youngest.st_ino || active.st_dev != youngest.st_dev)) {
        disk_folder_remove(folder, DISK_FOLDER_NEXT);
        return CAIRN_OK;
    }
    if (next.st_ino == 0)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s/" DISK_FOLDER_ACTIVE ": the active layer is missing", folder->path);
    return disk_folder_promote_next(folder, err);
}

static int bring_into_order(struct disk_folder *folder, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    disk_folder_abandon(folder);
    if (folder->has_state)
        ret = settle_active(folder, err);
    else
        disk_folder_remove(folder, DISK_FOLDER_NEXT);
    if (ret == CAIRN_OK)
        ret = for_each_name(folder, remove_unreferenced, err);
    return ret;
}

/* -- Layers' files -------------------------------------------------------------------------- */

int disk_folder_link_active(struct disk_folder *folder, uint32_t sealed, struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];

    disk_folder_remove(folder, disk_sealed_name(sealed, name));
    if (linkat(folder->fd, DISK_FOLDER_ACTIVE, folder->fd, name, 0) != 0)
        return error_set_errno(err, errno, "%s/%s: cannot link it to " DISK_FOLDER_ACTIVE,
                               folder->path, name);
    return sync_folder(folder, err);
}

int disk_folder_promote_next(struct disk_folder *folder, struct cairn_error *err)
{
    if (renameat(folder->fd, DISK_FOLDER_NEXT, folder->fd, DISK_FOLDER_ACTIVE) != 0)
        return error_set_errno(err, errno,
                               "%s/" DISK_FOLDER_NEXT ": cannot rename it to " DISK_FOLDER_ACTIVE,
                               folder->path);
    return CAIRN_OK;
}

void disk_folder_remove(struct disk_folder *folder, const char *name)
{
    unlinkat(folder->fd, name, 0);
}

/* -- The mark ------------------------------------------------------------------------------- */

bool disk_folder_is_marked(const struct disk_folder *folder)
{
    return has_mark(folder->fd);
}

int disk_folder_mark(struct disk_folder *folder, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd =
        openat(folder->fd, MARK_NAME, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

    if (fd < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "%s/" MARK_NAME ": cannot make it", folder->path);
    return sync_folder(folder, err);
}

void disk_folder_unmark(struct disk_folder *folder)
{
    disk_folder_remove(folder, MARK_NAME);
}

/* -- Opening -------------------------------------------------------------------------------- */

/* The entry of a folder just made survives a power cut. */
static int sync_parent(struct disk_folder *folder, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = openat(folder->fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) != 0)
        return error_set_errno(err, errno, "%s: cannot sync the folder above it", folder->path);
    return CAIRN_OK;
}

static int open_dir(struct disk_folder *folder, const char *path, bool create,
                    struct cairn_error *err)
{
    if (create) {
        folder->made = mkdir(path, 0700) == 0;
        if (!folder->made && errno != EEXIST)
            return error_set_errno(err, errno, "%s: cannot make the disk folder", path);
    }
    folder->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->fd < 0)
        return error_set_errno(err, errno, "%s: cannot open the disk folder", path);
    folder->path = realpath(path, NULL);
    if (!folder->path)
        return error_set_errno(err, errno, "%s: cannot resolve the path", path);
    return folder->made ? sync_parent(folder, err) : CAIRN_OK;
}

/* Before anything is written into somebody else's folder. */
static int check_ours(struct disk_folder *folder, bool create, struct cairn_error *err)
{
    if (faccessat(folder->fd, STATE_NAME, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return CAIRN_OK;
    if (errno != ENOENT)
        return error_set_errno(err, errno, "%s/" STATE_NAME ": cannot look for it", folder->path);
    if (create)
        return for_each_name(folder, refuse_foreign, err);
    return error_set(err, CAIRN_E_NOT_FOUND, NO_STATE, folder->path);
}

/* The lock belongs to the open file, so that two handles in one process exclude each other too. */
static int lock_folder(struct disk_folder *folder, struct cairn_error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat st;

    folder->lock_fd =
        openat(folder->fd, LOCK_NAME, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (folder->lock_fd < 0)
        return error_set_errno(err, errno, "%s/" LOCK_NAME ": cannot open", folder->path);
    if (fcntl(folder->lock_fd, F_OFD_SETLK, &lock) == 0) {
        /* Not the lock of a folder that its maker has just given up. */
        folder->locked = fstat(folder->lock_fd, &st) == 0 && st.st_nlink > 0;
        if (folder->locked)
            return CAIRN_OK;
        errno = EAGAIN;
    }
    if (errno == EAGAIN || errno == EACCES)
        return error_set(err, CAIRN_E_CONFLICT, "%s: another process has the disk open",
                         folder->path);
    return error_set_errno(err, errno, "%s/" LOCK_NAME ": cannot lock", folder->path);
}

int disk_folder_open(const char *path, bool create, struct disk_folder **ret_folder,
                     struct cairn_error *err)
{
    CLEANUP(disk_folder_close_p) struct disk_folder *folder = calloc(1, sizeof(*folder));
    int ret;

    if (!folder)
        return error_no_memory(err, "a disk folder");
    folder->fd = folder->lock_fd = -1;
    ret = open_dir(folder, path, create, err);
    if (ret == CAIRN_OK)
        ret = check_ours(folder, create, err);
    if (ret == CAIRN_OK)
        ret = lock_folder(folder, err);
    if (ret == CAIRN_OK)
        ret = load_state(folder->fd, folder->path, &folder->has_state, &folder->state, err);
    if (ret == CAIRN_OK)
        ret = bring_into_order(folder, err);
    if (ret == CAIRN_OK)
        *ret_folder = steal_ptr(folder);
    return ret;
}

/* The disk could not be made: leave the folder as it was found. */
static void undo_making(struct disk_folder *folder)
{
    disk_folder_abandon(folder);
    disk_folder_remove(folder, DISK_FOLDER_NEXT);
    disk_folder_remove(folder, LOCK_NAME);
    if (folder->made)
        rmdir(folder->path);
}

void disk_folder_close(struct disk_folder *folder)
{
    if (!folder)
        return;
    if (folder->locked && !folder->has_state)
        undo_making(folder);
    if (folder->lock_fd >= 0)
        close(folder->lock_fd);
    if (folder->fd >= 0)
        close(folder->fd);
    free(folder->path);
    free(folder);
}
