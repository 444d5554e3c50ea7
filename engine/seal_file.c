/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file that sealing writes.  It only grows: guest data as it comes, each cluster at the next
 * free host cluster, compressed ones byte behind byte.  L2 tables gather in memory and are written
 * in runs, so that a reader gets many in one go.  Refcounts follow from where the file grows: a
 * host cluster is counted once it cannot be referred to any more, which fills the refcount blocks
 * in order, and a full one joins the L2 tables.  So at most one block is open, and no table is ever
 * read back or written twice.
 *
 * Every host cluster has a refcount of 1, except that each compressed cluster counts in all host
 * clusters that it lies in.  16 bits are enough: with the largest host clusters, 2 MiB, not even
 * 30,000 clusters fit into one, for zstd takes at least 70 bytes for 2 MiB, deflate 2,000.
 *
 * Writes go out in the order of the file, but for a compressed cluster that fills a gap, and for
 * the header, which is the last.
 */
#include <inttypes.h>

#include "bytes.h"
#include "seal_internal.h"

#define STREAM_BYTES ((size_t)1 << 20)
#define TABLES_BYTES ((size_t)4 << 20)

/* A table that waits for its place. */
struct gathered {
    bool is_refblock; /* else an L2 table */
    uint64_t index;   /* in the refcount table, in the L1 table */
};

struct seal_file {
    struct hostfile *out;
    struct qcow2_header hdr; /* what it points to is borrowed */
    struct seal_shape shape;
    bool zstd, has_compressed;

    uint8_t *stream; /* bytes for stream_off that are not written yet */
    uint64_t stream_off;
    size_t stream_len, stream_max;

    uint64_t end;          /* where the file grows */
    uint16_t nr_shared;    /* compressed clusters in the host cluster that end lies in */
    uint64_t gap, gap_end; /* what was left free in the last such cluster before this one */

    uint8_t *l1; /* encoded, in whole clusters */
    size_t nr_l1, l1_clusters;
    uint8_t *tables; /* in memory, a cluster each */
    struct gathered *gathered;
    size_t nr_tables, tables_per_run;
    size_t open_table; /* the L2 table that entries go to, if has_open */
    bool has_open;

    uint8_t *refblock; /* the open one */
    uint64_t counts_per_block;
    uint64_t nr_counted;   /* host clusters whose refcount is known */
    uint64_t nr_refblocks; /* full ones */
    uint8_t *reftable;     /* encoded */
    uint64_t max_refblocks;
};

/* -- Making one -------------------------------------------------------------------------------- */

/* What else the header says; places are filled in at the end. */
static void describe(struct seal_file *f, const struct qcow2_header *old)
{
    f->hdr = *old;
    f->hdr.size = qcow2_virtual_size(old);
    f->hdr.l1_size = (uint32_t)f->nr_l1;
    f->hdr.incompatible_features = old->incompatible_features & QCOW2_INCOMPAT_EXTL2;
    f->hdr.refcount_order = QCOW2_V2_REFCOUNT_ORDER;
    f->hdr.compression_type = LAYER_DEFLATE;
}

/* A run is written when it is long enough and one more table comes.  Beside the L2 tables it has
 * the refcount blocks that became full: at most one by the clusters of the last L2 table, for a
 * block counts four times as many, and those that the run's own clusters fill. */
static size_t tables_in_run_max(const struct seal_file *f)
{
    size_t nr = f->tables_per_run + 1;

    return nr + 2 * nr / f->counts_per_block + 2;
}

static int allocate(struct seal_file *f, struct cairn_error *err)
{
    size_t cluster_size = f->shape.cluster_size;
    size_t max_tables;

    /* Of a small disk all L2 tables are one run, with the refcount blocks, which are fewer. */
    f->tables_per_run = (size_t)min_u64(max_u64(TABLES_BYTES / cluster_size, 1), 2 * f->nr_l1);
    max_tables = tables_in_run_max(f);
    f->stream_max = (size_t)min_u64(STREAM_BYTES, max_u64(f->shape.virtual_size, cluster_size));
    f->stream = malloc(f->stream_max);
    f->l1 = calloc(f->l1_clusters, cluster_size);
    f->tables = malloc(max_tables * cluster_size);
    f->gathered = malloc(max_tables * sizeof(*f->gathered));
    f->refblock = calloc(1, cluster_size);
    if (!f->stream || !f->l1 || !f->tables || !f->gathered || !f->refblock)
        return error_no_memory(err, "the tables of an image");
    return CAIRN_OK;
}

