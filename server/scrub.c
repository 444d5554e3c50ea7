/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One scrub: what is in quarantine, blobs in the order of their keys, manifests, index objects, and
 * whether every blob is there that a manifest lists.
 *
 * The cursor is the last blob that was read, so a scrub that was interrupted goes on behind it; a
 * blob that was half read is read again from its start, and manifests and index objects, which are
 * few bytes, all again.
 *
 * Damage is acted upon as soon as it is found.  As nobody but the job moves blobs aside, and the
 * collector may delete one and a push bring it back between reading and moving, what was moved is
 * read a third time where it then is; if that was the wrong one it goes back.  So a good blob never
 * stays in quarantine.
 */
#include "scrub_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"
#include "metrics.h"
#include "quote.h"
#include "registry.h"

#define NOTES_MAX        10000               /* of one list in the result */
#define TAGS_MAX         20000               /* of all lists in the result */
#define LISTED_BYTES_MAX ((size_t)512 << 20) /* six million blobs */

/* -- The result --------------------------------------------------------------------------- */

void scrub_count(struct scrub_run *run, const char *what, uint64_t by)
{
    json_int_t value = json_integer_value(json_object_get(run->result, what));

    json_object_set_new(run->result, what, json_integer(value + (json_int_t)by));
}

/* The record of a job has its limit; beyond that tags are told to the log alone. */
static int cut_tags(struct scrub_run *run, json_t *item)
{
    const json_t *tags = json_object_get(item, "tags");
    size_t nr = json_array_size(tags), room = TAGS_MAX - run->nr_tags;
    json_t *some;

    run->nr_tags += nr < room ? nr : room;
    if (nr <= room)
        return 0;
    some = json_array();
    for (size_t i = 0; some && i < room; i++)
        if (json_array_append(some, json_array_get(tags, i)))
            json_decref(steal_ptr(some));
    return json_object_set_new(item, "tags", some) ||
           json_object_set_new(item, "moreTags", json_integer((json_int_t)(nr - room)));
}

int scrub_note(struct scrub_run *run, const char *list, json_t *value, struct cairn_error *err)
{
    json_t *array = json_object_get(run->result, list);
    int failed;

    if (json_array_size(array) >= NOTES_MAX) {
        json_decref(value);
        return CAIRN_OK;
    }
    if (!array) {
        array = json_array();
        json_object_set_new(run->result, list, array);
    }
    failed = cut_tags(run, value);
    failed |= json_array_append_new(array, value);
    return failed ? error_no_memory(err, "the result of a scrub") : CAIRN_OK;
}

static int note_digest(struct scrub_run *run, const char *list, const struct digest *digest,
                       struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];

    return scrub_note(run, list, json_string(digest_format(digest, text)), err);
}

/* -- Damage ------------------------------------------------------------------------------- */

static void log_damage(const char *blob, const char *problem, const json_t *tags)
{
    struct log_line line;
    const json_t *tag;
    size_t i;

    log_begin(&line, LOG_LEVEL_ERROR, "damaged");
    log_text(&line, "blob", blob);
    log_text(&line, "problem", problem);
    log_number(&line, "tags", json_array_size(tags));
    log_end(&line);
    json_array_foreach(tags, i, tag)
    {
        log_begin(&line, LOG_LEVEL_ERROR, "damaged-tag");
        log_text(&line, "tag", json_string_value(tag));
        log_text(&line, "blob", blob);
        log_end(&line);
    }
}

int scrub_note_blob(struct scrub_run *run, const struct digest *blob, const char *problem,
                    const json_t *tags, struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];
    json_t *item =
        json_pack("{s:s, s:s, s:s, s:I, s:O}", "kind", "blob", "digest", digest_format(blob, text),
                  "problem", problem, "found", (json_int_t)time(NULL), "tags", tags);

    log_damage(text, problem, tags);
    return scrub_note(run, "damaged", item, err);
}

