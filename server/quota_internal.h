/* SPDX-License-Identifier: Apache-2.0 */
/* Inside quotas: the unfinished uploads of all repositories (quota_uploads.c), for quota.c. */
#ifndef SERVER_QUOTA_INTERNAL_H
#define SERVER_QUOTA_INTERNAL_H

#include "quota.h"

/* Counts of the store's unfinished uploads by repository, with what began here since. */
struct upload_counts;

int upload_counts_new(struct store *store, struct upload_counts **ret_counts,
                      struct cairn_error *err);
void upload_counts_free(struct upload_counts *counts);
CLEANUP_DEFINE(struct upload_counts *, upload_counts_free)

/* Of one repository, from a count at most max_age_us old. */
int upload_counts_get(struct upload_counts *counts, const char *repo, uint64_t max_age_us,
                      uint64_t *ret_nr, uint64_t *ret_bytes, struct cairn_error *err);
/* One more has begun. */
int upload_counts_add(struct upload_counts *counts, const char *repo, struct cairn_error *err);

#endif
