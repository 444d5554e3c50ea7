/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The objects of the chain index: L1s, slices and packed extents.  Building is in chain_build.c,
 * looking up in chain_map.c and chain_lookup.c, bytes in chain_index_codec.c.
 */
#include "chain_index.h"

#include <assert.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "chain_index_internal.h"
#include "checked.h"

static_assert(sizeof(struct index_extent) == 16, "an extent takes 16 bytes");
static_assert(offsetof(struct index_slice, top) == 0 && sizeof(struct index_slice) == NODE_SIZE,
              "top is a node, and the nodes behind it are cache lines");
static_assert(NO_KEY == 0xffff, "memset writes it");
static_assert(SLICE_SECTORS <= INDEX_TOP_KEYS * NODE_KEYS * NODE_KEYS * NODE_KEYS,
              "three levels are enough");
static_assert(HOST_OFF_MAX == (uint64_t)1 << HOST_OFF_BITS, "a record holds any host offset");
static_assert(CHAIN_DEPTH_MAX <= INDEX_NO_SLICE, "an ordinal never looks like no slice");

/* -- L1 ---------------------------------------------------------------------------------------- */

static size_t l1_block_bytes(uint32_t depth, uint32_t nr_slices)
{
    return sizeof(struct index_l1) + depth * sizeof(struct layer_attr) +
           nr_slices * sizeof(uint16_t);
}

int index_l1_new(uint32_t depth, uint64_t virtual_size, struct index_l1 **ret_l1,
                 struct cairn_error *err)
{
    uint32_t nr_slices = (uint32_t)div_round_up(virtual_size, INDEX_SLICE_SIZE);
    struct index_l1 *l1 = calloc(1, l1_block_bytes(depth, nr_slices));

    if (!l1)
        return error_no_memory(err, "the L1 of a chain index");
    atomic_init(&l1->refs, 1);
    l1->depth = depth;
    l1->virtual_size = virtual_size;
    l1->nr_slices = nr_slices;
    l1->layers = (struct layer_attr *)(l1 + 1);
    l1->slices = (uint16_t *)(l1->layers + depth);
    for (uint32_t i = 0; i < nr_slices; i++)
        l1->slices[i] = INDEX_NO_SLICE;
    *ret_l1 = l1;
    return CAIRN_OK;
}

/*
 * A hole at guest_off is answered by the youngest layer whose parent ends at or before guest_off.
 * From the top down, a layer's end matters only if it lies below all those seen so far; calls
 * with ends == NULL just count them.
 */
static uint32_t find_ends(const struct index_l1 *l1, struct index_end *ends, uint32_t nr_ends)
{
    uint64_t lowest = l1->virtual_size;
    uint32_t found = 0;

    for (uint32_t i = l1->depth - 1; i > 0; i--) {
        uint64_t size = l1->layers[i - 1].virtual_size;

        if (size >= lowest)
            continue;
        lowest = size;
        found++;
        if (ends)
            ends[nr_ends - found] = (struct index_end){.virtual_size = size, .layer = i};
    }
    return found;
}

int index_l1_set_ends(struct index_l1 *l1, struct cairn_error *err)
{
    l1->nr_ends = find_ends(l1, NULL, 0);
    if (l1->nr_ends == 0)
        return CAIRN_OK;
    l1->ends = malloc(l1->nr_ends * sizeof(*l1->ends));
    if (!l1->ends)
        return error_no_memory(err, "the L1 of a chain index");
    find_ends(l1, l1->ends, l1->nr_ends);
    return CAIRN_OK;
}

struct index_l1 *index_l1_ref(struct index_l1 *l1)
{
    atomic_fetch_add_explicit(&l1->refs, 1, memory_order_relaxed);
    return l1;
}

void index_l1_unref(struct index_l1 *l1)
{
    if (!l1 || atomic_fetch_sub_explicit(&l1->refs, 1, memory_order_acq_rel) > 1)
        return;
    free(l1->ends);
    free(l1);
}

