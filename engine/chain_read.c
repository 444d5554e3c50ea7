/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a chain: map the range, then fill each extent's part of the buffer.  Zeros and holes
 * are never asked of a blob.  A compressed cluster is read and decompressed whole, into a buffer
 * that the cluster cache can keep, whichever part of it the extent shows.
 */
#include "chain_read.h"

#include <inttypes.h>
#include <string.h>

#include "ahead.h"
#include "checked.h"
#include "cluster_cache.h"

#define EXTENTS_AT_ONCE 32

/* Put the layer and the place in front of what went wrong there. */
static int at_layer(const struct chain_reader *reader, const struct extent *e, int rc,
                    struct cairn_error *err)
{
    const char *what = e->kind == EXTENT_COMPRESSED ? "compressed cluster" : "data";
    char text[DIGEST_STR_MAX];

    if (!reader->layers)
        return error_prefix(err, rc, "%s at 0x%" PRIx64, what, e->host_off);
    return error_prefix(err, rc, "layer %s: %s at 0x%" PRIx64,
                        digest_format(&reader->layers[e->layer], text), what, e->host_off);
}

/* Read and decompress the cluster that e is a part of. */
static int load_cluster(const struct chain_reader *reader, const struct extent *e,
                        struct cluster *cluster, struct cairn_error *err)
{
    const struct layer_attr *attr = &reader->l1->layers[e->layer];
    CLEANUP_FREE void *compressed = malloc(e->compressed_len);
    int rc;

    if (!compressed)
        return error_no_memory(err, "a compressed cluster");
    rc = reader->blobs.pread(reader->blobs.ctx, e->layer, compressed, e->compressed_len,
                             e->host_off, err);
    if (rc < 0)
        return rc;
    return layer_decompress((enum layer_compression)attr->compression, compressed,
                            e->compressed_len, cluster->data, cluster->len, err);
}

/* From the cache, if it has the cluster; NULL if not. */
static struct cluster *cached_cluster(const struct chain_reader *reader, const struct extent *e,
                                      uint32_t len)
{
    CLEANUP(cluster_unref_p) struct cluster *cluster = NULL;

    if (!reader->cache)
        return NULL;
    cluster = cluster_cache_get(reader->cache, &reader->layers[e->layer], e->host_off);
    /* What an index says of a layer's cluster size is not checked against that layer. */
    if (cluster && cluster->len != len)
        return NULL;
    return steal_ptr(cluster);
}

/* The cluster that e is a part of, from the cache or else into it. */
static int get_cluster(const struct chain_reader *reader, const struct extent *e,
                       struct cluster **ret_cluster, struct cairn_error *err)
{
    uint32_t len = 1u << reader->l1->layers[e->layer].cluster_bits;
    CLEANUP(cluster_unref_p) struct cluster *cluster = cached_cluster(reader, e, len);
    int rc = CAIRN_OK;

    if (!cluster) {
        rc = cluster_new(len, &cluster, err);
        if (rc == CAIRN_OK)
            rc = load_cluster(reader, e, cluster, err);
        if (rc == CAIRN_OK && reader->cache)
            cluster_cache_put(reader->cache, &reader->layers[e->layer], e->host_off, cluster);
    }
    if (rc == CAIRN_OK)
        *ret_cluster = steal_ptr(cluster);
    return rc;
}

static int read_compressed(const struct chain_reader *reader, const struct extent *e, void *buf,
                           struct cairn_error *err)
{
    CLEANUP(cluster_unref_p) struct cluster *cluster = NULL;
    uint64_t skip;
    int rc = get_cluster(reader, e, &cluster, err);

    if (rc < 0)
        return rc;
    skip = e->guest_off & (cluster->len - 1);
    memcpy(buf, cluster->data + skip, e->len);
    return CAIRN_OK;
}

int chain_read_extent(const struct chain_reader *reader, const struct extent *e, void *buf,
                      struct cairn_error *err)
{
    int rc;

    if (extent_reads_zero(e->kind)) {
        memset(buf, 0, e->len);
        return CAIRN_OK;
    }
    if (e->kind == EXTENT_COMPRESSED)
        rc = read_compressed(reader, e, buf, err);
    else
        rc = reader->blobs.pread(reader->blobs.ctx, e->layer, buf, e->len, e->host_off, err);
    return rc < 0 ? at_layer(reader, e, rc, err) : CAIRN_OK;
}

static int read_near(const struct chain_reader *reader, const struct extent *extents, size_t nr,
                     uint8_t *buf, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    for (size_t i = 0; rc == CAIRN_OK && i < nr; i++) {
        rc = chain_read_extent(reader, &extents[i], buf, err);
        buf += extents[i].len;
    }
    return rc;
}

/* Neighbouring extents, that threads read for one who waits for all of them. */
struct far_read {
    const struct chain_reader *reader;
    const struct extent *extents;
    uint8_t *buf;
};

static int make_extent(void *ctx, uint32_t nr, void **ret_item, struct cairn_error *err)
{
    const struct far_read *far = ctx;
    const struct extent *e = &far->extents[nr];

    *ret_item = far->buf + (e->guest_off - far->extents[0].guest_off);
    return chain_read_extent(far->reader, e, *ret_item, err);
}

static void keep_extent(void *item)
{
    (void)item; /* its bytes are the reader's */
}

static int read_far(const struct chain_reader *reader, const struct extent *extents, size_t nr,
                    uint8_t *buf, struct cairn_error *err)
{
    struct far_read far = {.reader = reader, .extents = extents, .buf = buf};
    const struct ahead_work work = {.make = make_extent, .free = keep_extent, .ctx = &far};
    CLEANUP(ahead_free_p) struct ahead *ahead = NULL;
    int rc = ahead_new(&work, 0, (uint32_t)nr, &ahead, err);
    void *item;

    for (size_t i = 0; rc == CAIRN_OK && i < nr; i++)
        rc = ahead_take(ahead, &item, err);
    return rc;
}

static bool several_are_stored(const struct extent *extents, size_t nr)
{
    size_t nr_stored = 0;

    for (size_t i = 0; i < nr; i++)
        nr_stored += !extent_reads_zero(extents[i].kind);
    return nr_stored > 1;
}

int chain_read(const struct chain_reader *reader, void *buf, size_t len, uint64_t guest_off,
               struct cairn_error *err)
{
    uint64_t end = guest_off + len;
    uint8_t *p = buf;

    if (!range_in(guest_off, len, reader->l1->virtual_size))
        return error_set(err, CAIRN_E_USAGE,
                         "read of %zu bytes at %" PRIu64 " reaches past the virtual size %" PRIu64,
                         len, guest_off, reader->l1->virtual_size);
    while (guest_off < end) {
        struct extent extents[EXTENTS_AT_ONCE];
        size_t nr = 0;
        int rc = chain_map(reader->l1, &reader->slices, guest_off, end - guest_off, extents,
                           EXTENTS_AT_ONCE, &nr, err);

        if (rc == CAIRN_OK && reader->far && several_are_stored(extents, nr))
            rc = read_far(reader, extents, nr, p, err);
        else if (rc == CAIRN_OK)
            rc = read_near(reader, extents, nr, p, err);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < nr; i++) {
            p += extents[i].len;
            guest_off += extents[i].len;
        }
    }
    return CAIRN_OK;
}
