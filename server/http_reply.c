/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies: what a handler says, kept until it can be turned into libmicrohttpd's response, and the
 * one table that maps cairn codes to HTTP.  A later reply of the same request replaces the body of
 * an earlier one and keeps its headers.
 */
#include "http_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "json_memory.h"
#include "log.h"
#include "nowait.h"

#define RETRY_AFTER_S 1

/* By negated code.  Codes that OCI does not know are allowed and count as UNKNOWN there. */
static const struct {
    unsigned status;
    const char *oci_code;
} failures[] = {
    [-CAIRN_E_IO] = {MHD_HTTP_INTERNAL_SERVER_ERROR, "UNKNOWN"},
    [-CAIRN_E_CORRUPT] = {MHD_HTTP_INTERNAL_SERVER_ERROR, "CORRUPT"},
    [-CAIRN_E_UNSUPPORTED] = {MHD_HTTP_BAD_REQUEST, "UNSUPPORTED"},
    [-CAIRN_E_NOT_FOUND] = {MHD_HTTP_NOT_FOUND, "MANIFEST_UNKNOWN"},
    [-CAIRN_E_CONFLICT] = {MHD_HTTP_CONFLICT, "CONFLICT"},
    [-CAIRN_E_LIMIT] = {MHD_HTTP_CONTENT_TOO_LARGE, "SIZE_INVALID"},
    [-CAIRN_E_CANCELLED] = {MHD_HTTP_SERVICE_UNAVAILABLE, "UNAVAILABLE"},
    [-CAIRN_E_UNAVAILABLE] = {MHD_HTTP_SERVICE_UNAVAILABLE, "UNAVAILABLE"},
    [-CAIRN_E_USAGE] = {MHD_HTTP_BAD_REQUEST, "BAD_REQUEST"},
    [-CAIRN_E_NO_MEMORY] = {MHD_HTTP_SERVICE_UNAVAILABLE, "UNAVAILABLE"},
    [-CAIRN_E_NO_SPACE] = {MHD_HTTP_INSUFFICIENT_STORAGE, "NO_SPACE"},
    [-CAIRN_E_DENIED] = {MHD_HTTP_FORBIDDEN, "DENIED"},
};
#define NR_FAILURES ((int)(sizeof(failures) / sizeof(failures[0])))

static const struct {
    unsigned method;
    const char *name;
} methods[] = {
    {HTTP_GET, "GET"}, {HTTP_HEAD, "HEAD"},   {HTTP_POST, "POST"},
    {HTTP_PUT, "PUT"}, {HTTP_PATCH, "PATCH"}, {HTTP_DELETE, "DELETE"},
};

static const char *methods_text(unsigned allowed, char buf[64])
{
    size_t used = 0;

    buf[0] = 0;
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (allowed & methods[i].method)
            used +=
                (size_t)snprintf(buf + used, 64 - used, "%s%s", used ? ", " : "", methods[i].name);
    }
    return buf;
}

/* -- What handlers call ------------------------------------------------------------------- */

void http_reply_init(struct http_reply *reply, const char *request_id)
{
    *reply = (struct http_reply){.fd = -1, .request_id = request_id};
}

static void release_body(struct http_reply *reply)
{
    free(steal_ptr(reply->buf));
    cleanup_close(&reply->fd);
    reply->fd = -1;
    if (reply->stream.free)
        reply->stream.free(reply->stream.ctx);
    if (reply->chunks.free)
        reply->chunks.free(reply->chunks.ctx);
    reply->stream = (struct http_stream){0};
    reply->chunks = (struct http_chunks){0};
    reply->len = 0;
}

void http_reply_release(struct http_reply *reply)
{
    release_body(reply);
    for (unsigned i = 0; i < reply->nr_headers; i++) {
        free(reply->headers[i].name);
        free(reply->headers[i].value);
    }
    reply->nr_headers = 0;
}

static void begin_reply(struct http_reply *reply, enum http_reply_kind kind, unsigned status,
                        const char *content_type)
{
    release_body(reply);
    reply->kind = kind;
    reply->status = status;
    reply->message[0] = 0;
    snprintf(reply->content_type, sizeof(reply->content_type), "%s",
             content_type ? content_type : "");
}

