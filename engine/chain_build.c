/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building the chain index of prefix k from that of prefix k-1 and the extents of layer k.
 *
 * The layer's extents arrive in guest order and are gathered slice by slice.  Each slice that
 * they touch is merged, in one linear pass, with the parent's slice beneath; everything else is
 * shared with the parent by copying its L1 entries.  Where the layer makes the disk smaller, the
 * slice that the new end lies in is clipped and rewritten, and the slices behind it drop out of
 * the L1: a later layer that grows the disk again shows holes there, never what was lost.
 */
#include <inttypes.h>
#include <string.h>

#include "chain_index_internal.h"
#include "checked.h"

struct packed_list {
    struct index_extent *extents;
    uint32_t nr, room;
};

struct builder {
    const struct index_l1 *parent; /* NULL for the base */
    const struct index_slices *parent_slices;
    const struct digest *layer_digest;
    index_emit_fn emit;
    void *emit_arg;

    struct index_l1 *l1;       /* in the making */
    uint16_t ordinal;          /* of the layer */
    uint64_t guest_off;        /* behind the last extent that arrived */
    uint32_t slice_nr;         /* that own belongs to */
    struct packed_list own;    /* the layer's extents in that slice */
    struct packed_list merged; /* with the parent's beneath */
};

/* -- Overlay of one slice ---------------------------------------------------------------------- */

/* A slice has at most SLICE_SECTORS extents, so neither sum nor size can wrap round. */
static int list_reserve(struct packed_list *list, uint32_t room, struct cairn_error *err)
{
    struct index_extent *extents;

    if (room <= list->room)
        return CAIRN_OK;
    room = (uint32_t)max_u64(room, 2 * (uint64_t)list->room);
    extents = realloc(list->extents, room * sizeof(*extents));
    if (!extents)
        return error_no_memory(err, "a slice of a chain index");
    list->extents = extents;
    list->room = room;
    return CAIRN_OK;
}

static void list_append(struct packed_list *list, struct index_extent e)
{
    struct index_extent *last = list->nr > 0 ? &list->extents[list->nr - 1] : NULL;

    if (last && packed_mergeable(last, &e))
        *last = packed_cut(*last, packed_start(last), packed_end(&e));
    else
        list->extents[list->nr++] = e;
}

/*
 * Append what lower shows in sectors [start, end), going on with its extent *i, which moves to the
 * first one that may show behind end.
 */
static void append_lower(const struct index_slice *lower, uint32_t *i, uint32_t start, uint32_t end,
                         struct packed_list *out)
{
    for (; *i < lower->nr_extents; ++*i) {
        const struct index_extent e = slice_extent(lower, *i);
        uint32_t from = packed_start(&e) > start ? packed_start(&e) : start;
        uint32_t to = packed_end(&e) < end ? packed_end(&e) : end;

        if (from < to)
            list_append(out, packed_cut(e, from, to));
        if (packed_end(&e) > end)
            break;
    }
}

/* own on top of the first limit sectors of lower. */
static int overlay(const struct index_slice *lower, uint32_t limit, const struct packed_list *own,
                   struct packed_list *out, struct cairn_error *err)
{
    uint32_t sector = 0, next_lower = 0;
    /* An extent of own splits at most one of lower. */
    int rc = list_reserve(out, lower->nr_extents + 2 * own->nr, err);

    if (rc < 0)
        return rc;
    out->nr = 0;
    for (uint32_t i = 0; i < own->nr; i++) {
        uint32_t start = packed_start(&own->extents[i]);

        append_lower(lower, &next_lower, sector, start < limit ? start : limit, out);
        list_append(out, own->extents[i]);
        sector = packed_end(&own->extents[i]);
    }
    append_lower(lower, &next_lower, sector, limit, out);
    return CAIRN_OK;
}

/* -- Slices ------------------------------------------------------------------------------------ */

static const struct index_slice empty_slice;

/* The slice that the parent shows, NULL if none; a reference is handed over. */
static int parent_slice(const struct builder *b, uint32_t slice_nr, struct index_slice **ret_slice,
                        struct cairn_error *err)
{
    *ret_slice = NULL;
    if (!b->parent || slice_nr >= b->parent->nr_slices ||
        b->parent->slices[slice_nr] == INDEX_NO_SLICE)
        return CAIRN_OK;
    return b->parent_slices->get(b->parent_slices->ctx, b->parent->slices[slice_nr], slice_nr,
                                 ret_slice, err);
}

/* Sectors of the slice that both the parent and the new prefix cover. */
static uint32_t shared_sectors(const struct builder *b, uint32_t slice_nr)
{
    uint64_t start = (uint64_t)slice_nr << INDEX_SLICE_BITS;
    uint64_t size = b->parent ? min_u64(b->parent->virtual_size, b->l1->virtual_size) : 0;

    if (size <= start)
        return 0;
    return (uint32_t)(min_u64(size - start, INDEX_SLICE_SIZE) >> SECTOR_BITS);
}

