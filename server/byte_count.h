/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers as an operator writes them: decimal digits, for bytes with an optional K, M, G or T. */
#ifndef SERVER_BYTE_COUNT_H
#define SERVER_BYTE_COUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* False for anything but the len bytes of one number, and for one beyond 64 bits. */
bool number_parse(const char *text, size_t len, uint64_t *ret_number);
bool byte_count_parse(const char *text, size_t len, uint64_t *ret_bytes);

#endif
