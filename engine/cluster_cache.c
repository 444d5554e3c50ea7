/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache of decompressed clusters: a hash table of entries that hang in one list, youngest use
 * first, from whose end entries go when the bound is reached.
 *
 * One mutex covers table and list; it is held for pointer work only.  Clusters are immutable and
 * counted, so that they are read, filled and copied without it, and an entry may go while somebody
 * still reads its cluster.  The bound counts entries and clusters, and the table.
 *
 * Two threads that miss the same cluster decompress it twice; the second put is dropped.
 */
#include "cluster_cache.h"

#include <pthread.h>
#include <sys/random.h>
#include <xxhash.h>

#include "checked.h"

/* One bucket for so many bytes: a few entries in each even if all clusters are small. */
#define BYTES_PER_BUCKET 4096u
#define BUCKETS_MAX      ((size_t)1 << 20)

struct key {
    struct digest layer;
    uint64_t host_off;
};

struct entry {
    struct entry *next_in_bucket;
    struct entry *younger, *older;
    struct key key;
    struct cluster *cluster;
};

struct cluster_cache {
    size_t max_bytes;
    size_t nr_buckets; /* power of two */
    uint64_t seed;     /* host offsets are chosen by whoever made the image */

    pthread_mutex_t lock;
    size_t bytes;
    struct entry *youngest, *oldest;
    struct entry **buckets;
};

/* -- Clusters ---------------------------------------------------------------------------------- */

int cluster_new(uint32_t len, struct cluster **ret_cluster, struct cairn_error *err)
{
    struct cluster *cluster = malloc(sizeof(*cluster) + len);

    if (!cluster)
        return error_no_memory(err, "a decompressed cluster");
    atomic_init(&cluster->refs, 1);
    cluster->len = len;
    *ret_cluster = cluster;
    return CAIRN_OK;
}

static struct cluster *cluster_ref(struct cluster *cluster)
{
    atomic_fetch_add_explicit(&cluster->refs, 1, memory_order_relaxed);
    return cluster;
}

void cluster_unref(struct cluster *cluster)
{
    if (cluster && atomic_fetch_sub_explicit(&cluster->refs, 1, memory_order_acq_rel) == 1)
        free(cluster);
}

/* -- The list ---------------------------------------------------------------------------------- */

static void list_remove_locked(struct cluster_cache *cache, struct entry *e)
{
    *(e->younger ? &e->younger->older : &cache->youngest) = e->older;
    *(e->older ? &e->older->younger : &cache->oldest) = e->younger;
}

static void list_add_youngest_locked(struct cluster_cache *cache, struct entry *e)
{
    e->younger = NULL;
    e->older = cache->youngest;
    *(e->older ? &e->older->younger : &cache->oldest) = e;
    cache->youngest = e;
}

/* -- The table --------------------------------------------------------------------------------- */

static struct entry **bucket_of(const struct cluster_cache *cache, const struct key *key)
{
    uint64_t hash = XXH3_64bits_withSeed(key, sizeof(*key), cache->seed);

    return &cache->buckets[hash & (cache->nr_buckets - 1)];
}

static bool key_equal(const struct key *a, const struct key *b)
{
    return a->host_off == b->host_off && digest_equal(&a->layer, &b->layer);
}

/* The link that points to key's entry, or to the NULL where it would be. */
static struct entry **find_locked(struct entry **link, const struct key *key)
{
    while (*link && !key_equal(&(*link)->key, key))
        link = &(*link)->next_in_bucket;
    return link;
}

static size_t entry_bytes(const struct cluster *cluster)
{
    return sizeof(struct entry) + sizeof(*cluster) + cluster->len;
}

/* Take the entry out; the caller frees it when the lock is released. */
static struct entry *evict_locked(struct cluster_cache *cache, struct entry *e)
{
    struct entry **link = find_locked(bucket_of(cache, &e->key), &e->key);

    *link = e->next_in_bucket;
    list_remove_locked(cache, e);
    cache->bytes -= entry_bytes(e->cluster);
    return e;
}

static void free_entries(struct entry *e)
{
    while (e) {
        struct entry *next = e->next_in_bucket;

        cluster_unref(e->cluster);
        free(e);
        e = next;
    }
}

