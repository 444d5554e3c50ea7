/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any request, its answer, and the errors that answers stand for.
 *
 * Bodies go out from memory or piece by piece, and come in collected up to a bound or piece by
 * piece. What the service says in an error body is quoted in the message, cut to a line, without
 * control characters: it ends on terminals and in logs.
 */
#include "remote.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "json_memory.h"
#include "remote_conn.h"

#define BODY_MAX_DEFAULT ((size_t)64 << 20)
#define ERROR_BODY_MAX   ((size_t)64 << 10)
#define UPLOAD_BUFFER    (256L << 10)

/* One request, through all its attempts. */
struct exchange {
    const struct remote_request *request;
    struct remote_answer *answer;
    struct curl_slist *headers;
    struct conn *conn;
    uint64_t sent;    /* of the body, in this attempt */
    size_t room;      /* of answer->body */
    bool handed_over; /* write_body has seen bytes, in any attempt */
    int result;       /* what a callback failed with */
    struct cairn_error err;
};

/* -- The answer ----------------------------------------------------------------------------- */

void remote_answer_release(struct remote_answer *answer)
{
    free(answer->body);
    free(answer->location);
    free(answer->digest);
    free(answer->range);
    free(answer->link);
    free(answer->etag);
    memset(answer, 0, sizeof(*answer));
}

static void answer_begin(struct exchange *x)
{
    remote_answer_release(x->answer);
    x->answer->content_length = UINT64_MAX;
    x->room = 0;
}

static int keep_header(struct exchange *x, char **field, const char *value, size_t len)
{
    free(*field);
    *field = strndup(value, len);
    return *field ? CAIRN_OK : error_no_memory(&x->err, "a header");
}

static void keep_number(uint64_t *field, const char *value, size_t len)
{
    uint64_t n = 0;

    for (size_t i = 0; i < len; i++)
        if (value[i] < '0' || value[i] > '9' || !checked_mul(n, 10, &n) ||
            !checked_add(n, (uint64_t)(value[i] - '0'), &n))
            return;
    if (len > 0)
        *field = n;
}

static size_t on_header(char *line, size_t size, size_t nr, void *arg)
{
    struct exchange *x = arg;
    struct remote_answer *answer = x->answer;
    const struct {
        const char *name;
        char **text;
        uint64_t *number;
    } wanted[] = {
        {"Location", &answer->location, NULL},
        {"Docker-Content-Digest", &answer->digest, NULL},
        {"Range", &answer->range, NULL},
        {"Link", &answer->link, NULL},
        {"ETag", &answer->etag, NULL},
        {"Content-Length", NULL, &answer->content_length},
        {"OCI-Chunk-Min-Length", NULL, &answer->chunk_min},
    };
    size_t len = size * nr;
    size_t value_len;
    const char *value;

    if (len >= 5 && memcmp(line, "HTTP/", 5) == 0) /* of the final answer, or of a 1xx before it */
        answer_begin(x);
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        if (!header_is(line, len, wanted[i].name, &value, &value_len))
            continue;
        if (wanted[i].number)
            keep_number(wanted[i].number, value, value_len);
        else if ((x->result = keep_header(x, wanted[i].text, value, value_len)) != CAIRN_OK)
            return 0;
    }
    return len;
}

