/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry's front: paths to resources, resources to handlers, names to keys, refs to
 * manifests.
 *
 * A repository's name has slashes in it, and may have components like `blobs`; so a path is read
 * from its end.  A repository needs no making: it is there as soon as something is in it.
 */
#include "registry_internal.h"

#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quote.h"

#define TAG_VALUE_MAX 256

/* -- Keys --------------------------------------------------------------------------------- */

char *registry_blob_key(const struct digest *d, char key[REGISTRY_KEY_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];

    digest_format_hex(d, hex);
    snprintf(key, REGISTRY_KEY_MAX, "blobs/sha256/%.2s/%s", hex, hex);
    return key;
}

char *registry_repo_key(const char *repo, const char *kind, const struct digest *d,
                        char key[REGISTRY_KEY_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];

    snprintf(key, REGISTRY_KEY_MAX, "repos/%s/%s/%s", repo, kind, digest_format_hex(d, hex));
    return key;
}

char *registry_tag_key(const char *repo, const char *tag, char key[REGISTRY_KEY_MAX])
{
    snprintf(key, REGISTRY_KEY_MAX, "repos/%s/_tags/%s", repo, tag);
    return key;
}

char *registry_referrers_prefix(const char *repo, const struct digest *subject,
                                char key[REGISTRY_KEY_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];

    snprintf(key, REGISTRY_KEY_MAX, "repos/%s/_referrers/%s/", repo,
             digest_format_hex(subject, hex));
    return key;
}

char *registry_referrer_key(const char *repo, const struct digest *subject,
                            const struct digest *manifest, char key[REGISTRY_KEY_MAX])
{
    char subject_hex[DIGEST_HEX_LEN + 1], hex[DIGEST_HEX_LEN + 1];

    snprintf(key, REGISTRY_KEY_MAX, "repos/%s/_referrers/%s/%s", repo,
             digest_format_hex(subject, subject_hex), digest_format_hex(manifest, hex));
    return key;
}

/* -- Refs --------------------------------------------------------------------------------- */

static int read_tag(struct store *store, const struct ref *ref, struct digest *ret_digest,
                    struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    CLEANUP_FREE void *value = NULL;
    size_t len;
    int r = store_get(store, registry_tag_key(ref->repo, ref->tag, key), TAG_VALUE_MAX, &value,
                      &len, err);

    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, r, "no tag %s in repository %s", ref->tag, ref->repo);
    if (r)
        return r;
    if (digest_parse(value, len, ret_digest, err))
        return error_set(err, CAIRN_E_CORRUPT, "tag %s of repository %s does not hold a digest",
                         ref->tag, ref->repo);
    return CAIRN_OK;
}

int registry_resolve(struct store *store, const struct ref *ref, struct digest *ret_digest,
                     struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];
    struct digest digest = ref->digest;
    uint64_t size;
    int r = ref->tag[0] ? read_tag(store, ref, &digest, err) : CAIRN_OK;

    if (r)
        return r;
    r = store_head(store, registry_repo_key(ref->repo, "_manifests", &digest, key), &size, err);
    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, r, "no manifest %s in repository %s", digest_format(&digest, text),
                         ref->repo);
    if (!r)
        *ret_digest = digest;
    return r;
}

int registry_get_manifest(struct store *store, const char *repo, const struct digest *digest,
                          void **ret_buf, size_t *ret_len, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];
    CLEANUP_FREE void *buf = NULL;
    struct digest actual;
    size_t len;
    int r = store_get(store, registry_repo_key(repo, "_manifests", digest, key), MANIFEST_BYTES_MAX,
                      &buf, &len, err);

    if (r)
        return r;
    digest_of(buf, len, &actual);
    if (!digest_equal(&actual, digest))
        return error_set(err, CAIRN_E_CORRUPT, "manifest %s: its bytes in the store differ",
                         digest_format(digest, text));
    *ret_buf = steal_ptr(buf);
    *ret_len = len;
    return CAIRN_OK;
}

int registry_find_manifest(struct store *store, const struct ref *ref,
                           struct manifest **ret_manifest, struct digest *ret_digest,
                           struct cairn_error *err)
{
    CLEANUP_FREE void *buf = NULL;
    char text[DIGEST_STR_MAX];
    struct digest digest;
    size_t len;
    int r = registry_resolve(store, ref, &digest, err);

