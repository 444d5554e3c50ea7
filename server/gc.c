/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The collector (collect.h) as a kind of job: its options, its result, its figures.
 */
#include "gc.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "log.h"
#include "metrics.h"

#define GRACE_MAX 315360000 /* ten years */

enum outcome { OUTCOME_DONE, OUTCOME_FAILED, OUTCOME_CANCELLED, NR_OUTCOMES };

/* Of the runs of this process that were no dry ones. */
struct figures {
    uint64_t runs[NR_OUTCOMES];
    struct collect_count kinds[NR_COLLECT_KINDS];
    uint64_t expired_leases, broken_claims, kept_repositories;
    uint64_t freed_bytes, duration_us;
    uint64_t last_success; /* seconds since 1970 */
};

struct gc {
    struct store *store;
    struct gc_options options;
    pthread_mutex_t lock; /* protects the figures */
    struct figures figures;
};

/* -- Options ---------------------------------------------------------------------------------- */

static int parse_dry_run(const json_t *given, bool *ret_dry_run, struct cairn_error *err)
{
    const json_t *value = json_object_get(given, "dryRun");

    *ret_dry_run = json_is_true(value);
    if (value && !json_is_boolean(value))
        return error_set(err, CAIRN_E_USAGE, "dryRun is neither true nor false");
    return CAIRN_OK;
}

static int parse_grace(const json_t *given, uint64_t *grace_s, struct cairn_error *err)
{
    const json_t *value = json_object_get(given, "grace");

    if (!value)
        return CAIRN_OK;
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > GRACE_MAX)
        return error_set(err, CAIRN_E_USAGE, "grace is not a number of seconds, 0 to %d",
                         GRACE_MAX);
    *grace_s = (uint64_t)json_integer_value(value);
    return CAIRN_OK;
}

static int check_names(const json_t *given, struct cairn_error *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)given, name, value)
    {
        if (strcmp(name, "dryRun") != 0 && strcmp(name, "grace") != 0)
            return error_set(err, CAIRN_E_USAGE, "gc has no option %.64s: dryRun, grace", name);
    }
    return CAIRN_OK;
}

static int parse(void *ctx, const json_t *given, json_t **ret_options, struct cairn_error *err)
{
    const struct gc *gc = ctx;
    uint64_t grace_s = gc->options.collect.grace_s;
    bool dry_run = false;
    int r = given ? check_names(given, err) : CAIRN_OK;

    if (!r && given)
        r = parse_dry_run(given, &dry_run, err);
    if (!r && given)
        r = parse_grace(given, &grace_s, err);
    if (r)
        return r;
    *ret_options = json_pack("{s:b, s:I}", "dryRun", dry_run, "grace", (json_int_t)grace_s);
    return *ret_options ? CAIRN_OK : error_no_memory(err, "the options of a job");
}

/* -- A run ------------------------------------------------------------------------------------ */

static int tell(void *ctx, const char *phase, uint64_t done, uint64_t total, const char *unit,
                struct cairn_error *err)
{
    const struct job_progress progress = {
        .phase = phase, .done = done, .total = total, .unit = unit};

    return jobs_progress(ctx, &progress, err);
}

static json_t *kinds_json(const struct collect_result *result)
{
    json_t *kinds = json_object();

    for (size_t i = 0; i < NR_COLLECT_KINDS; i++) {
        const struct collect_count *c = &result->kinds[i];

        json_object_set_new(kinds, collect_kind_names[i],
                            json_pack("{s:I, s:I, s:I, s:I, s:I}", "seen", (json_int_t)c->seen,
                                      "condemned", (json_int_t)c->condemned, "revived",
                                      (json_int_t)c->revived, "deleted", (json_int_t)c->deleted,
                                      "bytes", (json_int_t)c->bytes));
    }
    return kinds;
}

static json_t *result_json(const struct collect_options *options,
                           const struct collect_result *result, uint64_t duration_us)
{
    return json_pack("{s:b, s:I, s:I, s:I, s:I, s:I, s:f, s:o}", "dryRun", options->dry_run,
                     "grace", (json_int_t)options->grace_s, "bytesFreed", (json_int_t)result->bytes,
                     "expiredLeases", (json_int_t)result->expired_leases, "brokenClaims",
                     (json_int_t)result->broken_claims, "keptRepositories",
                     (json_int_t)result->kept_repositories, "seconds", (double)duration_us / 1e6,
                     "kinds", kinds_json(result));
}

static void add_figures(struct gc *gc, const struct collect_result *result, uint64_t duration_us,
                        int code)
{
    SCOPED_LOCK(&gc->lock);
    struct figures *f = &gc->figures;

    f->runs[code == CAIRN_OK            ? OUTCOME_DONE
            : code == CAIRN_E_CANCELLED ? OUTCOME_CANCELLED
                                        : OUTCOME_FAILED]++;
    for (size_t i = 0; i < NR_COLLECT_KINDS; i++) {
        f->kinds[i].seen += result->kinds[i].seen;
        f->kinds[i].condemned += result->kinds[i].condemned;
        f->kinds[i].revived += result->kinds[i].revived;
        f->kinds[i].deleted += result->kinds[i].deleted;
        f->kinds[i].bytes += result->kinds[i].bytes;
    }
    f->expired_leases += result->expired_leases;
    f->broken_claims += result->broken_claims;
    f->kept_repositories += result->kept_repositories;
    f->freed_bytes += result->bytes;
    f->duration_us += duration_us;
    if (code == CAIRN_OK)
        f->last_success = (uint64_t)time(NULL);
}

