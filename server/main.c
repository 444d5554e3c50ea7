/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairnd: puts the parts together, serves until SIGINT or SIGTERM, and takes them apart again in
 * the opposite order.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "claims.h"
#include "clock.h"
#include "disks.h"
#include "gc.h"
#include "http.h"
#include "http_conns.h"
#include "jobs.h"
#include "leases.h"
#include "log.h"
#include "log_level.h"
#include "metacache.h"
#include "metrics.h"
#include "params.h"
#include "process_metrics.h"
#include "ready.h"
#include "redis.h"
#include "registry.h"
#include "scrub.h"
#include "security.h"
#include "service_notify.h"
#include "store.h"

#define FOREVER_US        (UINT64_C(1) << 60)
#define READY_PERIOD_MS   2000
#define READY_DEADLINE_MS 5000

static bool always_quick(const struct http_request *req)
{
    (void)req;
    return true;
}

static void handle_health(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    char *text = strdup("ok\n");

    (void)ctx;
    (void)req;
    http_reply_buffer(reply, 200, "text/plain", text, text ? 3 : 0);
}

static void handle_disks(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    disks_handle(ctx, req, reply);
}

/* Connections and open layers are file descriptors: take as many as the system lets us have. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Whoever waits for the file sees all of the address or no file. */
static int write_port_file(const char *path, const char *address, struct cairn_error *err)
{
    char temporary[4096];
    FILE *file;
    bool failed;

    if ((size_t)snprintf(temporary, sizeof(temporary), "%s.tmp", path) >= sizeof(temporary))
        return error_set(err, CAIRN_E_USAGE, "--port-file: the name is too long");
    file = fopen(temporary, "we");
    if (!file)
        return error_set_errno(err, errno, "cannot write %s", temporary);
    failed = fprintf(file, "%s\n", address) < 0;
    failed |= fclose(file) != 0;
    if (failed || rename(temporary, path) != 0) {
        int failure = errno;

        unlink(temporary);
        return error_set_errno(err, failure, "cannot write %s", path);
    }
    return CAIRN_OK;
}

/* The next signal, or 0 at until_us (clock_now_us). */
static int next_signal(const sigset_t *signals, uint64_t until_us)
{
    for (;;) {
        uint64_t now_us = clock_now_us();
        uint64_t left_us = until_us > now_us ? until_us - now_us : 0;
        const struct timespec left = {.tv_sec = (time_t)(left_us / 1000000),
                                      .tv_nsec = (long)(left_us % 1000000) * 1000};
        int sig = sigtimedwait(signals, NULL, &left);

        if (sig > 0 || left_us == 0)
            return sig > 0 ? sig : 0;
    }
}

/* Do what signals ask for, until one asks for the end or until_us. */
static int wait_for_end(const sigset_t *signals, struct security *security, uint64_t until_us)
{
    for (;;) {
        int sig = next_signal(signals, until_us);

        if (sig == SIGHUP)
            security_reload(security);
        else if (sig == SIGUSR1 || sig == SIGUSR2)
            log_level_step(sig == SIGUSR1 ? 1 : -1, sigabbrev_np(sig));
        else
            return sig;
    }
}

/* Serve until the end is asked for, and then for a time as a server that is not ready. */
static void serve_until_end(const struct params *p, const sigset_t *signals,
                            struct security *security, struct ready *ready)
{
    int sig = wait_for_end(signals, security, FOREVER_US);

    ready_stop(ready);
    if (p->drain_time > 0) {
        log_event(LOG_LEVEL_INFO, "draining", "%s, for %" PRIu64 " s", sigabbrev_np(sig),
                  p->drain_time);
        wait_for_end(signals, security, clock_now_us() + p->drain_time * 1000000);
    }
    log_event(LOG_LEVEL_INFO, "stopping", "%s", sigabbrev_np(sig));
}

static struct http_limits limits_of(const struct params *p)
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

