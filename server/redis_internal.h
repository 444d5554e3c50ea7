/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the Redis client.
 *
 *   redis.c        keys to nodes; what is asked of them; the thread that finds nodes
 *   redis_node.c   one node: where it is, its connections, its breaker
 *   redis_conn.c   one connection: commands out, answers in, by a deadline
 */
#ifndef SERVER_REDIS_INTERNAL_H
#define SERVER_REDIS_INTERNAL_H

#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdatomic.h>

#include "redis.h"

/* -- One connection (redis_conn.c) ------------------------------------------------------------ */

struct redis_address {
    char host[256];
    uint16_t port;
};
/* "host:port" or "[v6]:port", len bytes. */
int redis_address_parse(const char *text, size_t len, struct redis_address *ret_address,
                        struct cairn_error *err);

/* A reply that is of use; everything else that Redis can say fails the connection, or is NONE. */
enum redis_answer_kind {
    ANSWER_NONE, /* nil, an error, a number */
    ANSWER_TEXT, /* a string, which may be empty; a status */
    ANSWER_PAIR, /* an array of two strings (of a sentinel) */
};
struct redis_answer {
    enum redis_answer_kind kind;
    bool is_error;
    bool is_read_only; /* the error says that this is no master any more */
    size_t len[2];
    char *text[2]; /* malloc'ed, zero-terminated behind len */
};
void redis_answer_release(struct redis_answer *a);

struct redis_conn;

/* Begins to connect.  NULL: that failed. */
struct redis_conn *redis_conn_open(const struct redis_address *address);
void redis_conn_close(struct redis_conn *c);

/* Between exchanges: has Redis neither spoken without being asked nor hung up? */
bool redis_conn_is_quiet(const struct redis_conn *c);

/* One command, kept until the next exchange; false: out of memory. */
bool redis_conn_add(struct redis_conn *c, int argc, const char *const argv[], const size_t lens[]);
/* Send what was added, and take as many answers.  False: the connection is of no further use. */
bool redis_conn_exchange(struct redis_conn *c, struct redis_answer *answers, size_t nr,
                         uint64_t until_us);

/* -- One node (redis_node.c) ------------------------------------------------------------------ */

#define REDIS_SENTINELS_MAX 16
#define REDIS_IDLE_MAX      64

/* Where a node is, as configured. */
struct redis_place {
    char master[128]; /* what sentinels call it; empty: a plain node, at addresses[0] */
    unsigned nr_addresses;
    struct redis_address addresses[REDIS_SENTINELS_MAX]; /* of the node, or of its sentinels */
};

struct redis_node {
    struct redis_place place; /* constant */

    pthread_mutex_t lock; /* everything below, up to the atomics; not held for I/O */
    bool known;
    struct redis_address numeric; /* if known: an address that needs no look-up */
    struct redis_conn *idle[REDIS_IDLE_MAX];
    unsigned nr_idle;
    unsigned failures;   /* in a row */
    uint64_t retry_us;   /* the breaker is open until then; 0: it is closed */
    uint64_t opened_us;  /* when it was opened last */
    uint64_t backoff_us; /* how long it was open last */

    atomic_uint_fast64_t calls, nr_failures, refused, opened, latency_us;
};

void redis_node_init(struct redis_node *node, const struct redis_place *place);
void redis_node_release(struct redis_node *node);

/* Find out where the node is; takes as long as names and sentinels take.  For the keeper thread. */
void redis_node_locate(struct redis_node *node);
/* Is nobody to be asked there now: unknown, or its breaker is open? */
bool redis_node_is_down(struct redis_node *node);
/* Is it time to locate it again? */
bool redis_node_is_lost(struct redis_node *node);

/* A connection for one exchange, and when that began; NULL: not now. */
struct redis_conn *redis_node_take(struct redis_node *node, uint64_t *ret_began_us);
/* How the exchange went: the connection is kept for the next one, or closed. */
void redis_node_give(struct redis_node *node, struct redis_conn *c, bool good, uint64_t began_us);

#endif
