/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bounded cache of shared things.
 *
 * Keys are spread over shards, each with its own lock, hash table and LRU list, so that readers of
 * different keys do not meet.  The bound is one for all shards, so that a value may be as large as
 * the whole cache: who puts the sum over the bound evicts, first from the shards after its own, the
 * oldest of each in turn.  That is LRU within a shard, and round robin among them.
 *
 * A miss opens a flight: the first asker fetches, later ones wait on the flight, and it is gone
 * from the shard before its result is told, so a failure is never kept.  The lock of a shard is
 * never held across fetch, ref's counterpart unref, or the lock of another shard.
 */
#include "cache.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "bytes.h"
#include "clock.h"
#include "nowait.h"

#define NR_SHARDS           16u
#define NR_BUCKETS_AT_FIRST 64u

/* A worker that waits is lost to everybody else, and so in the end are all of them. */
#define PATIENCE_MS 10000u

struct entry {
    struct entry *next; /* in the bucket */
    struct entry *newer, *older;
    struct cache_key key;
    void *value; /* a reference of the cache's */
    size_t cost;
};

/* A fetch under way.  Freed by the last of its waiters and its fetcher. */
struct flight {
    struct flight *next;
    const struct cache_key *key; /* the fetcher's */
    pthread_cond_t landed_cond;
    bool landed;
    unsigned users;
    int code;
    void *value; /* a reference for the flight itself, if code is CAIRN_OK */
    struct cairn_error err;
};

struct shard {
    pthread_mutex_t lock; /* covers everything below */
    struct entry **buckets;
    size_t nr_buckets; /* a power of two */
    struct entry *newest, *oldest;
    struct flight *flights;
    struct cache_stats stats; /* cost: of this shard */
};

struct cache {
    struct cache_type type;
    size_t max_cost;
    unsigned patience_ms;
    struct histogram *latency; /* NULL: nobody asks for it */
    atomic_size_t cost;        /* of all shards */
    struct shard shards[NR_SHARDS];
};

/* -- Hash table and LRU list of a shard; its lock is held ------------------------------------- */

static uint64_t key_hash(const struct cache_key *key)
{
    uint64_t h = bytes_get_le64(key->digest.sha256) ^ key->sub * 0x9e3779b97f4a7c15u;

    return h ^ h >> 32;
}

static bool key_equal(const struct cache_key *a, const struct cache_key *b)
{
    return a->sub == b->sub && digest_equal(&a->digest, &b->digest);
}

static struct shard *shard_of(struct cache *cache, const struct cache_key *key)
{
    return &cache->shards[key_hash(key) % NR_SHARDS];
}

static struct entry **bucket_of(struct shard *shard, const struct cache_key *key)
{
    return &shard->buckets[key_hash(key) / NR_SHARDS & (shard->nr_buckets - 1)];
}

static struct entry *find_locked(struct shard *shard, const struct cache_key *key)
{
    struct entry *e = *bucket_of(shard, key);

    while (e && !key_equal(&e->key, key))
        e = e->next;
    return e;
}

static void lru_remove_locked(struct shard *shard, struct entry *e)
{
    *(e->newer ? &e->newer->older : &shard->newest) = e->older;
    *(e->older ? &e->older->newer : &shard->oldest) = e->newer;
}

static void lru_add_locked(struct shard *shard, struct entry *e)
{
    e->newer = NULL;
    e->older = shard->newest;
    *(e->older ? &e->older->newer : &shard->oldest) = e;
    shard->newest = e;
}

static void remove_locked(struct cache *cache, struct shard *shard, struct entry *e)
{
    struct entry **link = bucket_of(shard, &e->key);

    while (*link != e)
        link = &(*link)->next;
    *link = e->next;
    lru_remove_locked(shard, e);
    shard->stats.cost -= e->cost;
    shard->stats.entries--;
    atomic_fetch_sub(&cache->cost, e->cost);
}

