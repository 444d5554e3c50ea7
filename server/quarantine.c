/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Damaged blobs, out of service.
 *
 * The record is stored before the blob is moved: a blob that is away always has one.  A record
 * whose blob is in place again (a crash in between, or one just before it was ended) says nothing
 * wrong either, for whoever asks looks for the blob first.  Records are replaced and not changed in
 * place: one job in a store adds them (scrub.c), and ending one is the same whoever does it.
 */
#include "quarantine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "json_memory.h"
#include "log.h"
#include "metrics.h"
#include "registry.h"

#define LOOK_EVERY_S 10
#define KEEP_ENDED_S 3600
#define RECORD_MAX   (16u << 20)
#define PREFIX       "quarantine/"
#define SCRUBBED_KEY "quarantine/scrubbed"

CLEANUP_DEFINE(json_t *, json_decref)

struct quarantine {
    struct store *store;
    struct quarantine_forget forget;
    atomic_uint_fast64_t nr_damaged, scrubbed; /* when; 0: never */
    pthread_mutex_t lock;                      /* protects stopping and look_now */
    pthread_cond_t wake;
    bool stopping, look_now;
    pthread_t thread;
};

/* -- Records ------------------------------------------------------------------------------ */

static char *key_of(const struct digest *blob, const char *suffix, char key[QUARANTINE_KEY_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];

    snprintf(key, QUARANTINE_KEY_MAX, PREFIX "%s%s", digest_format_hex(blob, hex), suffix);
    return key;
}

char *quarantine_blob_key(const struct digest *blob, char key[QUARANTINE_KEY_MAX])
{
    return key_of(blob, ".blob", key);
}

static int put_record(struct store *store, const struct digest *blob, const json_t *record,
                      struct cairn_error *err)
{
    char key[QUARANTINE_KEY_MAX];
    CLEANUP_FREE char *text = NULL;
    int r = json_memory_dump(record, JSON_COMPACT, &text, err);

    return r ? r
             : store_put(store, key_of(blob, ".json", key), text, strlen(text), STORE_PUT_REPLACE,
                         err);
}

/* CAIRN_E_NOT_FOUND: there is none.  One that cannot be read is as good as an empty one. */
static int get_record(struct store *store, const struct digest *blob, json_t **ret_record,
                      struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    CLEANUP(json_decref_p) json_t *record = NULL;
    char key[QUARANTINE_KEY_MAX];
    int r = store_get_text(store, key_of(blob, ".json", key), RECORD_MAX, &text, err);

    if (!r)
        r = json_memory_load(text, strlen(text), JSON_REJECT_DUPLICATES, &record, NULL, err);
    if (r && r != CAIRN_E_CORRUPT && r != CAIRN_E_IO)
        return r;
    *ret_record = json_is_object(record) ? steal_ptr(record) : json_object();
    return *ret_record ? CAIRN_OK : error_no_memory(err, "a record of the quarantine");
}

static time_t ended_at(const json_t *record)
{
    json_int_t ended = json_integer_value(json_object_get(record, "ended"));

    return ended > 0 ? (time_t)ended : 0;
}

int quarantine_check(struct store *store, const struct digest *blob, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    char text[DIGEST_STR_MAX];
    int r = get_record(store, blob, &record, err);

    if (r == CAIRN_E_NOT_FOUND || (!r && ended_at(record)))
        return CAIRN_OK;
    if (r)
        return r;
    return error_set(err, CAIRN_E_NOT_FOUND,
                     "blob %s is damaged and in quarantine; a push of the same layer heals it",
                     digest_format(blob, text));
}

static int replace_field(struct store *store, const struct digest *blob, const char *name,
                         json_t *value, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    int r = get_record(store, blob, &record, err);

    json_memory_begin();
    if (r || json_object_set(record, name, value) != 0)
        return r ? r : error_no_memory(err, "a record of the quarantine");
    return put_record(store, blob, record, err);
}

int quarantine_set_tags(struct store *store, const struct digest *blob, const json_t *tags,
                        struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *copy = json_deep_copy(tags);

    return replace_field(store, blob, "tags", copy, err);
}

int quarantine_end(struct store *store, const struct digest *blob, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *now = NULL;
    char key[QUARANTINE_KEY_MAX];
    uint64_t size;
    int r = store_head(store, key_of(blob, ".json", key), &size, err);

    if (r)
        return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
    now = json_integer(time(NULL));
    r = replace_field(store, blob, "ended", now, err);
    return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
}

