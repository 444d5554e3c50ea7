/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slow:<ms>:<URL>: another store as if it were that far away, for benches and tests.
 *
 * What a remote object store would be asked over the network, one round trip each, takes that much
 * longer: every call, every read of a source, and opening one (which asks for its size).  There
 * are no file descriptors, for a remote store has none: all bytes are read.  Bandwidth is not
 * limited.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "store_backend.h"

#define DELAY_MS_MAX 60000

struct slow {
    struct store store;
    struct store *inner;
    struct timespec delay;
};

static void pause_for(const struct timespec *delay)
{
    struct timespec rest = *delay;

    while (nanosleep(&rest, &rest) != 0 && errno == EINTR)
        ;
}

/* The store behind, a round trip later. */
static struct store *reach(struct store *store)
{
    struct slow *slow = (struct slow *)store;

    pause_for(&slow->delay);
    return slow->inner;
}

static int put(struct store *store, const char *key, const void *buf, size_t len,
               enum store_put_mode mode, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->put(inner, key, buf, len, mode, err);
}

static int head(struct store *store, const char *key, uint64_t *ret_size, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->head(inner, key, ret_size, err);
}

static int stat_object(struct store *store, const char *key, struct store_stat *ret_stat,
                       struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->stat(inner, key, ret_stat, err);
}

static int now(struct store *store, uint64_t *ret_now_us, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->now(inner, ret_now_us, err);
}

static int touch(struct store *store, const char *key, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->touch(inner, key, err);
}

static int get(struct store *store, const char *key, size_t max_len, void **ret_buf,
               size_t *ret_len, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->get(inner, key, max_len, ret_buf, ret_len, err);
}

static int delete_object(struct store *store, const char *key, bool durable,
                         struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->delete (inner, key, durable, err);
}

static int move(struct store *store, const char *from, const char *to, enum store_put_mode mode,
                struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->move(inner, from, to, mode, err);
}

static int list(struct store *store, const char *prefix, const char *after, store_list_fn fn,
                void *arg, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->list(inner, prefix, after, fn, arg, err);
}

static int cas(struct store *store, const char *key, const char *old_value, const char *new_value,
               struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->cas(inner, key, old_value, new_value, err);
}

static int lock(struct store *store, const char *name, struct store_lock **ret_lock,
                struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->lock(inner, name, ret_lock, err);
}

static int lock_held(struct store *store, const char *name, bool *ret_held, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->lock_held(inner, name, ret_held, err);
}

/* -- Sources ---------------------------------------------------------------------------------- */

struct slow_source {
    struct source is; /* first: source_ops get it */
    struct source *inner;
    struct timespec delay;
};

static int slow_pread(struct source *src, void *buf, size_t len, uint64_t off,
                      struct cairn_error *err)
{
    const struct slow_source *slow = (const struct slow_source *)src;

    pause_for(&slow->delay);
    return source_pread(slow->inner, buf, len, off, err);
}

static void slow_source_free(struct source *src)
{
    struct slow_source *slow = (struct slow_source *)src;

    source_free(slow->inner);
    free(slow);
}

static const struct source_ops slow_source_ops = {.pread = slow_pread, .free = slow_source_free};

static int open_source(struct store *store, const char *key, struct source **ret_src,
                       struct cairn_error *err)
{
    CLEANUP_FREE struct slow_source *slow = calloc(1, sizeof(*slow));
    struct store *inner = reach(store);
    int code;

    if (!slow)
        return error_no_memory(err, key);
    code = inner->ops->open_source(inner, key, &slow->inner, err);
    if (code != CAIRN_OK)
        return code;
    slow->is = (struct source){
        .ops = &slow_source_ops, .size = slow->inner->size, .name = slow->inner->name};
    slow->delay = ((struct slow *)store)->delay;
    *ret_src = &steal_ptr(slow)->is;
    return CAIRN_OK;
}

