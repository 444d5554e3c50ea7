/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocation by refcounts.
 *
 * A count is 0 or 1: images with internal snapshots are not active layers.  A 0 in a page of the
 * cache means free to use now: clusters that tables let go of keep their 1 until that is durable
 * (table_free_locked), so an increment is never in conflict with a decrement, and refcount pages
 * can be written at any time.
 *
 * Growing (the file, a new refcount block, a larger refcount table) is done by one thread at a
 * time, without the lock: `growing` keeps the others from the end of the file, and from nowhere
 * else.  A new block lies in the range that it counts, so covering a cluster never needs another
 * cluster to be covered first.  New tables are written whole before anything points at them.
 */
#include "refcount.h"

#include <inttypes.h>
#include <string.h>

#include "bytes.h"
#include "checked.h"
#include "cleanup.h"
#include "qcow2.h"

#define PAGE_BITS     11 /* counts in one page */
#define PAGE_COUNTS   (1U << PAGE_BITS)
#define FREE_UNKNOWN  UINT16_MAX
#define GROW_BYTES    (UINT64_C(16) << 20) /* of the file at a time: sparse, cut off by trim */
#define SKIP_PAGES    1024 /* of used counts past the end of the file before it is called corrupt */
#define REFCOUNT_SIZE 2

struct refcounts {
    struct table_cache *cache;
    struct hostfile *file;
    pthread_mutex_t *lock; /* guards all that follows */
    pthread_cond_t grown;
    bool growing;
    unsigned cluster_bits;
    uint64_t table_off;
    uint32_t table_clusters;
    uint64_t end;      /* first cluster that was never handed out */
    uint64_t file_end; /* clusters that the file has room for */
    uint16_t *nr_free; /* by page: free clusters below end, or FREE_UNKNOWN */
    size_t nr_pages;
    uint64_t nr_known;     /* free clusters in known pages */
    uint64_t lowest_free;  /* no known page below has any */
    uint64_t next_unknown; /* no page below is unknown */
};

static uint64_t cluster_size(const struct refcounts *r)
{
    return UINT64_C(1) << r->cluster_bits;
}

/* Clusters counted by one block, as a power of two. */
static unsigned block_bits(const struct refcounts *r)
{
    return r->cluster_bits - 1;
}

static uint64_t nr_table_entries(const struct refcounts *r)
{
    return ((uint64_t)r->table_clusters << r->cluster_bits) / QCOW2_REFTABLE_ENTRY_SIZE;
}

/* -- Free counts ------------------------------------------------------------------------------- */

/* Pages for clusters up to nr_clusters; new ones start with nothing free. */
static int reach_pages(struct refcounts *r, uint64_t nr_clusters, struct cairn_error *err)
{
    uint64_t nr = (nr_clusters >> PAGE_BITS) + 1;
    size_t max = r->nr_pages ? r->nr_pages : 64;
    uint16_t *nr_free;

    if (nr <= r->nr_pages)
        return CAIRN_OK;
    while (max < nr)
        max *= 2;
    nr_free = reallocarray(r->nr_free, max, sizeof(*nr_free));
    if (!nr_free)
        return error_no_memory(err, "counts of free clusters");
    memset(nr_free + r->nr_pages, 0, (max - r->nr_pages) * sizeof(*nr_free));
    r->nr_free = nr_free;
    r->nr_pages = max;
    return CAIRN_OK;
}

/*
 * nr_known is the sum of the counts that are known, whatever the blocks say: where two entries of
 * the table name one block, clusters go and come in one page that another was counted in.
 */
static void add_free(struct refcounts *r, uint64_t page_nr, unsigned nr)
{
    if (r->nr_free[page_nr] == FREE_UNKNOWN)
        return;
    nr = (unsigned)min_u64(nr, PAGE_COUNTS - r->nr_free[page_nr]);
    r->nr_free[page_nr] = (uint16_t)(r->nr_free[page_nr] + nr);
    r->nr_known += nr;
    r->lowest_free = min_u64(r->lowest_free, page_nr);
}

