/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long something took, counted in classes.  Thread-safe; a reader may see a count before the
 * sum that belongs to it.
 */
#ifndef SERVER_HISTOGRAM_H
#define SERVER_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_CLASSES 16

/* Upper bounds in microseconds; the last class has none. */
static const uint32_t histogram_bounds_us[HISTOGRAM_CLASSES - 1] = {
    25,    50,    100,    250,    500,     1000,     2500,    5000,
    10000, 25000, 100000, 500000, 2500000, 10000000, 60000000};

struct histogram {
    atomic_uint_fast64_t counts[HISTOGRAM_CLASSES]; /* of each class by itself */
    atomic_uint_fast64_t sum_us;
};

static inline void histogram_add(struct histogram *h, uint64_t us)
{
    unsigned i = 0;

    while (i < HISTOGRAM_CLASSES - 1 && us > histogram_bounds_us[i])
        i++;
    atomic_fetch_add_explicit(&h->counts[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_us, us, memory_order_relaxed);
}

static inline uint64_t histogram_total(const struct histogram *h)
{
    uint64_t nr = 0;

    for (unsigned i = 0; i < HISTOGRAM_CLASSES; i++)
        nr += atomic_load_explicit(&h->counts[i], memory_order_relaxed);
    return nr;
}

#endif
