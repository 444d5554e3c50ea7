/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L2 tables: what their entries refer to, and whether their copied bits are right.
 *
 * Tables are collected first, with the number of L1 entries that name them, and walked in the order
 * of the file, once for the active L1 table and once for all snapshots: however many snapshots
 * share a table, its entries are looked at twice, and those of the active tables once more if a
 * copied bit can be wrong.
 */
#include "qcow2_check_internal.h"

#include <inttypes.h>
#include <string.h>

#include "bytes.h"
#include "qcow2_scan.h"

/* -- List of tables ---------------------------------------------------------------------------- */

static int compare_refs(const void *a, const void *b)
{
    const struct l2_ref *x = a, *y = b;

    if (x->host_off != y->host_off)
        return x->host_off < y->host_off ? -1 : 1;
    return (x->l1_index > y->l1_index) - (x->l1_index < y->l1_index);
}

void l2_list_compact(struct l2_list *list)
{
    size_t nr = 0;

    if (list->nr > 0)
        qsort(list->refs, list->nr, sizeof(*list->refs), compare_refs);
    for (size_t i = 0; i < list->nr; i++) {
        if (nr > 0 && list->refs[nr - 1].host_off == list->refs[i].host_off)
            list->refs[nr - 1].nr += list->refs[i].nr;
        else
            list->refs[nr++] = list->refs[i];
    }
    list->nr = nr;
}

/* Grows only if more than half of it are different tables: memory follows their number. */
static int make_room(struct l2_list *list, struct cairn_error *err)
{
    size_t max = list->max ? 2 * list->max : 64;
    struct l2_ref *refs;

    if (list->nr < list->max)
        return CAIRN_OK;
    l2_list_compact(list);
    if (list->nr < list->max / 2)
        return CAIRN_OK;
    refs = realloc(list->refs, max * sizeof(*refs));
    if (!refs)
        return error_no_memory(err, "the list of L2 tables");
    list->refs = refs;
    list->max = max;
    return CAIRN_OK;
}

int l2_list_add(struct l2_list *list, uint64_t host_off, uint64_t nr, uint64_t l1_index,
                struct cairn_error *err)
{
    int r = make_room(list, err);

    if (r == CAIRN_OK)
        list->refs[list->nr++] = (struct l2_ref){host_off, nr, l1_index};
    return r;
}

/* -- Entries ----------------------------------------------------------------------------------- */

/* A table that is walked. */
struct l2_walk {
    const struct l2_ref *ref;
    const uint8_t *bytes;
    bool active;
    uint64_t next_off; /* where the host cluster behind the last one begins; 0: there was none */
};

/* An entry at its place. */
struct l2_entry {
    uint64_t entry, bitmap;
    uint64_t nr; /* referrers of the table */
    uint64_t guest_off;
    bool active;
};

enum l2_kind { L2_UNALLOCATED, L2_ZERO, L2_ALLOCATED, L2_COMPRESSED };

/* As QEMU tells them apart. */
static enum l2_kind entry_kind(const struct qcow2_check *c, uint64_t entry)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK;

    if (entry & QCOW2_OFLAG_COMPRESSED)
        return L2_COMPRESSED;
    if (entry & QCOW2_OFLAG_ZERO && !qcow2_has_extl2(&c->hdr))
        return host_off != 0 ? L2_ALLOCATED : L2_ZERO;
    /* In a data file, offset 0 is as good as any. */
    if (host_off == 0 && !(c->data_file && entry & QCOW2_OFLAG_COPIED))
        return L2_UNALLOCATED;
    return L2_ALLOCATED;
}

static int refer_compressed(struct qcow2_check *c, const struct l2_entry *e,
                            struct cairn_error *err)
{
    unsigned shift = qcow2_compressed_shift(c->hdr.cluster_bits);
    uint64_t host_off = e->entry & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = ((e->entry & (QCOW2_OFLAG_COMPRESSED - 1)) >> shift) + 1;

