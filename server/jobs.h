/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: long work on the store, such as garbage collection or scrubbing, in a thread of its own on
 * one server, seen and cancelled from all.
 *
 *     POST /v1/<kind>        start one, options as JSON: 202, Location, the job
 *     GET /v1/jobs[?kind=]   all that are known, of each kind the newest first, without results
 *     GET /v1/jobs/<id>      one
 *     DELETE /v1/jobs/<id>   cancel it: 202; it ends soon, at its next step
 *
 * Of a kind at most one job runs in a store: starting another is 409 with the Location of the one
 * that runs.  A job whose server stopped or died is `interrupted`; the next start of the same work,
 * by whoever and on whichever server, goes on with it, under its ID, from its cursor.
 */
#ifndef SERVER_JOBS_H
#define SERVER_JOBS_H

#include <jansson.h>

#include "http.h"
#include "store.h"

struct metrics;

/* -- What a kind of jobs implements ----------------------------------------------------------- */

struct job; /* one that runs: for its own thread only */

struct job_kind {
    const char *name; /* lower-case letters */
    void *ctx;
    uint64_t interval_s; /* started by itself so long after the last one has ended; 0: never */
    bool resumes;        /* if the last one was interrupted it is taken up again by itself */
    /* What is given (NULL: nothing) with what was left out filled in, as a new object.  It must
     * take its own results.  CAIRN_E_USAGE names the option, its value, and what was expected. */
    int (*parse)(void *ctx, const json_t *given, json_t **ret_options, struct cairn_error *err);
    /* Is it the same work, so that one may go on where the other was interrupted?  NULL: if the
     * options are equal. */
    bool (*same)(const json_t *a, const json_t *b);
    /* CAIRN_E_CANCELLED from jobs_progress or jobs_pause is to be returned as soon as the work can
     * be left. */
    int (*run)(void *ctx, struct job *job, struct cairn_error *err);
};

struct job_progress {
    const char *phase; /* one word or a few */
    uint64_t done, total;
    const char *unit; /* "bytes", "blobs" … */
};

const char *job_id(const struct job *job);
const json_t *job_options(const struct job *job);
/* What an interrupted job had set last, which this one goes on with; NULL at a start. */
const json_t *job_cursor(const struct job *job);
json_t *job_result(const struct job *job);
/* Both take the value over; it is kept with the next progress that is. */
void job_set_cursor(struct job *job, json_t *cursor);
void job_set_result(struct job *job, json_t *result);

/*
 * Tell how far the job is: cheap, to be called often.  It is kept once a second and when the phase
 * changes.  CAIRN_E_CANCELLED: stop.  A store that cannot be written is logged and no error.
 */
int jobs_progress(struct job *job, const struct job_progress *progress, struct cairn_error *err);
/* Do nothing for so long, or until the job is to stop. */
int jobs_pause(struct job *job, uint64_t us, struct cairn_error *err);

/* -- All of them ------------------------------------------------------------------------------ */

struct jobs;

/* server names this process in the records.  kinds and what they point to must outlive the jobs. */
int jobs_new(struct store *store, const char *server, const struct job_kind *kinds, size_t nr_kinds,
             struct jobs **ret_jobs, struct cairn_error *err);
/* Interrupts what runs, and waits for it. */
void jobs_free(struct jobs *jobs);
CLEANUP_DEFINE(struct jobs *, jobs_free)

/* Long enough for `<kind>-<date>-<time>-<ms>-<random>`. */
#define JOB_ID_MAX 64

/*
 * Start a job of a kind, or go on with an interrupted one.  ret_id names it; also, with
 * CAIRN_E_CONFLICT, the one that runs.
 */
int jobs_start(struct jobs *jobs, const char *kind, const json_t *given, char ret_id[JOB_ID_MAX],
               struct cairn_error *err);
int jobs_cancel(struct jobs *jobs, const char *id, struct cairn_error *err);
/* The record of a job, as it is now. */
int jobs_get(struct jobs *jobs, const char *id, json_t **ret_record, struct cairn_error *err);

/* Handles `/v1/jobs`, `/v1/jobs/<id>` and `/v1/<kind>` (http.h); jobs is a struct jobs. */
#define JOBS_BODY_MAX (64u << 10)
void jobs_handle(void *jobs, const struct http_request *req, struct http_reply *reply);

/* For /metrics; jobs is a struct jobs. */
void jobs_write_metrics(void *jobs, struct metrics *m);

#endif
