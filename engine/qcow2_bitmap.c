/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps: from the bitmap table to dirty ranges (docs/interop/qcow2.rst of QEMU,
 * "Bitmaps").
 *
 * Bit n of the bitmap, from the least significant bit of its first byte on, covers the n-th
 * granule of the guest's disk.  The bits are stored in clusters that the table names; a cluster
 * that is all ones or all zeros need not be stored.  Work is bounded by the file: the table lies
 * wholly inside it and has exactly the entries that the disk's size asks for.
 *
 * A bitmap that its writer did not save says nothing, and a backup that believed it would miss
 * what was written: it is refused, never shown as it was.
 */
#include "qcow2_bitmap.h"

#include <inttypes.h>
#include <stdio.h>

#include "bytes.h"
#include "quote.h"

#define TABLE_WINDOW 512 /* entries read at a time */

struct reading {
    struct source *src;
    const struct qcow2_header *hdr;
    const struct qcow2_bitmap *bitmap;
    char name[QUOTE_MAX]; /* for messages */
    uint64_t virtual_size;
    uint64_t nr_bits; /* granules of the disk */
    uint8_t *cluster;
    uint64_t run_start, run_end; /* dirty bits not reported yet; equal: none */
    qcow2_dirty_fn fn;
    void *arg;
};

/* -- Is it worth reading ----------------------------------------------------------------------- */

static int check_usable(const struct qcow2_bitmap *bitmap, struct cairn_error *err)
{
    if (bitmap->flags & QCOW2_BITMAP_IN_USE)
        return error_set(err, CAIRN_E_CORRUPT,
                         "marked as in use: who wrote the image did not save it, so that it does "
                         "not tell what is dirty");
    if (bitmap->type != QCOW2_BITMAP_TYPE_DIRTY)
        return error_set(err, CAIRN_E_UNSUPPORTED, "type %u, expected %d (dirty tracking)",
                         bitmap->type, QCOW2_BITMAP_TYPE_DIRTY);
    if (bitmap->flags & ~QCOW2_BITMAP_FLAGS_KNOWN)
        return error_set(err, CAIRN_E_UNSUPPORTED, "unknown flags 0x%" PRIx32,
                         bitmap->flags & ~QCOW2_BITMAP_FLAGS_KNOWN);
    if (bitmap->extra_data_size > 0 && !(bitmap->flags & QCOW2_BITMAP_EXTRA_KNOWN))
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%" PRIu32 " bytes of extra data that must be understood",
                         bitmap->extra_data_size);
    return CAIRN_OK;
}

int qcow2_bitmap_check_usable(const struct source *src, const struct qcow2_bitmap *bitmap,
                              struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    int r = check_usable(bitmap, err);

    if (r != CAIRN_OK)
        return error_prefix(err, r, "%s: bitmap %s", src->name, quote_str(bitmap->name, quoted));
    return CAIRN_OK;
}

/* -- Bits to ranges ---------------------------------------------------------------------------- */

static int report_run(struct reading *b, struct cairn_error *err)
{
    unsigned bits = b->bitmap->granularity_bits;
    uint64_t guest_off = b->run_start << bits, len = (b->run_end - b->run_start) << bits;

    if (b->run_start == b->run_end)
        return CAIRN_OK;
    b->run_start = b->run_end;
    /* The last granule may reach past the end, even beyond what a number holds. */
    if (b->run_end == b->nr_bits)
        len = b->virtual_size - guest_off;
    return b->fn(b->arg, guest_off, len, err);
}

/* Bits [first, first + nr) are dirty, as far as the disk has them. */
static int add_dirty(struct reading *b, uint64_t first, uint64_t nr, struct cairn_error *err)
{
    uint64_t end = first + min_u64(nr, b->nr_bits - first);
    int r = CAIRN_OK;

    if (b->run_end != first) {
        r = report_run(b, err);
        b->run_start = first;
    }
    b->run_end = end;
    return r;
}

/* The byte of bits first to first + 7. */
static int add_byte(struct reading *b, uint8_t byte, uint64_t first, struct cairn_error *err)
{
    int r = CAIRN_OK;

    if (byte == 0xff)
        return add_dirty(b, first, 8, err);
    for (unsigned i = 0; i < 8 && first + i < b->nr_bits && r == CAIRN_OK; i++)
        if (byte >> i & 1)
            r = add_dirty(b, first + i, 1, err);
    return r;
}

static int add_cluster(struct reading *b, uint64_t host_off, uint64_t first,
                       struct cairn_error *err)
{
    uint64_t size = qcow2_cluster_size(b->hdr);
    uint64_t nr_bytes = min_u64(size, div_round_up(b->nr_bits - first, 8));
    int r = source_pread(b->src, b->cluster, size, host_off, err);

