/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a persistent bitmap of a local image says.  (Which there are: image_info.c.)
 */
#include "cairn.h"
#include "local_chain.h"
#include "qcow2_image.h"

struct caller {
    cairn_dirty_fn dirty;
    void *ctx;
};

static int tell_caller(void *arg, uint64_t guest_off, uint64_t len, struct cairn_error *err)
{
    const struct caller *caller = arg;
    int ret = caller->dirty(caller->ctx, guest_off, len);

    return ret ? error_set(err, CAIRN_E_CANCELLED, "stopped by the caller") : CAIRN_OK;
}

int cairn_image_bitmap(const char *file, const char *bitmap, cairn_dirty_fn dirty, void *ctx,
                       struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    struct caller caller = {dirty, ctx};
    struct stat st;
    uint32_t index;
    int ret = local_open(file, &src, &st, err);

    if (ret == CAIRN_OK)
        ret = qcow2_image_open(src, 0, &image, err);
    if (ret == CAIRN_OK)
        ret = qcow2_bitmap_find(image, bitmap, &index, err);
    if (ret == CAIRN_OK)
        ret = qcow2_bitmap_scan(image, index, tell_caller, &caller, err);
    return ret;
}
