/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two lowest tiers of the metadata cache: the store's index objects, and building them.
 *
 * An index object, `index/<2 hex>/<chain id>`, holds the L1 of one prefix and the slices made at
 * it.  It is derived, and nothing in it is believed that its checksums do not vouch for: one that
 * is missing or bad is built from the layer and the prefix below, and replaced.
 *
 * Building prefix k needs the L1 and some slices of prefixes below k, of which any may turn out to
 * be missing or bad in its turn.  Then that prefix is built first, and k is begun anew; the
 * prefixes that wait are a list and not a recursion, for there may be 65,535.
 *
 * Concurrent askers share one build per prefix: the cache `builds` keeps nothing, it only lets them
 * wait for the first.  Whoever builds a prefix waits for shorter ones alone, so nobody waits in a
 * circle.  Those who want all up to a prefix rebuilt share that too (`rebuilds`), and wait for
 * builds within it, never the other way round.
 */
#include <stdio.h>

#include "ahead.h"
#include "blobs.h"
#include "cache.h"
#include "checked.h"
#include "metacache_tier.h"
#include "opened_layer.h"
#include "registry.h"

/*
 * The slices of one index object, in memory while it is made.  A layer needs 16 bytes for each run
 * of its clusters that lie in one piece: this is 64 million runs, a 4 TiB disk whose 64 KiB
 * clusters were all written in random order.
 */
#define INDEX_OBJECT_BYTES_MAX ((size_t)1 << 30)

/* At most so many index objects are kept open. */
#define OBJECTS_OPEN_MAX 128

#define NO_ORDINAL UINT32_MAX

struct index_store {
    struct metacache *cache;
    struct store *store;
    size_t object_cost_min;
    struct cache *objects;           /* open index objects by chain ID */
    struct cache *rebuilds, *builds; /* keep nothing */
    atomic_uint_fast64_t nr_builds, nr_write_failures;
};

/* -- Index objects ---------------------------------------------------------------------------- */

struct index_object {
    atomic_uint refs;
    size_t cost;
    void *buf; /* the container, if it was built here; NULL: it is read from the store */
    struct source *src;
    struct index_reader *reader;
};

static void *object_ref(void *value)
{
    struct index_object *o = value;

    atomic_fetch_add(&o->refs, 1);
    return o;
}

static void object_unref(void *value)
{
    struct index_object *o = value;

    if (!o || atomic_fetch_sub(&o->refs, 1) > 1)
        return;
    index_reader_free(o->reader);
    source_free(o->src);
    free(o->buf);
    free(o);
}

static void object_unref_p(struct index_object **o)
{
    object_unref(*o);
}

static size_t object_cost(const void *value)
{
    return ((const struct index_object *)value)->cost;
}

static const struct cache_type object_type = {
    .ref = object_ref,
    .unref = object_unref,
    .cost = object_cost,
};

static const char *object_key(const struct digest *chain_id, char key[REGISTRY_KEY_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];

    digest_format_hex(chain_id, hex);
    snprintf(key, REGISTRY_KEY_MAX, "index/%.2s/%s", hex, hex);
    return key;
}

/* What an open object takes: its L1, and a directory of the slices made at its prefix. */
static size_t cost_of(const struct index_store *s, const struct index_l1 *l1, size_t buf_len)
{
    size_t cost = sizeof(struct index_object) + index_l1_bytes(l1) + buf_len;

    for (uint32_t i = 0; i < l1->nr_slices; i++)
        if (l1->slices[i] == l1->depth - 1)
            cost += 32;
    return cost < s->object_cost_min ? s->object_cost_min : cost;
}

/* src and buf are taken over, also on failure. */
static int object_open(const struct index_store *s, const struct meta_chain *chain,
                       uint32_t ordinal, struct source *src, void *buf, size_t buf_len,
                       struct index_object **ret_object, struct cairn_error *err)
{
    CLEANUP(object_unref_p) struct index_object *o = calloc(1, sizeof(*o));
    const struct index_l1 *l1;
    int code;

