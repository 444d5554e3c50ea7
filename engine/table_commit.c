/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Committing a batch of table changes: the order of writes, as data.
 *
 * A commit keeps a set of the kinds it has written since the file was last synchronised.  Before
 * it writes pages of a kind that comes after one of the set, it synchronises.  So there is exactly
 * one fdatasync where one thing depends on another, and none where nothing does; and a kind gets
 * its place in the order by its line in table_after, not by who calls what when.
 */
#include <string.h>

#include "cleanup.h"
#include "table_cache_internal.h"

#define BIT(kind) (1U << (kind))

/* What must be durable before a page of a kind is written. */
static const unsigned table_after[TABLE_KINDS] = {
    /* A refcount that is too high is a leak, never wrong: counts may come any time.  (They are
     * lowered only when a cluster has become free, durably.) */
    [TABLE_REFBLOCK] = 0,
    /* A new block, written whole beforehand, and what has been counted in it since. */
    [TABLE_REFTABLE] = BIT(TABLE_DATA) | BIT(TABLE_REFBLOCK),
    /* The header may point at a new refcount table. */
    [TABLE_HEADER] = BIT(TABLE_DATA) | BIT(TABLE_REFBLOCK) | BIT(TABLE_REFTABLE),
    /* Entries point at data, of clusters that are counted. */
    [TABLE_L2] = BIT(TABLE_DATA) | BIT(TABLE_REFBLOCK) | BIT(TABLE_REFTABLE) | BIT(TABLE_HEADER),
    /* The same, and at L2 tables, which are written whole, as zeros, before they are linked: an L1
     * entry may come before or after the entries of its table. */
    [TABLE_L1] = BIT(TABLE_DATA) | BIT(TABLE_REFBLOCK) | BIT(TABLE_REFTABLE) | BIT(TABLE_HEADER),
};

/* The names of what a commit does for each kind (fault.h). */
static const struct {
    enum fault_point write, sync; /* sync: of what must be durable before */
} table_points[TABLE_KINDS] = {
    [TABLE_REFBLOCK] = {FAULT_COMMIT_REFBLOCK, FAULT_NONE},
    [TABLE_REFTABLE] = {FAULT_COMMIT_REFTABLE, FAULT_SYNC_BEFORE_REFTABLE},
    [TABLE_HEADER] = {FAULT_COMMIT_HEADER, FAULT_SYNC_BEFORE_HEADER},
    [TABLE_L2] = {FAULT_COMMIT_L2, FAULT_SYNC_BEFORE_L2},
    [TABLE_L1] = {FAULT_COMMIT_L1, FAULT_SYNC_BEFORE_L1},
};

#define FREES_MAX 65536 /* host ranges waiting for a commit: 1 MiB of memory */

/* -- Frees ------------------------------------------------------------------------------------- */

static int reserve(struct table_batch *batch, size_t nr)
{
    size_t max = batch->max_frees ? batch->max_frees : 64;
    struct table_freed *frees;

    if (batch->max_frees - batch->nr_frees >= nr)
        return CAIRN_OK;
    while (max - batch->nr_frees < nr)
        max *= 2;
    frees = reallocarray(batch->frees, max, sizeof(*frees));
    if (!frees)
        return CAIRN_E_NO_MEMORY;
    batch->frees = frees;
    batch->max_frees = max;
    return CAIRN_OK;
}

int table_reserve_frees_locked(struct table_cache *c, size_t nr, struct cairn_error *err)
{
    return reserve(&c->batch[c->open], nr) ? error_no_memory(err, "a list of freed clusters")
                                           : CAIRN_OK;
}

void table_free_locked(struct table_cache *c, uint64_t host_off, uint64_t len)
{
    struct table_batch *batch = &c->batch[c->open];
    struct table_freed *last = batch->nr_frees > 0 ? &batch->frees[batch->nr_frees - 1] : NULL;

    if (last && last->host_off + last->len == host_off)
        last->len += len;
    else
        batch->frees[batch->nr_frees++] = (struct table_freed){host_off, len};
}

bool table_frees_pressing_locked(const struct table_cache *c)
{
    return c->batch[c->open].nr_frees >= FREES_MAX;
}

/* The batch is durable: hand its host clusters over, holes punched first, for once they are free
 * they may hold data again at any time. */
static int release_frees_locked(struct table_cache *c, struct table_batch *batch,
                                struct cairn_error *err)
{
    int result = CAIRN_OK;

    for (size_t i = 0; i < batch->nr_frees; i++) {
        const struct table_freed *f = &batch->frees[i];
        int rc;

        pthread_mutex_unlock(c->lock);
        hostfile_punch(FAULT_AT(c->file, FAULT_PUNCH), f->len, f->host_off);
        pthread_mutex_lock(c->lock);
        rc = c->freed(c->freed_ctx, f->host_off, f->len, result ? NULL : err);
        if (!result)
            result = rc; /* what could not be counted down is leaked: never wrong */
    }
    batch->nr_frees = 0;
    return result;
}

/* -- Commit ------------------------------------------------------------------------------------ */

