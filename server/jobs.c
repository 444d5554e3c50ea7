/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs that run on this server, and the thread that starts those nobody asks for.
 *
 * Who starts a job takes the lock of its kind in the store, and the thread that runs it keeps it to
 * the end: so one job of a kind runs in a store, and whether it still does is known everywhere and
 * at once, however its server ended.  Under that lock alone are records written (jobs_record.c).
 *
 * There is one slot, with one thread, for each kind.  The lock of the slots is held while a thread
 * is made or joined; one that is joined has let go of the kind's lock already, and needs no other
 * any more.
 */
#include "jobs_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "log.h"
#include "metrics.h"
#include "quote.h"

#define SAVE_EVERY_US    UINT64_C(1000000)
#define SCHEDULE_EVERY_S 10
#define LOCK_TRIES       100 /* of 20 ms: a job that has the lock and no record, or the reverse */
#define LOCK_PAUSE_NS    20000000
#define CLOCKS_APART_S   3600 /* at most, of servers whose clocks are right */

const struct job_kind *jobs_find_kind(const struct jobs *jobs, const char *name, size_t len)
{
    for (size_t i = 0; i < jobs->nr_kinds; i++)
        if (strlen(jobs->kinds[i].name) == len && memcmp(jobs->kinds[i].name, name, len) == 0)
            return &jobs->kinds[i];
    return NULL;
}

/* -- What a job's thread calls ------------------------------------------------------------ */

const char *job_id(const struct job *job)
{
    return job->id;
}

const json_t *job_options(const struct job *job)
{
    return job->options;
}

const json_t *job_cursor(const struct job *job)
{
    return job->cursor;
}

json_t *job_result(const struct job *job)
{
    return job->result;
}

void job_set_cursor(struct job *job, json_t *cursor)
{
    json_decref(job->cursor);
    job->cursor = cursor;
}

void job_set_result(struct job *job, json_t *result)
{
    json_decref(job->result);
    job->result = result;
}

static bool is_stopping(struct jobs *jobs)
{
    SCOPED_LOCK(&jobs->lock);
    return jobs->stopping;
}

static int check_stop(const struct job *job, struct cairn_error *err)
{
    if (job->cancelled)
        return error_set(err, CAIRN_E_CANCELLED, "job %s was cancelled", job->id);
    if (is_stopping(job->jobs))
        return error_set(err, CAIRN_E_CANCELLED, "the server stops");
    return CAIRN_OK;
}

/* Trouble is told once. */
static void save(struct job *job)
{
    struct cairn_error err;
    int r = job_record_save(job, JOB_RUNNING, NULL, &err);

    if (!r)
        r = job_cancel_asked(job->jobs->store, job->id, &job->cancelled, &err);
    if (r && !job->save_failed)
        log_error("job", &err);
    job->save_failed = r != CAIRN_OK;
    job->saved_us = clock_now_us();
}

int jobs_progress(struct job *job, const struct job_progress *progress, struct cairn_error *err)
{
    bool new_phase = strcmp(job->phase, progress->phase) != 0;

    snprintf(job->phase, sizeof(job->phase), "%s", progress->phase);
    snprintf(job->unit, sizeof(job->unit), "%s", progress->unit);
    job->done = progress->done;
    job->total = progress->total;
    if (new_phase || clock_now_us() - job->saved_us >= SAVE_EVERY_US)
        save(job);
    return check_stop(job, err);
}

