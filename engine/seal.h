/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a qcow2 image anew in its canonical form: what a sealed layer is published as.
 *
 * The new file holds what the active disk of the old one shows, and nothing else: no preallocated,
 * leaked or unreferenced clusters, no internal snapshots, bitmaps, VM state or unknown extensions,
 * no tail.  Cluster size, extended L2 entries, virtual size (in whole sectors), backing name and
 * format and the recorded parent stay as they are.
 *
 * What falls through to a backing file falls through, what does not does not.  Data that is zeros
 * becomes zeros without storage, by the subcluster where there are subclusters, else by the
 * cluster.  Where nothing is beneath (no backing name, no parent) zeros and holes are the same, and
 * become holes.
 *
 * The bytes follow from the guest content, what of it the layer holds, the shape and the options:
 * not from the order in which the guest wrote, nor from how the old file stored it, nor from the
 * number of threads.  (Of compressed clusters: given the same version of zlib or zstd.)  To seal
 * what is sealed gives the same file.
 *
 * Layout: header, then guest data in guest order, L2 tables and refcount blocks in runs of up to
 * 4 MiB behind what they describe, L1 table, the last refcount blocks, refcount table.
 */
#ifndef ENGINE_SEAL_H
#define ENGINE_SEAL_H

#include "hostfile.h"
#include "qcow2_image.h"

enum seal_compression {
    SEAL_UNCOMPRESSED = 0,
    SEAL_ZLIB = 1,
    SEAL_ZSTD = 2,
};

struct seal_options {
    enum seal_compression compression; /* also of clusters that the old file has compressed */
    int level;                         /* zlib 1 to 9, zstd 1 to 19; 0: 6, 3 */
    unsigned nr_threads;               /* 0: as many as there are CPUs, at most 4 */
    /* Guest bytes behind and in all.  Not 0 stops: CAIRN_E_CANCELLED.  May be NULL. */
    int (*progress)(void *arg, uint64_t done, uint64_t total);
    void *progress_arg;
};

/* Facts of one sealing. */
struct seal_result {
    uint64_t old_bytes, new_bytes; /* of the files */
    uint64_t dropped_clusters;     /* host clusters of the old file, by its size, that held neither
                                      guest data nor a table of the active disk */
    uint64_t zero_bytes;           /* guest bytes that were stored and are zeros */
    uint64_t data_clusters;        /* of the new file, not compressed … */
    uint64_t compressed_clusters;  /* … and compressed */
    uint32_t dropped_snapshots, dropped_bitmaps;
};

/* CAIRN_E_USAGE, if a level is none of its compression. */
int seal_check_options(const struct seal_options *options, struct cairn_error *err);

/*
 * Write the image that src is into out, which is empty, and make it durable.  Errors are those of
 * qcow2_image_open and layer_scan for src, those of writing for out, of which nothing may be used
 * then.  src may be read by others meanwhile, but must not change.
 *
 * Memory: twice the L1 table (at most 32 MiB) and 4 MiB for the scan, the L1 table and 4 MiB of
 * tables for the new file, 16 MiB of guest data, twice that with compression; with clusters of
 * 2 MiB a few clusters more.
 */
int seal_image(struct source *src, struct hostfile *out, const struct seal_options *options,
               struct seal_result *ret_result, struct cairn_error *err);

#endif
