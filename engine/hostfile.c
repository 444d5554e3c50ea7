/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls of the active layer, each carried to its end: short transfers and EINTR are dealt
 * with here, and nowhere else.  No state besides the descriptor; the kernel's page cache is the
 * only buffer, so a write that has returned is seen by every later read.
 */
#include "hostfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "checked.h"
#include "cleanup.h"

/* QEMU's block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE and the bit of "write".  The
 * first is held by who writes, the second by who does not bear others writing. */
#define QEMU_LOCK_WRITES    (100 + 1)
#define QEMU_LOCK_NO_WRITER (200 + 1)

int hostfile_init(struct hostfile *file, int fd, const char *name, struct cairn_error *err)
{
    *file = (struct hostfile){.fd = fd, .name = strdup(name), .hook = fault_hook};
    if (file->name)
        return CAIRN_OK;
    hostfile_release(file);
    return error_no_memory(err, "a file name");
}

void hostfile_release(struct hostfile *file)
{
    if (file->fd >= 0)
        close(file->fd);
    free(file->name);
    *file = (struct hostfile){.fd = -1};
}

/* -- The hook ---------------------------------------------------------------------------------- */

static int ask_hook(const struct hostfile *file, const struct hostfile_event *event)
{
    return file->hook ? file->hook->before(file->hook->ctx, event) : 0;
}

static void tell_hook(const struct hostfile *file, const struct hostfile_event *event)
{
    if (file->hook && file->hook->after)
        file->hook->after(file->hook->ctx, event);
}

#ifdef CAIRN_FAULTS
int hostfile_change(struct hostfile *file, size_t len, uint64_t host_off, struct cairn_error *err)
{
    const struct hostfile_event event = {.op = HOSTFILE_CHANGE,
                                         .point = fault_take(),
                                         .file = file,
                                         .host_off = host_off,
                                         .len = len};
    int fault = ask_hook(file, &event);

    if (fault)
        return error_set_errno(err, fault, "%s: cannot change the table at 0x%" PRIx64, file->name,
                               host_off);
    tell_hook(file, &event);
    return CAIRN_OK;
}
#endif

/* -- Reading and writing ----------------------------------------------------------------------- */

int hostfile_pread(struct hostfile *file, void *buf, size_t len, uint64_t host_off,
                   struct cairn_error *err)
{
    const struct hostfile_event event = {
        .op = HOSTFILE_READ, .point = fault_take(), .file = file, .host_off = host_off, .len = len};
    int fault = ask_hook(file, &event);
    uint8_t *to = buf;
    size_t done = 0;

    while (!fault && done < len) {
        ssize_t n = pread(file->fd, to + done, len - done, (off_t)(host_off + done));

        if (n == 0)
            return error_set(err, CAIRN_E_CORRUPT,
                             "%s: %zu bytes at 0x%" PRIx64 " reach past the end of the file",
                             file->name, len, host_off);
        if (n > 0)
            done += (size_t)n;
        else if (errno != EINTR)
            fault = errno;
    }
    if (fault)
        return error_set_errno(err, fault, "%s: cannot read %zu bytes at 0x%" PRIx64, file->name,
                               len, host_off);
    tell_hook(file, &event);
    return CAIRN_OK;
}

int hostfile_pwrite(struct hostfile *file, const void *buf, size_t len, uint64_t host_off,
                    struct cairn_error *err)
{
    struct iovec iov = {.iov_len = len};

    memcpy(&iov.iov_base, &buf,
           sizeof(buf)); /* pwritev does not write to it, its type cannot say */
    return hostfile_pwritev(file, &iov, 1, host_off, err);
}

/* Drop the first n bytes. */
static void iov_advance(struct iovec **iov, int *nr_iov, size_t n)
{
    while (*nr_iov > 0 && n >= (*iov)->iov_len) {
        n -= (*iov)->iov_len;
        (*iov)++;
        (*nr_iov)--;
    }
    if (n > 0) {
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
        (*iov)->iov_len -= n;
    }
}

static size_t iov_length(const struct iovec *iov, int nr_iov)
{
    size_t len = 0;

    for (int i = 0; i < nr_iov; i++)
        len += iov[i].iov_len;
    return len;
}

int hostfile_pwritev(struct hostfile *file, struct iovec *iov, int nr_iov, uint64_t host_off,
                     struct cairn_error *err)
{
    const size_t len = iov_length(iov, nr_iov);
    const struct hostfile_event event = {.op = HOSTFILE_WRITE,
                                         .point = fault_take(),
                                         .file = file,
                                         .host_off = host_off,
                                         .len = len,
                                         .iov = iov,
                                         .nr_iov = nr_iov};
    int fault = ask_hook(file, &event);
    size_t done = 0;

    while (!fault && done < len) {
        ssize_t n = pwritev(file->fd, iov, nr_iov, (off_t)(host_off + done));

        if (n >= 0) {
            done += (size_t)n;
            iov_advance(&iov, &nr_iov, (size_t)n);
        } else if (errno != EINTR) {
            fault = errno;
        }
    }
    if (fault)
        return error_set_errno(err, fault, "%s: cannot write %zu bytes at 0x%" PRIx64, file->name,
                               len, host_off);
    tell_hook(file, &event);
    return CAIRN_OK;
}

int hostfile_zero(struct hostfile *file, uint64_t len, uint64_t host_off, struct cairn_error *err)
{
    static const uint8_t zeros[64 << 10];
    const enum fault_point point = fault_take();

    while (len > 0) {
        size_t n = (size_t)min_u64(len, sizeof(zeros));
        int rc = hostfile_pwrite(FAULT_AT(file, point), zeros, n, host_off, err);

        if (rc)
            return rc;
        host_off += n;
        len -= n;
    }
    return CAIRN_OK;
}

