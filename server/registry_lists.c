/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists: tags of a repository, the catalogue of repositories, referrers of a manifest.
 *
 * All are read from the store in order, a page at a time: `n` says how many, `last` behind which
 * name, and a Link header leads to the next page.  The catalogue is ordered component by component
 * ("a/b" before "a-b"), which is the order of the folders and lets a page be read without reading
 * all that comes before it.  It leaves out what the caller may not pull.
 */
#include "registry_internal.h"

#include <inttypes.h>
#include <jansson.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "json_memory.h"

#define PAGE_MAX            10000u
#define RECORD_MAX          (1u << 20)
#define REFERRERS_BYTES_MAX (4u << 20) /* of one page */
#define INDEX_MEDIA_TYPE    "application/vnd.oci.image.index.v1+json"
#define STOP                1 /* ends a listing that has enough */

CLEANUP_DEFINE(json_t *, json_decref)

struct page {
    size_t max;
    const char *last; /* NULL: from the start */
    json_t *names;    /* array of strings */
    bool more;
};

/* n and last of the query; false when they are no good, and that has been replied. */
static bool page_init(const struct registry_call *call, struct page *page)
{
    const char *n = http_query(call->req, "n"), *last = http_query(call->req, "last");

    *page = (struct page){.max = PAGE_MAX, .last = last && last[0] ? last : NULL};
    if (n && (n[0] == 0 || strlen(n) > 9 || strspn(n, "0123456789") != strlen(n))) {
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "PAGINATION_NUMBER_INVALID",
                         "n is not a number of at most 9 digits");
        return false;
    }
    if (n && strtoul(n, NULL, 10) < PAGE_MAX)
        page->max = strtoul(n, NULL, 10);
    page->names = json_array();
    if (!page->names)
        http_reply_status(call->reply, MHD_HTTP_SERVICE_UNAVAILABLE);
    return page->names != NULL;
}

/* STOP when the page is full; then there is at least one name more. */
static int page_add(struct page *page, const char *name, struct cairn_error *err)
{
    if (json_array_size(page->names) >= page->max) {
        page->more = page->max > 0;
        return STOP;
    }
    if (json_array_append_new(page->names, json_string(name)) != 0)
        return error_no_memory(err, "a list");
    return CAIRN_OK;
}

static void reply_page(const struct registry_call *call, struct page *page, const char *path,
                       json_t *json)
{
    size_t nr = json_array_size(page->names);

    if (page->more)
        http_reply_header(call->reply, "Link", "<%s?n=%zu&last=%s>; rel=\"next\"", path, page->max,
                          json_string_value(json_array_get(page->names, nr - 1)));
    json_decref(page->names);
    http_reply_json(call->reply, MHD_HTTP_OK, json);
}

/* -- Tags --------------------------------------------------------------------------------- */

static int stop_at_once(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    (void)arg;
    (void)name;
    (void)is_prefix;
    (void)err;
    return STOP;
}

/* A repository is there if it has something: its own folders start with '_', others are nested
 * repositories'. */
static int repo_exists(struct store *store, const char *repo, bool *ret_exists,
                       struct cairn_error *err)
{
    static const char *const kinds[] = {"_manifests", "_tags", "_blobs"};
    char prefix[REGISTRY_KEY_MAX];
    int r = CAIRN_OK;

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && r == CAIRN_OK; i++) {
        snprintf(prefix, sizeof(prefix), "repos/%s/%s/", repo, kinds[i]);
        r = store_list(store, prefix, NULL, stop_at_once, NULL, err);
    }
    *ret_exists = r == STOP;
    return r == STOP ? CAIRN_OK : r;
}

static int add_tag(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    return is_prefix ? CAIRN_OK : page_add(arg, name, err);
}

void registry_tags(const struct registry_call *call)
{
    char prefix[REGISTRY_KEY_MAX], path[REGISTRY_KEY_MAX];
    struct cairn_error err;
    struct page page;
    bool exists;
    int r;

    if (!page_init(call, &page))
        return;
    snprintf(prefix, sizeof(prefix), "repos/%s/_tags/", call->target.repo);
    r = store_list(call->store, prefix, page.last, add_tag, &page, &err);
    if (r >= 0)
        r = json_array_size(page.names) > 0
                ? CAIRN_OK
                : repo_exists(call->store, call->target.repo, &exists, &err);
    if (!r && json_array_size(page.names) == 0 && !exists)
        http_reply_error(call->reply, MHD_HTTP_NOT_FOUND, "NAME_UNKNOWN", "no repository %s",
                         call->target.repo);
    else if (r)
        http_reply_failure(call->reply, &err);
    else {
        snprintf(path, sizeof(path), "/v2/%s/tags/list", call->target.repo);
        reply_page(call, &page, path,
                   json_pack("{s:s, s:O}", "name", call->target.repo, "tags", page.names));
        return;
    }
    json_decref(page.names);
}

/* -- Catalogue ---------------------------------------------------------------------------- */

struct walk {
    struct store *store;
    const struct http_request *req;
    struct page *page;
    const char *path; /* of the repository whose folder is listed; "" at the top */
};

static int walk_repo(const struct walk *parent, const char *path, const char *after,
                     struct cairn_error *err);

static int walk_child(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct walk *w = arg;
    char path[REGISTRY_REPO_MAX];
    int len;

    if (!is_prefix || name[0] == '_')
        return CAIRN_OK;
    len = snprintf(path, sizeof(path), "%s%s%s", w->path, w->path[0] ? "/" : "", name);
    if (len >= (int)sizeof(path) || !ref_valid_repo(path))
        return CAIRN_OK; /* not of our making */
    return walk_repo(w, path, NULL, err);
}

