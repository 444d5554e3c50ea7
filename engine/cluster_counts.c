/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages of counts.  A sparse file of terabytes with a few tables costs a directory of pointers and
 * the pages that the tables name, not an array of its size.
 */
#include "cluster_counts.h"

#include <inttypes.h>
#include <stdlib.h>

int cluster_counts_init(struct cluster_counts *counts, uint64_t nr_clusters,
                        struct cairn_error *err)
{
    uint64_t nr_pages = (nr_clusters >> CLUSTER_PAGE_BITS) + 1;

    *counts = (struct cluster_counts){0};
    counts->pages = calloc(nr_pages, sizeof(*counts->pages));
    if (!counts->pages)
        return error_no_memory(err, "reference counts");
    counts->nr_pages = nr_pages;
    return CAIRN_OK;
}

void cluster_counts_release(struct cluster_counts *counts)
{
    for (uint64_t i = 0; i < counts->nr_pages; i++)
        free(counts->pages[i]);
    free(counts->pages);
    *counts = (struct cluster_counts){0};
}

int cluster_counts_page(struct cluster_counts *counts, uint64_t cluster,
                        struct cluster_page **ret_page, struct cairn_error *err)
{
    struct cluster_page **page = &counts->pages[cluster >> CLUSTER_PAGE_BITS];

    if (!*page) {
        if (counts->bytes > CLUSTER_COUNTS_BYTES_MAX - sizeof(**page))
            return error_set(err, CAIRN_E_LIMIT,
                             "reference counts need more memory than the limit of %" PRIu64
                             " bytes",
                             CLUSTER_COUNTS_BYTES_MAX);
        *page = calloc(1, sizeof(**page));
        if (!*page)
            return error_no_memory(err, "reference counts");
        counts->bytes += sizeof(**page);
    }
    *ret_page = *page;
    return CAIRN_OK;
}
