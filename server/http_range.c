/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Range, If-Range and If-None-Match (RFC 9110, sections 13 and 14).  One range in bytes is served;
 * several, other units and what does not parse are ignored, as the RFC allows, so that the answer
 * is the whole.
 */
#include "http.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

static const char *skip_blanks(const char *p)
{
    return p + strspn(p, " \t");
}

/* Digits at *p, as a number that sticks at UINT64_MAX; false if there are none. */
static bool parse_number(const char **p, uint64_t *ret_value)
{
    uint64_t value = 0;
    size_t n = strspn(*p, "0123456789");

    for (size_t i = 0; i < n; i++) {
        uint64_t digit = (uint64_t)((*p)[i] - '0');

        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, digit, &value))
            value = UINT64_MAX;
        if (value == UINT64_MAX)
            break;
    }
    *p += n;
    *ret_value = value;
    return n > 0;
}

/* The last length bytes: "-500". */
static enum http_range suffix_range(const char *p, uint64_t size, uint64_t *ret_off,
                                    uint64_t *ret_len)
{
    uint64_t len;

    if (!parse_number(&p, &len) || *skip_blanks(p))
        return HTTP_RANGE_NONE;
    if (len == 0 || size == 0)
        return HTTP_RANGE_UNSATISFIABLE;
    *ret_len = len < size ? len : size;
    *ret_off = size - *ret_len;
    return HTTP_RANGE_PARTIAL;
}

static enum http_range parse_bytes(const char *p, uint64_t size, uint64_t *ret_off,
                                   uint64_t *ret_len)
{
    uint64_t first, last = UINT64_MAX;

    if (*p == '-')
        return suffix_range(p + 1, size, ret_off, ret_len);
    if (!parse_number(&p, &first) || *p++ != '-')
        return HTTP_RANGE_NONE;
    if (*p >= '0' && *p <= '9')
        parse_number(&p, &last);
    if (*skip_blanks(p) || last < first)
        return HTTP_RANGE_NONE;
    if (first >= size)
        return HTTP_RANGE_UNSATISFIABLE;
    *ret_off = first;
    *ret_len = (last < size ? last : size - 1) - first + 1;
    return HTTP_RANGE_PARTIAL;
}

enum http_range http_range_parse(const char *range, const char *if_range, uint64_t size,
                                 const char *etag, uint64_t *ret_off, uint64_t *ret_len)
{
    static const char unit[] = "bytes=";

    if (!range || strncasecmp(range, unit, sizeof(unit) - 1) != 0)
        return HTTP_RANGE_NONE;
    /* Only a strong validator that matches lets a range through; we never gave a date. */
    if (if_range && (!etag || strcmp(if_range, etag) != 0))
        return HTTP_RANGE_NONE;
    return parse_bytes(skip_blanks(range + sizeof(unit) - 1), size, ret_off, ret_len);
}

bool http_etag_listed(const char *if_none_match, const char *etag)
{
    const size_t etag_len = strlen(etag);
    const char *p = if_none_match;

    while (p && *(p = p + strspn(p, " \t,"))) {
        size_t n = strcspn(p, ",");

        while (n > 0 && (p[n - 1] == ' ' || p[n - 1] == '\t'))
            n--;
        if (n == 1 && *p == '*')
            return true;
        if (n > 2 && p[0] == 'W' && p[1] == '/') { /* weak comparison: section 13.1.2 */
            p += 2;
            n -= 2;
        }
        if (n == etag_len && memcmp(p, etag, n) == 0)
            return true;
        p += strcspn(p, ",");
    }
    return false;
}

enum http_range http_range(const struct http_request *req, uint64_t size, const char *etag,
                           uint64_t *ret_off, uint64_t *ret_len)
{
    return http_range_parse(http_header(req, "Range"), http_header(req, "If-Range"), size, etag,
                            ret_off, ret_len);
}

bool http_not_modified(const struct http_request *req, const char *etag)
{
    return http_etag_listed(http_header(req, "If-None-Match"), etag);
}
