/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image opened for reading: ties the header to the parts that read its tables.  Whatever has to
 * hold for all of them (supported features, tables in place) is checked at opening; what a table
 * holds is checked by the part that reads it.
 */
#include "qcow2_image.h"

#include "qcow2_header.h"
#include "qcow2_lists.h"
#include "qcow2_scan.h"

struct qcow2_image {
    struct source *src; /* borrowed */
    struct qcow2_header hdr;
    /* Read on demand; the numbers of entries are those of the header. */
    struct qcow2_snapshot *snapshots;
    struct qcow2_bitmap *bitmaps;
};

void qcow2_image_free(struct qcow2_image *image)
{
    if (!image)
        return;
    qcow2_snapshots_free(image->snapshots, image->hdr.nb_snapshots);
    qcow2_bitmaps_free(image->bitmaps, image->hdr.nb_bitmaps);
    qcow2_header_release(&image->hdr);
    free(image);
}

/* For QCOW2_OPEN_INFO an image that we do not support is not looked at any further: its tables may
 * be governed by what we do not know. */
static int check_header(const struct qcow2_image *image, unsigned flags, struct cairn_error *err)
{
    int r = qcow2_header_check_supported(image->src, &image->hdr, err);

    if (r != CAIRN_OK)
        return flags & QCOW2_OPEN_INFO ? CAIRN_OK : r;
    return qcow2_header_check_tables(image->src, &image->hdr, err);
}

int qcow2_image_open(struct source *src, unsigned flags, struct qcow2_image **ret_image,
                     struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = calloc(1, sizeof(*image));
    int r;

    if (!image)
        return error_no_memory(err, "an image");
    image->src = src;
    r = qcow2_header_read(src, &image->hdr, err);
    if (r == CAIRN_OK)
        r = check_header(image, flags, err);
    if (r == CAIRN_OK)
        *ret_image = steal_ptr(image);
    return r;
}

const struct qcow2_header *qcow2_image_header(const struct qcow2_image *image)
{
    return &image->hdr;
}

int qcow2_image_snapshots(struct qcow2_image *image, const struct qcow2_snapshot **ret_snapshots,
                          uint32_t *ret_nr, struct cairn_error *err)
{
    if (!image->snapshots) {
        int r = qcow2_snapshots_read(image->src, &image->hdr, &image->snapshots, err);

        if (r != CAIRN_OK)
            return r;
    }
    *ret_snapshots = image->snapshots;
    *ret_nr = image->hdr.nb_snapshots;
    return CAIRN_OK;
}

int qcow2_image_bitmaps(struct qcow2_image *image, const struct qcow2_bitmap **ret_bitmaps,
                        uint32_t *ret_nr, struct cairn_error *err)
{
    if (!image->bitmaps) {
        int r = qcow2_bitmaps_read(image->src, &image->hdr, &image->bitmaps, err);

        if (r != CAIRN_OK)
            return r;
    }
    *ret_bitmaps = image->bitmaps;
    *ret_nr = image->hdr.nb_bitmaps;
    return CAIRN_OK;
}

int qcow2_image_scan(struct qcow2_image *image, layer_extent_fn fn, void *arg,
                     struct cairn_error *err)
{
    int r = qcow2_header_check_supported(image->src, &image->hdr, err);

    return r == CAIRN_OK ? qcow2_scan(image->src, &image->hdr, fn, arg, err) : r;
}
