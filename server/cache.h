/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cache of shared, reference-counted things: bounded, least recently used goes first, and
 * everybody who misses one key at the same time waits for one fetch.  Thread-safe; no lock is held
 * while something is fetched or released.
 */
#ifndef SERVER_CACHE_H
#define SERVER_CACHE_H

#include "digest.h"
#include "error.h"
#include "histogram.h"

struct cache;

struct cache_key {
    struct digest digest;
    uint32_t sub; /* tells apart what one digest has several of */
};

/* What the values are.  ref returns its argument. */
struct cache_type {
    void *(*ref)(void *value);
    void (*unref)(void *value);
    size_t (*cost)(const void *value); /* constant for a value, in the unit of max_cost */
};

/* max_cost 0 keeps nothing, and still makes one fetch of many. */
int cache_new(const struct cache_type *type, size_t max_cost, struct cache **ret_cache,
              struct cairn_error *err);
/* Nobody may use the cache any more; values that others hold references to live on. */
void cache_free(struct cache *cache);
CLEANUP_DEFINE(struct cache *, cache_free)

/* How long to wait for somebody else's fetch; 10 seconds unless told. */
void cache_set_patience(struct cache *cache, unsigned ms);

/*
 * From here on time one in CACHE_TIMED_ONE_IN of a thread's look-ups, hit or miss: the search and
 * the wait for its lock, without what a miss then fetches or waits for.  latency is borrowed, may
 * serve several caches, and outlives them.
 */
#define CACHE_TIMED_ONE_IN 61 /* a prime: no habit of the callers keeps step with it */
void cache_time_look_ups(struct cache *cache, struct histogram *latency);

/* Makes the value of a key; a reference is handed over. */
typedef int (*cache_fetch_fn)(void *arg, void **ret_value, struct cairn_error *err);

/*
 * The value of key, from the cache, from a fetch under way, or from fetch; a reference is handed
 * over.  A failed fetch is everybody's who waited for it, and nobody's after that; one that takes
 * too long is CAIRN_E_UNAVAILABLE to who waits, and goes on.  A fetch may use the cache for other
 * keys as long as keys wait for each other in one direction.
 */
int cache_get(struct cache *cache, const struct cache_key *key, cache_fetch_fn fetch, void *arg,
              void **ret_value, struct cairn_error *err);

/* The value if it is there, with a reference, else NULL. */
void *cache_peek(struct cache *cache, const struct cache_key *key);
/* Put value in (a reference of the cache's own is taken) unless key has one already. */
void cache_put(struct cache *cache, const struct cache_key *key, void *value);
/* Drop key if it still holds value: it turned out to be bad. */
void cache_drop(struct cache *cache, const struct cache_key *key, const void *value);

/* Call fn for what is there now, with a reference and without a lock: it may take its time, and
 * drop the key.  Without memory for that nothing is visited. */
typedef void (*cache_visit_fn)(void *arg, const struct cache_key *key, void *value);
void cache_each(struct cache *cache, cache_visit_fn fn, void *arg);

struct cache_stats {
    uint64_t hits;      /* answered from what was there */
    uint64_t misses;    /* not there */
    uint64_t waits;     /* of the misses: waited for somebody else's fetch */
    uint64_t evictions; /* made room for others */
    uint64_t cost, entries;
};
void cache_get_stats(struct cache *cache, struct cache_stats *ret_stats);

#endif
