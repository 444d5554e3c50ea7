/* SPDX-License-Identifier: Apache-2.0 */
/* A chain of one layer: see fuzz_disk.h. */
#include "fuzz_disk.h"

#include "fuzz_image.h"
#include "qcow2_image.h"

static int keep_slice(void *arg, uint32_t slice_nr, struct index_slice *slice,
                      struct cairn_error *err)
{
    struct fuzz_disk *disk = arg;

    (void)err;
    if (slice_nr < FUZZ_SLICES)
        disk->slices[slice_nr] = index_slice_ref(slice);
    return CAIRN_OK;
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    struct fuzz_disk *disk = ctx;

    (void)err;
    FUZZ_CHECK(ordinal == 0 && slice < FUZZ_SLICES && disk->slices[slice]);
    *ret_slice = index_slice_ref(disk->slices[slice]);
    return CAIRN_OK;
}

static int read_blob(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                     struct cairn_error *err)
{
    struct fuzz_disk *disk = ctx;

    FUZZ_CHECK(layer == 0);
    return source_pread_padded(disk->src, buf, len, host_off, err);
}

bool fuzz_disk_init(struct fuzz_disk *disk, struct source *src, struct layer *layer)
{
    const struct digest digest = {{0}};
    struct cairn_error err;

    *disk = (struct fuzz_disk){.src = src, .layer = layer};
    return chain_index_build(NULL, NULL, layer, &digest, keep_slice, disk, &disk->l1, &err) ==
           CAIRN_OK;
}

void fuzz_disk_release(struct fuzz_disk *disk)
{
    for (unsigned i = 0; i < FUZZ_SLICES; i++)
        if (disk->slices[i])
            index_slice_unref(disk->slices[i]);
    if (disk->l1)
        index_l1_unref(disk->l1);
}

struct chain_reader fuzz_disk_reader(struct fuzz_disk *disk)
{
    return (struct chain_reader){
        .l1 = disk->l1, .slices = {get_slice, disk}, .blobs = {read_blob, disk}};
}

bool fuzz_disk_read(struct fuzz_disk *disk, uint8_t *buf, size_t len, uint64_t guest_off,
                    void (*beneath)(uint8_t *buf, size_t len, uint64_t guest_off))
{
    const struct chain_reader reader = fuzz_disk_reader(disk);
    uint64_t end = guest_off + len;
    struct cairn_error err;

    while (guest_off < end) {
        struct extent e;
        size_t nr;

        FUZZ_CHECK(chain_map(disk->l1, &reader.slices, guest_off, end - guest_off, &e, 1, &nr,
                             &err) == CAIRN_OK &&
                   nr == 1 && e.guest_off == guest_off && e.len > 0 && e.len <= end - guest_off);
        if (e.kind == EXTENT_HOLE && beneath)
            beneath(buf, e.len, guest_off);
        else if (chain_read_extent(&reader, &e, buf, &err) != CAIRN_OK)
            return false;
        buf += e.len;
        guest_off += e.len;
    }
    return true;
}

void fuzz_list(struct source *src)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_snapshot *snapshots;
    const struct qcow2_bitmap *bitmaps;
    struct cairn_error err;
    uint32_t nr;

    if (qcow2_image_open(src, QCOW2_OPEN_INFO, &image, &err) != CAIRN_OK)
        return;
    if (qcow2_image_snapshots(image, &snapshots, &nr, &err) == CAIRN_OK)
        for (uint32_t i = 0; i < nr; i++)
            FUZZ_CHECK(snapshots[i].id && snapshots[i].name);
    if (qcow2_image_bitmaps(image, &bitmaps, &nr, &err) == CAIRN_OK)
        for (uint32_t i = 0; i < nr; i++)
            FUZZ_CHECK(bitmaps[i].name);
}
