/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object store (DESIGN 4.4): keys to immutable bytes, plus small values that change by
 * compare-and-set.  Nothing here asks what only a file system can answer: an S3 backend fits
 * behind the same calls.  All calls may block and may be made from any thread.  A call that
 * returned CAIRN_OK has made its effect durable.
 *
 * Keys are '/'-separated, each component of [A-Za-z0-9._-], not "." or "..", at most 255 bytes and
 * at most 1024 in all; a key is never a prefix (up to a '/') of another.  The names `tmp`, `locks`
 * and `uploads` at the top are the store's own.  Anything else is CAIRN_E_USAGE, so a key made from
 * outside input is safe without further checks.
 */
#ifndef SERVER_STORE_H
#define SERVER_STORE_H

#include <stdbool.h>

#include "error.h"
#include "source.h"

struct store;

/* url: `fs:<dir>` (created if missing), or for benches `slow:<ms>:<url>`: as if that far away. */
int store_open(const char *url, struct store **ret_store, struct cairn_error *err);
void store_close(struct store *store);
/* Is it a network away?  Who wants several ranges asks for them at a time, then. */
bool store_is_far(const struct store *store);
CLEANUP_DEFINE(struct store *, store_close)

enum store_put_mode {
    STORE_PUT_IF_ABSENT, /* CAIRN_E_CONFLICT if the key exists */
    STORE_PUT_REPLACE,   /* for derived objects only */
    STORE_PUT_NOTE,      /* if absent, and a power cut may take it away again */
};
int store_put(struct store *store, const char *key, const void *buf, size_t len,
              enum store_put_mode mode, struct cairn_error *err);

int store_head(struct store *store, const char *key, uint64_t *ret_size, struct cairn_error *err);

/*
 * Ages are told by one clock, the store's, whatever the servers' clocks say: microseconds since
 * 1970 at which an object was stored or last touched, and now.
 */
struct store_stat {
    uint64_t size;
    uint64_t time_us;
};
int store_stat(struct store *store, const char *key, struct store_stat *ret_stat,
               struct cairn_error *err);
int store_now(struct store *store, uint64_t *ret_now_us, struct cairn_error *err);
/* How long ago that was.  What is dated ahead was stored while the clock was wrong; it counts as
 * old as it is far ahead, for else it would be young until the clock gets there. */
static inline uint64_t store_age_us(uint64_t now_us, uint64_t time_us)
{
    return now_us > time_us ? now_us - time_us : time_us - now_us;
}
/*
 * For how long this process has had the store open while the store's clock, which shows now_us,
 * went on as it should.  After a jump of that clock, or after sleep, that begins anew: whoever had
 * to be heard of meanwhile could not be.
 */
uint64_t store_served_us(struct store *store, uint64_t now_us);
/* Let an object be as if it were stored now.  Not durable. */
int store_touch(struct store *store, const char *key, struct cairn_error *err);
/* A whole object of at most max_len bytes (larger: CAIRN_E_LIMIT); malloc'ed, with a zero byte
 * behind its end. */
int store_get(struct store *store, const char *key, size_t max_len, void **ret_buf, size_t *ret_len,
              struct cairn_error *err);
/* The same for what is text.  CAIRN_E_CORRUPT, not _LIMIT: it is larger, or has zero bytes; none of
 * us has stored that. */
int store_get_text(struct store *store, const char *key, size_t max_len, char **ret_text,
                   struct cairn_error *err);
/* An object for ranged reading. */
int store_open_source(struct store *store, const char *key, struct source **ret_src,
                      struct cairn_error *err);
/* A file descriptor of the object, for sendfile; a backend that has none leaves -1 and returns
 * CAIRN_OK.  The caller closes it, and notes what is read or sent through it. */
int store_open_fd(struct store *store, const char *key, int *ret_fd, uint64_t *ret_size,
                  struct cairn_error *err);
void store_note_sent(struct store *store, const char *key, uint64_t len);
/* The same as a source that reads through the descriptor fd, which it takes over, also on
 * failure; name is for messages. */
int store_fd_source(struct store *store, const char *key, int fd, const char *name,
                    struct source **ret_src, struct cairn_error *err);
int store_delete(struct store *store, const char *key, struct cairn_error *err);
/* The object has another key from here on.  STORE_PUT_IF_ABSENT: CAIRN_E_CONFLICT if to exists. */
int store_move(struct store *store, const char *from, const char *to, enum store_put_mode mode,
               struct cairn_error *err);
