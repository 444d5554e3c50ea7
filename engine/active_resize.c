/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new virtual size, durable and right at every instant of a power cut.
 *
 * Larger, each step durable before the next:
 *   1. an L1 table with more entries, if the old one has too few: written whole, then the header
 *      names it (with the old size), then the old one is free
 *   2. what tables hold past the old end is taken away, and where what lies beneath may reach past
 *      it, zeros are marked: nothing shows through when the disk gets there
 *   3. the header says the new size.
 * A cut before 3 leaves the disk as it was; what 1 and 2 did lies past its end.
 *
 * Smaller:
 *   1. the header says the new size
 *   2. host clusters past the new end are freed, and the rest of the last one is zeros
 *   3. L2 tables of nothing else are freed; the file is cut when it is closed.
 * A cut before 1 leaves the disk as it was, with all of its data; after it the disk is smaller, and
 * what is not freed yet is out of reach.  It is used space until the disk is resized again, and
 * cannot come back: growing takes it away first.
 *
 * An error before the header says the new size leaves the disk as it was.
 *
 * Nothing else runs on the layer meanwhile, so what is cached of its shape may change.
 */
#include <inttypes.h>
#include <string.h>

#include "active_internal.h"
#include "bytes.h"
#include "checked.h"
#include "cleanup.h"

/* -- The header -------------------------------------------------------------------------------- */

static int put_shape_locked(struct active *a, const struct active_shape *shape,
                            struct cairn_error *err)
{
    struct table_page *page;
    uint8_t *bytes;
    int rc = table_get_locked(a->tables, TABLE_HEADER, 0, &page, err);

    if (rc)
        return rc;
    rc = table_modify_locked(FAULT_AT(a->tables, FAULT_HEADER_SHAPE), page, &bytes, err);
    if (!rc) {
        bytes_put_be64(bytes + QCOW2_HDR_SIZE, shape->virtual_size);
        bytes_put_be64(bytes + QCOW2_HDR_L1_TABLE_OFFSET, shape->l1_off);
        bytes_put_be32(bytes + QCOW2_HDR_L1_SIZE, shape->l1_size);
    }
    table_put_locked(a->tables, page);
    return rc;
}

/* Durably; if that fails, a later flush writes the old shape. */
static int commit_shape_locked(struct active *a, const struct active_shape *shape,
                               const struct active_shape *old, struct cairn_error *err)
{
    int rc = put_shape_locked(a, shape, err);

    if (!rc)
        rc = table_flush_locked(a->tables, err);
    if (rc)
        put_shape_locked(a, old, NULL);
    return rc;
}

/* -- A larger L1 table ------------------------------------------------------------------------- */

static uint64_t l1_clusters(const struct active_shape *shape)
{
    return div_round_up((uint64_t)shape->l1_size * QCOW2_L1E_SIZE, UINT64_C(1)
                                                                       << shape->cluster_bits);
}

static int read_l1_locked(struct active *a, uint8_t *bytes, struct cairn_error *err)
{
    uint64_t len = (uint64_t)a->shape.l1_size * QCOW2_L1E_SIZE;

    for (uint64_t off = 0; off < len; off += TABLE_PAGE_SIZE) {
        struct table_page *page;
        int rc = table_get_locked(a->tables, TABLE_L1, a->shape.l1_off + off, &page, err);

        if (rc)
            return rc;
        memcpy(bytes + off, table_bytes_locked(page), min_u64(TABLE_PAGE_SIZE, len - off));
        table_put_locked(a->tables, page);
    }
    return CAIRN_OK;
}

/* A copy of the L1 table with room for shape's; its clusters are leaked should this fail. */
static int write_l1_locked(struct active *a, struct active_shape *shape, struct cairn_error *err)
{
    uint64_t nr = l1_clusters(shape);
    CLEANUP_FREE uint8_t *bytes = calloc(nr, active_cluster_size(a));
    int rc;

    if (!bytes)
        return error_no_memory(err, "an L1 table");
    rc = read_l1_locked(a, bytes, err);
    if (!rc)
        rc = refcount_alloc_run_locked(a->refcounts, nr, &shape->l1_off, err);
    if (rc)
        return rc;
    table_forget_locked(a->tables, shape->l1_off, nr * active_cluster_size(a));
    pthread_mutex_unlock(&a->lock);
    rc = hostfile_pwrite(FAULT_AT(&a->file, FAULT_RESIZE_L1), bytes, nr * active_cluster_size(a),
                         shape->l1_off, err);
    pthread_mutex_lock(&a->lock);
    table_note_data_locked(a->tables);
    return rc;
}

static int grow_l1_locked(struct active *a, uint64_t nr_entries, struct cairn_error *err)
{
    struct active_shape old = a->shape, larger = a->shape;
    uint64_t old_len = l1_clusters(&old) * active_cluster_size(a);
    int rc;

    larger.l1_size = (uint32_t)nr_entries;
    rc = write_l1_locked(a, &larger, err);
    if (!rc)
        rc = commit_shape_locked(a, &larger, &old, err);
    if (rc)
        return rc;
    a->shape = larger;
    if (old_len == 0) /* there was no table, and its place says nothing */
        return CAIRN_OK;
    table_forget_locked(a->tables, old.l1_off, old_len);
    rc = table_reserve_frees_locked(a->tables, 1, err);
    if (!rc)
        table_free_locked(a->tables, old.l1_off, old_len);
    return rc;
}

