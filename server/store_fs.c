/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The embedded backend: a folder, in which a key is a path.
 *
 *   blobs/ repos/ index/   objects, under their keys
 *   uploads/<id>/          one upload: `owner` and `data` (store_fs_uploads.c)
 *   tmp/                   files being written; what a crash leaves is removed an hour later
 *   locks/<2 hex>          one lock file for each 256th of the keys that compare-and-set changes
 *   locks/folders          held while folders are made
 *   locks/<name>.lock      what store_lock holds
 *   locks/clock            touched to ask what time it is where the files are
 *
 * Writing: to a temporary name, fsync, move to the key's path without replacing, fsync the folder.
 * A folder that is missing is made and its parent synced under a lock, and whoever put a file into
 * a folder passes that lock once before reporting success: so nobody relies on a folder that
 * somebody else has made and not synced yet.  A file under a key is therefore always complete, and
 * a call that succeeded has made it durable.  Several processes may work on one store: nothing is
 * decided by what a process remembers.
 *
 * No path leaves the root: keys have been checked, and the last component is never followed if it
 * is a symbolic link (an administrator may link whole folders elsewhere, within one file system).
 */
#include "store_fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define TEMP_MAX        64
#define TEMP_DEAD_AFTER 3600        /* seconds: one buffer is written in far less */
#define LOCK_WAIT_NS    10000000000 /* longest wait for another process's lock */

/* -- Small file helpers ------------------------------------------------------------------- */

static int lookup_failed(int sys_errno, const char *what, struct cairn_error *err)
{
    if (sys_errno == ENOENT || sys_errno == ENOTDIR)
        return error_set(err, CAIRN_E_NOT_FOUND, "no %s in the store", what);
    return error_set_errno(err, sys_errno, "cannot open %s", what);
}

int store_fs_open_file(const struct store_fs *fs, const char *path, int flags, const char *what,
                       int *ret_fd, uint64_t *ret_size, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = openat(fs->root, path, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat st;

    if (fd < 0)
        return lookup_failed(errno == EISDIR ? ENOENT : errno, what, err);
    if (fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "cannot stat %s", what);
    if (!S_ISREG(st.st_mode))
        return lookup_failed(ENOENT, what, err);
    *ret_size = (uint64_t)st.st_size;
    *ret_fd = steal_fd(&fd);
    return CAIRN_OK;
}

int store_fs_read(int fd, void *buf, size_t len, uint64_t off, const char *what,
                  struct cairn_error *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(off + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "cannot read %s", what);
        if (n == 0)
            return error_set(err, CAIRN_E_IO, "%s ends at %llu, expected at least %llu bytes", what,
                             (unsigned long long)(off + done), (unsigned long long)(off + len));
        done += (size_t)n;
    }
    return CAIRN_OK;
}

int store_fs_write(int fd, const void *buf, size_t len, uint64_t off, const char *what,
                   struct cairn_error *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(off + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "cannot write %s", what);
        done += (size_t)n;
    }
    return CAIRN_OK;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

int store_fs_lock(int fd, int operation, const char *what, struct cairn_error *err)
{
    const uint64_t deadline = now_ns() + LOCK_WAIT_NS;
    struct timespec pause = {.tv_nsec = 50000};

    while (flock(fd, operation | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return error_set_errno(err, errno, "cannot lock %s", what);
        if (now_ns() > deadline)
            return error_set(err, CAIRN_E_UNAVAILABLE, "%s is locked by another request", what);
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < 5000000)
            pause.tv_nsec *= 2;
    }
    return CAIRN_OK;
}

/* The folder of path (of the root if it has none), as a string. */
static char *folder_of(const char *path, char folder[STORE_KEY_MAX + 1])
{
    const char *slash = strrchr(path, '/');

    if (slash)
        snprintf(folder, STORE_KEY_MAX + 1, "%.*s", (int)(slash - path), path);
    else
        strcpy(folder, ".");
    return folder;
}

static int sync_folder_of(const struct store_fs *fs, const char *path, struct cairn_error *err)
{
    char folder[STORE_KEY_MAX + 1];
    CLEANUP_CLOSE int fd =
        openat(fs->root, folder_of(path, folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) != 0)
        return error_set_errno(err, errno, "cannot sync folder %s of the store", folder);
    return CAIRN_OK;
}

