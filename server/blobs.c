/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open layer blobs.
 *
 * Where the store can give a file descriptor the source reads through it, so that one descriptor
 * serves both pread and sendfile; else the store's own source is wrapped, only to bear the layer's
 * name in messages.
 */
#include "blobs.h"

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "cache.h"
#include "registry.h"

/* Who keeps blobs open may take one descriptor in so many of those the process may have. */
#define BLOBS_FD_SHARE 4
#define BLOBS_OPEN_MIN 16u
#define BLOBS_OPEN_MAX 4096u

#define NAME_MAX_LEN (sizeof("layer ") + DIGEST_STR_MAX)

/* -- The store's source, under the layer's name ----------------------------------------------- */

struct named_source {
    struct source is;
    struct source *store_src;
    char name[NAME_MAX_LEN];
};

static int named_pread(struct source *src, void *buf, size_t len, uint64_t off,
                       struct cairn_error *err)
{
    struct named_source *named = (struct named_source *)src;
    int code = source_pread(named->store_src, buf, len, off, err);

    return code == CAIRN_OK ? CAIRN_OK : error_prefix(err, code, "%s", named->name);
}

static void named_free(struct source *src)
{
    struct named_source *named = (struct named_source *)src;

    source_free(named->store_src);
    free(named);
}

static const struct source_ops named_ops = {.pread = named_pread, .free = named_free};

static int open_store_source(struct store *store, const char *key, const char *name,
                             struct source **ret_src, struct cairn_error *err)
{
    CLEANUP_FREE struct named_source *named = calloc(1, sizeof(*named));
    int code;

    if (!named)
        return error_no_memory(err, name);
    code = store_open_source(store, key, &named->store_src, err);
    if (code != CAIRN_OK)
        return code;
    snprintf(named->name, sizeof(named->name), "%s", name);
    named->is = (struct source){
        .ops = &named_ops,
        .size = named->store_src->size,
        .name = named->name,
    };
    *ret_src = &steal_ptr(named)->is;
    return CAIRN_OK;
}

/* -- One blob --------------------------------------------------------------------------------- */

/* Fills in src and fd. */
static int open_parts(struct store *store, const char *key, const char *name, struct blob *blob,
                      struct cairn_error *err)
{
    uint64_t size;
    int code = store_open_fd(store, key, &blob->fd, &size, err);

    if (code != CAIRN_OK)
        return code;
    if (blob->fd < 0)
        return open_store_source(store, key, name, &blob->src, err);
    return store_fd_source(store, key, blob->fd, name, &blob->src, err);
}

int blob_open(struct store *store, const struct digest *digest, struct blob **ret_blob,
              struct cairn_error *err)
{
    CLEANUP_FREE struct blob *blob = calloc(1, sizeof(*blob));
    char text[DIGEST_STR_MAX], name[NAME_MAX_LEN], key[REGISTRY_KEY_MAX];
    int code;

    if (!blob)
        return error_no_memory(err, "an open blob");
    atomic_init(&blob->refs, 1);
    blob->fd = -1;
    snprintf(name, sizeof(name), "layer %s", digest_format(digest, text));
    code = open_parts(store, registry_blob_key(digest, key), name, blob, err);
    if (code != CAIRN_OK)
        return error_prefix(err, code, "%s", name);
    *ret_blob = steal_ptr(blob);
    return CAIRN_OK;
}

struct blob *blob_ref(struct blob *blob)
{
    atomic_fetch_add(&blob->refs, 1);
    return blob;
}

void blob_unref(struct blob *blob)
{
    if (!blob || atomic_fetch_sub(&blob->refs, 1) > 1)
        return;
    source_free(blob->src); /* closes fd */
    free(blob);
}

bool blob_is_gone(const struct blob *blob)
{
    struct stat st;

    if (blob->fd < 0)
        return false;
    return fstat(blob->fd, &st) == 0 ? st.st_nlink == 0 : errno == ESTALE;
}

/* -- All of them ------------------------------------------------------------------------------ */

struct blobs {
    struct store *store;
    struct cache *open;
};

static void *value_ref(void *value)
{
    return blob_ref(value);
}

static void value_unref(void *value)
{
    blob_unref(value);
}

static size_t value_cost(const void *value)
{
    (void)value;
    return 1;
}

static const struct cache_type blob_type = {
    .ref = value_ref,
    .unref = value_unref,
    .cost = value_cost,
};

unsigned blobs_max_open(void)
{
    struct rlimit limit;
    rlim_t share = BLOBS_OPEN_MAX;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        share = limit.rlim_cur / BLOBS_FD_SHARE;
    if (share > BLOBS_OPEN_MAX)
        return BLOBS_OPEN_MAX;
    return share < BLOBS_OPEN_MIN ? BLOBS_OPEN_MIN : (unsigned)share;
}

int blobs_new(struct store *store, unsigned max_open, struct blobs **ret_blobs,
              struct cairn_error *err)
{
    CLEANUP_FREE struct blobs *blobs = calloc(1, sizeof(*blobs));
    int code;

    if (!blobs)
        return error_no_memory(err, "the open blobs");
    blobs->store = store;
    code = cache_new(&blob_type, max_open, &blobs->open, err);
    if (code != CAIRN_OK)
        return code;
    *ret_blobs = steal_ptr(blobs);
    return CAIRN_OK;
}

void blobs_free(struct blobs *blobs)
{
    if (!blobs)
        return;
    cache_free(blobs->open);
    free(blobs);
}

struct fetch {
    struct store *store;
    const struct digest *digest;
};

static int fetch_blob(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct fetch *f = arg;
    struct blob *blob;
    int code = blob_open(f->store, f->digest, &blob, err);

    if (code == CAIRN_OK)
        *ret_value = blob;
    return code;
}

int blobs_get(struct blobs *blobs, const struct digest *digest, struct blob **ret_blob,
              struct cairn_error *err)
{
    struct cache_key key = {.digest = *digest};
    struct fetch f = {.store = blobs->store, .digest = digest};
    void *value;
    int code = cache_get(blobs->open, &key, fetch_blob, &f, &value, err);

    if (code == CAIRN_OK)
        *ret_blob = value;
    return code;
}

void blobs_forget(struct blobs *blobs, const struct digest *digest)
{
    struct cache_key key = {.digest = *digest};
    struct blob *blob = cache_peek(blobs->open, &key);

    if (blob)
        cache_drop(blobs->open, &key, blob);
    blob_unref(blob);
}

static void forget_if_gone(void *arg, const struct cache_key *key, void *value)
{
    struct blobs *blobs = arg;

    if (blob_is_gone(value))
        cache_drop(blobs->open, key, value);
}

void blobs_forget_gone(struct blobs *blobs)
{
    cache_each(blobs->open, forget_if_gone, blobs);
}
