/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Manifests: OCI image manifests, kept byte for byte under their digest, and tags that point to
 * them.
 *
 * A manifest is taken only when everything that it lists is in the repository, and if it is a disk
 * only when its chain has been validated and its index stored (disks_publish).  Then, in this order
 * and each durable before the next: the manifest, the record for its subject's referrers, the tag.
 * So a tag never points at what is not there.  Other artifacts (signatures, for instance) are taken
 * as they are, so that they can live beside the disks that they speak of.
 *
 * PUT is a publisher as collect.h has it: from before it looks for the first blob until the last of
 * the above is stored, a claim tells the collector what it relies on.  Should the claim have been
 * broken meanwhile, for it was so old that its maker seemed dead, PUT begins again.  DELETE is a
 * collector of one object: it condemns the manifest, waits for those who claim it, and deletes it
 * unless somebody has revived it; so a tag that is set beside it never names nothing.
 */
#include "registry_internal.h"

#include <inttypes.h>
#include <jansson.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "claims.h"
#include "clock.h"
#include "collect.h"
#include "condemned.h"
#include "json_memory.h"
#include "leases.h"
#include "quote.h"
#include "step.h"
#include "store_backend.h"

#define TAG_TRIES           100
#define PUT_TRIES           3 /* with a claim that was broken in between */
#define DELETE_WAIT_US      (10 * UINT64_C(1000000))
#define DELETE_PAUSE_MIN_NS 5000000
#define DELETE_PAUSE_MAX_NS 400000000
#define TAG_VALUE_MAX       256
#define MEDIA_TYPE_MAX      255 /* two names of 127 bytes (RFC 6838, section 4.2) */
#define ANNOTATIONS_MAX                                                                            \
    (64u << 10) /* of a manifest, repeated in its subject's list of referrers                      \
                 */

CLEANUP_DEFINE(json_t *, json_decref)

static void manifest_failure(const struct registry_call *call, const struct cairn_error *err)
{
    switch (err->code) {
    case CAIRN_E_NOT_FOUND:
        http_reply_error(call->reply, MHD_HTTP_NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", "%s",
                         err->message);
        return;
    case CAIRN_E_CORRUPT:
    case CAIRN_E_UNSUPPORTED:
    case CAIRN_E_LIMIT:
    case CAIRN_E_CONFLICT:
    case CAIRN_E_USAGE:
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "MANIFEST_INVALID", "%s", err->message);
        return;
    case CAIRN_OK:
    case CAIRN_E_IO:
    case CAIRN_E_CANCELLED:
    case CAIRN_E_UNAVAILABLE:
    case CAIRN_E_NO_MEMORY:
    case CAIRN_E_NO_SPACE:
    case CAIRN_E_DENIED:
        break;
    }
    http_reply_failure(call->reply, err);
}

/* -- Reading a document ------------------------------------------------------------------- */

/* A manifest of any artifact type; disk is NULL if it is not one of ours. */
struct document {
    json_t *json;
    struct manifest *disk;
    bool has_subject;
    struct digest subject;
};

static void document_release(struct document *doc)
{
    json_decref(doc->json);
    manifest_free(doc->disk);
}

static int not_valid(struct cairn_error *err, const char *field, const char *expected)
{
    return error_set(err, CAIRN_E_CORRUPT, "manifest: %s is not %s", field, expected);
}

static bool is_media_type(const json_t *json)
{
    return json_is_string(json) && json_string_length(json) <= MEDIA_TYPE_MAX;
}

/* Digest and size of a descriptor (OCI image specification, "Content Descriptors"). */
static int parse_descriptor(const json_t *json, const char *field, struct digest *ret_digest,
                            uint64_t *ret_size, struct cairn_error *err)
{
    const char *digest = json_string_value(json_object_get(json, "digest"));
    const json_t *size = json_object_get(json, "size");

    if (!is_media_type(json_object_get(json, "mediaType")) || !digest || !json_is_integer(size) ||
        json_integer_value(size) < 0)
        return not_valid(err, field, "a descriptor with mediaType, digest and size");
    *ret_size = (uint64_t)json_integer_value(size);
    if (digest_parse(digest, strlen(digest), ret_digest, err))
        return error_prefix(err, CAIRN_E_USAGE, "manifest: %s.digest", field);
    return CAIRN_OK;
}