size_t index_l1_bytes(const struct index_l1 *l1)
{
    return l1_block_bytes(l1->depth, l1->nr_slices) + l1->nr_ends * sizeof(*l1->ends);
}

/* -- Slices ------------------------------------------------------------------------------------ */

/* Where the parts of a slice are, and what it takes, in bytes. */
struct slice_shape {
    uint32_t leaves_off, records_off, bytes;
};

static struct slice_shape slice_shape(uint32_t nr_extents)
{
    struct slice_shape shape = {.records_off = sizeof(struct index_slice)};

    for (unsigned level = slice_levels(nr_extents); level > 0; level--) {
        shape.leaves_off = shape.records_off;
        shape.records_off += slice_level_nodes(nr_extents, level) * NODE_SIZE;
    }
    /* A search that ends behind the last extent looks at a record there, and then ignores it. */
    shape.bytes = shape.records_off + RECORD_SIZE * (nr_extents + 1);
    return shape;
}

static uint16_t *keys_at(struct index_slice *slice, uint32_t off)
{
    return (uint16_t *)(void *)((uint8_t *)slice + off);
}

/* The keys above a level: of each of its nodes the last, but for the last node, which has no end.
 */
static void put_keys_above(struct index_slice *slice, unsigned level, uint32_t off)
{
    uint32_t nr_extents = slice->nr_extents, nr_nodes = slice_level_nodes(nr_extents, level);
    bool below_top = level == slice_levels(nr_extents);
    uint32_t above_off = below_top ? 0 : off - slice_level_nodes(nr_extents, level + 1) * NODE_SIZE;
    uint16_t *keys = keys_at(slice, off), *above = keys_at(slice, above_off);

    for (uint32_t i = 0; i + 1 < nr_nodes; i++)
        above[i] = keys[i * NODE_KEYS + NODE_KEYS - 1];
    if (!below_top)
        put_keys_above(slice, level + 1, above_off);
}

static void put_extents(struct index_slice *slice, const struct index_extent *extents)
{
    uint16_t *keys = keys_at(slice, slice->leaves_off);
    uint8_t *record = (uint8_t *)slice + slice->records_off;

    for (uint32_t i = 0; i < slice->nr_extents; i++, record += RECORD_SIZE) {
        keys[i] = (uint16_t)(packed_end(&extents[i]) - 1);
        record_put(record, &extents[i]);
    }
    memset(record, 0, RECORD_SIZE);
}

int index_slice_new(const struct index_extent *extents, uint32_t nr_extents,
                    struct index_slice **ret_slice, struct cairn_error *err)
{
    struct slice_shape shape = slice_shape(nr_extents);
    /* Only nodes want to be cache lines. */
    struct index_slice *slice = shape.leaves_off
                                    ? aligned_alloc(NODE_SIZE, round_up(shape.bytes, NODE_SIZE))
                                    : malloc(shape.bytes);

    if (!slice)
        return error_no_memory(err, "a slice of a chain index");
    atomic_init(&slice->refs, 1);
    slice->nr_extents = nr_extents;
    slice->leaves_off = shape.leaves_off;
    slice->records_off = shape.records_off;
    memset(slice->top, 0xff, sizeof(slice->top));
    memset(slice + 1, 0xff, shape.records_off - sizeof(*slice));
    put_extents(slice, extents);
    if (shape.leaves_off)
        put_keys_above(slice, 1, shape.leaves_off);
    *ret_slice = slice;
    return CAIRN_OK;
}

struct index_slice *index_slice_ref(struct index_slice *slice)
{
    atomic_fetch_add_explicit(&slice->refs, 1, memory_order_relaxed);
    return slice;
}

void index_slice_unref(struct index_slice *slice)
{
    if (slice && atomic_fetch_sub_explicit(&slice->refs, 1, memory_order_acq_rel) == 1)
        free(slice);
}

size_t index_slice_bytes(const struct index_slice *slice)
{
    return slice_shape(slice->nr_extents).bytes;
}

/* -- Extents ----------------------------------------------------------------------------------- */

