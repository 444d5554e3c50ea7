/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much memory a program has allocated at once, between two points of one thread: every malloc
 * counts, also those of the libraries that we use.
 */
#ifndef TESTS_ALLOC_METER_H
#define TESTS_ALLOC_METER_H

#include <stddef.h>
#include <stdint.h>

/* From here on; above bound bytes the program aborts. */
void alloc_meter_start(size_t bound);
/* The most that there was at once. */
size_t alloc_meter_stop(void);

/* What reading a qcow2 image of this size takes at most, and what checking it: as engine/README.md
 * states for small images. */
static inline size_t alloc_bound_reading(uint64_t image_size)
{
    return image_size <= 64 << 10 ? (size_t)512 << 10 : (size_t)64 << 20;
}

static inline size_t alloc_bound_checking(uint64_t image_size)
{
    return image_size <= 64 << 10 ? (size_t)4 << 20 : (size_t)64 << 20;
}

#endif
