/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of the chain index, version 2: frames and containers.  All numbers little-endian.
 *
 * Frame: a header of 32 bytes and the payload as it is stored.
 *      0  magic "CNIF"
 *      4  version: 8, type: 8 (1 L1, 2 slice), flags: 16 (bit 0: the payload is a zstd frame)
 *      8  length of the payload when decompressed: 32
 *     12  length of the payload as stored: 32
 *     16  checksum: 128
 *
 * Payload of an L1: chain ID (32 bytes), depth: 32, number of slices: 32, virtual size: 64, the
 * four totals: 64 each; per layer virtual size: 64, cluster bits: 8, format: 8, compression: 8,
 * zero: 8; per slice an ordinal: 16.
 * Payload of a slice: its extents, two words of 64 each, made to compress well.  In place of the
 * start stands the distance from the end of the extent before (0 for the first; modulo 2^16), and a
 * host offset that advances with the guest offset is counted from where the slice begins (modulo
 * 2^64): both mostly stay as they were.  Then all first bytes of all extents, all second ones, to
 * the sixteenth.
 *
 * Container: a header of 32 bytes, the L1's frame, the directory, the slices' frames.
 *      0  magic "CNIC"
 *      4  version: 8, zero: 24
 *      8  length of the L1's frame: 32
 *     12  number of slices in the directory: 32
 *     16  checksum of header and directory: 128
 * Directory entry: slice number: 32, ordinal: 32, offset of the frame behind the directory: 64,
 * its length: 32; ascending by slice number.
 *
 * A checksum is XXH3-128 of the payload (or directory), seeded with XXH3-64 of the metadata key
 * and the header's first 16 bytes: it ties the bytes to the name they were stored under.
 */
#ifndef ENGINE_CHAIN_INDEX_FORMAT_H
#define ENGINE_CHAIN_INDEX_FORMAT_H

#include "chain_index.h"

#define FORMAT_VERSION 2

#define FRAME_MAGIC       0x46494e43u
#define FRAME_HEADER_SIZE 32u
#define FRAME_ZSTD        1u

enum frame_type {
    FRAME_L1 = 1,
    FRAME_SLICE = 2,
};

#define CONTAINER_MAGIC       0x43494e43u
#define CONTAINER_HEADER_SIZE 32u
#define CONTAINER_ENTRY_SIZE  20u

#define CHECKSUM_OFF  16u /* in both headers; what precedes it is covered */
#define CHECKSUM_SIZE 16u

#define L1_HEAD_SIZE  80u
#define L1_LAYER_SIZE 12u
#define L1_SLICES_MAX ((uint32_t)(CHAIN_VIRTUAL_SIZE_MAX >> INDEX_SLICE_BITS))
#define L1_RAW_MAX    (L1_HEAD_SIZE + L1_LAYER_SIZE * CHAIN_DEPTH_MAX + 2u * L1_SLICES_MAX)
#define SLICE_RAW_MAX ((uint32_t)(INDEX_SLICE_SIZE / 512 * sizeof(struct index_extent)))

/* header: the first CHECKSUM_OFF bytes count. */
void index_checksum(const char *key, const void *header, const void *payload, size_t len,
                    uint8_t ret_checksum[CHECKSUM_SIZE]);

/* The payload of a slice from extents and back; raw has 16 * nr bytes.  Nothing is checked. */
void index_extents_put(const struct index_extent *extents, uint32_t nr, uint8_t *raw);
void index_extents_get(const uint8_t *raw, uint32_t nr, struct index_extent *ret_extents);

#endif
