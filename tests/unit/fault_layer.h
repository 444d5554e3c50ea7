/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An active layer that works under a fault plan, in a child process, and an oracle of what it may
 * hold: for each sector the set of values, value v as bit v, that a read may return now, and that
 * may be there after a crash.  An operation that fails leaves both the old value and the new one
 * possible; a flush makes what is now what will be.
 *
 * Operations succeed, or fail as the plan says and in words that say what and where; then all of
 * the layer is read.  Whatever is not as it should be ends the child, and the reason is in `said`.
 */
#ifndef TESTS_UNIT_FAULT_LAYER_H
#define TESTS_UNIT_FAULT_LAYER_H

#include "fault_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "active_internal.h"
#include "bytes.h"
#include "checked.h"

#define IMAGE      "swept.qcow2"
#define SEALED     "sealed.qcow2"
#define SECTOR     ((uint64_t)512)
#define KIB        UINT64_C(1024)
#define WINDOW     (512 * KIB) /* the work is done in two windows, below two L2 tables */
#define NR_SECTORS (2 * WINDOW / SECTOR)
#define SIZE_AT    NR_SECTORS /* behind the sectors: which of the sizes the disk may have */
#define BENEATH    62         /* the value of what lies beneath; the layer's own are smaller */
#define FAILED     1          /* exit status */

static const struct digest parent_id = {{0xfa, 0x17}};

/* What parent and child see both. */
struct shared {
    struct fault_plan plan;
    uint64_t now[NR_SECTORS + 1];   /* what a read may return */
    uint64_t later[NR_SECTORS + 1]; /* what may be there after a crash */
    uint32_t version;               /* the last value given */
    bool created;
    unsigned cluster_bits; /* of the layer */
    uint64_t corruptions;  /* that the scenario begins with */
    char said[1024];       /* by a child that failed */
};

static struct shared *shared;
static struct cairn_error err; /* of the operation at hand */

static inline __attribute__((format(printf, 1, 2), noreturn)) void complain(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(shared->said, sizeof(shared->said), fmt, ap);
    va_end(ap);
    _exit(FAILED);
}

/* -- The oracle -------------------------------------------------------------------------------- */

/* Far enough from each other for an L2 table each. */
static inline uint64_t window_off(unsigned nr)
{
    return nr * (UINT64_C(1) << (2 * shared->cluster_bits - 4));
}

enum size { WITH_BOTH, WITHOUT_WINDOW_1, OF_TWO_L1_CLUSTERS, NR_SIZES };

static inline uint64_t disk_size(enum size size)
{
    const uint64_t sizes[NR_SIZES] = {
        [WITH_BOTH] = window_off(1) + WINDOW,
        [WITHOUT_WINDOW_1] = WINDOW + 5 * SECTOR,
        [OF_TWO_L1_CLUSTERS] =
            window_off(1) * ((UINT64_C(1) << shared->cluster_bits) / QCOW2_L1E_SIZE + 1),
    };

    return sizes[size];
}

static inline size_t sector_index(unsigned window, uint64_t off)
{
    return (size_t)((window * WINDOW + off) / SECTOR);
}

static inline void fill(uint8_t *to, size_t sector, uint32_t version)
{
    for (size_t i = 0; i < SECTOR / 8; i++)
        bytes_put_be64(to + 8 * i, version ? (uint64_t)version << 32 | sector << 8 | i : 0);
}

/* What lies beneath. */
static inline int read_beneath(void *ctx, void *buf, size_t len, uint64_t guest_off,
                               struct cairn_error *e)
{
    uint8_t *to = buf;

    (void)ctx, (void)e;
    memset(buf, 0, len);
    for (size_t done = 0; done < len;) {
        uint64_t off = guest_off + done;
        uint64_t in_window = off % window_off(1);
        size_t nr = (size_t)min_u64(len - done, SECTOR - off % SECTOR);
        uint8_t sector[SECTOR];

        if (off < disk_size(WITH_BOTH) && in_window < WINDOW) {
            fill(sector, sector_index(off >= window_off(1), in_window), BENEATH);
            memcpy(to + done, sector + off % SECTOR, nr);
        }
        done += nr;
    }
    return CAIRN_OK;
}

static inline void may_become(size_t first, size_t nr, uint32_t version)
{
    for (size_t i = first; i < first + nr; i++) {
        shared->now[i] |= UINT64_C(1) << version;
        shared->later[i] |= UINT64_C(1) << version;
    }
}