static void sub_free(struct refcounts *r, uint64_t page_nr, unsigned nr)
{
    if (r->nr_free[page_nr] == FREE_UNKNOWN)
        return;
    nr = (unsigned)min_u64(nr, r->nr_free[page_nr]);
    r->nr_free[page_nr] = (uint16_t)(r->nr_free[page_nr] - nr);
    r->nr_known -= nr;
}

static int on_freed(void *ctx, uint64_t host_off, uint64_t len, struct cairn_error *err)
{
    return refcount_release_locked(ctx, host_off, len, err);
}

/* More than the largest refcount table can count is no image, and would cost us memory. */
static int check_file_size(const struct hostfile *file, const struct refcount_layout *layout,
                           struct cairn_error *err)
{
    uint64_t counted = QCOW2_REFTABLE_BYTES_MAX / QCOW2_REFTABLE_ENTRY_SIZE
                       << (2 * layout->cluster_bits - 1);
    uint64_t max = min_u64(counted, QCOW2_HOST_OFFSET_MAX);

    if (layout->file_size <= max)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_LIMIT,
                     "%s: the file has %" PRIu64 " bytes, refcounts reach to %" PRIu64, file->name,
                     layout->file_size, max);
}

int refcounts_new(struct table_cache *cache, struct hostfile *file, pthread_mutex_t *lock,
                  const struct refcount_layout *layout, struct refcounts **ret_refcounts,
                  struct cairn_error *err)
{
    int rc = check_file_size(file, layout, err);
    struct refcounts *r;

    if (rc)
        return rc;
    r = calloc(1, sizeof(*r));
    if (!r)
        return error_no_memory(err, "refcounts");
    r->cache = cache;
    r->file = file;
    r->lock = lock;
    r->cluster_bits = layout->cluster_bits;
    r->table_off = layout->table_off;
    r->table_clusters = layout->table_clusters;
    r->end = r->file_end = div_round_up(layout->file_size, cluster_size(r));
    rc = reach_pages(r, r->end, err);
    if (rc) {
        free(r);
        return rc;
    }
    memset(r->nr_free, 0xff, ((r->end >> PAGE_BITS) + 1) * sizeof(*r->nr_free));
    pthread_cond_init(&r->grown, NULL);
    table_cache_on_freed(cache, on_freed, r);
    *ret_refcounts = r;
    return CAIRN_OK;
}

void refcounts_free(struct refcounts *r)
{
    if (!r)
        return;
    pthread_cond_destroy(&r->grown);
    free(r->nr_free);
    free(r);
}

/* -- Pages of counts --------------------------------------------------------------------------- */

/* The refcount table's entry for a block; 0: there is no block. */
static int read_table_entry_locked(struct refcounts *r, uint64_t block, uint64_t *ret_host_off,
                                   struct cairn_error *err)
{
    uint64_t at = r->table_off + block * QCOW2_REFTABLE_ENTRY_SIZE;
    struct table_page *page;
    uint64_t entry;
    int rc;

    *ret_host_off = 0;
    if (block >= nr_table_entries(r))
        return CAIRN_OK;
    rc = table_get_locked(r->cache, TABLE_REFTABLE, round_down(at, TABLE_PAGE_SIZE), &page, err);
    if (rc)
        return error_prefix(err, rc, "refcount table");
    entry = bytes_get_be64(table_bytes_locked(page) + at % TABLE_PAGE_SIZE);
    table_put_locked(r->cache, page);
    if (!is_aligned(entry, cluster_size(r)) || (entry >> r->cluster_bits) >= r->file_end)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: refcount table entry %" PRIu64 " is 0x%" PRIx64
                         ", not a cluster of the file",
                         r->file->name, block, entry);
    *ret_host_off = entry;
    return CAIRN_OK;
}