static uint64_t compressed_sectors(const struct extent *e)
{
    return (e->host_off % SECTOR_SIZE + e->compressed_len + SECTOR_SIZE - 1) >> SECTOR_BITS;
}

struct index_extent index_extent_pack(const struct extent *e)
{
    uint64_t start = e->guest_off % INDEX_SLICE_SIZE >> SECTOR_BITS;
    uint64_t sectors = e->len >> SECTOR_BITS;
    uint64_t compressed = e->kind == EXTENT_COMPRESSED ? compressed_sectors(e) - 1 : 0;

    return (struct index_extent){
        .word = {start | (sectors - 1) << 16 | (uint64_t)e->layer << 32 | compressed << 48 |
                     (uint64_t)e->kind << 62,
                 e->host_off},
    };
}

void index_extent_unpack(const struct index_extent *packed, uint32_t slice,
                         struct extent *ret_extent)
{
    uint64_t start = packed_start(packed), end = packed_end(packed);

    *ret_extent = (struct extent){
        .guest_off = ((uint64_t)slice << INDEX_SLICE_BITS) + (start << SECTOR_BITS),
        .len = (end - start) << SECTOR_BITS,
        .host_off = packed->word[1],
        .layer = packed_layer(packed),
        .kind = packed_kind(packed),
    };
    if (ret_extent->kind == EXTENT_COMPRESSED)
        ret_extent->compressed_len = packed_compressed_len(packed->word[0], packed->word[1]);
}

static const char *compressed_flaw(const struct extent *e, const struct layer_attr *attr)
{
    uint64_t last = e->guest_off + e->len - 1;

    if (attr->format != LAYER_QCOW2)
        return "compressed in a raw layer";
    if (e->guest_off >> attr->cluster_bits != last >> attr->cluster_bits)
        return "compressed and longer than its cluster";
    if (e->host_off >= HOST_OFF_MAX)
        return "the host offset is not below 2^56";
    /* The most that the bits of an L2 entry can say. */
    if (e->compressed_len == 0 || e->compressed_len > (uint64_t)2 << attr->cluster_bits)
        return "the compressed length is not between 1 and two clusters";
    return NULL;
}

static const char *linear_flaw(const struct extent *e)
{
    if (!is_aligned(e->host_off, SECTOR_SIZE))
        return "the host offset is not a multiple of 512";
    if (!range_in(e->host_off, e->len, HOST_OFF_MAX))
        return "the host range reaches past 2^56";
    return NULL;
}

const char *index_extent_flaw(const struct extent *e, const struct layer_attr *attr)
{
    if (e->len == 0 || !is_aligned(e->guest_off | e->len, SECTOR_SIZE))
        return "the guest range is empty or not in sectors of 512";
    if (!range_in(e->guest_off, e->len, attr->virtual_size))
        return "the guest range reaches past its layer's virtual size";
    switch ((enum extent_kind)e->kind) {
    case EXTENT_ZERO:
        return e->host_off == 0 ? NULL : "zeros without a cluster have a host offset";
    case EXTENT_ZERO_ALLOC:
    case EXTENT_DATA:
        return linear_flaw(e);
    case EXTENT_COMPRESSED:
        return compressed_flaw(e, attr);
    case EXTENT_HOLE:
        break;
    }
    return "the kind is unknown";
}

/* -- Keys -------------------------------------------------------------------------------------- */

void index_key_l1(const struct digest *chain_id, char key[INDEX_KEY_MAX])
{
    char text[DIGEST_STR_MAX];

    snprintf(key, INDEX_KEY_MAX, "cairn:1:l1:%s", digest_format(chain_id, text));
}

void index_key_slice(const struct digest *prefix_chain_id, uint32_t slice, char key[INDEX_KEY_MAX])
{
    char text[DIGEST_STR_MAX];

    snprintf(key, INDEX_KEY_MAX, "cairn:1:l2:%s:%" PRIu32, digest_format(prefix_chain_id, text),
             slice);
}
