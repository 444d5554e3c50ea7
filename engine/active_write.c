/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing, with copy-on-write of what is less than a subcluster.
 *
 * A step writes to one run of host clusters:
 *
 *   begin   look the entries up; register in flight; give clusters that are missing a place.  The
 *           entry names the host cluster from here on, with no subcluster allocated, which means
 *           "falls through" as before.  So any number of writers can fill one cluster at once.
 *   write   without the lock: complete the first and last subcluster with what is there so far,
 *           if they are written for the first time and in part; one pwritev.
 *   end     mark the subclusters as allocated: only now, when the data is in the file, and so in
 *           a batch whose commit makes the data durable before the entry.
 *
 * A step that only writes to allocated subclusters, or to whole ones, goes on beside all others
 * (INFLIGHT_WRITE); one that completes subclusters is alone there (INFLIGHT_CHANGE), because the
 * older bytes it puts around its own must not overwrite what another writer has just written.
 *
 * The last subcluster of the disk may reach past its end; the rest is zeros, for good order should
 * the disk ever grow.
 */
#include <inttypes.h>
#include <string.h>

#include "active_internal.h"
#include "checked.h"

#define SMALL_SUB 4096 /* subclusters up to this size are completed without an allocation */

/* What completes a subcluster of which only a part is written. */
enum fill {
    FILL_NONE, /* allocated already */
    FILL_ZEROS,
    FILL_BENEATH,
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
    return (e->zero >> sub & 1) || !a->beneath ? FILL_ZEROS : FILL_BENEATH;
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
    int rc = refcount_alloc_locked(a->refcounts, div_round_up(s->end - first, size),
                                   goal_locked(a, s), &host_off, &nr, err);

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
        alone = s->head != FILL_NONE || s->tail != FILL_NONE;
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
    int rc = enter_locked(a, s, err);

    if (!rc && s->host_off == 0)
        rc = allocate_locked(a, s, err);
    if (rc || s->end == s->guest_off)
        leave_locked(a, s);
    return rc;
}

/* -- Write ------------------------------------------------------------------------------------- */

/* The bytes at [guest_off, guest_off + len) so far, for the layer has none of its own there. */
static int complete(struct active *a, enum fill fill, uint8_t *buf, uint64_t len,
                    uint64_t guest_off, struct cairn_error *err)
{
    uint64_t inside =
        guest_off < a->shape.virtual_size ? min_u64(len, a->shape.virtual_size - guest_off) : 0;

    if (fill != FILL_BENEATH || !a->backing.pread)
        inside = 0;
    memset(buf + inside, 0, len - inside);
    if (inside == 0)
        return CAIRN_OK;
    atomic_fetch_add(&a->backing_bytes, inside);
    return active_read_beneath(a, buf, inside, guest_off, err);
}

/* The parts of the first and last subcluster around the step's own bytes: empty if it is aligned,
 * or if those subclusters are allocated. */
struct surroundings {
    uint64_t head_len, tail_len;
    uint8_t *head, *tail;
    uint8_t small[2 * SMALL_SUB];
    uint8_t *large; /* owned */
};

static int read_surroundings(struct active *a, const struct write_step *s,
                             struct surroundings *around, struct cairn_error *err)
{
    uint64_t sub = active_sub_size(a);
    uint64_t head_off = round_down(s->guest_off, sub);
    bool one = head_off == round_down(s->end - 1, sub);
    int rc;

    around->head_len = s->head != FILL_NONE ? s->guest_off - head_off : 0;
    around->tail_len = s->tail != FILL_NONE ? round_up(s->end, sub) - s->end : 0;
    if (around->head_len + around->tail_len == 0)
        return CAIRN_OK;
    if (sub > SMALL_SUB) {
        around->large = malloc(2 * sub);
        if (!around->large)
            return error_no_memory(err, "a subcluster");
    }
    around->head = around->large ? around->large : around->small;
    around->tail = around->head + sub;
    if (one && around->head_len > 0 && around->tail_len > 0) {
        /* One request for both; from beneath that is what costs. */
        around->tail = around->head + (s->end - head_off);
        return complete(a, s->head, around->head, sub, head_off, err);
    }
    rc = complete(a, s->head, around->head, around->head_len, head_off, err);
    return rc ? rc : complete(a, s->tail, around->tail, around->tail_len, s->end, err);
}

static int write_out(struct active *a, const struct write_step *s, const void *buf,
                     struct surroundings *around, struct cairn_error *err)
{
    struct iovec iov[3] = {
        {around->head, around->head_len},
        {.iov_len = s->end - s->guest_off},
        {around->tail, around->tail_len},
    };
    int first = around->head_len > 0 ? 0 : 1;
    int rc;

    memcpy(&iov[1].iov_base, &buf, sizeof(buf)); /* not written to; iovec cannot say so */
    rc = hostfile_pwritev(FAULT_AT(&a->file, FAULT_DATA_WRITE), iov + first,
                          (around->tail_len > 0 ? 3 : 2) - first, s->host_off - around->head_len,
                          err);
    return rc ? error_prefix(err, rc, "guest offset 0x%" PRIx64, s->guest_off) : CAIRN_OK;
}

static int write_data(struct active *a, const struct write_step *s, const void *buf,
                      struct cairn_error *err)
{
    struct surroundings around;
    int rc;

    around.large = NULL;
    rc = read_surroundings(a, s, &around, err);
    if (!rc)
        rc = write_out(a, s, buf, &around, err);
    free(around.large);
    return rc;
}

/* -- End --------------------------------------------------------------------------------------- */

static int mark_locked(struct active *a, const struct write_step *s, struct cairn_error *err)
{
    uint8_t *bytes;
    int rc = table_modify_locked(FAULT_AT(a->tables, FAULT_L2_MARK), s->page, &bytes, err);

    for (uint64_t off = s->guest_off; !rc && off < s->end;
         off = round_down(off, active_cluster_size(a)) + active_cluster_size(a)) {
        uint32_t mask = l2_mask(a, off, s->end);
        struct l2_entry e;

        rc = l2_get_entry_locked(a, s->page, off, &e, err);
        if (rc)
            break;
        e.alloc |= mask;
        e.zero &= ~mask;
        l2_put_entry(a, bytes, off, &e);
    }
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
