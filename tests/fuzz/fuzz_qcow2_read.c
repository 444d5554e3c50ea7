/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading hostile images: what `image info` lists, the extents of the active disk and of internal
 * snapshots, the content behind them through a chain index, and bitmaps.  Checks what a scan
 * promises, that the index says the same, that nothing is read outside the image, and that all of
 * it takes no more memory than engine/README.md states.
 */
#include "alloc_meter.h"
#include "checked.h"
#include "fuzz_disk.h"
#include "fuzz_image.h"
#include "qcow2_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define READ_MAX      4096 /* bytes of an extent */
#define READS_MAX     12   /* extents of a disk that are read, */
#define INFLATES_MAX  2    /* and of compressed ones */
#define SNAPSHOTS_MAX 2
#define BITMAPS_MAX   2

/* -- Content ----------------------------------------------------------------------------------- */

struct reading {
    struct fuzz_disk disk;
    uint64_t end; /* of the last extent */
    uint64_t nr_extents;
    unsigned reads_left, inflates_left; /* so that a run stays short */
};

/* An extent of the scan is the index's, too; and its bytes can be had. */
static void read_extent(struct reading *r, const struct extent *e)
{
    const struct chain_reader reader = fuzz_disk_reader(&r->disk);
    static uint8_t buf[READ_MAX];
    struct extent mapped;
    struct cairn_error err;
    size_t nr;
    int rc;

    if (e->guest_off + e->len > FUZZ_REACH)
        return;
    rc = chain_map(reader.l1, &reader.slices, e->guest_off, e->len, &mapped, 1, &nr, &err);
    FUZZ_CHECK(rc == CAIRN_OK && nr == 1 && mapped.guest_off == e->guest_off &&
               mapped.kind == e->kind && mapped.host_off == e->host_off && mapped.len == e->len);
    if (r->reads_left == 0 || (e->kind == EXTENT_COMPRESSED && r->inflates_left == 0))
        return;
    r->reads_left--;
    r->inflates_left -= e->kind == EXTENT_COMPRESSED;
    rc = chain_read(&reader, buf, min_u64(e->len, READ_MAX), e->guest_off, &err);
    FUZZ_CHECK(rc == CAIRN_OK || e->kind == EXTENT_COMPRESSED);
}

static int take_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct reading *r = arg;
    const struct layer_attr *attr = layer_get_attr(r->disk.layer);
    uint64_t file_size = r->disk.src->size;
    uint64_t cluster_size = UINT64_C(1) << attr->cluster_bits;

    (void)err;
    FUZZ_CHECK(e->len > 0 && is_aligned(e->guest_off | e->len, 512) && e->guest_off >= r->end &&
               range_in(e->guest_off, e->len, attr->virtual_size) && e->kind < EXTENT_HOLE);
    FUZZ_CHECK(e->kind == EXTENT_ZERO || round_down(e->host_off, cluster_size) < file_size);
    r->end = e->guest_off + e->len;
    FUZZ_CHECK(++r->nr_extents <= 2 * file_size);
    read_extent(r, e);
    return CAIRN_OK;
}

static void read_disk(struct source *src, struct layer *layer)
{
    struct reading r = {.reads_left = READS_MAX, .inflates_left = INFLATES_MAX};
    struct cairn_error err;

    if (fuzz_disk_init(&r.disk, src, layer))
        FUZZ_CHECK(layer_scan(layer, take_extent, &r, &err) == CAIRN_OK);
    fuzz_disk_release(&r.disk);
}

static void read_disks(struct source *src)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct cairn_error err;

    if (layer_open(src, LAYER_QCOW2, &layer, &err) == CAIRN_OK)
        read_disk(src, layer);
    for (uint32_t i = 0; layer && i < SNAPSHOTS_MAX; i++) {
        CLEANUP(layer_free_p) struct layer *snapshot = NULL;

        if (layer_open_snapshot(src, i, &snapshot, &err) != CAIRN_OK)
            break;
        read_disk(src, snapshot);
    }
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
    FUZZ_CHECK(len > 0 && range_in(guest_off, len, d->disk) && (d->nr == 0 || guest_off > d->end) &&
               ++d->nr <= d->nr_max);
    d->end = guest_off + len;
    return CAIRN_OK;
}

/* A table may name one cluster of bits many times: a range costs two bits of a cluster, for each
 * entry of a table in the file. */
static void read_bitmaps(struct source *src)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_header *hdr;
    const struct qcow2_bitmap *list;
    struct cairn_error err;
    uint32_t nr;

    if (qcow2_image_open(src, 0, &image, &err) != CAIRN_OK ||
        qcow2_image_bitmaps(image, &list, &nr, &err) != CAIRN_OK)
        return;
    hdr = qcow2_image_header(image);
    for (uint32_t i = 0; i < min_u64(nr, BITMAPS_MAX); i++) {
        struct dirty d = {.disk = round_down(hdr->size, 512),
                          .nr_max = (src->size / 8) << (hdr->cluster_bits + 2)};

        (void)qcow2_bitmap_scan(image, i, take_dirty, &d, &err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image *image = fuzz_image_open(data, size);

    alloc_meter_start(alloc_bound_reading(image->size));
    {
        CLEANUP(source_free_p) struct source *src = fuzz_image_source();

        fuzz_list(src);
        read_disks(src);
        read_bitmaps(src);
    }
    alloc_meter_stop();
    fuzz_image_close();
    return 0;
}
