/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks over repositories.  A repository's own folders start with '_', others are the next
 * components of longer names.
 */
#include "repos.h"

#include <stdio.h>
#include <string.h>

#include "registry_internal.h"

/* -- Repositories ------------------------------------------------------------------------- */

struct walk {
    struct store *store;
    const char *path; /* of the repository whose folder is listed; "" at the top */
    repos_fn fn;
    void *ctx;
    bool has_own; /* it is a repository itself */
};

static int walk_folder(struct walk *w, struct cairn_error *err);

static int visit(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct walk *w = arg;
    char path[REGISTRY_REPO_MAX];
    struct walk below = {.store = w->store, .path = path, .fn = w->fn, .ctx = w->ctx};
    int len;

    if (!is_prefix)
        return CAIRN_OK;
    if (name[0] == '_') {
        w->has_own = true;
        return CAIRN_OK;
    }
    len = snprintf(path, sizeof(path), "%s%s%s", w->path, w->path[0] ? "/" : "", name);
    if (len >= (int)sizeof(path) || !ref_valid_repo(path))
        return CAIRN_OK; /* not of our making */
    return walk_folder(&below, err);
}

static int walk_folder(struct walk *w, struct cairn_error *err)
{
    char prefix[REGISTRY_KEY_MAX];
    int r;

    snprintf(prefix, sizeof(prefix), "repos/%s%s", w->path, w->path[0] ? "/" : "");
    r = store_list(w->store, prefix, NULL, visit, w, err);
    return !r && w->has_own && w->path[0] ? w->fn(w->ctx, w->path, err) : r;
}

int repos_walk(struct store *store, repos_fn fn, void *ctx, struct cairn_error *err)
{
    struct walk w = {.store = store, .path = "", .fn = fn, .ctx = ctx};

    return walk_folder(&w, err);
}

/* -- What one holds ----------------------------------------------------------------------- */

struct listing {
    struct store *store;
    const char *repo;
    repos_manifest_fn manifest_fn;
    repos_tag_fn tag_fn;
    void *ctx;
};

static int visit_manifest(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct listing *l = arg;
    char text[DIGEST_STR_MAX + 1];
    struct digest digest;
    int len = snprintf(text, sizeof(text), "sha256:%s", name);

    if (is_prefix || len >= (int)sizeof(text) || digest_parse(text, (size_t)len, &digest, NULL))
        return CAIRN_OK;
    return l->manifest_fn(l->ctx, l->repo, &digest, err);
}

int repos_walk_manifests(struct store *store, const char *repo, repos_manifest_fn fn, void *ctx,
                         struct cairn_error *err)
{
    struct listing l = {.store = store, .repo = repo, .manifest_fn = fn, .ctx = ctx};
    char prefix[REGISTRY_KEY_MAX];

    snprintf(prefix, sizeof(prefix), "repos/%s/_manifests/", repo);
    return store_list(store, prefix, NULL, visit_manifest, &l, err);
}

static int visit_tag(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct listing *l = arg;
    CLEANUP_FREE void *value = NULL;
    char key[REGISTRY_KEY_MAX];
    struct digest digest;
    size_t len;
    int r;

    if (is_prefix || !ref_valid_tag(name))
        return CAIRN_OK;
    r = store_get(l->store, registry_tag_key(l->repo, name, key), DIGEST_STR_MAX, &value, &len,
                  err);
    if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_LIMIT)
        return CAIRN_OK;
    if (r || digest_parse(value, len, &digest, NULL))
        return r;
    return l->tag_fn(l->ctx, l->repo, name, &digest, err);
}

int repos_walk_tags(struct store *store, const char *repo, repos_tag_fn fn, void *ctx,
                    struct cairn_error *err)
{
    struct listing l = {.store = store, .repo = repo, .tag_fn = fn, .ctx = ctx};
    char prefix[REGISTRY_KEY_MAX];

    snprintf(prefix, sizeof(prefix), "repos/%s/_tags/", repo);
    return store_list(store, prefix, NULL, visit_tag, &l, err);
}

int repos_has_blob(struct store *store, const char *repo, const struct digest *blob, bool *ret_has,
                   struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    uint64_t size;
    int r = store_head(store, registry_repo_key(repo, "_blobs", blob, key), &size, err);

    *ret_has = r == CAIRN_OK;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}
