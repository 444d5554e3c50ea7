/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Facts about what the service holds, as JSON: of one disk, of two, of a repository, of all of
 * them.
 */
#include <stdio.h>
#include <string.h>

#include "image_info.h"
#include "json_memory.h"
#include "quote.h"
#include "remote_blobs.h"

/* More repositories or tags than this in one list are not listed but refused. */
#define LIST_MAX 1000000u
/* Three million extents. */
#define EXTENTS_BYTES_MAX ((size_t)512 << 20)

static void json_decref_p(json_t **json)
{
    json_decref(*json);
}

static int take_text(json_t *json, char **ret_json, struct cairn_error *err)
{
    return json_memory_dump(json, JSON_COMPACT, ret_json, err);
}

/* -- What a repository holds ---------------------------------------------------------------- */

/* {"usedBytes","allowedBytes"}, the latter if there is a quota. */
static json_t *usage_to_json(json_t *used, json_t *allowed)
{
    return json_is_integer(allowed)
               ? json_pack("{s:O, s:O}", "usedBytes", used, "allowedBytes", allowed)
               : json_pack("{s:O}", "usedBytes", used);
}

/* As "usage" into info, where the service tells: an older one does not know, none says it to
 * everybody, and one that cannot tell now is no reason to keep the rest back. */
static int add_usage(struct cairn_client *client, const char *repo, json_t *info,
                     struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *said = NULL;
    char path[CLIENT_PATH_MAX];
    const struct remote_request request = {.method = "GET", .path = path, .idempotent = true};
    struct remote_answer answer;
    json_t *used;
    int ret;

    snprintf(path, sizeof(path), "/v1/repositories/%s", repo);
    ret = remote_request(client->remote, &request, &answer, err);
    if (ret != CAIRN_OK)
        return ret == CAIRN_E_UNAVAILABLE ? CAIRN_OK : error_prefix(err, ret, "%s", repo);
    if (answer.status == 200)
        ret = remote_answer_json(&answer, repo, &said, err);
    remote_answer_release(&answer);
    if (ret != CAIRN_OK || !said)
        return ret;
    used = json_object_get(said, "usedBytes");
    if (!json_is_integer(used))
        return error_set(err, CAIRN_E_CORRUPT, "%s: the answer has no number \"usedBytes\"", path);
    if (json_object_set_new(info, "usage",
                            usage_to_json(used, json_object_get(said, "allowedBytes"))) != 0)
        return error_no_memory(err, "JSON");
    return CAIRN_OK;
}

/* -- The disk API's answers ----------------------------------------------------------------- */

static int get_disk_json(struct cairn_client *client, const char *ref_text, const char *suffix,
                         json_t **ret_json, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    const struct remote_request request = {
        .method = "GET",
        .path = path,
        .body_max = EXTENTS_BYTES_MAX,
        .idempotent = true,
        .long_running = true, /* extents are made as they are sent */
    };
    struct remote_answer answer;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret != CAIRN_OK)
        return ret;
    client_disk_path(&ref, suffix, path);
    ret = remote_request(client->remote, &request, &answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", ref_text);
    ret = remote_answer_json(&answer, ref_text, ret_json, err);
    remote_answer_release(&answer);
    return ret;
}

static int get_disk_text(struct cairn_client *client, const char *ref, const char *suffix,
                         char **ret_json, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    int ret = get_disk_json(client, ref, suffix, &json, err);

    return ret == CAIRN_OK ? take_text(json, ret_json, err) : ret;
}

/* Of a top layer, with a request or two: the header and the list of snapshots. */
static int add_snapshots(struct cairn_client *client, const char *repo, const struct manifest *m,
                         json_t *info, struct cairn_error *err)
{
    CLEANUP(remote_blobs_free_p) struct remote_blobs *blobs = NULL;
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    int ret;

    if (m->layers[m->depth - 1].format != LAYER_QCOW2)
        return CAIRN_OK;
    ret = remote_blobs_new(client, repo, m, &blobs, err);
    if (ret == CAIRN_OK)
        ret = remote_blobs_source(blobs, m->depth - 1, &src, err);
    if (ret == CAIRN_OK)
        ret = qcow2_image_open(src, QCOW2_OPEN_INFO, &image, err);
    if (ret == CAIRN_OK)
        ret = image_info_add_snapshots(info, image, err);
    return ret;
}

int cairn_info(struct cairn_client *client, const char *ref_text, char **ret_json,
               struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *info = NULL;
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    char text[REF_STR_MAX];
    struct digest digest;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = client_get_manifest(client, &ref, &m, &digest, err);
    if (ret != CAIRN_OK)
        return ret;
    ref.tag[0] = 0; /* both are of the same disk, also if the tag moves meanwhile */
    ref.digest = digest;
    ret = get_disk_json(client, ref_format(&ref, text), "", &info, err);
    if (ret == CAIRN_OK && !json_is_object(info))
        ret = error_set(err, CAIRN_E_CORRUPT, "%s: the answer is not a JSON object", text);
    if (ret == CAIRN_OK)
        ret = add_snapshots(client, ref.repo, m, info, err);
    if (ret == CAIRN_OK)
        ret = add_usage(client, ref.repo, info, err);
    return ret == CAIRN_OK ? take_text(info, ret_json, err) : ret;
}