/* Failing to grow costs time, not truth. */
static void grow_locked(struct shard *shard)
{
    size_t nr_old = shard->nr_buckets;
    struct entry **old = shard->buckets;
    struct entry **grown = calloc(2 * nr_old, sizeof(*grown));

    if (!grown)
        return;
    shard->buckets = grown;
    shard->nr_buckets = 2 * nr_old;
    for (size_t i = 0; i < nr_old; i++) {
        while (old[i]) {
            struct entry *e = old[i];
            struct entry **bucket = bucket_of(shard, &e->key);

            old[i] = e->next;
            e->next = *bucket;
            *bucket = e;
        }
    }
    free(old);
}

static void insert_locked(struct cache *cache, struct shard *shard, struct entry *e)
{
    struct entry **bucket;

    if (shard->stats.entries >= shard->nr_buckets)
        grow_locked(shard);
    bucket = bucket_of(shard, &e->key);
    e->next = *bucket;
    *bucket = e;
    lru_add_locked(shard, e);
    shard->stats.cost += e->cost;
    shard->stats.entries++;
    atomic_fetch_add(&cache->cost, e->cost);
}

/* A hit: the value with a reference, now the newest; else NULL. */
static void *hit_locked(struct cache *cache, struct shard *shard, const struct cache_key *key)
{
    struct entry *e = find_locked(shard, key);

    if (!e) {
        shard->stats.misses++;
        return NULL;
    }
    shard->stats.hits++;
    lru_remove_locked(shard, e);
    lru_add_locked(shard, e);
    return cache->type.ref(e->value);
}

/* Is this look-up one of those that are timed?  Telling costs a thread's own count, no more. */
static bool is_timed(const struct cache *cache)
{
    static _Thread_local unsigned nr_until_next;

    if (!cache->latency)
        return false;
    if (nr_until_next > 0) {
        nr_until_next--;
        return false;
    }
    nr_until_next = CACHE_TIMED_ONE_IN - 1;
    return true;
}

/* Take the shard's lock, and look for key under it. */
static void *lock_and_hit(struct cache *cache, struct shard *shard, const struct cache_key *key)
{
    bool timed = is_timed(cache);
    uint64_t began_us = timed ? clock_now_us() : 0;
    void *value;

    pthread_mutex_lock(&shard->lock);
    value = hit_locked(cache, shard, key);
    if (timed)
        histogram_add(cache->latency, clock_now_us() - began_us);
    return value;
}

/* -- Flights ---------------------------------------------------------------------------------- */

static struct flight *flight_new(const struct cache_key *key)
{
    struct flight *f = calloc(1, sizeof(*f));

    if (!f)
        return NULL;
    f->key = key;
    f->users = 1;
    pthread_cond_init(&f->landed_cond, NULL);
    return f;
}

static struct flight *flight_find_locked(struct shard *shard, const struct cache_key *key)
{
    struct flight *f = shard->flights;

    while (f && !key_equal(f->key, key))
        f = f->next;
    return f;
}

/* One user less; the last one releases the flight, outside the lock, which the caller holds and
 * gets back free. */
static void flight_leave_unlock(struct cache *cache, struct shard *shard, struct flight *f)
{
    bool last = --f->users == 0;

    pthread_mutex_unlock(&shard->lock);
    if (!last)
        return;
    if (f->value)
        cache->type.unref(f->value);
    pthread_cond_destroy(&f->landed_cond);
    free(f);
}

/* False if that takes too long.  The shard's lock is held, but for the wait. */
static bool flight_await_locked(const struct cache *cache, struct shard *shard, struct flight *f)
{
    struct timespec deadline;

    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += cache->patience_ms / 1000;
    deadline.tv_nsec += (long)(cache->patience_ms % 1000) * 1000000;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000;
    }
    while (!f->landed) {
        if (pthread_cond_clockwait(&f->landed_cond, &shard->lock, CLOCK_MONOTONIC, &deadline))
            return f->landed;
    }
    return true;
}

/* Wait for somebody else's fetch.  Called with the shard's lock, returns without. */
static int flight_wait_unlock(struct cache *cache, struct shard *shard, struct flight *f,
                              void **ret_value, struct cairn_error *err)
{
    int code;

    f->users++;
    shard->stats.waits++;
    if (!flight_await_locked(cache, shard, f))
        code =
            error_set(err, CAIRN_E_UNAVAILABLE,
                      "another request has been fetching the same for %u ms", cache->patience_ms);
    else if ((code = f->code) == CAIRN_OK)
        *ret_value = cache->type.ref(f->value);
    else if (err)
        *err = f->err;
    flight_leave_unlock(cache, shard, f);
    return code;
}

