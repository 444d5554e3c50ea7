/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside scrubbing: one run (scrub.c), reading at a rate (scrub_read.c), and what is not a blob
 * (scrub_meta.c).
 */
#ifndef SERVER_SCRUB_INTERNAL_H
#define SERVER_SCRUB_INTERNAL_H

#include <stdatomic.h>

#include "digest_set.h"
#include "scrub.h"

CLEANUP_DEFINE(json_t *, json_decref)

struct scrub {
    struct store *store;
    struct quarantine *quarantine;
    struct scrub_options options;
    atomic_uint_fast64_t nr_blobs, nr_bytes; /* read by this server */
};

/* One job under way. */
struct scrub_run {
    struct scrub *scrub;
    struct store *store;
    struct job *job;
    uint64_t rate;
    uint64_t due_us; /* when the bytes so far may have been read */
    struct job_progress progress;
    json_t *result; /* the job's; borrowed */
    size_t nr_tags; /* that the result names */
    struct digest_budget budget;
    struct digest_set listed; /* blobs that manifests list, where all is scrubbed */
    void *buf;
};

#define SCRUB_LOST              "the store has lost it"
#define SCRUB_PROBLEM_MAX       256
#define SCRUB_DAMAGED_MANIFESTS "damagedManifests" /* a list of the result, while it is made */

enum scrub_verdict {
    SCRUB_GOOD,
    SCRUB_DAMAGED,
    SCRUB_GONE, /* deleted meanwhile */
};

/* -- Reading (scrub_read.c) ------------------------------------------------------------------- */

int scrub_read_init(struct scrub_run *run, struct cairn_error *err);
void scrub_read_release(struct scrub_run *run);
/* A phase begins; total 0: nobody knows. */
int scrub_phase(struct scrub_run *run, const char *phase, uint64_t total, const char *unit,
                struct cairn_error *err);
/* Is what is stored under key what its digest says?  problem gets what is wrong.  count: as
 * progress. */
int scrub_verify(struct scrub_run *run, const char *key, const struct digest *digest, bool count,
                 enum scrub_verdict *ret_verdict, char problem[SCRUB_PROBLEM_MAX],
                 struct cairn_error *err);
/* len bytes were read some other way: wait until they may have been. */
int scrub_pace(struct scrub_run *run, uint64_t len, struct cairn_error *err);

/* -- The result (scrub.c) --------------------------------------------------------------------- */

void scrub_count(struct scrub_run *run, const char *what, uint64_t by);
/* Append to one of its lists; value is taken over, also on failure. */
int scrub_note(struct scrub_run *run, const char *list, json_t *value, struct cairn_error *err);

/* A blob is damaged, or lost. */
int scrub_note_blob(struct scrub_run *run, const struct digest *blob, const char *problem,
                    const json_t *tags, struct cairn_error *err);

/* -- Manifests, index objects, tags (scrub_meta.c) -------------------------------------------- */

int scrub_manifest(struct scrub_run *run, const char *repo, const struct digest *manifest,
                   struct cairn_error *err);
int scrub_manifests(struct scrub_run *run, struct cairn_error *err);
/* Behind them: is every blob there that they list? */
int scrub_lost(struct scrub_run *run, struct cairn_error *err);
int scrub_index(struct scrub_run *run, struct cairn_error *err);
/* The tags of disks that need a blob, as an array of `repo:tag`; ret_needed: some repository may
 * see it. */
int scrub_tags_of_blob(struct store *store, const struct digest *blob, json_t **ret_tags,
                       bool *ret_needed, struct cairn_error *err);

#endif
