/* SPDX-License-Identifier: Apache-2.0 */
/* Inside connections: what counting them (http_conns.c) and watching them (http_watch.c) share. */
#ifndef SERVER_HTTP_WATCH_H
#define SERVER_HTTP_WATCH_H

#include <pthread.h>
#include <stdatomic.h>

#include "http_conns.h"

#define HTTP_CLIENT_BUCKETS 4096

enum http_cut {
    HTTP_CUT_HEADERS,  /* they took too long */
    HTTP_CUT_BODY,     /* it came too slowly */
    HTTP_CUT_REPLY,    /* it was fetched too slowly */
    HTTP_CUT_DEADLINE, /* the request took too long, for whatever reason */
};
#define NR_HTTP_CUTS 4

enum http_turn {
    HTTP_TURN_NOBODY, /* nothing is under way, or we have something to do */
    HTTP_TURN_SENDS,  /* the client has a body to send */
    HTTP_TURN_TAKES,  /* the client has a reply to fetch */
};

struct http_client {
    struct http_client *next;
    struct http_client_key key;
    unsigned nr; /* connections */
};

struct http_conn {
    int fd;
    struct http_client_key client;
    bool started; /* with the lock; from then on it may be watched */
    atomic_uint phase;
    atomic_uint_fast64_t request_us; /* when the request began */

    /* the watcher's own: what it saw last */
    uint64_t seen_us;
    uint64_t request_seen_us; /* which request that was */
    uint64_t received, acked; /* bytes, as the kernel counts them */
    enum http_turn turn;
    bool busy;           /* with a request, or headers of one */
    uint64_t headers_us; /* since when headers have been coming; 0: there are none */
    uint64_t waited_us;  /* for the client, in this window */
    uint64_t moved;      /* bytes in this window */
    bool closed;         /* by the client, and nobody here has noticed */
    bool cut;
};

struct http_conns {
    struct http_limits limits;
    uint64_t seed;        /* of the hash of clients */
    pthread_mutex_t lock; /* protects all below but the thread */
    struct http_conn **by_fd;
    size_t room;
    unsigned nr;
    struct http_client *clients[HTTP_CLIENT_BUCKETS];
    uint64_t admissions[NR_HTTP_CONN_REFUSALS], cuts[NR_HTTP_CUTS];

    pthread_t thread;
    int stop_fd; /* -1: there is no thread */
};

int http_watch_start(struct http_conns *conns, struct cairn_error *err);
void http_watch_stop(struct http_conns *conns);

/* -- The rule by itself, for tests --- */

/* What the kernel says of a connection. */
struct http_sample {
    uint64_t now_us;
    uint64_t received, acked; /* bytes since the connection began */
    bool unsent;              /* bytes wait for the client to take them */
    bool unread;              /* bytes wait for us to take them */
    bool closed;              /* the client has closed its side */
};

/* Take note of a sample; NR_HTTP_CUTS: the connection may go on. */
enum http_cut http_watch_judge(const struct http_limits *limits, struct http_conn *conn,
                               const struct http_sample *sample);

#endif
