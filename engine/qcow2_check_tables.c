/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables of tables: L1 tables, active and of snapshots, and bitmap tables.
 *
 * A small file can hold many snapshots whose L1 tables overlap, so that reading each would cost the
 * square of the file's size.  Instead the places of all tables are swept from the start of the file
 * to its end, and each entry is read once, with the number of tables that it stands in.
 */
#include "qcow2_check_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "bytes.h"
#include "qcow2_lists.h"
#include "quote.h"

#define ENTRY_SIZE 8 /* of L1 and bitmap tables */
static_assert(ENTRY_SIZE == QCOW2_L1E_SIZE, "L1 tables are swept with the bitmap tables' step");

/* -- Sweeping ---------------------------------------------------------------------------------- */

/* The borders of nr ranges, each list sorted before the sweep. */
struct places {
    uint64_t *starts, *ends;
    size_t nr;
};

/* A maximal range that nr tables share. */
typedef int (*sweep_fn)(struct qcow2_check *c, uint64_t host_off, uint64_t len, uint64_t nr,
                        struct cairn_error *err);

static int places_init(struct places *places, size_t max, struct cairn_error *err)
{
    *places = (struct places){.starts = malloc((max + 1) * sizeof(uint64_t)),
                              .ends = malloc((max + 1) * sizeof(uint64_t))};
    return places->starts && places->ends ? CAIRN_OK : error_no_memory(err, "a list of tables");
}

static void places_release(struct places *places)
{
    free(places->starts);
    free(places->ends);
}

/* A table that can be read; else it is reported and left out. */
static void places_add(struct places *places, struct qcow2_check *c, const char *what,
                       uint64_t host_off, uint64_t len)
{
    if (len == 0)
        return;
    if (!is_aligned(host_off, c->cluster_size)) {
        c->incomplete = true;
        check_found(c, QCOW2_CHECK_UNALIGNED, 1, host_off, QCOW2_CHECK_NO_OFFSET,
                    "%s at 0x%" PRIx64 " is not aligned to the cluster size %" PRIu64, what,
                    host_off, c->cluster_size);
    } else if (!range_in(host_off, len, c->src->size)) {
        c->incomplete = c->dangling = true;
        check_found(c, QCOW2_CHECK_PAST_END, 1, host_off, QCOW2_CHECK_NO_OFFSET,
                    "%s at 0x%" PRIx64 " of %" PRIu64
                    " bytes reaches past the end of the file (%" PRIu64 " bytes)",
                    what, host_off, len, c->src->size);
    } else {
        places->starts[places->nr] = host_off;
        places->ends[places->nr++] = host_off + len;
    }
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;

    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

/* unit: what the ends are rounded up to. */
static int sweep(struct qcow2_check *c, struct places *places, uint64_t unit, sweep_fn fn,
                 struct cairn_error *err)
{
    uint64_t at = 0, open = 0;
    size_t s = 0, e = 0;
    int r = CAIRN_OK;

    if (places->nr == 0)
        return CAIRN_OK;
    qsort(places->starts, places->nr, sizeof(uint64_t), compare_u64);
    qsort(places->ends, places->nr, sizeof(uint64_t), compare_u64);
    while (e < places->nr && r == CAIRN_OK) {
        uint64_t end = round_up(places->ends[e], unit);
        bool starts = s < places->nr && places->starts[s] <= end;
        uint64_t next = starts ? places->starts[s++] : end;

        if (open > 0 && next > at)
            r = fn(c, at, next - at, open, err);
        at = next;
        open += starts ? 1 : (uint64_t)-1;
        e += !starts;
    }
    return r;
}

/* Read a swept range in pieces and look at each entry that is not 0. */
static int each_entry(struct qcow2_check *c, uint64_t host_off, uint64_t len, uint64_t nr,
                      int (*fn)(struct qcow2_check *c, uint64_t entry, uint64_t entry_off,
                                uint64_t nr, struct cairn_error *err),
                      struct cairn_error *err)
{
    uint8_t buf[16384];
    int r = CAIRN_OK;

    for (uint64_t done = 0; done < len && r == CAIRN_OK; done += sizeof(buf)) {
        size_t n = min_u64(sizeof(buf), len - done);

        r = source_pread(c->src, buf, n, host_off + done, err);
        for (size_t i = 0; i < n && r == CAIRN_OK; i += ENTRY_SIZE) {
            uint64_t entry = bytes_get_be64(buf + i);

            if (entry != 0)
                r = fn(c, entry, host_off + done + i, nr, err);
        }
    }
    return r;
}

/* -- L1 tables --------------------------------------------------------------------------------- */

static int refer_l1_entry(struct qcow2_check *c, struct l2_list *list, uint64_t entry,
                          uint64_t l1_index, uint64_t nr, struct cairn_error *err)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK;
    int r;

    if (entry & QCOW2_L1E_RESERVED_MASK || host_off == 0)
        check_found(c, QCOW2_CHECK_RESERVED, nr, host_off, QCOW2_CHECK_NO_OFFSET,
                    "the L1 entry 0x%016" PRIx64 " has reserved bits set, or no L2 table", entry);
    if (host_off == 0)
        return CAIRN_OK;
    r = check_refer(c, host_off, c->cluster_size, nr, CLUSTER_L2, QCOW2_CHECK_NO_OFFSET, err);
    if (r != CAIRN_OK)
        return r;
    if (!is_aligned(host_off, c->cluster_size)) {
        c->incomplete = true;
        check_found(c, QCOW2_CHECK_UNALIGNED, nr, host_off, QCOW2_CHECK_NO_OFFSET,
                    "an L2 table at 0x%" PRIx64 " is not aligned to the cluster size %" PRIu64,
                    host_off, c->cluster_size);
        return CAIRN_OK;
    }
    if (host_off >= c->src->size)
        return CAIRN_OK; /* reported; QEMU finds zeros there */
    return l2_list_add(list, host_off, nr, l1_index, err);
}

