/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Redis, as a place where values may be found: a few nodes over which keys are spread, or the
 * master that sentinels name.  Nothing here waits longer than its deadline, and nothing is an error
 * to the caller: what Redis does not give in time it does not have.
 *
 * Everything that Redis answers is hostile: the caller verifies values; here their number and size
 * are bounded.  Thread-safe.
 */
#ifndef SERVER_REDIS_H
#define SERVER_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "error.h"

struct redis_options {
    const char *nodes;     /* "host:port[,host:port…]"; NULL: sentinels */
    const char *sentinels; /* "name@host:port[,host:port…]" */
    unsigned deadline_ms;  /* for one call, connecting included */
    unsigned expiry_s;     /* of what is put; 0: none */
};

struct redis;

/* Does not connect to Redis; looks up names, for a second at most, and goes on with that in the
 * background.  CAIRN_E_USAGE: an address that is none. */
int redis_new(const struct redis_options *options, struct redis **ret_redis,
              struct cairn_error *err);
void redis_free(struct redis *redis);
CLEANUP_DEFINE(struct redis *, redis_free)

#define REDIS_KEY_MAX   160
#define REDIS_VALUE_MAX ((size_t)32 << 20)

struct redis_item {
    char key[REDIS_KEY_MAX];
    void *value; /* malloc'ed, the caller's; NULL: none */
    size_t len;
};

/* Look up nr keys, those of one node with one round trip.  Values that are not had stay NULL.
 * False: some node could not be asked. */
bool redis_get(struct redis *redis, struct redis_item *items, size_t nr);

/* Store nr values, in the same way but with more time; they stay the caller's. */
bool redis_put(struct redis *redis, const struct redis_item *items, size_t nr);

/* Take a lock that ends by itself.  True: it is ours, or cannot be had from anybody (no Redis: then
 * everybody is on their own). */
bool redis_lock(struct redis *redis, const char *key, unsigned lifetime_ms);
void redis_unlock(struct redis *redis, const char *key);

struct redis_stats {
    uint64_t calls;    /* round trips, or attempts at one */
    uint64_t failures; /* of them: not connected, no answer in time, an answer that is none */
    uint64_t refused;  /* calls that were not attempted, for the node's breaker was open */
    uint64_t opened;   /* times that a breaker opened */
    uint64_t read_bytes, written_bytes; /* of values */
    uint64_t rejected;                  /* values that Redis would not take: it is full, say */
    uint64_t nodes, nodes_down;         /* now: not found yet, or with an open breaker */
    uint64_t latency_us;                /* of all round trips that succeeded, added up */
};
void redis_get_stats(struct redis *redis, struct redis_stats *ret_stats);

#endif