void seal_file_free(struct seal_file *f)
{
    if (!f)
        return;
    free(f->stream);
    free(f->l1);
    free(f->tables);
    free(f->gathered);
    free(f->refblock);
    free(f->reftable);
    free(f);
}

/* -- Bytes ------------------------------------------------------------------------------------- */

static int flush_stream(struct seal_file *f, struct cairn_error *err)
{
    size_t len = f->stream_len;

    f->stream_len = 0;
    if (len == 0)
        return CAIRN_OK;
    return hostfile_pwrite(FAULT_AT(f->out, FAULT_SEAL_BYTES), f->stream, len, f->stream_off, err);
}

/* What is left out is a hole in the file and reads as zeros. */
static int put_bytes(struct seal_file *f, const uint8_t *bytes, size_t len, uint64_t host_off,
                     struct cairn_error *err)
{
    int rc = CAIRN_OK;

    if (f->stream_off + f->stream_len != host_off || f->stream_len + len > f->stream_max)
        rc = flush_stream(f, err);
    if (rc != CAIRN_OK || len > f->stream_max)
        return rc != CAIRN_OK
                   ? rc
                   : hostfile_pwrite(FAULT_AT(f->out, FAULT_SEAL_BYTES), bytes, len, host_off, err);
    if (f->stream_len == 0)
        f->stream_off = host_off;
    memcpy(f->stream + f->stream_len, bytes, len);
    f->stream_len += len;
    return CAIRN_OK;
}

/* -- Refcounts --------------------------------------------------------------------------------- */

static uint8_t *gather(struct seal_file *f, bool is_refblock, uint64_t index)
{
    f->gathered[f->nr_tables] = (struct gathered){.is_refblock = is_refblock, .index = index};
    return f->tables + f->nr_tables++ * f->shape.cluster_size;
}

/* Room for nr entries in the refcount table, which is kept in whole clusters. */
static int grow_reftable(struct seal_file *f, uint64_t nr, struct cairn_error *err)
{
    uint64_t bytes = round_up(nr * QCOW2_REFTABLE_ENTRY_SIZE, f->shape.cluster_size);
    uint8_t *table;

    if (nr <= f->max_refblocks)
        return CAIRN_OK;
    if (bytes > QCOW2_REFTABLE_BYTES_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: with clusters of %zu bytes a qcow2 file has at most %" PRIu64
                         " bytes; the image does not fit",
                         f->out->name, f->shape.cluster_size,
                         QCOW2_REFTABLE_BYTES_MAX / QCOW2_REFTABLE_ENTRY_SIZE *
                             f->counts_per_block * f->shape.cluster_size);
    table = realloc(f->reftable, bytes);
    if (!table)
        return error_no_memory(err, "a refcount table");
    memset(table + f->max_refblocks * QCOW2_REFTABLE_ENTRY_SIZE, 0,
           bytes - f->max_refblocks * QCOW2_REFTABLE_ENTRY_SIZE);
    f->reftable = table;
    f->max_refblocks = bytes / QCOW2_REFTABLE_ENTRY_SIZE;
    return CAIRN_OK;
}

/* The refcount of the next host cluster in order. */
static void set_count(struct seal_file *f, uint16_t count)
{
    bytes_put_be16(f->refblock + f->nr_counted % f->counts_per_block * 2, count);
    f->nr_counted++;
}

static int count_cluster(struct seal_file *f, uint16_t count, struct cairn_error *err)
{
    set_count(f, count);
    if (f->nr_counted % f->counts_per_block != 0)
        return CAIRN_OK;
    memcpy(gather(f, true, f->nr_refblocks), f->refblock, f->shape.cluster_size);
    memset(f->refblock, 0, f->shape.cluster_size);
    f->nr_refblocks++;
    return grow_reftable(f, f->nr_refblocks, err);
}