/* Until then (clock_now_us) at most; false: the server stops. */
static bool wait_until(struct jobs *jobs, uint64_t until_us)
{
    struct timespec until = {.tv_sec = (time_t)(until_us / 1000000),
                             .tv_nsec = (long)(until_us % 1000000) * 1000};

    SCOPED_LOCK(&jobs->lock);
    while (!jobs->stopping && clock_now_us() < until_us)
        pthread_cond_timedwait(&jobs->stop, &jobs->lock, &until);
    return !jobs->stopping;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

int jobs_pause(struct job *job, uint64_t us, struct cairn_error *err)
{
    const uint64_t until = clock_now_us() + us;
    int r = check_stop(job, err);

    while (!r && clock_now_us() < until) {
        wait_until(job->jobs, earlier(until, job->saved_us + SAVE_EVERY_US));
        if (clock_now_us() - job->saved_us >= SAVE_EVERY_US)
            save(job);
        r = check_stop(job, err);
    }
    return r;
}

/* -- The life of a job -------------------------------------------------------------------- */

static void job_free(struct job *job)
{
    if (!job)
        return;
    store_unlock(job->lock);
    json_decref(job->options);
    json_decref(job->cursor);
    json_decref(job->result);
    free(job);
}
CLEANUP_DEFINE(struct job *, job_free)

static void log_job(const struct job *job, enum log_level level, const char *state,
                    const char *message)
{
    struct log_line line;

    log_begin(&line, level, "job");
    log_text(&line, "job", job->id);
    log_text(&line, "state", state);
    if (message)
        log_text(&line, "message", message);
    log_end(&line);
}

static enum job_state end_state(const struct job *job, int code)
{
    if (code == CAIRN_OK)
        return JOB_DONE;
    if (code != CAIRN_E_CANCELLED)
        return JOB_FAILED;
    return job->cancelled ? JOB_CANCELLED : JOB_INTERRUPTED;
}

static void *run_thread(void *arg)
{
    CLEANUP(job_free_p) struct job *job = arg;
    struct job_slot *slot = job->slot;
    struct cairn_error err, save_err;
    int code = job->kind->run(job->kind->ctx, job, &err);
    enum job_state state = end_state(job, code);
    const char *why = state == JOB_FAILED ? err.message : NULL;

    if (job_record_save(job, state, why, &save_err))
        log_error("job", &save_err);
    log_job(job, state == JOB_FAILED ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, job_state_name(state),
            why);
    atomic_fetch_add(&slot->ended[state], 1);
    atomic_store(&slot->running, false);
    return NULL;
}

/* The job is the thread's from here on, unless this fails. */
static int start_thread(struct job *job, struct cairn_error *err)
{
    struct job_slot *slot = job->slot;
    int failed;

    SCOPED_LOCK(&job->jobs->lock);
    if (job->jobs->stopping)
        return error_set(err, CAIRN_E_UNAVAILABLE, "the server stops");
    if (slot->started)
        pthread_join(slot->thread, NULL);
    atomic_store(&slot->running, true);
    failed = pthread_create(&slot->thread, NULL, run_thread, job);
    slot->started = failed == 0;
    if (!failed)
        return CAIRN_OK;
    atomic_store(&slot->running, false);
    return error_set_errno(err, failed, "cannot start a thread for job %s", job->id);
}

/* -- Starting ----------------------------------------------------------------------------- */

static bool same_work(const struct job_kind *kind, const json_t *a, const json_t *b)
{
    return kind->same ? kind->same(a, b) : json_equal(a, b);
}

/* Its ID puts it behind all that follow: a clock was wrong. */
static bool is_of_the_future(time_t t)
{
    return t > time(NULL) + CLOCKS_APART_S;
}

/* The newest job that is the same work (options NULL: any); *ret_record stays NULL if there is
 * none.
 */
static int find_same(struct jobs *jobs, const struct job_kind *kind, const json_t *options,
                     json_t **ret_record, struct cairn_error *err)
{
    CLEANUP(job_ids_release) struct job_ids ids = {0};
    int r = job_ids_list(jobs->store, kind->name, &ids, err);

    for (size_t i = ids.nr; i > 0 && !r; i--) {
        CLEANUP(json_decref_p) json_t *record = NULL;

        r = job_record_observe(jobs->store, ids.ids[i - 1], &record, err);
        if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_CORRUPT)
            r = CAIRN_OK; /* removed meanwhile; or of no use, which its age will end */
        else if (!r && !is_of_the_future(job_record_time(record, "started")) &&
                 (!options || same_work(kind, json_object_get(record, "options"), options))) {
            *ret_record = steal_ptr(record);
            break;
        }
    }
    return r;
}

