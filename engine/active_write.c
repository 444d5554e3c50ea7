/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing.
 *
 * A step writes to one run of host clusters:
 *
 *   begin   look the entries up; register in flight; give clusters that are missing a place.  The
 *           entry names the host cluster from here on, with no subcluster allocated, which means
 *           "falls through" as before.  So any number of writers can fill one cluster at once.
 *   write   without the lock: one pwritev.
 *   end     mark the subclusters as allocated: only now, when the data is in the file, and so in
 *           a batch whose commit makes the data durable before the entry.
 *
 * A first or last subcluster that is written for the first time and in part needs its other bytes,
 * too.  Where it falls through to what lies beneath, they can wait: active_partial.c keeps note of
 * it until it is whole.  Where it reads as zeros, the step writes zeros around its own bytes.
 *
 * A step that only writes its own bytes goes on beside all others (INFLIGHT_WRITE); one that puts
 * zeros around them is alone there (INFLIGHT_CHANGE), because these must not overwrite what another
 * writer has just written.
 *
 * The last subcluster of the disk may reach past its end; the rest is zeros, for good order should
 * the disk ever grow.
 */
#include <inttypes.h>
#include <string.h>

#include "active_internal.h"
#include "checked.h"

/* What completes a subcluster of which only a part is written. */
enum fill {
    FILL_NONE,  /* allocated already, or written as a whole */
    FILL_ZEROS, /* this step does */
    FILL_LATER,
};

struct write_step {
    struct inflight_op op;
    struct table_page *page; /* with the L2 entries; pinned from begin to end */
    uint64_t guest_off, end;
    uint64_t host_off;    /* of guest_off; in begin, while 0: there is no host cluster yet */
    enum fill head, tail; /* how the first and the last subcluster are completed */
    bool marks;           /* does it allocate subclusters? */
};

/* -- Begin ------------------------------------------------------------------------------------- */

static enum fill fill_of(const struct active *a, const struct l2_entry *e, unsigned sub)
{
    if (e->alloc >> sub & 1)
        return FILL_NONE;
    return (e->zero >> sub & 1) || !a->beneath ? FILL_ZEROS : FILL_LATER;
}

/*
 * Look at the entries: the step ends where host clusters stop adjoining, or being missing, and
 * with the page.
 */
static int measure_locked(struct active *a, struct write_step *s, struct cairn_error *err)
{
    uint64_t size = active_cluster_size(a);
    uint64_t end =
        min_u64(s->end, round_down(s->guest_off, active_span_size(a)) + active_span_size(a));
    uint64_t off = s->guest_off;
    struct l2_entry e;
    uint64_t first_host = 0;

    s->head = s->tail = FILL_NONE;
    s->marks = false;
    while (off < end) {
        uint64_t cluster = round_down(off, size);
        uint32_t mask = l2_mask(a, off, end);
        int rc = l2_get_entry_locked(a, s->page, off, &e, err);

        if (rc)
            return rc;
        if (off == s->guest_off) {
            first_host = e.host_off;
            if (off % active_sub_size(a))
                s->head = fill_of(a, &e, active_sub_index(a, off));
        } else if (e.host_off !=
                   (first_host ? first_host + (cluster - round_down(s->guest_off, size)) : 0)) {
            break;
        }
        s->marks |= (e.alloc & mask) != mask;
        off = cluster + size;
        if (off >= end && end % active_sub_size(a))
            s->tail = fill_of(a, &e, active_sub_index(a, end - 1));
    }
    s->end = min_u64(off, end);
    s->host_off = first_host ? first_host + s->guest_off % size : 0;
    return CAIRN_OK;
}

/* Behind the cluster before, where the page shows it: so what is written in sequence lies in
 * sequence. */
static uint64_t goal_locked(struct active *a, const struct write_step *s)
{
    struct l2_entry before;
    uint64_t size = active_cluster_size(a);

    if (s->guest_off % active_span_size(a) < size ||
        l2_get_entry_locked(a, s->page, s->guest_off - size, &before, NULL) || before.host_off == 0)
        return 0;
    return before.host_off + size;
}

