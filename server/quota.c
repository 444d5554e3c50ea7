/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counting a repository's links.  A count is immutable: the sizes of the links that were there, in
 * the order of their digests.  The next count goes through the store's list and the last count side
 * by side, for a link's size never changes, and asks the store only for the sizes of new ones: the
 * first count after a start reads each link, and those that follow only list them.
 *
 * No lock is held while the store is asked.  Counts that are remembered are bounded by the links in
 * them (LINKS_MAX, 40 bytes each); the account used longest ago goes first.
 *
 * A request that is about to make a link counts the charges that began before its own beside what
 * the store has, so of two that race for the last room exactly one wins.  A charge whose link is
 * there already is found in the list and not counted twice.
 */
#include "quota_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "byte_count.h"
#include "checked.h"
#include "clock.h"
#include "metrics.h"
#include "registry_internal.h"

#define LINKS_MAX     (UINT64_C(1) << 20) /* remembered, of all repositories */
#define LINK_TEXT_MAX 64                  /* bytes of a link's own: a number */

struct link {
    struct digest digest;
    uint64_t size;
};

struct count {
    atomic_uint refs;
    uint64_t counted_us;
    uint64_t bytes;
    size_t nr, room;
    struct link *links; /* sorted by digest */
};

struct account {
    struct account *next;
    uint64_t last_used;
    struct count *count;
    uint64_t added; /* bytes of links made here since the count */
    char repo[REGISTRY_REPO_MAX];
};

enum reason { REASON_BYTES, REASON_UPLOADS, REASON_UNFINISHED, NR_REASONS };

struct quota {
    struct store *store;
    struct quota_rules *rules; /* NULL: none */
    uint64_t max_uploads, max_unfinished;
    struct upload_counts *uploads;
    atomic_uint_fast64_t refused[NR_REASONS];
    pthread_mutex_t lock; /* protects all below */
    struct account *accounts;
    uint64_t uses, nr_links;
    struct quota_charge *charges;
};

/* -- Counts ------------------------------------------------------------------------------- */

static void count_unref(struct count *count)
{
    if (!count || atomic_fetch_sub(&count->refs, 1) > 1)
        return;
    free(count->links);
    free(count);
}
CLEANUP_DEFINE(struct count *, count_unref)

static int compare_links(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct digest));
}
static_assert(offsetof(struct link, digest) == 0, "links are compared by their digests");

static bool count_has(const struct count *count, const struct digest *d)
{
    const struct link key = {.digest = *d};

    return count->nr > 0 &&
           bsearch(&key, count->links, count->nr, sizeof(count->links[0]), compare_links);
}

static int count_add(struct count *count, const struct digest *d, uint64_t size,
                     struct cairn_error *err)
{
    if (count->nr == count->room) {
        size_t room = count->room ? 2 * count->room : 64;
        struct link *links = realloc(count->links, room * sizeof(*links));

        if (!links)
            return error_no_memory(err, "a repository's account");
        count->links = links;
        count->room = room;
    }
    count->links[count->nr++] = (struct link){.digest = *d, .size = size};
    if (!checked_add(count->bytes, size, &count->bytes))
        count->bytes = UINT64_MAX;
    return CAIRN_OK;
}

/* A link says how large its blob is; if it does not, the blob does. */
static int read_link(struct store *store, const char *repo, const struct digest *d,
                     uint64_t *ret_size, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    CLEANUP_FREE void *text = NULL;
    size_t len;
    int r = store_get(store, registry_repo_key(repo, "_blobs", d, key), LINK_TEXT_MAX, &text, &len,
                      err);

    if (r == CAIRN_E_LIMIT || (!r && !number_parse(text, len, ret_size)))
        r = store_head(store, registry_blob_key(d, key), ret_size, err);
    return r;
}

struct counting {
    struct store *store;
    const char *repo;
    const struct count *last; /* may be NULL */
    size_t at;                /* in it */
    struct count *count;
};

