/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new refcount structure, from what the check has counted, where the old one is not to be
 * believed.  One run of clusters holds it: the table, then the blocks.
 *
 * The run is taken from clusters of the file that nothing refers to, the old structure included,
 * which stays whole until the header points to the new one.  If there is no such run, the file
 * grows; but not if something in it names places past its end, for that would then name our table.
 */
#include "qcow2_check_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "bytes.h"

struct rebuild {
    struct hostfile *file;
    uint64_t first; /* cluster of the run */
    uint64_t nr_table, nr_blocks;
    uint64_t nr_clusters; /* of the file, with the run */
    uint64_t *table;      /* 1 for each block; then its host offset, as it is stored */
    uint64_t nr_entries;
};

/* The first run of nr clusters without references; where it leaves the file, the file has to grow.
 */
static uint64_t find_run(const struct qcow2_check *c, uint64_t nr)
{
    uint64_t start = 0;

    for (uint64_t i = 0; i < c->nr_clusters && i - start < nr; i++)
        if (cluster_counts_get(&c->counts, i) > 0)
            start = i + 1;
    return start;
}

/* Which blocks are there: those with a cluster in use.  Their number. */
static uint64_t mark_blocks(const struct qcow2_check *c, struct rebuild *b)
{
    unsigned bits = refblock_bits(&c->hdr);
    uint64_t nr = 0;

    memset(b->table, 0, b->nr_entries * sizeof(*b->table));
    for (uint64_t i = 0; i < c->nr_clusters; i++)
        if (cluster_counts_get(&c->counts, i) > 0)
            b->table[i >> bits] = 1;
    for (uint64_t i = b->first; i < b->first + b->nr_table + b->nr_blocks; i++)
        b->table[i >> bits] = 1;
    for (uint64_t i = 0; i < b->nr_entries; i++)
        nr += b->table[i];
    return nr;
}

/* A table for nr_clusters, in whole clusters. */
static int size_table(const struct qcow2_check *c, struct rebuild *b, struct cairn_error *err)
{
    uint64_t per_cluster = c->cluster_size / QCOW2_REFTABLE_ENTRY_SIZE;
    uint64_t nr = div_round_up(b->nr_clusters, UINT64_C(1) << refblock_bits(&c->hdr));
    uint64_t *table;

    b->nr_table = div_round_up(nr, per_cluster);
    b->nr_entries = b->nr_table * per_cluster;
    if (b->nr_table * c->cluster_size > QCOW2_REFTABLE_BYTES_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: a refcount table for %" PRIu64
                         " clusters is above the limit of %" PRIu64 " bytes",
                         c->src->name, b->nr_clusters, QCOW2_REFTABLE_BYTES_MAX);
    table = realloc(b->table, b->nr_entries * sizeof(*table));
    if (!table)
        return error_no_memory(err, "a refcount table");
    b->table = table;
    return CAIRN_OK;
}

/* The run counts itself, so its size is found by trying; it only grows, and soon fits. */
static int plan(const struct qcow2_check *c, struct rebuild *b, struct cairn_error *err)
{
    uint64_t need = 2, nr;
    int r;

    do {
        nr = need;
        b->first = find_run(c, nr);
        b->nr_clusters = max_u64(c->nr_clusters, b->first + nr);
        r = size_table(c, b, err);
        if (r != CAIRN_OK)
            return r;
        b->nr_blocks = nr > b->nr_table ? nr - b->nr_table : 0;
        b->nr_blocks = mark_blocks(c, b);
        need = b->nr_table + b->nr_blocks;
    } while (need > nr);
    b->nr_blocks = mark_blocks(c, b);
    return CAIRN_OK;
}

/* Old refcount clusters lose the references that made them one. */
static void forget_old(struct qcow2_check *c)
{
    uint64_t nr = c->reftable_usable ? c->hdr.refcount_table_clusters : 0;

    for (uint64_t i = 0; i < nr; i++) {
        uint64_t cluster = (c->hdr.refcount_table_offset >> c->hdr.cluster_bits) + i;

        c->counts.pages[cluster >> CLUSTER_PAGE_BITS]->count[cluster % CLUSTER_PAGE_SIZE]--;
    }
    for (uint64_t i = 0; i < c->nr_reftable; i++) {
        uint64_t cluster = c->reftable[i] >> c->hdr.cluster_bits;

        if (check_refblock_usable(c, c->reftable[i]))
            c->counts.pages[cluster >> CLUSTER_PAGE_BITS]->count[cluster % CLUSTER_PAGE_SIZE]--;
    }
}

