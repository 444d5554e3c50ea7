/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic on numbers that come from outside.  The add and mul helpers return false instead of
 * wrapping round; range_in tests [off, off + len) against a size without forming the sum.
 */
#ifndef ENGINE_CHECKED_H
#define ENGINE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
    return !__builtin_add_overflow(a, b, ret_sum);
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret_product)
{
    return !__builtin_mul_overflow(a, b, ret_product);
}

/* Does [off, off + len) lie within [0, size)? */
static inline bool range_in(uint64_t off, uint64_t len, uint64_t size)
{
    return off <= size && len <= size - off;
}

/* For powers of two.  round_up does not check: use it only on values with room above them. */
static inline uint64_t round_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

static inline uint64_t round_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t align)
{
    return (v & (align - 1)) == 0;
}

static inline uint64_t div_round_up(uint64_t v, uint64_t by)
{
    return v / by + (v % by != 0);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
