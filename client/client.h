/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside libcairn: what push, pull and disks share.
 */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include "cairn.h"
#include "manifest.h"
#include "remote.h"

struct cairn_client {
    struct remote *remote;
    cairn_progress_fn progress;
    void *progress_ctx;
};

/* Fetch and parse the manifest of ref; *ret_digest is the manifest's own. */
int client_get_manifest(struct cairn_client *client, const struct ref *ref,
                        struct manifest **ret_manifest, struct digest *ret_digest,
                        struct cairn_error *err);

/* Does the repository have the blob? */
int client_has_blob(struct cairn_client *client, const char *repo, const struct digest *d,
                    bool *ret_has, struct cairn_error *err);

/*
 * Upload the file at path as blob d unless the repository has it; goes on with an upload that
 * was interrupted.  mount_from (may be NULL): a repository that may have it.
 */
int client_push_blob(struct cairn_client *client, const char *repo, const char *path,
                     const struct digest *d, const char *mount_from, struct cairn_error *err);

/* Publish a manifest (and the empty config blob that it names) as ref; the manifest's digest. */
int client_put_manifest(struct cairn_client *client, const struct ref *ref,
                        const struct manifest *m, struct digest *ret_digest,
                        struct cairn_error *err);

#endif
