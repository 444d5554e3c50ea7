/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A qcow2 image, opened for reading: header, header extensions, internal snapshots, bitmaps, and
 * the way from a guest offset to a host offset.  Follows docs/interop/qcow2.rst of QEMU.
 */
#ifndef ENGINE_QCOW2_IMAGE_H
#define ENGINE_QCOW2_IMAGE_H

#include <stdbool.h>

#include "layer.h"
#include "source.h"

/* A header extension, or the backing file name: bytes, never trusted to be text. */
struct qcow2_blob {
    uint32_t type; /* of the extension; 0 for the backing name */
    uint32_t len;
    uint8_t *data;
};

struct qcow2_feature_name {
    uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    char name[47]; /* zero-terminated, not printable text for sure */
};

/* The header, decoded; fields as in the specification. */
struct qcow2_header {
    uint32_t version;
    uint64_t backing_file_offset;
    uint32_t backing_file_size;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_size;
    uint64_t l1_table_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible_features;
    uint64_t compatible_features;
    uint64_t autoclear_features;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression_type;

    struct qcow2_blob backing_file; /* len 0: none */
    struct qcow2_blob backing_format;
    struct qcow2_blob data_file;
    uint32_t nr_features;
    struct qcow2_feature_name *features;
    bool has_bitmaps, has_crypto_header, has_parent;
    bool stale_bitmaps; /* there are some, but not all that wrote the image knew of them */
    uint32_t nb_bitmaps;
    uint64_t bitmap_directory_size;
    uint64_t bitmap_directory_offset;
    uint64_t crypto_header_offset;
    uint64_t crypto_header_length;
    struct digest parent; /* of the Cairn extension 0x434e5250, if has_parent */
    bool parent_pending;  /* the extension is there, and does not say which */
};

struct qcow2_snapshot {
    char *id; /* zero-terminated, may hold any bytes */
    char *name;
    uint64_t l1_table_offset;
    uint32_t l1_size;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t vm_state_size;
    uint64_t disk_size;
    uint32_t extra_len; /* bytes of extra data */
    uint64_t entry_end; /* host offset of the end of its entry in the snapshot table */
};

struct qcow2_bitmap {
    char *name;
    uint64_t bitmap_table_offset;
    uint32_t bitmap_table_size;
    uint32_t flags;           /* QCOW2_BITMAP_* of qcow2.h */
    uint32_t extra_data_size; /* whose meaning we do not know */
    uint8_t type;             /* 1: dirty tracking */
    uint8_t granularity_bits;
};

struct qcow2_image;

enum qcow2_open_flags {
    /* For `image info`: an image that would be refused as unsupported (encryption, external data
       file, unknown incompatible bits, corrupt bit) opens all the same, but cannot be mapped. */
    QCOW2_OPEN_INFO = 1,
};

/* src is borrowed.  Errors as for layer_open. */
int qcow2_image_open(struct source *src, unsigned flags, struct qcow2_image **ret_image,
                     struct cairn_error *err);
void qcow2_image_free(struct qcow2_image *image);
CLEANUP_DEFINE(struct qcow2_image *, qcow2_image_free)

/* All borrowed from the image. */
const struct qcow2_header *qcow2_image_header(const struct qcow2_image *image);

/* Internal snapshots and bitmaps are read on demand, for a layer's content does not need them. */
int qcow2_image_snapshots(struct qcow2_image *image, const struct qcow2_snapshot **ret_snapshots,
                          uint32_t *ret_nr, struct cairn_error *err);
int qcow2_image_bitmaps(struct qcow2_image *image, const struct qcow2_bitmap **ret_bitmaps,
                        uint32_t *ret_nr, struct cairn_error *err);

/* As layer_scan, for the active L1 table. */
int qcow2_image_scan(struct qcow2_image *image, layer_extent_fn fn, void *arg,
                     struct cairn_error *err);

/*
 * The snapshot with this name or this ID.  None is CAIRN_E_NOT_FOUND; more than one, which an image
 * may hold, CAIRN_E_CONFLICT.
 */
int qcow2_snapshot_find(struct qcow2_image *image, const char *name_or_id, uint32_t *ret_index,
                        struct cairn_error *err);

/* The size of a snapshot's disk, for which its L1 table is large enough and lies where one can. */
int qcow2_snapshot_size(struct qcow2_image *image, uint32_t index, uint64_t *ret_size,
                        struct cairn_error *err);

/* As layer_scan, for the L1 table of a snapshot and as far as its disk reached; its VM state is no
 * part of it. */
int qcow2_snapshot_scan(struct qcow2_image *image, uint32_t index, layer_extent_fn fn, void *arg,
                        struct cairn_error *err);

/*
 * Why a bitmap's content says nothing of the disk: CAIRN_E_CORRUPT if it was not saved (it is in
 * use), CAIRN_E_UNSUPPORTED if it has a type, flags or extra data that we do not know.
 */
int qcow2_bitmap_check(const struct qcow2_image *image, const struct qcow2_bitmap *bitmap,
                       struct cairn_error *err);

/* CAIRN_E_NOT_FOUND; CAIRN_E_CORRUPT if the image's bitmaps are stale. */
int qcow2_bitmap_find(struct qcow2_image *image, const char *name, uint32_t *ret_index,
                      struct cairn_error *err);

/* Not 0 stops the scan and becomes its result. */
typedef int (*qcow2_dirty_fn)(void *arg, uint64_t guest_off, uint64_t len, struct cairn_error *err);

/*
 * The dirty ranges of a bitmap, in guest order, neighbours merged, cut at the end of the disk.
 * Every entry of its table is validated; one cluster of memory.
 */
int qcow2_bitmap_scan(struct qcow2_image *image, uint32_t index, qcow2_dirty_fn fn, void *arg,
                      struct cairn_error *err);

#endif
