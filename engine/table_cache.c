/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pages of the table cache: finding, loading, pinning, changing, evicting.
 *
 * The bound counts pages and frozen copies.  It is kept by reusing evictable pages and, where
 * there are none, by a commit, which makes dirty pages evictable.  It is passed only by pages that
 * operations hold at that instant (a few for each thread), and these go when they are put.  When
 * commits fail and dirty pages fill the bound, reads still go on and changes are refused.
 */
#include "table_cache_internal.h"

#include <inttypes.h>
#include <string.h>

#include "cleanup.h"

#define MIN_PAGES 64

int table_cache_new(struct hostfile *file, pthread_mutex_t *lock, size_t max_bytes,
                    struct table_cache **ret_cache, struct cairn_error *err)
{
    struct table_cache *c = calloc(1, sizeof(*c));

    if (!c)
        return error_no_memory(err, "a table cache");
    c->file = file;
    c->lock = lock;
    c->max_pages = max_bytes / sizeof(struct table_page);
    if (c->max_pages < MIN_PAGES)
        c->max_pages = MIN_PAGES;
    c->nr_buckets = 64;
    while (c->nr_buckets < c->max_pages && c->nr_buckets < SIZE_MAX / 2 / sizeof(*c->buckets))
        c->nr_buckets *= 2;
    c->buckets = calloc(c->nr_buckets, sizeof(*c->buckets));
    if (!c->buckets) {
        free(c);
        return error_no_memory(err, "a table cache");
    }
    TAILQ_INIT(&c->evictable);
    for (unsigned b = 0; b < 2; b++)
        for (unsigned kind = 0; kind < TABLE_KINDS; kind++)
            TAILQ_INIT(&c->batch[b].dirty[kind]);
    pthread_cond_init(&c->loaded, NULL);
    pthread_cond_init(&c->committed, NULL);
    *ret_cache = c;
    return CAIRN_OK;
}

void table_cache_on_freed(struct table_cache *c, table_freed_fn freed, void *ctx)
{
    c->freed = freed;
    c->freed_ctx = ctx;
}

static void free_page(struct table_cache *c, struct table_page *page)
{
    if (page->frozen)
        c->nr_frozen--;
    free(page->frozen);
    free(page);
    c->nr_pages--;
}

void table_cache_free(struct table_cache *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->nr_buckets; i++) {
        struct table_page *page;

        while ((page = LIST_FIRST(&c->buckets[i]))) {
            LIST_REMOVE(page, hash_link);
            free_page(c, page);
        }
    }
    for (unsigned b = 0; b < 2; b++)
        free(c->batch[b].frees);
    pthread_cond_destroy(&c->loaded);
    pthread_cond_destroy(&c->committed);
    free(c->buckets);
    free(c);
}

/* -- Finding ----------------------------------------------------------------------------------- */

static size_t bucket_of(const struct table_cache *c, uint64_t host_off)
{
    /* Fibonacci hashing: tables lie whole clusters apart, so the low bits alone would collide. */
    return (size_t)(((host_off / TABLE_PAGE_SIZE) * UINT64_C(0x9e3779b97f4a7c15)) >> 32) &
           (c->nr_buckets - 1);
}

static struct table_page *find_locked(const struct table_cache *c, uint64_t host_off)
{
    struct table_page *page;

    LIST_FOREACH(page, &c->buckets[bucket_of(c, host_off)], hash_link)
    {
        if (page->host_off == host_off)
            return page;
    }
    return NULL;
}

static bool is_dirty(const struct table_page *page)
{
    return page->dirty[0] || page->dirty[1];
}

static bool is_evictable(const struct table_page *page)
{
    return page->pins == 0 && !is_dirty(page);
}

static void pin_locked(struct table_cache *c, struct table_page *page)
{
    if (is_evictable(page))
        TAILQ_REMOVE(&c->evictable, page, evictable_link);
    page->pins++;
}

