/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys are spread over nodes by consistent hashing: each node has POINTS places on a ring, and a
 * key belongs to the node whose place comes next.  So a node that is added or removed moves its own
 * share of the keys and no other; a node that is down is not stood in for, its keys are missing.
 *
 * A call is one exchange with each node that has some of its keys, one after the other, all by one
 * deadline; nodes for which no time is left are not asked, nor blamed.  Values are asked for with
 * pipelined GETs, not with one MGET: what has come when the time is over is of use, and no answer
 * is ever an array.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "checked.h"
#include "clock.h"
#include "quote.h"
#include "redis_internal.h"

#define NODES_MAX    64u
#define POINTS       64u /* of a node */
#define CALL_ITEMS   64u /* of one exchange */
#define PUT_PATIENCE 20u /* nobody waits for what is put: its deadline is so much longer, */
#define PUT_MAX_US   ((uint64_t)2 * 1000 * 1000) /* but a server that stops does */
#define LOCATE_S     5 /* how often a node that does not answer is looked for */
#define START_S      1 /* that redis_new waits for nodes to be found */

struct point {
    uint64_t hash;
    unsigned node;
};

struct redis {
    uint64_t deadline_us;
    char expiry[16]; /* seconds; empty: none */
    unsigned nr_nodes;
    struct redis_node nodes[NODES_MAX];
    struct point ring[NODES_MAX * POINTS];

    pthread_t keeper; /* finds nodes */
    bool has_keeper;
    pthread_mutex_t keeper_lock;
    pthread_cond_t keeper_wakes, has_looked;
    bool looked; /* for each node once */
    bool stopping;

    atomic_uint_fast64_t read_bytes, written_bytes, rejected;
};

/* -- Configuration ---------------------------------------------------------------------------- */

static int add_node(struct redis *r, const struct redis_place *place, struct cairn_error *err)
{
    if (r->nr_nodes == NODES_MAX)
        return error_set(err, CAIRN_E_USAGE, "more than %u Redis nodes", NODES_MAX);
    redis_node_init(&r->nodes[r->nr_nodes++], place);
    return CAIRN_OK;
}

static int parse_nodes(struct redis *r, const char *text, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    while (ret == CAIRN_OK && text) {
        struct redis_place place = {.nr_addresses = 1};
        size_t len = strcspn(text, ",");

        ret = redis_address_parse(text, len, &place.addresses[0], err);
        if (ret == CAIRN_OK)
            ret = add_node(r, &place, err);
        text = text[len] ? text + len + 1 : NULL;
    }
    return ret ? error_prefix(err, ret, "redis") : CAIRN_OK;
}

static int parse_sentinels(struct redis *r, const char *text, struct cairn_error *err)
{
    struct redis_place place = {.nr_addresses = 0};
    const char *at = strchr(text, '@');
    size_t name_len = at ? (size_t)(at - text) : 0;
    char quoted[QUOTE_MAX];
    int ret = CAIRN_OK;

    if (name_len == 0 || name_len >= sizeof(place.master))
        return error_set(err, CAIRN_E_USAGE,
                         "redis-sentinel: %s, expected name@host:port[,host:port…]",
                         quote_str(text, quoted));
    memcpy(place.master, text, name_len);
    for (text = at + 1; ret == CAIRN_OK && text; place.nr_addresses++) {
        size_t len = strcspn(text, ",");

        if (place.nr_addresses == REDIS_SENTINELS_MAX)
            return error_set(err, CAIRN_E_USAGE, "redis-sentinel: more than %u sentinels",
                             REDIS_SENTINELS_MAX);
        ret = redis_address_parse(text, len, &place.addresses[place.nr_addresses], err);
        text = text[len] ? text + len + 1 : NULL;
    }
    return ret ? error_prefix(err, ret, "redis-sentinel") : add_node(r, &place, err);
}

/* -- The ring --------------------------------------------------------------------------------- */

static int compare_points(const void *a, const void *b)
{
    uint64_t x = ((const struct point *)a)->hash, y = ((const struct point *)b)->hash;

    return (x > y) - (x < y);
}

static void make_ring(struct redis *r)
{
    for (unsigned n = 0; n < r->nr_nodes; n++) {
        const struct redis_address *address = &r->nodes[n].place.addresses[0];
        char name[300];
        int len = snprintf(name, sizeof(name), "%s:%u", address->host, address->port);

        for (unsigned i = 0; i < POINTS; i++)
            r->ring[n * POINTS + i] = (struct point){XXH3_64bits_withSeed(name, (size_t)len, i), n};
    }
    qsort(r->ring, r->nr_nodes * (size_t)POINTS, sizeof(r->ring[0]), compare_points);
}

static unsigned node_of(const struct redis *r, const char *key)
{
    uint64_t hash = XXH3_64bits(key, strlen(key));
    unsigned low = 0, high = r->nr_nodes * POINTS;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (r->ring[middle].hash < hash)
            low = middle + 1;
        else
            high = middle;
    }
    return r->ring[low % (r->nr_nodes * POINTS)].node;
}

/* -- The keeper ------------------------------------------------------------------------------- */