/* The page that counts clusters from page_nr << PAGE_BITS on, pinned; NULL if there is no block. */
static int get_page_locked(struct refcounts *r, uint64_t page_nr, struct table_page **ret_page,
                           struct cairn_error *err)
{
    uint64_t cluster = page_nr << PAGE_BITS;
    uint64_t in_block = cluster & ((UINT64_C(1) << block_bits(r)) - 1);
    uint64_t block_off;
    int rc = read_table_entry_locked(r, cluster >> block_bits(r), &block_off, err);

    *ret_page = NULL;
    if (rc || block_off == 0)
        return rc;
    rc = table_get_locked(r->cache, TABLE_REFBLOCK, block_off + in_block * REFCOUNT_SIZE, ret_page,
                          err);
    return rc ? error_prefix(err, rc, "refcount block") : CAIRN_OK;
}

static uint16_t get_count(const uint8_t *bytes, unsigned i)
{
    return bytes_get_be16(bytes + i * REFCOUNT_SIZE);
}

static void put_counts(uint8_t *bytes, unsigned i, unsigned nr, uint16_t count)
{
    for (unsigned end = i + nr; i < end; i++)
        bytes_put_be16(bytes + i * REFCOUNT_SIZE, count);
}

/* The first free index in [from, to), or to. */
static unsigned find_free(const uint8_t *bytes, unsigned from, unsigned to)
{
    while (from < to && get_count(bytes, from) != 0)
        from++;
    return from;
}

static unsigned free_run(const uint8_t *bytes, unsigned from, unsigned to)
{
    unsigned i = from;

    while (i < to && get_count(bytes, i) == 0)
        i++;
    return i - from;
}

/* How many clusters of a page lie below the end. */
static unsigned page_limit(const struct refcounts *r, uint64_t page_nr)
{
    uint64_t first = page_nr << PAGE_BITS;

    return first >= r->end ? 0 : (unsigned)min_u64(r->end - first, PAGE_COUNTS);
}

/* -- Taking free clusters below the end -------------------------------------------------------- */

struct run {
    uint64_t first; /* cluster */
    uint64_t nr;    /* 0: nothing found */
};

/* Learn how many clusters are free in a page. */
static int learn_page_locked(struct refcounts *r, uint64_t page_nr, struct cairn_error *err)
{
    struct table_page *page;
    unsigned nr = 0;
    int rc = get_page_locked(r, page_nr, &page, err);

    if (rc)
        return rc;
    if (r->nr_free[page_nr] == FREE_UNKNOWN) {
        for (unsigned i = 0; page && i < page_limit(r, page_nr); i++)
            nr += get_count(table_bytes_locked(page), i) == 0;
        r->nr_free[page_nr] = 0;
        add_free(r, page_nr, nr);
    }
    table_put_locked(r->cache, page);
    return CAIRN_OK;
}

/* Take up to want clusters of a page from index on, exactly there or where the first is free. */
static int take_locked(struct refcounts *r, uint64_t page_nr, unsigned index, bool exact,
                       uint64_t want, struct run *ret_run, struct cairn_error *err)
{
    struct table_page *page;
    uint8_t *bytes;
    unsigned limit, nr;
    int rc = get_page_locked(r, page_nr, &page, err);

    if (rc || !page)
        return rc;
    limit = page_limit(r, page_nr);
    if (!exact)
        index = find_free(table_bytes_locked(page), index, limit);
    nr = free_run(table_bytes_locked(page), index, (unsigned)min_u64(limit, index + want));
    if (nr > 0) {
        rc = table_modify_locked(FAULT_AT(r->cache, FAULT_COUNT_UP), page, &bytes, err);
        if (!rc) {
            put_counts(bytes, index, nr, 1);
            sub_free(r, page_nr, nr);
            *ret_run = (struct run){(page_nr << PAGE_BITS) + index, nr};
        }
    }
    table_put_locked(r->cache, page);
    return rc;
}

static int take_at_goal_locked(struct refcounts *r, uint64_t goal, uint64_t want,
                               struct run *ret_run, struct cairn_error *err)
{
    uint64_t cluster = goal >> r->cluster_bits;
    uint64_t page_nr = cluster >> PAGE_BITS;

