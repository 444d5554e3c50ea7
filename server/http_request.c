/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request as its handlers see it, how it begins, and how it ends: with a line in the log.
 *
 * It is held by its connection and, while a piece of its body is being handed over, by the work
 * that does so: the client may vanish then.
 */
#include "http_request.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "clock.h"
#include "log.h"

#define LOGGED_PATH_MAX 1024

/* Lines of X-Forwarded-For that are looked at, the last ones: proxies that do not lengthen the last
 * line add one each. */
#define FORWARDED_LINES_MAX 16

/* -- Requests, as handlers see them ------------------------------------------------------- */

enum http_method http_method(const struct http_request *req)
{
    return req->method;
}

const char *http_path(const struct http_request *req)
{
    return req->uri.path;
}

const char *http_request_id(const struct http_request *req)
{
    return req->id;
}

const char *http_user(const struct http_request *req)
{
    return req->user;
}

void http_set_user(struct http_request *req, const char *name)
{
    snprintf(req->user, sizeof(req->user), "%s", name);
}

void http_set_caller(struct http_request *req, const void *caller,
                     void (*release)(const void *caller))
{
    if (req->release_caller) /* of a quick try that a worker repeats */
        req->release_caller(req->caller);
    req->caller = caller;
    req->release_caller = release;
}

const void *http_caller(const struct http_request *req)
{
    return req->caller;
}

const char *http_header(const struct http_request *req, const char *name)
{
    return MHD_lookup_connection_value(req->connection, MHD_HEADER_KIND, name);
}

const char *http_query(const struct http_request *req, const char *name)
{
    for (unsigned i = 0; i < req->uri.nr_query; i++) {
        if (strcmp(req->uri.query[i].name, name) == 0)
            return req->uri.query[i].value;
    }
    return NULL;
}

const void *http_body(const struct http_request *req, size_t *ret_len)
{
    *ret_len = req->body.len;
    return req->body.data ? req->body.data : "";
}

bool http_content_length(const struct http_request *req, uint64_t *ret_len)
{
    const char *text = http_header(req, "Content-Length");
    char *end;

    if (!text || http_header(req, "Transfer-Encoding"))
        return false;
    errno = 0;
    *ret_len = strtoull(text, &end, 10); /* libmicrohttpd has checked it */
    return errno == 0 && *end == 0 && end != text;
}

void http_collect_body(struct http_request *req, size_t max)
{
    req->collect_max = max;
}

void http_stream_body(struct http_request *req, const struct http_sink *sink)
{
    req->sink = *sink;
}

void *http_sink_ctx(const struct http_request *req)
{
    return req->sink.ctx;
}

/* -- Life and death of a request ---------------------------------------------------------- */

void http_request_release_sink(struct http_request *req)
{
    if (req->sink.free)
        req->sink.free(req->sink.ctx);
    req->sink.free = NULL;
}

static void request_free(struct http_request *req)
{
    struct http_server *server = req->server;

    http_request_release_sink(req);
    if (req->caller)
        req->release_caller(req->caller);
    if (req->response)
        MHD_destroy_response(req->response);
    atomic_fetch_sub(&server->collected, req->body_size);
    atomic_fetch_sub(&server->replying, req->reply_memory);
    http_reply_release(&req->reply);
    http_uri_release(&req->uri);
    pthread_mutex_destroy(&req->lock);
    free(req->target);
    free(req->body.data);
    free(req->filling.data);
    free(req->sinking.data);
    free(req);
    pthread_mutex_lock(&server->lock);
    if (--server->nr_requests == 0)
        pthread_cond_broadcast(&server->idle);
    pthread_mutex_unlock(&server->lock);
}

static void run_free(struct work *work, bool cancelled)
{
    (void)cancelled;
    request_free((struct http_request *)work);
}

/* A sink that is still there was cut off in mid-body; what it then does may block. */
void http_request_unref(struct http_request *req)
{
    unsigned refs;

    pthread_mutex_lock(&req->lock);
    refs = --req->refs;
    pthread_mutex_unlock(&req->lock);
    if (refs > 0)
        return;
    req->work.run = run_free;
    if (!req->sink.free || !workers_submit(req->server->workers, &req->work, WORK_CONTINUES))
        request_free(req);
}

static struct http_conn *conn_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return info ? info->socket_context : NULL;
}

void *http_request_start(void *cls, const char *target, struct MHD_Connection *connection)
{
    struct http_server *server = cls;
    struct http_request *req = calloc(1, sizeof(*req));

    if (!req)
        return NULL;
    req->conn = conn_of(connection);
    http_conn_begin_request(req->conn);
    req->server = server;
    req->connection = connection;
    req->refs = 1;
    req->target = strdup(target);
    pthread_mutex_init(&req->lock, NULL);
    req->started_us = clock_now_us();
    snprintf(req->id, sizeof(req->id), "%08x-%x", server->id_prefix,
             atomic_fetch_add(&server->next_id, 1));
    http_reply_init(&req->reply, req->id);
    pthread_mutex_lock(&server->lock);
    server->nr_requests++;
    pthread_mutex_unlock(&server->lock);
    return req;
}