void table_settle_locked(struct table_cache *c, struct table_page *page)
{
    if (!is_evictable(page))
        return;
    if (page->forgotten) {
        free_page(c, page);
    } else if (c->nr_pages + c->nr_frozen > c->max_pages) {
        LIST_REMOVE(page, hash_link);
        free_page(c, page);
    } else {
        TAILQ_INSERT_TAIL(&c->evictable, page, evictable_link);
    }
}

void table_put_locked(struct table_cache *c, struct table_page *page)
{
    if (!page)
        return;
    page->pins--;
    table_settle_locked(c, page);
}

/* -- Loading ----------------------------------------------------------------------------------- */

static struct table_page *evict_locked(struct table_cache *c)
{
    struct table_page *page = TAILQ_FIRST(&c->evictable);

    if (!page)
        return NULL;
    TAILQ_REMOVE(&c->evictable, page, evictable_link);
    LIST_REMOVE(page, hash_link);
    return page;
}

static bool may_commit_locked(const struct table_cache *c)
{
    return !c->broken && !(c->committing && pthread_equal(c->committer, pthread_self()));
}

/* A page's memory, not in the hash.  May let go of the lock. */
static struct table_page *take_memory_locked(struct table_cache *c)
{
    struct table_page *page;

    if (c->nr_pages + c->nr_frozen >= c->max_pages) {
        page = evict_locked(c);
        if (!page && may_commit_locked(c)) {
            /* Should it fail, this page passes the bound and goes when it is put. */
            table_flush_locked(c, NULL);
            page = evict_locked(c);
        }
        if (page)
            return page;
    }
    page = malloc(sizeof(*page));
    if (page)
        c->nr_pages++;
    return page;
}

static void drop_memory_locked(struct table_cache *c, struct table_page *page)
{
    page->frozen = NULL;
    free_page(c, page);
}

/* Take a page out of the hash; it goes with its last pin. */
static void unhash_locked(struct table_cache *c, struct table_page *page)
{
    if (is_evictable(page))
        TAILQ_REMOVE(&c->evictable, page, evictable_link);
    LIST_REMOVE(page, hash_link);
    page->forgotten = true;
    for (unsigned b = 0; b < 2; b++) {
        if (page->dirty[b])
            table_clean_locked(c, page, b);
    }
    table_settle_locked(c, page);
}

/* Load a page that is not there; *ret_page stays NULL if somebody else was faster. */
static int load_locked(struct table_cache *c, enum table_kind kind, uint64_t host_off,
                       struct table_page **ret_page, struct cairn_error *err)
{
    struct table_page *page = take_memory_locked(c);
    int rc;

    if (!page)
        return error_no_memory(err, "a table page");
    if (find_locked(c, host_off)) {
        drop_memory_locked(c, page);
        return CAIRN_OK;
    }
    memset(page, 0, offsetof(struct table_page, bytes));
    page->kind = kind;
    page->host_off = host_off;
    page->pins = 1;
    page->loading = true;
    LIST_INSERT_HEAD(&c->buckets[bucket_of(c, host_off)], page, hash_link);

    pthread_mutex_unlock(c->lock);
    rc = hostfile_pread(FAULT_AT(c->file, FAULT_TABLE_LOAD), page->bytes, TABLE_PAGE_SIZE, host_off,
                        err);
    pthread_mutex_lock(c->lock);

    page->loading = false;
    pthread_cond_broadcast(&c->loaded);
    if (rc) {
        if (!page->forgotten) {
            LIST_REMOVE(page, hash_link);
            page->forgotten = true; /* goes with its last pin; nobody has changed it */
        }
        table_put_locked(c, page);
        return rc;
    }
    *ret_page = page;
    return CAIRN_OK;
}

int table_get_locked(struct table_cache *c, enum table_kind kind, uint64_t host_off,
                     struct table_page **ret_page, struct cairn_error *err)
{
    for (;;) {
        struct table_page *page = find_locked(c, host_off);

        if (!page) {
            int rc = load_locked(c, kind, host_off, &page, err);

            if (rc)
                return rc;
            if (!page)
                continue;
        } else {
            pin_locked(c, page);
            while (page->loading)
                pthread_cond_wait(&c->loaded, c->lock);
        }
        if (page->forgotten) { /* it could not be loaded, or is something else now: look again */
            table_put_locked(c, page);
            continue;
        }
        if (page->kind != kind) {
            table_put_locked(c, page);
            return error_set(err, CAIRN_E_CORRUPT, "%s: two tables overlap at 0x%" PRIx64,
                             c->file->name, host_off);
        }
        *ret_page = page;
        return CAIRN_OK;
    }
}

