/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checksum of a block with the instructions that every processor has, and the choice.
 *
 * libxxhash's own choice at run time (xxh_x86dispatch.h) is not used: as Debian 12 builds it, it
 * leaves the upper halves of the vector registers in use, and SSE code that follows, ours or
 * libc's, runs at a quarter of its speed.
 */
#include "block_sum.h"

#include <xxhash.h>

#include "block_cache.h"

uint64_t block_sum_portable(const void *bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, BLOCK_SIZE, seed);
}

block_sum_fn *block_sum_choose(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2"))
        return block_sum_avx2;
#endif
    return block_sum_portable;
}
