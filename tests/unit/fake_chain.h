/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chains without images, for tests of the chain index: layers are lists of extents, slices are
 * kept in memory by (ordinal, slice).  Random layers come from a seed, so that a failure repeats.
 */
#ifndef TESTS_UNIT_FAKE_CHAIN_H
#define TESTS_UNIT_FAKE_CHAIN_H

#include "test.h"

#include "chain_index_internal.h"
#include "checked.h"

#define FAKE_DEPTH_MAX  64
#define FAKE_SLICES_MAX 8

struct fake_layer {
    struct layer_attr attr;
    struct digest digest;
    struct extent *extents;
    size_t nr, room;
};

struct fake_chain {
    uint32_t depth;
    struct fake_layer layers[FAKE_DEPTH_MAX];
    struct digest digests[FAKE_DEPTH_MAX];
    struct index_l1 *l1s[FAKE_DEPTH_MAX]; /* of every prefix */
    struct index_slice *slices[FAKE_DEPTH_MAX][FAKE_SLICES_MAX];
    unsigned nr_gets;
};

/* xorshift64*; a test's whole randomness. */
static inline uint64_t fake_random(uint64_t *seed)
{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * 0x2545f4914f6cdd1d;
}

static inline uint64_t fake_below(uint64_t *seed, uint64_t n)
{
    return (fake_random(seed) >> 11) % n;
}

static inline void fake_layer_add(struct fake_layer *layer, struct extent e)
{
    if (layer->nr == layer->room) {
        layer->room = 2 * layer->room + 16;
        layer->extents = realloc(layer->extents, layer->room * sizeof(e));
        assert_non_null(layer->extents);
    }
    layer->extents[layer->nr++] = e;
}

static inline int fake_feed(void *feed_arg, layer_extent_fn fn, void *arg, struct cairn_error *err)
{
    const struct fake_layer *layer = feed_arg;

    for (size_t i = 0; i < layer->nr; i++) {
        int rc = fn(arg, &layer->extents[i], err);

        if (rc != 0)
            return rc;
    }
    return CAIRN_OK;
}

static inline int fake_get(void *ctx, uint32_t ordinal, uint32_t slice,
                           struct index_slice **ret_slice, struct cairn_error *err)
{
    struct fake_chain *chain = ctx;

    assert_true(ordinal < FAKE_DEPTH_MAX && slice < FAKE_SLICES_MAX);
    if (!chain->slices[ordinal][slice])
        return error_set(err, CAIRN_E_NOT_FOUND, "slice %u of prefix %u", slice, ordinal);
    chain->nr_gets++;
    *ret_slice = index_slice_ref(chain->slices[ordinal][slice]);
    return CAIRN_OK;
}

static inline int fake_emit(void *arg, uint32_t slice_nr, struct index_slice *slice,
                            struct cairn_error *err)
{
    struct fake_chain *chain = arg;

    (void)err;
    assert_true(slice_nr < FAKE_SLICES_MAX);
    assert_null(chain->slices[chain->depth][slice_nr]);
    for (uint32_t i = slice_nr; i < FAKE_SLICES_MAX; i++)
        assert_null(chain->slices[chain->depth][i]); /* they come in order */
    chain->slices[chain->depth][slice_nr] = index_slice_ref(slice);
    return CAIRN_OK;
}

static inline struct index_slices fake_slices(struct fake_chain *chain)
{
    return (struct index_slices){.get = fake_get, .ctx = chain};
}

static inline struct index_l1 *fake_top(const struct fake_chain *chain)
{
    return chain->l1s[chain->depth - 1];
}

/* Layers that hold the same at the same place have the same digest. */
static inline void fake_digest(struct fake_layer *layer, uint32_t ordinal)
{
    CLEANUP(hasher_free_p) struct hasher *h = NULL;

    assert_int_equal(hasher_new(&h, NULL), CAIRN_OK);
    hasher_update(h, &ordinal, sizeof(ordinal));
    hasher_update(h, &layer->attr.virtual_size, sizeof(layer->attr.virtual_size));
    for (size_t i = 0; i < layer->nr; i++) {
        struct index_extent packed = index_extent_pack(&layer->extents[i]);

        hasher_update(h, &packed, sizeof(packed));
        hasher_update(h, &layer->extents[i].guest_off, sizeof(layer->extents[i].guest_off));
    }
    hasher_finish(h, &layer->digest);
}

