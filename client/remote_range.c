/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranged reads: the hot path of remote disks.
 *
 * A read ends well only if the answer says that it is the range asked for, of the content asked for
 * (ETag), and exactly so many bytes came.  Whatever else arrives is an error: a guest would rather
 * have an I/O error than bytes of another disk.  A connection that breaks on the way is a reason to
 * try again; an answer that contradicts the request is not.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "remote_conn.h"

#define ETAG_MAX       160
#define ERROR_BODY_MAX 4096

/* One read, through all its attempts. */
struct range_read {
    const char *path;
    const char *etag;
    unsigned char *buf;
    size_t len;
    uint64_t off;

    /* Of this attempt. */
    struct conn *conn;
    size_t got;
    bool too_long;
    bool has_range, has_length;
    uint64_t range_first, range_last, content_length;
    char answer_etag[ETAG_MAX];
    char error_body[ERROR_BODY_MAX];
    size_t error_len;
};

static long status_of(const struct range_read *read)
{
    long status = 0;

    curl_easy_getinfo(read->conn->curl, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

static void take_content_range(struct range_read *read, const char *value, size_t len)
{
    char text[80];
    int end = 0;

    if (len >= sizeof(text))
        return;
    memcpy(text, value, len);
    text[len] = 0;
    read->has_range = sscanf(text, "bytes %20" SCNu64 "-%20" SCNu64 "/%n", &read->range_first,
                             &read->range_last, &end) == 2 &&
                      end > 0;
}

static void take_content_length(struct range_read *read, const char *value, size_t len)
{
    uint64_t n = 0;

    if (len == 0 || len > 19)
        return;
    for (size_t i = 0; i < len; i++) {
        if (value[i] < '0' || value[i] > '9')
            return;
        n = n * 10 + (uint64_t)(value[i] - '0');
    }
    read->content_length = n;
    read->has_length = true;
}

/* Headers come in any case; the first letter keeps the comparisons few. */
static size_t on_header(char *line, size_t size, size_t nr, void *arg)
{
    struct range_read *read = arg;
    size_t len = size * nr;
    size_t value_len;
    const char *value;

    if (len > 0 && (line[0] | 0x20) == 'c') {
        if (header_is(line, len, "Content-Range", &value, &value_len))
            take_content_range(read, value, value_len);
        else if (header_is(line, len, "Content-Length", &value, &value_len))
            take_content_length(read, value, value_len);
    } else if (header_is(line, len, "ETag", &value, &value_len) && value_len < ETAG_MAX) {
        memcpy(read->answer_etag, value, value_len);
        read->answer_etag[value_len] = 0;
    }
    return len;
}

/* Does the answer's head promise exactly what was asked for? */
static bool head_fits(const struct range_read *read, long status)
{
    if (read->etag && strcmp(read->etag, read->answer_etag) != 0)
        return false;
    if (status == 206)
        return read->has_range && read->range_first == read->off &&
               read->range_last == read->off + read->len - 1;
    return status == 200 && read->off == 0 && read->has_length && read->content_length == read->len;
}

static size_t take_error_body(struct range_read *read, const char *data, size_t len)
{
    size_t room = ERROR_BODY_MAX - 1 - read->error_len;
    size_t n = len < room ? len : room;

    memcpy(read->error_body + read->error_len, data, n);
    read->error_len += n;
    return len;
}

/* Fewer bytes taken than offered make curl give up the transfer. */
static size_t on_body(char *data, size_t size, size_t nr, void *arg)
{
    struct range_read *read = arg;
    size_t len = size * nr;
    long status = status_of(read);

    if (status >= 400)
        return take_error_body(read, data, len);
    if (!head_fits(read, status))
        return 0;
    if (len > read->len - read->got) {
        read->too_long = true;
        return 0;
    }
    memcpy(read->buf + read->got, data, len);
    read->got += len;
    return len;
}

static int prepare(void *arg, struct conn *conn, struct cairn_error *err)
{
    static const char shape[] = "range";
    struct range_read *read = arg;
    char range[64];

    if (conn->shape != shape) {
        conn_reshape(conn, shape);
        curl_easy_setopt(conn->curl, CURLOPT_WRITEFUNCTION, on_body);
        curl_easy_setopt(conn->curl, CURLOPT_HEADERFUNCTION, on_header);
        conn->id_header.next = remote_auth_list(conn->auth);
        curl_easy_setopt(conn->curl, CURLOPT_HTTPHEADER, &conn->id_header);
    }
    read->conn = conn;
    read->got = 0;
    read->error_len = 0;
    read->too_long = read->has_range = read->has_length = false;
    read->answer_etag[0] = 0;
    curl_easy_setopt(conn->curl, CURLOPT_WRITEDATA, read);
    curl_easy_setopt(conn->curl, CURLOPT_HEADERDATA, read);
    snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, read->off, read->off + read->len - 1);
    if (curl_easy_setopt(conn->curl, CURLOPT_RANGE, range) != CURLE_OK)
        return error_no_memory(err, "a request");
    return CAIRN_OK;
}

/* The error of an answer that is complete, or was given up, because it is not what was asked for.
 */
static int wrong_answer(const struct range_read *read, long status, struct cairn_error *err)
{
    char what[128];

    snprintf(what, sizeof(what), "bytes %" PRIu64 "-%" PRIu64, read->off,
             read->off + read->len - 1);
    if (status != 206 && status != 200)
        return error_set(err, CAIRN_E_CORRUPT, "%s: %s: unexpected status %ld, expected 206",
                         read->conn->url, what, status);
    if (read->etag && strcmp(read->etag, read->answer_etag) != 0)
        return error_set(err, CAIRN_E_CONFLICT, "%s: content is now %.80s, expected %.80s",
                         read->conn->url, read->answer_etag, read->etag);
    if (!head_fits(read, status))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %s: the answer (status %ld) is for bytes %" PRIu64 "-%" PRIu64,
                         read->conn->url, what, status, read->has_range ? read->range_first : 0,
                         read->has_range ? read->range_last : 0);
    return error_set(err, CAIRN_E_CORRUPT, "%s: %s: the answer has %s%zu bytes, expected %zu",
                     read->conn->url, what, read->too_long ? "more than " : "", read->got,
                     read->len);
}

