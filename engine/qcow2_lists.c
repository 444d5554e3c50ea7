/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two lists with entries of variable length: internal snapshots and bitmaps
 * (docs/interop/qcow2.rst of QEMU, "Snapshots" and "Bitmaps").
 *
 * They are listed here, no more: a layer's content does not depend on them, and their L1 and bitmap
 * tables are looked at by who follows them (qcow2_scan.c, qcow2_bitmap.c).  Memory is bounded by
 * the limits on a whole table.
 */
#include "qcow2_lists.h"

#include <inttypes.h>
#include <string.h>

#include "bytes.h"

/* A table read from front to back, which must not reach past end. */
struct cursor {
    struct source *src;
    const char *what; /* "snapshot table", for messages */
    uint64_t off, end;
    uint64_t window_off;
    size_t window_len;
    uint8_t window[16384];
};

static int cursor_past_end(const struct cursor *c, uint64_t len, struct cairn_error *err)
{
    return error_set(err, CAIRN_E_CORRUPT,
                     "%s: %" PRIu64 " bytes at 0x%" PRIx64
                     " leave the %s, which ends at 0x%" PRIx64,
                     c->src->name, len, c->off, c->what, c->end);
}

static int cursor_fill(struct cursor *c, struct cairn_error *err)
{
    size_t len = min_u64(sizeof(c->window), c->end - c->off);
    int r;

    c->window_len = 0;
    c->window_off = c->off;
    r = source_pread(c->src, c->window, len, c->off, err);
    if (r == CAIRN_OK)
        c->window_len = len;
    return r;
}

/* Copy len bytes to buf (NULL: skip them). */
static int cursor_take(struct cursor *c, void *buf, uint64_t len, struct cairn_error *err)
{
    uint8_t *to = buf;

    if (!range_in(c->off, len, c->end))
        return cursor_past_end(c, len, err);
    while (to && len > 0) {
        uint64_t at = c->off - c->window_off;
        size_t n;

        if (c->off < c->window_off || at >= c->window_len) {
            int r = cursor_fill(c, err);

            if (r != CAIRN_OK)
                return r;
            at = 0;
        }
        n = min_u64(len, c->window_len - at);
        memcpy(to, c->window + at, n);
        to += n;
        c->off += n;
        len -= n;
    }
    c->off += len;
    return CAIRN_OK;
}

/* A string of len bytes, zero-terminated. */
static int cursor_take_string(struct cursor *c, size_t len, char **ret_str, struct cairn_error *err)
{
    CLEANUP_FREE char *str = malloc(len + 1);
    int r;

    if (!str)
        return error_no_memory(err, c->what);
    r = cursor_take(c, str, len, err);
    if (r != CAIRN_OK)
        return r;
    str[len] = 0;
    *ret_str = steal_ptr(str);
    return CAIRN_OK;
}

/* Entries are padded to 8 bytes; the last one's padding may be missing at the very end. */
static void cursor_pad(struct cursor *c, uint64_t table_off)
{
    c->off = min_u64(table_off + round_up(c->off - table_off, 8), c->end);
}

/* -- Snapshots --------------------------------------------------------------------------------- */

void qcow2_snapshots_free(struct qcow2_snapshot *list, uint32_t nr)
{
    for (uint32_t i = 0; list && i < nr; i++) {
        free(list[i].id);
        free(list[i].name);
    }
    free(list);
}

/* Fields in the extra data replace or add to those of the fixed part, as far as it reaches. */
static int read_snapshot_extra(struct cursor *c, uint32_t len, struct qcow2_snapshot *snap,
                               struct cairn_error *err)
{
    uint8_t extra[QCOW2_SNAPSHOT_EXTRA_MAX];
    int r;

