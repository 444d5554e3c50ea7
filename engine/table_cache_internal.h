/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the table cache: table_cache.c keeps pages, table_commit.c writes batches.
 */
#ifndef ENGINE_TABLE_CACHE_INTERNAL_H
#define ENGINE_TABLE_CACHE_INTERNAL_H

#include <sys/queue.h>

#include "table_cache.h"

/*
 * A page is loading, or it is dirty (in one batch or both), or pinned, or evictable; only evictable
 * pages are on the list of that name, so finding one to reuse never takes a search.
 */
struct table_page {
    LIST_ENTRY(table_page) hash_link;
    TAILQ_ENTRY(table_page) evictable_link;
    TAILQ_ENTRY(table_page) dirty_link[2]; /* one per batch */
    bool dirty[2];
    bool loading;
    bool forgotten; /* not in the hash any more; goes with its last pin */
    enum table_kind kind;
    unsigned pins;
    uint64_t host_off;
    uint8_t *frozen; /* the bytes that the closed batch has to write, if they have changed since */
    uint8_t bytes[TABLE_PAGE_SIZE];
};

TAILQ_HEAD(table_page_list, table_page);

struct table_freed {
    uint64_t host_off, len;
};

struct table_batch {
    struct table_page_list dirty[TABLE_KINDS];
    size_t nr_dirty;
    struct table_freed *frees;
    size_t nr_frees, max_frees;
};

struct table_cache {
    struct hostfile *file;
    pthread_mutex_t *lock; /* guards all that follows */
    pthread_cond_t loaded; /* a page has been loaded, or could not be */
    pthread_cond_t committed;

    LIST_HEAD(, table_page) * buckets;
    size_t nr_buckets;                /* a power of two */
    struct table_page_list evictable; /* least recently used first */
    size_t nr_pages, max_pages;
    size_t nr_frozen;
    size_t nr_dirty; /* pages dirty in either batch */

    struct table_batch batch[2];
    unsigned open;     /* the batch that takes changes */
    bool data_written; /* beside the cache, since the last fdatasync began */
    bool committing;
    pthread_t committer;
    uint64_t nr_begun, nr_done; /* commits */
    uint64_t last_failed;       /* number of the last commit that failed, from 1 */
    struct cairn_error last_error;
    bool broken; /* an fdatasync failed, as last_error says */
    uint64_t nr_syncs;
    table_freed_fn freed;
    void *freed_ctx;
};

/* A page that has just become clean, or lost a pin: let it be evictable, or go, if it may. */
void table_settle_locked(struct table_cache *c, struct table_page *page);
/* Take a page out of a batch. */
void table_clean_locked(struct table_cache *c, struct table_page *page, unsigned batch);
void table_soil_locked(struct table_cache *c, struct table_page *page, unsigned batch);

#endif
