/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Markers in the store, as condemned.h has them.  What stands in a marker's place and is none, or
 * speaks of another object, condemns nothing and keeps nobody waiting; the next run clears it away.
 */
#include "condemned.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "digest.h"
#include "step.h"

#define MARKER_KEY_MAX (sizeof("condemned/00/") + DIGEST_HEX_LEN)
#define KEY_MAX        1024
#define VALUE_MAX      (2 * KEY_MAX + CONDEMNED_BY_MAX + 16)
#define PATIENCE_US    (10 * UINT64_C(1000000))
#define PAUSE_NS       2000000
#define PREFIX         "condemned/"

static char *marker_key(const char *key, char marker[MARKER_KEY_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];
    struct digest d;

    digest_of(key, strlen(key), &d);
    digest_format_hex(&d, hex);
    snprintf(marker, MARKER_KEY_MAX, PREFIX "%.2s/%s", hex, hex);
    return marker;
}

/* -- Values: `condemned <by> <key> [<with>]`, `deleting …` ------------------------------------ */

static char *format_value(const char *state, const char *by, const char *key, const char *with,
                          char value[VALUE_MAX])
{
    snprintf(value, VALUE_MAX, "%s %s %s%s%s", state, by, key, with ? " " : "", with ? with : "");
    return value;
}

struct marker {
    bool deleting;
    char by[CONDEMNED_BY_MAX];
    char key[KEY_MAX + 1], with[KEY_MAX + 1]; /* with is empty if there is nothing */
};

/* A marker speaks of the object that it is named after, and of no other. */
static int parse_value(const char *name, const char *value, struct marker *ret_marker,
                       struct cairn_error *err)
{
    char state[16], expected[MARKER_KEY_MAX];
    int n = sscanf(value, "%15s %63s %1024s %1024s", state, ret_marker->by, ret_marker->key,
                   ret_marker->with);

    if (n == 3)
        ret_marker->with[0] = 0;
    ret_marker->deleting = n >= 3 && strcmp(state, "deleting") == 0;
    if (n >= 3 && (ret_marker->deleting || strcmp(state, "condemned") == 0) &&
        strcmp(name, marker_key(ret_marker->key, expected)) == 0)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CORRUPT, "%s: expected what is condemned, found '%.100s'", name,
                     value);
}

/* *ret_value, malloc'ed, is NULL if there is no marker.  CAIRN_E_CORRUPT: there is something that
 * none of us has written, which condemns nothing. */
static int read_marker(struct store *store, const char *name, char **ret_value,
                       struct marker *ret_marker, struct cairn_error *err)
{
    CLEANUP_FREE char *value = NULL;
    int r = store_get_text(store, name, VALUE_MAX, &value, err);

    *ret_value = NULL;
    if (r == CAIRN_E_NOT_FOUND)
        return CAIRN_OK;
    if (!r)
        r = parse_value(name, value, ret_marker, err);
    if (!r)
        *ret_value = steal_ptr(value);
    return r;
}

/* -- The lock of a key ------------------------------------------------------------------------- */

static void pause_a_little(void)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};

    nanosleep(&pause, NULL);
}

/* One lock for each 256th of the keys. */
static int try_lock(struct store *store, const char *name, struct store_lock **ret_lock,
                    struct cairn_error *err)
{
    char lock[sizeof("object-00")];

    snprintf(lock, sizeof(lock), "object-%.2s", name + strlen(PREFIX));
    return store_lock(store, lock, ret_lock, err);
}

static int lock_object(struct store *store, const char *name, struct store_lock **ret_lock,
                       struct cairn_error *err)
{
    const uint64_t deadline = clock_now_us() + PATIENCE_US;
    int r;

    while ((r = try_lock(store, name, ret_lock, err)) == CAIRN_E_CONFLICT) {
        if (clock_now_us() > deadline)
            return error_set(err, CAIRN_E_UNAVAILABLE, "%s: another deletion takes too long", name);
        pause_a_little();
    }
    return r;
}

/* -- Deleting ---------------------------------------------------------------------------------- */