static int count_link(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct counting *c = arg;
    char text[DIGEST_STR_MAX];
    struct digest d;
    uint64_t size;
    int r = CAIRN_OK;

    snprintf(text, sizeof(text), "sha256:%.*s", DIGEST_HEX_LEN, name);
    if (is_prefix || strlen(name) != DIGEST_HEX_LEN || digest_parse(text, strlen(text), &d, NULL))
        return CAIRN_OK; /* not of our making */
    while (c->last && c->at < c->last->nr && compare_links(&c->last->links[c->at], &d) < 0)
        c->at++;
    if (c->last && c->at < c->last->nr && digest_equal(&c->last->links[c->at].digest, &d))
        size = c->last->links[c->at].size;
    else
        r = read_link(c->store, c->repo, &d, &size, err);
    if (r == CAIRN_E_NOT_FOUND)
        return CAIRN_OK; /* removed meanwhile */
    return r ? r : count_add(c->count, &d, size, err);
}

static int count_links(struct store *store, const char *repo, const struct count *last,
                       struct count **ret_count, struct cairn_error *err)
{
    CLEANUP(count_unref_p) struct count *count = calloc(1, sizeof(*count));
    struct counting counting = {.store = store, .repo = repo, .last = last, .count = count};
    char prefix[REGISTRY_KEY_MAX];
    int r;

    if (!count)
        return error_no_memory(err, "a repository's account");
    atomic_init(&count->refs, 1);
    count->counted_us = clock_now_us();
    snprintf(prefix, sizeof(prefix), "repos/%s/_blobs/", repo);
    r = store_list(store, prefix, NULL, count_link, &counting, err);
    if (!r)
        *ret_count = steal_ptr(count);
    return r;
}

/* -- Accounts ----------------------------------------------------------------------------- */

static struct account *find_account_locked(struct quota *q, const char *repo)
{
    struct account *a = q->accounts;

    while (a && strcmp(a->repo, repo) != 0)
        a = a->next;
    if (a)
        a->last_used = ++q->uses;
    return a;
}

static void drop_account_locked(struct quota *q, struct account *a)
{
    struct account **p = &q->accounts;

    while (*p != a)
        p = &(*p)->next;
    *p = a->next;
    q->nr_links -= a->count->nr + 1;
    count_unref(a->count);
    free(a);
}

/* Remember no more than LINKS_MAX links; an account counts as one besides. */
static void forget_oldest_locked(struct quota *q)
{
    while (q->nr_links > LINKS_MAX) {
        struct account *oldest = q->accounts;

        for (struct account *a = q->accounts; a; a = a->next)
            if (a->last_used < oldest->last_used)
                oldest = a;
        drop_account_locked(q, oldest);
    }
}

static void remember(struct quota *q, const char *repo, struct count *count)
{
    struct account *a;

    SCOPED_LOCK(&q->lock);
    a = find_account_locked(q, repo);
    if (a && a->count->counted_us > count->counted_us)
        return; /* somebody else has counted since */
    if (a)
        drop_account_locked(q, a);
    /* What holds nothing is counted in no time, and any name may be asked for. */
    a = count->nr > 0 ? calloc(1, sizeof(*a)) : NULL;
    if (!a)
        return; /* the next one counts anew */
    snprintf(a->repo, sizeof(a->repo), "%s", repo);
    a->last_used = ++q->uses;
    a->count = count;
    atomic_fetch_add(&count->refs, 1);
    a->next = q->accounts;
    q->accounts = a;
    q->nr_links += count->nr + 1;
    forget_oldest_locked(q);
}

/* What is remembered; NULL: nothing.  A reference is handed over. */
static struct count *recall(struct quota *q, const char *repo, uint64_t *ret_added)
{
    const struct account *a;

