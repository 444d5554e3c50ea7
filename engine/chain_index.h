/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain index (DESIGN 4.3): what a chain of layers shows, resolved once.
 *
 * Guest space is cut into slices of 32 MiB.  The L1 says, per slice, which prefix of the chain
 * (by the ordinal of its top layer) made the slice that is in force; the slice holds sorted
 * extents.  Both are immutable and reference-counted; a longer chain shares every slice that its
 * new layers did not touch.
 *
 * Invariants, kept by the builder and checked by the parser:
 *  - extents of a slice are sorted, do not overlap, and lie within the slice and the virtual size
 *    of the prefix that it belongs to (so nothing that a shrunken chain lost can show again);
 *  - neighbours are merged wherever layer, kind and host offset run on;
 *  - a hole is a gap between extents; an empty slice is stored when a prefix emptied it;
 *  - an extent's layer, and an L1 entry, is an ordinal below the prefix's depth.
 */
#ifndef ENGINE_CHAIN_INDEX_H
#define ENGINE_CHAIN_INDEX_H

#include <stdatomic.h>

#include "digest.h"
#include "extent.h"
#include "layer.h"

#define INDEX_SLICE_BITS 25
#define INDEX_SLICE_SIZE ((uint64_t)1 << INDEX_SLICE_BITS)
#define INDEX_NO_SLICE   UINT16_MAX /* L1: no layer has anything here */

#define CHAIN_DEPTH_MAX 65535 /* an ordinal fits 16 bits with one value to spare for "none" */
/* 2 bytes of L1 per 32 MiB: 16 MiB of L1 at this size. */
#define CHAIN_VIRTUAL_SIZE_MAX ((uint64_t)1 << 48)

/*
 * One extent in 16 bytes, as the builder and the codec handle it:
 *   word[0]: start sector 16 | length in sectors minus 1: 16 | layer 16 |
 *            compressed sectors minus 1: 14 | kind 2        (from bit 0 up)
 *   word[1]: host offset
 * Sectors are 512 bytes; the start is relative to the slice.
 */
struct index_extent {
    uint64_t word[2];
};

/*
 * A slice in memory, made for searching: of each extent the last sector as a key of 2 bytes, and a
 * record of 13 bytes with the rest.  The keys are the leaves of a static tree of nodes of 32 (64
 * bytes, one cache line, compared at once); the keys of an inner node are the last of each child's.
 * Behind the struct come the levels from the top down, then the records.  Up to 24 extents need no
 * node but top.  chain_index_internal.h has the layout in numbers.
 */
#define INDEX_TOP_KEYS 24

struct index_slice {
    uint16_t top[INDEX_TOP_KEYS];
    atomic_uint refs;
    uint32_t nr_extents;
    uint32_t leaves_off;  /* from here to the keys of the extents, in bytes */
    uint32_t records_off; /* and to the records */
};

/* Sums over the whole chain as it shows, kept up to date from prefix to prefix. */
struct index_totals {
    uint64_t nr_extents;
    uint64_t data_bytes;   /* guest bytes that come from data or compressed extents */
    uint64_t zero_bytes;   /* guest bytes in zero extents */
    uint64_t layers_bytes; /* data_bytes of each layer by itself, added up: less data_bytes, that is
                              what younger layers hide */
};

/* Holes from guest offset virtual_size on, up to the next end, are answered by layer. */
struct index_end {
    uint64_t virtual_size; /* of the layer below */
    uint32_t layer;
};

struct index_l1 {
    atomic_uint refs;
    struct digest chain_id;
    uint32_t depth;
    uint32_t nr_slices;    /* of the virtual size of the top layer, rounded up */
    uint64_t virtual_size; /* of the top layer */
    struct index_totals totals;
    struct layer_attr *layers; /* depth of them, base first */
    uint16_t *slices;          /* nr_slices ordinals, or INDEX_NO_SLICE */
    uint32_t nr_ends;
    struct index_end *ends; /* ascending; follows from layers, so that holes need no search */
};

struct index_l1 *index_l1_ref(struct index_l1 *l1);
void index_l1_unref(struct index_l1 *l1);
CLEANUP_DEFINE(struct index_l1 *, index_l1_unref)
size_t index_l1_bytes(const struct index_l1 *l1); /* memory it takes */

struct index_slice *index_slice_ref(struct index_slice *slice);
void index_slice_unref(struct index_slice *slice);
CLEANUP_DEFINE(struct index_slice *, index_slice_unref)
size_t index_slice_bytes(const struct index_slice *slice);

