/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealing, from end to end: the scan of the old file gives extents in guest order, which become
 * pieces, a guest cluster each; a batch of pieces is read and looked at at once, and goes into the
 * new file in order.  The scan has validated what it hands out, and everything else of the old file
 * is left behind.
 *
 * Nothing in the old file bounds how much is written (an L2 table of 64 KiB may name one host
 * cluster 8,192 times) but the virtual size: who seals foreign images watches the progress.
 */
#include "seal.h"

#include <inttypes.h>
#include <sched.h>

#include "compress.h"
#include "seal_internal.h"

#define THREADS_MAX 4

struct seal {
    const struct seal_options *options;
    struct seal_batch batch;
    struct seal_file *file;
    struct seal_result result;
    /* Of the old file, for dropped_clusters. */
    unsigned l2_span_bits;   /* guest bytes that an L2 table maps */
    uint64_t nr_l2, last_l2; /* tables that say something; the number of the last, plus 1 */
    uint64_t nr_host_clusters, compressed_bytes;
};

/* -- Shape and options ------------------------------------------------------------------------- */

struct seal_shape seal_shape_of(const struct qcow2_header *hdr)
{
    unsigned sub_bits = qcow2_has_extl2(hdr) ? QCOW2_SUBCLUSTER_BITS : 0;

    return (struct seal_shape){.virtual_size = qcow2_virtual_size(hdr),
                               .cluster_bits = hdr->cluster_bits,
                               .nr_subs = 1U << sub_bits,
                               .cluster_size = qcow2_cluster_size(hdr),
                               .sub_size = qcow2_cluster_size(hdr) >> sub_bits};
}

uint32_t seal_subs_within(const struct seal_shape *shape, uint64_t cluster)
{
    uint64_t len = shape->virtual_size - (cluster << shape->cluster_bits);
    uint64_t nr = min_u64(div_round_up(len, shape->sub_size), shape->nr_subs);

    return UINT32_MAX >> (32 - nr);
}

/* With the defaults in place of 0. */
static int complete_options(struct seal_options *options, struct cairn_error *err)
{
    enum layer_compression type = options->compression == SEAL_ZSTD ? LAYER_ZSTD : LAYER_DEFLATE;
    int level = options->level, max;
    cpu_set_t cpus;

    if (options->compression == SEAL_UNCOMPRESSED && level != 0)
        return error_set(err, CAIRN_E_USAGE, "a level of %d without compression", level);
    if (!compress_level(type, level, &options->level, &max))
        return error_set(err, CAIRN_E_USAGE, "compression level %d, expected 1 to %d", level, max);
    if (options->nr_threads == 0 && sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
        options->nr_threads = (unsigned)min_u64((unsigned)CPU_COUNT(&cpus), THREADS_MAX);
    return CAIRN_OK;
}

int seal_check_options(const struct seal_options *options, struct cairn_error *err)
{
    struct seal_options copy = *options;

    return complete_options(&copy, err);
}

/* -- Into the new file ------------------------------------------------------------------------- */

static int store_piece(struct seal *s, size_t i, struct cairn_error *err)
{
    const struct seal_piece *p = &s->batch.pieces[i];

    s->result.zero_bytes += (uint64_t)__builtin_popcount(p->found) * s->batch.shape.sub_size;
    if (p->packed_len > 0) {
        s->result.compressed_clusters++;
        return seal_file_put_compressed(s->file, p->cluster, seal_batch_packed(&s->batch, i),
                                        p->packed_len, err);
    }
    if (!p->data && !p->zero)
        return CAIRN_OK;
    s->result.data_clusters += p->data != 0;
    return seal_file_put(s->file, p->cluster, seal_batch_data(&s->batch, i), p->data, p->zero, err);
}

static int tell_progress(const struct seal *s, uint64_t cluster, struct cairn_error *err)
{
    const struct seal_shape *shape = &s->batch.shape;
    uint64_t done = min_u64(cluster << shape->cluster_bits, shape->virtual_size);

    if (!s->options->progress ||
        s->options->progress(s->options->progress_arg, done, shape->virtual_size) == 0)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CANCELLED, "sealing %s was cancelled", s->batch.src->name);
}

static int store_batch(struct seal *s, struct cairn_error *err)
{
    size_t nr = s->batch.nr;
    int rc;

    if (nr == 0)
        return CAIRN_OK;
    rc = seal_batch_run(&s->batch, err);
    for (size_t i = 0; rc == CAIRN_OK && i < nr; i++)
        rc = store_piece(s, i, err);
    s->batch.nr = 0;
    return rc == CAIRN_OK ? tell_progress(s, s->batch.pieces[nr - 1].cluster + 1, err) : rc;
}

/* -- Pieces ------------------------------------------------------------------------------------ */

/* The piece of a guest cluster: the last one, or a new one. */
static int get_piece(struct seal *s, uint64_t cluster, struct seal_piece **ret_piece,
                     struct cairn_error *err)
{
    struct seal_batch *batch = &s->batch;
    int rc = CAIRN_OK;

    if (batch->nr == 0 || batch->pieces[batch->nr - 1].cluster != cluster) {
        if (batch->nr == batch->max)
            rc = store_batch(s, err);
        if (rc != CAIRN_OK)
            return rc;
        batch->pieces[batch->nr++] = (struct seal_piece){.cluster = cluster};
    }
    *ret_piece = &batch->pieces[batch->nr - 1];
    return CAIRN_OK;
}