static int listen_and_wait(const struct params *p, struct security *security, struct ready *ready,
                           struct http_conns *conns, const struct http_route *routes,
                           size_t nr_routes, const sigset_t *signals, struct cairn_error *err)
{
    const struct http_options options = {
        .listen = p->listen,
        .threads = (unsigned)p->http_threads,
        .workers = (unsigned)p->workers,
        .max_connections = (unsigned)p->max_connections,
        .connection_timeout_s = (unsigned)p->connection_timeout,
        .connection_memory = p->connection_memory,
        .reply_memory = p->reply_memory,
        .admission = {access_is_on(security->access) ? access_admit : NULL, security->access},
        .tls = security->tls,
        .proxies = security->proxies,
        .limits = limits_of(p),
        .conns = conns,
    };
    struct http_server *server;
    int r = http_server_start(&options, routes, nr_routes, &server, err);

    if (r)
        return r;
    if (p->port_file)
        r = write_port_file(p->port_file, http_server_address(server), err);
    if (r == CAIRN_OK) {
        log_event(LOG_LEVEL_INFO, "ready", "%s://%s, store %s, version %s",
                  security->tls ? "https" : "http", http_server_address(server), p->store,
                  CAIRN_VERSION);
        security_note_address(security, http_server_address(server));
        service_notify("READY=1");
        serve_until_end(p, signals, security, ready);
        service_notify("STOPPING=1");
    }
    http_server_stop(server, (unsigned)p->stop_timeout * 1000);
    if (p->port_file)
        unlink(p->port_file);
    return r;
}

/* The cache that servers share, if there is one. */
static int open_redis(const struct params *p, struct redis **ret_redis, struct cairn_error *err)
{
    const struct redis_options options = {
        .nodes = p->redis,
        .sentinels = p->redis_sentinel,
        .deadline_ms = (unsigned)p->redis_deadline,
        .expiry_s = (unsigned)p->redis_expiry,
    };

    if (p->redis && p->redis_sentinel)
        return error_set(err, CAIRN_E_USAGE, "redis and redis-sentinel: give one of them");
    return p->redis || p->redis_sentinel ? redis_new(&options, ret_redis, err) : CAIRN_OK;
}

/* What nobody goes on with.  That it cannot be removed is no reason not to serve. */
static void expire_uploads(struct store *store, uint64_t age_s)
{
    struct store_expired expired;
    struct cairn_error err;

    if (store_expire_uploads(store, age_s, &expired, &err))
        log_error("uploads-kept", &err);
    else if (expired.nr > 0)
        log_event(LOG_LEVEL_INFO, "uploads-expired", "%" PRIu64 " uploads, %" PRIu64 " bytes",
                  expired.nr, expired.bytes);
}

static int start_ready(struct store *store, struct redis *redis, struct ready **ret_ready,
                       struct cairn_error *err)
{
    const struct ready_options options = {
        .store = store,
        .redis = redis,
        .period_ms = READY_PERIOD_MS,
        .deadline_ms = READY_DEADLINE_MS,
    };

    return ready_new(&options, ret_ready, err);
}

/* Records of jobs name this process as `host[pid]`. */
static int start_jobs(struct store *store, const struct job_kind *kinds, size_t nr_kinds,
                      struct jobs **ret_jobs, struct cairn_error *err)
{
    char host[256] = "", name[300];

    gethostname(host, sizeof(host) - 1);
    snprintf(name, sizeof(name), "%s[%ld]", host, (long)getpid());
    return jobs_new(store, name, kinds, nr_kinds, ret_jobs, err);
}

