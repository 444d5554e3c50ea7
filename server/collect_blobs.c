/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What repositories share: blobs, by the links and manifests of all of them, and index objects.
 */
#include <stdio.h>
#include <string.h>

#include "claims.h"
#include "collect_internal.h"
#include "step.h"

/* -- Blobs ------------------------------------------------------------------------------------ */

static int claimed_blobs(void *arg, const char *repo, const void *manifest, size_t len,
                         struct cairn_error *err)
{
    struct run *run = arg;

    (void)repo;
    return collect_claimed(manifest, len, &(struct collect_lists){.of_all = &run->blobs}, err);
}

static int linked_blob(void *arg, const struct digest *d, struct cairn_error *err)
{
    struct run *run = arg;

    return digest_set_add(&run->blobs, d, err);
}

struct repo_walk {
    struct run *run;
    const char *repo;
};

/* One that is not known yet; what cannot be read has its links, which are kept. */
static int listed_blobs(void *arg, const struct digest *d, struct cairn_error *err)
{
    const struct repo_walk *walk = arg;
    struct run *run = walk->run;
    char key[REGISTRY_KEY_MAX];
    CLEANUP_FREE char *text = NULL;
    int r;

    if (digest_set_has(&run->read, d))
        return CAIRN_OK;
    registry_repo_key(walk->repo, "_manifests", d, key);
    r = store_get_text(run->store, key, MANIFEST_BYTES_MAX, &text, err);
    if (!r)
        r = collect_listed(text, strlen(text),
                           &(struct collect_lists){.of_all = &run->blobs, .chains = &run->chains},
                           err);
    return r == CAIRN_E_NOT_FOUND || run_cannot_read(r) ? CAIRN_OK : r;
}

static int mark_repo(struct run *run, const char *repo, struct cairn_error *err)
{
    struct repo_walk walk = {run, repo};
    char prefix[REGISTRY_KEY_MAX];
    int r;

    snprintf(prefix, sizeof(prefix), "repos/%s/_blobs/", repo);
    r = collect_each_digest(run->store, prefix, linked_blob, run, err);
    snprintf(prefix, sizeof(prefix), "repos/%s/_manifests/", repo);
    return r ? r : collect_each_digest(run->store, prefix, listed_blobs, &walk, err);
}

static int judge_blob(void *arg, const struct digest *d, struct cairn_error *err)
{
    struct dead *dead = arg;

    dead->run->result->kinds[COLLECT_BLOBS].seen++;
    return digest_set_has(&dead->run->blobs, d) ? CAIRN_OK : dead_add(dead, d, NULL, err);
}

static int mark_again(struct run *run, struct cairn_error *err)
{
    int r = claims_each(run->store, run->options.claim_age_s, claimed_blobs, run,
                        &run->result->broken_claims, err);

    step_reached(STEP_CLAIMS_READ);
    if (!r)
        r = collect_each_repo(run, "links", mark_repo, err);
    step_reached(STEP_MARKED_AGAIN);
    return r;
}

static int judge_blobs(struct run *run, struct dead *dead, struct cairn_error *err)
{
    int r = run->options.dry_run ? CAIRN_OK : collect_each_repo(run, "links", mark_repo, err);

    step_reached(STEP_MARKED);
    if (!r)
        r = run_clock(run, err);
    if (!r)
        r = collect_each_spread(run, "blobs", "blobs/sha256/", judge_blob, dead, err);
    if (r || dead->nr == 0)
        return r;
    if (!run->options.dry_run)
        r = mark_again(run, err);
    if (!r)
        r = dead_pardon(dead, &run->blobs, err);
    return r ? r : dead_delete(dead, err);
}

int collect_blobs(struct run *run, struct cairn_error *err)
{
    CLEANUP(dead_release) struct dead dead;

    dead_init(&dead, run, COLLECT_BLOBS, NULL);
    return judge_blobs(run, &dead, err);
}

/* -- Index objects ---------------------------------------------------------------------------- */

static int judge_index(void *arg, const struct digest *chain_id, struct cairn_error *err)
{
    struct run *run = arg;
    struct collect_count *count = &run->result->kinds[COLLECT_INDEX];
    char key[REGISTRY_KEY_MAX], hex[DIGEST_HEX_LEN + 1];
    uint64_t size = 0;
    bool young;
    int r;

    count->seen++;
    if (digest_set_has(&run->chains, chain_id))
        return CAIRN_OK;
    digest_format_hex(chain_id, hex);
    snprintf(key, sizeof(key), "index/%.2s/%s", hex, hex);
    r = run_is_young(run, key, &young, &size, err);
    if (r || young)
        return r;
    count->condemned++;
    if (!run->options.dry_run)
        r = store_delete(run->store, key, err);
    if (r)
        return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
    count->deleted++;
    count->bytes += size;
    return CAIRN_OK;
}

int collect_index(struct run *run, struct cairn_error *err)
{
    int r = run_clock(run, err);

    return r ? r : collect_each_spread(run, "index", "index/", judge_index, run, err);
}