    if (!o) {
        source_free(src);
        free(buf);
        return error_no_memory(err, "an index object");
    }
    atomic_init(&o->refs, 1);
    o->src = src;
    o->buf = buf;
    code = index_reader_open(src, &chain->chain_ids[ordinal], &o->reader, err);
    if (code != CAIRN_OK)
        return code;
    l1 = index_reader_l1(o->reader);
    if (l1->depth != ordinal + 1)
        return error_set(err, CAIRN_E_CORRUPT, "%s: depth %u, expected %u", src->name, l1->depth,
                         ordinal + 1);
    o->cost = cost_of(s, l1, buf_len);
    *ret_object = steal_ptr(o);
    return CAIRN_OK;
}

/* -- The store tier --------------------------------------------------------------------------- */

struct object_name {
    struct index_store *s;
    const struct meta_chain *chain;
    uint32_t ordinal;
    struct layer *layer; /* opened already, for who has to build it; may be NULL */
};

static struct cache_key name_key(const struct object_name *name)
{
    return metacache_key(name->chain, name->ordinal, 0);
}

static int open_stored(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct object_name *name = arg;
    struct index_object *o;
    char key[REGISTRY_KEY_MAX];
    struct source *src;
    int code;

    object_key(&name->chain->chain_ids[name->ordinal], key);
    code = store_open_source(name->s->store, key, &src, err);
    if (code != CAIRN_OK)
        return code;
    code = object_open(name->s, name->chain, name->ordinal, src, NULL, 0, &o, err);
    /* Only a missing object is a plain miss. */
    if (code == CAIRN_E_NOT_FOUND)
        code = error_set(err, CAIRN_E_CORRUPT, "%s: incomplete", key);
    if (code == CAIRN_OK)
        *ret_value = o;
    return code;
}

static int stored_object(const struct object_name *name, struct index_object **ret_object,
                         struct cairn_error *err)
{
    struct object_name arg = *name;
    struct cache_key key = name_key(name);
    void *value;
    int code = cache_get(name->s->objects, &key, open_stored, &arg, &value, err);

    if (code == CAIRN_OK)
        *ret_object = value;
    return code;
}

/* Somebody else may have stored the same chain ID with its base in the other format: what is built
 * or read from that is another disk. */
static int check_base(const struct index_l1 *l1, const struct meta_chain *chain,
                      struct cairn_error *err)
{
    char id[DIGEST_STR_MAX];

    if (l1->layers[0].format == chain->layers[0].format)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CONFLICT, "index of chain %s: format %u of the base, expected %u",
                     digest_format(&l1->chain_id, id), l1->layers[0].format,
                     chain->layers[0].format);
}

/* A slice that an L1 says was made at this prefix; a container without it is corrupt. */
static int object_slice(const struct object_name *name, struct index_object *o, uint32_t slice,
                        struct index_slice **ret_slice, struct cairn_error *err)
{
    int code = index_reader_slice(o->reader, slice, name->ordinal,
                                  &name->chain->chain_ids[name->ordinal], ret_slice, err);

    if (code == CAIRN_E_NOT_FOUND)
        return error_set(err, CAIRN_E_CORRUPT, "%s: slice %u is missing", o->src->name, slice);
    return code;
}

static int store_get_l1(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                        struct index_l1 **ret_l1, struct cairn_error *err)
{
    struct object_name name = {.s = ctx, .chain = chain, .ordinal = ordinal};
    CLEANUP(object_unref_p) struct index_object *o = NULL;
    int code = stored_object(&name, &o, err);

    if (code == CAIRN_OK)
        *ret_l1 = index_l1_ref(index_reader_l1(o->reader));
    return code;
}