static int serve(const struct params *p, const sigset_t *signals, struct cairn_error *err)
{
    CLEANUP(redis_free_p) struct redis *redis = NULL;
    struct disks_options disks_options = {
        .meta_cache_bytes = p->meta_cache,
        .cluster_cache_bytes = p->cluster_cache,
        .max_virtual_size = p->max_virtual_size,
        .max_depth = (uint32_t)p->max_depth,
    };
    const struct registry_options registry_options = {
        .max_manifest = p->max_manifest,
        .max_upload = p->max_upload,
        .quota = {.rules = p->quota,
                  .max_uploads = p->max_uploads,
                  .max_unfinished = p->max_unfinished},
        .grace_s = p->gc_grace,
    };
    const struct gc_options gc_options = {
        .collect = {.grace_s = p->gc_grace,
                    .upload_age_s = p->upload_age,
                    .claim_age_s = CLAIM_AGE_S,
                    .max_memory = p->gc_memory},
        .interval_s = p->gc_interval,
    };
    const struct http_limits limits = limits_of(p);
    CLEANUP(http_conns_free_p) struct http_conns *conns = NULL;
    struct security security = {0};
    CLEANUP(store_close_p) struct store *store = NULL;
    CLEANUP(disks_free_p) struct disks *disks = NULL;
    CLEANUP(registry_free_p) struct registry *registry = NULL;
    CLEANUP(ready_free_p) struct ready *ready = NULL;
    CLEANUP(gc_free_p) struct gc *gc = NULL;
    const struct scrub_options scrub_options = {.rate = p->scrub_rate,
                                                .interval_s = p->scrub_interval};
    struct quarantine_forget forget = {.forget = disks_forget_layer};
    CLEANUP(quarantine_free_p) struct quarantine *quarantine = NULL;
    CLEANUP(scrub_free_p) struct scrub *scrub = NULL;
    struct job_kind kinds[2];
    size_t nr_kinds = 0;
    CLEANUP(jobs_free_p) struct jobs *jobs = NULL;
    int r = store_open(p->store, &store, err);

    if (r == CAIRN_OK)
        r = open_redis(p, &redis, err);
    if (r == CAIRN_OK)
        expire_uploads(store, p->upload_age);
    disks_options.redis = redis;
    if (r == CAIRN_OK)
        r = disks_new(store, &disks_options, &disks, err);
    if (r == CAIRN_OK)
        r = registry_new(store, disks, &registry_options, &registry, err);
    forget.ctx = disks;
    if (r == CAIRN_OK)
        r = quarantine_new(store, &forget, &quarantine, err);
    if (r == CAIRN_OK)
        r = scrub_new(store, quarantine, &scrub_options, &scrub, err);
    if (r == CAIRN_OK)
        kinds[nr_kinds++] = scrub_job_kind(scrub);
    if (r == CAIRN_OK)
        r = gc_new(store, &gc_options, &gc, err);
    if (r == CAIRN_OK)
        kinds[nr_kinds++] = gc_job_kind(gc);
    if (r == CAIRN_OK)
        r = http_conns_new(&limits, &conns, err);
    if (r == CAIRN_OK)
        r = start_ready(store, redis, &ready, err);
    if (r == CAIRN_OK)
        r = start_jobs(store, kinds, nr_kinds, &jobs, err);
    if (r)
        return r;

    struct metrics_source sources[] = {
        {disks_write_metrics, disks},
        {process_write_metrics, NULL},
        {ready_write_metrics, ready},
        {store_write_metrics, store},
        {jobs_write_metrics, jobs},
        {quarantine_write_metrics, quarantine},
        {scrub_write_metrics, scrub},
        {security_write_metrics, &security},
        {gc_write_metrics, gc},
        {leases_write_metrics, store},
        {registry_write_metrics, registry},
        {quota_write_metrics, registry_quota(registry)},
        {http_conns_write_metrics, conns},
        {redis ? redis_write_metrics : NULL, redis},
        {NULL, NULL},
    };
    const struct http_route routes[] = {
        {.path = "/healthz",
         .methods = HTTP_GET | HTTP_HEAD,
         .handle = handle_health,
         .quick = always_quick},
        {.path = "/readyz",
         .methods = HTTP_GET | HTTP_HEAD,
         .handle = ready_handle,
         .ctx = ready,
         .quick = always_quick},
        {.path = "/v1/log-level",
         .methods = HTTP_GET | HTTP_HEAD | HTTP_PUT,
         .body_max = LOG_LEVEL_BODY_MAX,
         .handle = log_level_handle},
        {.path = "/metrics",
         .methods = HTTP_GET | HTTP_HEAD,
         .handle = metrics_handle,
         .ctx = sources},
        {.path = "/v1/disks/",
         .methods = HTTP_GET | HTTP_HEAD | HTTP_POST | HTTP_PUT | HTTP_DELETE,
         .body_max = LEASE_BODY_MAX,
         .handle = handle_disks,
         .quick = disks_is_quick,
         .ctx = disks},
        {.path = "/v1/leases",
         .methods = HTTP_GET | HTTP_HEAD,
         .handle = leases_handle_list,
         .ctx = store},
        {.path = "/v1/gc",
         .methods = HTTP_POST,
         .body_max = JOBS_BODY_MAX,
         .handle = jobs_handle,
         .ctx = jobs},
        {.path = "/v1/jobs", .methods = HTTP_GET | HTTP_HEAD, .handle = jobs_handle, .ctx = jobs},
        {.path = "/v1/jobs/",
         .methods = HTTP_GET | HTTP_HEAD | HTTP_DELETE,
         .handle = jobs_handle,
         .ctx = jobs},
        {.path = "/v1/scrub",
         .methods = HTTP_POST,
         .body_max = JOBS_BODY_MAX,
         .handle = jobs_handle,
         .ctx = jobs},
        {.path = "/v1/repositories/",
         .methods = HTTP_GET | HTTP_HEAD,
         .handle = registry_usage,
         .ctx = registry},
        {.path = "/v2",
         .methods = HTTP_GET | HTTP_HEAD,
         .handle = registry_handle,
         .ctx = registry},
        {.path = "/v2/",
         .methods = HTTP_GET | HTTP_HEAD | HTTP_POST | HTTP_PUT | HTTP_PATCH | HTTP_DELETE,
         .begin = registry_begin,
         .handle = registry_handle,
         .quick = registry_is_quick,
         .ctx = registry},
    };
    const size_t nr_routes = sizeof(routes) / sizeof(routes[0]);

    r = security_open(p, routes, nr_routes, &security, err);
    if (r == CAIRN_OK)
        r = listen_and_wait(p, &security, ready, conns, routes, nr_routes, signals, err);
    security_close(&security);
    return r;
}