/* Pack and unpack; slice is the number of the slice that e lies in. */
struct index_extent index_extent_pack(const struct extent *e);
void index_extent_unpack(const struct index_extent *packed, uint32_t slice,
                         struct extent *ret_extent);

/*
 * Where slices come from: memory, a cache, a file, the network.  Fetches slice number slice as
 * made at the prefix whose top layer is ordinal (what an L1 entry says).  Hands a reference over.
 * Called from any thread.
 */
struct index_slices {
    int (*get)(void *ctx, uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
               struct cairn_error *err);
    void *ctx;
};

/* -- Building -------------------------------------------------------------------------------- */

/* Called with each slice that the new prefix touches, in order; slice is borrowed. */
typedef int (*index_emit_fn)(void *arg, uint32_t slice_nr, struct index_slice *slice,
                             struct cairn_error *err);

/*
 * Build prefix k from prefix k-1 (parent; NULL builds the base) and layer k, of digest
 * layer_digest.  parent_slices answers for ordinals of the parent's L1.  Reads the layer's tables
 * once and touches only the slices that the layer touches, and the last one where the layer
 * shrinks the disk.  The caller checks the layer's recorded parent.
 */
int chain_index_build(const struct index_l1 *parent, const struct index_slices *parent_slices,
                      struct layer *layer, const struct digest *layer_digest, index_emit_fn emit,
                      void *emit_arg, struct index_l1 **ret_l1, struct cairn_error *err);

/* -- Looking up ------------------------------------------------------------------------------ */

/*
 * The extents that cover [guest_off, guest_off + len), in order, without gaps (holes included,
 * with the ordinal of the layer at which the search ends, as `qemu-img map` counts depth), merged
 * across slices.  The range must lie in the virtual size; offsets need not be aligned, and the
 * first and last extent are trimmed to the range.  Fills at most max extents; *ret_nr tells how
 * many, and the caller goes on behind the last.  Thread-safe.
 */
int chain_map(const struct index_l1 *l1, const struct index_slices *slices, uint64_t guest_off,
              uint64_t len, struct extent *ret_extents, size_t max, size_t *ret_nr,
              struct cairn_error *err);

/*
 * The index of one chain as a process that reads it holds it: the L1, and the slices that look-ups
 * needed, up to max_bytes of them.  What has been kept stays until the end, so look-ups take no
 * lock and count no reference; slices beyond the bound are got from slices each time.  l1 and what
 * slices says are borrowed.  Thread-safe.
 */
struct chain_index;
int chain_index_new(const struct index_l1 *l1, const struct index_slices *slices, size_t max_bytes,
                    struct chain_index **ret_index, struct cairn_error *err);
void chain_index_free(struct chain_index *index);
CLEANUP_DEFINE(struct chain_index *, chain_index_free)
size_t chain_index_bytes(const struct chain_index *index); /* memory it takes, the L1 apart */

/* The slices in a form that chain_map and its kind take. */
struct index_slices chain_index_slices(struct chain_index *index);

/*
 * The extent at guest_off, from there on: to its end, to where another layer answers a hole, or to
 * the end of the slice.  guest_off must lie in the virtual size.
 */
int chain_index_lookup(struct chain_index *index, uint64_t guest_off, struct extent *ret_extent,
                       struct cairn_error *err);
/* The same for nr guest offsets in any order, at several times the rate. */
int chain_index_lookup_many(struct chain_index *index, const uint64_t *guest_offs, size_t nr,
                            struct extent *ret_extents, struct cairn_error *err);

/*
 * Guest ranges in which disk b may differ from disk a: called in order with ranges that do not
 * come from the same bytes of the same layer on both sides and do not read as zeros on both; the
 * extent passed is b's (an EXTENT_ZERO past its end, as far as a reaches).  a_layers and b_layers
 * are layer digests by ordinal.  Costs what differs: slices that both chains took over from a
 * common prefix are not fetched.
 */
int chain_diff(const struct index_l1 *a, const struct index_slices *a_slices,
               const struct digest *a_layers, const struct index_l1 *b,
               const struct index_slices *b_slices, const struct digest *b_layers,
               layer_extent_fn fn, void *arg, struct cairn_error *err);

/* The same for [guest_off, guest_off + len), which lies in the larger of the two disks, extents
 * trimmed to it: for a caller that stops in fn and goes on behind what it got. */
