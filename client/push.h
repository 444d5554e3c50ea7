/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pushing, as the push of an image (push.c) and that of its internal snapshots (push_internal.c)
 * share it.
 */
#ifndef CLIENT_PUSH_H
#define CLIENT_PUSH_H

#include "client.h"
#include "local_chain.h"

struct push {
    struct cairn_client *client;
    struct ref ref;                  /* a tag */
    const struct local_chain *chain; /* borrowed */
    uint32_t depth;                  /* how many of its layers, from the base */
    struct manifest_layer *layers;   /* of each, owned */
};

/* What can be pushed to: a tag, not a digest. */
int push_parse_ref(const char *text, struct ref *ret_ref, struct cairn_error *err);

/* chain's layers below depth are to be pushed as ref.  Nothing is read or sent yet. */
int push_init(struct push *p, struct cairn_client *client, const struct ref *ref,
              const struct local_chain *chain, uint32_t depth, struct cairn_error *err);
void push_release(struct push *p);

/* Fill in the layers, from what is remembered of unchanged files or by reading them. */
int push_hash_chain(struct push *p, struct cairn_error *err);

/* Upload every layer that the repository does not have, looking for each. */
int push_upload_missing(struct push *p, struct cairn_error *err);

/* The digest of all bytes of src. */
int push_hash_source(struct cairn_client *client, struct source *src,
                     const struct progress *progress, struct digest *ret_digest,
                     struct cairn_error *err);

/* `repo@sha256:…` of a manifest, malloc'ed. */
int push_format_result(const struct ref *ref, const struct digest *manifest, char **ret_ref,
                       struct cairn_error *err);

#endif
