/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image opened for reading: ties the header to the parts that read its tables.  Whatever has to
 * hold for all of them (supported features, tables in place) is checked at opening; what a table
 * holds is checked by the part that reads it.
 */
#include "qcow2_image.h"

#include <inttypes.h>
#include <string.h>

#include "qcow2_bitmap.h"
#include "qcow2_header.h"
#include "qcow2_lists.h"
#include "qcow2_scan.h"
#include "quote.h"

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

/* An image that was opened for `image info` may be one whose tables must not be followed. */
static int check_supported(const struct qcow2_image *image, struct cairn_error *err)
{
    return qcow2_header_check_supported(image->src, &image->hdr, err);
}

int qcow2_image_scan(struct qcow2_image *image, layer_extent_fn fn, void *arg,
                     struct cairn_error *err)
{
    const struct qcow2_state active = qcow2_state_active(&image->hdr);
    int r = check_supported(image, err);

    return r == CAIRN_OK ? qcow2_scan(image->src, &image->hdr, &active, fn, arg, err) : r;
}

/* -- Snapshots --------------------------------------------------------------------------------- */

int qcow2_snapshot_find(struct qcow2_image *image, const char *name_or_id, uint32_t *ret_index,
                        struct cairn_error *err)
{
    const struct qcow2_snapshot *list;
    char quoted[QUOTE_MAX];
    uint32_t nr, nr_found = 0;
    int r = qcow2_image_snapshots(image, &list, &nr, err);

    if (r != CAIRN_OK)
        return r;
    quote_str(name_or_id, quoted);
    for (uint32_t i = 0; i < nr; i++) {
        if (strcmp(list[i].name, name_or_id) != 0 && strcmp(list[i].id, name_or_id) != 0)
            continue;
        if (nr_found++ == 0)
            *ret_index = i;
    }
    if (nr_found == 0)
        return error_set(err, CAIRN_E_NOT_FOUND,
                         "%s: none of its %" PRIu32 " snapshots has the name or ID %s",
                         image->src->name, nr, quoted);
    if (nr_found > 1)
        return error_set(err, CAIRN_E_CONFLICT,
                         "%s: %" PRIu32 " snapshots have the name or ID %s; use what is only one's",
                         image->src->name, nr_found, quoted);
    return CAIRN_OK;
}

static int snapshot_state(struct qcow2_image *image, uint32_t index, struct qcow2_state *ret_state,
                          struct cairn_error *err)
{
    const struct qcow2_snapshot *list;
    uint32_t nr;
    int r = check_supported(image, err);

    if (r == CAIRN_OK)
        r = qcow2_image_snapshots(image, &list, &nr, err);
    if (r == CAIRN_OK && index >= nr)
        r = error_set(err, CAIRN_E_NOT_FOUND, "%s: no snapshot %" PRIu32 ", there are %" PRIu32,
                      image->src->name, index, nr);
    return r == CAIRN_OK
               ? qcow2_state_snapshot(image->src, &image->hdr, &list[index], ret_state, err)
               : r;
}

int qcow2_snapshot_size(struct qcow2_image *image, uint32_t index, uint64_t *ret_size,
                        struct cairn_error *err)
{
    struct qcow2_state state;
    int r = snapshot_state(image, index, &state, err);

    if (r == CAIRN_OK)
        *ret_size = state.size;
    return r;
}

int qcow2_snapshot_scan(struct qcow2_image *image, uint32_t index, layer_extent_fn fn, void *arg,
                        struct cairn_error *err)
{
    struct qcow2_state state;
    int r = snapshot_state(image, index, &state, err);

    return r == CAIRN_OK ? qcow2_scan(image->src, &image->hdr, &state, fn, arg, err) : r;
}

/* -- Bitmaps ----------------------------------------------------------------------------------- */

int qcow2_bitmap_check(const struct qcow2_image *image, const struct qcow2_bitmap *bitmap,
                       struct cairn_error *err)
{
    return qcow2_bitmap_check_usable(image->src, bitmap, err);
}

int qcow2_bitmap_find(struct qcow2_image *image, const char *name, uint32_t *ret_index,
                      struct cairn_error *err)
{
    const struct qcow2_bitmap *list;
    char quoted[QUOTE_MAX];
    uint32_t nr;
    int r = qcow2_image_bitmaps(image, &list, &nr, err);

    if (r != CAIRN_OK)
        return r;
    if (image->hdr.stale_bitmaps)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: its bitmaps are inconsistent: a program that does not know bitmaps "
                         "wrote the image (autoclear bit 0 is not set)",
                         image->src->name);
    for (uint32_t i = 0; i < nr && list; i++)
        if (strcmp(list[i].name, name) == 0) {
            *ret_index = i;
            return CAIRN_OK;
        }
    return error_set(err, CAIRN_E_NOT_FOUND, "%s: none of its %" PRIu32 " bitmaps has the name %s",
                     image->src->name, list ? nr : 0, quote_str(name, quoted));
}

int qcow2_bitmap_scan(struct qcow2_image *image, uint32_t index, qcow2_dirty_fn fn, void *arg,
                      struct cairn_error *err)
{
    const struct qcow2_bitmap *list;
    uint32_t nr;
    int r = check_supported(image, err);

    if (r == CAIRN_OK)
        r = qcow2_image_bitmaps(image, &list, &nr, err);
    if (r == CAIRN_OK && (!list || index >= nr))
        r = error_set(err, CAIRN_E_NOT_FOUND, "%s: no bitmap %" PRIu32 ", there are %" PRIu32,
                      image->src->name, index, list ? nr : 0);
    if (r == CAIRN_OK)
        r = qcow2_bitmap_read(image->src, &image->hdr, &list[index], fn, arg, err);
    return r;
}
