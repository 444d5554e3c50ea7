/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 format as numbers: field offsets, magic values, bits, masks and limits, shared by the
 * reading side and the active layer.  Internal to the engine.  Numbers on disk are big-endian.
 * Section names in comments are those of QEMU's docs/interop/qcow2.rst.
 */
#ifndef ENGINE_QCOW2_H
#define ENGINE_QCOW2_H

#include <stdint.h>

/* -- Header ------------------------------------------------------------------------------------ */

#define QCOW2_MAGIC UINT32_C(0x514649fb) /* "QFI\xfb" */

enum qcow2_header_offset {
    QCOW2_HDR_MAGIC = 0,                    /* u32 */
    QCOW2_HDR_VERSION = 4,                  /* u32 */
    QCOW2_HDR_BACKING_FILE_OFFSET = 8,      /* u64 */
    QCOW2_HDR_BACKING_FILE_SIZE = 16,       /* u32 */
    QCOW2_HDR_CLUSTER_BITS = 20,            /* u32 */
    QCOW2_HDR_SIZE = 24,                    /* u64 */
    QCOW2_HDR_CRYPT_METHOD = 32,            /* u32 */
    QCOW2_HDR_L1_SIZE = 36,                 /* u32, entries */
    QCOW2_HDR_L1_TABLE_OFFSET = 40,         /* u64 */
    QCOW2_HDR_REFCOUNT_TABLE_OFFSET = 48,   /* u64 */
    QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS = 56, /* u32 */
    QCOW2_HDR_NB_SNAPSHOTS = 60,            /* u32 */
    QCOW2_HDR_SNAPSHOTS_OFFSET = 64,        /* u64 */
    QCOW2_HDR_V2_LENGTH = 72,
    /* Version 3 only, from here on. */
    QCOW2_HDR_INCOMPATIBLE_FEATURES = 72, /* u64 */
    QCOW2_HDR_COMPATIBLE_FEATURES = 80,   /* u64 */
    QCOW2_HDR_AUTOCLEAR_FEATURES = 88,    /* u64 */
    QCOW2_HDR_REFCOUNT_ORDER = 96,        /* u32 */
    QCOW2_HDR_HEADER_LENGTH = 100,        /* u32 */
    QCOW2_HDR_V3_LENGTH = 104,            /* the least header_length */
    /* Present if header_length says so. */
    QCOW2_HDR_COMPRESSION_TYPE = 104, /* u8, then 7 bytes of zeros */
    QCOW2_HDR_FULL_LENGTH = 112,      /* with all fields that this file knows */
};

#define QCOW2_CRYPT_NONE UINT32_C(0)
#define QCOW2_CRYPT_AES  UINT32_C(1)
#define QCOW2_CRYPT_LUKS UINT32_C(2)

#define QCOW2_V2_REFCOUNT_ORDER UINT32_C(4) /* version 2 has no field for it: 16 bits */

#define QCOW2_INCOMPAT_DIRTY       (UINT64_C(1) << 0) /* refcounts may be stale; mapping is valid */
#define QCOW2_INCOMPAT_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3) /* compression_type is not 0 */
#define QCOW2_INCOMPAT_EXTL2       (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN       UINT64_C(0x1f)

#define QCOW2_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)

#define QCOW2_AUTOCLEAR_BITMAPS       (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW (UINT64_C(1) << 1)
#define QCOW2_AUTOCLEAR_KNOWN         UINT64_C(3) /* who writes clears the others */

/* -- Header extensions ------------------------------------------------------------------------- */

/* Each: u32 type, u32 len, len bytes, padded to a multiple of 8.  They begin at header_length. */
#define QCOW2_EXT_HEADER_LEN     8
#define QCOW2_EXT_END            UINT32_C(0x00000000)
#define QCOW2_EXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define QCOW2_EXT_FEATURE_NAMES  UINT32_C(0x6803f857)
#define QCOW2_EXT_BITMAPS        UINT32_C(0x23852875)
#define QCOW2_EXT_CRYPTO_HEADER  UINT32_C(0x0537be77)
#define QCOW2_EXT_DATA_FILE      UINT32_C(0x44415441)

