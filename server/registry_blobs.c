/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blobs as a repository sees them.  The bytes are stored once, under their digest; a mark in the
 * repository (its value is the blob's size, for people who look into the store) makes them
 * visible there.  Who does not have the mark learns nothing of the blob.
 */
#include "registry_internal.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <stdio.h>
#include <string.h>

int registry_find_blob(struct store *store, const char *repo, const struct digest *d,
                       uint64_t *ret_size, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];
    uint64_t mark_size;
    int r = store_head(store, registry_repo_key(repo, "_blobs", d, key), &mark_size, err);

    if (!r)
        r = store_head(store, registry_blob_key(d, key), ret_size, err);
    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, r, "no blob %s in repository %s", digest_format(d, text), repo);
    return r;
}

int registry_show_blob(struct store *store, const char *repo, const struct digest *d, uint64_t size,
                       struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], text[24];
    int len = snprintf(text, sizeof(text), "%" PRIu64, size);
    int r = store_put(store, registry_repo_key(repo, "_blobs", d, key), text, (size_t)len,
                      STORE_PUT_IF_ABSENT, err);

    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r;
}

static void blob_failure(const struct registry_call *call, const struct cairn_error *err)
{
    if (err->code == CAIRN_E_NOT_FOUND)
        http_reply_error(call->reply, MHD_HTTP_NOT_FOUND, "BLOB_UNKNOWN", "%s", err->message);
    else
        http_reply_failure(call->reply, err);
}

/* Hides the blob; its bytes stay for other repositories, and for the garbage collector. */
static void delete_blob(const struct registry_call *call, const struct digest *d)
{
    char key[REGISTRY_KEY_MAX];
    struct cairn_error err;
    uint64_t size;
    int r = registry_find_blob(call->store, call->target.repo, d, &size, &err);

    if (!r)
        r = store_delete(call->store, registry_repo_key(call->target.repo, "_blobs", d, key), &err);
    if (r)
        blob_failure(call, &err);
    else
        http_reply_status(call->reply, MHD_HTTP_ACCEPTED);
}

static void reply_blob(const struct registry_call *call, const struct digest *d, const char *etag,
                       uint64_t size)
{
    static const char type[] = "application/octet-stream";
    char key[REGISTRY_KEY_MAX];
    uint64_t off, len;

    registry_blob_key(d, key);
    switch (http_range(call->req, size, etag, &off, &len)) {
    case HTTP_RANGE_UNSATISFIABLE:
        http_reply_error(call->reply, MHD_HTTP_RANGE_NOT_SATISFIABLE, "RANGE_INVALID",
                         "the blob has %" PRIu64 " bytes", size);
        http_reply_header(call->reply, "Content-Range", "bytes */%" PRIu64, size);
        return;
    case HTTP_RANGE_PARTIAL:
        http_reply_header(call->reply, "Content-Range", "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64,
                          off, off + len - 1, size);
        registry_reply_object(call, MHD_HTTP_PARTIAL_CONTENT, type, key, off, len);
        return;
    case HTTP_RANGE_NONE:
        registry_reply_object(call, MHD_HTTP_OK, type, key, 0, size);
        return;
    }
}

void registry_blob(const struct registry_call *call)
{
    char etag[DIGEST_STR_MAX + 2], text[DIGEST_STR_MAX];
    struct cairn_error err;
    struct digest d;
    uint64_t size;

    if (!registry_target_digest(call, &d))
        return;
    if (http_method(call->req) == HTTP_DELETE) {
        delete_blob(call, &d);
        return;
    }
    if (registry_find_blob(call->store, call->target.repo, &d, &size, &err)) {
        blob_failure(call, &err);
        return;
    }
    snprintf(etag, sizeof(etag), "\"%s\"", digest_format(&d, text));
    registry_reply_digest(call, &d, NULL);
    http_reply_header(call->reply, "ETag", "%s", etag);
    http_reply_header(call->reply, "Accept-Ranges", "bytes");
    if (http_not_modified(call->req, etag))
        http_reply_status(call->reply, MHD_HTTP_NOT_MODIFIED);
    else
        reply_blob(call, &d, etag, size);
}
