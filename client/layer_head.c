/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `.heads/NAME` beside the layer NAME: its digest in a line, then the bytes.  A file that is
 * damaged or stale does no harm, for the digest of the whole is compared.
 */
#include "layer_head.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "checked.h"

#define HEADS_FOLDER ".heads"
#define LINE_LEN     (DIGEST_STR_MAX)  /* the digest and a newline in place of its zero */
#define HEAD_MAX     ((size_t)2 << 20) /* the largest cluster */

int layer_head_save(int folder_fd, const char *name, const struct digest *d, const void *head,
                    size_t len, struct cairn_error *err)
{
    CLEANUP_CLOSE int heads = -1;
    CLEANUP_CLOSE int fd = -1;
    char line[DIGEST_STR_MAX];

    digest_format(d, line);
    line[LINE_LEN - 1] = '\n';
    if (mkdirat(folder_fd, HEADS_FOLDER, 0777) != 0 && errno != EEXIST)
        return error_set_errno(err, errno, "cannot create the folder " HEADS_FOLDER);
    heads = openat(folder_fd, HEADS_FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (heads >= 0)
        fd = openat(heads, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot create " HEADS_FOLDER "/%s", name);
    errno = ENOSPC; /* what a short write means */
    if (write(fd, line, LINE_LEN) != LINE_LEN || write(fd, head, len) != (ssize_t)len)
        return error_set_errno(err, errno, "cannot write " HEADS_FOLDER "/%s", name);
    return CAIRN_OK;
}

/* A layer may be named through a symbolic link, as top.qcow2 is. */
static int open_head(const char *path)
{
    CLEANUP_FREE char *real = realpath(path, NULL);
    CLEANUP_FREE char *head = NULL;
    const char *slash = real ? strrchr(real, '/') : NULL;

    if (!slash ||
        asprintf(&head, "%.*s/" HEADS_FOLDER "%s", (int)(slash - real), real, slash) < 0) {
        head = NULL;
        return -1;
    }
    return open(head, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

bool layer_head_digest(const char *path, struct digest *ret_digest)
{
    CLEANUP_CLOSE int fd = open_head(path);
    char line[LINE_LEN];

    return fd >= 0 && read(fd, line, sizeof(line)) == LINE_LEN && line[LINE_LEN - 1] == '\n' &&
           digest_parse(line, LINE_LEN - 1, ret_digest, NULL) == CAIRN_OK;
}

/* -- A source with another head ------------------------------------------------------------- */

struct restored {
    struct source source;
    struct source *below;
    size_t head_len;
    uint8_t *head;
};

static int restored_pread(struct source *src, void *buf, size_t len, uint64_t off,
                          struct cairn_error *err)
{
    struct restored *r = (struct restored *)src;
    int ret = source_pread(r->below, buf, len, off, err);

    if (ret == CAIRN_OK && off < r->head_len)
        memcpy(buf, r->head + off, (size_t)min_u64(len, r->head_len - off));
    return ret;
}

static void restored_free(struct source *src)
{
    struct restored *r = (struct restored *)src;

    source_free(r->below);
    free(r->head);
    free(r);
}

static const struct source_ops restored_ops = {restored_pread, restored_free};

static int read_head(struct restored *r, const char *path, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open_head(path);
    size_t max = (size_t)min_u64(HEAD_MAX, r->below->size);
    ssize_t len;

    r->head = malloc(max + 1);
    if (!r->head)
        return error_no_memory(err, "a header");
    len = fd < 0 ? -1 : pread(fd, r->head, max, LINE_LEN);
    if (len < 0)
        return error_set_errno(err, errno, "cannot read the original header of %s", path);
    r->head_len = (size_t)len;
    return CAIRN_OK;
}

int layer_head_restore(const char *path, struct source *src, struct source **ret_original,
                       struct cairn_error *err)
{
    struct restored *r = calloc(1, sizeof(*r));
    int ret;

    if (!r) {
        source_free(src);
        return error_no_memory(err, "a header");
    }
    r->source = (struct source){.ops = &restored_ops, .size = src->size, .name = src->name};
    r->below = src;
    ret = read_head(r, path, err);
    if (ret == CAIRN_OK)
        *ret_original = &r->source;
    else
        restored_free(&r->source);
    return ret;
}
