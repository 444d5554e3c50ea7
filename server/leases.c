/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases in the store.  The order on taking one is what makes it hold (collect.h): the lease is
 * stored, then the manifest is revived, then it is looked for.  Renewing one does the same: nobody
 * goes on with a lease on what is gone.
 */
#include "leases.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "condemned.h"
#include "json_memory.h"
#include "metrics.h"
#include "registry_internal.h"
#include "step.h"
#include "store_backend.h"

#define PREFIX    "leases/"
#define CAS_TRIES 10

CLEANUP_DEFINE(json_t *, json_decref)

static char *lease_key(const char *id, char key[REGISTRY_KEY_MAX])
{
    snprintf(key, REGISTRY_KEY_MAX, PREFIX "%s", id);
    return key;
}

/* -- The document ----------------------------------------------------------------------------- */

static int encode(const struct lease *lease, char **ret_text, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    char digest[DIGEST_STR_MAX];

    json_memory_begin();
    json =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "repository", lease->ref.repo, "manifest",
                  digest_format(&lease->ref.digest, digest), "holder", lease->holder, "ttl",
                  (json_int_t)lease->ttl_s, "created", (json_int_t)lease->created_us, "renewed",
                  (json_int_t)lease->renewed_us, "renewals", (json_int_t)lease->nr_renewals);
    return json_memory_dump(json, JSON_COMPACT, ret_text, err);
}

static uint64_t number(const json_t *json, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(json, name));

    return value > 0 ? (uint64_t)value : 0;
}

static int decode(const char *key, const char *text, struct lease *ret_lease,
                  struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    struct lease lease = {.ttl_s = 0};
    const char *repo, *manifest, *holder;
    int r = json_memory_load(text, strlen(text), 0, &json, NULL, err);

    if (r)
        return r;
    repo = json_string_value(json_object_get(json, "repository"));
    manifest = json_string_value(json_object_get(json, "manifest"));
    holder = json_string_value(json_object_get(json, "holder"));
    lease.ttl_s = number(json, "ttl");
    lease.created_us = number(json, "created");
    lease.renewed_us = number(json, "renewed");
    lease.nr_renewals = number(json, "renewals");
    if (!repo || !ref_valid_repo(repo) || !manifest || !holder ||
        strlen(holder) > LEASE_HOLDER_MAX || lease.ttl_s == 0 || lease.ttl_s > LEASE_TTL_MAX ||
        digest_parse(manifest, strlen(manifest), &lease.ref.digest, NULL))
        return error_set(err, CAIRN_E_CORRUPT, "%s does not hold a lease", key);
    snprintf(lease.ref.repo, sizeof(lease.ref.repo), "%s", repo);
    snprintf(lease.holder, sizeof(lease.holder), "%s", holder);
    snprintf(lease.id, sizeof(lease.id), "%s", key + strlen(PREFIX));
    *ret_lease = lease;
    return CAIRN_OK;
}

/* The lease, and its very text, malloc'ed.  CAIRN_E_CORRUPT: it is none, and never becomes one. */
static int read_lease(struct store *store, const char *key, struct lease *ret_lease,
                      char **ret_text, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    int r = store_get_text(store, key, STORE_VALUE_MAX, &text, err);

    *ret_text = NULL;
    if (!r)
        r = decode(key, text, ret_lease, err);
    if (!r)
        *ret_text = steal_ptr(text);
    return r;
}

/* -- Taking ----------------------------------------------------------------------------------- */

static int check_terms(const char *holder, uint64_t ttl_s, struct cairn_error *err)
{
    size_t len = strlen(holder);

    if (len == 0 || len > LEASE_HOLDER_MAX)
        return error_set(err, CAIRN_E_USAGE, "holder has %zu bytes, expected 1 to %d", len,
                         LEASE_HOLDER_MAX);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)holder[i] < ' ' || holder[i] == 0x7f)
            return error_set(err, CAIRN_E_USAGE, "holder has a control character at %zu", i);
    if (ttl_s == 0 || ttl_s > LEASE_TTL_MAX)
        return error_set(err, CAIRN_E_USAGE, "ttl is %" PRIu64 ", expected 1 to %d seconds", ttl_s,
                         LEASE_TTL_MAX);
    return CAIRN_OK;
}