    if (e->entry & QCOW2_OFLAG_COPIED)
        check_found(c, QCOW2_CHECK_RESERVED, e->nr, host_off, e->guest_off,
                    "a compressed cluster at 0x%" PRIx64 " has the copied bit set", host_off);
    if (c->data_file) {
        check_found(c, QCOW2_CHECK_RESERVED, e->nr, host_off, e->guest_off,
                    "a compressed cluster in an image with a data file");
        return CAIRN_OK;
    }
    if (e->bitmap) {
        check_found(c, QCOW2_CHECK_SUBCLUSTERS, e->nr, host_off, e->guest_off,
                    "a compressed cluster with the subcluster bitmap 0x%016" PRIx64, e->bitmap);
        return CAIRN_OK;
    }
    if (e->active) {
        c->result.allocated_clusters += e->nr;
        c->result.compressed_clusters += e->nr;
        c->result.fragmented_clusters += e->nr; /* by nature, QEMU finds */
    }
    return check_refer(c, host_off,
                       sectors * QCOW2_COMPRESSED_SECTOR - host_off % QCOW2_COMPRESSED_SECTOR,
                       e->nr, CLUSTER_DATA, e->guest_off, err);
}

/* nr_clusters allocated clusters, the first of them at host_off, in the order of the guest. */
static void count_allocated(struct qcow2_check *c, struct l2_walk *walk, uint64_t host_off,
                            uint64_t nr_clusters, bool copied)
{
    if (!walk->active)
        return;
    c->uncopied |= !copied;
    c->result.allocated_clusters += nr_clusters * walk->ref->nr;
    if (walk->next_off && host_off != walk->next_off)
        c->result.fragmented_clusters += walk->ref->nr;
    walk->next_off = host_off + nr_clusters * c->cluster_size;
}

static int refer_allocated(struct qcow2_check *c, struct l2_walk *walk, const struct l2_entry *e,
                           struct cairn_error *err)
{
    uint64_t host_off = e->entry & QCOW2_OFFSET_MASK;

    if (e->bitmap >> 32 & e->bitmap)
        check_found(c, QCOW2_CHECK_SUBCLUSTERS, e->nr, host_off, e->guest_off,
                    "the subcluster bitmap 0x%016" PRIx64 " says data and zeros at once",
                    e->bitmap);
    if (!is_aligned(host_off, c->cluster_size))
        check_found(c, QCOW2_CHECK_UNALIGNED, e->nr, host_off, e->guest_off,
                    "host cluster 0x%" PRIx64 " is not aligned to the cluster size %" PRIu64,
                    host_off, c->cluster_size);
    count_allocated(c, walk, host_off, 1, e->entry & QCOW2_OFLAG_COPIED);
    if (c->data_file)
        return CAIRN_OK;
    return check_refer(c, host_off, c->cluster_size, e->nr, CLUSTER_DATA, e->guest_off, err);
}

static int refer_entry(struct qcow2_check *c, struct l2_walk *walk, const struct l2_entry *e,
                       struct cairn_error *err)
{
    enum l2_kind kind = entry_kind(c, e->entry);

    if (kind == L2_COMPRESSED)
        return refer_compressed(c, e, err);
    if (e->entry & QCOW2_L2E_RESERVED_MASK)
        check_found(c, QCOW2_CHECK_RESERVED, e->nr, e->entry & QCOW2_OFFSET_MASK, e->guest_off,
                    "the L2 entry 0x%016" PRIx64 " has reserved bits set", e->entry);
    if (kind == L2_ALLOCATED)
        return refer_allocated(c, walk, e, err);
    if (kind == L2_UNALLOCATED && e->bitmap & QCOW2_SUB_ALLOC_ALL)
        check_found(c, QCOW2_CHECK_SUBCLUSTERS, e->nr, QCOW2_CHECK_NO_OFFSET, e->guest_off,
                    "the subcluster bitmap 0x%016" PRIx64 " says data, without a host cluster",
                    e->bitmap);
    return CAIRN_OK;
}

/* -- Tables ------------------------------------------------------------------------------------ */

