/* SPDX-License-Identifier: Apache-2.0 */
/* Headers, extensions, snapshots and bitmaps as they are read; what is refused is in
 * test_qcow2_refuse.c. */
#include "qemu.h"

#include "bytes.h"
#include "qcow2.h"
#include "qcow2_image.h"

#define PARENT "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

/* An image in memory, its source and what it opens as. */
struct subject {
    uint8_t *bytes;
    size_t len;
    struct source *src;
    struct qcow2_image *image;
    const struct qcow2_header *hdr;
};

static void load(struct subject *s, const char *path)
{
    memset(s, 0, sizeof(*s));
    s->bytes = load_file(path, &s->len);
}

static void open_with(struct subject *s, unsigned flags)
{
    struct cairn_error err;

    assert_int_equal(source_from_memory(s->bytes, s->len, "layer x", &s->src, NULL), CAIRN_OK);
    if (qcow2_image_open(s->src, flags, &s->image, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    s->hdr = qcow2_image_header(s->image);
}

static void done(struct subject *s)
{
    qcow2_image_free(s->image);
    source_free(s->src);
    free(s->bytes);
}

/* Write a header extension where that of the feature names is (version 3, no backing file). */
static void put_extension(struct subject *s, uint32_t type, const void *data, uint32_t len)
{
    uint8_t *at = s->bytes + QCOW2_HDR_FULL_LENGTH;

    bytes_put_be32(at, type);
    bytes_put_be32(at + 4, len);
    memset(at + 8, 0, ((len + 7U) & ~7U) + 8);
    memcpy(at + 8, data, len);
}

static int count(void *arg, const struct extent *e, struct cairn_error *err)
{
    (void)e;
    (void)err;
    ++*(int *)arg;
    return CAIRN_OK;
}

static void test_version_2_header(void **state)
{
    struct subject s;

    (void)state;
    sh("qemu-img create -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 12345856");
    load(&s, "v2.qcow2");
    open_with(&s, 0);
    assert_int_equal(s.hdr->version, 2);
    assert_int_equal(s.hdr->cluster_bits, 12);
    assert_int_equal(s.hdr->size, 12345856);
    assert_int_equal(s.hdr->header_length, 72);
    assert_int_equal(s.hdr->refcount_order, 4);
    assert_int_equal(s.hdr->incompatible_features, 0);
    done(&s);
}

static void test_version_3_header(void **state)
{
    struct subject s;

    (void)state;
    sh("qemu-img create -f qcow2 -o compression_type=zstd,refcount_bits=64,extended_l2=on,"
       "lazy_refcounts=on v3.qcow2 1M");
    load(&s, "v3.qcow2");
    open_with(&s, 0);
    assert_int_equal(s.hdr->version, 3);
    assert_int_equal(s.hdr->refcount_order, 6);
    assert_int_equal(s.hdr->compression_type, LAYER_ZSTD);
    assert_int_equal(s.hdr->incompatible_features,
                     QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTL2);
    assert_int_equal(s.hdr->compatible_features, QCOW2_COMPAT_LAZY_REFCOUNTS);
    assert_int_equal(s.hdr->header_length, 112);
    assert_true(s.hdr->nr_features > 0);
    assert_string_equal(s.hdr->features[0].name, "dirty bit");
    done(&s);
}

static void test_backing_name_and_format_are_bytes(void **state)
{
    struct subject s;

    (void)state;
    sh("qemu-img create -u -f qcow2 -b /etc/passwd -F raw b.qcow2 1M");
    load(&s, "b.qcow2");
    open_with(&s, 0);
    assert_int_equal(s.hdr->backing_file.len, 11);
    assert_memory_equal(s.hdr->backing_file.data, "/etc/passwd", 11);
    assert_int_equal(s.hdr->backing_format.len, 3);
    assert_memory_equal(s.hdr->backing_format.data, "raw", 3);
    assert_false(s.hdr->has_parent);
    done(&s);
}

static void test_recorded_parent(void **state)
{
    char text[DIGEST_STR_MAX];
    struct subject s;

    (void)state;
    sh("qemu-img create -f qcow2 a.qcow2 1M");
    load(&s, "a.qcow2");
    put_extension(&s, QCOW2_EXT_CAIRN_PARENT, PARENT, QCOW2_CAIRN_PARENT_LEN);
    open_with(&s, 0);
    assert_true(s.hdr->has_parent);
    assert_string_equal(digest_format(&s.hdr->parent, text), PARENT);
    done(&s);
}

static void test_pending_parent_is_none(void **state)
{
    const uint8_t pending[QCOW2_CAIRN_PARENT_LEN] = {0};
    struct subject s;

    (void)state;
    load(&s, "a.qcow2");
    put_extension(&s, QCOW2_EXT_CAIRN_PARENT, pending, sizeof(pending));
    open_with(&s, 0);
    assert_false(s.hdr->has_parent);
    done(&s);
}

static void test_unknown_extensions_are_skipped(void **state)
{
    struct subject s;
    uint8_t *next;

    (void)state;
    load(&s, "a.qcow2");
    put_extension(&s, 0x12345678, "hello", 5);
    next = s.bytes + QCOW2_HDR_FULL_LENGTH + 16;
    bytes_put_be32(next, QCOW2_EXT_BACKING_FORMAT);
    bytes_put_be32(next + 4, 3);
    memcpy(next + 8, "raw\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    open_with(&s, 0);
    assert_int_equal(s.hdr->nr_features, 0);
    assert_int_equal(s.hdr->backing_format.len, 3);
    done(&s);
}

static void test_extra_header_fields_are_skipped(void **state)
{
    struct subject s;

    (void)state;
    load(&s, "a.qcow2");
    memset(s.bytes + QCOW2_HDR_FULL_LENGTH, 0x55, 48);
    memset(s.bytes + QCOW2_HDR_FULL_LENGTH + 48, 0, 8);
    bytes_put_be32(s.bytes + QCOW2_HDR_HEADER_LENGTH, QCOW2_HDR_FULL_LENGTH + 48);
    open_with(&s, 0);
    assert_int_equal(s.hdr->header_length, 160);
    done(&s);
}

static void test_harmless_bits_are_accepted(void **state)
{
    struct subject s;
    int extents = 0;

    (void)state;
    load(&s, "a.qcow2");
    bytes_put_be64(s.bytes + QCOW2_HDR_INCOMPATIBLE_FEATURES, QCOW2_INCOMPAT_DIRTY);
    bytes_put_be64(s.bytes + QCOW2_HDR_COMPATIBLE_FEATURES, UINT64_MAX);
    bytes_put_be64(s.bytes + QCOW2_HDR_AUTOCLEAR_FEATURES, UINT64_MAX);
    open_with(&s, 0);
    assert_int_equal(qcow2_image_scan(s.image, count, &extents, NULL), CAIRN_OK);
    done(&s);
}

static void test_odd_virtual_size_is_rounded_down(void **state)
{
    struct layer *layer;
    struct subject s;

    (void)state;
    load(&s, "a.qcow2");
    bytes_put_be64(s.bytes + QCOW2_HDR_SIZE, 100000);
    open_with(&s, 0);
    assert_int_equal(s.hdr->size, 100000);
    assert_int_equal(layer_open(s.src, LAYER_QCOW2, &layer, NULL), CAIRN_OK);
    assert_int_equal(layer_get_attr(layer)->virtual_size, 99840);
    layer_free(layer);
    done(&s);
}

static void test_last_cluster_may_end_past_the_file(void **state)
{
    struct subject s;
    int extents = 0;

    (void)state;
    sh("qemu-img create -f qcow2 l.qcow2 1M && qemu-io -c 'write -P 1 0 64k' l.qcow2");
    load(&s, "l.qcow2");
    s.len -= 1000;
    open_with(&s, 0);
    assert_int_equal(qcow2_image_scan(s.image, count, &extents, NULL), CAIRN_OK);
    assert_int_equal(extents, 1);
    done(&s);
}

static void assert_info_opens_but_does_not_scan(struct subject *s, const char *why)
{
    struct cairn_error err;
    int extents = 0;

    open_with(s, QCOW2_OPEN_INFO);
    assert_int_equal(qcow2_image_scan(s->image, count, &extents, &err), CAIRN_E_UNSUPPORTED);
    if (!strstr(err.message, why))
        fail_msg("%s", err.message);
}

/* By hand: making a real one takes qemu-img a benchmark of the CPU, which can fail. */
static void test_info_of_an_encrypted_image(void **state)
{
    uint8_t pointer[QCOW2_EXT_CRYPTO_LEN];
    struct subject s;

    (void)state;
    load(&s, "a.qcow2");
    bytes_put_be32(s.bytes + QCOW2_HDR_CRYPT_METHOD, QCOW2_CRYPT_LUKS);
    bytes_put_be64(pointer, 0x40000);
    bytes_put_be64(pointer + 8, 2068480);
    put_extension(&s, QCOW2_EXT_CRYPTO_HEADER, pointer, sizeof(pointer));
    assert_info_opens_but_does_not_scan(&s, "encrypted (crypt_method 2, LUKS)");
    assert_true(s.hdr->has_crypto_header);
    assert_int_equal(s.hdr->crypto_header_offset, 0x40000);
    assert_int_equal(s.hdr->crypto_header_length, 2068480);
    done(&s);
}

static void test_info_of_an_external_data_file(void **state)
{
    struct subject s;

    (void)state;
    sh("qemu-img create -f qcow2 -o data_file=d.raw x.qcow2 1M");
    load(&s, "x.qcow2");
    assert_info_opens_but_does_not_scan(&s, "external data file (\"");
    assert_true(s.hdr->data_file.len > 0);
    done(&s);
}

static void test_info_of_unknown_and_corrupt_bits(void **state)
{
    struct subject s;

    (void)state;
    load(&s, "a.qcow2");
    bytes_put_be64(s.bytes + QCOW2_HDR_INCOMPATIBLE_FEATURES, QCOW2_INCOMPAT_CORRUPT | UINT64_C(1)
                                                                                           << 40);
    bytes_put_be64(s.bytes + QCOW2_HDR_L1_TABLE_OFFSET, 12345); /* not looked at */
    assert_info_opens_but_does_not_scan(&s, "bit 40");
    done(&s);
}

static void test_snapshots_are_listed(void **state)
{
    const struct qcow2_snapshot *list;
    struct subject s;
    uint32_t nr;

    (void)state;
    sh("qemu-img create -f qcow2 s.qcow2 2M && qemu-img snapshot -c first s.qcow2 && "
       "qemu-img resize s.qcow2 3M && qemu-img snapshot -c 'the second one' s.qcow2");
    load(&s, "s.qcow2");
    open_with(&s, 0);
    for (int i = 0; i < 2; i++) { /* the second time from memory */
        assert_int_equal(qcow2_image_snapshots(s.image, &list, &nr, NULL), CAIRN_OK);
        assert_int_equal(nr, 2);
    }
    assert_string_equal(list[0].id, "1");
    assert_string_equal(list[0].name, "first");
    assert_int_equal(list[0].disk_size, 2 << 20);
    assert_int_equal(list[0].vm_state_size, 0);
    assert_true(list[0].date_sec > 0);
    assert_string_equal(list[1].id, "2");
    assert_string_equal(list[1].name, "the second one");
    assert_int_equal(list[1].disk_size, 3 << 20);
    assert_int_equal(list[1].l1_size, 1);
    done(&s);
}

static void test_bitmaps_are_listed(void **state)
{
    const struct qcow2_bitmap *list;
    struct subject s;
    uint32_t nr;

    (void)state;
    sh("qemu-img create -f qcow2 m.qcow2 2M && qemu-img bitmap --add -g 128k m.qcow2 b0 && "
       "qemu-img bitmap --add --disable m.qcow2 another");
    load(&s, "m.qcow2");
    open_with(&s, 0);
    assert_int_equal(qcow2_image_bitmaps(s.image, &list, &nr, NULL), CAIRN_OK);
    assert_int_equal(nr, 2);
    assert_string_equal(list[0].name, "b0");
    assert_int_equal(list[0].granularity_bits, 17);
    assert_int_equal(list[0].flags, 2);
    assert_int_equal(list[0].type, 1);
    assert_string_equal(list[1].name, "another");
    assert_int_equal(list[1].granularity_bits, 16);
    assert_int_equal(list[1].flags, 0);
    done(&s);
}

static void test_no_snapshots_and_no_bitmaps(void **state)
{
    const struct qcow2_snapshot *snapshots;
    const struct qcow2_bitmap *bitmaps;
    struct subject s;
    uint32_t nr;

    (void)state;
    load(&s, "a.qcow2");
    open_with(&s, 0);
    assert_int_equal(qcow2_image_snapshots(s.image, &snapshots, &nr, NULL), CAIRN_OK);
    assert_int_equal(nr, 0);
    assert_int_equal(qcow2_image_bitmaps(s.image, &bitmaps, &nr, NULL), CAIRN_OK);
    assert_int_equal(nr, 0);
    done(&s);
}

static void test_bitmaps_without_their_bit_are_not_believed(void **state)
{
    struct subject s;

    (void)state;
    load(&s, "m.qcow2");
    bytes_put_be64(s.bytes + QCOW2_HDR_AUTOCLEAR_FEATURES, 0);
    open_with(&s, 0);
    assert_false(s.hdr->has_bitmaps);
    assert_true(s.hdr->stale_bitmaps);
    assert_int_equal(s.hdr->nb_bitmaps, 0);
    done(&s);
}

static void assert_snapshots_refused(struct subject *s, int code, const char *why)
{
    const struct qcow2_snapshot *list;
    struct cairn_error err;
    uint32_t nr;

    open_with(s, 0);
    assert_int_equal(qcow2_image_snapshots(s->image, &list, &nr, &err), code);
    if (!strstr(err.message, why))
        fail_msg("%s", err.message);
    done(s);
}

static void test_malformed_snapshots(void **state)
{
    struct subject s;
    uint8_t *table;

    (void)state;
    load(&s, "s.qcow2");
    table = s.bytes + bytes_get_be64(s.bytes + QCOW2_HDR_SNAPSHOTS_OFFSET);
    bytes_put_be32(table + QCOW2_SNAP_EXTRA_LEN, 1025);
    assert_snapshots_refused(&s, CAIRN_E_LIMIT, "1025 bytes of extra data");

    load(&s, "s.qcow2");
    table = s.bytes + bytes_get_be64(s.bytes + QCOW2_HDR_SNAPSHOTS_OFFSET);
    bytes_put_be16(table + QCOW2_SNAP_NAME_LEN, 65535);
    assert_snapshots_refused(&s, CAIRN_E_CORRUPT, "leave the snapshot table");
}

static void assert_bitmaps_refused(struct subject *s, const char *why)
{
    const struct qcow2_bitmap *list;
    struct cairn_error err;
    uint32_t nr;

    open_with(s, 0);
    assert_int_equal(qcow2_image_bitmaps(s->image, &list, &nr, &err), CAIRN_E_CORRUPT);
    if (!strstr(err.message, why))
        fail_msg("%s", err.message);
    done(s);
}

static void test_malformed_bitmaps(void **state)
{
    const struct {
        unsigned at;
        uint16_t value;
        const char *why;
    } cases[] = {
        {QCOW2_BITMAP_NAME_LEN, 0, "name_size 0"},
        {QCOW2_BITMAP_NAME_LEN, 1024, "name_size 1024"},
        {QCOW2_BITMAP_NAME_LEN, 1023, "leave the bitmap directory"},
        {QCOW2_BITMAP_EXTRA_LEN, 0xffff, "leave the bitmap directory"},
        {QCOW2_BITMAP_TYPE, 0x01ff, "granularity_bits 255"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct subject s;
        uint64_t dir;

        load(&s, "m.qcow2");
        open_with(&s, 0);
        dir = s.hdr->bitmap_directory_offset;
        done(&s);
        load(&s, "m.qcow2");
        bytes_put_be16(s.bytes + dir + cases[i].at, cases[i].value);
        assert_bitmaps_refused(&s, cases[i].why);
    }
}

static void test_bitmap_directory_with_a_rest(void **state)
{
    size_t ext = QCOW2_HDR_FULL_LENGTH;
    struct subject s;

    (void)state;
    load(&s, "m.qcow2");
    while (bytes_get_be32(s.bytes + ext) != QCOW2_EXT_BITMAPS)
        ext += 8;
    bytes_put_be32(s.bytes + ext + QCOW2_EXT_HEADER_LEN, 1);
    assert_bitmaps_refused(&s, "32 bytes are left in the bitmap directory after its 1 bitmaps");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version_2_header),
        cmocka_unit_test(test_version_3_header),
        cmocka_unit_test(test_backing_name_and_format_are_bytes),
        cmocka_unit_test(test_recorded_parent),
        cmocka_unit_test(test_pending_parent_is_none),
        cmocka_unit_test(test_unknown_extensions_are_skipped),
        cmocka_unit_test(test_extra_header_fields_are_skipped),
        cmocka_unit_test(test_harmless_bits_are_accepted),
        cmocka_unit_test(test_odd_virtual_size_is_rounded_down),
        cmocka_unit_test(test_last_cluster_may_end_past_the_file),
        cmocka_unit_test(test_info_of_an_encrypted_image),
        cmocka_unit_test(test_info_of_an_external_data_file),
        cmocka_unit_test(test_info_of_unknown_and_corrupt_bits),
        cmocka_unit_test(test_snapshots_are_listed),
        cmocka_unit_test(test_bitmaps_are_listed),
        cmocka_unit_test(test_no_snapshots_and_no_bitmaps),
        cmocka_unit_test(test_bitmaps_without_their_bit_are_not_believed),
        cmocka_unit_test(test_malformed_snapshots),
        cmocka_unit_test(test_malformed_bitmaps),
        cmocka_unit_test(test_bitmap_directory_with_a_rest),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
