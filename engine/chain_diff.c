/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What differs between two chains, told from their indexes alone: a range is the same if both
 * sides take it from the same bytes of the same layer, or read it as zeros.  Bytes are never
 * compared, so a range that was rewritten with what it held counts as different.
 */
#include "chain_index_internal.h"
#include "checked.h"

#define WINDOW 64 /* extents fetched at a time */

/* One chain, walked from its start to its end and then on in zeros. */
struct side {
    const struct index_l1 *l1;
    const struct index_slices *slices;
    const struct digest *layers;
    struct extent window[WINDOW];
    size_t nr, at;
};

struct diff {
    struct side a, b;
    uint32_t nr_common;  /* layers at the bottom that are the same on both sides */
    struct extent found; /* not reported yet, for its successor may run on; len 0: none */
    layer_extent_fn fn;
    void *arg;
};

/* -- One side ---------------------------------------------------------------------------------- */

/* The extent at guest_off, from there on, not beyond end; guest_off never goes back. */
static int side_at(struct side *side, uint64_t guest_off, uint64_t end, struct extent *ret_extent,
                   struct cairn_error *err)
{
    uint64_t size = side->l1->virtual_size;
    struct extent e;

    if (guest_off >= size) {
        *ret_extent = (struct extent){.guest_off = guest_off,
                                      .len = end - guest_off,
                                      .layer = (uint16_t)(side->l1->depth - 1),
                                      .kind = EXTENT_ZERO};
        return CAIRN_OK;
    }
    while (side->at < side->nr &&
           side->window[side->at].guest_off + side->window[side->at].len <= guest_off)
        side->at++;
    if (side->at == side->nr) {
        int rc = chain_map(side->l1, side->slices, guest_off, min_u64(size, end) - guest_off,
                           side->window, WINDOW, &side->nr, err);

        if (rc < 0)
            return rc;
        side->at = 0;
    }
    e = side->window[side->at];
    if (e.guest_off < guest_off)
        extent_trim_front(&e, guest_off - e.guest_off);
    e.len = min_u64(e.len, end - guest_off);
    *ret_extent = e;
    return CAIRN_OK;
}

static uint16_t side_slice(const struct side *side, uint64_t slice_nr)
{
    return slice_nr < side->l1->nr_slices ? side->l1->slices[slice_nr] : INDEX_NO_SLICE;
}

/* -- Both -------------------------------------------------------------------------------------- */

static uint32_t count_common(const struct side *a, const struct side *b)
{
    uint64_t most = min_u64(a->l1->depth, b->l1->depth);
    uint32_t nr = 0;

    while (nr < most && digest_equal(&a->layers[nr], &b->layers[nr]))
        nr++;
    return nr;
}

/* Do both sides show the very same slice, made by a prefix that they have in common? */
static bool same_slice(const struct diff *diff, uint64_t slice_nr)
{
    uint16_t a = side_slice(&diff->a, slice_nr), b = side_slice(&diff->b, slice_nr);

    return a == b && (a == INDEX_NO_SLICE || a < diff->nr_common);
}

static bool same_layer(const struct diff *diff, uint16_t a, uint16_t b)
{
    if (a == b && a < diff->nr_common)
        return true;
    return digest_equal(&diff->a.layers[a], &diff->b.layers[b]);
}

/* a and b begin at the same guest offset. */
static bool same_content(const struct diff *diff, const struct extent *a, const struct extent *b)
{
    if (extent_reads_zero(a->kind) || extent_reads_zero(b->kind))
        return extent_reads_zero(a->kind) && extent_reads_zero(b->kind);
    return a->kind == b->kind && a->host_off == b->host_off && same_layer(diff, a->layer, b->layer);
}

static int report_found(struct diff *diff, struct cairn_error *err)
{
    struct extent e = diff->found;

    diff->found.len = 0;
    return e.len > 0 ? diff->fn(diff->arg, &e, err) : CAIRN_OK;
}

static int add_found(struct diff *diff, const struct extent *e, struct cairn_error *err)
{
    int rc;

    if (diff->found.len > 0 && extent_mergeable(&diff->found, e)) {
        diff->found.len += e->len;
        return CAIRN_OK;
    }
    rc = report_found(diff, err);
    diff->found = *e;
    return rc;
}

static int compare(struct diff *diff, uint64_t guest_off, uint64_t end, struct cairn_error *err)
{
    while (guest_off < end) {
        struct extent a, b;
        int rc = side_at(&diff->a, guest_off, end, &a, err);

        if (rc == CAIRN_OK)
            rc = side_at(&diff->b, guest_off, end, &b, err);
        if (rc < 0)
            return rc;
        b.len = min_u64(a.len, b.len);
        if (!same_content(diff, &a, &b))
            rc = add_found(diff, &b, err);
        if (rc != CAIRN_OK)
            return rc;
        guest_off += b.len;
    }
    return CAIRN_OK;
}

static int diff_range(struct diff *diff, uint64_t guest_off, uint64_t len, struct cairn_error *err)
{
    uint64_t end = guest_off + len;

    while (guest_off < end) {
        uint64_t slice_nr = guest_off >> INDEX_SLICE_BITS;
        uint64_t slice_end = min_u64(end, (slice_nr + 1) << INDEX_SLICE_BITS);
        int rc = CAIRN_OK;

        if (!same_slice(diff, slice_nr))
            rc = compare(diff, guest_off, slice_end, err);
        if (rc != CAIRN_OK)
            return rc;
        guest_off = slice_end;
    }
    return report_found(diff, err);
}

int chain_diff_range(const struct index_l1 *a, const struct index_slices *a_slices,
                     const struct digest *a_layers, const struct index_l1 *b,
                     const struct index_slices *b_slices, const struct digest *b_layers,
                     uint64_t guest_off, uint64_t len, layer_extent_fn fn, void *arg,
                     struct cairn_error *err)
{
    struct diff diff = {
        .a = {.l1 = a, .slices = a_slices, .layers = a_layers},
        .b = {.l1 = b, .slices = b_slices, .layers = b_layers},
        .fn = fn,
        .arg = arg,
    };

    diff.nr_common = count_common(&diff.a, &diff.b);
    return diff_range(&diff, guest_off, len, err);
}

int chain_diff_states(const struct index_l1 *a, const struct index_slices *a_slices,
                      const struct index_l1 *b, const struct index_slices *b_slices,
                      const struct digest *layers, uint32_t nr_below, layer_extent_fn fn, void *arg,
                      struct cairn_error *err)
{
    struct diff diff = {
        .a = {.l1 = a, .slices = a_slices, .layers = layers},
        .b = {.l1 = b, .slices = b_slices, .layers = layers},
        .nr_common = nr_below,
        .fn = fn,
        .arg = arg,
    };

    return diff_range(&diff, 0, max_u64(a->virtual_size, b->virtual_size), err);
}

int chain_diff(const struct index_l1 *a, const struct index_slices *a_slices,
               const struct digest *a_layers, const struct index_l1 *b,
               const struct index_slices *b_slices, const struct digest *b_layers,
               layer_extent_fn fn, void *arg, struct cairn_error *err)
{
    return chain_diff_range(a, a_slices, a_layers, b, b_slices, b_layers, 0,
                            max_u64(a->virtual_size, b->virtual_size), fn, arg, err);
}
