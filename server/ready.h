/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /readyz: is this server able to serve, and if not, which part keeps it from it and why.
 *
 *     {"status": "degraded", "parts": {"store":   {"state": "ok"},
 *                                      "workers": {"state": "ok"},
 *                                      "redis":   {"state": "degraded", "reason": "1 of 2 nodes
 * …"}}}
 *
 * 200 if status is `ready` or `degraded` (slower, or for reading only), 503 if it is `unready`:
 * then a part's state is `failed`.  A server that has been told to stop is unready while it goes on
 * serving, so that a proxy takes it out of rotation before it goes.
 */
#ifndef SERVER_READY_H
#define SERVER_READY_H

#include "cleanup.h"
#include "http.h"
#include "redis.h"
#include "store.h"

struct ready_options {
    struct store *store;
    struct redis *redis;  /* NULL: none */
    unsigned period_ms;   /* the store is tried so often */
    unsigned deadline_ms; /* a try that takes longer has failed, until it ends */
};

struct ready;

/* Waits for the first try, for deadline_ms at most. */
int ready_new(const struct ready_options *options, struct ready **ret_ready,
              struct cairn_error *err);
/* Waits for a try that is under way. */
void ready_free(struct ready *ready);
CLEANUP_DEFINE(struct ready *, ready_free)

/* From here on the server is unready. */
void ready_stop(struct ready *ready);

/* Never waits: for a route that is quick. */
void ready_handle(void *ready, const struct http_request *req, struct http_reply *reply);

struct metrics;
void ready_write_metrics(void *ready, struct metrics *m);

#endif
