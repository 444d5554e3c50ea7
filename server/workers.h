/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool of threads that may block, and the queue before it.  Work is a struct embedded in what
 * the work is about, so queueing allocates nothing.
 */
#ifndef SERVER_WORKERS_H
#define SERVER_WORKERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct work {
    struct work *next;
    /* cancelled: the pool is stopping; say so to whoever waits, and do nothing else. */
    void (*run)(struct work *work, bool cancelled);
};

enum work_kind {
    WORK_NEW,       /* a new request: refused when max_queued of them wait */
    WORK_CONTINUES, /* goes on with what has begun: never refused, for there is at most one per
                       connection */
};

struct workers;

int workers_new(unsigned nr_threads, size_t max_queued, struct workers **ret_workers,
                struct cairn_error *err);
/* False: the queue is full, or the pool was stopped; then run is not called. */
bool workers_submit(struct workers *workers, struct work *work, enum work_kind kind);
/* Cancel what is queued, wait for what runs; from here on nothing is accepted. */
void workers_stop(struct workers *workers);
struct workers_load {
    uint64_t threads, busy;
    uint64_t fresh, max_fresh, continuing; /* queued */
    uint64_t refused;                      /* so far: new requests for which there was no room */
};
void workers_get_load(struct workers *workers, struct workers_load *ret_load);
void workers_free(struct workers *workers);

#endif
