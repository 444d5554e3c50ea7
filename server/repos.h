/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks over what repositories hold, for jobs that look at all of it.  What is added or removed
 * during a walk may be met or not.
 */
#ifndef SERVER_REPOS_H
#define SERVER_REPOS_H

#include "digest.h"
#include "store.h"

/* In each, fn's result is the walk's, unless it is CAIRN_OK. */

typedef int (*repos_fn)(void *ctx, const char *repo, struct cairn_error *err);
int repos_walk(struct store *store, repos_fn fn, void *ctx, struct cairn_error *err);

/* Manifests of a repository, by digest. */
typedef int (*repos_manifest_fn)(void *ctx, const char *repo, const struct digest *manifest,
                                 struct cairn_error *err);
int repos_walk_manifests(struct store *store, const char *repo, repos_manifest_fn fn, void *ctx,
                         struct cairn_error *err);

/* Its tags, with what they name.  A tag that cannot be read as one is left out. */
typedef int (*repos_tag_fn)(void *ctx, const char *repo, const char *tag,
                            const struct digest *manifest, struct cairn_error *err);
int repos_walk_tags(struct store *store, const char *repo, repos_tag_fn fn, void *ctx,
                    struct cairn_error *err);

/* Does the repository have a mark of the blob? */
int repos_has_blob(struct store *store, const char *repo, const struct digest *blob, bool *ret_has,
                   struct cairn_error *err);

#endif