/* -- Where the file grows ---------------------------------------------------------------------- */

/* Leave the host cluster that holds compressed ones, if there is room in it. */
static int end_shared_cluster(struct seal_file *f, struct cairn_error *err)
{
    uint16_t count = f->nr_shared;

    if (count > 0)
        f->gap = f->end;
    f->end = round_up(f->end, f->shape.cluster_size);
    if (count > 0)
        f->gap_end = f->end;
    f->nr_shared = 0;
    return count > 0 ? count_cluster(f, count, err) : CAIRN_OK;
}

static int take_cluster(struct seal_file *f, uint64_t *ret_host_off, struct cairn_error *err)
{
    int rc = end_shared_cluster(f, err);

    *ret_host_off = f->end;
    f->end += f->shape.cluster_size;
    return rc == CAIRN_OK ? count_cluster(f, 1, err) : rc;
}

/* Where plain clusters stand between compressed ones, what the latter left free is used up by those
 * that come, as long as the refcount of that host cluster can still be changed. */
static bool take_gap(struct seal_file *f, size_t len, uint64_t *ret_host_off)
{
    uint64_t cluster = f->gap >> f->shape.cluster_bits;
    uint8_t *count = f->refblock + cluster % f->counts_per_block * 2;

    if (f->nr_shared > 0 || len >= f->gap_end - f->gap ||
        cluster / f->counts_per_block != f->nr_counted / f->counts_per_block)
        return false;
    bytes_put_be16(count, (uint16_t)(bytes_get_be16(count) + 1));
    *ret_host_off = f->gap;
    f->gap += len;
    return true;
}

/* len bytes, at most a cluster. */
static int take_bytes(struct seal_file *f, size_t len, uint64_t *ret_host_off,
                      struct cairn_error *err)
{
    uint64_t boundary = round_down(f->end, f->shape.cluster_size) + f->shape.cluster_size;
    uint16_t count;

    if (take_gap(f, len, ret_host_off))
        return CAIRN_OK;
    count = ++f->nr_shared;
    *ret_host_off = f->end;
    f->end += len;
    if (f->end < boundary)
        return CAIRN_OK;
    f->nr_shared = f->end > boundary; /* it goes on in the next one */
    return count_cluster(f, count, err);
}

/* -- L2 tables --------------------------------------------------------------------------------- */

static int write_table(struct seal_file *f, size_t i, struct cairn_error *err)
{
    const struct gathered *g = &f->gathered[i];
    uint64_t host_off;
    int rc = take_cluster(f, &host_off, err);

    if (rc != CAIRN_OK)
        return rc;
    if (g->is_refblock)
        bytes_put_be64(f->reftable + g->index * QCOW2_REFTABLE_ENTRY_SIZE, host_off);
    else
        bytes_put_be64(f->l1 + g->index * QCOW2_L1E_SIZE, host_off | QCOW2_OFLAG_COPIED);
    return put_bytes(f, f->tables + i * f->shape.cluster_size, f->shape.cluster_size, host_off,
                     err);
}

/* There may be more of them on the way: the tables' own clusters are counted, too. */
static int write_tables(struct seal_file *f, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    for (size_t i = 0; rc == CAIRN_OK && i < f->nr_tables; i++)
        rc = write_table(f, i, err);
    f->nr_tables = 0;
    f->has_open = false;
    return rc;
}

/* Let the table of a guest cluster be the open one. */
static int open_table(struct seal_file *f, uint64_t cluster, struct cairn_error *err)
{
    uint64_t index = cluster >> qcow2_l2_bits(&f->hdr);
    int rc = CAIRN_OK;

    if (f->has_open && f->gathered[f->open_table].index == index)
        return CAIRN_OK;
    if (f->nr_tables >= f->tables_per_run)
        rc = write_tables(f, err);
    if (rc != CAIRN_OK)
        return rc;
    f->open_table = f->nr_tables;
    f->has_open = true;
    memset(gather(f, false, index), 0, f->shape.cluster_size);
    return CAIRN_OK;
}

