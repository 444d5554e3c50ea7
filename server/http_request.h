/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request and its server, inside the HTTP part: what its way (http.c), its body (http_body.c),
 * its beginning and end (http_request.c) and the server (http_server.c) share.
 */
#ifndef SERVER_HTTP_REQUEST_H
#define SERVER_HTTP_REQUEST_H

#include <stdatomic.h>

#include "http_conns.h"
#include "http_internal.h"
#include "http_metrics.h"
#include "proxies.h"

#define HTTP_REQUEST_ID_MAX 64
#define HTTP_USER_MAX       64

enum http_phase {
    PHASE_HEADERS,   /* new */
    PHASE_BEGINNING, /* a worker runs the route's begin */
    PHASE_BEGUN,     /* it wants the body */
    PHASE_BODY,      /* reading it, also where there is none */
    PHASE_HANDLING,  /* a worker runs the route's handle */
    PHASE_REPLY,     /* the reply is ready */
    PHASE_REFUSED,   /* the same, and the body was not asked for */
    PHASE_DROPPING,  /* the same, but the body is read to its end first */
    PHASE_SENT,
};

struct http_piece {
    char *data;
    size_t len;
};

struct http_request {
    struct work work;
    struct http_server *server;
    struct MHD_Connection *connection;
    struct http_conn *conn;         /* NULL: nobody watches it */
    const struct http_route *route; /* NULL: not found yet, or none */
    enum http_phase phase;
    bool has_begun; /* a worker has had it already */
    enum http_method method;
    char method_text[16];
    char *target; /* as it was sent, for the log */
    struct http_uri uri;
    char id[HTTP_REQUEST_ID_MAX + 1];
    char user[HTTP_USER_MAX + 1];  /* empty: none */
    char client[INET6_ADDRSTRLEN]; /* as trusted proxies say; empty: the peer */
    const void *caller;
    void (*release_caller)(const void *caller);
    uint64_t started_us; /* clock_now_us */
    uint64_t received;   /* bytes of the body */
    uint64_t streamed;   /* bytes of a long reply's body that were sent */
    uint64_t dropped;    /* bytes of the body that nobody wanted */
    struct http_reply reply;
    struct MHD_Response *response;
    uint64_t reply_len;
    size_t reply_memory; /* counted for its body */
    bool corked;         /* the connection is, until the request is over */

    /* a collected body */
    size_t collect_max, body_size; /* body_size: allocated */
    struct http_piece body;

    /* a streamed body */
    struct http_sink sink;
    pthread_mutex_t lock; /* protects all below */
    unsigned refs;
    struct http_piece filling, sinking;
    bool sink_busy; /* a worker has the sinking piece */
    bool suspended; /* the connection waits for that */
    bool failed;
    struct cairn_error failure;
};

struct http_server {
    struct http_acceptor *acceptor;
    struct MHD_Daemon **daemons; /* each has one thread */
    unsigned nr_daemons;
    struct workers *workers;
    struct http_figures *figures;
    struct http_admission admission;
    struct http_tls *tls;          /* NULL: plain HTTP */
    const struct proxies *proxies; /* NULL: none is trusted */
    struct http_limits limits;
    struct http_conns *conns; /* NULL: nobody watches them */
    const struct http_route *routes;
    size_t nr_routes;
    char address[80];
    uint32_t id_prefix;
    atomic_uint next_id;
    atomic_size_t collected; /* bytes of bodies in memory */
    size_t max_replying;
    atomic_size_t replying; /* the same of replies */
    atomic_bool stopping;
    pthread_mutex_t lock; /* protects nr_requests */
    pthread_cond_t idle;
    unsigned nr_requests;
};

/* -- Beginning and end (http_request.c) --------------------------------------------------- */

/* libmicrohttpd calls this with the request line, before anything else of a request … */
void *http_request_start(void *server, const char *target, struct MHD_Connection *connection);
/* … and this when it is over, whichever way. */
void http_request_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                            enum MHD_RequestTerminationCode how);
/* Once its headers are there: who asks, if trusted proxies tell. */
void http_request_find_client(struct http_request *req);
void http_request_release_sink(struct http_request *req);
/* The reply goes out now.  libmicrohttpd sends the headers of a body that the kernel sends
 * (sendfile) as a packet of their own, unless they are held back until the body follows. */
void http_request_cork(struct http_request *req);
void http_request_unref(struct http_request *req);

/* -- Its way (http.c) --------------------------------------------------------------------- */

/* An MHD_AccessHandlerCallback: called for the headers, for each part of the body, behind its end
 * with *len == 0, and again whenever the connection was resumed. */
enum MHD_Result http_request_step(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *len, void **con_cls);

/* -- Its body (http_body.c) --------------------------------------------------------------- */

/* Take len bytes of it, or fewer: *len says how many are left. */
enum MHD_Result http_body_take(struct http_request *req, const char *data, size_t *len);
/* Behind its end: is a worker still at a piece?  Then the connection is suspended, and comes here
 * again. */
bool http_body_wait(struct http_request *req);
/* On a worker, with the body at its end: hand the last piece to the sink. */
void http_body_finish(struct http_request *req);

/* Bytes that nobody wants: MHD_NO when those dropped so far are more than max. */
#define HTTP_DROP_BEFORE_REPLY (64u << 20) /* of a refused body: else RST overtakes the reply */
#define HTTP_DROP_AFTER_ERROR  (1u << 30)  /* of a body that failed on its way */
enum MHD_Result http_body_drop(struct http_request *req, size_t *len, uint64_t max);

#endif
