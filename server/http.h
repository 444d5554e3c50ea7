/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP, between libmicrohttpd and the handlers.
 *
 * libmicrohttpd's threads only parse and send: every request is suspended, its handler runs on a
 * worker thread, where it may block, and the connection is resumed with the reply.  A handler
 * sees one request and fills in one reply; it never sees libmicrohttpd.
 */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <jansson.h>
#include <stdbool.h>

#include "error.h"
#include "store.h"

enum http_method {
    HTTP_GET = 1,
    HTTP_HEAD = 2,
    HTTP_POST = 4,
    HTTP_PUT = 8,
    HTTP_PATCH = 16,
    HTTP_DELETE = 32,
};

struct http_request;
struct http_reply;

enum http_method http_method(const struct http_request *req);
const char *http_path(const struct http_request *req); /* percent-decoded once, no NUL inside */
const char *http_request_id(const struct http_request *req);
const char *http_header(const struct http_request *req, const char *name); /* NULL: absent */
const char *http_query(const struct http_request *req, const char *name);  /* decoded; NULL: absent */
/* The whole body of a route that asks for it (http_route.body_max). */
const void *http_body(const struct http_request *req, size_t *ret_len);

/* -- Replies: exactly one of these per request (the last one counts), plus headers. ------------ */

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
 * {"errors":[{"code","message","detail"}]} (OCI distribution specification, "Error Codes").
 * http_reply_failure takes status and code from the one table that maps cairn codes.
 */
void http_reply_error(struct http_reply *reply, unsigned status, const char *oci_code,
                      const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void http_reply_failure(struct http_reply *reply, const struct cairn_error *err);

/* -- Ranges (RFC 9110, section 14) ---------------------------------------------------------------- */

enum http_range {
    HTTP_RANGE_NONE,          /* no Range, one we ignore (other unit, several ranges), or If-Range that does not match */
    HTTP_RANGE_PARTIAL,       /* 206: *ret_off, *ret_len */
    HTTP_RANGE_UNSATISFIABLE, /* 416 */
};
enum http_range http_range(const struct http_request *req, uint64_t size, const char *etag,
                           uint64_t *ret_off, uint64_t *ret_len);
/* Does If-None-Match name etag (with its quotes)?  Then 304. */
bool http_not_modified(const struct http_request *req, const char *etag);

#endif