static int check_document(struct document *doc, struct cairn_error *err)
{
    const json_t *media_type = json_object_get(doc->json, "mediaType");
    const json_t *artifact_type = json_object_get(doc->json, "artifactType");
    const json_t *subject = json_object_get(doc->json, "subject");
    uint64_t size;

    if (json_integer_value(json_object_get(doc->json, "schemaVersion")) != 2)
        return not_valid(err, "schemaVersion", "2");
    if (media_type && (!json_is_string(media_type) ||
                       strcmp(json_string_value(media_type), MANIFEST_MEDIA_TYPE) != 0))
        return not_valid(err, "mediaType", MANIFEST_MEDIA_TYPE);
    if (artifact_type && !is_media_type(artifact_type))
        return not_valid(err, "artifactType", "a media type of at most 255 bytes");
    if (!json_is_array(json_object_get(doc->json, "layers")))
        return not_valid(err, "layers", "an array");
    doc->has_subject = subject != NULL;
    return subject ? parse_descriptor(subject, "subject", &doc->subject, &size, err) : CAIRN_OK;
}

/*
 * manifest_parse goes first in every case: it also bounds the shape of what jansson gets to see.
 * What calls itself a disk must be one.
 */
static int parse_document(const void *buf, size_t len, struct document *doc,
                          struct cairn_error *err)
{
    const char *artifact_type;
    int r = manifest_parse(buf, len, &doc->disk, err);
    int json_code;

    if (r && r != CAIRN_E_UNSUPPORTED)
        return r;
    json_code = json_memory_load(buf, len, JSON_REJECT_DUPLICATES, &doc->json, NULL, err);
    if (json_code != CAIRN_OK)
        return json_code;
    if (!doc->json)
        return not_valid(err, "the document", "JSON without duplicate keys");
    artifact_type = json_string_value(json_object_get(doc->json, "artifactType"));
    if (r && artifact_type && strcmp(artifact_type, MANIFEST_ARTIFACT_TYPE) == 0)
        return r;
    return check_document(doc, err);
}

/* -- PUT ---------------------------------------------------------------------------------- */

static int check_blob(const struct registry_call *call, const json_t *descriptor, const char *field,
                      struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];
    uint64_t size, actual;
    struct digest d;
    int r = parse_descriptor(descriptor, field, &d, &size, err);

    if (!r)
        r = registry_find_blob(call->store, call->target.repo, &d, &actual, err);
    if (r == CAIRN_E_NOT_FOUND)
        return error_prefix(err, r, "manifest: %s", field);
    if (!r && actual != size)
        return error_set(err, CAIRN_E_CORRUPT,
                         "manifest: %s: blob %s has %" PRIu64 " bytes, not %" PRIu64, field,
                         digest_format(&d, text), actual, size);
    return r;
}

/* Everything that the manifest lists is in the repository, with the size that it states. */
static int check_blobs(const struct registry_call *call, const struct document *doc,
                       struct cairn_error *err)
{
    const json_t *layers = json_object_get(doc->json, "layers");
    int r = check_blob(call, json_object_get(doc->json, "config"), "config", err);

    for (size_t i = 0; i < json_array_size(layers) && !r; i++) {
        char field[32];

        snprintf(field, sizeof(field), "layers[%zu]", i);
        r = check_blob(call, json_array_get(layers, i), field, err);
    }
    return r;
}