    if (goal == 0 || cluster >= r->end || r->nr_free[page_nr] == 0)
        return CAIRN_OK;
    return take_locked(r, page_nr, (unsigned)(cluster % PAGE_COUNTS), true, want, ret_run, err);
}

static int take_lowest_locked(struct refcounts *r, uint64_t want, struct run *ret_run,
                              struct cairn_error *err)
{
    while (r->nr_known > 0 && ret_run->nr == 0) {
        uint64_t page_nr = r->lowest_free;
        int rc;

        if (r->nr_free[page_nr] == 0 || r->nr_free[page_nr] == FREE_UNKNOWN) {
            r->lowest_free++;
            continue;
        }
        rc = take_locked(r, page_nr, 0, false, want, ret_run, err);
        if (rc)
            return rc;
        if (ret_run->nr == 0) /* somebody was faster */
            sub_free(r, page_nr, r->nr_free[page_nr]);
    }
    return CAIRN_OK;
}

/* Look into one page that nobody has looked into. */
static int explore_locked(struct refcounts *r, struct cairn_error *err)
{
    uint64_t last = r->end >> PAGE_BITS;

    while (r->next_unknown <= last && r->nr_free[r->next_unknown] != FREE_UNKNOWN)
        r->next_unknown++;
    return r->next_unknown <= last ? learn_page_locked(r, r->next_unknown, err) : CAIRN_OK;
}

/* -- Growing ----------------------------------------------------------------------------------- */

/* Write a refcount block at cluster at, in which [first, first + nr) are counted. */
static int write_block(struct refcounts *r, uint64_t at, uint64_t first, uint64_t nr,
                       enum fault_point point, struct cairn_error *err)
{
    uint64_t in_block = first & ((UINT64_C(1) << block_bits(r)) - 1);
    CLEANUP_FREE uint8_t *bytes = calloc(1, cluster_size(r));

    if (!bytes)
        return error_no_memory(err, "a refcount block");
    put_counts(bytes, (unsigned)in_block, (unsigned)nr, 1);
    return hostfile_pwrite(FAULT_AT(r->file, point), bytes, cluster_size(r), at << r->cluster_bits,
                           err);
}

/* Cluster `end` gets a block of its own, as its first. */
static int add_block_locked(struct refcounts *r, struct cairn_error *err)
{
    uint64_t at = r->end;
    uint64_t entry_off = r->table_off + (at >> block_bits(r)) * QCOW2_REFTABLE_ENTRY_SIZE;
    struct table_page *page;
    uint8_t *bytes;
    int rc;

    pthread_mutex_unlock(r->lock);
    rc = write_block(r, at, at, 1, FAULT_GROW_REFBLOCK, err);
    pthread_mutex_lock(r->lock);
    table_note_data_locked(r->cache);
    if (rc)
        return rc;
    rc = table_get_locked(r->cache, TABLE_REFTABLE, round_down(entry_off, TABLE_PAGE_SIZE), &page,
                          err);
    if (rc)
        return rc;
    rc = table_modify_locked(FAULT_AT(r->cache, FAULT_GROW_REFBLOCK_LINK), page, &bytes, err);
    if (!rc) {
        bytes_put_be64(bytes + entry_off % TABLE_PAGE_SIZE, at << r->cluster_bits);
        r->end = at + 1;
        r->file_end = max_u64(r->file_end, r->end);
    }
    table_put_locked(r->cache, page);
    return rc;
}

static int read_table_locked(struct refcounts *r, uint8_t *bytes, struct cairn_error *err)
{
    uint64_t len = (uint64_t)r->table_clusters << r->cluster_bits;

    for (uint64_t off = 0; off < len; off += TABLE_PAGE_SIZE) {
        struct table_page *page;
        int rc = table_get_locked(r->cache, TABLE_REFTABLE, r->table_off + off, &page, err);

        if (rc)
            return rc;
        memcpy(bytes + off, table_bytes_locked(page), TABLE_PAGE_SIZE);
        table_put_locked(r->cache, page);
    }
    return CAIRN_OK;
}

