/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents become entries; neighbours are one entry where QEMU makes them one.  A map may have
 * millions of them: who has no need of all at once takes them one by one.
 */
#include "map_json.h"

#include "json_memory.h"

#define BATCH 256

/* -- Entries -------------------------------------------------------------------------------- */

struct walk {
    uint32_t depth;
    cairn_map_fn fn;
    void *ctx;
    struct extent last; /* not handed out yet, if len is not 0 */
};

/* QEMU shows a run of compressed clusters as one entry. */
static bool one_entry(const struct extent *a, const struct extent *b)
{
    return extent_mergeable(a, b) ||
           (a->kind == EXTENT_COMPRESSED && b->kind == a->kind && b->layer == a->layer &&
            a->guest_off + a->len == b->guest_off);
}

static int end_last(struct walk *w, struct cairn_error *err)
{
    const struct extent *e = &w->last;
    const struct cairn_map_entry entry = {
        .start = e->guest_off,
        .length = e->len,
        .offset = extent_kind_linear(e->kind) ? e->host_off : 0,
        .depth = w->depth - 1 - e->layer,
        .present = e->kind != EXTENT_HOLE,
        .zero = extent_reads_zero(e->kind),
        .has_offset = extent_kind_linear(e->kind),
    };

    if (e->len > 0 && w->fn(w->ctx, &entry) != 0)
        return error_set(err, CAIRN_E_CANCELLED, "the map was cancelled");
    return CAIRN_OK;
}

static int add(struct walk *w, const struct extent *e, struct cairn_error *err)
{
    int ret;

    if (w->last.len > 0 && one_entry(&w->last, e)) {
        w->last.len += e->len;
        return CAIRN_OK;
    }
    ret = end_last(w, err);
    w->last = *e;
    return ret;
}

int map_each(const struct local_index *index, cairn_map_fn fn, void *ctx, struct cairn_error *err)
{
    const struct index_slices slices = local_index_slices(index);
    const struct index_l1 *l1 = index->l1;
    struct walk w = {.depth = l1->depth, .fn = fn, .ctx = ctx};
    struct extent batch[BATCH];
    size_t nr;

    for (uint64_t at = 0; at < l1->virtual_size;) {
        int ret = chain_map(l1, &slices, at, l1->virtual_size - at, batch, BATCH, &nr, err);

        for (size_t i = 0; ret == CAIRN_OK && i < nr; i++)
            ret = add(&w, &batch[i], err);
        if (ret != CAIRN_OK)
            return ret;
        at = batch[nr - 1].guest_off + batch[nr - 1].len;
    }
    return end_last(&w, err);
}

/* -- As JSON -------------------------------------------------------------------------------- */

struct writing {
    uint32_t depth;
    const struct digest *layers;
    json_t *list;
};

static json_t *entry_to_json(const struct writing *w, const struct cairn_map_entry *e)
{
    json_t *json = json_pack("{s:I, s:I, s:I, s:b, s:b, s:b}", "start", (json_int_t)e->start,
                             "length", (json_int_t)e->length, "depth", (json_int_t)e->depth,
                             "present", (int)e->present, "zero", (int)e->zero, "data", !e->zero);
    char digest[DIGEST_STR_MAX];

    if (json && e->has_offset)
        json_object_set_new(json, "offset", json_integer((json_int_t)e->offset));
    if (json && w->layers && e->present)
        json_object_set_new(
            json, "layer", json_string(digest_format(&w->layers[w->depth - 1 - e->depth], digest)));
    return json;
}

static int append_json(void *ctx, const struct cairn_map_entry *e)
{
    struct writing *w = ctx;

    return json_array_append_new(w->list, entry_to_json(w, e));
}

int map_to_json(const struct local_index *index, const struct digest *layers, char **ret_json,
                struct cairn_error *err)
{
    struct writing w = {.depth = index->l1->depth, .layers = layers};
    int ret;

    json_memory_begin();
    w.list = json_array();
    ret = map_each(index, append_json, &w, err);
    if (ret == CAIRN_OK)
        ret = json_memory_dump(w.list, JSON_COMPACT, ret_json, err);
    else if (ret == CAIRN_E_CANCELLED)
        ret = error_no_memory(err, "JSON");
    json_decref(w.list);
    return ret;
}
