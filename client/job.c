/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs of the service: starting, following, cancelling.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "client.h"
#include "json_memory.h"
#include "quote.h"

#define JOBS_PATH         "/v1/jobs"
#define ASK_EVERY_MS      500u
#define ASK_FIRST_MS      20u
#define POLL_EVERY_MS     50u
#define INTERRUPTED_MAX_S 60 /* servers take a job up within ten seconds, if it is of that kind */

CLEANUP_DEFINE(json_t *, json_decref)

/* A kind or an ID becomes part of a path. */
static int check_name(const char *name, const char *what, struct cairn_error *err)
{
    size_t len = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-");
    char quoted[QUOTE_MAX];

    if (len > 0 && len < 64 && !name[len])
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "%s is not %s", quote_str(name, quoted), what);
}

/* -- Starting ------------------------------------------------------------------------------- */

/* The ID at the end of a Location. */
static int take_id(const struct remote_answer *answer, const char *what, char **ret_id,
                   struct cairn_error *err)
{
    const char *slash = answer->location ? strrchr(answer->location, '/') : NULL;
    char *id;
    int ret = check_name(slash ? slash + 1 : "", "the ID of a job", err);

    if (ret != CAIRN_OK)
        return error_prefix(err, CAIRN_E_CORRUPT, "%s: Location of the answer", what);
    id = strdup(slash + 1);
    if (!id)
        return error_no_memory(err, "the ID of a job");
    *ret_id = id;
    return CAIRN_OK;
}

int cairn_job_start(struct cairn_client *client, const char *kind, const char *options,
                    char **ret_id, bool *ret_joined, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    const struct remote_request request = {
        .method = "POST",
        .path = path,
        .headers = {"Content-Type: application/json"},
        .body = options ? options : "",
        .body_len = options ? strlen(options) : 0,
    };
    struct remote_answer answer;
    int ret = check_name(kind, "a kind of job", err);

    if (ret != CAIRN_OK)
        return ret;
    snprintf(path, sizeof(path), "/v1/%s", kind);
    ret = remote_request(client->remote, &request, &answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", kind);
    if (answer.status == 202 || (answer.status == 409 && answer.location))
        ret = take_id(&answer, kind, ret_id, err);
    else
        ret = remote_answer_error(&answer, kind, err);
    if (ret == CAIRN_OK)
        *ret_joined = answer.status == 409;
    remote_answer_release(&answer);
    return ret;
}

/* -- Asking --------------------------------------------------------------------------------- */

static int get_json(struct cairn_client *client, const char *path, const char *what,
                    json_t **ret_json, struct cairn_error *err)
{
    const struct remote_request request = {.method = "GET", .path = path, .idempotent = true};
    struct remote_answer answer;
    int ret = remote_request(client->remote, &request, &answer, err);

    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", what);
    ret = remote_answer_json(&answer, what, ret_json, err);
    remote_answer_release(&answer);
    return ret;
}

static int get_job(struct cairn_client *client, const char *id, json_t **ret_job,
                   struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    int ret = check_name(id, "the ID of a job", err);

    snprintf(path, sizeof(path), JOBS_PATH "/%s", id);
    return ret == CAIRN_OK ? get_json(client, path, id, ret_job, err) : ret;
}

int cairn_job_get(struct cairn_client *client, const char *id, char **ret_json,
                  struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *job = NULL;
    int ret = get_job(client, id, &job, err);

    return ret == CAIRN_OK ? json_memory_dump(job, JSON_COMPACT, ret_json, err) : ret;
}

int cairn_job_list(struct cairn_client *client, const char *kind, char **ret_json,
                   struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *jobs = NULL;
    char path[CLIENT_PATH_MAX];
    int ret = kind ? check_name(kind, "a kind of job", err) : CAIRN_OK;

    if (ret != CAIRN_OK)
        return ret;
    snprintf(path, sizeof(path), JOBS_PATH "%s%s", kind ? "?kind=" : "", kind ? kind : "");
    ret = get_json(client, path, "jobs", &jobs, err);
    return ret == CAIRN_OK ? json_memory_dump(jobs, JSON_COMPACT, ret_json, err) : ret;
}

int cairn_job_cancel(struct cairn_client *client, const char *id, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    const struct remote_request request = {.method = "DELETE", .path = path};
    struct remote_answer answer;
    int ret = check_name(id, "the ID of a job", err);

    if (ret != CAIRN_OK)
        return ret;
    snprintf(path, sizeof(path), JOBS_PATH "/%s", id);
    ret = remote_request(client->remote, &request, &answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", id);
    if (answer.status != 202)
        ret = remote_answer_error(&answer, id, err);
    remote_answer_release(&answer);
    return ret;
}

/* -- Following ------------------------------------------------------------------------------ */

struct following {
    struct cairn_client *client;
    unsigned pause_ms;
    time_t interrupted; /* since when; 0: it is not */
};

/* Bytes can be shown as they pass; of anything else only that it goes on. */
static int show(const struct following *f, const json_t *job, struct cairn_error *err)
{
    const json_t *progress = json_object_get(job, "progress");
    const char *phase = json_string_value(json_object_get(progress, "phase"));
    const char *unit = json_string_value(json_object_get(progress, "unit"));
    bool bytes = unit && strcmp(unit, "bytes") == 0;
    json_int_t done = bytes ? json_integer_value(json_object_get(progress, "done")) : 0;
    json_int_t total = bytes ? json_integer_value(json_object_get(progress, "total")) : 0;

    return client_progress(f->client, phase ? phase : "job", done > 0 ? (uint64_t)done : 0,
                           total > 0 ? (uint64_t)total : 0, err);
}

static int wait_a_little(struct following *f, const json_t *job, struct cairn_error *err)
{
    const struct timespec pause = {.tv_nsec = POLL_EVERY_MS * 1000000};
    const struct timespec first = {.tv_nsec = ASK_FIRST_MS * 1000000};
    int ret = show(f, job, err);

    if (f->pause_ms == 0)
        nanosleep(&first, NULL);
    for (unsigned waited = 0; ret == CAIRN_OK && waited < f->pause_ms; waited += POLL_EVERY_MS) {
        nanosleep(&pause, NULL);
        ret = show(f, job, err);
    }
    f->pause_ms =
        f->pause_ms + POLL_EVERY_MS < ASK_EVERY_MS ? f->pause_ms + POLL_EVERY_MS : ASK_EVERY_MS;
    return ret;
}

/* Neither runs nor is likely to. */
static bool has_ended(struct following *f, const json_t *job)
{
    const char *state = json_string_value(json_object_get(job, "state"));
    bool interrupted = state && strcmp(state, "interrupted") == 0;

    if (!interrupted) {
        f->interrupted = 0;
        return !state || strcmp(state, "running") != 0;
    }
    if (!f->interrupted)
        f->interrupted = time(NULL);
    return time(NULL) - f->interrupted > INTERRUPTED_MAX_S;
}

int cairn_job_wait(struct cairn_client *client, const char *id, char **ret_json,
                   struct cairn_error *err)
{
    struct following f = {.client = client};
    int ret = CAIRN_OK;

    while (ret == CAIRN_OK) {
        CLEANUP(json_decref_p) json_t *job = NULL;

        ret = get_job(client, id, &job, err);
        if (ret == CAIRN_OK && has_ended(&f, job))
            return json_memory_dump(job, JSON_COMPACT, ret_json, err);
        if (ret == CAIRN_OK)
            ret = wait_a_little(&f, job, err);
    }
    return ret;
}
