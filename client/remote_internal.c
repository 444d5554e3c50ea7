/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index is built here as the service builds it (local_index.h), prefix upon prefix, with a few
 * requests for each layer: what it costs follows the chain's metadata, as it does for who pushes.
 */
#include "remote_internal.h"

#include "chain_read.h"
#include "local_index.h"
#include "map_json.h"
#include "remote_blobs.h"

#define CLUSTER_CACHE_BYTES ((size_t)16 << 20)

struct remote_internal {
    struct manifest *manifest;
    struct remote_blobs *blobs;
    struct digest *layers; /* by ordinal */
    struct cluster_cache *clusters;
    struct local_index index;
};

/* -- The index ------------------------------------------------------------------------------ */

static int add_layer(struct remote_internal *ri, uint32_t ordinal, const char *snapshot,
                     struct cairn_error *err)
{
    enum layer_format format = ri->manifest->layers[ordinal].format;
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = remote_blobs_source(ri->blobs, ordinal, &src, err);

    if (ret == CAIRN_OK && !snapshot)
        ret = layer_open(src, format, &layer, err);
    else if (ret == CAIRN_OK)
        ret = layer_find_snapshot(src, format, snapshot, &layer, err);
    return ret == CAIRN_OK ? local_index_add(&ri->index, layer, err) : ret;
}

static int build_index(struct remote_internal *ri, struct cairn_client *client,
                       const char *snapshot, struct cairn_error *err)
{
    uint32_t top = ri->manifest->depth - 1;
    uint64_t done = 0, total = 0;
    int ret = CAIRN_OK;

    for (uint32_t i = 0; i <= top; i++)
        total += ri->manifest->layers[i].size;
    for (uint32_t i = 0; ret == CAIRN_OK && i <= top; i++) {
        ret = add_layer(ri, i, i == top ? snapshot : NULL, err);
        done += ri->manifest->layers[i].size;
        if (ret == CAIRN_OK)
            ret = client_progress(client, "map", done, total, err);
    }
    return ret;
}

/* -- Opening -------------------------------------------------------------------------------- */

static int name_layers(struct remote_internal *ri, struct cairn_error *err)
{
    ri->layers = calloc(ri->manifest->depth, sizeof(ri->layers[0]));
    if (!ri->layers)
        return error_no_memory(err, "the layers of a disk");
    for (uint32_t i = 0; i < ri->manifest->depth; i++)
        ri->layers[i] = ri->manifest->layers[i].digest;
    return CAIRN_OK;
}

int remote_internal_open(struct cairn_client *client, const struct ref *ref, const char *snapshot,
                         struct remote_internal **ret_ri, struct cairn_error *err)
{
    CLEANUP(remote_internal_free_p) struct remote_internal *ri = calloc(1, sizeof(*ri));
    struct digest pinned;
    int ret;

    if (!ri)
        return error_no_memory(err, "a disk");
    ret = client_get_manifest(client, ref, &ri->manifest, &pinned, err);
    if (ret == CAIRN_OK)
        ret = name_layers(ri, err);
    if (ret == CAIRN_OK)
        ret = remote_blobs_new(client, ref->repo, ri->manifest, &ri->blobs, err);
    if (ret == CAIRN_OK)
        ret = cluster_cache_new(CLUSTER_CACHE_BYTES, &ri->clusters, err);
    if (ret == CAIRN_OK)
        ret = build_index(ri, client, snapshot, err);
    if (ret == CAIRN_OK)
        *ret_ri = steal_ptr(ri);
    return ret;
}

void remote_internal_free(struct remote_internal *ri)
{
    if (!ri)
        return;
    local_index_release(&ri->index);
    cluster_cache_free(ri->clusters);
    free(ri->layers);
    remote_blobs_free(ri->blobs);
    manifest_free(ri->manifest);
    free(ri);
}

/* -- Using it ------------------------------------------------------------------------------- */

uint64_t remote_internal_size(const struct remote_internal *ri)
{
    return ri->index.l1->virtual_size;
}

int remote_internal_map(struct remote_internal *ri, uint64_t guest_off, uint64_t len,
                        struct extent *ret_extents, size_t max, size_t *ret_nr,
                        struct cairn_error *err)
{
    const struct index_slices slices = local_index_slices(&ri->index);

    return chain_map(ri->index.l1, &slices, guest_off, len, ret_extents, max, ret_nr, err);
}

int remote_internal_pread(struct remote_internal *ri, void *buf, size_t len, uint64_t guest_off,
                          struct cairn_error *err)
{
    const struct chain_reader reader = {
        .l1 = ri->index.l1,
        .slices = local_index_slices(&ri->index),
        .blobs = {remote_blobs_pread, ri->blobs},
        .layers = ri->layers,
        .cache = ri->clusters,
    };

    return chain_read(&reader, buf, len, guest_off, err);
}

int cairn_map_internal(struct cairn_client *client, const char *ref_text, const char *snapshot,
                       char **ret_json, struct cairn_error *err)
{
    CLEANUP(remote_internal_free_p) struct remote_internal *ri = NULL;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = remote_internal_open(client, &ref, snapshot, &ri, err);
    return ret == CAIRN_OK ? map_to_json(&ri->index, ri->layers, ret_json, err) : ret;
}