static long status_of(const struct exchange *x)
{
    long status = 0;

    curl_easy_getinfo(x->conn->curl, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

static int grow_body(struct exchange *x, size_t need)
{
    struct remote_answer *answer = x->answer;
    size_t room = x->room ? x->room : 4096;
    char *body;

    while (room < need)
        room *= 2;
    if (room == x->room)
        return CAIRN_OK;
    body = realloc(answer->body, room);
    if (!body)
        return error_no_memory(&x->err, "an answer");
    answer->body = body;
    x->room = room;
    return CAIRN_OK;
}

static int collect(struct exchange *x, const char *data, size_t len, size_t max)
{
    struct remote_answer *answer = x->answer;
    int ret;

    if (len > max - answer->body_len)
        return error_set(&x->err, CAIRN_E_LIMIT, "%.300s: the answer is longer than %zu bytes",
                         x->conn->url, max);
    ret = grow_body(x, answer->body_len + len + 1);
    if (ret != CAIRN_OK)
        return ret;
    memcpy(answer->body + answer->body_len, data, len);
    answer->body_len += len;
    answer->body[answer->body_len] = 0;
    return CAIRN_OK;
}

static size_t on_body(char *data, size_t size, size_t nr, void *arg)
{
    struct exchange *x = arg;
    const struct remote_request *request = x->request;
    size_t max = request->body_max ? request->body_max : BODY_MAX_DEFAULT;
    size_t len = size * nr;
    long status = status_of(x);

    if (status >= 300) /* of a long complaint the beginning will do */
        x->result =
            collect(x, data, min_u64(len, ERROR_BODY_MAX - x->answer->body_len), ERROR_BODY_MAX);
    else if (!request->write_body)
        x->result = collect(x, data, len, max);
    else {
        x->handed_over = true;
        x->result = request->write_body(request->ctx, data, len, &x->err);
    }
    return x->result == CAIRN_OK ? len : 0;
}

/* -- The request ---------------------------------------------------------------------------- */

static size_t on_send(char *buf, size_t size, size_t nr, void *arg)
{
    struct exchange *x = arg;
    const struct remote_request *request = x->request;
    size_t len = (size_t)min_u64(size * nr, request->body_len - x->sent);

    if (len == 0)
        return 0;
    if (request->read_body) {
        x->result = request->read_body(request->ctx, buf, len, x->sent, &x->err);
        if (x->result != CAIRN_OK)
            return CURL_READFUNC_ABORT;
    } else {
        memcpy(buf, (const char *)request->body + x->sent, len);
    }
    x->sent += len;
    return len;
}

/* curl rewinds the body when a kept-alive connection turns out to have been closed. */
static int on_seek(void *arg, curl_off_t off, int origin)
{
    struct exchange *x = arg;

    if (origin != SEEK_SET || off < 0 || (uint64_t)off > x->request->body_len)
        return CURL_SEEKFUNC_FAIL;
    x->sent = (uint64_t)off;
    return CURL_SEEKFUNC_OK;
}

static int make_headers(struct exchange *x, const struct conn *conn, struct cairn_error *err)
{
    const char *authorization = remote_auth_line(conn->auth);
    /* No waiting for "100 Continue": a refusal ends the upload all the same. */
    const char *lines[REMOTE_HEADERS_MAX + 3] = {"Expect:", conn->id_line, authorization};
    unsigned nr = authorization ? 3 : 2;

    for (unsigned i = 0; i < REMOTE_HEADERS_MAX && x->request->headers[i]; i++)
        lines[nr++] = x->request->headers[i];
    curl_slist_free_all(steal_ptr(x->headers));
    for (unsigned i = 0; i < nr; i++) {
        struct curl_slist *longer = curl_slist_append(x->headers, lines[i]);

        if (!longer)
            return error_no_memory(err, "headers");
        x->headers = longer;
    }
    return CAIRN_OK;
}

static bool sends_body(const struct remote_request *request)
{
    return strcmp(request->method, "PUT") == 0 || strcmp(request->method, "PATCH") == 0 ||
           strcmp(request->method, "POST") == 0;
}

static void set_method(CURL *curl, const struct exchange *x)
{
    const struct remote_request *request = x->request;

    if (strcmp(request->method, "HEAD") == 0) {
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    } else if (sends_body(request)) {
        curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request->method);
        curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)request->body_len);
        curl_easy_setopt(curl, CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER);
        curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_send);
        curl_easy_setopt(curl, CURLOPT_READDATA, x);
        curl_easy_setopt(curl, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(curl, CURLOPT_SEEKDATA, x);
    } else if (strcmp(request->method, "GET") != 0) {
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request->method);
    }
}