/* -- Past the end ------------------------------------------------------------------------------ */

/*
 * Make [from, to) read as zeros, whether it is a part of the disk yet, or still.  Up to
 * beneath_size something may show through; past it zeros need no marks.
 */
static int clear(struct active *a, uint64_t from, uint64_t to, uint64_t beneath_size,
                 struct cairn_error *err)
{
    const struct active_shape shape = a->shape;
    const bool beneath = a->beneath;
    uint64_t marks_end = from;
    int rc = CAIRN_OK;

    if (beneath && beneath_size > from)
        marks_end =
            beneath_size < to ? min_u64(to, round_up(beneath_size, active_cluster_size(a))) : to;
    a->shape.virtual_size = to;
    if (marks_end > from)
        rc = active_zero(a, marks_end - from, from, true, err);
    a->beneath = false;
    if (!rc)
        rc = active_zero(a, to - marks_end, marks_end, true, err);
    a->beneath = beneath;
    a->shape = shape;
    return rc ? rc : active_flush(a, err);
}

/*
 * The last subcluster may end past the end of the disk.  If the layer has nothing of its own there,
 * growing has to complete it with what lies beneath: that can only be done where that can be read.
 */
static int check_last(struct active *a, uint64_t beneath_size, struct cairn_error *err)
{
    uint64_t size = a->shape.virtual_size;
    struct extent run;
    int rc;

    if (!a->beneath || a->backing.pread || beneath_size <= size ||
        is_aligned(size, active_sub_size(a)))
        return CAIRN_OK;
    pthread_mutex_lock(&a->lock);
    rc = l2_get_run_locked(a, size - 1, 1, &run, err);
    pthread_mutex_unlock(&a->lock);
    if (rc || run.kind != EXTENT_HOLE)
        return rc;
    return error_set(err, CAIRN_E_UNSUPPORTED,
                     "%s: the size, %" PRIu64 ", is no multiple of %" PRIu64
                     ", and what lies beneath reaches past it: its last bytes would have to be "
                     "read to grow it",
                     a->file.name, size, active_sub_size(a));
}

static int grow(struct active *a, uint64_t new_size, uint64_t beneath_size, struct cairn_error *err)
{
    uint64_t nr_entries = div_round_up(new_size, active_table_span(a));
    struct active_shape larger;
    int rc = check_last(a, beneath_size, err);

    if (!rc && nr_entries > a->shape.l1_size) {
        SCOPED_LOCK(&a->lock);

        rc = grow_l1_locked(a, nr_entries, err);
    }
    if (!rc)
        rc = clear(a, a->shape.virtual_size, new_size, beneath_size, err);
    if (rc)
        return rc;
    larger = a->shape;
    larger.virtual_size = new_size;
    pthread_mutex_lock(&a->lock);
    rc = commit_shape_locked(a, &larger, &a->shape, err);
    pthread_mutex_unlock(&a->lock);
    if (!rc)
        a->shape = larger;
    return rc;
}

/* Free the L2 tables of L1 entries from first on; they are empty. */
static int drop_tables_locked(struct active *a, uint64_t first, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    for (uint64_t i = first; !rc && i < a->shape.l1_size; i++)
        rc = l2_drop_table_locked(a, i * active_table_span(a), err);
    return rc ? rc : table_flush_locked(a->tables, err);
}

/* What lies past the end: all that tables can hold, also of a larger disk that was cut off. */
static int free_past_end(struct active *a, struct cairn_error *err)
{
    uint64_t span = active_table_span(a);
    uint64_t reach = (uint64_t)a->shape.l1_size * span;
    int rc = clear(a, a->shape.virtual_size, reach, 0, err);

    if (rc)
        return rc;
    SCOPED_LOCK(&a->lock);
    return drop_tables_locked(a, div_round_up(a->shape.virtual_size, span), err);
}

static int shrink(struct active *a, uint64_t new_size, struct cairn_error *err)
{
    struct active_shape smaller = a->shape;
    int rc;

    smaller.virtual_size = new_size;
    pthread_mutex_lock(&a->lock);
    rc = commit_shape_locked(a, &smaller, &a->shape, err);
    pthread_mutex_unlock(&a->lock);
    if (rc)
        return rc;
    a->shape = smaller;
    rc = free_past_end(a, err);
    if (rc)
        return error_prefix(err, rc, "the size is %" PRIu64 " now; freeing what lay past it",
                            new_size);
    return CAIRN_OK;
}

int active_resize(struct active *a, uint64_t new_size, uint64_t beneath_size,
                  struct cairn_error *err)
{
    int rc = active_check_size(new_size, a->shape.cluster_bits, err);

    pthread_mutex_lock(&a->lock);
    if (!rc)
        rc = active_check_writable_locked(a, err);
    pthread_mutex_unlock(&a->lock);
    if (!rc)
        rc = active_flush(a, err);
    if (rc || new_size == a->shape.virtual_size)
        return rc;
    return new_size > a->shape.virtual_size ? grow(a, new_size, beneath_size, err)
                                            : shrink(a, new_size, err);
}
