/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another size for a local image.  How that is done, and what a power cut leaves: the head of
 * engine/active_resize.c; here is found out what the image stands on, for where that reaches past
 * the end of the disk, growing has to hide it.
 *
 * The image has the shape of an active layer.  It may be that of a disk folder which nobody has
 * open: the disk then has the new size, and its next snapshot publishes it.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "active.h"
#include "cairn.h"
#include "checked.h"
#include "disk_folder.h"
#include "local_chain.h"
#include "qcow2.h"
#include "qcow2_image.h"

#define SIZE_UNKNOWN UINT64_MAX

/* -- What lies beneath ---------------------------------------------------------------------- */

/* What is sealed does not change; a snapshot that was killed halfway leaves the layer just sealed
 * under the active layer's name, too. */
static int check_not_sealed(const char *file, const char *sealed, struct cairn_error *err)
{
    struct stat a, s;

    if (stat(file, &a) != 0 || stat(sealed, &s) != 0)
        return error_set_errno(err, errno, "%s: cannot look at it or at %s", file, sealed);
    if (a.st_dev == s.st_dev && a.st_ino == s.st_ino)
        return error_set(err, CAIRN_E_CONFLICT,
                         "%s is a sealed layer, %s; if a snapshot was interrupted, attach the disk "
                         "once before it is resized",
                         file, sealed);
    return CAIRN_OK;
}

/* Of a layer beside file, which file must not be. */
static int size_of_sealed(const char *file, int folder_len, uint32_t number, uint64_t *ret_size,
                          struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];
    CLEANUP_FREE char *sealed = NULL;
    int ret;

    if (asprintf(&sealed, "%.*s%s", folder_len, file, disk_sealed_name(number, name)) < 0)
        return error_no_memory(err, "a path");
    ret = check_not_sealed(file, sealed, err);
    return ret == CAIRN_OK ? local_qcow2_size(sealed, ret_size, err) : ret;
}

/* The layer beneath the active one of a disk folder: the last sealed one, or the remote chain. */
static int size_in_folder(const char *file, uint64_t *ret_size, struct cairn_error *err)
{
    const char *slash = strrchr(file, '/');
    int folder_len = slash ? (int)(slash - file) + 1 : 0;
    const char *base = slash ? slash + 1 : file;
    CLEANUP_FREE char *folder = NULL;
    struct disk_state state;
    bool marked;
    int ret = CAIRN_OK;

    *ret_size = SIZE_UNKNOWN;
    if (strcmp(base, DISK_FOLDER_ACTIVE) != 0 && disk_sealed_number(base) == 0)
        return CAIRN_OK;
    if (asprintf(&folder, "%.*s.", folder_len, file) < 0)
        return error_no_memory(err, "a path");
    if (disk_folder_read_state(folder, &state, &marked, NULL) != CAIRN_OK)
        return CAIRN_OK; /* not in a disk folder */
    *ret_size = state.virtual_size;
    for (uint32_t i = 0; ret == CAIRN_OK && i < state.nr_sealed; i++)
        ret = size_of_sealed(file, folder_len, state.sealed[i], ret_size, err);
    return ret;
}

static int size_of_local_backing(const char *file, uint64_t *ret_size, struct cairn_error *err)
{
    CLEANUP(local_chain_free_p) struct local_chain *chain = NULL;
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    const struct local_layer *below;
    int ret = local_chain_open(file, "qcow2", &chain, err);

    if (ret != CAIRN_OK)
        return ret;
    below = &chain->layers[chain->depth - 2];
    ret = local_layer_open(below, &src, err);
    if (ret == CAIRN_OK)
        ret = layer_open(src, below->format, &layer, err);
    if (ret == CAIRN_OK)
        *ret_size = layer_get_attr(layer)->virtual_size;
    return ret;
}

static int size_beneath(const char *file, uint64_t *ret_size, struct cairn_error *err)
{
    const size_t prefix_len = strlen(QCOW2_CAIRN_BACKING);
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_blob *backing;
    struct stat st;
    int ret = local_open(file, &src, &st, err);

    if (ret == CAIRN_OK)
        ret = qcow2_image_open(src, 0, &image, err);
    if (ret != CAIRN_OK)
        return ret;
    *ret_size = 0;
    backing = &qcow2_image_header(image)->backing_file;
    if (backing->len == 0)
        return CAIRN_OK;
    if (backing->len >= prefix_len && memcmp(backing->data, QCOW2_CAIRN_BACKING, prefix_len) == 0)
        return size_in_folder(file, ret_size, err);
    return size_of_local_backing(file, ret_size, err);
}

/* -- Resizing ------------------------------------------------------------------------------- */

/* In whole sectors, rounded up as a new image's size is. */
static int wanted_size(const char *file, uint64_t old, enum cairn_resize how, uint64_t size,
                       uint64_t *ret_size, struct cairn_error *err)
{
    bool fits = true;

    if (how == CAIRN_RESIZE_ADD)
        fits = checked_add(old, size, &size);
    else if (how == CAIRN_RESIZE_SUBTRACT)
        size = size < old ? old - size : 0;
    if (!fits || size == 0 || size > INT64_MAX)
        return error_set(err, CAIRN_E_USAGE,
                         "%s: the size is %" PRIu64 ", and cannot be changed by that much", file,
                         old);
    *ret_size = round_up(size, 512);
    return CAIRN_OK;
}

static int resize(struct active *active, const char *file, enum cairn_resize how, uint64_t size,
                  bool may_shrink, struct cairn_error *err)
{
    uint64_t old = active_virtual_size(active);
    uint64_t beneath_size = 0;
    int ret = wanted_size(file, old, how, size, &size, err);

    if (ret != CAIRN_OK)
        return ret;
    if (size < old && !may_shrink)
        return error_set(err, CAIRN_E_USAGE,
                         "%s: %" PRIu64 " bytes are less than its size of %" PRIu64
                         ", and what lies past them would be lost: shrinking has to be asked for "
                         "(--shrink)",
                         file, size, old);
    ret = size_beneath(file, &beneath_size, err);
    return ret == CAIRN_OK ? active_resize(active, size, beneath_size, err) : ret;
}

int cairn_image_resize(const char *file, enum cairn_resize how, uint64_t size, bool may_shrink,
                       uint64_t *ret_size, struct cairn_error *err)
{
    const struct active_options options = {.foreign_backing = true};
    struct active *active;
    int closed, ret = active_open(file, &options, &active, err);

    if (ret == CAIRN_E_UNSUPPORTED)
        return error_prefix(err, ret,
                            "cannot resize what `cairn image create` would not make (try "
                            "`qemu-img resize`)");
    if (ret != CAIRN_OK)
        return ret;
    ret = resize(active, file, how, size, may_shrink, err);
    size = active_virtual_size(active);
    closed = active_close(active, ret == CAIRN_OK ? err : NULL);
    ret = ret == CAIRN_OK ? closed : ret;
    if (ret == CAIRN_OK && ret_size)
        *ret_size = size;
    return ret;
}