struct cluster *cluster_cache_get(struct cluster_cache *cache, const struct digest *layer,
                                  uint64_t host_off)
{
    const struct key key = {.layer = *layer, .host_off = host_off};
    struct entry **bucket = bucket_of(cache, &key);
    SCOPED_LOCK(&cache->lock);
    struct entry *e = *find_locked(bucket, &key);

    if (!e)
        return NULL;
    list_remove_locked(cache, e);
    list_add_youngest_locked(cache, e);
    return cluster_ref(e->cluster);
}

/* Put e in unless its key is there; returns what is left to free: e itself, or the evicted. */
static struct entry *insert(struct cluster_cache *cache, struct entry *e)
{
    struct entry **bucket = bucket_of(cache, &e->key);
    struct entry *gone = NULL;
    SCOPED_LOCK(&cache->lock);

    if (*find_locked(bucket, &e->key))
        return e;
    cache->bytes += entry_bytes(e->cluster);
    while (cache->bytes > cache->max_bytes && cache->oldest) {
        struct entry *oldest = evict_locked(cache, cache->oldest);

        oldest->next_in_bucket = gone;
        gone = oldest;
    }
    e->next_in_bucket = *bucket;
    *bucket = e;
    list_add_youngest_locked(cache, e);
    return gone;
}

void cluster_cache_put(struct cluster_cache *cache, const struct digest *layer, uint64_t host_off,
                       struct cluster *cluster)
{
    size_t table_bytes = cache->nr_buckets * sizeof(*cache->buckets);
    struct entry *e;

    if (entry_bytes(cluster) > cache->max_bytes - table_bytes)
        return;
    e = malloc(sizeof(*e));
    if (!e)
        return;
    *e = (struct entry){.key = {.layer = *layer, .host_off = host_off},
                        .cluster = cluster_ref(cluster)};
    free_entries(insert(cache, e));
}

static struct entry *take_layer(struct cluster_cache *cache, const struct digest *layer)
{
    struct entry *gone = NULL, *next;
    SCOPED_LOCK(&cache->lock);

    for (struct entry *e = cache->youngest; e; e = next) {
        next = e->older;
        if (!digest_equal(&e->key.layer, layer))
            continue;
        evict_locked(cache, e);
        e->next_in_bucket = gone;
        gone = e;
    }
    return gone;
}

void cluster_cache_forget(struct cluster_cache *cache, const struct digest *layer)
{
    free_entries(take_layer(cache, layer));
}

size_t cluster_cache_bytes(struct cluster_cache *cache)
{
    SCOPED_LOCK(&cache->lock);

    return cache->bytes;
}

/* -- The cache --------------------------------------------------------------------------------- */

static size_t choose_nr_buckets(size_t max_bytes)
{
    size_t nr = 1;

    while (nr < BUCKETS_MAX && nr < max_bytes / BYTES_PER_BUCKET)
        nr *= 2;
    return nr;
}

int cluster_cache_new(size_t max_bytes, struct cluster_cache **ret_cache, struct cairn_error *err)
{
    size_t nr_buckets = choose_nr_buckets(max_bytes);
    struct cluster_cache *cache = calloc(1, sizeof(*cache));

    if (!cache)
        return error_no_memory(err, "the cluster cache");
    cache->buckets = calloc(nr_buckets, sizeof(*cache->buckets));
    if (!cache->buckets) {
        free(cache);
        return error_no_memory(err, "the cluster cache");
    }
    cache->nr_buckets = nr_buckets;
    cache->bytes = nr_buckets * sizeof(*cache->buckets);
    cache->max_bytes = max_bytes > cache->bytes ? max_bytes : cache->bytes;
    /* Without entropy the seed stays 0: look-ups may be slower, never wrong. */
    if (getrandom(&cache->seed, sizeof(cache->seed), GRND_NONBLOCK) < 0)
        cache->seed = 0;
    pthread_mutex_init(&cache->lock, NULL);
    *ret_cache = cache;
    return CAIRN_OK;
}

void cluster_cache_free(struct cluster_cache *cache)
{
    if (!cache)
        return;
    while (cache->oldest) {
        struct entry *e = evict_locked(cache, cache->oldest);

        e->next_in_bucket = NULL;
        free_entries(e);
    }
    pthread_mutex_destroy(&cache->lock);
    free(cache->buckets);
    free(cache);
}
