/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a resolver must refuse: good images of qemu-img's with bytes poked into them, one row each.
 * The message must begin with the layer's name and say what is wrong, where, and with which value.
 */
#include "qemu.h"

#include "bytes.h"
#include "layer.h"
#include "qcow2.h"

/* The images, all of 64 KiB clusters, and where QEMU puts things in them. */
enum image { PLAIN, V2, EXTL2, BACKED, BITMAPS, SNAPSHOT, NR_IMAGES };

#define CLUSTER  UINT64_C(0x10000)
#define REFTABLE UINT64_C(0x10000)
#define L1       UINT64_C(0x30000)
#define L2       UINT64_C(0x40000)
#define DATA     UINT64_C(0x50000)
#define COPIED   QCOW2_OFLAG_COPIED
#define PACKED   QCOW2_OFLAG_COMPRESSED
#define FAR      UINT64_C(0x7fffffff0000)

/* Entries that the images have: 0 data, 2 compressed, 4 zero (PLAIN); 0 data (V2, EXTL2). */
#define L2E(n)       (L2 + 8 * (n))
#define EXTL2E(n)    (L2 + 16 * (n))
#define EXTL2_MAP(n) (EXTL2E(n) + 8)
#define EXTENSION    QCOW2_HDR_FULL_LENGTH /* the first: feature names, or the backing format */

static struct {
    uint8_t *bytes;
    size_t len;
} images[NR_IMAGES];

struct poke {
    uint64_t off;
    unsigned width; /* bytes; 0: cut the file to off bytes (0: do nothing) */
    uint64_t value;
};

struct refusal {
    const char *name;
    enum image image;
    struct poke pokes[3];
    int code;
    const char *why;
};

#define CORRUPT     CAIRN_E_CORRUPT
#define UNSUPPORTED CAIRN_E_UNSUPPORTED
#define LIMIT       CAIRN_E_LIMIT

