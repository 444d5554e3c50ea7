/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a backend of the object store implements.  store.c checks keys and IDs before it calls in
 * here, so a backend may rely on their form; contracts are those of store.h.
 */
#ifndef SERVER_STORE_BACKEND_H
#define SERVER_STORE_BACKEND_H

#include <stdatomic.h>

#include "store.h"
#include "store_count.h"

#define STORE_KEY_MAX   1024
#define STORE_NAME_MAX  255
#define STORE_VALUE_MAX 4096 /* of a key that store_cas changes */
#define STORE_ID_LEN    32   /* hex digits of an upload's ID: 128 random bits */
#define STORE_LOCK_MAX  64   /* bytes of a lock's name */

struct store_ops {
    void (*close)(struct store *store);
    int (*put)(struct store *store, const char *key, const void *buf, size_t len,
               enum store_put_mode mode, struct cairn_error *err);
    int (*head)(struct store *store, const char *key, uint64_t *ret_size, struct cairn_error *err);
    int (*stat)(struct store *store, const char *key, struct store_stat *ret_stat,
                struct cairn_error *err);
    int (*now)(struct store *store, uint64_t *ret_now_us, struct cairn_error *err);
    int (*touch)(struct store *store, const char *key, struct cairn_error *err);
    int (*get)(struct store *store, const char *key, size_t max_len, void **ret_buf,
               size_t *ret_len, struct cairn_error *err);
    int (*open_source)(struct store *store, const char *key, struct source **ret_src,
                       struct cairn_error *err);
    int (*open_fd)(struct store *store, const char *key, int *ret_fd, uint64_t *ret_size,
                   struct cairn_error *err);
    int (*delete)(struct store *store, const char *key, bool durable, struct cairn_error *err);
    int (*move)(struct store *store, const char *from, const char *to, enum store_put_mode mode,
                struct cairn_error *err);
    int (*list)(struct store *store, const char *prefix, const char *after, store_list_fn fn,
                void *arg, struct cairn_error *err);
    int (*cas)(struct store *store, const char *key, const char *old_value, const char *new_value,
               struct cairn_error *err);
    int (*lock)(struct store *store, const char *name, struct store_lock **ret_lock,
                struct cairn_error *err);
    int (*lock_held)(struct store *store, const char *name, bool *ret_held,
                     struct cairn_error *err);
    int (*upload_new)(struct store *store, const char *owner, const char *id,
                      struct cairn_error *err);
    int (*upload_size)(struct store *store, const char *id, const char *owner, uint64_t *ret_size,
                       struct cairn_error *err);
    int (*upload_append)(struct store *store, const char *id, uint64_t off, const void *buf,
                         size_t len, struct cairn_error *err);
    int (*upload_read)(struct store *store, const char *id, void *buf, size_t len, uint64_t off,
                       struct cairn_error *err);
    int (*upload_commit)(struct store *store, const char *id, uint64_t size, const char *key,
                         struct cairn_error *err);
    int (*upload_abort)(struct store *store, const char *id, struct cairn_error *err);
    int (*list_uploads)(struct store *store, store_upload_fn fn, void *arg,
                        struct cairn_error *err);
    int (*expire_uploads)(struct store *store, uint64_t age_s, struct store_expired *ret_expired,
                          struct cairn_error *err);
    int (*expire_temporaries)(struct store *store, struct store_expired *ret_expired,
                              struct cairn_error *err);
    int (*probe)(struct store *store, struct store_space *ret_space, struct cairn_error *err);
};

/* An implementation embeds struct store as its first member, and fills in ops and far. */
struct store {
    const struct store_ops *ops;
    bool far;
    struct store_counts counts; /* store.c counts; zeros at first */
    /* For store_served_us: since when, and how far ahead of clock_now_us the store's clock was last
     * (0: nobody has asked). */
    atomic_uint_fast64_t since_us, ahead_us;
};

/* The same for a lock that is held. */
struct store_lock {
    void (*unlock)(struct store_lock *lock);
};

int store_fs_open(const char *dir, struct store **ret_store, struct cairn_error *err);
int store_slow_open(const char *text, struct store **ret_store, struct cairn_error *err);

/* Could name, of len bytes, be a component of a key? */
bool store_valid_name(const char *name, size_t len);

/* Random lower-case hex digits, nr of them (even, at most 64), zero-terminated. */
int store_random_hex(char *ret_hex, size_t nr, struct cairn_error *err);

#endif
