/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Long reply bodies: a worker makes them piece by piece, a buffer ahead of what libmicrohttpd is
 * sending.
 *
 * There are two buffers.  libmicrohttpd's thread drains one (`current`) while a worker fills the
 * other.  When the first is drained and the second is not ready yet, the connection is suspended,
 * and the worker resumes it.  The beginning is made before the reply is sent at all: a body that
 * fits one buffer is sent from memory, and an error there still becomes an error status.  An error
 * further on can only cut the connection.
 *
 * The stream is held by libmicrohttpd's response and by the work under way; the connection may be
 * gone while a worker still reads.
 */
#include "http_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "log.h"

#define BUFFER_SIZE (256u << 10)
#define WHOLE_MAX   (1u << 20)   /* a body of known length is read whole up to here */
#define BLOCK_SIZE  (128u << 10) /* what libmicrohttpd takes at a time */

struct buffer {
    char *data;
    size_t len; /* 0: to be filled */
};

struct body {
    struct work work;
    struct workers *workers;
    struct MHD_Connection *connection; /* alive while suspended */
    uint64_t *sent; /* of the request, which is there while libmicrohttpd reads */
    char request_id[80];
    struct http_stream stream; /* one of these two has its read */
    struct http_chunks chunks;

    pthread_mutex_t lock; /* protects all below, but not the data of a buffer */
    unsigned refs;
    struct buffer buffers[2];
    unsigned current;
    size_t drained; /* of the current buffer */
    uint64_t made;  /* bytes so far */
    uint64_t left;  /* bytes still to be made; of a chunked body UINT64_MAX until it ends */
    bool filling;   /* the other buffer, by a worker */
    bool suspended; /* the connection waits for that */
    bool failed;
};

static bool is_chunked(const struct body *b)
{
    return b->chunks.read != NULL;
}

static void body_unref(struct body *b)
{
    unsigned refs;

    pthread_mutex_lock(&b->lock);
    refs = --b->refs;
    pthread_mutex_unlock(&b->lock);
    if (refs > 0)
        return;
    if (b->stream.free)
        b->stream.free(b->stream.ctx);
    if (b->chunks.free)
        b->chunks.free(b->chunks.ctx);
    pthread_mutex_destroy(&b->lock);
    free(b->buffers[0].data);
    free(b->buffers[1].data);
    free(b);
}
CLEANUP_DEFINE(struct body *, body_unref)

/* Fill a buffer; nobody else touches it, made or left meanwhile. */
static int fill(struct body *b, struct buffer *buffer, struct cairn_error *err)
{
    size_t len;
    int r;

    if (!buffer->data)
        buffer->data = malloc(BUFFER_SIZE);
    if (!buffer->data)
        return error_no_memory(err, "a reply");
    len = (size_t)min_u64(BUFFER_SIZE, b->left);
    if (is_chunked(b))
        r = b->chunks.read(b->chunks.ctx, buffer->data, BUFFER_SIZE, &len, err);
    else
        r = b->stream.read(b->stream.ctx, buffer->data, len, b->made, err);
    if (r)
        return r;
    buffer->len = len;
    b->made += len;
    if (!is_chunked(b))
        b->left -= len;
    else if (len == 0)
        b->left = 0;
    return CAIRN_OK;
}

static void log_cut(const struct body *b, const struct cairn_error *err)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_ERROR, "reply-cut");
    log_text(&line, "request_id", b->request_id);
    log_text(&line, "code", error_code_name(err->code));
    log_text(&line, "msg", err->message);
    log_end(&line);
}

static void wake_locked(struct body *b)
{
    if (b->suspended) {
        b->suspended = false;
        MHD_resume_connection(b->connection);
    }
}

static void run_fill(struct work *work, bool cancelled)
{
    struct body *b = (struct body *)work;
    struct cairn_error err;
    int r = CAIRN_E_CANCELLED;

    if (cancelled)
        error_set(&err, CAIRN_E_CANCELLED, "the server is stopping");
    else
        r = fill(b, &b->buffers[!b->current], &err);
    if (r)
        log_cut(b, &err);
    pthread_mutex_lock(&b->lock);
    b->failed = r != CAIRN_OK;
    b->filling = false;
    wake_locked(b);
    pthread_mutex_unlock(&b->lock);
    body_unref(b);
}

/* Have the other buffer filled, if it is empty and there is more to come. */
static void fill_ahead_locked(struct body *b)
{
    if (b->filling || b->failed || b->left == 0 || b->buffers[!b->current].len > 0)
        return;
    b->filling = true;
    b->refs++;
    if (!workers_submit(b->workers, &b->work, WORK_CONTINUES)) {
        b->filling = false;
        b->failed = true;
        b->refs--;
    }
}