/*
 * Cairn's own, "CNRP": the chain that an active layer was started on.  Its data is exactly
 * QCOW2_CAIRN_PARENT_LEN bytes: the chain ID as text, `sha256:` and 64 lower-case hex digits,
 * without a terminating zero.  QCOW2_CAIRN_PARENT_LEN zero bytes instead say that there is a
 * parent whose chain ID is not known yet ("pending"): space is kept, readers see no parent.
 * Anything else is a corrupt image.  The backing name of such an image is QCOW2_CAIRN_BACKING
 * followed by the same chain ID (or by nothing while it is pending); no reader takes it from there.
 */
#define QCOW2_EXT_CAIRN_PARENT UINT32_C(0x434e5250)
#define QCOW2_CAIRN_PARENT_LEN 71
#define QCOW2_CAIRN_BACKING    "cairn:"

/* Feature name table: entries of u8 type, u8 bit, name padded with zeros. */
#define QCOW2_FEATURE_ENTRY_LEN    48
#define QCOW2_FEATURE_NAME_LEN     46
#define QCOW2_FEATURE_INCOMPATIBLE 0
#define QCOW2_FEATURE_COMPATIBLE   1
#define QCOW2_FEATURE_AUTOCLEAR    2

/* Bitmaps extension: u32 nb_bitmaps, u32 zero, u64 directory size, u64 directory offset. */
#define QCOW2_EXT_BITMAPS_LEN 24
/* Full disk encryption header pointer: u64 offset, u64 length. */
#define QCOW2_EXT_CRYPTO_LEN 16

/* -- L1 and L2 tables -------------------------------------------------------------------------- */

#define QCOW2_L1E_SIZE         8
#define QCOW2_L2E_SIZE         8
#define QCOW2_L2E_SIZE_EXTL2   16                  /* entry, then subcluster bitmap */
#define QCOW2_OFLAG_COPIED     (UINT64_C(1) << 63) /* refcount is exactly one */
#define QCOW2_OFLAG_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_OFLAG_ZERO       (UINT64_C(1) << 0) /* v3 without extended L2 entries only */

#define QCOW2_OFFSET_MASK       UINT64_C(0x00fffffffffffe00) /* of L1 and standard L2 entries */
#define QCOW2_L1E_RESERVED_MASK UINT64_C(0x7f000000000001ff)
#define QCOW2_L2E_RESERVED_MASK UINT64_C(0x3f000000000001fe) /* bit 0 is OFLAG_ZERO */

/* Compressed entry: host offset in bits 0 to x-1, additional sectors in bits x to 61. */
#define QCOW2_COMPRESSED_SECTOR 512

static inline unsigned qcow2_compressed_shift(unsigned cluster_bits)
{
    return 62 - (cluster_bits - 8);
}

/* Subcluster bitmap of an extended L2 entry: allocated 0-31, reads as zeros 32-63; never both. */
#define QCOW2_SUBCLUSTERS     32
#define QCOW2_SUBCLUSTER_BITS 5
#define QCOW2_SUB_ALLOC(n)    (UINT64_C(1) << (n))
#define QCOW2_SUB_ZERO(n)     (UINT64_C(1) << ((n) + 32))
#define QCOW2_SUB_ALLOC_ALL   UINT64_C(0x00000000ffffffff)
#define QCOW2_SUB_ZERO_ALL    UINT64_C(0xffffffff00000000)

/* -- Refcounts --------------------------------------------------------------------------------- */

#define QCOW2_REFTABLE_ENTRY_SIZE    8
#define QCOW2_REFTABLE_OFFSET_MASK   UINT64_C(0xfffffffffffffe00)
#define QCOW2_REFTABLE_RESERVED_MASK UINT64_C(0x1ff)

/* -- Snapshot table and bitmap directory ------------------------------------------------------- */

