/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The objects of the chain index: L1s, slices and packed extents.  Building is in chain_build.c,
 * looking up in chain_map.c, bytes in chain_index_codec.c.
 */
#include "chain_index.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

#include "chain_index_internal.h"
#include "checked.h"

static_assert(sizeof(struct index_extent) == 16, "an extent takes 16 bytes");
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

int index_slice_new(uint32_t nr_extents, struct index_slice **ret_slice, struct cairn_error *err)
{
    struct index_slice *slice =
        malloc(sizeof(*slice) + (size_t)nr_extents * sizeof(slice->extents[0]));

    if (!slice)
        return error_no_memory(err, "a slice of a chain index");
    atomic_init(&slice->refs, 1);
    slice->nr_extents = nr_extents;
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
    return sizeof(*slice) + slice->nr_extents * sizeof(slice->extents[0]);
}

/* -- Extents ----------------------------------------------------------------------------------- */

/*
 * Compressed data is counted in the sectors that it touches, as in a qcow2 L2 entry; it ends
 * where the last of them does.
 */
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
    uint64_t compressed = (packed->word[0] >> 48 & 0x3fff) + 1;

    *ret_extent = (struct extent){
        .guest_off = ((uint64_t)slice << INDEX_SLICE_BITS) + (start << SECTOR_BITS),
        .len = (end - start) << SECTOR_BITS,
        .host_off = packed->word[1],
        .layer = packed_layer(packed),
        .kind = packed_kind(packed),
    };
    if (ret_extent->kind == EXTENT_COMPRESSED)
        ret_extent->compressed_len =
            (uint32_t)((compressed << SECTOR_BITS) - packed->word[1] % SECTOR_SIZE);
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