static const struct refusal header_refusals[] = {
    {"magic", PLAIN, {{0, 4, 0x514649fa}}, CORRUPT, "magic 0x514649fa"},
    {"hardly a file", PLAIN, {{71, 0, 0}}, CORRUPT, "71 bytes are too few"},
    {"version 1", PLAIN, {{QCOW2_HDR_VERSION, 4, 1}}, UNSUPPORTED, "version 1 is neither"},
    {"version 4", PLAIN, {{QCOW2_HDR_VERSION, 4, 4}}, UNSUPPORTED, "version 4 is neither"},
    {"clusters too small", PLAIN, {{QCOW2_HDR_CLUSTER_BITS, 4, 8}}, CORRUPT, "cluster_bits 8 "},
    {"clusters too large", PLAIN, {{QCOW2_HDR_CLUSTER_BITS, 4, 22}}, CORRUPT, "cluster_bits 22 "},
    {"subclusters too small",
     EXTL2,
     {{QCOW2_HDR_CLUSTER_BITS, 4, 13}},
     CORRUPT,
     "cluster_bits 13 with extended L2 entries"},
    {"header too short", PLAIN, {{QCOW2_HDR_HEADER_LENGTH, 4, 96}}, CORRUPT, "header_length 96 "},
    {"header not in eights",
     PLAIN,
     {{QCOW2_HDR_HEADER_LENGTH, 4, 107}},
     CORRUPT,
     "header_length 107 "},
    {"header beyond its cluster",
     PLAIN,
     {{QCOW2_HDR_HEADER_LENGTH, 4, 0x10008}},
     CORRUPT,
     "header_length 65544 exceeds the cluster size 65536"},
    {"refcount order", PLAIN, {{QCOW2_HDR_REFCOUNT_ORDER, 4, 7}}, CORRUPT, "refcount_order 7 "},
    {"unknown feature bit",
     PLAIN,
     {{QCOW2_HDR_INCOMPATIBLE_FEATURES, 8, 1 << 5}},
     UNSUPPORTED,
     "unknown incompatible features 0x20 (bit 5 without a name)"},
    {"unknown feature with a hostile name",
     PLAIN,
     {{QCOW2_HDR_INCOMPATIBLE_FEATURES, 8, UINT64_C(1) << 63},
      {EXTENSION + 8, 2, 63},
      {EXTENSION + 10, 8, UINT64_C(0x65760a2200000000)}},
     UNSUPPORTED,
     "bit 63 \"ev\\x0a\\x22\""},
    {"unknown feature that also breaks the extensions",
     PLAIN,
     {{QCOW2_HDR_INCOMPATIBLE_FEATURES, 8, 1 << 7}, {EXTENSION + 4, 4, 0x7fffffff}},
     UNSUPPORTED,
     "bit 7"},
    {"external data file",
     PLAIN,
     {{QCOW2_HDR_INCOMPATIBLE_FEATURES, 8, 4}, {EXTENSION, 4, QCOW2_EXT_DATA_FILE}},
     UNSUPPORTED,
     "external data file (\""},
    {"corrupt bit",
     PLAIN,
     {{QCOW2_HDR_INCOMPATIBLE_FEATURES, 8, 2}},
     UNSUPPORTED,
     "marked corrupt"},
    {"AES", PLAIN, {{QCOW2_HDR_CRYPT_METHOD, 4, 1}}, UNSUPPORTED, "crypt_method 1, AES"},
    {"LUKS", PLAIN, {{QCOW2_HDR_CRYPT_METHOD, 4, 2}}, UNSUPPORTED, "crypt_method 2, LUKS"},
    {"unknown encryption",
     V2,
     {{QCOW2_HDR_CRYPT_METHOD, 4, 9}},
     UNSUPPORTED,
     "crypt_method 9, unknown"},
    {"compression bit without a type",
     PLAIN,
     {{QCOW2_HDR_INCOMPATIBLE_FEATURES, 8, 8}},
     CORRUPT,
     "compression_type 0 with the compression type bit set"},
    {"compression type without the bit",
     PLAIN,
     {{QCOW2_HDR_COMPRESSION_TYPE, 1, 1}},
     CORRUPT,
     "compression_type 1 with the compression type bit clear"},
    {"unknown compression",
     PLAIN,
     {{QCOW2_HDR_INCOMPATIBLE_FEATURES, 8, 8}, {QCOW2_HDR_COMPRESSION_TYPE, 1, 9}},
     UNSUPPORTED,
     "compression_type 9 "},
    {"extension leaves its cluster",
     PLAIN,
     {{EXTENSION + 4, 4, 0xfffffff8}},
     CORRUPT,
     "header extension 0x6803f857 at 0x70 of 4294967288 bytes leaves the header area"},
    {"extension reaches into the backing name",
     BACKED,
     {{EXTENSION + 4, 4, 0xf000}},
     CORRUPT,
     "header extension 0xe2792aca at 0x70 of 61440 bytes leaves the header area"},
    {"extension twice",
     BACKED,
     {{EXTENSION + 16, 4, QCOW2_EXT_BACKING_FORMAT}},
     CORRUPT,
     "header extension 0xe2792aca appears twice"},
    {"recorded parent is not a chain ID",
     PLAIN,
     {{EXTENSION, 4, QCOW2_EXT_CAIRN_PARENT}},
     CORRUPT,
     "recorded parent \""},
    {"encryption header without encryption",
     PLAIN,
     {{EXTENSION, 4, QCOW2_EXT_CRYPTO_HEADER}},
     CORRUPT,
     "encryption header pointer with crypt_method 0"},
    {"backing name inside the header",
     BACKED,
     {{QCOW2_HDR_BACKING_FILE_OFFSET, 8, 100}},
     CORRUPT,
     "backing_file_offset 0x64 "},
    {"backing name outside the first cluster",
     BACKED,
     {{QCOW2_HDR_BACKING_FILE_OFFSET, 8, 0x10001}},
     CORRUPT,
     "backing_file_offset 0x10001 "},
    {"backing name leaves the first cluster",
     BACKED,
     {{QCOW2_HDR_BACKING_FILE_OFFSET, 8, 0xfffc}},
     CORRUPT,
     "backing name at 0xfffc of "},
    {"backing name too long",
     BACKED,
     {{QCOW2_HDR_BACKING_FILE_SIZE, 4, 1024}},
     LIMIT,
     "backing_file_size 1024 "},
    {"virtual size", PLAIN, {{QCOW2_HDR_SIZE, 8, UINT64_MAX}}, LIMIT, "virtual size 18446744"},
    {"L1 too small for the disk",
     PLAIN,
     {{QCOW2_HDR_SIZE, 8, UINT64_C(1) << 40}},
     CORRUPT,
     "l1_size 2 is too small for the virtual size 1099511627776, which needs 2048"},
    {"L1 too large", PLAIN, {{QCOW2_HDR_L1_SIZE, 4, (4 << 20) + 1}}, LIMIT, "l1_size 4194305 "},
    {"L1 misaligned",
     PLAIN,
     {{QCOW2_HDR_L1_TABLE_OFFSET, 8, L1 + 512}},
     CORRUPT,
     "L1 table at 0x30200 is not aligned"},
    {"L1 in the header",
     PLAIN,
     {{QCOW2_HDR_L1_TABLE_OFFSET, 8, 0}},
     CORRUPT,
     "L1 table at 0x0 overlaps the header"},
    {"L1 past the end",
     PLAIN,
     {{QCOW2_HDR_L1_TABLE_OFFSET, 8, FAR}},
     CORRUPT,
     "L1 table at 0x7fffffff0000 of 16 bytes reaches past the end"},
    {"L1 offset overflows",
     PLAIN,
     {{QCOW2_HDR_L1_TABLE_OFFSET, 8, UINT64_C(0xffffffffffff0000)}},
     CORRUPT,
     "L1 table at 0xffffffffffff0000 of 16 bytes reaches past the end"},
    {"refcount table misaligned",
     PLAIN,
     {{QCOW2_HDR_REFCOUNT_TABLE_OFFSET, 8, 0x10008}},
     CORRUPT,
     "refcount table at 0x10008 is not aligned"},
    {"refcount table past the end",
     PLAIN,
     {{QCOW2_HDR_REFCOUNT_TABLE_OFFSET, 8, FAR}},
     CORRUPT,
     "refcount table at 0x7fffffff0000 of 65536 bytes reaches past the end"},
    {"no refcount table",
     PLAIN,
     {{QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS, 4, 0}},
     CORRUPT,
     "refcount_table_clusters is 0"},
    {"refcount table too large",
     PLAIN,
     {{QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS, 4, 129}},
     LIMIT,
     "refcount_table_clusters 129 is above the limit of 128"},
    {"refcount table is the L1 table",
     PLAIN,
     {{QCOW2_HDR_REFCOUNT_TABLE_OFFSET, 8, L1}},
     CORRUPT,
     "refcount table at 0x30000 overlaps the L1 table"},
    {"too many snapshots",
     PLAIN,
     {{QCOW2_HDR_NB_SNAPSHOTS, 4, 65537}},
     LIMIT,
     "nb_snapshots 65537 "},
    {"snapshot table misaligned",
     SNAPSHOT,
     {{QCOW2_HDR_SNAPSHOTS_OFFSET, 8, 0x50200}},
     CORRUPT,
     "snapshot table at 0x50200 is not aligned"},
    {"snapshot table past the end",
     SNAPSHOT,
     {{QCOW2_HDR_NB_SNAPSHOTS, 4, 65536}},
     CORRUPT,
     "of 2621440 bytes reaches past the end"},
    {"snapshot table in the header",
     SNAPSHOT,
     {{QCOW2_HDR_SNAPSHOTS_OFFSET, 8, 0}},
     CORRUPT,
     "snapshot table at 0x0 overlaps the header"},
    {"no bitmaps in the bitmaps extension",
     BITMAPS,
     {{EXTENSION + 8, 4, 0}, {EXTENSION, 4, QCOW2_EXT_BITMAPS}, {EXTENSION + 4, 4, 24}},
     CORRUPT,
     "nb_bitmaps 0 "},
    {"bitmaps extension of a wrong length",
     BITMAPS,
     {{EXTENSION, 4, QCOW2_EXT_BITMAPS}, {EXTENSION + 4, 4, 16}},
     CORRUPT,
     "bitmaps extension has 16 bytes instead of 24"},
    {"bitmap directory too small",
     BITMAPS,
     {{EXTENSION, 4, QCOW2_EXT_BITMAPS},
      {EXTENSION + 4, 8, UINT64_C(0x1800000010)},
      {EXTENSION + 12, 8, 0}},
     CORRUPT,
     "bitmap_directory_size "},
};

