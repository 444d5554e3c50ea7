/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quota: how much a repository may hold, and how much of it may be under way.
 *
 * What counts is what a repository's own links (repos/<name>/_blobs) add up to, so a blob that
 * several repositories show counts in each, and a link that is removed gives its bytes back.  The
 * store is the account: links are counted there, and what this process remembers is only how large
 * each was, and a sum for some seconds.  So there is nothing that could drift, and nothing to
 * repair.
 *
 * Three questions are asked, in this order.  May another upload begin?  May an upload grow, by so
 * much where that is known?  Both are answered from sums that may be QUOTA_FRESH_US old, and "no"
 * only from a new one.  Last, may this link be made?  That is counted anew each time, together with
 * the links that other requests of this process are about to make.  Servers do not know of each
 * other's: two may exceed a quota by the blobs that both are linking at the same moment.
 */
#ifndef SERVER_QUOTA_H
#define SERVER_QUOTA_H

#include "digest.h"
#include "quota_rules.h"
#include "store.h"

#define QUOTA_FRESH_US (10 * UINT64_C(1000000))

struct quota;

struct quota_options {
    const char *rules;       /* quota_rules.h; NULL: none */
    uint64_t max_uploads;    /* unfinished ones of a repository; 0: no limit */
    uint64_t max_unfinished; /* their bytes; 0: no limit */
};

int quota_new(struct store *store, const struct quota_options *options, struct quota **ret_quota,
              struct cairn_error *err);
void quota_free(struct quota *quota);
CLEANUP_DEFINE(struct quota *, quota_free)

/* May the repository have one more upload, of size bytes (0: not known)?  CAIRN_E_DENIED if not. */
int quota_begin_upload(struct quota *quota, const char *repo, uint64_t size,
                       struct cairn_error *err);

/* May an upload of have bytes get more of them (0: not known)?  CAIRN_E_DENIED if not; else
 * *ret_room is the size that it may reach. */
int quota_grow_upload(struct quota *quota, const char *repo, uint64_t have, uint64_t more,
                      uint64_t *ret_room, struct cairn_error *err);

/* A link that is about to be made. */
struct quota_charge {
    struct quota_charge *next;
    const char *repo; /* borrowed; NULL: not counted */
    struct digest digest;
    uint64_t size;
};

/* May the repository get a link to the blob?  CAIRN_E_DENIED if not.  Else the caller makes the
 * link, or fails to, and then settles the charge, which must not move until then. */
int quota_charge(struct quota *quota, const char *repo, const struct digest *d, uint64_t size,
                 struct quota_charge *charge, struct cairn_error *err);
void quota_settle(struct quota *quota, struct quota_charge *charge, bool linked);

struct quota_usage {
    uint64_t used, allowed; /* bytes; QUOTA_NONE: no limit */
    uint64_t nr_blobs;
    uint64_t nr_uploads, upload_bytes;
};
/* At most QUOTA_FRESH_US old. */
int quota_usage(struct quota *quota, const char *repo, struct quota_usage *ret_usage,
                struct cairn_error *err);

struct metrics;
void quota_write_metrics(void *quota, struct metrics *m); /* as a metrics_source */

#endif