static void flight_unlink_locked(struct shard *shard, struct flight *f)
{
    struct flight **link = &shard->flights;

    while (*link != f)
        link = &(*link)->next;
    *link = f->next;
}

/* Tell the waiters how the fetch went.  value is borrowed. */
static void flight_land(struct cache *cache, struct shard *shard, struct flight *f, int code,
                        void *value, const struct cairn_error *err)
{
    pthread_mutex_lock(&shard->lock);
    flight_unlink_locked(shard, f);
    f->landed = true;
    f->code = code;
    if (code == CAIRN_OK)
        f->value = cache->type.ref(value);
    else
        f->err = *err;
    pthread_cond_broadcast(&f->landed_cond);
    flight_leave_unlock(cache, shard, f);
}

/* -- The bound -------------------------------------------------------------------------------- */

/* Evict the oldest of one shard; false if it has none. */
static bool evict_one(struct cache *cache, struct shard *shard)
{
    struct entry *victim;

    pthread_mutex_lock(&shard->lock);
    victim = shard->oldest;
    if (victim) {
        remove_locked(cache, shard, victim);
        shard->stats.evictions++;
    }
    pthread_mutex_unlock(&shard->lock);
    if (!victim)
        return false;
    cache->type.unref(victim->value);
    free(victim);
    return true;
}

/* Shards that were filled last are asked last.  A whole round without a victim means that others
 * are evicting too: they will bring the sum down. */
static void keep_bound(struct cache *cache, const struct shard *filled)
{
    size_t at = (size_t)(filled - cache->shards);
    size_t empty = 0;

    while (atomic_load(&cache->cost) > cache->max_cost && empty < NR_SHARDS) {
        at = (at + 1) % NR_SHARDS;
        empty = evict_one(cache, &cache->shards[at]) ? 0 : empty + 1;
    }
}

/* -- The interface ---------------------------------------------------------------------------- */

void cache_put(struct cache *cache, const struct cache_key *key, void *value)
{
    struct shard *shard = shard_of(cache, key);
    size_t cost = cache->type.cost(value);
    struct entry *e;

    if (cost > cache->max_cost)
        return;
    e = malloc(sizeof(*e));
    if (!e)
        return;
    *e = (struct entry){.key = *key, .value = cache->type.ref(value), .cost = cost};
    pthread_mutex_lock(&shard->lock);
    if (!find_locked(shard, key)) {
        insert_locked(cache, shard, e);
        e = NULL;
    }
    pthread_mutex_unlock(&shard->lock);
    if (e) {
        cache->type.unref(e->value);
        free(e);
    }
    keep_bound(cache, shard);
}

void *cache_peek(struct cache *cache, const struct cache_key *key)
{
    struct shard *shard = shard_of(cache, key);
    void *value = lock_and_hit(cache, shard, key);

    pthread_mutex_unlock(&shard->lock);
    return value;
}

void cache_drop(struct cache *cache, const struct cache_key *key, const void *value)
{
    struct shard *shard = shard_of(cache, key);
    struct entry *e;

    pthread_mutex_lock(&shard->lock);
    e = find_locked(shard, key);
    if (e && e->value == value)
        remove_locked(cache, shard, e);
    else
        e = NULL;
    pthread_mutex_unlock(&shard->lock);
    if (e) {
        cache->type.unref(e->value);
        free(e);
    }
}

struct visited {
    struct cache_key key;
    void *value; /* with a reference */
};

static struct visited *copy_entries(const struct cache *cache, struct shard *shard, size_t *ret_nr)
{
    struct visited *all;

    SCOPED_LOCK(&shard->lock);
    *ret_nr = 0;
    all = calloc((size_t)shard->stats.entries + 1, sizeof(*all));
    for (const struct entry *e = shard->newest; all && e; e = e->older)
        all[(*ret_nr)++] = (struct visited){e->key, cache->type.ref(e->value)};
    return all;
}

