/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object store's front: picks the backend by URL and lets nothing through to it but keys,
 * values and upload IDs of the documented form.  Every key that reaches a backend is therefore a
 * relative path without surprises, whatever a request said.  What passes is counted here, for all
 * backends alike.
 */
#include "clock.h"
#include "nowait.h"
#include "store_backend.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

/* More than clocks that are right ever part between two questions, less than a lease's default. */
#define JUMP_US (300 * UINT64_C(1000000))

static bool valid_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

bool store_valid_name(const char *name, size_t len)
{
    if (len == 0 || len > STORE_NAME_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!valid_char(name[i]))
            return false;
    }
    return !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

static bool reserved(const char *name, size_t len)
{
    static const char *const names[] = {"tmp", "locks", "uploads"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strlen(names[i]) == len && memcmp(names[i], name, len) == 0)
            return true;
    }
    return false;
}

/* Are the first len bytes of key components with single slashes between them? */
static bool valid_key(const char *key, size_t len)
{
    const char *p = key, *end = key + len;

    if (len > STORE_KEY_MAX)
        return false;
    for (;;) {
        const char *slash = memchr(p, '/', (size_t)(end - p));
        size_t n = (size_t)((slash ? slash : end) - p);

        if (!store_valid_name(p, n) || (p == key && reserved(p, n)))
            return false;
        if (!slash)
            return true;
        p = slash + 1;
    }
}

/* Whatever goes to a backend may wait. */
static int check_key(const char *key, struct cairn_error *err)
{
    if (valid_key(key, strlen(key)))
        return nowait_check(err);
    return error_set(err, CAIRN_E_USAGE, "'%.64s' is not a key of the store", key);
}

static int check_prefix(const char *prefix, struct cairn_error *err)
{
    size_t len = strlen(prefix);

    if (len == 0 || (prefix[len - 1] == '/' && valid_key(prefix, len - 1)))
        return nowait_check(err);
    return error_set(err, CAIRN_E_USAGE, "'%.64s' is not a prefix of the store's keys", prefix);
}

static int check_value(const char *key, const char *value, struct cairn_error *err)
{
    if (!value || strlen(value) <= STORE_VALUE_MAX)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_LIMIT, "value of %s has %zu bytes, limit %d", key, strlen(value),
                     STORE_VALUE_MAX);
}

static int check_id(const char *id, struct cairn_error *err)
{
    if (strlen(id) == STORE_ID_LEN && strspn(id, "0123456789abcdef") == STORE_ID_LEN)
        return nowait_check(err);
    return error_set(err, CAIRN_E_NOT_FOUND, "no upload '%.*s'", STORE_UPLOAD_ID_MAX, id);
}

int store_random_hex(char *ret_hex, size_t nr, struct cairn_error *err)
{
    unsigned char bytes[32];

    if (getrandom(bytes, nr / 2, 0) != (ssize_t)(nr / 2))
        return error_set_errno(err, errno, "cannot get random bytes");
    for (size_t i = 0; i < nr / 2; i++)
        snprintf(ret_hex + 2 * i, 3, "%02x", bytes[i]);
    return CAIRN_OK;
}

static int open_backend(const char *url, struct store **ret_store, struct cairn_error *err)
{
    if (strncmp(url, "fs:", 3) == 0 && url[3] != 0)
        return store_fs_open(url + 3, ret_store, err);
    if (strncmp(url, "slow:", 5) == 0)
        return store_slow_open(url + 5, ret_store, err);
    return error_set(err, CAIRN_E_USAGE, "store '%s': expected fs:<dir>", url);
}

int store_open(const char *url, struct store **ret_store, struct cairn_error *err)
{
    int r = open_backend(url, ret_store, err);

    if (!r)
        atomic_store(&(*ret_store)->since_us, clock_now_us());
    return r;
}

uint64_t store_served_us(struct store *store, uint64_t now_us)
{
    const uint64_t here_us = clock_now_us(), ahead_us = now_us - here_us;
    const uint64_t before_us = atomic_exchange(&store->ahead_us, ahead_us);

    if (before_us && store_age_us(ahead_us, before_us) > JUMP_US)
        atomic_store(&store->since_us, here_us);
    return here_us - atomic_load(&store->since_us);
}

void store_close(struct store *store)
{
    if (store)
        store->ops->close(store);
}

void store_write_metrics(void *store, struct metrics *m)
{
    store_count_write_metrics(&((const struct store *)store)->counts, m);
}

