/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs over HTTP.  What is answered comes from the store, so that every server answers the same.
 */
#include "jobs_internal.h"

#include <microhttpd.h>
#include <string.h>

#include "json_memory.h"
#include "quote.h"

#define JOBS_PATH "/v1/jobs"

static void reply_failure(struct http_reply *reply, const struct cairn_error *err)
{
    if (err->code == CAIRN_E_NOT_FOUND)
        http_reply_error(reply, MHD_HTTP_NOT_FOUND, "JOB_UNKNOWN", "%s", err->message);
    else
        http_reply_failure(reply, err);
}

static void reply_job(struct jobs *jobs, const char *id, unsigned status, struct http_reply *reply)
{
    struct cairn_error err;
    json_t *record;

    if (jobs_get(jobs, id, &record, &err))
        reply_failure(reply, &err);
    else
        http_reply_json(reply, status, record);
}

/* -- Starting ----------------------------------------------------------------------------- */

/* The options in the body; *ret_options is NULL if it is empty. */
static int parse_body(const struct http_request *req, json_t **ret_options, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    json_error_t why;
    size_t len;
    const void *body = http_body(req, &len);
    int r = len ? json_memory_load(body, len, JSON_REJECT_DUPLICATES, &json, &why, err) : CAIRN_OK;

    if (r)
        return r;
    if (len && !json_is_object(json))
        return error_set(err, CAIRN_E_USAGE, "the body is not a JSON object: %s",
                         json ? "it is something else" : why.text);
    *ret_options = steal_ptr(json);
    return CAIRN_OK;
}

static void start(struct jobs *jobs, const char *kind, const struct http_request *req,
                  struct http_reply *reply)
{
    CLEANUP(json_decref_p) json_t *options = NULL;
    char id[JOB_ID_MAX] = "";
    struct cairn_error err;
    int r = parse_body(req, &options, &err);

    if (!r)
        r = jobs_start(jobs, kind, options, id, &err);
    if (!r || (r == CAIRN_E_CONFLICT && id[0]))
        http_reply_header(reply, "Location", JOBS_PATH "/%s", id);
    if (r)
        reply_failure(reply, &err);
    else
        reply_job(jobs, id, MHD_HTTP_ACCEPTED, reply);
}

/* -- Lists -------------------------------------------------------------------------------- */

static int add_job(struct jobs *jobs, const char *id, json_t *list, struct cairn_error *err)
{
    json_t *record;
    int r = job_record_observe(jobs->store, id, &record, err);

    if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_CORRUPT)
        return CAIRN_OK;
    if (r)
        return r;
    json_object_del(record, "cursor");
    json_object_del(record, "result");
    return json_array_append_new(list, record) ? error_no_memory(err, "a list of jobs") : CAIRN_OK;
}

static void list(struct jobs *jobs, const struct http_request *req, struct http_reply *reply)
{
    CLEANUP(job_ids_release) struct job_ids ids = {0};
    CLEANUP(json_decref_p) json_t *jobs_json = json_array();
    struct cairn_error err;
    int r = job_ids_list(jobs->store, http_query(req, "kind"), &ids, &err);

    for (size_t i = ids.nr; i > 0 && !r; i--)
        r = add_job(jobs, ids.ids[i - 1], jobs_json, &err);
    if (r)
        http_reply_failure(reply, &err);
    else
        http_reply_json(reply, MHD_HTTP_OK, json_pack("{s:O}", "jobs", jobs_json));
}

/* -- One ---------------------------------------------------------------------------------- */

static void cancel(struct jobs *jobs, const char *id, struct http_reply *reply)
{
    struct cairn_error err;

    if (jobs_cancel(jobs, id, &err))
        reply_failure(reply, &err);
    else
        reply_job(jobs, id, MHD_HTTP_ACCEPTED, reply);
}

/* False: the method is another, and that was replied. */
static bool check_method(const struct http_request *req, struct http_reply *reply, unsigned allowed)
{
    if (http_method(req) & allowed)
        return true;
    http_reply_methods(reply, allowed);
    return false;
}

void jobs_handle(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    struct jobs *jobs = ctx;
    const char *path = http_path(req);
    const char *rest = path + strlen(JOBS_PATH);

    if (strncmp(path, JOBS_PATH, strlen(JOBS_PATH)) != 0) {
        if (check_method(req, reply, HTTP_POST))
            start(jobs, path + strlen("/v1/"), req, reply);
    } else if (!*rest || strcmp(rest, "/") == 0) {
        if (check_method(req, reply, HTTP_GET | HTTP_HEAD))
            list(jobs, req, reply);
    } else if (check_method(req, reply, HTTP_GET | HTTP_HEAD | HTTP_DELETE)) {
        if (http_method(req) == HTTP_DELETE)
            cancel(jobs, rest + 1, reply);
        else
            reply_job(jobs, rest + 1, MHD_HTTP_OK, reply);
    }
}
