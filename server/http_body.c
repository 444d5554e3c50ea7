/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The body of a request: collected in memory, or streamed to a sink.
 *
 * While it is streamed both sides work: libmicrohttpd's thread fills one buffer while a worker
 * hands the other to the sink, and the connection is suspended only when both are full.  An error
 * in mid-body is kept until the end (http.c), and what still comes is dropped.
 */
#include "http_request.h"

#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"

#define PIECE_SIZE (256u << 10) /* of a streamed body; two of these per upload */

enum MHD_Result http_body_drop(struct http_request *req, size_t *len, uint64_t max)
{
    req->dropped += *len;
    *len = 0;
    return req->dropped > max ? MHD_NO : MHD_YES;
}

static bool reserve_memory(struct http_server *server, size_t bytes)
{
    const size_t max = server->limits.body_bytes;

    if (atomic_fetch_add(&server->collected, bytes) + bytes <= max || max == 0)
        return true;
    atomic_fetch_sub(&server->collected, bytes);
    return false;
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
    if (!reserve_memory(server, size - req->body_size)) {
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
        return http_body_drop(req, len, HTTP_DROP_AFTER_ERROR);
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
        http_conn_set_phase(req->conn, HTTP_CONN_BODY);
        MHD_resume_connection(req->connection);
    }
    pthread_mutex_unlock(&req->lock);
    http_request_unref(req);
}

static void sink_filled_locked(struct http_request *req)
{
    struct http_piece filled = req->filling;

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

/* It is our turn: how long the sink takes is not held against the client. */
static void suspend_locked(struct http_request *req)
{
    req->suspended = true;
    http_conn_set_phase(req->conn, HTTP_CONN_ANSWERING);
    MHD_suspend_connection(req->connection);
}

/* Copy what fits; false when a buffer cannot be had. */
static bool fill_piece(struct http_piece *piece, const char *data, size_t len, size_t *done)
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
        return http_body_drop(req, len, HTTP_DROP_AFTER_ERROR);
    *len -= done;
    return MHD_YES;
}

enum MHD_Result http_body_take(struct http_request *req, const char *data, size_t *len)
{
    if (req->sink.piece)
        return stream(req, data, len);
    if (req->failed || req->collect_max == 0)
        return http_body_drop(req, len,
                              req->failed ? HTTP_DROP_AFTER_ERROR : HTTP_DROP_BEFORE_REPLY);
    return collect(req, data, len);
}

bool http_body_wait(struct http_request *req)
{
    SCOPED_LOCK(&req->lock);
    if (req->sink_busy)
        suspend_locked(req);
    return req->sink_busy;
}

void http_body_finish(struct http_request *req)
{
    if (req->failed || req->filling.len == 0)
        return;
    if (req->sink.piece(req->sink.ctx, req->filling.data, req->filling.len, &req->failure))
        req->failed = true;
    req->filling.len = 0;
}
