/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking up ranges: guest ranges to extents.
 *
 * One look-up costs a shift, an L1 entry and a search of at most four nodes in a slice's tree;
 * walking on from there costs what is handed out.  The depth of the chain does not matter: also
 * the layer that answers a hole comes from a search over the ends that the L1 precomputed.
 */
#include <inttypes.h>

#include "chain_index_internal.h"
#include "checked.h"

/* Where extents go: the caller's array, neighbours merged. */
struct sink {
    struct extent *extents;
    size_t nr, max;
    bool full; /* an extent did not fit */
};

static void sink_put(struct sink *sink, const struct extent *e)
{
    if (sink->nr > 0 && extent_mergeable(&sink->extents[sink->nr - 1], e))
        sink->extents[sink->nr - 1].len += e->len;
    else if (sink->nr < sink->max)
        sink->extents[sink->nr++] = *e;
    else
        sink->full = true;
}

/* The number of ends at or before guest_off. */
static uint32_t ends_before(const struct index_l1 *l1, uint64_t guest_off)
{
    uint32_t low = 0, high = l1->nr_ends;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (l1->ends[middle].virtual_size <= guest_off)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct extent index_hole(const struct index_l1 *l1, uint64_t start, uint64_t end)
{
    uint32_t next = ends_before(l1, start);
    uint64_t to = next < l1->nr_ends ? min_u64(end, l1->ends[next].virtual_size) : end;

    return (struct extent){
        .guest_off = start,
        .len = to - start,
        .layer = (uint16_t)(next > 0 ? l1->ends[next - 1].layer : 0),
        .kind = EXTENT_HOLE,
    };
}

/* Nothing is in [start, end): say which layer ends the search, piece by piece. */
static void put_hole(const struct index_l1 *l1, uint64_t start, uint64_t end, struct sink *sink)
{
    while (start < end && !sink->full) {
        struct extent hole = index_hole(l1, start, end);

        sink_put(sink, &hole);
        start += hole.len;
    }
}

/* Cut e, which overlaps it, down to [start, end). */
static void trim(struct extent *e, uint64_t start, uint64_t end)
{
    if (e->guest_off < start)
        extent_trim_front(e, start - e->guest_off);
    e->len = min_u64(e->len, end - e->guest_off);
}

/* Put what [start, end), a part of slice slice_nr, holds. */
static void put_slice(const struct index_l1 *l1, const struct index_slice *slice, uint32_t slice_nr,
                      uint64_t start, uint64_t end, struct sink *sink)
{
    uint32_t sector = (uint32_t)(start % INDEX_SLICE_SIZE >> SECTOR_BITS);

    for (uint32_t i = slice_find(slice, sector); i < slice->nr_extents && !sink->full; i++) {
        const struct index_extent packed = slice_extent(slice, i);
        struct extent e;

        index_extent_unpack(&packed, slice_nr, &e);
        if (e.guest_off >= end)
            break;
        trim(&e, start, end);
        put_hole(l1, start, e.guest_off, sink);
        if (!sink->full)
            sink_put(sink, &e);
        start = e.guest_off + e.len;
    }
    if (!sink->full)
        put_hole(l1, start, end, sink);
}

/* The end of the run of slices that begins at guest_off and of which no layer has anything. */
static uint64_t end_of_nothing(const struct index_l1 *l1, uint64_t guest_off, uint64_t end)
{
    uint64_t slice_nr = guest_off >> INDEX_SLICE_BITS;

    while (slice_nr << INDEX_SLICE_BITS < end && l1->slices[slice_nr] == INDEX_NO_SLICE)
        slice_nr++;
    return min_u64(slice_nr << INDEX_SLICE_BITS, end);
}

/* Put the first part of [start, end) that one step can answer; its end becomes *ret_next. */
static int put_next(const struct index_l1 *l1, const struct index_slices *slices, uint64_t start,
                    uint64_t end, struct sink *sink, uint64_t *ret_next, struct cairn_error *err)
{
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    uint32_t slice_nr = (uint32_t)(start >> INDEX_SLICE_BITS);
    int rc;

    if (l1->slices[slice_nr] == INDEX_NO_SLICE) {
        *ret_next = end_of_nothing(l1, start, end);
        put_hole(l1, start, *ret_next, sink);
        return CAIRN_OK;
    }
    rc = slices->get(slices->ctx, l1->slices[slice_nr], slice_nr, &slice, err);
    if (rc < 0)
        return rc;
    *ret_next = min_u64(end, (uint64_t)(slice_nr + 1) << INDEX_SLICE_BITS);
    put_slice(l1, slice, slice_nr, start, *ret_next, sink);
    return CAIRN_OK;
}

int chain_map(const struct index_l1 *l1, const struct index_slices *slices, uint64_t guest_off,
              uint64_t len, struct extent *ret_extents, size_t max, size_t *ret_nr,
              struct cairn_error *err)
{
    struct sink sink = {.extents = ret_extents, .max = max};
    uint64_t end = guest_off + len;

    if (!range_in(guest_off, len, l1->virtual_size))
        return error_set(err, CAIRN_E_USAGE,
                         "range of %" PRIu64 " bytes at %" PRIu64
                         " reaches past the virtual size %" PRIu64,
                         len, guest_off, l1->virtual_size);
    while (guest_off < end && !sink.full) {
        int rc = put_next(l1, slices, guest_off, end, &sink, &guest_off, err);

        if (rc < 0)
            return rc;
    }
    *ret_nr = sink.nr;
    return CAIRN_OK;
}