static inline void has_become(size_t first, size_t nr, uint32_t version)
{
    for (size_t i = first; i < first + nr; i++)
        shared->now[i] = UINT64_C(1) << version;
}

static inline void is_durable(void)
{
    memcpy(shared->later, shared->now, sizeof(shared->later));
}

static inline void after_crash(void)
{
    memcpy(shared->now, shared->later, sizeof(shared->now));
}

static inline void compare_window(const uint8_t *bytes, unsigned window, const uint64_t *may,
                                  const char *when)
{
    for (size_t i = 0; i < WINDOW / SECTOR; i++) {
        const uint8_t *at = bytes + i * SECTOR;
        size_t sector = sector_index(window, i * SECTOR);
        uint32_t version = (uint32_t)(bytes_get_be64(at) >> 32);
        uint8_t expected[SECTOR];

        fill(expected, sector, version);
        if (version > 63 || memcmp(at, expected, SECTOR) != 0 || !(may[sector] >> version & 1))
            complain("%s: sector %zu holds version %" PRIu32 ", allowed are those of 0x%" PRIx64,
                     when, sector, version, may[sector]);
    }
}

static inline enum size size_of(const struct active *a)
{
    for (enum size size = 0; size < NR_SIZES; size++)
        if (disk_size(size) == active_virtual_size(a))
            return size;
    complain("the size is %" PRIu64, active_virtual_size(a));
}

static inline unsigned nr_windows(const struct active *a)
{
    return size_of(a) == WITHOUT_WINDOW_1 ? 1 : 2;
}

/* Read everything, without faults. */
static inline void look(struct active *a, const char *when)
{
    static uint8_t bytes[WINDOW];
    bool off = shared->plan.off;

    shared->plan.off = true;
    if (!(shared->now[SIZE_AT] >> size_of(a) & 1))
        complain("%s: the size is %" PRIu64, when, active_virtual_size(a));
    for (unsigned window = 0; window < nr_windows(a); window++) {
        if (active_pread(a, bytes, WINDOW, window_off(window), &err))
            complain("%s: reading fails: %s", when, err.message);
        compare_window(bytes, window, shared->now, when);
    }
    shared->plan.off = off;
}

/* -- Operations -------------------------------------------------------------------------------- */

static inline bool refuses_changes(void)
{
    return shared->plan.sync_failed && shared->plan.point >= FAULT_SYNC_BEFORE_REFTABLE &&
           shared->plan.point <= FAULT_SYNC_LAST;
}

/* How an operation went, which has left its error in err. */
static inline bool succeeded(const char *what, int rc)
{
    static unsigned nr_fired; /* when it began: when the one before had ended */
    const struct fault_plan *plan = &shared->plan;
    bool over = !plan->from_then_on && nr_fired > 0;
    int sys_errno = plan->action == ACTION_EIO ? EIO : ENOSPC;
    int code = plan->action == ACTION_EIO ? CAIRN_E_IO : CAIRN_E_NO_SPACE;

    nr_fired = plan->nr_fired;
    if (rc == CAIRN_OK)
        return true;
    if (plan->nr_fired == 0)
        complain("%s fails without a fault: %s", what, err.message);
    if (over && !refuses_changes())
        complain("%s fails when the fault is over: %s", what, err.message);
    if (rc != code && !(refuses_changes() && rc == CAIRN_E_IO))
        complain("%s fails with code %d, expected %d: %s", what, rc, code, err.message);
    if (!strstr(err.message, strerror(sys_errno)) ||
        !(strstr(err.message, IMAGE) || strstr(err.message, SEALED) ||
          plan->point == FAULT_CREATE_SYNC_FOLDER))
        complain("%s does not say what and where: %s", what, err.message);
    return false;
}

/* A change of the handle, and what it was given. */
static inline void changed(struct active *a, const char *what, bool ok)
{
    if (ok && refuses_changes())
        complain("%s succeeds after a failed sync", what);
    if (!ok)
        look(a, what);
}

static inline void put(struct active *a, unsigned window, uint64_t off, uint64_t len)
{
    static uint8_t bytes[WINDOW];
    size_t first = sector_index(window, off), nr = (size_t)(len / SECTOR);
    uint32_t version = ++shared->version;
    bool ok;

    if (version >= BENEATH)
        complain("too many versions for the oracle");
    for (size_t i = 0; i < nr; i++)
        fill(bytes + i * SECTOR, first + i, version);
    may_become(first, nr, version);
    ok = succeeded("write", active_pwrite(a, bytes, (size_t)len, window_off(window) + off, &err));
    if (ok)
        has_become(first, nr, version);
    changed(a, "write", ok);
}

