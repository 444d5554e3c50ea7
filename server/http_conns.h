/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connections of the HTTP server: how many there may be, and which have to go because their
 * client is too slow.  They know file descriptors and clocks, nothing of HTTP but the phase that a
 * request is in.
 */
#ifndef SERVER_HTTP_CONNS_H
#define SERVER_HTTP_CONNS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "cleanup.h"
#include "error.h"
#include "http.h"

struct http_conns; /* all of them */
struct http_conn;  /* one */
struct metrics;

/* Starts a thread that watches them, where limits make that necessary. */
int http_conns_new(const struct http_limits *limits, struct http_conns **ret_conns,
                   struct cairn_error *err);
void http_conns_free(struct http_conns *conns); /* after their server */
CLEANUP_DEFINE(struct http_conns *, http_conns_free)

enum http_conn_refusal {
    HTTP_CONN_ADMITTED,
    HTTP_CONN_TOO_MANY,        /* of all clients */
    HTTP_CONN_TOO_MANY_OF_ONE, /* of this client */
    HTTP_CONN_NO_MEMORY,
};
#define NR_HTTP_CONN_REFUSALS 4

/*
 * A connection's life.  admit counts one that was just accepted; dropped takes that back where
 * nobody wants it after all.  Once started, until it is closed, it may be shut down by the watcher;
 * the descriptor must stay open for that long.
 */
enum http_conn_refusal http_conns_admit(struct http_conns *conns, int fd,
                                        const struct sockaddr_storage *client);
void http_conns_dropped(struct http_conns *conns, int fd);
struct http_conn *http_conns_started(struct http_conns *conns, int fd); /* NULL: not known */
void http_conns_closed(struct http_conns *conns, struct http_conn *conn);

/* What a connection is about.  Its own thread says so, or the worker for which it is suspended. */
enum http_conn_phase {
    HTTP_CONN_IDLE,      /* between requests */
    HTTP_CONN_HEADERS,   /* the request line is there, not all of the headers */
    HTTP_CONN_BODY,      /* a body is being read */
    HTTP_CONN_ANSWERING, /* it is our turn, or a reply is on its way */
};
void http_conn_begin_request(struct http_conn *conn); /* NULL is allowed here and below */
void http_conn_set_phase(struct http_conn *conn, enum http_conn_phase phase);

/* -- Clients' addresses, for tests --- */

/* IPv4 also as a part of IPv6; of IPv6 the /64 that one client has. */
struct http_client_key {
    uint8_t bytes[16];
};
struct http_client_key http_client_key_of(const struct sockaddr_storage *client);

void http_conns_write_metrics(void *conns, struct metrics *m);

#endif
