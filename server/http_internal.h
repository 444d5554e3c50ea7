/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the HTTP part: what requests (http.c), their URIs (http_uri.c), replies (http_reply.c) and
 * long reply bodies (http_stream.c) share.
 */
#ifndef SERVER_HTTP_INTERNAL_H
#define SERVER_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <pthread.h>

#include "http.h"
#include "workers.h"

/* -- URIs --------------------------------------------------------------------------------- */

#define HTTP_URI_MAX   8192
#define HTTP_QUERY_MAX 16

struct http_uri {
    char *path; /* decoded */
    unsigned nr_query;
    struct {
        const char *name, *value; /* decoded; value is "" if there is no '=' */
    } query[HTTP_QUERY_MAX];
    char *text; /* what all of the above point into */
};

/*
 * Split and decode a request target once.  Refused, with the HTTP status as the result and a
 * reason: one that is too long (414); bad escapes, control characters and zero bytes, however they
 * are written, and `.` or `..` components (400).  0 is success.
 */
unsigned http_uri_parse(const char *target, struct http_uri *ret_uri, const char **ret_reason);
void http_uri_release(struct http_uri *uri);

/* -- Replies ------------------------------------------------------------------------------ */

#define HTTP_REPLY_HEADERS_MAX 16

/* Parts of a file below that are copied: sendfile would cost a packet more. */
#define HTTP_SENDFILE_MIN (32u << 10)

enum http_reply_kind {
    HTTP_REPLY_NONE,
    HTTP_REPLY_BUFFER,
    HTTP_REPLY_FD,
    HTTP_REPLY_STREAM,
    HTTP_REPLY_CHUNKED,
};

struct http_reply {
    enum http_reply_kind kind;
    unsigned status;
    const char *request_id; /* borrowed from the request */
    const char *route;      /* http_reply_route; NULL: not called */
    char content_type[128]; /* empty: none */
    uint64_t len;
    void *buf;
    int fd;
    uint64_t fd_off;
    struct http_stream stream;
    struct http_chunks chunks;
    unsigned nr_headers;
    struct {
        char *name, *value;
    } headers[HTTP_REPLY_HEADERS_MAX];
    bool broken;                           /* it could not be put together */
    char message[CAIRN_ERROR_MESSAGE_MAX]; /* of an error reply, for the log */
};

void http_reply_init(struct http_reply *reply, const char *request_id);
void http_reply_release(struct http_reply *reply);

/* Where a body that is streamed gets its pieces made, and whom it wakes. */
struct http_stream_env {
    struct workers *workers;
    struct MHD_Connection *connection;
    const char *request_id;
    uint64_t *sent; /* gets the bytes of a long body, on the connection's thread */
};

/*
 * Turn a reply into libmicrohttpd's, on a worker: short streams are read whole, of longer ones the
 * beginning.  A stream that fails so early becomes an error reply.  NULL: nothing can be sent.
 */
struct MHD_Response *http_reply_prepare(struct http_reply *reply, bool is_head, bool close,
                                        const struct http_stream_env *env);

/* The memory that the body takes until it was sent. */
size_t http_reply_memory(const struct http_reply *reply);

/* A response over reply's stream or chunks, which it takes over; fails if its beginning cannot be
 * made. */
int http_stream_response(struct http_reply *reply, const struct http_stream_env *env,
                         struct MHD_Response **ret_response, struct cairn_error *err);

/* -- Listening ---------------------------------------------------------------------------- */

/* A non-blocking socket that listens on addr:port or [v6]:port. */
int http_listen(const char *address, int *ret_fd, struct cairn_error *err);
/* Its actual address, in the same form. */
int http_socket_name(int fd, char *buf, size_t len, struct cairn_error *err);

/* Accept from listen_fd, which is taken over on success, and give connections to the server's
 * daemons in turn, until stopped: from then on connections are refused.  Stopping accepts NULL. */
struct http_acceptor;
int http_acceptor_start(int listen_fd, struct http_server *server,
                        struct http_acceptor **ret_acceptor, struct cairn_error *err);
void http_acceptor_stop(struct http_acceptor *acceptor);

#endif
