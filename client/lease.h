/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lease of an open disk: the service keeps the chain that the disk stands on for as long as it
 * is renewed.  A thread renews it at a third of its time.  If it cannot, that is told, and tried
 * again; reads and writes do not wait for it.
 */
#ifndef CLIENT_LEASE_H
#define CLIENT_LEASE_H

#include "client.h"

struct lease;

struct lease_options {
    const char *holder;                           /* copied */
    unsigned ttl_s;                               /* 0: 600 */
    void (*tell)(void *ctx, const char *message); /* from any thread; may be NULL */
    void *tell_ctx;
};

/* A lease on the manifest that ref, by digest, names.  That it cannot be had (yet) is told, and no
 * error. */
int lease_new(const struct cairn_client *client, const struct ref *ref,
              const struct lease_options *options, struct lease **ret_lease,
              struct cairn_error *err);
/* Release it; NULL is allowed.  A service that does not answer is not waited for. */
void lease_free(struct lease *lease);
CLEANUP_DEFINE(struct lease *, lease_free)

/*
 * Move to another manifest in two steps, so that whoever crashes in between has both.  The first
 * takes a lease on the other manifest; when it succeeds the second must follow, which lets go of
 * the one before (moved) or of the new one.  CAIRN_E_NOT_FOUND: the manifest is gone.  A service
 * that refuses leases is told, and no error.
 */
int lease_take_next(struct lease *lease, const struct ref *ref, struct cairn_error *err);
void lease_settle(struct lease *lease, bool moved);

#endif