/* Let the header say where the table is now; the old one is free when that is durable. */
static int switch_table_locked(struct refcounts *r, uint64_t table_off, uint32_t table_clusters,
                               struct cairn_error *err)
{
    struct table_page *page;
    uint8_t *bytes;
    int rc = table_get_locked(r->cache, TABLE_HEADER, 0, &page, err);

    if (rc)
        return rc;
    rc = table_reserve_frees_locked(r->cache, 1, err);
    if (!rc)
        rc = table_modify_locked(FAULT_AT(r->cache, FAULT_GROW_REFTABLE_LINK), page, &bytes, err);
    if (!rc) {
        bytes_put_be64(bytes + QCOW2_HDR_REFCOUNT_TABLE_OFFSET, table_off);
        bytes_put_be32(bytes + QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS, table_clusters);
        table_free_locked(r->cache, r->table_off, (uint64_t)r->table_clusters << r->cluster_bits);
        r->table_off = table_off;
        r->table_clusters = table_clusters;
    }
    table_put_locked(r->cache, page);
    return rc;
}

/* The clusters of a table with an entry for block, at least twice what it has. */
static int larger_table(const struct refcounts *r, uint64_t block, uint64_t *ret_clusters,
                        struct cairn_error *err)
{
    uint64_t max = QCOW2_REFTABLE_BYTES_MAX >> r->cluster_bits;
    uint64_t nr = (uint64_t)r->table_clusters * 2;

    nr = max_u64(nr, ((block * QCOW2_REFTABLE_ENTRY_SIZE) >> r->cluster_bits) + 1);
    if (nr > max && r->table_clusters < max)
        nr = max;
    if (nr << r->cluster_bits <= block * QCOW2_REFTABLE_ENTRY_SIZE || nr > max)
        return error_set(err, CAIRN_E_NO_SPACE,
                         "%s: the refcount table is full at %" PRIu64 " bytes", r->file->name,
                         (uint64_t)r->table_clusters << r->cluster_bits);
    *ret_clusters = nr;
    return CAIRN_OK;
}

/*
 * A larger refcount table at the end, and behind it the block that counts both: they fit, for the
 * largest table takes fewer clusters than one block counts.
 */
static int grow_table_locked(struct refcounts *r, struct cairn_error *err)
{
    uint64_t block = r->end >> block_bits(r);
    uint64_t nr = 0, at;
    CLEANUP_FREE uint8_t *bytes = NULL;
    int rc = larger_table(r, block, &nr, err);

    if (rc)
        return rc;
    at = r->end;
    if ((at + nr) >> block_bits(r) != block) {
        r->end = (block + 1) << block_bits(r); /* begin with a whole block */
        return reach_pages(r, r->end, err);
    }
    bytes = calloc(nr, cluster_size(r));
    if (!bytes)
        return error_no_memory(err, "a refcount table");
    rc = read_table_locked(r, bytes, err);
    if (rc)
        return rc;
    bytes_put_be64(bytes + block * QCOW2_REFTABLE_ENTRY_SIZE, (at + nr) << r->cluster_bits);
    pthread_mutex_unlock(r->lock);
    rc = write_block(r, at + nr, at, nr + 1, FAULT_GROW_REFTABLE_BLOCK, err);
    if (!rc)
        rc = hostfile_pwrite(FAULT_AT(r->file, FAULT_GROW_REFTABLE), bytes, nr << r->cluster_bits,
                             at << r->cluster_bits, err);
    pthread_mutex_lock(r->lock);
    table_note_data_locked(r->cache);
    if (!rc)
        rc = switch_table_locked(r, at << r->cluster_bits, (uint32_t)nr, err);
    if (!rc) {
        r->end = at + nr + 1;
        r->file_end = max_u64(r->file_end, r->end);
    }
    return rc;
}

