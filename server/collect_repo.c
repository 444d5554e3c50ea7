/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One repository: its manifests, then its links.
 */
#include <stdio.h>
#include <string.h>

#include "claims.h"
#include "collect_internal.h"
#include "json_memory.h"
#include "leases.h"
#include "log.h"
#include "step.h"

#define TAG_VALUE_MAX 256

/* A manifest that refers to a subject. */
struct reference {
    struct digest subject, manifest;
};

struct repo {
    struct run *run;
    const char *name;
    struct digest_set live;   /* manifests */
    struct digest_set listed; /* by manifests that exist */
    struct digest_set read;   /* manifests whose lists are in listed */
    struct reference *references;
    size_t nr_references, max_references;
    struct dead manifests, links;
    bool unreadable; /* something is; then nothing of that kind is condemned */
};

static void repo_init(struct repo *repo, struct run *run, const char *name)
{
    *repo = (struct repo){.run = run, .name = name};
    digest_set_init(&repo->live, &run->budget);
    digest_set_init(&repo->listed, &run->budget);
    digest_set_init(&repo->read, &run->budget);
    dead_init(&repo->manifests, run, COLLECT_MANIFESTS, name);
    dead_init(&repo->links, run, COLLECT_LINKS, name);
}

static void repo_release(struct repo *repo)
{
    digest_set_release(&repo->live);
    digest_set_release(&repo->listed);
    digest_set_release(&repo->read);
    dead_release(&repo->manifests);
    dead_release(&repo->links);
    free(repo->references);
}

static char *repo_prefix(const struct repo *repo, const char *kind, char prefix[REGISTRY_KEY_MAX])
{
    snprintf(prefix, REGISTRY_KEY_MAX, "repos/%s/%s/", repo->name, kind);
    return prefix;
}

static void note_unreadable(struct repo *repo, const struct cairn_error *err)
{
    if (!repo->unreadable)
        repo->run->result->kept_repositories++;
    repo->unreadable = true;
    log_error("gc-keeps-repository", err);
}

/* What cannot be read keeps what there is, and what has gone keeps nothing; else the run fails. */
static int pass_over(struct repo *repo, int code, const struct cairn_error *why,
                     struct cairn_error *err)
{
    if (code == CAIRN_E_NOT_FOUND)
        return CAIRN_OK;
    if (run_cannot_read(code)) {
        note_unreadable(repo, why);
        return CAIRN_OK;
    }
    if (err)
        *err = *why;
    return code;
}

/* -- Which manifests are live ----------------------------------------------------------------- */

static int claimed_manifest(void *arg, const char *name, const void *manifest, size_t len,
                            struct cairn_error *err)
{
    struct repo *repo = arg;
    struct digest d;

    if (strcmp(name, repo->name) != 0)
        return CAIRN_OK;
    digest_of(manifest, len, &d);
    return digest_set_add(&repo->live, &d, err);
}

static int leased_manifest(void *arg, const struct lease *lease, struct cairn_error *err)
{
    struct repo *repo = arg;

    if (strcmp(lease->ref.repo, repo->name) != 0)
        return CAIRN_OK;
    return digest_set_add(&repo->live, &lease->ref.digest, err);
}

static int tagged_manifest(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct repo *repo = arg;
    char key[REGISTRY_KEY_MAX];
    CLEANUP_FREE char *value = NULL;
    struct cairn_error why;
    struct digest d;
    int r;

    if (is_prefix)
        return CAIRN_OK;
    r = store_get_text(repo->run->store, registry_tag_key(repo->name, name, key), TAG_VALUE_MAX,
                       &value, &why);
    if (!r && digest_parse(value, strlen(value), &d, &why))
        r = CAIRN_E_CORRUPT;
    if (!r)
        return digest_set_add(&repo->live, &d, err);
    error_prefix(&why, r, "tag %s:%s", repo->name, name);
    return pass_over(repo, r, &why, err);
}

static int young_manifest(void *arg, const struct digest *d, struct cairn_error *err)
{
    struct repo *repo = arg;
    char key[REGISTRY_KEY_MAX];
    bool young;
    int r = run_is_young(repo->run, registry_repo_key(repo->name, "_manifests", d, key), &young,
                         NULL, err);

    return r || !young ? r : digest_set_add(&repo->live, d, err);
}

/* -- Referrers -------------------------------------------------------------------------------- */

struct subject_walk {
    struct repo *repo;
    struct digest subject;
};

