/* SPDX-License-Identifier: Apache-2.0 */
#include "json_text.h"

#include <stdint.h>
#include <stdio.h>

#include "cleanup.h"

static json_t *escaped_bytes(const uint8_t *bytes, size_t len)
{
    CLEANUP_FREE char *text = malloc(4 * len + 1);
    size_t n = 0;

    if (!text)
        return NULL;
    for (size_t i = 0; i < len; i++)
        if (bytes[i] >= ' ' && bytes[i] <= '~')
            text[n++] = (char)bytes[i];
        else
            n += (size_t)sprintf(text + n, "\\x%02x", bytes[i]);
    return json_stringn(text, n);
}

json_t *json_text(const void *bytes, size_t len)
{
    json_t *text = json_stringn(bytes ? bytes : "", len); /* NULL unless it is UTF-8 */

    return text ? text : escaped_bytes(bytes, len);
}
