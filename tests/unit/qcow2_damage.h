/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ways to damage a qcow2 image in memory: one table, `pokes`, with what is to be expected of check
 * and repair afterwards.
 */
#ifndef TESTS_UNIT_QCOW2_DAMAGE_H
#define TESTS_UNIT_QCOW2_DAMAGE_H

#include "qemu.h"

#include "bytes.h"
#include "qcow2_header.h"

struct image {
    uint8_t *bytes;
    size_t len;
    unsigned cluster_bits, order;
    bool extl2;
    uint64_t l1, reftable;
};

static uint64_t get(const struct image *i, uint64_t off)
{
    assert_true(off + 8 <= i->len);
    return bytes_get_be64(i->bytes + off);
}

static void put(struct image *i, uint64_t off, uint64_t value)
{
    assert_true(off + 8 <= i->len);
    bytes_put_be64(i->bytes + off, value);
}

static void image_load(struct image *i, const char *file)
{
    i->bytes = load_file(file, &i->len);
    i->cluster_bits = bytes_get_be32(i->bytes + QCOW2_HDR_CLUSTER_BITS);
    i->order = bytes_get_be32(i->bytes + QCOW2_HDR_VERSION) < 3
                   ? 4
                   : bytes_get_be32(i->bytes + QCOW2_HDR_REFCOUNT_ORDER);
    i->extl2 = bytes_get_be32(i->bytes + QCOW2_HDR_VERSION) >= 3 &&
               get(i, QCOW2_HDR_INCOMPATIBLE_FEATURES) & QCOW2_INCOMPAT_EXTL2;
    i->l1 = get(i, QCOW2_HDR_L1_TABLE_OFFSET);
    i->reftable = get(i, QCOW2_HDR_REFCOUNT_TABLE_OFFSET);
}

static void image_save(const struct image *i, const char *file)
{
    FILE *f = fopen(file, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(i->bytes, 1, i->len, f), i->len);
    assert_int_equal(fclose(f), 0);
}

/* Host offset of the n-th standard L2 entry that has a cluster; 0: there is none. */
static uint64_t data_entry(const struct image *i, unsigned n)
{
    uint64_t step = i->extl2 ? 16 : 8;

    for (uint64_t l1e = i->l1; get(i, l1e) != 0; l1e += 8) {
        uint64_t l2 = get(i, l1e) & QCOW2_OFFSET_MASK;

        for (uint64_t at = l2; at < l2 + (UINT64_C(1) << i->cluster_bits); at += step)
            if (get(i, at) & QCOW2_OFFSET_MASK && !(get(i, at) & QCOW2_OFLAG_COMPRESSED) &&
                n-- == 0)
                return at;
    }
    return 0;
}

static uint64_t compressed_entry(const struct image *i)
{
    uint64_t step = i->extl2 ? 16 : 8;

    for (uint64_t l1e = i->l1; get(i, l1e) != 0; l1e += 8) {
        uint64_t l2 = get(i, l1e) & QCOW2_OFFSET_MASK;

        for (uint64_t at = l2; at < l2 + (UINT64_C(1) << i->cluster_bits); at += step)
            if (get(i, at) & QCOW2_OFLAG_COMPRESSED)
                return at;
    }
    return 0;
}

/* Add to the stored refcount of the cluster at host_off, as far as it goes. */
static void add_refcount(struct image *i, uint64_t host_off, int64_t add)
{
    uint64_t cluster = host_off >> i->cluster_bits;
    uint64_t per_block = UINT64_C(8) << i->cluster_bits >> i->order;
    uint8_t *block = i->bytes + get(i, i->reftable + cluster / per_block * 8);
    uint64_t n = cluster % per_block, bits = UINT64_C(1) << i->order;

    if (i->order == 6) {
        bytes_put_be64(block + 8 * n, bytes_get_be64(block + 8 * n) + (uint64_t)add);
    } else if (i->order == 5) {
        bytes_put_be32(block + 4 * n, bytes_get_be32(block + 4 * n) + (uint32_t)add);
    } else if (i->order == 4) {
        bytes_put_be16(block + 2 * n, (uint16_t)(bytes_get_be16(block + 2 * n) + add));
    } else {
        uint64_t mask = (UINT64_C(1) << bits) - 1, shift = n * bits % 8;
        uint64_t old = (uint64_t)block[n * bits / 8] >> shift & mask;
        uint64_t new = (old + (uint64_t)add) & mask;

        block[n * bits / 8] = (uint8_t)((block[n * bits / 8] & ~(mask << shift)) | new << shift);
    }
}

