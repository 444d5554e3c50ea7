/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents become entries of a list; neighbours are one entry where QEMU makes them one.
 */
#include "map_json.h"

#include <jansson.h>

#define BATCH 256

struct writing {
    const struct local_index *index;
    const struct digest *layers;
    json_t *list;
    struct extent last; /* not in the list yet, if len is not 0 */
};

static json_t *entry(const struct writing *w, const struct extent *e)
{
    json_t *json =
        json_pack("{s:I, s:I, s:I, s:b, s:b, s:b}", "start", (json_int_t)e->guest_off, "length",
                  (json_int_t)e->len, "depth", (json_int_t)(w->index->l1->depth - 1 - e->layer),
                  "present", e->kind != EXTENT_HOLE, "zero", (int)extent_reads_zero(e->kind),
                  "data", (int)!extent_reads_zero(e->kind));
    char digest[DIGEST_STR_MAX];

    if (json && extent_kind_linear(e->kind))
        json_object_set_new(json, "offset", json_integer((json_int_t)e->host_off));
    if (json && w->layers && e->kind != EXTENT_HOLE)
        json_object_set_new(json, "layer",
                            json_string(digest_format(&w->layers[e->layer], digest)));
    return json;
}

/* QEMU shows a run of compressed clusters as one entry. */
static bool one_entry(const struct extent *a, const struct extent *b)
{
    return extent_mergeable(a, b) ||
           (a->kind == EXTENT_COMPRESSED && b->kind == a->kind && b->layer == a->layer &&
            a->guest_off + a->len == b->guest_off);
}

static int end_last(struct writing *w, struct cairn_error *err)
{
    if (w->last.len > 0 && json_array_append_new(w->list, entry(w, &w->last)) != 0)
        return error_no_memory(err, "JSON");
    return CAIRN_OK;
}

static int add(struct writing *w, const struct extent *e, struct cairn_error *err)
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

static int add_all(struct writing *w, struct cairn_error *err)
{
    const struct index_slices slices = local_index_slices(w->index);
    const struct index_l1 *l1 = w->index->l1;
    struct extent batch[BATCH];
    size_t nr;

    for (uint64_t at = 0; at < l1->virtual_size;) {
        int ret = chain_map(l1, &slices, at, l1->virtual_size - at, batch, BATCH, &nr, err);

        for (size_t i = 0; ret == CAIRN_OK && i < nr; i++)
            ret = add(w, &batch[i], err);
        if (ret != CAIRN_OK)
            return ret;
        at = batch[nr - 1].guest_off + batch[nr - 1].len;
    }
    return end_last(w, err);
}

int map_to_json(const struct local_index *index, const struct digest *layers, char **ret_json,
                struct cairn_error *err)
{
    struct writing w = {.index = index, .layers = layers, .list = json_array()};
    int ret = w.list ? add_all(&w, err) : error_no_memory(err, "JSON");

    if (ret == CAIRN_OK) {
        *ret_json = json_dumps(w.list, JSON_COMPACT);
        ret = *ret_json ? CAIRN_OK : error_no_memory(err, "JSON");
    }
    json_decref(w.list);
    return ret;
}
