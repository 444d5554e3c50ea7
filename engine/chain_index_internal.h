/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the chain index share and nobody else needs: packed extents at work, making
 * L1s and slices, and the builder's core.
 */
#ifndef ENGINE_CHAIN_INDEX_INTERNAL_H
#define ENGINE_CHAIN_INDEX_INTERNAL_H

#include "chain_index.h"

#define SECTOR_BITS   9
#define SECTOR_SIZE   ((uint64_t)1 << SECTOR_BITS)
#define SLICE_SECTORS ((uint32_t)(INDEX_SLICE_SIZE / SECTOR_SIZE))

/* QEMU's limit on host offsets; it also keeps host_off + len far from wrapping round. */
#define HOST_OFF_MAX ((uint64_t)1 << 56)

/* -- Packed extents, in sectors of their slice ------------------------------------------------- */

static inline uint32_t packed_start(const struct index_extent *e)
{
    return (uint16_t)e->word[0];
}

static inline uint32_t packed_end(const struct index_extent *e)
{
    return packed_start(e) + (uint16_t)(e->word[0] >> 16) + 1;
}

static inline uint16_t packed_layer(const struct index_extent *e)
{
    return (uint16_t)(e->word[0] >> 32);
}

static inline uint8_t packed_kind(const struct index_extent *e)
{
    return (uint8_t)(e->word[0] >> 62);
}

/* The part [start, end) of e, which must lie in e. */
static inline struct index_extent packed_cut(struct index_extent e, uint32_t start, uint32_t end)
{
    if (extent_kind_linear(packed_kind(&e)))
        e.word[1] += (uint64_t)(start - packed_start(&e)) << SECTOR_BITS;
    e.word[0] = (e.word[0] >> 32 << 32) | (uint64_t)(end - start - 1) << 16 | start;
    return e;
}

/* As extent_mergeable. */
static inline bool packed_mergeable(const struct index_extent *a, const struct index_extent *b)
{
    uint64_t run = (uint64_t)(packed_end(a) - packed_start(a)) << SECTOR_BITS;

    if (a->word[0] >> 32 != b->word[0] >> 32 || packed_end(a) != packed_start(b))
        return false;
    if (extent_kind_linear(packed_kind(a)))
        return a->word[1] + run == b->word[1];
    return packed_kind(a) != EXTENT_COMPRESSED;
}

/*
 * What keeps e from being an extent of a layer with these attributes, in words; NULL if nothing.
 * Everything but its place among its neighbours.
 */
const char *index_extent_flaw(const struct extent *e, const struct layer_attr *attr);

/* -- Making ------------------------------------------------------------------------------------ */

/* One reference; everything zero but depth, virtual_size and nr_slices, no slice anywhere. */
int index_l1_new(uint32_t depth, uint64_t virtual_size, struct index_l1 **ret_l1,
                 struct cairn_error *err);
/* Derive the ends once the layers are filled in. */
int index_l1_set_ends(struct index_l1 *l1, struct cairn_error *err);

/* One reference; the extents are left for the caller to fill in. */
int index_slice_new(uint32_t nr_extents, struct index_slice **ret_slice, struct cairn_error *err);

/* Calls fn with a layer's extents, as layer_scan does. */
typedef int (*index_feed_fn)(void *feed_arg, layer_extent_fn fn, void *arg,
                             struct cairn_error *err);

/* chain_index_build for extents that come from anywhere. */
int chain_index_overlay(const struct index_l1 *parent, const struct index_slices *parent_slices,
                        const struct layer_attr *attr, const struct digest *layer_digest,
                        index_feed_fn feed, void *feed_arg, index_emit_fn emit, void *emit_arg,
                        struct index_l1 **ret_l1, struct cairn_error *err);

#endif
