/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests in /metrics.
 *
 * A route's row is found by its pattern's address, which is the same for all requests of a route;
 * only a new address is compared as text, and enters the table under a lock.  What finds no room
 * counts as `other`, so that the number of series is bounded whatever is asked for.
 */
#include "http_metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "histogram.h"

#define ROUTES_MAX 64
#define LABELS_MAX 256
#define OTHER      "other"

/* By the bit of enum http_method, and one for what is none. */
static const char *const method_names[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", OTHER};
#define NR_METHODS (sizeof(method_names) / sizeof(method_names[0]))

/* The frequent ones first; 0 is no reply at all, and also stands for those not listed. */
static const uint16_t statuses[] = {200, 206, 201, 202, 204, 304, 404, 401, 403, 400,
                                    0,   405, 408, 409, 411, 412, 413, 414, 416, 417,
                                    429, 431, 500, 501, 502, 503, 504, 505, 507, 307};
#define NR_STATUSES (sizeof(statuses) / sizeof(statuses[0]))

typedef atomic_uint_fast64_t counter;

struct method_figures {
    struct histogram latency;
    counter status[NR_STATUSES];
    counter received, sent, cut;
};

struct route_figures {
    const char *_Atomic route;
    struct method_figures methods[NR_METHODS];
};

struct http_figures {
    pthread_mutex_t lock; /* who adds a route has it */
    atomic_uint nr_routes;
    struct route_figures routes[ROUTES_MAX]; /* the first is OTHER */
};

int http_figures_new(struct http_figures **ret_figures, struct cairn_error *err)
{
    struct http_figures *f = calloc(1, sizeof(*f));

    if (!f)
        return error_no_memory(err, "the figures of requests");
    pthread_mutex_init(&f->lock, NULL);
    atomic_init(&f->routes[0].route, OTHER);
    atomic_init(&f->nr_routes, 1);
    *ret_figures = f;
    return CAIRN_OK;
}

void http_figures_free(struct http_figures *f)
{
    if (!f)
        return;
    pthread_mutex_destroy(&f->lock);
    free(f);
}

/* -- Counting ----------------------------------------------------------------------------- */

/* For one text at two addresses, and for what the table has no room for. */
static struct route_figures *find_text(struct http_figures *f, const char *route)
{
    unsigned nr;

    SCOPED_LOCK(&f->lock);
    nr = atomic_load_explicit(&f->nr_routes, memory_order_relaxed);
    for (unsigned i = 0; i < nr; i++)
        if (strcmp(atomic_load_explicit(&f->routes[i].route, memory_order_relaxed), route) == 0)
            return &f->routes[i];
    if (nr == ROUTES_MAX)
        return &f->routes[0];
    atomic_store_explicit(&f->routes[nr].route, route, memory_order_relaxed);
    atomic_store_explicit(&f->nr_routes, nr + 1, memory_order_release);
    return &f->routes[nr];
}

static struct route_figures *find_route(struct http_figures *f, const char *route)
{
    unsigned nr = atomic_load_explicit(&f->nr_routes, memory_order_acquire);

    for (unsigned i = 0; i < nr; i++)
        if (atomic_load_explicit(&f->routes[i].route, memory_order_relaxed) == route)
            return &f->routes[i];
    return find_text(f, route);
}

static unsigned method_index(enum http_method method)
{
    return method ? (unsigned)__builtin_ctz((unsigned)method) : NR_METHODS - 1;
}

static unsigned status_index(unsigned status)
{
    unsigned i = 0, none = 0;

    for (; i < NR_STATUSES && statuses[i] != status; i++)
        if (statuses[i] == 0)
            none = i;
    return i < NR_STATUSES ? i : none;
}

static void count(counter *c, uint64_t n)
{
    if (n > 0)
        atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

void http_figures_add(struct http_figures *f, const struct http_exchange *x)
{
    struct method_figures *to = &find_route(f, x->route)->methods[method_index(x->method)];

    count(&to->status[status_index(x->status)], 1);
    count(&to->received, x->received);
    count(&to->sent, x->sent);
    count(&to->cut, !x->complete);
    histogram_add(&to->latency, x->us);
}

/* -- /metrics ----------------------------------------------------------------------------- */

static uint64_t value_of(const counter *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

typedef void (*write_fn)(struct metrics *m, const char *labels, const struct method_figures *mf);

static void write_statuses(struct metrics *m, const char *labels, const struct method_figures *mf)
{
    char text[LABELS_MAX];

    for (unsigned i = 0; i < NR_STATUSES; i++) {
        uint64_t nr = value_of(&mf->status[i]);

        if (nr == 0)
            continue;
        if (statuses[i])
            snprintf(text, sizeof(text), "%s,status=\"%u\"", labels, statuses[i]);
        else
            snprintf(text, sizeof(text), "%s,status=\"none\"", labels);
        metrics_value(m, text, nr);
    }
}

static void write_latency(struct metrics *m, const char *labels, const struct method_figures *mf)
{
    metrics_histogram(m, labels, &mf->latency);
}

static void write_received(struct metrics *m, const char *labels, const struct method_figures *mf)
{
    metrics_value(m, labels, value_of(&mf->received));
}

static void write_sent(struct metrics *m, const char *labels, const struct method_figures *mf)
{
    metrics_value(m, labels, value_of(&mf->sent));
}

static void write_cut(struct metrics *m, const char *labels, const struct method_figures *mf)
{
    metrics_value(m, labels, value_of(&mf->cut));
}

static bool is_used(const struct method_figures *mf)
{
    for (unsigned i = 0; i < NR_STATUSES; i++)
        if (value_of(&mf->status[i]) > 0)
            return true;
    return false;
}

static void write_used(const struct http_figures *f, struct metrics *m, write_fn write)
{
    unsigned nr = atomic_load_explicit(&f->nr_routes, memory_order_acquire);
    char labels[LABELS_MAX / 2];

    for (unsigned i = 0; i < nr; i++)
        for (unsigned j = 0; j < NR_METHODS; j++) {
            if (!is_used(&f->routes[i].methods[j]))
                continue;
            snprintf(labels, sizeof(labels), "route=\"%s\",method=\"%s\"",
                     atomic_load_explicit(&f->routes[i].route, memory_order_relaxed),
                     method_names[j]);
            write(m, labels, &f->routes[i].methods[j]);
        }
}

void http_figures_write(const struct http_figures *f, struct metrics *m)
{
    static const struct {
        const char *name, *type, *help;
        write_fn write;
    } families[] = {
        {"cairn_http_requests_total", "counter",
         "Requests that are over; status none: the client went before there was a reply.",
         write_statuses},
        {"cairn_http_request_seconds", "histogram",
         "Time from the request line to the end of the reply.", write_latency},
        {"cairn_http_received_bytes_total", "counter", "Bytes of bodies received.", write_received},
        {"cairn_http_sent_bytes_total", "counter", "Bytes of bodies sent.", write_sent},
        {"cairn_http_cut_requests_total", "counter",
         "Requests whose connection ended before the reply did.", write_cut},
    };

    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        metrics_family(m, families[i].name, families[i].type, families[i].help);
        write_used(f, m, families[i].write);
    }
}