int cairn_map(struct cairn_client *client, const char *ref, char **ret_json,
              struct cairn_error *err)
{
    return get_disk_text(client, ref, "/extents", ret_json, err);
}

int cairn_diff(struct cairn_client *client, const char *since_text, const char *ref,
               char **ret_json, struct cairn_error *err)
{
    char since_buf[REF_STR_MAX], suffix[REF_STR_MAX + 32];
    struct ref since;
    int ret = ref_parse(since_text, &since, err);

    if (ret != CAIRN_OK)
        return ret;
    snprintf(suffix, sizeof(suffix), "/changes?since=%s", ref_format(&since, since_buf));
    return get_disk_text(client, ref, suffix, ret_json, err);
}

/* -- Log ------------------------------------------------------------------------------------ */

static json_t *layer_to_json(const struct manifest *m, uint32_t ordinal)
{
    const struct manifest_layer *layer = &m->layers[ordinal];
    char digest[DIGEST_STR_MAX], chain_id[DIGEST_STR_MAX];

    return json_pack("{s:I, s:s, s:I, s:s, s:s}", "depth", (json_int_t)(m->depth - 1 - ordinal),
                     "digest", digest_format(&layer->digest, digest), "size",
                     (json_int_t)layer->size, "mediaType",
                     layer->format == LAYER_RAW ? MANIFEST_LAYER_RAW : MANIFEST_LAYER_QCOW2,
                     "chainId", digest_format(&m->chain_ids[ordinal], chain_id));
}

int cairn_log(struct cairn_client *client, const char *ref_text, char **ret_json,
              struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *root = NULL;
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    char text[REF_STR_MAX], manifest[DIGEST_STR_MAX];
    struct digest digest;
    struct ref ref;
    json_t *layers;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = client_get_manifest(client, &ref, &m, &digest, err);
    if (ret != CAIRN_OK)
        return ret;
    layers = json_array();
    root = json_pack("{s:s, s:s, s:o}", "ref", ref_format(&ref, text), "manifest",
                     digest_format(&digest, manifest), "layers", layers);
    if (!root)
        return error_no_memory(err, "JSON");
    for (uint32_t i = m->depth; i-- > 0;)
        if (json_array_append_new(layers, layer_to_json(m, i)) != 0)
            return error_no_memory(err, "JSON");
    if (m->annotations && json_object_set(root, "annotations", m->annotations) != 0)
        return error_no_memory(err, "JSON");
    return take_text(root, ret_json, err);
}

/* -- Lists ---------------------------------------------------------------------------------- */

/* The target of `Link: <…>; rel="next"`, malloc'ed, or NULL. */
static char *next_page(const char *link)
{
    const char *end = link && link[0] == '<' ? strchr(link, '>') : NULL;

    return end && strstr(end, "next") ? strndup(link + 1, (size_t)(end - link - 1)) : NULL;
}

static int append_strings(json_t *list, const json_t *page, const char *field, const char *what,
                          struct cairn_error *err)
{
    const json_t *items = json_object_get(page, field);
    json_t *item;
    size_t i;

    if (!json_is_array(items) && !json_is_null(items))
        return error_set(err, CAIRN_E_CORRUPT, "%s: the answer has no list \"%s\"", what, field);
    json_array_foreach(items, i, item)
    {
        if (!json_is_string(item))
            return error_set(err, CAIRN_E_CORRUPT, "%s: \"%s\"[%zu] is not a string", what, field,
                             i);
        if (json_array_append(list, item) != 0)
            return error_no_memory(err, "JSON");
    }
    if (json_array_size(list) > LIST_MAX)
        return error_set(err, CAIRN_E_LIMIT, "%s: the list is longer than %u", what, LIST_MAX);
    return CAIRN_OK;
}

/* One page of a list into list; *path becomes the next one's, or NULL. */
static int get_page(struct cairn_client *client, char **path, const char *field, const char *what,
                    json_t *list, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *page = NULL;
    const struct remote_request request = {.method = "GET", .path = *path, .idempotent = true};
    size_t before = json_array_size(list);
    struct remote_answer answer;
    int ret = remote_request(client->remote, &request, &answer, err);

    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", what);
    if (answer.status == 200) {
        if (answer.body)
            ret = json_memory_load(answer.body, answer.body_len, 0, &page, NULL, err);
        if (ret == CAIRN_OK)
            ret = append_strings(list, page, field, what, err);
    } else {
        ret = remote_answer_error(&answer, what, err);
    }
    free(*path);
    /* A page that brings nothing ends the list, whatever it says. */
    *path = json_array_size(list) > before ? next_page(answer.link) : NULL;
    remote_answer_release(&answer);
    return ret;
}