static int report_progress(struct qcow2_check *c, struct cairn_error *err)
{
    c->progress_done += c->cluster_size;
    if (c->options.progress &&
        c->options.progress(c->options.arg, c->progress_done, c->progress_total) != 0)
        return error_set(err, CAIRN_E_CANCELLED, "%s: the check was cancelled", c->src->name);
    return CAIRN_OK;
}

/* Where in the guest's disk entry i of a table stands. */
static uint64_t entry_guest_off(const struct qcow2_check *c, const struct l2_ref *ref, uint64_t i,
                                bool active)
{
    unsigned l2_bits = qcow2_l2_bits(&c->hdr);

    if (!active)
        return QCOW2_CHECK_NO_OFFSET;
    return (ref->l1_index << l2_bits | i) << c->hdr.cluster_bits;
}

static int refer_run(struct qcow2_check *c, struct l2_walk *walk, uint64_t entry, uint64_t nr,
                     uint64_t guest_off, struct cairn_error *err)
{
    uint64_t host_off = entry & QCOW2_OFFSET_MASK;

    count_allocated(c, walk, host_off, nr, entry & QCOW2_OFLAG_COPIED);
    return check_refer_run(c, host_off >> c->hdr.cluster_bits, nr, walk->ref->nr, guest_off, err);
}

static int refer_at(struct qcow2_check *c, struct l2_walk *walk, const uint8_t *at,
                    uint64_t guest_off, struct cairn_error *err)
{
    const struct l2_entry e = {
        .entry = bytes_get_be64(at),
        .bitmap = qcow2_has_extl2(&c->hdr) ? bytes_get_be64(at + QCOW2_L2E_SIZE) : 0,
        .nr = walk->ref->nr,
        .guest_off = guest_off,
        .active = walk->active,
    };

    return e.entry != 0 || e.bitmap != 0 ? refer_entry(c, walk, &e, err) : CAIRN_OK;
}

static int refer_table(struct qcow2_check *c, struct l2_walk *walk, struct cairn_error *err)
{
    uint64_t nr = UINT64_C(1) << qcow2_l2_bits(&c->hdr);
    size_t step = qcow2_l2_entry_size(&c->hdr);
    int r = CAIRN_OK;

    for (uint64_t i = qcow2_empty_run(&c->hdr, walk->bytes, nr); i < nr && r == CAIRN_OK;
         i += qcow2_empty_run(&c->hdr, walk->bytes + i * step, nr - i)) {
        const uint8_t *at = walk->bytes + i * step;
        uint64_t guest_off = entry_guest_off(c, walk->ref, i, walk->active);
        uint64_t run = c->data_file ? 0 : qcow2_data_run(&c->hdr, c->src->size, at, nr - i);

        if (run > 0)
            r = refer_run(c, walk, bytes_get_be64(at), run, guest_off, err);
        else
            r = refer_at(c, walk, at, guest_off, err);
        i += max_u64(run, 1);
    }
    return r;
}

int check_l2_tables(struct qcow2_check *c, const struct l2_list *list, bool active,
                    struct cairn_error *err)
{
    CLEANUP_FREE uint8_t *table = malloc(c->cluster_size);
    int r = table ? CAIRN_OK : error_no_memory(err, "an L2 table");

    for (size_t i = 0; i < list->nr && r == CAIRN_OK; i++) {
        const struct l2_ref *ref = &list->refs[i];
        struct l2_walk walk = {ref, table, active, 0};

        r = source_pread_padded(c->src, table, c->cluster_size, ref->host_off, err);
        if (r == CAIRN_OK)
            r = refer_table(c, &walk, err);
        if (r == CAIRN_OK)
            r = report_progress(c, err);
    }
    return r;
}

/* -- Copied bits ------------------------------------------------------------------------------- */

