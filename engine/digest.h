/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 digests, the names of blobs and chains: `sha256:<64 lower-case hex digits>`, as in the
 * OCI image specification, "Digests".  Chain IDs follow its "ChainID", over layer digests.
 */
#ifndef ENGINE_DIGEST_H
#define ENGINE_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "cleanup.h"
#include "error.h"

#define DIGEST_HEX_LEN 64                       /* without terminating zero */
#define DIGEST_STR_MAX (7 + DIGEST_HEX_LEN + 1) /* "sha256:" + hex + zero */

struct digest {
    uint8_t sha256[32];
};

/* Parse exactly `sha256:<hex>`, of len bytes; anything else is CAIRN_E_USAGE. */
int digest_parse(const char *text, size_t len, struct digest *ret_digest, struct cairn_error *err);

/* Write `sha256:<hex>` or only `<hex>`, zero-terminated; both return buf. */
char *digest_format(const struct digest *d, char buf[DIGEST_STR_MAX]);
char *digest_format_hex(const struct digest *d, char buf[DIGEST_HEX_LEN + 1]);

static inline bool digest_equal(const struct digest *a, const struct digest *b)
{
    return memcmp(a->sha256, b->sha256, sizeof(a->sha256)) == 0;
}

/* The digest of one buffer. */
void digest_of(const void *buf, size_t len, struct digest *ret_digest);

/*
 * The chain ID of a chain: that of its top layer if parent is NULL, else
 * sha256("<parent> <layer>") over the textual forms.
 */
void digest_chain(const struct digest *parent, const struct digest *layer,
                  struct digest *ret_chain_id);

/* A digest in the making.  Not thread-safe. */
struct hasher;
int hasher_new(struct hasher **ret_hasher, struct cairn_error *err);
void hasher_update(struct hasher *h, const void *buf, size_t len);
/* Ends the hasher; only hasher_free may follow. */
void hasher_finish(struct hasher *h, struct digest *ret_digest);
void hasher_free(struct hasher *h);
CLEANUP_DEFINE(struct hasher *, hasher_free)

#endif