static void set_entry(struct seal_file *f, uint64_t cluster, uint64_t entry, uint64_t bitmap)
{
    bool extl2 = qcow2_has_extl2(&f->hdr);
    uint64_t index = cluster & ((UINT64_C(1) << qcow2_l2_bits(&f->hdr)) - 1);
    uint8_t *at = f->tables + f->open_table * f->shape.cluster_size +
                  index * (extl2 ? QCOW2_L2E_SIZE_EXTL2 : QCOW2_L2E_SIZE);

    bytes_put_be64(at, entry);
    if (extl2)
        bytes_put_be64(at + QCOW2_L2E_SIZE, bitmap);
}

/* -- Guest clusters ---------------------------------------------------------------------------- */

/* The subclusters of alloc, a write for each run of them. */
static int put_subclusters(struct seal_file *f, const uint8_t *data, uint32_t alloc,
                           uint64_t host_off, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    for (unsigned n = 0; rc == CAIRN_OK && n < f->shape.nr_subs; n++) {
        size_t sub_off = n * f->shape.sub_size;

        if (alloc >> n & 1)
            rc = put_bytes(f, data + sub_off, f->shape.sub_size, host_off + sub_off, err);
    }
    return rc;
}

int seal_file_put(struct seal_file *f, uint64_t cluster, const uint8_t *data, uint32_t alloc,
                  uint32_t zero, struct cairn_error *err)
{
    bool extl2 = qcow2_has_extl2(&f->hdr);
    uint64_t host_off = 0;
    int rc = open_table(f, cluster, err);

    if (rc == CAIRN_OK && alloc)
        rc = take_cluster(f, &host_off, err);
    if (rc != CAIRN_OK)
        return rc;
    set_entry(f, cluster,
              host_off | (alloc ? QCOW2_OFLAG_COPIED : 0) | (zero && !extl2 ? QCOW2_OFLAG_ZERO : 0),
              (uint64_t)zero << QCOW2_SUBCLUSTERS | alloc);
    return put_subclusters(f, data, alloc, host_off, err);
}

int seal_file_put_compressed(struct seal_file *f, uint64_t cluster, const uint8_t *bytes,
                             uint32_t len, struct cairn_error *err)
{
    unsigned shift = qcow2_compressed_shift(f->shape.cluster_bits);
    uint64_t host_off, more_sectors;
    int rc = open_table(f, cluster, err);

    if (rc == CAIRN_OK)
        rc = take_bytes(f, len, &host_off, err);
    if (rc != CAIRN_OK)
        return rc;
    f->has_compressed = true;
    more_sectors =
        (host_off + len - 1) / QCOW2_COMPRESSED_SECTOR - host_off / QCOW2_COMPRESSED_SECTOR;
    set_entry(f, cluster, QCOW2_OFLAG_COMPRESSED | more_sectors << shift | host_off, 0);
    return put_bytes(f, bytes, len, host_off, err);
}

/* -- The end ----------------------------------------------------------------------------------- */

/* Clusters of the rest: the L1 table, the refcount blocks that are not written yet and the
 * refcount table, all of which are counted in those blocks. */
struct tail {
    uint64_t nr_refblocks; /* all */
    uint64_t reftable_clusters;
    uint64_t nr_clusters; /* of the file */
};

static struct tail plan_tail(const struct seal_file *f)
{
    struct tail t = {.nr_refblocks = f->nr_refblocks};

    do {
        t.nr_refblocks++;
        t.reftable_clusters =
            div_round_up(t.nr_refblocks * QCOW2_REFTABLE_ENTRY_SIZE, f->shape.cluster_size);
        t.nr_clusters = f->nr_counted + f->l1_clusters + (t.nr_refblocks - f->nr_refblocks) +
                        t.reftable_clusters;
    } while (t.nr_refblocks * f->counts_per_block < t.nr_clusters);
    return t;
}

static int put_at_end(struct seal_file *f, const uint8_t *bytes, uint64_t nr_clusters,
                      uint64_t *ret_host_off, struct cairn_error *err)
{
    uint64_t len = nr_clusters * f->shape.cluster_size;

    *ret_host_off = f->end;
    f->end += len;
    return put_bytes(f, bytes, len, *ret_host_off, err);
}

