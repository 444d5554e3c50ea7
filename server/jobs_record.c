/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the store knows of jobs.
 *
 * jobs/<id> is a job's record, a JSON object.  Only who holds the lock of the job's kind writes it:
 * the thread that runs the job, or who is about to start the next one.  jobs/<id>.cancel is there
 * when somebody has asked that the job stop; so nobody's write is ever lost to another's.
 *
 * A record that says `running` while nobody holds the lock is of a job whose server died.  As a
 * job's end is recorded before its lock is let go, reading the record again tells that from one
 * that has just ended.
 *
 * IDs start with the kind and the time, so that their order is that of time: the last 50 of a kind
 * are kept.
 */
#include "jobs_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "json_memory.h"
#include "store_backend.h"

#define RECORDS_KEPT 50
#define RECORD_MAX   (16u << 20)
#define KEY_MAX      (JOB_ID_MAX + 16)
#define CANCEL       ".cancel"
#define TIME_FORMAT  "%Y-%m-%dT%H:%M:%SZ"
#define TIME_MAX     32

static const char *const state_names[NR_JOB_STATES] = {
    [JOB_RUNNING] = "running",         [JOB_DONE] = "done",
    [JOB_FAILED] = "failed",           [JOB_CANCELLED] = "cancelled",
    [JOB_INTERRUPTED] = "interrupted",
};

const char *job_state_name(enum job_state state)
{
    return state_names[state];
}

/* -- Names -------------------------------------------------------------------------------- */

static char *record_key(const char *id, const char *suffix, char key[KEY_MAX])
{
    snprintf(key, KEY_MAX, "jobs/%s%s", id, suffix);
    return key;
}

char *job_lock_name(const struct job_kind *kind, char name[JOB_ID_MAX])
{
    snprintf(name, JOB_ID_MAX, "job-%s", kind->name);
    return name;
}

bool job_valid_id(const char *id)
{
    size_t len = strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-");

    return len > 0 && len < JOB_ID_MAX && !id[len] && strchr(id, '-');
}

int job_new_id(const struct job_kind *kind, char id[JOB_ID_MAX], struct cairn_error *err)
{
    char when[TIME_MAX], random[5];
    struct timespec now;
    struct tm tm;
    int r = store_random_hex(random, 4, err);

    clock_gettime(CLOCK_REALTIME, &now);
    strftime(when, sizeof(when), "%Y%m%d-%H%M%S", gmtime_r(&now.tv_sec, &tm));
    if (!r)
        snprintf(id, JOB_ID_MAX, "%s-%s-%03ld-%s", kind->name, when, now.tv_nsec / 1000000, random);
    return r;
}

/* -- Saving ------------------------------------------------------------------------------- */

static const char *format_time(time_t t, char text[TIME_MAX])
{
    struct tm tm;

    strftime(text, TIME_MAX, TIME_FORMAT, gmtime_r(&t, &tm));
    return text;
}

static int put_record(struct store *store, const char *id, json_t *record, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    char key[KEY_MAX];
    int r = json_memory_dump(record, JSON_COMPACT, &text, err);

    return r ? r
             : store_put(store, record_key(id, "", key), text, strlen(text), STORE_PUT_REPLACE,
                         err);
}

int job_record_save(const struct job *job, enum job_state state, const char *why,
                    struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    char started[TIME_MAX], updated[TIME_MAX];
    bool ended = state != JOB_RUNNING && state != JOB_INTERRUPTED;

    format_time(job->started, started);
    format_time(time(NULL), updated);
    json_memory_begin();
    record = json_pack(
        "{s:s, s:s, s:s, s:O, s:{s:s, s:I, s:I, s:s}, s:s, s:s, s:s*, s:I, s:s, s:O*, s:O*, s:s*}",
        "id", job->id, "kind", job->kind->name, "state", state_names[state], "options",
        job->options, "progress", "phase", job->phase, "done", (json_int_t)job->done, "total",
        (json_int_t)job->total, "unit", job->unit, "started", started, "updated", updated,
        "finished", ended ? updated : NULL, "restarts", (json_int_t)job->restarts, "server",
        job->jobs->server, "cursor", ended ? NULL : job->cursor, "result", job->result, "error",
        why);
    return put_record(job->jobs->store, job->id, record, err);
}

/* -- Loading ------------------------------------------------------------------------------ */

/* Who goes on with a job writes where its record says that it is. */
static bool is_record_of(const json_t *record, const char *id)
{
    const char *stated = json_string_value(json_object_get(record, "id"));

    return stated && strcmp(stated, id) == 0;
}

int job_record_load(struct store *store, const char *id, json_t **ret_record,
                    struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    json_t *record = NULL;
    char key[KEY_MAX];
    int r = store_get_text(store, record_key(id, "", key), RECORD_MAX, &text, err);

    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, r, "no job %s", id);
    if (!r)
        r = json_memory_load(text, strlen(text), JSON_REJECT_DUPLICATES, &record, NULL, err);
    if (r)
        return r;
    if (!json_is_string(json_object_get(record, "state")) || !is_record_of(record, id)) {
        json_decref(record);
        return error_set(err, CAIRN_E_CORRUPT, "the record of job %s is damaged", id);
    }
    *ret_record = record;
    return CAIRN_OK;
}