static int grow_file_locked(struct refcounts *r, struct cairn_error *err)
{
    uint64_t least = (r->end + 1) << r->cluster_bits;
    uint64_t size = round_up(least, GROW_BYTES);
    int rc;

    if (least > QCOW2_HOST_OFFSET_MAX)
        return error_set(err, CAIRN_E_NO_SPACE, "%s: the file cannot grow beyond 2^56 bytes",
                         r->file->name);
    pthread_mutex_unlock(r->lock);
    rc = hostfile_truncate(FAULT_AT(r->file, FAULT_GROW_FILE), size, err);
    if (rc) {
        size = least; /* a limit may be near */
        rc = hostfile_truncate(FAULT_AT(r->file, FAULT_GROW_FILE), size, err);
    }
    pthread_mutex_lock(r->lock);
    if (!rc)
        r->file_end = size >> r->cluster_bits;
    return rc;
}

typedef int (*grow_fn)(struct refcounts *r, struct cairn_error *err);

/* Grow as the only one.  What was in the way when this was called may be out of it afterwards. */
static int grow_locked(struct refcounts *r, grow_fn grow, struct cairn_error *err)
{
    /* What any of them adds, at most. */
    uint64_t most = 2 + ((GROW_BYTES + QCOW2_REFTABLE_BYTES_MAX) >> r->cluster_bits);
    int rc = table_check_locked(r->cache, err);

    if (!rc)
        rc = reach_pages(r, max_u64(r->end, r->file_end) + most, err);
    if (rc)
        return rc;
    r->growing = true;
    rc = grow(r, err);
    r->growing = false;
    pthread_cond_broadcast(&r->grown);
    return rc;
}

/* Take clusters at the end of the file, as far as its page of counts goes. */
static int take_end_locked(struct refcounts *r, struct table_page *page, uint64_t want,
                           struct run *ret_run, struct cairn_error *err)
{
    uint64_t base = round_down(r->end, PAGE_COUNTS);
    unsigned limit = (unsigned)min_u64(r->file_end - base, PAGE_COUNTS);
    unsigned from = (unsigned)(r->end - base);
    unsigned index = find_free(table_bytes_locked(page), from, limit);
    unsigned nr = free_run(table_bytes_locked(page), index, (unsigned)min_u64(limit, index + want));
    uint8_t *bytes;
    int rc;

    if (nr > 0) {
        rc = table_modify_locked(FAULT_AT(r->cache, FAULT_COUNT_UP_END), page, &bytes, err);
        if (rc)
            return rc;
        put_counts(bytes, index, nr, 1);
        *ret_run = (struct run){base + index, nr};
    }
    r->end = base + index + nr;
    return CAIRN_OK;
}

/* One attempt; whoever waits or grows has to look again. */
static int try_extend_locked(struct refcounts *r, uint64_t want, struct run *ret_run,
                             unsigned *skipped, struct cairn_error *err)
{
    uint64_t end = r->end;
    struct table_page *page;
    int rc;

    if (r->growing) {
        pthread_cond_wait(&r->grown, r->lock);
        return CAIRN_OK;
    }
    if (end >= r->file_end)
        return grow_locked(r, grow_file_locked, err);
    rc = get_page_locked(r, end >> PAGE_BITS, &page, err);
    if (rc)
        return rc;
    if (r->end == end && !r->growing) {
        bool has_entry = end >> block_bits(r) < nr_table_entries(r);

        if (page) {
            rc = take_end_locked(r, page, want, ret_run, err);
            *skipped += ret_run->nr == 0;
        } else {
            rc = grow_locked(r, has_entry ? add_block_locked : grow_table_locked, err);
        }
    }
    table_put_locked(r->cache, page);
    return rc;
}

static int extend_locked(struct refcounts *r, uint64_t want, struct run *ret_run,
                         struct cairn_error *err)
{
    unsigned skipped = 0; /* pages with nothing but leaked clusters: a crash can leave some */