static void look_now(struct quarantine *q)
{
    SCOPED_LOCK(&q->lock);
    q->look_now = true;
    pthread_cond_signal(&q->wake);
}

/* Drop what this process has of the blob, and count anew. */
static void forget(struct quarantine *q, const struct digest *blob)
{
    q->forget.forget(q->forget.ctx, blob);
    look_now(q);
}

int quarantine_add(struct quarantine *q, const struct digest *blob, const char *problem,
                   const json_t *tags, struct cairn_error *err)
{
    char text[DIGEST_STR_MAX], key[REGISTRY_KEY_MAX], aside[QUARANTINE_KEY_MAX];
    CLEANUP(json_decref_p) json_t *record = NULL;
    int r;

    json_memory_begin();
    record = json_pack("{s:s, s:s, s:I, s:o}", "digest", digest_format(blob, text), "problem",
                       problem, "found", (json_int_t)time(NULL), "tags", json_deep_copy(tags));
    r = put_record(q->store, blob, record, err);
    if (!r)
        r = store_move(q->store, registry_blob_key(blob, key), quarantine_blob_key(blob, aside),
                       STORE_PUT_REPLACE, err);
    forget(q, blob);
    return r;
}

int quarantine_put_back(struct quarantine *q, const struct digest *blob, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], aside[QUARANTINE_KEY_MAX];
    int r = store_move(q->store, quarantine_blob_key(blob, aside), registry_blob_key(blob, key),
                       STORE_PUT_IF_ABSENT, err);

    if (!r || r == CAIRN_E_CONFLICT)
        r = quarantine_end(q->store, blob, err);
    forget(q, blob);
    return r;
}

/* -- All records -------------------------------------------------------------------------- */

struct each {
    struct store *store;
    int (*fn)(void *ctx, const struct digest *blob, json_t *record, struct cairn_error *err);
    void *ctx;
};

/* The digest of `<hex>.json`; false: the name is another. */
static bool parse_name(const char *name, struct digest *ret_blob)
{
    char text[DIGEST_STR_MAX + 8];
    size_t len = strlen(name);

    if (len != DIGEST_HEX_LEN + strlen(".json") || strcmp(name + DIGEST_HEX_LEN, ".json") != 0)
        return false;
    snprintf(text, sizeof(text), "sha256:%.*s", DIGEST_HEX_LEN, name);
    return digest_parse(text, strlen(text), ret_blob, NULL) == CAIRN_OK;
}

static int visit(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct each *each = arg;
    CLEANUP(json_decref_p) json_t *record = NULL;
    struct digest blob;
    int r;

    if (is_prefix || !parse_name(name, &blob))
        return CAIRN_OK;
    r = get_record(each->store, &blob, &record, err);
    if (r == CAIRN_E_NOT_FOUND)
        return CAIRN_OK;
    return r ? r : each->fn(each->ctx, &blob, record, err);
}

static int for_each(struct store *store,
                    int (*fn)(void *ctx, const struct digest *blob, json_t *record,
                              struct cairn_error *err),
                    void *ctx, struct cairn_error *err)
{
    struct each each = {.store = store, .fn = fn, .ctx = ctx};

    return store_list(store, PREFIX, NULL, visit, &each, err);
}

static int add_to_list(void *ctx, const struct digest *blob, json_t *record,
                       struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];

    if (ended_at(record))
        return CAIRN_OK;
    if (json_object_set_new(record, "digest", json_string(digest_format(blob, text))) != 0 ||
        json_array_append(ctx, record) != 0)
        return error_no_memory(err, "the records of the quarantine");
    return CAIRN_OK;
}

int quarantine_list(struct store *store, json_t **ret_records, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *records = json_array();
    int r = records ? for_each(store, add_to_list, records, err)
                    : error_no_memory(err, "the records of the quarantine");

    if (!r)
        *ret_records = steal_ptr(records);
    return r;
}

/* -- When all was scrubbed last ----------------------------------------------------------- */

int quarantine_note_scrubbed(struct quarantine *q, struct cairn_error *err)
{
    char text[24];
    int len = snprintf(text, sizeof(text), "%lld", (long long)time(NULL));
    int r = store_put(q->store, SCRUBBED_KEY, text, (size_t)len, STORE_PUT_REPLACE, err);

    look_now(q);
    return r;
}