enum {
    EXACT = 1,    /* our figures are qemu-img's */
    REPAIRED = 2, /* qemu-img finds nothing after our repair */
    CONTENT = 4,  /* and reads what was there before the damage */
    ALL = 7,
    SHARES = 8, /* but a cluster has two users, which one bit of refcount cannot say */
};

struct poke {
    const char *name;
    bool (*poke)(struct image *i); /* false: this image has not what it takes */
    unsigned expect;
};

static bool poke_nothing(struct image *i)
{
    (void)i;
    return true;
}

static bool poke_raise(struct image *i)
{
    uint64_t e = data_entry(i, 0);

    if (i->order == 0 || e == 0)
        return false;
    add_refcount(i, get(i, e) & QCOW2_OFFSET_MASK, 1);
    return true;
}

static bool poke_raise_free(struct image *i)
{
    uint64_t cluster_size = UINT64_C(1) << i->cluster_bits;

    i->bytes = realloc(i->bytes, i->len + 3 * cluster_size);
    memset(i->bytes + i->len, 0xaa, 3 * cluster_size);
    i->len = (i->len + 3 * cluster_size) & ~(cluster_size - 1);
    add_refcount(i, i->len - cluster_size, 1);
    return true;
}

static bool poke_lower(struct image *i)
{
    uint64_t e = data_entry(i, 2);

    if (e)
        add_refcount(i, get(i, e) & QCOW2_OFFSET_MASK, -1);
    return e;
}

static bool poke_lower_l2(struct image *i)
{
    add_refcount(i, get(i, i->l1) & QCOW2_OFFSET_MASK, -1);
    return true;
}

static bool poke_lower_header(struct image *i)
{
    add_refcount(i, 0, -1);
    return true;
}

static bool poke_copied(struct image *i)
{
    uint64_t e = data_entry(i, 1);

    if (e)
        put(i, e, get(i, e) ^ QCOW2_OFLAG_COPIED);
    return e;
}

static bool poke_copied_l1(struct image *i)
{
    put(i, i->l1, get(i, i->l1) ^ QCOW2_OFLAG_COPIED);
    return true;
}

static bool poke_lose_entry(struct image *i)
{
    uint64_t e = data_entry(i, 0);

    if (e)
        put(i, e, 0);
    if (e && i->extl2)
        put(i, e + 8, 0);
    return e;
}

static bool poke_lose_table(struct image *i)
{
    put(i, i->l1, 0);
    return true;
}

static bool poke_share(struct image *i)
{
    uint64_t a = data_entry(i, 0), b = data_entry(i, 1);

    if (!a || !b)
        return false;
    put(i, a, get(i, b));
    return true;
}

static bool point_at(struct image *i, uint64_t host_off)
{
    uint64_t e = data_entry(i, 0);

    if (e)
        put(i, e, host_off | QCOW2_OFLAG_COPIED);
    return e;
}

static bool poke_at_l1(struct image *i)
{
    return point_at(i, i->l1);
}

static bool poke_at_l2(struct image *i)
{
    return point_at(i, get(i, i->l1) & QCOW2_OFFSET_MASK);
}

static bool poke_at_reftable(struct image *i)
{
    return point_at(i, i->reftable);
}

static bool poke_at_refblock(struct image *i)
{
    return point_at(i, get(i, i->reftable));
}

