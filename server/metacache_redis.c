/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tier of the metadata cache that all servers share: Redis.
 *
 * A value is a frame of chain_index.h, which is sealed with its key, and behind it a seal of the
 * whole with the format of the chain's base (metacache_key says why).  What does not verify is
 * counted and looked for further down; what is found there overwrites it.
 *
 * A slice that is looked for is asked for together with those that follow it, for a server that
 * has just started will need them next; they go to memory.  What is put is put by a thread of its
 * own, from a bounded queue, so that nobody waits for it.
 *
 * Before an index is rebuilt, a short lock says so to the other servers, who wait for it to be done
 * for as long as a build takes here, and then look again.
 */
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>
#include <xxhash.h>

#include "bytes.h"
#include "clock.h"
#include "metacache_tier.h"
#include "redis.h"

#define NEIGHBOURS 16u               /* slices that are asked for at once */
#define PUT_ITEMS  64u               /* that are put at once, */
#define PUT_BYTES  ((size_t)8 << 20) /* and about how much of memory */
#define QUEUE_MAX  ((size_t)64 << 20)
#define SEAL_SIZE  8u

#define LOCK_MS      3000u /* a server that dies in a build delays others for no longer */
#define LOCK_POLL_MS 5u

/* Something to be put: an L1, or a slice. */
struct put {
    STAILQ_ENTRY(put) link;
    bool raw_base;
    struct digest chain_id;
    uint32_t slice_nr;
    struct index_l1 *l1; /* or: */
    struct index_slice *slice;
    size_t bytes; /* that it keeps in memory */
};

struct redis_tier {
    struct metacache *cache;
    struct redis *redis;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wakes;
    STAILQ_HEAD(, put) queue;
    size_t queued_bytes;
    bool stopping;

    pthread_t writer;
    bool has_writer;
    atomic_uint_fast64_t dropped, bad; /* bad: beside what was asked for */
};

/* -- Values ----------------------------------------------------------------------------------- */

static bool has_raw_base(const struct meta_chain *chain)
{
    return chain->layers[0].format == LAYER_RAW;
}

static uint64_t seal_of(const void *frame, size_t len, bool raw_base)
{
    return XXH3_64bits_withSeed(frame, len, raw_base ? 'R' : 'Q');
}

/* The frame in a value; NULL: it is not sealed for this base. */
static const void *open_value(const struct redis_item *item, bool raw_base, size_t *ret_len)
{
    const char *bytes = item->value;

    if (item->len < SEAL_SIZE)
        return NULL;
    *ret_len = item->len - SEAL_SIZE;
    return bytes_get_le64(bytes + *ret_len) == seal_of(bytes, *ret_len, raw_base) ? bytes : NULL;
}

/* frame is malloc'ed and taken over.  False: out of memory, or more than could be read back. */
static bool make_value(struct redis_item *item, void *frame, size_t len, bool raw_base)
{
    uint8_t *value = len <= REDIS_VALUE_MAX - SEAL_SIZE ? realloc(frame, len + SEAL_SIZE) : NULL;

    if (!value) {
        free(frame);
        return false;
    }
    bytes_put_le64(value + len, seal_of(value, len, raw_base));
    item->value = value;
    item->len = len + SEAL_SIZE;
    return true;
}

/* -- Looking up ------------------------------------------------------------------------------- */

static int bad_value(const char *key, struct cairn_error *err)
{
    return error_set(err, CAIRN_E_CORRUPT, "redis: the value of %s is not what was put there", key);
}

static int redis_get_l1(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                        struct index_l1 **ret_l1, struct cairn_error *err)
{
    struct redis_tier *t = ctx;
    struct redis_item item;
    const void *frame;
    size_t len;
    int code;

    index_key_l1(&chain->chain_ids[ordinal], item.key);
    redis_get(t->redis, &item, 1);
    if (!item.value)
        return error_set(err, CAIRN_E_NOT_FOUND, "redis: no %s", item.key);
    frame = open_value(&item, has_raw_base(chain), &len);
    code = frame ? index_l1_decode(frame, len, &chain->chain_ids[ordinal], ret_l1, err)
                 : CAIRN_E_CORRUPT;
    if (code == CAIRN_OK && (*ret_l1)->depth != ordinal + 1) {
        index_l1_unref(*ret_l1);
        code = CAIRN_E_CORRUPT;
    }
    if (code != CAIRN_OK)
        code = bad_value(item.key, err);
    free(item.value);
    return code;
}

/* A slice that is asked for, and the place of its key. */
struct wanted {
    uint32_t slice_nr, ordinal;
};

static unsigned list_wanted(const struct redis_tier *t, const struct meta_chain *chain,
                            const struct index_l1 *l1, uint32_t ordinal, uint32_t slice_nr,
                            struct wanted wanted[NEIGHBOURS])
{
    unsigned nr = 1;