/*
 * Add the repository at path and those below it.  after, if given, is relative to path: it and
 * everything before it is on an earlier page; "" stands for path itself.
 */
static int walk_repo(const struct walk *parent, const char *path, const char *after,
                     struct cairn_error *err)
{
    struct walk w = {
        .store = parent->store, .req = parent->req, .page = parent->page, .path = path};
    char prefix[REGISTRY_KEY_MAX], first[REGISTRY_REPO_MAX] = "";
    bool exists = false;
    int r = CAIRN_OK;

    if (!after && path[0] && access_allows(w.req, GRANT_PULL, path))
        r = repo_exists(w.store, path, &exists, err);
    if (exists)
        r = page_add(w.page, path, err);
    if (!r && after && after[0]) {
        char child[REGISTRY_REPO_MAX];
        size_t n = strcspn(after, "/");

        snprintf(first, sizeof(first), "%.*s", (int)n, after);
        snprintf(child, sizeof(child), "%s%s%s", path, path[0] ? "/" : "", first);
        if (ref_valid_repo(child))
            r = walk_repo(&w, child, after[n] ? after + n + 1 : "", err);
    }
    snprintf(prefix, sizeof(prefix), "repos/%s%s", path, path[0] ? "/" : "");
    return r ? r : store_list(w.store, prefix, first[0] ? first : NULL, walk_child, &w, err);
}

void registry_catalog(const struct registry_call *call)
{
    struct walk top = {.store = call->store, .req = call->req};
    struct cairn_error err;
    struct page page;
    int r;

    if (!page_init(call, &page))
        return;
    top.page = &page;
    r = walk_repo(&top, "", page.last, &err);
    if (r >= 0) {
        reply_page(call, &page, "/v2/_catalog", json_pack("{s:O}", "repositories", page.names));
        return;
    }
    json_decref(page.names);
    http_reply_failure(call->reply, &err);
}

/* -- Referrers ---------------------------------------------------------------------------- */

struct referrers {
    struct store *store;
    const char *prefix;
    const char *artifact_type; /* NULL: all */
    json_t *manifests;
    size_t bytes;
    char last[DIGEST_HEX_LEN + 1];
    bool more;
};

static int add_record(struct referrers *list, const void *buf, size_t len, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    int code = json_memory_load(buf, len, 0, &record, NULL, err);
    const char *type = json_string_value(json_object_get(record, "artifactType"));

    if (code != CAIRN_OK)
        return code;
    if (!json_is_object(record))
        return error_set(err, CAIRN_E_CORRUPT, "a record in %s is not JSON", list->prefix);
    if (list->artifact_type && (!type || strcmp(type, list->artifact_type) != 0))
        return CAIRN_OK;
    list->bytes += len;
    if (json_array_append(list->manifests, record) != 0)
        return error_no_memory(err, "a list of referrers");
    return CAIRN_OK;
}

static int add_referrer(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct referrers *list = arg;
    char key[REGISTRY_KEY_MAX];
    CLEANUP_FREE void *buf = NULL;
    size_t len;
    int r;

    if (is_prefix || strlen(name) != DIGEST_HEX_LEN)
        return CAIRN_OK;
    if (list->bytes >= REFERRERS_BYTES_MAX) {
        list->more = true;
        return STOP;
    }
    snprintf(key, sizeof(key), "%s%s", list->prefix, name);
    r = store_get(list->store, key, RECORD_MAX, &buf, &len, err);
    if (r == CAIRN_E_NOT_FOUND) /* deleted meanwhile */
        return CAIRN_OK;
    memcpy(list->last, name, sizeof(list->last));
    return r ? r : add_record(list, buf, len, err);
}

static void reply_referrers(const struct registry_call *call, const struct digest *subject,
                            const struct referrers *list)
{
    char text[DIGEST_STR_MAX], *body;
    json_t *json;
    int code;

    if (list->artifact_type)
        http_reply_header(call->reply, "OCI-Filters-Applied", "artifactType");
    if (list->more)
        http_reply_header(call->reply, "Link", "</v2/%s/referrers/%s?last=%s%s%s>; rel=\"next\"",
                          call->target.repo, digest_format(subject, text), list->last,
                          list->artifact_type ? "&artifactType=" : "",
                          list->artifact_type ? list->artifact_type : "");
    json = json_pack("{s:i, s:s, s:O}", "schemaVersion", 2, "mediaType", INDEX_MEDIA_TYPE,
                     "manifests", list->manifests);
    code = json_memory_dump(json, JSON_COMPACT, &body, NULL);
    json_decref(json);
    if (code == CAIRN_OK)
        http_reply_buffer(call->reply, MHD_HTTP_OK, INDEX_MEDIA_TYPE, body, strlen(body));
    else
        http_reply_status(call->reply, MHD_HTTP_SERVICE_UNAVAILABLE);
}

/* An unknown subject has an empty list: manifests and what refers to them come in any order. */
void registry_referrers(const struct registry_call *call)
{
    char prefix[REGISTRY_KEY_MAX];
    struct referrers list = {
        .store = call->store,
        .prefix = prefix,
        .artifact_type = http_query(call->req, "artifactType"),
        .manifests = json_array(),
    };
    struct cairn_error err;
    struct digest subject;

    if (registry_target_digest(call, &subject)) {
        registry_referrers_prefix(call->target.repo, &subject, prefix);
        if (store_list(call->store, prefix, http_query(call->req, "last"), add_referrer, &list,
                       &err) < 0)
            http_reply_failure(call->reply, &err);
        else
            reply_referrers(call, &subject, &list);
    }
    json_decref(list.manifests);
}