/* What a call that began at since_us gave, counted. */
static int called(struct store *store, enum store_call call, uint64_t since_us, int code)
{
    return store_count_call(&store->counts, call, since_us, code);
}

bool store_is_far(const struct store *store)
{
    return store->far;
}

int store_put(struct store *store, const char *key, const void *buf, size_t len,
              enum store_put_mode mode, struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    if (r)
        return r;
    r = store->ops->put(store, key, buf, len, mode, err);
    if (!r)
        store_count_written(&store->counts, len);
    return called(store, STORE_CALL_PUT, since, r);
}

int store_head(struct store *store, const char *key, uint64_t *ret_size, struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    return r ? r
             : called(store, STORE_CALL_HEAD, since, store->ops->head(store, key, ret_size, err));
}

int store_stat(struct store *store, const char *key, struct store_stat *ret_stat,
               struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    return r ? r
             : called(store, STORE_CALL_HEAD, since, store->ops->stat(store, key, ret_stat, err));
}

int store_now(struct store *store, uint64_t *ret_now_us, struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = nowait_check(err);

    return r ? r : called(store, STORE_CALL_HEAD, since, store->ops->now(store, ret_now_us, err));
}

int store_touch(struct store *store, const char *key, struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    return r ? r : called(store, STORE_CALL_PUT, since, store->ops->touch(store, key, err));
}

int store_get(struct store *store, const char *key, size_t max_len, void **ret_buf, size_t *ret_len,
              struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    if (r)
        return r;
    r = store->ops->get(store, key, max_len, ret_buf, ret_len, err);
    if (!r)
        store_count_read(&store->counts, store_objects_of(key), *ret_len);
    return called(store, STORE_CALL_GET, since, r);
}

int store_get_text(struct store *store, const char *key, size_t max_len, char **ret_text,
                   struct cairn_error *err)
{
    CLEANUP_FREE void *buf = NULL;
    size_t len;
    int r = store_get(store, key, max_len, &buf, &len, err);

    if (r == CAIRN_E_LIMIT)
        return error_set(err, CAIRN_E_CORRUPT, "%s has more than %zu bytes", key, max_len);
    if (r)
        return r;
    if (memchr(buf, 0, len))
        return error_set(err, CAIRN_E_CORRUPT, "%s has zero bytes, expected text", key);
    *ret_text = steal_ptr(buf);
    return CAIRN_OK;
}

int store_open_source(struct store *store, const char *key, struct source **ret_src,
                      struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    struct source *src = NULL;
    int r = check_key(key, err);

    if (r)
        return r;
    r = called(store, STORE_CALL_OPEN, since, store->ops->open_source(store, key, &src, err));
    return r ? r : store_count_source(&store->counts, store_objects_of(key), src, ret_src, err);
}

int store_open_fd(struct store *store, const char *key, int *ret_fd, uint64_t *ret_size,
                  struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    if (r)
        return r;
    r = store->ops->open_fd(store, key, ret_fd, ret_size, err);
    return !r && *ret_fd < 0 ? CAIRN_OK : called(store, STORE_CALL_OPEN, since, r);
}

void store_note_sent(struct store *store, const char *key, uint64_t len)
{
    store_count_read(&store->counts, store_objects_of(key), len);
}

int store_fd_source(struct store *store, const char *key, int fd, const char *name,
                    struct source **ret_src, struct cairn_error *err)
{
    struct source *src = NULL;
    int r = source_from_fd(fd, name, &src, err);

    return r ? r : store_count_source(&store->counts, store_objects_of(key), src, ret_src, err);
}

static int delete_object(struct store *store, const char *key, bool durable,
                         struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    return r ? r
             : called(store, STORE_CALL_DELETE, since,
                      store->ops->delete (store, key, durable, err));
}

int store_delete(struct store *store, const char *key, struct cairn_error *err)
{
    return delete_object(store, key, true, err);
}

int store_forget(struct store *store, const char *key, struct cairn_error *err)
{
    return delete_object(store, key, false, err);
}

int store_move(struct store *store, const char *from, const char *to, enum store_put_mode mode,
               struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(from, err);

    if (!r)
        r = check_key(to, err);
    return r ? r
             : called(store, STORE_CALL_PUT, since, store->ops->move(store, from, to, mode, err));
}

int store_list(struct store *store, const char *prefix, const char *after, store_list_fn fn,
               void *arg, struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_prefix(prefix, err);

    if (r)
        return r;
    return called(store, STORE_CALL_LIST, since,
                  store->ops->list(store, prefix, after, fn, arg, err));
}