/* Give the entries from guest_off on, as far as they still lack one, one of nr clusters each. */
static int place_locked(struct active *a, struct write_step *s, uint64_t host_off, uint64_t nr,
                        uint64_t *ret_used, struct cairn_error *err)
{
    uint64_t off = round_down(s->guest_off, active_cluster_size(a));
    uint64_t used = 0;
    uint8_t *bytes;
    int rc = table_modify_locked(FAULT_AT(a->tables, FAULT_L2_PLACE), s->page, &bytes, err);

    if (rc)
        return rc;
    for (; used < nr; used++, off += active_cluster_size(a)) {
        struct l2_entry e;

        rc = l2_get_entry_locked(a, s->page, off, &e, err);
        if (rc || e.host_off != 0)
            break;
        e.host_off = host_off + (used << a->shape.cluster_bits);
        l2_put_entry(a, bytes, off, &e);
    }
    *ret_used = used;
    return rc;
}

/*
 * Allocate host clusters for the step, as many as there are in a run; the step shrinks to them.
 * Somebody may have placed the first cluster meanwhile: then there is nothing left of the step.
 */
static int allocate_locked(struct active *a, struct write_step *s, struct cairn_error *err)
{
    uint64_t size = active_cluster_size(a);
    uint64_t first = round_down(s->guest_off, size);
    uint64_t host_off, nr, used = 0;
    int rc = l2_alloc_locked(a, div_round_up(s->end - first, size), goal_locked(a, s), &host_off,
                             &nr, err);

    if (rc)
        return rc;
    rc = place_locked(a, s, host_off, nr, &used, err);
    if (used < nr) {
        int released = refcount_release_locked(a->refcounts, host_off + used * size,
                                               (nr - used) * size, rc ? NULL : err);

        rc = rc ? rc : released;
    }
    if (rc)
        return rc;
    if (first + used * size < s->end) {
        s->end = max_u64(s->guest_off, first + used * size);
        s->tail = FILL_NONE;
        inflight_shrink_locked(&a->inflight, &s->op, max_u64(s->end, s->op.start));
    }
    s->host_off = host_off + (s->guest_off - first);
    return CAIRN_OK;
}

/* Look, and register once nobody is in the way. */
static int enter_locked(struct active *a, struct write_step *s, struct cairn_error *err)
{
    uint64_t wanted_end = s->end;

    for (;;) {
        bool alone;
        int rc = active_check_writable_locked(a, err);

        if (!rc)
            rc = l2_get_page_locked(a, s->guest_off, true, &s->page, err);
        s->end = wanted_end;
        if (!rc)
            rc = measure_locked(a, s, err);
        if (rc)
            return rc;
        alone = s->head == FILL_ZEROS || s->tail == FILL_ZEROS;
        if (inflight_try_locked(&a->inflight, &s->op, alone ? INFLIGHT_CHANGE : INFLIGHT_WRITE,
                                round_down(s->guest_off, active_sub_size(a)),
                                round_up(s->end, active_sub_size(a))))
            return CAIRN_OK;
        table_put_locked(a->tables, steal_ptr(s->page));
        inflight_wait_locked(&a->inflight, &a->lock);
    }
}

static void leave_locked(struct active *a, struct write_step *s)
{
    inflight_leave_locked(&a->inflight, &s->op);
    table_put_locked(a->tables, steal_ptr(s->page));
}

static int begin_write(struct active *a, struct write_step *s, struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);
    int rc = CAIRN_OK;

    if (!is_aligned(s->guest_off | s->end, active_sub_size(a)))
        rc = partial_make_room_locked(a, err);
    if (!rc)
        rc = enter_locked(a, s, err);
    if (!rc && s->host_off == 0)
        rc = allocate_locked(a, s, err);
    if (rc || s->end == s->guest_off)
        leave_locked(a, s);
    return rc;
}

/* -- Write ------------------------------------------------------------------------------------- */

static int write_data(struct active *a, const struct write_step *s, const void *buf,
                      struct cairn_error *err)
{
    static uint8_t zeros[1 << (QCOW2_CLUSTER_BITS_MAX - QCOW2_SUBCLUSTER_BITS)]; /* they stay so */
    uint64_t sub = active_sub_size(a);
    uint64_t head_len = s->head == FILL_ZEROS ? s->guest_off % sub : 0;
    uint64_t tail_len = s->tail == FILL_ZEROS ? round_up(s->end, sub) - s->end : 0;
    struct iovec iov[3] = {
        {zeros, head_len},
        {.iov_len = s->end - s->guest_off},
        {zeros, tail_len},
    };
    int first = head_len > 0 ? 0 : 1;
    int rc;

