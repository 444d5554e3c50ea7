/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the chain index share and nobody else needs: packed extents at work, making
 * L1s and slices, and the builder's core.
 */
#ifndef ENGINE_CHAIN_INDEX_INTERNAL_H
#define ENGINE_CHAIN_INDEX_INTERNAL_H

#include "bytes.h"
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

/* For compressed extents: data is counted in the sectors that it touches, as in an L2 entry, and
 * ends where the last of them does. */
static inline uint32_t packed_compressed_len(uint64_t word0, uint64_t host_off)
{
    return (uint32_t)((((word0 >> 48 & 0x3fff) + 1) << SECTOR_BITS) - host_off % SECTOR_SIZE);
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

/* -- A slice's tree and records ---------------------------------------------------------------- */

#define NODE_KEYS     32u
#define NODE_SHIFT    5u /* log2 of that */
#define NODE_SIZE     64u
#define NO_KEY        UINT16_MAX /* fills nodes up: no sector is behind it */
#define RECORD_SIZE   13u        /* host offset: 56 bits, word[0] without its start: 48 */
#define HOST_OFF_BITS 56u

/* Levels of nodes below top. */
static inline unsigned slice_levels(uint32_t nr_extents)
{
    return (unsigned)(nr_extents > INDEX_TOP_KEYS) +
           (unsigned)(nr_extents > INDEX_TOP_KEYS * NODE_KEYS) +
           (unsigned)(nr_extents > INDEX_TOP_KEYS * NODE_KEYS * NODE_KEYS);
}

/* Nodes of the level that is the nth from the leaves, which are the first. */
static inline uint32_t slice_level_nodes(uint32_t nr_extents, unsigned level)
{
    return (nr_extents + (1u << NODE_SHIFT * level) - 1) >> NODE_SHIFT * level;
}

static inline const uint16_t *slice_keys(const struct index_slice *slice, uint32_t off)
{
    return (const uint16_t *)(const void *)((const uint8_t *)slice + off);
}

/* The last sector of extent i. */
static inline uint32_t slice_last(const struct index_slice *slice, uint32_t i)
{
    return slice_keys(slice, slice->leaves_off)[i];
}

static inline const uint8_t *slice_record(const struct index_slice *slice, uint32_t i)
{
    return (const uint8_t *)slice + slice->records_off + (size_t)RECORD_SIZE * i;
}

static inline void record_put(uint8_t *record, const struct index_extent *e)
{
    uint64_t what = e->word[0] >> 16;

    memcpy(record, &(uint64_t){htole64(e->word[1])}, HOST_OFF_BITS / 8);
    memcpy(record + HOST_OFF_BITS / 8, &(uint64_t){htole64(what)}, RECORD_SIZE - HOST_OFF_BITS / 8);
}

/* word[0] >> 16. */
static inline uint64_t record_what(const uint8_t *record)
{
    return bytes_get_le64(record + RECORD_SIZE - 8) >> 16;
}

static inline uint64_t record_host_off(const uint8_t *record)
{
    return bytes_get_le64(record) & (((uint64_t)1 << HOST_OFF_BITS) - 1);
}

static inline struct index_extent slice_extent(const struct index_slice *slice, uint32_t i)
{
    const uint8_t *record = slice_record(slice, i);
    uint64_t what = record_what(record);
    uint64_t start = slice_last(slice, i) - (what & 0xffff);

    return (struct index_extent){.word = {what << 16 | start, record_host_off(record)}};
}

/* The first extent that ends behind sector (which may start behind it too); nr_extents if none. */
uint32_t slice_find(const struct index_slice *slice, uint32_t sector);

/* The hole from start on: to end, or to where another layer begins to answer. */
struct extent index_hole(const struct index_l1 *l1, uint64_t start, uint64_t end);

/* -- Instruction sets for look-ups (chain_lookup.c) -------------------------------------------- */

struct lookup_isa {
    const char *name;
    bool (*usable)(void); /* does this machine have it? */
    int (*lookup)(struct chain_index *index, uint64_t guest_off, struct extent *ret_extent,
                  struct cairn_error *err);
    int (*lookup_many)(struct chain_index *index, const uint64_t *guest_offs, size_t nr,
                       struct extent *ret_extents, struct cairn_error *err);
    uint32_t (*find)(const struct index_slice *slice, uint32_t sector); /* as slice_find */
};

/* Those that this machine has, the best first, the portable one last; NULL from there on. */
const struct lookup_isa *lookup_isa_get(unsigned nr);
/* Have an index looked up with isa from now on; before threads share it. */
void chain_index_use(struct chain_index *index, const struct lookup_isa *isa);

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

/* One reference; of sorted extents, at most SLICE_SECTORS of them. */
int index_slice_new(const struct index_extent *extents, uint32_t nr_extents,
                    struct index_slice **ret_slice, struct cairn_error *err);

/* Calls fn with a layer's extents, as layer_scan does. */
typedef int (*index_feed_fn)(void *feed_arg, layer_extent_fn fn, void *arg,
                             struct cairn_error *err);

/* chain_index_build for extents that come from anywhere. */
int chain_index_overlay(const struct index_l1 *parent, const struct index_slices *parent_slices,
                        const struct layer_attr *attr, const struct digest *layer_digest,
                        index_feed_fn feed, void *feed_arg, index_emit_fn emit, void *emit_arg,
                        struct index_l1 **ret_l1, struct cairn_error *err);

#endif
