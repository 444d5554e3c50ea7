/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Request targets: decoded once, here, and whatever could mean something else to the next reader
 * is refused.  A '+' in a query is a plus: no name in this service has a space in it, and media
 * types have pluses.
 */
#include "http_internal.h"

#include <stdlib.h>
#include <string.h>

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent-decode in place; false for a bad escape or a control character. */
static bool decode(char *text)
{
    char *out = text;

    for (const char *in = text; *in; in++) {
        int c = (unsigned char)*in;

        if (c == '%') {
            int high = hex_value(in[1]), low = high < 0 ? -1 : hex_value(in[2]);

            if (low < 0)
                return false;
            c = high * 16 + low;
            in += 2;
        }
        if (c < 0x20 || c == 0x7f)
            return false;
        *out++ = (char)c;
    }
    *out = 0;
    return true;
}

static bool has_dot_component(const char *path)
{
    for (const char *p = path; p; p = strchr(p, '/')) {
        size_t n;

        p += *p == '/';
        n = strcspn(p, "/");
        if ((n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
            return true;
    }
    return false;
}

/* As it was sent: what is not must be escaped (RFC 3986, section 2). */
static bool is_printable(const char *text)
{
    for (; *text; text++)
        if (*text <= 0x20 || *text >= 0x7f)
            return false;
    return true;
}

static bool split_query(struct http_uri *uri, char *query)
{
    char *save = NULL;

    for (char *item = strtok_r(query, "&", &save); item; item = strtok_r(NULL, "&", &save)) {
        char *value = strchr(item, '=');

        if (uri->nr_query == HTTP_QUERY_MAX)
            return false;
        if (value)
            *value++ = 0;
        else
            value = item + strlen(item);
        if (!decode(item) || !decode(value))
            return false;
        uri->query[uri->nr_query].name = item;
        uri->query[uri->nr_query++].value = value;
    }
    return true;
}

/* The absolute form, http://host/path, is as good as the path (RFC 9112, section 3.2.2). */
static char *skip_authority(char *target)
{
    char *p = *target == '/' ? target : strstr(target, "://");

    return p && p != target ? strchr(p + 3, '/') : p;
}

unsigned http_uri_parse(const char *target, struct http_uri *ret_uri, const char **ret_reason)
{
    char *query;

    if (strlen(target) > HTTP_URI_MAX) {
        *ret_reason = "the request target is too long";
        return MHD_HTTP_URI_TOO_LONG;
    }
    if (!is_printable(target)) {
        *ret_reason = "the request target has a space, a control character or one beyond ASCII";
        return MHD_HTTP_BAD_REQUEST;
    }
    ret_uri->text = strdup(target);
    ret_uri->path = ret_uri->text ? skip_authority(ret_uri->text) : NULL;
    query = ret_uri->path ? strchr(ret_uri->path, '?') : NULL;
    if (query)
        *query++ = 0;
    if (!ret_uri->path || !decode(ret_uri->path)) {
        *ret_reason = "the path is not a valid one, or has a bad escape";
        return MHD_HTTP_BAD_REQUEST;
    }
    if (has_dot_component(ret_uri->path)) {
        *ret_reason = "the path has a component '.' or '..'";
        return MHD_HTTP_BAD_REQUEST;
    }
    if (query && !split_query(ret_uri, query)) {
        *ret_reason = "the query has a bad escape or too many parameters";
        return MHD_HTTP_BAD_REQUEST;
    }
    return 0;
}

void http_uri_release(struct http_uri *uri)
{
    free(uri->text);
}
