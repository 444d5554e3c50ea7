/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many connections there are, and of whom.
 *
 * A connection is known by its descriptor from the moment it is accepted.  libmicrohttpd says when
 * it starts and when it is about to be closed, each from the connection's own thread; but one that
 * cannot be started, for lack of memory, is closed without a word.  What is left of it here is
 * never touched, and goes when its descriptor's number comes up again.
 */
#include "http_watch.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <xxhash.h>

#include "clock.h"
#include "metrics.h"

/* -- Clients ------------------------------------------------------------------------------ */

struct http_client_key http_client_key_of(const struct sockaddr_storage *client)
{
    static const uint8_t v4_prefix[12] = {[10] = 0xff, [11] = 0xff};
    struct http_client_key key = {0};

    if (client->ss_family == AF_INET) {
        struct sockaddr_in in;

        memcpy(&in, client, sizeof(in));
        memcpy(key.bytes, v4_prefix, sizeof(v4_prefix));
        memcpy(key.bytes + 12, &in.sin_addr, 4);
    } else if (client->ss_family == AF_INET6) {
        struct sockaddr_in6 in6;
        bool is_v4;

        memcpy(&in6, client, sizeof(in6));
        is_v4 = memcmp(&in6.sin6_addr, v4_prefix, sizeof(v4_prefix)) == 0;
        memcpy(key.bytes, &in6.sin6_addr, is_v4 ? 16 : 8);
    }
    return key;
}

static struct http_client **client_slot(struct http_conns *conns, const struct http_client_key *key)
{
    uint64_t hash = XXH3_64bits_withSeed(key->bytes, sizeof(key->bytes), conns->seed);
    struct http_client **p = &conns->clients[hash % HTTP_CLIENT_BUCKETS];

    while (*p && memcmp(&(*p)->key, key, sizeof(*key)) != 0)
        p = &(*p)->next;
    return p;
}

static void client_leave_locked(struct http_conns *conns, const struct http_client_key *key)
{
    struct http_client **p = client_slot(conns, key), *client = *p;

    if (--client->nr > 0)
        return;
    *p = client->next;
    free(client);
}

static enum http_conn_refusal client_enter_locked(struct http_conns *conns,
                                                  const struct http_client_key *key)
{
    struct http_client **p = client_slot(conns, key);
    const unsigned max = conns->limits.connections_per_client;

    if (*p && max > 0 && (*p)->nr >= max)
        return HTTP_CONN_TOO_MANY_OF_ONE;
    if (!*p) {
        *p = calloc(1, sizeof(**p));
        if (!*p)
            return HTTP_CONN_NO_MEMORY;
        (*p)->key = *key;
    }
    (*p)->nr++;
    return HTTP_CONN_ADMITTED;
}

/* -- Connections -------------------------------------------------------------------------- */

/* Let there be a place for fd. */
static bool make_place_locked(struct http_conns *conns, int fd)
{
    size_t room = conns->room ? conns->room : 1024;
    struct http_conn **by_fd;

    if ((size_t)fd < conns->room)
        return true;
    while (room <= (size_t)fd)
        room *= 2;
    by_fd = realloc(conns->by_fd, room * sizeof(struct http_conn *));
    if (!by_fd)
        return false;
    memset(by_fd + conns->room, 0, (room - conns->room) * sizeof(struct http_conn *));
    conns->by_fd = by_fd;
    conns->room = room;
    return true;
}

static void forget_locked(struct http_conns *conns, int fd)
{
    struct http_conn *conn = (size_t)fd < conns->room ? conns->by_fd[fd] : NULL;

    if (!conn)
        return;
    conns->by_fd[fd] = NULL;
    conns->nr--;
    client_leave_locked(conns, &conn->client);
    free(conn);
}

static enum http_conn_refusal admit_locked(struct http_conns *conns, int fd,
                                           const struct sockaddr_storage *client)
{
    struct http_client_key key = http_client_key_of(client);
    enum http_conn_refusal refusal;
    struct http_conn *conn;

    forget_locked(conns, fd); /* one that never started: its number is ours again */
    if (conns->limits.connections > 0 && conns->nr >= conns->limits.connections)
        return HTTP_CONN_TOO_MANY;
    conn = make_place_locked(conns, fd) ? calloc(1, sizeof(*conn)) : NULL;
    if (!conn)
        return HTTP_CONN_NO_MEMORY;
    refusal = client_enter_locked(conns, &key);
    if (refusal != HTTP_CONN_ADMITTED) {
        free(conn);
        return refusal;
    }
    conn->fd = fd;
    conn->client = key;
    conns->by_fd[fd] = conn;
    conns->nr++;
    return HTTP_CONN_ADMITTED;
}