int store_cas(struct store *store, const char *key, const char *old_value, const char *new_value,
              struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_key(key, err);

    if (!r)
        r = check_value(key, old_value, err);
    if (!r)
        r = check_value(key, new_value, err);
    if (r)
        return r;
    return called(store, STORE_CALL_CAS, since,
                  store->ops->cas(store, key, old_value, new_value, err));
}

/* -- Locks --------------------------------------------------------------------------------- */

static int check_lock_name(const char *name, struct cairn_error *err)
{
    size_t len = strlen(name);

    if (len <= STORE_LOCK_MAX && store_valid_name(name, len))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "'%.64s' is not a name of a lock", name);
}

int store_lock(struct store *store, const char *name, struct store_lock **ret_lock,
               struct cairn_error *err)
{
    int r = check_lock_name(name, err);

    return r ? r : store->ops->lock(store, name, ret_lock, err);
}

void store_unlock(struct store_lock *lock)
{
    if (lock)
        lock->unlock(lock);
}

int store_lock_held(struct store *store, const char *name, bool *ret_held, struct cairn_error *err)
{
    int r = check_lock_name(name, err);

    return r ? r : store->ops->lock_held(store, name, ret_held, err);
}

/* -- Uploads ------------------------------------------------------------------------------- */

static int upload_called(struct store *store, uint64_t since_us, int code)
{
    return called(store, STORE_CALL_UPLOAD, since_us, code);
}

int store_upload_new(struct store *store, const char *owner, char ret_id[STORE_UPLOAD_ID_MAX],
                     struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r;

    if (strlen(owner) > STORE_NAME_MAX)
        return error_set(err, CAIRN_E_USAGE, "owner '%.64s…' of an upload is too long", owner);
    r = store_random_hex(ret_id, STORE_ID_LEN, err);
    return r ? r : upload_called(store, since, store->ops->upload_new(store, owner, ret_id, err));
}

int store_upload_size(struct store *store, const char *id, const char *owner, uint64_t *ret_size,
                      struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_id(id, err);

    if (r)
        return r;
    return upload_called(store, since, store->ops->upload_size(store, id, owner, ret_size, err));
}

int store_upload_append(struct store *store, const char *id, uint64_t off, const void *buf,
                        size_t len, struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_id(id, err);

    if (r)
        return r;
    r = store->ops->upload_append(store, id, off, buf, len, err);
    if (!r)
        store_count_written(&store->counts, len);
    return upload_called(store, since, r);
}

int store_upload_read(struct store *store, const char *id, void *buf, size_t len, uint64_t off,
                      struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_id(id, err);

    if (r)
        return r;
    r = store->ops->upload_read(store, id, buf, len, off, err);
    if (!r)
        store_count_read(&store->counts, STORE_OBJECTS_UPLOADS, len);
    return upload_called(store, since, r);
}

int store_upload_commit(struct store *store, const char *id, uint64_t size, const char *key,
                        struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_id(id, err);

    if (!r)
        r = check_key(key, err);
    if (r)
        return r;
    return upload_called(store, since, store->ops->upload_commit(store, id, size, key, err));
}

int store_upload_abort(struct store *store, const char *id, struct cairn_error *err)
{
    uint64_t since = clock_now_us();
    int r = check_id(id, err);

    return r ? r : upload_called(store, since, store->ops->upload_abort(store, id, err));
}

int store_list_uploads(struct store *store, store_upload_fn fn, void *arg, struct cairn_error *err)
{
    uint64_t since = clock_now_us();

    return called(store, STORE_CALL_LIST, since, store->ops->list_uploads(store, fn, arg, err));
}

int store_expire_uploads(struct store *store, uint64_t age_s, struct store_expired *ret_expired,
                         struct cairn_error *err)
{
    uint64_t since = clock_now_us();

    return upload_called(store, since, store->ops->expire_uploads(store, age_s, ret_expired, err));
}

int store_expire_temporaries(struct store *store, struct store_expired *ret_expired,
                             struct cairn_error *err)
{
    uint64_t since = clock_now_us();

    return called(store, STORE_CALL_DELETE, since,
                  store->ops->expire_temporaries(store, ret_expired, err));
}

int store_probe(struct store *store, struct store_space *ret_space, struct cairn_error *err)
{
    return store->ops->probe(store, ret_space, err);
}