static int store_lease(struct store *store, struct lease *lease, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    char key[REGISTRY_KEY_MAX];
    int r = store_random_hex(lease->id, LEASE_ID_LEN, err);

    if (!r)
        r = store_now(store, &lease->created_us, err);
    lease->renewed_us = lease->created_us;
    if (!r)
        r = encode(lease, &text, err);
    return r ? r : store_cas(store, lease_key(lease->id, key), NULL, text, err);
}

/* From here on the manifest is there for as long as the lease, or it is not there. */
static int secure(struct store *store, const struct lease *lease, struct cairn_error *err)
{
    struct digest found;
    char key[REGISTRY_KEY_MAX];
    int r = condemned_revive(
        store, registry_repo_key(lease->ref.repo, "_manifests", &lease->ref.digest, key), err);

    step_reached(STEP_LEASE_REVIVED);
    return r ? r : registry_resolve(store, &lease->ref, &found, err);
}

int lease_take(struct store *store, const struct ref *ref, const char *holder, uint64_t ttl_s,
               struct lease *ret_lease, struct cairn_error *err)
{
    struct lease lease = {.ref = *ref, .ttl_s = ttl_s};
    char key[REGISTRY_KEY_MAX];
    int r = check_terms(holder, ttl_s, err);

    if (!r)
        r = registry_resolve(store, ref, &lease.ref.digest, err);
    if (r)
        return r;
    lease.ref.tag[0] = 0;
    snprintf(lease.holder, sizeof(lease.holder), "%s", holder);
    r = store_lease(store, &lease, err);
    if (r)
        return r;
    step_reached(STEP_LEASE_STORED);
    r = secure(store, &lease, err);
    if (r)
        store_delete(store, lease_key(lease.id, key), NULL);
    else
        *ret_lease = lease;
    return r;
}

/* -- Renewing, releasing ---------------------------------------------------------------------- */

static int no_lease(const char *id, const struct ref *ref, struct cairn_error *err)
{
    char text[REF_STR_MAX];

    return error_set(err, CAIRN_E_NOT_FOUND, "%s has no lease %.64s (any more)",
                     ref_format(ref, text), id);
}

static bool valid_id(const char *id)
{
    return strlen(id) == LEASE_ID_LEN && strspn(id, "0123456789abcdef") == LEASE_ID_LEN;
}

/* A tag may have moved on since: then the repository is what counts. */
static bool is_on(const struct lease *lease, const struct ref *ref)
{
    return strcmp(lease->ref.repo, ref->repo) == 0 &&
           (ref->tag[0] || digest_equal(&lease->ref.digest, &ref->digest));
}

/* Change the lease from its text to that of change's result, or to nothing; CONFLICT: again. */
static int change_once(struct store *store, const struct ref *ref, const char *id, bool release,
                       uint64_t ttl_s, struct lease *ret_lease, struct cairn_error *err)
{
    CLEANUP_FREE char *old = NULL, *renewed = NULL;
    char key[REGISTRY_KEY_MAX];
    int r = read_lease(store, lease_key(id, key), ret_lease, &old, err);

    if (r == CAIRN_E_NOT_FOUND || (!r && !is_on(ret_lease, ref)))
        return no_lease(id, ref, err);
    if (!r && !release) {
        ret_lease->ttl_s = ttl_s ? ttl_s : ret_lease->ttl_s;
        ret_lease->nr_renewals++;
        r = store_now(store, &ret_lease->renewed_us, err);
        if (!r)
            r = encode(ret_lease, &renewed, err);
    }
    return r ? r : store_cas(store, key, old, renewed, err);
}

static int change(struct store *store, const struct ref *ref, const char *id, bool release,
                  uint64_t ttl_s, struct lease *ret_lease, struct cairn_error *err)
{
    int r = CAIRN_E_CONFLICT;

    if (!valid_id(id))
        return no_lease(id, ref, err);
    for (int i = 0; i < CAS_TRIES && r == CAIRN_E_CONFLICT; i++)
        r = change_once(store, ref, id, release, ttl_s, ret_lease, err);
    return r;
}