/* Signals are waited for, not handled: all threads are born with them blocked. */
static void block_signals(sigset_t *ret_signals)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* writing past a limit is an error like a full disk */
    sigemptyset(ret_signals);
    sigaddset(ret_signals, SIGINT);
    sigaddset(ret_signals, SIGTERM);
    sigaddset(ret_signals, SIGUSR1); /* log more … */
    sigaddset(ret_signals, SIGUSR2); /* … or less */
    sigaddset(ret_signals, SIGHUP);  /* read the files of tokens and certificates again */
    pthread_sigmask(SIG_BLOCK, ret_signals, NULL);
}

static int run(const struct params *p)
{
    struct cairn_error err;
    enum log_level level;
    sigset_t signals;
    int r;

    if (log_parse_level(p->log_level, &level))
        log_set_level(level);
    raise_file_limit();
    block_signals(&signals);
    r = serve(p, &signals, &err);
    if (r)
        log_error("failed", &err);
    else
        log_event(LOG_LEVEL_INFO, "stopped", "all requests have ended");
    return error_exit_code(r);
}

int main(int argc, char **argv)
{
    enum params_action action;
    struct cairn_error err;
    struct params params;
    int r = params_load(argc, argv, environ, &params, &action, &err);

    if (r) {
        fprintf(stderr, "cairnd: %s\n", err.message);
        return error_exit_code(r);
    }
    if (action == PARAMS_HELP)
        params_help(stdout);
    else if (action == PARAMS_VERSION)
        printf("cairnd %s\n", CAIRN_VERSION);
    else if (action == PARAMS_ROUTES)
        access_print_routes(stdout);
    else
        r = run(&params);
    params_release(&params);
    return r;
}