/* Turn to the other buffer when the current one is drained.  False: nothing can be sent now. */
static bool turn_locked(struct body *b)
{
    struct buffer *current = &b->buffers[b->current];

    if (b->drained < current->len)
        return true;
    if (b->filling || b->buffers[!b->current].len == 0)
        return false;
    current->len = 0;
    b->drained = 0;
    b->current = !b->current;
    return true;
}

static ssize_t take_locked(struct body *b, char *buf, size_t max)
{
    const struct buffer *current = &b->buffers[b->current];
    size_t n = min_u64(max, current->len - b->drained);

    memcpy(buf, current->data + b->drained, n);
    b->drained += n;
    *b->sent += n;
    return (ssize_t)n;
}

/* libmicrohttpd's content reader. */
static ssize_t read_body(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct body *b = cls;
    bool ready;

    SCOPED_LOCK(&b->lock);
    (void)pos;
    ready = turn_locked(b);
    fill_ahead_locked(b);
    if (ready)
        return take_locked(b, buf, max);
    if (b->filling) {
        b->suspended = true;
        MHD_suspend_connection(b->connection);
        return 0;
    }
    return b->failed ? MHD_CONTENT_READER_END_WITH_ERROR : MHD_CONTENT_READER_END_OF_STREAM;
}

size_t http_reply_memory(const struct http_reply *reply)
{
    switch (reply->kind) {
    case HTTP_REPLY_BUFFER:
        return (size_t)reply->len;
    case HTTP_REPLY_STREAM:
        return reply->len <= WHOLE_MAX ? (size_t)reply->len : 2 * BUFFER_SIZE;
    case HTTP_REPLY_CHUNKED:
        return 2 * BUFFER_SIZE;
    case HTTP_REPLY_FD:
        return reply->len < HTTP_SENDFILE_MIN ? (size_t)reply->len : 0;
    case HTTP_REPLY_NONE:
        break;
    }
    return 0;
}

static void free_body(void *cls)
{
    body_unref(cls);
}

/* A body that fits memory: read at once, sent without further ado. */
static int whole_response(struct http_reply *reply, struct MHD_Response **ret_response,
                          struct cairn_error *err)
{
    CLEANUP_FREE char *buf = malloc((size_t)reply->len + 1);
    int r;

    if (!buf)
        return error_no_memory(err, "a reply");
    r = reply->len > 0 ? reply->stream.read(reply->stream.ctx, buf, (size_t)reply->len, 0, err)
                       : CAIRN_OK;
    if (r)
        return r;
    *ret_response = MHD_create_response_from_buffer((size_t)reply->len, buf, MHD_RESPMEM_MUST_FREE);
    if (!*ret_response)
        return error_no_memory(err, "a reply");
    steal_ptr(buf);
    return CAIRN_OK;
}

static int body_new(struct http_reply *reply, const struct http_stream_env *env,
                    struct body **ret_body, struct cairn_error *err)
{
    struct body *b = calloc(1, sizeof(*b));

    if (!b)
        return error_no_memory(err, "a reply");
    b->work.run = run_fill;
    b->workers = env->workers;
    b->connection = env->connection;
    b->sent = env->sent;
    snprintf(b->request_id, sizeof(b->request_id), "%s", env->request_id);
    b->stream = reply->stream;
    b->chunks = reply->chunks;
    reply->stream = (struct http_stream){0};
    reply->chunks = (struct http_chunks){0};
    b->left = is_chunked(b) ? UINT64_MAX : reply->len;
    b->refs = 1;
    pthread_mutex_init(&b->lock, NULL);
    *ret_body = b;
    return CAIRN_OK;
}

int http_stream_response(struct http_reply *reply, const struct http_stream_env *env,
                         struct MHD_Response **ret_response, struct cairn_error *err)
{
    const uint64_t len = reply->kind == HTTP_REPLY_CHUNKED ? MHD_SIZE_UNKNOWN : reply->len;
    CLEANUP(body_unref_p) struct body *b = NULL;
    int r;

    if (reply->kind == HTTP_REPLY_STREAM && reply->len <= WHOLE_MAX)
        return whole_response(reply, ret_response, err);
    r = body_new(reply, env, &b, err);
    if (!r)
        r = fill(b, &b->buffers[0], err);
    if (r)
        return r;
    *ret_response = MHD_create_response_from_callback(len, BLOCK_SIZE, read_body, b, free_body);
    if (!*ret_response)
        return error_no_memory(err, "a reply");
    steal_ptr(b);
    return CAIRN_OK;
}
