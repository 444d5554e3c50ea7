/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the metadata of a qcow2 image is, however damaged: for the mutator, which wants to change
 * tables and not bytes.  Nothing is refused here; what cannot be followed is not followed.
 */
#ifndef TESTS_FUZZ_QCOW2_LAYOUT_H
#define TESTS_FUZZ_QCOW2_LAYOUT_H

#include "qcow2_input.h"

enum image_table {
    IMAGE_HEADER,
    IMAGE_EXTENSION, /* one of them */
    IMAGE_L1,
    IMAGE_L2,
    IMAGE_REFTABLE,
    IMAGE_REFBLOCK,
    IMAGE_SNAPSHOT, /* one entry of the snapshot table */
    IMAGE_BITMAP,   /* one entry of the bitmap directory */
    IMAGE_BITMAP_TABLE,
    IMAGE_TABLE_KINDS,
};

struct image_part {
    enum image_table kind;
    uint32_t off, len; /* inside the image */
};

#define IMAGE_PARTS_MAX 64

struct image_layout {
    unsigned cluster_bits; /* 9 to 21, whatever the header says */
    unsigned refcount_order;
    bool extl2;
    unsigned nr;
    struct image_part parts[IMAGE_PARTS_MAX];
};

/* There is a header at least, if the image has any size. */
void image_find_layout(const struct image *image, struct image_layout *ret_layout);

#endif
