/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The content of a batch of guest clusters.  Each is read, searched for zeros and compressed by
 * itself, with nothing shared but the places for the results; so a crew can divide the batch
 * without any effect on what comes out.
 */
#include <inttypes.h>
#include <stdatomic.h>

#include "bytes.h"
#include "compress.h"
#include "crew.h"
#include "seal_internal.h"

#define BATCH_BYTES ((size_t)16 << 20)
#define SLICE_BYTES ((size_t)2 << 20) /* what one of the crew takes at a time */

/* A compressed cluster costs its reader more than a plain one, and an index an extent of its own:
 * it has to save a sixteenth at least. */
#define WORTH_SHIFT 4

static enum layer_compression new_type(const struct seal_batch *batch)
{
    return batch->options.compression == SEAL_ZSTD ? LAYER_ZSTD : LAYER_DEFLATE;
}

int seal_batch_init(struct seal_batch *batch, struct cairn_error *err)
{
    size_t cluster_size = batch->shape.cluster_size;
    bool compress = batch->options.compression != SEAL_UNCOMPRESSED;

    /* A small disk takes little memory. */
    batch->max = min_u64(BATCH_BYTES / cluster_size,
                         max_u64(div_round_up(batch->shape.virtual_size, cluster_size), 1));
    batch->pieces = malloc(batch->max * sizeof(*batch->pieces));
    batch->data = malloc(batch->max * cluster_size);
    batch->packed = compress ? malloc(batch->max * cluster_size) : NULL;
    if (!batch->pieces || !batch->data || (compress && !batch->packed))
        return error_no_memory(err, "guest data");
    return CAIRN_OK;
}

void seal_batch_release(struct seal_batch *batch)
{
    free(batch->pieces);
    free(batch->data);
    free(batch->packed);
}

/* -- Reading ----------------------------------------------------------------------------------- */

/* The subclusters that hold data, a read for each run of them; the others get zeros. */
static int load_parts(const struct seal_batch *batch, size_t i, struct cairn_error *err)
{
    const struct seal_piece *p = &batch->pieces[i];
    const size_t sub_size = batch->shape.sub_size;
    uint8_t *to = seal_batch_data(batch, i);
    unsigned n = 0;
    int rc = CAIRN_OK;

    memset(to, 0, batch->shape.cluster_size);
    while (rc == CAIRN_OK && n < batch->shape.nr_subs) {
        unsigned from = n;

        while (n < batch->shape.nr_subs && p->data >> n & 1)
            n++;
        if (n > from)
            rc = source_pread_padded(batch->src, to + from * sub_size, (n - from) * sub_size,
                                     p->host_off + from * sub_size, err);
        else
            n++;
    }
    return rc;
}

static int load_compressed(const struct seal_batch *batch, size_t i, struct cairn_error *err)
{
    const struct seal_piece *p = &batch->pieces[i];
    CLEANUP_FREE void *compressed = malloc(p->compressed_len);
    int rc;

    if (!compressed)
        return error_no_memory(err, "a compressed cluster");
    rc = source_pread_padded(batch->src, compressed, p->compressed_len, p->host_off, err);
    if (rc != CAIRN_OK)
        return rc;
    rc = layer_decompress(batch->src_compression, compressed, p->compressed_len,
                          seal_batch_data(batch, i), batch->shape.cluster_size, err);
    return rc == CAIRN_OK ? rc
                          : error_prefix(err, rc, "%s: compressed cluster at 0x%" PRIx64,
                                         batch->src->name, p->host_off);
}

static bool is_whole(const struct seal_batch *batch, size_t i)
{
    const struct seal_piece *p = &batch->pieces[i];

    return p->compressed_len == 0 && p->data == UINT32_MAX >> (32 - batch->shape.nr_subs);
}

/* From i on, pieces before end whose host clusters lie one behind the other: one read. */
static size_t contiguous(const struct seal_batch *batch, size_t i, size_t end)
{
    size_t next = i + 1;

    while (next < end && is_whole(batch, next) &&
           batch->pieces[next].host_off ==
               batch->pieces[i].host_off + (next - i) * batch->shape.cluster_size)
        next++;
    return next - i;
}

