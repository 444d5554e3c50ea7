/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 header and its extensions: bytes to struct qcow2_header, and the three questions that
 * are asked of it: is it well-formed, do we support what it asks for, and are its tables where
 * tables can be.  Internal to the engine.
 */
#ifndef ENGINE_QCOW2_HEADER_H
#define ENGINE_QCOW2_HEADER_H

#include "checked.h"
#include "qcow2.h"
#include "qcow2_image.h"

/*
 * Read and decode.  Refuses what is malformed, whatever the features say; on failure *ret_hdr is
 * untouched.  Release it with qcow2_header_release.
 */
int qcow2_header_read(struct source *src, struct qcow2_header *ret_hdr, struct cairn_error *err);
void qcow2_header_release(struct qcow2_header *hdr);

/*
 * The bytes of a version 3 header with recorded parent, backing format and backing name, which go
 * to the file's start; size is at least 512, the rest is filled with zeros.  The place of the
 * backing name, feature bits of other classes and other extensions are not taken from hdr.  Returns
 * the bytes used; 0: there is no room.
 */
size_t qcow2_header_encode(const struct qcow2_header *hdr, uint8_t *bytes, size_t size);

/* CAIRN_E_UNSUPPORTED, by name, for what a resolver refuses (DESIGN 4.1). */
int qcow2_header_check_supported(const struct source *src, const struct qcow2_header *hdr,
                                 struct cairn_error *err);

/* Sizes within the limits; tables aligned, inside the file and apart from each other. */
int qcow2_header_check_tables(const struct source *src, const struct qcow2_header *hdr,
                              struct cairn_error *err);

/* A size in the header against its limit: CAIRN_E_LIMIT. */
int qcow2_check_limit(const struct source *src, const char *what, uint64_t value, uint64_t limit,
                      struct cairn_error *err);

/* One of the tables below: aligned to a cluster, and len bytes of it inside the file. */
int qcow2_check_table(const struct source *src, const struct qcow2_header *hdr, const char *what,
                      uint64_t host_off, uint64_t len, struct cairn_error *err);

/* The whole clusters of a file that the header itself claims. */
struct qcow2_region {
    const char *what;
    uint64_t host_off;
    uint64_t len;
};

#define QCOW2_REGIONS_MAX 5
unsigned qcow2_header_regions(const struct qcow2_header *hdr,
                              struct qcow2_region ret_regions[QCOW2_REGIONS_MAX]);

/* The first of nr regions that [host_off, host_off + len) touches, or NULL. */
const struct qcow2_region *qcow2_region_find(const struct qcow2_region *regions, unsigned nr,
                                             uint64_t host_off, uint64_t len);

static inline uint64_t qcow2_cluster_size(const struct qcow2_header *hdr)
{
    return UINT64_C(1) << hdr->cluster_bits;
}

static inline bool qcow2_has_extl2(const struct qcow2_header *hdr)
{
    return hdr->incompatible_features & QCOW2_INCOMPAT_EXTL2;
}

static inline size_t qcow2_l2_entry_size(const struct qcow2_header *hdr)
{
    return qcow2_has_extl2(hdr) ? QCOW2_L2E_SIZE_EXTL2 : QCOW2_L2E_SIZE;
}

/* L2 entries in one table, as a power of two. */
static inline unsigned qcow2_l2_bits(const struct qcow2_header *hdr)
{
    return hdr->cluster_bits - (qcow2_has_extl2(hdr) ? 4 : 3);
}

/* Of the guest's disk, in whole sectors: QEMU leaves an odd tail out. */
static inline uint64_t qcow2_virtual_size(const struct qcow2_header *hdr)
{
    return round_down(hdr->size, 512);
}

/* L1 entries that a disk of this size needs; the table may have more (for VM state). */
static inline uint64_t qcow2_l1_entries(const struct qcow2_header *hdr, uint64_t size)
{
    return div_round_up(size, UINT64_C(1) << (hdr->cluster_bits + qcow2_l2_bits(hdr)));
}

static inline uint64_t qcow2_l1_needed(const struct qcow2_header *hdr)
{
    return qcow2_l1_entries(hdr, hdr->size);
}

#endif
