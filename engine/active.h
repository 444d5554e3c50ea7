/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The active layer (DESIGN 4.6): the one writable qcow2 v3 file of a disk.
 *
 * 128 KiB clusters with extended L2 entries, so that copy-on-write concerns less than a subcluster
 * of 4 KiB.  Write order, always: data, then refcounts, then L2, then L1, with a flush of the file
 * between where the next depends on it.  After a crash at any instant the image may leak clusters;
 * it is never wrong, and what was flushed is there.
 *
 * All functions on one handle may be called from any thread at the same time, except seal, resize
 * and close.  Overlapping concurrent writes leave one of them in each sector; a read that runs
 * beside an overlapping write sees old or new bytes, never another guest range's.
 */
#ifndef ENGINE_ACTIVE_H
#define ENGINE_ACTIVE_H

#include "digest.h"
#include "extent.h"
#include "source.h"

struct active;

/* What lies beneath, for copy-on-write: reads guest bytes; past its end zeros.  Thread-safe. */
struct active_backing {
    int (*pread)(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err);
    void *ctx;
    /* May be NULL.  The first extent at guest_off, at most len; HOLE: reads as zeros. */
    int (*map_one)(void *ctx, uint64_t guest_off, uint64_t len, struct extent *ret_extent,
                   struct cairn_error *err);
};

struct active_options {
    uint64_t virtual_size; /* create: bytes, multiple of 512, at most CHAIN_VIRTUAL_SIZE_MAX */
    unsigned cluster_bits; /* create: 0 = 17; 14 to 21 */
    const struct digest *parent;   /* create: chain ID recorded and named as backing; NULL: none */
    bool parent_pending;           /* create: there is a parent, its chain ID follows later by
                                      active_set_parent (space is kept for it) */
    struct active_backing backing; /* pread NULL: nothing beneath, holes are zeros */
    bool foreign_backing;          /* open: also where the backing file is not `cairn:…` */
    bool read_only;                /* open: refuses writes as a sealed layer does */
    size_t cache_bytes;            /* bound for L2 and refcount tables in memory; 0 = 16 MiB */
};

/*
 * Create path (must not exist) or open it.  Opening takes only images of the shape that create
 * makes (v3, extended L2, 16-bit refcounts, no snapshots, no backing that is not `cairn:…`, and so
 * on): others are CAIRN_E_UNSUPPORTED with the field's name.  Both lock the file against a second
 * writer (CAIRN_E_CONFLICT; read_only against any), and create makes file and folder entry durable
 * before it returns; killed before that, it may leave `<path>.new-…`.
 */
int active_create(const char *path, const struct active_options *options,
                  struct active **ret_active, struct cairn_error *err);
int active_open(const char *path, const struct active_options *options, struct active **ret_active,
                struct cairn_error *err);

/* Flush, write everything back without leaks, close.  Errors of the flush are returned, the
 * handle is freed all the same.  NULL is allowed. */
int active_close(struct active *a, struct cairn_error *err);

uint64_t active_virtual_size(const struct active *a);
/* The recorded parent; false if there is none, or it is pending. */
bool active_parent(struct active *a, struct digest *ret_chain_id);
/* Record the parent, durably: one that was pending, or another than before; also of a sealed layer.
 * CAIRN_E_CONFLICT: the layer was made without a parent. */
int active_set_parent(struct active *a, const struct digest *chain_id, struct cairn_error *err);

int active_pwrite(struct active *a, const void *buf, size_t len, uint64_t guest_off,
                  struct cairn_error *err);
/* Reads through to the backing where the active layer has nothing. */
int active_pread(struct active *a, void *buf, size_t len, uint64_t guest_off,
                 struct cairn_error *err);
/* Make the range read as zeros. Metadata only for whole subclusters.  may_unmap: free whole host
 * clusters; else keep them preallocated. */
int active_zero(struct active *a, uint64_t len, uint64_t guest_off, bool may_unmap,
                struct cairn_error *err);
/* Advice that the range is not needed: whole clusters are freed and read as zeros, what is smaller
 * is left as it is. */
int active_discard(struct active *a, uint64_t len, uint64_t guest_off, struct cairn_error *err);
/* Everything completed before the call survives a power cut after it. */
int active_flush(struct active *a, struct cairn_error *err);

/* The status of a guest range as this layer has it (HOLE: falls through), in order, no gaps;
 * unaligned ends are trimmed.  At most max; the caller goes on behind the last. */
int active_map(struct active *a, uint64_t guest_off, uint64_t len, struct extent *ret_extents,
               size_t max, size_t *ret_nr, struct cairn_error *err);

/*
 * Make the layer immutable: all writes are refused from here on (CAIRN_E_CONFLICT), everything is
 * written back and durable, no cluster leaks, the file ends with its last cluster.  Reads and maps
 * go on working.  Nothing may write while it runs.
 */
int active_seal(struct active *a, struct cairn_error *err);

/*
 * Change the virtual size (a multiple of 512), durably; a power cut leaves the old or the new one.
 * What is added reads as zeros, what is cut off is gone for good, and its clusters are freed.
 * beneath_size: how many guest bytes what lies beneath has, UINT64_MAX if that is not known (then
 * all that is added is marked as zeros, which takes 16 bytes for each cluster).  On an error the
 * size is what active_virtual_size says.  Nothing else may run on the layer meanwhile.
 */
int active_resize(struct active *a, uint64_t new_size, uint64_t beneath_size,
                  struct cairn_error *err);

struct active_stats {
    uint64_t backing_bytes; /* read from beneath for copy-on-write */
    uint64_t data_bytes;    /* guest bytes allocated */
    uint64_t file_bytes;
    uint64_t cache_bytes; /* metadata in memory now */
};
void active_get_stats(struct active *a, struct active_stats *ret_stats);

#endif
