/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The content of an image as its readers see it: a chain of that one layer, read through its chain
 * index.  Of a large disk only the beginning can be read.
 */
#ifndef TESTS_FUZZ_FUZZ_DISK_H
#define TESTS_FUZZ_FUZZ_DISK_H

#include "chain_read.h"
#include "layer.h"

#define FUZZ_SLICES 4
#define FUZZ_REACH  (FUZZ_SLICES * INDEX_SLICE_SIZE) /* guest bytes that can be read */

/* Whatever an image lists: snapshots, bitmaps. */
void fuzz_list(struct source *src);

struct fuzz_disk {
    struct source *src;
    struct layer *layer; /* borrowed, as src is */
    struct index_l1 *l1;
    struct index_slice *slices[FUZZ_SLICES];
};

/* False: the image is refused.  To be released in any case. */
bool fuzz_disk_init(struct fuzz_disk *disk, struct source *src, struct layer *layer);
void fuzz_disk_release(struct fuzz_disk *disk);

struct chain_reader fuzz_disk_reader(struct fuzz_disk *disk);

/* Read a range within FUZZ_REACH; beneath (may be NULL) fills what the layer does not have.  False:
 * some of it cannot be read, as compressed data may be. */
bool fuzz_disk_read(struct fuzz_disk *disk, uint8_t *buf, size_t len, uint64_t guest_off,
                    void (*beneath)(uint8_t *buf, size_t len, uint64_t guest_off));

#endif