/* What GET …/referrers/<subject> says of a manifest: a descriptor. */
static json_t *referrer_record(const struct document *doc, const struct digest *d, size_t len)
{
    json_t *type = json_object_get(doc->json, "artifactType");
    json_t *annotations = json_object_get(doc->json, "annotations");
    char text[DIGEST_STR_MAX];

    if (!type)
        type = json_object_get(json_object_get(doc->json, "config"), "mediaType");
    if (annotations && json_dumpb(annotations, NULL, 0, 0) > ANNOTATIONS_MAX)
        annotations = NULL;
    return json_pack("{s:s, s:s, s:I, s:O*, s:O*}", "mediaType", MANIFEST_MEDIA_TYPE, "digest",
                     digest_format(d, text), "size", (json_int_t)len, "artifactType", type,
                     "annotations", annotations);
}

static int put_referrer(const struct registry_call *call, const struct document *doc,
                        const struct digest *d, size_t len, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *record = referrer_record(doc, d, len);
    CLEANUP_FREE char *text = NULL;
    char key[REGISTRY_KEY_MAX];
    int r = json_memory_dump(record, JSON_COMPACT, &text, err);

    if (r)
        return r;
    registry_referrer_key(call->target.repo, &doc->subject, d, key);
    r = store_put(call->store, key, text, strlen(text), STORE_PUT_IF_ABSENT, err);
    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r;
}

/* The last of several who set a tag at once wins. */
static int set_tag(const struct registry_call *call, const char *tag, const struct digest *d,
                   struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], text[DIGEST_STR_MAX];
    int r = CAIRN_E_CONFLICT;

    registry_tag_key(call->target.repo, tag, key);
    digest_format(d, text);
    for (int i = 0; i < TAG_TRIES && r == CAIRN_E_CONFLICT; i++) {
        CLEANUP_FREE void *old = NULL;
        size_t len;

        r = store_get(call->store, key, TAG_VALUE_MAX, &old, &len, err);
        if (r == CAIRN_OK || r == CAIRN_E_NOT_FOUND)
            r = store_cas(call->store, key, old, text, err);
    }
    if (r == CAIRN_E_CONFLICT)
        return error_set(err, CAIRN_E_UNAVAILABLE, "tag %s is being set by too many", tag);
    return r;
}

/* The manifest is there already, and is as if it were put now.  Should its bytes be damaged, or
 * unreadable, these are right. */
static int keep_manifest(const struct registry_call *call, const struct digest *d, const void *body,
                         size_t len, struct cairn_error *err)
{
    CLEANUP_FREE void *stored = NULL;
    char key[REGISTRY_KEY_MAX];
    size_t stored_len;
    int r = registry_get_manifest(call->store, call->target.repo, d, &stored, &stored_len, NULL);

    registry_repo_key(call->target.repo, "_manifests", d, key);
    if (r && r != CAIRN_E_NOT_FOUND)
        return store_put(call->store, key, body, len, STORE_PUT_REPLACE, err);
    return store_touch(call->store, key, err);
}

/* Put it, or let it be as if it were put now. */
static int put_bytes(const struct registry_call *call, const struct digest *d,
                     struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    size_t len;
    const void *body = http_body(call->req, &len);
    int r = store_put(call->store, registry_repo_key(call->target.repo, "_manifests", d, key), body,
                      len, STORE_PUT_IF_ABSENT, err);

    return r == CAIRN_E_CONFLICT ? keep_manifest(call, d, body, len, err) : r;
}

static int store_manifest(const struct registry_call *call, const struct document *doc,
                          const struct digest *d, const char *tag, struct cairn_error *err)
{
    size_t len;
    int r = put_bytes(call, d, err);

    step_reached(STEP_PUT_MANIFEST);
    http_body(call->req, &len);
    if (!r && doc->has_subject)
        r = put_referrer(call, doc, d, len, err);
    step_reached(STEP_PUT_REFERRER);
    if (!r && tag)
        r = set_tag(call, tag, d, err);
    step_reached(STEP_PUT_TAGGED);
    return r;
}

/* -- PUT: as a publisher ------------------------------------------------------------------- */

