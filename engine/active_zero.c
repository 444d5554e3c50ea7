/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zeroing and discarding: metadata only, except for parts of subclusters, which are written.
 *
 * A step changes the entries of one page at once, under the lock, after whoever is in the way has
 * left.  Where that takes a host cluster away, it waits for readers too; the cluster is free again
 * only after the change is durable (table_free_locked).
 *
 * Where nothing lies beneath the layer, a hole reads as zeros: then nothing is marked that has no
 * host cluster, and where there is no L2 table, none is made.  Where something lies beneath, it is
 * asked, before an L2 table is made and filled with marks, whether there is anything to hide.
 */
#include "active_internal.h"
#include "checked.h"

/* Of zeros that are worth asking what lies beneath, which may have to fetch its index: guests and
 * NBD clients ask for large ranges in pieces of 32 MiB and more. */
#define ASK_MIN (UINT64_C(1) << 20)

struct zero_step {
    struct inflight_op op;
    uint64_t guest_off, end; /* whole subclusters; the disk's last cluster counts to its full end */
    bool may_unmap;
    struct table_page *page;
    bool changes; /* is there anything to do? */
    size_t nr_freed;
};

/* What e becomes when the subclusters of mask are zeros. */
static struct l2_entry zeroed(const struct active *a, const struct zero_step *s, struct l2_entry e,
                              uint32_t mask)
{
    if (s->may_unmap && mask == UINT32_MAX)
        e.host_off = 0;
    e.alloc &= ~mask;
    if (a->beneath || e.host_off != 0)
        e.zero |= mask;
    else
        e.zero &= ~mask;
    return e;
}

static uint64_t next_cluster(const struct active *a, uint64_t guest_off)
{
    return round_down(guest_off, active_cluster_size(a)) + active_cluster_size(a);
}

/* What will have to be done? */
static int plan_locked(struct active *a, struct zero_step *s, struct cairn_error *err)
{
    s->changes = false;
    s->nr_freed = 0;
    for (uint64_t off = s->guest_off; off < s->end; off = next_cluster(a, off)) {
        struct l2_entry e, z;
        int rc = l2_get_entry_locked(a, s->page, off, &e, err);

        if (rc)
            return rc;
        z = zeroed(a, s, e, l2_mask(a, off, s->end));
        s->nr_freed += z.host_off != e.host_off;
        s->changes |= z.host_off != e.host_off || z.alloc != e.alloc || z.zero != e.zero;
    }
    return CAIRN_OK;
}

static int apply_locked(struct active *a, struct zero_step *s, struct cairn_error *err)
{
    uint8_t *bytes;
    int rc = table_reserve_frees_locked(a->tables, s->nr_freed, err);

    if (!rc)
        rc = table_modify_locked(FAULT_AT(a->tables, FAULT_L2_ZERO), s->page, &bytes, err);
    for (uint64_t off = s->guest_off; !rc && off < s->end; off = next_cluster(a, off)) {
        struct l2_entry e, z;

        rc = l2_get_entry_locked(a, s->page, off, &e, err);
        if (rc)
            break;
        z = zeroed(a, s, e, l2_mask(a, off, s->end));
        l2_put_entry(a, bytes, off, &z);
        if (z.host_off != e.host_off)
            table_free_locked(a->tables, e.host_off, active_cluster_size(a));
    }
    if (!rc)
        partial_forget_locked(a, s->guest_off, s->end);
    return rc;
}

static bool try_enter_locked(struct active *a, struct zero_step *s)
{
    if (s->nr_freed == 0)
        return inflight_try_locked(&a->inflight, &s->op, INFLIGHT_CHANGE, s->guest_off, s->end);
    return inflight_try_locked(&a->inflight, &s->op, INFLIGHT_FREE,
                               round_down(s->guest_off, active_cluster_size(a)),
                               round_up(s->end, active_cluster_size(a)));
}

/* The page stays pinned; NULL: there is no table, and none is needed. */
static int zero_page_locked(struct active *a, struct zero_step *s, struct cairn_error *err)
{
    int rc = active_check_writable_locked(a, err);

    while (!rc) {
        rc = l2_get_page_locked(a, s->guest_off, a->beneath, &s->page, err);
        if (rc || !s->page)
            break;
        rc = plan_locked(a, s, err);
        if (rc || !s->changes)
            break;
        if (try_enter_locked(a, s)) {
            rc = apply_locked(a, s, err);
            break;
        }
        table_put_locked(a->tables, steal_ptr(s->page));
        inflight_wait_locked(&a->inflight, &a->lock);
        rc = active_check_writable_locked(a, err);
    }
    inflight_leave_locked(&a->inflight, &s->op);
    return rc;
}