    while (ret_run->nr == 0) {
        int rc = try_extend_locked(r, want, ret_run, &skipped, err);

        if (rc)
            return rc;
        if (skipped > SKIP_PAGES)
            return error_set(err, CAIRN_E_CORRUPT,
                             "%s: clusters at 0x%" PRIx64 ", past the end of the file, are counted",
                             r->file->name, r->end << r->cluster_bits);
    }
    return CAIRN_OK;
}

/* -- The rest ---------------------------------------------------------------------------------- */

static bool in_run(const struct refcounts *r, const struct run *run, uint64_t host_off)
{
    uint64_t cluster = host_off >> r->cluster_bits;

    return cluster >= run->first && cluster - run->first < run->nr;
}

/* A header or refcount structure that is not counted does not become somebody's data: now it is
 * counted, so this happens once. */
static int check_run_locked(struct refcounts *r, const struct run *run, struct cairn_error *err)
{
    uint64_t end = (run->first + run->nr) << r->cluster_bits;
    uint64_t table_end = r->table_off + ((uint64_t)r->table_clusters << r->cluster_bits);
    uint64_t block_off;
    int rc = read_table_entry_locked(r, run->first >> block_bits(r), &block_off, err);

    if (rc)
        return rc;
    if (run->first > 0 && (end <= r->table_off || run->first << r->cluster_bits >= table_end) &&
        !in_run(r, run, block_off))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CORRUPT,
                     "%s: one of %" PRIu64 " clusters from 0x%" PRIx64
                     " on holds the header, the refcount table or a refcount block, and was "
                     "counted as free",
                     r->file->name, run->nr, run->first << r->cluster_bits);
}

int refcount_alloc_locked(struct refcounts *r, uint64_t want, uint64_t goal, uint64_t *ret_host_off,
                          uint64_t *ret_nr, struct cairn_error *err)
{
    struct run run = {0, 0};
    int rc = take_at_goal_locked(r, goal, want, &run, err);

    if (!rc && run.nr == 0)
        rc = take_lowest_locked(r, want, &run, err);
    if (!rc && run.nr == 0) {
        rc = explore_locked(r, err);
        if (!rc)
            rc = take_lowest_locked(r, want, &run, err);
    }
    if (!rc && run.nr == 0)
        rc = extend_locked(r, want, &run, err);
    if (!rc)
        rc = check_run_locked(r, &run, err);
    if (rc)
        return error_prefix(err, rc, "allocating a cluster");
    *ret_host_off = run.first << r->cluster_bits;
    *ret_nr = run.nr;
    return CAIRN_OK;
}

/* The part of [first, end) that lies in one page of counts. */
static int release_page_locked(struct refcounts *r, uint64_t first, unsigned nr,
                               struct cairn_error *err)
{
    uint64_t page_nr = first >> PAGE_BITS;
    unsigned index = (unsigned)(first % PAGE_COUNTS);
    struct table_page *page;
    uint8_t *bytes;
    int rc = get_page_locked(r, page_nr, &page, err);

    if (rc)
        return rc;
    for (unsigned i = index; i < index + nr; i++) {
        uint16_t count = page ? get_count(table_bytes_locked(page), i) : 0;

        if (count != 1) {
            table_put_locked(r->cache, page);
            return error_set(err, CAIRN_E_CORRUPT,
                             "%s: the refcount of the cluster at 0x%" PRIx64 " is %u, expected 1",
                             r->file->name, (first + i - index) << r->cluster_bits, count);
        }
    }
    rc = table_modify_locked(FAULT_AT(r->cache, FAULT_COUNT_DOWN), page, &bytes, err);
    if (!rc) {
        put_counts(bytes, index, nr, 0);
        add_free(r, page_nr, nr);
    }
    table_put_locked(r->cache, page);
    return rc;
}

int refcount_release_locked(struct refcounts *r, uint64_t host_off, uint64_t len,
                            struct cairn_error *err)
{
    uint64_t first = host_off >> r->cluster_bits;
    uint64_t end = first + (len >> r->cluster_bits);

    while (first < end) {
        unsigned nr = (unsigned)min_u64(end - first, PAGE_COUNTS - first % PAGE_COUNTS);
        int rc = release_page_locked(r, first, nr, err);

        if (rc)
            return rc;
        first += nr;
    }
    return CAIRN_OK;
}

