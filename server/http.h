/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP, between libmicrohttpd and the handlers.
 *
 * libmicrohttpd's threads only parse and send: every request is suspended, its handler runs on a
 * worker thread, where it may block, and the connection is resumed with the reply.  A handler
 * sees one request and fills in one reply; it never sees libmicrohttpd.
 *
 * Bodies of POST, PUT and PATCH are collected in memory up to a limit, or streamed: what the
 * route's begin function decides, before any of the body is read.
 */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <jansson.h>
#include <stdbool.h>

#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum http_method {
    HTTP_GET = 1,
    HTTP_HEAD = 2,
    HTTP_POST = 4,
    HTTP_PUT = 8,
    HTTP_PATCH = 16,
    HTTP_DELETE = 32,
};

/* http_route.methods of a tree whose paths differ in what they take: its handler says which. */
#define HTTP_ANY (~0U)

struct http_request;
struct http_reply;
struct http_tls;

enum http_method http_method(const struct http_request *req);
const char *http_path(const struct http_request *req); /* percent-decoded once, no NUL inside */
const char *http_request_id(const struct http_request *req);
/* Who asks, for the log: what http_admission.admit has found out; "" if it did not. */
const char *http_user(const struct http_request *req);
/* Copied; cut at 64 bytes. */
void http_set_user(struct http_request *req, const char *name);
/* The same for handlers to ask about; release is called once the request has ended.  NULL: nobody
 * has set it. */
void http_set_caller(struct http_request *req, const void *caller,
                     void (*release)(const void *caller));
const void *http_caller(const struct http_request *req);
const char *http_header(const struct http_request *req, const char *name); /* NULL: absent */
/* Decoded; NULL: absent. */
const char *http_query(const struct http_request *req, const char *name);
/* The collected body (http_route.body_max, http_collect_body); empty if there is none. */
const void *http_body(const struct http_request *req, size_t *ret_len);
/* The length that the request's headers state for its body; false if they do not (chunked). */
bool http_content_length(const struct http_request *req, uint64_t *ret_len);

/* -- What a begin function may ask for, in place of a reply ------------------------------- */

/* Collect the body, at most max bytes; more is 413. */
void http_collect_body(struct http_request *req, size_t max);

/*
 * Hand the body over piece by piece: piece is called on workers, one call at a time and in order.
 * When it fails, that becomes the reply (http_reply_failure), and the rest of the body is dropped.
 * Otherwise the route's handle function is called behind the last piece.  free is called once,
 * whatever happens, also when the client goes away in mid-body.
 */
struct http_sink {
    int (*piece)(void *ctx, const void *buf, size_t len, struct cairn_error *err);
    void (*free)(void *ctx);
    void *ctx;
};
void http_stream_body(struct http_request *req, const struct http_sink *sink);
/* The ctx of that sink; NULL if there was none. */
void *http_sink_ctx(const struct http_request *req);

/* -- Replies: exactly one of these per request (the last one counts), plus headers. ------- */