static int run(void *ctx, struct job *job, struct cairn_error *err)
{
    struct gc *gc = ctx;
    const json_t *options = job_options(job);
    const struct collect_watch watch = {.progress = tell, .ctx = job};
    struct collect_options collect = gc->options.collect;
    struct collect_result result;
    uint64_t since_us = clock_now_us(), duration_us;
    int r;

    collect.dry_run = json_is_true(json_object_get(options, "dryRun"));
    collect.grace_s = (uint64_t)json_integer_value(json_object_get(options, "grace"));
    r = collect_run(gc->store, &collect, &watch, &result, err);
    duration_us = clock_now_us() - since_us;
    if (!collect.dry_run)
        add_figures(gc, &result, duration_us, r);
    job_set_result(job, result_json(&collect, &result, duration_us));
    return r;
}

struct job_kind gc_job_kind(struct gc *gc)
{
    return (struct job_kind){
        .name = "gc",
        .ctx = gc,
        .interval_s = gc->options.interval_s,
        .resumes = true,
        .parse = parse,
        .run = run,
    };
}

/* -- Figures ---------------------------------------------------------------------------------- */

static void write_runs(const struct figures *f, struct metrics *m)
{
    metrics_family(m, "cairn_gc_runs_total", "counter", "Runs of the collector on this server.");
    metrics_value(m, "result=\"done\"", f->runs[OUTCOME_DONE]);
    metrics_value(m, "result=\"failed\"", f->runs[OUTCOME_FAILED]);
    metrics_value(m, "result=\"cancelled\"", f->runs[OUTCOME_CANCELLED]);
    metrics_family(m, "cairn_gc_duration_seconds_total", "counter", "Time that runs have taken.");
    metrics_seconds(m, NULL, f->duration_us);
}

static void write_kinds(const struct figures *f, struct metrics *m)
{
    static const struct {
        const char *name, *help;
        size_t field;
    } families[] = {
        {"cairn_gc_seen_total", "Objects that runs have looked at.",
         offsetof(struct collect_count, seen)},
        {"cairn_gc_condemned_total", "Objects found dead at first.",
         offsetof(struct collect_count, condemned)},
        {"cairn_gc_revived_total", "Condemned objects found live, or wanted, after all.",
         offsetof(struct collect_count, revived)},
        {"cairn_gc_deleted_total", "Objects deleted.", offsetof(struct collect_count, deleted)},
    };

    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        metrics_family(m, families[i].name, "counter", families[i].help);
        for (size_t k = 0; k < NR_COLLECT_KINDS; k++) {
            char labels[64];

            snprintf(labels, sizeof(labels), "kind=\"%s\"", collect_kind_names[k]);
            metrics_value(m, labels, metrics_field(&f->kinds[k], families[i].field));
        }
    }
}

void gc_write_metrics(void *ctx, struct metrics *m)
{
    static const struct metrics_row rows[] = {
        {"cairn_gc_freed_bytes_total", "counter", "Bytes of the objects deleted.",
         offsetof(struct figures, freed_bytes)},
        {"cairn_gc_expired_leases_total", "counter", "Leases that had ended, removed.",
         offsetof(struct figures, expired_leases)},
        {"cairn_gc_broken_claims_total", "counter", "Claims of publishers that seemed dead.",
         offsetof(struct figures, broken_claims)},
        {"cairn_gc_kept_repositories_total", "counter",
         "Repositories in which nothing was judged, for something could not be read.",
         offsetof(struct figures, kept_repositories)},
        {"cairn_gc_last_success_timestamp_seconds", "gauge",
         "When a run on this server last succeeded; 0: never.",
         offsetof(struct figures, last_success)},
    };
    struct gc *gc = ctx;
    struct figures f;

    pthread_mutex_lock(&gc->lock);
    f = gc->figures;
    pthread_mutex_unlock(&gc->lock);
    write_runs(&f, m);
    write_kinds(&f, m);
    metrics_rows(m, rows, sizeof(rows) / sizeof(rows[0]), &f);
}

/* -- Life ------------------------------------------------------------------------------------- */

int gc_new(struct store *store, const struct gc_options *options, struct gc **ret_gc,
           struct cairn_error *err)
{
    struct gc *gc = calloc(1, sizeof(*gc));

    if (!gc)
        return error_no_memory(err, "the collector");
    gc->store = store;
    gc->options = *options;
    pthread_mutex_init(&gc->lock, NULL);
    *ret_gc = gc;
    return CAIRN_OK;
}

void gc_free(struct gc *gc)
{
    if (!gc)
        return;
    pthread_mutex_destroy(&gc->lock);
    free(gc);
}
