/* SPDX-License-Identifier: Apache-2.0 */
/* Strict where it costs nobody anything: every client that is in use writes plain RFC 4648 base64,
 * with its padding. */
#include "credentials.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

/* The value of a base64 digit, -1 if it is none. */
static int digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;

    return at ? (int)(at - digits) : -1;
}

/* Decode len digits, a multiple of 4 with at most two `=` at the end, into at most room bytes. */
static bool decode(const char *text, size_t len, char *buf, size_t room, size_t *ret_len)
{
    size_t padding = 0, nr = 0;
    uint32_t bits = 0;

    if (len % 4 || len / 4 * 3 > room)
        return false;
    while (padding < 2 && len > padding && text[len - 1 - padding] == '=')
        padding++;
    for (size_t i = 0; i < len; i++) {
        int value = i < len - padding ? digit(text[i]) : 0;

        if (value < 0)
            return false;
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 == 3) {
            buf[nr++] = (char)(bits >> 16 & 0xff);
            buf[nr++] = (char)(bits >> 8 & 0xff);
            buf[nr++] = (char)(bits & 0xff);
        }
    }
    *ret_len = nr - padding;
    return true;
}

/* `user:token`, in base64. */
static enum credentials parse_basic(const char *text, char buf[CREDENTIALS_MAX],
                                    const char **ret_token, size_t *ret_len)
{
    const char *colon;
    size_t len;

    if (!decode(text, strlen(text), buf, CREDENTIALS_MAX, &len))
        return CREDENTIALS_MALFORMED;
    colon = memchr(buf, ':', len);
    if (!colon)
        return CREDENTIALS_MALFORMED;
    *ret_token = colon + 1;
    *ret_len = len - (size_t)(colon + 1 - buf);
    return *ret_len > 0 ? CREDENTIALS_TOKEN : CREDENTIALS_NONE;
}

static enum credentials parse_bearer(const char *text, char buf[CREDENTIALS_MAX],
                                     const char **ret_token, size_t *ret_len)
{
    size_t len = strlen(text);

    if (len == 0 || len >= CREDENTIALS_MAX || strchr(text, ' '))
        return CREDENTIALS_MALFORMED;
    memcpy(buf, text, len + 1);
    *ret_token = buf;
    *ret_len = len;
    return CREDENTIALS_TOKEN;
}

enum credentials credentials_parse(const char *authorization, char buf[CREDENTIALS_MAX],
                                   const char **ret_token, size_t *ret_len)
{
    const char *space = authorization ? strchr(authorization, ' ') : NULL;
    const char *rest = space ? space + strspn(space, " ") : NULL;

    if (!authorization)
        return CREDENTIALS_NONE;
    if (rest && space - authorization == 5 && strncasecmp(authorization, "Basic", 5) == 0)
        return parse_basic(rest, buf, ret_token, ret_len);
    if (rest && space - authorization == 6 && strncasecmp(authorization, "Bearer", 6) == 0)
        return parse_bearer(rest, buf, ret_token, ret_len);
    return CREDENTIALS_MALFORMED;
}