void http_reply_header(struct http_reply *reply, const char *name, const char *fmt, ...)
{
    char *value = NULL, *copy = strdup(name);
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&value, fmt, ap) < 0)
        value = NULL;
    va_end(ap);
    if (!value || !copy || reply->nr_headers == HTTP_REPLY_HEADERS_MAX) {
        reply->broken = true;
        free(value);
        free(copy);
        return;
    }
    reply->headers[reply->nr_headers].name = copy;
    reply->headers[reply->nr_headers++].value = value;
}

void http_reply_status(struct http_reply *reply, unsigned status)
{
    begin_reply(reply, HTTP_REPLY_BUFFER, status, NULL);
}

void http_reply_buffer(struct http_reply *reply, unsigned status, const char *content_type,
                       void *buf, size_t len)
{
    begin_reply(reply, HTTP_REPLY_BUFFER, status, content_type);
    reply->buf = buf;
    reply->len = len;
}

void http_reply_json(struct http_reply *reply, unsigned status, json_t *json)
{
    char *text;
    int code = json_memory_dump(json, JSON_COMPACT, &text, NULL);

    json_decref(json);
    if (code == CAIRN_OK)
        http_reply_buffer(reply, status, "application/json", text, strlen(text));
    else
        http_reply_status(reply, MHD_HTTP_SERVICE_UNAVAILABLE); /* out of memory */
}

void http_reply_fd(struct http_reply *reply, unsigned status, const char *content_type, int fd,
                   uint64_t off, uint64_t len)
{
    begin_reply(reply, HTTP_REPLY_FD, status, content_type);
    reply->fd = fd;
    reply->fd_off = off;
    reply->len = len;
}

void http_reply_stream(struct http_reply *reply, unsigned status, const char *content_type,
                       const struct http_stream *stream, uint64_t len)
{
    nowait_check(NULL); /* its beginning is read before the reply is sent */
    begin_reply(reply, HTTP_REPLY_STREAM, status, content_type);
    reply->stream = *stream;
    reply->len = len;
}

void http_reply_chunked(struct http_reply *reply, unsigned status, const char *content_type,
                        const struct http_chunks *chunks)
{
    nowait_check(NULL);
    begin_reply(reply, HTTP_REPLY_CHUNKED, status, content_type);
    reply->chunks = *chunks;
}

static void reply_error(struct http_reply *reply, unsigned status, const char *oci_code,
                        const char *reason, const char *message)
{
    json_t *detail = json_pack("{s:s*, s:s*}", "reason", reason, "requestId", reply->request_id);
    json_t *json = json_pack("{s:[{s:s, s:s#, s:o}]}", "errors", "code", oci_code, "message",
                             message, (int)strlen(message), "detail", detail);

    if (!json) /* out of memory, or the message is not UTF-8 */
        json = json_pack("{s:[{s:s, s:s}]}", "errors", "code", oci_code, "message", "no message");
    if (status == MHD_HTTP_SERVICE_UNAVAILABLE || status == MHD_HTTP_TOO_MANY_REQUESTS)
        http_reply_header(reply, "Retry-After", "%d", RETRY_AFTER_S);
    http_reply_json(reply, status, json);
    snprintf(reply->message, sizeof(reply->message), "%s", message);
}

