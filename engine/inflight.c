/* SPDX-License-Identifier: Apache-2.0 */
#include "inflight.h"

/* May two operations of these modes run on one range at the same time?  Symmetric. */
static const bool compatible[INFLIGHT_MODES][INFLIGHT_MODES] = {
    [INFLIGHT_READ] = {true, true, true, false},
    [INFLIGHT_WRITE] = {true, true, false, false},
    [INFLIGHT_CHANGE] = {true, false, false, false},
    [INFLIGHT_FREE] = {false, false, false, false},
};

void inflight_init(struct inflight *t)
{
    TAILQ_INIT(&t->ops);
    t->nr_waiting = 0;
    pthread_cond_init(&t->changed, NULL);
}

void inflight_release(struct inflight *t)
{
    pthread_cond_destroy(&t->changed);
}

static bool clash(const struct inflight_op *a, const struct inflight_op *b)
{
    return a->start < b->end && b->start < a->end && !compatible[a->mode][b->mode];
}

static bool blocked(const struct inflight *t, const struct inflight_op *op)
{
    const struct inflight_op *other;
    bool before = true;

    TAILQ_FOREACH(other, &t->ops, link)
    {
        if (other == op)
            before = false;
        else if ((before || other->running) && clash(op, other))
            return true;
    }
    return false;
}

static void wake(struct inflight *t)
{
    if (t->nr_waiting > 0)
        pthread_cond_broadcast(&t->changed);
}

bool inflight_try_locked(struct inflight *t, struct inflight_op *op, enum inflight_mode mode,
                         uint64_t start, uint64_t end)
{
    bool changed = op->entered && (op->mode != mode || op->start != start || op->end != end);

    op->mode = mode;
    op->start = start;
    op->end = end;
    if (!op->entered) {
        TAILQ_INSERT_TAIL(&t->ops, op, link);
        op->entered = true;
        t->nr_waiting++;
    }
    if (changed)
        wake(t); /* somebody may have waited for just what is not claimed any more */
    if (blocked(t, op))
        return false;
    op->running = true;
    t->nr_waiting--;
    return true;
}

void inflight_wait_locked(struct inflight *t, pthread_mutex_t *lock)
{
    pthread_cond_wait(&t->changed, lock);
}

void inflight_shrink_locked(struct inflight *t, struct inflight_op *op, uint64_t end)
{
    if (end == op->end)
        return;
    op->end = end;
    wake(t);
}

void inflight_leave_locked(struct inflight *t, struct inflight_op *op)
{
    if (!op->entered)
        return;
    TAILQ_REMOVE(&t->ops, op, link);
    if (!op->running)
        t->nr_waiting--;
    op->entered = op->running = false;
    wake(t);
}