static bool poke_past_end(struct image *i)
{
    return point_at(i, UINT64_C(1) << 40);
}

static bool poke_at_end(struct image *i)
{
    uint64_t cluster_size = UINT64_C(1) << i->cluster_bits;

    return point_at(i, (i->len + cluster_size - 1) & ~(cluster_size - 1));
}

static bool poke_unaligned(struct image *i)
{
    uint64_t e = data_entry(i, 0);

    if (!e || i->cluster_bits == 9)
        return false;
    put(i, e, get(i, e) + 512);
    return true;
}

static bool poke_reserved(struct image *i)
{
    uint64_t e = data_entry(i, 0);

    if (e)
        put(i, e, get(i, e) | UINT64_C(1) << 58);
    return e;
}

static bool poke_reserved_l1(struct image *i)
{
    put(i, i->l1, get(i, i->l1) | UINT64_C(1) << 57);
    return true;
}

static bool poke_compressed_copied(struct image *i)
{
    uint64_t e = compressed_entry(i);

    if (e)
        put(i, e, get(i, e) | QCOW2_OFLAG_COPIED);
    return e;
}

static bool poke_compressed_past(struct image *i)
{
    uint64_t e = compressed_entry(i);

    if (e)
        put(i, e, get(i, e) | UINT64_C(1) << 35);
    return e;
}

static bool poke_subclusters(struct image *i)
{
    uint64_t e = data_entry(i, 0);

    if (!e || !i->extl2)
        return false;
    put(i, e + 8, UINT64_MAX);
    return true;
}

static bool poke_subclusters_unallocated(struct image *i)
{
    uint64_t e = data_entry(i, 0);

    if (!e || !i->extl2)
        return false;
    put(i, e, 0);
    return true;
}

static bool poke_refblock_gone(struct image *i)
{
    put(i, i->reftable, 0);
    return true;
}

static bool poke_refblock_unaligned(struct image *i)
{
    if (i->cluster_bits == 9)
        return false;
    put(i, i->reftable, get(i, i->reftable) + 512);
    return true;
}

static bool poke_refblock_reserved(struct image *i)
{
    put(i, i->reftable, get(i, i->reftable) | 1);
    return true;
}

static bool poke_refblock_past(struct image *i)
{
    put(i, i->reftable, UINT64_C(1) << 40);
    return true;
}

static bool poke_refblock_is_l2(struct image *i)
{
    put(i, i->reftable, get(i, i->l1) & QCOW2_OFFSET_MASK);
    return true;
}

static bool poke_refblock_twice(struct image *i)
{
    put(i, i->reftable + 8, get(i, i->reftable));
    return true;
}

static bool poke_refblock_zeroed(struct image *i)
{
    memset(i->bytes + get(i, i->reftable), 0, (size_t)1 << i->cluster_bits);
    return true;
}

static bool poke_refblock_noise(struct image *i)
{
    memset(i->bytes + get(i, i->reftable), 0xa5, (size_t)1 << i->cluster_bits);
    return true;
}

static bool poke_dirty(struct image *i)
{
    if (bytes_get_be32(i->bytes + QCOW2_HDR_VERSION) < 3)
        return false;
    put(i, QCOW2_HDR_INCOMPATIBLE_FEATURES,
        get(i, QCOW2_HDR_INCOMPATIBLE_FEATURES) | QCOW2_INCOMPAT_DIRTY);
    return poke_raise(i) && poke_refblock_zeroed(i);
}

static bool poke_corrupt_bit(struct image *i)
{
    if (bytes_get_be32(i->bytes + QCOW2_HDR_VERSION) < 3)
        return false;
    put(i, QCOW2_HDR_INCOMPATIBLE_FEATURES,
        get(i, QCOW2_HDR_INCOMPATIBLE_FEATURES) | QCOW2_INCOMPAT_CORRUPT);
    return poke_copied(i);
}