/* Build the next prefix on top; chain->layers[chain->depth] is filled in but for its digest. */
static inline int fake_build(struct fake_chain *chain, struct cairn_error *err)
{
    struct fake_layer *layer = &chain->layers[chain->depth];
    struct index_slices slices = fake_slices(chain);
    int rc;

    if (layer->nr > 0)
        digest_of(layer->extents, layer->nr * sizeof(*layer->extents), &layer->digest);
    layer->digest.sha256[0] = (uint8_t)chain->depth;
    rc = chain_index_overlay(chain->depth > 0 ? fake_top(chain) : NULL, &slices, &layer->attr,
                             &layer->digest, fake_feed, layer, fake_emit, chain,
                             &chain->l1s[chain->depth], err);
    if (rc < 0)
        return rc;
    chain->digests[chain->depth] = layer->digest;
    chain->depth++;
    return CAIRN_OK;
}

static inline void fake_chain_free(struct fake_chain *chain)
{
    for (uint32_t i = 0; i < FAKE_DEPTH_MAX; i++) {
        index_l1_unref(chain->l1s[i]);
        free(chain->layers[i].extents);
        for (uint32_t s = 0; s < FAKE_SLICES_MAX; s++)
            index_slice_unref(chain->slices[i][s]);
    }
    free(chain);
}
CLEANUP_DEFINE(struct fake_chain *, fake_chain_free)

static inline struct fake_chain *fake_chain_new(void)
{
    struct fake_chain *chain = calloc(1, sizeof(*chain));

    assert_non_null(chain);
    return chain;
}

/*
 * A random extent of kind at guest_off, at most room bytes long; host offsets run on from before
 * often enough for neighbours to merge.
 */
static inline struct extent fake_extent(uint64_t *seed, const struct layer_attr *attr,
                                        uint64_t guest_off, uint64_t room)
{
    uint64_t cluster = (uint64_t)1 << attr->cluster_bits;
    struct extent e = {
        .guest_off = guest_off,
        .len = min_u64(room, SECTOR_SIZE * (1 + fake_below(seed, 1 + fake_below(seed, 20000)))),
        .kind = (uint8_t)fake_below(seed, 4),
    };

    if (extent_kind_linear(e.kind)) {
        e.host_off = fake_below(seed, 3) ? guest_off : fake_below(seed, 1 << 20) * SECTOR_SIZE;
    } else if (e.kind == EXTENT_COMPRESSED) {
        e.len = min_u64(e.len, cluster - guest_off % cluster);
        e.host_off = fake_below(seed, (uint64_t)1 << 40);
        e.compressed_len = (uint32_t)(1 + fake_below(seed, cluster));
    }
    return e;
}

/* Fill chain->layers[chain->depth] with up to nr random extents below virtual_size. */
static inline void fake_random_layer(struct fake_chain *chain, uint64_t *seed,
                                     uint64_t virtual_size, unsigned nr)
{
    struct fake_layer *layer = &chain->layers[chain->depth];
    uint64_t guest_off = 0;

    layer->attr = (struct layer_attr){
        .virtual_size = virtual_size,
        .cluster_bits = (uint8_t)(9 + fake_below(seed, 13)),
        .format = LAYER_QCOW2,
    };
    while (nr-- > 0) {
        struct extent e;

        guest_off += fake_below(seed, 3) ? SECTOR_SIZE * fake_below(seed, 50000) : 0;
        if (guest_off >= virtual_size)
            break;
        e = fake_extent(seed, &layer->attr, guest_off, virtual_size - guest_off);
        fake_layer_add(layer, e);
        guest_off += e.len;
    }
}

#endif