static uint64_t new_refcount(const struct qcow2_check *c, const struct rebuild *b, uint64_t cluster)
{
    if (cluster >= b->first && cluster < b->first + b->nr_table + b->nr_blocks)
        return 1;
    return cluster_counts_get(&c->counts, cluster);
}

static int write_block(const struct qcow2_check *c, const struct rebuild *b, uint64_t i,
                       uint8_t *bytes, struct cairn_error *err)
{
    uint64_t step = UINT64_C(1) << refblock_bits(&c->hdr);
    uint64_t nr = min_u64(step, b->nr_clusters - i * step);

    memset(bytes, 0, c->cluster_size);
    for (uint64_t j = 0; j < nr; j++)
        refblock_put(bytes, j, c->hdr.refcount_order, new_refcount(c, b, i * step + j));
    return hostfile_pwrite(FAULT_AT(b->file, FAULT_REBUILD_REFBLOCK), bytes, c->cluster_size,
                           be64toh(b->table[i]), err);
}

/* In the order of their places, so that a file that grows does so without a gap. */
static int write_structure(const struct qcow2_check *c, struct rebuild *b, struct cairn_error *err)
{
    uint64_t table_off = b->first << c->hdr.cluster_bits;
    uint64_t next_off = table_off + b->nr_table * c->cluster_size;
    CLEANUP_FREE uint8_t *bytes = malloc(c->cluster_size);
    int r = bytes ? CAIRN_OK : error_no_memory(err, "a refcount block");

    for (uint64_t i = 0; i < b->nr_entries; i++) {
        if (b->table[i] == 0)
            continue;
        b->table[i] = htobe64(next_off);
        next_off += c->cluster_size;
    }
    if (r == CAIRN_OK)
        r = hostfile_pwrite(FAULT_AT(b->file, FAULT_REBUILD_REFTABLE), b->table,
                            b->nr_table * c->cluster_size, table_off, err);
    for (uint64_t i = 0; i < b->nr_entries && r == CAIRN_OK; i++)
        if (b->table[i] != 0)
            r = write_block(c, b, i, bytes, err);
    return r == CAIRN_OK ? hostfile_sync(FAULT_AT(b->file, FAULT_REBUILD_SYNC), err) : r;
}

static int switch_header(const struct qcow2_check *c, const struct rebuild *b,
                         struct cairn_error *err)
{
    uint8_t bytes[12];
    int r;

    static_assert(QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS == QCOW2_HDR_REFCOUNT_TABLE_OFFSET + 8,
                  "one write for both");
    bytes_put_be64(bytes, b->first << c->hdr.cluster_bits);
    bytes_put_be32(bytes + 8, (uint32_t)b->nr_table);
    r = hostfile_pwrite(FAULT_AT(b->file, FAULT_REBUILD_HEADER), bytes, sizeof(bytes),
                        QCOW2_HDR_REFCOUNT_TABLE_OFFSET, err);
    return r == CAIRN_OK ? hostfile_sync(FAULT_AT(b->file, FAULT_REBUILD_HEADER_SYNC), err) : r;
}

/* From here on the stored refcounts are those that were counted, and 0 where nothing was. */
static void update_marks(struct qcow2_check *c)
{
    c->nr_reftable = 0;
    for (uint64_t i = 0; i < c->counts.nr_pages; i++) {
        struct cluster_page *page = c->counts.pages[i];

        for (unsigned j = 0; page && j < CLUSTER_PAGE_SIZE; j++) {
            page->mark[j] &= (uint8_t) ~(MARK_ONE | MARK_UNKNOWN);
            page->mark[j] |= page->count[j] == 1 ? MARK_ONE : 0;
        }
    }
}

static bool fits(const struct qcow2_check *c, const struct rebuild *b)
{
    return b->first + b->nr_table + b->nr_blocks <= c->nr_clusters;
}

static int carry_out(struct qcow2_check *c, struct rebuild *b, struct cairn_error *err)
{
    int r;

    forget_old(c);
    r = write_structure(c, b, err);
    if (r == CAIRN_OK)
        r = switch_header(c, b, err);
    if (r == CAIRN_OK)
        update_marks(c);
    return r;
}

int qcow2_rebuild_refcounts(struct qcow2_check *c, struct hostfile *file, bool *ret_done,
                            struct cairn_error *err)
{
    struct rebuild b = {.file = file};
    int r = plan(c, &b, err);

    *ret_done = r == CAIRN_OK && (!c->dangling || fits(c, &b));
    if (*ret_done)
        r = carry_out(c, &b, err);
    free(b.table);
    return r;
}