void http_reply_header(struct http_reply *reply, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void http_reply_status(struct http_reply *reply, unsigned status); /* empty body */
/* buf is malloc'ed and handed over. */
void http_reply_buffer(struct http_reply *reply, unsigned status, const char *content_type,
                       void *buf, size_t len);
/* Takes over the reference to json. */
void http_reply_json(struct http_reply *reply, unsigned status, json_t *json);
/* len bytes of fd from off on by sendfile; fd is handed over. */
void http_reply_fd(struct http_reply *reply, unsigned status, const char *content_type, int fd,
                   uint64_t off, uint64_t len);

/*
 * A body made piece by piece: read fills exactly len bytes from body offset off, on a worker, one
 * call at a time and in order; when it fails the connection is cut, so that the client can tell,
 * and the error is logged.  HEAD requests never call read.  free is called once, whatever happens.
 */
struct http_stream {
    int (*read)(void *ctx, void *buf, size_t len, uint64_t off, struct cairn_error *err);
    void (*free)(void *ctx);
    void *ctx;
};
void http_reply_stream(struct http_reply *reply, unsigned status, const char *content_type,
                       const struct http_stream *stream, uint64_t len);

/*
 * The same for a body whose length nobody knows beforehand: sent chunked.  read fills at most len
 * bytes and says how many; 0 ends the body.
 */
struct http_chunks {
    int (*read)(void *ctx, void *buf, size_t len, size_t *ret_len, struct cairn_error *err);
    void (*free)(void *ctx);
    void *ctx;
};
void http_reply_chunked(struct http_reply *reply, unsigned status, const char *content_type,
                        const struct http_chunks *chunks);

/*
 * {"errors":[{"code","message","detail"}]} (OCI distribution specification, "Error Codes").
 * http_reply_failure takes status and code from the one table that maps cairn codes.
 */
void http_reply_error(struct http_reply *reply, unsigned status, const char *oci_code,
                      const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void http_reply_failure(struct http_reply *reply, const struct cairn_error *err);

/* The pattern of the resource that was found at the path, of static storage: `route=` of the
 * request's metrics.  Without it that is http_route.path. */
void http_reply_route(struct http_reply *reply, const char *pattern);

/* 405, with the methods (or-ed) that the resource does have. */
void http_reply_methods(struct http_reply *reply, unsigned methods);

/* -- Ranges (RFC 9110, section 14) -------------------------------------------------------- */

enum http_range {
    HTTP_RANGE_NONE,          /* none, one we ignore, or an If-Range that does not match */
    HTTP_RANGE_PARTIAL,       /* 206: *ret_off, *ret_len */
    HTTP_RANGE_UNSATISFIABLE, /* 416 */
};
enum http_range http_range(const struct http_request *req, uint64_t size, const char *etag,
                           uint64_t *ret_off, uint64_t *ret_len);
/* Does If-None-Match name etag (with its quotes)?  Then 304. */
bool http_not_modified(const struct http_request *req, const char *etag);

/* The same over header values, for tests; NULL stands for an absent header. */
enum http_range http_range_parse(const char *range, const char *if_range, uint64_t size,
                                 const char *etag, uint64_t *ret_off, uint64_t *ret_len);
bool http_etag_listed(const char *if_none_match, const char *etag);

/* -- The server --------------------------------------------------------------------------- */

struct http_route {
    const char *path; /* exact; with a '/' at its end: that and everything below */
    unsigned methods; /* or-ed, others get 405 with Allow; or HTTP_ANY */
    size_t body_max;  /* of a body that is collected; larger ones are 413 */
    /* May be NULL.  Called on a worker for POST, PUT and PATCH before the body is read: fills in a
     * reply (then the body is not wanted and handle is not called), or asks for the body with one
     * of the functions above, or does neither. */
    void (*begin)(void *ctx, struct http_request *req, struct http_reply *reply);
    void (*handle)(void *ctx, const struct http_request *req, struct http_reply *reply);
    void *ctx;
    /* May be NULL.  Is handle worth a try on the thread that has the connection (nowait.h)?  Asked
     * for GET only; what needs to wait is then handled by a worker all the same. */
    bool (*quick)(const struct http_request *req);
};

/*
 * Who may do what.  admit is called on any thread and must not wait, once for each request (twice
 * where a quick one turns out to wait) that has a route and one of its methods, before begin and
 * handle and before any of the body is read: true lets it go on; false refuses it, with the reply
 * that admit has filled in (403 if it did not).
 */
struct http_admission {
    bool (*admit)(void *ctx, struct http_request *req, struct http_reply *reply); /* NULL: all */
    void *ctx;
};

/* Zeros: no limit. */
struct http_limits {
    unsigned connections, connections_per_client;
    unsigned headers; /* of one request */
    size_t header_bytes;
    size_t body_bytes;         /* of all bodies in memory */
    unsigned header_timeout_s; /* from the first byte of a request to the end of its headers */
    uint64_t min_rate;         /* bytes a second, of a body or a reply, over a window of waiting */
    unsigned min_rate_window_s;
    unsigned request_deadline_s; /* from the request line to the end of the reply */
};

struct http_conns; /* http_conns.h */
struct proxies;    /* proxies.h */

struct http_options {
    const char *listen; /* addr:port, [v6]:port; port 0: any that is free */
    unsigned threads;   /* of libmicrohttpd: one daemon each */
    unsigned workers;
    unsigned max_connections;
    unsigned connection_timeout_s;
    size_t connection_memory;
    size_t reply_memory; /* for bodies that clients have not fetched yet; beyond it: 503 */
    struct http_admission admission;
    struct http_tls *tls;          /* borrowed; NULL: plain HTTP */
    const struct proxies *proxies; /* borrowed; NULL: none is trusted */
    struct http_limits limits;
    struct http_conns *conns; /* borrowed, and made with the same limits; NULL: nobody watches */
};

struct http_server;
struct metrics;

/* New requests that wait for a worker of the server that req came to, and how many may. */
void http_queue(const struct http_request *req, uint64_t *ret_queued, uint64_t *ret_max);
/* The figures of the server that req came to. */
void http_write_metrics(const struct http_request *req, struct metrics *m);

/* routes are tried in order; they and what they point to must outlive the server. */
int http_server_start(const struct http_options *options, const struct http_route *routes,
                      size_t nr_routes, struct http_server **ret_server, struct cairn_error *err);
/* The address listened on, with the actual port. */
const char *http_server_address(const struct http_server *server);
/* Accept nothing new, finish the requests in flight, at most for timeout_ms (the rest is cut), and
 * free everything.  NULL is allowed. */
void http_server_stop(struct http_server *server, unsigned timeout_ms);

#endif