int lease_renew(struct store *store, const struct ref *ref, const char *id, uint64_t ttl_s,
                struct lease *ret_lease, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    int r = ttl_s ? check_terms("-", ttl_s, err) : CAIRN_OK;

    if (!r)
        r = change(store, ref, id, false, ttl_s, ret_lease, err);
    if (r)
        return r;
    step_reached(STEP_LEASE_STORED);
    r = secure(store, ret_lease, err);
    if (r == CAIRN_E_NOT_FOUND)
        store_delete(store, lease_key(id, key), NULL);
    return r;
}

int lease_release(struct store *store, const struct ref *ref, const char *id,
                  struct cairn_error *err)
{
    struct lease lease;

    return change(store, ref, id, true, 0, &lease, err);
}

/* -- All of them ------------------------------------------------------------------------------ */

struct each {
    struct store *store;
    uint64_t now_us, served_us;
    bool remove;
    uint64_t nr_expired;
    lease_fn fn;
    void *arg;
};

/* While there was no service nobody could renew. */
static bool has_expired(const struct each *e, const struct lease *lease)
{
    const uint64_t ttl_us = lease->ttl_s * 1000000;

    return e->now_us > lease->renewed_us && e->now_us - lease->renewed_us >= ttl_us &&
           e->served_us >= ttl_us;
}

/* One that was renewed in the future: the store's clock was wrong then.  So that it ends, it is as
 * if it were renewed now, and whoever holds it has time to do so. */
static bool is_far_ahead(const struct lease *lease, uint64_t now_us)
{
    return lease->renewed_us > now_us && lease->renewed_us - now_us > lease->ttl_s * 1000000;
}

static int begin_anew(const struct each *e, const char *key, const char *text, struct lease *lease,
                      struct cairn_error *err)
{
    CLEANUP_FREE char *anew = NULL;
    int r;

    lease->renewed_us = e->now_us;
    r = encode(lease, &anew, err);
    return r ? r : store_cas(e->store, key, text, anew, err);
}

/* One that has been renewed or released meanwhile: look again. */
static int visit_once(struct each *e, const char *key, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    struct lease lease;
    int r = read_lease(e->store, key, &lease, &text, err);

    if (r == CAIRN_E_NOT_FOUND)
        return CAIRN_OK;
    if (r && r != CAIRN_E_CORRUPT)
        return r;
    if (!r && e->remove && is_far_ahead(&lease, e->now_us)) {
        r = begin_anew(e, key, text, &lease, err);
        if (r)
            return r;
    }
    if (!r && !has_expired(e, &lease))
        return e->fn(e->arg, &lease, err);
    if (!e->remove)
        return CAIRN_OK;
    r = text ? store_cas(e->store, key, text, NULL, err) : store_delete(e->store, key, err);
    e->nr_expired += r == CAIRN_OK;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

static int visit(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    int r = CAIRN_E_CONFLICT;

    if (is_prefix || !valid_id(name))
        return CAIRN_OK;
    lease_key(name, key);
    for (int i = 0; i < CAS_TRIES && r == CAIRN_E_CONFLICT; i++)
        r = visit_once(arg, key, err);
    return r;
}

/*
 * What is replaced while its folder is listed may be missing in the list (tmpfs and btrfs do that).
 * Who is about to delete must see it, so there are two lists: nobody renews in both.
 */
int leases_each(struct store *store, lease_fn fn, void *arg, uint64_t *ret_expired,
                struct cairn_error *err)
{
    struct each e = {.store = store, .remove = ret_expired != NULL, .fn = fn, .arg = arg};
    const unsigned nr_lists = e.remove ? 2 : 1;
    int r = store_now(store, &e.now_us, err);

    if (!r)
        e.served_us = store_served_us(store, e.now_us);
    for (unsigned i = 0; i < nr_lists && !r; i++)
        r = store_list(store, PREFIX, NULL, visit, &e, err);
    if (ret_expired)
        *ret_expired += e.nr_expired;
    return r;
}

static int count(void *arg, const struct lease *lease, struct cairn_error *err)
{
    (void)lease;
    (void)err;
    ++*(uint64_t *)arg;
    return CAIRN_OK;
}

void leases_write_metrics(void *store, struct metrics *m)
{
    uint64_t nr = 0;

    if (leases_each(store, count, &nr, NULL, NULL))
        return;
    metrics_family(m, "cairn_leases", "gauge", "Leases in the store that have not expired.");
    metrics_value(m, NULL, nr);
}