    wanted[0] = (struct wanted){slice_nr, ordinal};
    for (uint32_t s = slice_nr + 1; s < l1->nr_slices && s - slice_nr < NEIGHBOURS; s++)
        if (l1->slices[s] != INDEX_NO_SLICE &&
            !metacache_has_slice(t->cache, chain, l1->slices[s], s))
            wanted[nr++] = (struct wanted){s, l1->slices[s]};
    return nr;
}

static int decode_slice(const struct meta_chain *chain, const struct index_l1 *l1,
                        const struct wanted *w, const struct redis_item *item,
                        struct index_slice **ret_slice, struct cairn_error *err)
{
    const struct digest *prefix = &chain->chain_ids[w->ordinal];
    const void *frame;
    size_t len;

    if (!item->value)
        return error_set(err, CAIRN_E_NOT_FOUND, "redis: no %s", item->key);
    frame = open_value(item, has_raw_base(chain), &len);
    if (frame && index_slice_decode(frame, len, prefix, l1, w->ordinal, w->slice_nr, ret_slice,
                                    NULL) == CAIRN_OK)
        return CAIRN_OK;
    return bad_value(item->key, err);
}

static int redis_get_slice(void *ctx, const struct meta_chain *chain, const struct index_l1 *l1,
                           uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                           struct cairn_error *err)
{
    struct redis_tier *t = ctx;
    struct redis_item items[NEIGHBOURS];
    struct wanted wanted[NEIGHBOURS];
    unsigned nr = list_wanted(t, chain, l1, ordinal, slice_nr, wanted);
    int code;

    for (unsigned i = 0; i < nr; i++)
        index_key_slice(&chain->chain_ids[wanted[i].ordinal], wanted[i].slice_nr, items[i].key);
    redis_get(t->redis, items, nr);
    code = decode_slice(chain, l1, &wanted[0], &items[0], ret_slice, err);
    for (unsigned i = 1; i < nr; i++) {
        CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;

        int other = decode_slice(chain, l1, &wanted[i], &items[i], &slice, NULL);

        if (other == CAIRN_OK)
            metacache_keep_slice(t->cache, chain, wanted[i].ordinal, wanted[i].slice_nr, slice);
        else if (other != CAIRN_E_NOT_FOUND)
            atomic_fetch_add(&t->bad, 1);
    }
    for (unsigned i = 0; i < nr; i++)
        free(items[i].value);
    return code;
}

/* -- Putting ---------------------------------------------------------------------------------- */

static void put_free(struct put *p)
{
    index_l1_unref(p->l1);
    index_slice_unref(p->slice);
    free(p);
}

/* Takes p over, which is NULL if there was no memory. */
static void enqueue(struct redis_tier *t, struct put *p)
{
    bool taken = false;

    pthread_mutex_lock(&t->lock);
    if (p && (t->queued_bytes == 0 || p->bytes + t->queued_bytes <= QUEUE_MAX)) {
        STAILQ_INSERT_TAIL(&t->queue, p, link);
        t->queued_bytes += p->bytes;
        taken = true;
        pthread_cond_signal(&t->wakes);
    }
    pthread_mutex_unlock(&t->lock);
    if (taken)
        return;
    atomic_fetch_add(&t->dropped, 1);
    if (p)
        put_free(p);
}

static void redis_put_l1(void *ctx, const struct index_l1 *l1)
{
    struct put *p = calloc(1, sizeof(*p));

    if (p) {
        p->raw_base = l1->layers[0].format == LAYER_RAW;
        p->chain_id = l1->chain_id;
        p->l1 = index_l1_ref((struct index_l1 *)(uintptr_t)l1);
        p->bytes = sizeof(*p) + index_l1_bytes(l1);
    }
    enqueue(ctx, p);
}

static void redis_put_slice(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                            uint32_t slice_nr, const struct index_slice *slice)
{
    struct put *p = calloc(1, sizeof(*p));

    if (p) {
        p->raw_base = has_raw_base(chain);
        p->chain_id = chain->chain_ids[ordinal];
        p->slice_nr = slice_nr;
        p->slice = index_slice_ref((struct index_slice *)(uintptr_t)slice);
        p->bytes = sizeof(*p) + index_slice_bytes(slice);
    }
    enqueue(ctx, p);
}

static bool encode(const struct put *p, struct redis_item *item)
{
    void *frame;
    size_t len;
    int code;

    if (p->l1) {
        index_key_l1(&p->chain_id, item->key);
        code = index_l1_encode(p->l1, &frame, &len, NULL);
    } else {
        index_key_slice(&p->chain_id, p->slice_nr, item->key);
        code = index_slice_encode(p->slice, &p->chain_id, p->slice_nr, &frame, &len, NULL);
    }
    return code == CAIRN_OK && make_value(item, frame, len, p->raw_base);
}

