/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metadata cache: process memory over a row of lower tiers.
 *
 * Memory is two struct caches, one of L1s and one of slices: sharded, bounded, one fetch for all
 * who miss one key.  A fetch asks the lower tiers from the top; the first that answers fills those
 * above it.  Fetches wait for each other in one direction only, towards shorter prefixes: what an
 * entry of prefix k is built from belongs to prefixes below k.
 */
#include "metacache.h"

#include <stdatomic.h>

#include "cache.h"
#include "checked.h"
#include "clock.h"
#include "metacache_tier.h"

#define NR_TIERS_MAX 4

/* L1s and open index objects get one part each in so many of the bytes; slices get the rest. */
#define SMALL_SHARE 8

/* How long to wait for another server's build: at least, and so many times as long as ours take. */
#define BUILD_PATIENCE_MS 100u
#define BUILD_PATIENCE    2u

struct tier {
    struct metacache_tier is;
    atomic_uint_fast64_t hits, misses, bad, fills;
    struct histogram latency;
};

struct metacache {
    struct cache *l1s;
    struct cache *slices;
    struct tier tiers[NR_TIERS_MAX];
    unsigned nr_tiers; /* the last is the rebuild */
    struct index_store *index_store;
    atomic_uint_fast64_t fills;
    struct histogram latency; /* of look-ups in memory */
};

/* -- Memory ----------------------------------------------------------------------------------- */

static void *l1_ref(void *l1)
{
    return index_l1_ref(l1);
}

static void l1_unref(void *l1)
{
    index_l1_unref(l1);
}

static size_t l1_cost(const void *l1)
{
    return index_l1_bytes(l1);
}

static const struct cache_type l1_type = {.ref = l1_ref, .unref = l1_unref, .cost = l1_cost};

static void *slice_ref(void *slice)
{
    return index_slice_ref(slice);
}

static void slice_unref(void *slice)
{
    index_slice_unref(slice);
}

static size_t slice_cost(const void *slice)
{
    return index_slice_bytes(slice);
}

static const struct cache_type slice_type = {
    .ref = slice_ref,
    .unref = slice_unref,
    .cost = slice_cost,
};

/* -- Lower tiers ------------------------------------------------------------------------------ */

/* One value that is looked for; slice_nr only if l1 is given. */
struct look_up {
    struct metacache *cache;
    const struct meta_chain *chain;
    uint32_t ordinal;
    const struct index_l1 *l1; /* NULL: the L1 itself is looked for */
    uint32_t slice_nr;
};

static int tier_get(struct tier *tier, const struct look_up *look, void **ret_value,
                    struct cairn_error *err)
{
    uint64_t began_us = clock_now_us();
    struct index_slice *slice;
    struct index_l1 *l1;
    int code;

    if (look->l1) {
        code = tier->is.get_slice(tier->is.ctx, look->chain, look->l1, look->ordinal,
                                  look->slice_nr, &slice, err);
        if (code == CAIRN_OK)
            *ret_value = slice;
    } else {
        code = tier->is.get_l1(tier->is.ctx, look->chain, look->ordinal, &l1, err);
        if (code == CAIRN_OK)
            *ret_value = l1;
    }
    histogram_add(&tier->latency, clock_now_us() - began_us);
    if (code == CAIRN_OK) {
        atomic_fetch_add(&tier->hits, 1);
    } else {
        atomic_fetch_add(&tier->misses, 1);
        if (code != CAIRN_E_NOT_FOUND)
            atomic_fetch_add(&tier->bad, 1);
    }
    return code;
}

static void put_l1(struct tier *tier, const struct index_l1 *l1)
{
    if (!tier->is.put_l1)
        return;
    atomic_fetch_add(&tier->fills, 1);
    tier->is.put_l1(tier->is.ctx, l1);
}

static void put_slice(struct tier *tier, const struct meta_chain *chain, uint32_t ordinal,
                      uint32_t slice_nr, const struct index_slice *slice)
{
    if (!tier->is.put_slice)
        return;
    atomic_fetch_add(&tier->fills, 1);
    tier->is.put_slice(tier->is.ctx, chain, ordinal, slice_nr, slice);
}

static void tier_put(struct tier *tier, const struct look_up *look, const void *value)
{
    if (look->l1)
        put_slice(tier, look->chain, look->ordinal, look->slice_nr, value);
    else
        put_l1(tier, value);
}

/* Ask lower tiers [from, end), in order; those above the one that answers are filled. */
static int ask_tiers(const struct look_up *look, unsigned from, unsigned end, void **ret_value,
                     struct cairn_error *err)
{
    struct metacache *cache = look->cache;
    int code = CAIRN_E_NOT_FOUND;
    unsigned i;

    for (i = from; i < end; i++) {
        code = tier_get(&cache->tiers[i], look, ret_value, err);
        if (code == CAIRN_OK)
            break;
    }
    if (code != CAIRN_OK)
        return code;
    atomic_fetch_add(&cache->fills, 1);
    while (i-- > 0)
        tier_put(&cache->tiers[i], look, *ret_value);
    return CAIRN_OK;
}

