/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metadata cache and Redis in /metrics.  Tier "memory" is the cache itself.
 */
#include <stddef.h>
#include <stdio.h>

#include "cache.h"
#include "metacache.h"
#include "metrics.h"
#include "redis.h"

#define TIERS_MAX  8
#define LABELS_MAX 64

#define TEXT_OF(macro) #macro
#define DIGITS(macro)  TEXT_OF(macro)
#define TIMED_ONE_IN   DIGITS(CACHE_TIMED_ONE_IN)

struct tiers {
    struct metacache_stats memory;
    unsigned nr;
    struct metacache_tier_stats lower[TIERS_MAX];
};

static const char *tier_label(const struct metacache_tier_stats *tier, char labels[LABELS_MAX])
{
    snprintf(labels, LABELS_MAX, "tier=\"%s\"", tier ? tier->name : "memory");
    return labels;
}

/* One counter of all lower tiers, by its offset. */
static void write_lower(struct metrics *m, const struct tiers *t, size_t field)
{
    char labels[LABELS_MAX];

    for (unsigned i = 0; i < t->nr; i++)
        metrics_value(m, tier_label(&t->lower[i], labels), metrics_field(&t->lower[i], field));
}

static void write_tiers(struct metrics *m, const struct tiers *t)
{
    char labels[LABELS_MAX];

    metrics_family(m, "cairn_meta_cache_hits_total", "counter",
                   "L1s and L2 slices that a tier of the metadata cache had.");
    metrics_value(m, tier_label(NULL, labels), t->memory.hits);
    write_lower(m, t, offsetof(struct metacache_tier_stats, hits));
    metrics_family(m, "cairn_meta_cache_misses_total", "counter",
                   "L1s and L2 slices that a tier did not have.");
    metrics_value(m, tier_label(NULL, labels), t->memory.misses);
    write_lower(m, t, offsetof(struct metacache_tier_stats, misses));
    metrics_family(m, "cairn_meta_cache_fills_total", "counter",
                   "Values that a tier was given from below.");
    metrics_value(m, tier_label(NULL, labels), t->memory.fills);
    write_lower(m, t, offsetof(struct metacache_tier_stats, fills));
    metrics_family(
        m, "cairn_meta_cache_bad_values_total", "counter",
        "Values of a tier that were altered, cut, misplaced or unreadable, and not used.");
    write_lower(m, t, offsetof(struct metacache_tier_stats, bad));
    metrics_family(m, "cairn_meta_cache_dropped_puts_total", "counter",
                   "Values that a tier could not be given.");
    write_lower(m, t, offsetof(struct metacache_tier_stats, dropped));
    metrics_family(m, "cairn_meta_cache_lookup_seconds", "histogram",
                   "Time of a look-up in a tier; of those in memory one in " TIMED_ONE_IN
                   " is timed.");
    metrics_histogram(m, tier_label(NULL, labels), t->memory.latency);
    for (unsigned i = 0; i < t->nr; i++)
        metrics_histogram(m, tier_label(&t->lower[i], labels), t->lower[i].latency);
}

#define MEMORY(field) offsetof(struct metacache_stats, field)
static const struct metrics_row memory_rows[] = {
    {"cairn_meta_cache_waits_total", "counter", "Misses that waited for somebody else's look-up.",
     MEMORY(waits)},
    {"cairn_meta_cache_evictions_total", "counter", "Values that made room for others.",
     MEMORY(evictions)},
    {"cairn_meta_cache_bytes", "gauge", "Memory that L1s and L2 slices take.", MEMORY(bytes)},
    {"cairn_meta_cache_entries", "gauge", "L1s and L2 slices in memory.", MEMORY(entries)},
    {"cairn_index_builds_total", "counter",
     "Prefixes of chains whose index was built from their layer's tables.", MEMORY(builds)},
    {"cairn_index_write_failures_total", "counter", "Index objects that could not be stored.",
     MEMORY(write_failures)},
};

#define REDIS(field) offsetof(struct redis_stats, field)
static const struct metrics_row redis_rows[] = {
    {"cairn_redis_calls_total", "counter", "Round trips to Redis.", REDIS(calls)},
    {"cairn_redis_failures_total", "counter",
     "Round trips that got no answer in time, or one that is none.", REDIS(failures)},
    {"cairn_redis_refused_total", "counter",
     "Calls that were not made because a node's breaker was open, or the node not found yet.",
     REDIS(refused)},
    {"cairn_redis_breaker_opened_total", "counter",
     "Times that a node was left alone after failures.", REDIS(opened)},
    {"cairn_redis_nodes", "gauge", "Nodes that were given.", REDIS(nodes)},
    {"cairn_redis_nodes_down", "gauge",
     "Nodes that were not found yet, or whose breaker is open until a call succeeds.",
     REDIS(nodes_down)},
    {"cairn_redis_read_bytes_total", "counter", "Bytes of values read.", REDIS(read_bytes)},
    {"cairn_redis_written_bytes_total", "counter", "Bytes of values written.",
     REDIS(written_bytes)},
    {"cairn_redis_rejected_puts_total", "counter",
     "Values that Redis would not take, because it is full for instance.", REDIS(rejected)},
};

void metacache_write_metrics(struct metacache *cache, struct metrics *m)
{
    struct tiers t = {0};

    metacache_get_stats(cache, &t.memory);
    while (t.nr < TIERS_MAX && metacache_get_tier_stats(cache, t.nr, &t.lower[t.nr]))
        t.nr++;
    write_tiers(m, &t);
    metrics_rows(m, memory_rows, sizeof(memory_rows) / sizeof(memory_rows[0]), &t.memory);
}

void redis_write_metrics(void *redis, struct metrics *m)
{
    struct redis_stats s;

    redis_get_stats(redis, &s);
    metrics_rows(m, redis_rows, sizeof(redis_rows) / sizeof(redis_rows[0]), &s);
    metrics_family(m, "cairn_redis_call_seconds_total", "counter",
                   "Time of the round trips that succeeded.");
    metrics_seconds(m, NULL, s.latency_us);
}