static const struct refusal table_refusals[] = {
    {"L1 reserved bits", PLAIN, {{L1, 8, COPIED | L2 | 4}}, CORRUPT, "L1 entry 0 is 0x80"},
    {"L1 high reserved bits", PLAIN, {{L1, 8, L2 | UINT64_C(1) << 60}}, CORRUPT, "L1 entry 0 is"},
    {"L1 copied without a table", PLAIN, {{L1 + 8, 8, COPIED}}, CORRUPT, "L1 entry 1 is 0x80"},
    {"L2 misaligned",
     PLAIN,
     {{L1, 8, COPIED | (L2 + 512)}},
     CORRUPT,
     "L2 table 0 at 0x40200 is not aligned to the cluster size 65536"},
    {"L2 past the end",
     PLAIN,
     {{L1, 8, COPIED | FAR}},
     CORRUPT,
     "L2 table 0 at 0x7fffffff0000 of 65536 bytes reaches past the end"},
    {"L2 only begins inside the file",
     PLAIN,
     {{L2 + 512, 0, 0}},
     CORRUPT,
     "L2 table 0 at 0x40000 of 65536 bytes reaches past the end"},
    {"L2 is the L1 table",
     PLAIN,
     {{L1, 8, COPIED | L1}},
     CORRUPT,
     "L2 table 0 at 0x30000 overlaps the L1 table"},
    {"L2 is the refcount table",
     PLAIN,
     {{L1, 8, COPIED | REFTABLE}},
     CORRUPT,
     "L2 table 0 at 0x10000 overlaps the refcount table"},
    {"L2 is the snapshot table",
     SNAPSHOT,
     {{QCOW2_HDR_SNAPSHOTS_OFFSET, 8, L2}},
     CORRUPT,
     "L2 table 0 at 0x40000 overlaps the snapshot table"},
    {"L2 twice",
     PLAIN,
     {{L1 + 8, 8, COPIED | L2}},
     CORRUPT,
     "L2 table 1 at 0x40000 is also L2 table 0"},
    {"L2 entry reserved bits",
     PLAIN,
     {{L2E(0), 8, COPIED | DATA | 2}},
     CORRUPT,
     "L2 table 0, entry 0 (guest offset 0x0): reserved bits 0x2 are set"},
    {"L2 entry high reserved bits",
     PLAIN,
     {{L2E(7), 8, DATA | UINT64_C(1) << 56}},
     CORRUPT,
     "L2 table 0, entry 7 (guest offset 0x70000): reserved bits 0x100000000000000 are set"},
    {"data misaligned",
     PLAIN,
     {{L2E(0), 8, COPIED | (DATA + 512)}},
     CORRUPT,
     "host cluster 0x50200 is not aligned to the cluster size 65536"},
    {"data past the end",
     PLAIN,
     {{L2E(1), 8, COPIED | FAR}},
     CORRUPT,
     "entry 1 (guest offset 0x10000): host cluster 0x7fffffff0000 begins past the end"},
    {"zeros preallocated past the end",
     PLAIN,
     {{L2E(1), 8, COPIED | FAR | 1}},
     CORRUPT,
     "host cluster 0x7fffffff0000 begins past the end"},
    {"data in the header cluster",
     PLAIN,
     {{L2E(0), 8, COPIED}},
     CORRUPT,
     "copied bit is set without a host cluster"},
    {"data in the refcount table",
     PLAIN,
     {{L2E(9), 8, COPIED | REFTABLE}},
     CORRUPT,
     "entry 9 (guest offset 0x90000): host offset 0x10000 lies in the refcount table at 0x10000"},
    {"data in the L1 table",
     PLAIN,
     {{L2E(9), 8, L1}},
     CORRUPT,
     "host offset 0x30000 lies in the L1 table at 0x30000"},
    {"data in an L2 table, as the end of a run",
     PLAIN,
     {{L2E(9), 8, L1 - CLUSTER}, {L2E(10), 8, L1}, {L2E(11), 8, L2}},
     CORRUPT,
     "entry 10 (guest offset 0xa0000): host offset 0x30000 lies in the L1 table"},
    {"data in its own L2 table",
     PLAIN,
     {{L2E(9), 8, COPIED | L2}},
     CORRUPT,
     "entry 9 (guest offset 0x90000): host offset 0x40000 lies in the L2 table at 0x40000"},
    {"zero bit in version 2",
     V2,
     {{L2E(3), 8, 1}},
     CORRUPT,
     "entry 3 (guest offset 0x30000): reserved bits 0x1 are set"},
    {"zero bit with extended L2 entries",
     EXTL2,
     {{EXTL2E(3), 8, 1}},
     CORRUPT,
     "entry 3 (guest offset 0x30000): reserved bits 0x1 are set"},
    {"subclusters allocated and zero",
     EXTL2,
     {{EXTL2_MAP(0), 8, UINT64_C(0x0000000100000001)}},
     CORRUPT,
     "subcluster bitmap 0x0000000100000001 has subclusters that are both allocated and zero"},
    {"subclusters allocated nowhere",
     EXTL2,
     {{EXTL2_MAP(5), 8, 2}},
     CORRUPT,
     "entry 5 (guest offset 0x50000): subcluster bitmap 0x0000000000000002 has allocated "
     "subclusters without a host cluster"},
    {"compressed cluster with subclusters",
     EXTL2,
     {{EXTL2E(0), 8, PACKED | DATA}},
     CORRUPT,
     "a compressed cluster with subcluster bitmap"},
    {"compressed data past the end",
     PLAIN,
     {{L2E(2), 8, PACKED | 0x3fffffffffff}},
     CORRUPT,
     "entry 2 (guest offset 0x20000): compressed data at 0x3fffffffffff begins past the end"},
    {"compressed data in the header",
     PLAIN,
     {{L2E(2), 8, PACKED | 0x200}},
     CORRUPT,
     "host offset 0x200 lies in the header at 0x0"},
    {"compressed data in an L2 table",
     PLAIN,
     {{L2E(2), 8, PACKED | (L2 + 77)}},
     CORRUPT,
     "host offset 0x4004d lies in the L2 table at 0x40000"},
    {"compressed and copied",
     PLAIN,
     {{L2E(2), 8, COPIED | PACKED | DATA}},
     CORRUPT,
     "a compressed cluster with the copied bit set"},
};