static int revive_blob(const struct registry_call *call, const json_t *descriptor,
                       struct cairn_error *err)
{
    const char *text = json_string_value(json_object_get(descriptor, "digest"));
    char key[REGISTRY_KEY_MAX];
    struct digest d;
    int r;

    if (!text || digest_parse(text, strlen(text), &d, NULL))
        return CAIRN_OK; /* check_blobs says what is wrong */
    r = condemned_revive(call->store, registry_repo_key(call->target.repo, "_blobs", &d, key), err);
    return r ? r : condemned_revive(call->store, registry_blob_key(&d, key), err);
}

/* The manifest, should it be there already, and all that it lists. */
static int revive_all(const struct registry_call *call, const struct document *doc,
                      const struct digest *d, struct cairn_error *err)
{
    const json_t *layers = json_object_get(doc->json, "layers");
    char key[REGISTRY_KEY_MAX];
    bool running;
    int r = condemned_revive(call->store,
                             registry_repo_key(call->target.repo, "_manifests", d, key), err);

    if (!r)
        r = collect_is_running(call->store, &running, err);
    if (r || !running)
        return r;
    r = revive_blob(call, json_object_get(doc->json, "config"), err);
    for (size_t i = 0; i < json_array_size(layers) && !r; i++)
        r = revive_blob(call, json_array_get(layers, i), err);
    return r;
}

/* Everything that the manifest lists is there and will stay, and if it is a disk it can be read. */
static int prepare(const struct registry_call *call, const struct document *doc,
                   const struct digest *d, struct cairn_error *err)
{
    int r = revive_all(call, doc, d, err);

    step_reached(STEP_PUT_REVIVED);
    if (!r)
        r = check_blobs(call, doc, err);
    step_reached(STEP_PUT_CHECKED);
    if (!r && doc->disk)
        r = disks_publish(call->registry->disks, doc->disk, err);
    step_reached(STEP_PUT_INDEXED);
    return r;
}

struct publication {
    const struct registry_call *call;
    const struct document *doc;
    const struct digest *digest;
    const char *tag; /* NULL: none */
    bool broken;     /* the claim was: what is stored, if anything, may not be complete */
    bool stored;
};

static int publish_claimed(struct publication *p, const struct claim *claim,
                           struct cairn_error *err)
{
    struct store *store = p->call->store;
    bool held = false;
    int r = prepare(p->call, p->doc, p->digest, err);

    if (!r)
        r = claim_held(store, claim, &held, err);
    step_reached(STEP_PUT_STILL_CLAIMED);
    p->stored |= held;
    if (!r && held)
        r = store_manifest(p->call, p->doc, p->digest, p->tag, err);
    if (r) {
        claim_drop(store, claim, &p->broken, NULL);
        return r;
    }
    r = claim_drop(store, claim, &p->broken, err);
    step_reached(STEP_PUT_DROPPED);
    return r;
}

static int publish_once(struct publication *p, struct cairn_error *err)
{
    struct claim claim;
    size_t len;
    const void *body = http_body(p->call->req, &len);
    int r = claim_take(p->call->store, p->call->target.repo, body, len, &claim, err);

    step_reached(STEP_PUT_CLAIMED);
    return r ? r : publish_claimed(p, &claim, err);
}

static int delete_manifest(const struct registry_call *call, const struct digest *d,
                           struct cairn_error *err);

/*
 * Again if the claim was broken.  If what was stored then turns out to lack a blob it is taken back
 * before anybody is told that it is there.
 */
static int publish(struct publication *p, struct cairn_error *err)
{
    int r = publish_once(p, err);

    for (int i = 1; i < PUT_TRIES && p->broken && !r; i++) {
        p->broken = false;
        r = publish_once(p, err);
        if (r == CAIRN_E_NOT_FOUND && p->stored)
            delete_manifest(p->call, p->digest, NULL);
    }
    if (!r && p->broken)
        return error_set(err, CAIRN_E_UNAVAILABLE, "publishing takes too long; try again");
    return r;
}

