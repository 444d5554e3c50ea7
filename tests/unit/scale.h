/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of what could be tried is tried, as tests/run says it: a part that the seed selects, or
 * with --long all.
 */
#ifndef TESTS_UNIT_SCALE_H
#define TESTS_UNIT_SCALE_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline bool scale_is_long(void)
{
    const char *scale = getenv("CAIRN_TEST_SCALE");

    return scale && strcmp(scale, "long") == 0;
}

/* Of CAIRN_TEST_SEED or the time; printed, for a failure to be repeated. */
static inline uint64_t scale_seed(void)
{
    const char *given = getenv("CAIRN_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);

    printf("CAIRN_TEST_SEED=%" PRIu64 "\n", seed);
    fflush(stdout);
    return seed;
}

#endif