int chain_diff_range(const struct index_l1 *a, const struct index_slices *a_slices,
                     const struct digest *a_layers, const struct index_l1 *b,
                     const struct index_slices *b_slices, const struct digest *b_layers,
                     uint64_t guest_off, uint64_t len, layer_extent_fn fn, void *arg,
                     struct cairn_error *err);

/*
 * The same for two states of one image, its internal snapshots or its active disk, each on top of
 * the same nr_below layers (a may also be those alone): the top layers have one digest and yet
 * slices of their own.
 */
int chain_diff_states(const struct index_l1 *a, const struct index_slices *a_slices,
                      const struct index_l1 *b, const struct index_slices *b_slices,
                      const struct digest *layers, uint32_t nr_below, layer_extent_fn fn, void *arg,
                      struct cairn_error *err);

/* -- Bytes ----------------------------------------------------------------------------------- */

/*
 * One serialiser, for the store, Redis and the wire.  A frame is: magic, version, type, flags,
 * length, and a checksum over key and payload, so that a value that was altered, cut or put under
 * another key is recognised; the payload may be zstd-compressed.  The key is the metadata cache's
 * (DESIGN 4.5), made with index_key_*.
 */
#define INDEX_KEY_MAX 128
void index_key_l1(const struct digest *chain_id, char key[INDEX_KEY_MAX]);
void index_key_slice(const struct digest *prefix_chain_id, uint32_t slice, char key[INDEX_KEY_MAX]);

/* malloc'ed bytes in *ret_buf. */
int index_l1_encode(const struct index_l1 *l1, void **ret_buf, size_t *ret_len,
                    struct cairn_error *err);
int index_slice_encode(const struct index_slice *slice, const struct digest *prefix_chain_id,
                       uint32_t slice_nr, void **ret_buf, size_t *ret_len, struct cairn_error *err);

/*
 * Decode and verify hostile bytes.  The L1 must bear chain_id.  A slice is checked against
 * everything that its invariants say for prefix ordinal of the L1 given (any L1 of a chain whose
 * first layers are that prefix).  Allocates at most what the largest L1 (17 MiB) or slice (1 MiB)
 * takes, and for a slice twice as much to work with, and that only behind a checksum that fits.
 */
int index_l1_decode(const void *buf, size_t len, const struct digest *chain_id,
                    struct index_l1 **ret_l1, struct cairn_error *err);
int index_slice_decode(const void *buf, size_t len, const struct digest *prefix_chain_id,
                       const struct index_l1 *l1, uint32_t ordinal, uint32_t slice_nr,
                       struct index_slice **ret_slice, struct cairn_error *err);

/*
 * A container of frames: the store's index object (the L1, and the slices made at this prefix)
 * and the answer to `GET …/index` (the L1, and the slices asked for).  Fixed header, L1 frame,
 * directory of slices (number, ordinal, offset, length), slice frames.
 */
struct index_writer;
int index_writer_new(struct index_writer **ret_writer, struct cairn_error *err);
int index_writer_add(struct index_writer *w, uint32_t slice_nr, uint32_t ordinal,
                     const struct digest *prefix_chain_id, const struct index_slice *slice,
                     struct cairn_error *err); /* slice numbers ascend */
/* Ends the writer with the L1; malloc'ed bytes in *ret_buf. */
int index_writer_finish(struct index_writer *w, const struct index_l1 *l1, void **ret_buf,
                        size_t *ret_len, struct cairn_error *err);
void index_writer_free(struct index_writer *w);
CLEANUP_DEFINE(struct index_writer *, index_writer_free)

/* A container read through a source, by need: opening reads header, L1 and directory only. */
struct index_reader;
int index_reader_open(struct source *src, const struct digest *chain_id,
                      struct index_reader **ret_reader, struct cairn_error *err); /* src borrowed */
struct index_l1 *index_reader_l1(struct index_reader *r);                         /* borrowed */
/* CAIRN_E_NOT_FOUND if the container does not hold the slice.  prefix_chain_id is that of the
 * prefix that made it.  Thread-safe. */
int index_reader_slice(struct index_reader *r, uint32_t slice_nr, uint32_t ordinal,
                       const struct digest *prefix_chain_id, struct index_slice **ret_slice,
                       struct cairn_error *err);
void index_reader_free(struct index_reader *r);
CLEANUP_DEFINE(struct index_reader *, index_reader_free)

#endif
