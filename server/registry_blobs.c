/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blobs as a repository sees them.  The bytes are stored once, under their digest; a mark in the
 * repository (its value is the blob's size, for people who look into the store) makes them
 * visible there.  Who does not have the mark learns nothing of the blob.
 *
 * Who reads a layer asks for one range of it after another.  What the first request has found out,
 * that the repository may see the blob, and the opened blob, serve those that follow for some
 * seconds, so that a range costs one round trip to the store and not four.  So long may a blob be
 * read here that another server has hidden.  HEAD, pushes and mounts always ask the store.
 */
#include "registry_internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blobs.h"
#include "clock.h"
#include "collect.h"
#include "condemned.h"
#include "histogram.h"
#include "nowait.h"
#include "quarantine.h"
#include "step.h"

#define SHOWN_FOR_US (10 * UINT64_C(1000000))
#define LINK_TRIES   100

/* The repository has a mark of a blob that is not there: it is in quarantine, or lost. */
static int blob_is_away(struct store *store, const char *repo, const struct digest *d,
                        struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];
    int r = quarantine_check(store, d, err);

    return r ? r
             : error_set(err, CAIRN_E_NOT_FOUND, "no blob %s in repository %s",
                         digest_format(d, text), repo);
}

int registry_find_blob(struct store *store, const char *repo, const struct digest *d,
                       uint64_t *ret_size, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];
    uint64_t mark_size;
    int r = store_head(store, registry_repo_key(repo, "_blobs", d, key), &mark_size, err);

    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, r, "no blob %s in repository %s", digest_format(d, text), repo);
    if (!r)
        r = store_head(store, registry_blob_key(d, key), ret_size, err);
    return r == CAIRN_E_NOT_FOUND ? blob_is_away(store, repo, d, err) : r;
}

/* Put the link, or let it be as if it were put now. */
static int put_link(struct store *store, const char *key, uint64_t size, struct cairn_error *err)
{
    char text[24];
    int len = snprintf(text, sizeof(text), "%" PRIu64, size);
    int r = store_put(store, key, text, (size_t)len, STORE_PUT_IF_ABSENT, err);

    if (r == CAIRN_E_CONFLICT)
        r = store_touch(store, key, err);
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r; /* deleted since: the caller looks */
}

/* Revive the link, as far as there is something to revive, and look whether it is there. */
static int secure_link(struct store *store, const char *key, bool *ret_there,
                       struct cairn_error *err)
{
    bool running;
    uint64_t size;
    int r = collect_is_running(store, &running, err);

    if (!r && running)
        r = condemned_revive(store, key, err);
    step_reached(STEP_LINK_REVIVED);
    if (!r)
        r = store_head(store, key, &size, err);
    *ret_there = r == CAIRN_OK;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

/* One that was there and is deleted under our hands is put again. */
int registry_show_blob(struct store *store, const char *repo, const struct digest *d, uint64_t size,
                       struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    bool there = false;
    int r = CAIRN_OK;

    registry_repo_key(repo, "_blobs", d, key);
    for (int i = 0; i < LINK_TRIES && !there && !r; i++) {
        r = put_link(store, key, size, err);
        step_reached(STEP_LINK_STORED);
        if (!r)
            r = secure_link(store, key, &there, err);
    }
    if (!r && !there)
        return error_set(err, CAIRN_E_UNAVAILABLE, "%s is deleted again and again", key);
    return r;
}

int registry_revive_blob(struct store *store, const struct digest *d, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    bool running;
    int r = collect_is_running(store, &running, err);

    if (!r && running)
        r = condemned_revive(store, registry_blob_key(d, key), err);
    step_reached(STEP_BLOB_REVIVED);
    return r;
}

static void blob_failure(const struct registry_call *call, const struct cairn_error *err)
{
    if (err->code == CAIRN_E_NOT_FOUND)
        http_reply_error(call->reply, MHD_HTTP_NOT_FOUND, "BLOB_UNKNOWN", "%s", err->message);
    else
        http_reply_failure(call->reply, err);
}

/* -- Blobs that are being read ------------------------------------------------------------ */

/* A blob that a repository may see. */
struct shown {
    atomic_uint refs;
    uint64_t until_us; /* then the repository is asked again */
    struct blob *blob;
};

static void *shown_ref(void *value)
{
    struct shown *shown = value;

    atomic_fetch_add(&shown->refs, 1);
    return shown;
}

static void shown_unref(void *value)
{
    struct shown *shown = value;

    if (!shown || atomic_fetch_sub(&shown->refs, 1) > 1)
        return;
    blob_unref(shown->blob);
    free(shown);
}

static void shown_unref_p(struct shown **shown)
{
    shown_unref(*shown);
}

static size_t shown_cost(const void *value)
{
    (void)value;
    return 1;
}

int registry_shown_new(struct cache **ret_shown, struct cairn_error *err)
{
    static const struct cache_type type = {
        .ref = shown_ref, .unref = shown_unref, .cost = shown_cost};

    return cache_new(&type, blobs_max_open(), ret_shown, err);
}

struct shown_name {
    struct store *store;
    const char *repo;
    const struct digest *digest;
};

static struct cache_key shown_key(const struct shown_name *name)
{
    char text[REGISTRY_REPO_MAX + DIGEST_STR_MAX], digest[DIGEST_STR_MAX];
    struct cache_key key = {0};
    int len =
        snprintf(text, sizeof(text), "%s %s", name->repo, digest_format(name->digest, digest));