    for (uint64_t i = 0; i < nr_bytes && r == CAIRN_OK; i++)
        if (b->cluster[i])
            r = add_byte(b, b->cluster[i], first + 8 * i, err);
    return r;
}

/* -- The table --------------------------------------------------------------------------------- */

static int check_entry(const struct reading *b, uint64_t i, uint64_t entry, struct cairn_error *err)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK, size = qcow2_cluster_size(b->hdr);
    struct qcow2_region regions[QCOW2_REGIONS_MAX];
    const struct qcow2_region *other;
    char what[QUOTE_MAX + 64];
    int r;

    if (entry & QCOW2_BME_RESERVED_MASK || (entry & QCOW2_BME_ALL_ONES && host_off != 0))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: bitmap %s: table entry %" PRIu64 " is 0x%" PRIx64
                         ": reserved bits are set",
                         b->src->name, b->name, i, entry);
    if (host_off == 0)
        return CAIRN_OK;
    snprintf(what, sizeof(what), "bitmap %s: data of table entry %" PRIu64, b->name, i);
    r = qcow2_check_table(b->src, b->hdr, what, host_off, size, err);
    if (r != CAIRN_OK)
        return r;
    other = qcow2_region_find(regions, qcow2_header_regions(b->hdr, regions), host_off, size);
    if (other)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %s at 0x%" PRIx64 " overlaps the %s at 0x%" PRIx64, b->src->name,
                         what, host_off, other->what, other->host_off);
    return CAIRN_OK;
}

static int read_entry(struct reading *b, uint64_t i, uint64_t entry, struct cairn_error *err)
{
    uint64_t bits_per_cluster = qcow2_cluster_size(b->hdr) * 8;
    int r = check_entry(b, i, entry, err);

    if (r != CAIRN_OK)
        return r;
    if (entry & QCOW2_BME_ALL_ONES)
        return add_dirty(b, i * bits_per_cluster, bits_per_cluster, err);
    return entry ? add_cluster(b, entry, i * bits_per_cluster, err) : CAIRN_OK;
}

static int read_table(struct reading *b, struct cairn_error *err)
{
    uint64_t nr = b->bitmap->bitmap_table_size;
    uint8_t window[TABLE_WINDOW * QCOW2_BME_SIZE];
    int r = CAIRN_OK;

    for (uint64_t i = 0; i < nr && r == CAIRN_OK; i++) {
        uint64_t in_window = i % TABLE_WINDOW;

        if (in_window == 0)
            r = source_pread(b->src, window, min_u64(TABLE_WINDOW, nr - i) * QCOW2_BME_SIZE,
                             b->bitmap->bitmap_table_offset + i * QCOW2_BME_SIZE, err);
        if (r == CAIRN_OK)
            r = read_entry(b, i, bytes_get_be64(window + in_window * QCOW2_BME_SIZE), err);
    }
    return r == CAIRN_OK ? report_run(b, err) : r;
}

static int check_table(const struct reading *b, struct cairn_error *err)
{
    uint64_t needed = div_round_up(b->nr_bits, qcow2_cluster_size(b->hdr) * 8);
    char what[QUOTE_MAX + 32];

    if (b->bitmap->bitmap_table_size != needed)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: bitmap %s: its table has %" PRIu32 " entries, expected %" PRIu64
                         " for a disk of %" PRIu64 " bytes",
                         b->src->name, b->name, b->bitmap->bitmap_table_size, needed,
                         b->virtual_size);
    snprintf(what, sizeof(what), "bitmap %s: table", b->name);
    return qcow2_check_table(b->src, b->hdr, what, b->bitmap->bitmap_table_offset,
                             needed * QCOW2_BME_SIZE, err);
}

int qcow2_bitmap_read(struct source *src, const struct qcow2_header *hdr,
                      const struct qcow2_bitmap *bitmap, qcow2_dirty_fn fn, void *arg,
                      struct cairn_error *err)
{
    struct reading b = {.src = src,
                        .hdr = hdr,
                        .bitmap = bitmap,
                        .virtual_size = qcow2_virtual_size(hdr),
                        .fn = fn,
                        .arg = arg};
    int r = qcow2_bitmap_check_usable(src, bitmap, err);

    if (r != CAIRN_OK)
        return r;
    quote_str(bitmap->name, b.name);
    b.nr_bits = div_round_up(b.virtual_size, UINT64_C(1) << bitmap->granularity_bits);
    r = check_table(&b, err);
    if (r == CAIRN_OK) {
        b.cluster = malloc(qcow2_cluster_size(hdr));
        r = b.cluster ? read_table(&b, err) : error_no_memory(err, "a cluster of a bitmap");
        free(b.cluster);
    }
    return r;
}