static int load(const struct seal_batch *batch, size_t begin, size_t end, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    for (size_t i = begin, nr; rc == CAIRN_OK && i < end; i += nr) {
        nr = 1;
        if (is_whole(batch, i)) {
            nr = contiguous(batch, i, end);
            rc =
                source_pread_padded(batch->src, seal_batch_data(batch, i),
                                    nr * batch->shape.cluster_size, batch->pieces[i].host_off, err);
        } else if (batch->pieces[i].compressed_len > 0) {
            rc = load_compressed(batch, i, err);
        } else if (batch->pieces[i].data) {
            rc = load_parts(batch, i, err);
        }
    }
    return rc;
}

/* -- What it is -------------------------------------------------------------------------------- */

/* What lies behind the end of the disk is nobody's. */
static void clear_behind_end(const struct seal_batch *batch, size_t i)
{
    const struct seal_shape *shape = &batch->shape;
    uint64_t begin = batch->pieces[i].cluster << shape->cluster_bits;
    uint64_t within = min_u64(shape->virtual_size - begin, shape->cluster_size);

    memset(seal_batch_data(batch, i) + within, 0, shape->cluster_size - within);
}

static bool all_zero(const uint8_t *bytes, size_t len)
{
    return bytes_get_be64(bytes) == 0 && memcmp(bytes, bytes + 8, len - 8) == 0;
}

static void find_zeros(const struct seal_batch *batch, size_t i)
{
    const size_t sub_size = batch->shape.sub_size;
    struct seal_piece *p = &batch->pieces[i];

    for (unsigned n = 0; n < batch->shape.nr_subs; n++)
        if (p->data >> n & 1 && all_zero(seal_batch_data(batch, i) + n * sub_size, sub_size))
            p->found |= UINT32_C(1) << n;
    p->data &= ~p->found;
    p->zero = batch->beneath ? p->zero | p->found : 0;
}

/* In a compressed cluster nothing falls through. */
static bool may_be_compressed(const struct seal_batch *batch, const struct seal_piece *p)
{
    uint32_t within = seal_subs_within(&batch->shape, p->cluster);

    return p->data && (!batch->beneath || (p->data | p->zero) == within);
}

static int pack(const struct seal_batch *batch, size_t i, struct compressor *compressor,
                struct cairn_error *err)
{
    const size_t cluster_size = batch->shape.cluster_size;
    size_t len = 0;
    int rc = compressor_run(compressor, seal_batch_data(batch, i), cluster_size,
                            seal_batch_packed(batch, i),
                            cluster_size - (cluster_size >> WORTH_SHIFT), &len, err);

    batch->pieces[i].packed_len = (uint32_t)len;
    return rc;
}

/* -- The crew ---------------------------------------------------------------------------------- */

struct work {
    const struct seal_batch *batch;
    size_t slice; /* pieces */
    atomic_size_t next;
};

static int run_slice(const struct seal_batch *batch, size_t begin, size_t end,
                     struct cairn_error *err)
{
    CLEANUP(compressor_free_p) struct compressor *compressor = NULL;
    int rc = load(batch, begin, end, err);

    if (rc == CAIRN_OK && batch->packed)
        rc = compressor_new(new_type(batch), batch->options.level, &compressor, err);
    for (size_t i = begin; rc == CAIRN_OK && i < end; i++) {
        if (!batch->pieces[i].data)
            continue;
        clear_behind_end(batch, i);
        find_zeros(batch, i);
        if (batch->packed && may_be_compressed(batch, &batch->pieces[i]))
            rc = pack(batch, i, compressor, err);
    }
    return rc;
}

static int take_slice(void *arg, struct cairn_error *err)
{
    struct work *work = arg;
    size_t begin = atomic_fetch_add(&work->next, work->slice);

    if (begin >= work->batch->nr)
        return CREW_NONE_LEFT;
    return run_slice(work->batch, begin, (size_t)min_u64(begin + work->slice, work->batch->nr),
                     err);
}

int seal_batch_run(struct seal_batch *batch, struct cairn_error *err)
{
    struct work work = {.batch = batch, .slice = SLICE_BYTES / batch->shape.cluster_size};
    size_t nr_slices = div_round_up(batch->nr, work.slice);
    bool has_data = false;

    for (size_t i = 0; i < batch->nr && !has_data; i++)
        has_data = batch->pieces[i].data;
    if (!has_data)
        return CAIRN_OK;
    return crew_run((unsigned)min_u64(batch->options.nr_threads, nr_slices), take_slice, &work,
                    err);
}
