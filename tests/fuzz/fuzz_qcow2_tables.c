/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L1 and L2 tables of hostile images, of the active disk and of the first internal snapshot, and
 * what their extents name; and their bitmaps.  Checks what a scan promises: order, bounds, and work
 * that the size of the file bounds.
 */
#include <stdint.h>
#include <stdlib.h>

#include "checked.h"
#include "layer.h"
#include "qcow2_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct reading {
    struct source *src;
    const struct layer_attr *attr;
    uint64_t end; /* of the last extent */
    uint64_t nr_extents;
    unsigned reads_left; /* so that a run stays short */
};

static void decompress(struct reading *r, const struct extent *e)
{
    size_t in_len = (size_t)min_u64(e->compressed_len, r->src->size - e->host_off);
    size_t out_len = (size_t)1 << r->attr->cluster_bits;
    CLEANUP_FREE uint8_t *in = malloc(in_len), *out = malloc(out_len);
    struct cairn_error err;

    if (source_pread(r->src, in, in_len, e->host_off, &err) != CAIRN_OK)
        abort();
    (void)layer_decompress(r->attr->compression, in, in_len, out, out_len, &err);
}

static int take_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct reading *r = arg;
    uint64_t cluster_size = UINT64_C(1) << r->attr->cluster_bits;
    uint8_t buf[512];

    (void)err;
    if (e->len == 0 || !is_aligned(e->guest_off | e->len, 512) || e->guest_off < r->end ||
        !range_in(e->guest_off, e->len, r->attr->virtual_size) || e->kind >= EXTENT_HOLE)
        abort();
    if (e->kind != EXTENT_ZERO && round_down(e->host_off, cluster_size) >= r->src->size)
        abort();
    r->end = e->guest_off + e->len;
    if (++r->nr_extents > 2 * r->src->size)
        abort();
    if (r->reads_left == 0)
        return CAIRN_OK;
    r->reads_left--;
    if (e->kind == EXTENT_COMPRESSED)
        decompress(r, e);
    else if (e->kind == EXTENT_DATA &&
             source_pread_padded(r->src, buf, sizeof(buf), e->host_off, NULL) != CAIRN_OK)
        abort();
    return CAIRN_OK;
}

static void scan(struct source *src, struct layer *layer)
{
    struct reading r = {.src = src, .attr = layer_get_attr(layer), .reads_left = 16};
    struct cairn_error err;

    (void)layer_scan(layer, take_extent, &r, &err);
}

/* -- Bitmaps ----------------------------------------------------------------------------------- */

struct dirty {
    uint64_t disk, end, nr;
    uint64_t nr_max;
};

static int take_dirty(void *arg, uint64_t guest_off, uint64_t len, struct cairn_error *err)
{
    struct dirty *d = arg;

    (void)err;
    if (len == 0 || !range_in(guest_off, len, d->disk) || (d->nr > 0 && guest_off <= d->end) ||
        ++d->nr > d->nr_max)
        abort();
    d->end = guest_off + len;
    return CAIRN_OK;
}

/* A table may name one cluster of bits many times: a range costs two bits of a cluster, for each
 * entry of a table in the file. */
static void scan_bitmaps(struct source *src, struct qcow2_image *image)
{
    const struct qcow2_header *hdr = qcow2_image_header(image);
    const struct qcow2_bitmap *list;
    struct cairn_error err;
    uint32_t nr;

    if (qcow2_image_bitmaps(image, &list, &nr, &err) != CAIRN_OK)
        return;
    for (uint32_t i = 0; list && i < min_u64(nr, 4); i++) {
        struct dirty d = {.disk = round_down(hdr->size, 512),
                          .nr_max = (src->size / 8) << (hdr->cluster_bits + 2)};

        (void)qcow2_bitmap_scan(image, i, take_dirty, &d, &err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL, *snapshot = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    struct cairn_error err;

    if (size > 1 << 20 || source_from_memory(data, size, "layer", &src, &err) != CAIRN_OK ||
        layer_open(src, LAYER_QCOW2, &layer, &err) != CAIRN_OK)
        return 0;
    scan(src, layer);
    if (layer_open_snapshot(src, 0, &snapshot, &err) == CAIRN_OK)
        scan(src, snapshot);
    if (qcow2_image_open(src, 0, &image, &err) == CAIRN_OK)
        scan_bitmaps(src, image);
    return 0;
}