bool job_record_is(const json_t *record, enum job_state state)
{
    return strcmp(json_string_value(json_object_get(record, "state")), state_names[state]) == 0;
}

time_t job_record_time(const json_t *record, const char *name)
{
    const char *text = json_string_value(json_object_get(record, name));
    struct tm tm = {0};

    return text && strptime(text, TIME_FORMAT, &tm) ? timegm(&tm) : 0;
}

int job_cancel_asked(struct store *store, const char *id, bool *ret_asked, struct cairn_error *err)
{
    char key[KEY_MAX];
    uint64_t size;
    int r = store_head(store, record_key(id, CANCEL, key), &size, err);

    *ret_asked = r == CAIRN_OK;
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

int job_ask_cancel(struct store *store, const char *id, struct cairn_error *err)
{
    char key[KEY_MAX];

    return store_put(store, record_key(id, CANCEL, key), "", 0, STORE_PUT_REPLACE, err);
}

/* What has become of a job that says `running` and is not. */
static int set_dead_state(struct store *store, const char *id, json_t *record,
                          struct cairn_error *err)
{
    bool cancelled;
    int r = job_cancel_asked(store, id, &cancelled, err);

    if (!r)
        json_object_set_new(record, "state",
                            json_string(state_names[cancelled ? JOB_CANCELLED : JOB_INTERRUPTED]));
    return r;
}

int job_record_observe(struct store *store, const char *id, json_t **ret_record,
                       struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    char name[JOB_ID_MAX];
    bool held = true;
    int r = job_record_load(store, id, &record, err);

    if (r)
        return r;
    if (job_record_is(record, JOB_RUNNING)) {
        snprintf(name, sizeof(name), "job-%.*s", (int)strcspn(id, "-"), id);
        r = store_lock_held(store, name, &held, err);
    }
    if (!r && !held) {
        json_decref(steal_ptr(record));
        r = job_record_load(store, id, &record, err);
        if (!r && job_record_is(record, JOB_RUNNING))
            r = set_dead_state(store, id, record, err);
    }
    if (!r)
        *ret_record = steal_ptr(record);
    return r;
}

/* -- All of a kind ------------------------------------------------------------------------ */

void job_ids_release(struct job_ids *ids)
{
    free(ids->ids);
}

struct listing {
    struct job_ids *ids;
    const char *kind;
};

static int add_id(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct listing *l = arg;
    struct job_ids *ids = l->ids;
    size_t len = l->kind ? strlen(l->kind) : 0;

    if (is_prefix || !job_valid_id(name) ||
        (l->kind && (strncmp(name, l->kind, len) != 0 || name[len] != '-')))
        return CAIRN_OK;
    if (ids->nr == ids->room) {
        size_t room = ids->room ? 2 * ids->room : 64;
        void *more = reallocarray(ids->ids, room, sizeof(*ids->ids));

        if (!more)
            return error_no_memory(err, "a list of jobs");
        ids->ids = more;
        ids->room = room;
    }
    strcpy(ids->ids[ids->nr++], name);
    return CAIRN_OK;
}

int job_ids_list(struct store *store, const char *kind, struct job_ids *ids,
                 struct cairn_error *err)
{
    struct listing l = {.ids = ids, .kind = kind};

    return store_list(store, "jobs/", NULL, add_id, &l, err);
}

int job_record_end(struct store *store, const char *id, enum job_state state,
                   struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    char now[TIME_MAX];
    int r = job_record_load(store, id, &record, err);

    if (r)
        return r;
    json_object_set_new(record, "state", json_string(state_names[state]));
    if (state != JOB_INTERRUPTED)
        json_object_set_new(record, "finished", json_string(format_time(time(NULL), now)));
    return put_record(store, id, record, err);
}

static int end_if_dead(struct store *store, const char *id, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    bool cancelled;
    int r = job_record_load(store, id, &record, err);

    if (r == CAIRN_E_CORRUPT || r == CAIRN_E_NOT_FOUND)
        return CAIRN_OK;
    if (r || !job_record_is(record, JOB_RUNNING))
        return r;
    r = job_cancel_asked(store, id, &cancelled, err);
    return r ? r : job_record_end(store, id, cancelled ? JOB_CANCELLED : JOB_INTERRUPTED, err);
}

static int remove_record(struct store *store, const char *id, struct cairn_error *err)
{
    static const char *const suffixes[] = {CANCEL, ""};
    char key[KEY_MAX];
    int r = CAIRN_OK;

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]) && !r; i++) {
        r = store_delete(store, record_key(id, suffixes[i], key), err);
        r = r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
    }
    return r;
}

int job_records_tidy(struct store *store, const struct job_kind *kind, struct cairn_error *err)
{
    CLEANUP(job_ids_release) struct job_ids ids = {0};
    int r = job_ids_list(store, kind->name, &ids, err);

    for (size_t i = 0; i < ids.nr && !r; i++) {
        if (ids.nr - i > RECORDS_KEPT)
            r = remove_record(store, ids.ids[i], err);
        else
            r = end_if_dead(store, ids.ids[i], err);
    }
    return r;
}