static bool is_manifest_type(const char *content_type)
{
    size_t n = content_type ? strcspn(content_type, "; ") : 0;

    return n == strlen(MANIFEST_MEDIA_TYPE) && memcmp(content_type, MANIFEST_MEDIA_TYPE, n) == 0;
}

/* The headers and the name fit the body; *ret_tag is NULL for a PUT by digest. */
static bool check_request(const struct registry_call *call, const struct digest *d,
                          const char **ret_tag)
{
    const char *name = call->target.name, *type = http_header(call->req, "Content-Type");
    char quoted[QUOTE_MAX], text[DIGEST_STR_MAX];
    struct digest stated;

    if (!is_manifest_type(type)) {
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "MANIFEST_INVALID",
                         "Content-Type %s is not supported, expected " MANIFEST_MEDIA_TYPE,
                         quote_str(type ? type : "", quoted));
        return false;
    }
    *ret_tag = ref_valid_tag(name) ? name : NULL;
    if (*ret_tag)
        return true;
    if (strchr(name, ':')) {
        if (!registry_target_digest(call, &stated))
            return false;
        if (digest_equal(&stated, d))
            return true;
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "DIGEST_INVALID",
                         "the manifest's digest is %s", digest_format(d, text));
        return false;
    }
    http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "TAG_INVALID",
                     "%s is neither a tag nor a digest", quote_str(name, quoted));
    return false;
}

static int publish_counted(struct publication *p, struct cairn_error *err)
{
    struct registry_figures *figures = &p->call->registry->figures;
    const uint64_t began_us = clock_now_us();
    int r = publish(p, err);

    registry_count(r ? &figures->refused : &figures->published, 1);
    if (!r)
        histogram_add(&figures->publish, clock_now_us() - began_us);
    return r;
}

static void put_manifest(const struct registry_call *call)
{
    __attribute__((cleanup(document_release))) struct document doc = {0};
    struct cairn_error err;
    struct digest d;
    struct publication p = {.call = call, .doc = &doc, .digest = &d};
    const char *tag;
    size_t len;
    const void *body = http_body(call->req, &len);
    int r;

    digest_of(body, len, &d);
    if (!check_request(call, &d, &tag))
        return;
    p.tag = tag;
    r = parse_document(body, len, &doc, &err);
    if (!r)
        r = publish_counted(&p, &err);
    if (r) {
        manifest_failure(call, &err);
        return;
    }
    if (doc.has_subject) {
        char text[DIGEST_STR_MAX];

        http_reply_header(call->reply, "OCI-Subject", "%s", digest_format(&doc.subject, text));
    }
    registry_reply_digest(call, &d, "manifests");
    http_reply_status(call->reply, MHD_HTTP_CREATED);
}

/* -- GET, HEAD ---------------------------------------------------------------------------- */

static void unknown_manifest(const struct registry_call *call, const char *message)
{
    http_reply_error(call->reply, MHD_HTTP_NOT_FOUND, "MANIFEST_UNKNOWN", "%s", message);
}

/* The ref that the path means; false when there can be no such manifest, and that was replied. */
static bool target_ref(const struct registry_call *call, struct ref *ret_ref)
{
    const char *name = call->target.name;

    *ret_ref = (struct ref){0};
    memcpy(ret_ref->repo, call->target.repo, sizeof(ret_ref->repo));
    if (ref_valid_tag(name)) {
        snprintf(ret_ref->tag, sizeof(ret_ref->tag), "%s", name);
        return true;
    }
    if (strchr(name, ':'))
        return registry_target_digest(call, &ret_ref->digest);
    unknown_manifest(call, "the path has neither a tag nor a digest");
    return false;
}

