/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/disks/<ref>: what a disk is made of, and its chain's health.
 */
#include "disks_internal.h"

static json_t *layer_json(const struct manifest_layer *layer, const struct layer_attr *attr)
{
    bool qcow2 = layer->format == LAYER_QCOW2;
    char digest[DIGEST_STR_MAX];
    json_t *json = json_pack("{s:s, s:I, s:s, s:I}", "digest",
                             digest_format(&layer->digest, digest), "size", (json_int_t)layer->size,
                             "mediaType", qcow2 ? MANIFEST_LAYER_QCOW2 : MANIFEST_LAYER_RAW,
                             "virtualSize", (json_int_t)attr->virtual_size);

    if (json && qcow2)
        json_object_set_new(json, "clusterSize", json_integer((json_int_t)1 << attr->cluster_bits));
    return json;
}

static json_t *layers_json(const struct disk *disk)
{
    json_t *layers = json_array();

    for (uint32_t i = 0; i < disk->chain.depth; i++) {
        json_t *layer = layer_json(&disk->chain.layers[i], &disk->l1->layers[i]);

        if (json_array_append_new(layers, layer) != 0) {
            json_decref(layers);
            return NULL;
        }
    }
    return layers;
}

static json_t *health_json(const struct disk *disk)
{
    const struct index_totals *t = &disk->l1->totals;
    json_int_t stored = 0;

    for (uint32_t i = 0; i < disk->chain.depth; i++)
        stored += (json_int_t)disk->chain.layers[i].size;
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "extents", (json_int_t)t->nr_extents, "dataBytes",
                     (json_int_t)t->data_bytes, "zeroBytes", (json_int_t)t->zero_bytes,
                     "bytesStored", stored, "bytesHidden",
                     (json_int_t)(t->layers_bytes - t->data_bytes));
}

static json_t *annotations_json(const struct disk *disk)
{
    const json_t *annotations = disk->manifest->annotations;

    /* A copy: the disk is shared by threads, and a json_t is not. */
    return annotations ? json_deep_copy(annotations) : json_object();
}

void disks_reply_info(const struct disk_request *rq)
{
    const struct disk *disk = rq->disk;
    char manifest[DIGEST_STR_MAX], chain_id[DIGEST_STR_MAX];
    struct cairn_error err;
    json_t *json = json_pack("{s:s, s:s, s:I, s:i, s:o, s:o, s:o}", "manifest",
                             digest_format(&disk->manifest_digest, manifest), "chainId",
                             digest_format(disk_chain_id(disk), chain_id), "virtualSize",
                             (json_int_t)disk->l1->virtual_size, "depth", (int)disk->chain.depth,
                             "layers", layers_json(disk), "health", health_json(disk),
                             "annotations", annotations_json(disk));

    if (json) {
        http_reply_json(rq->reply, 200, json);
    } else {
        error_no_memory(&err, "a disk's description");
        http_reply_failure(rq->reply, &err);
    }
}
