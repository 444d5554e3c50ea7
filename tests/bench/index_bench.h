/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of bench_index share.  Each measurement prints one JSON object on a line of its
 * own; index.py makes a table of them.
 */
#ifndef TESTS_BENCH_INDEX_BENCH_H
#define TESTS_BENCH_INDEX_BENCH_H

#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "chain_index_internal.h"
#include "checked.h"

#define BENCH_DEPTH 1000

/* An index in memory with random extents, and the same extents as a flat sorted array. */
struct flat_extent {
    uint64_t guest_off;
    uint64_t host_off;
    uint32_t len;
    uint16_t layer;
    uint8_t kind;
};

struct data_set {
    uint64_t nr;
    struct flat_extent *flat;
    struct index_l1 *l1;
    struct index_slice **slices; /* l1->nr_slices of them */
};

struct data_set *data_set_new(uint64_t nr);
void data_set_free(struct data_set *set);
struct index_slices data_set_slices(struct data_set *set);

/* Times in seconds; the median of what is then sorted. */
double bench_now(void);
double bench_cpu_now(void); /* of this thread's time: what others take of the core does not count */
double bench_process_now(void); /* of all threads' time */
double bench_median(double *values, unsigned nr);

/* xorshift64*. */
uint64_t bench_random(void);
uint64_t bench_below(uint64_t n);

void *bench_calloc(size_t nr, size_t size);
/* Ends the program with err's message if code is negative. */
void bench_check(int code, const struct cairn_error *err);

void bench_lookups(uint64_t nr_extents, unsigned rounds);
void bench_sizes(uint64_t nr_extents, unsigned rounds);
/* Bytes and times of the codec for these slices, as a line for `what`. */
void bench_codec(const char *what, const struct index_l1 *l1, struct index_slice *const *slices,
                 unsigned rounds);

/* Writes layer-NNNN.qcow2 files into folder, bottom first; merges them. */
void bench_make_chain(const char *folder, unsigned depth);
void bench_merge(const char *folder, unsigned depth, unsigned rounds);

#endif
