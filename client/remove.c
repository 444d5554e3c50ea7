/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Removing tags, and manifests by digest: what goes is told, and tags that nobody has named are not
 * removed unasked.  Blobs are left to the service's garbage collection, which knows who else uses
 * them.
 */
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "json_memory.h"

CLEANUP_DEFINE(json_t *, json_decref)

/* The tags of a repository that name a manifest, as an array. */
static int tags_of(struct cairn_client *client, const struct ref *ref, json_t **ret_tags,
                   struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *list = json_array();
    CLEANUP(json_decref_p) json_t *tags = json_array();
    char digest[DIGEST_STR_MAX];
    json_t *item;
    size_t i;
    int ret;

    if (!list || !tags)
        return error_no_memory(err, "a list of tags");
    ret = client_list_tags(client, ref->repo, list, err);
    if (ret != CAIRN_OK)
        return ret;
    digest_format(&ref->digest, digest);
    json_array_foreach(list, i, item)
    {
        const char *names = json_string_value(json_object_get(item, "digest"));

        if (names && strcmp(names, digest) == 0 &&
            json_array_append(tags, json_object_get(item, "tag")) != 0)
            return error_no_memory(err, "a list of tags");
    }
    *ret_tags = steal_ptr(tags);
    return CAIRN_OK;
}

static int refuse_tags(const char *ref, const json_t *tags, struct cairn_error *err)
{
    char names[400] = "";
    size_t used = 0, i;
    const json_t *tag;

    json_array_foreach(tags, i, tag)
    {
        if (used < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "",
                                     json_string_value(tag));
    }
    return error_set(err, CAIRN_E_CONFLICT, "%s has %zu tag%s that would go with it: %s%s", ref, i,
                     i == 1 ? "" : "s", names, used < sizeof(names) ? "" : "…");
}

/* What a tag names, as far as it can be told: one whose manifest is lost or damaged can go, too. */
static int look_up_tag(struct cairn_client *client, const struct ref *ref, unsigned flags,
                       json_t **ret_manifest, struct cairn_error *err)
{
    char digest_text[DIGEST_STR_MAX];
    CLEANUP_FREE char *json = NULL;
    struct digest digest;
    size_t len;
    int ret = client_get_manifest_bytes(client, ref, &json, &len, &digest, err);

    if (ret == CAIRN_OK)
        *ret_manifest = json_string(digest_format(&digest, digest_text));
    else if (!(flags & CAIRN_REMOVE_DRY_RUN) &&
             (ret == CAIRN_E_NOT_FOUND || ret == CAIRN_E_CORRUPT || ret == CAIRN_E_IO))
        *ret_manifest = json_null();
    else
        return ret;
    return *ret_manifest ? CAIRN_OK : error_no_memory(err, "a digest");
}

/* {"ref","manifest","tags"}: what would go. */
static int look_up(struct cairn_client *client, const struct ref *ref, unsigned flags,
                   json_t **ret_what, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *manifest = NULL;
    CLEANUP(json_decref_p) json_t *tags = NULL;
    char text[REF_STR_MAX], digest[DIGEST_STR_MAX];
    int ret;

    if (ref->tag[0]) {
        tags = json_pack("[s]", ref->tag);
        ret = look_up_tag(client, ref, flags, &manifest, err);
    } else {
        manifest = json_string(digest_format(&ref->digest, digest));
        ret = tags_of(client, ref, &tags, err);
    }
    if (ret != CAIRN_OK)
        return ret;
    *ret_what = json_pack("{s:s, s:O, s:O}", "ref", ref_format(ref, text), "manifest", manifest,
                          "tags", tags);
    return *ret_what ? CAIRN_OK : error_no_memory(err, "what is removed");
}

int cairn_remove_with(struct cairn_client *client, const char *ref_text, unsigned flags,
                      char **ret_json, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *what = NULL;
    CLEANUP_FREE char *text = NULL;
    const json_t *tags;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = look_up(client, &ref, flags, &what, err);
    if (ret == CAIRN_OK)
        ret = json_memory_dump(what, JSON_COMPACT, &text, err);
    tags = json_object_get(what, "tags");
    if (ret == CAIRN_OK && !ref.tag[0] && json_array_size(tags) > 0 && !(flags & CAIRN_REMOVE_TAGS))
        ret = refuse_tags(ref_text, tags, err);
    if (ret == CAIRN_OK && !(flags & CAIRN_REMOVE_DRY_RUN))
        ret = cairn_remove(client, ref_text, err);
    if (ret == CAIRN_OK)
        *ret_json = steal_ptr(text);
    return ret;
}