/* What was moved aside is what was read, or goes back. */
static int check_moved(struct scrub_run *run, const struct digest *blob, bool *ret_back,
                       struct cairn_error *err)
{
    char key[QUARANTINE_KEY_MAX], problem[SCRUB_PROBLEM_MAX];
    enum scrub_verdict verdict;
    int r = scrub_verify(run, quarantine_blob_key(blob, key), blob, false, &verdict, problem, err);

    *ret_back = !r && verdict == SCRUB_GOOD;
    if (*ret_back)
        r = quarantine_put_back(run->scrub->quarantine, blob, err);
    return r;
}

static int put_aside(struct scrub_run *run, const struct digest *blob, const char *problem,
                     struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *tags = NULL;
    bool needed, back;
    int r = scrub_tags_of_blob(run->store, blob, &tags, &needed, err);

    if (!r)
        r = quarantine_add(run->scrub->quarantine, blob, problem, tags, err);
    if (r == CAIRN_E_NOT_FOUND) /* deleted since */
        return quarantine_end(run->store, blob, err);
    if (!r)
        r = check_moved(run, blob, &back, err);
    return r || back ? r : scrub_note_blob(run, blob, problem, tags, err);
}

static int scrub_blob(struct scrub_run *run, const struct digest *blob,
                      enum scrub_verdict *ret_verdict, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], problem[SCRUB_PROBLEM_MAX];
    int r = scrub_verify(run, registry_blob_key(blob, key), blob, true, ret_verdict, problem, err);

    if (r)
        return r;
    scrub_count(run, "blobs", 1);
    atomic_fetch_add(&run->scrub->nr_blobs, 1);
    return *ret_verdict == SCRUB_DAMAGED ? put_aside(run, blob, problem, err) : CAIRN_OK;
}

/* -- All blobs ---------------------------------------------------------------------------- */

struct blobs_walk {
    struct scrub_run *run;
    const char *folder; /* two hex digits */
    const char *after;  /* hex digits of the last blob that need not be read; "": none */
    int (*fn)(struct blobs_walk *walk, const struct digest *blob, const char *hex,
              struct cairn_error *err);
    uint64_t behind, total; /* what fn counts */
};

static int visit_blob(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct blobs_walk *w = arg;
    char text[DIGEST_STR_MAX + 1];
    struct digest digest;
    int len = snprintf(text, sizeof(text), "sha256:%s", name);

    if (is_prefix || len >= (int)sizeof(text) || digest_parse(text, (size_t)len, &digest, NULL))
        return CAIRN_OK;
    return w->fn(w, &digest, name, err);
}

static int visit_folder(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    struct blobs_walk *w = arg;
    char prefix[32];

    if (!is_prefix || strlen(name) != 2)
        return CAIRN_OK;
    snprintf(prefix, sizeof(prefix), "blobs/sha256/%s/", name);
    return store_list(w->run->store, prefix, NULL, visit_blob, w, err);
}

static int walk_blobs(struct blobs_walk *w, struct cairn_error *err)
{
    return store_list(w->run->store, "blobs/sha256/", NULL, visit_folder, w, err);
}

static int count_blob(struct blobs_walk *w, const struct digest *blob, const char *hex,
                      struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    uint64_t size;
    int r = store_head(w->run->store, registry_blob_key(blob, key), &size, err);

    if (r)
        return r == CAIRN_E_NOT_FOUND ? CAIRN_OK : r;
    w->total += size;
    w->behind += strcmp(hex, w->after) <= 0 ? size : 0;
    w->run->progress.done++;
    return jobs_progress(w->run->job, &w->run->progress, err);
}

static int read_blob(struct blobs_walk *w, const struct digest *blob, const char *hex,
                     struct cairn_error *err)
{
    enum scrub_verdict verdict;
    int r;

