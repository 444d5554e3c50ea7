/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Claims in the store: the repository's name, a newline, the manifest.  Nobody has looked at the
 * manifest yet when it is claimed.
 */
#include "claims.h"

#include <stdio.h>
#include <string.h>

#include "manifest.h"
#include "store_backend.h"

#define PREFIX    "claims/"
#define BYTES_MAX (MANIFEST_BYTES_MAX + 1024)

int claim_take(struct store *store, const char *repo, const void *manifest, size_t len,
               struct claim *ret_claim, struct cairn_error *err)
{
    size_t repo_len = strlen(repo);
    CLEANUP_FREE char *text = malloc(repo_len + 1 + len);
    int r;

    if (!text)
        return error_no_memory(err, "a claim");
    memcpy(text, repo, repo_len);
    text[repo_len] = '\n';
    memcpy(text + repo_len + 1, manifest, len);
    memcpy(ret_claim->key, PREFIX, sizeof(PREFIX));
    r = store_random_hex(ret_claim->key + strlen(PREFIX), 32, err);
    if (!r)
        r = store_put(store, ret_claim->key, text, repo_len + 1 + len, STORE_PUT_NOTE, err);
    return r;
}

int claim_held(struct store *store, const struct claim *claim, bool *ret_held,
               struct cairn_error *err)
{
    uint64_t size;
    int r = store_head(store, claim->key, &size, err);

    *ret_held = r == CAIRN_OK;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

int claim_drop(struct store *store, const struct claim *claim, bool *ret_broken,
               struct cairn_error *err)
{
    int r = store_forget(store, claim->key, err);

    *ret_broken = r == CAIRN_E_NOT_FOUND;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

/* -- The collector's view --------------------------------------------------------------------- */

struct each {
    struct store *store;
    uint64_t now_us, age_us, nr_broken;
    claim_fn fn;
    void *arg;
};

/* One that somebody else has dropped or broken meanwhile is nobody's concern any more. */
static int break_claim(struct each *e, const char *key, struct cairn_error *err)
{
    int r = store_forget(e->store, key, err);

    e->nr_broken += r == CAIRN_OK;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

static int visit(struct each *e, const char *key, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    struct store_stat st;
    void *buf;
    char *end;
    size_t len;
    int r = store_stat(e->store, key, &st, err);

    if (!r && store_age_us(e->now_us, st.time_us) >= e->age_us)
        return break_claim(e, key, err);
    if (!r)
        r = store_get(e->store, key, BYTES_MAX, &buf, &len, err);
    if (r)
        return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
    text = buf;
    end = memchr(text, '\n', len);
    if (!end) /* a power cut has cut it */
        return break_claim(e, key, err);
    *end = 0;
    return e->fn(e->arg, text, end + 1, len - (size_t)(end + 1 - text), err);
}

static int visit_name(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    char key[sizeof(PREFIX) + STORE_NAME_MAX];

    if (is_prefix)
        return CAIRN_OK;
    snprintf(key, sizeof(key), PREFIX "%s", name);
    return visit(arg, key, err);
}

int claims_each(struct store *store, uint64_t age_s, claim_fn fn, void *arg, uint64_t *ret_broken,
                struct cairn_error *err)
{
    struct each e = {.store = store, .age_us = age_s * 1000000, .fn = fn, .arg = arg};
    int r = store_now(store, &e.now_us, err);

    if (!r)
        r = store_list(store, PREFIX, NULL, visit_name, &e, err);
    *ret_broken += e.nr_broken;
    return r;
}
