/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a local image.  (What an image is: image_info.c; what it maps: image_map.c.)
 *
 * The image is of the active layer's shape and made by its code; a backing file is then recorded as
 * `qemu-img rebase -u` does.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "active.h"
#include "cairn.h"
#include "chain_index.h"
#include "checked.h"
#include "local_chain.h"
#include "qcow2_backing.h"
#include "quote.h"
#include "whole_file.h"

/* The path of a backing file as the new image will find it. */
static char *beside(const char *file, const char *backing)
{
    const char *slash = strrchr(file, '/');
    int folder_len = slash && backing[0] != '/' ? (int)(slash + 1 - file) : 0;
    char *path;

    return asprintf(&path, "%.*s%s", folder_len, file, backing) < 0 ? NULL : path;
}

/* The virtual size of the backing file, which must be there and fit to be a layer. */
static int backing_size(const char *file, const char *backing, enum layer_format format,
                        uint64_t *ret_size, struct cairn_error *err)
{
    CLEANUP_FREE char *path = beside(file, backing);
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct stat st;
    int ret = path ? local_open(path, &src, &st, err) : error_no_memory(err, "a file name");

    if (ret == CAIRN_OK)
        ret = layer_open(src, format, &layer, err);
    if (ret == CAIRN_OK)
        *ret_size = layer_get_attr(layer)->virtual_size;
    return ret;
}

/* What the new image records as its backing file, and the size to take from it. */
static int look_at_backing(const char *file, const char *backing, const char *backing_format,
                           enum layer_format *ret_format, uint64_t *ret_size,
                           struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    int ret;

    if (!backing_format)
        return error_set(err, CAIRN_E_USAGE,
                         "the format of backing file %s must be given: qcow2 or raw",
                         quote_str(backing, quoted));
    if (!*backing || backing[strcspn(backing, ":/")] == ':')
        return error_set(
            err, CAIRN_E_USAGE,
            "backing file %s is not a plain file name; a file with a colon in its name "
            "is written ./NAME",
            quote_str(backing, quoted));
    ret = local_format(backing, backing_format, ret_format, err);
    if (ret == CAIRN_OK)
        ret = backing_size(file, backing, *ret_format, ret_size, err);
    return ret;
}

static int make(const char *path, uint64_t virtual_size, const char *backing,
                enum layer_format format, struct cairn_error *err)
{
    const struct active_options options = {.virtual_size = virtual_size};
    CLEANUP_CLOSE int fd = -1;
    struct active *active;
    int ret = active_create(path, &options, &active, err);

    if (ret == CAIRN_OK)
        ret = active_close(active, err);
    if (ret != CAIRN_OK || !backing)
        return ret;
    fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot open %s", path);
    ret = qcow2_set_backing(fd, path, backing, format, NULL, err);
    if (ret == CAIRN_OK && fsync(fd) != 0)
        ret = error_set_errno(err, errno, "cannot sync %s", path);
    return ret;
}

int cairn_image_create(const char *file, uint64_t virtual_size, const char *backing,
                       const char *backing_format, struct cairn_error *err)
{
    CLEANUP(whole_file_release) struct whole_file out = {0};
    enum layer_format format = LAYER_QCOW2;
    uint64_t size = virtual_size;
    int ret = CAIRN_OK;

    if (backing)
        ret = look_at_backing(file, backing, backing_format, &format, &size, err);
    if (ret != CAIRN_OK)
        return ret;
    if (virtual_size)
        size = virtual_size;
    if (size == 0 || size > CHAIN_VIRTUAL_SIZE_MAX)
        return error_set(err, CAIRN_E_USAGE,
                         "a virtual size of %" PRIu64 " bytes is not between 1 and %" PRIu64, size,
                         CHAIN_VIRTUAL_SIZE_MAX);
    ret = whole_file_begin(&out, file, err);
    if (ret == CAIRN_OK)
        ret = make(out.temporary, round_up(size, 512), backing, format, err);
    if (ret == CAIRN_OK)
        ret = whole_file_finish(&out, err);
    return ret;
}