    if (strcmp(hex, w->after) <= 0)
        return CAIRN_OK;
    r = scrub_blob(w->run, blob, &verdict, err);
    if (!r)
        job_set_cursor(w->run->job, json_string(hex));
    return r;
}

static int scrub_blobs(struct scrub_run *run, struct cairn_error *err)
{
    const char *cursor = json_string_value(job_cursor(run->job));
    char after[DIGEST_HEX_LEN + 1] = "";
    struct blobs_walk w = {.run = run, .after = after, .fn = count_blob};
    int r;

    if (cursor)
        snprintf(after, sizeof(after), "%s", cursor);
    r = scrub_phase(run, "counting", 0, "blobs", err);
    if (!r)
        r = walk_blobs(&w, err);
    if (r)
        return r;
    w.fn = read_blob;
    r = scrub_phase(run, "blobs", w.total, "bytes", err);
    run->progress.done = w.behind;
    return r ? r : walk_blobs(&w, err);
}

/* -- What is in quarantine already -------------------------------------------------------- */

static int still_damaged(struct scrub_run *run, const struct digest *blob, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *tags = NULL;
    bool needed;
    int r = scrub_tags_of_blob(run->store, blob, &tags, &needed, err);

    if (r)
        return r;
    return needed ? quarantine_set_tags(run->store, blob, tags, err)
                  : quarantine_end(run->store, blob, err);
}

/* Is there another, which has its turn later?  Is it right after all (a cable, a controller)?  Is
 * it still needed, and by whom? */
static int look_again(struct scrub_run *run, const struct digest *blob, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], aside[QUARANTINE_KEY_MAX], problem[SCRUB_PROBLEM_MAX];
    enum scrub_verdict verdict;
    uint64_t size;
    int r = store_head(run->store, registry_blob_key(blob, key), &size, err);

    if (r != CAIRN_E_NOT_FOUND)
        return r ? r : quarantine_end(run->store, blob, err);
    r = scrub_verify(run, quarantine_blob_key(blob, aside), blob, false, &verdict, problem, err);
    if (r)
        return r;
    if (verdict != SCRUB_GOOD)
        return still_damaged(run, blob, err);
    r = quarantine_put_back(run->scrub->quarantine, blob, err);
    return r ? r : note_digest(run, "putBack", blob, err);
}

static bool record_digest(const json_t *record, struct digest *ret_digest)
{
    const char *text = json_string_value(json_object_get(record, "digest"));

    return text && digest_parse(text, strlen(text), ret_digest, NULL) == CAIRN_OK;
}

static int scrub_quarantine(struct scrub_run *run, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *records = NULL;
    int r = scrub_phase(run, "quarantine", 0, "blobs", err);

    if (!r)
        r = quarantine_list(run->store, &records, err);
    for (size_t i = 0; i < json_array_size(records) && !r; i++) {
        struct digest blob;

        if (record_digest(json_array_get(records, i), &blob))
            r = look_again(run, &blob, err);
    }
    return r;
}

/* The result names all that is in quarantine now, also since earlier scrubs; what is lost follows.
 */
static int name_quarantine(struct scrub_run *run, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *records = NULL;
    int r = quarantine_list(run->store, &records, err);

    json_object_set_new(run->result, "damaged", json_array());
    run->nr_tags = 0;
    for (size_t i = 0; i < json_array_size(records) && !r; i++) {
        json_t *record = json_array_get(records, i);

        json_object_set_new(record, "kind", json_string("blob"));
        r = scrub_note(run, "damaged", json_incref(record), err);
    }
    return r;
}

static int name_manifests(struct scrub_run *run, struct cairn_error *err)
{
    CLEANUP(json_decref_p)
    json_t *found = json_incref(json_object_get(run->result, SCRUB_DAMAGED_MANIFESTS));
    int r = CAIRN_OK;

    json_object_del(run->result, SCRUB_DAMAGED_MANIFESTS);
    for (size_t i = 0; i < json_array_size(found) && !r; i++)
        r = scrub_note(run, "damaged", json_incref(json_array_get(found, i)), err);
    return r;
}