/* The job of a kind that runs; CAIRN_E_NOT_FOUND if none says so. */
static int find_running(struct jobs *jobs, const struct job_kind *kind, char ret_id[JOB_ID_MAX],
                        struct cairn_error *err)
{
    CLEANUP(job_ids_release) struct job_ids ids = {0};
    int r = job_ids_list(jobs->store, kind->name, &ids, err);

    for (size_t i = ids.nr; i > 0 && !r; i--) {
        CLEANUP(json_decref_p) json_t *record = NULL;

        r = job_record_observe(jobs->store, ids.ids[i - 1], &record, err);
        if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_CORRUPT) {
            r = CAIRN_OK;
        } else if (!r && job_record_is(record, JOB_RUNNING)) {
            strcpy(ret_id, ids.ids[i - 1]);
            return CAIRN_OK;
        }
    }
    return r ? r : error_set(err, CAIRN_E_NOT_FOUND, "no job of kind %s runs", kind->name);
}

/*
 * A lock that is held without a job that says `running` is about to get one, or to be let go: that
 * takes two writes to the store.
 */
static int take_lock(struct jobs *jobs, const struct job_kind *kind, char ret_id[JOB_ID_MAX],
                     struct store_lock **ret_lock, struct cairn_error *err)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    char name[JOB_ID_MAX];

    for (unsigned i = 0; i < LOCK_TRIES; i++) {
        int r = store_lock(jobs->store, job_lock_name(kind, name), ret_lock, err);

        if (r != CAIRN_E_CONFLICT)
            return r;
        r = find_running(jobs, kind, ret_id, err);
        if (r == CAIRN_OK)
            return error_set(err, CAIRN_E_CONFLICT, "job %s is running", ret_id);
        if (r != CAIRN_E_NOT_FOUND)
            return r;
        nanosleep(&pause, NULL);
    }
    return error_set(err, CAIRN_E_UNAVAILABLE, "another job of kind %s is about to start or to end",
                     kind->name);
}

static int begin_anew(struct job *job, struct cairn_error *err)
{
    job->started = time(NULL);
    return job_new_id(job->kind, job->id, err);
}

static void go_on(struct job *job, const json_t *record)
{
    snprintf(job->id, sizeof(job->id), "%s", json_string_value(json_object_get(record, "id")));
    job->cursor = json_incref(json_object_get(record, "cursor"));
    job->result = json_incref(json_object_get(record, "result"));
    job->started = job_record_time(record, "started");
    job->restarts = (unsigned)json_integer_value(json_object_get(record, "restarts")) + 1;
}

/* The lock is held, so that what says `running` does not. */
static int prepare(struct job *job, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *last = NULL;
    int r = job_records_tidy(job->jobs->store, job->kind, err);

    if (!r)
        r = find_same(job->jobs, job->kind, job->options, &last, err);
    if (r)
        return r;
    if (last && job_record_is(last, JOB_INTERRUPTED))
        go_on(job, last);
    else
        r = begin_anew(job, err);
    snprintf(job->phase, sizeof(job->phase), "starting");
    return r ? r : job_record_save(job, JOB_RUNNING, NULL, err);
}

static int make_job(struct jobs *jobs, const struct job_kind *kind, const json_t *given,
                    struct job **ret_job, struct cairn_error *err)
{
    CLEANUP(job_free_p) struct job *job = calloc(1, sizeof(*job));
    int r;

    if (!job)
        return error_no_memory(err, "a job");
    job->jobs = jobs;
    job->kind = kind;
    job->slot = &jobs->slots[kind - jobs->kinds];
    r = kind->parse(kind->ctx, given, &job->options, err);
    if (!r)
        *ret_job = steal_ptr(job);
    return r;
}

