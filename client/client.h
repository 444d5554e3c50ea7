/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside libcairn: what push, pull and disks share.
 */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include <pthread.h>

#include "block_cache.h"
#include "cairn.h"
#include "chain_read.h"
#include "manifest.h"
#include "remote.h"
#include "source.h"

struct cairn_client {
    struct remote *remote;
    struct block_cache *blocks;     /* NULL: this host keeps no blocks */
    struct cluster_cache *clusters; /* decompressed, with blocks */
    cairn_progress_fn progress;
    void *progress_ctx;
    pthread_mutex_t progress_lock; /* of what follows; progress is called with it held */
    char what[128];                /* what was last told to progress */
    uint64_t done_bytes, total_bytes;
};

CLEANUP_DEFINE(struct cairn_client *, cairn_client_free)

/* A client of the same service whose progress, which is also asked while requests wait, is its
 * own. */
int client_new_like(const struct cairn_client *other, cairn_progress_fn progress,
                    void *progress_ctx, struct cairn_client **ret_client, struct cairn_error *err);

/* -- Progress ------------------------------------------------------------------------------- */

/* Tell the caller how far a step is; CAIRN_E_CANCELLED if it wants to stop.  Thread-safe. */
int client_progress(struct cairn_client *client, const char *what, uint64_t done_bytes,
                    uint64_t total_bytes, struct cairn_error *err);

/* The same for a step made of several blobs: done counts those behind, at is within this one. */
struct progress {
    const char *what;
    uint64_t done, total;
};
int progress_at(struct cairn_client *client, const struct progress *progress, uint64_t at,
                struct cairn_error *err);

/* -- Paths of the service -------------------------------------------------------------------- */

#define CLIENT_PATH_MAX 1024
/* `/v2/<repo>/blobs/<digest>`: what remote_read_range wants for a layer's bytes. */
char *client_blob_path(const char *repo, const struct digest *d, char path[CLIENT_PATH_MAX]);
/* `/v1/disks/<ref><suffix>`, suffix such as "/index" or "". */
char *client_disk_path(const struct ref *ref, const char *suffix, char path[CLIENT_PATH_MAX]);

/* -- Manifests ------------------------------------------------------------------------------- */

/* Fetch and parse the manifest of ref; *ret_digest is the manifest's own. */
int client_get_manifest(struct cairn_client *client, const struct ref *ref,
                        struct manifest **ret_manifest, struct digest *ret_digest,
                        struct cairn_error *err);

/* The bytes of it, verified against the digest that the service or the ref gave. */
int client_get_manifest_bytes(struct cairn_client *client, const struct ref *ref, char **ret_json,
                              size_t *ret_len, struct digest *ret_digest, struct cairn_error *err);

/* Is this the manifest that ref names (and announced, if the service said one, may be NULL)?  Its
 * digest; what starts the message. */
int client_check_manifest(const void *json, size_t len, const struct ref *ref,
                          const char *announced, const char *what, struct digest *ret_digest,
                          struct cairn_error *err);

/* Publish a manifest (and the empty config blob that it names) as ref; the manifest's digest. */
int client_put_manifest(struct cairn_client *client, const struct ref *ref,
                        const struct manifest *m, struct digest *ret_digest,
                        struct cairn_error *err);

/* The same for bytes whose blobs are there already. */
int client_put_manifest_bytes(struct cairn_client *client, const struct ref *ref, const char *json,
                              size_t len, struct digest *ret_digest, struct cairn_error *err);

/*
 * Blobs that were looked for or sent may be collected before the manifest is put: then the service
 * says that one is missing (CAIRN_E_NOT_FOUND), and all are looked for anew, so many times.
 */
#define CLIENT_RESENDS 5

/* Append {"tag","digest"} for each tag of a repository to the array tags. */
int client_list_tags(struct cairn_client *client, const char *repo, json_t *tags,
                     struct cairn_error *err);

/* -- Blobs ----------------------------------------------------------------------------------- */

/* Does the repository have the blob? */
int client_has_blob(struct cairn_client *client, const char *repo, const struct digest *d,
                    bool *ret_has, struct cairn_error *err);

/*
 * Upload the file at path as blob d unless the repository has it; goes on with an upload that
 * was interrupted.  mount_from (may be NULL): a repository that may have it.
 */
int client_push_blob(struct cairn_client *client, const char *repo, const char *path,
                     const struct digest *d, const char *mount_from, struct cairn_error *err);

/* The same for any source, which the repository is known not to have. */
int client_upload(struct cairn_client *client, const char *repo, struct source *src,
                  const struct digest *d, const char *mount_from, const struct progress *progress,
                  struct cairn_error *err);

/* Let repo see a blob of the repository from; *ret_mounted is false if the service would not. */
int client_mount_blob(struct cairn_client *client, const char *repo, const struct digest *d,
                      const char *from, bool *ret_mounted, struct cairn_error *err);

/* The same for all layers of a manifest; a service that would not is CAIRN_E_UNSUPPORTED. */
int client_mount_layers(struct cairn_client *client, const char *repo, const struct manifest *m,
                        const char *from, struct cairn_error *err);

#endif
