/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From parameters to parts: a function for each, which opens it from those that were opened before
 * it, and the order of all.  No part knows struct parts: it is given what it needs.
 */
#include "parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "claims.h"
#include "leases.h"
#include "log.h"
#include "metacache.h"
#include "process_metrics.h"

#define READY_PERIOD_MS   2000
#define READY_DEADLINE_MS 5000

/* -- Opening ---------------------------------------------------------------------------------- */

static int open_store(struct parts *parts, struct cairn_error *err)
{
    return store_open(parts->params->store, &parts->store, err);
}

static int open_redis(struct parts *parts, struct cairn_error *err)
{
    const struct params *p = parts->params;
    const struct redis_options options = {
        .nodes = p->redis,
        .sentinels = p->redis_sentinel,
        .deadline_ms = (unsigned)p->redis_deadline,
        .expiry_s = (unsigned)p->redis_expiry,
    };

    if (p->redis && p->redis_sentinel)
        return error_set(err, CAIRN_E_USAGE, "redis and redis-sentinel: give one of them");
    return p->redis || p->redis_sentinel ? redis_new(&options, &parts->redis, err) : CAIRN_OK;
}

/* What nobody goes on with.  That it cannot be removed is no reason not to serve. */
static int expire_uploads(struct parts *parts, struct cairn_error *unused)
{
    struct store_expired expired;
    struct cairn_error err;

    (void)unused;
    if (store_expire_uploads(parts->store, parts->params->upload_age, &expired, &err))
        log_error("uploads-kept", &err);
    else if (expired.nr > 0)
        log_event(LOG_LEVEL_INFO, "uploads-expired", "%" PRIu64 " uploads, %" PRIu64 " bytes",
                  expired.nr, expired.bytes);
    return CAIRN_OK;
}

static int open_disks(struct parts *parts, struct cairn_error *err)
{
    const struct params *p = parts->params;
    const struct disks_options options = {
        .meta_cache_bytes = p->meta_cache,
        .cluster_cache_bytes = p->cluster_cache,
        .redis = parts->redis,
        .max_virtual_size = p->max_virtual_size,
        .max_depth = (uint32_t)p->max_depth,
    };

    return disks_new(parts->store, &options, &parts->disks, err);
}

static int open_registry(struct parts *parts, struct cairn_error *err)
{
    const struct params *p = parts->params;
    const struct registry_options options = {
        .max_manifest = p->max_manifest,
        .max_upload = p->max_upload,
        .quota = {.rules = p->quota,
                  .max_uploads = p->max_uploads,
                  .max_unfinished = p->max_unfinished},
        .grace_s = p->gc_grace,
    };

    return registry_new(parts->store, parts->disks, &options, &parts->registry, err);
}

static int open_quarantine(struct parts *parts, struct cairn_error *err)
{
    const struct quarantine_forget forget = {
        .forget = registry_forget_layer,
        .forget_gone = registry_forget_gone,
        .ctx = parts->registry,
    };

    return quarantine_new(parts->store, &forget, &parts->quarantine, err);
}

static int open_scrub(struct parts *parts, struct cairn_error *err)
{
    const struct scrub_options options = {
        .rate = parts->params->scrub_rate,
        .interval_s = parts->params->scrub_interval,
    };

    return scrub_new(parts->store, parts->quarantine, &options, &parts->scrub, err);
}

static int open_gc(struct parts *parts, struct cairn_error *err)
{
    const struct params *p = parts->params;
    const struct gc_options options = {
        .collect = {.grace_s = p->gc_grace,
                    .upload_age_s = p->upload_age,
                    .claim_age_s = CLAIM_AGE_S,
                    .max_memory = p->gc_memory},
        .interval_s = p->gc_interval,
    };

    return gc_new(parts->store, &options, &parts->gc, err);
}

static int open_conns(struct parts *parts, struct cairn_error *err)
{
    const struct http_limits limits = parts_limits(parts->params);

    return http_conns_new(&limits, &parts->conns, err);
}

static int open_ready(struct parts *parts, struct cairn_error *err)
{
    const struct ready_options options = {
        .store = parts->store,
        .redis = parts->redis,
        .period_ms = READY_PERIOD_MS,
        .deadline_ms = READY_DEADLINE_MS,
    };

    return ready_new(&options, &parts->ready, err);
}

/* Records of jobs name this process as `host[pid]`. */
static int open_jobs(struct parts *parts, struct cairn_error *err)
{
    const size_t nr_kinds = sizeof(parts->kinds) / sizeof(parts->kinds[0]);
    char host[256] = "", name[300];

    parts->kinds[0] = scrub_job_kind(parts->scrub);
    parts->kinds[1] = gc_job_kind(parts->gc);
    gethostname(host, sizeof(host) - 1);
    snprintf(name, sizeof(name), "%s[%ld]", host, (long)getpid());
    return jobs_new(parts->store, name, parts->kinds, nr_kinds, &parts->jobs, err);
}

/* -- Figures ---------------------------------------------------------------------------------- */

static void write_metrics(void *ctx, struct metrics *m)
{
    struct parts *parts = ctx;

    disks_write_metrics(parts->disks, m);
    process_write_metrics(NULL, m);
    ready_write_metrics(parts->ready, m);
    store_write_metrics(parts->store, m);
    jobs_write_metrics(parts->jobs, m);
    quarantine_write_metrics(parts->quarantine, m);
    scrub_write_metrics(parts->scrub, m);
    security_write_metrics(&parts->security, m);
    gc_write_metrics(parts->gc, m);
    leases_write_metrics(parts->store, m);
    registry_write_metrics(parts->registry, m);
    quota_write_metrics(registry_quota(parts->registry), m);
    http_conns_write_metrics(parts->conns, m);
    if (parts->redis)
        redis_write_metrics(parts->redis, m);
}

/* -- All of them ------------------------------------------------------------------------------ */

static int (*const openers[])(struct parts *parts, struct cairn_error *err) = {
    open_store, open_redis, expire_uploads, open_disks, open_registry, open_quarantine,
    open_scrub, open_gc,    open_conns,     open_ready, open_jobs,
};

int parts_open(const struct params *params, struct parts *ret_parts, struct cairn_error *err)
{
    int r = CAIRN_OK;

    *ret_parts = (struct parts){.params = params, .metrics = {write_metrics, ret_parts}};
    for (size_t i = 0; r == CAIRN_OK && i < sizeof(openers) / sizeof(openers[0]); i++)
        r = openers[i](ret_parts, err);
    if (r)
        parts_close(ret_parts);
    return r;
}

void parts_close(struct parts *parts)
{
    security_close(&parts->security);
    jobs_free(parts->jobs);
    ready_free(parts->ready);
    http_conns_free(parts->conns);
    gc_free(parts->gc);
    scrub_free(parts->scrub);
    quarantine_free(parts->quarantine);
    registry_free(parts->registry);
    disks_free(parts->disks);
    redis_free(parts->redis);
    store_close(parts->store);
}

struct http_limits parts_limits(const struct params *p)
{
    return (struct http_limits){
        .connections = (unsigned)p->max_connections,
        .connections_per_client = (unsigned)p->max_connections_per_client,
        .headers = (unsigned)p->max_headers,
        .header_bytes = p->max_header_size,
        .body_bytes = p->body_memory,
        .header_timeout_s = (unsigned)p->header_timeout,
        .min_rate = p->min_rate,
        .min_rate_window_s = (unsigned)p->min_rate_window,
        .request_deadline_s = (unsigned)p->request_deadline,
    };
}