int hostfile_sync(struct hostfile *file, struct cairn_error *err)
{
    const struct hostfile_event event = {.op = HOSTFILE_SYNC, .point = fault_take(), .file = file};
    int fault = ask_hook(file, &event);

    if (!fault && fdatasync(file->fd) < 0)
        fault = errno;
    if (fault)
        return error_set_errno(err, fault, "%s: cannot make writes durable", file->name);
    tell_hook(file, &event);
    return CAIRN_OK;
}

int hostfile_truncate(struct hostfile *file, uint64_t size, struct cairn_error *err)
{
    const struct hostfile_event event = {
        .op = HOSTFILE_TRUNCATE, .point = fault_take(), .file = file, .host_off = size};
    int fault = ask_hook(file, &event);

    if (!fault && ftruncate(file->fd, (off_t)size) < 0)
        fault = errno;
    if (fault)
        return error_set_errno(err, fault, "%s: cannot set the size to %" PRIu64 " bytes",
                               file->name, size);
    tell_hook(file, &event);
    return CAIRN_OK;
}

int hostfile_size(const struct hostfile *file, uint64_t *ret_size, struct cairn_error *err)
{
    struct stat st;

    if (fstat(file->fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot stat", file->name);
    if (!S_ISREG(st.st_mode))
        return error_set(err, CAIRN_E_UNSUPPORTED, "%s: not a regular file", file->name);
    *ret_size = (uint64_t)st.st_size;
    return CAIRN_OK;
}

void hostfile_punch(struct hostfile *file, uint64_t len, uint64_t host_off)
{
    const struct hostfile_event event = {.op = HOSTFILE_PUNCH,
                                         .point = fault_take(),
                                         .file = file,
                                         .host_off = host_off,
                                         .len = len};

    if (atomic_load_explicit(&file->no_punch, memory_order_relaxed) || ask_hook(file, &event))
        return;
    if (fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)host_off,
                  (off_t)len) < 0 &&
        errno == EOPNOTSUPP)
        atomic_store_explicit(&file->no_punch, true, memory_order_relaxed);
    tell_hook(file, &event);
}

/* -- The folder's entry ------------------------------------------------------------------------ */

int hostfile_link(struct hostfile *file, const char *temporary, const char *path,
                  struct cairn_error *err)
{
    const struct hostfile_event event = {.op = HOSTFILE_LINK, .point = fault_take(), .file = file};
    int fault = ask_hook(file, &event);

    if (!fault && link(temporary, path) < 0)
        fault = errno;
    if (fault == EEXIST)
        return error_set(err, CAIRN_E_CONFLICT, "%s exists", path);
    if (fault)
        return error_set_errno(err, fault, "cannot create %s", path);
    tell_hook(file, &event);
    return CAIRN_OK;
}

int hostfile_sync_folder(struct hostfile *file, const char *path, struct cairn_error *err)
{
    const struct hostfile_event event = {
        .op = HOSTFILE_SYNC_FOLDER, .point = fault_take(), .file = file};
    const char *slash = strrchr(path, '/');
    CLEANUP_FREE char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    CLEANUP_CLOSE int fd = -1;
    int fault;

    if (!folder)
        return error_no_memory(err, "a folder's name");
    fault = ask_hook(file, &event);
    if (!fault) {
        fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || fsync(fd) < 0)
            fault = errno;
    }
    if (fault)
        return error_set_errno(err, fault, "%s: cannot make the folder durable", folder);
    tell_hook(file, &event);
    return CAIRN_OK;
}

/* -- Locks ------------------------------------------------------------------------------------- */

/* An open-file-description lock: it belongs to the handle, not to the process. */
static int lock_byte(const struct hostfile *file, short type, off_t byte, struct cairn_error *err)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    if (fcntl(file->fd, F_OFD_SETLK, &lock) == 0)
        return CAIRN_OK;
    if (errno == EAGAIN || errno == EACCES)
        return error_set(err, CAIRN_E_CONFLICT, "%s: the file is in use by another program",
                         file->name);
    return error_set_errno(err, errno, "%s: cannot lock", file->name);
}

int hostfile_lock(struct hostfile *file, struct cairn_error *err)
{
    int rc = lock_byte(file, F_WRLCK, QEMU_LOCK_WRITES, err);

    return rc ? rc : lock_byte(file, F_WRLCK, QEMU_LOCK_NO_WRITER, err);
}

/* QEMU's writers share their own bytes with each other: who only takes the second does not see
 * them.
 */
int hostfile_lock_reading(struct hostfile *file, struct cairn_error *err)
{
    struct flock writer = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = QEMU_LOCK_WRITES, .l_len = 1};
    int rc = lock_byte(file, F_RDLCK, QEMU_LOCK_NO_WRITER, err);

    if (rc)
        return rc;
    if (fcntl(file->fd, F_OFD_GETLK, &writer) < 0)
        return error_set_errno(err, errno, "%s: cannot ask who has it locked", file->name);
    if (writer.l_type != F_UNLCK)
        return error_set(err, CAIRN_E_CONFLICT, "%s: the file is in use by another program",
                         file->name);
    return CAIRN_OK;
}

int hostfile_lock_readers(struct hostfile *file, struct cairn_error *err)
{
    int rc = lock_byte(file, F_RDLCK, QEMU_LOCK_NO_WRITER, err);

    return rc ? rc : lock_byte(file, F_UNLCK, QEMU_LOCK_WRITES, err);
}