/* What one slice adds to the sums over the whole chain. */
static struct index_totals slice_totals(const struct index_slice *slice)
{
    struct index_totals totals = {.nr_extents = slice->nr_extents};

    for (uint32_t i = 0; i < slice->nr_extents; i++) {
        const struct index_extent e = slice_extent(slice, i);
        uint64_t len = (uint64_t)(packed_end(&e) - packed_start(&e)) << SECTOR_BITS;

        if (extent_reads_zero(packed_kind(&e)))
            totals.zero_bytes += len;
        else
            totals.data_bytes += len;
    }
    return totals;
}

static void totals_replace(struct index_totals *totals, const struct index_slice *old_slice,
                           const struct index_slice *new_slice)
{
    struct index_totals gone = slice_totals(old_slice), come = slice_totals(new_slice);

    totals->nr_extents += come.nr_extents - gone.nr_extents;
    totals->data_bytes += come.data_bytes - gone.data_bytes;
    totals->zero_bytes += come.zero_bytes - gone.zero_bytes;
}

/* Make the slice that own has been gathered for; own may be empty. */
static int make_slice(struct builder *b, struct cairn_error *err)
{
    CLEANUP(index_slice_unref_p) struct index_slice *old_slice = NULL;
    CLEANUP(index_slice_unref_p) struct index_slice *new_slice = NULL;
    const struct index_slice *lower = &empty_slice;
    int rc = parent_slice(b, b->slice_nr, &old_slice, err);

    if (rc < 0)
        return rc;
    if (old_slice)
        lower = old_slice;
    rc = overlay(lower, shared_sectors(b, b->slice_nr), &b->own, &b->merged, err);
    if (rc == CAIRN_OK)
        rc = index_slice_new(b->merged.extents, b->merged.nr, &new_slice, err);
    if (rc < 0)
        return rc;
    totals_replace(&b->l1->totals, lower, new_slice);
    b->l1->slices[b->slice_nr] = b->ordinal;
    b->own.nr = 0;
    return b->emit(b->emit_arg, b->slice_nr, new_slice, err);
}

/* -- The layer's extents ----------------------------------------------------------------------- */

static int check_extent(const struct builder *b, const struct extent *e, struct cairn_error *err)
{
    const char *flaw = index_extent_flaw(e, &b->l1->layers[b->ordinal]);
    char text[DIGEST_STR_MAX];

    if (!flaw && e->guest_off < b->guest_off)
        flaw = "not in guest order";
    if (!flaw)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CORRUPT,
                     "layer %s: extent of %" PRIu64 " bytes at guest offset 0x%" PRIx64
                     " (kind %u, host offset 0x%" PRIx64 "): %s",
                     digest_format(b->layer_digest, text), e->len, e->guest_off, e->kind,
                     e->host_off, flaw);
}

/* Gather the part of an extent that lies in one slice. */
static int add_piece(struct builder *b, const struct extent *e, struct cairn_error *err)
{
    uint32_t slice_nr = (uint32_t)(e->guest_off >> INDEX_SLICE_BITS);
    int rc = CAIRN_OK;

    if (slice_nr != b->slice_nr && b->own.nr > 0)
        rc = make_slice(b, err);
    if (rc == CAIRN_OK)
        rc = list_reserve(&b->own, b->own.nr + 1, err);
    if (rc < 0)
        return rc;
    b->slice_nr = slice_nr;
    list_append(&b->own, index_extent_pack(e));
    return CAIRN_OK;
}

static int add_extent(void *arg, const struct extent *extent, struct cairn_error *err)
{
    struct builder *b = arg;
    struct extent rest = *extent;
    int rc = check_extent(b, extent, err);

    rest.layer = b->ordinal;
    while (rc == CAIRN_OK) {
        struct extent piece = rest;

        piece.len = min_u64(rest.len, INDEX_SLICE_SIZE - rest.guest_off % INDEX_SLICE_SIZE);
        rc = add_piece(b, &piece, err);
        if (piece.len == rest.len)
            break;
        extent_trim_front(&rest, piece.len);
    }
    if (!extent_reads_zero(extent->kind))
        b->l1->totals.layers_bytes += extent->len;
    b->guest_off = extent->guest_off + extent->len;
    return rc;
}

/* -- A layer that is smaller than the disk was ------------------------------------------------- */

static int clip_boundary_slice(struct builder *b, struct cairn_error *err)
{
    uint32_t last = b->l1->nr_slices - 1;

    if (is_aligned(b->l1->virtual_size, INDEX_SLICE_SIZE) || b->l1->slices[last] == b->ordinal ||
        b->l1->slices[last] == INDEX_NO_SLICE)
        return CAIRN_OK;
    b->slice_nr = last;
    return make_slice(b, err);
}

