/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots as disks of their own, against `qemu-img convert -l` and, where the size
 * changed, against `qemu-img snapshot -a` on a copy; and what is refused in their tables.
 */
#include "qemu.h"

#include "bytes.h"
#include "checked.h"
#include "layer.h"
#include "qcow2.h"
#include "qcow2_image.h"

/* -- Content ----------------------------------------------------------------------------------- */

struct reading {
    struct source *src;
    const struct layer_attr *attr;
    uint8_t *disk;
};

static void read_compressed(const struct reading *r, const struct extent *e)
{
    size_t cluster_size = (size_t)1 << r->attr->cluster_bits;
    size_t in_len = (size_t)min_u64(e->compressed_len, r->src->size - e->host_off);
    CLEANUP_FREE uint8_t *in = malloc(in_len), *out = malloc(cluster_size);
    struct cairn_error err;

    assert_int_equal(source_pread(r->src, in, in_len, e->host_off, NULL), CAIRN_OK);
    if (layer_decompress(r->attr->compression, in, in_len, out, cluster_size, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    memcpy(r->disk + e->guest_off, out + (e->guest_off & (cluster_size - 1)), e->len);
}

static int read_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    const struct reading *r = arg;

    assert_true(range_in(e->guest_off, e->len, r->attr->virtual_size));
    if (e->kind == EXTENT_COMPRESSED)
        read_compressed(r, e);
    else if (e->kind == EXTENT_DATA)
        return source_pread_padded(r->src, r->disk + e->guest_off, e->len, e->host_off, err);
    return CAIRN_OK;
}

static uint32_t find(struct source *src, const char *name)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    struct cairn_error err;
    uint32_t index;

    assert_int_equal(qcow2_image_open(src, 0, &image, NULL), CAIRN_OK);
    if (qcow2_snapshot_find(image, name, &index, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    return index;
}

/* The snapshot of image has the content of the raw file expected. */
static void assert_content(const char *image, const char *name, const char *expected)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP_FREE uint8_t *theirs = NULL, *ours = NULL;
    struct cairn_error err;
    struct reading r;
    size_t len;

    assert_int_equal(source_open_file(image, NULL, &src, NULL), CAIRN_OK);
    if (layer_open_snapshot(src, find(src, name), &layer, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    theirs = load_file(expected, &len);
    assert_int_equal(layer_get_attr(layer)->virtual_size, len);
    ours = calloc(1, len + 1);
    r = (struct reading){src, layer_get_attr(layer), ours};
    if (layer_scan(layer, read_extent, &r, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    assert_memory_equal(ours, theirs, len);
}

static void assert_like_convert(const char *image, const char *name)
{
    sh("qemu-img convert -l snapshot.name=%s -O raw %s expected.raw", name, image);
    assert_content(image, name, "expected.raw");
}

/* -- What qemu-img makes ----------------------------------------------------------------------- */

static void check_shape(const char *options)
{
    sh("rm -f s.qcow2; qemu-img create -f qcow2 -o %s s.qcow2 3M; "
       "qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 1536k 70k' s.qcow2; "
       "qemu-img snapshot -c one s.qcow2; "
       "qemu-io -c 'write -P 3 512k 200k' -c 'write -z 1536k 64k' -c 'discard 0 128k' s.qcow2; "
       "qemu-img snapshot -c two s.qcow2; "
       "qemu-io -c 'write -P 4 0 3M' s.qcow2; qemu-img snapshot -c three s.qcow2; "
       "qemu-io -c 'write -z 0 2M' s.qcow2",
       options);
    assert_like_convert("s.qcow2", "one");
    assert_like_convert("s.qcow2", "two");
    assert_like_convert("s.qcow2", "three");
}

static void test_snapshots_of_all_shapes(void **state)
{
    (void)state;
    check_shape("cluster_size=64k");
    check_shape("cluster_size=512");
    check_shape("cluster_size=2M");
    check_shape("compat=0.10,cluster_size=4k");
    check_shape("extended_l2=on,cluster_size=128k");
    check_shape("refcount_bits=64,cluster_size=4k");
}

static void test_compressed_clusters_of_a_snapshot(void **state)
{
    const char *types[] = {"zlib", "zstd"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        sh("rm -f c.qcow2; qemu-img create -f qcow2 -o compression_type=%s c.qcow2 1M", types[i]);
        sh("qemu-io -c 'write -c -P 7 64k 64k' c.qcow2; qemu-img snapshot -c packed c.qcow2; "
           "qemu-io -c 'write -P 8 64k 64k' c.qcow2");
        assert_like_convert("c.qcow2", "packed");
    }
}

/* QEMU 7.2 shows a snapshot in the active disk's size: applying it to a copy does better. */
static void test_the_disk_size_is_the_snapshots(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 -o cluster_size=4k r.qcow2 3M; qemu-io -c 'write -P 1 0 3M' "
       "r.qcow2; qemu-img snapshot -c small r.qcow2; qemu-img resize r.qcow2 9M; "
       "qemu-io -c 'write -P 2 2M 7M' r.qcow2; qemu-img snapshot -c large r.qcow2; "
       "qemu-img resize --shrink r.qcow2 1M");
    for (int i = 0; i < 2; i++) {
        const char *name = i ? "large" : "small";

        sh("cp r.qcow2 copy.qcow2; qemu-img snapshot -a %s copy.qcow2; "
           "qemu-img convert -O raw copy.qcow2 applied.raw",
           name);
        assert_content("r.qcow2", name, "applied.raw");
    }
}

static void test_vm_state_is_no_part_of_the_disk(void **state)
{
    struct source *src;
    struct qcow2_image *image;
    const struct qcow2_snapshot *list;
    uint32_t nr;

    (void)state;
    sh("qemu-img create -f qcow2 -o cluster_size=64k v.qcow2 1M; "
       "qemu-io -c 'write -P 5 0 1M' v.qcow2; "
       "printf 'savevm state\\nquit\\n' | qemu-system-x86_64 -accel tcg -nodefaults -display none "
       "-machine none -monitor stdio -drive if=none,file=v.qcow2,format=qcow2");
    assert_int_equal(source_open_file("v.qcow2", NULL, &src, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_open(src, 0, &image, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_snapshots(image, &list, &nr, NULL), CAIRN_OK);
    assert_int_equal(nr, 1);
    assert_true(list[0].vm_state_size > 0);
    qcow2_image_free(image);
    source_free(src);
    assert_like_convert("v.qcow2", "state");
}

/* -- Names ------------------------------------------------------------------------------------- */

static int find_code(const char *name, uint32_t *ret_index, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;

    assert_int_equal(source_open_file("n.qcow2", NULL, &src, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_open(src, 0, &image, NULL), CAIRN_OK);
    return qcow2_snapshot_find(image, name, ret_index, err);
}

static void test_a_snapshot_is_found_by_name_or_id(void **state)
{
    struct cairn_error err;
    uint32_t index;

    (void)state;
    sh("qemu-img create -f qcow2 n.qcow2 1M; for s in a b 1; do qemu-img snapshot -c $s n.qcow2; "
       "done");
    assert_int_equal(find_code("b", &index, &err), CAIRN_OK);
    assert_int_equal(index, 1);
    assert_int_equal(find_code("3", &index, &err), CAIRN_OK);
    assert_int_equal(index, 2);
    assert_int_equal(find_code("c", &index, &err), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "none of its 3 snapshots has the name or ID \"c\""));
    assert_int_equal(find_code("1", &index, &err), CAIRN_E_CONFLICT);
    assert_non_null(strstr(err.message, "2 snapshots have the name or ID \"1\""));
}

/* -- What is refused --------------------------------------------------------------------------- */

/* A snapshot table entry, an L1 entry or an L2 entry of a good image, poked. */
struct refusal {
    const char *name;
    enum { IN_ENTRY, IN_L1, IN_L2 } where;
    unsigned at, width;
    uint64_t value;
    int code;
    const char *why;
};

static const struct refusal refusals[] = {
    {"l1 misaligned", IN_ENTRY, QCOW2_SNAP_L1_TABLE_OFFSET, 8, 0x12345, CAIRN_E_CORRUPT,
     "L1 table of snapshot \"s\" at 0x12345 is not aligned"},
    {"l1 past the end", IN_ENTRY, QCOW2_SNAP_L1_TABLE_OFFSET, 8, UINT64_C(1) << 40, CAIRN_E_CORRUPT,
     "reaches past the end of the file"},
    {"l1 in the header", IN_ENTRY, QCOW2_SNAP_L1_TABLE_OFFSET, 8, 0, CAIRN_E_CORRUPT,
     "overlaps the header at 0x0"},
    {"l1 too short", IN_ENTRY, QCOW2_SNAP_L1_SIZE, 4, 0, CAIRN_E_CORRUPT,
     "l1_size 0 is below the 1"},
    {"l1 too long", IN_ENTRY, QCOW2_SNAP_L1_SIZE, 4, 0xffffffff, CAIRN_E_LIMIT,
     "l1_size 4294967295 is above the limit"},
    {"disk too large", IN_ENTRY, QCOW2_SNAP_LENGTH + QCOW2_SNAP_EXTRA_DISK_SIZE, 8,
     UINT64_C(1) << 62, CAIRN_E_LIMIT, "disk size 4611686018427387904 is above the limit"},
    {"disk larger than the table", IN_ENTRY, QCOW2_SNAP_LENGTH + QCOW2_SNAP_EXTRA_DISK_SIZE, 8,
     UINT64_C(1) << 40, CAIRN_E_CORRUPT, "l1_size 1 is below the 2048 that a disk"},
    {"l1 reserved bits", IN_L1, 0, 8, UINT64_C(1) << 56, CAIRN_E_CORRUPT, "L1 entry 0 is 0x1"},
    {"l2 past the end", IN_L1, 0, 8, UINT64_C(0x7fffffff0000), CAIRN_E_CORRUPT,
     "L2 table 0 at 0x7fffffff0000"},
    {"l2 is the header", IN_L1, 0, 8, QCOW2_OFLAG_COPIED, CAIRN_E_CORRUPT, "L1 entry 0 is 0x8"},
    {"reserved bits", IN_L2, 0, 8, UINT64_C(1) << 1, CAIRN_E_CORRUPT, "reserved bits 0x2"},
    {"data past the end", IN_L2, 0, 8, UINT64_C(0x7fffffff0000), CAIRN_E_CORRUPT,
     "begins past the end of the file"},
    {"data in the refcount table", IN_L2, 0, 8, 0x10000, CAIRN_E_CORRUPT, "lies in the refcount"},
};

static void poke(uint8_t *at, unsigned width, uint64_t value)
{
    if (width == 8)
        bytes_put_be64(at, value);
    else
        bytes_put_be32(at, (uint32_t)value);
}

static uint64_t place_of(const uint8_t *image, const struct refusal *refusal)
{
    uint64_t entry = bytes_get_be64(image + QCOW2_HDR_SNAPSHOTS_OFFSET);
    uint64_t l1 = bytes_get_be64(image + entry + QCOW2_SNAP_L1_TABLE_OFFSET);

    if (refusal->where == IN_ENTRY)
        return entry + refusal->at;
    if (refusal->where == IN_L1)
        return l1 + refusal->at;
    return (bytes_get_be64(image + l1) & QCOW2_OFFSET_MASK) + refusal->at;
}

static int ignore(void *arg, const struct extent *e, struct cairn_error *err)
{
    (void)arg;
    (void)e;
    (void)err;
    return CAIRN_OK;
}

static int scan_first(const uint8_t *bytes, size_t len, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;

    assert_int_equal(source_from_memory(bytes, len, "layer x", &src, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_open(src, 0, &image, err), CAIRN_OK);
    return qcow2_snapshot_scan(image, 0, ignore, NULL, err);
}

static void test_wrong_tables_are_refused(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 p.qcow2 1M; qemu-io -c 'write -P 1 0 128k' p.qcow2; "
       "qemu-img snapshot -c s p.qcow2; qemu-io -c 'write -P 2 0 128k' p.qcow2");
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        CLEANUP_FREE uint8_t *bytes = NULL;
        struct cairn_error err;
        size_t len;

        bytes = load_file("p.qcow2", &len);
        assert_int_equal(scan_first(bytes, len, &err), CAIRN_OK);
        poke(bytes + place_of(bytes, &refusals[i]), refusals[i].width, refusals[i].value);
        if (scan_first(bytes, len, &err) != refusals[i].code ||
            !strstr(err.message, refusals[i].why) || strncmp(err.message, "layer x: ", 9) != 0)
            fail_msg("%s: %s", refusals[i].name, err.message);
    }
}

static void test_without_a_disk_size_it_is_the_images(void **state)
{
    CLEANUP_FREE uint8_t *bytes = NULL;
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_snapshot *list;
    uint64_t entry;
    uint32_t nr;
    size_t len;

    (void)state;
    bytes = load_file("p.qcow2", &len);
    entry = bytes_get_be64(bytes + QCOW2_HDR_SNAPSHOTS_OFFSET);
    bytes_put_be32(bytes + entry + QCOW2_SNAP_EXTRA_LEN, 0);
    memmove(bytes + entry + QCOW2_SNAP_LENGTH, bytes + entry + QCOW2_SNAP_LENGTH + 24, 8);
    assert_int_equal(source_from_memory(bytes, len, "layer x", &src, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_open(src, 0, &image, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_snapshots(image, &list, &nr, NULL), CAIRN_OK);
    assert_int_equal(list[0].disk_size, 1 << 20);
    assert_string_equal(list[0].name, "s");
    assert_int_equal(qcow2_snapshot_scan(image, 0, ignore, NULL, NULL), CAIRN_OK);
}

/* The first snapshot of p.qcow2 with so many bytes of extra data: the first 8 are the size of the
 * VM state, the next 8 that of the disk, what follows we do not know. */
static void list_with_extra(uint32_t extra_len, uint64_t *ret_vm_state, uint64_t *ret_disk)
{
    CLEANUP_FREE uint8_t *bytes = NULL;
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_snapshot *list;
    uint8_t *entry, *extra;
    uint32_t nr;
    size_t len;

    bytes = load_file("p.qcow2", &len);
    entry = bytes + bytes_get_be64(bytes + QCOW2_HDR_SNAPSHOTS_OFFSET);
    extra = entry + QCOW2_SNAP_LENGTH;
    memmove(extra + extra_len, extra + bytes_get_be32(entry + QCOW2_SNAP_EXTRA_LEN), 8);
    bytes_put_be32(entry + QCOW2_SNAP_EXTRA_LEN, extra_len);
    bytes_put_be32(entry + QCOW2_SNAP_VM_STATE_SIZE32, 111);
    for (uint32_t i = 0; i < extra_len; i += 8)
        bytes_put_be64(extra + i, i == 0 ? UINT64_C(1) << 33 : 65536 + i);
    assert_int_equal(source_from_memory(bytes, len, "layer x", &src, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_open(src, 0, &image, NULL), CAIRN_OK);
    assert_int_equal(qcow2_image_snapshots(image, &list, &nr, NULL), CAIRN_OK);
    assert_string_equal(list[0].name, "s");
    *ret_vm_state = list[0].vm_state_size;
    *ret_disk = list[0].disk_size;
}

static void test_extra_data_counts_as_far_as_it_reaches(void **state)
{
    uint64_t vm_state, disk;

    (void)state;
    list_with_extra(0, &vm_state, &disk);
    assert_int_equal(vm_state, 111);
    assert_int_equal(disk, 1 << 20); /* the image's */
    list_with_extra(8, &vm_state, &disk);
    assert_int_equal(vm_state, UINT64_C(1) << 33);
    assert_int_equal(disk, 1 << 20);
    for (uint32_t len = 16; len <= 40; len += 8) {
        list_with_extra(len, &vm_state, &disk);
        assert_int_equal(vm_state, UINT64_C(1) << 33);
        assert_int_equal(disk, 65536 + 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapshots_of_all_shapes),
        cmocka_unit_test(test_compressed_clusters_of_a_snapshot),
        cmocka_unit_test(test_the_disk_size_is_the_snapshots),
        cmocka_unit_test(test_vm_state_is_no_part_of_the_disk),
        cmocka_unit_test(test_a_snapshot_is_found_by_name_or_id),
        cmocka_unit_test(test_wrong_tables_are_refused),
        cmocka_unit_test(test_without_a_disk_size_it_is_the_images),
        cmocka_unit_test(test_extra_data_counts_as_far_as_it_reaches),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
