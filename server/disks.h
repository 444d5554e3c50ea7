/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks: what the server knows of a chain beyond its bytes.  Publishing validates the layers and
 * builds the chain index; the HTTP disk API (DESIGN 5.2) answers from it.
 */
#ifndef SERVER_DISKS_H
#define SERVER_DISKS_H

#include "http.h"
#include "manifest.h"
#include "store.h"

struct disks;
struct metrics;
struct redis;

struct disks_options {
    size_t meta_cache_bytes;    /* L1s and slices */
    size_t cluster_cache_bytes; /* decompressed clusters */
    struct redis *redis;        /* borrowed; NULL: none */
    uint64_t max_virtual_size;
    uint32_t max_depth;
};

int disks_new(struct store *store, const struct disks_options *options, struct disks **ret_disks,
              struct cairn_error *err);
/* All requests have ended, and all replies were sent. */
void disks_free(struct disks *disks);
CLEANUP_DEFINE(struct disks *, disks_free)

/*
 * Validate the chain of a disk's manifest and store its index, durably: called by PUT of a
 * manifest, after it found every blob in the repository and before the manifest is stored.
 * Costs what the layers that no stored prefix covers hold.
 *
 * Errors, all with the layer's digest in their message where they are about one: CAIRN_E_NOT_FOUND
 * a blob is missing, _CORRUPT, _UNSUPPORTED a layer is refused, _LIMIT too deep or too large,
 * _CONFLICT a layer's recorded parent is not the chain below it.
 */
int disks_publish(struct disks *disks, const struct manifest *m, struct cairn_error *err);

/* A tag or a manifest has been changed or deleted: called before that is replied. */
void disks_names_changed(struct disks *disks);

/* Is it a range of a disk's data, the call that is made again and again?  (http_route.quick) */
bool disks_is_quick(const struct http_request *req);

/* Handle a request whose path starts with /v1/disks/. */
void disks_handle(struct disks *disks, const struct http_request *req, struct http_reply *reply);

/* Keep nothing of a layer's bytes: they have turned out to be damaged.  disks is a struct disks. */
void disks_forget_layer(void *disks, const struct digest *layer);
/* Let go of layers that have been deleted.  To be called now and then. */
void disks_forget_gone(struct disks *disks);

/* For /metrics; disks is a struct disks. */
void disks_write_metrics(void *disks, struct metrics *m);

#endif