/* About how long a rebuild takes on this server. */
static unsigned patience_ms(struct tier *rebuild)
{
    uint64_t nr = atomic_load(&rebuild->hits);
    uint64_t us = nr ? atomic_load(&rebuild->latency.sum_us) / nr : 0;

    return (unsigned)min_u64(BUILD_PATIENCE_MS + BUILD_PATIENCE * us / 1000, 10000);
}

/* Rebuild, unless another server does so just now: then what it made is somewhere above. */
static int rebuild(const struct look_up *look, void **ret_value, struct cairn_error *err)
{
    struct metacache *cache = look->cache;
    unsigned last = cache->nr_tiers - 1;
    const struct metacache_tier *shared = &cache->tiers[0].is;
    int code = CAIRN_E_NOT_FOUND;

    if (!shared->begin_build)
        return ask_tiers(look, last, cache->nr_tiers, ret_value, err);
    if (!shared->begin_build(shared->ctx, look->chain, look->ordinal,
                             patience_ms(&cache->tiers[last])))
        code = ask_tiers(look, 0, last, ret_value, err);
    if (code != CAIRN_OK)
        code = ask_tiers(look, last, cache->nr_tiers, ret_value, err);
    shared->end_build(shared->ctx, look->chain, look->ordinal);
    return code;
}

static int fetch(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct look_up *look = arg;
    int code = ask_tiers(look, 0, look->cache->nr_tiers - 1, ret_value, err);

    return code == CAIRN_OK ? code : rebuild(look, ret_value, err);
}

/* -- Looking up ------------------------------------------------------------------------------- */

#define KEY_RAW_BASE 0x80000000u /* slices are numbered below 2^23 */

struct cache_key metacache_key(const struct meta_chain *chain, uint32_t ordinal, uint32_t slice_nr)
{
    bool raw_base = chain->layers[0].format == LAYER_RAW;

    return (struct cache_key){
        .digest = chain->chain_ids[ordinal],
        .sub = slice_nr | (raw_base ? KEY_RAW_BASE : 0),
    };
}

/*
 * Without the rebuild nobody's fetch is waited for either: it is the builder who asks, and might be
 * waiting for itself.
 */
static int get(const struct look_up *look, bool with_rebuild, void **ret_value,
               struct cairn_error *err)
{
    struct metacache *cache = look->cache;
    struct cache *memory = look->l1 ? cache->slices : cache->l1s;
    struct look_up arg = *look;
    struct cache_key key;
    int code;

    if (look->ordinal >= look->chain->depth)
        return error_set(err, CAIRN_E_CORRUPT, "chain index: prefix %u of a chain of %u layers",
                         look->ordinal, look->chain->depth);
    key = metacache_key(look->chain, look->ordinal, look->slice_nr);
    if (with_rebuild)
        return cache_get(memory, &key, fetch, &arg, ret_value, err);
    *ret_value = cache_peek(memory, &key);
    if (*ret_value)
        return CAIRN_OK;
    code = ask_tiers(look, 0, cache->nr_tiers - 1, ret_value, err);
    if (code == CAIRN_OK)
        cache_put(memory, &key, *ret_value);
    return code;
}

static int get_l1(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                  bool with_rebuild, struct index_l1 **ret_l1, struct cairn_error *err)
{
    struct look_up look = {.cache = cache, .chain = chain, .ordinal = ordinal};
    void *value = NULL;
    int code = get(&look, with_rebuild, &value, err);

    if (code == CAIRN_OK)
        *ret_l1 = value;
    return code;
}

static int get_slice(const struct look_up *look, bool with_rebuild, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    void *value = NULL;
    int code = get(look, with_rebuild, &value, err);

    if (code == CAIRN_OK)
        *ret_slice = value;
    return code;
}

int metacache_l1(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                 struct index_l1 **ret_l1, struct cairn_error *err)
{
    return get_l1(cache, chain, ordinal, true, ret_l1, err);
}

int metacache_find_l1(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                      struct index_l1 **ret_l1, struct cairn_error *err)
{
    return get_l1(cache, chain, ordinal, false, ret_l1, err);
}

int metacache_slice(struct metacache *cache, const struct meta_chain *chain,
                    const struct index_l1 *l1, uint32_t ordinal, uint32_t slice,
                    struct index_slice **ret_slice, struct cairn_error *err)
{
    struct look_up look = {cache, chain, ordinal, l1, slice};

    return get_slice(&look, true, ret_slice, err);
}

int metacache_find_slice(struct metacache *cache, const struct meta_chain *chain,
                         const struct index_l1 *l1, uint32_t ordinal, uint32_t slice,
                         struct index_slice **ret_slice, struct cairn_error *err)
{
    struct look_up look = {cache, chain, ordinal, l1, slice};

    return get_slice(&look, false, ret_slice, err);
}

/* -- Filling ---------------------------------------------------------------------------------- */

void metacache_fill_l1(struct metacache *cache, const struct meta_chain *chain, struct index_l1 *l1)
{
    struct cache_key key = metacache_key(chain, l1->depth - 1, 0);

    cache_put(cache->l1s, &key, l1);
    for (unsigned i = 0; i < cache->nr_tiers; i++)
        put_l1(&cache->tiers[i], l1);
}