    SCOPED_LOCK(&q->lock);
    a = find_account_locked(q, repo);
    if (!a)
        return NULL;
    *ret_added = a->added;
    atomic_fetch_add(&a->count->refs, 1);
    return a->count;
}

/* The repository's links, counted now. */
static int recount(struct quota *q, const char *repo, struct count **ret_count,
                   struct cairn_error *err)
{
    uint64_t added;
    CLEANUP(count_unref_p) struct count *last = recall(q, repo, &added);
    int r = count_links(q->store, repo, last, ret_count, err);

    if (!r)
        remember(q, repo, *ret_count);
    return r;
}

/* The same, at most max_age_us old; *ret_added is what was linked here since. */
static int get_count(struct quota *q, const char *repo, uint64_t max_age_us,
                     struct count **ret_count, uint64_t *ret_added, struct cairn_error *err)
{
    CLEANUP(count_unref_p) struct count *count = recall(q, repo, ret_added);

    if (count && clock_now_us() - count->counted_us < max_age_us) {
        *ret_count = steal_ptr(count);
        return CAIRN_OK;
    }
    *ret_added = 0;
    return recount(q, repo, ret_count, err);
}

/* -- Questions before and during an upload ------------------------------------------------ */

static uint64_t sum(uint64_t a, uint64_t b)
{
    uint64_t s;

    return checked_add(a, b, &s) ? s : UINT64_MAX;
}