/* The same for a note: a power cut may bring it back. */
int store_forget(struct store *store, const char *key, struct cairn_error *err);

/*
 * One level of names below prefix ("" or "a/b/"), in byte order, from behind after (NULL: all).
 * fn gets each name without the prefix, and whether it has names below it; not 0 stops.
 */
typedef int (*store_list_fn)(void *arg, const char *name, bool is_prefix, struct cairn_error *err);
int store_list(struct store *store, const char *prefix, const char *after, store_list_fn fn,
               void *arg, struct cairn_error *err);

/*
 * Set key from old to new in one step, among all servers of the store; NULL stands for absence
 * (old: create, new: delete).  CAIRN_E_CONFLICT if it holds something else.  At most 4 KiB.
 */
int store_cas(struct store *store, const char *key, const char *old_value, const char *new_value,
              struct cairn_error *err);

/*
 * An exclusive lock among all servers of the store, which ends with store_unlock or with the
 * process that holds it, however that ends.  Names are like components of keys, of at most 64
 * bytes.  store_lock does not wait: CAIRN_E_CONFLICT if somebody has the lock, in this process too.
 */
struct store_lock;
int store_lock(struct store *store, const char *name, struct store_lock **ret_lock,
               struct cairn_error *err);
void store_unlock(struct store_lock *lock);
CLEANUP_DEFINE(struct store_lock *, store_unlock)
/* Does anybody have it?  Asking takes nothing, and is in nobody's way. */
int store_lock_held(struct store *store, const char *name, bool *ret_held, struct cairn_error *err);

/*
 * -- Uploads: bytes that arrive in pieces and become an object in the end ----------------------
 *
 * One upload may be touched by several servers at once: calls that change it take turns.  Appends
 * only ever extend it, so a size seen means bytes that stay as they are.
 */

#define STORE_UPLOAD_ID_MAX 64
/* owner is what the upload belongs to (a repository's name, at most 255 bytes). */
int store_upload_new(struct store *store, const char *owner, char ret_id[STORE_UPLOAD_ID_MAX],
                     struct cairn_error *err);
/* Bytes received so far; CAIRN_E_NOT_FOUND for an ID that is unknown, malformed or somebody
 * else's. */
int store_upload_size(struct store *store, const char *id, const char *owner, uint64_t *ret_size,
                      struct cairn_error *err);
/* off must be the size so far, else CAIRN_E_CONFLICT; a failure leaves the upload as it was.
 * Durable only from commit on. */
int store_upload_append(struct store *store, const char *id, uint64_t off, const void *buf,
                        size_t len, struct cairn_error *err);
/* Read back, for a digest that has to be computed anew after a restart. */
int store_upload_read(struct store *store, const char *id, void *buf, size_t len, uint64_t off,
                      struct cairn_error *err);
/* The upload, of exactly size bytes (else CAIRN_E_CONFLICT), becomes key (exists already: that is
 * success, the bytes are the same) and ends. */
int store_upload_commit(struct store *store, const char *id, uint64_t size, const char *key,
                        struct cairn_error *err);
int store_upload_abort(struct store *store, const char *id, struct cairn_error *err);

struct store_upload {
    const char *id, *owner;
    uint64_t size;  /* bytes received so far */
    uint64_t age_s; /* seconds since anything was added */
};
/* Every upload that has not ended, in no order; one that begins or ends meanwhile may be missing or
 * there.  fn: not 0 stops. */
typedef int (*store_upload_fn)(void *arg, const struct store_upload *upload,
                               struct cairn_error *err);
int store_list_uploads(struct store *store, store_upload_fn fn, void *arg, struct cairn_error *err);

/* Remove uploads to which nothing was added for age_s seconds, and what is left of ended ones. */
struct store_expired {
    uint64_t nr, bytes;
};
int store_expire_uploads(struct store *store, uint64_t age_s, struct store_expired *ret_expired,
                         struct cairn_error *err);

/* Remove what writers that died have left behind, if it is older than an hour. */
int store_expire_temporaries(struct store *store, struct store_expired *ret_expired,
                             struct cairn_error *err);

/* Can objects be written and read?  Leaves nothing behind, and is not counted.  The room that there
 * is; zeros where nobody knows. */
struct store_space {
    uint64_t size, free;
};
int store_probe(struct store *store, struct store_space *ret_space, struct cairn_error *err);

/* -- Figures ---------------------------------------------------------------------------------- */

struct metrics;
void store_write_metrics(void *store, struct metrics *m); /* as a metrics_source */

#endif
