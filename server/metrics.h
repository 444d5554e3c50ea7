/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /metrics: figures of all parts, in Prometheus' text format, version 0.0.4.
 *
 * A part writes its own: a family, and its values.  Names follow Prometheus' conventions: base
 * units (seconds, bytes), `_total` for what only grows.
 */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include "histogram.h"
#include "http.h"

struct metrics;

/* type: "counter", "gauge", "histogram".  Values follow until the next family; one
 * without values is not shown. */
void metrics_family(struct metrics *m, const char *name, const char *type, const char *help);
/* labels: `tier="redis"`, or NULL. */
void metrics_value(struct metrics *m, const char *labels, uint64_t value);
void metrics_seconds(struct metrics *m, const char *labels, uint64_t us);
void metrics_histogram(struct metrics *m, const char *labels, const struct histogram *h);

/* A family of one value without labels: a uint64_t of a struct of figures, by its offset. */
struct metrics_row {
    const char *name, *type, *help;
    size_t field;
};
void metrics_rows(struct metrics *m, const struct metrics_row *rows, size_t nr,
                  const void *figures);
uint64_t metrics_field(const void *figures, size_t field);

/* Writes the families of one part, or of many. */
struct metrics_source {
    void (*write)(void *ctx, struct metrics *m);
    void *ctx;
};

/* As a route's handle: answer with the figures of HTTP, and with what source writes. */
void metrics_handle(void *source, const struct http_request *req, struct http_reply *reply);

#endif
