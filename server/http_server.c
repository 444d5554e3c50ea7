/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server: libmicrohttpd's daemons, one thread each, the workers, and how they start and stop.
 */
#include "http_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "http_tls.h"
#include "log.h"

#define QUEUED_PER_WORKER 64
#define CLOSING_MAX       256

static void on_mhd_log(void *cls, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));
static void on_mhd_log(void *cls, const char *fmt, va_list ap)
{
    char text[512];

    (void)cls;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\r\n")] = 0;
    log_event(LOG_LEVEL_DEBUG, "http", "%s", text);
}

/* Paths and queries are ours to decode. */
static size_t keep_escapes(void *cls, struct MHD_Connection *connection, char *text)
{
    (void)cls;
    (void)connection;
    return strlen(text);
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http_server *server = cls;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);

    if (server->tls && what == MHD_CONNECTION_NOTIFY_STARTED)
        http_tls_begin(server->tls, connection);
    if (server->conns && info && what == MHD_CONNECTION_NOTIFY_STARTED)
        *socket_context = http_conns_started(server->conns, info->connect_fd);
    if (server->conns && what == MHD_CONNECTION_NOTIFY_CLOSED)
        http_conns_closed(server->conns, *socket_context);
}

/* -- Starting and stopping ---------------------------------------------------------------- */

static struct MHD_Daemon *start_daemon(struct http_server *server,
                                       const struct http_options *options)
{
    /* Where they are counted when they are accepted, each daemon could get them all, and those that
     * are being closed. */
    const unsigned nr_connections = options->conns
                                        ? options->max_connections + CLOSING_MAX
                                        : (options->max_connections - 1) / options->threads + 1;
    struct MHD_OptionItem tls[HTTP_TLS_OPTIONS_MAX] = {{MHD_OPTION_END, 0, NULL}};

    if (options->tls)
        http_tls_daemon_options(options->tls, tls);
    return MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_TURBO | MHD_ALLOW_SUSPEND_RESUME |
            MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG | (options->tls ? MHD_USE_TLS : 0),
        0, NULL, NULL, http_request_step, server,
        /* the logger first, for what the other options have to say */
        MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, server,                         //
        MHD_OPTION_CONNECTION_LIMIT, nr_connections,                            //
        MHD_OPTION_CONNECTION_TIMEOUT, options->connection_timeout_s,           //
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, options->connection_memory,         //
        MHD_OPTION_CONNECTION_MEMORY_INCREMENT, options->connection_memory / 4, //
        /* http_strict.c is; libmicrohttpd's own check of Host sends the head of its reply twice */
        MHD_OPTION_STRICT_FOR_CLIENT, 0,                             //
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, server,          //
        MHD_OPTION_URI_LOG_CALLBACK, http_request_start, server,     //
        MHD_OPTION_NOTIFY_COMPLETED, http_request_completed, server, //
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, server,         //
        MHD_OPTION_ARRAY, tls,                                       //
        MHD_OPTION_END);
}

static int start_daemons(struct http_server *server, const struct http_options *options,
                         struct cairn_error *err)
{
    server->daemons = calloc(options->threads, sizeof(*server->daemons));
    if (!server->daemons)
        return error_no_memory(err, "the HTTP server");
    for (; server->nr_daemons < options->threads; server->nr_daemons++) {
        struct MHD_Daemon *daemon = start_daemon(server, options);

        if (!daemon)
            return error_set(err, CAIRN_E_IO, "cannot start the HTTP server on %s",
                             server->address);
        server->daemons[server->nr_daemons] = daemon;
    }
    return CAIRN_OK;
}

static int start(struct http_server *server, const struct http_options *options,
                 struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = http_listen(options->listen, &fd, err);

    if (!r)
        r = http_socket_name(fd, server->address, sizeof(server->address), err);
    if (!r)
        r = http_figures_new(&server->figures, err);
    if (!r)
        r = workers_new(options->workers, (size_t)options->workers * QUEUED_PER_WORKER,
                        &server->workers, err);
    if (!r)
        r = start_daemons(server, options, err);
    if (!r)
        r = http_acceptor_start(fd, server, &server->acceptor, err);
    if (!r)
        steal_fd(&fd);
    return r;
}

/* Every suspended connection is resumed by the work it waits for, done or cancelled; so when the
 * workers have stopped there is none left, as MHD_stop_daemon demands. */
static void server_free(struct http_server *server)
{
    if (server->workers)
        workers_stop(server->workers);
    while (server->nr_daemons > 0)
        MHD_stop_daemon(server->daemons[--server->nr_daemons]);
    workers_free(server->workers);
    pthread_cond_destroy(&server->idle);
    pthread_mutex_destroy(&server->lock);
    http_figures_free(server->figures);
    free(server->daemons);
    free(server);
}