static uint64_t difference(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static int refuse(struct quota *q, enum reason reason)
{
    atomic_fetch_add_explicit(&q->refused[reason], 1, memory_order_relaxed);
    return CAIRN_E_DENIED;
}

static int refuse_bytes(struct quota *q, const char *repo, uint64_t used, uint64_t size,
                        struct cairn_error *err)
{
    return error_set(err, refuse(q, REASON_BYTES),
                     "repository %s holds %" PRIu64 " bytes and may hold %" PRIu64 ": %" PRIu64
                     " more do not fit",
                     repo, used, quota_rules_allowed(q->rules, repo), size);
}

static int used_bytes(struct quota *q, const char *repo, uint64_t max_age_us, uint64_t *ret_used,
                      struct cairn_error *err)
{
    CLEANUP(count_unref_p) struct count *count = NULL;
    uint64_t added;
    int r = get_count(q, repo, max_age_us, &count, &added, err);

    if (!r)
        *ret_used = sum(count->bytes, added);
    return r;
}

/* Does a blob of size bytes fit?  *ret_room is what does. */
static int check_bytes(struct quota *q, const char *repo, uint64_t size, uint64_t *ret_room,
                       struct cairn_error *err)
{
    static const uint64_t ages_us[] = {QUOTA_FRESH_US, 0};
    const uint64_t allowed = quota_rules_allowed(q->rules, repo);
    uint64_t used = 0;

    *ret_room = UINT64_MAX;
    if (allowed == QUOTA_NONE)
        return CAIRN_OK;
    for (size_t i = 0; i < sizeof(ages_us) / sizeof(ages_us[0]); i++) {
        int r = used_bytes(q, repo, ages_us[i], &used, err);

        if (r)
            return r;
        *ret_room = difference(allowed, used);
        if (size <= *ret_room && *ret_room > 0)
            return CAIRN_OK;
    }
    return size <= *ret_room ? CAIRN_OK : refuse_bytes(q, repo, used, size, err);
}

/* May there be one more upload, or as many bytes more of unfinished ones? */
static int check_uploads(struct quota *q, const char *repo, uint64_t nr, uint64_t bytes,
                         struct cairn_error *err)
{
    if (nr >= q->max_uploads)
        return error_set(err, refuse(q, REASON_UPLOADS),
                         "repository %s has %" PRIu64 " unfinished uploads, limit %" PRIu64
                         ": end or delete some, or wait until they expire",
                         repo, nr, q->max_uploads);
    if (bytes >= q->max_unfinished)
        return error_set(err, refuse(q, REASON_UNFINISHED),
                         "unfinished uploads of repository %s have %" PRIu64
                         " bytes, limit %" PRIu64 ": end or delete some, or wait until they expire",
                         repo, bytes, q->max_unfinished);
    return CAIRN_OK;
}

int quota_begin_upload(struct quota *q, const char *repo, uint64_t size, struct cairn_error *err)
{
    uint64_t nr, bytes, room;
    int r = check_bytes(q, repo, size, &room, err);

    if (!r)
        r = upload_counts_get(q->uploads, repo, QUOTA_FRESH_US, &nr, &bytes, err);
    if (!r && (nr >= q->max_uploads || bytes >= q->max_unfinished))
        r = upload_counts_get(q->uploads, repo, 0, &nr, &bytes, err);
    if (!r)
        r = check_uploads(q, repo, nr, bytes, err);
    return r ? r : upload_counts_add(q->uploads, repo, err);
}

int quota_grow_upload(struct quota *q, const char *repo, uint64_t have, uint64_t more,
                      uint64_t *ret_room, struct cairn_error *err)
{
    uint64_t room, nr, bytes;
    int r = check_bytes(q, repo, sum(have, more), &room, err);

    if (!r)
        r = upload_counts_get(q->uploads, repo, QUOTA_FRESH_US, &nr, &bytes, err);
    if (r)
        return r;
    bytes = difference(bytes, have); /* of the others */
    if (more > 0 && sum(bytes, sum(have, more)) > q->max_unfinished)
        return error_set(err, refuse(q, REASON_UNFINISHED),
                         "other unfinished uploads of repository %s have %" PRIu64
                         " bytes: %" PRIu64 " do not fit, limit %" PRIu64,
                         repo, bytes, sum(have, more), q->max_unfinished);
    *ret_room = min_u64(room, max_u64(have, difference(q->max_unfinished, bytes)));
    return CAIRN_OK;
}

/* -- Charges ------------------------------------------------------------------------------ */

/* Charges of one repository, copied; links points to nr of them. */
struct others {
    struct link *links;
    size_t nr;
};

/* *ret_others are the charges before it. */
static int begin_charge(struct quota *q, struct quota_charge *charge, struct others *ret_others,
                        struct cairn_error *err)
{
    size_t nr = 0;

    SCOPED_LOCK(&q->lock);
    for (const struct quota_charge *c = q->charges; c; c = c->next)
        nr++;
    ret_others->nr = 0;
    ret_others->links = malloc((nr + 1) * sizeof(ret_others->links[0]));
    if (!ret_others->links)
        return error_no_memory(err, "a repository's account");
    for (const struct quota_charge *c = q->charges; c; c = c->next)
        if (strcmp(c->repo, charge->repo) == 0)
            ret_others->links[ret_others->nr++] = (struct link){c->digest, c->size};
    charge->next = q->charges;
    q->charges = charge;
    return CAIRN_OK;
}

/* What the repository will hold when all charges are links; a blob counts once. */
static uint64_t used_with(const struct count *count, const struct others *others,
                          const struct quota_charge *charge)
{
    uint64_t used = count->bytes;

    for (size_t i = 0; i < others->nr; i++) {
        const struct link *link = &others->links[i];

        if (!count_has(count, &link->digest) && !digest_equal(&link->digest, &charge->digest))
            used = sum(used, link->size);
    }
    return used;
}

static int check_charge(struct quota *q, const struct quota_charge *charge,
                        const struct others *others, struct cairn_error *err)
{
    CLEANUP(count_unref_p) struct count *count = NULL;
    int r = recount(q, charge->repo, &count, err);
    uint64_t used;

    if (r || count_has(count, &charge->digest))
        return r;
    used = used_with(count, others, charge);
    if (sum(used, charge->size) <= quota_rules_allowed(q->rules, charge->repo))
        return CAIRN_OK;
    return refuse_bytes(q, charge->repo, used, charge->size, err);
}

int quota_charge(struct quota *q, const char *repo, const struct digest *d, uint64_t size,
                 struct quota_charge *charge, struct cairn_error *err)
{
    struct others others;
    int r;

    *charge = (struct quota_charge){.repo = repo, .digest = *d, .size = size};
    if (quota_rules_allowed(q->rules, repo) == QUOTA_NONE) {
        charge->repo = NULL;
        return CAIRN_OK;
    }
    r = begin_charge(q, charge, &others, err);
    if (r)
        return r;
    r = check_charge(q, charge, &others, err);
    free(others.links);
    if (r)
        quota_settle(q, charge, false);
    return r;
}

void quota_settle(struct quota *q, struct quota_charge *charge, bool linked)
{
    struct quota_charge **p = &q->charges;
    struct account *a;

    if (!charge->repo)
        return;
    SCOPED_LOCK(&q->lock);
    while (*p != charge)
        p = &(*p)->next;
    *p = charge->next;
    a = linked ? find_account_locked(q, charge->repo) : NULL;
    if (a && !count_has(a->count, &charge->digest))
        a->added = sum(a->added, charge->size);
}

/* -- Usage, metrics, life ----------------------------------------------------------------- */

int quota_usage(struct quota *q, const char *repo, struct quota_usage *ret_usage,
                struct cairn_error *err)
{
    CLEANUP(count_unref_p) struct count *count = NULL;
    struct quota_usage usage = {.allowed = quota_rules_allowed(q->rules, repo)};
    uint64_t added;
    int r = get_count(q, repo, QUOTA_FRESH_US, &count, &added, err);

    if (!r && added > 0) { /* how many blobs that is, only the store knows */
        count_unref(steal_ptr(count));
        r = recount(q, repo, &count, err);
    }
    if (!r)
        r = upload_counts_get(q->uploads, repo, QUOTA_FRESH_US, &usage.nr_uploads,
                              &usage.upload_bytes, err);
    if (r)
        return r;
    usage.used = count->bytes;
    usage.nr_blobs = count->nr;
    *ret_usage = usage;
    return CAIRN_OK;
}

void quota_write_metrics(void *quota, struct metrics *m)
{
    static const char *const labels[NR_REASONS] = {
        [REASON_BYTES] = "reason=\"bytes\"",
        [REASON_UPLOADS] = "reason=\"uploads\"",
        [REASON_UNFINISHED] = "reason=\"unfinished\"",
    };
    const struct quota *q = quota;

    metrics_family(m, "cairn_quota_refusals_total", "counter",
                   "Uploads and mounts refused because their repository may not hold more.");
    for (unsigned i = 0; i < NR_REASONS; i++)
        metrics_value(m, labels[i], atomic_load_explicit(&q->refused[i], memory_order_relaxed));
}

int quota_new(struct store *store, const struct quota_options *options, struct quota **ret_quota,
              struct cairn_error *err)
{
    CLEANUP(quota_free_p) struct quota *q = calloc(1, sizeof(*q));
    int r = CAIRN_OK;

    if (!q)
        return error_no_memory(err, "quotas");
    pthread_mutex_init(&q->lock, NULL);
    q->store = store;
    q->max_uploads = options->max_uploads ? options->max_uploads : UINT64_MAX;
    q->max_unfinished = options->max_unfinished ? options->max_unfinished : UINT64_MAX;
    if (options->rules)
        r = quota_rules_parse(options->rules, &q->rules, err);
    if (!r)
        r = upload_counts_new(store, &q->uploads, err);
    if (!r)
        *ret_quota = steal_ptr(q);
    return r;
}

void quota_free(struct quota *q)
{
    if (!q)
        return;
    while (q->accounts)
        drop_account_locked(q, q->accounts);
    quota_rules_free(q->rules);
    upload_counts_free(q->uploads);
    pthread_mutex_destroy(&q->lock);
    free(q);
}
