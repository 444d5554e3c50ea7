/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layer: one immutable image, qcow2 or raw, as the chain index wants to see it.
 *
 * A layer is validated (DESIGN 4.1) in two steps that refuse with the same kind of message: opening
 * looks at the header and at where the tables are, which costs one read; layer_scan looks at every
 * entry of the L1 and L2 tables.  A layer that was scanned to its end once can be read by its
 * extents without further checks; publishing one always scans it.  The format is what the caller
 * says; it is never probed.  No file is ever opened because an image names it.
 */
#ifndef ENGINE_LAYER_H
#define ENGINE_LAYER_H

#include "digest.h"
#include "extent.h"
#include "source.h"

enum layer_format {
    LAYER_RAW = 0,
    LAYER_QCOW2 = 1,
};

enum layer_compression {
    LAYER_DEFLATE = 0, /* raw deflate, RFC 1951 */
    LAYER_ZSTD = 1,    /* RFC 8878 */
};

/* What a reader must know of a layer besides its bytes; travels in the chain index. */
struct layer_attr {
    uint64_t virtual_size; /* bytes, multiple of 512: qcow2 sizes are rounded down, raw ones up, as
                              QEMU does */
    uint8_t cluster_bits;  /* 9 to 21; 0 for raw */
    uint8_t format;        /* enum layer_format */
    uint8_t compression;   /* enum layer_compression */
};

struct layer;

/*
 * Open and validate the header.  src is borrowed and must outlive the layer.  Errors are
 * CAIRN_E_CORRUPT, _UNSUPPORTED or _LIMIT with a message that starts with the source's name and
 * names the field and its value, or what reading gave.
 */
int layer_open(struct source *src, enum layer_format format, struct layer **ret_layer,
               struct cairn_error *err);

/*
 * An internal snapshot of a qcow2 image, by its number in the snapshot table (qcow2_snapshot_find),
 * as if it were the layer: its size, its tables.
 */
int layer_open_snapshot(struct source *src, uint32_t index, struct layer **ret_layer,
                        struct cairn_error *err);
/* The same by its name or ID, of an image of any format: CAIRN_E_USAGE for one that can have none.
 */
int layer_find_snapshot(struct source *src, enum layer_format format, const char *name_or_id,
                        struct layer **ret_layer, struct cairn_error *err);
void layer_free(struct layer *layer);
CLEANUP_DEFINE(struct layer *, layer_free)

/* Borrowed from the layer. */
const struct layer_attr *layer_get_attr(const struct layer *layer);

/* The chain ID that an active layer recorded as what it was started on; NULL if it has none. */
const struct digest *layer_recorded_parent(const struct layer *layer);

/*
 * Called with a layer's extents in guest order, neighbours merged, holes left out, layer = 0.
 * Not 0 stops the scan and becomes its result.
 */
typedef int (*layer_extent_fn)(void *arg, const struct extent *e, struct cairn_error *err);

/*
 * Scan the whole layer and validate its L1 and L2 tables on the way, reading each once.  Errors are
 * those of layer_open; extents before the wrong entry may have been handed out.  Every host cluster
 * handed out begins inside the file (a subcluster of it may not) and is no metadata.  Costs what
 * the layer holds; takes twice the L1 table's bytes and one cluster (or 256 KiB) of memory.  Not
 * thread-safe on one layer.
 */
int layer_scan(struct layer *layer, layer_extent_fn fn, void *arg, struct cairn_error *err);

/*
 * Scan now, and let layer_scan hand out what was found: for who has time before the extents are
 * wanted. Keeps at most LAYER_PRELOAD_BYTES of them; a layer that has more, or cannot be scanned,
 * is scanned by layer_scan as ever, which is also what reports the failure.
 */
#define LAYER_PRELOAD_BYTES ((size_t)4 << 20)
void layer_preload(struct layer *layer);

/*
 * Decompress one compressed cluster: in holds the extent's compressed_len bytes (fewer where the
 * file ends), out gets 1 << cluster_bits bytes.  Garbage is CAIRN_E_CORRUPT.  Thread-safe.
 */
int layer_decompress(enum layer_compression compression, const void *in, size_t in_len, void *out,
                     size_t out_len, struct cairn_error *err);

#endif
