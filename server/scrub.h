/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scrubbing: everything that is stored is read again and compared with the digest or the checksum
 * that it has, before somebody needs it.
 *
 * A job of kind `scrub` (jobs.h), with the options
 *
 *     rate   bytes per second that are read at most; 0: no limit
 *     ref    only the manifest and the blobs of this disk, not all of the store
 *
 * and the result
 *
 *     blobs, bytes, manifests, indexObjects   how many were read
 *     damaged     [{kind, digest, problem, found, tags}], also what an earlier scrub has found
 *     putBack     digests of blobs that were in quarantine and turned out to be right
 *     dropped     index objects that were damaged; they are built again when they are needed
 *
 * A damaged blob is put into quarantine (quarantine.h); a damaged manifest stays, for whoever reads
 * one compares it with its digest, and a push of the same manifest replaces it.
 */
#ifndef SERVER_SCRUB_H
#define SERVER_SCRUB_H

#include "jobs.h"
#include "quarantine.h"

struct scrub;

struct scrub_options {
    uint64_t rate;       /* bytes per second, where a job does not say; 0: no limit */
    uint64_t interval_s; /* a scrub of all starts so long after the last one; 0: never */
};

/* store and quarantine are borrowed. */
int scrub_new(struct store *store, struct quarantine *quarantine,
              const struct scrub_options *options, struct scrub **ret_scrub,
              struct cairn_error *err);
void scrub_free(struct scrub *scrub);
CLEANUP_DEFINE(struct scrub *, scrub_free)

struct job_kind scrub_job_kind(struct scrub *scrub);

/* For /metrics; scrub is a struct scrub. */
void scrub_write_metrics(void *scrub, struct metrics *m);

#endif
