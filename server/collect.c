/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The run: its begin and end, and walking the store.  What it does and why it may is told in
 * collect.h.
 */
#include "collect_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "json_memory.h"
#include "log.h"
#include "step.h"
#include "store_backend.h"

#define RUN_KEY "gc/run"

const char *const collect_kind_names[NR_COLLECT_KINDS] = {
    "manifests", "links", "blobs", "index", "uploads", "temporaries",
};

int run_progress(struct run *run, const char *phase, uint64_t done, uint64_t total,
                 const char *unit, struct cairn_error *err)
{
    if (!run->watch || !run->watch->progress)
        return CAIRN_OK;
    return run->watch->progress(run->watch->ctx, phase, done, total, unit, err);
}

int run_clock(struct run *run, struct cairn_error *err)
{
    return store_now(run->store, &run->now_us, err);
}

int run_is_young(struct run *run, const char *key, bool *ret_young, uint64_t *ret_size,
                 struct cairn_error *err)
{
    struct store_stat st = {0};
    int r = store_stat(run->store, key, &st, err);

    *ret_young = false;
    if (r)
        return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
    if (ret_size)
        *ret_size = st.size;
    *ret_young = store_age_us(run->now_us, st.time_us) < run->options.grace_s * 1000000;
    return CAIRN_OK;
}

bool run_cannot_read(int code)
{
    return code == CAIRN_E_CORRUPT || code == CAIRN_E_IO;
}

/* -- Names ------------------------------------------------------------------------------------ */

bool collect_parse_hex(const char *name, struct digest *ret_digest)
{
    char text[DIGEST_STR_MAX];

    if (strlen(name) != DIGEST_HEX_LEN)
        return false;
    snprintf(text, sizeof(text), "sha256:%s", name);
    return digest_parse(text, strlen(text), ret_digest, NULL) == CAIRN_OK;
}

struct digest_walk {
    collect_digest_fn fn;
    void *arg;
};

static int visit_digest(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct digest_walk *walk = arg;
    struct digest d;

    if (is_prefix || !collect_parse_hex(name, &d))
        return CAIRN_OK; /* not of our making */
    return walk->fn(walk->arg, &d, err);
}

int collect_each_digest(struct store *store, const char *prefix, collect_digest_fn fn, void *arg,
                        struct cairn_error *err)
{
    struct digest_walk walk = {fn, arg};

    return store_list(store, prefix, NULL, visit_digest, &walk, err);
}

int collect_each_spread(struct run *run, const char *phase, const char *prefix,
                        collect_digest_fn fn, void *arg, struct cairn_error *err)
{
    int r = run_progress(run, phase, 0, 256, "folders", err);

    for (unsigned i = 0; i < 256 && !r; i++) {
        char folder[REGISTRY_KEY_MAX];

        snprintf(folder, sizeof(folder), "%s%02x/", prefix, i);
        r = collect_each_digest(run->store, folder, fn, arg, err);
        if (!r)
            r = run_progress(run, phase, i + 1, 256, "folders", err);
    }
    return r;
}

/* -- Repositories ----------------------------------------------------------------------------- */

struct repos {
    struct store *store;
    char **names;
    size_t nr, max;
};

static void repos_release(struct repos *repos)
{
    for (size_t i = 0; i < repos->nr; i++)
        free(repos->names[i]);
    free(repos->names);
}

static int repos_add(struct repos *repos, const char *name, struct cairn_error *err)
{
    if (repos->nr == repos->max) {
        size_t max = repos->max ? 2 * repos->max : 64;
        char **names = reallocarray(repos->names, max, sizeof(*names));

        if (!names)
            return error_no_memory(err, "the repositories");
        repos->names = names;
        repos->max = max;
    }
    repos->names[repos->nr] = strdup(name);
    return repos->names[repos->nr++] ? CAIRN_OK : error_no_memory(err, "the repositories");
}

/* A folder below the folder of names[at] ("": of all), which may be a repository. */
struct repo_folder {
    struct repos *repos;
    const char *path;
};

static int visit_repo(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct repo_folder *folder = arg;
    char path[REGISTRY_REPO_MAX];
    int len;

    if (!is_prefix || name[0] == '_')
        return CAIRN_OK;
    len = snprintf(path, sizeof(path), "%s%s%s", folder->path, folder->path[0] ? "/" : "", name);
    if (len >= (int)sizeof(path) || !ref_valid_repo(path))
        return CAIRN_OK; /* not of our making */
    return repos_add(folder->repos, path, err);
}

