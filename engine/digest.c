/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 digests and the chain IDs made of them.
 *
 * Hashing goes through libcrypto's low-level SHA256 calls: they neither allocate nor fail, where
 * the EVP interface may do both, and a digest that could be silently missing is not to be had.
 */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "digest.h"

#include <openssl/sha.h>

#include "quote.h"

static const char prefix[] = "sha256:";
#define PREFIX_LEN (sizeof(prefix) - 1)

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

static bool parse_hex(const char *hex, struct digest *d)
{
    for (size_t i = 0; i < sizeof(d->sha256); i++) {
        int high = hex_value(hex[2 * i]);
        int low = hex_value(hex[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        d->sha256[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

int digest_parse(const char *text, size_t len, struct digest *ret_digest, struct cairn_error *err)
{
    struct digest d;
    char quoted[QUOTE_MAX];

    if (len != PREFIX_LEN + DIGEST_HEX_LEN || memcmp(text, prefix, PREFIX_LEN) != 0 ||
        !parse_hex(text + PREFIX_LEN, &d))
        return error_set(err, CAIRN_E_USAGE,
                         "digest %s is not sha256: followed by 64 lower-case hex digits",
                         quote_bytes(text, len, quoted));
    *ret_digest = d;
    return CAIRN_OK;
}

char *digest_format_hex(const struct digest *d, char buf[DIGEST_HEX_LEN + 1])
{
    static const char hex[] = "0123456789abcdef";

    for (size_t i = 0; i < sizeof(d->sha256); i++) {
        buf[2 * i] = hex[d->sha256[i] >> 4];
        buf[2 * i + 1] = hex[d->sha256[i] & 15];
    }
    buf[DIGEST_HEX_LEN] = 0;
    return buf;
}

char *digest_format(const struct digest *d, char buf[DIGEST_STR_MAX])
{
    memcpy(buf, prefix, PREFIX_LEN);
    digest_format_hex(d, buf + PREFIX_LEN);
    return buf;
}

void digest_of(const void *buf, size_t len, struct digest *ret_digest)
{
    SHA256_CTX ctx;

    SHA256_Init(&ctx);
    SHA256_Update(&ctx, buf, len);
    SHA256_Final(ret_digest->sha256, &ctx);
}

void digest_chain(const struct digest *parent, const struct digest *layer,
                  struct digest *ret_chain_id)
{
    char text[2 * DIGEST_STR_MAX];

    if (!parent) {
        *ret_chain_id = *layer;
        return;
    }
    digest_format(parent, text);
    text[DIGEST_STR_MAX - 1] = ' ';
    digest_format(layer, text + DIGEST_STR_MAX);
    digest_of(text, sizeof(text) - 1, ret_chain_id);
}

struct hasher {
    SHA256_CTX ctx;
};

int hasher_new(struct hasher **ret_hasher, struct cairn_error *err)
{
    struct hasher *h = malloc(sizeof(*h));

    if (!h)
        return error_no_memory(err, "a hasher");
    SHA256_Init(&h->ctx);
    *ret_hasher = h;
    return CAIRN_OK;
}

void hasher_update(struct hasher *h, const void *buf, size_t len)
{
    SHA256_Update(&h->ctx, buf, len);
}

void hasher_finish(struct hasher *h, struct digest *ret_digest)
{
    SHA256_Final(ret_digest->sha256, &h->ctx);
}

void hasher_free(struct hasher *h)
{
    free(h);
}