void metacache_fill_slice(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                          uint32_t slice_nr, struct index_slice *slice)
{
    struct cache_key key = metacache_key(chain, ordinal, slice_nr);

    cache_put(cache->slices, &key, slice);
    for (unsigned i = 0; i < cache->nr_tiers; i++)
        put_slice(&cache->tiers[i], chain, ordinal, slice_nr, slice);
}

bool metacache_has_slice(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                         uint32_t slice_nr)
{
    struct cache_key key = metacache_key(chain, ordinal, slice_nr);
    struct index_slice *slice = cache_peek(cache->slices, &key);

    index_slice_unref(slice);
    return slice != NULL;
}

void metacache_keep_slice(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                          uint32_t slice_nr, struct index_slice *slice)
{
    struct cache_key key = metacache_key(chain, ordinal, slice_nr);

    cache_put(cache->slices, &key, slice);
}

int metacache_nr_stored(struct metacache *cache, const struct meta_chain *chain,
                        uint32_t *ret_nr_prefixes, struct cairn_error *err)
{
    return index_store_nr_stored(cache->index_store, chain, chain->depth, ret_nr_prefixes, err);
}

int metacache_build(struct metacache *cache, const struct meta_chain *chain, uint32_t ordinal,
                    struct layer *layer, struct cairn_error *err)
{
    return index_store_build(cache->index_store, chain, ordinal, layer, err);
}

/* -- Life and figures ------------------------------------------------------------------------- */

static void add_tier(struct metacache *cache, struct metacache_tier tier)
{
    cache->tiers[cache->nr_tiers++].is = tier;
}

static int add_redis(struct metacache *cache, struct redis *redis, struct cairn_error *err)
{
    struct metacache_tier tier;
    int code = redis_tier_new(cache, redis, &tier, err);

    if (code == CAIRN_OK)
        add_tier(cache, tier);
    return code;
}

int metacache_new(size_t max_bytes, struct store *store, struct redis *redis,
                  struct metacache **ret_cache, struct cairn_error *err)
{
    CLEANUP(metacache_free_p) struct metacache *cache = calloc(1, sizeof(*cache));
    size_t small = max_bytes / SMALL_SHARE;
    int code;

    if (!cache)
        return error_no_memory(err, "the metadata cache");
    code = cache_new(&l1_type, small, &cache->l1s, err);
    if (code == CAIRN_OK)
        code = cache_new(&slice_type, max_bytes - 2 * small, &cache->slices, err);
    if (code == CAIRN_OK)
        code = index_store_new(cache, store, small, &cache->index_store, err);
    if (code == CAIRN_OK && redis)
        code = add_redis(cache, redis, err);
    if (code != CAIRN_OK)
        return code;
    cache_time_look_ups(cache->l1s, &cache->latency);
    cache_time_look_ups(cache->slices, &cache->latency);
    add_tier(cache, index_store_tier(cache->index_store));
    add_tier(cache, index_rebuild_tier(cache->index_store));
    *ret_cache = steal_ptr(cache);
    return CAIRN_OK;
}

void metacache_free(struct metacache *cache)
{
    if (!cache)
        return;
    for (unsigned i = 0; i < cache->nr_tiers; i++)
        if (cache->tiers[i].is.free)
            cache->tiers[i].is.free(cache->tiers[i].is.ctx);
    index_store_free(cache->index_store);
    cache_free(cache->slices);
    cache_free(cache->l1s);
    free(cache);
}

void metacache_get_stats(struct metacache *cache, struct metacache_stats *ret_stats)
{
    struct cache_stats l1s, slices;

    cache_get_stats(cache->l1s, &l1s);
    cache_get_stats(cache->slices, &slices);
    *ret_stats = (struct metacache_stats){
        .hits = l1s.hits + slices.hits,
        .misses = l1s.misses + slices.misses,
        .fills = atomic_load(&cache->fills),
        .evictions = l1s.evictions + slices.evictions,
        .bytes = l1s.cost + slices.cost,
        .entries = l1s.entries + slices.entries,
        .waits = l1s.waits + slices.waits,
        .latency = &cache->latency,
    };
    index_store_count(cache->index_store, &ret_stats->builds, &ret_stats->write_failures);
}

bool metacache_get_tier_stats(struct metacache *cache, unsigned nr,
                              struct metacache_tier_stats *ret_stats)
{
    struct tier *tier;

    if (nr >= cache->nr_tiers)
        return false;
    tier = &cache->tiers[nr];
    *ret_stats = (struct metacache_tier_stats){
        .name = tier->is.name,
        .hits = atomic_load(&tier->hits),
        .misses = atomic_load(&tier->misses),
        .bad = atomic_load(&tier->bad),
        .fills = atomic_load(&tier->fills),
        .latency = &tier->latency,
    };
    if (tier->is.count) {
        uint64_t bad;

        tier->is.count(tier->is.ctx, &bad, &ret_stats->dropped);
        ret_stats->bad += bad;
    }
    return true;
}