static int get_list(struct cairn_client *client, const char *first, const char *field,
                    const char *what, json_t *list, struct cairn_error *err)
{
    CLEANUP_FREE char *path = strdup(first);
    int ret = path ? CAIRN_OK : error_no_memory(err, "a request");

    while (ret == CAIRN_OK && path)
        ret = get_page(client, &path, field, what, list, err);
    return ret;
}

/* {"tag","digest"} of one tag; none (NULL) if it has just gone. */
static int tag_to_json(struct cairn_client *client, const char *repo, const char *tag,
                       json_t **ret_json, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX], quoted[QUOTE_MAX];
    const struct remote_request request = {
        .method = "HEAD",
        .path = path,
        .headers = {"Accept: " MANIFEST_MEDIA_TYPE},
        .idempotent = true,
    };
    struct remote_answer answer;
    struct digest d;
    int ret;

    if (!ref_valid_tag(tag))
        return error_set(err, CAIRN_E_CORRUPT, "%s: the service lists the tag %s", repo,
                         quote_str(tag, quoted));
    snprintf(path, sizeof(path), "/v2/%s/manifests/%s", repo, tag);
    ret = remote_request(client->remote, &request, &answer, err);
    if (ret != CAIRN_OK)
        return ret;
    *ret_json = NULL;
    if (answer.status == 404) {
        ret = CAIRN_OK;
    } else if (answer.status != 200) {
        ret = remote_answer_error(&answer, path, err);
    } else if (!answer.digest || digest_parse(answer.digest, strlen(answer.digest), &d, NULL)) {
        ret = error_set(err, CAIRN_E_CORRUPT, "%s: the answer has no valid Docker-Content-Digest",
                        path);
    } else {
        *ret_json = json_pack("{s:s, s:s}", "tag", tag, "digest", answer.digest);
        ret = *ret_json ? CAIRN_OK : error_no_memory(err, "JSON");
    }
    remote_answer_release(&answer);
    return ret;
}

int client_list_tags(struct cairn_client *client, const char *repo, json_t *tags,
                     struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *names = json_array();
    char path[CLIENT_PATH_MAX];
    json_t *name;
    size_t i;
    int ret;

    snprintf(path, sizeof(path), "/v2/%s/tags/list", repo);
    ret = names ? get_list(client, path, "tags", repo, names, err) : error_no_memory(err, "JSON");
    if (ret != CAIRN_OK)
        return ret;
    json_array_foreach(names, i, name)
    {
        json_t *tag = NULL;

        ret = tag_to_json(client, repo, json_string_value(name), &tag, err);
        if (ret == CAIRN_OK && tag && json_array_append_new(tags, tag) != 0)
            ret = error_no_memory(err, "JSON");
        if (ret != CAIRN_OK)
            return ret;
    }
    return CAIRN_OK;
}

int cairn_list(struct cairn_client *client, const char *repo, char **ret_json,
               struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *root = NULL;
    char quoted[QUOTE_MAX];
    json_t *list = json_array();
    int ret;

    if (repo && !ref_valid_repo(repo)) {
        json_decref(list);
        return error_set(err, CAIRN_E_USAGE, "%s is not the name of a repository",
                         quote_str(repo, quoted));
    }
    root = repo ? json_pack("{s:s, s:o}", "name", repo, "tags", list)
                : json_pack("{s:o}", "repositories", list);
    if (!root)
        return error_no_memory(err, "JSON");
    ret = repo ? client_list_tags(client, repo, list, err)
               : get_list(client, "/v2/_catalog", "repositories", "catalogue", list, err);
    if (ret == CAIRN_OK && repo)
        ret = add_usage(client, repo, root, err);
    return ret == CAIRN_OK ? take_text(root, ret_json, err) : ret;
}

int cairn_leases(struct cairn_client *client, const char *repo, char **ret_json,
                 struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    char path[CLIENT_PATH_MAX], quoted[QUOTE_MAX];
    const struct remote_request request = {.method = "GET", .path = path, .idempotent = true};
    struct remote_answer answer;
    int ret;

    if (repo && !ref_valid_repo(repo))
        return error_set(err, CAIRN_E_USAGE, "%s is not the name of a repository",
                         quote_str(repo, quoted));
    snprintf(path, sizeof(path), "/v1/leases%s%s", repo ? "?repo=" : "", repo ? repo : "");
    ret = remote_request(client->remote, &request, &answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "leases");
    ret = remote_answer_json(&answer, "leases", &json, err);
    remote_answer_release(&answer);
    return ret == CAIRN_OK ? take_text(json, ret_json, err) : ret;
}