    if (len > sizeof(extra))
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: a snapshot with %" PRIu32 " bytes of extra data, the limit is %zu",
                         c->src->name, len, sizeof(extra));
    r = cursor_take(c, extra, len, err);
    if (r != CAIRN_OK)
        return r;
    if (len >= QCOW2_SNAP_EXTRA_VM_STATE_SIZE + sizeof(uint64_t))
        snap->vm_state_size = bytes_get_be64(extra + QCOW2_SNAP_EXTRA_VM_STATE_SIZE);
    if (len >= QCOW2_SNAP_EXTRA_DISK_SIZE + sizeof(uint64_t))
        snap->disk_size = bytes_get_be64(extra + QCOW2_SNAP_EXTRA_DISK_SIZE);
    return CAIRN_OK;
}

static int read_snapshot(struct cursor *c, const struct qcow2_header *hdr,
                         struct qcow2_snapshot *snap, struct cairn_error *err)
{
    uint8_t b[QCOW2_SNAP_LENGTH];
    int r = cursor_take(c, b, sizeof(b), err);

    if (r != CAIRN_OK)
        return r;
    snap->l1_table_offset = bytes_get_be64(b + QCOW2_SNAP_L1_TABLE_OFFSET);
    snap->l1_size = bytes_get_be32(b + QCOW2_SNAP_L1_SIZE);
    snap->date_sec = bytes_get_be32(b + QCOW2_SNAP_DATE_SEC);
    snap->date_nsec = bytes_get_be32(b + QCOW2_SNAP_DATE_NSEC);
    snap->vm_clock_nsec = bytes_get_be64(b + QCOW2_SNAP_VM_CLOCK_NSEC);
    snap->vm_state_size = bytes_get_be32(b + QCOW2_SNAP_VM_STATE_SIZE32);
    snap->disk_size = hdr->size; /* what QEMU assumes where old images do not say */
    snap->extra_len = bytes_get_be32(b + QCOW2_SNAP_EXTRA_LEN);
    r = read_snapshot_extra(c, snap->extra_len, snap, err);
    if (r == CAIRN_OK)
        r = cursor_take_string(c, bytes_get_be16(b + QCOW2_SNAP_ID_LEN), &snap->id, err);
    if (r == CAIRN_OK)
        r = cursor_take_string(c, bytes_get_be16(b + QCOW2_SNAP_NAME_LEN), &snap->name, err);
    snap->entry_end = c->off;
    return r;
}

int qcow2_snapshots_read(struct source *src, const struct qcow2_header *hdr,
                         struct qcow2_snapshot **ret_list, struct cairn_error *err)
{
    uint64_t off = hdr->snapshots_offset;
    struct cursor c = {.src = src, .what = "snapshot table", .off = off};
    struct qcow2_snapshot *list;
    int r;

    *ret_list = NULL;
    if (hdr->nb_snapshots == 0)
        return CAIRN_OK;
    if (hdr->nb_snapshots > QCOW2_SNAPSHOTS_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: nb_snapshots %" PRIu32 " is above the limit of %d", src->name,
                         hdr->nb_snapshots, QCOW2_SNAPSHOTS_MAX);
    r = qcow2_check_table(src, hdr, c.what, off, (uint64_t)hdr->nb_snapshots * QCOW2_SNAP_LENGTH,
                          err);
    if (r != CAIRN_OK)
        return r;
    c.end = off + min_u64(src->size - off, QCOW2_SNAPSHOT_TABLE_MAX);
    list = calloc(hdr->nb_snapshots, sizeof(*list));
    if (!list)
        return error_no_memory(err, c.what);
    for (uint32_t i = 0; i < hdr->nb_snapshots && r == CAIRN_OK; i++) {
        r = read_snapshot(&c, hdr, &list[i], err);
        cursor_pad(&c, off);
    }
    if (r != CAIRN_OK)
        qcow2_snapshots_free(list, hdr->nb_snapshots);
    else
        *ret_list = list;
    return r;
}

/* -- Bitmaps ----------------------------------------------------------------------------------- */

