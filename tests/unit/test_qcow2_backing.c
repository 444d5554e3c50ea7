/* SPDX-License-Identifier: Apache-2.0 */
/* A backing name is replaced in place; everything else that the first cluster says stays. */
#include "qemu.h"

#include <fcntl.h>

#include "bytes.h"
#include "qcow2.h"
#include "qcow2_backing.h"
#include "qcow2_image.h"

static void set_backing(const char *file, const char *backing)
{
    CLEANUP_CLOSE int fd = open(file, O_RDWR);
    struct cairn_error err;

    assert_true(fd >= 0);
    if (qcow2_set_backing(fd, file, backing, LAYER_QCOW2, NULL, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
}

static void poke(const char *file, long at, const void *bytes, size_t len)
{
    FILE *f = fopen(file, "r+b");

    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static struct qcow2_image *open_image(const char *file, struct source **ret_src)
{
    struct qcow2_image *image;
    struct cairn_error err;

    assert_int_equal(source_open_file(file, NULL, ret_src, NULL), CAIRN_OK);
    if (qcow2_image_open(*ret_src, 0, &image, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    return image;
}

static void test_bitmaps_snapshots_and_feature_names_stay(void **state)
{
    struct source *src;
    struct qcow2_image *image;
    const struct qcow2_header *hdr;

    (void)state;
    sh("qemu-img create -f qcow2 base.qcow2 1M; "
       "qemu-img create -f qcow2 -b base.qcow2 -F qcow2 -o compression_type=zstd k.qcow2; "
       "qemu-img bitmap --add k.qcow2 b; qemu-img snapshot -c s k.qcow2; mv base.qcow2 "
       "moved.qcow2");
    set_backing("k.qcow2", "moved.qcow2");
    image = open_image("k.qcow2", &src);
    hdr = qcow2_image_header(image);
    assert_int_equal(hdr->backing_file.len, 11);
    assert_memory_equal(hdr->backing_file.data, "moved.qcow2", 11);
    assert_int_equal(hdr->compression_type, LAYER_ZSTD);
    assert_true(hdr->nr_features > 0 && hdr->has_bitmaps);
    assert_int_equal(hdr->nb_snapshots, 1);
    qcow2_image_free(image);
    source_free(src);
    sh("qemu-img check k.qcow2 && qemu-img info --backing-chain k.qcow2 | grep -q 'name: b'");
}

static void test_an_unknown_extension_stays(void **state)
{
    static const uint8_t extension[] = {0x12, 0x34, 0x56, 0x78, 0,   0,  0,
                                        5,    'h',  'e',  'l',  'l', 'o'};
    CLEANUP_FREE uint8_t *bytes = NULL;
    const uint8_t none[64] = {0};
    size_t len;

    (void)state;
    sh("qemu-img create -f qcow2 u.qcow2 1M");
    poke("u.qcow2", QCOW2_HDR_FULL_LENGTH, none, sizeof(none));
    poke("u.qcow2", QCOW2_HDR_FULL_LENGTH, extension, sizeof(extension));
    set_backing("u.qcow2", "moved.qcow2");
    bytes = load_file("u.qcow2", &len);
    assert_non_null(memmem(bytes, 4096, extension, sizeof(extension)));
}

/* The specification, "autoclear_features": who writes and does not know a bit clears it. */
static void test_unknown_autoclear_bits_are_cleared_and_others_stay(void **state)
{
    struct source *src;
    struct qcow2_image *image;
    uint8_t bits[8];

    (void)state;
    sh("qemu-img create -f qcow2 c.qcow2 1M; qemu-img bitmap --add c.qcow2 b");
    bytes_put_be64(bits, UINT64_C(1) << 40 | QCOW2_AUTOCLEAR_BITMAPS);
    poke("c.qcow2", QCOW2_HDR_AUTOCLEAR_FEATURES, bits, sizeof(bits));
    bytes_put_be64(bits, UINT64_C(1) << 40);
    poke("c.qcow2", QCOW2_HDR_COMPATIBLE_FEATURES, bits, sizeof(bits));
    set_backing("c.qcow2", "moved.qcow2");
    image = open_image("c.qcow2", &src);
    assert_int_equal(qcow2_image_header(image)->autoclear_features, QCOW2_AUTOCLEAR_BITMAPS);
    assert_int_equal(qcow2_image_header(image)->compatible_features, UINT64_C(1) << 40);
    qcow2_image_free(image);
    source_free(src);
}

static void test_version_2_has_no_bits_to_clear(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 -o compat=0.10 v2.qcow2 1M");
    set_backing("v2.qcow2", "moved.qcow2");
    sh("qemu-img check v2.qcow2 && qemu-img info v2.qcow2 | grep -q 'compat: 0.10'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bitmaps_snapshots_and_feature_names_stay),
        cmocka_unit_test(test_an_unknown_extension_stays),
        cmocka_unit_test(test_unknown_autoclear_bits_are_cleared_and_others_stay),
        cmocka_unit_test(test_version_2_has_no_bits_to_clear),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
