/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Manifests (DESIGN 4.2): OCI 1.1 image manifests whose layers are a chain, base first.  Also
 * names: repositories, tags and refs, as the OCI distribution specification spells them.
 */
#ifndef ENGINE_MANIFEST_H
#define ENGINE_MANIFEST_H

#include <jansson.h>

#include "chain_index.h"

#define MANIFEST_MEDIA_TYPE    "application/vnd.oci.image.manifest.v1+json"
#define MANIFEST_ARTIFACT_TYPE "application/vnd.cairn.disk.v1"
#define MANIFEST_LAYER_QCOW2   "application/vnd.cairn.layer.v1.qcow2"
#define MANIFEST_LAYER_RAW     "application/vnd.cairn.layer.v1.raw"
#define MANIFEST_EMPTY_TYPE    "application/vnd.oci.empty.v1+json"
#define MANIFEST_EMPTY_JSON    "{}"
#define MANIFEST_EMPTY_BASE64  "e30="
#define MANIFEST_EMPTY_DIGEST                                                                      \
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
#define MANIFEST_REBASED_FROM "dev.cairn.rebased-from"
/* 65,535 layers take about 12 MiB. */
#define MANIFEST_BYTES_MAX (32u << 20)

struct manifest_layer {
    struct digest digest;
    uint64_t size; /* bytes of the blob */
    enum layer_format format;
};

struct manifest {
    uint32_t depth;
    struct manifest_layer *layers;
    struct digest *chain_ids; /* of each prefix: chain_ids[depth - 1] is the chain's */
    bool has_rebased_from;
    struct digest rebased_from;
    bool has_subject;
    struct digest subject;
    uint64_t subject_size; /* bytes of the subject's manifest, as its descriptor says */
    json_t *annotations;   /* object or NULL */
};

/*
 * Parse and validate a disk's manifest; fields that are not ours are ignored, as OCI wants it.
 * Messages name the JSON field and its value.  Anything malformed is CAIRN_E_CORRUPT, too many
 * layers or bytes CAIRN_E_LIMIT; a manifest that is no disk (another media type, artifactType or
 * layer type) is CAIRN_E_UNSUPPORTED.
 */
int manifest_parse(const void *json, size_t len, struct manifest **ret_manifest,
                   struct cairn_error *err);
void manifest_free(struct manifest *m);
CLEANUP_DEFINE(struct manifest *, manifest_free)

/* The chain a client means to publish; layers are copied, chain_ids filled in, the rest is empty.
 */
int manifest_new(const struct manifest_layer *layers, uint32_t depth,
                 struct manifest **ret_manifest, struct cairn_error *err);

/*
 * The manifest's bytes: compact, keys sorted, so that the same chain with the same annotations
 * gives the same digest.  A subject is written as another image manifest.  malloc'ed.
 */
int manifest_encode(const struct manifest *m, char **ret_json, size_t *ret_len,
                    struct cairn_error *err);

/* `repo:tag`, `repo@sha256:…`; a bare `repo` means tag `latest`. */
struct ref {
    char repo[256];
    char tag[129];        /* empty if by digest */
    struct digest digest; /* if tag is empty */
};
int ref_parse(const char *text, struct ref *ret_ref, struct cairn_error *err);
/* The textual form, in buf of at least REF_STR_MAX bytes; returns buf. */
#define REF_STR_MAX (256 + DIGEST_STR_MAX + 129)
char *ref_format(const struct ref *ref, char *buf);
bool ref_valid_repo(const char *repo);
bool ref_valid_tag(const char *tag);

#endif