void qcow2_bitmaps_free(struct qcow2_bitmap *list, uint32_t nr)
{
    for (uint32_t i = 0; list && i < nr; i++)
        free(list[i].name);
    free(list);
}

static int read_bitmap(struct cursor *c, struct qcow2_bitmap *bitmap, struct cairn_error *err)
{
    uint8_t b[QCOW2_BITMAP_LENGTH];
    uint16_t name_len;
    int r = cursor_take(c, b, sizeof(b), err);

    if (r != CAIRN_OK)
        return r;
    bitmap->bitmap_table_offset = bytes_get_be64(b + QCOW2_BITMAP_TABLE_OFFSET);
    bitmap->bitmap_table_size = bytes_get_be32(b + QCOW2_BITMAP_TABLE_SIZE);
    bitmap->flags = bytes_get_be32(b + QCOW2_BITMAP_FLAGS);
    bitmap->type = b[QCOW2_BITMAP_TYPE];
    bitmap->granularity_bits = b[QCOW2_BITMAP_GRANULARITY];
    name_len = bytes_get_be16(b + QCOW2_BITMAP_NAME_LEN);
    if (name_len == 0 || name_len > QCOW2_BITMAP_NAME_MAX)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: a bitmap's name_size %u is not between 1 and %d", c->src->name,
                         name_len, QCOW2_BITMAP_NAME_MAX);
    if (bitmap->granularity_bits > 63)
        return error_set(err, CAIRN_E_CORRUPT, "%s: a bitmap's granularity_bits %u is above 63",
                         c->src->name, bitmap->granularity_bits);
    bitmap->extra_data_size = bytes_get_be32(b + QCOW2_BITMAP_EXTRA_LEN);
    r = cursor_take(c, NULL, bitmap->extra_data_size, err);
    return r == CAIRN_OK ? cursor_take_string(c, name_len, &bitmap->name, err) : r;
}

int qcow2_bitmaps_read(struct source *src, const struct qcow2_header *hdr,
                       struct qcow2_bitmap **ret_list, struct cairn_error *err)
{
    uint64_t off = hdr->bitmap_directory_offset, len = hdr->bitmap_directory_size;
    struct cursor c = {.src = src, .what = "bitmap directory", .off = off};
    struct qcow2_bitmap *list;
    int r;

    *ret_list = NULL;
    if (!hdr->has_bitmaps)
        return CAIRN_OK;
    if (hdr->nb_bitmaps > QCOW2_BITMAPS_MAX || len > QCOW2_BITMAP_DIR_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: %" PRIu32 " bitmaps in a directory of %" PRIu64
                         " bytes are above the limits of %d and %" PRIu64,
                         src->name, hdr->nb_bitmaps, len, QCOW2_BITMAPS_MAX, QCOW2_BITMAP_DIR_MAX);
    if (hdr->nb_bitmaps > len / QCOW2_BITMAP_LENGTH)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: nb_bitmaps %" PRIu32 " do not fit in a directory of %" PRIu64
                         " bytes",
                         src->name, hdr->nb_bitmaps, len);
    r = qcow2_check_table(src, hdr, c.what, off, len, err);
    if (r != CAIRN_OK)
        return r;
    c.end = off + len;
    list = calloc(hdr->nb_bitmaps, sizeof(*list));
    if (!list)
        return error_no_memory(err, c.what);
    for (uint32_t i = 0; i < hdr->nb_bitmaps && r == CAIRN_OK; i++) {
        r = read_bitmap(&c, &list[i], err);
        cursor_pad(&c, off);
    }
    if (r == CAIRN_OK && c.off != c.end)
        r = error_set(err, CAIRN_E_CORRUPT,
                      "%s: %" PRIu64 " bytes are left in the bitmap directory after its %" PRIu32
                      " bitmaps",
                      src->name, c.end - c.off, hdr->nb_bitmaps);
    if (r != CAIRN_OK)
        qcow2_bitmaps_free(list, hdr->nb_bitmaps);
    else
        *ret_list = list;
    return r;
}