static int store_get_slice(void *ctx, const struct meta_chain *chain, const struct index_l1 *l1,
                           uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                           struct cairn_error *err)
{
    struct object_name name = {.s = ctx, .chain = chain, .ordinal = ordinal};
    struct cache_key key = name_key(&name);
    CLEANUP(object_unref_p) struct index_object *o = NULL;
    int code = stored_object(&name, &o, err);

    (void)l1; /* the object has an L1 of its own to check against */
    if (code != CAIRN_OK)
        return code;
    code = check_base(index_reader_l1(o->reader), chain, err);
    if (code == CAIRN_OK)
        code = object_slice(&name, o, slice, ret_slice, err);
    if (code != CAIRN_OK)
        cache_drop(name.s->objects, &key, o);
    return code;
}

struct metacache_tier index_store_tier(struct index_store *s)
{
    return (struct metacache_tier){
        .name = "store",
        .get_l1 = store_get_l1,
        .get_slice = store_get_slice,
        .ctx = s,
    };
}

/* -- Which prefixes are stored ---------------------------------------------------------------- */

static int is_stored(struct index_store *s, const struct meta_chain *chain, uint32_t ordinal,
                     bool *ret_stored, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    uint64_t size;
    int code = store_head(s->store, object_key(&chain->chain_ids[ordinal], key), &size, err);

    if (code != CAIRN_OK && code != CAIRN_E_NOT_FOUND)
        return code;
    *ret_stored = code == CAIRN_OK;
    return CAIRN_OK;
}

/*
 * Strides that double, down from the top, since most chains lack one layer or few, then halving
 * between the last miss and the first hit.  Should an object in between be gone, its builder will
 * notice and make it.
 */
int index_store_nr_stored(struct index_store *s, const struct meta_chain *chain,
                          uint32_t nr_prefixes, uint32_t *ret_nr_prefixes, struct cairn_error *err)
{
    uint32_t low = 0, high = nr_prefixes; /* the first low are stored; those from high on are not */
    uint32_t stride = 1;
    bool galloping = true;

    while (low < high) {
        uint32_t probe =
            galloping ? high - (stride < high ? stride : high) : low + (high - low) / 2;
        bool stored;
        int code = is_stored(s, chain, probe, &stored, err);

        if (code != CAIRN_OK)
            return code;
        if (stored) {
            low = probe + 1;
            galloping = false;
        } else {
            high = probe;
            stride *= 2;
        }
    }
    *ret_nr_prefixes = low;
    return CAIRN_OK;
}

/* -- Building one prefix ---------------------------------------------------------------------- */

struct build {
    struct index_store *s;
    const struct meta_chain *chain;
    uint32_t ordinal;
    const struct index_l1 *parent;
    struct index_writer *writer;
    size_t slice_bytes;
    uint32_t missing; /* the prefix below that has to be built first, or NO_ORDINAL */
};

static int build_parent_slice(void *ctx, uint32_t ordinal, uint32_t slice,
                              struct index_slice **ret_slice, struct cairn_error *err)
{
    struct build *b = ctx;
    int code =
        metacache_find_slice(b->s->cache, b->chain, b->parent, ordinal, slice, ret_slice, err);

    if (code != CAIRN_OK)
        b->missing = ordinal;
    return code;
}

static int build_emit(void *arg, uint32_t slice_nr, struct index_slice *slice,
                      struct cairn_error *err)
{
    struct build *b = arg;
    const struct digest *id = &b->chain->chain_ids[b->ordinal];

    b->slice_bytes += index_slice_bytes(slice);
    if (b->slice_bytes > INDEX_OBJECT_BYTES_MAX)
        return error_set(err, CAIRN_E_LIMIT, "the layer's index takes more than %zu bytes",
                         INDEX_OBJECT_BYTES_MAX);
    metacache_fill_slice(b->s->cache, b->chain, b->ordinal, slice_nr, slice);
    return index_writer_add(b->writer, slice_nr, b->ordinal, id, slice, err);
}

/* The container of the prefix, as bytes. */
static int build_container(struct build *b, struct layer *layer, void **ret_buf, size_t *ret_len,
                           struct cairn_error *err)
{
    CLEANUP(index_writer_free_p) struct index_writer *writer = NULL;
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL;
    struct index_slices slices = {.get = build_parent_slice, .ctx = b};
    int code = index_writer_new(&writer, err);

