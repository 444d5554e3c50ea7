/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests to the service, over a pool of kept-alive curl handles: server URLs tried in turn,
 * retries of what may be repeated, one deadline for all of it, error bodies turned into errors.
 * Thread-safe.
 */
#ifndef CLIENT_REMOTE_H
#define CLIENT_REMOTE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cairn.h"
#include "error.h"

struct remote;

struct remote_options {
    const char *servers; /* base URLs, separated by commas; copied */
    const char *token;   /* NULL: none; copied */
    unsigned deadline_ms;
};
int remote_new(const struct remote_options *options, struct remote **ret_remote,
               struct cairn_error *err);
void remote_free(struct remote *remote);

#define REMOTE_HEADERS_MAX 8

struct remote_request {
    const char *method;  /* "GET"… */
    const char *path;    /* absolute, percent-encoded, with query: "/v2/…"; or an absolute URL of
                            one of the servers, as in a Location */
    const char *headers[REMOTE_HEADERS_MAX]; /* "Name: value", NULL-terminated */

    const void *body;    /* sent as it is, or … */
    uint64_t body_len;
    int (*read_body)(void *ctx, void *buf, size_t len, uint64_t off, struct cairn_error *err);

    /* The answer's body: collected (ret_body) if write_body is NULL. */
    int (*write_body)(void *ctx, const void *buf, size_t len, struct cairn_error *err);
    void *ctx;
    size_t body_max;     /* collected at most; 0: 64 MiB */

    bool idempotent;     /* may be repeated on another connection or server */
    bool long_running;   /* no overall deadline, only against standing still */
};

struct remote_answer {
    unsigned status;
    char *body; /* zero-terminated */
    size_t body_len;
    char *location;
    char *digest;  /* Docker-Content-Digest */
    char *range;   /* Range, of an upload */
    char *link;    /* Link, of a paged list */
    char *etag;
};
void remote_answer_release(struct remote_answer *answer);

/*
 * Any HTTP status is an answer; only not getting one is an error (CAIRN_E_UNAVAILABLE, or what
 * read_body and write_body returned).
 */
int remote_request(struct remote *remote, const struct remote_request *request,
                   struct remote_answer *ret_answer, struct cairn_error *err);

/* The error that a 4xx or 5xx answer stands for, from its status and OCI error body. */
int remote_answer_error(const struct remote_answer *answer, const char *what,
                        struct cairn_error *err);

/* GET that must give 200 and JSON; what starts the messages. */
int remote_get_json(struct remote *remote, const char *path, const char *what, json_t **ret_json,
                    struct cairn_error *err);
/* GET of exactly [off, off + len) into buf; must give 206 (or 200 for the whole), of that length
 * and, if etag is given, that ETag.  The hot path of remote disks: no allocation per byte, no
 * copy beyond curl's. */
int remote_read_range(struct remote *remote, const char *path, const char *etag, void *buf,
                      size_t len, uint64_t off, struct cairn_error *err);

#endif
