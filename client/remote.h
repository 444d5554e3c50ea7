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
#include "cleanup.h"
#include "error.h"

struct remote;

/* Strings are copied, and may be NULL but for servers. */
struct remote_options {
    const char *servers;    /* base URLs, separated by commas */
    const char *token;      /* what requests prove themselves with */
    const char *token_file; /* without token: read at first, and again when the service refuses what
                               it held */
    const char *cacert;     /* PEM: the authorities of servers' certificates; NULL: the system's */
    const char *cert, *key; /* PEM: this client's own; without key that is in cert */
    bool insecure_token;    /* may it leave this host without TLS? */
    unsigned deadline_ms;   /* for one request, retries included; 0: 30,000 */
    /* Called now and then by every request that waits, from its thread; not CAIRN_OK gives up with
     * that result.  May be NULL. */
    int (*poll)(void *ctx, struct cairn_error *err);
    void *poll_ctx;
};
int remote_new(const struct remote_options *options, struct remote **ret_remote,
               struct cairn_error *err);
/* The same servers and deadline, with handles and a poll of its own. */
int remote_new_like(const struct remote *other, int (*poll)(void *ctx, struct cairn_error *err),
                    void *poll_ctx, struct remote **ret_remote, struct cairn_error *err);
void remote_free(struct remote *remote);
CLEANUP_DEFINE(struct remote *, remote_free)

/* The base URL that requests go to first, for names of things kept per service; borrowed. */
const char *remote_server(const struct remote *remote);

#define REMOTE_HEADERS_MAX 8

struct remote_request {
    const char *method; /* "GET"… */
    const char *path;   /* absolute, percent-encoded, with query: "/v2/…"; or an absolute URL of
                           one of the servers, as in a Location */
    const char *headers[REMOTE_HEADERS_MAX]; /* "Name: value", NULL-terminated */

    const void *body; /* sent as it is, or … */
    uint64_t body_len;
    int (*read_body)(void *ctx, void *buf, size_t len, uint64_t off, struct cairn_error *err);

    /* The answer's body, if the status is 200 or 206; collected in the answer if write_body is
     * NULL. A request with write_body is not repeated once a byte was handed over. */
    int (*write_body)(void *ctx, const void *buf, size_t len, struct cairn_error *err);
    void *ctx;
    size_t body_max; /* collected at most; 0: 64 MiB */

    bool idempotent;   /* may be repeated on another connection or server */
    bool long_running; /* no overall deadline, only against standing still */
};

struct remote_answer {
    unsigned status;
    char *body; /* zero-terminated; NULL if empty */
    size_t body_len;
    char *location;
    char *digest; /* Docker-Content-Digest */
    char *range;  /* Range, of an upload */
    char *link;   /* Link, of a paged list */
    char *etag;
    uint64_t content_length; /* as announced, UINT64_MAX if it was not */
    uint64_t chunk_min;      /* OCI-Chunk-Min-Length, 0 if there is none */
};
void remote_answer_release(struct remote_answer *answer);

/*
 * Any HTTP status is an answer; only not getting one is an error (CAIRN_E_UNAVAILABLE, or what
 * read_body, write_body or poll returned).  A repeatable request is repeated after 502, 503 and
 * 504, too, while the deadline allows.  Redirects are not followed, proxies of the environment not
 * used.  Until some server has answered for the first time, refused connections are reported after
 * a second.
 */
int remote_request(struct remote *remote, const struct remote_request *request,
                   struct remote_answer *ret_answer, struct cairn_error *err);

/* The error that an answer of an unwanted status stands for, from status and OCI error body. */
int remote_answer_error(const struct remote_answer *answer, const char *what,
                        struct cairn_error *err);

/* The JSON of an answer that must be 200; what starts the messages. */
int remote_answer_json(const struct remote_answer *answer, const char *what, json_t **ret_json,
                       struct cairn_error *err);
/* GET of exactly [off, off + len) into buf; must give 206 (or 200 for the whole), of that length
 * and, if etag is given (with its quotes), that ETag.  The hot path of remote disks: no allocation
 * of its own, no copy beyond curl's. */
int remote_read_range(struct remote *remote, const char *path, const char *etag, void *buf,
                      size_t len, uint64_t off, struct cairn_error *err);

#endif