/* Make the folders that path lies in, durably. */
static int make_folders(const struct store_fs *fs, const char *path, struct cairn_error *err)
{
    char folder[STORE_KEY_MAX + 1];

    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        int r;

        snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
        if (mkdirat(fs->root, folder, 0750) != 0) {
            if (errno == EEXIST)
                continue;
            return error_set_errno(err, errno, "cannot make folder %s in the store", folder);
        }
        r = sync_folder_of(fs, folder, err);
        if (r)
            return r;
    }
    return CAIRN_OK;
}

/* Take the lock on folders, shared or exclusive, until *ret_fd is closed. */
static int lock_folders(const struct store_fs *fs, int operation, int *ret_fd,
                        struct cairn_error *err)
{
    CLEANUP_CLOSE int fd =
        openat(fs->root, "locks/folders", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
    int r;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot open the lock on the store's folders");
    r = store_fs_lock(fd, operation, "the store's folders", err);
    if (!r)
        *ret_fd = steal_fd(&fd);
    return r;
}

/* Whatever folder can be seen now is durable when this returns. */
static int wait_for_folders(const struct store_fs *fs, struct cairn_error *err)
{
    CLEANUP_CLOSE int lock = -1;

    return lock_folders(fs, LOCK_SH, &lock, err);
}

/*
 * Remove the folders that path was the last object of, so that a repository without objects does
 * not show.  Best effort but for what was removed: that is durable.
 */
static int remove_empty_folders(const struct store_fs *fs, const char *path,
                                struct cairn_error *err)
{
    char folder[STORE_KEY_MAX + 1], removed[STORE_KEY_MAX + 1] = "";
    CLEANUP_CLOSE int lock = -1;
    char *slash;
    int r;