/* Wait a while; false: stop. */
static bool keeper_rests(struct redis *r)
{
    struct timespec until;

    SCOPED_LOCK(&r->keeper_lock);
    r->looked = true;
    pthread_cond_signal(&r->has_looked);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += LOCATE_S;
    while (!r->stopping && pthread_cond_timedwait(&r->keeper_wakes, &r->keeper_lock, &until) == 0)
        ;
    return !r->stopping;
}

static void *keep(void *arg)
{
    struct redis *r = arg;

    do {
        for (unsigned i = 0; i < r->nr_nodes; i++)
            if (redis_node_is_lost(&r->nodes[i]))
                redis_node_locate(&r->nodes[i]);
    } while (keeper_rests(r));
    return NULL;
}

/* A server that starts should know its nodes; one that cannot find them starts all the same. */
static void await_keeper(struct redis *r)
{
    struct timespec until;

    SCOPED_LOCK(&r->keeper_lock);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += START_S;
    while (!r->looked && pthread_cond_timedwait(&r->has_looked, &r->keeper_lock, &until) == 0)
        ;
}

static int start_keeper(struct redis *r, struct cairn_error *err)
{
    int failure = pthread_create(&r->keeper, NULL, keep, r);

    if (failure)
        return error_set_errno(err, failure, "cannot start a thread for Redis");
    r->has_keeper = true;
    await_keeper(r);
    return CAIRN_OK;
}

static void stop_keeper(struct redis *r)
{
    pthread_mutex_lock(&r->keeper_lock);
    r->stopping = true;
    pthread_cond_signal(&r->keeper_wakes);
    pthread_mutex_unlock(&r->keeper_lock);
    pthread_join(r->keeper, NULL);
}

int redis_new(const struct redis_options *options, struct redis **ret_redis,
              struct cairn_error *err)
{
    CLEANUP(redis_free_p) struct redis *r = calloc(1, sizeof(*r));
    pthread_condattr_t attr;
    int ret;

    if (!r)
        return error_no_memory(err, "a Redis client");
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->keeper_wakes, &attr);
    pthread_cond_init(&r->has_looked, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&r->keeper_lock, NULL);
    r->deadline_us = (uint64_t)options->deadline_ms * 1000;
    if (options->expiry_s)
        snprintf(r->expiry, sizeof(r->expiry), "%u", options->expiry_s);
    ret = options->nodes ? parse_nodes(r, options->nodes, err)
                         : parse_sentinels(r, options->sentinels, err);
    if (ret == CAIRN_OK) {
        make_ring(r);
        ret = start_keeper(r, err);
    }
    if (ret == CAIRN_OK)
        *ret_redis = steal_ptr(r);
    return ret;
}

void redis_free(struct redis *r)
{
    if (!r)
        return;
    if (r->has_keeper)
        stop_keeper(r);
    for (unsigned i = 0; i < r->nr_nodes; i++)
        redis_node_release(&r->nodes[i]);
    pthread_cond_destroy(&r->has_looked);
    pthread_cond_destroy(&r->keeper_wakes);
    pthread_mutex_destroy(&r->keeper_lock);
    free(r);
}

/* -- Calls ------------------------------------------------------------------------------------ */

/* One exchange: commands of items that share a node. */
struct call {
    struct redis *redis;
    unsigned node;
    uint64_t until_us;
    size_t nr;
    size_t items[CALL_ITEMS]; /* which */
};

typedef bool (*add_fn)(struct redis *r, struct redis_conn *c, const struct redis_item *item);
/* What an answer says of an item; false: it cannot be. */
typedef bool (*take_fn)(struct redis *r, struct redis_item *item, struct redis_answer *a);

struct command {
    add_fn add;
    take_fn take;
};

static bool run_call(const struct call *call, const struct command *command,
                     struct redis_item *items)
{
    struct redis_node *node = &call->redis->nodes[call->node];
    struct redis_answer answers[CALL_ITEMS];
    struct redis_conn *c;
    uint64_t began_us;
    bool good = true;

    if (clock_now_us() >= call->until_us)
        return false;
    c = redis_node_take(node, &began_us);
    if (!c)
        return false;
    memset(answers, 0, sizeof(answers));
    for (size_t i = 0; good && i < call->nr; i++)
        good = command->add(call->redis, c, &items[call->items[i]]);
    good = good && redis_conn_exchange(c, answers, call->nr, call->until_us);
    /* What came before the time was over is of use, too. */
    for (size_t i = 0; i < call->nr; i++) {
        good &= command->take(call->redis, &items[call->items[i]], &answers[i]);
        redis_answer_release(&answers[i]);
    }
    redis_node_give(node, c, good, began_us);
    return good;
}

static bool run_command(struct redis *r, const struct command *command, struct redis_item *items,
                        size_t nr, uint64_t deadline_us)
{
    uint64_t until_us = clock_now_us() + deadline_us;
    bool good = true;

    for (unsigned n = 0; n < r->nr_nodes; n++) {
        struct call call = {.redis = r, .node = n, .until_us = until_us};

        for (size_t i = 0; i < nr; i++) {
            if (node_of(r, items[i].key) != n)
                continue;
            call.items[call.nr++] = i;
            if (call.nr == CALL_ITEMS) {
                good &= run_call(&call, command, items);
                call.nr = 0;
            }
        }
        if (call.nr > 0)
            good &= run_call(&call, command, items);
    }
    return good;
}