/* -- Who asks ----------------------------------------------------------------------------- */

static const struct sockaddr *peer_of(const struct http_request *req)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(req->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);

    return info ? info->client_addr : NULL;
}

struct forwarded {
    size_t nr;
    const char *lines[FORWARDED_LINES_MAX]; /* the last one first */
};

static enum MHD_Result note_forwarded(void *cls, enum MHD_ValueKind kind, const char *name,
                                      const char *value)
{
    struct forwarded *forwarded = cls;

    (void)kind;
    if (strcasecmp(name, "X-Forwarded-For") != 0)
        return MHD_YES;
    memmove(forwarded->lines + 1, forwarded->lines,
            sizeof(forwarded->lines) - sizeof(forwarded->lines[0]));
    forwarded->lines[0] = value ? value : "";
    if (forwarded->nr < FORWARDED_LINES_MAX)
        forwarded->nr++;
    return MHD_YES;
}

void http_request_find_client(struct http_request *req)
{
    const struct proxies *proxies = req->server->proxies;
    const struct sockaddr *peer = peer_of(req);
    struct forwarded forwarded = {0};

    if (!proxies || !peer || !proxies_trust(proxies, peer))
        return;
    MHD_get_connection_values(req->connection, MHD_HEADER_KIND, note_forwarded, &forwarded);
    proxies_client(proxies, forwarded.lines, forwarded.nr, req->client);
}

/* -- Its end ------------------------------------------------------------------------------ */

/* Bytes of a body that was cut on its way count only if they went through our hands. */
static uint64_t bytes_sent(const struct http_request *req, bool complete)
{
    if (req->streamed > 0)
        return req->streamed;
    return complete && req->method != HTTP_HEAD ? req->reply_len : 0;
}

static struct http_exchange exchange_of(const struct http_request *req, bool complete)
{
    const char *route = req->route ? req->route->path : "other";

    return (struct http_exchange){
        .route = req->reply.route ? req->reply.route : route,
        .method = req->method,
        .status = req->phase == PHASE_SENT ? req->reply.status : 0,
        .us = clock_now_us() - req->started_us,
        .received = req->received,
        .sent = bytes_sent(req, complete),
        .complete = complete,
    };
}

static void set_cork(const struct http_request *req, int on)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(req->connection, MHD_CONNECTION_INFO_CONNECTION_FD);

    if (info)
        setsockopt(info->connect_fd, IPPROTO_TCP, TCP_CORK, &on, sizeof(on));
}

void http_request_cork(struct http_request *req)
{
    req->corked = req->reply.kind == HTTP_REPLY_FD && req->reply.len >= HTTP_SENDFILE_MIN &&
                  req->method != HTTP_HEAD;
    if (req->corked)
        set_cork(req, 1);
}

static void log_client(struct log_line *line, const struct http_request *req)
{
    const struct sockaddr *peer = peer_of(req);
    char name[NI_MAXHOST] = "";

    if (peer && !req->client[0])
        getnameinfo(peer,
                    peer->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                : sizeof(struct sockaddr_in),
                    name, sizeof(name), NULL, 0, NI_NUMERICHOST);
    log_text(line, "client", req->client[0] ? req->client : name);
}

/* A long one must not push what follows out of the line. */
static void log_path(struct log_line *line, const char *target)
{
    char path[LOGGED_PATH_MAX + 1];
    int n = snprintf(path, sizeof(path), "%s", target);

    if (n > LOGGED_PATH_MAX)
        memcpy(path + LOGGED_PATH_MAX - 3, "...", 3);
    log_text(line, "path", path);
}

static void log_request(const struct http_request *req, const struct http_exchange *x)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_INFO, "request");
    if (line.dropped)
        return;
    log_text(&line, "method", req->method_text);
    log_path(&line, req->target ? req->target : "");
    log_number(&line, "status", x->status);
    log_number(&line, "bytes_in", x->received);
    log_number(&line, "bytes_out", x->sent);
    log_milliseconds(&line, "dur_ms", x->us);
    log_text(&line, "request_id", req->id);
    if (req->user[0])
        log_text(&line, "user", req->user);
    log_client(&line, req);
    if (!x->complete)
        log_text(&line, "cut", "yes");
    if (req->reply.message[0])
        log_text(&line, "error", req->reply.message);
    log_end(&line);
}

void http_request_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                            enum MHD_RequestTerminationCode how)
{
    struct http_request *req = *con_cls;
    struct http_exchange x;

    (void)cls;
    (void)connection;
    *con_cls = NULL;
    if (!req)
        return;
    http_conn_set_phase(req->conn, HTTP_CONN_IDLE);
    if (req->corked)
        set_cork(req, 0);
    x = exchange_of(req, how == MHD_REQUEST_TERMINATED_COMPLETED_OK);
    http_figures_add(req->server->figures, &x);
    log_request(req, &x);
    http_request_unref(req);
}