enum http_conn_refusal http_conns_admit(struct http_conns *conns, int fd,
                                        const struct sockaddr_storage *client)
{
    SCOPED_LOCK(&conns->lock);
    enum http_conn_refusal refusal = admit_locked(conns, fd, client);

    conns->admissions[refusal]++;
    return refusal;
}

void http_conns_dropped(struct http_conns *conns, int fd)
{
    SCOPED_LOCK(&conns->lock);
    forget_locked(conns, fd);
}

struct http_conn *http_conns_started(struct http_conns *conns, int fd)
{
    struct http_conn *conn;

    SCOPED_LOCK(&conns->lock);
    conn = (size_t)fd < conns->room ? conns->by_fd[fd] : NULL;
    if (conn)
        conn->started = true;
    return conn;
}

void http_conns_closed(struct http_conns *conns, struct http_conn *conn)
{
    if (!conn)
        return;
    SCOPED_LOCK(&conns->lock);
    forget_locked(conns, conn->fd);
}

void http_conn_begin_request(struct http_conn *conn)
{
    if (!conn)
        return;
    atomic_store_explicit(&conn->request_us, clock_now_us(), memory_order_relaxed);
    atomic_store_explicit(&conn->phase, HTTP_CONN_HEADERS, memory_order_release);
}

void http_conn_set_phase(struct http_conn *conn, enum http_conn_phase phase)
{
    if (conn)
        atomic_store_explicit(&conn->phase, phase, memory_order_release);
}

/* -- Life --------------------------------------------------------------------------------- */

int http_conns_new(const struct http_limits *limits, struct http_conns **ret_conns,
                   struct cairn_error *err)
{
    struct http_conns *conns = calloc(1, sizeof(*conns));
    int r;

    if (!conns)
        return error_no_memory(err, "connections");
    conns->limits = *limits;
    if (getrandom(&conns->seed, sizeof(conns->seed), 0) < 0)
        conns->seed = clock_now_us();
    pthread_mutex_init(&conns->lock, NULL);
    r = http_watch_start(conns, err);
    if (r)
        http_conns_free(conns);
    else
        *ret_conns = conns;
    return r;
}

void http_conns_free(struct http_conns *conns)
{
    if (!conns)
        return;
    http_watch_stop(conns);
    for (size_t fd = 0; fd < conns->room; fd++)
        forget_locked(conns, (int)fd);
    free(conns->by_fd);
    pthread_mutex_destroy(&conns->lock);
    free(conns);
}

void http_conns_write_metrics(void *ctx, struct metrics *m)
{
    static const char *const refusals[NR_HTTP_CONN_REFUSALS] = {
        [HTTP_CONN_TOO_MANY] = "reason=\"all\"",
        [HTTP_CONN_TOO_MANY_OF_ONE] = "reason=\"client\"",
        [HTTP_CONN_NO_MEMORY] = "reason=\"memory\"",
    };
    static const char *const cuts[NR_HTTP_CUTS] = {
        [HTTP_CUT_HEADERS] = "reason=\"headers\"",
        [HTTP_CUT_BODY] = "reason=\"body\"",
        [HTTP_CUT_REPLY] = "reason=\"reply\"",
        [HTTP_CUT_DEADLINE] = "reason=\"deadline\"",
    };
    struct http_conns *conns = ctx;

    SCOPED_LOCK(&conns->lock);
    metrics_family(m, "cairn_http_connections_refused_total", "counter",
                   "Connections refused because there are too many, of all or of one client.");
    for (unsigned i = HTTP_CONN_ADMITTED + 1; i < NR_HTTP_CONN_REFUSALS; i++)
        metrics_value(m, refusals[i], conns->admissions[i]);
    metrics_family(
        m, "cairn_http_connections_cut_total", "counter",
        "Connections cut because their client was too slow, or a request took too long.");
    for (unsigned i = 0; i < NR_HTTP_CUTS; i++)
        metrics_value(m, cuts[i], conns->cuts[i]);
}
