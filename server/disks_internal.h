/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the disk API share: the opened disk, and the request it is asked with.
 */
#ifndef SERVER_DISKS_INTERNAL_H
#define SERVER_DISKS_INTERNAL_H

#include "blobs.h"
#include "cache.h"
#include "chain_read.h"
#include "disks.h"
#include "metacache.h"

struct disks {
    struct store *store;
    struct disks_options options;
    struct metacache *meta;
    struct cluster_cache *clusters;
    struct blobs *blobs;
    struct cache *opened;   /* struct disk by manifest digest */
    struct cache *names;    /* what refs named a moment ago (disks_names.c) */
    atomic_uint generation; /* of what refs name: changed here */
};

/* -- An opened disk: immutable, shared by all requests for one manifest ----------------------- */

struct disk {
    atomic_uint refs;
    struct disks *disks;
    struct digest manifest_digest;
    struct manifest *manifest;
    struct meta_chain chain; /* of the manifest's arrays */
    struct digest *layers;   /* digests by ordinal */
    struct index_l1 *l1;
    size_t cost;                   /* bytes of memory, about */
    char etag[DIGEST_STR_MAX + 2]; /* the chain ID, in quotes */
};

/* The disk that a ref names now; a reference is handed over. */
int disk_open(struct disks *disks, const struct ref *ref, struct disk **ret_disk,
              struct cairn_error *err);
/* The same, or the disk that it named within the last second. */
int disk_open_recent(struct disks *disks, const struct ref *ref, struct disk **ret_disk,
                     struct cairn_error *err);
/* The manifest that a ref names, or named within the last second. */
int disks_resolve_recent(struct disks *disks, const struct ref *ref, struct digest *ret_manifest,
                         struct cairn_error *err);
int disks_names_new(struct cache **ret_names, struct cairn_error *err);
struct disk *disk_ref(struct disk *disk);
void disk_unref(struct disk *disk);
CLEANUP_DEFINE(struct disk *, disk_unref)

const struct digest *disk_chain_id(const struct disk *disk);
/* Its slices, and its content; both borrow the disk. */
struct index_slices disk_slices(struct disk *disk);
struct chain_reader disk_reader(struct disk *disk);
/* The blob of a layer, by ordinal; a reference is handed over. */
int disk_blob(struct disk *disk, uint32_t layer, struct blob **ret_blob, struct cairn_error *err);

/* That an index says of a chain what the manifest says: one chain ID is one disk. */
int disk_check_l1(const struct index_l1 *l1, const struct meta_chain *chain,
                  struct cairn_error *err);

/* -- Answers ---------------------------------------------------------------------------------- */

struct disk_request {
    struct disk *disk;
    const struct ref *ref; /* as asked for */
    const struct http_request *http;
    struct http_reply *reply;
};

/* Each makes exactly one reply. */
void disks_reply_info(const struct disk_request *rq);
void disks_reply_data(const struct disk_request *rq);
void disks_reply_extents(const struct disk_request *rq);
void disks_reply_index(const struct disk_request *rq);
void disks_reply_open(const struct disk_request *rq);
void disks_reply_changes(const struct disk_request *rq);

/* Answer an error about the ref named in text. */
void disks_reply_ref_error(struct http_reply *reply, const char *text,
                           const struct cairn_error *err);

/*
 * A query parameter that is a decimal number; absent: ret_value is left alone.  Anything else is
 * CAIRN_E_USAGE with its name and value.
 */
int disks_query_u64(const struct http_request *req, const char *name, uint64_t *ret_value,
                    struct cairn_error *err);

/* -- JSON lists of extents, made piece by piece (disks_list.c) -------------------------------- */

/*
 * A JSON text in the making.  next is called whenever what it made before was sent: it appends more
 * with list_printf, and sets done behind the end of the text.
 */
struct list {
    char *text;
    size_t len, room, sent;
    bool done;
    bool failed; /* out of memory in list_printf: noticed where the list is read */
    int (*next)(struct list *list, struct cairn_error *err);
    void (*free)(struct list *list); /* releases what embeds the list, and it */
};
void list_printf(struct list *list, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Takes the list over. */
void list_reply(struct list *list, struct http_reply *reply);
/* For free functions: what the list itself holds. */
void list_release(struct list *list);

#endif
