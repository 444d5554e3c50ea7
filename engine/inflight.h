/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest ranges with an operation in flight: who may go on beside whom.  Internal to the engine.
 *
 * Operations on the active layer do their I/O without a lock.  What they rely on meanwhile they
 * register here: a reader, that the host cluster it reads is not given to another guest range; a
 * writer, that the subclusters it writes stay where they are; a copy-on-write, that nobody else
 * writes to the subcluster that it completes with older bytes.
 *
 * An operation waits for those that run and, so that nobody starves, for those that came before
 * it and wait themselves, where the modes and ranges clash.  Nobody enters twice at a time, and
 * what runs never waits for an entry, so the first in line always gets on.
 *
 * One condition variable and one list: the list is as long as there are threads in I/O, and
 * walking a few dozen entries costs less than keeping a tree.
 */
#ifndef ENGINE_INFLIGHT_H
#define ENGINE_INFLIGHT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

enum inflight_mode {
    INFLIGHT_READ,   /* reads bytes from the host file */
    INFLIGHT_WRITE,  /* writes its own bytes and no others */
    INFLIGHT_CHANGE, /* changes bytes that others may not write meanwhile: copy-on-write, zeroing */
    INFLIGHT_FREE,   /* frees host clusters: nothing else may touch them */
    INFLIGHT_MODES,
};

/* Lives on its operation's stack; zero it before the first use. */
struct inflight_op {
    TAILQ_ENTRY(inflight_op) link;
    uint64_t start, end; /* guest bytes, rounded by the caller to what its mode protects */
    enum inflight_mode mode;
    bool entered, running;
};

struct inflight {
    TAILQ_HEAD(, inflight_op) ops; /* in order of entry */
    unsigned nr_waiting;
    pthread_cond_t changed;
};

void inflight_init(struct inflight *t);
void inflight_release(struct inflight *t); /* nothing may be in flight */

/*
 * All that follows needs the lock held that guards t.
 *
 * Try to run.  On false the operation keeps its place in line: look at the state again after
 * inflight_wait_locked, and try again, with another range or mode if need be.
 */
bool inflight_try_locked(struct inflight *t, struct inflight_op *op, enum inflight_mode mode,
                         uint64_t start, uint64_t end);
void inflight_wait_locked(struct inflight *t, pthread_mutex_t *lock);

/* Claim less from here on: [start, end), end not above what it was. */
void inflight_shrink_locked(struct inflight *t, struct inflight_op *op, uint64_t end);

/* Leave, from running or waiting; nothing to do for one that never entered. */
void inflight_leave_locked(struct inflight *t, struct inflight_op *op);

#endif