static int open_fd(struct store *store, const char *key, int *ret_fd, uint64_t *ret_size,
                   struct cairn_error *err)
{
    (void)store;
    (void)key;
    (void)err;
    *ret_fd = -1;
    *ret_size = 0;
    return CAIRN_OK;
}

/* -- Uploads ---------------------------------------------------------------------------------- */

static int upload_new(struct store *store, const char *owner, const char *id,
                      struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->upload_new(inner, owner, id, err);
}

static int upload_size(struct store *store, const char *id, const char *owner, uint64_t *ret_size,
                       struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->upload_size(inner, id, owner, ret_size, err);
}

static int upload_append(struct store *store, const char *id, uint64_t off, const void *buf,
                         size_t len, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->upload_append(inner, id, off, buf, len, err);
}

static int upload_read(struct store *store, const char *id, void *buf, size_t len, uint64_t off,
                       struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->upload_read(inner, id, buf, len, off, err);
}

static int upload_commit(struct store *store, const char *id, uint64_t size, const char *key,
                         struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->upload_commit(inner, id, size, key, err);
}

static int upload_abort(struct store *store, const char *id, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->upload_abort(inner, id, err);
}

static int list_uploads(struct store *store, store_upload_fn fn, void *arg, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->list_uploads(inner, fn, arg, err);
}

static int expire_uploads(struct store *store, uint64_t age_s, struct store_expired *ret_expired,
                          struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->expire_uploads(inner, age_s, ret_expired, err);
}

static int expire_temporaries(struct store *store, struct store_expired *ret_expired,
                              struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->expire_temporaries(inner, ret_expired, err);
}

static int probe(struct store *store, struct store_space *ret_space, struct cairn_error *err)
{
    struct store *inner = reach(store);

    return inner->ops->probe(inner, ret_space, err);
}

/* -- Opening ---------------------------------------------------------------------------------- */

static void slow_close(struct store *store)
{
    struct slow *slow = (struct slow *)store;

    store_close(slow->inner);
    free(slow);
}

static const struct store_ops slow_ops = {
    .close = slow_close,
    .put = put,
    .head = head,
    .stat = stat_object,
    .now = now,
    .touch = touch,
    .get = get,
    .open_source = open_source,
    .open_fd = open_fd,
    .delete = delete_object,
    .move = move,
    .list = list,
    .cas = cas,
    .lock = lock,
    .lock_held = lock_held,
    .upload_new = upload_new,
    .upload_size = upload_size,
    .upload_append = upload_append,
    .upload_read = upload_read,
    .upload_commit = upload_commit,
    .upload_abort = upload_abort,
    .list_uploads = list_uploads,
    .expire_uploads = expire_uploads,
    .expire_temporaries = expire_temporaries,
    .probe = probe,
};

/* `<ms>:<URL>` taken apart; false: it is something else. */
static bool parse(const char *text, long *ret_ms, const char **ret_url)
{
    size_t digits = strspn(text, "0123456789");

    if (digits == 0 || digits > 5 || text[digits] != ':')
        return false;
    *ret_ms = strtol(text, NULL, 10);
    *ret_url = text + digits + 1;
    return *ret_ms <= DELAY_MS_MAX && strncmp(*ret_url, "slow:", 5) != 0;
}

int store_slow_open(const char *text, struct store **ret_store, struct cairn_error *err)
{
    CLEANUP_FREE struct slow *slow = calloc(1, sizeof(*slow));
    const char *url;
    long ms;
    int code;

    if (!slow)
        return error_no_memory(err, "the store");
    if (!parse(text, &ms, &url))
        return error_set(err, CAIRN_E_USAGE,
                         "store 'slow:%.64s': expected slow:<0 to %d milliseconds>:<URL>", text,
                         DELAY_MS_MAX);
    code = store_open(url, &slow->inner, err);
    if (code != CAIRN_OK)
        return code;
    slow->store.ops = &slow_ops;
    slow->store.far = true;
    slow->delay = (struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    *ret_store = &steal_ptr(slow)->store;
    return CAIRN_OK;
}
