/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checksum of one block: XXH3, which is the same number whatever instructions compute it.  A
 * read spends more time here than in any other code of ours, so the widest that pay are chosen.
 */
#ifndef CLIENT_BLOCK_SUM_H
#define CLIENT_BLOCK_SUM_H

#include <stdint.h>

/* Of the BLOCK_SIZE bytes there. */
typedef uint64_t block_sum_fn(const void *bytes, uint64_t seed);

block_sum_fn block_sum_portable;
block_sum_fn block_sum_avx2; /* x86-64 only, and not on every one */

/* The one for this processor. */
block_sum_fn *block_sum_choose(void);

#endif