static int active_l1_entry(struct qcow2_check *c, uint64_t entry, uint64_t entry_off, uint64_t nr,
                           struct cairn_error *err)
{
    uint64_t l1_index = (entry_off - c->hdr.l1_table_offset) / QCOW2_L1E_SIZE;

    c->uncopied |= !(entry & QCOW2_OFLAG_COPIED);
    return refer_l1_entry(c, &c->active_l2, entry, l1_index, nr, err);
}

static int snapshot_l1_entry(struct qcow2_check *c, uint64_t entry, uint64_t entry_off, uint64_t nr,
                             struct cairn_error *err)
{
    (void)entry_off;
    return refer_l1_entry(c, &c->inactive_l2, entry, 0, nr, err);
}

int check_active_l1(struct qcow2_check *c, struct cairn_error *err)
{
    uint64_t len = (uint64_t)c->hdr.l1_size * QCOW2_L1E_SIZE;
    int r = check_refer(c, c->hdr.l1_table_offset, len, 1, CLUSTER_L1, QCOW2_CHECK_NO_OFFSET, err);

    if (r == CAIRN_OK)
        r = each_entry(c, c->hdr.l1_table_offset, len, 1, active_l1_entry, err);
    l2_list_compact(&c->active_l2);
    return r;
}

/* -- Snapshots --------------------------------------------------------------------------------- */

static int snapshot_l1_clusters(struct qcow2_check *c, uint64_t host_off, uint64_t len, uint64_t nr,
                                struct cairn_error *err)
{
    return check_refer(c, host_off, len, nr, CLUSTER_L1, QCOW2_CHECK_NO_OFFSET, err);
}

static int snapshot_l1_entries(struct qcow2_check *c, uint64_t host_off, uint64_t len, uint64_t nr,
                               struct cairn_error *err)
{
    return each_entry(c, host_off, len, nr, snapshot_l1_entry, err);
}

static void add_snapshot(struct qcow2_check *c, struct places *places,
                         const struct qcow2_snapshot *snap)
{
    uint64_t len = (uint64_t)snap->l1_size * QCOW2_L1E_SIZE;
    char quoted[QUOTE_MAX];

    if (c->hdr.version >= 3 && snap->extra_len < QCOW2_SNAP_EXTRA_DISK_SIZE + sizeof(uint64_t))
        check_found(c, QCOW2_CHECK_LIMIT, 1, c->hdr.snapshots_offset, QCOW2_CHECK_NO_OFFSET,
                    "snapshot %s has %" PRIu32 " bytes of extra data, fewer than version 3 wants",
                    quote_str(snap->name, quoted), snap->extra_len);
    if (len > QCOW2_L1_BYTES_MAX) {
        c->incomplete = true;
        check_found(c, QCOW2_CHECK_LIMIT, 1, snap->l1_table_offset, QCOW2_CHECK_NO_OFFSET,
                    "the L1 table of snapshot %s has %" PRIu32 " entries, more than the limit",
                    quote_str(snap->name, quoted), snap->l1_size);
    } else {
        places_add(places, c, "the L1 table of a snapshot", snap->l1_table_offset, len);
    }
}

static int refer_snapshots(struct qcow2_check *c, const struct qcow2_snapshot *list,
                           struct cairn_error *err)
{
    uint64_t table_len = list[c->hdr.nb_snapshots - 1].entry_end - c->hdr.snapshots_offset;
    CLEANUP(places_release) struct places places = {0};
    int r = places_init(&places, c->hdr.nb_snapshots, err);

    if (r != CAIRN_OK)
        return r;
    if (c->data_file)
        check_found(c, QCOW2_CHECK_RESERVED, 1, c->hdr.snapshots_offset, QCOW2_CHECK_NO_OFFSET,
                    "%" PRIu32 " snapshots in an image with a data file", c->hdr.nb_snapshots);
    for (uint32_t i = 0; i < c->hdr.nb_snapshots; i++)
        add_snapshot(c, &places, &list[i]);
    r = sweep(c, &places, c->cluster_size, snapshot_l1_clusters, err);
    if (r == CAIRN_OK)
        r = sweep(c, &places, ENTRY_SIZE, snapshot_l1_entries, err);
    l2_list_compact(&c->inactive_l2);
    if (r == CAIRN_OK)
        r = check_refer(c, c->hdr.snapshots_offset, table_len, 1, CLUSTER_SNAPSHOTS,
                        QCOW2_CHECK_NO_OFFSET, err);
    return r;
}