static int zero_step(struct active *a, struct zero_step *s, struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);
    uint64_t end = s->end;
    int rc;

    s->end = min_u64(end, round_down(s->guest_off, active_span_size(a)) + active_span_size(a));
    if (table_frees_pressing_locked(a->tables)) {
        rc = table_flush_locked(a->tables, err);
        if (rc)
            return rc;
    }
    rc = zero_page_locked(a, s, err);
    if (!rc && !s->page) /* no table, and none needed */
        s->end =
            min_u64(end, round_down(s->guest_off, active_table_span(a)) + active_table_span(a));
    table_put_locked(a->tables, steal_ptr(s->page));
    return rc;
}

/* Is [guest_off, end), as far as it belongs to the disk, zeros beneath?  No, if that cannot be
 * told: then *ask is false, for asking again may take as long again. */
static bool zeros_beneath(struct active *a, uint64_t guest_off, uint64_t end, bool *ask)
{
    end = min_u64(end, a->shape.virtual_size);
    while (guest_off < end) {
        struct extent e;

        if (a->backing.map_one(a->backing.ctx, guest_off, end - guest_off, &e, NULL)) {
            *ask = false;
            return false;
        }
        if (!extent_reads_zero(e.kind))
            return false;
        guest_off += e.len;
    }
    return true;
}

/* Is there no L2 table at guest_off?  Ranges that need little of one are not looked at. */
static int lacks_table(struct active *a, uint64_t guest_off, uint64_t end, bool *ret_lacks,
                       struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);
    struct table_page *page = NULL;
    int rc = active_check_writable_locked(a, err);

    *ret_lacks = false;
    if (rc || end - guest_off < ASK_MIN)
        return rc;
    rc = l2_get_page_locked(a, guest_off, false, &page, err);
    *ret_lacks = !page;
    table_put_locked(a->tables, page);
    return rc;
}

/* Whole subclusters. */
static int zero_whole(struct active *a, uint64_t guest_off, uint64_t end, bool may_unmap,
                      struct cairn_error *err)
{
    bool ask = a->beneath && a->backing.map_one;

    while (guest_off < end) {
        struct zero_step s = {.guest_off = guest_off, .end = end, .may_unmap = may_unmap};
        uint64_t table_end =
            min_u64(end, round_down(guest_off, active_table_span(a)) + active_table_span(a));
        bool lacks = false;
        int rc = ask ? lacks_table(a, guest_off, table_end, &lacks, err) : CAIRN_OK;

        if (!rc && lacks && zeros_beneath(a, guest_off, table_end, &ask))
            s.end = table_end;
        else if (!rc)
            rc = zero_step(a, &s, err);
        if (rc)
            return rc;
        guest_off = s.end;
    }
    return CAIRN_OK;
}

/* A part of one subcluster: written, unless it reads as zeros already. */
static int zero_part(struct active *a, uint64_t guest_off, uint64_t end, struct cairn_error *err)
{
    static const uint8_t zeros[1 << (QCOW2_CLUSTER_BITS_MAX - QCOW2_SUBCLUSTER_BITS)];
    struct extent run;
    int rc;

    if (guest_off >= end)
        return CAIRN_OK;
    pthread_mutex_lock(&a->lock);
    rc = l2_get_run_locked(a, guest_off, end - guest_off, &run, err);
    pthread_mutex_unlock(&a->lock);
    if (rc)
        return rc;
    if (run.kind == EXTENT_DATA || (run.kind == EXTENT_HOLE && a->beneath))
        return active_pwrite(a, zeros, end - guest_off, guest_off, err);
    pthread_mutex_lock(&a->lock);
    rc = active_check_writable_locked(a, err);
    pthread_mutex_unlock(&a->lock);
    return rc;
}

/* Where a range that ends with the disk ends in whole units. */
static uint64_t end_in(const struct active *a, uint64_t end, uint64_t unit)
{
    return end == a->shape.virtual_size ? round_up(end, unit) : round_down(end, unit);
}

int active_zero(struct active *a, uint64_t len, uint64_t guest_off, bool may_unmap,
                struct cairn_error *err)
{
    uint64_t sub = active_sub_size(a);
    uint64_t end = guest_off + len;
    uint64_t first = round_up(guest_off, sub);
    uint64_t last = end_in(a, end, sub);
    int rc = active_check_range(a, len, guest_off, err);

    if (rc)
        return rc;
    if (first >= end || first >= last)
        last = first; /* nothing but parts */
    rc = zero_part(a, guest_off, min_u64(first, end), err);
    if (!rc && first < last) /* the disk's last cluster is freed as a whole, though the disk may end
                                within it */
        rc = zero_whole(a, first, max_u64(last, end_in(a, end, active_cluster_size(a))), may_unmap,
                        err);
    return rc ? rc : zero_part(a, last, end, err);
}

int active_discard(struct active *a, uint64_t len, uint64_t guest_off, struct cairn_error *err)
{
    int rc = active_check_range(a, len, guest_off, err);

    if (rc)
        return rc;
    return zero_whole(a, round_up(guest_off, active_cluster_size(a)),
                      end_in(a, guest_off + len, active_cluster_size(a)), true, err);
}
