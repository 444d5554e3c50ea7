/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairnd: has the parts put together (parts.c), gives each path to one of them, serves until SIGINT
 * or SIGTERM, and has the parts taken apart again.  What concerns the process is here, too: its
 * arguments, signals and limits.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "clock.h"
#include "disks.h"
#include "http.h"
#include "jobs.h"
#include "leases.h"
#include "log.h"
#include "log_level.h"
#include "metrics.h"
#include "params.h"
#include "parts.h"
#include "ready.h"
#include "registry.h"
#include "service_notify.h"

#define FOREVER_US (UINT64_C(1) << 60)

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
static void serve_until_end(struct parts *parts, const sigset_t *signals)
{
    uint64_t drain_s = parts->params->drain_time;
    int sig = wait_for_end(signals, &parts->security, FOREVER_US);

    ready_stop(parts->ready);
    if (drain_s > 0) {
        log_event(LOG_LEVEL_INFO, "draining", "%s, for %" PRIu64 " s", sigabbrev_np(sig), drain_s);
        wait_for_end(signals, &parts->security, clock_now_us() + drain_s * 1000000);
    }
    log_event(LOG_LEVEL_INFO, "stopping", "%s", sigabbrev_np(sig));
}

static int listen_and_wait(struct parts *parts, const struct http_route *routes, size_t nr_routes,
                           const sigset_t *signals, struct cairn_error *err)
{
    const struct params *p = parts->params;
    struct security *security = &parts->security;
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
        .limits = parts_limits(p),
        .conns = parts->conns,
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
        serve_until_end(parts, signals);
        service_notify("STOPPING=1");
    }
    http_server_stop(server, (unsigned)p->stop_timeout * 1000);
    if (p->port_file)
        unlink(p->port_file);
    return r;
}

#define READ (HTTP_GET | HTTP_HEAD)

/* Give each path to its part, and serve. */
static int serve_routes(struct parts *parts, const sigset_t *signals, struct cairn_error *err)
{
    const struct http_route routes[] = {
        {.path = "/healthz", .methods = READ, .handle = handle_health, .quick = always_quick},
        {.path = "/readyz",
         .methods = READ,
         .handle = ready_handle,
         .ctx = parts->ready,
         .quick = always_quick},
        {.path = "/metrics", .methods = READ, .handle = metrics_handle, .ctx = &parts->metrics},
        {.path = "/v1/log-level",
         .methods = READ | HTTP_PUT,
         .body_max = LOG_LEVEL_BODY_MAX,
         .handle = log_level_handle},
        {.path = "/v1/disks/",
         .methods = HTTP_ANY,
         .body_max = LEASE_BODY_MAX,
         .handle = handle_disks,
         .ctx = parts->disks,
         .quick = disks_is_quick},
        {.path = "/v1/leases", .methods = READ, .handle = leases_handle_list, .ctx = parts->store},
        {.path = "/v1/gc",
         .methods = HTTP_POST,
         .body_max = JOBS_BODY_MAX,
         .handle = jobs_handle,
         .ctx = parts->jobs},
        {.path = "/v1/scrub",
         .methods = HTTP_POST,
         .body_max = JOBS_BODY_MAX,
         .handle = jobs_handle,
         .ctx = parts->jobs},
        {.path = "/v1/jobs", .methods = READ, .handle = jobs_handle, .ctx = parts->jobs},
        {.path = "/v1/jobs/",
         .methods = READ | HTTP_DELETE,
         .handle = jobs_handle,
         .ctx = parts->jobs},
        {.path = "/v1/repositories/",
         .methods = READ,
         .handle = registry_usage,
         .ctx = parts->registry},
        {.path = "/v2", .methods = READ, .handle = registry_handle, .ctx = parts->registry},
        {.path = "/v2/",
         .methods = HTTP_ANY,
         .begin = registry_begin,
         .handle = registry_handle,
         .ctx = parts->registry,
         .quick = registry_is_quick},
    };
    const size_t nr_routes = sizeof(routes) / sizeof(routes[0]);
    int r = security_open(parts->params, routes, nr_routes, &parts->security, err);

    return r ? r : listen_and_wait(parts, routes, nr_routes, signals, err);
}

static int serve(const struct params *p, const sigset_t *signals, struct cairn_error *err)
{
    struct parts parts;
    int r = parts_open(p, &parts, err);

    if (r)
        return r;
    r = serve_routes(&parts, signals, err);
    parts_close(&parts);
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