    if (code != CAIRN_OK)
        return code;
    b->writer = writer;
    code = chain_index_build(b->parent, &slices, layer, &b->chain->layers[b->ordinal].digest,
                             build_emit, b, &l1, err);
    if (code != CAIRN_OK)
        return code;
    return index_writer_finish(writer, l1, ret_buf, ret_len, err);
}

/* Reads back what was built, and so checks it, before anything relies on it. */
static int object_built(const struct build *b, void *buf, size_t len,
                        struct index_object **ret_object, struct cairn_error *err)
{
    char name[sizeof("index of chain ") + DIGEST_STR_MAX], id[DIGEST_STR_MAX];
    struct source *src;
    int code;

    snprintf(name, sizeof(name), "index of chain %s",
             digest_format(&b->chain->chain_ids[b->ordinal], id));
    code = source_from_memory(buf, len, name, &src, err);
    if (code != CAIRN_OK) {
        free(buf);
        return code;
    }
    return object_open(b->s, b->chain, b->ordinal, src, buf, len, ret_object, err);
}

/* Store the object and fill the caches.  Who only reads (not durable) can do without the former. */
static int object_keep(const struct build *b, struct index_object *o, size_t len, bool durable,
                       struct cairn_error *err)
{
    struct cache_key cache_key = metacache_key(b->chain, b->ordinal, 0);
    char key[REGISTRY_KEY_MAX];
    int code = store_put(b->s->store, object_key(&cache_key.digest, key), o->buf, len,
                         STORE_PUT_REPLACE, err);

    if (code != CAIRN_OK)
        atomic_fetch_add(&b->s->nr_write_failures, 1);
    if (code != CAIRN_OK && durable)
        return code;
    cache_put(b->s->objects, &cache_key, o);
    metacache_fill_l1(b->s->cache, b->chain, index_reader_l1(o->reader));
    return CAIRN_OK;
}

static int build_from(struct build *b, struct layer *layer, bool durable,
                      struct index_object **ret_object, struct cairn_error *err)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *parent = NULL;
    CLEANUP(object_unref_p) struct index_object *o = NULL;
    void *buf;
    size_t len;
    int code;

    if (b->ordinal > 0) {
        code = metacache_find_l1(b->s->cache, b->chain, b->ordinal - 1, &parent, err);
        if (code != CAIRN_OK) {
            b->missing = b->ordinal - 1;
            return code;
        }
        code = check_base(parent, b->chain, err);
        if (code != CAIRN_OK)
            return code;
    }
    b->parent = parent;
    code = build_container(b, layer, &buf, &len, err);
    if (code == CAIRN_OK)
        code = object_built(b, buf, len, &o, err);
    if (code == CAIRN_OK)
        code = object_keep(b, o, len, durable, err);
    if (code != CAIRN_OK)
        return code;
    atomic_fetch_add(&b->s->nr_builds, 1);
    *ret_object = steal_ptr(o);
    return CAIRN_OK;
}

static int open_layer(const struct object_name *name, uint32_t ordinal,
                      struct opened_layer **ret_opened, struct cairn_error *err)
{
    const struct manifest_layer *of = &name->chain->layers[ordinal];
    struct blob *blob = NULL;
    char digest[DIGEST_STR_MAX];
    int code = blob_open(name->s->store, &of->digest, &blob, err);

    if (code == CAIRN_E_NOT_FOUND)
        code = error_set(err, CAIRN_E_CORRUPT, "layer %s: the store has lost its blob",
                         digest_format(&of->digest, digest));
    return code == CAIRN_OK ? opened_layer_new(blob, of->format, ret_opened, err) : code;
}

