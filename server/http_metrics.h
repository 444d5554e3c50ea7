/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What requests cost, by route and method.  Counting takes no lock: relaxed atomics, in a table of
 * bounded size that routes enter once.
 */
#ifndef SERVER_HTTP_METRICS_H
#define SERVER_HTTP_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "metrics.h"

struct http_figures;
int http_figures_new(struct http_figures **ret_figures, struct cairn_error *err);
void http_figures_free(struct http_figures *figures);

/* A request that is over. */
struct http_exchange {
    const char *route;       /* a pattern, of static storage: never a path as it was sent */
    enum http_method method; /* 0: unknown */
    unsigned status;         /* 0: no reply was sent */
    uint64_t us;             /* from its request line to the end of the reply */
    uint64_t received, sent; /* bytes of bodies */
    bool complete;           /* the client took all of the reply, as far as the kernel says */
};
void http_figures_add(struct http_figures *figures, const struct http_exchange *x);
void http_figures_write(const struct http_figures *figures, struct metrics *m);

#endif