static int add_reference(void *arg, const struct digest *d, struct cairn_error *err)
{
    const struct subject_walk *walk = arg;
    struct repo *repo = walk->repo;

    if (repo->nr_references == repo->max_references) {
        size_t max = repo->max_references ? 2 * repo->max_references : 16;
        struct reference *references = reallocarray(repo->references, max, sizeof(*references));

        if (!references)
            return error_no_memory(err, "a repository's referrers");
        repo->references = references;
        repo->max_references = max;
    }
    repo->references[repo->nr_references++] = (struct reference){walk->subject, *d};
    return CAIRN_OK;
}

static int read_referrers(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct subject_walk walk = {.repo = arg};
    char prefix[REGISTRY_KEY_MAX];

    if (!is_prefix || !collect_parse_hex(name, &walk.subject))
        return CAIRN_OK;
    registry_referrers_prefix(walk.repo->name, &walk.subject, prefix);
    return collect_each_digest(walk.repo->run->store, prefix, add_reference, &walk, err);
}

/* Whoever refers to what is live is live; until there are no more of them. */
static int follow_references(struct repo *repo, struct cairn_error *err)
{
    bool found = true;

    while (found) {
        found = false;
        for (size_t i = 0; i < repo->nr_references; i++) {
            const struct reference *ref = &repo->references[i];
            int r;

            if (!digest_set_has(&repo->live, &ref->subject) ||
                digest_set_has(&repo->live, &ref->manifest))
                continue;
            found = true;
            r = digest_set_add(&repo->live, &ref->manifest, err);
            if (r)
                return r;
        }
    }
    return CAIRN_OK;
}

static const struct digest *subject_of(const struct repo *repo, const struct digest *d)
{
    for (size_t i = 0; i < repo->nr_references; i++)
        if (digest_equal(&repo->references[i].manifest, d))
            return &repo->references[i].subject;
    return NULL;
}

/* Steps 1 and 3: claims and leases, and only then what else there is. */
static int mark_manifests(struct repo *repo, struct cairn_error *err)
{
    struct run *run = repo->run;
    struct collect_result *result = run->result;
    char prefix[REGISTRY_KEY_MAX];
    bool dry = run->options.dry_run;
    int r = claims_each(run->store, dry ? UINT64_MAX / 1000000 : run->options.claim_age_s,
                        claimed_manifest, repo, &result->broken_claims, err);

    if (!r)
        r = leases_each(run->store, leased_manifest, repo, dry ? NULL : &result->expired_leases,
                        err);
    step_reached(STEP_CLAIMS_READ);
    if (!r)
        r = store_list(run->store, repo_prefix(repo, "_tags", prefix), NULL, tagged_manifest, repo,
                       err);
    if (!r)
        r = collect_each_digest(run->store, repo_prefix(repo, "_manifests", prefix), young_manifest,
                                repo, err);
    repo->nr_references = 0;
    if (!r)
        r = store_list(run->store, repo_prefix(repo, "_referrers", prefix), NULL, read_referrers,
                       repo, err);
    return r ? r : follow_references(repo, err);
}

static int judge_manifest(void *arg, const struct digest *d, struct cairn_error *err)
{
    struct repo *repo = arg;

    repo->run->result->kinds[COLLECT_MANIFESTS].seen++;
    if (digest_set_has(&repo->live, d))
        return CAIRN_OK;
    return dead_add(&repo->manifests, d, subject_of(repo, d), err);
}

static int collect_manifests(struct repo *repo, struct cairn_error *err)
{
    char prefix[REGISTRY_KEY_MAX];
    int r = mark_manifests(repo, err);

    step_reached(STEP_MARKED);
    if (!r && !repo->unreadable)
        r = collect_each_digest(repo->run->store, repo_prefix(repo, "_manifests", prefix),
                                judge_manifest, repo, err);
    if (r || repo->manifests.nr == 0)
        return r;
    if (!repo->run->options.dry_run) {
        digest_set_release(&repo->live);
        r = mark_manifests(repo, err);
        step_reached(STEP_MARKED_AGAIN);
    }
    if (!r && repo->unreadable) /* only now: then nothing goes */
        r = dead_keep_all(&repo->manifests, err);
    if (!r)
        r = dead_pardon(&repo->manifests, &repo->live, err);
    return r ? r : dead_delete(&repo->manifests, err);
}

/* -- Which links are live --------------------------------------------------------------------- */

static int claimed_blobs(void *arg, const char *name, const void *manifest, size_t len,
                         struct cairn_error *err)
{
    struct repo *repo = arg;

