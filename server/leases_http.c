/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases over HTTP (leases.h).
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "json_memory.h"
#include "leases.h"
#include "quote.h"

CLEANUP_DEFINE(json_t *, json_decref)

#define TIME_MAX 32

static char *format_time(uint64_t us, char text[TIME_MAX])
{
    time_t seconds = (time_t)(us / 1000000);
    struct tm tm;

    text[0] = 0;
    if (gmtime_r(&seconds, &tm))
        strftime(text, TIME_MAX, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return text;
}

static json_t *lease_json(const struct lease *lease)
{
    char created[TIME_MAX], renewed[TIME_MAX], expires[TIME_MAX], manifest[DIGEST_STR_MAX];

    format_time(lease->created_us, created);
    format_time(lease->renewed_us, renewed);
    format_time(lease->renewed_us + lease->ttl_s * 1000000, expires);
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:s}", "id", lease->id, "repository",
                     lease->ref.repo, "manifest", digest_format(&lease->ref.digest, manifest),
                     "holder", lease->holder, "ttl", (json_int_t)lease->ttl_s, "created", created,
                     "renewed", renewed, "expires", expires);
}

/* holder and ttl of the body, an object or nothing; *ret_json owns the holder. */
static int parse_terms(const struct http_request *req, json_t **ret_json, const char **ret_holder,
                       uint64_t *ret_ttl_s, struct cairn_error *err)
{
    const json_t *holder, *ttl;
    size_t len;
    const void *body = http_body(req, &len);
    int r =
        len ? json_memory_load(body, len, JSON_REJECT_DUPLICATES, ret_json, NULL, err) : CAIRN_OK;

    if (r)
        return r;
    if (len && !json_is_object(*ret_json))
        return error_set(err, CAIRN_E_USAGE, "the body is not a JSON object");
    holder = json_object_get(*ret_json, "holder");
    ttl = json_object_get(*ret_json, "ttl");
    if (holder && !json_is_string(holder))
        return error_set(err, CAIRN_E_USAGE, "holder is not a string");
    if (ttl && (!json_is_integer(ttl) || json_integer_value(ttl) < 1))
        return error_set(err, CAIRN_E_USAGE, "ttl is not a number of seconds, 1 to %d",
                         LEASE_TTL_MAX);
    *ret_holder = holder ? json_string_value(holder) : NULL;
    *ret_ttl_s = ttl ? (uint64_t)json_integer_value(ttl) : 0;
    return CAIRN_OK;
}

static int take(struct store *store, const struct ref *ref, const struct http_request *req,
                struct lease *ret_lease, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    const char *holder;
    uint64_t ttl_s;
    int r = parse_terms(req, &json, &holder, &ttl_s, err);

    if (!r && (!holder || !ttl_s))
        return error_set(err, CAIRN_E_USAGE,
                         "expected {\"holder\": who holds it, \"ttl\": seconds, 1 to %d}",
                         LEASE_TTL_MAX);
    return r ? r : lease_take(store, ref, holder, ttl_s, ret_lease, err);
}

static int renew(struct store *store, const struct ref *ref, const char *id,
                 const struct http_request *req, struct lease *ret_lease, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    const char *holder;
    uint64_t ttl_s;
    int r = parse_terms(req, &json, &holder, &ttl_s, err);

    return r ? r : lease_renew(store, ref, id, ttl_s, ret_lease, err);
}

static void reply_lease(struct http_reply *reply, unsigned status, int code,
                        const struct lease *lease, const struct cairn_error *err)
{
    if (code)
        http_reply_failure(reply, err);
    else
        http_reply_json(reply, status, lease_json(lease));
}

void leases_handle_disk(struct store *store, const struct ref *ref, const char *id,
                        const struct http_request *req, struct http_reply *reply)
{
    enum http_method method = http_method(req);
    struct cairn_error err;
    struct lease lease;

    if (!id && method == HTTP_POST) {
        reply_lease(reply, 201, take(store, ref, req, &lease, &err), &lease, &err);
    } else if (id && method == HTTP_PUT) {
        reply_lease(reply, 200, renew(store, ref, id, req, &lease, &err), &lease, &err);
    } else if (id && method == HTTP_DELETE) {
        if (lease_release(store, ref, id, &err))
            http_reply_failure(reply, &err);
        else
            http_reply_status(reply, 204);
    } else {
        http_reply_methods(reply, id ? HTTP_PUT | HTTP_DELETE : HTTP_POST);
    }
}

/* -- GET /v1/leases --------------------------------------------------------------------------- */

struct listing {
    const char *repo; /* NULL: all */
    json_t *leases;
};

static int add(void *arg, const struct lease *lease, struct cairn_error *err)
{
    struct listing *l = arg;

    if (l->repo && strcmp(l->repo, lease->ref.repo) != 0)
        return CAIRN_OK;
    if (json_array_append_new(l->leases, lease_json(lease)) != 0)
        return error_no_memory(err, "a list of leases");
    return CAIRN_OK;
}

void leases_handle_list(void *store, const struct http_request *req, struct http_reply *reply)
{
    CLEANUP(json_decref_p) json_t *leases = json_array();
    struct listing l = {.repo = http_query(req, "repo"), .leases = leases};
    char quoted[QUOTE_MAX];
    struct cairn_error err;

    if (l.repo && !ref_valid_repo(l.repo)) {
        http_reply_error(reply, 400, "NAME_INVALID", "%s is not a repository name",
                         quote_str(l.repo, quoted));
        return;
    }
    if (leases_each(store, add, &l, NULL, &err))
        http_reply_failure(reply, &err);
    else
        http_reply_json(reply, 200, json_pack("{s:O}", "leases", leases));
}
