/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/repositories/<name>: what a repository holds, and what its quota lets it hold.
 */
#include "registry_internal.h"

#include <microhttpd.h>
#include <string.h>

#include "quote.h"

/* A number, or null where there is no limit; beyond 63 bits, which JSON's readers do not take, too.
 */
static json_t *limit_json(uint64_t limit)
{
    return limit > INT64_MAX ? json_null() : json_integer((json_int_t)limit);
}

static void reply_usage(const char *repo, const struct quota_usage *usage, struct http_reply *reply)
{
    http_reply_json(reply, MHD_HTTP_OK,
                    json_pack("{s:s, s:I, s:o, s:I, s:I, s:I}", "name", repo, "usedBytes",
                              (json_int_t)usage->used, "allowedBytes", limit_json(usage->allowed),
                              "blobs", (json_int_t)usage->nr_blobs, "uploads",
                              (json_int_t)usage->nr_uploads, "uploadBytes",
                              (json_int_t)usage->upload_bytes));
}

void registry_usage(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    struct registry *registry = ctx;
    const char *repo = http_path(req) + strlen("/v1/repositories/");
    struct quota_usage usage;
    char quoted[QUOTE_MAX];
    struct cairn_error err;

    if (!ref_valid_repo(repo))
        http_reply_error(reply, MHD_HTTP_BAD_REQUEST, "NAME_INVALID", "%s is not a repository name",
                         quote_str(repo, quoted));
    else if (quota_usage(registry->quota, repo, &usage, &err))
        http_reply_failure(reply, &err);
    else if (usage.nr_blobs == 0 && usage.nr_uploads == 0)
        http_reply_error(reply, MHD_HTTP_NOT_FOUND, "NAME_UNKNOWN", "no repository %s", repo);
    else
        reply_usage(repo, &usage, reply);
}
