/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps: what is dirty, against `qemu-nbd -B` asked through `nbdinfo --map`; and what
 * is refused in them.
 */
#include "qemu.h"

#include <jansson.h>

#include "bytes.h"
#include "checked.h"
#include "qcow2.h"
#include "qcow2_image.h"

struct range {
    uint64_t start, len;
};

struct ranges {
    struct range r[4096];
    size_t nr;
};

/* -- What we read ------------------------------------------------------------------------------ */

static int collect(void *arg, uint64_t guest_off, uint64_t len, struct cairn_error *err)
{
    struct ranges *ranges = arg;

    (void)err;
    assert_true(len > 0 && ranges->nr < sizeof(ranges->r) / sizeof(ranges->r[0]));
    if (ranges->nr > 0) /* in order, not adjacent */
        assert_true(ranges->r[ranges->nr - 1].start + ranges->r[ranges->nr - 1].len < guest_off);
    ranges->r[ranges->nr++] = (struct range){guest_off, len};
    return CAIRN_OK;
}

static int scan(struct source *src, const char *name, struct ranges *ret, struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    uint32_t index;
    int r = qcow2_image_open(src, 0, &image, err);

    ret->nr = 0;
    if (r == CAIRN_OK)
        r = qcow2_bitmap_find(image, name, &index, err);
    return r == CAIRN_OK ? qcow2_bitmap_scan(image, index, collect, ret, err) : r;
}