static int start_kind(struct jobs *jobs, const struct job_kind *kind, const json_t *given,
                      char ret_id[JOB_ID_MAX], struct cairn_error *err)
{
    CLEANUP(job_free_p) struct job *job = NULL;
    int r = make_job(jobs, kind, given, &job, err);

    ret_id[0] = 0;
    if (!r)
        r = take_lock(jobs, kind, ret_id, &job->lock, err);
    if (!r)
        r = prepare(job, err);
    if (r)
        return r;
    strcpy(ret_id, job->id);
    log_job(job, LOG_LEVEL_INFO, "running", job->restarts ? "goes on" : NULL);
    r = start_thread(job, err);
    if (!r)
        (void)steal_ptr(job);
    return r;
}

int jobs_start(struct jobs *jobs, const char *name, const json_t *given, char ret_id[JOB_ID_MAX],
               struct cairn_error *err)
{
    const struct job_kind *kind = jobs_find_kind(jobs, name, strlen(name));
    char quoted[QUOTE_MAX];

    if (!kind)
        return error_set(err, CAIRN_E_NOT_FOUND, "there are no jobs of kind %s",
                         quote_str(name, quoted));
    return start_kind(jobs, kind, given, ret_id, err);
}

/* -- Asking ------------------------------------------------------------------------------- */

int jobs_get(struct jobs *jobs, const char *id, json_t **ret_record, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (!job_valid_id(id))
        return error_set(err, CAIRN_E_NOT_FOUND, "no job %s", quote_str(id, quoted));
    return job_record_observe(jobs->store, id, ret_record, err);
}

/* One that nobody runs ends here, unless it is just being taken up: that one is asked to. */
static int cancel_interrupted(struct jobs *jobs, const char *id, struct cairn_error *err)
{
    const struct job_kind *kind = jobs_find_kind(jobs, id, strcspn(id, "-"));
    CLEANUP(store_unlock_p) struct store_lock *lock = NULL;
    char name[JOB_ID_MAX];
    int r = kind ? store_lock(jobs->store, job_lock_name(kind, name), &lock, err)
                 : error_set(err, CAIRN_E_NOT_FOUND, "no job %s", id);

    if (r == CAIRN_E_CONFLICT)
        return job_ask_cancel(jobs->store, id, err);
    return r ? r : job_record_end(jobs->store, id, JOB_CANCELLED, err);
}

int jobs_cancel(struct jobs *jobs, const char *id, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = NULL;
    int r = jobs_get(jobs, id, &record, err);

    if (r)
        return r;
    if (job_record_is(record, JOB_RUNNING))
        return job_ask_cancel(jobs->store, id, err);
    if (job_record_is(record, JOB_INTERRUPTED))
        return cancel_interrupted(jobs, id, err);
    return error_set(err, CAIRN_E_CONFLICT, "job %s has ended: %s", id,
                     json_string_value(json_object_get(record, "state")));
}

/* -- Starting by itself ------------------------------------------------------------------- */

/* The last job of the kind's ordinary work: is it time for another, or is it to go on? */
static bool is_due(const struct job_kind *kind, const json_t *last)
{
    time_t ended;

    if (last && job_record_is(last, JOB_RUNNING))
        return false;
    if (last && job_record_is(last, JOB_INTERRUPTED))
        return kind->resumes || kind->interval_s;
    if (kind->interval_s == 0)
        return false;
    ended = last ? job_record_time(last, "finished") : 0;
    return is_of_the_future(ended) || time(NULL) - ended >= (time_t)kind->interval_s;
}

static int start_ordinary(struct jobs *jobs, const struct job_kind *kind, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *options = NULL;
    CLEANUP(json_decref_p) json_t *last = NULL;
    char id[JOB_ID_MAX];
    int r = kind->parse(kind->ctx, NULL, &options, err);

    if (!r)
        r = find_same(jobs, kind, options, &last, err);
    return r || !is_due(kind, last) ? r : start_kind(jobs, kind, NULL, id, err);
}

/* What was begun last and interrupted goes first, with the options that it was given; unless those
 * are of another version, and mean nothing here. */
static int start_if_due(struct jobs *jobs, const struct job_kind *kind, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *last = NULL;
    char id[JOB_ID_MAX];
    int r = find_same(jobs, kind, NULL, &last, err);

    if (!r && last && job_record_is(last, JOB_INTERRUPTED)) {
        r = start_kind(jobs, kind, json_object_get(last, "options"), id, err);
        if (r == CAIRN_E_USAGE)
            r = start_ordinary(jobs, kind, err);
    } else if (!r) {
        r = start_ordinary(jobs, kind, err);
    }
    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r; /* another server was first */
}

