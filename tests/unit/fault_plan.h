/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is to go wrong at which fault point (engine/fault.h), and a hook that makes it so.  A plan
 * lies in memory that a child shares, for its crash is an _exit of the process that it runs in.
 */
#ifndef TESTS_UNIT_FAULT_PLAN_H
#define TESTS_UNIT_FAULT_PLAN_H

#include "test.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hostfile.h"

/* Exit statuses */
#define FAULT_CRASHED 42
#define FAULT_BROKEN  43 /* the plan could not do its part */

enum fault_action {
    ACTION_EIO,
    ACTION_ENOSPC,
    ACTION_CRASH_BEFORE,
    ACTION_CRASH_AFTER,
    /* After: and of all that was written since the last sync, only the step itself has reached the
     * disk.  What was meant to come later has come before. */
    ACTION_POWER_CUT,
};

struct fault_plan {
    enum fault_point point; /* FAULT_NONE: nothing goes wrong, steps are counted */
    enum fault_action action;
    unsigned nth; /* time that the point is met, from 1 */
    bool from_then_on;
    bool off;                  /* neither fires nor counts */
    enum fault_point obstacle; /* fails once, with ENOSPC, whatever the plan is */

    unsigned met[FAULT_POINTS_END];
    unsigned nr_fired;
    bool sync_failed;
};

static inline bool fault_due(const struct fault_plan *plan, enum fault_point point)
{
    return point == plan->point && point != FAULT_NONE &&
           (plan->from_then_on ? plan->met[point] >= plan->nth : plan->met[point] == plan->nth);
}

static inline bool obstructs(struct fault_plan *plan, enum fault_point point)
{
    bool it_does = point == plan->obstacle && point != FAULT_NONE;

    if (it_does)
        plan->obstacle = FAULT_NONE;
    return it_does;
}

/* -- What a power cut takes back --------------------------------------------------------------- */

struct fault_undo {
    struct fault_undo *older;
    int fd; /* owned: the file may be closed before it is synced */
    uint64_t size, host_off;
    size_t len;
    uint8_t bytes[];
};

/* In the child, where no test can fail. */
static inline void fault_must(bool is_so)
{
    if (!is_so)
        _exit(FAULT_BROKEN);
}

static struct fault_undo *fault_unsynced; /* of this process; newest first */

/* Keep the bytes that a step is about to change. */
static inline void fault_keep(const struct hostfile_event *event)
{
    struct fault_undo *undo;
    uint64_t len = event->len;
    struct stat st;

    if (event->op != HOSTFILE_WRITE && event->op != HOSTFILE_TRUNCATE &&
        event->op != HOSTFILE_PUNCH)
        return;
    fault_must(fstat(event->file->fd, &st) == 0);
    if (event->op == HOSTFILE_TRUNCATE && event->host_off < (uint64_t)st.st_size)
        len = (uint64_t)st.st_size - event->host_off;
    undo = malloc(sizeof(*undo) + len);
    fault_must(undo != NULL);
    *undo = (struct fault_undo){.older = fault_unsynced,
                                .fd = dup(event->file->fd),
                                .size = (uint64_t)st.st_size,
                                .host_off = event->host_off};
    if (len > 0 && event->host_off < undo->size)
        undo->len = (size_t)pread(undo->fd, undo->bytes, len, (off_t)event->host_off);
    fault_unsynced = undo;
}

static inline void fault_forget(void)
{
    while (fault_unsynced) {
        struct fault_undo *undo = fault_unsynced;

        fault_unsynced = undo->older;
        close(undo->fd);
        free(undo);
    }
}

/* A write that has just been done stays; it is the newest. */
static inline void fault_cut_the_power(const struct hostfile_event *event)
{
    uint8_t *bytes = malloc(event->len + 1);

    fault_must(bytes != NULL);
    if (event->op == HOSTFILE_WRITE)
        fault_must(pread(event->file->fd, bytes, event->len, (off_t)event->host_off) ==
                   (ssize_t)event->len);
    for (struct fault_undo *undo = fault_unsynced; undo; undo = undo->older) {
        fault_must(pwrite(undo->fd, undo->bytes, undo->len, (off_t)undo->host_off) ==
                   (ssize_t)undo->len);
        fault_must(ftruncate(undo->fd, (off_t)undo->size) == 0);
    }
    if (event->op == HOSTFILE_WRITE)
        fault_must(pwrite(event->file->fd, bytes, event->len, (off_t)event->host_off) ==
                   (ssize_t)event->len);
    _exit(FAULT_CRASHED);
}

/* -- The hook ---------------------------------------------------------------------------------- */

static inline int fault_before(void *ctx, const struct hostfile_event *event)
{
    struct fault_plan *plan = ctx;

    if (plan->off)
        return 0;
    plan->met[event->point]++;
    if (plan->action == ACTION_POWER_CUT)
        fault_keep(event);
    if (!fault_due(plan, event->point))
        return obstructs(plan, event->point) ? ENOSPC : 0;
    plan->nr_fired++;
    if (plan->action == ACTION_CRASH_BEFORE)
        _exit(FAULT_CRASHED);
    if (plan->action > ACTION_CRASH_BEFORE)
        return 0;
    plan->sync_failed |= event->op == HOSTFILE_SYNC;
    return plan->action == ACTION_EIO ? EIO : ENOSPC;
}

static inline void fault_after(void *ctx, const struct hostfile_event *event)
{
    const struct fault_plan *plan = ctx;

    if (plan->off)
        return;
    if (event->op == HOSTFILE_SYNC)
        fault_forget();
    if (!fault_due(plan, event->point))
        return;
    if (plan->action == ACTION_CRASH_AFTER)
        _exit(FAULT_CRASHED);
    if (plan->action == ACTION_POWER_CUT)
        fault_cut_the_power(event);
}

#endif