enum qcow2_snapshot_offset {
    QCOW2_SNAP_L1_TABLE_OFFSET = 0,  /* u64 */
    QCOW2_SNAP_L1_SIZE = 8,          /* u32, entries */
    QCOW2_SNAP_ID_LEN = 12,          /* u16 */
    QCOW2_SNAP_NAME_LEN = 14,        /* u16 */
    QCOW2_SNAP_DATE_SEC = 16,        /* u32 */
    QCOW2_SNAP_DATE_NSEC = 20,       /* u32 */
    QCOW2_SNAP_VM_CLOCK_NSEC = 24,   /* u64 */
    QCOW2_SNAP_VM_STATE_SIZE32 = 32, /* u32 */
    QCOW2_SNAP_EXTRA_LEN = 36,       /* u32 */
    QCOW2_SNAP_LENGTH = 40,          /* then extra data, ID, name, padding to 8 */
    /* In the extra data, from its start. */
    QCOW2_SNAP_EXTRA_VM_STATE_SIZE = 0, /* u64, replaces the 32-bit field */
    QCOW2_SNAP_EXTRA_DISK_SIZE = 8,     /* u64 */
};

enum qcow2_bitmap_offset {
    QCOW2_BITMAP_TABLE_OFFSET = 0, /* u64 */
    QCOW2_BITMAP_TABLE_SIZE = 8,   /* u32, entries */
    QCOW2_BITMAP_FLAGS = 12,       /* u32 */
    QCOW2_BITMAP_TYPE = 16,        /* u8 */
    QCOW2_BITMAP_GRANULARITY = 17, /* u8, bits */
    QCOW2_BITMAP_NAME_LEN = 18,    /* u16 */
    QCOW2_BITMAP_EXTRA_LEN = 20,   /* u32 */
    QCOW2_BITMAP_LENGTH = 24,      /* then extra data, name, padding to 8 */
};

#define QCOW2_BITMAP_IN_USE      (UINT32_C(1) << 0) /* not saved: do not believe it */
#define QCOW2_BITMAP_AUTO        (UINT32_C(1) << 1) /* to be kept up to date by who writes */
#define QCOW2_BITMAP_EXTRA_KNOWN (UINT32_C(1) << 2) /* usable without knowing its extra data */
#define QCOW2_BITMAP_FLAGS_KNOWN UINT32_C(7)

#define QCOW2_BITMAP_TYPE_DIRTY 1

/* Bitmap table entry: a host cluster of bits, or none, then bit 0 says what they all are. */
#define QCOW2_BME_SIZE          8
#define QCOW2_BME_ALL_ONES      (UINT64_C(1) << 0)
#define QCOW2_BME_RESERVED_MASK UINT64_C(0xff000000000001fe)

/* -- Limits ------------------------------------------------------------------------------------ */

#define QCOW2_CLUSTER_BITS_MIN       9  /* specification, "Header" */
#define QCOW2_CLUSTER_BITS_MAX       21 /* QEMU opens nothing larger */
#define QCOW2_CLUSTER_BITS_MIN_EXTL2 14 /* a subcluster is at least 512 bytes */
#define QCOW2_REFCOUNT_ORDER_MAX     6  /* 64-bit refcounts */
#define QCOW2_BACKING_NAME_MAX       1023

/* QEMU's limits: what it cannot open is not worth accepting, and they bound our memory. */
#define QCOW2_L1_BYTES_MAX       (UINT64_C(32) << 20)
#define QCOW2_REFTABLE_BYTES_MAX (UINT64_C(8) << 20)
#define QCOW2_SNAPSHOTS_MAX      65536
#define QCOW2_SNAPSHOT_TABLE_MAX (UINT64_C(64) << 20) /* 1 KiB a snapshot on average */
#define QCOW2_SNAPSHOT_EXTRA_MAX 1024
#define QCOW2_BITMAPS_MAX        65535
#define QCOW2_BITMAP_DIR_MAX     (UINT64_C(64) << 20)
#define QCOW2_BITMAP_NAME_MAX    1023
#define QCOW2_HOST_OFFSET_MAX    ((UINT64_C(1) << 56) - 1) /* what an entry can name */

#endif
