/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Garbage collection as a job: `POST /v1/gc {"dryRun": false, "grace": seconds}`.  What it does is
 * told in collect.h.  Its result:
 *
 *     {"dryRun", "grace", "bytesFreed", "expiredLeases", "brokenClaims", "keptRepositories",
 *      "seconds", "kinds": {"manifests": {"seen", "condemned", "revived", "deleted", "bytes"}, …}}
 *
 * In a dry run "deleted" and "bytesFreed" are what would be.
 */
#ifndef SERVER_GC_H
#define SERVER_GC_H

#include "collect.h"
#include "jobs.h"

struct gc;

struct gc_options {
    struct collect_options collect; /* dry_run is a job's own */
    uint64_t interval_s;            /* between runs that begin by themselves; 0: none do */
};

int gc_new(struct store *store, const struct gc_options *options, struct gc **ret_gc,
           struct cairn_error *err);
void gc_free(struct gc *gc);
CLEANUP_DEFINE(struct gc *, gc_free)

/* The kind of jobs that it is; gc must outlive them. */
struct job_kind gc_job_kind(struct gc *gc);

struct metrics;
void gc_write_metrics(void *gc, struct metrics *m); /* as a metrics_source */

#endif
