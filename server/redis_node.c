/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One Redis node.
 *
 * Connections are made when there is no idle one, and kept: so there are as many as workers have
 * used it at a time.  They are made to a numeric address.  What host names and sentinels say takes
 * its time to learn, so it is learnt by a thread that does nothing else (redis.c).
 *
 * The breaker: after FAILURES_MAX failed exchanges in a row the node is left alone for a while,
 * twice as long each time, up to BACKOFF_MAX_US.  Then one caller tries; the others go on without
 * until that went well.
 */
#include <netdb.h>
#include <string.h>

#include "checked.h"
#include "clock.h"
#include "redis_internal.h"

#define FAILURES_MAX   5u
#define BACKOFF_MIN_US ((uint64_t)100 * 1000)
#define BACKOFF_MAX_US ((uint64_t)10 * 1000 * 1000)
#define SENTINEL_US    ((uint64_t)1000 * 1000) /* for one sentinel; nobody waits for it */

void redis_node_init(struct redis_node *node, const struct redis_place *place)
{
    memset(node, 0, sizeof(*node));
    node->place = *place;
    pthread_mutex_init(&node->lock, NULL);
}

static void close_idle_locked(struct redis_node *node)
{
    while (node->nr_idle > 0)
        redis_conn_close(node->idle[--node->nr_idle]);
}

void redis_node_release(struct redis_node *node)
{
    close_idle_locked(node);
    pthread_mutex_destroy(&node->lock);
}

/* -- Where it is ------------------------------------------------------------------------------ */

static bool resolve(const struct redis_address *address, struct redis_address *ret_numeric)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    bool good = getaddrinfo(address->host, NULL, &hints, &found) == 0 &&
                getnameinfo(found->ai_addr, found->ai_addrlen, ret_numeric->host,
                            sizeof(ret_numeric->host), NULL, 0, NI_NUMERICHOST) == 0;

    ret_numeric->port = address->port;
    if (found)
        freeaddrinfo(found);
    return good;
}

/* What a sentinel says of where the master is. */
static bool ask_sentinel(const struct redis_address *sentinel, const char *master,
                         struct redis_address *ret_address)
{
    const char *const argv[] = {"SENTINEL", "get-master-addr-by-name", master};
    const size_t lens[] = {strlen(argv[0]), strlen(argv[1]), strlen(argv[2])};
    struct redis_conn *c = redis_conn_open(sentinel);
    struct redis_answer a = {0};
    char text[300];
    bool good = c && redis_conn_add(c, 3, argv, lens) &&
                redis_conn_exchange(c, &a, 1, clock_now_us() + SENTINEL_US) &&
                a.kind == ANSWER_PAIR && a.text[0] && a.text[1] && a.len[0] < 256 && a.len[1] < 8;

    if (good) {
        snprintf(text, sizeof(text), "%s:%s", a.text[0], a.text[1]);
        good = redis_address_parse(text, strlen(text), ret_address, NULL) == CAIRN_OK;
    }
    redis_answer_release(&a);
    redis_conn_close(c);
    return good;
}

static bool locate(const struct redis_place *place, struct redis_address *ret_numeric)
{
    struct redis_address sentinel, master;

    if (!place->master[0])
        return resolve(&place->addresses[0], ret_numeric);
    for (unsigned i = 0; i < place->nr_addresses; i++)
        if (resolve(&place->addresses[i], &sentinel) &&
            ask_sentinel(&sentinel, place->master, &master) && resolve(&master, ret_numeric))
            return true;
    return false;
}

void redis_node_locate(struct redis_node *node)
{
    struct redis_address numeric;
    bool found = locate(&node->place, &numeric);

    SCOPED_LOCK(&node->lock);
    if (!found)
        return; /* what was known may still be right */
    if (node->known && strcmp(numeric.host, node->numeric.host) == 0 &&
        numeric.port == node->numeric.port)
        return;
    /* Somewhere else: what happened to the old place is forgotten. */
    close_idle_locked(node);
    node->numeric = numeric;
    node->known = true;
    node->failures = 0;
    node->retry_us = node->backoff_us = 0;
}

bool redis_node_is_lost(struct redis_node *node)
{
    SCOPED_LOCK(&node->lock);
    return !node->known || node->failures > 0 || node->place.master[0];
}

/* -- Connections ------------------------------------------------------------------------------ */

/* May this caller try?  With an open breaker one may, each time its time is over. */
static bool pass_breaker_locked(struct redis_node *node, uint64_t now)
{
    if (node->retry_us == 0)
        return true;
    if (now < node->retry_us)
        return false;
    node->retry_us = now + node->backoff_us; /* the others wait for how it goes */
    return true;
}

/* The idle connection that was used last, if it is of use: one that a node's restart has closed is
 * no failure of the node. */
static struct redis_conn *take_idle_locked(struct redis_node *node)
{
    while (node->nr_idle > 0) {
        struct redis_conn *c = node->idle[--node->nr_idle];

        if (redis_conn_is_quiet(c))
            return c;
        redis_conn_close(c);
    }
    return NULL;
}

struct redis_conn *redis_node_take(struct redis_node *node, uint64_t *ret_began_us)
{
    struct redis_address address;
    struct redis_conn *c = NULL;

    *ret_began_us = clock_now_us();
    pthread_mutex_lock(&node->lock);
    if (!node->known || !pass_breaker_locked(node, *ret_began_us)) {
        pthread_mutex_unlock(&node->lock);
        atomic_fetch_add_explicit(&node->refused, 1, memory_order_relaxed);
        return NULL;
    }
    c = take_idle_locked(node);
    address = node->numeric;
    pthread_mutex_unlock(&node->lock);
    atomic_fetch_add_explicit(&node->calls, 1, memory_order_relaxed);
    if (!c)
        c = redis_conn_open(&address);
    if (!c)
        redis_node_give(node, NULL, false, *ret_began_us);
    return c;
}

bool redis_node_is_down(struct redis_node *node)
{
    SCOPED_LOCK(&node->lock);
    return !node->known || node->retry_us != 0;
}

static void count_failure_locked(struct redis_node *node, uint64_t began_us)
{
    /* A node that fails has not served its other connections better. */
    close_idle_locked(node);
    /* Those that were under way when the breaker opened say nothing new. */
    if (++node->failures < FAILURES_MAX || began_us < node->opened_us)
        return;
    node->backoff_us =
        node->backoff_us ? min_u64(2 * node->backoff_us, BACKOFF_MAX_US) : BACKOFF_MIN_US;
    node->opened_us = clock_now_us();
    node->retry_us = node->opened_us + node->backoff_us;
    atomic_fetch_add_explicit(&node->opened, 1, memory_order_relaxed);
}

void redis_node_give(struct redis_node *node, struct redis_conn *c, bool good, uint64_t began_us)
{
    pthread_mutex_lock(&node->lock);
    if (good) {
        node->failures = 0;
        node->retry_us = node->backoff_us = 0;
        if (node->nr_idle < REDIS_IDLE_MAX)
            node->idle[node->nr_idle++] = steal_ptr(c);
    } else {
        count_failure_locked(node, began_us);
    }
    pthread_mutex_unlock(&node->lock);
    redis_conn_close(c);
    if (good)
        atomic_fetch_add_explicit(&node->latency_us, clock_now_us() - began_us,
                                  memory_order_relaxed);
    else
        atomic_fetch_add_explicit(&node->nr_failures, 1, memory_order_relaxed);
}
