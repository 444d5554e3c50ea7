/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a local image and its backing chain map, as `qemu-img map --output=json` says it.
 *
 * The chain index is built in memory, prefix upon prefix, as the service does; only the slices in
 * force are kept.  A new prefix's slices take the place of the old ones when it is complete, for
 * the builder reads those of its parent until then.
 */
#include <jansson.h>
#include <string.h>

#include "cairn.h"
#include "chain_index.h"
#include "local_chain.h"

#define BATCH 256

struct map {
    struct index_l1 *l1;
    uint32_t nr_slices;           /* of both arrays */
    struct index_slice **slices;  /* in force for l1 */
    struct index_slice **emitted; /* of the prefix in the making */
};

static void map_release(struct map *map)
{
    for (uint32_t i = 0; i < map->nr_slices; i++) {
        if (map->slices[i])
            index_slice_unref(map->slices[i]);
        if (map->emitted[i])
            index_slice_unref(map->emitted[i]);
    }
    free(map->slices);
    free(map->emitted);
    if (map->l1)
        index_l1_unref(map->l1);
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    const struct map *map = ctx;

    (void)ordinal; /* the map holds what is in force, which is what is asked for */
    if (slice >= map->nr_slices || !map->slices[slice])
        return error_set(err, CAIRN_E_NOT_FOUND, "slice %u of the chain is not in memory", slice);
    *ret_slice = index_slice_ref(map->slices[slice]);
    return CAIRN_OK;
}

static int keep_slice(void *ctx, uint32_t slice_nr, struct index_slice *slice,
                      struct cairn_error *err)
{
    struct map *map = ctx;

    if (slice_nr >= map->nr_slices)
        return error_set(err, CAIRN_E_CORRUPT, "slice %u lies outside of the disk", slice_nr);
    if (map->emitted[slice_nr])
        index_slice_unref(map->emitted[slice_nr]);
    map->emitted[slice_nr] = index_slice_ref(slice);
    return CAIRN_OK;
}

static void take_emitted(struct map *map)
{
    for (uint32_t i = 0; i < map->nr_slices; i++) {
        if (!map->emitted[i])
            continue;
        if (map->slices[i])
            index_slice_unref(map->slices[i]);
        map->slices[i] = map->emitted[i];
        map->emitted[i] = NULL;
    }
}

static int grow(struct map *map, uint64_t virtual_size, struct cairn_error *err)
{
    uint32_t nr = (uint32_t)((virtual_size + INDEX_SLICE_SIZE - 1) >> INDEX_SLICE_BITS);
    size_t added;
    void *slices, *emitted;

    if (nr <= map->nr_slices)
        return CAIRN_OK;
    added = (nr - map->nr_slices) * sizeof(map->slices[0]);
    slices = realloc(map->slices, nr * sizeof(map->slices[0]));
    if (slices)
        map->slices = slices;
    emitted = realloc(map->emitted, nr * sizeof(map->emitted[0]));
    if (emitted)
        map->emitted = emitted;
    if (!slices || !emitted)
        return error_no_memory(err, "the chain's index");
    memset(map->slices + map->nr_slices, 0, added);
    memset(map->emitted + map->nr_slices, 0, added);
    map->nr_slices = nr;
    return CAIRN_OK;
}

/* One more layer on top.  Its digest does not matter to the map: the number of the layer serves. */
static int add_layer(struct map *map, const struct local_layer *local, uint32_t ordinal,
                     struct cairn_error *err)
{
    const struct index_slices parent_slices = {get_slice, map};
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct index_l1 *l1;
    struct digest digest;
    int ret = local_layer_open(local, &src, err);

    digest_of(&ordinal, sizeof(ordinal), &digest);
    if (ret == CAIRN_OK)
        ret = layer_open(src, local->format, &layer, err);
    if (ret == CAIRN_OK)
        ret = grow(map, layer_get_attr(layer)->virtual_size, err);
    if (ret == CAIRN_OK)
        ret = chain_index_build(map->l1, map->l1 ? &parent_slices : NULL, layer, &digest,
                                keep_slice, map, &l1, err);
    if (ret != CAIRN_OK)
        return ret;
    take_emitted(map);
    if (map->l1)
        index_l1_unref(map->l1);
    map->l1 = l1;
    return CAIRN_OK;
}

/* -- As JSON -------------------------------------------------------------------------------- */

static json_t *extent_to_json(const struct extent *e, uint32_t depth)
{
    json_t *json =
        json_pack("{s:I, s:I, s:I, s:b, s:b, s:b}", "start", (json_int_t)e->guest_off, "length",
                  (json_int_t)e->len, "depth", (json_int_t)(depth - 1 - e->layer), "present",
                  e->kind != EXTENT_HOLE, "zero", (int)extent_reads_zero(e->kind), "data",
                  (int)!extent_reads_zero(e->kind));

    if (json && extent_kind_linear(e->kind))
        json_object_set_new(json, "offset", json_integer((json_int_t)e->host_off));
    return json;
}

/* QEMU shows a run of compressed clusters as one entry. */
static bool one_entry(const struct extent *a, const struct extent *b)
{
    return extent_mergeable(a, b) ||
           (a->kind == EXTENT_COMPRESSED && b->kind == a->kind && b->layer == a->layer &&
            a->guest_off + a->len == b->guest_off);
}

static int map_to_json(const struct map *map, json_t *list, struct cairn_error *err)
{
    struct index_slices slices = {get_slice, (void *)(uintptr_t)map};
    struct extent batch[BATCH], last = {0};
    size_t nr;

    for (uint64_t at = 0; at < map->l1->virtual_size;) {
        int ret =
            chain_map(map->l1, &slices, at, map->l1->virtual_size - at, batch, BATCH, &nr, err);

        if (ret != CAIRN_OK)
            return ret;
        for (size_t i = 0; i < nr; i++) {
            if (last.len && one_entry(&last, &batch[i])) {
                last.len += batch[i].len;
                continue;
            }
            if (last.len && json_array_append_new(list, extent_to_json(&last, map->l1->depth)) != 0)
                return error_no_memory(err, "JSON");
            last = batch[i];
        }
        at = batch[nr - 1].guest_off + batch[nr - 1].len;
    }
    if (last.len && json_array_append_new(list, extent_to_json(&last, map->l1->depth)) != 0)
        return error_no_memory(err, "JSON");
    return CAIRN_OK;
}

static int list_to_text(const struct map *map, char **ret_json, struct cairn_error *err)
{
    json_t *list = json_array();
    int ret = list ? map_to_json(map, list, err) : error_no_memory(err, "JSON");

    if (ret == CAIRN_OK) {
        *ret_json = json_dumps(list, JSON_COMPACT);
        ret = *ret_json ? CAIRN_OK : error_no_memory(err, "JSON");
    }
    json_decref(list);
    return ret;
}

int cairn_image_map(const char *file, const char *format, char **ret_json, struct cairn_error *err)
{
    CLEANUP(local_chain_free_p) struct local_chain *chain = NULL;
    CLEANUP(map_release) struct map map = {0};
    int ret = local_chain_open(file, format, &chain, err);

    for (uint32_t i = 0; ret == CAIRN_OK && i < chain->depth; i++)
        ret = add_layer(&map, &chain->layers[i], i, err);
    if (ret == CAIRN_OK)
        ret = list_to_text(&map, ret_json, err);
    return ret;
}
