/* SPDX-License-Identifier: Apache-2.0 */
#include "byte_count.h"

#include "checked.h"

bool number_parse(const char *text, size_t len, uint64_t *ret_number)
{
    uint64_t number = 0;

    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9' || !checked_mul(number, 10, &number) ||
            !checked_add(number, (uint64_t)(text[i] - '0'), &number))
            return false;
    }
    *ret_number = number;
    return len > 0;
}

/* The factor of a suffix, in either case; 0: it is none. */
static uint64_t factor_of(char suffix)
{
    switch (suffix | 0x20) {
    case 'k':
        return UINT64_C(1) << 10;
    case 'm':
        return UINT64_C(1) << 20;
    case 'g':
        return UINT64_C(1) << 30;
    case 't':
        return UINT64_C(1) << 40;
    default:
        return 0;
    }
}

bool byte_count_parse(const char *text, size_t len, uint64_t *ret_bytes)
{
    uint64_t factor = len > 0 ? factor_of(text[len - 1]) : 0, number;

    return number_parse(text, factor ? len - 1 : len, &number) &&
           checked_mul(number, factor ? factor : 1, ret_bytes);
}