void http_reply_error(struct http_reply *reply, unsigned status, const char *oci_code,
                      const char *fmt, ...)
{
    char message[CAIRN_ERROR_MESSAGE_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    reply_error(reply, status, oci_code, NULL, message);
}

void http_reply_failure(struct http_reply *reply, const struct cairn_error *err)
{
    int i = -(int)err->code;

    if (i <= 0 || i >= NR_FAILURES)
        i = -CAIRN_E_IO;
    reply_error(reply, failures[i].status, failures[i].oci_code, error_code_name(err->code),
                err->message);
}

void http_reply_methods(struct http_reply *reply, unsigned allowed)
{
    char text[64];

    methods_text(allowed, text);
    http_reply_error(reply, MHD_HTTP_METHOD_NOT_ALLOWED, "UNSUPPORTED",
                     "the method is not one of %s", text);
    http_reply_header(reply, "Allow", "%s", text);
}

void http_reply_route(struct http_reply *reply, const char *pattern)
{
    reply->route = pattern;
}

/* -- What libmicrohttpd gets -------------------------------------------------------------- */

static ssize_t no_body(void *cls, uint64_t pos, char *buf, size_t max)
{
    (void)cls;
    (void)pos;
    (void)buf;
    (void)max;
    return MHD_CONTENT_READER_END_WITH_ERROR;
}

/* The same headers as for GET, with a length, and a body that is never asked for. */
static struct MHD_Response *head_response(struct http_reply *reply)
{
    uint64_t len = reply->kind == HTTP_REPLY_CHUNKED ? MHD_SIZE_UNKNOWN : reply->len;

    release_body(reply);
    reply->len = 0;
    return MHD_create_response_from_callback(len, 1, no_body, NULL, NULL);
}

static struct MHD_Response *buffer_response(struct http_reply *reply)
{
    return MHD_create_response_from_buffer((size_t)reply->len, steal_ptr(reply->buf),
                                           MHD_RESPMEM_MUST_FREE);
}

/* Turn the part of a file into its bytes, or into an error. */
static void copy_file_part(struct http_reply *reply)
{
    CLEANUP_FREE char *buf = malloc((size_t)reply->len + 1);
    size_t done = 0;
    ssize_t n = 1;

    while (buf && done < reply->len && (n > 0 || (n < 0 && errno == EINTR))) {
        n = pread(reply->fd, buf + done, (size_t)reply->len - done, (off_t)(reply->fd_off + done));
        if (n > 0)
            done += (size_t)n;
    }
    if (buf && done == reply->len)
        reply->buf = steal_ptr(buf);
    else
        http_reply_error(reply, MHD_HTTP_INTERNAL_SERVER_ERROR, "UNKNOWN",
                         "%zu of %" PRIu64 " bytes at %" PRIu64 " could be read", done, reply->len,
                         reply->fd_off);
}

static struct MHD_Response *fd_response(struct http_reply *reply)
{
    if (reply->len < HTTP_SENDFILE_MIN) {
        copy_file_part(reply);
        return buffer_response(reply);
    }
    return MHD_create_response_from_fd_at_offset64(reply->len, steal_fd(&reply->fd), reply->fd_off);
}

static struct MHD_Response *stream_response(struct http_reply *reply,
                                            const struct http_stream_env *env)
{
    struct MHD_Response *response;
    struct cairn_error err;

    if (http_stream_response(reply, env, &response, &err) == CAIRN_OK)
        return response;
    http_reply_failure(reply, &err);
    return buffer_response(reply);
}

static struct MHD_Response *body_response(struct http_reply *reply, bool is_head,
                                          const struct http_stream_env *env)
{
    /* 204 and 304 have neither a body nor its length. */
    if (is_head && reply->status != MHD_HTTP_NO_CONTENT && reply->status != MHD_HTTP_NOT_MODIFIED)
        return head_response(reply);
    switch (reply->kind) {
    case HTTP_REPLY_FD:
        return fd_response(reply);
    case HTTP_REPLY_STREAM:
    case HTTP_REPLY_CHUNKED:
        return stream_response(reply, env);
    case HTTP_REPLY_NONE:
        http_reply_error(reply, MHD_HTTP_INTERNAL_SERVER_ERROR, "UNKNOWN", "no reply was made");
        return buffer_response(reply);
    case HTTP_REPLY_BUFFER:
        break;
    }
    return buffer_response(reply);
}

static bool add_headers(struct MHD_Response *response, const struct http_reply *reply, bool close)
{
    bool ok = MHD_add_response_header(response, "X-Request-Id", reply->request_id) == MHD_YES;

    if (reply->content_type[0])
        ok = ok && MHD_add_response_header(response, "Content-Type", reply->content_type);
    if (close)
        ok = ok && MHD_add_response_header(response, "Connection", "close");
    for (unsigned i = 0; i < reply->nr_headers; i++)
        ok = ok &&
             MHD_add_response_header(response, reply->headers[i].name, reply->headers[i].value);
    return ok;
}

struct MHD_Response *http_reply_prepare(struct http_reply *reply, bool is_head, bool close,
                                        const struct http_stream_env *env)
{
    struct MHD_Response *response = reply->broken ? NULL : body_response(reply, is_head, env);

    if (response && add_headers(response, reply, close))
        return response;
    if (response)
        MHD_destroy_response(response);
    log_event(LOG_LEVEL_ERROR, "reply-failed",
              "request %s: no memory for the reply, or a bad header", reply->request_id);
    return NULL;
}
