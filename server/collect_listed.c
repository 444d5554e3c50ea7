/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a manifest keeps alive: the blobs that it lists, and the index objects of its chain.  Any
 * image manifest, not only a disk's; what is stored was validated when it was put.
 */
#include <string.h>

#include "collect_internal.h"
#include "json_memory.h"

CLEANUP_DEFINE(json_t *, json_decref)

static int add(struct digest_set *set, const struct digest *d, struct cairn_error *err)
{
    return set ? digest_set_add(set, d, err) : CAIRN_OK;
}

static int take_descriptor(const json_t *descriptor, const struct collect_lists *lists,
                           struct digest *ret_digest, struct cairn_error *err)
{
    const char *text = json_string_value(json_object_get(descriptor, "digest"));
    int r;

    if (!text || digest_parse(text, strlen(text), ret_digest, NULL))
        return error_set(err, CAIRN_E_CORRUPT, "a descriptor has no valid digest");
    r = add(lists->of_repo, ret_digest, err);
    return r ? r : add(lists->of_all, ret_digest, err);
}

static int take_layers(const json_t *layers, bool is_disk, const struct collect_lists *lists,
                       struct cairn_error *err)
{
    struct digest chain_id, layer;

    for (size_t i = 0; i < json_array_size(layers); i++) {
        const struct digest below = chain_id;
        int r = take_descriptor(json_array_get(layers, i), lists, &layer, err);

        if (!r && is_disk && lists->chains) {
            digest_chain(i ? &below : NULL, &layer, &chain_id);
            r = digest_set_add(lists->chains, &chain_id, err);
        }
        if (r)
            return r;
    }
    return CAIRN_OK;
}

int collect_listed(const void *manifest, size_t len, const struct collect_lists *lists,
                   struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    const char *type;
    struct digest config;
    int r = json_memory_load(manifest, len, 0, &json, NULL, err);

    if (r)
        return r;
    if (!json_is_object(json))
        return error_set(err, CAIRN_E_CORRUPT, "it is not a JSON object");
    type = json_string_value(json_object_get(json, "artifactType"));
    r = take_descriptor(json_object_get(json, "config"), lists, &config, err);
    if (r)
        return r;
    return take_layers(json_object_get(json, "layers"),
                       type && strcmp(type, MANIFEST_ARTIFACT_TYPE) == 0, lists, err);
}

int collect_claimed(const void *manifest, size_t len, const struct collect_lists *lists,
                    struct cairn_error *err)
{
    int r = collect_listed(manifest, len, lists, err);

    return r == CAIRN_E_CORRUPT ? CAIRN_OK : r;
}
