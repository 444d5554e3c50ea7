/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside sealing:
 *
 *   seal.c         from the extents of the old file to pieces, and pieces into the new one
 *   seal_batch.c   the content of a batch of pieces: read, zeros found, compressed, by a crew
 *   seal_file.c    the new file: where things go, tables, refcounts
 */
#ifndef ENGINE_SEAL_INTERNAL_H
#define ENGINE_SEAL_INTERNAL_H

#include "qcow2_header.h"
#include "seal.h"

/* Without extended L2 entries a cluster has one "subcluster". */
struct seal_shape {
    uint64_t virtual_size;
    unsigned cluster_bits;
    unsigned nr_subs;
    size_t cluster_size, sub_size;
};

struct seal_shape seal_shape_of(const struct qcow2_header *hdr);

/* The subclusters of a guest cluster that begin within the disk. */
uint32_t seal_subs_within(const struct seal_shape *shape, uint64_t cluster);

/* -- seal_batch.c ------------------------------------------------------------------------------ */

/* One guest cluster that the layer holds something of. */
struct seal_piece {
    uint64_t cluster;        /* guest offset in clusters */
    uint64_t host_off;       /* in the old file: of its host cluster, or of its compressed data */
    uint32_t compressed_len; /* 0: it is not compressed there */
    uint32_t data, zero;     /* a bit per subcluster; neither: a hole */
    uint32_t found;          /* of data at first, and zeros: now of zero, or a hole */
    uint32_t packed_len;     /* bytes of the cluster compressed anew, 0: it stays as it is */
};

struct seal_batch {
    struct source *src; /* borrowed */
    struct seal_shape shape;
    enum layer_compression src_compression;
    bool beneath;                /* a hole falls through to something */
    struct seal_options options; /* level and threads are set */

    struct seal_piece *pieces;
    size_t nr, max;
    uint8_t *data;   /* max clusters: the content of each piece, 0 where it holds no data */
    uint8_t *packed; /* the same compressed; NULL: nothing is */
};

int seal_batch_init(struct seal_batch *batch, struct cairn_error *err);
void seal_batch_release(struct seal_batch *batch);

/* Fill in data and packed of all pieces, and what follows from it. */
int seal_batch_run(struct seal_batch *batch, struct cairn_error *err);

static inline uint8_t *seal_batch_data(const struct seal_batch *batch, size_t i)
{
    return batch->data + i * batch->shape.cluster_size;
}

static inline uint8_t *seal_batch_packed(const struct seal_batch *batch, size_t i)
{
    return batch->packed + i * batch->shape.cluster_size;
}

/* -- seal_file.c ------------------------------------------------------------------------------- */

struct seal_file;

/* hdr is the old file's, borrowed with what it points to; out is empty, borrowed. */
int seal_file_new(struct hostfile *out, const struct qcow2_header *hdr,
                  enum seal_compression compression, struct seal_file **ret_file,
                  struct cairn_error *err);
void seal_file_free(struct seal_file *file);
CLEANUP_DEFINE(struct seal_file *, seal_file_free)

/* Guest clusters come in ascending order, each once, by one of these. */

/* data has the whole cluster, of which the subclusters of alloc are stored; may be none. */
int seal_file_put(struct seal_file *file, uint64_t cluster, const uint8_t *data, uint32_t alloc,
                  uint32_t zero, struct cairn_error *err);
int seal_file_put_compressed(struct seal_file *file, uint64_t cluster, const uint8_t *bytes,
                             uint32_t len, struct cairn_error *err);

/* Write the tables and, when all else is written, the header; make it durable. */
int seal_file_finish(struct seal_file *file, uint64_t *ret_size, struct cairn_error *err);

#endif
