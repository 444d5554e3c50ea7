/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: manifests that somebody uses, whoever has tagged or untagged them.
 *
 *     POST   /v1/disks/<ref>/leases         {"holder": …, "ttl": seconds}: 201, the lease
 *     PUT    /v1/disks/<ref>/leases/<id>    renew it, for another {"ttl"} if that is given: 200
 *     DELETE /v1/disks/<ref>/leases/<id>    release it: 204
 *     GET    /v1/leases[?repo=]             {"leases":[…]} that have not expired
 *
 * A lease, `leases/<id>`, ends a ttl after it was last renewed, by the store's clock; that it is
 * not collected before is what it is for.  No server ends it before it has served for a ttl itself:
 * all of them may have been down, or the clock has jumped, and those who hold leases are still to
 * be heard of.  Releasing and renewing take the ref by digest.
 *
 * It changes by compare-and-set alone, and each renewal changes it.  So the collector, which
 * removes an expired lease before it disregards it, cannot remove one that has just been renewed,
 * and nobody renews one that has been disregarded.
 */
#ifndef SERVER_LEASES_H
#define SERVER_LEASES_H

#include <jansson.h>

#include "http.h"
#include "manifest.h"
#include "store.h"

#define LEASE_ID_LEN     32
#define LEASE_HOLDER_MAX 256   /* bytes */
#define LEASE_TTL_MAX    86400 /* seconds */
#define LEASE_BODY_MAX   4096  /* bytes of a request */

struct lease {
    char id[LEASE_ID_LEN + 1];
    struct ref ref; /* by digest */
    char holder[LEASE_HOLDER_MAX + 1];
    uint64_t ttl_s;
    uint64_t created_us, renewed_us; /* by the store's clock */
    uint64_t nr_renewals;
};

/* A lease on the manifest that ref names now.  CAIRN_E_NOT_FOUND: there is none (any more). */
int lease_take(struct store *store, const struct ref *ref, const char *holder, uint64_t ttl_s,
               struct lease *ret_lease, struct cairn_error *err);
/* ttl_s 0: as before.  CAIRN_E_NOT_FOUND: it has ended, is not one on that manifest, or that is
 * gone all the same. */
int lease_renew(struct store *store, const struct ref *ref, const char *id, uint64_t ttl_s,
                struct lease *ret_lease, struct cairn_error *err);
int lease_release(struct store *store, const struct ref *ref, const char *id,
                  struct cairn_error *err);

/*
 * Every lease that can be seen and has not expired.  For who deletes, ret_expired is not NULL: then
 * those that have are removed and counted, one from far ahead (a clock was wrong) begins anew, and
 * fn may be told of one twice.
 */
typedef int (*lease_fn)(void *arg, const struct lease *lease, struct cairn_error *err);
int leases_each(struct store *store, lease_fn fn, void *arg, uint64_t *ret_expired,
                struct cairn_error *err);

/* The calls of /v1/disks/<ref>/leases; id is NULL or what follows.  May any ref be leased by who
 * asks is the router's question. */
void leases_handle_disk(struct store *store, const struct ref *ref, const char *id,
                        const struct http_request *req, struct http_reply *reply);
/* GET /v1/leases; store is a struct store. */
void leases_handle_list(void *store, const struct http_request *req, struct http_reply *reply);

struct metrics;
void leases_write_metrics(void *store, struct metrics *m);

#endif
