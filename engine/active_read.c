/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and mapping.
 *
 * A read goes run by run.  Only runs of this layer's own data are registered in flight, for only
 * their host clusters could be given away meanwhile; what lies beneath does not change, so a slow
 * read of it keeps nobody waiting.  Subclusters written in part are completed first.
 */
#include <inttypes.h>
#include <string.h>

#include "active_internal.h"
#include "checked.h"

int active_read_beneath(struct active *a, void *buf, size_t len, uint64_t guest_off,
                        struct cairn_error *err)
{
    int rc;

    if (!a->backing.pread) {
        memset(buf, 0, len);
        return CAIRN_OK;
    }
    rc = a->backing.pread(a->backing.ctx, buf, len, guest_off, err);
    return rc ? error_prefix(err, rc, "beneath %s", a->file.name) : CAIRN_OK;
}

/* Find the run at guest_off; if it is data that could be moved, op is registered.  What was data
 * never falls through again, so op does not stand in line while something is completed. */
static int begin_read(struct active *a, struct inflight_op *op, size_t len, uint64_t guest_off,
                      struct extent *ret_run, struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);

    for (;;) {
        int rc = partial_get_run_locked(a, guest_off, len, ret_run, err);

        if (rc || ret_run->kind != EXTENT_DATA || a->immutable) {
            inflight_leave_locked(&a->inflight, op);
            return rc;
        }
        if (inflight_try_locked(&a->inflight, op, INFLIGHT_READ, guest_off,
                                guest_off + ret_run->len))
            return CAIRN_OK;
        inflight_wait_locked(&a->inflight, &a->lock);
    }
}

static int read_own(struct active *a, struct inflight_op *op, void *buf, const struct extent *run,
                    struct cairn_error *err)
{
    int rc = hostfile_pread(FAULT_AT(&a->file, FAULT_DATA_READ), buf, run->len, run->host_off, err);

    if (op->entered) {
        pthread_mutex_lock(&a->lock);
        inflight_leave_locked(&a->inflight, op);
        pthread_mutex_unlock(&a->lock);
    }
    return rc ? error_prefix(err, rc, "guest offset 0x%" PRIx64, run->guest_off) : CAIRN_OK;
}

/* The first run of the range; *ret_len: how much it was. */
static int read_run(struct active *a, void *buf, size_t len, uint64_t guest_off, size_t *ret_len,
                    struct cairn_error *err)
{
    struct inflight_op op = {.entered = false};
    struct extent run;
    int rc = begin_read(a, &op, len, guest_off, &run, err);

    if (rc)
        return rc;
    *ret_len = (size_t)run.len;
    if (run.kind == EXTENT_DATA)
        return read_own(a, &op, buf, &run, err);
    if (run.kind == EXTENT_HOLE)
        return active_read_beneath(a, buf, *ret_len, guest_off, err);
    memset(buf, 0, *ret_len);
    return CAIRN_OK;
}

int active_pread(struct active *a, void *buf, size_t len, uint64_t guest_off,
                 struct cairn_error *err)
{
    uint8_t *to = buf;
    int rc = active_check_range(a, len, guest_off, err);

    while (!rc && len > 0) {
        size_t n = 0;

        rc = read_run(a, to, len, guest_off, &n, err);
        to += n;
        guest_off += n;
        len -= n;
    }
    return rc;
}

int active_map(struct active *a, uint64_t guest_off, uint64_t len, struct extent *ret_extents,
               size_t max, size_t *ret_nr, struct cairn_error *err)
{
    uint64_t end;
    size_t nr = 0;
    int rc = active_check_range(a, len, guest_off, err);

    if (rc)
        return rc;
    end = round_down(guest_off + len, 512);
    guest_off = round_up(guest_off, 512);
    while (guest_off < end) {
        struct extent run;

        pthread_mutex_lock(&a->lock);
        rc = partial_get_run_locked(a, guest_off, end - guest_off, &run, err);
        pthread_mutex_unlock(&a->lock);
        if (rc)
            return rc;
        if (nr > 0 && extent_mergeable(&ret_extents[nr - 1], &run))
            ret_extents[nr - 1].len += run.len;
        else if (nr == max)
            break;
        else
            ret_extents[nr++] = run;
        guest_off += run.len;
    }
    *ret_nr = nr;
    return CAIRN_OK;
}