static int prepare(void *arg, struct conn *conn, struct cairn_error *err)
{
    struct exchange *x = arg;
    int ret = make_headers(x, conn, err);

    if (ret != CAIRN_OK)
        return ret;
    conn_reshape(conn, NULL);
    x->conn = conn;
    x->sent = 0;
    x->result = CAIRN_OK;
    answer_begin(x);
    set_method(conn->curl, x);
    curl_easy_setopt(conn->curl, CURLOPT_HTTPHEADER, x->headers);
    curl_easy_setopt(conn->curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(conn->curl, CURLOPT_HEADERDATA, x);
    curl_easy_setopt(conn->curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(conn->curl, CURLOPT_WRITEDATA, x);
    return CAIRN_OK;
}

static enum attempt finish(void *arg, struct conn *conn, CURLcode code, int *ret_result,
                           bool *ret_may_repeat, struct cairn_error *err)
{
    struct exchange *x = arg;

    if (x->result != CAIRN_OK) {
        *err = x->err;
        *ret_result = x->result;
        return ATTEMPT_DONE;
    }
    *ret_may_repeat = !x->handed_over;
    if (code != CURLE_OK) {
        conn_error(conn, code, x->request->method, err);
        return ATTEMPT_FAILED;
    }
    x->answer->status = (unsigned)status_of(x);
    *ret_result = CAIRN_OK;
    if (x->request->idempotent && remote_status_is_passing(x->answer->status)) {
        remote_answer_error(x->answer, conn->url, err);
        return ATTEMPT_FAILED;
    }
    return ATTEMPT_DONE;
}

int remote_request(struct remote *remote, const struct remote_request *request,
                   struct remote_answer *ret_answer, struct cairn_error *err)
{
    struct remote_answer answer = {0};
    struct exchange x = {.request = request, .answer = &answer};
    const struct remote_call call = {
        .method = request->method,
        .path = request->path,
        .idempotent = request->idempotent,
        .long_running = request->long_running,
        .prepare = prepare,
        .finish = finish,
        .arg = &x,
    };
    int ret = remote_call(remote, &call, err);

    curl_slist_free_all(x.headers);
    if (ret == CAIRN_OK)
        *ret_answer = answer;
    else
        remote_answer_release(&answer);
    return ret;
}

/* -- Errors --------------------------------------------------------------------------------- */

static enum cairn_code code_of_status(unsigned status)
{
    switch (status) {
    case 401:
    case 403:
        return CAIRN_E_DENIED;
    case 404:
    case 410:
        return CAIRN_E_NOT_FOUND;
    case 409:
    case 412:
    case 416:
        return CAIRN_E_CONFLICT;
    case 413:
        return CAIRN_E_LIMIT;
    case 400:
    case 422:
        return CAIRN_E_CORRUPT;
    case 405:
    case 415:
    case 501:
        return CAIRN_E_UNSUPPORTED;
    case 429:
    case 502:
    case 503:
    case 504:
        return CAIRN_E_UNAVAILABLE;
    case 507:
        return CAIRN_E_NO_SPACE;
    default:
        return CAIRN_E_IO;
    }
}

/* Copy text from outside, in one line. */
static void copy_printable(char *out, size_t room, const char *text)
{
    size_t n = 0;

    for (; *text && n + 1 < room; text++)
        out[n++] = (unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text;
    out[n] = 0;
}

/* "message, CODE" of the first error of an OCI error body, and behind it the request's ID if the
 * service tells it; false if there is no such body. */
static bool quote_error_body(const struct remote_answer *answer, char *out, size_t room)
{
    json_t *root = answer->body_len ? json_loadb(answer->body, answer->body_len, 0, NULL) : NULL;
    json_t *first = json_array_get(json_object_get(root, "errors"), 0);
    const char *code = json_string_value(json_object_get(first, "code"));
    const char *message = json_string_value(json_object_get(first, "message"));
    const char *id =
        json_string_value(json_object_get(json_object_get(first, "detail"), "requestId"));
    char text[CAIRN_ERROR_MESSAGE_MAX];

    if (message) {
        snprintf(text, sizeof(text), "%s%s%s%s%.80s", message, code ? ", " : "", code ? code : "",
                 id ? ", request " : "", id ? id : "");
        copy_printable(out, room, text);
    }
    json_decref(root);
    return message != NULL;
}

int remote_answer_error(const struct remote_answer *answer, const char *what,
                        struct cairn_error *err)
{
    char quote[CAIRN_ERROR_MESSAGE_MAX];

    if (quote_error_body(answer, quote, sizeof(quote)))
        return error_set(err, code_of_status(answer->status), "%.200s: %s (status %u)", what, quote,
                         answer->status);
    return error_set(err, code_of_status(answer->status), "%.300s: the service answered %u", what,
                     answer->status);
}

int remote_answer_json(const struct remote_answer *answer, const char *what, json_t **ret_json,
                       struct cairn_error *err)
{
    json_error_t trouble = {0};
    json_t *json = NULL;
    int ret = CAIRN_OK;

    if (answer->status != 200)
        return remote_answer_error(answer, what, err);
    if (answer->body)
        ret = json_memory_load(answer->body, answer->body_len, 0, &json, &trouble, err);
    if (ret != CAIRN_OK)
        return ret;
    if (!json)
        return error_set(err, CAIRN_E_CORRUPT, "%s: the answer is not JSON: %s", what,
                         answer->body ? trouble.text : "it is empty");
    *ret_json = json;
    return CAIRN_OK;
}
