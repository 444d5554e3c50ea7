/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a local image, or one of its internal snapshots, and its backing chain map, as
 * `qemu-img map --output=json` says it.
 */
#include <jansson.h>
#include <string.h>

#include "cairn.h"
#include "local_chain.h"
#include "local_index.h"
#include "qcow2_image.h"

#define BATCH 256

static int open_snapshot(struct source *src, const struct local_layer *local, const char *name,
                         struct layer **ret_layer, struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    uint32_t index;
    int ret = CAIRN_OK;

    if (local->format != LAYER_QCOW2)
        ret = error_set(err, CAIRN_E_USAGE, "%s is not a qcow2 image: it has no snapshots",
                        local->path);
    if (ret == CAIRN_OK)
        ret = qcow2_image_open(src, 0, &image, err);
    if (ret == CAIRN_OK)
        ret = qcow2_snapshot_find(image, name, &index, err);
    return ret == CAIRN_OK ? layer_open_snapshot(src, index, ret_layer, err) : ret;
}

/* One more layer of the chain; the top may be seen as one of its snapshots. */
static int add_layer(struct local_index *index, const struct local_layer *local,
                     const char *snapshot, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = local_layer_open(local, &src, err);

    if (ret == CAIRN_OK && snapshot)
        ret = open_snapshot(src, local, snapshot, &layer, err);
    else if (ret == CAIRN_OK)
        ret = layer_open(src, local->format, &layer, err);
    return ret == CAIRN_OK ? local_index_add(index, layer, err) : ret;
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

static int map_to_json(const struct local_index *map, json_t *list, struct cairn_error *err)
{
    const struct index_slices slices = local_index_slices(map);
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

static int list_to_text(const struct local_index *map, char **ret_json, struct cairn_error *err)
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

static int image_map(const char *file, const char *format, const char *snapshot, char **ret_json,
                     struct cairn_error *err)
{
    CLEANUP(local_chain_free_p) struct local_chain *chain = NULL;
    CLEANUP(local_index_release) struct local_index map = {0};
    int ret = local_chain_open(file, format, &chain, err);

    for (uint32_t i = 0; ret == CAIRN_OK && i < chain->depth; i++)
        ret = add_layer(&map, &chain->layers[i], i + 1 == chain->depth ? snapshot : NULL, err);
    if (ret == CAIRN_OK)
        ret = list_to_text(&map, ret_json, err);
    return ret;
}

int cairn_image_map(const char *file, const char *format, char **ret_json, struct cairn_error *err)
{
    return image_map(file, format, NULL, ret_json, err);
}

int cairn_image_map_internal(const char *file, const char *snapshot, char **ret_json,
                             struct cairn_error *err)
{
    return image_map(file, "qcow2", snapshot, ret_json, err);
}