static void write_out(struct redis_tier *t, struct put *puts[], unsigned nr)
{
    struct redis_item items[PUT_ITEMS] = {0};
    unsigned nr_items = 0;

    for (unsigned i = 0; i < nr; i++) {
        nr_items += encode(puts[i], &items[nr_items]);
        put_free(puts[i]);
    }
    if (nr_items > 0 && !redis_put(t->redis, items, nr_items))
        atomic_fetch_add(&t->dropped, nr_items);
    for (unsigned i = 0; i < nr_items; i++)
        free(items[i].value);
}

/* What is queued, up to PUT_ITEMS and PUT_BYTES; 0: it is time to end. */
static unsigned dequeue(struct redis_tier *t, struct put *puts[PUT_ITEMS])
{
    unsigned nr = 0;
    size_t bytes = 0;

    SCOPED_LOCK(&t->lock);
    while (!t->stopping && STAILQ_EMPTY(&t->queue))
        pthread_cond_wait(&t->wakes, &t->lock);
    while (!t->stopping && nr < PUT_ITEMS && bytes < PUT_BYTES && !STAILQ_EMPTY(&t->queue)) {
        puts[nr] = STAILQ_FIRST(&t->queue);
        STAILQ_REMOVE_HEAD(&t->queue, link);
        bytes += puts[nr++]->bytes;
    }
    t->queued_bytes -= bytes;
    return nr;
}

static void *run_writer(void *arg)
{
    struct redis_tier *t = arg;
    struct put *puts[PUT_ITEMS];
    unsigned nr;

    while ((nr = dequeue(t, puts)) > 0)
        write_out(t, puts, nr);
    return NULL;
}

/* -- Builds ----------------------------------------------------------------------------------- */

static void lock_key(const struct meta_chain *chain, uint32_t ordinal, char key[REDIS_KEY_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];

    snprintf(key, REDIS_KEY_MAX, "cairn:1:build:%s",
             digest_format_hex(&chain->chain_ids[ordinal], hex));
}

static bool redis_begin_build(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                              unsigned patience_ms)
{
    struct redis_tier *t = ctx;
    char key[REDIS_KEY_MAX];
    uint64_t until_us = clock_now_us() + (uint64_t)patience_ms * 1000;

    lock_key(chain, ordinal, key);
    for (bool first = true;; first = false) {
        if (redis_lock(t->redis, key, LOCK_MS))
            return first;
        if (clock_now_us() >= until_us)
            return true;
        nanosleep(&(struct timespec){.tv_nsec = LOCK_POLL_MS * 1000000}, NULL);
    }
}

static void redis_end_build(void *ctx, const struct meta_chain *chain, uint32_t ordinal)
{
    struct redis_tier *t = ctx;
    char key[REDIS_KEY_MAX];

    lock_key(chain, ordinal, key);
    redis_unlock(t->redis, key);
}

/* -- Life ------------------------------------------------------------------------------------- */

static void redis_tier_count(void *ctx, uint64_t *ret_bad, uint64_t *ret_dropped)
{
    struct redis_tier *t = ctx;

    *ret_bad = atomic_load(&t->bad);
    *ret_dropped = atomic_load(&t->dropped);
}

static void redis_tier_free(void *ctx)
{
    struct redis_tier *t = ctx;
    struct put *p;

    if (t->has_writer) {
        pthread_mutex_lock(&t->lock);
        t->stopping = true;
        pthread_cond_signal(&t->wakes);
        pthread_mutex_unlock(&t->lock);
        pthread_join(t->writer, NULL);
    }
    while ((p = STAILQ_FIRST(&t->queue))) {
        STAILQ_REMOVE_HEAD(&t->queue, link);
        put_free(p);
    }
    pthread_cond_destroy(&t->wakes);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

int redis_tier_new(struct metacache *cache, struct redis *redis, struct metacache_tier *ret_tier,
                   struct cairn_error *err)
{
    struct redis_tier *t = calloc(1, sizeof(*t));
    int failure;

    if (!t)
        return error_no_memory(err, "the Redis tier");
    t->cache = cache;
    t->redis = redis;
    STAILQ_INIT(&t->queue);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wakes, NULL);
    failure = pthread_create(&t->writer, NULL, run_writer, t);
    t->has_writer = failure == 0;
    if (failure) {
        redis_tier_free(t);
        return error_set_errno(err, failure, "cannot start a thread for Redis");
    }
    *ret_tier = (struct metacache_tier){
        .name = "redis",
        .get_l1 = redis_get_l1,
        .get_slice = redis_get_slice,
        .put_l1 = redis_put_l1,
        .put_slice = redis_put_slice,
        .begin_build = redis_begin_build,
        .end_build = redis_end_build,
        .count = redis_tier_count,
        .free = redis_tier_free,
        .ctx = t,
    };
    return CAIRN_OK;
}
