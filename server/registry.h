/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The OCI distribution API (DESIGN 5.1), under /v2/: blobs, uploads, manifests, tags, referrers,
 * catalogue, over the object store.
 */
#ifndef SERVER_REGISTRY_H
#define SERVER_REGISTRY_H

#include "disks.h"
#include "http.h"
#include "manifest.h"
#include "quota.h"
#include "store.h"

struct registry;

struct registry_options {
    size_t max_manifest; /* bytes; at most MANIFEST_BYTES_MAX */
    uint64_t max_upload; /* bytes of one blob */
    struct quota_options quota;
    uint64_t grace_s; /* how long what nobody refers to is kept */
};

int registry_new(struct store *store, struct disks *disks, const struct registry_options *options,
                 struct registry **ret_registry, struct cairn_error *err);
void registry_free(struct registry *registry);
CLEANUP_DEFINE(struct registry *, registry_free)
struct quota *registry_quota(struct registry *registry);

/* GET /v1/repositories/<name>, as a route's handle: what the repository holds, and may hold. */
void registry_usage(void *registry, const struct http_request *req, struct http_reply *reply);

struct metrics;
void registry_write_metrics(void *registry, struct metrics *m); /* as a metrics_source */

/* As the functions of a struct quarantine_forget; registry is a struct registry. */
void registry_forget_layer(void *registry, const struct digest *layer);
void registry_forget_gone(void *registry);

/* The functions of a route for `/v2/` (http.h); registry is a struct registry. */
void registry_begin(void *registry, struct http_request *req, struct http_reply *reply);
void registry_handle(void *registry, const struct http_request *req, struct http_reply *reply);
/* Is it a read of a blob?  (http_route.quick) */
bool registry_is_quick(const struct http_request *req);

/* -- What the disk API needs of it: store look-ups by name -------------------------------- */

/* The store key of a blob: blobs/sha256/<2 hex>/<hex>. */
#define REGISTRY_KEY_MAX 512
char *registry_blob_key(const struct digest *d, char key[REGISTRY_KEY_MAX]);

/*
 * The digest of the manifest that a ref names now, without reading the manifest: a tag is looked up
 * anew each time, and the manifest must (still) be in the repository.  CAIRN_E_NOT_FOUND if not.
 */
int registry_resolve(struct store *store, const struct ref *ref, struct digest *ret_digest,
                     struct cairn_error *err);

/* The bytes of the manifest of that digest in a repository, malloc'ed and verified. */
int registry_get_manifest(struct store *store, const char *repo, const struct digest *digest,
                          void **ret_buf, size_t *ret_len, struct cairn_error *err);

/* The manifest that a ref names, parsed; ret_digest (may be NULL) is the manifest's. */
int registry_find_manifest(struct store *store, const struct ref *ref,
                           struct manifest **ret_manifest, struct digest *ret_digest,
                           struct cairn_error *err);

#endif
