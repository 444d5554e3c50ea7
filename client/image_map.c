/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a local image, or one of its internal snapshots, and its backing chain map.
 */
#include "cairn.h"
#include "local_chain.h"
#include "map_json.h"

/* One more layer of the chain; the top may be seen as one of its snapshots. */
static int add_layer(struct local_index *index, const struct local_layer *local,
                     const char *snapshot, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = local_layer_open(local, &src, err);

    if (ret == CAIRN_OK && snapshot)
        ret = layer_find_snapshot(src, local->format, snapshot, &layer, err);
    else if (ret == CAIRN_OK)
        ret = layer_open(src, local->format, &layer, err);
    return ret == CAIRN_OK ? local_index_add(index, layer, err) : ret;
}

static int image_map(const char *file, const char *format, const char *snapshot, cairn_map_fn entry,
                     void *ctx, struct cairn_error *err)
{
    CLEANUP(local_chain_free_p) struct local_chain *chain = NULL;
    CLEANUP(local_index_release) struct local_index map = {0};
    int ret = local_chain_open(file, format, &chain, err);

    for (uint32_t i = 0; ret == CAIRN_OK && i < chain->depth; i++)
        ret = add_layer(&map, &chain->layers[i], i + 1 == chain->depth ? snapshot : NULL, err);
    return ret == CAIRN_OK ? map_each(&map, entry, ctx, err) : ret;
}

int cairn_image_map(const char *file, const char *format, cairn_map_fn entry, void *ctx,
                    struct cairn_error *err)
{
    return image_map(file, format, NULL, entry, ctx, err);
}

int cairn_image_map_internal(const char *file, const char *snapshot, cairn_map_fn entry, void *ctx,
                             struct cairn_error *err)
{
    return image_map(file, "qcow2", snapshot, entry, ctx, err);
}