/* -- One disk ----------------------------------------------------------------------------- */

static uint64_t disk_bytes(const struct manifest *m)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < m->depth; i++)
        bytes += m->layers[i].size;
    return bytes;
}

/* A blob that is away was found before, or is lost. */
static int note_absent(struct scrub_run *run, const struct digest *blob, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *tags = NULL;
    bool needed;
    int r = scrub_tags_of_blob(run->store, blob, &tags, &needed, err);

    if (!r)
        r = quarantine_check(run->store, blob, err);
    if (r == CAIRN_E_NOT_FOUND)
        return scrub_note_blob(run, blob, "it is in quarantine", tags, err);
    return r ? r : scrub_note_blob(run, blob, SCRUB_LOST, tags, err);
}

static int scrub_layers(struct scrub_run *run, const struct manifest *m, struct cairn_error *err)
{
    int r = scrub_phase(run, "blobs", disk_bytes(m), "bytes", err);

    for (uint32_t i = 0; i < m->depth && !r; i++) {
        enum scrub_verdict verdict;

        r = scrub_blob(run, &m->layers[i].digest, &verdict, err);
        if (!r && verdict == SCRUB_GONE)
            r = note_absent(run, &m->layers[i].digest, err);
    }
    return r;
}

static int scrub_disk(struct scrub_run *run, const char *name, struct cairn_error *err)
{
    CLEANUP(manifest_free_p) struct manifest *manifest = NULL;
    struct digest digest;
    struct ref ref;
    int r = ref_parse(name, &ref, err);

    if (!r)
        r = registry_resolve(run->store, &ref, &digest, err);
    if (!r)
        r = scrub_phase(run, "manifests", 1, "manifests", err);
    if (!r)
        r = scrub_manifest(run, ref.repo, &digest, err);
    if (!r)
        r = registry_find_manifest(run->store, &ref, &manifest, NULL, err);
    if (r)
        return r == CAIRN_E_CORRUPT ? CAIRN_OK : r; /* scrub_manifest has noted that */
    return scrub_layers(run, manifest, err);
}

/* -- The job ------------------------------------------------------------------------------ */

static int scrub_all(struct scrub_run *run, struct cairn_error *err)
{
    int r = scrub_quarantine(run, err);

    if (!r)
        r = scrub_blobs(run, err);
    if (!r)
        r = scrub_manifests(run, err);
    if (!r)
        r = scrub_index(run, err);
    if (!r)
        r = name_quarantine(run, err);
    return r ? r : scrub_lost(run, err);
}

/* What there is of an interrupted one; manifests and index objects are read all again. */
static json_t *begin_result(json_t *old)
{
    json_t *fresh = json_pack("{s:i, s:i, s:i, s:i, s:[]}", "blobs", 0, "bytes", 0, "manifests", 0,
                              "indexObjects", 0, "damaged");
    json_t *result = json_is_object(old) ? json_copy(old) : json_object();

    if (!fresh || !result || json_object_update_missing(result, fresh) ||
        json_object_set_new(result, "manifests", json_integer(0)) ||
        json_object_set_new(result, "indexObjects", json_integer(0))) {
        json_decref(result);
        result = NULL;
    } else {
        json_object_del(result, SCRUB_DAMAGED_MANIFESTS);
    }
    json_decref(fresh);
    return result;
}

static int run_phases(struct scrub_run *run, const char *ref, struct cairn_error *err)
{
    int r = scrub_read_init(run, err);

    if (r)
        return r;
    r = ref ? scrub_disk(run, ref, err) : scrub_all(run, err);
    if (!r)
        r = name_manifests(run, err);
    if (!r && !ref)
        r = quarantine_note_scrubbed(run->scrub->quarantine, err);
    digest_set_release(&run->listed);
    scrub_read_release(run);
    return r;
}