    if (strcmp(name, repo->name) != 0)
        return CAIRN_OK;
    return collect_claimed(manifest, len, &(struct collect_lists){.of_repo = &repo->listed}, err);
}

static int take_lists(struct repo *repo, const struct digest *d, const void *buf, size_t len,
                      struct cairn_error *err)
{
    struct run *run = repo->run;
    const struct collect_lists lists = {
        .of_repo = &repo->listed, .of_all = &run->blobs, .chains = &run->chains};
    struct digest actual;
    int r;

    digest_of(buf, len, &actual);
    if (!digest_equal(&actual, d))
        return error_set(err, CAIRN_E_CORRUPT, "its bytes in the store differ");
    r = collect_listed(buf, len, &lists, err);
    if (!r)
        r = digest_set_add(&run->read, d, err);
    return r ? r : digest_set_add(&repo->read, d, err);
}

static int read_lists(struct repo *repo, const struct digest *d, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    CLEANUP_FREE char *text = NULL;
    int r = store_get_text(repo->run->store, registry_repo_key(repo->name, "_manifests", d, key),
                           MANIFEST_BYTES_MAX, &text, err);

    return r ? r : take_lists(repo, d, text, strlen(text), err);
}

/* In a dry run what would be gone by now counts as gone. */
static int list_manifest(void *arg, const struct digest *d, struct cairn_error *err)
{
    struct repo *repo = arg;
    char text[DIGEST_STR_MAX];
    struct cairn_error why;
    int r;

    if (digest_set_has(&repo->read, d) ||
        (repo->run->options.dry_run && digest_set_has(&repo->manifests.gone, d)))
        return CAIRN_OK;
    r = read_lists(repo, d, &why);
    if (!r)
        return CAIRN_OK;
    error_prefix(&why, r, "manifest %s of %s", digest_format(d, text), repo->name);
    return pass_over(repo, r, &why, err);
}

static int judge_link(void *arg, const struct digest *d, struct cairn_error *err)
{
    struct repo *repo = arg;

    repo->run->result->kinds[COLLECT_LINKS].seen++;
    if (repo->unreadable || digest_set_has(&repo->listed, d))
        return CAIRN_OK;
    return dead_add(&repo->links, d, NULL, err);
}

/* In a dry run blobs are judged by what links would be left. */
static int note_link_left(void *arg, const struct digest *d, struct cairn_error *err)
{
    struct repo *repo = arg;

    return digest_set_has(&repo->links.gone, d) ? CAIRN_OK
                                                : digest_set_add(&repo->run->blobs, d, err);
}

static int mark_links_again(struct repo *repo, struct cairn_error *err)
{
    struct run *run = repo->run;
    char prefix[REGISTRY_KEY_MAX];
    int r = claims_each(run->store, run->options.claim_age_s, claimed_blobs, repo,
                        &run->result->broken_claims, err);

    step_reached(STEP_CLAIMS_READ);
    if (!r)
        r = collect_each_digest(run->store, repo_prefix(repo, "_manifests", prefix), list_manifest,
                                repo, err);
    step_reached(STEP_MARKED_AGAIN);
    return r;
}

static int collect_links(struct repo *repo, struct cairn_error *err)
{
    struct run *run = repo->run;
    char prefix[REGISTRY_KEY_MAX];
    int r = collect_each_digest(run->store, repo_prefix(repo, "_manifests", prefix), list_manifest,
                                repo, err);

    step_reached(STEP_MARKED);
    if (!r)
        r = collect_each_digest(run->store, repo_prefix(repo, "_blobs", prefix), judge_link, repo,
                                err);
    if (!r && repo->links.nr > 0 && !run->options.dry_run)
        r = mark_links_again(repo, err);
    if (!r && repo->unreadable)
        r = dead_keep_all(&repo->links, err);
    if (!r)
        r = dead_pardon(&repo->links, &repo->listed, err);
    if (!r)
        r = dead_delete(&repo->links, err);
    if (!r && run->options.dry_run)
        r = collect_each_digest(run->store, repo_prefix(repo, "_blobs", prefix), note_link_left,
                                repo, err);
    return r;
}

int collect_repo(struct run *run, const char *name, struct cairn_error *err)
{
    CLEANUP(repo_release) struct repo repo;
    int r;

    repo_init(&repo, run, name);
    r = collect_manifests(&repo, err);
    return r ? r : collect_links(&repo, err);
}