static void poke(uint8_t *bytes, size_t *len, const struct poke *p)
{
    for (unsigned i = 0; i < p->width; i++)
        bytes[p->off + i] = (uint8_t)(p->value >> 8 * (p->width - 1 - i));
    if (p->width == 0 && p->off > 0)
        *len = p->off;
}

static int ignore(void *arg, const struct extent *e, struct cairn_error *err)
{
    (void)arg;
    (void)e;
    (void)err;
    return CAIRN_OK;
}

/* Which of the two steps refuses is part of what is tested. */
static void assert_refused(const struct refusal *refusal, bool at_opening)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP(source_free_p) struct source *src = NULL;
    size_t len = images[refusal->image].len;
    CLEANUP_FREE uint8_t *bytes = malloc(len);
    struct cairn_error err = {0};
    int r;

    memcpy(bytes, images[refusal->image].bytes, len);
    for (size_t i = 0; i < 3; i++)
        poke(bytes, &len, &refusal->pokes[i]);
    assert_int_equal(source_from_memory(bytes, len, "layer sha256:9f", &src, NULL), CAIRN_OK);
    r = layer_open(src, LAYER_QCOW2, &layer, &err);
    if (at_opening != (r != CAIRN_OK))
        fail_msg("%s: opening gives %d (%s)", refusal->name, r, err.message);
    if (r == CAIRN_OK)
        r = layer_scan(layer, ignore, NULL, &err);
    if (r != refusal->code || (int)err.code != r || !strstr(err.message, refusal->why) ||
        strncmp(err.message, "layer sha256:9f: ", 17) != 0)
        fail_msg("%s: %d (%s), expected %d (%s)", refusal->name, r, err.message, refusal->code,
                 refusal->why);
}