static void scan_file(const char *path, const char *name, struct ranges *ret)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    struct cairn_error err;

    assert_int_equal(source_open_file(path, NULL, &src, NULL), CAIRN_OK);
    if (scan(src, name, ret, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
}

/* -- What QEMU says ---------------------------------------------------------------------------- */

/* qemu-nbd 7.2 rounds its export's size down to sectors, as we do. */
static void ask_qemu(const char *path, const char *name, struct ranges *ret)
{
    json_t *map, *entry;
    size_t i;

    sh("nbdinfo --map=qemu:dirty-bitmap:%s --json -- [ qemu-nbd -r -f qcow2 -B %s %s ]", name, name,
       path);
    map = json_load_file("sh.log", 0, NULL);
    assert_non_null(map);
    ret->nr = 0;
    json_array_foreach(map, i, entry)
    {
        struct range r = {(uint64_t)json_integer_value(json_object_get(entry, "offset")),
                          (uint64_t)json_integer_value(json_object_get(entry, "length"))};
        struct range *last = ret->nr > 0 ? &ret->r[ret->nr - 1] : NULL;

        if (json_integer_value(json_object_get(entry, "type")) == 0)
            continue;
        if (last && last->start + last->len == r.start)
            last->len += r.len;
        else
            ret->r[ret->nr++] = r;
    }
    json_decref(map);
}

static size_t assert_like_qemu(const char *path, const char *name)
{
    CLEANUP_FREE struct ranges *ours = malloc(sizeof(*ours)), *theirs = malloc(sizeof(*theirs));

    scan_file(path, name, ours);
    ask_qemu(path, name, theirs);
    assert_int_equal(ours->nr, theirs->nr);
    assert_memory_equal(ours->r, theirs->r, ours->nr * sizeof(ours->r[0]));
    return ours->nr;
}

static void test_dirty_ranges_are_qemus(void **state)
{
    static const struct {
        const char *options, *size, *granularity;
    } shapes[] = {
        {"cluster_size=64k", "64M", "64k"},   {"cluster_size=512", "5000k", "512"},
        {"cluster_size=64k", "5000k", "512"}, {"cluster_size=1k", "64M", "4k"},
        {"cluster_size=512", "3G", "64k"},    {"cluster_size=64k", "12345856", "32k"},
        {"extended_l2=on", "100M", "2M"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        sh("rm -f d.qcow2; qemu-img create -f qcow2 -o %s d.qcow2 %s; "
           "qemu-img bitmap --add -g %s d.qcow2 b; "
           "qemu-io -c 'write 0 1' -c 'write 100k 3k' -c 'write 1M 300k' -c 'write 4999k 1k' "
           "-c 'write -z 2M 2M' d.qcow2",
           shapes[i].options, shapes[i].size, shapes[i].granularity);
        assert_true(assert_like_qemu("d.qcow2", "b") > 0);
    }
}

static void test_an_empty_bitmap(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 e.qcow2 64M; qemu-img bitmap --add e.qcow2 b; "
       "qemu-img bitmap --add --disable e.qcow2 off; qemu-io -c 'write 0 1M' e.qcow2");
    assert_int_equal(assert_like_qemu("e.qcow2", "b"), 1);
    assert_int_equal(assert_like_qemu("e.qcow2", "off"), 0);
}

static void test_a_full_bitmap_ends_with_the_disk(void **state)
{
    CLEANUP_FREE struct ranges *ours = malloc(sizeof(*ours));

    (void)state;
    sh("qemu-img create -f qcow2 -o cluster_size=512 f.qcow2 12345856; "
       "qemu-img bitmap --add -g 512 f.qcow2 b; qemu-io -c 'write -z 0 12345856' f.qcow2");
    assert_like_qemu("f.qcow2", "b");
    scan_file("f.qcow2", "b", ours);
    assert_int_equal(ours->nr, 1);
    assert_int_equal(ours->r[0].start, 0);
    assert_int_equal(ours->r[0].len, 12345856);
}

/* -- Pokes ------------------------------------------------------------------------------------- */

/* An image in memory with one bitmap "b" of one table entry, which points to its data. */
struct subject {
    uint8_t *bytes;
    size_t len;
    uint8_t *entry; /* of the directory */
    uint8_t *table;
};

/* The data of the bitmaps extension. */
static uint8_t *extension_of(const struct subject *s)
{
    size_t ext = QCOW2_HDR_FULL_LENGTH;

    while (bytes_get_be32(s->bytes + ext) != QCOW2_EXT_BITMAPS)
        ext += 8;
    return s->bytes + ext + QCOW2_EXT_HEADER_LEN;
}

static void load(struct subject *s)
{
    s->bytes = load_file("p.qcow2", &s->len);
    s->entry = s->bytes + bytes_get_be64(extension_of(s) + 16);
    s->table = s->bytes + bytes_get_be64(s->entry + QCOW2_BITMAP_TABLE_OFFSET);
}

static int scan_subject(struct subject *s, struct ranges *ret, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;

    assert_int_equal(source_from_memory(s->bytes, s->len, "layer x", &src, NULL), CAIRN_OK);
    return scan(src, "b", ret, err);
}

static int setup(void **state)
{
    if (qemu_setup(state) != 0)
        return -1;
    sh("qemu-img create -f qcow2 p.qcow2 1M; qemu-img bitmap --add p.qcow2 b; "
       "qemu-io -c 'write 64k 64k' p.qcow2; truncate -s 1M p.qcow2");
    return 0;
}

static void assert_refused(struct subject *s, int code, const char *why)
{
    CLEANUP_FREE struct ranges *ours = malloc(sizeof(*ours));
    struct cairn_error err;

    if (scan_subject(s, ours, &err) != code || !strstr(err.message, why) ||
        strncmp(err.message, "layer x: ", 9) != 0)
        fail_msg("expected \"%s\", got: %s", why, err.message);
    free(s->bytes);
}

static void test_an_all_ones_entry_needs_no_data(void **state)
{
    CLEANUP_FREE struct ranges *ours = malloc(sizeof(*ours));
    struct subject s;

    (void)state;
    load(&s);
    bytes_put_be64(s.table, QCOW2_BME_ALL_ONES);
    assert_int_equal(scan_subject(&s, ours, NULL), CAIRN_OK);
    assert_int_equal(ours->nr, 1);
    assert_int_equal(ours->r[0].len, 1 << 20);
    bytes_put_be64(s.table, 0);
    assert_int_equal(scan_subject(&s, ours, NULL), CAIRN_OK);
    assert_int_equal(ours->nr, 0);
    free(s.bytes);
}

static void test_a_huge_granule_reaches_past_the_end(void **state)
{
    CLEANUP_FREE struct ranges *ours = malloc(sizeof(*ours));
    struct subject s;

    (void)state;
    load(&s);
    s.entry[QCOW2_BITMAP_GRANULARITY] = 63;
    bytes_put_be64(s.table, QCOW2_BME_ALL_ONES);
    assert_int_equal(scan_subject(&s, ours, NULL), CAIRN_OK);
    assert_int_equal(ours->nr, 1);
    assert_int_equal(ours->r[0].len, 1 << 20);
    free(s.bytes);
}

static void test_a_bitmap_in_use_is_refused(void **state)
{
    struct subject s;

    (void)state;
    load(&s);
    bytes_put_be32(s.entry + QCOW2_BITMAP_FLAGS, QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO);
    assert_refused(&s, CAIRN_E_CORRUPT, "bitmap \"b\": marked as in use");
}

static void test_stale_bitmaps_are_refused(void **state)
{
    struct subject s;

    (void)state;
    load(&s);
    bytes_put_be64(s.bytes + QCOW2_HDR_AUTOCLEAR_FEATURES, 0);
    assert_refused(&s, CAIRN_E_CORRUPT, "its bitmaps are inconsistent");
}

static void test_unknown_bitmaps_are_refused(void **state)
{
    struct subject s;

    (void)state;
    load(&s);
    s.entry[QCOW2_BITMAP_TYPE] = 2;
    assert_refused(&s, CAIRN_E_UNSUPPORTED, "bitmap \"b\": type 2, expected 1");
    load(&s);
    bytes_put_be32(s.entry + QCOW2_BITMAP_FLAGS, 0x102);
    assert_refused(&s, CAIRN_E_UNSUPPORTED, "bitmap \"b\": unknown flags 0x100");
}

/* Eight bytes of extra data, which make the directory's only entry longer by as many. */
static void load_with_extra_data(struct subject *s, uint32_t flags)
{
    uint8_t *ext;

    load(s);
    memmove(s->entry + QCOW2_BITMAP_LENGTH + 8, s->entry + QCOW2_BITMAP_LENGTH, 8);
    memset(s->entry + QCOW2_BITMAP_LENGTH, 0xee, 8);
    bytes_put_be32(s->entry + QCOW2_BITMAP_EXTRA_LEN, 8);
    bytes_put_be32(s->entry + QCOW2_BITMAP_FLAGS, flags);
    ext = extension_of(s);
    bytes_put_be64(ext + 8, bytes_get_be64(ext + 8) + 8);
}

static void test_extra_data_is_refused_unless_it_may_be_ignored(void **state)
{
    CLEANUP_FREE struct ranges *ours = malloc(sizeof(*ours));
    struct cairn_error err;
    struct subject s;

    (void)state;
    load_with_extra_data(&s, QCOW2_BITMAP_AUTO);
    assert_refused(&s, CAIRN_E_UNSUPPORTED,
                   "bitmap \"b\": 8 bytes of extra data that must be understood");
    load_with_extra_data(&s, QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA_KNOWN);
    assert_int_equal(scan_subject(&s, ours, &err), CAIRN_OK);
    assert_int_equal(ours->nr, 1);
    free(s.bytes);
}

static void test_wrong_tables_are_refused(void **state)
{
    struct subject s;

    (void)state;
    load(&s);
    bytes_put_be32(s.entry + QCOW2_BITMAP_TABLE_SIZE, 2);
    assert_refused(&s, CAIRN_E_CORRUPT, "its table has 2 entries, expected 1");
    load(&s);
    bytes_put_be64(s.entry + QCOW2_BITMAP_TABLE_OFFSET, 0x12345);
    assert_refused(&s, CAIRN_E_CORRUPT, "table at 0x12345 is not aligned");
    load(&s);
    bytes_put_be64(s.entry + QCOW2_BITMAP_TABLE_OFFSET, UINT64_C(1) << 60);
    assert_refused(&s, CAIRN_E_CORRUPT, "reaches past the end of the file");
}

static void test_wrong_entries_are_refused(void **state)
{
    static const struct {
        uint64_t entry;
        const char *why;
    } cases[] = {
        {UINT64_C(1) << 56, "table entry 0 is 0x100000000000000: reserved bits"},
        {2, "table entry 0 is 0x2: reserved bits"},
        {0x50001, "table entry 0 is 0x50001: reserved bits"},
        {0x50200, "data of table entry 0 at 0x50200 is not aligned"},
        {UINT64_C(0x7fffffff0000), "data of table entry 0 at 0x7fffffff0000"},
        {0x10000, "overlaps the refcount table at 0x10000"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct subject s;

        load(&s);
        bytes_put_be64(s.table, cases[i].entry);
        assert_refused(&s, CAIRN_E_CORRUPT, cases[i].why);
    }
}

static void test_no_such_bitmap(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    struct cairn_error err;
    struct ranges none;

    (void)state;
    assert_int_equal(source_open_file("p.qcow2", NULL, &src, NULL), CAIRN_OK);
    assert_int_equal(scan(src, "c", &none, &err), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "none of its 1 bitmaps has the name \"c\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dirty_ranges_are_qemus),
        cmocka_unit_test(test_an_empty_bitmap),
        cmocka_unit_test(test_a_full_bitmap_ends_with_the_disk),
        cmocka_unit_test(test_an_all_ones_entry_needs_no_data),
        cmocka_unit_test(test_a_huge_granule_reaches_past_the_end),
        cmocka_unit_test(test_a_bitmap_in_use_is_refused),
        cmocka_unit_test(test_stale_bitmaps_are_refused),
        cmocka_unit_test(test_unknown_bitmaps_are_refused),
        cmocka_unit_test(test_extra_data_is_refused_unless_it_may_be_ignored),
        cmocka_unit_test(test_wrong_tables_are_refused),
        cmocka_unit_test(test_wrong_entries_are_refused),
        cmocka_unit_test(test_no_such_bitmap),
    };

    return cmocka_run_group_tests(tests, setup, qemu_teardown);
}