void table_forget_locked(struct table_cache *c, uint64_t host_off, uint64_t len)
{
    for (uint64_t off = host_off; off - host_off < len; off += TABLE_PAGE_SIZE) {
        struct table_page *page = find_locked(c, off);

        if (page)
            unhash_locked(c, page);
    }
}

/* -- Changing ---------------------------------------------------------------------------------- */

const uint8_t *table_bytes_locked(const struct table_page *page)
{
    return page->bytes;
}

void table_soil_locked(struct table_cache *c, struct table_page *page, unsigned batch)
{
    if (is_evictable(page))
        TAILQ_REMOVE(&c->evictable, page, evictable_link);
    if (!is_dirty(page))
        c->nr_dirty++;
    page->dirty[batch] = true;
    TAILQ_INSERT_TAIL(&c->batch[batch].dirty[page->kind], page, dirty_link[batch]);
    c->batch[batch].nr_dirty++;
}

/* The caller settles the page. */
void table_clean_locked(struct table_cache *c, struct table_page *page, unsigned batch)
{
    TAILQ_REMOVE(&c->batch[batch].dirty[page->kind], page, dirty_link[batch]);
    c->batch[batch].nr_dirty--;
    page->dirty[batch] = false;
    if (!is_dirty(page))
        c->nr_dirty--;
    if (batch != c->open && page->frozen) {
        free(page->frozen);
        page->frozen = NULL;
        c->nr_frozen--;
    }
}

/* Keep what the closed batch has to write. */
static int freeze_locked(struct table_cache *c, struct table_page *page, struct cairn_error *err)
{
    page->frozen = malloc(TABLE_PAGE_SIZE);
    if (!page->frozen)
        return error_no_memory(err, "a table page");
    memcpy(page->frozen, page->bytes, TABLE_PAGE_SIZE);
    c->nr_frozen++;
    return CAIRN_OK;
}

int table_modify_locked(struct table_cache *c, struct table_page *page, uint8_t **ret_bytes,
                        struct cairn_error *err)
{
    int rc = table_check_locked(c, err);

    if (rc)
        return rc;
    if (page->forgotten)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: the table at 0x%" PRIx64 " is in a free cluster", c->file->name,
                         page->host_off);
    if (!is_dirty(page) && c->nr_dirty >= c->max_pages && c->last_failed > 0 &&
        c->last_failed == c->nr_done) {
        if (err)
            *err = c->last_error;
        return error_prefix(err, c->last_error.code, "changes wait for a flush that failed");
    }
    rc = hostfile_change(c->file, TABLE_PAGE_SIZE, page->host_off, err);
    if (rc)
        return rc;
    if (page->dirty[!c->open] && !page->frozen) {
        rc = freeze_locked(c, page, err);
        if (rc)
            return rc;
    }
    if (!page->dirty[c->open])
        table_soil_locked(c, page, c->open);
    *ret_bytes = page->bytes;
    return CAIRN_OK;
}

void table_note_data_locked(struct table_cache *c)
{
    c->data_written = true;
}

int table_check_locked(const struct table_cache *c, struct cairn_error *err)
{
    if (!c->broken)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_IO, "no more writes after a failed flush: %s",
                     c->last_error.message);
}

void table_get_stats_locked(const struct table_cache *c, struct table_stats *ret_stats)
{
    *ret_stats = (struct table_stats){
        .bytes = c->nr_pages * sizeof(struct table_page) + c->nr_frozen * TABLE_PAGE_SIZE +
                 c->nr_buckets * sizeof(*c->buckets),
        .nr_syncs = c->nr_syncs,
        .nr_commits = c->nr_done,
    };
}
