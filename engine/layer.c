/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layer is an image behind one of two formats; for a raw one there is nothing to parse: it is
 * data from end to end, and the part of the last sector that the file lacks reads as zeros.
 */
#include "layer.h"

#include <inttypes.h>

#include "chain_index.h"
#include "checked.h"
#include "qcow2_header.h"

struct layer {
    struct source *src; /* borrowed */
    struct layer_attr attr;
    struct qcow2_image *image; /* NULL for raw */
    bool is_snapshot;
    uint32_t snapshot; /* its index, if it is one */
    bool preloaded;    /* extents are all that a scan gives */
    struct extent *extents;
    size_t nr_extents, room_extents;
};

void layer_free(struct layer *layer)
{
    if (!layer)
        return;
    qcow2_image_free(layer->image);
    free(layer->extents);
    free(layer);
}

static int open_raw(struct layer *layer, struct cairn_error *err)
{
    if (layer->src->size > CHAIN_VIRTUAL_SIZE_MAX)
        return error_set(err, CAIRN_E_LIMIT, "%s: size %" PRIu64 " is above the limit of %" PRIu64,
                         layer->src->name, layer->src->size, CHAIN_VIRTUAL_SIZE_MAX);
    layer->attr =
        (struct layer_attr){.virtual_size = round_up(layer->src->size, 512), .format = LAYER_RAW};
    return CAIRN_OK;
}

static int open_qcow2(struct layer *layer, struct cairn_error *err)
{
    const struct qcow2_header *hdr;
    int r = qcow2_image_open(layer->src, 0, &layer->image, err);

    if (r != CAIRN_OK)
        return r;
    hdr = qcow2_image_header(layer->image);
    layer->attr = (struct layer_attr){.virtual_size = qcow2_virtual_size(hdr),
                                      .cluster_bits = (uint8_t)hdr->cluster_bits,
                                      .format = LAYER_QCOW2,
                                      .compression = hdr->compression_type};
    return CAIRN_OK;
}

int layer_open(struct source *src, enum layer_format format, struct layer **ret_layer,
               struct cairn_error *err)
{
    CLEANUP(layer_free_p) struct layer *layer = calloc(1, sizeof(*layer));
    int r;

    if (!layer)
        return error_no_memory(err, "a layer");
    layer->src = src;
    r = format == LAYER_RAW ? open_raw(layer, err) : open_qcow2(layer, err);
    if (r == CAIRN_OK)
        *ret_layer = steal_ptr(layer);
    return r;
}

/* The active disk's size gives way to the snapshot's. */
static int become_snapshot(struct layer *layer, uint32_t index, struct cairn_error *err)
{
    uint64_t size;
    int r = qcow2_snapshot_size(layer->image, index, &size, err);

    if (r != CAIRN_OK)
        return r;
    layer->is_snapshot = true;
    layer->snapshot = index;
    layer->attr.virtual_size = round_down(size, 512);
    return CAIRN_OK;
}

int layer_open_snapshot(struct source *src, uint32_t index, struct layer **ret_layer,
                        struct cairn_error *err)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int r = layer_open(src, LAYER_QCOW2, &layer, err);

    if (r == CAIRN_OK)
        r = become_snapshot(layer, index, err);
    if (r == CAIRN_OK)
        *ret_layer = steal_ptr(layer);
    return r;
}

int layer_find_snapshot(struct source *src, enum layer_format format, const char *name_or_id,
                        struct layer **ret_layer, struct cairn_error *err)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    uint32_t index;
    int r;

    if (format != LAYER_QCOW2)
        return error_set(err, CAIRN_E_USAGE, "%s is not a qcow2 image: it has no snapshots",
                         src->name);
    r = layer_open(src, format, &layer, err);
    if (r == CAIRN_OK)
        r = qcow2_snapshot_find(layer->image, name_or_id, &index, err);
    if (r == CAIRN_OK)
        r = become_snapshot(layer, index, err);
    if (r == CAIRN_OK)
        *ret_layer = steal_ptr(layer);
    return r;
}

const struct layer_attr *layer_get_attr(const struct layer *layer)
{
    return &layer->attr;
}

const struct digest *layer_recorded_parent(const struct layer *layer)
{
    const struct qcow2_header *hdr = layer->image ? qcow2_image_header(layer->image) : NULL;

    return hdr && hdr->has_parent ? &hdr->parent : NULL;
}

static int scan(struct layer *layer, layer_extent_fn fn, void *arg, struct cairn_error *err)
{
    struct extent all = {.len = layer->attr.virtual_size, .kind = EXTENT_DATA};

    if (layer->is_snapshot)
        return qcow2_snapshot_scan(layer->image, layer->snapshot, fn, arg, err);
    if (layer->image)
        return qcow2_image_scan(layer->image, fn, arg, err);
    return all.len > 0 ? fn(arg, &all, err) : CAIRN_OK;
}

static int keep_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct layer *layer = arg;

    if (layer->nr_extents == layer->room_extents) {
        size_t room = 2 * layer->room_extents + 64;
        struct extent *extents = NULL;

        if (room * sizeof(*extents) <= LAYER_PRELOAD_BYTES)
            extents = realloc(layer->extents, room * sizeof(*extents));
        if (!extents)
            return error_no_memory(err, "the extents of a layer");
        layer->extents = extents;
        layer->room_extents = room;
    }
    layer->extents[layer->nr_extents++] = *e;
    return CAIRN_OK;
}

void layer_preload(struct layer *layer)
{
    if (layer->preloaded)
        return;
    layer->preloaded = scan(layer, keep_extent, layer, NULL) == CAIRN_OK;
    if (layer->preloaded)
        return;
    free(layer->extents);
    layer->extents = NULL;
    layer->nr_extents = layer->room_extents = 0;
}

int layer_scan(struct layer *layer, layer_extent_fn fn, void *arg, struct cairn_error *err)
{
    int r = CAIRN_OK;

    if (!layer->preloaded)
        return scan(layer, fn, arg, err);
    for (size_t i = 0; r == CAIRN_OK && i < layer->nr_extents; i++)
        r = fn(arg, &layer->extents[i], err);
    return r;
}