/* Only the active tables have copied bits that mean something. */
static int copied_entry(struct qcow2_check *c, struct wrong_copied *w, wrong_copied_fn fn,
                        void *arg, struct cairn_error *err)
{
    uint64_t cluster = (w->entry & QCOW2_OFFSET_MASK) >> c->hdr.cluster_bits;
    bool one = true, known = true;
    int r = CAIRN_OK;

    if (w->l1 || !c->data_file)
        r = check_stored_is_one(c, cluster, &one, &known, err);
    if (r != CAIRN_OK || !known || one == !!(w->entry & QCOW2_OFLAG_COPIED))
        return r;
    w->fixed = w->entry ^ QCOW2_OFLAG_COPIED;
    return fn(c, w, arg, err);
}

static int copied_l2_table(struct qcow2_check *c, const struct l2_ref *ref, const uint8_t *table,
                           wrong_copied_fn fn, void *arg, struct cairn_error *err)
{
    int r = CAIRN_OK;

    for (uint64_t i = 0; i < UINT64_C(1) << qcow2_l2_bits(&c->hdr) && r == CAIRN_OK; i++) {
        struct wrong_copied w = {
            .host_off = ref->host_off + i * qcow2_l2_entry_size(&c->hdr),
            .entry = bytes_get_be64(table + i * qcow2_l2_entry_size(&c->hdr)),
            .nr = ref->nr,
            .guest_off = entry_guest_off(c, ref, i, true),
        };

        if (entry_kind(c, w.entry) == L2_ALLOCATED)
            r = copied_entry(c, &w, fn, arg, err);
    }
    return r;
}

static int copied_l1(struct qcow2_check *c, uint64_t first, uint64_t nr, const uint8_t *entries,
                     wrong_copied_fn fn, void *arg, struct cairn_error *err)
{
    int r = CAIRN_OK;

    for (uint64_t i = 0; i < nr && r == CAIRN_OK; i++) {
        struct wrong_copied w = {
            .host_off = c->hdr.l1_table_offset + (first + i) * QCOW2_L1E_SIZE,
            .entry = bytes_get_be64(entries + i * QCOW2_L1E_SIZE),
            .nr = 1,
            .guest_off = (first + i) << (qcow2_l2_bits(&c->hdr) + c->hdr.cluster_bits),
            .l1 = true,
        };

        if (w.entry & QCOW2_OFFSET_MASK)
            r = copied_entry(c, &w, fn, arg, err);
    }
    return r;
}

/* The L1 table in pieces that fit buf, a cluster. */
static int copied_l1_table(struct qcow2_check *c, uint8_t *buf, wrong_copied_fn fn, void *arg,
                           struct cairn_error *err)
{
    uint64_t step = c->cluster_size / QCOW2_L1E_SIZE;
    int r = CAIRN_OK;

    for (uint64_t i = 0; i < c->hdr.l1_size && r == CAIRN_OK; i += step) {
        uint64_t nr = min_u64(step, c->hdr.l1_size - i);

        r = source_pread(c->src, buf, nr * QCOW2_L1E_SIZE,
                         c->hdr.l1_table_offset + i * QCOW2_L1E_SIZE, err);
        if (r == CAIRN_OK)
            r = copied_l1(c, i, nr, buf, fn, arg, err);
    }
    return r;
}

int check_copied(struct qcow2_check *c, wrong_copied_fn fn, void *arg, struct cairn_error *err)
{
    CLEANUP_FREE uint8_t *table = malloc(c->cluster_size);
    int r = table ? copied_l1_table(c, table, fn, arg, err) : error_no_memory(err, "an L2 table");

    for (size_t i = 0; i < c->active_l2.nr && r == CAIRN_OK; i++) {
        const struct l2_ref *ref = &c->active_l2.refs[i];

        /* As QEMU, which asks the table's refcount first. */
        if (cluster_counts_mark(&c->counts, ref->host_off >> c->hdr.cluster_bits) & MARK_UNKNOWN)
            continue;
        r = source_pread_padded(c->src, table, c->cluster_size, ref->host_off, err);
        if (r == CAIRN_OK)
            r = copied_l2_table(c, ref, table, fn, arg, err);
    }
    return r;
}
