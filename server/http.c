/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request's way: libmicrohttpd's threads on one side, the workers on the other.
 *
 * What can be answered from memory and the page cache (most reads of ranges) is, at once, on the
 * thread that has the connection (nowait.h): the way to a worker and back, three wake-ups and four
 * system calls, would cost more than the answer.  Everything else goes to a worker.
 *
 * A request goes through the phases of http_request.h.  Whenever a worker has it (BEGINNING,
 * HANDLING) its connection is suspended, so nothing else happens to it and it cannot go away.  The
 * exception is a body that is streamed (BODY, http_body.c).
 *
 * libmicrohttpd takes a reply only before it reads a body or after it has read all of it.  An error
 * in mid-body is therefore kept and the rest of the body dropped, to a limit at which the
 * connection is cut.
 */
#include "http_request.h"

#include <stdio.h>
#include <string.h>

#include "cleanup.h"
#include "http_strict.h"
#include "nowait.h"

#define REPLY_SMALL (4u << 10) /* not counted: refusals must get through */

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
        .sent = &req->streamed,
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
    http_conn_set_phase(req->conn, HTTP_CONN_ANSWERING);
    http_request_cork(req);
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
    bool is_long = http_content_length(req, &len) && len > HTTP_DROP_BEFORE_REPLY;

    if (has_body(req) && (is_long || http_header(req, "Expect")))
        return send_reply(req);
    http_conn_set_phase(req->conn, HTTP_CONN_BODY);
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

/* May the request go on?  If not, that has been replied. */
static bool admitted(struct http_request *req)
{
    const struct http_admission *admission = &req->server->admission;

    if (!admission->admit || admission->admit(admission->ctx, req, &req->reply))
        return true;
    if (req->reply.kind == HTTP_REPLY_NONE)
        http_reply_error(&req->reply, MHD_HTTP_FORBIDDEN, "DENIED", "access is denied");
    return false;
}

static void run_handle(struct work *work, bool cancelled)
{
    struct http_request *req = (struct http_request *)work;

    if (cancelled)
        error_set(&req->failure, CAIRN_E_UNAVAILABLE, "the server is stopping");
    req->failed = req->failed || cancelled;
    http_body_finish(req);
    if (req->failed)
        http_reply_failure(&req->reply, &req->failure);
    else if (req->has_begun || admitted(req))
        req->route->handle(req->route->ctx, req, &req->reply);
    http_request_release_sink(req);
    prepare_reply(req);
    MHD_resume_connection(req->connection);
}

static void run_begin(struct work *work, bool cancelled)
{
    struct http_request *req = (struct http_request *)work;

    if (cancelled)
        http_reply_error(&req->reply, MHD_HTTP_SERVICE_UNAVAILABLE, "UNAVAILABLE",
                         "the server is stopping");
    else if (admitted(req) && req->route->begin)
        req->route->begin(req->route->ctx, req, &req->reply);
    req->has_begun = true;
    if (req->reply.kind != HTTP_REPLY_NONE)
        prepare_reply(req);
    req->phase = req->reply.kind == HTTP_REPLY_NONE ? PHASE_BEGUN : PHASE_REFUSED;
    MHD_resume_connection(req->connection);
}

/*
 * Handle the request here and now, if nothing has to be waited for; false if it has, and the
 * request is as it was.
 */
static bool handle_quickly(struct http_request *req)
{
    if (req->method != HTTP_GET || !req->route->quick || !req->route->quick(req))
        return false;
    nowait_begin();
    if (admitted(req))
        req->route->handle(req->route->ctx, req, &req->reply);
    if (nowait_end()) {
        prepare_reply(req);
        return true;
    }
    http_reply_release(&req->reply);
    http_reply_init(&req->reply, req->id);
    return false;
}

/* Suspend the connection and let a worker go on; it resumes when phase has been left. */
static enum MHD_Result hand_over(struct http_request *req, enum http_phase phase,
                                 void (*run)(struct work *work, bool cancelled),
                                 enum work_kind kind)
{
    http_conn_set_phase(req->conn, HTTP_CONN_ANSWERING);
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

    if (len > 0 && len <= HTTP_REQUEST_ID_MAX && strspn(id, token) == len)
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
    http_conn_set_phase(req->conn, HTTP_CONN_BODY);
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
    if ((req->method & with_body) && (req->route->begin || req->server->admission.admit))
        return hand_over(req, PHASE_BEGINNING, run_begin, WORK_NEW);
    return on_begun(req);
}

/* Nothing more is read: where this request ends, and the next begins, is not certain. */
static enum MHD_Result refuse_and_close(struct http_request *req, const struct http_refusal *why)
{
    http_reply_error(&req->reply, why->status, why->oci_code, "%s", why->message);
    http_reply_header(&req->reply, "Connection", "close");
    prepare_reply(req);
    return send_reply(req);
}

static enum MHD_Result on_headers(struct http_request *req, const char *method, const char *version)
{
    const struct http_refusal *refusal;
    const char *reason;
    unsigned status;

    take_request_id(req);
    http_request_find_client(req);
    if (!req->target)
        return MHD_NO;
    refusal = http_strict_check(req->connection, version, &req->server->limits);
    if (refusal)
        return refuse_and_close(req, refusal);
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

/* -- Step by step ------------------------------------------------------------------------- */

static enum MHD_Result on_body_end(struct http_request *req)
{
    if (http_body_wait(req))
        return MHD_YES;
    if (req->failed)
        return fail(req, &req->failure);
    if (handle_quickly(req))
        return send_reply(req);
    return hand_over(req, PHASE_HANDLING, run_handle, req->has_begun ? WORK_CONTINUES : WORK_NEW);
}

static enum MHD_Result step(struct http_request *req, const char *method, const char *version,
                            const char *data, size_t *len)
{
    switch (req->phase) {
    case PHASE_HEADERS:
        return on_headers(req, method, version);
    case PHASE_BEGUN:
        return on_begun(req);
    case PHASE_BODY:
        return *len > 0 ? http_body_take(req, data, len) : on_body_end(req);
    case PHASE_REFUSED:
        return reply_early(req);
    case PHASE_DROPPING:
        return *len > 0 ? http_body_drop(req, len, HTTP_DROP_BEFORE_REPLY) : send_reply(req);
    case PHASE_REPLY:
        return *len > 0 ? http_body_drop(req, len, HTTP_DROP_AFTER_ERROR) : send_reply(req);
    case PHASE_BEGINNING:
    case PHASE_HANDLING:
    case PHASE_SENT:
        break;
    }
    return MHD_NO; /* not while a worker has it */
}

enum MHD_Result http_request_step(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *len, void **con_cls)
{
    struct http_request *req = *con_cls;
    const size_t offered = *len;
    enum MHD_Result result;

    (void)cls;
    (void)connection;
    (void)url;
    if (!req)
        return MHD_NO;
    result = step(req, method, version, data, len);
    req->received += offered - *len;
    return result;
}
