/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP server: libmicrohttpd's threads on one side, the workers on the other.
 *
 * A request goes through the phases below.  Whenever a worker has it (BEGINNING, HANDLING) its
 * connection is suspended, so nothing else happens to it and it cannot go away.  While a body is
 * streamed (BODY) both sides work: libmicrohttpd's thread fills one buffer while a worker hands the
 * other to the sink, and the connection is suspended only when both are full.  The client may
 * vanish then; so the request is held by the connection and by the piece under way.
 *
 * libmicrohttpd takes a reply only before it reads a body or after it has read all of it.  An error
 * in mid-body is therefore kept and the rest of the body dropped, to a limit at which the
 * connection is cut.
 */
#include "http_internal.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "cleanup.h"
#include "log.h"

#define PIECE_SIZE        (256u << 10) /* of a streamed body; two of these per upload */
#define COLLECTED_MAX     (256u << 20) /* of all bodies being collected at once */
#define DROP_BEFORE_REPLY (64u << 20)  /* of a refused body: else RST may overtake the reply */
#define DROP_AFTER_ERROR  (1u << 30)   /* of a body that failed on its way */
#define REPLY_SMALL       (4u << 10)   /* not counted: refusals must get through */
#define QUEUED_PER_WORKER 64
#define REQUEST_ID_MAX    64

enum phase {
    PHASE_HEADERS,   /* new */
    PHASE_BEGINNING, /* a worker runs the route's begin */
    PHASE_BEGUN,     /* it wants the body */
    PHASE_BODY,      /* reading it, also where there is none */
    PHASE_HANDLING,  /* a worker runs the route's handle */
    PHASE_REPLY,     /* the reply is ready */
    PHASE_REFUSED,   /* the same, and the body was not asked for */
    PHASE_DROPPING,  /* the same, but the body is read to its end first */
    PHASE_SENT,
};

struct piece {
    char *data;
    size_t len;
};

struct http_request {
    struct work work;
    struct http_server *server;
    struct MHD_Connection *connection;
    const struct http_route *route;
    enum phase phase;
    bool has_begun; /* a worker has had it already */
    enum http_method method;
    char method_text[16];
    char *target; /* as it was sent, for the log */
    struct http_uri uri;
    char id[REQUEST_ID_MAX + 1];
    struct timespec started;
    uint64_t dropped; /* bytes of the body that nobody wanted */
    struct http_reply reply;
    struct MHD_Response *response;
    uint64_t reply_len;
    size_t reply_memory; /* counted for its body */

    /* a collected body */
    size_t collect_max, body_size; /* body_size: allocated */
    struct piece body;

    /* a streamed body */
    struct http_sink sink;
    pthread_mutex_t lock; /* protects all below */
    unsigned refs;
    struct piece filling, sinking;
    bool sink_busy; /* a worker has the sinking piece */
    bool suspended; /* the connection waits for that */
    bool failed;
    struct cairn_error failure;
};

struct http_server {
    struct http_acceptor *acceptor;
    struct MHD_Daemon **daemons; /* each has one thread */
    unsigned nr_daemons;
    struct workers *workers;
    const struct http_route *routes;
    size_t nr_routes;
    char address[80];
    uint32_t id_prefix;
    atomic_uint next_id;
    atomic_size_t collected; /* bytes of bodies in memory */
    size_t max_replying;
    atomic_size_t replying; /* the same of replies */
    atomic_bool stopping;
    pthread_mutex_t lock; /* protects nr_requests */
    pthread_cond_t idle;
    unsigned nr_requests;
};

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

static void release_sink(struct http_request *req)
{
    if (req->sink.free)
        req->sink.free(req->sink.ctx);
    req->sink.free = NULL;
}