static int error_answer(struct range_read *read, long status, struct cairn_error *err)
{
    const struct remote_answer answer = {
        .status = (unsigned)status,
        .body = read->error_body,
        .body_len = read->error_len,
    };

    read->error_body[read->error_len] = 0;
    return remote_answer_error(&answer, read->conn->url, err);
}

static enum attempt finish(void *arg, struct conn *conn, CURLcode code, int *ret_result,
                           bool *ret_may_repeat, struct cairn_error *err)
{
    struct range_read *read = arg;
    long status = status_of(read);

    (void)ret_may_repeat;
    if (code == CURLE_OK && status >= 400) {
        *ret_result = error_answer(read, status, err);
        return remote_status_is_passing(status) ? ATTEMPT_FAILED : ATTEMPT_DONE;
    }
    if (code != CURLE_OK && code != CURLE_WRITE_ERROR) {
        conn_error(conn, code, "GET", err);
        return ATTEMPT_FAILED;
    }
    if (code == CURLE_OK && head_fits(read, status) && read->got == read->len)
        *ret_result = CAIRN_OK;
    else
        *ret_result = wrong_answer(read, status, err);
    return ATTEMPT_DONE;
}

int remote_read_range(struct remote *remote, const char *path, const char *etag, void *buf,
                      size_t len, uint64_t off, struct cairn_error *err)
{
    struct range_read read;
    const struct remote_call call = {
        .method = "GET",
        .path = path,
        .idempotent = true,
        .prepare = prepare,
        .finish = finish,
        .arg = &read,
    };

    if (len == 0)
        return CAIRN_OK;
    read.path = path;
    read.etag = etag;
    read.buf = buf;
    read.len = len;
    read.off = off;
    return remote_call(remote, &call, err);
}
