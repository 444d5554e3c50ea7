/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libmicrohttpd lets pass and we do not.
 *
 * Two readers of one request that do not agree where it ends are how requests are smuggled through
 * a proxy (RFC 9112, section 11.2).  libmicrohttpd 0.9.75 takes the first of several
 * Content-Lengths, prefers Transfer-Encoding to it, and ignores encodings that it does not know.
 * Here a request that leaves any doubt is refused before a handler sees it, and its connection is
 * closed.
 *
 * What it does to a request before we see it cannot be helped here (server/README.md, "Framing").
 */
#include "http_strict.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "byte_count.h"

/* Headers that have one value. */
enum single {
    SINGLE_CONTENT_LENGTH,
    SINGLE_TRANSFER_ENCODING,
    SINGLE_HOST,
    SINGLE_CONTENT_RANGE,
    SINGLE_RANGE,
    SINGLE_IF_RANGE,
    SINGLE_AUTHORIZATION,
    SINGLE_EXPECT,
    NR_SINGLES,
};

static const char *const single_names[NR_SINGLES] = {
    [SINGLE_CONTENT_LENGTH] = "Content-Length",
    [SINGLE_TRANSFER_ENCODING] = "Transfer-Encoding",
    [SINGLE_HOST] = "Host",
    [SINGLE_CONTENT_RANGE] = "Content-Range",
    [SINGLE_RANGE] = "Range",
    [SINGLE_IF_RANGE] = "If-Range",
    [SINGLE_AUTHORIZATION] = "Authorization",
    [SINGLE_EXPECT] = "Expect",
};

struct headers {
    unsigned nr;
    size_t bytes;
    bool malformed;
    unsigned nr_of[NR_SINGLES];
    const char *value_of[NR_SINGLES];
};

/* A token (RFC 9110, section 5.6.2). */
static bool valid_name(const char *name, size_t len)
{
    static const char others[] = "!#$%&'*+-.^_`|~";

    for (size_t i = 0; i < len; i++) {
        char c = name[i];

        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              (c && strchr(others, c))))
            return false;
    }
    return len > 0;
}

static bool valid_value(const char *value, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)value[i];

        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static enum MHD_Result note_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                   size_t name_len, const char *value, size_t value_len)
{
    struct headers *headers = cls;

    (void)kind;
    headers->nr++;
    headers->bytes += name_len + value_len + strlen(": \r\n");
    if (!valid_name(name, name_len) || !valid_value(value, value_len))
        headers->malformed = true;
    for (unsigned i = 0; i < NR_SINGLES; i++) {
        if (strcasecmp(single_names[i], name) == 0) {
            headers->nr_of[i]++;
            headers->value_of[i] = value ? value : "";
        }
    }
    return MHD_YES;
}

static bool has_double(const struct headers *headers)
{
    for (unsigned i = 0; i < NR_SINGLES; i++) {
        if (headers->nr_of[i] > 1)
            return true;
    }
    return false;
}

static const struct http_refusal *check_framing(const struct headers *headers, bool is_1_1)
{
    static const struct http_refusal both = {MHD_HTTP_BAD_REQUEST, "BAD_REQUEST",
                                             "Content-Length and Transfer-Encoding in one request"};
    static const struct http_refusal encoding = {MHD_HTTP_NOT_IMPLEMENTED, "UNSUPPORTED",
                                                 "the only transfer encoding known is chunked"};
    static const struct http_refusal too_old = {MHD_HTTP_BAD_REQUEST, "BAD_REQUEST",
                                                "HTTP/1.0 has no transfer encodings"};
    static const struct http_refusal bad_length = {MHD_HTTP_BAD_REQUEST, "BAD_REQUEST",
                                                   "Content-Length is not a number"};
    const char *encodings = headers->value_of[SINGLE_TRANSFER_ENCODING];
    const char *length = headers->value_of[SINGLE_CONTENT_LENGTH];
    uint64_t number;

    if (encodings && length)
        return &both;
    if (encodings && !is_1_1)
        return &too_old;
    if (encodings && strcasecmp(encodings, "chunked") != 0)
        return &encoding;
    if (length && (!number_parse(length, strlen(length), &number) || number > INT64_MAX))
        return &bad_length;
    return NULL;
}

static const struct http_refusal *check_others(const struct headers *headers, bool is_1_1)
{
    static const struct http_refusal no_host = {MHD_HTTP_BAD_REQUEST, "BAD_REQUEST",
                                                "HTTP/1.1 wants a Host header"};
    static const struct http_refusal expectation = {MHD_HTTP_EXPECTATION_FAILED, "UNSUPPORTED",
                                                    "the only expectation known is 100-continue"};
    const char *expect = headers->value_of[SINGLE_EXPECT];

    if (is_1_1 && headers->nr_of[SINGLE_HOST] == 0)
        return &no_host;
    return expect && strcasecmp(expect, "100-continue") != 0 ? &expectation : NULL;
}

const struct http_refusal *http_strict_check(struct MHD_Connection *connection, const char *version,
                                             const struct http_limits *limits)
{
    static const struct http_refusal bad_version = {MHD_HTTP_HTTP_VERSION_NOT_SUPPORTED,
                                                    "UNSUPPORTED", "expected HTTP/1.1 or HTTP/1.0"};
    static const struct http_refusal malformed = {MHD_HTTP_BAD_REQUEST, "BAD_REQUEST",
                                                  "a header has a malformed name or value"};
    static const struct http_refusal doubled = {MHD_HTTP_BAD_REQUEST, "BAD_REQUEST",
                                                "a header that has one value is there twice"};
    static const struct http_refusal too_many = {MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE,
                                                 "BAD_REQUEST", "too many headers, or too long"};
    const bool is_1_1 = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
    const struct http_refusal *refusal;
    struct headers headers = {0};

    if (!is_1_1 && strcmp(version, MHD_HTTP_VERSION_1_0) != 0)
        return &bad_version;
    MHD_get_connection_values_n(connection, MHD_HEADER_KIND, note_header, &headers);
    if ((limits->headers > 0 && headers.nr > limits->headers) ||
        (limits->header_bytes > 0 && headers.bytes > limits->header_bytes))
        return &too_many;
    if (headers.malformed)
        return &malformed;
    if (has_double(&headers))
        return &doubled;
    refusal = check_framing(&headers, is_1_1);
    return refusal ? refusal : check_others(&headers, is_1_1);
}