static void test_headers_are_refused_at_opening(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(header_refusals) / sizeof(header_refusals[0]); i++)
        assert_refused(&header_refusals[i], true);
}

static void test_tables_are_refused_by_the_scan(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(table_refusals) / sizeof(table_refusals[0]); i++)
        assert_refused(&table_refusals[i], false);
}

static void test_the_images_are_good_without_the_pokes(void **state)
{
    (void)state;
    for (int i = 0; i < NR_IMAGES; i++) {
        CLEANUP(layer_free_p) struct layer *layer = NULL;
        CLEANUP(source_free_p) struct source *src = NULL;
        struct cairn_error err;

        assert_int_equal(source_from_memory(images[i].bytes, images[i].len, "x", &src, NULL),
                         CAIRN_OK);
        if (layer_open(src, LAYER_QCOW2, &layer, &err) != CAIRN_OK ||
            layer_scan(layer, ignore, NULL, &err) != CAIRN_OK)
            fail_msg("%s", err.message);
        assert_int_equal(bytes_get_be64(images[i].bytes + QCOW2_HDR_L1_TABLE_OFFSET), L1);
        assert_int_equal(bytes_get_be64(images[i].bytes + L1) & QCOW2_OFFSET_MASK, L2);
    }
}

/* Nothing may crash, whatever single byte of the metadata is wrong. */
static void test_any_byte_may_be_wrong(void **state)
{
    const uint64_t areas[][2] = {{0, 512}, {L1, 16}, {L2, 256}};
    const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    CLEANUP_FREE uint8_t *bytes = malloc(images[EXTL2].len);
    size_t len = images[EXTL2].len;

    (void)state;
    memcpy(bytes, images[EXTL2].bytes, len);
    for (size_t a = 0; a < 3; a++)
        for (uint64_t at = areas[a][0]; at < areas[a][0] + areas[a][1]; at++)
            for (size_t v = 0; v < sizeof(values); v++) {
                CLEANUP(layer_free_p) struct layer *layer = NULL;
                CLEANUP(source_free_p) struct source *src = NULL;
                uint8_t was = bytes[at];

                bytes[at] = values[v];
                assert_int_equal(source_from_memory(bytes, len, "x", &src, NULL), CAIRN_OK);
                if (layer_open(src, LAYER_QCOW2, &layer, NULL) == CAIRN_OK)
                    (void)layer_scan(layer, ignore, NULL, NULL);
                bytes[at] = was;
            }
}