static int drop_slices(struct builder *b, struct cairn_error *err)
{
    for (uint32_t i = b->l1->nr_slices; i < b->parent->nr_slices; i++) {
        CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
        int rc = parent_slice(b, i, &slice, err);

        if (rc < 0)
            return rc;
        if (slice)
            totals_replace(&b->l1->totals, slice, &empty_slice);
    }
    return CAIRN_OK;
}

static int shrink(struct builder *b, struct cairn_error *err)
{
    int rc;

    if (!b->parent || b->parent->virtual_size <= b->l1->virtual_size)
        return CAIRN_OK;
    rc = clip_boundary_slice(b, err);
    return rc < 0 ? rc : drop_slices(b, err);
}

/* -- The whole --------------------------------------------------------------------------------- */

static int check_layer(const struct index_l1 *parent, const struct layer_attr *attr,
                       const struct digest *layer_digest, struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];

    digest_format(layer_digest, text);
    if (attr->virtual_size > CHAIN_VIRTUAL_SIZE_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "layer %s: virtual size %" PRIu64 " is larger than %" PRIu64, text,
                         attr->virtual_size, CHAIN_VIRTUAL_SIZE_MAX);
    if (parent && parent->depth >= CHAIN_DEPTH_MAX)
        return error_set(err, CAIRN_E_LIMIT, "layer %s: its chain has %" PRIu32 " layers already",
                         text, parent->depth);
    if (parent && attr->format == LAYER_RAW)
        return error_set(err, CAIRN_E_CORRUPT, "layer %s: raw, but not the base of its chain",
                         text);
    return CAIRN_OK;
}

/* The new L1, with everything that it takes over from the parent. */
static int start_l1(const struct index_l1 *parent, const struct layer_attr *attr,
                    const struct digest *layer_digest, struct index_l1 **ret_l1,
                    struct cairn_error *err)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL;
    uint32_t below = parent ? parent->depth : 0;
    int rc = index_l1_new(below + 1, attr->virtual_size, &l1, err);

    if (rc < 0)
        return rc;
    digest_chain(parent ? &parent->chain_id : NULL, layer_digest, &l1->chain_id);
    l1->layers[below] = *attr;
    if (parent) {
        uint64_t shared = min_u64(parent->nr_slices, l1->nr_slices);

        memcpy(l1->layers, parent->layers, below * sizeof(*l1->layers));
        memcpy(l1->slices, parent->slices, shared * sizeof(*l1->slices));
        l1->totals = parent->totals;
    }
    rc = index_l1_set_ends(l1, err);
    if (rc == CAIRN_OK)
        *ret_l1 = steal_ptr(l1);
    return rc;
}

int chain_index_overlay(const struct index_l1 *parent, const struct index_slices *parent_slices,
                        const struct layer_attr *attr, const struct digest *layer_digest,
                        index_feed_fn feed, void *feed_arg, index_emit_fn emit, void *emit_arg,
                        struct index_l1 **ret_l1, struct cairn_error *err)
{
    struct builder b = {
        .parent = parent,
        .parent_slices = parent_slices,
        .layer_digest = layer_digest,
        .emit = emit,
        .emit_arg = emit_arg,
        .ordinal = (uint16_t)(parent ? parent->depth : 0),
    };
    int rc = check_layer(parent, attr, layer_digest, err);

    if (rc == CAIRN_OK)
        rc = start_l1(parent, attr, layer_digest, &b.l1, err);
    if (rc == CAIRN_OK)
        rc = feed(feed_arg, add_extent, &b, err);
    if (rc == CAIRN_OK && b.own.nr > 0)
        rc = make_slice(&b, err);
    if (rc == CAIRN_OK)
        rc = shrink(&b, err);
    if (rc == CAIRN_OK)
        *ret_l1 = steal_ptr(b.l1);
    index_l1_unref(b.l1);
    free(b.own.extents);
    free(b.merged.extents);
    return rc;
}

static int feed_layer(void *feed_arg, layer_extent_fn fn, void *arg, struct cairn_error *err)
{
    return layer_scan(feed_arg, fn, arg, err);
}

int chain_index_build(const struct index_l1 *parent, const struct index_slices *parent_slices,
                      struct layer *layer, const struct digest *layer_digest, index_emit_fn emit,
                      void *emit_arg, struct index_l1 **ret_l1, struct cairn_error *err)
{
    return chain_index_overlay(parent, parent_slices, layer_get_attr(layer), layer_digest,
                               feed_layer, layer, emit, emit_arg, ret_l1, err);
}