static int sync_locked(struct table_cache *c, unsigned *unsynced, enum fault_point point,
                       struct cairn_error *err)
{
    int rc;

    if (c->data_written)
        *unsynced |= BIT(TABLE_DATA);
    c->data_written = false;
    pthread_mutex_unlock(c->lock);
    rc = hostfile_sync(FAULT_AT(c->file, point), err);
    pthread_mutex_lock(c->lock);
    c->nr_syncs++;
    if (rc) {
        c->broken = true;
        return rc;
    }
    *unsynced = 0;
    return CAIRN_OK;
}

/* Write the first page of a list.  It stays on the list, and so in memory, until it is written. */
static int write_page_locked(struct table_cache *c, unsigned closed, struct table_page *page,
                             struct cairn_error *err)
{
    uint8_t bytes[TABLE_PAGE_SIZE];
    int rc;

    memcpy(bytes, page->frozen ? page->frozen : page->bytes, sizeof(bytes));
    page->pins++;
    pthread_mutex_unlock(c->lock);
    rc = hostfile_pwrite(FAULT_AT(c->file, table_points[page->kind].write), bytes, sizeof(bytes),
                         page->host_off, err);
    pthread_mutex_lock(c->lock);
    if (!rc && page->dirty[closed])
        table_clean_locked(c, page, closed);
    table_put_locked(c, page);
    return rc;
}

static int write_kind_locked(struct table_cache *c, unsigned closed, enum table_kind kind,
                             unsigned *unsynced, struct cairn_error *err)
{
    struct table_page_list *list = &c->batch[closed].dirty[kind];
    struct table_page *page;

    if (TAILQ_EMPTY(list))
        return CAIRN_OK;
    if (*unsynced & table_after[kind]) {
        int rc = sync_locked(c, unsynced, table_points[kind].sync, err);

        if (rc)
            return rc;
    }
    while ((page = TAILQ_FIRST(list))) {
        int rc;

        *unsynced |= BIT(kind);
        rc = write_page_locked(c, closed, page, err);
        if (rc)
            return rc;
    }
    return CAIRN_OK;
}

/* The closed batch could not be written: what is left of it belongs to the open one again. */
static void reopen_locked(struct table_cache *c, unsigned closed)
{
    struct table_batch *from = &c->batch[closed];
    struct table_batch *to = &c->batch[c->open];

    for (unsigned kind = 0; kind < TABLE_KINDS; kind++) {
        struct table_page *page;

        while ((page = TAILQ_FIRST(&from->dirty[kind]))) {
            if (!page->dirty[c->open])
                table_soil_locked(c, page, c->open);
            table_clean_locked(c, page, closed);
        }
    }
    /* Should there be no memory for them, they are leaked: never wrong. */
    if (from->nr_frees > 0 && reserve(to, from->nr_frees) == CAIRN_OK) {
        memcpy(to->frees + to->nr_frees, from->frees, from->nr_frees * sizeof(*from->frees));
        to->nr_frees += from->nr_frees;
    }
    from->nr_frees = 0;
}

static int commit_locked(struct table_cache *c, struct cairn_error *err)
{
    unsigned closed = c->open;
    unsigned unsynced = c->data_written ? BIT(TABLE_DATA) : 0;
    int rc = CAIRN_OK;

    c->open = !closed;
    c->data_written = false;
    for (enum table_kind kind = TABLE_REFBLOCK; !rc && kind < TABLE_KINDS; kind++)
        rc = write_kind_locked(c, closed, kind, &unsynced, err);
    if (!rc && unsynced)
        rc = sync_locked(c, &unsynced, FAULT_SYNC_LAST, err);
    if (!rc)
        return release_frees_locked(c, &c->batch[closed], err);
    if (unsynced)
        c->data_written = true; /* pages among it: a later commit must not build on them unsynced */
    reopen_locked(c, closed);
    return rc;
}

static void lead_commit_locked(struct table_cache *c)
{
    struct cairn_error err;
    int rc;

    c->committing = true;
    c->committer = pthread_self();
    c->nr_begun++;
    rc = commit_locked(c, &err);
    c->committing = false;
    c->nr_done = c->nr_begun;
    if (rc) {
        c->last_failed = c->nr_done;
        c->last_error = err;
    }
    pthread_cond_broadcast(&c->committed);
}

bool table_dirty_locked(const struct table_cache *c)
{
    const struct table_batch *batch = &c->batch[c->open];

    return c->data_written || batch->nr_dirty > 0 || batch->nr_frees > 0;
}

int table_flush_locked(struct table_cache *c, struct cairn_error *err)
{
    uint64_t wanted = c->nr_begun + (table_dirty_locked(c) ? 1 : 0);
    int rc = table_check_locked(c, err);

    if (rc || c->nr_done >= wanted)
        return rc;
    while (c->nr_done < wanted && !c->broken) {
        if (c->committing)
            pthread_cond_wait(&c->committed, c->lock);
        else
            lead_commit_locked(c);
    }
    if (c->last_failed < wanted)
        return table_check_locked(c, err);
    if (err)
        *err = c->last_error;
    return c->last_error.code;
}
