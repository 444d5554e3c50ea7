/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is to go wrong at which fault point (engine/fault.h), and a hook that makes it so.  A plan
 * lies in memory that a child shares, for its crash is an _exit of the process that it runs in.
 */
#ifndef TESTS_UNIT_FAULT_PLAN_H
#define TESTS_UNIT_FAULT_PLAN_H

#include "test.h"

#include <errno.h>
#include <unistd.h>

#include "hostfile.h"

#define FAULT_CRASHED 42 /* exit status */

enum fault_action { ACTION_EIO, ACTION_ENOSPC, ACTION_CRASH_BEFORE, ACTION_CRASH_AFTER };

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

static inline int fault_before(void *ctx, const struct hostfile_event *event)
{
    struct fault_plan *plan = ctx;

    if (plan->off)
        return 0;
    plan->met[event->point]++;
    if (!fault_due(plan, event->point))
        return obstructs(plan, event->point) ? ENOSPC : 0;
    plan->nr_fired++;
    if (plan->action == ACTION_CRASH_BEFORE)
        _exit(FAULT_CRASHED);
    if (plan->action == ACTION_CRASH_AFTER)
        return 0;
    plan->sync_failed |= event->op == HOSTFILE_SYNC;
    return plan->action == ACTION_EIO ? EIO : ENOSPC;
}

static inline void fault_after(void *ctx, const struct hostfile_event *event)
{
    const struct fault_plan *plan = ctx;

    if (!plan->off && plan->action == ACTION_CRASH_AFTER && fault_due(plan, event->point))
        _exit(FAULT_CRASHED);
}

#endif