    digest_of(text, (size_t)len, &key.digest);
    return key;
}

static int fetch_shown(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct shown_name *name = arg;
    CLEANUP(shown_unref_p) struct shown *shown = calloc(1, sizeof(*shown));
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];
    uint64_t mark_size;
    int r;

    if (!shown)
        return error_no_memory(err, "a blob that is read");
    atomic_init(&shown->refs, 1);
    r = store_head(name->store, registry_repo_key(name->repo, "_blobs", name->digest, key),
                   &mark_size, err);
    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, r, "no blob %s in repository %s", digest_format(name->digest, text),
                         name->repo);
    if (!r)
        r = blob_open(name->store, name->digest, &shown->blob, err);
    if (r == CAIRN_E_NOT_FOUND)
        return blob_is_away(name->store, name->repo, name->digest, err);
    if (r)
        return r;
    shown->until_us = clock_now_us() + SHOWN_FOR_US;
    *ret_value = steal_ptr(shown);
    return CAIRN_OK;
}

/* Have it looked up anew if what is known of it holds until then at most. */
static void forget_shown(struct cache *cache, const struct cache_key *key, uint64_t until_us)
{
    CLEANUP(shown_unref_p) struct shown *shown = cache_peek(cache, key);

    if (shown && shown->until_us <= until_us)
        cache_drop(cache, key, shown);
}

static void forget_blob(const struct registry_call *call, const struct digest *d)
{
    const struct shown_name name = {call->store, call->target.repo, d};
    struct cache_key key = shown_key(&name);

    forget_shown(call->registry->shown, &key, UINT64_MAX);
}

void registry_forget_layer(void *ctx, const struct digest *layer)
{
    const struct registry *registry = ctx;

    disks_forget_layer(registry->disks, layer);
}

static void forget_if_gone(void *arg, const struct cache_key *key, void *value)
{
    const struct shown *shown = value;

    if (blob_is_gone(shown->blob))
        cache_drop(arg, key, shown);
}

void registry_forget_gone(void *ctx)
{
    const struct registry *registry = ctx;

    cache_each(registry->shown, forget_if_gone, registry->shown);
    disks_forget_gone(registry->disks);
}

/* A blob that the repository may see, opened; a reference is handed over. */
static int open_blob(const struct registry_call *call, const struct digest *d,
                     struct blob **ret_blob, struct cairn_error *err)
{
    struct shown_name name = {call->store, call->target.repo, d};
    struct cache_key key = shown_key(&name);
    struct cache *cache = call->registry->shown;
    void *value;
    int r;

    forget_shown(cache, &key, clock_now_us());
    r = cache_get(cache, &key, fetch_shown, &name, &value, err);
    if (r)
        return r;
    *ret_blob = blob_ref(((struct shown *)value)->blob);
    shown_unref(value);
    return CAIRN_OK;
}

/* -- HEAD ---------------------------------------------------------------------------------- */

/* Let an object be as if it were stored now, if it has lived through half of its grace. */
static int renew_old(const struct registry_call *call, const char *key, uint64_t now_us,
                     struct cairn_error *err)
{
    const uint64_t half_us = call->registry->options.grace_s * 500000;
    struct store_stat st;
    int r = store_stat(call->store, key, &st, err);

    if (!r && store_age_us(now_us, st.time_us) > half_us)
        r = store_touch(call->store, key, err);
    return r;
}

/*
 * Who asks whether a blob is here means to use it, and will not send it: link and blob shall have
 * a good part of their grace before them.  That is a favour and no claim: a manifest that comes too
 * late for it is refused.  A repository that has no link does nothing to the blob.
 */
static int renew_blob(const struct registry_call *call, const struct digest *d,
                      struct cairn_error *err)
{
    char link[REGISTRY_KEY_MAX], blob[REGISTRY_KEY_MAX];
    bool running;
    uint64_t now_us;
    int r = store_now(call->store, &now_us, err);

    registry_repo_key(call->target.repo, "_blobs", d, link);
    registry_blob_key(d, blob);
    if (!r)
        r = renew_old(call, link, now_us, err);
    if (!r)
        r = renew_old(call, blob, now_us, err);
    if (!r)
        r = collect_is_running(call->store, &running, err);
    if (!r && running)
        r = condemned_revive(call->store, link, err);
    if (!r && running)
        r = condemned_revive(call->store, blob, err);
    step_reached(STEP_BLOB_RENEWED);
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r; /* the caller looks */
}