    if (!r)
        r = registry_get_manifest(store, ref->repo, &digest, &buf, &len, err);
    if (r)
        return r;
    r = manifest_parse(buf, len, ret_manifest, err);
    if (r)
        return error_prefix(err, r, "manifest %s", digest_format(&digest, text));
    if (ret_digest)
        *ret_digest = digest;
    return CAIRN_OK;
}

/* -- Paths -------------------------------------------------------------------------------- */

/* The component before end (exclusive, at a '/' or the end of the string); NULL at the start. */
static const char *component_before(const char *path, const char *end)
{
    if (end <= path)
        return NULL;
    while (end > path && end[-1] != '/')
        end--;
    return end;
}

/* Is the component at start, which may be NULL, the name?  next is the component behind it. */
static bool component_is(const char *start, const char *next, const char *name)
{
    size_t len = strlen(name);

    return start && (size_t)(next - 1 - start) == len && memcmp(start, name, len) == 0;
}

/* What stands behind the repository's name; *ret_repo_end is where that ends. */
static bool parse_resource(const char *path, struct registry_target *target,
                           const char **ret_repo_end)
{
    const char *end = path + strlen(path);
    const char *last = component_before(path, end);
    const char *middle = last ? component_before(path, last - 1) : NULL;
    const char *first = middle ? component_before(path, middle - 1) : NULL;

    if (last && *last == 0) { /* …/blobs/uploads/ */
        if (!component_is(middle, last, "uploads") || !component_is(first, middle, "blobs"))
            return false;
        target->resource = REGISTRY_UPLOADS;
        *ret_repo_end = first;
        return true;
    }
    target->name = last;
    *ret_repo_end = middle;
    if (component_is(first, middle, "blobs") && component_is(middle, last, "uploads")) {
        target->resource = REGISTRY_UPLOAD;
        *ret_repo_end = first;
    } else if (component_is(middle, last, "blobs")) {
        target->resource = strcmp(last, "uploads") == 0 ? REGISTRY_UPLOADS : REGISTRY_BLOB;
    } else if (component_is(middle, last, "manifests")) {
        target->resource = REGISTRY_MANIFEST;
    } else if (component_is(middle, last, "referrers")) {
        target->resource = REGISTRY_REFERRERS;
    } else if (component_is(middle, last, "tags") && strcmp(last, "list") == 0) {
        target->resource = REGISTRY_TAGS;
    } else {
        return false;
    }
    return true;
}

bool registry_parse_target(const char *path, struct registry_target *target,
                           struct http_reply *reply)
{
    const char *rest = path + strlen("/v2");
    const char *repo_end;
    char quoted[QUOTE_MAX];

    rest += *rest == '/';
    if (*rest == 0 || strcmp(rest, "_catalog") == 0) {
        target->resource = *rest ? REGISTRY_CATALOG : REGISTRY_BASE;
        return true;
    }
    if (!parse_resource(rest, target, &repo_end) || repo_end <= rest) {
        http_reply_error(reply, MHD_HTTP_NOT_FOUND, "NOT_FOUND", "there is nothing at this path");
        return false;
    }
    if ((size_t)(repo_end - rest) <= sizeof(target->repo)) {
        snprintf(target->repo, sizeof(target->repo), "%.*s", (int)(repo_end - rest - 1), rest);
        if (ref_valid_repo(target->repo))
            return true;
    }
    http_reply_error(reply, MHD_HTTP_BAD_REQUEST, "NAME_INVALID", "%s is not a repository name",
                     quote_bytes(rest, (size_t)(repo_end - rest - 1), quoted));
    return false;
}

/* -- Replies ------------------------------------------------------------------------------ */

bool registry_target_digest(const struct registry_call *call, struct digest *ret_digest)
{
    struct cairn_error err;

    if (digest_parse(call->target.name, strlen(call->target.name), ret_digest, &err) == CAIRN_OK)
        return true;
    http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "DIGEST_INVALID", "%s", err.message);
    return false;
}