static void count_old(struct seal *s, const struct seal_piece *p, const struct extent *e)
{
    if (e->kind == EXTENT_COMPRESSED)
        s->compressed_bytes += e->compressed_len;
    else if (e->kind == EXTENT_DATA && !p->data) /* the first of its host cluster */
        s->nr_host_clusters++;
}

/* e lies in the guest cluster of p. */
static void add_to_piece(struct seal *s, struct seal_piece *p, const struct extent *e)
{
    const struct seal_shape *shape = &s->batch.shape;
    uint64_t begin = e->guest_off & (shape->cluster_size - 1);
    unsigned first = (unsigned)(begin / shape->sub_size);
    unsigned nr = (unsigned)(div_round_up(begin + e->len, shape->sub_size)) - first;
    uint32_t mask = UINT32_MAX >> (32 - nr) << first;

    count_old(s, p, e);
    if (extent_reads_zero(e->kind)) {
        p->zero |= mask;
        return;
    }
    p->data |= mask;
    p->compressed_len = e->compressed_len;
    p->host_off = e->kind == EXTENT_COMPRESSED ? e->host_off : e->host_off - begin;
}

static void count_l2(struct seal *s, const struct extent *e)
{
    uint64_t first = e->guest_off >> s->l2_span_bits;
    uint64_t last = (e->guest_off + e->len - 1) >> s->l2_span_bits;

    s->nr_l2 += last + 1 - max_u64(first, s->last_l2);
    s->last_l2 = last + 1;
}

static int take_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct seal *s = arg;
    const struct seal_shape *shape = &s->batch.shape;
    struct extent rest = *e;
    int rc = CAIRN_OK;

    count_l2(s, e);
    if (extent_reads_zero(e->kind) && !s->batch.beneath)
        return CAIRN_OK;
    while (rc == CAIRN_OK && rest.len > 0) {
        uint64_t cluster = rest.guest_off >> shape->cluster_bits;
        struct extent part = rest;
        struct seal_piece *piece;

        part.len = min_u64(rest.len, ((cluster + 1) << shape->cluster_bits) - rest.guest_off);
        rc = get_piece(s, cluster, &piece, err);
        if (rc == CAIRN_OK)
            add_to_piece(s, piece, &part);
        extent_trim_front(&rest, part.len);
    }
    return rc;
}

/* -- The whole --------------------------------------------------------------------------------- */

static uint64_t clusters_of(const struct seal_shape *shape, uint64_t bytes)
{
    return div_round_up(bytes, shape->cluster_size);
}

/* Host clusters of the old file less those that its active disk needs. */
static uint64_t dropped_clusters(const struct seal *s, const struct qcow2_header *hdr)
{
    const struct seal_shape *shape = &s->batch.shape;
    uint64_t all = clusters_of(shape, s->result.old_bytes);
    uint64_t counted = shape->cluster_size * 8 >> hdr->refcount_order; /* by a refcount block */
    uint64_t needed = 1 + clusters_of(shape, (uint64_t)hdr->l1_size * QCOW2_L1E_SIZE) +
                      hdr->refcount_table_clusters + div_round_up(all, counted) + s->nr_l2 +
                      s->nr_host_clusters + clusters_of(shape, s->compressed_bytes);

    return all > needed ? all - needed : 0;
}

static int rewrite(struct seal *s, struct qcow2_image *image, struct cairn_error *err)
{
    int rc = seal_batch_init(&s->batch, err);

    if (rc == CAIRN_OK)
        rc = qcow2_image_scan(image, take_extent, s, err);
    if (rc == CAIRN_OK)
        rc = store_batch(s, err);
    if (rc == CAIRN_OK)
        rc = seal_file_finish(s->file, &s->result.new_bytes, err);
    return rc;
}

int seal_image(struct source *src, struct hostfile *out, const struct seal_options *options,
               struct seal_result *ret_result, struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    struct seal s = {.options = options, .batch = {.src = src, .options = *options}};
    const struct qcow2_header *hdr;
    int rc = complete_options(&s.batch.options, err);

    if (rc == CAIRN_OK)
        rc = qcow2_image_open(src, 0, &image, err);
    if (rc != CAIRN_OK)
        return rc;
    hdr = qcow2_image_header(image);
    s.batch.shape = seal_shape_of(hdr);
    s.l2_span_bits = hdr->cluster_bits + qcow2_l2_bits(hdr);
    s.batch.src_compression = hdr->compression_type;
    s.batch.beneath = hdr->backing_file.len > 0 || hdr->has_parent || hdr->parent_pending;
    s.result.old_bytes = src->size;
    rc = seal_file_new(out, hdr, options->compression, &s.file, err);
    if (rc == CAIRN_OK)
        rc = rewrite(&s, image, err);
    seal_batch_release(&s.batch);
    seal_file_free(s.file);
    if (rc != CAIRN_OK)
        return rc;
    s.result.dropped_clusters = dropped_clusters(&s, hdr);
    s.result.dropped_snapshots = hdr->nb_snapshots;
    s.result.dropped_bitmaps = hdr->nb_bitmaps;
    *ret_result = s.result;
    return CAIRN_OK;
}