/* A list that cannot be read is a finding, unless memory or the disk failed. */
static int unreadable(struct qcow2_check *c, int r, uint64_t host_off,
                      const struct cairn_error *why, struct cairn_error *err)
{
    if (r != CAIRN_E_CORRUPT && r != CAIRN_E_LIMIT) {
        if (err)
            *err = *why;
        return r;
    }
    c->incomplete = true;
    check_found(c, QCOW2_CHECK_UNREADABLE, 1, host_off, QCOW2_CHECK_NO_OFFSET, "%s", why->message);
    return CAIRN_OK;
}

int check_snapshots(struct qcow2_check *c, struct cairn_error *err)
{
    struct cairn_error why;
    struct qcow2_snapshot *list;
    int r = qcow2_snapshots_read(c->src, &c->hdr, &list, &why);

    if (r != CAIRN_OK)
        return unreadable(c, r, c->hdr.snapshots_offset, &why, err);
    if (!list)
        return CAIRN_OK;
    r = refer_snapshots(c, list, err);
    qcow2_snapshots_free(list, c->hdr.nb_snapshots);
    return r;
}

/* -- Bitmaps ----------------------------------------------------------------------------------- */

/* Reserved bits of a bitmap table entry; bit 0, "all ones", only where there is no cluster. */
#define BITMAP_ENTRY_RESERVED_MASK UINT64_C(0xff000000000001fe)
#define BITMAP_ENTRY_ALL_ONES      UINT64_C(1)

static int bitmap_entry(struct qcow2_check *c, uint64_t entry, uint64_t entry_off, uint64_t nr,
                        struct cairn_error *err)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK;

    if (entry & BITMAP_ENTRY_RESERVED_MASK || (host_off != 0 && entry & BITMAP_ENTRY_ALL_ONES) ||
        !is_aligned(host_off, c->cluster_size)) {
        c->incomplete = true;
        check_found(c, QCOW2_CHECK_RESERVED, nr, host_off, QCOW2_CHECK_NO_OFFSET,
                    "the bitmap table entry 0x%016" PRIx64 " at 0x%" PRIx64 " is invalid", entry,
                    entry_off);
        return CAIRN_OK;
    }
    if (host_off == 0)
        return CAIRN_OK;
    return check_refer(c, host_off, c->cluster_size, nr, CLUSTER_BITMAP, QCOW2_CHECK_NO_OFFSET,
                       err);
}

static int bitmap_table_clusters(struct qcow2_check *c, uint64_t host_off, uint64_t len,
                                 uint64_t nr, struct cairn_error *err)
{
    return check_refer(c, host_off, len, nr, CLUSTER_BITMAP, QCOW2_CHECK_NO_OFFSET, err);
}

static int bitmap_table_entries(struct qcow2_check *c, uint64_t host_off, uint64_t len, uint64_t nr,
                                struct cairn_error *err)
{
    return each_entry(c, host_off, len, nr, bitmap_entry, err);
}

static int refer_bitmaps(struct qcow2_check *c, const struct qcow2_bitmap *list,
                         struct cairn_error *err)
{
    CLEANUP(places_release) struct places places = {0};
    int r = places_init(&places, c->hdr.nb_bitmaps, err);

    if (r != CAIRN_OK)
        return r;
    for (uint32_t i = 0; i < c->hdr.nb_bitmaps; i++)
        places_add(&places, c, "a bitmap table", list[i].bitmap_table_offset,
                   (uint64_t)list[i].bitmap_table_size * ENTRY_SIZE);
    r = sweep(c, &places, c->cluster_size, bitmap_table_clusters, err);
    if (r == CAIRN_OK)
        r = sweep(c, &places, ENTRY_SIZE, bitmap_table_entries, err);
    return r;
}

int check_bitmaps(struct qcow2_check *c, struct cairn_error *err)
{
    struct cairn_error why;
    struct qcow2_bitmap *list;
    int r;

    if (!c->hdr.has_bitmaps)
        return CAIRN_OK;
    r = check_refer(c, c->hdr.bitmap_directory_offset, c->hdr.bitmap_directory_size, 1,
                    CLUSTER_BITMAP, QCOW2_CHECK_NO_OFFSET, err);
    if (r != CAIRN_OK)
        return r;
    r = qcow2_bitmaps_read(c->src, &c->hdr, &list, &why);
    if (r != CAIRN_OK)
        return unreadable(c, r, c->hdr.bitmap_directory_offset, &why, err);
    r = refer_bitmaps(c, list, err);
    qcow2_bitmaps_free(list, c->hdr.nb_bitmaps);
    return r;
}