static void request_free(struct http_request *req)
{
    struct http_server *server = req->server;

    release_sink(req);
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
static void request_unref(struct http_request *req)
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

/* libmicrohttpd calls this with the request line, before anything else of a request. */
static void *on_request_line(void *cls, const char *target, struct MHD_Connection *connection)
{
    struct http_server *server = cls;
    struct http_request *req = calloc(1, sizeof(*req));

    if (!req)
        return NULL;
    req->server = server;
    req->connection = connection;
    req->refs = 1;
    req->target = strdup(target);
    pthread_mutex_init(&req->lock, NULL);
    clock_gettime(CLOCK_MONOTONIC, &req->started);
    snprintf(req->id, sizeof(req->id), "%08x-%x", server->id_prefix,
             atomic_fetch_add(&server->next_id, 1));
    http_reply_init(&req->reply, req->id);
    pthread_mutex_lock(&server->lock);
    server->nr_requests++;
    pthread_mutex_unlock(&server->lock);
    return req;
}

static void log_request(const struct http_request *req, bool complete)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(req->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    char peer[NI_MAXHOST] = "";
    struct log_line line;
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (info)
        getnameinfo(info->client_addr,
                    info->client_addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                             : sizeof(struct sockaddr_in),
                    peer, sizeof(peer), NULL, 0, NI_NUMERICHOST);
    log_begin(&line, LOG_LEVEL_INFO, "request");
    log_text(&line, "method", req->method_text);
    log_text(&line, "path", req->target ? req->target : "");
    log_number(&line, "status", req->phase == PHASE_SENT ? req->reply.status : 0);
    log_number(&line, "bytes", complete && req->method != HTTP_HEAD ? req->reply_len : 0);
    log_number(&line, "dur_ms",
               (uint64_t)((now.tv_sec - req->started.tv_sec) * 1000 +
                          (now.tv_nsec - req->started.tv_nsec) / 1000000));
    log_text(&line, "id", req->id);
    log_text(&line, "peer", peer);
    if (!complete)
        log_text(&line, "cut", "yes");
    if (req->reply.message[0])
        log_text(&line, "error", req->reply.message);
    log_end(&line);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode how)
{
    struct http_request *req = *con_cls;

    (void)cls;
    (void)connection;
    *con_cls = NULL;
    if (!req)
        return;
    log_request(req, how == MHD_REQUEST_TERMINATED_COMPLETED_OK);
    request_unref(req);
}

/* -- Replying ----------------------------------------------------------------------------- */

/* Clients that ask for much and fetch nothing get a refusal in the end. */
static void count_reply_memory(struct http_request *req)
{
    struct http_server *server = req->server;
    size_t need = req->method == HTTP_HEAD ? 0 : http_reply_memory(&req->reply);

    if (need <= REPLY_SMALL)
        return;
    if (atomic_fetch_add(&server->replying, need) + need <= server->max_replying) {
        req->reply_memory += need;
        return;
    }
    atomic_fetch_sub(&server->replying, need);
    http_reply_error(&req->reply, MHD_HTTP_SERVICE_UNAVAILABLE, "UNAVAILABLE",
                     "too many replies wait for their clients, try again later");
}

/* On a worker, or where the reply needs none: the reply is final, let it be sent. */
static void prepare_reply(struct http_request *req)
{
    const struct http_stream_env env = {
        .workers = req->server->workers,
        .connection = req->connection,
        .request_id = req->id,
    };

    count_reply_memory(req);
    req->response = http_reply_prepare(&req->reply, req->method == HTTP_HEAD,
                                       atomic_load(&req->server->stopping), &env);
    req->reply_len = req->reply.len;
    req->phase = PHASE_REPLY;
}

static enum MHD_Result send_reply(struct http_request *req)
{
    enum MHD_Result queued;

    if (!req->response)
        return MHD_NO;
    queued = MHD_queue_response(req->connection, req->reply.status, req->response);
    MHD_destroy_response(steal_ptr(req->response));
    req->phase = PHASE_SENT;
    return queued;
}

static bool has_body(const struct http_request *req)
{
    uint64_t len;

    if (http_content_length(req, &len))
        return len > 0;
    return http_header(req, "Transfer-Encoding") != NULL;
}

/*
 * The reply is there before the body is.  A short body, or none, is read first: after a reply given
 * now libmicrohttpd closes, and closing with unread bytes can take the reply from the client.  One
 * that waits for 100 Continue, or is long, gets its reply at once all the same.
 */
static enum MHD_Result reply_early(struct http_request *req)
{
    uint64_t len;
    bool is_long = http_content_length(req, &len) && len > DROP_BEFORE_REPLY;

    if (has_body(req) && (is_long || http_header(req, "Expect")))
        return send_reply(req);
    req->phase = PHASE_DROPPING;
    return MHD_YES;
}

static enum MHD_Result refuse(struct http_request *req, unsigned status, const char *oci_code,
                              const char *reason)
{
    http_reply_error(&req->reply, status, oci_code, "%s", reason);
    prepare_reply(req);
    return reply_early(req);
}

static enum MHD_Result fail(struct http_request *req, const struct cairn_error *err)
{
    http_reply_failure(&req->reply, err);
    prepare_reply(req);
    return send_reply(req);
}

/* -- Handing over to a worker ------------------------------------------------------------- */

static void run_piece(struct http_request *req, struct piece *piece, struct cairn_error *err)
{
    int r = req->sink.piece(req->sink.ctx, piece->data, piece->len, err);

    piece->len = 0;
    if (r)
        req->failed = true;
}

static void run_handle(struct work *work, bool cancelled)
{
    struct http_request *req = (struct http_request *)work;

    if (cancelled)
        error_set(&req->failure, CAIRN_E_UNAVAILABLE, "the server is stopping");
    req->failed = req->failed || cancelled;
    if (!req->failed && req->filling.len > 0)
        run_piece(req, &req->filling, &req->failure);
    if (req->failed)
        http_reply_failure(&req->reply, &req->failure);
    else
        req->route->handle(req->route->ctx, req, &req->reply);
    release_sink(req);
    prepare_reply(req);
    MHD_resume_connection(req->connection);
}

static void run_begin(struct work *work, bool cancelled)
{
    struct http_request *req = (struct http_request *)work;

    if (cancelled)
        http_reply_error(&req->reply, MHD_HTTP_SERVICE_UNAVAILABLE, "UNAVAILABLE",
                         "the server is stopping");
    else
        req->route->begin(req->route->ctx, req, &req->reply);
    req->has_begun = true;
    if (req->reply.kind != HTTP_REPLY_NONE)
        prepare_reply(req);
    req->phase = req->reply.kind == HTTP_REPLY_NONE ? PHASE_BEGUN : PHASE_REFUSED;
    MHD_resume_connection(req->connection);
}

/* Suspend the connection and let a worker go on; it resumes when phase has been left. */
static enum MHD_Result hand_over(struct http_request *req, enum phase phase,
                                 void (*run)(struct work *work, bool cancelled),
                                 enum work_kind kind)
{
    req->phase = phase;
    req->work.run = run;
    MHD_suspend_connection(req->connection);
    if (!workers_submit(req->server->workers, &req->work, kind)) {
        http_reply_error(&req->reply, MHD_HTTP_SERVICE_UNAVAILABLE, "UNAVAILABLE",
                         "too many requests are waiting, try again later");
        prepare_reply(req);
        req->phase = phase == PHASE_BEGINNING ? PHASE_REFUSED : PHASE_REPLY;
        MHD_resume_connection(req->connection);
    }
    return MHD_YES;
}

/* -- Headers ------------------------------------------------------------------------------ */

static bool parse_method(struct http_request *req, const char *method)
{
    static const struct {
        const char *name;
        enum http_method method;
    } known[] = {{"GET", HTTP_GET}, {"HEAD", HTTP_HEAD},   {"POST", HTTP_POST},
                 {"PUT", HTTP_PUT}, {"PATCH", HTTP_PATCH}, {"DELETE", HTTP_DELETE}};

    snprintf(req->method_text, sizeof(req->method_text), "%s", method);
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, method) == 0)
            req->method = known[i].method;
    }
    return req->method != 0;
}