/* One disk is read all again; of the store, what is behind the cursor. */
static int run_job(void *ctx, struct job *job, struct cairn_error *err)
{
    const json_t *options = job_options(job);
    const char *ref = json_string_value(json_object_get(options, "ref"));
    struct scrub *scrub = ctx;
    struct scrub_run run = {
        .scrub = scrub,
        .store = scrub->store,
        .job = job,
        .rate = (uint64_t)json_integer_value(json_object_get(options, "rate")),
        .result = begin_result(ref ? NULL : job_result(job)),
        .budget = {.max_bytes = LISTED_BYTES_MAX},
    };

    if (!run.result)
        return error_no_memory(err, "the result of a scrub");
    job_set_result(job, run.result);
    digest_set_init(&run.listed, &run.budget);
    return run_phases(&run, ref, err);
}

/* -- Options ------------------------------------------------------------------------------ */

static int check_ref(const json_t *value, struct cairn_error *err)
{
    struct ref ref;
    int r = json_is_string(value) ? ref_parse(json_string_value(value), &ref, err)
                                  : error_set(err, CAIRN_E_USAGE, "not a string");

    return r ? error_prefix(err, r, "ref") : CAIRN_OK;
}

static int check_option(const char *name, const json_t *value, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (strcmp(name, "ref") == 0)
        return check_ref(value, err);
    if (strcmp(name, "rate") != 0)
        return error_set(err, CAIRN_E_USAGE, "a scrub has no option %s, expected rate or ref",
                         quote_str(name, quoted));
    if (json_is_integer(value) && json_integer_value(value) >= 0)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "rate is not a number of bytes per second");
}

static int parse_options(void *ctx, const json_t *given, json_t **ret_options,
                         struct cairn_error *err)
{
    const struct scrub *scrub = ctx;
    json_t *options;
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)given, name, value)
    {
        int r = check_option(name, value, err);

        if (r)
            return r;
    }
    options = json_pack("{s:I}", "rate", (json_int_t)scrub->options.rate);
    if (!options || (given && json_object_update(options, (json_t *)(uintptr_t)given) != 0)) {
        json_decref(options);
        return error_no_memory(err, "options");
    }
    *ret_options = options;
    return CAIRN_OK;
}

/* At another rate it is the same work. */
static bool same_work(const json_t *a, const json_t *b)
{
    const char *x = json_string_value(json_object_get(a, "ref"));
    const char *y = json_string_value(json_object_get(b, "ref"));

    return x && y ? strcmp(x, y) == 0 : !x && !y;
}

struct job_kind scrub_job_kind(struct scrub *scrub)
{
    return (struct job_kind){
        .name = "scrub",
        .ctx = scrub,
        .interval_s = scrub->options.interval_s,
        .resumes = true,
        .parse = parse_options,
        .same = same_work,
        .run = run_job,
    };
}

/* -- Life, figures ------------------------------------------------------------------------ */

int scrub_new(struct store *store, struct quarantine *quarantine,
              const struct scrub_options *options, struct scrub **ret_scrub,
              struct cairn_error *err)
{
    struct scrub *scrub = calloc(1, sizeof(*scrub));

    if (!scrub)
        return error_no_memory(err, "scrubbing");
    scrub->store = store;
    scrub->quarantine = quarantine;
    scrub->options = *options;
    *ret_scrub = scrub;
    return CAIRN_OK;
}

void scrub_free(struct scrub *scrub)
{
    free(scrub);
}

void scrub_write_metrics(void *ctx, struct metrics *m)
{
    struct scrub *scrub = ctx;

    metrics_family(m, "cairn_scrub_bytes_total", "counter", "Bytes that scrubs have read.");
    metrics_value(m, NULL, atomic_load(&scrub->nr_bytes));
    metrics_family(m, "cairn_scrub_blobs_total", "counter", "Blobs that scrubs have read.");
    metrics_value(m, NULL, atomic_load(&scrub->nr_blobs));
}