/* layer NULL: open it from the store. */
static int build_prefix(struct build *b, struct layer *layer, bool durable,
                        struct index_object **ret_object, struct cairn_error *err)
{
    struct object_name name = {.s = b->s, .chain = b->chain};
    CLEANUP(opened_layer_free_p) struct opened_layer *opened = NULL;
    int code;

    if (layer)
        return build_from(b, layer, durable, ret_object, err);
    code = open_layer(&name, b->ordinal, &opened, err);
    if (code == CAIRN_OK)
        code = build_from(b, opened->layer, durable, ret_object, err);
    return code;
}

/* -- Building what a prefix needs ------------------------------------------------------------- */

/*
 * Build a prefix, and before it those below that turn out to be missing.  Each is built once: if
 * one is missing again after that, the store does not keep what it is given, and the error stands.
 */
static int build_with_needs(const struct object_name *name, struct layer *layer, bool durable,
                            struct index_object **ret_object, struct cairn_error *err)
{
    CLEANUP_FREE uint32_t *waiting = calloc((size_t)name->ordinal + 1, sizeof(*waiting));
    CLEANUP_FREE bool *built = calloc((size_t)name->ordinal + 1, sizeof(*built));
    uint32_t nr_waiting = 1;

    if (!waiting || !built)
        return error_no_memory(err, "the list of prefixes to build");
    waiting[0] = name->ordinal;
    for (;;) {
        struct build b = {
            .s = name->s,
            .chain = name->chain,
            .ordinal = waiting[nr_waiting - 1],
            .missing = NO_ORDINAL,
        };
        CLEANUP(object_unref_p) struct index_object *o = NULL;
        int code = build_prefix(&b, nr_waiting == 1 ? layer : NULL, durable, &o, err);

        if (code == CAIRN_OK) {
            built[b.ordinal] = true;
            if (--nr_waiting == 0) {
                *ret_object = steal_ptr(o);
                return CAIRN_OK;
            }
        } else if (b.missing < b.ordinal && !built[b.missing]) {
            waiting[nr_waiting++] = b.missing; /* smaller each time, so they all fit */
        } else {
            return code;
        }
    }
}

static int fetch_build(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct object_name *name = arg;
    struct cache_key key = name_key(name);
    struct index_object *o = cache_peek(name->s->objects, &key);
    int code = CAIRN_OK;

    /* Built by somebody else meanwhile?  What was only opened is what proved bad. */
    if (!o || !o->buf) {
        object_unref(o);
        code = build_with_needs(name, name->layer, false, &o, err);
    }
    if (code == CAIRN_OK)
        *ret_value = o;
    return code;
}

static int open_ahead(void *ctx, uint32_t ordinal, void **ret_item, struct cairn_error *err)
{
    struct opened_layer *opened = NULL;
    int code = open_layer(ctx, ordinal, &opened, err);

    if (code != CAIRN_OK)
        return code;
    layer_preload(opened->layer);
    *ret_item = opened;
    return CAIRN_OK;
}

/* Build prefix at->ordinal together with whoever else wants it at the moment.  A layer that could
 * not be opened ahead is opened again by who builds it, if that is needed at all. */
static int build_next(struct ahead *ahead, struct object_name *at, void **ret_value,
                      struct cairn_error *err)
{
    CLEANUP(opened_layer_free_p) struct opened_layer *opened = NULL;
    struct cache_key key = name_key(at);
    void *item = NULL;

    if (ahead_take(ahead, &item, NULL) == CAIRN_OK)
        opened = item;
    at->layer = opened ? opened->layer : NULL;
    return cache_get(at->s->builds, &key, fetch_build, at, ret_value, err);
}

/* Build prefix name->ordinal, and before it all that are not stored, the layers opened and scanned
 * many at a time. */