/* A client may name its request, with printable characters that need no quoting anywhere. */
static void take_request_id(struct http_request *req)
{
    static const char token[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "!#$%&'*+-.^_`|~:/";
    const char *id = http_header(req, "X-Request-Id");
    size_t len = id ? strlen(id) : 0;

    if (len > 0 && len <= REQUEST_ID_MAX && strspn(id, token) == len)
        memcpy(req->id, id, len + 1);
}

static const struct http_route *find_route(const struct http_server *server, const char *path)
{
    for (size_t i = 0; i < server->nr_routes; i++) {
        const struct http_route *route = &server->routes[i];
        size_t len = strlen(route->path);

        if (strcmp(route->path, path) == 0 ||
            (route->path[len - 1] == '/' && strncmp(route->path, path, len) == 0))
            return route;
    }
    return NULL;
}

/* The route wants the body, unless it is too large anyway. */
static enum MHD_Result on_begun(struct http_request *req)
{
    uint64_t len;

    if (!req->sink.piece && http_content_length(req, &len) && req->collect_max > 0 &&
        len > req->collect_max)
        return refuse(req, MHD_HTTP_CONTENT_TOO_LARGE, "SIZE_INVALID", "the body is too large");
    req->phase = PHASE_BODY;
    return MHD_YES;
}

static enum MHD_Result start_route(struct http_request *req)
{
    const unsigned with_body = HTTP_POST | HTTP_PUT | HTTP_PATCH;

    if (!(req->route->methods & req->method)) {
        http_reply_methods(&req->reply, req->route->methods);
        prepare_reply(req);
        return reply_early(req);
    }
    if (!(req->method & with_body) && has_body(req))
        return refuse(req, MHD_HTTP_BAD_REQUEST, "UNSUPPORTED", "this method does not take a body");
    req->collect_max = req->route->body_max;
    if ((req->method & with_body) && req->route->begin)
        return hand_over(req, PHASE_BEGINNING, run_begin, WORK_NEW);
    return on_begun(req);
}

static enum MHD_Result on_headers(struct http_request *req, const char *method)
{
    const char *reason;
    unsigned status;

    take_request_id(req);
    if (!req->target)
        return MHD_NO;
    if (!parse_method(req, method))
        return refuse(req, MHD_HTTP_NOT_IMPLEMENTED, "UNSUPPORTED", "unknown method");
    status = http_uri_parse(req->target, &req->uri, &reason);
    if (status)
        return refuse(req, status, "BAD_REQUEST", reason);
    req->route = find_route(req->server, req->uri.path);
    if (!req->route)
        return refuse(req, MHD_HTTP_NOT_FOUND, "NOT_FOUND", "there is nothing at this path");
    return start_route(req);
}

/* -- Bodies ------------------------------------------------------------------------------- */

static enum MHD_Result drop(struct http_request *req, size_t *len, uint64_t max)
{
    req->dropped += *len;
    *len = 0;
    return req->dropped > max ? MHD_NO : MHD_YES;
}

/* Make room for len more bytes of a collected body. */
static int grow_body(struct http_request *req, size_t len, struct cairn_error *err)
{
    struct http_server *server = req->server;
    size_t need = req->body.len + len, size = req->body_size ? req->body_size : 4096;
    char *data;

    if (need > req->collect_max)
        return error_set(err, CAIRN_E_LIMIT, "the body is larger than %zu bytes", req->collect_max);
    if (need <= req->body_size)
        return CAIRN_OK;
    while (size < need)
        size *= 2;
    if (atomic_fetch_add(&server->collected, size - req->body_size) + size > COLLECTED_MAX) {
        atomic_fetch_sub(&server->collected, size - req->body_size);
        return error_set(err, CAIRN_E_UNAVAILABLE, "too many bodies are being received");
    }
    data = realloc(req->body.data, size);
    if (!data) {
        atomic_fetch_sub(&server->collected, size - req->body_size);
        return error_no_memory(err, "a request's body");
    }
    req->body.data = data;
    req->body_size = size;
    return CAIRN_OK;
}

static enum MHD_Result collect(struct http_request *req, const char *data, size_t *len)
{
    if (grow_body(req, *len, &req->failure)) {
        req->failed = true;
        return drop(req, len, DROP_AFTER_ERROR);
    }
    memcpy(req->body.data + req->body.len, data, *len);
    req->body.len += *len;
    *len = 0;
    return MHD_YES;
}

/* A worker has the sinking piece to itself while sink_busy is set. */
static void run_sink(struct work *work, bool cancelled)
{
    struct http_request *req = (struct http_request *)work;
    struct cairn_error err;
    int r = CAIRN_E_UNAVAILABLE;

    if (cancelled)
        error_set(&err, CAIRN_E_UNAVAILABLE, "the server is stopping");
    else
        r = req->sink.piece(req->sink.ctx, req->sinking.data, req->sinking.len, &err);
    pthread_mutex_lock(&req->lock);
    req->sinking.len = 0;
    req->sink_busy = false;
    if (r) {
        req->failed = true;
        req->failure = err;
    }
    if (req->suspended) {
        req->suspended = false;
        MHD_resume_connection(req->connection);
    }
    pthread_mutex_unlock(&req->lock);
    request_unref(req);
}

static void sink_filled_locked(struct http_request *req)
{
    struct piece filled = req->filling;

    req->filling = req->sinking;
    req->sinking = filled;
    req->sink_busy = true;
    req->refs++;
    req->work.run = run_sink;
    if (!workers_submit(req->server->workers, &req->work, WORK_CONTINUES)) {
        req->sink_busy = false;
        req->refs--;
        req->failed = true;
        error_set(&req->failure, CAIRN_E_UNAVAILABLE, "the server is stopping");
    }
}

static void suspend_locked(struct http_request *req)
{
    req->suspended = true;
    MHD_suspend_connection(req->connection);
}

/* Copy what fits; false when a buffer cannot be had. */
static bool fill_piece(struct piece *piece, const char *data, size_t len, size_t *done)
{
    size_t n = min_u64(len - *done, PIECE_SIZE - piece->len);

    if (!piece->data)
        piece->data = malloc(PIECE_SIZE);
    if (!piece->data)
        return false;
    memcpy(piece->data + piece->len, data + *done, n);
    piece->len += n;
    *done += n;
    return true;
}

static enum MHD_Result stream(struct http_request *req, const char *data, size_t *len)
{
    size_t done = 0;

    SCOPED_LOCK(&req->lock);
    while (done < *len && !req->failed) {
        if (req->filling.len < PIECE_SIZE) {
            if (!fill_piece(&req->filling, data, *len, &done)) {
                error_no_memory(&req->failure, "an upload");
                req->failed = true;
            }
        } else if (!req->sink_busy) {
            sink_filled_locked(req);
        } else {
            suspend_locked(req);
            break;
        }
    }
    if (req->failed)
        return drop(req, len, DROP_AFTER_ERROR);
    *len -= done;
    return MHD_YES;
}

static enum MHD_Result on_body_end(struct http_request *req)
{
    pthread_mutex_lock(&req->lock);
    if (req->sink_busy) {
        suspend_locked(req); /* and come here again */
        pthread_mutex_unlock(&req->lock);
        return MHD_YES;
    }
    pthread_mutex_unlock(&req->lock);
    if (req->failed)
        return fail(req, &req->failure);
    return hand_over(req, PHASE_HANDLING, run_handle, req->has_begun ? WORK_CONTINUES : WORK_NEW);
}

static enum MHD_Result on_body(struct http_request *req, const char *data, size_t *len)
{
    if (*len == 0)
        return on_body_end(req);
    if (req->sink.piece)
        return stream(req, data, len);
    if (req->failed || req->collect_max == 0)
        return drop(req, len, req->failed ? DROP_AFTER_ERROR : DROP_BEFORE_REPLY);
    return collect(req, data, len);
}

/* -- libmicrohttpd ------------------------------------------------------------------------ */

/*
 * Called for the headers, for each part of the body, behind its end with *len == 0, and again
 * whenever the connection was resumed.
 */
static enum MHD_Result on_access(void *cls, struct MHD_Connection *connection, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *len, void **con_cls)
{
    struct http_request *req = *con_cls;

    (void)cls;
    (void)connection;
    (void)url;
    (void)version;
    if (!req)
        return MHD_NO;
    switch (req->phase) {
    case PHASE_HEADERS:
        return on_headers(req, method);
    case PHASE_BEGUN:
        return on_begun(req);
    case PHASE_BODY:
        return on_body(req, data, len);
    case PHASE_REFUSED:
        return reply_early(req);
    case PHASE_DROPPING:
        return *len > 0 ? drop(req, len, DROP_BEFORE_REPLY) : send_reply(req);
    case PHASE_REPLY:
        return *len > 0 ? drop(req, len, DROP_AFTER_ERROR) : send_reply(req);
    case PHASE_BEGINNING:
    case PHASE_HANDLING:
    case PHASE_SENT:
        break;
    }
    return MHD_NO; /* not while a worker has it */
}

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

/* -- Starting and stopping ---------------------------------------------------------------- */

static struct MHD_Daemon *start_daemon(struct http_server *server,
                                       const struct http_options *options)
{
    const unsigned nr_connections = (options->max_connections - 1) / options->threads + 1;

    return MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_TURBO | MHD_ALLOW_SUSPEND_RESUME |
            MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG,
        0, NULL, NULL, on_access, server,
        /* the logger first, for what the other options have to say */
        MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, server,                         //
        MHD_OPTION_CONNECTION_LIMIT, nr_connections,                            //
        MHD_OPTION_CONNECTION_TIMEOUT, options->connection_timeout_s,           //
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, options->connection_memory,         //
        MHD_OPTION_CONNECTION_MEMORY_INCREMENT, options->connection_memory / 4, //
        MHD_OPTION_STRICT_FOR_CLIENT, 1,                                        //
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, server,                     //
        MHD_OPTION_URI_LOG_CALLBACK, on_request_line, server,                   //
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, server,                      //
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
        r = workers_new(options->workers, (size_t)options->workers * QUEUED_PER_WORKER,
                        &server->workers, err);
    if (!r)
        r = start_daemons(server, options, err);
    if (!r)
        r = http_acceptor_start(fd, server->daemons, server->nr_daemons, &server->acceptor, err);
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