static void get_manifest(const struct registry_call *call)
{
    char text[DIGEST_STR_MAX], etag[DIGEST_STR_MAX + 2];
    CLEANUP_FREE void *buf = NULL;
    struct cairn_error err;
    struct digest d;
    struct ref ref;
    size_t len = 0;
    int r;

    if (!target_ref(call, &ref))
        return;
    r = registry_resolve(call->store, &ref, &d, &err);
    if (!r)
        r = registry_get_manifest(call->store, ref.repo, &d, &buf, &len, &err);
    if (r) {
        http_reply_failure(call->reply, &err);
        return;
    }
    snprintf(etag, sizeof(etag), "\"%s\"", digest_format(&d, text));
    registry_reply_digest(call, &d, NULL);
    http_reply_header(call->reply, "ETag", "%s", etag);
    if (http_not_modified(call->req, etag))
        http_reply_status(call->reply, MHD_HTTP_NOT_MODIFIED);
    else
        http_reply_buffer(call->reply, MHD_HTTP_OK, MANIFEST_MEDIA_TYPE, steal_ptr(buf), len);
}

/* -- DELETE ------------------------------------------------------------------------------- */

struct untag {
    const struct registry_call *call;
    char digest[DIGEST_STR_MAX];
};

/* Remove a tag if it points to the manifest that goes. */
static int untag(void *arg, const char *name, bool is_prefix, struct cairn_error *err)
{
    const struct untag *u = arg;
    char key[REGISTRY_KEY_MAX];
    int r;

    if (is_prefix || !ref_valid_tag(name))
        return CAIRN_OK;
    registry_tag_key(u->call->target.repo, name, key);
    r = store_cas(u->call->store, key, u->digest, NULL, err);
    return r == CAIRN_E_CONFLICT ? CAIRN_OK : r;
}

static int untag_all(const struct registry_call *call, const struct digest *d,
                     struct cairn_error *err)
{
    struct untag u = {.call = call};
    char prefix[REGISTRY_KEY_MAX];

    digest_format(d, u.digest);
    snprintf(prefix, sizeof(prefix), "repos/%s/_tags/", call->target.repo);
    return store_list(call->store, prefix, NULL, untag, &u, err);
}

/* A manifest on its way out. */
struct deletion {
    const struct registry_call *call;
    const struct digest *digest;
    char by[CONDEMNED_BY_MAX];
    char key[REGISTRY_KEY_MAX];
    char record[REGISTRY_KEY_MAX]; /* among its subject's referrers; empty: none */
    bool claimed;
};

static const char *record_of(const struct deletion *del)
{
    return del->record[0] ? del->record : NULL;
}

/* What cannot be read can be deleted all the same. */
static int find_record(struct deletion *del, struct cairn_error *err)
{
    __attribute__((cleanup(document_release))) struct document doc = {0};
    CLEANUP_FREE void *buf = NULL;
    size_t len;
    int r = store_get(del->call->store, del->key, MANIFEST_BYTES_MAX, &buf, &len, err);

    if (!r && parse_document(buf, len, &doc, NULL) == CAIRN_OK && doc.has_subject)
        registry_referrer_key(del->call->target.repo, &doc.subject, del->digest, del->record);
    return r == CAIRN_E_LIMIT || r == CAIRN_E_IO ? CAIRN_OK : r;
}

static int see_claim(void *arg, const char *repo, const void *manifest, size_t len,
                     struct cairn_error *err)
{
    struct deletion *del = arg;
    struct digest d;

    (void)err;
    if (strcmp(repo, del->call->target.repo) != 0)
        return CAIRN_OK;
    digest_of(manifest, len, &d);
    del->claimed |= digest_equal(&d, del->digest);
    return CAIRN_OK;
}

static int see_lease(void *arg, const struct lease *lease, struct cairn_error *err)
{
    const struct deletion *del = arg;
    char text[DIGEST_STR_MAX];

    if (strcmp(lease->ref.repo, del->call->target.repo) != 0 ||
        !digest_equal(&lease->ref.digest, del->digest))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CONFLICT,
                     "manifest %s is in use: \"%s\" holds lease %s.  If its tags are removed it is "
                     "collected when that ends",
                     digest_format(del->digest, text), lease->holder, lease->id);
}