static int fetch_rebuild(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct ahead_work work = {.make = open_ahead, .free = opened_layer_free_item, .ctx = arg};
    const struct object_name *name = arg;
    CLEANUP(ahead_free_p) struct ahead *ahead = NULL;
    struct object_name at = *name;
    int code = index_store_nr_stored(name->s, name->chain, name->ordinal, &at.ordinal, err);

    if (code == CAIRN_OK)
        code = ahead_new(&work, at.ordinal, name->ordinal + 1, &ahead, err);
    for (; code == CAIRN_OK; at.ordinal++) {
        code = build_next(ahead, &at, ret_value, err);
        if (code == CAIRN_OK && at.ordinal == name->ordinal)
            break;
        if (code == CAIRN_OK)
            object_unref(*ret_value);
    }
    return code;
}

/* Together with whoever else wants it at the moment: layers are scanned once for all. */
static int rebuild(const struct object_name *name, struct index_object **ret_object,
                   struct cairn_error *err)
{
    struct object_name at = *name;
    struct cache_key key = name_key(name);
    void *value = NULL;
    int code = cache_get(name->s->rebuilds, &key, fetch_rebuild, &at, &value, err);

    if (code == CAIRN_OK)
        *ret_object = value;
    return code;
}

/* -- The rebuild tier ------------------------------------------------------------------------- */

static int rebuild_get_l1(void *ctx, const struct meta_chain *chain, uint32_t ordinal,
                          struct index_l1 **ret_l1, struct cairn_error *err)
{
    struct object_name name = {.s = ctx, .chain = chain, .ordinal = ordinal};
    CLEANUP(object_unref_p) struct index_object *o = NULL;
    int code = rebuild(&name, &o, err);

    if (code == CAIRN_OK)
        *ret_l1 = index_l1_ref(index_reader_l1(o->reader));
    return code;
}

static int rebuild_get_slice(void *ctx, const struct meta_chain *chain, const struct index_l1 *l1,
                             uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                             struct cairn_error *err)
{
    struct object_name name = {.s = ctx, .chain = chain, .ordinal = ordinal};
    CLEANUP(object_unref_p) struct index_object *o = NULL;
    int code = rebuild(&name, &o, err);

    (void)l1;
    if (code != CAIRN_OK)
        return code;
    return object_slice(&name, o, slice, ret_slice, err);
}

struct metacache_tier index_rebuild_tier(struct index_store *s)
{
    return (struct metacache_tier){
        .name = "rebuild",
        .get_l1 = rebuild_get_l1,
        .get_slice = rebuild_get_slice,
        .ctx = s,
    };
}

/* -- The interface ---------------------------------------------------------------------------- */

int index_store_build(struct index_store *s, const struct meta_chain *chain, uint32_t ordinal,
                      struct layer *layer, struct cairn_error *err)
{
    struct object_name name = {.s = s, .chain = chain, .ordinal = ordinal};
    CLEANUP(object_unref_p) struct index_object *o = NULL;

    return build_with_needs(&name, layer, true, &o, err);
}

int index_store_new(struct metacache *cache, struct store *store, size_t max_bytes,
                    struct index_store **ret_store, struct cairn_error *err)
{
    CLEANUP(index_store_free_p) struct index_store *s = calloc(1, sizeof(*s));
    int code;

    if (!s)
        return error_no_memory(err, "the index store");
    s->cache = cache;
    s->store = store;
    s->object_cost_min = max_bytes / OBJECTS_OPEN_MAX + 1;
    code = cache_new(&object_type, max_bytes, &s->objects, err);
    if (code == CAIRN_OK)
        code = cache_new(&object_type, 0, &s->rebuilds, err);
    if (code == CAIRN_OK)
        code = cache_new(&object_type, 0, &s->builds, err);
    if (code == CAIRN_OK)
        *ret_store = steal_ptr(s);
    return code;
}

void index_store_free(struct index_store *s)
{
    if (!s)
        return;
    cache_free(s->rebuilds);
    cache_free(s->builds);
    cache_free(s->objects);
    free(s);
}

void index_store_count(const struct index_store *s, uint64_t *ret_builds, uint64_t *ret_failures)
{
    *ret_builds = atomic_load(&s->nr_builds);
    *ret_failures = atomic_load(&s->nr_write_failures);
}
