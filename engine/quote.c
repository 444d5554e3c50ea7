/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quoting of outside bytes.  Nothing here allocates or fails; the result never exceeds QUOTE_MAX
 * with its quotes, a possible "..." and the terminating zero.
 */
#include "quote.h"

#include <stdint.h>
#include <string.h>

#define ESCAPED_MAX 4 /* \x1f */
#define TAIL_LEN    5 /* ..." and the zero */

static size_t put_byte(char *at, uint8_t byte)
{
    static const char hex[] = "0123456789abcdef";

    if (byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\') {
        at[0] = (char)byte;
        return 1;
    }
    at[0] = '\\';
    at[1] = 'x';
    at[2] = hex[byte >> 4];
    at[3] = hex[byte & 15];
    return ESCAPED_MAX;
}

char *quote_bytes(const void *bytes, size_t len, char buf[QUOTE_MAX])
{
    const uint8_t *in = bytes;
    size_t used = 0, i;

    buf[used++] = '"';
    for (i = 0; i < len && used + ESCAPED_MAX + TAIL_LEN <= QUOTE_MAX; i++)
        used += put_byte(buf + used, in[i]);
    memcpy(buf + used, i < len ? "...\"" : "\"", i < len ? 5 : 2);
    return buf;
}

char *quote_str(const char *str, char buf[QUOTE_MAX])
{
    return quote_bytes(str, strlen(str), buf);
}
