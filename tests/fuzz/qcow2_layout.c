/* SPDX-License-Identifier: Apache-2.0 */
/* The way from the header to every table: see qcow2_layout.h. */
#include "qcow2_layout.h"

#include "bytes.h"
#include "checked.h"
#include "qcow2.h"

#define EXTENSIONS_MAX 8
#define ENTRIES_MAX    4  /* of the lists of snapshots and bitmaps */
#define FOLLOWED_MAX   16 /* entries of one table */

static uint64_t get(const struct image *image, uint64_t off, unsigned width)
{
    if (!range_in(off, width, image->size))
        return 0;
    if (width == 8)
        return bytes_get_be64(image->bytes + off);
    return width == 4 ? bytes_get_be32(image->bytes + off) : bytes_get_be16(image->bytes + off);
}

static void add(const struct image *image, struct image_layout *l, enum image_table kind,
                uint64_t off, uint64_t len)
{
    if (off >= image->size || len == 0 || l->nr == IMAGE_PARTS_MAX)
        return;
    l->parts[l->nr++] = (struct image_part){
        .kind = kind, .off = (uint32_t)off, .len = (uint32_t)min_u64(len, image->size - off)};
}

/* Tables of one cluster that the entries of a table name. */
static void add_named(const struct image *image, struct image_layout *l, enum image_table kind,
                      uint64_t off, uint64_t nr, uint64_t mask)
{
    for (uint64_t i = 0; i < min_u64(nr, FOLLOWED_MAX); i++) {
        uint64_t entry = get(image, off + i * 8, 8) & mask;

        if (entry != 0)
            add(image, l, kind, entry, UINT64_C(1) << l->cluster_bits);
    }
}

static void add_l1(const struct image *image, struct image_layout *l, uint64_t off, uint64_t nr)
{
    add(image, l, IMAGE_L1, off, nr * QCOW2_L1E_SIZE);
    add_named(image, l, IMAGE_L2, off, nr, QCOW2_OFFSET_MASK);
}

static void add_snapshots(const struct image *image, struct image_layout *l)
{
    uint64_t off = get(image, QCOW2_HDR_SNAPSHOTS_OFFSET, 8);
    uint64_t nr = get(image, QCOW2_HDR_NB_SNAPSHOTS, 4);

    for (uint64_t i = 0; i < min_u64(nr, ENTRIES_MAX) && off < image->size; i++) {
        uint64_t len = QCOW2_SNAP_LENGTH + get(image, off + QCOW2_SNAP_EXTRA_LEN, 4) +
                       get(image, off + QCOW2_SNAP_ID_LEN, 2) +
                       get(image, off + QCOW2_SNAP_NAME_LEN, 2);

        add(image, l, IMAGE_SNAPSHOT, off, len);
        add_l1(image, l, get(image, off + QCOW2_SNAP_L1_TABLE_OFFSET, 8),
               get(image, off + QCOW2_SNAP_L1_SIZE, 4));
        off += round_up(len, 8);
    }
}

static void add_bitmaps(const struct image *image, struct image_layout *l, uint64_t extension)
{
    uint64_t nr = get(image, extension, 4);
    uint64_t off = get(image, extension + 16, 8);

    for (uint64_t i = 0; i < min_u64(nr, ENTRIES_MAX) && off < image->size; i++) {
        uint64_t len = QCOW2_BITMAP_LENGTH + get(image, off + QCOW2_BITMAP_EXTRA_LEN, 4) +
                       get(image, off + QCOW2_BITMAP_NAME_LEN, 2);

        add(image, l, IMAGE_BITMAP, off, len);
        add(image, l, IMAGE_BITMAP_TABLE, get(image, off + QCOW2_BITMAP_TABLE_OFFSET, 8),
            get(image, off + QCOW2_BITMAP_TABLE_SIZE, 4) * QCOW2_BME_SIZE);
        off += round_up(len, 8);
    }
}

static void add_extensions(const struct image *image, struct image_layout *l)
{
    uint64_t off = get(image, QCOW2_HDR_VERSION, 4) < 3 ? QCOW2_HDR_V2_LENGTH
                                                        : get(image, QCOW2_HDR_HEADER_LENGTH, 4);

    for (unsigned i = 0; i < EXTENSIONS_MAX && off < image->size; i++) {
        uint64_t type = get(image, off, 4);
        uint64_t len = get(image, off + 4, 4);

        add(image, l, IMAGE_EXTENSION, off, QCOW2_EXT_HEADER_LEN + len);
        if (type == QCOW2_EXT_BITMAPS)
            add_bitmaps(image, l, off + QCOW2_EXT_HEADER_LEN);
        if (type == QCOW2_EXT_END)
            break;
        off += QCOW2_EXT_HEADER_LEN + round_up(len, 8);
    }
}

void image_find_layout(const struct image *image, struct image_layout *ret_layout)
{
    struct image_layout l = {
        .cluster_bits = (unsigned)min_u64(
            max_u64(get(image, QCOW2_HDR_CLUSTER_BITS, 4), QCOW2_CLUSTER_BITS_MIN),
            QCOW2_CLUSTER_BITS_MAX),
        .refcount_order =
            (unsigned)min_u64(get(image, QCOW2_HDR_REFCOUNT_ORDER, 4), QCOW2_REFCOUNT_ORDER_MAX),
        .extl2 = get(image, QCOW2_HDR_INCOMPATIBLE_FEATURES, 8) & QCOW2_INCOMPAT_EXTL2,
    };
    uint64_t reftable = get(image, QCOW2_HDR_REFCOUNT_TABLE_OFFSET, 8);
    uint64_t reftable_len = get(image, QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS, 4) << l.cluster_bits;

    if (get(image, QCOW2_HDR_VERSION, 4) < 3)
        l.refcount_order = QCOW2_V2_REFCOUNT_ORDER;
    add(image, &l, IMAGE_HEADER, 0, QCOW2_HDR_FULL_LENGTH);
    add_l1(image, &l, get(image, QCOW2_HDR_L1_TABLE_OFFSET, 8), get(image, QCOW2_HDR_L1_SIZE, 4));
    add(image, &l, IMAGE_REFTABLE, reftable, reftable_len);
    add_named(image, &l, IMAGE_REFBLOCK, reftable, reftable_len / 8, QCOW2_REFTABLE_OFFSET_MASK);
    add_snapshots(image, &l);
    add_extensions(image, &l);
    *ret_layout = l;
}
