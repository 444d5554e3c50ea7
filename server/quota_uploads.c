/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many unfinished uploads each repository has.  The store lists them all at once, so one list
 * serves all repositories: who opens uploads in many repositories does not make us list for each.
 */
#include "quota_internal.h"

#include <pthread.h>
#include <string.h>

#include "clock.h"

struct entry {
    char *repo;
    uint64_t nr, bytes;
};

struct table { /* sorted by repo once it is complete */
    struct entry *entries;
    size_t nr, size;
    uint64_t counted_us;
};

struct upload_counts {
    struct store *store;
    pthread_mutex_t lock; /* protects all below */
    struct table table;
};

static void table_release(struct table *table)
{
    for (size_t i = 0; i < table->nr; i++)
        free(table->entries[i].repo);
    free(table->entries);
    *table = (struct table){0};
}

/* Put a new entry at position i. */
static int table_insert(struct table *table, size_t i, const char *repo, uint64_t bytes,
                        struct cairn_error *err)
{
    char *name = strdup(repo);

    if (name && table->nr == table->size) {
        size_t size = table->size ? 2 * table->size : 64;
        struct entry *entries = realloc(table->entries, size * sizeof(*entries));

        if (entries) {
            table->entries = entries;
            table->size = size;
        }
    }
    if (!name || table->nr == table->size) {
        free(name);
        return error_no_memory(err, "counts of uploads");
    }
    memmove(&table->entries[i + 1], &table->entries[i],
            (table->nr - i) * sizeof(table->entries[0]));
    table->entries[i] = (struct entry){.repo = name, .nr = 1, .bytes = bytes};
    table->nr++;
    return CAIRN_OK;
}

static int add_upload(void *arg, const struct store_upload *upload, struct cairn_error *err)
{
    struct table *table = arg;

    return table_insert(table, table->nr, upload->owner, upload->size, err);
}

static int by_repo(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->repo, ((const struct entry *)b)->repo);
}

/* One entry per repository. */
static void table_sort(struct table *table)
{
    size_t kept = 0;

    if (table->nr > 0)
        qsort(table->entries, table->nr, sizeof(table->entries[0]), by_repo);
    for (size_t i = 0; i < table->nr; i++) {
        struct entry *entry = &table->entries[i];

        if (kept > 0 && by_repo(&table->entries[kept - 1], entry) == 0) {
            table->entries[kept - 1].nr++;
            table->entries[kept - 1].bytes += entry->bytes;
            free(entry->repo);
        } else {
            table->entries[kept++] = *entry;
        }
    }
    table->nr = kept;
}

/* The first entry that is not before repo. */
static size_t table_find(const struct table *table, const char *repo)
{
    size_t low = 0, high = table->nr;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (strcmp(table->entries[middle].repo, repo) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct entry *table_lookup(const struct table *table, const char *repo)
{
    size_t i = table_find(table, repo);

    return i < table->nr && strcmp(table->entries[i].repo, repo) == 0 ? &table->entries[i] : NULL;
}

/* -- The counts ------------------------------------------------------------------------------- */

int upload_counts_new(struct store *store, struct upload_counts **ret_counts,
                      struct cairn_error *err)
{
    struct upload_counts *counts = calloc(1, sizeof(*counts));

    if (!counts)
        return error_no_memory(err, "counts of uploads");
    counts->store = store;
    pthread_mutex_init(&counts->lock, NULL);
    *ret_counts = counts;
    return CAIRN_OK;
}

void upload_counts_free(struct upload_counts *counts)
{
    if (!counts)
        return;
    table_release(&counts->table);
    pthread_mutex_destroy(&counts->lock);
    free(counts);
}

static bool is_fresh(struct upload_counts *counts, uint64_t max_age_us)
{
    SCOPED_LOCK(&counts->lock);
    return counts->table.counted_us && clock_now_us() - counts->table.counted_us < max_age_us;
}

static int recount(struct upload_counts *counts, struct cairn_error *err)
{
    struct table table = {.counted_us = clock_now_us()}, old;
    int r = store_list_uploads(counts->store, add_upload, &table, err);

    if (r) {
        table_release(&table);
        return r;
    }
    table_sort(&table);
    pthread_mutex_lock(&counts->lock);
    old = counts->table;
    counts->table = table;
    pthread_mutex_unlock(&counts->lock);
    table_release(&old);
    return CAIRN_OK;
}

int upload_counts_get(struct upload_counts *counts, const char *repo, uint64_t max_age_us,
                      uint64_t *ret_nr, uint64_t *ret_bytes, struct cairn_error *err)
{
    int r = is_fresh(counts, max_age_us) ? CAIRN_OK : recount(counts, err);
    const struct entry *entry;

    if (r)
        return r;
    SCOPED_LOCK(&counts->lock);
    entry = table_lookup(&counts->table, repo);
    *ret_nr = entry ? entry->nr : 0;
    *ret_bytes = entry ? entry->bytes : 0;
    return CAIRN_OK;
}

int upload_counts_add(struct upload_counts *counts, const char *repo, struct cairn_error *err)
{
    struct entry *entry;

    SCOPED_LOCK(&counts->lock);
    entry = table_lookup(&counts->table, repo);
    if (!entry)
        return table_insert(&counts->table, table_find(&counts->table, repo), repo, 0, err);
    entry->nr++;
    return CAIRN_OK;
}
