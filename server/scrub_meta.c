/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scrubbing what is not a blob: manifests, each against its digest, and index objects, each part
 * against its checksum; and which tags damage touches.
 *
 * A damaged index object is deleted: it is derived, and built again by whoever needs it.
 */
#include "scrub_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain_index.h"
#include "collect_internal.h"
#include "log.h"
#include "registry_internal.h"
#include "repos.h"

/* -- Tags --------------------------------------------------------------------------------- */

struct tags_walk {
    struct store *store;
    const struct digest *blob; /* NULL: tags of the manifest */
    const struct digest *manifest;
    json_t *tags;
    bool needed;
};

/* Names nothing else in a manifest can be mistaken for: the digest's text. */
static int manifest_lists(struct store *store, const char *repo, const struct digest *manifest,
                          const struct digest *blob, bool *ret_lists, struct cairn_error *err)
{
    CLEANUP_FREE void *buf = NULL;
    char text[DIGEST_STR_MAX];
    size_t len;
    int r = registry_get_manifest(store, repo, manifest, &buf, &len, err);

    *ret_lists = false;
    if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_CORRUPT)
        return CAIRN_OK;
    if (!r)
        *ret_lists = memmem(buf, len, digest_format(blob, text), DIGEST_STR_MAX - 1) != NULL;
    return r;
}

static int visit_tag(void *ctx, const char *repo, const char *tag, const struct digest *manifest,
                     struct cairn_error *err)
{
    struct tags_walk *w = ctx;
    char name[REF_STR_MAX];
    bool lists;
    int r = CAIRN_OK;

    if (w->blob)
        r = manifest_lists(w->store, repo, manifest, w->blob, &lists, err);
    else
        lists = digest_equal(manifest, w->manifest);
    if (r || !lists)
        return r;
    snprintf(name, sizeof(name), "%s:%s", repo, tag);
    return json_array_append_new(w->tags, json_string(name))
               ? error_no_memory(err, "a list of tags")
               : CAIRN_OK;
}

static int visit_repo_of_blob(void *ctx, const char *repo, struct cairn_error *err)
{
    struct tags_walk *w = ctx;
    bool has;
    int r = repos_has_blob(w->store, repo, w->blob, &has, err);

    if (r || !has)
        return r;
    w->needed = true;
    return repos_walk_tags(w->store, repo, visit_tag, w, err);
}

int scrub_tags_of_blob(struct store *store, const struct digest *blob, json_t **ret_tags,
                       bool *ret_needed, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *tags = json_array();
    struct tags_walk w = {.store = store, .blob = blob, .tags = tags};
    int r = tags ? repos_walk(store, visit_repo_of_blob, &w, err)
                 : error_no_memory(err, "a list of tags");

    if (r)
        return r;
    *ret_tags = steal_ptr(tags);
    *ret_needed = w.needed;
    return CAIRN_OK;
}

/* -- Manifests ---------------------------------------------------------------------------- */

static int note_manifest(struct scrub_run *run, const char *repo, const struct digest *manifest,
                         const char *problem, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *tags = json_array();
    struct tags_walk w = {.store = run->store, .manifest = manifest, .tags = tags};
    char text[DIGEST_STR_MAX];
    int r = tags ? repos_walk_tags(run->store, repo, visit_tag, &w, err)
                 : error_no_memory(err, "a list of tags");

    if (r)
        return r;
    log_event(LOG_LEVEL_ERROR, "damaged", "manifest %s of repository %s: %s",
              digest_format(manifest, text), repo, problem);
    return scrub_note(run, SCRUB_DAMAGED_MANIFESTS,
                      json_pack("{s:s, s:s, s:s, s:s, s:I, s:O}", "kind", "manifest", "digest",
                                text, "repository", repo, "problem", problem, "found",
                                (json_int_t)time(NULL), "tags", tags),
                      err);
}

/* What it lists, for scrub_lost.  It may have been deleted since it was verified. */
static int take_lists(struct scrub_run *run, const char *repo, const struct digest *manifest,
                      struct cairn_error *err)
{
    const struct collect_lists lists = {.of_all = &run->listed};
    CLEANUP_FREE void *buf = NULL;
    size_t len;
    int r = registry_get_manifest(run->store, repo, manifest, &buf, &len, err);

    if (!r)
        r = collect_listed(buf, len, &lists, err);
    return r == CAIRN_E_NOT_FOUND || r == CAIRN_E_CORRUPT ? CAIRN_OK : r;
}

int scrub_manifest(struct scrub_run *run, const char *repo, const struct digest *manifest,
                   struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], problem[SCRUB_PROBLEM_MAX];
    enum scrub_verdict verdict;
    int r = scrub_verify(run, registry_repo_key(repo, "_manifests", manifest, key), manifest, false,
                         &verdict, problem, err);

    if (r || verdict == SCRUB_GONE)
        return r;
    scrub_count(run, "manifests", 1);
    run->progress.done++;
    return verdict == SCRUB_DAMAGED ? note_manifest(run, repo, manifest, problem, err)
                                    : take_lists(run, repo, manifest, err);
}

static int visit_manifest(void *ctx, const char *repo, const struct digest *manifest,
                          struct cairn_error *err)
{
    return scrub_manifest(ctx, repo, manifest, err);
}

static int visit_repo(void *ctx, const char *repo, struct cairn_error *err)
{
    struct scrub_run *run = ctx;

    return repos_walk_manifests(run->store, repo, visit_manifest, run, err);
}