void cache_each(struct cache *cache, cache_visit_fn fn, void *arg)
{
    for (size_t i = 0; i < NR_SHARDS; i++) {
        size_t nr;
        CLEANUP_FREE struct visited *all = copy_entries(cache, &cache->shards[i], &nr);

        for (size_t k = 0; k < nr; k++) {
            fn(arg, &all[k].key, all[k].value);
            cache->type.unref(all[k].value);
        }
    }
}

int cache_get(struct cache *cache, const struct cache_key *key, cache_fetch_fn fetch, void *arg,
              void **ret_value, struct cairn_error *err)
{
    struct shard *shard = shard_of(cache, key);
    struct cairn_error fetch_err;
    struct flight *flight;
    void *value;
    int code;

    value = lock_and_hit(cache, shard, key);
    if (value) {
        pthread_mutex_unlock(&shard->lock);
        *ret_value = value;
        return CAIRN_OK;
    }
    code = nowait_check(err);
    if (code != CAIRN_OK) { /* the miss is counted when it is fetched */
        shard->stats.misses--;
        pthread_mutex_unlock(&shard->lock);
        return code;
    }
    flight = flight_find_locked(shard, key);
    if (flight)
        return flight_wait_unlock(cache, shard, flight, ret_value, err);
    flight = flight_new(key);
    if (flight) {
        flight->next = shard->flights;
        shard->flights = flight;
    }
    pthread_mutex_unlock(&shard->lock);
    if (!flight)
        return error_no_memory(err, "a cache entry");

    code = fetch(arg, &value, &fetch_err);
    if (code == CAIRN_OK)
        cache_put(cache, key, value);
    flight_land(cache, shard, flight, code, value, &fetch_err);
    if (code == CAIRN_OK)
        *ret_value = value;
    else if (err)
        *err = fetch_err;
    return code;
}

int cache_new(const struct cache_type *type, size_t max_cost, struct cache **ret_cache,
              struct cairn_error *err)
{
    CLEANUP(cache_free_p) struct cache *cache = calloc(1, sizeof(*cache));

    if (!cache)
        return error_no_memory(err, "a cache");
    cache->type = *type;
    cache->max_cost = max_cost;
    cache->patience_ms = PATIENCE_MS;
    for (unsigned i = 0; i < NR_SHARDS; i++)
        pthread_mutex_init(&cache->shards[i].lock, NULL);
    for (unsigned i = 0; i < NR_SHARDS; i++) {
        struct shard *shard = &cache->shards[i];

        shard->nr_buckets = NR_BUCKETS_AT_FIRST;
        shard->buckets = calloc(shard->nr_buckets, sizeof(*shard->buckets));
        if (!shard->buckets)
            return error_no_memory(err, "a cache");
    }
    *ret_cache = steal_ptr(cache);
    return CAIRN_OK;
}

void cache_time_look_ups(struct cache *cache, struct histogram *latency)
{
    cache->latency = latency;
}

void cache_set_patience(struct cache *cache, unsigned ms)
{
    cache->patience_ms = ms;
}

void cache_free(struct cache *cache)
{
    if (!cache)
        return;
    for (unsigned i = 0; i < NR_SHARDS; i++) {
        struct shard *shard = &cache->shards[i];

        while (shard->oldest)
            evict_one(cache, shard);
        free(shard->buckets);
        pthread_mutex_destroy(&shard->lock);
    }
    free(cache);
}

void cache_get_stats(struct cache *cache, struct cache_stats *ret_stats)
{
    struct cache_stats sum = {0};

    for (unsigned i = 0; i < NR_SHARDS; i++) {
        struct shard *shard = &cache->shards[i];
        SCOPED_LOCK(&shard->lock);

        sum.hits += shard->stats.hits;
        sum.misses += shard->stats.misses;
        sum.waits += shard->stats.waits;
        sum.evictions += shard->stats.evictions;
        sum.cost += shard->stats.cost;
        sum.entries += shard->stats.entries;
    }
    *ret_stats = sum;
}
