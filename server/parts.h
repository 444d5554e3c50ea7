/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts that a server is made of, as its parameters say: put together in order, taken apart in
 * the opposite one.
 */
#ifndef SERVER_PARTS_H
#define SERVER_PARTS_H

#include "disks.h"
#include "gc.h"
#include "http_conns.h"
#include "jobs.h"
#include "metrics.h"
#include "params.h"
#include "quarantine.h"
#include "ready.h"
#include "redis.h"
#include "registry.h"
#include "scrub.h"
#include "security.h"
#include "store.h"

/* In the order in which they are put together. */
struct parts {
    const struct params *params; /* borrowed */
    struct store *store;
    struct redis *redis; /* NULL: none */
    struct disks *disks;
    struct registry *registry;
    struct quarantine *quarantine;
    struct scrub *scrub;
    struct gc *gc;
    struct http_conns *conns;
    struct ready *ready;
    struct job_kind kinds[2];
    struct jobs *jobs;
    struct metrics_source metrics; /* the figures of all parts */
    struct security security; /* opened by the caller, who has the routes; closed with the rest */
};

/* ret_parts must stay where it is; after a failure there is nothing to close in it. */
int parts_open(const struct params *params, struct parts *ret_parts, struct cairn_error *err);
/* The HTTP server has been stopped. */
void parts_close(struct parts *parts);

/* What connections may do: the HTTP server and http_conns are made with the same. */
struct http_limits parts_limits(const struct params *params);

#endif