int scrub_manifests(struct scrub_run *run, struct cairn_error *err)
{
    int r = scrub_phase(run, "manifests", 0, "manifests", err);

    return r ? r : repos_walk(run->store, visit_repo, run, err);
}

/* -- Blobs that are not there ------------------------------------------------------------- */

static int is_absent(struct scrub_run *run, const struct digest *blob, bool *ret_absent,
                     struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    uint64_t size;
    int r = store_head(run->store, registry_blob_key(blob, key), &size, err);

    *ret_absent = r == CAIRN_E_NOT_FOUND;
    return *ret_absent ? CAIRN_OK : r;
}

/* It is lost if a repository and a tag need it, and if it is still absent when that is known: it
 * may be on its way out, or in. */
static int check_lost(struct scrub_run *run, const struct digest *blob, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *tags = NULL;
    struct cairn_error why;
    bool absent, needed = false;
    int r = is_absent(run, blob, &absent, err);

    if (r || !absent)
        return r;
    r = quarantine_check(run->store, blob, &why);
    if (r == CAIRN_E_NOT_FOUND)
        return CAIRN_OK; /* named with all that is in quarantine */
    r = scrub_tags_of_blob(run->store, blob, &tags, &needed, err);
    if (!r && needed && json_array_size(tags) > 0)
        r = is_absent(run, blob, &absent, err);
    else
        absent = false;
    return r || !absent ? r : scrub_note_blob(run, blob, SCRUB_LOST, tags, err);
}

int scrub_lost(struct scrub_run *run, struct cairn_error *err)
{
    static const struct digest none;
    int r = scrub_phase(run, "listed", run->listed.nr, "blobs", err);

    for (size_t i = 0; i < run->listed.nr_slots && !r; i++) {
        if (digest_equal(&run->listed.slots[i], &none))
            continue;
        r = check_lost(run, &run->listed.slots[i], err);
        run->progress.done++;
        if (!r)
            r = jobs_progress(run->job, &run->progress, err);
    }
    return r;
}

/* -- Index objects ------------------------------------------------------------------------ */

/* Reads all of it: the reader checks what it reads. */
static int read_index(struct source *src, const struct digest *chain_id, struct cairn_error *err)
{
    CLEANUP(index_reader_free_p) struct index_reader *reader = NULL;
    const struct index_l1 *l1;
    int r = index_reader_open(src, chain_id, &reader, err);

    if (r)
        return r;
    l1 = index_reader_l1(reader);
    for (uint32_t i = 0; i < l1->nr_slices && !r; i++) {
        CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;

        if (l1->slices[i] == l1->depth - 1)
            r = index_reader_slice(reader, i, l1->depth - 1, chain_id, &slice, err);
    }
    return r == CAIRN_E_NOT_FOUND ? error_set(err, CAIRN_E_CORRUPT, "a slice is missing") : r;
}

/* A flipped bit also makes another version of the format, or a size beyond the limits. */
static bool is_of_the_object(int code)
{
    return code == CAIRN_E_CORRUPT || code == CAIRN_E_IO || code == CAIRN_E_UNSUPPORTED ||
           code == CAIRN_E_LIMIT;
}

static int check_index(struct scrub_run *run, const char *key, const struct digest *chain_id,
                       enum scrub_verdict *ret_verdict, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    int r = store_open_source(run->store, key, &src, err);

    *ret_verdict = r == CAIRN_E_NOT_FOUND ? SCRUB_GONE : SCRUB_GOOD;
    if (r == CAIRN_E_NOT_FOUND)
        return CAIRN_OK;
    if (!r)
        r = read_index(src, chain_id, err);
    if (is_of_the_object(r)) {
        *ret_verdict = SCRUB_DAMAGED;
        r = CAIRN_OK;
    }
    return r ? r : scrub_pace(run, src ? src->size : 0, err);
}

static int drop_index(struct scrub_run *run, const char *key, const struct digest *chain_id,
                      struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];
    int r = store_delete(run->store, key, err);

    if (r && r != CAIRN_E_NOT_FOUND)
        return r;
    log_event(LOG_LEVEL_WARN, "dropped", "%s was damaged", key);
    return scrub_note(run, "dropped", json_string(digest_format(chain_id, text)), err);
}

static int visit_index(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct scrub_run *run = arg;
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX + 1];
    enum scrub_verdict verdict;
    struct digest chain_id;
    int len = snprintf(text, sizeof(text), "sha256:%s", name), r;

    if (is_prefix || len >= (int)sizeof(text) || digest_parse(text, (size_t)len, &chain_id, NULL))
        return CAIRN_OK;
    snprintf(key, sizeof(key), "index/%.2s/%s", name, name);
    r = check_index(run, key, &chain_id, &verdict, err);
    if (!r && verdict == SCRUB_DAMAGED)
        r = check_index(run, key, &chain_id, &verdict, err);
    if (r || verdict == SCRUB_GONE)
        return r;
    scrub_count(run, "indexObjects", 1);
    run->progress.done++;
    return verdict == SCRUB_DAMAGED ? drop_index(run, key, &chain_id, err) : CAIRN_OK;
}

static int visit_index_folder(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct scrub_run *run = arg;
    char prefix[16];

    if (!is_prefix || strlen(name) != 2)
        return CAIRN_OK;
    snprintf(prefix, sizeof(prefix), "index/%s/", name);
    return store_list(run->store, prefix, NULL, visit_index, run, err);
}

int scrub_index(struct scrub_run *run, struct cairn_error *err)
{
    int r = scrub_phase(run, "index", 0, "objects", err);

    return r ? r : store_list(run->store, "index/", NULL, visit_index_folder, run, err);
}
