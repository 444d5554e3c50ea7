/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside remote: the servers, the pool of curl handles, and the loop that gets one request through
 * before its deadline.  What a request is made of is its caller's business (remote.c for any
 * request, remote_range.c for the hot path).
 */
#ifndef CLIENT_REMOTE_CONN_H
#define CLIENT_REMOTE_CONN_H

#include <curl/curl.h>

#include "remote.h"
#include "remote_auth.h"

/* Longest URL, with its terminating zero: a repository's name takes 255 bytes, a digest 71. */
#define REMOTE_URL_MAX 4096

/* Of the operation (a command, an opened disk) 16 hex digits, and which request of it. */
#define REMOTE_ID_NAME     "X-Request-Id: "
#define REMOTE_ID_LINE_MAX 48

/* One curl handle with its kept-alive connections; used by one thread at a time. */
struct conn {
    CURL *curl;
    struct remote *remote;
    struct conn *next;        /* in the free list */
    const void *shape;        /* whose options are set on it: see conn_reshape */
    struct remote_auth *auth; /* what its requests prove themselves with; NULL: nothing */
    char url[REMOTE_URL_MAX]; /* the URL set on it */
    /* "X-Request-Id: …" of the request under way, for CURLOPT_HTTPHEADER: the line changes in place
     * from request to request. */
    char id_line[REMOTE_ID_LINE_MAX];
    struct curl_slist id_header;
    char reason[CURL_ERROR_SIZE];
    int polled; /* what poll said in this attempt, and why */
    struct cairn_error poll_err;
};

/* What became of one attempt. */
enum attempt {
    ATTEMPT_DONE,   /* the call ends with what finish returned */
    ATTEMPT_FAILED, /* no answer, or one that says to come back: err holds why */
};

struct remote_call {
    const char *method;
    const char *path;
    bool idempotent;
    bool long_running;
    /* Set the handle's options, except URL and time-outs; called once per attempt. */
    int (*prepare)(void *arg, struct conn *conn, struct cairn_error *err);
    /* Judge the attempt; *ret_may_repeat is true when called, and may be set to false. */
    enum attempt (*finish)(void *arg, struct conn *conn, CURLcode code, int *ret_result,
                           bool *ret_may_repeat, struct cairn_error *err);
    void *arg;
};

int remote_call(struct remote *remote, const struct remote_call *call, struct cairn_error *err);

/* The ID of the request under way: the service's log has it, too. */
const char *conn_request_id(const struct conn *conn);

/* Bring the handle to its defaults, with connections kept.  shape remembers who set it up. */
void conn_reshape(struct conn *conn, const void *shape);

/* The error of an attempt that curl gave up: CAIRN_E_DENIED for a server's certificate that is not
 * to be trusted, else, timed out or not, CAIRN_E_UNAVAILABLE. */
int conn_error(const struct conn *conn, CURLcode code, const char *method, struct cairn_error *err);

/* A status that says to come back later: 429 (a host's other disks have all the connections that it
 * may have), 502, 503, 504. */
static inline bool remote_status_is_passing(long status)
{
    return status == 429 || (status >= 502 && status <= 504);
}

/* Is the header line `name: …`?  Then *ret_value is its trimmed value, *ret_len its length. */
bool header_is(const char *line, size_t len, const char *name, const char **ret_value,
               size_t *ret_len);

#endif
