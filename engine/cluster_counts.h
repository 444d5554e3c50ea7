/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A number and a few marks for each host cluster of a file, in pages that exist only where
 * something was counted.  Internal to the engine; part of the check (qcow2_check.h).
 *
 * Memory: 5 bytes a cluster in pages of 1,024 clusters, and a pointer a page; never more than
 * CLUSTER_COUNTS_BYTES_MAX, above which a count fails with CAIRN_E_LIMIT.
 */
#ifndef ENGINE_CLUSTER_COUNTS_H
#define ENGINE_CLUSTER_COUNTS_H

#include "checked.h"
#include "error.h"

#define CLUSTER_PAGE_BITS 10
#define CLUSTER_PAGE_SIZE (1U << CLUSTER_PAGE_BITS)

/* Enough for 13 TiB of 64 KiB clusters, all in use. */
#define CLUSTER_COUNTS_BYTES_MAX (UINT64_C(1) << 30)

struct cluster_page {
    uint32_t count[CLUSTER_PAGE_SIZE];
    uint8_t mark[CLUSTER_PAGE_SIZE];
};

struct cluster_counts {
    struct cluster_page **pages; /* NULL: all zero */
    uint64_t nr_pages;
    uint64_t bytes; /* in pages */
};

int cluster_counts_init(struct cluster_counts *counts, uint64_t nr_clusters,
                        struct cairn_error *err);
void cluster_counts_release(struct cluster_counts *counts);

/* The page of a cluster, made if need be.  cluster is below the number given to init. */
int cluster_counts_page(struct cluster_counts *counts, uint64_t cluster,
                        struct cluster_page **ret_page, struct cairn_error *err);

static inline const struct cluster_page *cluster_counts_find(const struct cluster_counts *counts,
                                                             uint64_t cluster)
{
    uint64_t i = cluster >> CLUSTER_PAGE_BITS;

    return i < counts->nr_pages ? counts->pages[i] : NULL;
}

static inline uint32_t cluster_counts_get(const struct cluster_counts *counts, uint64_t cluster)
{
    const struct cluster_page *page = cluster_counts_find(counts, cluster);

    return page ? page->count[cluster % CLUSTER_PAGE_SIZE] : 0;
}

static inline uint8_t cluster_counts_mark(const struct cluster_counts *counts, uint64_t cluster)
{
    const struct cluster_page *page = cluster_counts_find(counts, cluster);

    return page ? page->mark[cluster % CLUSTER_PAGE_SIZE] : 0;
}

#endif