/* One that has to fail at a point of its own. */
static inline void put_in_vain(struct active *a, enum fault_point obstacle)
{
    static uint8_t bytes[SECTOR]; /* zeros */
    int rc;

    shared->plan.obstacle = obstacle;
    may_become(sector_index(1, 0), 1, 0);
    rc = active_pwrite(a, bytes, sizeof(bytes), window_off(1), &err);
    shared->plan.obstacle = FAULT_NONE;
    if (rc == CAIRN_OK)
        complain("write succeeds past %s", fault_name(obstacle));
    look(a, "write in vain");
}

static inline void zero(struct active *a, unsigned window, uint64_t off, uint64_t len,
                        bool may_unmap)
{
    size_t first = sector_index(window, off), nr = (size_t)(len / SECTOR);
    bool ok;

    may_become(first, nr, 0);
    ok = succeeded("zero", active_zero(a, len, window_off(window) + off, may_unmap, &err));
    if (ok)
        has_become(first, nr, 0);
    changed(a, "zero", ok);
}

static inline void discard(struct active *a, unsigned window, uint64_t off, uint64_t len)
{
    size_t first = sector_index(window, off), nr = (size_t)(len / SECTOR);
    bool ok;

    may_become(first, nr, 0);
    ok = succeeded("discard", active_discard(a, len, window_off(window) + off, &err));
    if (ok)
        has_become(first, nr, 0);
    changed(a, "discard", ok);
}

static inline void flush(struct active *a)
{
    bool ok = succeeded("flush", active_flush(a, &err));

    if (ok)
        is_durable();
    changed(a, "flush", ok);
}

static inline void read_all(struct active *a)
{
    static uint8_t bytes[WINDOW];

    for (unsigned window = 0; window < nr_windows(a); window++)
        if (succeeded("read", active_pread(a, bytes, WINDOW, window_off(window), &err)))
            compare_window(bytes, window, shared->now, "read");
}

/* What is cut off is gone, and is zeros when the disk gets there again. */
static inline void resize(struct active *a, enum size size)
{
    size_t window_1 = sector_index(1, 0), nr = (size_t)(WINDOW / SECTOR);
    bool ok;

    may_become(SIZE_AT, 1, size);
    if (size == WITHOUT_WINDOW_1)
        may_become(window_1, nr, 0);
    ok = succeeded("resize", active_resize(a, disk_size(size), disk_size(WITH_BOTH), &err));
    if (ok && size_of(a) != size)
        complain("resize: the size is %" PRIu64, active_virtual_size(a));
    has_become(SIZE_AT, 1, size_of(a));
    if (size_of(a) == WITHOUT_WINDOW_1)
        has_become(window_1, nr, 0);
    if (ok)
        is_durable();
    changed(a, "resize", ok);
}

static inline void set_parent(struct active *a)
{
    struct digest found;
    bool ok = succeeded("set_parent", active_set_parent(a, &parent_id, &err));

    if (ok && (!active_parent(a, &found) || !digest_equal(&found, &parent_id)))
        complain("set_parent: the parent is not recorded");
    changed(a, "set_parent", ok);
}

static inline void seal(struct active *a)
{
    if (succeeded("seal", active_seal(a, &err)))
        is_durable();
    look(a, "seal");
}

/* After a failed sync it must not look as if all were well. */
static inline void close_layer(struct active *a)
{
    bool sealed = a->sealed;
    bool ok = succeeded("close", active_close(a, &err));

    if (ok && refuses_changes() && !sealed)
        complain("close succeeds after a failed sync");
    if (ok)
        is_durable();
    else
        after_crash();
}

/* NULL: the fault is in the way. */
static inline struct active *open_layer(void)
{
    struct active_options options = {
        .virtual_size = disk_size(WITH_BOTH),
        .cluster_bits = shared->cluster_bits,
        .parent_pending = true,
        .backing = {.pread = read_beneath},
    };
    struct active *a = NULL;

    shared->plan.sync_failed = false; /* that was another handle's */
    if (access(IMAGE, F_OK) == 0)
        return succeeded("open", active_open(IMAGE, &options, &a, &err)) ? a : NULL;
    if (!succeeded("create", active_create(IMAGE, &options, &a, &err))) {
        if (access(IMAGE, F_OK) == 0)
            complain("create fails, and leaves the file: %s", err.message);
        return NULL;
    }
    shared->created = true;
    return a;
}

#endif
