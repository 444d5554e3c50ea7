/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The garbage collector: gives back what nobody can reach, while everybody goes on publishing, on
 * this server and on others.
 *
 * What refers to what: a tag or a lease to a manifest; a manifest to its subject's referrers, that
 * is, a manifest lives as long as its subject does; a manifest to the links `repos/R/_blobs/D` of
 * what it lists; a link to its blob.  What is younger than grace lives, too.
 *
 * One kind is collected after the other, manifests, then links, then blobs, each in these steps:
 *
 *   1. Mark: find what is live.
 *   2. Condemn what is there and is not live: put a marker on it (condemned.h).
 *   3. Mark again: read the claims and leases, then what refers to this kind.
 *   4. Pardon what is live now; delete the rest, each unless somebody has revived it meanwhile.
 *
 * A publisher, conversely, of an object X (it makes X reachable, or promises that X is there):
 *
 *   a. Store a claim on X: something that step 3 reads.  For a manifest and all that it lists that
 *      is a claim (claims.h), for a leased manifest the lease, for a blob the link to it.
 *   b. Revive X: take its marker away, or if it is being deleted wait until that is over.
 *   c. Look whether X is there; if not, say so, and the client sends it (again).
 *   d. Store what refers to X, then drop the claim.
 *
 * Why nothing live is ever deleted.  Let X be deleted in a run that condemned it at 2, and read
 * claims and references at 3.
 *   - a before 3: step 3 sees the claim; or it has been dropped, and then d was before, and step 3
 *     sees what refers to X, for it reads references after claims.  X is pardoned.
 *   - a after 3, so after 2: then b finds the marker.  If it still says `condemned` the publisher
 *     takes it away, by compare-and-set, and step 4 cannot delete X.  If not, X is being deleted
 *     or gone, and c is after that: the publisher knows.
 * Nothing is assumed of how fast anybody is, nor of clocks: a publisher that is stopped between any
 * two steps changes nothing of the above, as long as its claim stays.  A claim may be broken by age
 * (its maker might be dead); then d finds that out and begins at a again, see put_manifest().
 *
 * What is found to be live in step 1 may be dead by step 3: it goes in the next run.
 *
 * Because one kind comes after the other, whatever exists keeps alive what it refers to: links are
 * judged by the manifests that exist, blobs by the links that exist.  So who makes sure of a
 * manifest (a lease, a tag that moves back) need not look at its blobs.
 *
 * While `gc/run` is there a run goes on, or one has died; while it is not, no object but manifests
 * that a client deletes can have a marker, so publishers ask once instead of for each blob.  It is
 * stored before the first marker and removed after the last, and a publisher asks between a and b.
 *
 * Only one run may go on in a store: it is a job.  A run that dies leaves markers; the next one
 * begins by clearing them away (condemned_recover), and does everything again.
 *
 * Index objects are derived: those that no chain has any more go by age alone, and one that is
 * wanted after all is built again.  Quarantined blobs are the scrubber's.
 */
#ifndef SERVER_COLLECT_H
#define SERVER_COLLECT_H

#include "store.h"

struct collect_options {
    uint64_t grace_s;      /* what is younger lives */
    uint64_t upload_age_s; /* abandoned uploads */
    uint64_t claim_age_s;  /* claims that are this old are broken */
    size_t max_memory;     /* bytes, for what is live */
    bool dry_run;          /* tell what would go, and change nothing */
};

enum collect_kind {
    COLLECT_MANIFESTS,
    COLLECT_LINKS,
    COLLECT_BLOBS,
    COLLECT_INDEX,
    COLLECT_UPLOADS,
    COLLECT_TEMPORARIES,
    NR_COLLECT_KINDS,
};
extern const char *const collect_kind_names[NR_COLLECT_KINDS];

struct collect_count {
    uint64_t seen;      /* objects looked at */
    uint64_t condemned; /* found dead at first */
    uint64_t revived;   /* of these: found live, or wanted, after all */
    uint64_t deleted;   /* or, in a dry run, what would be */
    uint64_t bytes;     /* of those deleted */
};

struct collect_result {
    struct collect_count kinds[NR_COLLECT_KINDS];
    uint64_t expired_leases, broken_claims;
    uint64_t kept_repositories; /* something in them cannot be read, so nothing there was judged */
    uint64_t bytes;             /* of all kinds */
};

/* Told now and then how far it is; not CAIRN_OK ends the run with that. */
struct collect_watch {
    int (*progress)(void *ctx, const char *phase, uint64_t done, uint64_t total, const char *unit,
                    struct cairn_error *err);
    void *ctx;
};

/* Only one at a time in a store.  *ret_result says what was done, also if it fails. */
int collect_run(struct store *store, const struct collect_options *options,
                const struct collect_watch *watch, struct collect_result *ret_result,
                struct cairn_error *err);

/* For publishers, between claim and revival: may objects have markers now? */
int collect_is_running(struct store *store, bool *ret_running, struct cairn_error *err);

#endif