    if (strncmp(path, "repos/", 6) != 0)
        return CAIRN_OK;
    r = lock_folders(fs, LOCK_EX, &lock, err);
    snprintf(folder, sizeof(folder), "%s", path);
    while (!r && (slash = strrchr(folder, '/'))) {
        *slash = 0;
        if (strncmp(folder, "repos/", 6) != 0 || unlinkat(fs->root, folder, AT_REMOVEDIR) != 0)
            break;
        strcpy(removed, folder);
    }
    return removed[0] ? sync_folder_of(fs, removed, err) : r;
}

/* -- Writing ------------------------------------------------------------------------------ */

/*
 * Move without replacing, or replace; 0 or an errno.  Where the file system has no such move (NFS),
 * link and unlink: then an upload's data has two names for a moment, which store_fs_uploads.c
 * expects.
 */
static int move_file(int root, const char *from, const char *to, bool replace)
{
    if (replace)
        return renameat(root, from, root, to) == 0 ? 0 : errno;
    if (renameat2(root, from, root, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return errno;
    if (linkat(root, from, root, to, 0) != 0)
        return errno;
    unlinkat(root, from, 0);
    return 0;
}

/* The same where the folder is missing: nobody removes it before the file is in it. */
static int make_folders_and_move(const struct store_fs *fs, const char *from, const char *key,
                                 bool replace, int *ret_errno, struct cairn_error *err)
{
    CLEANUP_CLOSE int lock = -1;
    int r = lock_folders(fs, LOCK_EX, &lock, err);

    if (!r)
        r = make_folders(fs, key, err);
    if (!r)
        *ret_errno = move_file(fs->root, from, key, replace);
    return r;
}

/* Move, without a promise about power cuts. */
static int publish(const struct store_fs *fs, const char *from, const char *key, bool replace,
                   int *ret_errno, struct cairn_error *err)
{
    *ret_errno = move_file(fs->root, from, key, replace);
    if (*ret_errno != ENOENT)
        return CAIRN_OK;
    return make_folders_and_move(fs, from, key, replace, ret_errno, err);
}

static int move_failed(int sys_errno, const char *key, struct cairn_error *err)
{
    if (sys_errno == EEXIST)
        return error_set(err, CAIRN_E_CONFLICT, "%s exists already", key);
    return error_set_errno(err, sys_errno, "cannot store %s", key);
}

int store_fs_publish(const struct store_fs *fs, const char *from, const char *key, bool replace,
                     struct cairn_error *err)
{
    int failed;
    int r = publish(fs, from, key, replace, &failed, err);

    if (!r)
        r = wait_for_folders(fs, err);
    if (r)
        return r;
    if (failed && failed != EEXIST)
        return move_failed(failed, key, err);
    r = sync_folder_of(fs, key, err);
    if (r && r != CAIRN_E_NOT_FOUND) /* not found: deleted again since, with its folder */
        return r;
    return failed ? move_failed(failed, key, err) : CAIRN_OK;
}

static int publish_note(const struct store_fs *fs, const char *from, const char *key,
                        struct cairn_error *err)
{
    int failed;
    int r = publish(fs, from, key, false, &failed, err);

    return !r && failed ? move_failed(failed, key, err) : r;
}

static int write_temp(const struct store_fs *fs, const char *temp, const char *key, const void *buf,
                      size_t len, bool durable, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd =
        openat(fs->root, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
    int r;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot create a file for %s", key);
    r = store_fs_write(fd, buf, len, 0, key, err);
    if (!r && durable && fsync(fd) != 0)
        r = error_set_errno(err, errno, "cannot sync %s", key);
    return r;
}

static int put(struct store *store, const char *key, const void *buf, size_t len,
               enum store_put_mode mode, struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    char temp[TEMP_MAX] = "tmp/";
    int r = store_random_hex(temp + strlen(temp), 32, err);

    if (r)
        return r;
    r = write_temp(fs, temp, key, buf, len, mode != STORE_PUT_NOTE, err);
    if (!r && mode == STORE_PUT_NOTE)
        r = publish_note(fs, temp, key, err);
    else if (!r)
        r = store_fs_publish(fs, temp, key, mode == STORE_PUT_REPLACE, err);
    if (r)
        unlinkat(fs->root, temp, 0);
    return r;
}

static int delete_object(struct store *store, const char *key, bool durable,
                         struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    int r;

    if (unlinkat(fs->root, key, 0) != 0)
        return lookup_failed(errno == EISDIR ? ENOENT : errno, key, err);
    if (!durable)
        return CAIRN_OK;
    r = sync_folder_of(fs, key, err);
    if (r && r != CAIRN_E_NOT_FOUND) /* not found: somebody has removed the folder already */
        return r;
    return remove_empty_folders(fs, key, err);
}

static int move(struct store *store, const char *from, const char *to, enum store_put_mode mode,
                struct cairn_error *err)
{
    const struct store_fs *fs = store_fs_of(store);
    struct stat st;
    int r;

    /* Who moves finds out about folders that are missing, not about files. */
    if (fstatat(fs->root, from, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
        return lookup_failed(ENOENT, from, err);
    r = store_fs_publish(fs, from, to, mode == STORE_PUT_REPLACE, err);
    if (r)
        return r;
    r = sync_folder_of(fs, from, err);
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

/* -- Reading ------------------------------------------------------------------------------ */

static uint64_t time_of(const struct stat *st)
{
    return (uint64_t)st->st_mtim.tv_sec * 1000000 + (uint64_t)st->st_mtim.tv_nsec / 1000;
}

static int stat_object(struct store *store, const char *key, struct store_stat *ret_stat,
                       struct cairn_error *err)
{
    struct stat st;

    if (fstatat(store_fs_of(store)->root, key, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return lookup_failed(errno, key, err);
    if (!S_ISREG(st.st_mode))
        return lookup_failed(ENOENT, key, err);
    *ret_stat = (struct store_stat){.size = (uint64_t)st.st_size, .time_us = time_of(&st)};
    return CAIRN_OK;
}

static int head(struct store *store, const char *key, uint64_t *ret_size, struct cairn_error *err)
{
    struct store_stat st = {0};
    int r = stat_object(store, key, &st, err);

    if (!r)
        *ret_size = st.size;
    return r;
}

static int touch(struct store *store, const char *key, struct cairn_error *err)
{
    if (utimensat(store_fs_of(store)->root, key, NULL, AT_SYMLINK_NOFOLLOW) != 0)
        return lookup_failed(errno, key, err);
    return CAIRN_OK;
}

/* What the file system gives to a file that is written now: that may be another machine's time. */
static int now(struct store *store, uint64_t *ret_now_us, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = openat(store_fs_of(store)->root, "locks/clock",
                                  O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
    struct stat st;

    if (fd < 0 || futimens(fd, NULL) != 0 || fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "cannot ask for the time of the store");
    *ret_now_us = time_of(&st);
    return CAIRN_OK;
}

static int get(struct store *store, const char *key, size_t max_len, void **ret_buf,
               size_t *ret_len, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = -1;
    CLEANUP_FREE char *buf = NULL;
    uint64_t size = 0;
    int r = store_fs_open_file(store_fs_of(store), key, O_RDONLY, key, &fd, &size, err);

    if (r)
        return r;
    if (size > max_len)
        return error_set(err, CAIRN_E_LIMIT, "%s has %llu bytes, limit %zu", key,
                         (unsigned long long)size, max_len);
    buf = malloc((size_t)size + 1);
    if (!buf)
        return error_no_memory(err, key);
    r = store_fs_read(fd, buf, (size_t)size, 0, key, err);
    if (r)
        return r;
    buf[size] = 0;
    *ret_len = (size_t)size;
    *ret_buf = steal_ptr(buf);
    return CAIRN_OK;
}

static int open_fd(struct store *store, const char *key, int *ret_fd, uint64_t *ret_size,
                   struct cairn_error *err)
{
    return store_fs_open_file(store_fs_of(store), key, O_RDONLY, key, ret_fd, ret_size, err);
}

static int open_source(struct store *store, const char *key, struct source **ret_src,
                       struct cairn_error *err)
{
    uint64_t size;
    int fd = -1, r = open_fd(store, key, &fd, &size, err);

    return r ? r : source_from_fd(fd, key, ret_src, err);
}

/* -- Listing ------------------------------------------------------------------------------ */

struct names {
    char **names; /* the first byte of each is '/' for a folder, else ' ' */
    size_t nr, max;
};

static void names_release(struct names *n)
{
    for (size_t i = 0; i < n->nr; i++)
        free(n->names[i]);
    free(n->names);
}

static int names_add(struct names *n, const char *name, bool is_folder, struct cairn_error *err)
{
    size_t len = strlen(name);

    if (n->nr == n->max) {
        size_t max = n->max ? 2 * n->max : 64;
        char **names = reallocarray(n->names, max, sizeof(*names));

        if (!names)
            return error_no_memory(err, "a list of names");
        n->names = names;
        n->max = max;
    }
    n->names[n->nr] = malloc(len + 2);
    if (!n->names[n->nr])
        return error_no_memory(err, "a list of names");
    n->names[n->nr][0] = is_folder ? '/' : ' ';
    memcpy(n->names[n->nr++] + 1, name, len + 1);
    return CAIRN_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a + 1, *(char *const *)b + 1);
}

static bool is_folder(DIR *dir, const struct dirent *entry)
{
    struct stat st;

    if (entry->d_type != DT_UNKNOWN && entry->d_type != DT_LNK)
        return entry->d_type == DT_DIR;
    return fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && S_ISDIR(st.st_mode);
}

static bool own_name(const char *prefix, const char *name)
{
    return prefix[0] == 0 &&
           (strcmp(name, "tmp") == 0 || strcmp(name, "locks") == 0 || strcmp(name, "uploads") == 0);
}

static int collect_names(DIR *dir, const char *prefix, const char *after, struct names *names,
                         struct cairn_error *err)
{
    const struct dirent *entry;

    while ((errno = 0, entry = readdir(dir))) {
        const char *name = entry->d_name;
        int r;

        if (!store_valid_name(name, strlen(name)) || own_name(prefix, name) ||
            (after && strcmp(name, after) <= 0))
            continue;
        r = names_add(names, name, is_folder(dir, entry), err);
        if (r)
            return r;
    }
    if (errno != 0)
        return error_set_errno(err, errno, "cannot list %s", prefix);
    return CAIRN_OK;
}

static int list(struct store *store, const char *prefix, const char *after, store_list_fn fn,
                void *arg, struct cairn_error *err)
{
    __attribute__((cleanup(names_release))) struct names names = {0};
    int fd = openat(store_fs_of(store)->root, prefix[0] ? prefix : ".",
                    O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir;
    int r;

    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return CAIRN_OK;
    dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        r = error_set_errno(err, errno, "cannot list %s", prefix);
        cleanup_close(&fd);
        return r;
    }
    r = collect_names(dir, prefix, after, &names, err);
    closedir(dir);
    if (r)
        return r;
    if (names.nr > 0)
        qsort(names.names, names.nr, sizeof(*names.names), compare_names);
    for (size_t i = 0; i < names.nr && !r; i++)
        r = fn(arg, names.names[i] + 1, names.names[i][0] == '/', err);
    return r;
}

/* -- Compare and set ---------------------------------------------------------------------- */

static int lock_key(const struct store_fs *fs, const char *key, int *ret_fd,
                    struct cairn_error *err)
{
    uint32_t hash = 2166136261u; /* FNV-1a: every process must pick the same lock */
    char path[16];
    CLEANUP_CLOSE int fd = -1;
    int r;

    for (const char *p = key; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 16777619u;
    snprintf(path, sizeof(path), "locks/%02x", hash & 0xff);
    fd = openat(fs->root, path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot open lock of %s", key);
    r = store_fs_lock(fd, LOCK_EX, key, err);
    if (!r)
        *ret_fd = steal_fd(&fd);
    return r;
}

static int check_old_value(struct store *store, const char *key, const char *old_value,
                           struct cairn_error *err)
{
    CLEANUP_FREE void *value = NULL;
    size_t len;
    int r = get(store, key, STORE_VALUE_MAX, &value, &len, err);

    if (r == CAIRN_E_NOT_FOUND && !old_value)
        return CAIRN_OK;
    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, CAIRN_E_CONFLICT, "%s does not exist any more", key);
    if (!r && !(old_value && strlen(old_value) == len && memcmp(old_value, value, len) == 0))
        r = error_set(err, CAIRN_E_CONFLICT, "%s was changed by somebody else", key);
    return r;
}

static int cas(struct store *store, const char *key, const char *old_value, const char *new_value,
               struct cairn_error *err)
{
    CLEANUP_CLOSE int lock = -1;
    int r = lock_key(store_fs_of(store), key, &lock, err);

    if (!r)
        r = check_old_value(store, key, old_value, err);
    if (r)
        return r;
    if (new_value)
        return put(store, key, new_value, strlen(new_value), STORE_PUT_REPLACE, err);
    return old_value ? delete_object(store, key, true, err) : CAIRN_OK;
}

/* -- Locks that are held for long ----------------------------------------------------------- */

/* Record locks of the open file, not flock: they can be asked for without being taken. */
struct fs_lock {
    struct store_lock lock; /* first: unlock gets it */
    int fd;
};

static int open_lock(const struct store_fs *fs, const char *name, int *ret_fd,
                     struct cairn_error *err)
{
    char path[sizeof("locks/.lock") + STORE_LOCK_MAX];

    snprintf(path, sizeof(path), "locks/%s.lock", name);
    *ret_fd = openat(fs->root, path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
    return *ret_fd >= 0 ? CAIRN_OK : error_set_errno(err, errno, "cannot open %s", path);
}

static void unlock(struct store_lock *lock)
{
    struct fs_lock *l = (struct fs_lock *)lock;

    close(l->fd);
    free(l);
}

static int lock(struct store *store, const char *name, struct store_lock **ret_lock,
                struct cairn_error *err)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct fs_lock *l;
    CLEANUP_CLOSE int fd = -1;
    int r = open_lock(store_fs_of(store), name, &fd, err);

    if (r)
        return r;
    if (fcntl(fd, F_OFD_SETLK, &whole) != 0) {
        if (errno == EAGAIN || errno == EACCES)
            return error_set(err, CAIRN_E_CONFLICT, "somebody else has the lock %s", name);
        return error_set_errno(err, errno, "cannot take the lock %s", name);
    }
    l = malloc(sizeof(*l));
    if (!l)
        return error_no_memory(err, "a lock");
    *l = (struct fs_lock){.lock = {.unlock = unlock}, .fd = steal_fd(&fd)};
    *ret_lock = &l->lock;
    return CAIRN_OK;
}

static int lock_held(struct store *store, const char *name, bool *ret_held, struct cairn_error *err)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CLEANUP_CLOSE int fd = -1;
    int r = open_lock(store_fs_of(store), name, &fd, err);

    if (r)
        return r;
    if (fcntl(fd, F_OFD_GETLK, &whole) != 0)
        return error_set_errno(err, errno, "cannot ask for the lock %s", name);
    *ret_held = whole.l_type != F_UNLCK;
    return CAIRN_OK;
}

/* -- Probing ------------------------------------------------------------------------------ */

/* A file that has no name, or no longer. */
static int open_nameless(const struct store_fs *fs, int *ret_fd, struct cairn_error *err)
{
    char temp[TEMP_MAX] = "tmp/";
    int fd = openat(fs->root, "tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    int r;

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        r = store_random_hex(temp + strlen(temp), 32, err);
        if (r)
            return r;
        fd = openat(fs->root, temp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd >= 0)
            unlinkat(fs->root, temp, 0);
    }
    if (fd < 0)
        return error_set_errno(err, errno, "cannot create a file in the store");
    *ret_fd = fd;
    return CAIRN_OK;
}

static int probe(struct store *store, struct store_space *ret_space, struct cairn_error *err)
{
    static const char text[] = "probe";
    const struct store_fs *fs = store_fs_of(store);
    CLEANUP_CLOSE int fd = -1;
    char back[sizeof(text)];
    struct statvfs vfs;
    int r = open_nameless(fs, &fd, err);

    if (!r)
        r = store_fs_write(fd, text, sizeof(text), 0, "a file in the store", err);
    if (!r)
        r = store_fs_read(fd, back, sizeof(back), 0, "a file in the store", err);
    if (r)
        return r;
    if (memcmp(text, back, sizeof(text)) != 0)
        return error_set(err, CAIRN_E_CORRUPT,
                         "a file in the store does not hold what was written");
    if (fstatvfs(fd, &vfs) != 0)
        return error_set_errno(err, errno, "cannot ask the store for its room");
    *ret_space = (struct store_space){
        .size = (uint64_t)vfs.f_blocks * vfs.f_frsize,
        .free = (uint64_t)vfs.f_bavail * vfs.f_frsize,
    };
    return CAIRN_OK;
}

/* -- Opening ------------------------------------------------------------------------------ */

/* Temporaries that a crash left; younger ones may be another process's. */
static int expire_temporaries(struct store *store, struct store_expired *ret_expired,
                              struct cairn_error *err)
{
    int fd = openat(store_fs_of(store)->root, "tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    struct stat st;

    *ret_expired = (struct store_expired){0};
    if (!dir) {
        cleanup_close(&fd);
        return error_set_errno(err, errno, "cannot list the store's temporary files");
    }
    while ((entry = readdir(dir))) {
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode) ||
            st.st_mtime + TEMP_DEAD_AFTER >= time(NULL) || unlinkat(fd, entry->d_name, 0) != 0)
            continue;
        ret_expired->nr++;
        ret_expired->bytes += (uint64_t)st.st_size;
    }
    closedir(dir);
    return CAIRN_OK;
}

static int make_layout(const struct store_fs *fs, struct cairn_error *err)
{
    static const char *const folders[] = {"tmp/",   "locks/",        "uploads/",
                                          "repos/", "blobs/sha256/", "index/"};
    int r = CAIRN_OK;

    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]) && !r; i++)
        r = make_folders(fs, folders[i], err);
    return r;
}

/* Like mkdir -p, for the folder of the store itself. */
static int open_root(const char *dir, int *ret_fd, struct cairn_error *err)
{
    const struct store_fs here = {.root = AT_FDCWD};
    char path[STORE_KEY_MAX + 1];
    int fd;

    if ((size_t)snprintf(path, sizeof(path), "%s/", dir) >= sizeof(path))
        return error_set(err, CAIRN_E_USAGE, "store folder '%.64s…' is too long", dir);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        int r = make_folders(&here, path, err);

        if (r)
            return r;
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    if (fd < 0)
        return error_set_errno(err, errno, "cannot open store folder %s", dir);
    *ret_fd = fd;
    return CAIRN_OK;
}

static void fs_close(struct store *store)
{
    close(store_fs_of(store)->root);
    free(store);
}

static const struct store_ops fs_ops = {
    .close = fs_close,
    .put = put,
    .head = head,
    .stat = stat_object,
    .now = now,
    .touch = touch,
    .get = get,
    .open_source = open_source,
    .open_fd = open_fd,
    .delete = delete_object,
    .move = move,
    .list = list,
    .cas = cas,
    .lock = lock,
    .lock_held = lock_held,
    .upload_new = store_fs_upload_new,
    .upload_size = store_fs_upload_size,
    .upload_append = store_fs_upload_append,
    .upload_read = store_fs_upload_read,
    .upload_commit = store_fs_upload_commit,
    .upload_abort = store_fs_upload_abort,
    .list_uploads = store_fs_list_uploads,
    .expire_uploads = store_fs_expire_uploads,
    .expire_temporaries = expire_temporaries,
    .probe = probe,
};

int store_fs_open(const char *dir, struct store **ret_store, struct cairn_error *err)
{
    CLEANUP_FREE struct store_fs *fs = calloc(1, sizeof(*fs));
    CLEANUP_CLOSE int root = -1;
    struct store_expired expired;
    int r;

    if (!fs)
        return error_no_memory(err, "the store");
    fs->store.ops = &fs_ops;
    r = open_root(dir, &root, err);
    if (r)
        return r;
    fs->root = root;
    r = make_layout(fs, err);
    if (r)
        return error_prefix(err, r, "store folder %s", dir);
    expire_temporaries(&fs->store, &expired, NULL);
    steal_fd(&root);
    *ret_store = &steal_ptr(fs)->store;
    return CAIRN_OK;
}