static int delete_if_there(struct store *store, const char *key, struct cairn_error *err)
{
    int r = store_delete(store, key, err);

    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

/* With the lock: the marker says `deleting`, in the words of value. */
static int finish_locked(struct store *store, const char *name, const char *value,
                         const struct marker *m, struct cairn_error *err)
{
    int r = m->with[0] ? delete_if_there(store, m->with, err) : CAIRN_OK;

    if (!r)
        r = delete_if_there(store, m->key, err);
    step_reached(STEP_DELETED);
    if (!r)
        r = store_cas(store, name, value, NULL, err);
    step_reached(STEP_MARKER_DROPPED);
    return r;
}

/* With the lock.  Whoever had left the marker cannot be at work any more. */
static int settle_locked(struct store *store, const char *name, bool pardon,
                         struct cairn_error *err)
{
    CLEANUP_FREE char *value = NULL;
    struct marker m;
    int r = read_marker(store, name, &value, &m, err);

    if (r == CAIRN_E_CORRUPT)
        return pardon ? delete_if_there(store, name, err) : CAIRN_OK;
    if (r || !value)
        return r;
    if (m.deleting)
        return finish_locked(store, name, value, &m, err);
    if (!pardon)
        return CAIRN_OK;
    r = store_cas(store, name, value, NULL, err);
    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r;
}

/* -- For who condemns ------------------------------------------------------------------------- */

static int change(struct store *store, const char *key, const char *from, const char *to,
                  bool *ret_changed, struct cairn_error *err)
{
    char name[MARKER_KEY_MAX];
    int r = store_cas(store, marker_key(key, name), from, to, err);

    *ret_changed = r == CAIRN_OK;
    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r;
}

int condemned_mark(struct store *store, const char *by, const char *key, const char *with,
                   bool *ret_marked, struct cairn_error *err)
{
    char value[VALUE_MAX];
    int r =
        change(store, key, NULL, format_value("condemned", by, key, with, value), ret_marked, err);

    step_reached(STEP_CONDEMNED);
    return r;
}

int condemned_pardon(struct store *store, const char *by, const char *key, const char *with,
                     bool *ret_pardoned, struct cairn_error *err)
{
    char value[VALUE_MAX];
    bool pardoned;
    int r =
        change(store, key, format_value("condemned", by, key, with, value), NULL, &pardoned, err);

    step_reached(STEP_PARDONED);
    if (ret_pardoned)
        *ret_pardoned = pardoned;
    return r;
}

int condemned_delete(struct store *store, const char *by, const char *key, const char *with,
                     bool *ret_gone, struct cairn_error *err)
{
    char name[MARKER_KEY_MAX], condemned[VALUE_MAX], deleting[VALUE_MAX];
    CLEANUP(store_unlock_p) struct store_lock *lock = NULL;
    struct marker m;
    int r = lock_object(store, marker_key(key, name), &lock, err);

    *ret_gone = false;
    if (r)
        return r;
    step_reached(STEP_DELETE_LOCKED);
    format_value("condemned", by, key, with, condemned);
    format_value("deleting", by, key, with, deleting);
    r = store_cas(store, name, condemned, deleting, err);
    if (r == CAIRN_E_CONFLICT)
        return CAIRN_OK;
    step_reached(STEP_DELETING);
    if (!r)
        r = parse_value(name, deleting, &m, err);
    if (!r)
        r = finish_locked(store, name, deleting, &m, err);
    *ret_gone = r == CAIRN_OK;
    return r;
}

/* -- For who wants it to live ----------------------------------------------------------------- */

/* Its writer is dead, or will be done in a moment. */
static int help_or_wait(struct store *store, const char *name, struct cairn_error *err)
{
    CLEANUP(store_unlock_p) struct store_lock *lock = NULL;
    int r = try_lock(store, name, &lock, err);

    if (!r)
        return settle_locked(store, name, false, err);
    if (r == CAIRN_E_CONFLICT)
        pause_a_little();
    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r;
}

/* *ret_settled: the marker is gone, or is none; then nobody can condemn before a run has begun and
 * cleared it away. */
static int revive_once(struct store *store, const char *name, const char *key, bool *ret_settled,
                       struct cairn_error *err)
{
    CLEANUP_FREE char *value = NULL;
    struct marker m;
    int r = read_marker(store, name, &value, &m, err);

    *ret_settled = !value && (!r || r == CAIRN_E_CORRUPT);
    if (!value)
        return *ret_settled ? CAIRN_OK : r;
    if (m.deleting)
        return help_or_wait(store, name, err);
    r = store_touch(store, key, err);
    if (!r || r == CAIRN_E_NOT_FOUND)
        r = store_cas(store, name, value, NULL, err);
    *ret_settled = r == CAIRN_OK;
    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r;
}

int condemned_revive(struct store *store, const char *key, struct cairn_error *err)
{
    const uint64_t deadline = clock_now_us() + PATIENCE_US;
    char name[MARKER_KEY_MAX];
    bool settled = false;

    marker_key(key, name);
    while (!settled) {
        int r = revive_once(store, name, key, &settled, err);

        if (r)
            return r;
        if (!settled && clock_now_us() > deadline)
            return error_set(err, CAIRN_E_UNAVAILABLE, "%s: its deletion takes too long", key);
    }
    return CAIRN_OK;
}

/* -- After a crash ---------------------------------------------------------------------------- */

struct recovery {
    struct store *store;
    const char *prefix;
};

static int recover_one(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct recovery *rec = arg;
    CLEANUP(store_unlock_p) struct store_lock *lock = NULL;
    char key[KEY_MAX];
    int r;

    if (is_prefix)
        return CAIRN_OK; /* not of our making */
    snprintf(key, sizeof(key), "%s%s", rec->prefix, name);
    r = lock_object(rec->store, key, &lock, err);
    return r ? r : settle_locked(rec->store, key, true, err);
}

static int recover_folder(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct store *store = arg;
    char prefix[KEY_MAX];
    struct recovery rec = {.store = store, .prefix = prefix};

    if (!is_prefix || strlen(name) != 2)
        return CAIRN_OK; /* not of our making */
    snprintf(prefix, sizeof(prefix), PREFIX "%s/", name);
    return store_list(store, prefix, NULL, recover_one, &rec, err);
}

int condemned_recover(struct store *store, struct cairn_error *err)
{
    return store_list(store, PREFIX, NULL, recover_folder, store, err);
}