/* -- Get and put ------------------------------------------------------------------------------ */

static bool add_get(struct redis *r, struct redis_conn *c, const struct redis_item *item)
{
    const char *const argv[] = {"GET", item->key};
    const size_t lens[] = {3, strlen(item->key)};

    (void)r;
    return redis_conn_add(c, 2, argv, lens);
}

static bool take_value(struct redis *r, struct redis_item *item, struct redis_answer *a)
{
    if (a->kind != ANSWER_TEXT)
        return !a->is_error;
    item->value = steal_ptr(a->text[0]);
    item->len = a->len[0];
    atomic_fetch_add_explicit(&r->read_bytes, item->len, memory_order_relaxed);
    return true;
}

bool redis_get(struct redis *redis, struct redis_item *items, size_t nr)
{
    static const struct command get = {add_get, take_value};

    for (size_t i = 0; i < nr; i++)
        items[i].value = NULL;
    return run_command(redis, &get, items, nr, redis->deadline_us);
}

static bool add_set(struct redis *r, struct redis_conn *c, const struct redis_item *item)
{
    const char *const argv[] = {"SET", item->key, item->value, "EX", r->expiry};
    const size_t lens[] = {3, strlen(item->key), item->len, 2, strlen(r->expiry)};

    return redis_conn_add(c, r->expiry[0] ? 5 : 3, argv, lens);
}

/* A Redis that is full can be asked all the same; one that is no master any more has to be left. */
static bool take_status(struct redis *r, struct redis_item *item, struct redis_answer *a)
{
    if (a->kind == ANSWER_TEXT)
        atomic_fetch_add_explicit(&r->written_bytes, item->len, memory_order_relaxed);
    else if (a->is_error)
        atomic_fetch_add_explicit(&r->rejected, 1, memory_order_relaxed);
    return !a->is_read_only;
}

bool redis_put(struct redis *redis, const struct redis_item *items, size_t nr)
{
    static const struct command set = {add_set, take_status};

    /* Values are only read. */
    return run_command(redis, &set, (struct redis_item *)(uintptr_t)items, nr,
                       min_u64(PUT_PATIENCE * redis->deadline_us, PUT_MAX_US));
}

/* -- Locks ------------------------------------------------------------------------------------ */

/* One command to the node of key; its answer.  False: none. */
static bool ask(struct redis *r, const char *key, int argc, const char *const argv[],
                struct redis_answer *ret_answer)
{
    struct redis_node *node = &r->nodes[node_of(r, key)];
    uint64_t began_us;
    struct redis_conn *c = redis_node_take(node, &began_us);
    size_t lens[6];
    bool good;

    memset(ret_answer, 0, sizeof(*ret_answer));
    if (!c)
        return false;
    for (int i = 0; i < argc; i++)
        lens[i] = strlen(argv[i]);
    good = redis_conn_add(c, argc, argv, lens) &&
           redis_conn_exchange(c, ret_answer, 1, began_us + r->deadline_us);
    redis_node_give(node, c, good, began_us);
    return good;
}

bool redis_lock(struct redis *redis, const char *key, unsigned lifetime_ms)
{
    struct redis_answer a;
    char lifetime[16];
    const char *const argv[] = {"SET", key, "1", "NX", "PX", lifetime};
    bool ours;

    snprintf(lifetime, sizeof(lifetime), "%u", lifetime_ms);
    ours = !ask(redis, key, 6, argv, &a) || a.kind == ANSWER_TEXT || a.is_error;
    redis_answer_release(&a);
    return ours;
}

void redis_unlock(struct redis *redis, const char *key)
{
    const char *const argv[] = {"DEL", key};
    struct redis_answer a;

    ask(redis, key, 2, argv, &a);
    redis_answer_release(&a);
}

void redis_get_stats(struct redis *redis, struct redis_stats *ret_stats)
{
    struct redis_stats s = {
        .read_bytes = atomic_load_explicit(&redis->read_bytes, memory_order_relaxed),
        .written_bytes = atomic_load_explicit(&redis->written_bytes, memory_order_relaxed),
        .rejected = atomic_load_explicit(&redis->rejected, memory_order_relaxed),
    };

    for (unsigned i = 0; i < redis->nr_nodes; i++) {
        struct redis_node *n = &redis->nodes[i];

        s.nodes++;
        s.nodes_down += redis_node_is_down(n);
        s.calls += atomic_load_explicit(&n->calls, memory_order_relaxed);
        s.failures += atomic_load_explicit(&n->nr_failures, memory_order_relaxed);
        s.refused += atomic_load_explicit(&n->refused, memory_order_relaxed);
        s.opened += atomic_load_explicit(&n->opened, memory_order_relaxed);
        s.latency_us += atomic_load_explicit(&n->latency_us, memory_order_relaxed);
    }
    *ret_stats = s;
}
