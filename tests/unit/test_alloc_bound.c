/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What reading a small image takes of memory has a bound, whatever the image says of itself
 * (engine/README.md, "Memory").  The fuzzers hold millions of images to it; here are those that
 * once took more, and good ones.
 */
#include "qemu.h"

#include "alloc_meter.h"
#include "bytes.h"
#include "fuzz_disk.h"
#include "qcow2.h"
#include "qcow2_image.h"

#define SMALL ((size_t)64 << 10)

/* True: its first 64 KiB have been read. */
static bool read_layer(struct source *src, struct layer *layer)
{
    static uint8_t buf[SMALL];
    struct fuzz_disk disk;
    bool ok = fuzz_disk_init(&disk, src, layer);

    ok = ok && disk.l1->virtual_size >= sizeof(buf) &&
         fuzz_disk_read(&disk, buf, sizeof(buf), 0, NULL);
    fuzz_disk_release(&disk);
    return ok;
}

/* Everything that reading is, within the bound: the meter aborts above it. */
static bool read_image(const uint8_t *bytes, size_t len)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL, *snapshot = NULL;
    struct cairn_error err;
    bool ok = false;

    assert_true(len <= SMALL);
    assert_int_equal(source_from_memory(bytes, len, "image", &src, &err), CAIRN_OK);
    alloc_meter_start(alloc_bound_reading(len));
    fuzz_list(src);
    if (layer_open(src, LAYER_QCOW2, &layer, &err) == CAIRN_OK)
        ok = read_layer(src, layer);
    if (layer && layer_open_snapshot(src, 0, &snapshot, &err) == CAIRN_OK)
        (void)read_layer(src, snapshot);
    assert_true(alloc_meter_stop() > 0); /* the meter works */
    return ok;
}

static uint8_t *make(const char *options, const char *commands, size_t *ret_len)
{
    sh("qemu-img create -q -f qcow2 -o %s i 64k && qemu-io %s i", options, commands);
    return load_file("i", ret_len);
}

static void test_good_images(void **state)
{
    const char *const options[] = {
        "cluster_size=512",
        "cluster_size=4k,compression_type=zstd",
        "cluster_size=4k",
        "cluster_size=512,refcount_bits=64",
        "compat=0.10,cluster_size=1k",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        size_t len;
        CLEANUP_FREE uint8_t *bytes =
            make(options[i], "-c 'write -P 1 8k 4k' -c 'write -c -P 2 16k 4k'", &len);

        assert_true(read_image(bytes, len));
    }
}

/* A file of some kilobytes that says that its clusters have 2 MiB. */
static void test_large_clusters(void **state)
{
    size_t len;
    CLEANUP_FREE uint8_t *bytes = make("cluster_size=512", "-c 'write 0 1k'", &len);

    (void)state;
    bytes_put_be32(bytes + QCOW2_HDR_CLUSTER_BITS, QCOW2_CLUSTER_BITS_MAX);
    assert_false(read_image(bytes, len));
    bytes_put_be64(bytes + QCOW2_HDR_SIZE, 0);
    bytes_put_be32(bytes + QCOW2_HDR_L1_SIZE, 0);
    assert_false(read_image(bytes, len));
}

static void test_many_bitmaps(void **state)
{
    size_t len;
    CLEANUP_FREE uint8_t *bytes = NULL;

    (void)state;
    sh("qemu-img create -q -f qcow2 -o cluster_size=1k i 64k && qemu-img bitmap --add i b");
    bytes = load_file("i", &len);
    for (size_t off = QCOW2_HDR_FULL_LENGTH; off < 1024; off += 8)
        if (bytes_get_be32(bytes + off) == QCOW2_EXT_BITMAPS)
            bytes_put_be32(bytes + off + QCOW2_EXT_HEADER_LEN, QCOW2_BITMAPS_MAX);
    (void)read_image(bytes, len); /* refused or not: the meter is the test */
}

static void test_many_snapshots_and_a_large_disk(void **state)
{
    size_t len;
    CLEANUP_FREE uint8_t *bytes = NULL;
    uint64_t table;

    (void)state;
    sh("qemu-img create -q -f qcow2 -o cluster_size=512 i 64k && qemu-img snapshot -c one i");
    bytes = load_file("i", &len);
    table = bytes_get_be64(bytes + QCOW2_HDR_SNAPSHOTS_OFFSET);
    bytes_put_be64(bytes + table + QCOW2_SNAP_LENGTH + QCOW2_SNAP_EXTRA_DISK_SIZE,
                   CHAIN_VIRTUAL_SIZE_MAX);
    assert_true(read_image(bytes, len));
    bytes_put_be32(bytes + QCOW2_HDR_NB_SNAPSHOTS, QCOW2_SNAPSHOTS_MAX);
    assert_false(read_image(bytes, len));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_images),
        cmocka_unit_test(test_large_clusters),
        cmocka_unit_test(test_many_bitmaps),
        cmocka_unit_test(test_many_snapshots_and_a_large_disk),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