/* What claims it now has stored that before the manifest was condemned, or will revive it. */
static int delete_condemned(struct deletion *del, bool *ret_gone, struct cairn_error *err)
{
    struct store *store = del->call->store;
    uint64_t nr_broken = 0, nr_expired = 0;
    int r = claims_each(store, CLAIM_AGE_S, see_claim, del, &nr_broken, err);

    if (!r)
        r = leases_each(store, see_lease, del, &nr_expired, err);
    step_reached(STEP_DELETE_UNCLAIMED);
    if (!r && !del->claimed)
        r = untag_all(del->call, del->digest, err);
    step_reached(STEP_DELETE_UNTAGGED);
    if (!r && !del->claimed)
        return condemned_delete(store, del->by, del->key, record_of(del), ret_gone, err);
    condemned_pardon(store, del->by, del->key, record_of(del), NULL, NULL);
    return r;
}

/* *ret_gone is false if somebody was in the way. */
static int delete_once(const struct registry_call *call, const struct digest *d, bool *ret_gone,
                       struct cairn_error *err)
{
    struct deletion del = {.call = call, .digest = d};
    bool marked = false;
    int r;

    *ret_gone = false;
    registry_repo_key(call->target.repo, "_manifests", d, del.key);
    snprintf(del.by, sizeof(del.by), "delete-");
    r = store_random_hex(del.by + strlen(del.by), 16, err);
    if (!r)
        r = condemned_revive(call->store, del.key, err);
    if (!r)
        r = find_record(&del, err);
    if (!r)
        r = condemned_mark(call->store, del.by, del.key, record_of(&del), &marked, err);
    step_reached(STEP_DELETE_CONDEMNED);
    return r || !marked ? r : delete_condemned(&del, ret_gone, err);
}

/* Several at once revive what the others have condemned, so they leave each other more and more
 * time. */
static int delete_manifest(const struct registry_call *call, const struct digest *d,
                           struct cairn_error *err)
{
    struct timespec pause = {.tv_nsec = DELETE_PAUSE_MIN_NS};
    const uint64_t deadline = clock_now_us() + DELETE_WAIT_US;
    char text[DIGEST_STR_MAX];
    bool gone;

    for (;;) {
        int r = delete_once(call, d, &gone, err);

        if (gone || r == CAIRN_E_NOT_FOUND) /* it was there: somebody else has deleted it */
            return CAIRN_OK;
        if (r)
            return r;
        if (clock_now_us() > deadline)
            return error_set(err, CAIRN_E_UNAVAILABLE, "manifest %s is being published",
                             digest_format(d, text));
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < DELETE_PAUSE_MAX_NS)
            pause.tv_nsec *= 2;
    }
}

static int delete_tag(const struct registry_call *call, const char *tag, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX];
    int r = store_delete(call->store, registry_tag_key(call->target.repo, tag, key), err);

    if (r == CAIRN_E_NOT_FOUND)
        return error_set(err, r, "no tag %s in repository %s", tag, call->target.repo);
    return r;
}

static void delete_by_name(const struct registry_call *call)
{
    struct cairn_error err;
    struct digest d;
    struct ref ref;
    int r;

    if (!target_ref(call, &ref))
        return;
    if (ref.tag[0]) {
        r = delete_tag(call, ref.tag, &err);
    } else {
        r = registry_resolve(call->store, &ref, &d, &err);
        if (!r)
            r = delete_manifest(call, &d, &err);
    }
    if (r)
        http_reply_failure(call->reply, &err);
    else
        http_reply_status(call->reply, MHD_HTTP_ACCEPTED);
}

void registry_manifest(const struct registry_call *call)
{
    if (http_method(call->req) == HTTP_PUT)
        put_manifest(call);
    else if (http_method(call->req) == HTTP_DELETE)
        delete_by_name(call);
    else
        get_manifest(call);
    if (call->registry->disks && (http_method(call->req) & (HTTP_PUT | HTTP_DELETE)))
        disks_names_changed(call->registry->disks);
}