static bool poke_snapshot_l2(struct image *i)
{
    uint64_t snapshots = get(i, QCOW2_HDR_SNAPSHOTS_OFFSET);
    uint64_t l1;

    if (bytes_get_be32(i->bytes + QCOW2_HDR_NB_SNAPSHOTS) == 0)
        return false;
    l1 = get(i, snapshots);
    put(i, l1, 0);
    return true;
}

static bool poke_snapshots_gone(struct image *i)
{
    if (bytes_get_be32(i->bytes + QCOW2_HDR_NB_SNAPSHOTS) == 0)
        return false;
    bytes_put_be32(i->bytes + QCOW2_HDR_NB_SNAPSHOTS, 0);
    return true;
}

static bool poke_bitmaps_gone(struct image *i)
{
    if (bytes_get_be32(i->bytes + QCOW2_HDR_VERSION) < 3 ||
        !(get(i, QCOW2_HDR_AUTOCLEAR_FEATURES) & QCOW2_AUTOCLEAR_BITMAPS))
        return false;
    put(i, QCOW2_HDR_AUTOCLEAR_FEATURES, 0);
    return true;
}

static const struct poke pokes[] = {
    {"nothing", poke_nothing, ALL},
    {"refcount raised", poke_raise, ALL},
    {"free cluster with refcount", poke_raise_free, ALL},
    {"refcount lowered", poke_lower, ALL},
    {"refcount of L2 table lowered", poke_lower_l2, ALL},
    {"refcount of header lowered", poke_lower_header, ALL},
    {"copied bit of L2 entry flipped", poke_copied, ALL},
    {"copied bit of L1 entry flipped", poke_copied_l1, ALL},
    {"L2 entry lost", poke_lose_entry, EXACT | REPAIRED},
    {"L1 entry lost", poke_lose_table, EXACT | REPAIRED},
    {"cluster shared by two entries", poke_share, EXACT | REPAIRED | SHARES},
    {"data at the L1 table", poke_at_l1, EXACT | REPAIRED | SHARES},
    {"data at an L2 table", poke_at_l2, EXACT | REPAIRED | SHARES},
    {"data at the refcount table", poke_at_reftable, EXACT | REPAIRED | SHARES},
    {"data at a refcount block", poke_at_refblock, EXACT | REPAIRED | SHARES},
    {"data far past the end", poke_past_end, EXACT},
    {"data at the end", poke_at_end, EXACT},
    {"data unaligned", poke_unaligned, EXACT},
    {"reserved bit of L2 entry", poke_reserved, EXACT},
    {"reserved bit of L1 entry", poke_reserved_l1, EXACT},
    {"copied bit on compressed cluster", poke_compressed_copied, EXACT},
    {"compressed cluster past the end", poke_compressed_past, EXACT},
    {"subclusters both data and zero", poke_subclusters, EXACT},
    {"subclusters without cluster", poke_subclusters_unallocated, EXACT},
    {"refcount block missing", poke_refblock_gone, ALL},
    {"refcount block unaligned", poke_refblock_unaligned, ALL},
    {"reserved bit of refcount table entry", poke_refblock_reserved, ALL},
    {"refcount block past the end", poke_refblock_past, ALL},
    {"refcount block that is an L2 table", poke_refblock_is_l2, ALL | SHARES},
    {"refcount block used twice", poke_refblock_twice, ALL | SHARES},
    {"refcount block all zeros", poke_refblock_zeroed, ALL},
    {"refcount block full of noise", poke_refblock_noise, ALL},
    {"dirty bit and stale refcounts", poke_dirty, ALL},
    {"corrupt bit", poke_corrupt_bit, ALL},
    {"L1 entry of snapshot lost", poke_snapshot_l2, EXACT | REPAIRED},
    {"snapshots forgotten", poke_snapshots_gone, ALL},
    {"bitmaps forgotten", poke_bitmaps_gone, ALL},
};
#define NR_POKES (sizeof(pokes) / sizeof(pokes[0]))

#endif