    memcpy(&iov[1].iov_base, &buf, sizeof(buf)); /* not written to; iovec cannot say so */
    rc = hostfile_pwritev(FAULT_AT(&a->file, FAULT_DATA_WRITE), iov + first,
                          (tail_len > 0 ? 3 : 2) - first, s->host_off - head_len, err);
    return rc ? error_prefix(err, rc, "guest offset 0x%" PRIx64, s->guest_off) : CAIRN_OK;
}

/* -- End --------------------------------------------------------------------------------------- */

/* [guest_off, end) of one subcluster is in the file: is it whole now? */
static int note_part_locked(struct active *a, const struct write_step *s, uint64_t guest_off,
                            uint64_t end, bool *ret_whole, struct cairn_error *err)
{
    struct l2_entry e;
    int rc = l2_get_entry_locked(a, s->page, guest_off, &e, err);

    *ret_whole = true;
    if (rc || fill_of(a, &e, active_sub_index(a, guest_off)) == FILL_NONE)
        return rc; /* another writer has brought the rest */
    return partial_note_locked(a, guest_off, end, ret_whole, err);
}

/* Take from [*from, *to) the first and the last subcluster, if they are not whole yet. */
static int note_parts_locked(struct active *a, const struct write_step *s, uint64_t *from,
                             uint64_t *to, struct cairn_error *err)
{
    uint64_t first_end = round_down(s->guest_off, active_sub_size(a)) + active_sub_size(a);
    uint64_t last = round_down(s->end - 1, active_sub_size(a));
    bool one = last < first_end, whole = true;
    int rc = CAIRN_OK;

    if (s->head == FILL_LATER || (one && s->tail == FILL_LATER)) {
        rc = note_part_locked(a, s, s->guest_off, min_u64(first_end, s->end), &whole, err);
        if (!whole)
            *from = first_end;
    }
    if (!rc && !one && s->tail == FILL_LATER) {
        rc = note_part_locked(a, s, last, s->end, &whole, err);
        if (!whole)
            *to = last;
    }
    return rc;
}

static int mark_locked(struct active *a, const struct write_step *s, struct cairn_error *err)
{
    uint64_t from = s->guest_off, to = s->end;
    uint8_t *bytes;
    int rc = note_parts_locked(a, s, &from, &to, err);

    if (rc || from >= to)
        return rc;
    rc = table_modify_locked(FAULT_AT(a->tables, FAULT_L2_MARK), s->page, &bytes, err);
    for (uint64_t off = from; !rc && off < to;
         off = round_down(off, active_cluster_size(a)) + active_cluster_size(a)) {
        uint32_t mask = l2_mask(a, off, to);
        struct l2_entry e;

        rc = l2_get_entry_locked(a, s->page, off, &e, err);
        if (rc)
            break;
        e.alloc |= mask;
        e.zero &= ~mask;
        l2_put_entry(a, bytes, off, &e);
    }
    if (!rc)
        partial_forget_locked(a, from, to);
    return rc;
}

/* rc: how the write went.  What was written in part counts too: a flush makes it durable. */
static int end_write(struct active *a, struct write_step *s, int rc, struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);

    table_note_data_locked(a->tables);
    if (!rc && s->marks)
        rc = mark_locked(a, s, err);
    leave_locked(a, s);
    return rc;
}

int active_pwrite(struct active *a, const void *buf, size_t len, uint64_t guest_off,
                  struct cairn_error *err)
{
    const uint8_t *from = buf;
    uint64_t end = guest_off + len;
    int rc = active_check_range(a, len, guest_off, err);

    while (!rc && guest_off < end) {
        struct write_step s = {.guest_off = guest_off, .end = end};

        rc = begin_write(a, &s, err);
        if (rc || s.end == guest_off)
            continue;
        rc = end_write(a, &s, write_data(a, &s, from, err), err);
        from += s.end - guest_off;
        guest_off = s.end;
    }
    return rc;
}