static int look_when_scrubbed(struct quarantine *q, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    int r = store_get_text(q->store, SCRUBBED_KEY, 32, &text, err);

    if (!r)
        atomic_store(&q->scrubbed, strtoull(text, NULL, 10));
    return r == CAIRN_E_NOT_FOUND || r == CAIRN_E_CORRUPT ? CAIRN_OK : r;
}

/* -- Looking what others have found ------------------------------------------------------- */

struct look {
    struct quarantine *q;
    uint64_t nr_damaged;
};

/* What was ended long ago is of no use to anybody. */
static int remove_ended(struct store *store, const struct digest *blob, struct cairn_error *err)
{
    static const char *const suffixes[] = {".blob", ".json"};
    char key[QUARANTINE_KEY_MAX];
    int r = CAIRN_OK;

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]) && !r; i++) {
        r = store_delete(store, key_of(blob, suffixes[i], key), err);
        r = r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
    }
    return r;
}

static int look_at(void *ctx, const struct digest *blob, json_t *record, struct cairn_error *err)
{
    struct look *look = ctx;
    time_t ended = ended_at(record);

    look->nr_damaged += ended == 0;
    look->q->forget.forget(look->q->forget.ctx, blob);
    if (ended && time(NULL) - ended > KEEP_ENDED_S)
        return remove_ended(look->q->store, blob, err);
    return CAIRN_OK;
}

static bool wait_for_next(struct quarantine *q)
{
    uint64_t until_us = clock_now_us() + LOOK_EVERY_S * UINT64_C(1000000);
    struct timespec until = {.tv_sec = (time_t)(until_us / 1000000),
                             .tv_nsec = (long)(until_us % 1000000) * 1000};

    SCOPED_LOCK(&q->lock);
    while (!q->stopping && !q->look_now && clock_now_us() < until_us)
        pthread_cond_timedwait(&q->wake, &q->lock, &until);
    q->look_now = false;
    return !q->stopping;
}

static void *look_thread(void *arg)
{
    struct quarantine *q = arg;
    bool failed = false; /* told once */

    do {
        struct look look = {.q = q};
        struct cairn_error err;
        int r = for_each(q->store, look_at, &look, &err);

        if (!r)
            r = look_when_scrubbed(q, &err);
        if (q->forget.forget_gone)
            q->forget.forget_gone(q->forget.ctx);
        if (r && !failed)
            log_error("quarantine", &err);
        failed = r != CAIRN_OK;
        if (!r)
            atomic_store(&q->nr_damaged, look.nr_damaged);
    } while (wait_for_next(q));
    return NULL;
}

/* -- Life --------------------------------------------------------------------------------- */

static void release(struct quarantine *q)
{
    pthread_cond_destroy(&q->wake);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

int quarantine_new(struct store *store, const struct quarantine_forget *forget,
                   struct quarantine **ret_quarantine, struct cairn_error *err)
{
    struct quarantine *q = calloc(1, sizeof(*q));
    pthread_condattr_t attr;
    int failed;

    if (!q)
        return error_no_memory(err, "the quarantine");
    q->store = store;
    q->forget = *forget;
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&q->wake, &attr);
    pthread_condattr_destroy(&attr);
    failed = pthread_create(&q->thread, NULL, look_thread, q);
    if (failed) {
        release(q);
        return error_set_errno(err, failed, "cannot start the thread of the quarantine");
    }
    *ret_quarantine = q;
    return CAIRN_OK;
}

static void stop(struct quarantine *q)
{
    SCOPED_LOCK(&q->lock);
    q->stopping = true;
    pthread_cond_signal(&q->wake);
}

void quarantine_free(struct quarantine *q)
{
    if (!q)
        return;
    stop(q);
    pthread_join(q->thread, NULL);
    release(q);
}

void quarantine_write_metrics(void *ctx, struct metrics *m)
{
    const struct quarantine *q = ctx;

    metrics_family(m, "cairn_scrub_damaged_blobs", "gauge", "Blobs in quarantine.");
    metrics_value(m, NULL, atomic_load(&q->nr_damaged));
    metrics_family(m, "cairn_scrub_last_success_timestamp_seconds", "gauge",
                   "When a scrub of the whole store has ended last; 0: never.");
    metrics_value(m, NULL, atomic_load(&q->scrubbed));
}