static void *schedule(void *arg)
{
    struct jobs *jobs = arg;
    struct cairn_error err;

    do {
        for (size_t i = 0; i < jobs->nr_kinds; i++) {
            const struct job_kind *kind = &jobs->kinds[i];

            if ((kind->interval_s || kind->resumes) && start_if_due(jobs, kind, &err) &&
                err.code != CAIRN_E_UNAVAILABLE)
                log_error("job", &err);
        }
    } while (wait_until(jobs, clock_now_us() + SCHEDULE_EVERY_S * UINT64_C(1000000)));
    return NULL;
}

/* -- All of them -------------------------------------------------------------------------- */

static void release(struct jobs *jobs)
{
    pthread_cond_destroy(&jobs->stop);
    pthread_mutex_destroy(&jobs->lock);
    free(jobs->server);
    free(jobs);
}

static void init_lock(struct jobs *jobs)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&jobs->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&jobs->stop, &attr);
    pthread_condattr_destroy(&attr);
}

int jobs_new(struct store *store, const char *server, const struct job_kind *kinds, size_t nr_kinds,
             struct jobs **ret_jobs, struct cairn_error *err)
{
    struct jobs *jobs = calloc(1, sizeof(*jobs) + nr_kinds * sizeof(jobs->slots[0]));
    char *copy = strdup(server);
    int failed;

    if (!jobs || !copy) {
        free(jobs);
        free(copy);
        return error_no_memory(err, "jobs");
    }
    jobs->store = store;
    jobs->server = copy;
    jobs->kinds = kinds;
    jobs->nr_kinds = nr_kinds;
    init_lock(jobs);
    failed = pthread_create(&jobs->scheduler, NULL, schedule, jobs);
    if (failed) {
        release(jobs);
        return error_set_errno(err, failed, "cannot start the thread that starts jobs");
    }
    *ret_jobs = jobs;
    return CAIRN_OK;
}

static void stop(struct jobs *jobs)
{
    SCOPED_LOCK(&jobs->lock);
    jobs->stopping = true;
    pthread_cond_broadcast(&jobs->stop);
}

void jobs_free(struct jobs *jobs)
{
    if (!jobs)
        return;
    stop(jobs);
    pthread_join(jobs->scheduler, NULL);
    for (size_t i = 0; i < jobs->nr_kinds; i++)
        if (jobs->slots[i].started)
            pthread_join(jobs->slots[i].thread, NULL);
    release(jobs);
}

/* -- /metrics ----------------------------------------------------------------------------- */

#define LABELS_MAX 96

static void write_ended(const struct job_kind *kind, const struct job_slot *slot, struct metrics *m)
{
    char labels[LABELS_MAX];

    for (int state = JOB_DONE; state < NR_JOB_STATES; state++) {
        snprintf(labels, sizeof(labels), "kind=\"%s\",state=\"%s\"", kind->name,
                 job_state_name((enum job_state)state));
        metrics_value(m, labels, atomic_load(&slot->ended[state]));
    }
}

void jobs_write_metrics(void *ctx, struct metrics *m)
{
    const struct jobs *jobs = ctx;
    char labels[LABELS_MAX];

    metrics_family(m, "cairn_jobs_running", "gauge", "Jobs that run on this server.");
    for (size_t i = 0; i < jobs->nr_kinds; i++) {
        snprintf(labels, sizeof(labels), "kind=\"%s\"", jobs->kinds[i].name);
        metrics_value(m, labels, atomic_load(&jobs->slots[i].running));
    }
    metrics_family(m, "cairn_jobs_ended_total", "counter",
                   "Jobs that have ended on this server, by how.");
    for (size_t i = 0; i < jobs->nr_kinds; i++)
        write_ended(&jobs->kinds[i], &jobs->slots[i], m);
}
