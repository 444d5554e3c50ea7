/* SPDX-License-Identifier: Apache-2.0 */
#include "fs_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects the hooks, orders the calls */
static struct fs_hooks hooks;

void fs_hook(const struct fs_hooks *wanted)
{
    SCOPED_LOCK(&lock);
    hooks = wanted ? *wanted : (struct fs_hooks){0};
}

static bool refused_locked(enum fs_call call)
{
    int failure = hooks.fails ? hooks.fails(hooks.ctx, call) : 0;

    if (failure)
        errno = failure;
    return failure != 0;
}

static void tell_locked(const struct fs_event *event)
{
    int before = errno;

    if (hooks.made)
        hooks.made(hooks.ctx, event);
    errno = before;
}

static uint64_t inode_at(int folder, const char *path)
{
    struct stat st;

    return fstatat(folder, path, &st, AT_SYMLINK_NOFOLLOW) == 0 ? st.st_ino : 0;
}

static uint64_t inode_of(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

/* The event of a call on path: the folder that it lies in, and its name there, without slashes. */
static struct fs_event event_at(enum fs_call call, int base, const char *path, char name[256])
{
    char folder[1100];
    size_t len = strlen(path), folder_len;

    while (len > 1 && path[len - 1] == '/')
        len--;
    for (folder_len = len; folder_len > 0 && path[folder_len - 1] != '/';)
        folder_len--;
    snprintf(name, 256, "%.*s", (int)(len - folder_len), path + folder_len);
    snprintf(folder, sizeof(folder), "%.*s.", (int)folder_len, path);
    return (struct fs_event){.call = call, .folder = inode_at(base, folder), .name = name};
}

/* -- In place of the C library's ---------------------------------------------------------- */

int openat64(int folder, const char *path, int flags, ...)
{
    char name[256];
    mode_t mode = 0;
    bool creates;
    int fd;

    if (flags & O_CREAT) {
        va_list ap;

        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    SCOPED_LOCK(&lock);
    creates = (flags & O_CREAT) && inode_at(folder, path) == 0;
    if (creates && refused_locked(FS_CREATE))
        return -1;
    fd = (int)syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0 && creates) {
        struct fs_event event = event_at(FS_CREATE, folder, path, name);

        event.file = inode_of(fd);
        tell_locked(&event);
    }
    return fd;
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    char name[256];
    struct fs_event event;
    int r;

    SCOPED_LOCK(&lock);
    if (inode_at(folder, path) == 0 && refused_locked(FS_MKDIR))
        return -1;
    r = (int)syscall(SYS_mkdirat, folder, path, mode);
    if (r == 0) {
        event = event_at(FS_MKDIR, folder, path, name);
        event.file = inode_at(folder, path);
        tell_locked(&event);
    }
    return r;
}

static int move(int from_folder, const char *from, int to_folder, const char *to, unsigned flags)
{
    char from_name[256], to_name[256];
    struct fs_event linked, unlinked;
    int r;

    SCOPED_LOCK(&lock);
    if (refused_locked(FS_LINK))
        return -1;
    linked = event_at(FS_LINK, to_folder, to, to_name);
    unlinked = event_at(FS_UNLINK, from_folder, from, from_name);
    linked.file = inode_at(from_folder, from);
    r = (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    if (r == 0) {
        tell_locked(&linked);
        tell_locked(&unlinked);
    }
    return r;
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    return move(from_folder, from, to_folder, to, 0);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags)
{
    return move(from_folder, from, to_folder, to, flags);
}

int unlinkat(int folder, const char *path, int flags)
{
    char name[256];
    struct fs_event event;
    int r;

    SCOPED_LOCK(&lock);
    event = event_at(FS_UNLINK, folder, path, name);
    r = (int)syscall(SYS_unlinkat, folder, path, flags);
    if (r == 0)
        tell_locked(&event);
    return r;
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off)
{
    ssize_t n;

    SCOPED_LOCK(&lock);
    if (refused_locked(FS_WRITE))
        return -1;
    n = (ssize_t)syscall(SYS_pwrite64, fd, buf, len, off);
    if (n > 0) {
        const struct fs_event event = {.call = FS_WRITE,
                                       .file = inode_of(fd),
                                       .data = buf,
                                       .off = (uint64_t)off,
                                       .len = (uint64_t)n};

        tell_locked(&event);
    }
    return n;
}

int ftruncate64(int fd, off64_t len)
{
    int r;

    SCOPED_LOCK(&lock);
    r = (int)syscall(SYS_ftruncate, fd, len);
    if (r == 0) {
        const struct fs_event event = {
            .call = FS_TRUNCATE, .file = inode_of(fd), .len = (uint64_t)len};

        tell_locked(&event);
    }
    return r;
}

int fsync(int fd)
{
    int r;

    SCOPED_LOCK(&lock);
    if (refused_locked(FS_SYNC))
        return -1;
    r = (int)syscall(SYS_fsync, fd);
    if (r == 0) {
        const struct fs_event event = {.call = FS_SYNC, .file = inode_of(fd)};

        tell_locked(&event);
    }
    return r;
}
