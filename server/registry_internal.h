/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the registry: what a path names, and what its parts (blobs, uploads, manifests, lists)
 * share.
 */
#ifndef SERVER_REGISTRY_INTERNAL_H
#define SERVER_REGISTRY_INTERNAL_H

#include "cache.h"
#include "histogram.h"
#include "registry.h"

#define REGISTRY_REPO_MAX 256

enum registry_resource {
    REGISTRY_BASE,
    REGISTRY_CATALOG,
    REGISTRY_TAGS,
    REGISTRY_REFERRERS,
    REGISTRY_BLOB,
    REGISTRY_MANIFEST,
    REGISTRY_UPLOADS,
    REGISTRY_UPLOAD,
};

struct registry_target {
    enum registry_resource resource;
    char repo[REGISTRY_REPO_MAX]; /* valid */
    const char *name;             /* digest, ref or ID: the path's last component, as it came */
};

struct sessions;

/* Counted since the server started (registry_metrics.c). */
struct registry_figures {
    atomic_uint_fast64_t begun, finished, aborted, received_bytes; /* uploads */
    atomic_uint_fast64_t mounted, published, refused;
    struct histogram publish;
    atomic_bool listing; /* somebody looks at the open uploads */
};

static inline void registry_count(atomic_uint_fast64_t *figure, uint64_t n)
{
    atomic_fetch_add_explicit(figure, n, memory_order_relaxed);
}

struct registry {
    struct store *store;
    struct disks *disks;
    struct registry_options options;
    struct sessions *sessions;
    struct registry_figures figures;
    struct quota *quota;
    struct cache *shown; /* blobs that are being read (registry_blobs.c) */
};

/* One request on one resource. */
struct registry_call {
    struct registry *registry;
    struct store *store;
    const struct http_request *req;
    struct http_reply *reply;
    struct registry_target target;
};

/* -- Keys --------------------------------------------------------------------------------- */

/* repos/<repo>/<kind>/<hex>, with kind `_blobs` or `_manifests`. */
char *registry_repo_key(const char *repo, const char *kind, const struct digest *d,
                        char key[REGISTRY_KEY_MAX]);
char *registry_tag_key(const char *repo, const char *tag, char key[REGISTRY_KEY_MAX]);
/* repos/<repo>/_referrers/<subject>/, and the record of a manifest that refers to the subject. */
char *registry_referrers_prefix(const char *repo, const struct digest *subject,
                                char key[REGISTRY_KEY_MAX]);
char *registry_referrer_key(const char *repo, const struct digest *subject,
                            const struct digest *manifest, char key[REGISTRY_KEY_MAX]);

/* -- Paths -------------------------------------------------------------------------------- */

/* What a path under /v2 names; false when it names nothing, and that has been replied. */
bool registry_parse_target(const char *path, struct registry_target *target,
                           struct http_reply *reply);

/* -- Replies ------------------------------------------------------------------------------ */

/* Digest of the target's name; false when 400 DIGEST_INVALID has been replied. */
bool registry_target_digest(const struct registry_call *call, struct digest *ret_digest);

/* `Docker-Content-Digest` and, if location is given, `Location: /v2/<repo>/<location>/<digest>`. */
void registry_reply_digest(const struct registry_call *call, const struct digest *d,
                           const char *location);

/* -- Blobs (registry_blobs.c) ------------------------------------------------------------- */

/* The size of a blob that the repository may see; CAIRN_E_NOT_FOUND if it may not, or there is
 * none. */
int registry_find_blob(struct store *store, const char *repo, const struct digest *d,
                       uint64_t *ret_size, struct cairn_error *err);
/*
 * Let the repository see a blob: one that is in the store, or will be.  The link is also a claim on
 * the blob (collect.h): who stores it, revives the blob, and then finds or stores the blob, has it.
 */
int registry_show_blob(struct store *store, const char *repo, const struct digest *d, uint64_t size,
                       struct cairn_error *err);
int registry_revive_blob(struct store *store, const struct digest *d, struct cairn_error *err);
int registry_shown_new(struct cache **ret_shown, struct cairn_error *err);
void registry_blob(const struct registry_call *call);

/* -- Uploads (registry_uploads.c) --------------------------------------------------------- */

int sessions_new(struct sessions **ret_sessions, struct cairn_error *err);
void sessions_free(struct sessions *sessions);
/* Before the body of POST, PATCH and PUT. */
void registry_begin_upload(const struct registry_call *call, struct http_request *req);
void registry_uploads(const struct registry_call *call); /* POST */
void registry_upload(const struct registry_call *call);  /* GET, PATCH, PUT, DELETE */

/* -- Manifests (registry_manifests.c) and lists (registry_lists.c) ------------------------ */

void registry_manifest(const struct registry_call *call);
void registry_tags(const struct registry_call *call);
void registry_catalog(const struct registry_call *call);
void registry_referrers(const struct registry_call *call);

#endif
