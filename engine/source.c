/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sources over a file and over memory.  A remote object is the business of whoever owns the
 * connection; all that the engine wants of it is source_ops.
 *
 * Every range is checked here, once, before an implementation sees it: an implementation may
 * rely on it, and an offset from an image cannot reach a system call unchecked.
 */
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "checked.h"

int source_pread(struct source *src, void *buf, size_t len, uint64_t off, struct cairn_error *err)
{
    if (!range_in(off, len, src->size))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %zu bytes at 0x%" PRIx64 " reach past the end of the file (%" PRIu64
                         " bytes)",
                         src->name, len, off, src->size);
    return len > 0 ? src->ops->pread(src, buf, len, off, err) : CAIRN_OK;
}

int source_pread_padded(struct source *src, void *buf, size_t len, uint64_t off,
                        struct cairn_error *err)
{
    size_t present = off < src->size ? (size_t)min_u64(len, src->size - off) : 0;

    memset((uint8_t *)buf + present, 0, len - present);
    return present > 0 ? src->ops->pread(src, buf, present, off, err) : CAIRN_OK;
}

void source_free(struct source *src)
{
    if (src)
        src->ops->free(src);
}

/* -- Files ------------------------------------------------------------------------------------- */

struct file_source {
    struct source base; /* first: source_ops get it */
    int fd;
    char name[];
};

static int file_pread(struct source *src, void *buf, size_t len, uint64_t off,
                      struct cairn_error *err)
{
    const struct file_source *file = (const struct file_source *)src;
    uint8_t *to = buf;

    while (len > 0) {
        ssize_t n = pread(file->fd, to, len, (off_t)off);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "%s: cannot read %zu bytes at 0x%" PRIx64, src->name,
                                   len, off);
        if (n == 0)
            return error_set(err, CAIRN_E_IO,
                             "%s: the file ends at 0x%" PRIx64 ", it had %" PRIu64
                             " bytes when it was opened",
                             src->name, off, src->size);
        to += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return CAIRN_OK;
}

static void file_free(struct source *src)
{
    struct file_source *file = (struct file_source *)src;

    close(file->fd);
    free(file);
}

static const struct source_ops file_ops = {.pread = file_pread, .free = file_free};

/* The size of a regular file or block device; everything else has none that stays. */
static int file_size(int fd, const char *name, uint64_t *ret_size, struct cairn_error *err)
{
    struct stat st;
    off_t end;

    if (fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "%s: cannot stat", name);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(err, CAIRN_E_USAGE, "%s: neither a regular file nor a block device", name);
    end = S_ISREG(st.st_mode) ? st.st_size : lseek(fd, 0, SEEK_END);
    if (end < 0)
        return error_set_errno(err, errno, "%s: cannot find out the size", name);
    *ret_size = (uint64_t)end;
    return CAIRN_OK;
}

int source_from_fd(int fd, const char *name, struct source **ret_src, struct cairn_error *err)
{
    CLEANUP_CLOSE int owned = fd;
    size_t name_len = strlen(name) + 1;
    struct file_source *file;
    uint64_t size = 0;
    int r = file_size(owned, name, &size, err);

    if (r != CAIRN_OK)
        return r;
    file = malloc(sizeof(*file) + name_len);
    if (!file)
        return error_no_memory(err, "a source");
    memcpy(file->name, name, name_len);
    file->base = (struct source){.ops = &file_ops, .size = size, .name = file->name};
    file->fd = steal_fd(&owned);
    *ret_src = &file->base;
    return CAIRN_OK;
}

int source_open_file(const char *path, const char *name, struct source **ret_src,
                     struct cairn_error *err)
{
    /* O_NONBLOCK: opening a FIFO must not wait for a writer before it can be refused. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (!name)
        name = path;
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", name);
    return source_from_fd(fd, name, ret_src, err);
}

/* -- Memory ------------------------------------------------------------------------------------ */

struct memory_source {
    struct source base; /* first: source_ops get it */
    const uint8_t *bytes;
    char name[];
};

static int memory_pread(struct source *src, void *buf, size_t len, uint64_t off,
                        struct cairn_error *err)
{
    const struct memory_source *memory = (const struct memory_source *)src;

    (void)err;
    memcpy(buf, memory->bytes + off, len);
    return CAIRN_OK;
}

static void memory_free(struct source *src)
{
    free(src);
}

static const struct source_ops memory_ops = {.pread = memory_pread, .free = memory_free};

int source_from_memory(const void *buf, size_t len, const char *name, struct source **ret_src,
                       struct cairn_error *err)
{
    size_t name_len = strlen(name) + 1;
    struct memory_source *memory = malloc(sizeof(*memory) + name_len);

    if (!memory)
        return error_no_memory(err, "a source");
    memcpy(memory->name, name, name_len);
    memory->base = (struct source){.ops = &memory_ops, .size = len, .name = memory->name};
    memory->bytes = buf;
    *ret_src = &memory->base;
    return CAIRN_OK;
}
