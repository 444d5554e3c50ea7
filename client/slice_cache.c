/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hash table of chained entries, threaded by a list in order of use.  The number of buckets is
 * fixed: the bound in bytes keeps the number of entries within a small multiple of it.
 */
#include "slice_cache.h"

#include "bytes.h"

#define NR_BUCKETS 1024u

struct entry {
    struct entry *next;          /* in its bucket */
    struct entry *newer, *older; /* in the list by use */
    struct index_slice *slice;
    size_t bytes;
    struct digest prefix;
    uint32_t slice_nr;
};

struct slice_cache {
    atomic_uint refs;
    size_t max_bytes;
    pthread_mutex_t lock; /* all below */
    size_t bytes;
    struct entry *newest, *oldest;
    struct entry *buckets[NR_BUCKETS];
};

int slice_cache_new(size_t max_bytes, struct slice_cache **ret_cache, struct cairn_error *err)
{
    struct slice_cache *cache = calloc(1, sizeof(*cache));

    if (!cache)
        return error_no_memory(err, "the slice cache");
    atomic_init(&cache->refs, 1);
    cache->max_bytes = max_bytes;
    pthread_mutex_init(&cache->lock, NULL);
    *ret_cache = cache;
    return CAIRN_OK;
}

struct slice_cache *slice_cache_ref(struct slice_cache *cache)
{
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    return cache;
}

/* A digest's bytes are as good as random. */
static struct entry **bucket_of(struct slice_cache *cache, const struct digest *prefix,
                                uint32_t slice_nr)
{
    return &cache->buckets[(bytes_get_le32(prefix->sha256) ^ slice_nr) % NR_BUCKETS];
}

static void list_unlink(struct slice_cache *cache, struct entry *e)
{
    *(e->newer ? &e->newer->older : &cache->newest) = e->older;
    *(e->older ? &e->older->newer : &cache->oldest) = e->newer;
}

static void list_push(struct slice_cache *cache, struct entry *e)
{
    e->newer = NULL;
    e->older = cache->newest;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = e;
    cache->newest = e;
}

static struct entry *find_locked(struct slice_cache *cache, const struct digest *prefix,
                                 uint32_t slice_nr)
{
    struct entry *e = *bucket_of(cache, prefix, slice_nr);

    while (e && (e->slice_nr != slice_nr || !digest_equal(&e->prefix, prefix)))
        e = e->next;
    return e;
}

static void evict_oldest_locked(struct slice_cache *cache)
{
    struct entry *e = cache->oldest;
    struct entry **link = bucket_of(cache, &e->prefix, e->slice_nr);

    while (*link != e)
        link = &(*link)->next;
    *link = e->next;
    list_unlink(cache, e);
    cache->bytes -= e->bytes;
    index_slice_unref(e->slice);
    free(e);
}

void slice_cache_unref(struct slice_cache *cache)
{
    if (!cache || atomic_fetch_sub_explicit(&cache->refs, 1, memory_order_acq_rel) != 1)
        return;
    while (cache->oldest)
        evict_oldest_locked(cache);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

struct index_slice *slice_cache_get(struct slice_cache *cache, const struct digest *prefix,
                                    uint32_t slice_nr)
{
    SCOPED_LOCK(&cache->lock);
    struct entry *e = find_locked(cache, prefix, slice_nr);

    if (!e)
        return NULL;
    if (e != cache->newest) {
        list_unlink(cache, e);
        list_push(cache, e);
    }
    return index_slice_ref(e->slice);
}

void slice_cache_put(struct slice_cache *cache, const struct digest *prefix, uint32_t slice_nr,
                     struct index_slice *slice)
{
    SCOPED_LOCK(&cache->lock);
    struct entry **bucket = bucket_of(cache, prefix, slice_nr);
    struct entry *e;

    if (find_locked(cache, prefix, slice_nr))
        return;
    e = calloc(1, sizeof(*e));
    if (!e)
        return;
    e->slice = index_slice_ref(slice);
    e->bytes = sizeof(*e) + index_slice_bytes(slice);
    e->prefix = *prefix;
    e->slice_nr = slice_nr;
    e->next = *bucket;
    *bucket = e;
    list_push(cache, e);
    cache->bytes += e->bytes;
    while (cache->bytes > cache->max_bytes && cache->oldest != e)
        evict_oldest_locked(cache);
}

size_t slice_cache_bytes(struct slice_cache *cache)
{
    SCOPED_LOCK(&cache->lock);
    return cache->bytes;
}