/* Those found are looked into in their turn. */
static int find_repos(struct repos *repos, struct cairn_error *err)
{
    struct repo_folder folder = {.repos = repos, .path = ""};
    int r = store_list(repos->store, "repos/", NULL, visit_repo, &folder, err);

    for (size_t i = 0; i < repos->nr && !r; i++) {
        char prefix[REGISTRY_KEY_MAX], path[REGISTRY_REPO_MAX];

        snprintf(path, sizeof(path), "%s", repos->names[i]);
        snprintf(prefix, sizeof(prefix), "repos/%s/", path);
        folder.path = path;
        r = store_list(repos->store, prefix, NULL, visit_repo, &folder, err);
    }
    return r;
}

int collect_each_repo(struct run *run, const char *phase, collect_repo_fn fn,
                      struct cairn_error *err)
{
    CLEANUP(repos_release) struct repos repos = {.store = run->store};
    int r = find_repos(&repos, err);

    for (size_t i = 0; i < repos.nr && !r; i++) {
        r = run_progress(run, phase, i, repos.nr, "repositories", err);
        if (!r)
            r = run_clock(run, err);
        if (!r)
            r = fn(run, repos.names[i], err);
    }
    return r ? r : run_progress(run, phase, repos.nr, repos.nr, "repositories", err);
}

/* -- Begin and end ---------------------------------------------------------------------------- */

int collect_is_running(struct store *store, bool *ret_running, struct cairn_error *err)
{
    uint64_t size;
    int r = store_head(store, RUN_KEY, &size, err);

    *ret_running = r == CAIRN_OK;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

static int begin(struct run *run, struct cairn_error *err)
{
    int r;

    if (run->options.dry_run)
        return CAIRN_OK;
    r = store_put(run->store, RUN_KEY, run->id, strlen(run->id), STORE_PUT_REPLACE, err);
    step_reached(STEP_RUN_BEGUN);
    if (!r)
        r = condemned_recover(run->store, err);
    step_reached(STEP_RUN_RECOVERED);
    return r;
}

/* Also after a failure: publishers are not to look for markers for ever.  If that fails, too, the
 * next run does it. */
static int end(struct run *run, int r, struct cairn_error *err)
{
    if (run->options.dry_run)
        return r;
    if (r && condemned_recover(run->store, NULL))
        return r;
    step_reached(STEP_RUN_ENDED);
    if (r) {
        store_delete(run->store, RUN_KEY, NULL);
        return r;
    }
    return store_delete(run->store, RUN_KEY, err);
}

static int count_upload(void *arg, const struct store_upload *upload, struct cairn_error *err)
{
    struct run *run = arg;
    struct collect_count *count = &run->result->kinds[COLLECT_UPLOADS];

    (void)err;
    count->seen++;
    if (upload->age_s < run->options.upload_age_s)
        return CAIRN_OK;
    count->deleted++;
    count->bytes += upload->size;
    return CAIRN_OK;
}

/* What is said of the uploads is what is there before; what is removed is what is old then. */
static int expire(struct run *run, struct cairn_error *err)
{
    struct collect_count *temporaries = &run->result->kinds[COLLECT_TEMPORARIES];
    struct store_expired expired = {0};
    int r = store_list_uploads(run->store, count_upload, run, err);

    if (r || run->options.dry_run)
        return r;
    r = store_expire_uploads(run->store, run->options.upload_age_s, &expired, err);
    run->result->kinds[COLLECT_UPLOADS].deleted = expired.nr;
    run->result->kinds[COLLECT_UPLOADS].bytes = expired.bytes;
    expired = (struct store_expired){0};
    if (!r)
        r = store_expire_temporaries(run->store, &expired, err);
    temporaries->deleted = expired.nr;
    temporaries->bytes = expired.bytes;
    return r;
}

static int collect_all(struct run *run, struct cairn_error *err)
{
    int r = collect_each_repo(run, "repositories", collect_repo, err);

    if (!r)
        r = collect_blobs(run, err);
    if (!r)
        r = collect_index(run, err);
    return r ? r : expire(run, err);
}

static void sum_up(struct collect_result *result)
{
    for (size_t i = 0; i < NR_COLLECT_KINDS; i++)
        result->bytes += result->kinds[i].bytes;
}

int collect_run(struct store *store, const struct collect_options *options,
                const struct collect_watch *watch, struct collect_result *ret_result,
                struct cairn_error *err)
{
    struct run run = {.store = store, .options = *options, .watch = watch, .result = ret_result};
    int r;

    *ret_result = (struct collect_result){0};
    run.budget.max_bytes = options->max_memory;
    digest_set_init(&run.blobs, &run.budget);
    digest_set_init(&run.read, &run.budget);
    digest_set_init(&run.chains, &run.budget);
    snprintf(run.id, sizeof(run.id), "gc-");
    r = store_random_hex(run.id + strlen(run.id), 16, err);
    if (!r)
        r = begin(&run, err);
    if (!r)
        r = collect_all(&run, err);
    r = end(&run, r, err);
    digest_set_release(&run.blobs);
    digest_set_release(&run.read);
    digest_set_release(&run.chains);
    sum_up(ret_result);
    return r;
}