static int setup(void **state)
{
    const char *const create[NR_IMAGES] = {
        [PLAIN] = "-o compat=1.1 i 1G && qemu-io -c 'write -P 1 0 64k' i && "
                  "qemu-io -c 'write -c -P 2 128k 64k' i && qemu-io -c 'write -z 256k 64k' i",
        [V2] = "-o compat=0.10 i 1M && qemu-io -c 'write -P 1 0 64k' i",
        [EXTL2] = "-o extended_l2=on i 1M && qemu-io -c 'write -P 1 0 64k' i",
        [BACKED] = "-u -b /etc/passwd -F raw i 1M && "
                   "qemu-io -c 'write -P 1 0 64k' \"json:{'driver': 'qcow2', 'backing': null, "
                   "'file': {'driver': 'file', 'filename': 'i'}}\"",
        [BITMAPS] = "i 1M && qemu-io -c 'write -P 1 0 64k' i && qemu-img bitmap --add i b0",
        [SNAPSHOT] = "i 1M && qemu-io -c 'write -P 1 0 64k' i && qemu-img snapshot -c one i",
    };

    if (qemu_setup(state) != 0)
        return -1;
    for (int i = 0; i < NR_IMAGES; i++) {
        sh("rm -f i && qemu-img create -f qcow2 %s", create[i]);
        images[i].bytes = load_file("i", &images[i].len);
    }
    return 0;
}

static int teardown(void **state)
{
    for (int i = 0; i < NR_IMAGES; i++)
        free(images[i].bytes);
    return qemu_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_images_are_good_without_the_pokes),
        cmocka_unit_test(test_headers_are_refused_at_opening),
        cmocka_unit_test(test_tables_are_refused_by_the_scan),
        cmocka_unit_test(test_any_byte_may_be_wrong),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