void registry_reply_digest(const struct registry_call *call, const struct digest *d,
                           const char *location)
{
    char text[DIGEST_STR_MAX];

    digest_format(d, text);
    http_reply_header(call->reply, "Docker-Content-Digest", "%s", text);
    if (location)
        http_reply_header(call->reply, "Location", "/v2/%s/%s/%s", call->target.repo, location,
                          text);
}

static void registry_base(const struct registry_call *call)
{
    http_reply_header(call->reply, "Docker-Distribution-API-Version", "registry/2.0");
    http_reply_json(call->reply, MHD_HTTP_OK, json_object());
}

/* -- Dispatch ----------------------------------------------------------------------------- */

static const struct {
    const char *pattern;
    unsigned methods;
    void (*handle)(const struct registry_call *call);
} resources[] = {
    [REGISTRY_BASE] = {"/v2/", HTTP_GET | HTTP_HEAD, registry_base},
    [REGISTRY_CATALOG] = {"/v2/_catalog", HTTP_GET | HTTP_HEAD, registry_catalog},
    [REGISTRY_TAGS] = {"/v2/<repo>/tags/list", HTTP_GET | HTTP_HEAD, registry_tags},
    [REGISTRY_REFERRERS] = {"/v2/<repo>/referrers/<digest>", HTTP_GET | HTTP_HEAD,
                            registry_referrers},
    [REGISTRY_BLOB] = {"/v2/<repo>/blobs/<digest>", HTTP_GET | HTTP_HEAD | HTTP_DELETE,
                       registry_blob},
    [REGISTRY_MANIFEST] = {"/v2/<repo>/manifests/<ref>",
                           HTTP_GET | HTTP_HEAD | HTTP_PUT | HTTP_DELETE, registry_manifest},
    [REGISTRY_UPLOADS] = {"/v2/<repo>/blobs/uploads/", HTTP_POST, registry_uploads},
    [REGISTRY_UPLOAD] = {"/v2/<repo>/blobs/uploads/<id>",
                         HTTP_GET | HTTP_HEAD | HTTP_PATCH | HTTP_PUT | HTTP_DELETE,
                         registry_upload},
};

/* False when the request cannot be served, and that has been replied. */
static bool open_call(struct registry *registry, const struct http_request *req,
                      struct http_reply *reply, struct registry_call *ret_call)
{
    *ret_call = (struct registry_call){
        .registry = registry, .store = registry->store, .req = req, .reply = reply};
    if (!registry_parse_target(http_path(req), &ret_call->target, reply))
        return false;
    http_reply_route(reply, resources[ret_call->target.resource].pattern);
    if (resources[ret_call->target.resource].methods & http_method(req))
        return true;
    http_reply_methods(reply, resources[ret_call->target.resource].methods);
    return false;
}

void registry_begin(void *ctx, struct http_request *req, struct http_reply *reply)
{
    struct registry *registry = ctx;
    struct registry_call call;

    if (!open_call(registry, req, reply, &call))
        return;
    if (call.target.resource == REGISTRY_MANIFEST)
        http_collect_body(req, registry->options.max_manifest);
    else
        registry_begin_upload(&call, req);
}

void registry_handle(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    struct registry_call call;

    if (open_call(ctx, req, reply, &call))
        resources[call.target.resource].handle(&call);
}

bool registry_is_quick(const struct http_request *req)
{
    return strstr(http_path(req), "/blobs/sha256:") != NULL;
}

int registry_new(struct store *store, struct disks *disks, const struct registry_options *options,
                 struct registry **ret_registry, struct cairn_error *err)
{
    CLEANUP(registry_free_p) struct registry *registry = calloc(1, sizeof(*registry));
    int r;

    if (!registry)
        return error_no_memory(err, "the registry");
    registry->store = store;
    registry->disks = disks;
    registry->options = *options;
    r = sessions_new(&registry->sessions, err);
    if (!r)
        r = quota_new(store, &options->quota, &registry->quota, err);
    if (!r)
        r = registry_shown_new(&registry->shown, err);
    if (!r)
        *ret_registry = steal_ptr(registry);
    return r;
}

void registry_free(struct registry *registry)
{
    if (!registry)
        return;
    cache_free(registry->shown);
    quota_free(registry->quota);
    if (registry->sessions)
        sessions_free(registry->sessions);
    free(registry);
}

struct quota *registry_quota(struct registry *registry)
{
    return registry->quota;
}