int http_server_start(const struct http_options *options, const struct http_route *routes,
                      size_t nr_routes, struct http_server **ret_server, struct cairn_error *err)
{
    struct http_server *server = calloc(1, sizeof(*server));
    pthread_condattr_t attr;
    int r;

    if (!server)
        return error_no_memory(err, "the HTTP server");
    server->admission = options->admission;
    server->tls = options->tls;
    server->proxies = options->proxies;
    server->limits = options->limits;
    server->conns = options->conns;
    server->routes = routes;
    server->nr_routes = nr_routes;
    server->max_replying = options->reply_memory;
    if (getrandom(&server->id_prefix, sizeof(server->id_prefix), 0) < 0)
        server->id_prefix = (uint32_t)getpid();
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&server->idle, &attr);
    pthread_condattr_destroy(&attr);
    r = start(server, options, err);
    if (r)
        server_free(server);
    else
        *ret_server = server;
    return r;
}

const char *http_server_address(const struct http_server *server)
{
    return server->address;
}

/* -- Figures ------------------------------------------------------------------------------ */

static uint64_t nr_connections(const struct http_server *server)
{
    uint64_t nr = 0;

    for (unsigned i = 0; i < server->nr_daemons; i++) {
        const union MHD_DaemonInfo *info =
            MHD_get_daemon_info(server->daemons[i], MHD_DAEMON_INFO_CURRENT_CONNECTIONS);

        nr += info ? info->num_connections : 0;
    }
    return nr;
}

struct gauges {
    uint64_t requests, connections, body_bytes, reply_bytes;
    struct workers_load load;
};

static struct gauges take_gauges(struct http_server *server)
{
    struct gauges g = {
        .connections = nr_connections(server),
        .body_bytes = atomic_load_explicit(&server->collected, memory_order_relaxed),
        .reply_bytes = atomic_load_explicit(&server->replying, memory_order_relaxed),
    };

    workers_get_load(server->workers, &g.load);
    pthread_mutex_lock(&server->lock);
    g.requests = server->nr_requests;
    pthread_mutex_unlock(&server->lock);
    return g;
}

void http_queue(const struct http_request *req, uint64_t *ret_queued, uint64_t *ret_max)
{
    struct workers_load load;

    workers_get_load(req->server->workers, &load);
    *ret_queued = load.fresh;
    *ret_max = load.max_fresh;
}

void http_write_metrics(const struct http_request *req, struct metrics *m)
{
#define GAUGE(field) offsetof(struct gauges, field)
    static const struct metrics_row rows[] = {
        {"cairn_http_requests_in_flight", "gauge", "Requests that have begun and are not over.",
         GAUGE(requests)},
        {"cairn_http_connections", "gauge", "Connections of clients.", GAUGE(connections)},
        {"cairn_http_request_body_memory_bytes", "gauge", "Memory of bodies being collected.",
         GAUGE(body_bytes)},
        {"cairn_http_reply_memory_bytes", "gauge",
         "Memory of replies that clients have not fetched yet.", GAUGE(reply_bytes)},
        {"cairn_workers", "gauge", "Worker threads.", GAUGE(load.threads)},
        {"cairn_workers_busy", "gauge", "Worker threads that are at work.", GAUGE(load.busy)},
        {"cairn_workers_queued_requests", "gauge", "New requests that wait for a worker.",
         GAUGE(load.fresh)},
        {"cairn_workers_queued_requests_limit", "gauge", "New requests beyond these are refused.",
         GAUGE(load.max_fresh)},
        {"cairn_workers_queued_pieces", "gauge",
         "Pieces of bodies and replies that wait for a worker.", GAUGE(load.continuing)},
        {"cairn_workers_refused_total", "counter", "Requests that the queue had no room for.",
         GAUGE(load.refused)},
    };
#undef GAUGE
    struct gauges g = take_gauges(req->server);

    http_figures_write(req->server->figures, m);
    metrics_rows(m, rows, sizeof(rows) / sizeof(rows[0]), &g);
}

/* -- The end ------------------------------------------------------------------------------ */

static void wait_until_idle(struct http_server *server, unsigned timeout_ms)
{
    struct timespec deadline;
    int waited = 0;

    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += timeout_ms / 1000;
    deadline.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&server->lock);
    while (server->nr_requests > 0 && waited == 0)
        waited = pthread_cond_timedwait(&server->idle, &server->lock, &deadline);
    if (server->nr_requests > 0)
        log_event(LOG_LEVEL_WARN, "stop", "%u requests are cut at the deadline",
                  server->nr_requests);
    pthread_mutex_unlock(&server->lock);
}

void http_server_stop(struct http_server *server, unsigned timeout_ms)
{
    if (!server)
        return;
    atomic_store(&server->stopping, true);
    http_acceptor_stop(server->acceptor);
    wait_until_idle(server, timeout_ms);
    server_free(server);
}