static int write_last_refblocks(struct seal_file *f, const struct tail *t, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    for (uint64_t i = f->nr_refblocks; rc == CAIRN_OK && i < t->nr_refblocks; i++) {
        uint64_t stop = min_u64(t->nr_clusters, (i + 1) * f->counts_per_block);
        uint64_t host_off;

        while (f->nr_counted < stop)
            set_count(f, 1);
        rc = put_at_end(f, f->refblock, 1, &host_off, err);
        bytes_put_be64(f->reftable + i * QCOW2_REFTABLE_ENTRY_SIZE, host_off);
        memset(f->refblock, 0, f->shape.cluster_size);
    }
    return rc;
}

static int write_tail(struct seal_file *f, struct cairn_error *err)
{
    struct tail t = plan_tail(f);
    int rc = grow_reftable(f, t.nr_refblocks, err);

    f->hdr.refcount_table_clusters = (uint32_t)t.reftable_clusters;
    if (rc == CAIRN_OK)
        rc = put_at_end(f, f->l1, f->l1_clusters, &f->hdr.l1_table_offset, err);
    if (rc == CAIRN_OK)
        rc = write_last_refblocks(f, &t, err);
    if (rc == CAIRN_OK)
        rc = put_at_end(f, f->reftable, t.reftable_clusters, &f->hdr.refcount_table_offset, err);
    return rc == CAIRN_OK ? flush_stream(f, err) : rc;
}

static size_t encode_header(const struct seal_file *f, uint8_t *bytes)
{
    struct qcow2_header hdr = f->hdr;

    if (f->zstd && f->has_compressed) {
        hdr.incompatible_features |= QCOW2_INCOMPAT_COMPRESSION;
        hdr.compression_type = LAYER_ZSTD;
    }
    return qcow2_header_encode(&hdr, bytes, f->shape.cluster_size);
}

int seal_file_finish(struct seal_file *f, uint64_t *ret_size, struct cairn_error *err)
{
    int rc = write_tables(f, err);

    if (rc == CAIRN_OK)
        rc = write_tail(f, err);
    if (rc == CAIRN_OK)
        rc = hostfile_pwrite(FAULT_AT(f->out, FAULT_SEAL_HEADER), f->refblock,
                             encode_header(f, f->refblock), 0, err);
    if (rc == CAIRN_OK)
        rc = hostfile_sync(FAULT_AT(f->out, FAULT_SEAL_SYNC), err);
    *ret_size = f->end;
    return rc;
}

/* The first cluster is the header's; whether all of it fits there is known before anything else is
 * done. */
int seal_file_new(struct hostfile *out, const struct qcow2_header *hdr,
                  enum seal_compression compression, struct seal_file **ret_file,
                  struct cairn_error *err)
{
    CLEANUP(seal_file_free_p) struct seal_file *f = calloc(1, sizeof(*f));
    int rc;

    if (!f)
        return error_no_memory(err, "a sealed image");
    f->out = out;
    f->zstd = compression == SEAL_ZSTD;
    f->shape = seal_shape_of(hdr);
    f->nr_l1 = max_u64(qcow2_l1_entries(hdr, f->shape.virtual_size), 1); /* as QEMU has it */
    f->l1_clusters = div_round_up(f->nr_l1 * QCOW2_L1E_SIZE, f->shape.cluster_size);
    f->counts_per_block = f->shape.cluster_size / 2;
    describe(f, hdr);
    rc = allocate(f, err);
    if (rc == CAIRN_OK && encode_header(f, f->tables) == 0)
        rc =
            error_set(err, CAIRN_E_LIMIT,
                      "%s: the first cluster of %zu bytes has no room for a version 3 header and a "
                      "backing file name of %" PRIu32 " bytes",
                      out->name, f->shape.cluster_size, hdr->backing_file.len);
    f->end = f->shape.cluster_size;
    if (rc == CAIRN_OK)
        rc = count_cluster(f, 1, err);
    if (rc == CAIRN_OK)
        *ret_file = steal_ptr(f);
    return rc;
}
