/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Claims: what is about to become reachable.
 *
 * Who publishes a manifest looks for its blobs first and makes them reachable later.  In between
 * only a claim, `claims/<id>`, tells the collector about them: it holds the repository's name and
 * the manifest itself, and so claims the manifest and all that it lists.  It need not survive a
 * power cut, for whoever made it does not either.
 *
 * A claim whose maker died is removed by the collector when it is old.  Nobody can tell a dead
 * maker from one that was stopped for long; so the maker notices that its claim was broken: when
 * the last thing that it does, dropping the claim, finds it gone.
 *
 * Ages are the store's (store_now): no server's clock matters.
 */
#ifndef SERVER_CLAIMS_H
#define SERVER_CLAIMS_H

#include "digest.h"
#include "store.h"

/* A claim may be broken when it is this old: longer than any publishing takes. */
#define CLAIM_AGE_S 3600

struct claim {
    char key[64];
};

int claim_take(struct store *store, const char *repo, const void *manifest, size_t len,
               struct claim *ret_claim, struct cairn_error *err);
/* Is it still there? */
int claim_held(struct store *store, const struct claim *claim, bool *ret_held,
               struct cairn_error *err);
/* *ret_broken: somebody has removed it before, so what was claimed may be gone. */
int claim_drop(struct store *store, const struct claim *claim, bool *ret_broken,
               struct cairn_error *err);

/*
 * Every claim that can be seen, each repository with its manifest.  Those that are older than age_s
 * are broken instead, and counted.  fn: not 0 stops.
 */
typedef int (*claim_fn)(void *arg, const char *repo, const void *manifest, size_t len,
                        struct cairn_error *err);
int claims_each(struct store *store, uint64_t age_s, claim_fn fn, void *arg, uint64_t *ret_broken,
                struct cairn_error *err);

#endif
