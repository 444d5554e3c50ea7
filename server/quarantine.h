/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quarantine: blobs whose bytes are not what their digest says.
 *
 * A damaged blob is moved aside, so that no server gives its bytes to anybody any more, and a push
 * of the same blob takes its place.  quarantine/<hex>.json says when and why, quarantine/<hex>.blob
 * has the bytes, for an operator.
 *
 * Other servers notice within 10 seconds, and drop what they still have open or decompressed.  So
 * that they do however soon the blob is healed, the record stays for an hour after that.  Blobs
 * that were collected as garbage are closed then, too: only now does their space come back.
 */
#ifndef SERVER_QUARANTINE_H
#define SERVER_QUARANTINE_H

#include <jansson.h>

#include "digest.h"
#include "store.h"

struct metrics;
struct quarantine;

struct quarantine_forget {
    /* A blob is, or was, damaged: keep nothing of its bytes.  Called from any thread. */
    void (*forget)(void *ctx, const struct digest *blob);
    /* Any server may have deleted blobs since the last time: let go of those.  May be NULL. */
    void (*forget_gone)(void *ctx);
    void *ctx;
};

/* With a thread that looks what other servers have found. */
int quarantine_new(struct store *store, const struct quarantine_forget *forget,
                   struct quarantine **ret_quarantine, struct cairn_error *err);
void quarantine_free(struct quarantine *q);
CLEANUP_DEFINE(struct quarantine *, quarantine_free)

/* Take a blob out of service.  problem says what is wrong with it, tags (borrowed) is an array of
 * the refs that it touches. */
int quarantine_add(struct quarantine *q, const struct digest *blob, const char *problem,
                   const json_t *tags, struct cairn_error *err);
/* Put back what turned out to be right, unless there is another by now; and end the record. */
int quarantine_put_back(struct quarantine *q, const struct digest *blob, struct cairn_error *err);

/* Is the blob in quarantine, with nothing in its place?  CAIRN_E_NOT_FOUND and why, else OK. */
int quarantine_check(struct store *store, const struct digest *blob, struct cairn_error *err);
/* The blob is in its place again, or nobody needs it any more: end its record, if there is one. */
int quarantine_end(struct store *store, const struct digest *blob, struct cairn_error *err);
/* Give a record other tags. */
int quarantine_set_tags(struct store *store, const struct digest *blob, const json_t *tags,
                        struct cairn_error *err);
/* The records of all that is damaged, an array of {digest, problem, found, tags}. */
int quarantine_list(struct store *store, json_t **ret_records, struct cairn_error *err);

/* A scrub of the whole store has ended: for the figures of all servers. */
int quarantine_note_scrubbed(struct quarantine *q, struct cairn_error *err);

/* The key of the bytes. */
#define QUARANTINE_KEY_MAX 96
char *quarantine_blob_key(const struct digest *blob, char key[QUARANTINE_KEY_MAX]);

/* For /metrics; q is a struct quarantine. */
void quarantine_write_metrics(void *q, struct metrics *m);

#endif