static int release_run_locked(struct refcounts *r, const struct run *run, struct cairn_error *err)
{
    return refcount_release_locked(r, run->first << r->cluster_bits, run->nr << r->cluster_bits,
                                   err);
}

/* The end goes on where it was, except over a new refcount block: then the run begins anew. */
int refcount_alloc_run_locked(struct refcounts *r, uint64_t nr, uint64_t *ret_host_off,
                              struct cairn_error *err)
{
    struct run run = {0, 0};
    int rc = CAIRN_OK;

    while (!rc && run.nr < nr) {
        struct run more = {0, 0};

        rc = extend_locked(r, nr - run.nr, &more, err);
        if (!rc && more.first != run.first + run.nr) {
            rc = release_run_locked(r, &run, err);
            run = (struct run){more.first, 0};
        }
        run.nr += more.nr;
    }
    if (rc) {
        release_run_locked(r, &run, NULL);
        return error_prefix(err, rc, "allocating %" PRIu64 " clusters", nr);
    }
    *ret_host_off = run.first << r->cluster_bits;
    return CAIRN_OK;
}

bool refcount_plausible_locked(const struct refcounts *r, uint64_t host_off)
{
    uint64_t table_len = (uint64_t)r->table_clusters << r->cluster_bits;

    return is_aligned(host_off, cluster_size(r)) && host_off > 0 &&
           (host_off >> r->cluster_bits) < r->end &&
           !(host_off >= r->table_off && host_off - r->table_off < table_len);
}

/* The highest used cluster of a page plus one, counted from the page's first; 0: none is used. */
static int last_used_locked(struct refcounts *r, uint64_t page_nr, unsigned *ret_used,
                            struct cairn_error *err)
{
    struct table_page *page;
    unsigned used;
    int rc = get_page_locked(r, page_nr, &page, err);

    if (rc)
        return rc;
    used = page ? page_limit(r, page_nr) : 0;
    while (used > 0 && get_count(table_bytes_locked(page), used - 1) == 0)
        used--;
    table_put_locked(r->cache, page);
    *ret_used = used;
    return CAIRN_OK;
}

/* The end comes down to new_end: nothing above it is free any more. */
static void lower_end(struct refcounts *r, uint64_t new_end)
{
    uint64_t last = new_end >> PAGE_BITS;

    for (uint64_t p = last; p <= r->end >> PAGE_BITS; p++)
        sub_free(r, p, r->nr_free[p]);
    r->nr_free[last] = FREE_UNKNOWN;
    r->next_unknown = min_u64(r->next_unknown, last);
    r->end = r->file_end = new_end;
}

int refcount_trim_locked(struct refcounts *r, struct cairn_error *err)
{
    uint64_t page_nr = r->end >> PAGE_BITS;
    uint64_t size;
    unsigned used = 0;
    int rc = last_used_locked(r, page_nr, &used, err);

    while (!rc && used == 0 && page_nr > 0)
        rc = last_used_locked(r, --page_nr, &used, err);
    if (rc)
        return rc;
    size = ((page_nr << PAGE_BITS) + used) << r->cluster_bits;
    if (size < r->table_off + ((uint64_t)r->table_clusters << r->cluster_bits))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: the refcount table at 0x%" PRIx64
                         " is counted as free; the file is not cut",
                         r->file->name, r->table_off);
    if (size == r->file_end << r->cluster_bits)
        return CAIRN_OK;
    rc = hostfile_truncate(FAULT_AT(r->file, FAULT_TRIM), size, err);
    if (rc)
        return rc;
    table_note_data_locked(r->cache);
    lower_end(r, size >> r->cluster_bits);
    return CAIRN_OK;
}

void refcount_table_locked(const struct refcounts *r, uint64_t *ret_host_off,
                           uint32_t *ret_clusters)
{
    *ret_host_off = r->table_off;
    *ret_clusters = r->table_clusters;
}