/* -- DELETE ------------------------------------------------------------------------------- */

/* Hides the blob; its bytes stay for other repositories, and for the garbage collector. */
static void delete_blob(const struct registry_call *call, const struct digest *d)
{
    char key[REGISTRY_KEY_MAX];
    struct cairn_error err;
    uint64_t size;
    int r = registry_find_blob(call->store, call->target.repo, d, &size, &err);

    if (!r)
        r = store_delete(call->store, registry_repo_key(call->target.repo, "_blobs", d, key), &err);
    forget_blob(call, d);
    if (r)
        blob_failure(call, &err);
    else
        http_reply_status(call->reply, MHD_HTTP_ACCEPTED);
}

/* -- GET and HEAD ------------------------------------------------------------------------- */

/* A range of a blob on its way out. */
struct blob_range {
    struct blob *blob;
    uint64_t off;
};

static int read_range(void *ctx, void *buf, size_t len, uint64_t off, struct cairn_error *err)
{
    const struct blob_range *range = ctx;

    return source_pread(range->blob->src, buf, len, range->off + off, err);
}

static void free_range(void *ctx)
{
    struct blob_range *range = ctx;

    blob_unref(range->blob);
    free(range);
}

static void stream_range(const struct registry_call *call, unsigned status, const char *type,
                         struct blob *blob, uint64_t off, uint64_t len)
{
    struct blob_range *range = malloc(sizeof(*range));
    const struct http_stream stream = {.read = read_range, .free = free_range, .ctx = range};
    struct cairn_error err;

    if (!range) {
        error_no_memory(&err, blob->src->name);
        http_reply_failure(call->reply, &err);
        return;
    }
    *range = (struct blob_range){.blob = blob_ref(blob), .off = off};
    http_reply_stream(call->reply, status, type, &stream, len);
}

/* By sendfile, or through the store where it has no file descriptors. */
static void reply_range(const struct registry_call *call, unsigned status, const struct digest *d,
                        struct blob *blob, uint64_t off, uint64_t len)
{
    static const char type[] = "application/octet-stream";
    char key[REGISTRY_KEY_MAX];
    struct cairn_error err;
    int fd = -1;

    if (len > 0 && blob->fd >= 0 && nowait_check_file(blob->fd, off, len, &err)) {
        http_reply_failure(call->reply, &err);
        return;
    }
    if (blob->fd >= 0)
        fd = fcntl(blob->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        stream_range(call, status, type, blob, off, len);
        return;
    }
    http_reply_fd(call->reply, status, type, fd, off, len);
    if (http_method(call->req) == HTTP_GET)
        store_note_sent(call->store, registry_blob_key(d, key), len);
}

static void reply_blob(const struct registry_call *call, const struct digest *d, const char *etag,
                       struct blob *blob)
{
    uint64_t size = blob->src->size, off, len;

    switch (http_range(call->req, size, etag, &off, &len)) {
    case HTTP_RANGE_UNSATISFIABLE:
        http_reply_error(call->reply, MHD_HTTP_RANGE_NOT_SATISFIABLE, "RANGE_INVALID",
                         "the blob has %" PRIu64 " bytes", size);
        http_reply_header(call->reply, "Content-Range", "bytes */%" PRIu64, size);
        return;
    case HTTP_RANGE_PARTIAL:
        http_reply_header(call->reply, "Content-Range", "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64,
                          off, off + len - 1, size);
        reply_range(call, MHD_HTTP_PARTIAL_CONTENT, d, blob, off, len);
        return;
    case HTTP_RANGE_NONE:
        reply_range(call, MHD_HTTP_OK, d, blob, 0, size);
        return;
    }
}

void registry_blob(const struct registry_call *call)
{
    char etag[DIGEST_STR_MAX + 2], text[DIGEST_STR_MAX];
    CLEANUP(blob_unref_p) struct blob *blob = NULL;
    struct cairn_error err;
    struct digest d;
    int r;

    if (!registry_target_digest(call, &d))
        return;
    if (http_method(call->req) == HTTP_DELETE) {
        delete_blob(call, &d);
        return;
    }
    if (http_method(call->req) == HTTP_HEAD)
        forget_blob(call, &d);
    r = http_method(call->req) == HTTP_HEAD ? renew_blob(call, &d, &err) : CAIRN_OK;
    if (!r)
        r = open_blob(call, &d, &blob, &err);
    if (r) {
        blob_failure(call, &err);
        return;
    }
    snprintf(etag, sizeof(etag), "\"%s\"", digest_format(&d, text));
    registry_reply_digest(call, &d, NULL);
    http_reply_header(call->reply, "ETag", "%s", etag);
    http_reply_header(call->reply, "Accept-Ranges", "bytes");
    if (http_not_modified(call->req, etag))
        http_reply_status(call->reply, MHD_HTTP_NOT_MODIFIED);
    else
        reply_blob(call, &d, etag, blob);
}
